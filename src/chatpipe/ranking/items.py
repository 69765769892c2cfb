"""The completions file as items to rank: a prompt with two to nine responses each.

Nothing else of a row (models, scores, ...) becomes part of an item, so no annotator can see it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chatpipe.data.chat_template import Message
from chatpipe.data.formats import usable
from chatpipe.data.messages import as_prompt
from chatpipe.data.rankings import responses_of, round_of
from chatpipe.data.report import Report, SourceReport
from chatpipe.data.row_files import BadRow, Row
from chatpipe.data.sources import source_rows
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock

KEY = "rank"
MAX_RESPONSES = 9
"""Each response has a digit of the keyboard."""


@dataclass(frozen=True)
class Item:
    """A prompt with its responses in the order of the file; `round` is None where the row has none."""

    id: str
    prompt: list[Message]
    responses: list[str]
    round: int | None = None


def read_items(path: Path) -> list[Item]:
    """The items of a completions file, in order; prints what was left out.

    Raises `UsageError` if the file cannot be read, or if more than 1 % of its rows cannot be used.
    """
    block = DataBlock(source=str(path))
    source = SourceReport(KEY, block.source, formats=["completions"])
    items = list(_usable_items(block, source))
    if source.rows == 0:
        raise UsageError(f"{KEY}: {path} holds no rows.", "Make completions first: chatpipe sample.")
    source.skipped.check(
        f"{KEY}: {path}",
        source.rows,
        block.max_skipped,
        'Correct the file: each line is {"prompt": [messages], "responses": [two to nine texts]}.',
    )
    Report([source]).say()
    return items


def item_id(prompt: list[Message], responses: list[str]) -> str:
    """16 hex digits of the SHA-256 over the canonical JSON of both."""
    text = json.dumps([prompt, responses], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _usable_items(block: DataBlock, source: SourceReport) -> Iterator[Item]:
    seen: set[str] = set()
    for row in source_rows(block, KEY):
        source.rows += 1
        try:
            item = _item(usable(row))
            if item.id in seen:
                raise BadRow("this prompt with these responses was there before")
        except BadRow as problem:
            source.skipped.add(str(problem), row)
            continue
        seen.add(item.id)
        yield item


def _item(row: Row) -> Item:
    """Raises `BadRow` if nobody can rank it."""
    prompt, responses = as_prompt(row.values.get("prompt")), responses_of(row.values)
    if len(responses) > MAX_RESPONSES:
        raise BadRow(f"there are more than {MAX_RESPONSES} responses")
    return Item(item_id(prompt, responses), prompt, responses, round_of(row.values))
