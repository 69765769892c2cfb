"""The store of rankings: a SQLite file with the items, the annotators, their rankings, and a history for undo.

    with Store.create_or_open(Path("r.db"), items, seed=0, overlap=1, repeats=0.05) as store:
        store.add_annotator("ann", "person")
        view = Session(store, "ann").view()

The table `rankings` has the present answer to every task that was shown; `history` is the matter of `history.py`. Every
write is a transaction and on the disk when it returns. One process writes, under a lock; others can read
meanwhile.
"""

import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from chatpipe.data.durable import file_lock
from chatpipe.errors import UsageError
from chatpipe.ranking.database import (
    ANSWER,
    StoreError,
    check_store,
    connect,
    create_tables,
    has_begun,
    is_empty,
    opening,
    read_items,
    transaction,
)
from chatpipe.ranking.items import Item, Status, Task, queue_of

Kind = Literal["person", "program"]
HELD_SECONDS = 30 * 60
"""How long an item counts as being ranked after its annotator last worked on it."""


@dataclass(frozen=True)
class Annotator:
    """A person or a program; `settings` is the fingerprint of what decides the ranks of a program."""

    name: str
    kind: Kind
    settings: str = ""


@dataclass(frozen=True)
class StoredRanking:
    """A submitted ranking or a skip; `repeat` if it is a hidden repeat."""

    item: Item
    annotator: str
    kind: Kind
    repeat: bool
    order: list[int]
    """The index of the response that was shown at each place."""
    ranks: list[int]
    """Of the responses in the file's order: 1 = best, equal = tied, without gaps; empty for a skip."""
    all_bad: bool
    flag: bool
    note: str
    skipped: str | None
    """The reason of a skip."""
    seconds: float
    """From showing to answering; 0 if the clock was set back in between."""
    time: float
    """Of the answer, in seconds since 1970."""


@dataclass(frozen=True)
class Progress:
    """How far a store has come; a `settled` item needs no more rankings, or none of the annotators can give one."""

    items: int
    settled: int
    complete: bool
    done: dict[str, int]
    """How many tasks each annotator has ranked or skipped, hidden repeats included."""

    def to_json(self) -> dict[str, Any]:
        """The fields for `--json`."""
        return asdict(self)


def check_name(name: str) -> None:
    """Raises `UsageError` if `name` cannot be an annotator's name."""
    if not name.strip() or not name.isprintable():
        raise UsageError(f"{name!r} cannot be an annotator's name.", "Give letters that can be printed.")


def who_ranked(path: Path) -> list[str]:
    """The people who did something in the store at `path`, even if they undid it; none if there is no store."""
    if not has_begun(path):
        return []
    with Store.read(path) as store:
        active = store.rows("SELECT DISTINCT annotator FROM history")
        return [known.name for known in store.annotators() if known.kind == "person" and (known.name,) in active]


class Store:
    """An open store: `Store.create_or_open(...)` for writing, `Store.read(...)` for reading; a context manager.

    Threads may share it: who reads several things holds `lock`, who then writes holds `together()`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, opened: ExitStack) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._connection = connection
        self._opened = opened
        self._file = _identity(path)
        self.items = read_items(connection)
        self._by_id = {item.id: item for item in self.items}
        query = "SELECT seed, overlap, repeats, salt FROM settings"
        self.seed, self.overlap, self.repeats, self.salt = connection.execute(query).fetchone()

    @classmethod
    def create_or_open(cls, path: Path, items: Sequence[Item], seed: int, overlap: int, repeats: float) -> "Store":
        """Opens the store at `path` for writing; it is made if it is missing.

        `overlap` people rank each item, and each of them gets a share of `repeats` of the items a second time; both
        may change from one opening to the next. Raises `UsageError` if another process writes to the store, if it was
        made from other items or with another seed, or if the file is no store, is damaged, or has several names.
        """
        if path.is_dir():
            raise UsageError(f"The store {path} would be a file, and is a folder.", "Name a file in it: --store STORE.")
        with opening(path) as opened:
            opened.enter_context(file_lock(path))
            if path.is_file() and path.stat().st_nlink > 1:  # SQLite names the write-ahead log after the file
                raise UsageError(
                    f"{path} has another name in some folder (a hard link); another chatpipe could write to it there.",
                    "Delete the other name, or copy the file and give the copy: --store STORE.",
                )
            connection = opened.enter_context(closing(connect(path, "rwc")))
            if is_empty(connection):
                create_tables(connection, items, seed)
            else:
                check_store(path, connection)
                _check_same(path, connection, items, seed)
            with transaction(connection):
                connection.execute("UPDATE settings SET overlap = ?, repeats = ?", (overlap, repeats))
            # From the write-ahead log into the file, so that a copy of the file alone is a store.
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            return cls(path, connection, opened.pop_all())

    @classmethod
    def read(cls, path: Path) -> "Store":
        """Opens a store for reading. Raises `UsageError` if there is none, or if it is damaged."""
        if not path.is_file():
            raise UsageError(f"There is no store {path}.", "Make one: chatpipe rank FILE --store STORE.")
        with opening(path) as opened:
            connection = opened.enter_context(closing(connect(path, "ro")))
            check_store(path, connection)
            return cls(path, connection, opened.pop_all())

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and releases the lock."""
        self._opened.close()

    # ---- reading ----

    @cached_property
    def queue(self) -> list[str]:
        """The ids of the items in the order of assignment."""
        return queue_of((item.id for item in self.items), self.seed)

    def item(self, id: str) -> Item:
        """The item with this id."""
        return self._by_id[id]

    def annotators(self) -> list[Annotator]:
        """All annotators, in the order in which they were added."""
        return [Annotator(*row) for row in self.rows("SELECT name, kind, settings FROM annotators ORDER BY rowid")]

    def rankings(self) -> list[StoredRanking]:
        """Every submitted ranking and skip, in the order of the items, then of the annotators' names, repeats last."""
        rows = self.rows(
            f"SELECT item, annotator, kind, repeat, shown_order, {ANSWER}, max(0, answered - shown), answered"
            " FROM rankings JOIN annotators ON name = annotator JOIN items ON items.id = item"
            " WHERE answered IS NOT NULL ORDER BY position, annotator, repeat"
        )
        return [
            StoredRanking(
                item=self._by_id[item],
                annotator=annotator,
                kind=kind,
                repeat=bool(repeat),
                order=json.loads(order),
                ranks=json.loads(ranks) if skipped is None else [],
                all_bad=bool(all_bad),
                flag=bool(flag),
                note=note,
                skipped=skipped,
                seconds=float(seconds),
                time=answered,
            )
            for item, annotator, kind, repeat, order, ranks, all_bad, flag, note, skipped, seconds, answered in rows
        ]

    def tasks(self, annotator: str) -> dict[Task, Status]:
        """The tasks that an annotator was shown; the one that they worked on last is at the end."""
        rows = self.rows(
            "SELECT item, repeat, CASE WHEN answered IS NULL THEN 'open' WHEN skipped IS NULL THEN 'ranked'"
            " ELSE 'skipped' END FROM rankings WHERE annotator = ? ORDER BY turn, rowid",
            annotator,
        )
        return {Task(item, bool(repeat)): status for item, repeat, status in rows}

    def taken(self, now: float | None = None) -> Counter[str]:
        """How many people have ranked each item or, at the time `now`, are ranking it; hidden repeats do not count.

        If the clock was set back, an item is held for `HELD_SECONDS` either way.
        """
        by_people = (
            "SELECT item, count(*) FROM rankings WHERE {} AND repeat = 0"
            " AND annotator IN (SELECT name FROM annotators WHERE kind = 'person') GROUP BY item"
        )
        taken = Counter(dict(self.rows(by_people.format("answered IS NOT NULL AND skipped IS NULL"))))
        if now is not None:
            open_now = by_people.format("answered IS NULL AND abs(? - touched) < ?")
            taken.update(dict(self.rows(open_now, now, HELD_SECONDS)))
        return taken

    def progress(self, names: Sequence[str]) -> Progress:
        """How far the annotators `names` have come."""
        ranked = self.taken()
        answered = {name: {task for task, status in self.tasks(name).items() if status != "open"} for name in names}
        settled = sum(
            ranked[item.id] >= self.overlap or all(Task(item.id, False) in done for done in answered.values())
            for item in self.items
        )
        done = {name: len(tasks) for name, tasks in answered.items()}
        return Progress(len(self.items), settled, settled == len(self.items), done)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query. Raises `StoreError` if they cannot be read."""
        try:
            with self.lock:
                return self._connection.execute(query, values).fetchall()
        except (sqlite3.DatabaseError, UnicodeDecodeError) as problem:
            raise StoreError(
                f"{self.path} cannot be read: {problem}.", "Is its disk undamaged, and still there? Then do it again."
            ) from problem

    # ---- writing ----

    def add_annotator(self, name: str, kind: Kind, settings: str = "") -> None:
        """Adds an annotator who is not there yet.

        Raises `UsageError` if the name cannot be one, or belongs to an annotator of another kind or other settings.
        """
        check_name(name)
        new = Annotator(name, kind, settings)
        with self.together() as connection:
            known = {known.name: known for known in self.annotators()}.get(name)
            if known is None:
                connection.execute("INSERT INTO annotators VALUES (?, ?, ?)", (name, kind, settings))
            elif known.kind != kind:
                raise UsageError(f"{self.path}: {name} is a {known.kind}, not a {kind}.", "Choose another name.")
            elif known != new and not self.tasks(name):
                connection.execute("UPDATE annotators SET settings = ? WHERE name = ?", (settings, name))
            elif known != new:
                raise UsageError(
                    f"{name} has ranked in {self.path} before, as another program, or with another seed or noise.",
                    "Run it with the same settings, or name another --store.",
                )

    @contextmanager
    def together(self) -> Iterator[sqlite3.Connection]:
        """Everything that the block writes is on the disk afterwards, or nothing; it may be nested.

        Raises `StoreError` if it cannot be written, or if the file was deleted or replaced meanwhile.
        """
        with self.lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            if (
                _identity(self.path) != self._file
            ):  # SQLite would continue to write to a file that nobody can open again
                raise StoreError(
                    f"Nothing was stored: {self.path} was deleted or replaced while it was in use.",
                    "Start this command again; what was ranked before is in the file that was there.",
                )
            try:
                with transaction(self._connection):
                    yield self._connection
            except sqlite3.IntegrityError:
                raise
            except sqlite3.DatabaseError as problem:
                raise StoreError(
                    f"Nothing was stored in {self.path}: {problem}.", "Make room on the disk, then do it again."
                ) from problem


def _check_same(path: Path, connection: sqlite3.Connection, items: Sequence[Item], seed: int) -> None:
    """Raises `UsageError` if the store was made from other items or with another seed."""
    stored = {id for (id,) in connection.execute("SELECT id FROM items")}
    given = {item.id for item in items}
    if stored != given:
        raise UsageError(
            f"{path} was made from another completions file: {len(stored & given)} of its {len(stored)} items "
            f"are among the {len(given)} of this one.",
            "Give the file it was made from, or another store: --store STORE.",
        )
    (made_with,) = connection.execute("SELECT seed FROM settings").fetchone()
    if made_with != seed:
        raise UsageError(f"{path} was made with seed {made_with}, not {seed}.", f"Give --seed {made_with}.")


def _identity(path: Path) -> tuple[int, int] | None:
    """Identifies a file, also after another took its name; None if there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
