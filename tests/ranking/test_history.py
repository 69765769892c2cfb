"""Undo and redo: the answers are those of the steps that hold, and nothing is lost by going back."""

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import items

from chatpipe.ranking.history import STEPS, History, Step
from chatpipe.ranking.items import Answer, Task, blank
from chatpipe.ranking.store import Store

ACTIONS = st.sampled_from(["edit", "edit", "submit", "submit", "skip", "undo", "undo", "redo"])
SCRIPTS = st.lists(ACTIONS, max_size=40)


class Annotator:
    """Plays actions on whatever task is at hand; `did` has them with their tasks and notes."""

    def __init__(self, store: Store, name: str) -> None:
        store.add_annotator(name, "person")
        self.store, self.name, self.history = store, name, History(store, name)
        self.did: list[tuple[str, Task | None, str]] = []

    def play(self, *actions: str) -> "Annotator":
        with self.store.together():  # once to the disk for all of them
            for action in actions:
                self.do(action)
        return self

    def do(self, action: str) -> None:
        task = self.history.current()
        if task is None:
            task = self._next()
            self.history.show(task, [1, 0], now=0.0)
        number = len(self.did)
        note = f"note {number}"
        if action in STEPS:
            answer = Answer([1, 1 + number % 2], note=note)
            step = Step(f"key {number}", action, task, answer, "why" if action == "skip" else None)
        else:
            step = Step(f"key {number}", action)
        self.history.record(step, now=0.0)
        self.did.append((action, task, note))

    def _next(self) -> Task:
        number = len(self.store.tasks(self.name))
        item = self.store.items[number - number % 5 if number % 5 == 4 else number]
        return Task(item.id, number % 5 == 4)

    def answered(self) -> dict[Task, str]:
        """The notes of the submits and skips that hold."""
        tasks = self.store.tasks(self.name)
        return {task: self.history.answer(task).note for task, status in tasks.items() if status != "open"}

    def open(self) -> dict[Task, str]:
        """The notes of the tasks that are open."""
        tasks = self.store.tasks(self.name)
        return {task: self.history.answer(task).note for task, status in tasks.items() if status == "open"}

    def ranked(self) -> Counter[str]:
        """The items that this annotator has ranked."""
        found = [one.item.id for one in self.store.rankings() if one.annotator == self.name and one.skipped is None]
        return Counter(found)


@pytest.fixture(scope="module")
def enter(tmp_path_factory):
    """Each call is another annotator of one store."""
    with Store.create_or_open(tmp_path_factory.mktemp("store") / "r.db", items(60, k=2), 0, 1, 0.0) as store:
        yield lambda: Annotator(store, f"ann{len(store.annotators())}")


def state(ann: Annotator) -> dict[str, Any]:
    """Everything that can be seen from outside but when tasks were worked on."""
    return {
        "rankings": [one for one in ann.store.rankings() if one.annotator == ann.name],
        "tasks": set(ann.store.tasks(ann.name).items()),
        "answers": {task: ann.history.answer(task) for task in ann.store.tasks(ann.name)},
        "current": ann.history.current(),
        "moves": ann.history.can_move(),
    }


def by_the_book(did: list[tuple[str, Task | None, str]]) -> tuple[dict[Any, str], dict[Any, str], Counter[str]]:
    """Notes of the final answers and of the open ones, and the counts: worked out from the list of steps."""
    steps: list[tuple[str, Any, str]] = []
    undone: list[tuple[str, Any, str]] = []
    for action, task, note in did:
        if action in STEPS:
            steps += [step for step in undone if step[1] != task] + [(action, task, note)]
            undone = []
        elif action == "undo" and steps:
            undone.insert(0, steps.pop())
        elif action == "redo" and undone:
            steps.append(undone.pop(0))
    final = {task: (action, note) for action, task, note in steps if action != "edit"}
    edits = {task: note for action, task, note in steps if task not in final}
    ranked = Counter(task.item for task, (action, _) in final.items() if action == "submit")
    return {task: note for task, (_, note) in final.items()}, edits, ranked


@settings(deadline=None)  # the disk decides how long it takes
@given(script=SCRIPTS)
def test_the_answers_are_those_of_the_steps_that_hold(enter, script):
    ann = enter().play(*script)
    final, edits, ranked = by_the_book(ann.did)
    assert ann.answered() == final
    assert ann.open() == {task: edits.get(task, "") for task in ann.store.tasks(ann.name).keys() - final.keys()}
    assert ann.ranked() == ranked


def test_whoever_opens_the_store_again_finds_what_was_there(tmp_path):
    script = random.Random(0).choices(["edit", "edit", "submit", "submit", "skip", "undo", "redo"], k=80)

    def open_store() -> Store:
        return Store.create_or_open(tmp_path / "r.db", items(60, k=2), 0, 1, 0.0)

    with open_store() as store:
        ann = Annotator(store, "ann").play(*script)
        before, tasks = state(ann), list(store.tasks("ann"))
    with open_store() as store:
        assert state(Annotator(store, "ann")) == before
        assert list(store.tasks("ann")) == tasks


@settings(deadline=None)  # the disk decides how long it takes
@given(script=SCRIPTS, times=st.integers(1, 40))
def test_undo_then_redo_changes_nothing(enter, script, times):
    ann = enter().play(*script, "edit")
    before = state(ann)
    done = 0
    while done < times and ann.history.can_move()[0]:
        ann.play("undo")
        done += 1
    assert ann.history.can_move()[1]
    ann.play(*["redo"] * done)
    assert state(ann) == before


@settings(deadline=None)  # the disk decides how long it takes
@given(script=SCRIPTS, times=st.integers(1, 40), step=st.sampled_from(STEPS))
def test_going_back_to_correct_an_earlier_ranking_loses_no_later_one(enter, script, times, step):
    ann = enter().play(*script)
    while ann.history.can_move()[1]:
        ann.play("redo")
    before = ann.answered()
    ann.play(*["undo"] * times)
    corrected = ann.history.current()
    ann.play(step)
    after = ann.answered()
    assert {task: note for task, note in before.items() if task != corrected} == {
        task: note for task, note in after.items() if task != corrected
    }
    assert not ann.history.can_move()[1]


@settings(deadline=None)  # the disk decides how long it takes
@given(script=SCRIPTS)
def test_undo_goes_back_to_the_beginning(enter, script):
    ann = enter().play(*script)
    while ann.history.can_move()[0]:
        ann.play("undo")
    assert ann.answered() == {}
    assert all(ann.history.answer(task) == blank(2) for task in ann.open())
    assert not ann.ranked()


def test_undoing_a_submit_brings_back_its_task_as_it_was_before(enter):
    ann = enter().play("edit", "submit", "edit", "submit")
    first = ann.did[0][1]
    ann.play("undo", "undo", "undo")
    assert ann.history.current() == first
    assert ann.history.answer(first).note == "note 0"
    assert ann.answered() == {}


def test_the_edits_of_a_later_task_outlive_a_correction(enter):
    ann = enter().play("edit", "submit", "edit", "undo", "undo", "submit")
    first, second = ann.did[0][1], ann.did[2][1]
    assert ann.history.current() == second
    assert ann.history.answer(second).note == "note 2"
    assert ann.history.answer(first).note == "note 5"


def test_one_undo_or_redo_too_many_does_nothing(enter):
    ann = enter().play("submit")
    before = ann.answered()
    ann.play("redo")
    assert ann.answered() == before
    ann.play("undo", "undo", "undo", "redo")
    assert ann.answered() == before
