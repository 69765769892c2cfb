"""The store of rankings: a SQLite file with the items, the annotators, and all that these did, as events.

Events are only ever added, each in a transaction that is on the disk before `append` returns. One process writes, under
a lock beside the file; others may read meanwhile. What the events fold to is kept in memory, in `histories`.
"""

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from chatpipe.errors import ChatpipeError, UsageError
from chatpipe.locking import alone_with
from chatpipe.ranking.history import Event, History, item_of
from chatpipe.ranking.items import Item
from chatpipe.ranking.schema import add_salt, check_format, check_same, connect, create, no_store, set_meta, transaction

Kind = Literal["person", "program"]

_EVENT_COLUMNS = "seq, time, annotator, action, task, body, key"


class StoreError(ChatpipeError):
    """The store could not be read or written, as on a full disk (exit 1). What was stored before is still there."""


class OtherWriter(StoreError):
    """Another process wrote to the store meanwhile. This one knows nothing of that, and stores nothing any more."""


class StoreConflict(Exception):
    """The key of an event was used before, for another event of the same annotator."""


@dataclass(frozen=True)
class Annotator:
    """Who ranks."""

    name: str
    kind: Kind


def check_name(name: str) -> None:
    """Raises `UsageError` for what cannot be an annotator's name."""
    if not name.strip() or not name.isprintable():
        raise UsageError(f"{name!r} cannot be an annotator's name.", "Give letters that can be printed.")


class Store:
    """An open store: `Store.create_or_open(...)` for writing, `Store.read(...)` beside a writer; a context manager.

    `lock` is held by whoever reads and then writes; the methods that write take it themselves.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._connection = connection
        self._held = ExitStack()
        self._file = _identity(path)
        self._last: int | None = None
        """The number of the last event that is folded."""
        with connection:  # what is read is of one moment, also beside a writer
            connection.execute("BEGIN")
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            self.seed = int(meta["seed"])
            self.overlap = int(meta["overlap"])
            self.repeats = float(meta["repeats"])
            self.salt = bytes.fromhex(meta.get("salt", ""))
            """What nobody can guess, for what annotators may see but not see through; empty in a store that is read."""
            self.items = _items(connection)
            self._by_id = {item.id: item for item in self.items}
            self._annotators = {known.name: known for known in _annotators(connection)}
            self._fold()

    @classmethod
    def create_or_open(cls, path: Path, items: Sequence[Item], seed: int, overlap: int, repeats: float) -> "Store":
        """Opens the store at `path` for writing; it is made where it is missing.

        `overlap` is how many people rank each item, `repeats` the share of items that each of them gets a second time;
        both may change from one opening to the next. Raises `UsageError` where another process writes to the store,
        where it was made from other items or with another seed, or where the file is no store or has several names.
        """
        with _opening(path) as opened:
            opened.enter_context(alone_with(path))
            _check_one_name(path)
            connection = opened.enter_context(closing(connect(path, "rwc")))
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                create(connection, items, seed)
            else:
                check_format(path, connection)
                check_same(path, connection, items, seed)
            with transaction(connection):
                set_meta(connection, {"overlap": overlap, "repeats": repeats})
                add_salt(connection)
            store = cls(path, connection)
            store._held = opened.pop_all()
            return store

    @classmethod
    def read(cls, path: Path) -> "Store":
        """Opens a store for reading, as it is at this moment. Raises `UsageError` where there is none."""
        if not path.is_file():
            raise UsageError(f"There is no store {path}.", "Make one: chatpipe rank FILE --store STORE.")
        with _opening(path) as opened:
            connection = opened.enter_context(closing(connect(path, "ro")))
            check_format(path, connection)
            store = cls(path, connection)
            store._held = opened.pop_all()
            return store

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and lets go of the lock."""
        self._held.close()

    def item_of(self, task: str) -> Item:
        """The item that a task shows."""
        return self._by_id[item_of(task)]

    def annotators(self) -> list[Annotator]:
        """All annotators, in the order in which they came."""
        return list(self._annotators.values())

    def add_annotator(self, name: str, kind: Kind) -> None:
        """Makes an annotator known who is not yet.

        Raises `UsageError` where the name cannot be one, or is that of an annotator of the other kind.
        """
        check_name(name)
        with self.lock:
            known = self._annotators.get(name)
            if known is not None and known.kind != kind:
                raise UsageError(f"{self.path}: {name} is a {known.kind}, not a {kind}.", "Choose another name.")
            if known is not None:
                return
            with self.together():
                self._connection.execute(
                    "INSERT INTO annotators (name, kind, created) VALUES (?, ?, ?)", (name, kind, time.time())
                )
            self._annotators[name] = Annotator(name, kind)
            self._begin_history(self._annotators[name])

    def append(
        self, annotator: str, action: str, task: str | None, body: dict[str, Any], key: str, at: float | None = None
    ) -> bool:
        """Adds an event; it is on the disk when this returns. `at` is its time, by default now.

        Where the annotator's `key` was used before nothing is added: False for the same event, `StoreConflict` for
        another. Raises `StoreError` where it cannot be written: then nothing is stored.
        """
        with self.lock:
            used = self.find(annotator, key)
            if used is not None:
                if (used.action, used.task, used.body) != (action, task, body):
                    raise StoreConflict(f"the key {key} was used for another event")
                return False
            at = time.time() if at is None else at
            with self.together():
                seq = self._connection.execute(
                    "INSERT INTO events (time, annotator, action, task, body, key) VALUES (?, ?, ?, ?, ?, ?)",
                    (at, annotator, action, task, json.dumps(body), key),
                ).lastrowid
                assert seq is not None
                self._last = seq
                self.histories[annotator].apply(Event(seq, at, annotator, action, task, body, key))
            return True

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the block writes is on the disk after it, all or nothing. Raises `StoreError` where it cannot be.

        So does a store that another process has written to, which the lock beside the file cannot prevent where it was
        deleted or the file system has none.
        """
        with self.lock:
            if self._connection.in_transaction:
                yield
                return
            if _identity(self.path) != self._file:  # SQLite would go on writing to a file that nobody can open again
                raise StoreError(
                    f"Nothing was stored: {self.path} was deleted or replaced while it was in use.",
                    "Start this command again; what was ranked before is in the file that was there.",
                )
            try:
                with transaction(self._connection):
                    self._check_alone()
                    yield
            except OtherWriter:
                raise  # before anything was applied
            except BaseException as problem:
                self._fold()  # what was applied was not stored
                if isinstance(problem, sqlite3.OperationalError):
                    raise StoreError(
                        f"Nothing was stored in {self.path}: {problem}.", "Make room on the disk, then do it again."
                    ) from problem
                raise

    def events(self, annotator: str | None = None) -> list[Event]:
        """The events of one annotator, or of all, in the order in which they came."""
        chosen = "" if annotator is None else "WHERE annotator = ?"
        with self.lock:
            rows = self._connection.execute(
                f"SELECT {_EVENT_COLUMNS} FROM events {chosen} ORDER BY seq", () if annotator is None else (annotator,)
            )
            return list(map(_event, rows))

    def find(self, annotator: str, key: str) -> Event | None:
        """The event that an annotator's key was used for."""
        row = self._connection.execute(
            f"SELECT {_EVENT_COLUMNS} FROM events WHERE annotator = ? AND key = ?", (annotator, key)
        ).fetchone()
        return None if row is None else _event(row)

    def _check_alone(self) -> None:
        """Within a transaction, so that nobody writes between this and what comes. Raises `OtherWriter`."""
        (last,) = self._connection.execute("SELECT max(seq) FROM events").fetchone()
        if last != self._last:
            raise OtherWriter(
                f"Nothing was stored: another chatpipe writes to {self.path} as well.",
                "End both of them, then start one: what they stored is there.",
            )

    def _fold(self) -> None:
        self.answers = Counter({item.id: 0 for item in self.items})
        """How many people have ranked each item, by its id; hidden repeats and programs do not count."""
        self.histories: dict[str, History] = {}
        for annotator in self._annotators.values():
            self._begin_history(annotator)
        self._last = None
        for event in self.events():
            self.histories[event.annotator].apply(event)
            self._last = event.seq

    def _begin_history(self, annotator: Annotator) -> None:
        self.histories[annotator.name] = History(self.answers if annotator.kind == "person" else Counter())


@contextmanager
def _opening(path: Path) -> Iterator[ExitStack]:
    """Whatever was opened is closed again where the block fails; errors of SQLite and the disk become ours."""
    try:
        with ExitStack() as opened:
            yield opened
    except (sqlite3.OperationalError, OSError) as problem:
        raise StoreError(
            f"{path} cannot be opened: {problem}.", "Is there room on the disk, and may you write there?"
        ) from problem
    except sqlite3.DatabaseError as problem:
        raise no_store(path) from problem


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another of the same name; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _check_one_name(path: Path) -> None:
    """Raises `UsageError` for a file with hard links: SQLite and the lock go by its name, which differ."""
    if path.is_file() and path.stat().st_nlink > 1:
        raise UsageError(
            f"{path} has another name in some folder (a hard link), under which another chatpipe could write to it.",
            "Delete the other name, or copy the file and give the copy: --store STORE.",
        )


def _items(connection: sqlite3.Connection) -> list[Item]:
    rows = connection.execute("SELECT id, prompt, responses, round FROM items ORDER BY position")
    return [Item(id, json.loads(prompt), json.loads(responses), made_in) for id, prompt, responses, made_in in rows]


def _annotators(connection: sqlite3.Connection) -> Iterator[Annotator]:
    for row in connection.execute("SELECT name, kind FROM annotators ORDER BY rowid"):
        yield Annotator(*row)


def _event(row: tuple[Any, ...]) -> Event:
    seq, at, annotator, action, task, body, key = row
    return Event(seq, at, annotator, action, task, json.loads(body), key)
