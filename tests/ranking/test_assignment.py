"""Who ranks what next: overlap, leases, hidden repeats, shown order."""

from collections import Counter
from itertools import permutations

import pytest
from ranked import items

from chatpipe.ranking.history import History
from chatpipe.ranking.items import Task
from chatpipe.ranking.session import TASKS_BEFORE_REPEAT, Session, repeated_items, shown_order, token_of
from chatpipe.ranking.store import HELD_SECONDS, Store

RANKS = {"ranks": [1, 2, 2]}


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Room:
    """Annotators at work on one store, who know their tasks by item and take a second for each."""

    def __init__(self, store: Store) -> None:
        self.store, self.clock = store, Clock()
        self.sessions: dict[str, Session] = {}
        self.keys = 0

    def enter(self, name: str) -> None:
        self.store.add_annotator(name, "person")
        self.sessions[name] = Session(self.store, name, self.clock)

    def task(self, name: str) -> Task | None:
        self.sessions[name].view()
        return History(self.store, name).current()

    def act(self, name: str, action: str = "submit") -> None:
        session = self.sessions[name]
        self.keys += 1
        self.clock.now += 1
        session.act(f"key {self.keys}", action, session.view().task, RANKS, "cannot tell")

    def finish(self, name: str) -> list[Task]:
        """All tasks that this annotator gets and answers until nothing is left."""
        done = []
        while (task := self.task(name)) is not None:
            done.append(task)
            self.act(name)
        return done


@pytest.fixture
def room(tmp_path):
    """Opens a room with so many items."""
    opened = []

    def room(count: int, overlap: int = 1, repeats: float = 0.0) -> Room:
        opened.append(Store.create_or_open(tmp_path / "r.db", items(count), seed=3, overlap=overlap, repeats=repeats))
        return Room(opened[-1])

    yield room
    for store in opened:
        store.close()


def test_the_shown_order_is_a_function_of_seed_annotator_and_task():
    task = Task("task", False)
    assert shown_order(3, "ann", task, 9) == shown_order(3, "ann", task, 9)
    others = [(4, "ann", task), (3, "bob", task), (3, "ann", Task("other", False)), (3, "ann", Task("task", True))]
    assert all(shown_order(*other, 9) != shown_order(3, "ann", task, 9) for other in others)


@pytest.mark.parametrize("k", [2, 3])
def test_a_repeat_comes_in_another_order_than_the_first_time_and_in_each_other_one_equally_often(k):
    pairs = Counter(
        tuple(tuple(shown_order(0, "ann", Task(f"task {i}", repeat), k)) for repeat in (False, True))
        for i in range(6000)
    )
    every = list(permutations(range(k)))
    assert set(pairs) == {(first, again) for first in every for again in every if first != again}
    mean = 6000 / len(pairs)
    assert all(abs(count - mean) < 0.25 * mean for count in pairs.values())


def test_every_order_comes_equally_often():
    counts = Counter(tuple(shown_order(0, "ann", Task(f"task {i}", False), 3)) for i in range(6000))
    assert set(counts) == set(permutations(range(3)))
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_tokens_differ_and_do_not_reveal_a_repeat():
    tasks = (Task("x", False), Task("x", True), Task("y", False))
    tokens = {token_of(salt, name, task) for salt in (b"0", b"1") for name in "ab" for task in tasks}
    assert len(tokens) == 12
    assert {len(token) for token in tokens} == {32}


def test_tokens_of_two_stores_with_the_same_items_and_seed_differ(tmp_path):
    """So they depend on what nobody can try out."""
    seen = []
    for name in ("a.db", "b.db"):
        with Store.create_or_open(tmp_path / name, items(1), seed=0, overlap=1, repeats=0) as store:
            store.add_annotator("ann", "person")
            seen.append(Session(store, "ann").view())
    assert seen[0].responses == seen[1].responses
    assert seen[0].task != seen[1].task


@pytest.mark.parametrize("overlap", [1, 2, 3])
def test_each_item_is_ranked_by_as_many_as_asked_and_by_nobody_twice(room, overlap):
    room = room(20, overlap)
    names = ["ann", "bob", "cleo"]
    for name in names:
        room.enter(name)
    done: dict[str, list[Task]] = {name: [] for name in names}
    while any(room.task(name) for name in names):
        for name in names:
            task = room.task(name)
            if task is not None:
                done[name].append(task)
                room.act(name)
    counts = Counter(task for tasks in done.values() for task in tasks)
    assert set(counts.values()) == {overlap}
    assert len(counts) == 20
    assert all(len(set(tasks)) == len(tasks) for tasks in done.values())


def test_items_that_fewest_have_ranked_come_first(room):
    room = room(10, overlap=2)
    room.enter("ann")
    first = {room.task("ann")}
    for _ in range(5):
        room.act("ann")
        first.add(room.task("ann"))
    room.enter("bob")
    untouched = {Task(item.id, False) for item in room.store.items} - first
    for _ in range(len(untouched)):
        assert room.task("bob") in untouched
        room.act("bob")
    assert room.task("bob") in first


def test_what_somebody_is_ranking_is_free_again_half_an_hour_after_they_last_touched_it(room):
    room = room(1)
    room.enter("ann")
    room.enter("bob")
    assert room.task("ann") is not None
    assert room.task("bob") is None
    room.clock.now += HELD_SECONDS - 1
    room.act("ann", "edit")
    room.clock.now += HELD_SECONDS - 1
    assert room.task("bob") is None
    room.clock.now += 1
    assert room.task("bob") == room.task("ann")


@pytest.mark.parametrize("back, free", [(1, False), (HELD_SECONDS - 1, False), (HELD_SECONDS, True), (1e7, True)])
def test_a_clock_that_goes_back_holds_nothing_for_longer_than_half_an_hour(room, back, free):
    room = room(1)
    room.enter("ann")
    room.enter("bob")
    assert room.task("ann") is not None
    room.clock.now -= back
    assert (room.task("bob") is not None) == free


def test_a_skip_does_not_count_towards_the_overlap_but_does_not_come_back(room):
    room = room(1)
    room.enter("ann")
    room.enter("bob")
    room.act("ann", "skip")
    assert room.task("ann") is None
    assert room.finish("bob") == [Task(room.store.items[0].id, False)]


def test_a_ranking_that_was_undone_no_longer_counts(room):
    room = room(2)
    room.enter("ann")
    room.finish("ann")
    assert sorted(room.store.taken().values()) == [1, 1]
    room.act("ann", "undo")
    assert sorted(room.store.taken().values()) == [1]


def test_repeats_come_once_later_and_of_what_was_chosen(room):
    room = room(60, repeats=0.2)
    room.enter("ann")
    chosen = repeated_items(room.store.queue, 3, "ann", 0.2)
    done = room.finish("ann")
    again = [task for task in done if task.repeat]
    assert 0 < len(chosen) < 30
    assert len(done) == len(set(done)) == 60 + len(again)
    assert set(again) <= {Task(item, True) for item in chosen}
    assert len(chosen) - len(again) <= 1  # but for an item that came last of all
    between = [done.index(task) - done.index(Task(task.item, False)) - 1 for task in again]
    assert min(between) >= 1
    new_left = [any(not later.repeat for later in done[done.index(task) :]) for task in again]
    assert all(gap >= TASKS_BEFORE_REPEAT for gap, new in zip(between, new_left, strict=True) if new)


def test_one_in_twenty_is_repeated():
    chosen = repeated_items([f"item {i}" for i in range(20_000)], 0, "ann", 0.05)
    assert abs(len(chosen) - 1000) < 100


def test_a_repeat_never_comes_directly_after_the_first_time(room):
    room = room(1, repeats=1.0)
    room.enter("ann")
    assert room.finish("ann") == [Task(room.store.items[0].id, False)]


def test_an_item_that_was_skipped_is_not_repeated(room):
    room = room(2, repeats=1.0)
    room.enter("ann")
    room.act("ann", "skip")
    room.act("ann")
    assert room.task("ann") is None  # nor the other one, directly after itself


def test_what_is_left_counts_down_to_nothing(room):
    room = room(30, repeats=0.2)
    room.enter("ann")
    session, left = room.sessions["ann"], []
    while (view := session.view()).task is not None:
        left.append(view.left)
        room.act("ann")
    assert left == sorted(left, reverse=True)
    assert left[0] - len(left) in (0, 1)  # an item that comes last of all is not repeated
    assert session.view().left == 0
