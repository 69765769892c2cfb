"""The rows of data files as streams with their places, and what the text of a row decides: its split.

Memory does not grow with a file: only a `.json` file, one list of rows, is read whole.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from chatpipe.data.text_files import kind_of, numbered_lines, open_bytes, text_chunks
from chatpipe.errors import UsageError

PARQUET_ROWS = 1024
_TWICE = "a field is there twice"
_WHITE_SPACE = re.compile(r"\s*")
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


class MarkedRow(BadRow):
    """A row that says itself that it is not to be used, such as one with `label: false`; however many are accepted."""


def file_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """The rows of one json, jsonl, csv or parquet file. Raises `UsageError` where the file itself cannot be read."""
    return READERS[kind_of(path)](path)


def as_row(values: Any, where: str) -> Row | BrokenRow:
    """`values` as a row; a list of turns is a row with `messages`. A broken one unless it is an object."""
    if isinstance(values, list) and values and all(map(_is_turn, values)):
        return Row({"messages": values}, where)
    if isinstance(values, dict):
        return Row(values, where)
    return BrokenRow(f"a row is an object with named fields, not a {type(values).__name__}", "", where)


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and bool({"role", "from", "human"} & value.keys())


# ---- JSON: one value a line, or a list of rows ----


class _Repeated(dict[str, Any]):
    """An object with a field that is there twice, of which JSON keeps the last."""


class _Decoder(json.JSONDecoder):
    """Notes in `repeated` a field that an object has twice."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self.repeated = ""

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        names = [name for name, _ in pairs]
        self.repeated = next(name for name in names if names.count(name) > 1)
        return _Repeated(found)


def _has_repeated(value: Any) -> bool:
    """Whether an object inside `value` has a field twice."""
    if isinstance(value, dict):
        return isinstance(value, _Repeated) or any(map(_has_repeated, value.values()))
    return isinstance(value, list) and any(map(_has_repeated, value))


def _json_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """The rows of a json or jsonl file, as which its beginning is read: many files have the other name."""
    return _line_rows(path) if _has_a_row_a_line(path) else _list_rows(path)


def _has_a_row_a_line(path: Path) -> bool:
    head = ""
    for chunk in islice(text_chunks(path), 2):
        head = (head + chunk).lstrip()
        if "\n" in head:
            break
    line, _, rest = head.partition("\n")
    named_so = kind_of(path) != ".json"
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # broken, longer than two chunks, or the first line of a value of several
        return named_so and not line.startswith("[") and line.strip() != "{"
    if isinstance(value, list):
        return bool(rest.strip()) or (bool(value) and all(map(_is_turn, value)))
    return bool(rest.strip()) or named_so


def _line_rows(path: Path) -> Iterator[Row | BrokenRow]:
    decoder = _Decoder()
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        decoder.repeated = ""
        try:
            values = decoder.decode(line)
        except json.JSONDecodeError as problem:
            yield BrokenRow("this line is not JSON", f"{problem.msg} at column {problem.colno}", where)
        except (ValueError, RecursionError):
            yield BrokenRow("this line has numbers or lists that are too long or too deep to read", "", where)
        else:
            yield BrokenRow(_TWICE, decoder.repeated, where) if decoder.repeated else as_row(values, where)


def _list_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """The rows of one list, or of objects one after another over several lines each."""
    decoder = _Decoder()
    try:
        values = _values_in("".join(text_chunks(path)), decoder)
    except json.JSONDecodeError as problem:
        raise UsageError(
            f"{path}:{problem.lineno}: this is not JSON: {problem.msg} at column {problem.colno}.",
            "Mend it: a json file is one list of rows, or has one row on each line.",
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
        where = f"{path} row {number}"
        twice = decoder.repeated and _has_repeated(value)
        yield BrokenRow(_TWICE, decoder.repeated, where) if twice else as_row(value, where)


def _values_in(text: str, decoder: json.JSONDecoder) -> Any:
    """The value in a text, or the list of all its values where an object is followed by others."""
    text = text.strip()
    value, end = decoder.raw_decode(text)
    if end == len(text):
        return value
    if not isinstance(value, dict):
        raise json.JSONDecodeError("Extra data", text, end)
    values = [value]
    while end < len(text):
        value, end = decoder.raw_decode(text, _WHITE_SPACE.match(text, end).end())  # type: ignore[union-attr]
        values.append(value)
    return values


# ---- tables ----


def _csv_rows(path: Path) -> Iterator[Row | BrokenRow]:
    csv.field_size_limit(MAX_CSV_FIELD)
    delimiter, names = _header(path)
    _check_columns(names, f"{path}:1")
    lines = (f"{line}\n" for _, line in numbered_lines(path))
    reader = csv.DictReader(lines, strict=True, delimiter=delimiter)
    if reader.fieldnames is not None:
        reader.fieldnames = [name.strip() for name in reader.fieldnames]
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


def _check_columns(names: Sequence[str], where: str) -> None:
    """Raises `UsageError` for a column that is there twice: of its values the last would be read."""
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UsageError(f"{where}: the column {repeated} is there twice.", "Rename or remove one of them.")


def _header(path: Path) -> tuple[str, list[str]]:
    """The delimiter of a table and the names in its first line: the one that parts it most.

    Spreadsheets in most of Europe write semicolons.
    """
    line = next((line for _, line in numbered_lines(path) if line.strip()), "")
    fields = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in ",;\t|"}
    best = max(fields, key=lambda delimiter: len(fields[delimiter]))
    return best, [name.strip() for name in fields[best]]


def _parquet_rows(path: Path) -> Iterator[Row | BrokenRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        with open_bytes(path) as opened:
            file = io.BytesIO(opened.read()) if path.suffix.lower() == ".zst" else opened
            table = parquet.ParquetFile(file)
            _check_columns(table.schema_arrow.names, str(path))
            yield from _numbered(path, table.iter_batches(PARQUET_ROWS))
    except (pyarrow.ArrowException, OSError) as problem:
        reason = str(problem).splitlines()[0]
        raise UsageError(f"{path} is not a whole parquet file: {reason}", "Fetch it again.") from problem


def _arrow_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """The rows of an Arrow file, as `Dataset.save_to_disk` writes it (a stream), or with a footer."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            is_stream = file.read(6) != b"ARROW1"
            file.seek(0)
            opened = pyarrow.ipc.open_stream(file) if is_stream else pyarrow.ipc.open_file(file)
            _check_columns(opened.schema.names, str(path))
            batches = opened if is_stream else map(opened.get_batch, range(opened.num_record_batches))
            yield from _numbered(path, batches)
    except (pyarrow.ArrowException, OSError) as problem:
        reason = str(problem).splitlines()[0]
        raise UsageError(f"{path} is not a whole Arrow file: {reason}", "Fetch or save it again.") from problem


def _numbered(path: Path, batches: Iterable[Any]) -> Iterator[Row]:
    """The rows of Arrow's record batches, with their numbers in the file."""
    rows = (values for batch in batches for values in batch.to_pylist())
    for number, values in enumerate(rows, start=1):
        yield Row(values, f"{path} row {number}")


READERS: dict[str, Callable[[Path], Iterator[Row | BrokenRow]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
    ".arrow": _arrow_rows,
}
"""The reader of each kind of file; txt files have no rows."""


# ---- what the text of a row decides ----

Split = Literal["train", "validation"]
Use = Literal["auto", "train", "validation"]
"""What rows are for; with auto, their text or the name of their file decides."""

VALIDATION_SHARE = 0.1
"""The SHA-256 of a text decides whether it is for validation, so a text is in the same split in every stage, on every
machine, and after rows are added."""


def split_of(text: str) -> Split:
    """The split of the item with this text."""
    return split_of_digest(hashlib.sha256(text.encode()).digest())


def split_of_digest(sha256: bytes) -> Split:
    """The split of a text whose SHA-256 is known."""
    return "validation" if int.from_bytes(sha256[:4], "big") < VALIDATION_SHARE * 2**32 else "train"


def quotas(limit: int, use: Use = "auto") -> dict[Split, int]:
    """How many of `limit` rows are in each split: a tenth validates, at least one row, or all are for one use."""
    if use != "auto":
        return {"train": 0, "validation": 0, use: limit}
    validation = max(1, round(VALIDATION_SHARE * limit))
    return {"train": max(1, limit - validation), "validation": validation}


def wanted(left: Mapping[Split, int], use: Use) -> int:
    """How many more rows of a file with this `use` are wanted at most; `left`: how many of each split are."""
    return sum(left.values()) if use == "auto" else left[use]


def times_read(text: str, weight: float) -> int:
    """How often an epoch reads the item with this text: `weight` times on average over all texts.

    The choice depends on the text and not on the order of the rows. It uses other bits of the hash than `split_of`,
    because the bits that choose the split are not random among the texts of one split.
    """
    whole = int(weight)
    chance = int.from_bytes(hashlib.sha256(text.encode()).digest()[4:8], "big") / 2**32
    return whole + (chance < weight - whole)
