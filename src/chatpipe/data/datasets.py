"""From the `data:` blocks of a stage to its train and validation splits.

    report = Report()
    for conversation, split in stream_conversations(blocks, world, "sft.data", report): ...

The text of a conversation or prompt alone decides its split, so the split is the same in every stage, and no prompt is
in both. Rows are read one at a time, so that a stream of
them takes no more memory for a larger file; `load_...` are lists made of such streams.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from chatpipe.data.chat_template import Message
from chatpipe.data.formats import CONVERTERS, What, check_use, columns_for, recognise, unread_fields, usable
from chatpipe.data.messages import id_of, prompt_key
from chatpipe.data.ranking_shapes import rated_together
from chatpipe.data.rankings import Ranking
from chatpipe.data.rendering import uses_tools
from chatpipe.data.row_files import BadRow, MarkedRow, Row, Split, Use, quotas, split_of, times_read, wanted
from chatpipe.data.sources import (
    MEND_OR_ALLOW,
    Report,
    SourceReport,
    check_sources,
    files_by_use,
    is_hub,
    one_file_each,
    source_rows,
)
from chatpipe.data.text_files import kind_of
from chatpipe.data.worlds import Worlds, is_world, world_named, worlds_read
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock
from chatpipe.recipe.section import EvalBlock

Item = TypeVar("Item")
Conversation = list[Message]


@dataclass
class Splits(Generic[Item]):
    """The items of a stage's data by split; `report` has the formats of the sources and what was left out."""

    train: list[Item]
    validation: list[Item]
    report: Report = field(default_factory=Report)

    @property
    def skipped(self) -> dict[str, int]:
        """Unusable rows by reason."""
        return self.report.skipped


@dataclass(frozen=True)
class _Placed(Generic[Item]):
    """One item of a stream; `times` is how often an epoch reads it, 1 in the validation split."""

    item: Item
    split: Split
    times: int


def stream_conversations(
    blocks: Sequence[DataBlock], worlds: Worlds, key: str, report: Report
) -> Iterator[tuple[Conversation, Split]]:
    """Conversations that end with the assistant, in the order of their sources, each with its split.

    The prompt decides the split. A block's weight makes a train conversation come several times in a row, or not at
    all. Reading fills `report`. Raises `UsageError` where a source cannot be read, and at the end of a source with more
    unusable rows than its `max_skipped`.
    """
    yield from stream_rows("conversations", blocks, worlds, key, report)


def stream_rows(
    what: What, blocks: Sequence[DataBlock], worlds: Worlds, key: str, report: Report
) -> Iterator[tuple[Any, Split]]:
    """As `stream_conversations`, for conversations, rankings or distinct prompts."""
    for placed in _stream(what, blocks, worlds, key, report):
        for _ in range(placed.times):
            yield placed.item, placed.split


def load_conversations(blocks: Sequence[DataBlock], worlds: Worlds, key: str) -> Splits[Conversation]:
    """Conversations that end with the assistant, split by prompt. Raises as the stream, and where a split is empty."""
    return _load("conversations", blocks, worlds, key)


def load_rankings(blocks: Sequence[DataBlock], worlds: Worlds, key: str) -> Splits[Ranking]:
    """Rankings (pairs are K = 2), split by prompt. Raises `UsageError` as `load_conversations` does."""
    return _load("rankings", blocks, worlds, key)


def load_prompts(blocks: Sequence[DataBlock], worlds: Worlds, key: str) -> Splits[Conversation]:
    """Different prompts, split by their text; a built-in world chooses its own validation prompts."""
    return _load("prompts", blocks, worlds, key)


SPLIT_BY: Mapping[What, Callable[[Any], str]] = {
    "conversations": lambda messages: prompt_key(messages[:-1]),
    "rankings": lambda ranking: prompt_key(ranking.prompt),
    "prompts": prompt_key,
}
"""The text that decides the split of an item of each kind."""

_CHOSEN_BY: Mapping[What, Callable[[Any], str]] = {
    "conversations": prompt_key,
    "rankings": lambda ranking: json.dumps(ranking.to_row(), ensure_ascii=False),
    "prompts": prompt_key,
}
"""The text by which a fractional weight chooses items: all of it, so two answers to one prompt are independent."""


def format_of_sources(blocks: Sequence[DataBlock], key: str) -> str:
    """The format of all sources, from the first row of each file: also `text`, or the name of a built-in world.

    Raises `UsageError` naming `key` where they differ.
    """
    worlds = {block.source for block in blocks if is_world(block.source)}
    parts = [part for block in blocks if not is_world(block.source) for part in one_file_each(block, key)]
    forms = worlds | {_format_of_file(part, key) for part in parts}
    if len(forms) > 1:
        raise UsageError(f"{key} holds {' and '.join(sorted(forms))}.", "Give them one by one.")
    return forms.pop()


def _format_of_file(part: DataBlock, key: str) -> str:
    if not is_hub(part) and kind_of(Path(part.source)) == ".txt":
        return "text"
    first = next((row for row in source_rows(part, key) if isinstance(row, Row)), None)
    if first is None:
        raise UsageError(f"{key}: {part.source} holds no rows that can be read.", "Give other data.")
    return recognise(first, key)


def check_rows(what: What, blocks: Sequence[DataBlock] | None, key: str) -> Report:
    """Reads every row of every file as `what` and keeps none; builds no world and fetches nothing from the hub.

    Returns what was found. Raises as `check_sources`, for rows that cannot be read as `what`, and for an empty split.
    """
    check_sources(blocks, key)
    blocks = blocks or []
    report = Report()
    counts: dict[Split, int] = {"train": 0, "validation": 0}
    for block in blocks:
        if is_world(block.source):
            _check_world_has(what, key)
        elif not is_hub(block):
            report.sources.append(SourceReport(key_of(block, key), block.source))
            for placed in _read(what, block, key_of(block, key), report.sources[-1]):
                counts[placed.split] += placed.times
    if not worlds_read(blocks) and not any(map(is_hub, blocks)):
        _check_enough(counts["train"], counts["validation"], blocks, key)
    return report


def _load(what: What, blocks: Sequence[DataBlock], worlds: Worlds, key: str) -> Splits[Any]:
    loaded = Splits[Any]([], [])
    for item, split in stream_rows(what, blocks, worlds, key, loaded.report):
        (loaded.train if split == "train" else loaded.validation).append(item)
    _check_enough(len(loaded.train), len(loaded.validation), blocks, key)
    return loaded


def _stream(
    what: What, blocks: Sequence[DataBlock], worlds: Worlds, key: str, report: Report
) -> Iterator[_Placed[Any]]:
    """The items of all blocks in order; each prompt once."""
    check_sources(blocks, key)
    items = _items_of_blocks(what, blocks, worlds, key, report)
    if what != "prompts":
        yield from items
        return
    seen: set[str] = set()
    for placed in items:
        text = prompt_key(placed.item)
        if text not in seen:
            seen.add(text)
            yield placed


def _items_of_blocks(
    what: What, blocks: Sequence[DataBlock], worlds: Worlds, key: str, report: Report
) -> Iterator[_Placed[Any]]:
    for block in blocks:
        if is_world(block.source):
            _check_world_has(what, key)
            yield from _of_world(what, block, worlds)
        else:
            source = SourceReport(key_of(block, key), block.source)
            report.sources.append(source)
            yield from _read(what, block, key_of(block, key), source)


def key_of(block: DataBlock, key: str) -> str:
    """The recipe key under which `block` was given: `key`, or eval_data of the same section."""
    return f"{key.partition('.')[0]}.eval_data" if isinstance(block, EvalBlock) else key


def _read(what: What, block: DataBlock, key: str, source: SourceReport) -> Iterator[_Placed[Any]]:
    """The usable rows of one source, which `source` counts with the unusable ones.

    Raises `UsageError` for a source without rows, and at the end of one with too many unusable rows.
    """
    if block.document != "file":
        raise UsageError(f"{key}: document is a setting of raw text, not of {what}.", "Leave it out.")
    if block.format != "auto":
        check_use(block.format, what, block.source, key)
    if not is_hub(block):
        source.left_files = [path.name for path in files_by_use(block, key)[1]]
    parts = ((_items_of_file(what, part, key, source), part.use) for part in one_file_each(block, key))
    yield from _splits(what, parts, block)
    if source.rows == 0:
        raise UsageError(f"{key}: {block.source} holds no rows.", "Give a file with at least one row.")
    source.skipped.check(f"{key}: {block.source}", source.rows, block.max_skipped, _remedy(source))


def _remedy(source: SourceReport) -> str:
    """What to do about unusable rows; where all are, the `columns` with which the first would be read."""
    example = source.skipped.example
    if example is None or source.skipped.reasons.total() < source.rows:
        return MEND_OR_ALLOW
    columns = columns_for(example.values, source.key)
    return MEND_OR_ALLOW if columns is None else f"Name the fields: data: [{{source: FILE, columns: {columns}}}]."


def _splits(what: What, parts: Iterable[tuple[Iterable[Any], Use]], block: DataBlock) -> Iterator[_Placed[Any]]:
    """Each item with its split, which its use or its text decides; in all as many as the block's `limit`.

    `parts`: the items of each file and its use. A file is read as far as its items are wanted.
    """
    left = None if block.limit is None else quotas(block.limit, block.use)
    for items, use in parts:
        for item in items:
            if left is not None and not wanted(left, use):
                break
            split = split_of(SPLIT_BY[what](item)) if use == "auto" else use
            if left is None or left[split]:
                if left is not None:
                    left[split] -= 1
                times = times_read(_CHOSEN_BY[what](item), block.weight) if split == "train" else 1
                yield _Placed(item, split, times)


def _items_of_file(what: What, part: DataBlock, key: str, source: SourceReport) -> Iterator[Any]:
    form: str | None = None if part.format == "auto" else part.format
    rows = source_rows(part, key)
    for row in rated_together(rows) if what == "rankings" else rows:
        source.rows += 1
        if form is None and isinstance(row, Row):
            form = recognise(row, key)
            check_use(form, what, part.source, key, row)
        try:
            found = usable(row)
            assert form is not None  # a usable row was recognised above
            item = CONVERTERS[what](found, form)
        except BadRow as problem:
            source.skipped.add(str(problem), row, marked=isinstance(problem, MarkedRow))
            continue
        if form not in source.formats:
            source.add_format(form, unread_fields(found, form))
        source.with_tools += what != "conversations" and uses_tools(getattr(item, "prompt", item))
        id = id_of(found.values)
        if what == "prompts" and id is not None:
            source.ids.setdefault(prompt_key(item), id)
        yield item


def _check_enough(train: int, validation: int, blocks: Sequence[DataBlock], key: str) -> None:
    """Raises `UsageError` where there is nothing to train on, or nothing to evaluate on."""
    if train and validation:
        return
    sources = ", ".join(block.source for block in blocks)
    raise UsageError(
        f"{key} = {sources} holds too little: {train} rows for training, {validation} for validation.",
        "A tenth is for validation, chosen by its text; give at least some dozens of different rows.",
    )


def _check_world_has(what: What, key: str) -> None:
    if what == "rankings":
        raise UsageError(
            f"{key}: a built-in world has no rankings of its own.", "Leave rm.data out: the run makes them."
        )


def _of_world(what: What, block: DataBlock, worlds: Worlds) -> Iterator[_Placed[Any]]:
    """The rows of a built-in world, which splits its prompts itself; its conversations are split as all others."""
    world = world_named(block.source, worlds)
    if what == "conversations":
        yield from _splits(what, [(world.conversations(), block.use)], block)
        return
    most: Mapping[Split, int | None] = quotas(block.limit) if block.limit else {"train": None, "validation": None}
    for prompt in world.prompts("train")[: most["train"]]:
        yield _Placed(prompt, "train", times_read(prompt_key(prompt), block.weight))
    for prompt in world.prompts("validation")[: most["validation"]]:
        yield _Placed(prompt, "validation", 1)
