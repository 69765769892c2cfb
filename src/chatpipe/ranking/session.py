"""One annotator at work, on the page and in the terminal: what they see, what they do, and which task comes next."""

import hmac
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chatpipe.data.chat_template import Message
from chatpipe.errors import UsageError
from chatpipe.ranking.history import MOVES, STEPS, History, Step
from chatpipe.ranking.items import BadAnswer, Task, Tasks, blank, read_answer, read_text
from chatpipe.ranking.store import Store

TASKS_BEFORE_REPEAT = 10
"""How many other tasks come between an item and its hidden repeat, while there are others."""
PACE_TASKS = 20
"""The pace is the median over this many of the latest tasks."""


class StaleTask(Exception):
    """The task is not the one at hand: it was answered or left elsewhere. Nothing was stored."""


@dataclass(frozen=True)
class View:
    """Everything that an annotator may see. `task` is None, and its content empty, if nothing is left to rank."""

    task: str | None
    """The token of the task."""
    prompt: list[Message]
    responses: list[str]
    """In the shown order."""
    answer: dict[str, Any]
    """The answer so far: `ranks` in the shown order, `all_bad`, `flag`, `note`."""
    can_undo: bool
    can_redo: bool
    done: int
    """How many tasks this annotator has ranked or skipped."""
    left: int
    """How many tasks are still to come for this annotator, as it looks now."""
    seconds_per_task: float | None
    """The median over this annotator's latest tasks; None before the first."""


class Session:
    """One person who ranks in a store that is open for writing; `clock` returns seconds since 1970."""

    def __init__(self, store: Store, annotator: str, clock: Callable[[], float] = time.time) -> None:
        if annotator not in {known.name for known in store.annotators() if known.kind == "person"}:
            raise UsageError(f"{store.path} knows no annotator {annotator}.", "Add the annotator first.")
        self._store = store
        self._history = History(store, annotator)
        self._annotator = annotator
        self._clock = clock
        self._repeated = repeated_items(store.queue, store.seed, annotator, store.repeats)

    def view(self) -> View:
        """What the annotator sees now; assigns the next task if none is at hand."""
        with self._store.lock:
            return self._view()

    def act(
        self, key: str, action: str, task: str | None, answer: dict[str, Any] | None, reason: str | None = None
    ) -> View:
        """Stores an edit, submit, skip, undo or redo and returns what the annotator sees afterwards.

        `task` is the token of the task at hand (an undo or redo may leave it out), `answer` has its ranks in the shown
        order (a skip may leave it out, for the answer so far). The same key with the same content again changes
        nothing, whatever happened in between. Raises `BadAnswer`, `StaleTask`, and as `History.record`.
        """
        with self._store.lock:
            if self._history.current() is None:
                self._view()  # assigns a task
            with self._store.together():
                used = next(iter(self._history.steps(key)), None)
                at_hand = self._history.current() if used is None else used.task
                if not self._is_meant(task, at_hand, action):
                    raise StaleTask("this task is not the one at hand")
                self._history.record(self._step(key, action, at_hand, answer, reason, used), self._clock())
                return self._view()

    def _is_meant(self, token: str | None, at_hand: Task | None, action: str) -> bool:
        if token is None:
            return action in MOVES
        return at_hand is not None and token == self._token(at_hand)

    def _token(self, task: Task) -> str:
        return token_of(self._store.salt, self._annotator, task)

    def _step(
        self, key: str, action: str, task: Task | None, answer: Any, reason: str | None, used: Step | None
    ) -> Step:
        """The step to store; `used` is the one that its key was used for. Raises `BadAnswer`."""
        if action in MOVES:
            return Step(key, action, task)
        if action not in STEPS:
            raise BadAnswer(f"there is no action {action}")
        assert task is not None  # a step is meant for a task
        if action == "skip" and answer is None:  # the answer so far, or when it was sent first
            given = used.answer if used is not None and used.action == "skip" else self._history.answer(task)
        else:
            given = read_answer(answer, self._history.shown_order(task))
        assert given is not None
        if action == "edit":
            return Step(key, action, task, given)
        if action == "submit":
            return Step(key, action, task, given.complete())
        if not read_text(reason, "the reason").strip():
            raise BadAnswer("a skip needs a reason")
        return Step(key, action, task, given, reason)

    def _view(self) -> View:
        now, task = self._clock(), self._history.current()
        tasks, taken = self._store.tasks(self._annotator), self._store.taken(now)
        new = new_items(self._store.queue, tasks, taken, self._store.overlap)
        if task is None:
            task = next_task(tasks, new, taken, self._repeated)
            if task is not None:
                k = len(self._store.item(task.item).responses)
                self._history.show(task, shown_order(self._store.seed, self._annotator, task, k), now)
                tasks[task] = "open"
                new = [item for item in new if item != task.item]
        if task is None:
            prompt, responses, answer = [], [], blank(0).shown_in([])
        else:
            item, order = self._store.item(task.item), self._history.shown_order(task)
            prompt, responses = item.prompt, [item.responses[index] for index in order]
            answer = self._history.answer(task).shown_in(order)
        can_undo, can_redo = self._history.can_move()
        pace = self._history.latest_seconds(PACE_TASKS)
        return View(
            task=None if task is None else self._token(task),
            prompt=prompt,
            responses=responses,
            answer=answer,
            can_undo=can_undo,
            can_redo=can_redo,
            done=sum(status != "open" for status in tasks.values()),
            left=tasks_left(tasks, new, self._repeated),
            seconds_per_task=statistics.median(pace) if pace else None,
        )


# ---- which task comes next, and in which order its responses are shown: pure functions ----
#
# People get the items that the fewest of them have ranked or are ranking now, until `overlap` of them did. A share of
# the items that somebody ranked comes a second time, some tasks later, as a hidden repeat.


def shown_order(seed: int, annotator: str, task: Task, k: int) -> list[int]:
    """The index of the response at each of `k` places: random by seed; a repeat never has the order of the first."""
    chance = random.Random(f"order {seed} {annotator} {task.item} {task.repeat}")
    first = shown_order(seed, annotator, Task(task.item, False), k) if task.repeat else None
    while (order := chance.sample(range(k), k)) == first:
        pass
    return order


def token_of(salt: bytes, annotator: str, task: Task) -> str:
    """The name of a task on the page; without the store's secret `salt` it does not identify a repeat or an item."""
    return hmac.digest(salt, f"task {annotator} {task.item} {task.repeat}".encode(), "sha256").hex()[:32]


def repeated_items(queue: Sequence[str], seed: int, annotator: str, share: float) -> set[str]:
    """The item ids of the queue that this annotator gets a second time after ranking them."""
    chance = random.Random(f"repeat {seed} {annotator}")
    return {item for item in queue if chance.random() < share}


def new_items(queue: Sequence[str], tasks: Tasks, taken: Mapping[str, int], overlap: int) -> list[str]:
    """The items that an annotator was not shown and that fewer than `overlap` have taken, in the queue's order."""
    shown = {task.item for task in tasks}
    return [item for item in queue if item not in shown and taken.get(item, 0) < overlap]


def next_task(tasks: Tasks, new: Sequence[str], taken: Mapping[str, int], repeated: set[str]) -> Task | None:
    """The task to assign; None if nothing is left for this annotator."""
    due = [task for task, status in tasks.items() if status == "ranked" and _comes_again(task, tasks, repeated)]
    latest = list(tasks)[-TASKS_BEFORE_REPEAT:]
    if due and due[0] not in latest:
        return Task(due[0].item, True)
    if new:
        return Task(min(new, key=lambda item: taken.get(item, 0)), False)
    if due and due[0] != latest[-1]:  # never directly after itself
        return Task(due[0].item, True)
    return None


def tasks_left(tasks: Tasks, new: Sequence[str], repeated: set[str]) -> int:
    """How many tasks are still to come: open ones, new items, and the repeats of these and of ranked items."""
    is_open = sum(status == "open" for status in tasks.values())
    again = sum(status != "skipped" and _comes_again(task, tasks, repeated) for task, status in tasks.items())
    return is_open + len(new) + again + len(repeated.intersection(new))


def _comes_again(task: Task, tasks: Tasks, repeated: set[str]) -> bool:
    return not task.repeat and task.item in repeated and Task(task.item, True) not in tasks
