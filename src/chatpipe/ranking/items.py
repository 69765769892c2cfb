"""What an annotator ranks: items, each a prompt with two to nine responses, the tasks of ranking them, and answers.

Items are read from a completions file. Nothing else of a row (models, scores, ...) becomes part of an item, so no
annotator can see it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from chatpipe.data.chat_template import Message
from chatpipe.data.formats import usable
from chatpipe.data.messages import Id, as_prompt, id_of
from chatpipe.data.rankings import responses_of, round_of
from chatpipe.data.row_files import BadRow, Row
from chatpipe.data.sources import Report, SourceReport, source_rows
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock

KEY = "rank"
MAX_RESPONSES = 9
"""Each response has a digit of the keyboard."""


@dataclass(frozen=True)
class Item:
    """A prompt with its responses in the order of the file; `round` is None where the row has none.

    `id` is a hash of the texts, `own_id` the one that the row has of its user's own.
    """

    id: str
    prompt: list[Message]
    responses: list[str]
    round: int | None = None
    own_id: Id | None = None


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
    return Item(item_id(prompt, responses), prompt, responses, round_of(row.values), id_of(row.values))


# ---- tasks ----


class Task(NamedTuple):
    """An item to rank, for the first time or as a hidden repeat."""

    item: str
    repeat: bool


Status = Literal["open", "ranked", "skipped"]
Tasks = Mapping[Task, Status]
"""The tasks that one annotator was shown; the one that they worked on last is at the end."""


def queue_of(items: Iterable[str], seed: int) -> list[str]:
    """The item ids in the order in which items with equally many rankings are assigned."""
    return sorted(items, key=lambda item: hashlib.sha256(f"queue {seed} {item}".encode()).digest())


# ---- answers ----


class BadAnswer(Exception):
    """The input is not an answer to this task; the message has the reason. Nothing was stored."""


@dataclass(frozen=True)
class Answer:
    """A rank for each response, in the order of the file: 1 = best, equal = tied, None = not ranked yet."""

    ranks: list[int | None]
    all_bad: bool = False
    flag: bool = False
    note: str = ""

    def shown_in(self, order: Sequence[int]) -> dict[str, Any]:
        """As an object with the ranks in the shown order; `order` has the index of the response at each place."""
        return {**asdict(self), "ranks": [self.ranks[index] for index in order]}

    def complete(self) -> "Answer":
        """The answer as it is submitted. Raises `BadAnswer` if ranks are missing or leave a gap.

        If all responses are bad, ranks may be missing: responses without a rank are tied behind those with one.
        """
        given = {rank for rank in self.ranks if rank is not None}
        if None in self.ranks and not self.all_bad:
            raise BadAnswer("some responses have no rank")
        if given != set(range(1, len(given) + 1)):
            raise BadAnswer("the ranks leave a gap: give 1, 2, 3, ... (equal ranks are ties)")
        last = len(given) + 1
        return Answer([last if rank is None else rank for rank in self.ranks], self.all_bad, self.flag, self.note)


def blank(k: int) -> Answer:
    """The empty answer to a task with `k` responses."""
    return Answer([None] * k)


def read_answer(value: Any, order: Sequence[int]) -> Answer:
    """The answer in an untrusted object whose ranks are in the shown order. Raises `BadAnswer`."""
    if not isinstance(value, dict) or not value.keys() <= {"ranks", "all_bad", "flag", "note"}:
        raise BadAnswer("an answer is {ranks, all_bad, flag, note}")
    all_bad, flag = value.get("all_bad", False), value.get("flag", False)
    if not isinstance(all_bad, bool) or not isinstance(flag, bool):
        raise BadAnswer("all_bad and flag are true or false")
    ranks: list[int | None] = [None] * len(order)
    for index, rank in zip(order, _ranks(value.get("ranks"), len(order)), strict=True):
        ranks[index] = rank
    return Answer(ranks, all_bad, flag, read_text(value.get("note", ""), "the note"))


def read_text(value: Any, name: str) -> str:
    """Untrusted text that can be written to a file. Raises `BadAnswer` with `name`."""
    if not isinstance(value, str):
        raise BadAnswer(f"{name} is not text")
    try:
        value.encode()
    except UnicodeEncodeError as problem:
        raise BadAnswer(f"{name} holds half a character, a lone surrogate") from problem
    return value


def _ranks(value: Any, k: int) -> list[int | None]:
    if not isinstance(value, list) or len(value) != k:
        raise BadAnswer(f"ranks are a list of {k}, one for each response")
    if not all(rank is None or (type(rank) is int and 1 <= rank <= k) for rank in value):
        raise BadAnswer(f"a rank is a whole number from 1 to {k}, or null")
    return value
