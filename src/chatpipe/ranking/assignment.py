"""Which task an annotator gets next, and in which order its responses are shown: pure functions.

People get the items that the fewest of them have ranked or are ranking now, until `overlap` of them did. A share of
the items that somebody ranked comes a second time, some tasks later, as a hidden repeat.
"""

import hashlib
import hmac
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

TASKS_BEFORE_REPEAT = 10
"""How many other tasks come between an item and its hidden repeat, while there are others."""


class Task(NamedTuple):
    """An item to rank, for the first time or as a hidden repeat."""

    item: str
    repeat: bool


Status = Literal["open", "ranked", "skipped"]
Tasks = Mapping[Task, Status]
"""The tasks that one annotator was shown; the one that they worked on last is at the end."""


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


def queue_of(items: Iterable[str], seed: int) -> list[str]:
    """The item ids in the order in which items with equally many rankings are assigned."""
    return sorted(items, key=lambda item: hashlib.sha256(f"queue {seed} {item}".encode()).digest())


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
