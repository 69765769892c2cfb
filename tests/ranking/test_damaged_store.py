"""A store that was cut off, overwritten or flipped somewhere: refused by its name, or read; never a traceback."""

import contextlib
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from ranked import items, open_store, skip, submit

from chatpipe.errors import ChatpipeError, UsageError
from chatpipe.ranking.export import export
from chatpipe.ranking.session import Session
from chatpipe.ranking.stats import store_stats
from chatpipe.ranking.store import Store

ITEMS = items(12)
INSERT = "INSERT INTO history (number, time, annotator, key, action, item, repeat, ranks) VALUES (999, 1,"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    """The bytes of a store with people, a program, drafts, a skip, undone steps and a repeat."""
    path = tmp_path_factory.mktemp("whole") / "r.db"
    with open_store(path, ITEMS) as store:
        store.add_annotator("ann", "person")
        store.add_annotator("robot", "program")
        for item in ITEMS:
            submit(store, "robot", item.id, [1, 2, 3], note="so")
        session = Session(store, "ann")
        for number in range(8):
            view = session.act(f"edit {number}", "edit", session.view().task, {"ranks": [1, None, 2]})
            session.act(f"submit {number}", "submit", view.task, {"ranks": [2, 1, 3], "note": f"note {number}"})
        session.act("undo", "undo", None, None)
        submit(store, "ann", ITEMS[0].id, [3, 2, 1], repeat=True)
        skip(store, "robot", ITEMS[1].id, 3, "too long", repeat=True)
    return path.read_bytes()


def read(path: Path) -> None:
    """All that is read of a store."""
    with Store.read(path) as store:
        store_stats(store)
        export(store, path.with_name("rankings.jsonl"))
        export(store, path.with_name("pairs.jsonl"), as_pairs=True)


def write(path: Path) -> None:
    """What somebody who ranks does with a store."""
    with open_store(path, ITEMS) as store:
        store.add_annotator("ann", "person")
        session = Session(store, "ann")
        session.act("undo more", "undo", None, None)
        session.act("one more", "submit", session.view().task, {"ranks": [1, 1, 2]})


def told(path: Path, content: bytes, use: Callable[[Path], None]) -> str | None:
    """The message about a file with this content, None where it can be used."""
    for old in path.parent.iterdir():
        old.unlink()
    path.write_bytes(content)
    try:
        use(path)
    except ChatpipeError as refused:
        return f"{refused.message} {refused.hint}"
    return None


USES = pytest.mark.parametrize("use", [read, write], ids=["read", "write"])


@USES
def test_the_whole_one_can_be_used(tmp_path, whole, use):
    assert told(tmp_path / "r.db", whole, use) is None


@USES
def test_a_store_that_was_cut_off_is_refused(tmp_path, whole, use):
    path = tmp_path / "r.db"
    for size in [2, 15, 16, 50, 99, 100, 101, 1000, *range(4096, len(whole), 2048), len(whole) - 1]:
        said = told(path, whole[:size], use)
        assert said is not None, size
        assert said.startswith((f"{path} is no store of rankings.", f"{path} is damaged: ")), said


@USES
def test_a_page_of_zeros_or_noise_is_refused(tmp_path, whole, use):
    path, rng = tmp_path / "r.db", random.Random(0)
    for start in range(0, len(whole), 4096):
        for page in (bytes(4096), rng.randbytes(4096)):
            said = told(path, whole[:start] + page + whole[start + 4096 :], use)
            assert said is not None, start
            assert said.startswith((f"{path} is no store of rankings.", f"{path} is damaged: ")), said


@USES
def test_flipped_bits_are_refused_by_the_files_name_or_change_a_text_or_number(tmp_path, whole, use):
    path, rng = tmp_path / "r.db", random.Random(0)
    used = [place for place, byte in enumerate(whole) if byte]
    refused = 0
    for place in sorted(rng.sample(used, 300)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        said = told(path, bytes(flipped), use)
        refused += said is not None
        assert said is None or str(path) in said, (place, said)
    assert refused > 150


@USES
@pytest.mark.parametrize(
    "statement, where",
    [
        ("DELETE FROM settings", "the table settings makes no sense"),
        ("UPDATE settings SET salt = x'00'", ".* settings"),
        ("UPDATE items SET prompt = '[]' WHERE position = 0", "item .* makes no sense"),
        ("UPDATE annotators SET name = 'eve' WHERE name = 'ann'", "row .* of history makes no sense"),
        ("UPDATE rankings SET shown_order = '[0, 0, 1]' WHERE rowid = 3", "row 3 of rankings makes no sense"),
        ("UPDATE rankings SET ranks = '[1, 3, 3]' WHERE rowid = 3", "row 3 of rankings makes no sense"),
        ("UPDATE rankings SET ranks = '[3, 1, 2]' WHERE rowid = 3", "row 3 of rankings differs from the history"),
        ("UPDATE rankings SET answered = NULL WHERE rowid = 3", "row 3 of rankings differs from the history"),
        ("DELETE FROM rankings WHERE rowid = 3", "row .* of history makes no sense"),
        (f"{INSERT} 'eve', 'k', 'undo', NULL, NULL, NULL)", "row 999 of history makes no sense"),
        (f"{INSERT} 'ann', 'k', 'erase', NULL, NULL, NULL)", ".* history"),
        (f"{INSERT} 'ann', 'k', 'submit', 'x', 0, NULL)", "row 999 of history makes no sense"),
        (f"{INSERT} 'ann', 'k', 'submit', '{ITEMS[0].id}', 0, NULL)", "row 999 of history makes no sense"),
        (f"{INSERT} 'ann', 'k', 'edit', '{ITEMS[0].id}', 0, '[]')", "row 999 of history makes no sense"),
        ("DROP TRIGGER history_stays", "its tables are declared otherwise"),
    ],
)
def test_what_was_edited_by_hand_is_named_with_its_place(tmp_path, whole, use, statement, where):
    path = tmp_path / "r.db"
    path.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute(statement)
    with pytest.raises(UsageError, match=f"r.db is damaged: {where}"):
        use(path)
