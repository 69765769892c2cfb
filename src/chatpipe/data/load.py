"""From the `data:` blocks of a stage to what it trains on and what is held out.

The split is by content: whether a document, a conversation or a prompt is held out depends on its text alone, so it is
the same in every stage that reads it, and no prompt is on both sides.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from chatpipe import pocketworld
from chatpipe.data import rows as files
from chatpipe.data.formats import CONVERTERS, Ranking, check_characters, recognise
from chatpipe.data.rows import BadRow, Skipped
from chatpipe.data.template import Message
from chatpipe.durable import sha256_of
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import POCKETWORLD, DataBlock, Pocketworld

HELD_OUT_SHARE = 0.1
POCKETWORLD_PROMPTS = 2000

What = Literal["documents", "conversations", "rankings", "prompts"]
Item = TypeVar("Item")
Conversation = list[Message]


@dataclass
class Loaded(Generic[Item]):
    """What a stage's data came to; `skipped` counts the rows that could not be used, by reason."""

    train: list[Item]
    held_out: list[Item]
    skipped: dict[str, int] = field(default_factory=dict)


def load_documents(blocks: Sequence[DataBlock], world: Pocketworld, key: str) -> Loaded[str]:
    """Raw text, a document each. A text file is one document; its last tenth is held out."""
    return _load("documents", blocks, world, key)


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


def is_held_out(text: str) -> bool:
    """Whether the item with this text is held out: true for a tenth of all texts, the same ones always."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32


SPLIT_BY: Mapping[What, Callable[[Any], str]] = {
    "documents": lambda text: text,
    "conversations": lambda messages: prompt_key(messages[:-1]),
    "rankings": lambda ranking: prompt_key(ranking.prompt),
    "prompts": prompt_key,
}
"""The text by which an item of each kind is held out or not."""


def check_sources(blocks: Sequence[DataBlock] | None, key: str) -> None:
    """Raises `UsageError` where a stage's data is not given or a file is missing, empty or of an unknown kind."""
    if not blocks:
        raise UsageError(f"{key} is not given.", f"Give a file: {key}=FILE, or in the recipe.")
    for block in blocks:
        if block.source != POCKETWORLD:
            files.data_file(block.source, key)


def check_rows(what: What, blocks: Sequence[DataBlock] | None, key: str) -> None:
    """As `check_sources`, and also where the rows cannot be read as `what`, or are too few; builds no world."""
    check_sources(blocks, key)
    blocks = blocks or []
    train, held_out = 0, 0
    for block in blocks:
        if block.source == POCKETWORLD:
            _check_world_has(what, key)
        else:
            some, others = _sides_of_file(what, block, key, Skipped())
            train, held_out = train + len(some), held_out + len(others)
    if not reads_pocketworld(blocks):
        _check_enough(train, held_out, blocks, key)


def data_fingerprints(blocks: Sequence[DataBlock], key: str) -> dict[str, str]:
    """Source -> what it holds: SHA-256 of a file (the built-in world is known by its settings), format and limit."""
    return {block.source: f"{_content(block, key)} {block.format} {block.limit}" for block in blocks}


def _content(block: DataBlock, key: str) -> str:
    if block.source == POCKETWORLD:
        return POCKETWORLD
    return sha256_of(files.data_file(block.source, key))


def reads_pocketworld(blocks: Sequence[DataBlock] | None) -> bool:
    """Whether some of the data is the built-in world, whose gold rater then knows what is true."""
    return any(block.source == POCKETWORLD for block in blocks or ())


def build_world(settings: Pocketworld) -> pocketworld.World:
    """The built-in world of a recipe."""
    return pocketworld.World.build(seed=settings.seed, people=settings.people)


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
            some, others = _sides_of_file(what, block, key, skipped)
        train += some[: block.limit]
        held_out += others[: block.limit]
    if what == "prompts":
        train, held_out = _distinct(train), _distinct(held_out)
    _check_enough(len(train), len(held_out), blocks, key)
    return Loaded(train, held_out, dict(skipped.reasons))


def _sides_of_file(what: What, block: DataBlock, key: str, skipped: Skipped) -> tuple[list[Any], list[Any]]:
    """What one file holds to train on, and what is held out of it."""
    if _is_running_text(what, block):
        return _split_text(files.read_text(block.source, key))
    return _split(what, _read(what, block, key, skipped))


def _check_enough(train: int, held_out: int, blocks: Sequence[DataBlock], key: str) -> None:
    """Raises `UsageError` where there is nothing to train on, or nothing to judge by."""
    if train and held_out:
        return
    sources = ", ".join(block.source for block in blocks)
    raise UsageError(
        f"{key} = {sources} holds too little: {train} rows to train on, {held_out} held out.",
        "A tenth is held out by its text; give at least some dozens of different rows.",
    )


def _is_running_text(what: What, block: DataBlock) -> bool:
    return what == "documents" and Path(block.source).suffix == ".txt"


def _read(what: What, block: DataBlock, key: str, skipped: Skipped) -> list[Any]:
    """The usable rows of one file; more than 1 % unusable ones are refused."""
    found = files.read_rows(block.source, key)
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


def _split(what: What, items: list[Any]) -> tuple[list[Any], list[Any]]:
    sides: tuple[list[Any], list[Any]] = ([], [])
    for item in items:
        sides[is_held_out(SPLIT_BY[what](item))].append(item)
    return sides


def _split_text(text: str) -> tuple[list[str], list[str]]:
    """One running text: its last tenth is held out, from the start of a line on where one begins there."""
    tenth = int(len(text) * (1 - HELD_OUT_SHARE))
    cut = text.find("\n", tenth) + 1
    if not text[cut:].strip() or cut == 0:
        cut = tenth
    return [text[:cut]], [text[cut:]]


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
    if what == "documents":
        return pocketworld.documents(world, settings.documents, seed), []
    if what == "conversations":
        return pocketworld.conversations(world, settings.conversations, seed), []
    return (
        pocketworld.prompts(world, "practice", POCKETWORLD_PROMPTS, seed),
        pocketworld.prompts(world, "test", POCKETWORLD_PROMPTS, seed),
    )
