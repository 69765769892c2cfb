"""Stores and rankings with known content, for the tests of exports and statistics."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chatpipe.ranking.history import History, Step
from chatpipe.ranking.items import Answer, Item, Task, item_id
from chatpipe.ranking.store import Store, StoredRanking


def item(question: str, responses: Sequence[str], round: int | None = None) -> Item:
    prompt = [{"role": "user", "content": question}]
    return Item(item_id(prompt, list(responses)), prompt, list(responses), round)


def items(count: int, k: int = 3) -> list[Item]:
    return [item(f"Question {i}?", [f"Answer {i} {letter}." for letter in "abcdefghi"[:k]]) for i in range(count)]


def said(item: Item, annotator: str, ranks: Sequence[int], **more: object) -> StoredRanking:
    """A person's ranking of an item within ten seconds, shown in the order of the file."""
    plain = StoredRanking(
        item=item,
        annotator=annotator,
        kind="person",
        repeat=False,
        order=list(range(len(item.responses))),
        ranks=list(ranks),
        all_bad=False,
        flag=False,
        note="",
        skipped=None,
        seconds=10.0,
        time=0.0,
    )
    return replace(plain, **more)


def open_store(path: Path, of: Sequence[Item], overlap: int = 2) -> Store:
    return Store.create_or_open(path, of, seed=0, overlap=overlap, repeats=0.05)


def submit(store: Store, annotator: str, item: str, ranks: Sequence[int], repeat: bool = False, **more: object) -> None:
    """A task shown in the order of the file, and ranked; `ranks` is in that order."""
    _answer(store, annotator, Task(item, repeat), "submit", Answer(list(ranks), **more))


def skip(store: Store, annotator: str, item: str, k: int, reason: str, repeat: bool = False) -> None:
    _answer(store, annotator, Task(item, repeat), "skip", Answer([None] * k), reason)


def _answer(store: Store, annotator: str, task: Task, action: str, answer: Answer, reason: str | None = None) -> None:
    history = History(store, annotator)
    history.show(task, list(range(len(answer.ranks))))
    history.record(Step(f"{action} {task}", action, task, answer, reason))
