"""The text of a file, a chunk or a line at a time: unpacked, decoded, with line ends as `\\n`."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from chatpipe.errors import UsageError

CHUNK_BYTES = 1 << 20


def open_bytes(path: Path) -> IO[bytes] | gzip.GzipFile:
    """The bytes of a file; those inside where it is gzipped."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def text_chunks(path: Path) -> Iterator[str]:
    """The file's text in order, some 1 MB at a time; a byte order mark is left out.

    Raises `UsageError` naming file and byte where it is not UTF-8, not text at all, or broken gzip.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()  # some editors begin a file with a byte order mark
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    read = 0
    for block in _blocks(path):
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
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise UsageError(f"{path} is not a whole gzip file: {problem}.", "Fetch or pack it anew.") from problem


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
