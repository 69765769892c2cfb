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
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from chatpipe.data.locking import alone_with
from chatpipe.errors import ChatpipeError, UsageError
from chatpipe.ranking.assignment import queue_of
from chatpipe.ranking.history import Event, History, item_of
from chatpipe.ranking.items import Item
from chatpipe.ranking.records import (
    Annotator,
    Damaged,
    Kind,
    annotators_in,
    check_event,
    event_of_key,
    events_in,
    items_in,
    settings_in,
    sound,
)
from chatpipe.ranking.tables import (
    add_salt,
    check_format,
    check_same,
    connect,
    create,
    damaged,
    no_store,
    set_meta,
    transaction,
)

OF_THE_DISK = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
)
"""What SQLite calls trouble that is not the file's own."""


class StoreError(ChatpipeError):
    """The store could not be read or written, as on a full disk (exit 1). What was stored before is still there."""


class OtherWriter(StoreError):
    """Another process wrote to the store meanwhile. This one knows nothing of that, and stores nothing any more."""


class StoreConflict(Exception):
    """The key of an event was used before, for another event of the same annotator."""


@dataclass
class _Folded:
    """What the events come to, up to the one numbered `last`: how often each item was ranked, and the histories."""

    answers: Counter[str]
    histories: dict[str, History]
    last: int | None = None

    def begin_history(self, annotator: Annotator) -> None:
        counted: Counter[str] = self.answers if annotator.kind == "person" else Counter()
        self.histories[annotator.name] = History(counted)


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
        with connection:  # what is read is of one moment, also beside a writer
            connection.execute("BEGIN")
            settings = settings_in(connection)
            self.seed, self.overlap, self.repeats = settings.seed, settings.overlap, settings.repeats
            self.salt = settings.salt
            self.items = items_in(connection)
            self._by_id = {item.id: item for item in self.items}
            self._annotators = {known.name: known for known in annotators_in(connection)}
            self._folded: _Folded | None = self._fold()
            """None where something was applied that was not stored: it is folded anew when it is asked for."""

    @classmethod
    def create_or_open(cls, path: Path, items: Sequence[Item], seed: int, overlap: int, repeats: float) -> "Store":
        """Opens the store at `path` for writing; it is made where it is missing.

        `overlap` is how many people rank each item, `repeats` the share of items that each of them gets a second time;
        both may change from one opening to the next. Raises `UsageError` where another process writes to the store,
        where it was made from other items or with another seed, or where the file is no store, damaged, or has several
        names.
        """
        if path.is_dir():
            raise UsageError(f"The store {path} would be a file, and is a folder.", "Name a file in it: --store STORE.")
        with _opening(path) as opened:
            opened.enter_context(alone_with(path))
            _check_one_name(path)
            connection = opened.enter_context(closing(connect(path, "rwc")))
            settings = {"overlap": overlap, "repeats": repeats}
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                create(connection, items, {"seed": seed, **settings})
            else:
                check_format(path, connection)
                check_same(path, connection, items, seed)
                with transaction(connection):
                    set_meta(connection, settings)
                    add_salt(connection)
            # From the write-ahead log into the file, so that a copy of the file alone is a store.
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            store = cls(path, connection)
            store._held = opened.pop_all()
            return store

    @classmethod
    def read(cls, path: Path) -> "Store":
        """Opens a store for reading, as it is at this moment. Raises `UsageError` where there is none that is whole."""
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

    @cached_property
    def queue(self) -> list[str]:
        """The ids of the items, in the order in which they are assigned."""
        return queue_of((item.id for item in self.items), self.seed)

    @property
    def answers(self) -> Counter[str]:
        """How many people have ranked each item, by its id; hidden repeats and programs do not count."""
        return self._standing.answers

    @property
    def histories(self) -> dict[str, History]:
        """What each annotator was shown and said, by name. Raises `StoreError` where that cannot be read."""
        return self._standing.histories

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
            self._standing.begin_history(self._annotators[name])

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
                self._standing.last = seq
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
                self._folded = None  # what was applied was not stored
                if isinstance(problem, sqlite3.DatabaseError) and not isinstance(problem, sqlite3.IntegrityError):
                    raise StoreError(
                        f"Nothing was stored in {self.path}: {problem}.", "Make room on the disk, then do it again."
                    ) from problem
                raise

    def events(self, annotator: str | None = None) -> list[Event]:
        """The events of one annotator, or of all, in the order in which they came."""
        with self.lock, self._reading():
            return events_in(self._connection, annotator)

    def find(self, annotator: str, key: str) -> Event | None:
        """The event that an annotator's key was used for."""
        with self._reading():
            return event_of_key(self._connection, annotator, key)

    def _check_alone(self) -> None:
        """Within a transaction, so that nobody writes between this and what comes. Raises `OtherWriter`."""
        (last,) = self._connection.execute("SELECT max(seq) FROM events").fetchone()
        if last != self._standing.last:
            raise OtherWriter(
                f"Nothing was stored: another chatpipe writes to {self.path} as well.",
                "End both of them, then start one: what they stored is there.",
            )

    @property
    def _standing(self) -> _Folded:
        with self.lock:
            if self._folded is None:
                with self._reading():
                    self._folded = self._fold()
            return self._folded

    def _fold(self) -> _Folded:
        folded = _Folded(Counter({item.id: 0 for item in self.items}), {})
        for annotator in self._annotators.values():
            folded.begin_history(annotator)
        for event in events_in(self._connection):
            with sound(f"event {event.seq}"):
                check_event(event, 0 if event.task is None else len(self.item_of(event.task).responses))
                folded.histories[event.annotator].apply(event)
            folded.last = event.seq
        return folded

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """What goes wrong in reading the open file becomes `StoreError`."""
        try:
            yield
        except (Damaged, sqlite3.DatabaseError, UnicodeDecodeError) as problem:
            raise StoreError(
                f"{self.path} cannot be read: {problem}.", "Is its disk whole, and still there? Then do it again."
            ) from problem


@contextmanager
def _opening(path: Path) -> Iterator[ExitStack]:
    """Whatever was opened is closed again where the block fails; errors of SQLite and the disk become ours."""
    try:
        with ExitStack() as opened:
            yield opened
    except Damaged as problem:
        raise damaged(path, str(problem)) from problem
    except UnicodeDecodeError as problem:  # in the very message of SQLite
        raise damaged(path, "its text is not UTF-8") from problem
    except (sqlite3.DatabaseError, OSError) as problem:
        raise _told(path, problem) from problem


def _told(path: Path, problem: sqlite3.DatabaseError | OSError) -> ChatpipeError:
    """What to tell a user whose store could not be opened."""
    # Text that is not UTF-8 has no code; of a code the last byte says what it is, the others more about it.
    code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if isinstance(problem, OSError) or code in OF_THE_DISK:
        return StoreError(f"{path} cannot be opened: {problem}.", "Is there room on the disk, and may you write there?")
    return no_store(path) if code == sqlite3.SQLITE_NOTADB else damaged(path, str(problem))


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
