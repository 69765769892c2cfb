"""One annotator's events folded into what stands.

Edits, submits and skips are steps in a line, with a pointer behind those that hold. Undo moves it one step back, also
over a submit or skip, which withdraws that answer; redo moves it forward. A new step after an undo takes the place of
what was undone of its own task; the undone steps of other tasks hold again, before it: who goes back to correct one
ranking keeps all later ones. An edit to what stands there already is no step, undo and redo beyond the ends do nothing,
and neither does a step on a task that is not open: it was answered before.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from chatpipe.ranking.said import Answer, blank

STEPS = ("edit", "submit", "skip")
MOVES = ("undo", "redo")
AGAIN = "-again"


@dataclass(frozen=True)
class Event:
    """One line of the store; `time` in seconds since 1970."""

    seq: int
    time: float
    annotator: str
    action: str
    task: str | None
    body: dict[str, Any]
    key: str


@dataclass(frozen=True)
class Shown:
    """When a task was shown; `order` has the canonical index of the response at each place."""

    order: list[int]
    time: float


@dataclass(frozen=True)
class Step:
    """An edit, submit or skip; `reason` is that of a skip."""

    action: str
    task: str
    answer: Answer
    reason: str | None
    time: float


def item_of(task: str) -> str:
    """The id of the item that a task shows."""
    return task.removesuffix(AGAIN)


class History:
    """What one annotator was shown and said, as far as the events were applied.

    `answers` counts, item by item, who has ranked it; it is shared by all whose rankings count towards the overlap.
    """

    def __init__(self, answers: Counter[str]) -> None:
        self.shown: dict[str, Shown] = {}
        """Every task there was, in order."""
        self.standing: dict[str, Step] = {}
        """The submits and skips that hold."""
        self.open: dict[str, None] = {}
        """Tasks that were shown and are not answered, or no longer."""
        self.touched: dict[str, float] = {}
        """When each task was last worked on, the latest at the end."""
        self._answers = answers
        self._drafts: defaultdict[str, list[Answer]] = defaultdict(list)
        self._steps: list[Step] = []
        self._position = 0

    @property
    def can_undo(self) -> bool:
        """Whether a step holds."""
        return self._position > 0

    @property
    def can_redo(self) -> bool:
        """Whether a step was undone."""
        return self._position < len(self._steps)

    @property
    def current(self) -> str | None:
        """The task at hand; None where one has to be assigned."""
        if self.can_redo:
            return self._steps[self._position].task
        if self.can_undo and self._steps[-1].action == "edit":
            return self._steps[-1].task
        return next(iter(self.open), None)

    def draft(self, task: str) -> Answer:
        """What was said of an open task so far."""
        said = self._drafts[task]
        return said[-1] if said else blank(len(self.shown[task].order))

    def seconds(self, step: Step) -> float:
        """From when its task was shown until a step was done; 0 where the clock was set back meanwhile."""
        return max(0.0, step.time - self.shown[step.task].time)

    def apply(self, event: Event) -> None:
        """Takes one more event, the next one in the order of the store."""
        if event.action == "show":
            assert event.task is not None
            self.shown[event.task] = Shown(event.body["order"], event.time)
            self.open[event.task] = None
            self._touch(event.task, event.time)
        elif event.action in STEPS:
            self._step(event)
        elif event.action == "undo" and self.can_undo:
            self._position -= 1
            self._take_back(self._steps[self._position])
            self._touch(self._steps[self._position].task, event.time)
        elif event.action == "redo" and self.can_redo:
            self._touch(self._steps[self._position].task, event.time)
            self._hold(self._steps[self._position])
            self._position += 1

    def _step(self, event: Event) -> None:
        if event.task not in self.open:  # stored by a second server beside the one that the store is for
            return
        new = Step(event.action, event.task, Answer(**event.body["answer"]), event.body.get("reason"), event.time)
        if new.action == "edit" and new.answer == self.draft(new.task):
            return
        undone = self._steps[self._position :]
        kept = [step for step in undone if step.task != event.task]
        self._steps[self._position :] = [*kept, new]
        self._position = len(self._steps)
        for step in [*kept, new]:
            self._hold(step)
        self._touch(event.task, event.time)

    def _hold(self, step: Step) -> None:
        if step.action == "edit":
            self._drafts[step.task].append(step.answer)
        else:
            self.standing[step.task] = step
            del self.open[step.task]
            self._count(step, 1)

    def _take_back(self, step: Step) -> None:
        if step.action == "edit":
            self._drafts[step.task].pop()
        else:
            del self.standing[step.task]
            self.open[step.task] = None
            self._count(step, -1)

    def _count(self, step: Step, change: int) -> None:
        if step.action == "submit" and not step.task.endswith(AGAIN):
            self._answers[step.task] += change

    def _touch(self, task: str, time: float) -> None:
        self.touched.pop(task, None)
        self.touched[task] = time
