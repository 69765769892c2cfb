"""Stores and rankings with known content, for the tests of what is told of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from chatpipe.ranking.items import Item, item_id
from chatpipe.ranking.said import Answer
from chatpipe.ranking.standing import StandingRanking
from chatpipe.ranking.store import Store


def item(question: str, responses: Sequence[str], round: int | None = None) -> Item:
    prompt = [{"role": "user", "content": question}]
    return Item(item_id(prompt, list(responses)), prompt, list(responses), round)


def items(count: int, k: int = 3) -> list[Item]:
    return [item(f"Question {i}?", [f"Answer {i} {letter}." for letter in "abcdefghi"[:k]]) for i in range(count)]


def said(item: Item, annotator: str, ranks: Sequence[int], **more: object) -> StandingRanking:
    """What a person said of an item within ten seconds, shown in the order of the file."""
    plain = StandingRanking(
        item=item,
        annotator=annotator,
        kind="person",
        again=False,
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


def submit(store: Store, annotator: str, task: str, ranks: Sequence[int], **more: object) -> None:
    """A task shown in the order of the file, and ranked; `ranks` is in that order."""
    _show(store, annotator, task, len(ranks))
    answer = Answer(list(ranks), **more).to_body()
    store.append(annotator, "submit", task, {"answer": answer}, f"submit {task}")


def skip(store: Store, annotator: str, task: str, k: int, reason: str) -> None:
    _show(store, annotator, task, k)
    answer = Answer([None] * k).to_body()
    store.append(annotator, "skip", task, {"reason": reason, "answer": answer}, f"skip {task}")


def _show(store: Store, annotator: str, task: str, k: int) -> None:
    store.append(annotator, "show", task, {"order": list(range(k))}, f"show {task}")
