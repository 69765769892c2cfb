"""The SQLite file of a store: its tables, and the checks that a file is an undamaged store."""

import json
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from urllib.parse import quote

from chatpipe import console
from chatpipe.errors import ChatpipeError, UsageError
from chatpipe.ranking.items import BadAnswer, Item, item_id, read_answer

FORMAT = 3
APPLICATION = int.from_bytes(b"rank", "big")
"""SQLite's `application_id` of a store."""
SALT_BYTES = 32
OLDEST_SQLITE = (3, 37)
"""The first version with STRICT tables."""

CONDITIONS = {
    "settings": f"length(salt) = {SALT_BYTES}",
    "annotators": "kind IN ('person', 'program')",
    "rankings": "repeat IN (0, 1)",
    "history": "action IN ('edit', 'submit', 'skip', 'undo', 'redo') AND (state IS NULL OR state IN ('holds', 'undone',"
    " 'replaced'))",
}
"""What holds in every row of a table."""

SCHEMA = (
    "CREATE TABLE settings (seed INTEGER NOT NULL, overlap INTEGER NOT NULL, repeats REAL NOT NULL,"
    f" salt BLOB NOT NULL, CHECK ({CONDITIONS['settings']})) STRICT",
    "CREATE TABLE items (position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, prompt TEXT NOT NULL,"
    " responses TEXT NOT NULL, round INTEGER, own_id TEXT) STRICT",
    # `settings`: for a program, the fingerprint of what decides its ranks.
    "CREATE TABLE annotators (name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, settings TEXT NOT NULL,"
    f" CHECK ({CONDITIONS['annotators']})) STRICT",
    # A row for each task that an annotator was shown: the answer so far, or the final one if `answered` is a time.
    # `shown_order` has the index of the response at each place, `turn` the last number in `history` when it was shown
    # or worked on: by `turn`, then by rowid, the task that an annotator worked on last is at the end.
    "CREATE TABLE rankings (annotator TEXT NOT NULL REFERENCES annotators (name),"
    " item TEXT NOT NULL REFERENCES items (id), repeat INTEGER NOT NULL,"
    " ranks TEXT, all_bad INTEGER, flag INTEGER, note TEXT, skipped TEXT, answered REAL,"
    " shown_order TEXT NOT NULL, shown REAL NOT NULL, touched REAL NOT NULL, turn INTEGER NOT NULL,"
    f" UNIQUE (annotator, item, repeat), CHECK ({CONDITIONS['rankings']})) STRICT",
    # Everything that annotators did, in order. `state` is 'holds', 'undone' or 'replaced' for an edit, submit or skip;
    # NULL for an undo or redo, and for an edit that changed nothing.
    "CREATE TABLE history (number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL,"
    " annotator TEXT NOT NULL REFERENCES annotators (name), key TEXT NOT NULL,"
    " action TEXT NOT NULL, item TEXT, repeat INTEGER,"
    " ranks TEXT, all_bad INTEGER, flag INTEGER, note TEXT, skipped TEXT,"
    " state TEXT, UNIQUE (annotator, key),"
    " FOREIGN KEY (annotator, item, repeat) REFERENCES rankings (annotator, item, repeat),"
    f" CHECK ({CONDITIONS['history']})) STRICT",
    "CREATE INDEX history_tasks ON history (annotator, item, repeat, number)",
    "CREATE INDEX history_undone ON history (annotator, number) WHERE state = 'undone'",
    "CREATE INDEX rankings_open ON rankings (annotator) WHERE answered IS NULL",
    "CREATE INDEX rankings_ranked ON rankings (item, annotator)"
    " WHERE repeat = 0 AND answered IS NOT NULL AND skipped IS NULL",
    "CREATE TRIGGER history_stays BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history is only added to'); END",
    "CREATE TRIGGER history_is_fixed BEFORE UPDATE OF number, time, annotator, key, action, item, repeat, ranks,"
    " all_bad, flag, note, skipped ON history BEGIN SELECT RAISE(ABORT, 'history is only added to'); END",
)

ANSWER = "ranks, all_bad, flag, note, skipped"
"""The columns of an answer, in `rankings` and in `history`."""
LAST_STEP = (
    f"SELECT {ANSWER}, CASE action WHEN 'edit' THEN NULL ELSE time END FROM history WHERE (annotator, item, repeat) ="
    " (rankings.annotator, rankings.item, rankings.repeat) AND state = 'holds' ORDER BY number DESC LIMIT 1"
)
"""For a row of `rankings`, what its answer must be: that of the task's last step that holds."""

_OF_THE_DISK = (
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_READONLY,
)
"""SQLite's codes for trouble of the disk, not of the file."""


class StoreError(ChatpipeError):
    """The store cannot be read or written, as on a full disk (exit 1). What was stored before is still there."""


class Damaged(Exception):
    """The content of a store is inconsistent; the message names the place."""


def connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection that any thread may use, one at a time; `mode` is SQLite's `ro` or `rwc`.

    Raises `UsageError` if this Python's SQLite is too old.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        needed = ".".join(map(str, OLDEST_SQLITE))
        raise UsageError(
            f"A store of rankings needs SQLite {needed}; this Python has {sqlite3.sqlite_version}.",
            "Use another Python, for example one from conda or uv.",
        )
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=10, isolation_level=None, check_same_thread=False
    )
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Everything that the block writes is on the disk afterwards, or nothing."""
    with connection:  # commits, or rolls back
        connection.execute("BEGIN IMMEDIATE")
        yield


def is_empty(connection: sqlite3.Connection) -> bool:
    """Whether the file has no tables yet, as after a kill while it was made."""
    return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,))


def create_tables(connection: sqlite3.Connection, items: Sequence[Item], seed: int) -> None:
    """Make the tables of a store in an empty file."""
    connection.execute("PRAGMA journal_mode = WAL")
    with transaction(connection):
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        for statement in SCHEMA:
            connection.execute(statement)
        rows = (
            (i, x.id, json.dumps(x.prompt), json.dumps(x.responses), x.round, json.dumps(x.own_id))
            for i, x in enumerate(items)
        )
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO settings VALUES (?, 1, 0, ?)", (seed, secrets.token_bytes(SALT_BYTES)))


@contextmanager
def opening(path: Path) -> Iterator[ExitStack]:
    """If the block fails, everything opened is closed again; errors of SQLite and of the disk become ours."""
    try:
        with ExitStack() as opened:
            yield opened
    except Damaged as problem:
        raise _damaged(path, str(problem)) from problem
    except UnicodeDecodeError as problem:  # in the very message of SQLite
        raise _damaged(path, "its text is not UTF-8") from problem
    except (sqlite3.DatabaseError, OSError) as problem:
        # Text that is not UTF-8 has no code; the last byte of a code is its kind.
        code = getattr(problem, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if isinstance(problem, OSError) or code in _OF_THE_DISK:
            hint = "Is there room on the disk, and may you write there?"
            raise StoreError(f"{path} cannot be opened: {problem}.", hint) from problem
        raise (_no_store(path) if code == sqlite3.SQLITE_NOTADB else _damaged(path, str(problem))) from problem


def check_store(path: Path, connection: sqlite3.Connection) -> None:
    """Raises `UsageError` or `Damaged` if the file is not a store, is that of another chatpipe, or is damaged."""
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION,):
        raise _no_store(path)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise UsageError(f"{path} was made by a newer chatpipe (format {version}, not {FORMAT}).", "Update chatpipe.")
    if version < FORMAT:
        raise UsageError(f"{path} was made by an earlier chatpipe.", "Name another store: --store STORE.")
    (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found != "ok":
        raise Damaged(found)
    if not {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}.issuperset(SCHEMA):
        raise Damaged("its tables are declared otherwise")
    wrong = [(table, row) for table, row, *_ in connection.execute("PRAGMA foreign_key_check")]
    for table, condition in CONDITIONS.items():  # which SQLite does not look at in a file opened for reading
        wrong += [(table, row) for (row,) in connection.execute(f"SELECT rowid FROM {table} WHERE NOT ({condition})")]
    for table, row in wrong:
        raise Damaged(f"row {row} of {table} makes no sense")
    if connection.execute("SELECT count(*) FROM settings").fetchone() != (1,):
        raise Damaged("the table settings makes no sense")
    _check_answers(connection)


def _check_answers(connection: sqlite3.Connection) -> None:
    """Raises `Damaged` for an answer that no annotator can have given."""
    sizes = {item.id: len(item.responses) for item in read_items(connection)}
    for table, answered in (("rankings", "answered IS NOT NULL"), ("history", "action IN ('submit', 'skip')")):
        order = "shown_order" if table == "rankings" else "NULL"
        query = f"SELECT rowid, item, {order}, {answered}, {ANSWER} FROM {table}"
        for row, item, shown_order, is_final, ranks, *more in connection.execute(query):
            with sound(f"row {row} of {table}"):
                if shown_order is not None:
                    _expect(sorted(json.loads(shown_order)) == list(range(sizes[item])))
                if ranks is None:
                    _expect(not is_final and more == [None] * 4)
                    continue
                _check_answer(json.loads(ranks), sizes[item], bool(is_final), *more)
    query = f"SELECT rowid FROM rankings WHERE ({ANSWER}, answered) IS NOT ({LAST_STEP})"
    for (row,) in connection.execute(query):
        raise Damaged(f"row {row} of rankings differs from the history")


def _check_answer(ranks: object, k: int, is_final: bool, all_bad: int, flag: int, note: str, skipped: str) -> None:
    given = {"ranks": ranks, "all_bad": bool(all_bad), "flag": bool(flag), "note": note}
    answer = read_answer(given, range(k))
    _expect({all_bad, flag} <= {0, 1} and (is_final or skipped is None))
    _expect(not is_final or skipped is not None or answer.complete() == answer)


def read_items(connection: sqlite3.Connection) -> list[Item]:
    """The items in the order of their file. Raises `Damaged`: an item's id is a hash of its texts."""
    items = []
    query = "SELECT id, prompt, responses, round, own_id FROM items ORDER BY position"
    for id, prompt, responses, round, own_id in connection.execute(query):
        with sound(f"item {id}"):
            item = Item(id, json.loads(prompt), json.loads(responses), round, json.loads(own_id))
            _expect(item.id == item_id(item.prompt, item.responses))
            items.append(item)
    return items


def has_begun(path: Path) -> bool:
    """Whether a store is at `path`, and not just the remains of one that was killed before it had tables."""
    if not path.is_file():
        return False
    try:
        with closing(connect(path, "ro")) as connection:
            return not is_empty(connection)
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        return True  # whoever opens it learns what is wrong


@contextmanager
def sound(what: str) -> Iterator[None]:
    """An error in reading `what` becomes `Damaged`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, BadAnswer) as problem:
        raise Damaged(f"{what} makes no sense") from problem


def _expect(holds: bool) -> None:
    if not holds:
        raise ValueError


def _no_store(path: Path) -> UsageError:
    return UsageError(f"{path} is no store of rankings.", "Give the file that chatpipe rank made (--store STORE).")


def _damaged(path: Path, how: str) -> UsageError:
    """`how` may quote the damaged file, so it can be anything."""
    return UsageError(
        f"{path} is damaged: {console.printable(' '.join(how.split()))}.",
        f"Replace it by an undamaged copy; `sqlite3 {path} .recover` prints what can still be read of this one.",
    )
