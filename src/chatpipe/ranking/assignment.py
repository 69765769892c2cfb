"""Which task comes next for whom, and in which order its responses are shown: a pure function of seed and histories.

People get the items that the fewest of them have ranked or are ranking now, until `overlap` of them did. A share of
what they ranked comes a second time, some tasks later, without telling. Programs rank every item once.
"""

import hashlib
import hmac
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from chatpipe.ranking.history import AGAIN, History, item_of

LEASE_SECONDS = 30 * 60
"""How long an item counts as being ranked after its annotator last touched it."""
TASKS_BEFORE_AGAIN = 10
"""How many other tasks come between an item and its hidden repeat, while there are others."""


def shown_order(seed: int, annotator: str, task: str, k: int) -> list[int]:
    """The canonical index of the response at each of the `k` places; that of a repeat is not the first one."""
    chance = random.Random(f"order {seed} {annotator} {task}")
    first = shown_order(seed, annotator, item_of(task), k) if task.endswith(AGAIN) else None
    while (order := chance.sample(range(k), k)) == first:
        pass
    return order


def token_of(salt: bytes, annotator: str, task: str) -> str:
    """What an annotator knows a task by.

    It tells neither a repeat nor the order of the file, also to who tries all of them: `salt` is the store's secret.
    """
    return hmac.digest(salt, f"task {annotator} {task}".encode(), "sha256").hex()[:32]


def queue_of(items: Iterable[str], seed: int) -> list[str]:
    """The item ids in the order in which equals are assigned."""
    return sorted(items, key=lambda item: hashlib.sha256(f"queue {seed} {item}".encode()).digest())


def repeated_items(queue: Sequence[str], seed: int, annotator: str, share: float) -> set[str]:
    """The item ids of the queue that this annotator gets a second time, once they ranked them."""
    chance = random.Random(f"repeat {seed} {annotator}")  # one for all: to seed one takes as long as a hundred draws
    return {item for item in queue if chance.random() < share}


def takers(answers: Counter[str], people: Iterable[History], now: float) -> Counter[str]:
    """How many people have ranked each item, or are ranking it at this time; `answers` has the former.

    Where the clock was set back, a touch may lie ahead: it holds its item only within the same `LEASE_SECONDS`.
    """
    taken = answers.copy()
    for history in people:
        taken.update(
            task
            for task in history.open
            if not task.endswith(AGAIN) and abs(now - history.touched[task]) < LEASE_SECONDS
        )
    return taken


def new_items(queue: Sequence[str], history: History, taken: Mapping[str, int], overlap: float) -> list[str]:
    """The items that an annotator was not shown and that too few have taken, in the order of the queue."""
    return [item for item in queue if item not in history.shown and taken[item] < overlap]


def next_task(history: History, new: Sequence[str], taken: Mapping[str, int], repeated: set[str]) -> str | None:
    """The task to assign; None where nothing is left for this annotator."""
    worked = list(history.touched)
    due = [item for item in worked if item in repeated and _may_come_again(item, history)]
    if due and due[0] not in worked[-TASKS_BEFORE_AGAIN:]:
        return due[0] + AGAIN
    if new:
        return min(new, key=taken.__getitem__)
    if due and due[0] != worked[-1]:  # never directly after itself
        return due[0] + AGAIN
    return None


def tasks_left(history: History, new: Sequence[str], repeated: set[str]) -> int:
    """How many tasks are still to come: open ones, new items, and the repeats of these and of what was ranked."""
    again = sum(
        _may_come_again(item, history) or (item in history.open and item + AGAIN not in history.shown)
        for item in repeated
    )
    return len(history.open) + len(new) + again + len(repeated.intersection(new))


def _may_come_again(item: str, history: History) -> bool:
    """Whether an item was ranked (a skip is no ranking) and did not come again yet."""
    step = history.standing.get(item)
    return step is not None and step.action == "submit" and item + AGAIN not in history.shown
