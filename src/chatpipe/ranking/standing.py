"""The rankings that stand in a store, for export and statistics."""

from collections.abc import Iterator
from dataclasses import dataclass

from chatpipe.ranking.history import AGAIN
from chatpipe.ranking.items import Item
from chatpipe.ranking.records import Kind
from chatpipe.ranking.store import Store


@dataclass(frozen=True)
class StandingRanking:
    """What one annotator said of one item, in canonical order; `again` where it is a hidden repeat."""

    item: Item
    annotator: str
    kind: Kind
    again: bool
    order: list[int]
    """The canonical index of the response that was shown at each place."""
    ranks: list[int]
    """1 = best, equal = tied, without gaps; empty where it was skipped."""
    all_bad: bool
    flag: bool
    note: str
    skipped: str | None
    """The reason of a skip."""
    seconds: float
    """From when it was shown until it was answered."""
    time: float
    """When it was answered, in seconds since 1970."""


def standing_rankings(store: Store) -> list[StandingRanking]:
    """The submits and skips that hold: in the order of the items, then of the annotators' names, repeats last."""
    position = {item.id: place for place, item in enumerate(store.items)}
    return sorted(_all(store), key=lambda found: (position[found.item.id], found.annotator, found.again))


def _all(store: Store) -> Iterator[StandingRanking]:
    for annotator in store.annotators():
        history = store.histories[annotator.name]
        for task, step in history.standing.items():
            yield StandingRanking(
                item=store.item_of(task),
                annotator=annotator.name,
                kind=annotator.kind,
                again=task.endswith(AGAIN),
                order=history.shown[task].order,
                ranks=[] if step.reason is not None else [rank for rank in step.answer.ranks if rank is not None],
                all_bad=step.answer.all_bad,
                flag=step.answer.flag,
                note=step.answer.note,
                skipped=step.reason,
                seconds=history.seconds(step),
                time=step.time,
            )
