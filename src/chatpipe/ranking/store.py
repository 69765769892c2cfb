"""The store of rankings: a SQLite file with the items, the annotators, and all that these did, as events.

Events are only ever added, each in a transaction that is on the disk before `append` returns. One process writes, under
a lock beside the file; others may read meanwhile. What the events fold to is kept in memory, in `histories`.
"""

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import quote

from chatpipe.errors import ChatpipeError, UsageError
from chatpipe.locking import alone_with
from chatpipe.ranking.history import Event, History, item_of
from chatpipe.ranking.items import Item

Kind = Literal["person", "program"]

FORMAT = 1
APPLICATION = int.from_bytes(b"rank", "big")
"""What SQLite's `application_id` says of a store of ours."""

_SCHEMA = (
    f"PRAGMA application_id = {APPLICATION}",
    f"PRAGMA user_version = {FORMAT}",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE items (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL,"
    " responses TEXT NOT NULL, round INTEGER)",
    "CREATE TABLE annotators (name TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('person', 'program')),"
    " token_sha256 TEXT, created REAL NOT NULL)",
    "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL,"
    " annotator TEXT NOT NULL REFERENCES annotators (name), action TEXT NOT NULL, task TEXT, body TEXT NOT NULL,"
    " key TEXT NOT NULL, UNIQUE (annotator, key))",
    "CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are only added'); END",
    "CREATE TRIGGER events_hold BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are only added'); END",
)
_EVENT_COLUMNS = "seq, time, annotator, action, task, body, key"


class StoreError(ChatpipeError):
    """The store could not be read or written, as on a full disk (exit 1). What was stored before is still there."""


class StoreConflict(Exception):
    """The key of an event was used before, for another event of the same annotator."""


@dataclass(frozen=True)
class Annotator:
    """Who ranks; `token_sha256` is the hash of the token that a person on the network shows."""

    name: str
    kind: Kind
    token_sha256: str | None = None


class Store:
    """An open store: `Store.create_or_open(...)` for writing, `Store.read(...)` beside a writer; a context manager.

    `lock` is held by whoever reads and then writes; the methods that write take it themselves.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, closing_too: ExitStack) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._connection = connection
        self._closing_too = closing_too
        with connection:  # what is read is of one moment, also beside a writer
            connection.execute("BEGIN")
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            self.items = _items(connection)
            self._annotators = {
                name: Annotator(name, kind, token)
                for name, kind, token in connection.execute(
                    "SELECT name, kind, token_sha256 FROM annotators ORDER BY created"
                )
            }
            events = self.events()
        self.seed = int(meta["seed"])
        self.overlap = int(meta["overlap"])
        self.repeats = float(meta["repeats"])
        self.answers = Counter({item.id: 0 for item in self.items})
        """How many people have ranked each item, by its id; hidden repeats and programs do not count."""
        self.histories: dict[str, History] = {}
        for annotator in self._annotators.values():
            self._begin_history(annotator)
        for event in events:
            self.histories[event.annotator].apply(event)
        self._by_id = {item.id: item for item in self.items}

    @classmethod
    def create_or_open(cls, path: Path, items: Sequence[Item], seed: int, overlap: int, repeats: float) -> "Store":
        """Opens the store at `path` for writing; it is made where it is missing.

        `overlap` is how many people rank each item, `repeats` the share of items that each of them gets a second time;
        both may change from one opening to the next. Raises `UsageError` where another process writes to the store,
        where it was made from other items or with another seed, or where the file is no store.
        """
        with _opening(path) as opened:
            opened.enter_context(alone_with(path))
            connection = opened.enter_context(closing(_connect(path, "rwc")))
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
                _create(connection, items, seed)
            else:
                _check_format(path, connection)
                _check_same(path, connection, items, seed)
            _set_meta(connection, {"overlap": overlap, "repeats": repeats})
            return cls(path, connection, opened.pop_all())

    @classmethod
    def read(cls, path: Path) -> "Store":
        """Opens a store for reading, as it is at this moment. Raises `UsageError` where there is none."""
        if not path.is_file():
            raise UsageError(f"There is no store {path}.", "Make one: chatpipe rank FILE --store STORE.")
        with _opening(path) as opened:
            connection = opened.enter_context(closing(_connect(path, "ro")))
            _check_format(path, connection)
            return cls(path, connection, opened.pop_all())

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file and lets go of the lock."""
        self._closing_too.close()

    def item_of(self, task: str) -> Item:
        """The item that a task shows."""
        return self._by_id[item_of(task)]

    def annotators(self) -> list[Annotator]:
        """All annotators, in the order in which they came."""
        return list(self._annotators.values())

    def add_annotator(self, name: str, kind: Kind, token_sha256: str | None = None) -> None:
        """Makes an annotator known, or gives one who is a new token.

        Raises `UsageError` where the name cannot be one, or is that of an annotator of the other kind.
        """
        if not name.strip() or not name.isprintable():
            raise UsageError(f"{name!r} cannot be an annotator's name.", "Give letters that can be printed.")
        with self.lock:
            known = self._annotators.get(name)
            if known is not None and known.kind != kind:
                raise UsageError(f"{self.path}: {name} is a {known.kind}, not a {kind}.", "Choose another name.")
            if known is not None and token_sha256 in (None, known.token_sha256):
                return
            with self._writing() as connection:
                connection.execute(
                    "INSERT INTO annotators VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET token_sha256 = excluded.token_sha256",
                    (name, kind, token_sha256, time.time()),
                )
            self._annotators[name] = Annotator(name, kind, token_sha256)
            if known is None:
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
            with self._writing() as connection:
                seq = connection.execute(
                    "INSERT INTO events (time, annotator, action, task, body, key) VALUES (?, ?, ?, ?, ?, ?)",
                    (at, annotator, action, task, json.dumps(body), key),
                ).lastrowid
            assert seq is not None
            self.histories[annotator].apply(Event(seq, at, annotator, action, task, body, key))
            return True

    def events(self, annotator: str | None = None) -> list[Event]:
        """The events of one annotator, or of all, in the order in which they came."""
        chosen = "" if annotator is None else "WHERE annotator = ?"
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

    def _begin_history(self, annotator: Annotator) -> None:
        self.histories[annotator.name] = History(self.answers if annotator.kind == "person" else Counter())

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk after the block, or nothing."""
        try:
            with _transaction(self._connection):
                yield self._connection
        except sqlite3.OperationalError as problem:
            raise StoreError(
                f"Nothing was stored in {self.path}: {problem}.", "Make room on the disk, then do it again."
            ) from problem


@contextmanager
def _opening(path: Path) -> Iterator[ExitStack]:
    """Whatever was opened is closed again where the block fails; SQLite's errors become ours."""
    try:
        with ExitStack() as opened:
            yield opened
    except sqlite3.OperationalError as problem:
        raise StoreError(
            f"{path} cannot be opened: {problem}.", "Is there room on the disk, and may you write there?"
        ) from problem
    except sqlite3.DatabaseError as problem:
        raise _no_store(path) from problem


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    with connection:  # commits, or rolls back
        connection.execute("BEGIN IMMEDIATE")
        yield


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=10, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _create(connection: sqlite3.Connection, items: Sequence[Item], seed: int) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    with _transaction(connection):
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
            (
                (position, item.id, json.dumps(item.prompt), json.dumps(item.responses), item.round)
                for position, item in enumerate(items)
            ),
        )
        _set_meta(connection, {"seed": seed, "created": time.time()})


def _set_meta(connection: sqlite3.Connection, values: Mapping[str, float]) -> None:
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, str(values[key])) for key in values])


def _check_format(path: Path, connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
        raise _no_store(path)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise UsageError(f"{path} is a store of a newer chatpipe (format {version}, not {FORMAT}).", "Update chatpipe.")


def _check_same(path: Path, connection: sqlite3.Connection, items: Sequence[Item], seed: int) -> None:
    stored = {id for (id,) in connection.execute("SELECT id FROM items")}
    given = {item.id for item in items}
    if stored != given:
        raise UsageError(
            f"{path} was made from another completions file: {len(stored & given)} of its {len(stored)} items "
            f"are among the {len(given)} of this one.",
            "Give the file it was made from, or another store: --store STORE.",
        )
    (made_with,) = connection.execute("SELECT value FROM meta WHERE key = 'seed'").fetchone()
    if int(made_with) != seed:
        raise UsageError(f"{path} was made with seed {made_with}, not {seed}.", f"Give --seed {made_with}.")


def _no_store(path: Path) -> UsageError:
    return UsageError(f"{path} is no store of rankings.", "Give the file that chatpipe rank made (--store STORE).")


def _items(connection: sqlite3.Connection) -> list[Item]:
    rows = connection.execute("SELECT id, prompt, responses, round FROM items ORDER BY position")
    return [Item(id, json.loads(prompt), json.loads(responses), made_in) for id, prompt, responses, made_in in rows]


def _event(row: tuple[Any, ...]) -> Event:
    seq, at, annotator, action, task, body, key = row
    return Event(seq, at, annotator, action, task, json.loads(body), key)
