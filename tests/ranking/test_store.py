"""The store's file: one writer, a history that is only added to, and nothing lost by a kill or a full disk."""

import contextlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from ranked import items, submit

from chatpipe.errors import UsageError
from chatpipe.ranking.database import StoreError
from chatpipe.ranking.history import History, Step, StoreConflict
from chatpipe.ranking.items import Answer, Task
from chatpipe.ranking.session import Session, StaleTask
from chatpipe.ranking.store import Annotator, Store

WRITER = """
import resource, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from ranked import items
from chatpipe.ranking.session import Session
from chatpipe.ranking.database import StoreError
from chatpipe.ranking.store import Store

PATH = Path(sys.argv[1])
RANKS = {{"ranks": [1, 2, 2]}}

def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

def open_store(count):
    return Store.create_or_open(PATH, items(count), 0, 1, 0.05)
"""


def open_store(path: Path, count: int = 5, seed: int = 0, **settings) -> Store:
    return Store.create_or_open(path, items(count), seed=seed, **{"overlap": 1, "repeats": 0.05, **settings})


def run_writer(program: str, path: Path) -> subprocess.Popen:
    source = WRITER.format(tests=str(Path(__file__).parent)) + program
    return subprocess.Popen([sys.executable, "-c", source, str(path)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "folder" / "r.db"


def refusal(path: Path, **settings) -> str:
    with pytest.raises(UsageError) as caught, open_store(path, **settings):
        pass
    return f"{caught.value.message} {caught.value.hint}"


def test_what_was_put_in_is_there_after_opening_again(path):
    with open_store(path, overlap=2, repeats=0.1) as store:
        store.add_annotator("zoe", "person")
        store.add_annotator("ann", "program")
        first = Task(items(5)[0].id, False)
        History(store, "zoe").show(first, [0, 2, 1], now=5.5)
        History(store, "zoe").record(Step("key", "submit", first, Answer([1, 3, 2], note="so")), now=8.0)
    for again in (open_store(path, overlap=2, repeats=0.1), Store.read(path)):
        with again:
            assert (again.items, again.seed, again.overlap, again.repeats) == (items(5), 0, 2, 0.1)
            assert again.annotators() == [Annotator("zoe", "person"), Annotator("ann", "program")]
            (one,) = again.rankings()
            assert (one.item, one.annotator, one.kind, one.order) == (items(5)[0], "zoe", "person", [0, 2, 1])
            assert (one.ranks, one.note, one.seconds, one.time) == ([1, 3, 2], "so", 2.5, 8.0)
            assert [step.key for step in History(again, "zoe").steps()] == ["key"]
            assert History(again, "ann").steps() == []


def test_overlap_and_repeats_are_those_of_the_latest_opening(path):
    open_store(path).close()
    open_store(path, overlap=3, repeats=0.5).close()
    with Store.read(path) as store:
        assert (store.overlap, store.repeats) == (3, 0.5)


def test_it_is_on_the_disk_when_a_write_returns(path):
    open_store(path).close()
    with open_store(path) as store:
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_second_writer_is_refused_and_readers_are_not(path):
    with open_store(path) as store:
        store.add_annotator("ann", "person")
        assert refusal(path) == f"Another chatpipe writes to {path}. End that one first, or choose another file."
        with Store.read(path) as reader:
            assert [known.name for known in reader.annotators()] == ["ann"]
    open_store(path).close()


def test_a_refused_opening_lets_go_of_the_store(path):
    open_store(path).close()
    refusal(path, seed=1)
    open_store(path).close()


def test_a_store_of_another_file_is_refused(path):
    open_store(path).close()
    assert "5 of its 5 items are among the 6 of this one" in refusal(path, count=6)


def test_another_seed_is_refused(path):
    open_store(path, seed=7).close()
    assert refusal(path) == f"{path} was made with seed 7, not 0. Give --seed 7."


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to look like one " * 40, b"short"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "r.db"
    path.write_bytes(content)
    assert f"{path} is no store of rankings." in refusal(path)
    with pytest.raises(UsageError, match="is no store"):
        Store.read(path)
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "r.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE events (what TEXT)")
    other.close()
    before = path.read_bytes()
    assert "is no store of rankings" in refusal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version, who", [(2, "an earlier"), (4, "a newer")])
def test_a_store_of_another_format_is_refused(path, version, who):
    open_store(path).close()
    with sqlite3.connect(path) as other:
        other.execute(f"PRAGMA user_version = {version}")
    other.close()
    before = path.read_bytes()
    assert f"{path} was made by {who} chatpipe" in refusal(path)
    with pytest.raises(UsageError, match=f"was made by {who} chatpipe"):
        Store.read(path)
    assert path.read_bytes() == before


def test_reading_what_is_not_there_is_refused_and_makes_nothing(path):
    with pytest.raises(UsageError, match="There is no store"):
        Store.read(path)
    assert not path.parent.exists()


@pytest.mark.parametrize("statement", ["DELETE FROM history", "UPDATE history SET ranks = '[3, 2, 1]'"])
def test_the_history_is_only_added_to(path, statement):
    with open_store(path) as store:
        store.add_annotator("ann", "person")
        submit(store, "ann", store.items[0].id, [1, 2, 3])
    with sqlite3.connect(path) as other, pytest.raises(sqlite3.IntegrityError, match="history is only added to"):
        other.execute(statement)
    other.close()
    with Store.read(path) as store:
        assert [one.ranks for one in store.rankings()] == [[1, 2, 3]]


def test_a_person_can_read_it_with_sqlite_alone(path):
    with open_store(path) as store:
        store.add_annotator("ann", "person")
        submit(store, "ann", store.items[0].id, [2, 1, 2], note="close")
        with contextlib.closing(sqlite3.connect(path)) as other:
            found = other.execute("SELECT annotator, item, ranks, note FROM rankings").fetchall()
    assert found == [("ann", items(5)[0].id, "[2, 1, 2]", "close")]


def test_the_same_step_with_the_same_key_is_there_once_and_another_is_refused(path):
    with open_store(path) as store:
        task, histories = Task(store.items[0].id, False), []
        for name in ("ann", "bob"):
            store.add_annotator(name, "person")
            histories.append(History(store, name))
            histories[-1].show(task, [0, 1, 2])
        step = Step("key", "submit", task, Answer([1, 2, 3]))
        for history in (histories[0], histories[0], histories[1]):
            history.record(step)
        with pytest.raises(StoreConflict):
            histories[0].record(Step("key", "submit", task, Answer([3, 2, 1])))
        assert [history.steps() for history in histories] == [[step], [step]]
        assert [one.ranks for one in store.rankings()] == [[1, 2, 3], [1, 2, 3]]


def test_an_annotator_is_added_once_and_keeps_its_kind(path):
    with open_store(path) as store:
        store.add_annotator("ann", "person")
        store.add_annotator("ann", "person")
        with pytest.raises(UsageError, match="ann is a person, not a program"):
            store.add_annotator("ann", "program")
    with Store.read(path) as store:
        assert store.annotators() == [Annotator("ann", "person")]


def test_every_store_has_random_bytes_of_its_own_and_keeps_them(path, tmp_path):
    with open_store(path) as store, open_store(tmp_path / "other.db") as other:
        salt = store.salt
        assert len(salt) == 32
        assert salt != other.salt
    with open_store(path) as store:
        assert store.salt == salt


def test_annotators_are_in_the_order_in_which_they_were_added(path):
    with open_store(path) as store:
        for name in ("zoe", "ann", "mia", "zoe"):
            store.add_annotator(name, "person")
    with Store.read(path) as store:
        assert [known.name for known in store.annotators()] == ["zoe", "ann", "mia"]


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "\x1b[2J"])
def test_a_name_that_cannot_be_printed_is_refused(path, name):
    with open_store(path) as store, pytest.raises(UsageError, match="cannot be an annotator's name"):
        store.add_annotator(name, "person")


def test_what_is_written_together_is_there_together_or_not_at_all(path):
    with open_store(path) as store:
        store.add_annotator("ann", "person")
        task, history = Task(store.items[0].id, False), History(store, "ann")
        history.show(task, [0, 1, 2])
        with contextlib.suppress(InterruptedError), store.together():
            history.record(Step("submit", "submit", task, Answer([1, 2, 3])))
            assert store.taken() == {task.item: 1}
            raise InterruptedError
        assert history.steps() == []
        assert store.rankings() == []
        assert store.tasks("ann") == {task: "open"}
        assert store.taken() == {}


def test_where_the_disk_cannot_be_read_after_a_failed_write_nothing_is_shown_until_it_can(path):
    def unreadable(action: int, *_: object) -> int:
        return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_SELECT else sqlite3.SQLITE_OK

    with open_store(path) as store:
        store.add_annotator("ann", "person")
        task, history = Task(store.items[0].id, False), History(store, "ann")
        history.show(task, [0, 1, 2])
        with contextlib.suppress(StoreError), store.together():
            history.record(Step("submit", "submit", task, Answer([1, 2, 3])))
            store._connection.set_authorizer(unreadable)
            history.record(Step("undo", "undo"))
        for _ in range(2):
            with pytest.raises(StoreError, match="cannot be read: not authorized"):
                store.rankings()
            with pytest.raises(StoreError, match="not authorized"):
                history.record(Step("undo", "undo"))
        store._connection.set_authorizer(None)
        assert store.rankings() == []
        history.record(Step("submit", "submit", task, Answer([3, 2, 1])))
    with Store.read(path) as store:
        assert [one.ranks for one in store.rankings()] == [[3, 2, 1]]


def test_what_was_acknowledged_before_a_kill_is_there_and_nothing_twice(path):
    program = """
with open_store(1000) as store:
    store.add_annotator("ann", "person")
    session = Session(store, "ann")
    view = session.view()
    while True:
        key = f"key {view.done}"
        view = session.act(key, "submit", view.task, RANKS)
        print(key, flush=True)
"""
    acknowledged = set()
    for kill_after in (1, 17, 40):
        writer = run_writer(program, path)
        acknowledged |= {writer.stdout.readline().strip() for _ in range(kill_after)}
        writer.send_signal(signal.SIGKILL)
        acknowledged |= {line.strip() for line in writer.stdout if line.endswith("\n")}
        writer.wait()
        with Store.read(path) as store:
            keys = [step.key for step in History(store, "ann").steps()]
            assert acknowledged <= set(keys)
            assert len(keys) == len(set(keys)) == len(store.rankings())


def test_on_a_full_disk_nothing_acknowledged_is_lost_and_with_room_it_continues(path):
    program = """
limit_files(10_000)
try:
    open_store(200)
except StoreError as problem:
    print("made:", problem.message)
limit_files(-1)
with open_store(200) as store:
    store.add_annotator("ann", "person")
    session = Session(store, "ann")
    limit_files(1_000_000)
    view, long = session.view(), "n" * 2000
    try:
        while True:
            view = session.act(f"key {view.done}", "submit", view.task, RANKS | {"note": long})
    except StoreError as problem:
        print("wrote:", problem.message)
    assert session.view() == view, "what was not stored must not be seen"
    print(view.done)
    limit_files(-1)
    view = session.act(f"key {view.done}", "submit", view.task, RANKS)
    print(view.done)
"""
    writer = run_writer(program, path)
    made, wrote, before, after = writer.communicate()[0].splitlines()
    assert writer.returncode == 0
    assert made.startswith(f"made: {path} cannot be opened: ")
    assert wrote.startswith(f"wrote: Nothing was stored in {path}: ")
    assert int(before) > 10
    assert int(after) == int(before) + 1
    with Store.read(path) as store:
        assert len(store.rankings()) == int(after)


@pytest.mark.parametrize("replaced", [True, False])
def test_nothing_is_called_stored_that_goes_to_a_deleted_file(path, replaced):
    with open_store(path) as store:
        store.add_annotator("ann", "person")
        path.rename(path.with_name("moved.db"))
        if replaced:
            path.write_bytes(b"")
        with pytest.raises(StoreError, match="was deleted or replaced while it was in use"):
            History(store, "ann").record(Step("key", "undo"))
        assert History(store, "ann").steps() == []


def test_two_writers_whose_lock_failed_lose_and_double_nothing(path):
    """Each step is one transaction that reads what it depends on, so each writer sees what the other has stored."""
    with open_store(path) as store:
        store.add_annotator("ann", "person")
        path.with_name(path.name + ".lock").unlink()
        with open_store(path) as twin:
            one, other = Session(store, "ann"), Session(twin, "ann")
            task = one.view().task
            assert other.view() == one.view()
            view = other.act("twin", "submit", task, {"ranks": [1, 2, 3]})
            with pytest.raises(StaleTask):
                one.act("late", "submit", task, {"ranks": [3, 2, 1]})
            assert one.act("twin", "submit", task, {"ranks": [1, 2, 3]}) == view == one.view()
            one.act("next", "submit", view.task, {"ranks": [1, 1, 1]})
            assert other.act("undo", "undo", None, None).done == 1
            assert [step.key for step in History(twin, "ann").steps()] == ["twin", "next", "undo"]
    with Store.read(path) as store:
        assert len(store.rankings()) == 1


def test_a_store_with_a_second_name_is_refused_under_both(path):
    with open_store(path):
        twin = path.with_name("twin.db")
        twin.hardlink_to(path)
        assert f"{twin} has another name in some folder (a hard link)" in refusal(twin)
    assert f"{path} has another name" in refusal(path)
    twin.unlink()
    open_store(path).close()


def test_a_copy_of_an_open_store_can_be_read(path, tmp_path):
    """As a backup takes it: the file with its write-ahead log."""
    with open_store(path) as store:
        store.add_annotator("ann", "person")
        session = Session(store, "ann")
        session.act("key", "submit", session.view().task, {"ranks": [1, 2, 3]})
        shutil.copytree(path.parent, tmp_path / "copy")
    with Store.read(tmp_path / "copy" / path.name) as copy:
        assert len(copy.rankings()) == 1


def test_a_copy_of_the_file_alone_that_was_just_made_can_be_read(path, tmp_path):
    with open_store(path, overlap=2):
        shutil.copy(path, tmp_path / "copy.db")
    with Store.read(tmp_path / "copy.db") as copy:
        assert (copy.items, copy.overlap) == (items(5), 2)


def test_a_folder_is_no_store(tmp_path):
    assert (
        refusal(tmp_path) == f"The store {tmp_path} would be a file, and is a folder. Name a file in it: --store STORE."
    )
    assert list(tmp_path.iterdir()) == []
    assert not tmp_path.with_name(tmp_path.name + ".lock").exists()


def test_an_old_sqlite_is_refused_and_nothing_made(path, monkeypatch):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    assert "needs SQLite 3.37" in refusal(path)
    assert not path.exists()


def test_a_place_where_no_file_can_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="r.db cannot be opened: "):
        open_store(tmp_path / "file" / "r.db")
