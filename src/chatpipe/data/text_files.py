"""The text of a file in chunks, lines or pieces: unpacked, decoded, with line ends as `\\n`."""

import bz2
import codecs
import gzip
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from chatpipe.errors import UsageError

CHUNK_BYTES = 1 << 20
PIECE_CHARACTERS = 100_000
"""A longer document comes in pieces of about this size."""

# At these places a text can be cut in two parts whose tokens are those of the whole: see `encoding.cuts_cleanly`.
CLEAN_CUT = re.compile(r"(?= [A-Za-z])(?<=[A-Za-z])|(?<=\S\n)(?=\w)")


PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Endings of packed files, which are unpacked while they are read."""


def kind_of(path: Path) -> str:
    """The kind of a file by its name: `.txt`, `.jsonl`, ... (`a.jsonl.gz` and `A.JSONL` are `.jsonl` too)."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def open_bytes(path: Path) -> Any:
    """The bytes of a file as a binary stream, unpacked where its name says that it is packed."""
    suffix = path.suffix.lower()
    if suffix == ".zst":
        import pyarrow  # has zstd built in, which Python has from 3.14 on

        return pyarrow.input_stream(str(path), compression="zstd")
    opened: Mapping[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return opened.get(suffix, open)(path, "rb")


def text_chunks(path: Path) -> Iterator[str]:
    """The file's text in order, some 1 MB at a time; a byte order mark is left out.

    It is UTF-8, or UTF-16 with a byte order mark, as spreadsheets write it. Raises `UsageError` naming file and byte
    where it is not, not text at all, or broken gzip.
    """
    decoder: codecs.IncrementalDecoder | None = None
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    read = 0
    for block in _blocks(path):
        if decoder is None:
            utf16 = block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            decoder = codecs.getincrementaldecoder("utf-16" if utf16 else "utf-8-sig")()
        chunk = newlines.decode(_decode(decoder, block, read, path), final=not block)
        if "\0" in chunk:
            raise UsageError(f"{path} is not text: it holds zero bytes.", "Give text files; is it a binary file?")
        if chunk:
            yield chunk
        read += len(block)


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line without its end, and its number from 1 on. Raises as `text_chunks` does."""
    number, rest = 0, ""
    for chunk in text_chunks(path):
        # At "\n" alone: splitlines() would also split inside strings that hold U+2028 or U+0085.
        *lines, rest = (rest + chunk).split("\n") if "\n" in chunk else [rest + chunk]
        for line in lines:
            number += 1
            yield number, line
    if rest:
        yield number + 1, rest


def _blocks(path: Path) -> Iterator[bytes]:
    """The file's bytes in blocks, an empty one at the end."""
    try:
        with open_bytes(path) as file:
            while block := file.read(CHUNK_BYTES):
                yield block
        yield b""
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as problem:
        if path.suffix.lower() not in PACKED or (isinstance(problem, OSError) and problem.errno is not None):
            raise
        kind = "gzip" if path.suffix.lower() == ".gz" else path.suffix[1:].lower()
        raise UsageError(f"{path} is not a whole {kind} file: {problem}.", "Fetch or pack it again.") from problem


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, read: int, path: Path) -> str:
    """`block` as text; `read` bytes of the file came before it."""
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final=not block)
    except UnicodeDecodeError as problem:
        raise UsageError(
            f"{path} is not UTF-8 text: byte {read - pending + problem.start} cannot be read.",
            "Convert it, e.g. with iconv; is it a binary file?",
        ) from problem


# ---- long texts ----


def in_pieces(chunks: Iterable[str]) -> Iterator[str]:
    """The text of all `chunks` in pieces cut at clean places, or after two pieces' length where there is none."""
    rest = ""
    for chunk in chunks:
        *parts, rest = list(cut(rest + chunk, PIECE_CHARACTERS, 2 * PIECE_CHARACTERS)) or [""]
        yield from parts
    if rest:
        yield rest


def cut(text: str, size: int, longest: int) -> Iterator[str]:
    """`text` in parts of `size` characters or a few more, cut only where the tokens stay the same.

    A part without such a place is cut after `longest` characters.
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
    """The number of characters of a file and the SHA-256 of its text. Raises `UsageError` for a blank file."""
    characters, blank, digest = 0, True, hashlib.sha256()
    for chunk in text_chunks(path):
        characters += len(chunk)
        blank = blank and not chunk.strip()
        digest.update(chunk.encode())
    if blank:
        raise UsageError(f"{key}: {path} is empty.", "Give a file with text in it.")
    return characters, digest.digest()


def line_start(chunks: Iterable[str]) -> int:
    """The offset of the first line start with text behind it; 0 where there is none."""
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
