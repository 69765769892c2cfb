"""One scorer on several processes: the main process asks, and every process scores a share of what is asked.

    score = shared(score)    # in the main process, which calls it as often as it likes, then `end_sharing()`
    help_scoring(score)      # in all others, until then

`score` gives one result for each item, and is the same function, with the same model, in all processes.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from chatpipe.training.ranks import in_world, over_ranks

Item = TypeVar("Item")
Result = TypeVar("Result")
Score = Callable[[Sequence[Item]], list[Result]]


def shared(score: Score[Item, Result]) -> Score[Item, Result]:
    """`score` with its items shared out over all processes; `score` itself where there is one."""
    if not in_world():
        return score

    def score_together(items: Sequence[Item]) -> list[Result]:
        _send(list(items))
        return over_ranks(items, score)

    return score_together


def end_sharing() -> None:
    """Ends `help_scoring` in the other processes."""
    if in_world():
        _send(None)


def help_scoring(score: Score[Any, Any]) -> None:
    """Scores this process's share of what the main process asks, until that calls `end_sharing`."""
    while (items := _send(None)) is not None:
        over_ranks(items, score)


def _send(items: list[Any] | None) -> list[Any] | None:
    """Sends the main process's `items` to all; the others receive them, whatever they pass."""
    from torch import distributed

    sent = [items]
    distributed.broadcast_object_list(sent)
    return sent[0]
