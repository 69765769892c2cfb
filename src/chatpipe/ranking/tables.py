"""The SQLite file of a store: its tables, opening it, and whether it is one of ours and made from the same items."""

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from chatpipe import console
from chatpipe.errors import UsageError
from chatpipe.ranking.items import Item
from chatpipe.ranking.records import settings_in

FORMAT = 1
SALT_BYTES = 32
APPLICATION = int.from_bytes(b"rank", "big")
"""What SQLite's `application_id` says of a store of ours."""

_ANNOTATORS = (
    "CREATE TABLE annotators (name TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('person', 'program')),"
    " created REAL NOT NULL)"
)
_OLDER_ANNOTATORS = (
    "CREATE TABLE annotators (name TEXT PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('person', 'program')),"
    " token_sha256 TEXT, created REAL NOT NULL)"
)
"""As the first stores declared it; the hash in `token_sha256` says nothing any more."""
_OTHER_TABLES_AND_TRIGGERS = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE items (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL,"
    " responses TEXT NOT NULL, round INTEGER)",
    "CREATE TABLE events (seq INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL,"
    " annotator TEXT NOT NULL REFERENCES annotators (name), action TEXT NOT NULL, task TEXT, body TEXT NOT NULL,"
    " key TEXT NOT NULL, UNIQUE (annotator, key))",
    "CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are only added'); END",
    "CREATE TRIGGER events_hold BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are only added'); END",
)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All that the block writes is on the disk after it, or nothing."""
    with connection:  # commits, or rolls back
        connection.execute("BEGIN IMMEDIATE")
        yield


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; `mode` is SQLite's `ro` or `rwc`."""
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=10, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def create(connection: sqlite3.Connection, items: Sequence[Item], settings: Mapping[str, float]) -> None:
    """Makes the tables of a store in an empty file."""
    connection.execute("PRAGMA journal_mode = WAL")
    with transaction(connection):
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        for statement in (_ANNOTATORS, *_OTHER_TABLES_AND_TRIGGERS):
            connection.execute(statement)
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?)",
            (
                (position, item.id, json.dumps(item.prompt), json.dumps(item.responses), item.round)
                for position, item in enumerate(items)
            ),
        )
        set_meta(connection, {**settings, "created": time.time()})
        add_salt(connection)


def set_meta(connection: sqlite3.Connection, values: Mapping[str, float]) -> None:
    """Writes settings of the store over those that it has."""
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, str(values[key])) for key in values])


def add_salt(connection: sqlite3.Connection) -> None:
    """Gives the store random bytes of its own, unless it has them."""
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('salt', ?)", (secrets.token_hex(SALT_BYTES),))


def has_begun(path: Path) -> bool:
    """Whether there is a store, and not just what is left of one that was killed before its tables were there."""
    if not path.is_file():
        return False
    try:
        with closing(connect(path, "ro")) as connection:
            return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,))
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return True  # whoever opens it says what is wrong


def check_format(path: Path, connection: sqlite3.Connection) -> None:
    """Raises `UsageError` where the file is no store, that of a newer chatpipe, or not whole."""
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
        raise no_store(path)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise UsageError(f"{path} is a store of a newer chatpipe (format {version}, not {FORMAT}).", "Update chatpipe.")
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise damaged(path, found)
    declared = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}
    if not declared.issuperset(_OTHER_TABLES_AND_TRIGGERS) or declared.isdisjoint({_ANNOTATORS, _OLDER_ANNOTATORS}):
        raise damaged(path, "its tables are declared otherwise")


def check_same(path: Path, connection: sqlite3.Connection, items: Sequence[Item], seed: int) -> None:
    """Raises `UsageError` where the store was made from other items or with another seed, as `settings_in` does."""
    stored = {id for (id,) in connection.execute("SELECT id FROM items")}
    given = {item.id for item in items}
    if stored != given:
        raise UsageError(
            f"{path} was made from another completions file: {len(stored & given)} of its {len(stored)} items "
            f"are among the {len(given)} of this one.",
            "Give the file it was made from, or another store: --store STORE.",
        )
    made_with = settings_in(connection).seed
    if made_with != seed:
        raise UsageError(f"{path} was made with seed {made_with}, not {seed}.", f"Give --seed {made_with}.")


def no_store(path: Path) -> UsageError:
    """What to tell a user whose file is none of ours."""
    return UsageError(f"{path} is no store of rankings.", "Give the file that chatpipe rank made (--store STORE).")


def damaged(path: Path, how: str) -> UsageError:
    """What to tell a user whose store was one of ours; `how` may quote what stands in it, which can be anything."""
    return UsageError(
        f"{path} is damaged: {console.printable(' '.join(how.split()))}.",
        f"Put a copy of it there that is whole; `sqlite3 {path} .recover` prints what can still be read of this one.",
    )
