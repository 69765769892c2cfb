"""Undo and redo: what stands after any events is what the steps that hold say, and nothing is lost by going back."""

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chatpipe.ranking.history import AGAIN, STEPS, Event, History
from chatpipe.ranking.said import blank

ACTIONS = st.sampled_from(["edit", "edit", "submit", "submit", "skip", "undo", "undo", "redo"])
SCRIPTS = st.lists(ACTIONS, max_size=40)


class Annotator:
    """Plays actions on whatever task is at hand; `events` has all that would stand in the store."""

    def __init__(self) -> None:
        self.answers: Counter[str] = Counter()
        self.history = History(self.answers)
        self.events: list[Event] = []

    def play(self, *actions: str) -> "Annotator":
        for action in actions:
            self.do(action)
        return self

    def do(self, action: str) -> None:
        if self.history.current is None:
            number = len(self.history.shown)
            name = f"task{number - 1}{AGAIN}" if number % 5 == 4 else f"task{number}"
            self._add("show", name, {"order": [1, 0]})
        if action in STEPS:
            ranks = [1, 1 + len(self.events) % 2]
            body: dict[str, Any] = {"answer": {"ranks": ranks, "note": f"note {len(self.events)}"}}
            self._add(action, self.history.current, body | ({"reason": "why"} if action == "skip" else {}))
        else:
            self._add(action, None, {})

    def _add(self, action: str, task: str | None, body: dict[str, Any]) -> None:
        seq = len(self.events)
        self.events.append(Event(seq, float(seq), "ann", action, task, body, f"key {seq}"))
        self.history.apply(self.events[-1])


def state(history: History) -> dict[str, Any]:
    """All that can be seen from outside but for when tasks were touched."""
    return {
        "standing": history.standing,
        "open": set(history.open),
        "drafts": {task: history.draft(task) for task in history.open},
        "current": history.current,
        "moves": (history.can_undo, history.can_redo),
    }


def by_the_book(events: list[Event]) -> tuple[dict[str, str], dict[str, str], Counter[str]]:
    """Notes of the answers that stand and of the drafts, and the counts: worked out anew from the list of steps."""
    steps: list[Event] = []
    undone: list[Event] = []
    for event in events:
        if event.action in STEPS:
            steps += [step for step in undone if step.task != event.task] + [event]
            undone = []
        elif event.action == "undo" and steps:
            undone.insert(0, steps.pop())
        elif event.action == "redo" and undone:
            steps.append(undone.pop(0))
    standing = {step.task: step for step in steps if step.action != "edit"}
    drafts = {step.task: step.body["answer"]["note"] for step in steps if step.task not in standing}
    ranked = Counter(task for task, step in standing.items() if step.action == "submit" and not task.endswith(AGAIN))
    return {task: step.body["answer"]["note"] for task, step in standing.items()}, drafts, ranked


@given(SCRIPTS)
def test_what_stands_is_what_the_steps_that_hold_say(script):
    ann = Annotator().play(*script)
    standing, drafts, ranked = by_the_book(ann.events)
    assert {task: step.answer.note for task, step in ann.history.standing.items()} == standing
    assert set(ann.history.open) == set(ann.history.shown) - set(standing)
    assert {task: ann.history.draft(task).note for task in ann.history.open} == {
        task: drafts.get(task, "") for task in ann.history.open
    }
    assert +ann.answers == ranked


@given(SCRIPTS)
def test_events_read_from_the_store_give_what_they_gave_as_they_came(script):
    ann = Annotator().play(*script)
    again = History(Counter())
    for event in ann.events:
        again.apply(event)
    assert state(again) == state(ann.history)
    assert list(again.touched.items()) == list(ann.history.touched.items())


@given(SCRIPTS, st.integers(1, 40))
def test_undo_then_redo_changes_nothing(script, times):
    ann = Annotator().play(*script, "edit")
    before = state(ann.history)
    done = 0
    while done < times and ann.history.can_undo:
        ann.do("undo")
        done += 1
    assert ann.history.can_redo
    ann.play(*["redo"] * done)
    assert state(ann.history) == before


@given(SCRIPTS, st.integers(1, 40), st.sampled_from(STEPS))
def test_going_back_to_correct_an_earlier_ranking_loses_no_later_one(script, times, step):
    ann = Annotator().play(*script)
    while ann.history.can_redo:
        ann.do("redo")
    before = dict(ann.history.standing)
    ann.play(*["undo"] * times)
    corrected = ann.history.current
    ann.do(step)
    after = ann.history.standing
    assert {task: said for task, said in before.items() if task != corrected} == {
        task: said for task, said in after.items() if task != corrected
    }
    assert not ann.history.can_redo


@given(SCRIPTS)
def test_undo_goes_back_to_the_beginning(script):
    ann = Annotator().play(*script)
    while ann.history.can_undo:
        ann.do("undo")
    assert ann.history.standing == {}
    assert set(ann.history.open) == set(ann.history.shown)
    assert all(ann.history.draft(task) == blank(2) for task in ann.history.open)
    assert not +ann.answers


def test_undoing_a_submit_brings_back_its_task_as_it_was_before():
    ann = Annotator().play("edit", "submit", "edit", "submit")
    ann.play("undo", "undo", "undo")
    assert ann.history.current == "task0"
    assert ann.history.draft("task0").note == "note 1"
    assert ann.history.standing == {}


def test_the_draft_of_a_later_task_outlives_a_correction():
    ann = Annotator().play("edit", "submit", "edit", "undo", "undo", "submit")
    assert ann.history.current == "task1"
    assert ann.history.draft("task1").note == "note 4"
    assert ann.history.standing["task0"].answer.note == "note 7"


def test_one_undo_or_redo_too_many_does_nothing():
    ann = Annotator().play("submit")
    before = state(ann.history)
    ann.do("redo")
    assert ann.history.standing == before["standing"]
    ann.play("undo", "undo", "undo", "redo")
    assert ann.history.standing == before["standing"]
