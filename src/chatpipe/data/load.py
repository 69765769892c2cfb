"""From the `data:` blocks of a stage to what it trains on and what is held out.

The split is by content: whether a document, a conversation or a prompt is held out depends on its text alone, so it is
the same in every stage that reads it, and no prompt is on both sides.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from chatpipe import pocketworld
from chatpipe.data.formats import CONVERTERS, Ranking, check_characters, recognise
from chatpipe.data.rows import BadRow, BrokenRow, Row, Skipped
from chatpipe.data.sources import build_world, check_sources, is_hub, reads_pocketworld, source_rows
from chatpipe.data.split import is_held_out
from chatpipe.data.template import Message
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import POCKETWORLD, DataBlock, Pocketworld

POCKETWORLD_PROMPTS = 2000

What = Literal["conversations", "rankings", "prompts"]
Item = TypeVar("Item")
Conversation = list[Message]


@dataclass
class Loaded(Generic[Item]):
    """What a stage's data came to; `skipped` counts the rows that could not be used, by reason."""

    train: list[Item]
    held_out: list[Item]
    skipped: dict[str, int] = field(default_factory=dict)


def load_conversations(blocks: Sequence[DataBlock], world: Pocketworld, key: str) -> Loaded[Conversation]:
    """Conversations that end with the assistant, split by what was asked."""
    return _load("conversations", blocks, world, key)


def load_rankings(blocks: Sequence[DataBlock], world: Pocketworld, key: str) -> Loaded[Ranking]:
    """Rankings (pairs are K = 2), split by prompt."""
    return _load("rankings", blocks, world, key)


def load_prompts(blocks: Sequence[DataBlock], world: Pocketworld, key: str) -> Loaded[Conversation]:
    """Different prompts, split by their text; pocketworld holds out prompts about other people."""
    return _load("prompts", blocks, world, key)


def prompt_key(messages: Sequence[Message]) -> str:
    """The text by which a prompt is told from others."""
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)


SPLIT_BY: Mapping[What, Callable[[Any], str]] = {
    "conversations": lambda messages: prompt_key(messages[:-1]),
    "rankings": lambda ranking: prompt_key(ranking.prompt),
    "prompts": prompt_key,
}
"""The text by which an item of each kind is held out or not."""


def check_rows(what: What, blocks: Sequence[DataBlock] | None, key: str) -> None:
    """As `check_sources`, and also where the rows cannot be read as `what`, or are too few; builds no world."""
    check_sources(blocks, key)
    blocks = blocks or []
    train, held_out = 0, 0
    for block in blocks:
        if block.source == POCKETWORLD:
            _check_world_has(what, key)
        elif not is_hub(block):  # which would be fetched for it
            some, others = _split(what, _read(what, block, key, Skipped()))
            train, held_out = train + len(some), held_out + len(others)
    if not reads_pocketworld(blocks) and not any(map(is_hub, blocks)):
        _check_enough(train, held_out, blocks, key)


def _load(what: What, blocks: Sequence[DataBlock], settings: Pocketworld, key: str) -> Loaded[Any]:
    check_sources(blocks, key)
    train: list[Any] = []
    held_out: list[Any] = []
    skipped = Skipped()
    for block in blocks:
        if block.source == POCKETWORLD:
            _check_world_has(what, key)
            made = _pocketworld(what, settings)
            some, others = made if what == "prompts" else _split(what, made[0])
        else:
            some, others = _split(what, _read(what, block, key, skipped))
        train += some[: block.limit]
        held_out += others[: block.limit]
    if what == "prompts":
        train, held_out = _distinct(train), _distinct(held_out)
    _check_enough(len(train), len(held_out), blocks, key)
    return Loaded(train, held_out, dict(skipped.reasons))


def _check_enough(train: int, held_out: int, blocks: Sequence[DataBlock], key: str) -> None:
    """Raises `UsageError` where there is nothing to train on, or nothing to judge by."""
    if train and held_out:
        return
    sources = ", ".join(block.source for block in blocks)
    raise UsageError(
        f"{key} = {sources} holds too little: {train} rows to train on, {held_out} held out.",
        "A tenth is held out by its text; give at least some dozens of different rows.",
    )


def _read(what: What, block: DataBlock, key: str, skipped: Skipped) -> list[Any]:
    """The usable rows of one source; more than 1 % unusable ones are refused."""
    if block.weight != 1 or block.document != "file":
        raise UsageError(f"{key}: weight and document are for raw text, not for {what}.", "Leave them out.")
    found = [_whole(row) for row in source_rows(block, key)]
    if not found:
        raise UsageError(f"{key}: {block.source} holds no rows.", "Give a file with at least one row.")
    form = block.format if block.format != "auto" else recognise(found[0], key)
    convert = CONVERTERS[what]
    here = Skipped()
    items = []
    for row in found:
        try:
            check_characters(row)
            items.append(convert(row, form))
        except BadRow as problem:
            here.add(str(problem), row.where)
    here.check(f"{key}: {block.source}", len(found))
    for reason, count in here.reasons.items():
        skipped.reasons[reason] += count
    return items


def _whole(row: Row | BrokenRow) -> Row:
    if isinstance(row, BrokenRow):
        raise row.problem()
    return row


def _split(what: What, items: list[Any]) -> tuple[list[Any], list[Any]]:
    sides: tuple[list[Any], list[Any]] = ([], [])
    for item in items:
        sides[is_held_out(SPLIT_BY[what](item))].append(item)
    return sides


def _distinct(prompts: list[Conversation]) -> list[Conversation]:
    return list({prompt_key(prompt): prompt for prompt in prompts}.values())


def _check_world_has(what: What, key: str) -> None:
    if what == "rankings":
        raise UsageError(
            f"{key}: the built-in world has no rankings of its own.", "Leave rm.data out: the run makes them."
        )


def _pocketworld(what: What, settings: Pocketworld) -> tuple[list[Any], list[Any]]:
    """The built-in world's rows; only its prompts come divided, practice and test being about different people."""
    world, seed = build_world(settings), settings.seed
    if what == "conversations":
        return pocketworld.conversations(world, settings.conversations, seed), []
    return (
        pocketworld.prompts(world, "practice", POCKETWORLD_PROMPTS, seed),
        pocketworld.prompts(world, "test", POCKETWORLD_PROMPTS, seed),
    )
