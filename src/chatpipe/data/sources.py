"""The sources that a `data:` block can name, their rows, and the report of what was read and left out.

A source is a file, a folder, a pattern, or a data set of the hub.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from chatpipe import console
from chatpipe.data.durable import fingerprint, sha256_of
from chatpipe.data.messages import Id
from chatpipe.data.row_files import READERS, BrokenRow, Row, Use, as_row, file_rows
from chatpipe.data.text_files import PACKED, kind_of
from chatpipe.data.worlds import is_world
from chatpipe.errors import UsageError, reason_of
from chatpipe.recipe.schema import HUB, DataBlock

KINDS = (".txt", *sorted(READERS))
MAX_POINTER = 1024
"""A pointer of Git LFS, which a clone without LFS has in place of a file, is smaller."""
_PACKED = f"each also {', '.join(PACKED)}"

NOT_DATA = re.compile(
    r"(state|dataset_infos?|dataset_dict)\.json|cache-.*\.arrow|indices.*\.arrow|"
    r"(readme|license|licence|notice|requirements)[^/]*\.txt",
    re.IGNORECASE,
)
"""Files that lie beside the rows in a folder: a data set's own, and texts about it."""


_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
"""Words in the names of files that say which split they hold, as on the hub."""


def check_sources(blocks: Sequence[DataBlock] | None, key: str) -> None:
    """Raises `UsageError` where no data is given, or a file is missing, empty or of an unknown kind."""
    if not blocks:
        raise UsageError(f"{key} is not given.", f"Give a file: {key}=FILE, or in the recipe.")
    for block in blocks:
        if not is_world(block.source) and not is_hub(block):
            source_files(block.source, key)


def is_hub(block: DataBlock) -> bool:
    """Whether the block is a data set of the hub."""
    return block.source.startswith(HUB)


def source_files(source: str, key: str) -> list[Path]:
    """The files that `source` names, in the order of their names; of a folder or a pattern, those of a known kind.

    Raises `UsageError` naming `key` where there is none, or one is empty.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = _data_files(f"{glob.escape(str(path))}/**")
    elif path.exists():
        found = [path]
    elif glob.has_magic(source):
        found = _data_files(str(path))
    else:
        hint = "Give a path, or several with commas between."
        if source.count("/") == 1 and kind_of(path) not in KINDS:
            hint = f"{hint} Is it a data set of the hub? Then write {HUB}{source}."
        raise UsageError(f"{key}: there is no file {source}.", hint)
    if not found:
        raise UsageError(
            f"{key}: {source} holds no file of a kind that can be read: {', '.join(KINDS)}.",
            f"Give text, or rows in one of these kinds, {_PACKED}.",
        )
    for file in found:
        _check_file(file, key)
    return found


def named_files(block: DataBlock) -> list[Path]:
    """The existing files and folders that a block's source names, possibly none."""
    if is_world(block.source):  # whatever file has the same name
        return []
    path = Path(block.source).expanduser()
    return [path] if path.exists() else list(map(Path, glob.glob(str(path), recursive=True)))


def source_rows(block: DataBlock, key: str) -> Iterator[Row | BrokenRow]:
    """The rows of a block in order, with the fields that its `columns` name; not for txt files and built-in worlds."""
    for row in _rows_as_they_are(block, key):
        yield _with_columns(row, block) if isinstance(row, Row) else row


def one_file_each(block: DataBlock, key: str) -> Iterator[DataBlock]:
    """`block` as one block for each file, since files may differ in format; a data set of the hub is one block.

    Of several files of which one is named train, each has the `use` that its name says; see `files_by_use`.
    """
    if is_hub(block):
        yield block
        return
    for path, use in files_by_use(block, key)[0]:
        yield block.model_copy(update={"source": str(path), "use": use})


def files_by_use(block: DataBlock, key: str) -> tuple[list[tuple[Path, Use]], list[Path]]:
    """The files of a block, each with its use, and those that are left out.

    Files named test are for validation where none is named so, and left out otherwise.
    """
    files = source_files(block.source, key)
    above = Path(os.path.commonpath([path.parent for path in files]))
    named = {path: _split_in_name(path.relative_to(above)) for path in files}
    splits = set(named.values())
    if "train" not in splits or splits == {"train"}:
        return [(path, block.use) for path in files], []
    validation = "validation" if "validation" in splits else "test"
    uses: dict[Path, Use] = {
        path: "validation" if split == validation else "train"
        for path, split in named.items()
        if split in (validation, "train", None)
    }
    if block.use != "auto":
        uses = {path: use for path, use in uses.items() if use == block.use}
    return [(path, uses[path]) for path in files if path in uses], [path for path in files if path not in uses]


def _split_in_name(path: Path) -> str | None:
    """train, validation or test, where a word in the name of a file, or of a folder in its path, says so."""
    words = re.findall(r"[a-z]+", str(path).lower())
    return next((split for split, names in _SPLIT_NAMES.items() if any(word in names for word in words)), None)


def data_fingerprints(blocks: Sequence[DataBlock], key: str) -> dict[str, str]:
    """Source -> fingerprint of its content and settings; a source of several blocks has one for all of them."""
    found: dict[str, list[str]] = {}
    for block in blocks:
        found.setdefault(block.source, []).append(block_fingerprint(block, key))
    return {source: fingerprint(each) if len(each) > 1 else each[0] for source, each in found.items()}


def block_fingerprint(block: DataBlock, key: str) -> str:
    """Fingerprint of a block's files and of all settings that decide its rows; the place of a file is none of them.

    A built-in world and a data set of the hub are known by name (and revision), not by content.
    """
    settings = block.model_dump(mode="json", exclude={"source", "max_skipped"})
    return fingerprint([_content(block, key), settings])


def _content(block: DataBlock, key: str) -> str | list[Any]:
    if is_world(block.source) or is_hub(block):
        return block.source
    files = source_files(block.source, key)
    if files == [Path(block.source).expanduser()]:
        return _sha256(files[0])
    return [[file.name, _sha256(file)] for file in files]


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of_version(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _sha256_of_version(path: Path, size: int, changed: int) -> str:
    """Cached, because a command asks several times for the hash of the same gigabytes."""
    return sha256_of(path)


def _data_files(pattern: str) -> list[Path]:
    """The files of a known kind that match, without hidden ones; a file reached through two links counts once."""
    found: dict[Path, Path] = {}
    for path in map(Path, sorted(glob.glob(pattern, recursive=True))):
        if path.is_file() and kind_of(path) in KINDS and not NOT_DATA.fullmatch(path.name):
            found.setdefault(path.parent.resolve() / path.name, path)
    return list(found.values())


def _check_file(path: Path, key: str) -> None:
    if kind_of(path) not in KINDS:
        raise UsageError(
            f"{key}: {path} is not one of the files that can be read: {', '.join(KINDS)}, {_PACKED}.",
            "Convert it, or rename it where only the ending is wrong.",
        )
    size = path.stat().st_size
    if size == 0:
        raise UsageError(f"{key}: {path} is empty.", "Give a file with at least one row.")
    if size < MAX_POINTER and path.read_bytes().startswith(b"version https://git-lfs"):
        raise UsageError(f"{key}: {path} is a pointer of Git LFS, not the data.", "Fetch it: git lfs pull.")


def _rows_as_they_are(block: DataBlock, key: str) -> Iterator[Row | BrokenRow]:
    if is_hub(block):
        yield from _hub_rows(block.source.removeprefix(HUB), block.name, block.split, block.revision, key)
        return
    for path in source_files(block.source, key):
        if kind_of(path) not in READERS:
            raise UsageError(
                f"{key}: {path} is running text, which has no rows.",
                "Give json, jsonl, csv or parquet; txt is for pretrain.data.",
            )
        yield from file_rows(path)


def _with_columns(row: Row, block: DataBlock) -> Row | BrokenRow:
    """`row` with its fields renamed by `columns`; several become one text, those with content joined with newlines."""
    if not block.columns:
        return row
    renamed: dict[str, Any] = {}
    taken: set[str] = set()
    for ours, theirs in block.columns.items():
        names = [theirs] if isinstance(theirs, str) else theirs
        missing = [name for name in names if name not in row.values]
        if missing:
            return BrokenRow(f"there is no field {missing[0]}", f"its fields are {', '.join(row.values)}", row.where)
        taken.update(names)
        values = [row.values[name] for name in names]
        other = next((name for name in names if not isinstance(row.values[name], str | int | float | None)), None)
        if len(names) == 1:
            renamed[ours] = values[0]
        elif other is None:
            renamed[ours] = "\n".join(str(value) for value in values if not _is_nothing(value))
        else:
            kind = type(row.values[other]).__name__
            return BrokenRow(f"{other} is no text that can be joined, but a {kind}", "", row.where)
    return Row({**{name: value for name, value in row.values.items() if name not in taken}, **renamed}, row.where)


def _is_nothing(value: Any) -> bool:
    """Whether a part of a joined text is null, NaN or empty."""
    return value is None or value == "" or value != value


def _hub_rows(name: str, config: str | None, split: str, revision: str | None, key: str) -> Iterator[Row | BrokenRow]:
    """The rows of one split, in the data set's own order; `name` is a hub id, or a local folder in its form.

    Raises `UsageError` naming `key` where it cannot be opened, or breaks off.
    """
    from datasets import load_dataset

    number = 0
    try:
        for values in load_dataset(name, config, split=split, revision=revision, streaming=True):
            number += 1
            yield as_row(values, f"hub:{name} row {number}")
    except GeneratorExit:
        raise
    except Exception as problem:  # the library raises anything: its own errors, those of the network, bare Exception
        raise UsageError(
            f"{key}: hub:{name} (split {split}) cannot be read at row {number + 1}: {reason_of(problem)}",
            f"It is a folder: leave out {HUB}, or see that its files are whole."
            if Path(name).is_dir()
            else "HF_HUB_OFFLINE is set: unset it, or give files."
            if hub_is_offline()
            else "Check name, configuration and split, and the network; a private one needs `hf auth login`.",
        ) from problem


def hub_is_offline() -> bool:
    """Whether the environment forbids to fetch anything from the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}


# ---- the report of reading ----

MEND_OR_ALLOW = (
    "Mend the file, name its format and columns (data: [{source: FILE, format: ..., columns: ...}]), "
    "or allow more (max_skipped: SHARE)."
)
"""The remedy for too many unusable rows."""


MAX_UNREAD = 8


@dataclass
class Skipped:
    """Unusable rows: the number for each reason, and the place of the first of each.

    `marked` of them say themselves that they are not to be used; `example` is the first that could be parsed.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    marked: int = 0
    example: Row | None = None

    def add(self, reason: str, row: Row | BrokenRow, marked: bool = False) -> None:
        """Counts one row."""
        self.reasons[reason] += 1
        self.marked += marked
        detail = f", {row.detail}" if isinstance(row, BrokenRow) and row.detail else ""
        self.first.setdefault(reason, f"{row.where}{detail}")
        if self.example is None and isinstance(row, Row):
            self.example = row

    def check(self, source: str, total: int, max_share: float, hint: str = MEND_OR_ALLOW) -> None:
        """Raises `UsageError` when more than this share of `total` rows is unusable, or all rows are left out."""
        count = self.reasons.total()
        if count == 0 or (count - self.marked <= max_share * total and count < total):
            return
        lines = [
            f"{n} {'row' if n == 1 else 'rows'}: {reason} (first at {self.first[reason]})"
            for reason, n in self.reasons.most_common(4)
        ]
        raise UsageError(
            "\n".join([f"{source}: {count} of {total} rows cannot be used.", *lines]),
            hint,
        )


@dataclass
class SourceReport:
    """The report of one source under the recipe key `key`; `formats` are those of its files, in order."""

    key: str
    source: str
    formats: list[str] = field(default_factory=list)
    rows: int = 0
    skipped: Skipped = field(default_factory=Skipped)
    with_tools: int = 0
    """Usable rankings or prompts that offer or use tools."""
    unread: list[str] = field(default_factory=list)
    """Fields of the first row of each format that nothing reads."""
    ids: dict[str, Id] = field(default_factory=dict)
    """Key of a prompt -> the id that its row has of the user's own."""
    left_files: list[str] = field(default_factory=list)
    """Files of the test split, where a folder has a validation split too."""

    def add_format(self, form: str, unread: Sequence[str] = ()) -> None:
        """Adds the format of one more row; `unread` are the fields of the row that it does not read."""
        if form not in self.formats:
            self.formats.append(form)
            self.unread += [name for name in unread if name not in self.unread]

    def line(self) -> str:
        """One line for people."""
        reasons = self.skipped.reasons
        causes = [
            f"{count}: {reason}, first at {self.skipped.first[reason]}" for reason, count in reasons.most_common()
        ]
        left_out = f"{reasons.total()} left out" + (f" ({'; '.join(causes)})" if causes else "")
        more = ", ..." if len(self.unread) > MAX_UNREAD else ""
        unread = f"; fields not read: {', '.join(self.unread[:MAX_UNREAD])}{more}" if self.unread else ""
        unread += f"; files not read: {', '.join(self.left_files[:MAX_UNREAD])}" if self.left_files else ""
        return f"{self.key}: {self.source} read as {' and '.join(self.formats)}: {self.rows} rows, {left_out}{unread}"


@dataclass
class Report:
    """The reports of all sources in the order of their blocks; built-in worlds have none."""

    sources: list[SourceReport] = field(default_factory=list)

    @property
    def ids(self) -> dict[str, Id]:
        """Key of a prompt -> the user's own id of it, of the first row that has the prompt."""
        return {key: id for source in reversed(self.sources) for key, id in source.ids.items()}

    @property
    def skipped(self) -> dict[str, int]:
        """Unusable rows of all sources by reason."""
        return dict(sum((source.skipped.reasons for source in self.sources), Counter[str]()))

    def say(self) -> None:
        """Prints a line for each source."""
        for source in self.sources:
            console.note(source.line())
            if source.with_tools:
                console.note(
                    f"{source.key}: {source.with_tools} rows of {source.source} have tools, which a chat template "
                    "without tools leaves out"
                )
