"""Texts of which no more than a piece should be in memory: where they are cut, and which part is held out."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from chatpipe.data.text_files import text_chunks
from chatpipe.errors import UsageError

PIECE_CHARACTERS = 100_000
"""A longer document comes in pieces of about this size."""

# The places at which a text can be cut in two that tokenise as the whole does: see `encoding.cuts_cleanly`.
CLEAN_CUT = re.compile(r"(?= [A-Za-z])(?<=[A-Za-z])|(?<=\S\n)(?=\w)")


def in_pieces(chunks: Iterable[str]) -> Iterator[str]:
    """The text of all `chunks`, cut at clean places whatever the chunks are; where there are none, after two pieces."""
    rest = ""
    for chunk in chunks:
        *parts, rest = list(cut(rest + chunk, PIECE_CHARACTERS, 2 * PIECE_CHARACTERS)) or [""]
        yield from parts
    if rest:
        yield rest


def cut(text: str, size: int, longest: int) -> Iterator[str]:
    """`text` in parts of `size` characters and a little more, cut only where it tokenises as the whole does.

    A part that has no such place is cut after `longest` characters.
    """
    start = 0
    while len(text) - start > size:
        window = start + longest
        found = CLEAN_CUT.search(text, start + size, window)
        if found is None and window > len(text) - 1:
            break
        end = window if found is None else found.end()
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def survey(path: Path, key: str) -> tuple[int, bytes]:
    """How many characters the file has, and the SHA-256 of its text. Raises `UsageError` where that is blank."""
    characters, blank, digest = 0, True, hashlib.sha256()
    for chunk in text_chunks(path):
        characters += len(chunk)
        blank = blank and not chunk.strip()
        digest.update(chunk.encode())
    if blank:
        raise UsageError(f"{key}: {path} is empty.", "Give a file with text in it.")
    return characters, digest.digest()


def line_start(chunks: Iterable[str]) -> int:
    """How far into the text the first line begins that has something behind it; 0 where none does."""
    passed, start = 0, 0
    for chunk in chunks:
        if not start and "\n" in chunk:
            start = passed + chunk.index("\n") + 1
        if start and chunk[max(start - passed, 0) :].strip():
            return start
        passed += len(chunk)
    return 0


def characters_between(path: Path, start: int, end: int | None) -> Iterator[str]:
    """The characters of a file from `start` up to `end`."""
    at = 0
    for chunk in text_chunks(path):
        part = chunk[max(start - at, 0) : None if end is None else max(end - at, 0)]
        if part:
            yield part
        at += len(chunk)
        if end is not None and at >= end:
            return
