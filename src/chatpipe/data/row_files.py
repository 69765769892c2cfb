"""The rows of data files as streams with their places, and what the text of a row decides: its split.

Memory does not grow with a file: only a `.json` file, one list of rows, is read whole.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chatpipe.data.text_files import numbered_lines, open_bytes, text_chunks
from chatpipe.errors import UsageError

PARQUET_ROWS = 1024
MAX_CSV_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Row:
    """One row of a data file; `where` is `file:line` (jsonl, csv) or `file row N` (json, parquet, the hub)."""

    values: dict[str, Any]
    where: str


@dataclass(frozen=True)
class BrokenRow:
    """A row that cannot be parsed; rows are counted by `reason`, `detail` is about this one."""

    reason: str
    detail: str
    where: str


class BadRow(Exception):
    """A row that cannot be used; rows are counted by the message."""


def kind_of(path: Path) -> str:
    """The kind of a file by its name: `.txt`, `.jsonl`, ... (`a.jsonl.gz` is `.jsonl` too)."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def file_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """The rows of one json, jsonl, csv or parquet file. Raises `UsageError` where the file itself cannot be read."""
    return READERS[kind_of(path)](path)


def as_row(values: Any, where: str) -> Row | BrokenRow:
    """`values` as a row; a broken one unless it is an object."""
    if isinstance(values, dict):
        return Row(values, where)
    return BrokenRow(f"a row is an object with named fields, not a {type(values).__name__}", "", where)


def _jsonl_rows(path: Path) -> Iterator[Row | BrokenRow]:
    first = True
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        if first and line.lstrip().startswith("["):
            raise UsageError(
                f"{path}:{number}: a JSON list begins here; jsonl has one row on each line.",
                "Is it JSON? Then name it .json.",
            )
        first = False
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as problem:
            yield BrokenRow("this line is not JSON", f"{problem.msg} at column {problem.colno}", where)
        except (ValueError, RecursionError):
            yield BrokenRow("this line has numbers or lists that are too long or too deep to read", "", where)
        else:
            yield as_row(values, where)


def _json_rows(path: Path) -> Iterator[Row | BrokenRow]:
    try:
        values = json.loads("".join(text_chunks(path)))
    except json.JSONDecodeError as problem:
        raise UsageError(
            f"{path}:{problem.lineno}: this is not JSON: {problem.msg} at column {problem.colno}.",
            "Is it jsonl? Then name it .jsonl.",
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise UsageError(
            f"{path} has numbers or lists that are too long or too deep to read.", "Mend the file; is it rows of text?"
        ) from problem
    if not isinstance(values, list):
        raise UsageError(
            f"{path}: a list of rows is expected, not one {'object' if isinstance(values, dict) else 'value'}.",
            "Give the list of rows alone, without anything around it; a single row goes into [ ].",
        )
    for number, value in enumerate(values, start=1):
        yield as_row(value, f"{path} row {number}")


def _csv_rows(path: Path) -> Iterator[Row | BrokenRow]:
    csv.field_size_limit(MAX_CSV_FIELD)
    reader = csv.DictReader((f"{line}\n" for _, line in numbered_lines(path)), strict=True)
    before = 1
    try:
        for values in reader:
            where, before = f"{path}:{before + 1}", reader.line_num
            if None in values:
                yield BrokenRow("there are more fields than the first line names", "", where)
            else:
                yield Row(values, where)
    except csv.Error as problem:
        raise UsageError(f"{path}:{before + 1}: this is not CSV: {problem}.", "Is a quote left open?") from problem


def _parquet_rows(path: Path) -> Iterator[Row | BrokenRow]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with open_bytes(path) as file:
            for batch in parquet.ParquetFile(file).iter_batches(PARQUET_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, f"{path} row {number}")
    except (pyarrow.ArrowException, OSError) as problem:
        reason = str(problem).splitlines()[0]
        raise UsageError(f"{path} is not a whole parquet file: {reason}", "Fetch it again.") from problem


READERS: dict[str, Callable[[Path], Iterator[Row | BrokenRow]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
"""The reader of each kind of file; txt files have no rows."""


# ---- what the text of a row decides ----

Split = Literal["train", "validation"]

VALIDATION_SHARE = 0.1
"""The SHA-256 of a text decides whether it is for validation, so a text is in the same split in every stage, on every
machine, and after rows are added."""


def split_of(text: str) -> Split:
    """The split of the item with this text."""
    return split_of_digest(hashlib.sha256(text.encode()).digest())


def split_of_digest(sha256: bytes) -> Split:
    """The split of a text whose SHA-256 is known."""
    return "validation" if int.from_bytes(sha256[:4], "big") < VALIDATION_SHARE * 2**32 else "train"


def quotas(limit: int) -> dict[Split, int]:
    """How many of `limit` rows are in each split: a tenth validates, at least one row."""
    validation = max(1, round(VALIDATION_SHARE * limit))
    return {"train": max(1, limit - validation), "validation": validation}


def times_read(text: str, weight: float) -> int:
    """How often an epoch reads the item with this text: `weight` times on average over all texts.

    The choice depends on the text and not on the order of the rows. It uses other bits of the hash than `split_of`,
    because the bits that choose the split are not random among the texts of one split.
    """
    whole = int(weight)
    chance = int.from_bytes(hashlib.sha256(text.encode()).digest()[4:8], "big") / 2**32
    return whole + (chance < weight - whole)
