"""The answer of an annotator to one task: checked, and moved between the shown order and the order of the file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


class BadAnswer(Exception):
    """The input is not an answer to this task; the message says why. Nothing was stored."""


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
