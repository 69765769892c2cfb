"""One annotator at work: what they see and what they do, the same for the page and the terminal."""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from chatpipe.data.chat_template import Message
from chatpipe.errors import UsageError
from chatpipe.ranking.assignment import (
    new_items,
    next_task,
    repeated_items,
    shown_order,
    takers,
    tasks_left,
    token_of,
)
from chatpipe.ranking.history import MOVES, STEPS, Event, History
from chatpipe.ranking.said import Answer, BadAnswer, blank, read_answer, read_text
from chatpipe.ranking.store import Store

PACE_TASKS = 20
"""The pace is the median over this many of the latest tasks."""


class StaleTask(Exception):
    """The task is not the one at hand: it was answered or left elsewhere. Nothing was stored."""


@dataclass(frozen=True)
class View:
    """All that an annotator may see. `task` is None, and what belongs to it empty, where nothing is left to rank."""

    task: str | None
    """An opaque token."""
    prompt: list[Message]
    responses: list[str]
    """In the shown order."""
    answer: dict[str, Any]
    """What was said so far: `ranks` in the shown order, `all_bad`, `flag`, `note`."""
    can_undo: bool
    can_redo: bool
    done: int
    """This annotator's submits and skips that hold."""
    left: int
    """Tasks still to come for this annotator, as assignments stand now."""
    seconds_per_task: float | None
    """The median over this annotator's latest tasks; None before the first."""


class Session:
    """One annotator of a store that is open for writing; `clock` tells seconds since 1970."""

    def __init__(self, store: Store, annotator: str, clock: Callable[[], float] = time.time) -> None:
        kinds = {known.name: known.kind for known in store.annotators()}
        if annotator not in kinds:
            raise UsageError(f"{store.path} knows no annotator {annotator}.", "Add the annotator first.")
        program = kinds[annotator] == "program"
        self._store = store
        self._annotator = annotator
        self._clock = clock
        self._repeated = repeated_items(store.queue, store.seed, annotator, 0 if program else store.repeats)
        self._overlap = math.inf if program else store.overlap

    def view(self) -> View:
        """What the annotator sees now; assigns the next task where none is at hand."""
        with self._store.lock:
            task = self._current()
            return self._view(task)

    def act(
        self, key: str, action: str, task: str | None, answer: dict[str, Any] | None, reason: str | None = None
    ) -> View:
        """Stores an edit, submit, skip, undo or redo and gives what the annotator sees then.

        `task` is the token of the task at hand (an undo or redo may leave it out), `answer` in its shown order (a skip
        may leave it out: what was said so far). The same key with the same content again changes nothing, whatever
        happened in between. Raises `BadAnswer`, `StaleTask`, and as `Store.append`.
        """
        with self._store.lock:
            used = self._store.find(self._annotator, key)
            at_hand = self._current() if used is None else used.task
            if not self._is_meant(task, at_hand, action):
                raise StaleTask("this task is not the one at hand")
            body = self._body(action, at_hand, answer, reason, used)
            with self._store.together():  # with the showing of the next task
                # Also what changes nothing, as an undo too many: its key must not act when it is sent again later.
                self._store.append(self._annotator, action, at_hand, body, key, self._clock())
                self._current()
            return self._view(self._current())

    @property
    def _history(self) -> History:
        return self._store.histories[self._annotator]

    def _current(self) -> str | None:
        """The task at hand; the next one is assigned, and stored as shown, where there is none."""
        if self._history.current is None:
            now = self._clock()
            taken = self._taken(now)
            task = next_task(self._history, self._new(taken), taken, self._repeated)
            if task is not None:
                k = len(self._store.item_of(task).responses)
                order = shown_order(self._store.seed, self._annotator, task, k)
                self._store.append(self._annotator, "show", task, {"order": order}, f"show {task}", now)
        return self._history.current

    def _taken(self, now: float) -> Counter[str]:
        people = [self._store.histories[known.name] for known in self._store.annotators() if known.kind == "person"]
        return takers(self._store.answers, people, now)

    def _new(self, taken: Counter[str]) -> list[str]:
        return new_items(self._store.queue, self._history, taken, self._overlap)

    def _is_meant(self, token: str | None, at_hand: str | None, action: str) -> bool:
        if token is None:
            return action in MOVES
        return at_hand is not None and token == token_of(self._store.salt, self._annotator, at_hand)

    def _body(
        self, action: str, task: str | None, answer: Any, reason: str | None, used: Event | None
    ) -> dict[str, Any]:
        """What is stored of an action; `used` is the event that its key was used for. Raises `BadAnswer`."""
        if action in MOVES:
            return {}
        if action not in STEPS:
            raise BadAnswer(f"there is no action {action}")
        assert task is not None  # a step is meant for a task
        if action == "skip" and answer is None:
            said = self._said_so_far(task, used)
        else:
            said = read_answer(answer, self._history.shown[task].order)
        if action == "edit":
            return {"answer": said.to_body()}
        if action == "submit":
            return {"answer": said.complete().to_body()}
        if not read_text(reason, "the reason").strip():
            raise BadAnswer("a skip needs a reason")
        return {"reason": reason, "answer": said.to_body()}

    def _said_so_far(self, task: str, used: Event | None) -> Answer:
        """What a skip leaves of an answer: the draft, or what was the draft when it was sent first."""
        if used is not None and used.action == "skip":
            return Answer(**used.body["answer"])
        return self._history.draft(task)

    def _view(self, task: str | None) -> View:
        history = self._history
        view = View(
            task=None,
            prompt=[],
            responses=[],
            answer=blank(0).shown_in([]),
            can_undo=history.can_undo,
            can_redo=history.can_redo,
            done=len(history.standing),
            left=0,
            seconds_per_task=self._pace(),
        )
        if task is None:
            return view
        item, order = self._store.item_of(task), history.shown[task].order
        return replace(
            view,
            task=token_of(self._store.salt, self._annotator, task),
            prompt=item.prompt,
            responses=[item.responses[index] for index in order],
            answer=history.draft(task).shown_in(order),
            left=tasks_left(history, self._new(self._taken(self._clock())), self._repeated),
        )

    def _pace(self) -> float | None:
        latest = islice(reversed(self._history.standing.values()), PACE_TASKS)
        seconds = list(map(self._history.seconds, latest))
        return statistics.median(seconds) if seconds else None
