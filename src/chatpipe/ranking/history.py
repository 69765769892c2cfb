"""One annotator's steps in a store, with undo and redo.

Edits, submits and skips are steps. Undo takes back the last step that holds, also a submit or skip; redo restores it. A
new step after an undo replaces the undone steps of its own task; the undone steps of other tasks hold again, so going
back to correct one ranking keeps all later ones. Nothing is ever deleted: a step has a state.
"""

import json
import time
from dataclasses import dataclass
from typing import Any

from chatpipe.ranking.database import ANSWER, LAST_STEP
from chatpipe.ranking.items import Answer, Task, blank
from chatpipe.ranking.store import Store

STEPS = ("edit", "submit", "skip")
MOVES = ("undo", "redo")

_TASK = "annotator = ? AND item = ? AND repeat = ?"
_STEP = "SELECT number, item, repeat, action FROM history"
_UNDONE = f"{_STEP} WHERE annotator = ? AND state = 'undone' ORDER BY number"
# The plus keeps SQLite from sorting all steps of the annotator: the last one is found from the end.
_LAST = f"{_STEP} WHERE +annotator = ? AND state = 'holds' ORDER BY number DESC LIMIT 1"


class StoreConflict(Exception):
    """The key of a step was used before, for another step of the same annotator."""


@dataclass(frozen=True)
class Step:
    """Something that an annotator did: an edit, submit or skip with its `answer`, or an undo or redo.

    `task` is the one that was at hand, `skipped` the reason of a skip. However often it is sent, a `key` counts once.
    """

    key: str
    action: str
    task: Task | None = None
    answer: Answer | None = None
    skipped: str | None = None


class History:
    """The steps of one annotator."""

    def __init__(self, store: Store, annotator: str) -> None:
        self._store = store
        self.annotator = annotator

    def steps(self, key: str | None = None) -> list[Step]:
        """Everything that the annotator did, in order; with a `key`, what it was used for."""
        query = f"SELECT key, action, item, repeat, {ANSWER} FROM history WHERE annotator = ?"
        found = self._rows(f"{query} ORDER BY number") if key is None else self._rows(f"{query} AND key = ?", key)
        return [
            Step(key, action, None if item is None else Task(item, bool(repeat)), _answer(*answer), skipped)
            for key, action, item, repeat, *answer, skipped in found
        ]

    def current(self) -> Task | None:
        """The task at hand: that of the next step to redo, of a last edit, or the open one; None if there is none."""
        found = self._rows(f"{_UNDONE} LIMIT 1") or [step for step in self._rows(_LAST) if step[3] == "edit"]
        if not found:
            query = "SELECT NULL, item, repeat FROM rankings WHERE annotator = ? AND answered IS NULL"
            found = self._rows(f"{query} ORDER BY turn, rowid LIMIT 1")
        return next((Task(item, bool(repeat)) for _, item, repeat, *_ in found), None)

    def can_move(self) -> tuple[bool, bool]:
        """Whether there is a step to undo, and one to redo."""
        return bool(self._rows(_LAST)), bool(self._rows(f"{_UNDONE} LIMIT 1"))

    def shown_order(self, task: Task) -> list[int]:
        """The index of the response at each place, as it was shown."""
        [(order,)] = self._rows(f"SELECT shown_order FROM rankings WHERE {_TASK}", *task)
        found: list[int] = json.loads(order)
        return found

    def answer(self, task: Task) -> Answer:
        """The present answer to a task; blank if there is none yet."""
        [(*answer, _)] = self._rows(f"SELECT {ANSWER} FROM rankings WHERE {_TASK}", *task)
        return _answer(*answer) or blank(len(self._store.item(task.item).responses))

    def latest_seconds(self, count: int) -> list[float]:
        """From showing to answering, of the tasks that were answered last."""
        query = "SELECT max(0, answered - shown) FROM rankings WHERE annotator = ? AND answered IS NOT NULL"
        return [seconds for (seconds,) in self._rows(f"{query} ORDER BY turn DESC, rowid DESC LIMIT ?", count)]

    def show(self, task: Task, order: list[int], now: float | None = None) -> None:
        """Stores that a task is shown in this order; it is open then."""
        now = time.time() if now is None else now
        with self._store.together() as connection:
            connection.execute(
                "INSERT INTO rankings (annotator, item, repeat, shown_order, shown, touched, turn)"
                " VALUES (?, ?, ?, ?, ?, ?, (SELECT ifnull(max(number), 0) FROM history))",
                (self.annotator, *task, json.dumps(order), now, now),
            )

    def record(self, step: Step, now: float | None = None) -> None:
        """Stores a step with all that follows from it; a step that was sent before changes nothing.

        Raises `StoreConflict` if the key was used for another step, `StoreError` if nothing can be stored.
        """
        now = time.time() if now is None else now
        with self._store.together() as connection:
            for used in self.steps(step.key):
                if used != step:
                    raise StoreConflict(f"the key {step.key} was used for another step")
                return
            state, changed = self._consequences(step)
            task, answer = step.task, step.answer
            row = {
                "time": now,
                "annotator": self.annotator,
                "key": step.key,
                "action": step.action,
                "item": task and task.item,
                "repeat": task and task.repeat,
                "ranks": answer and json.dumps(answer.ranks),
                "all_bad": answer and answer.all_bad,
                "flag": answer and answer.flag,
                "note": answer and answer.note,
                "skipped": step.skipped,
                "state": state,
            }
            insert = f"INSERT INTO history ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
            number = connection.execute(insert, list(row.values())).lastrowid
            for other in changed:
                update = f"UPDATE rankings SET ({ANSWER}, answered) = ({LAST_STEP}) WHERE {_TASK}"
                connection.execute(update, (self.annotator, *other))
            for last in changed[-1:]:
                update = f"UPDATE rankings SET touched = ?, turn = ? WHERE {_TASK}"
                connection.execute(update, (now, number, self.annotator, *last))

    def _consequences(self, step: Step) -> tuple[str | None, list[Task]]:
        """Gives earlier steps their new states; returns the state of this one, and the tasks whose answers change.

        The task that the step is about is the last of these.
        """
        with self._store.together() as connection:
            if step.action in MOVES:
                query, after = (_LAST, "undone") if step.action == "undo" else (f"{_UNDONE} LIMIT 1", "holds")
                for number, item, repeat, _ in self._rows(query):
                    connection.execute("UPDATE history SET state = ? WHERE number = ?", (after, number))
                    return None, [Task(item, bool(repeat))]
                return None, []
            assert step.task is not None
            if step.action == "edit" and step.answer == self.answer(step.task):
                return None, []
            undone = {Task(item, bool(repeat)): None for _, item, repeat, _ in self._rows(_UNDONE)}
            connection.execute(
                "UPDATE history SET state = iif((item, repeat) = (?, ?), 'replaced', 'holds')"
                " WHERE annotator = ? AND state = 'undone'",
                (*step.task, self.annotator),
            )
            return "holds", [*(task for task in undone if task != step.task), step.task]

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._store.rows(query, self.annotator, *values)


def _answer(ranks: str | None, all_bad: int, flag: int, note: str) -> Answer | None:
    return None if ranks is None else Answer(json.loads(ranks), bool(all_bad), bool(flag), note)
