"""Reading data files into rows, each of which knows where it stands."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatpipe.errors import UsageError

SUFFIXES = (".txt", ".json", ".jsonl")
MAX_SKIPPED_SHARE = 0.01


@dataclass(frozen=True)
class Row:
    """One row of a data file; `where` is `file:line` (jsonl) or `file row N` (json)."""

    values: dict[str, Any]
    where: str


class BadRow(Exception):
    """A row that cannot be used; the message is the reason, short enough to count by."""


@dataclass
class Skipped:
    """Rows that could not be used: how many for each reason, and where the first of each kind stands."""

    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.reasons[reason] += 1
        self.first.setdefault(reason, where)

    def check(self, source: str, total: int) -> None:
        """Raises `UsageError` when more than 1 % of `total` rows are unusable, or all of them."""
        count = sum(self.reasons.values())
        if count == 0 or (count <= MAX_SKIPPED_SHARE * total and count < total):
            return
        lines = [f"{n} rows: {reason} (first at {self.first[reason]})" for reason, n in self.reasons.most_common(4)]
        raise UsageError(
            "\n".join([f"{source}: {count} of {total} rows cannot be used.", *lines]),
            "Mend the file, or name its format: data: [{source: FILE, format: ...}].",
        )


def read_rows(source: str, key: str) -> list[Row]:
    """All rows of a json or jsonl file. Raises `UsageError` naming `key`, or file and line, where it is unreadable."""
    path = data_file(source, key)
    rows = list(_jsonl_rows(path) if path.suffix == ".jsonl" else _json_rows(path))
    if not rows:
        raise UsageError(f"{key}: {path} holds no rows.", "Give a file with at least one row.")
    return rows


def read_text(source: str, key: str) -> str:
    """The whole of a text file; raises `UsageError` naming `key` when it is missing, empty or not UTF-8."""
    path = data_file(source, key)
    text = _decode(path)
    if not text.strip():
        raise UsageError(f"{key}: {path} is empty.", "Give a file with text in it.")
    return text


def data_file(source: str, key: str) -> Path:
    """The file that `source` names, checked to be one that can be read; raises `UsageError` naming `key`."""
    path = Path(source).expanduser()
    if not path.exists():
        raise UsageError(f"{key}: there is no file {source}.", f"{key} takes a path, or several with commas between.")
    if path.is_dir() or path.suffix not in SUFFIXES:
        raise UsageError(
            f"{key}: {source} is not one of the files that can be read: {', '.join(SUFFIXES)}.",
            "Convert it, or give its files one by one.",
        )
    if path.stat().st_size == 0:
        raise UsageError(f"{key}: {path} is empty.", "Give a file with at least one row.")
    return path


def _decode(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as problem:
        raise UsageError(
            f"{path} is not UTF-8 text: byte {problem.start} cannot be read.", "Convert it, e.g. with iconv."
        ) from problem


def _jsonl_rows(path: Path) -> Iterator[Row]:
    # Split at "\n" alone: splitlines() would also split inside strings that hold U+2028 or U+0085.
    for number, line in enumerate(_decode(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as problem:
            raise UsageError(
                f"{where}: this line is not JSON: {problem.msg} at column {problem.colno}.",
                "Each line is one JSON object.",
            ) from problem
        yield _row(values, where)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        values = json.loads(_decode(path))
    except json.JSONDecodeError as problem:
        raise UsageError(
            f"{path}:{problem.lineno}: this is not JSON: {problem.msg} at column {problem.colno}.",
            "Is it jsonl? Then name it .jsonl.",
        ) from problem
    if not isinstance(values, list):
        raise UsageError(f"{path}: a list of rows is expected, not one {type(values).__name__}.", "Put it in [ ].")
    for number, value in enumerate(values, start=1):
        yield _row(value, f"{path} row {number}")


def _row(values: Any, where: str) -> Row:
    if not isinstance(values, dict):
        raise UsageError(f"{where}: a row is an object with named fields, not a {type(values).__name__}.", "Name them.")
    return Row(values, where)
