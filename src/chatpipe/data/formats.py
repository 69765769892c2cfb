"""What the rows of a file mean: conversations, rankings or prompts."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from chatpipe.data.chat_template import Message
from chatpipe.data.messages import (
    answered,
    as_prompt,
    check_messages,
    is_turn,
    sharegpt_messages,
    system_message,
    text_of,
)
from chatpipe.data.pairs import read_pair
from chatpipe.data.row_files import BadRow, BrokenRow, Row
from chatpipe.errors import UsageError

What = Literal["conversations", "rankings", "prompts"]
"""What a stage reads rows as: sft conversations, rm rankings, ppo and sampling prompts."""

_FIELDS_OF_FORMAT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rankings", ("prompt", "responses", "ranks")),
    ("pairs", ("chosen", "rejected")),
    ("messages", ("messages",)),
    ("sharegpt", ("conversations",)),
    ("alpaca", ("instruction", "output")),
    ("prompt_completion", ("prompt", "completion")),
    ("question_answer", ("question", "answer")),
    ("prompts", ("prompt",)),
    ("text", ("text",)),
)
"""Recognised by the fields of the first row; the first set that is there wins."""

_ANSWERED = ("messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "pairs", "rankings")
_FORMATS_OF: Mapping[What, tuple[str, ...]] = {
    "conversations": _ANSWERED,
    "rankings": ("pairs", "rankings"),
    "prompts": (*_ANSWERED, "prompts"),
}
_KEY_OF: Mapping[What, str] = {"conversations": "sft.data", "rankings": "rm.data", "prompts": "ppo.data"}

_LIST_FIELDS = ("messages", "conversations", "responses", "ranks", "history")
_TEXT_OR_LIST_FIELDS = ("prompt", "completion", "chosen", "rejected")

FLOAT32_MAX = 3.4028234663852886e38

MAX_ROUND = 1_000_000
"""Of a larger number nobody means a round."""


@dataclass(frozen=True)
class Ranking:
    """One prompt, K completions, a rank for each: 1 is best, equal ranks are ties.

    `round`: in which round it was ranked. `weight`: how much its loss counts; None: 1, which all who ranked the same
    answers share. `margin`: by how much the better of two is to win, as in trl's loss.
    """

    prompt: list[Message]
    responses: list[str]
    ranks: list[int]
    annotator: str | None = None
    round: int | None = None
    weight: float | None = None
    margin: float = 0.0

    def to_row(self) -> dict[str, Any]:
        """As one line of a rankings file."""
        row: dict[str, Any] = {"prompt": self.prompt, "responses": self.responses, "ranks": self.ranks}
        if self.annotator:
            row["annotator"] = self.annotator
        if self.round is not None:
            row["round"] = self.round
        if self.weight is not None:
            row["weight"] = self.weight
        if self.margin != 0:
            row["margin"] = self.margin
        return row


def format_of(row: Row) -> str | None:
    """The format of the file that `row` is the first row of; None where it is none of ours."""
    for name, fields in _FIELDS_OF_FORMAT:
        if all(field in row.values for field in fields):
            return name
    return None


def recognise(row: Row, key: str) -> str:
    """As `format_of`; raises `UsageError` where it is none of ours."""
    form = format_of(row)
    if form is None:
        found = ", ".join(sorted(row.values)) or "none"
        known = " | ".join(", ".join(fields) for _, fields in _FIELDS_OF_FORMAT)
        raise UsageError(
            f"{row.where}: {key} does not know what these fields mean: {found}.",
            f"Known: {known}.\nOther names: data: [{{source: FILE, columns: {{question: THEIR NAME, ...}}}}].",
        )
    return form


def check_use(form: str, what: What, source: str, key: str) -> None:
    """Raises `UsageError` where rows of this format cannot be read as `what`; it names who reads them."""
    if form in _FORMATS_OF[what]:
        return
    raise UsageError(
        f"{key}: {source} is {form}, which cannot be read as {what}.",
        f"{readers_of(form)} reads {form}; {key} reads {', '.join(map(_with_fields, _FORMATS_OF[what]))}.",
    )


def readers_of(form: str) -> str:
    """The recipe keys that read rows of this format."""
    keys = [_KEY_OF[what] for what, formats in _FORMATS_OF.items() if form in formats]
    return " or ".join(keys) or "pretrain.data"


def _with_fields(form: str) -> str:
    """A format's name, with the fields by which it is known behind it."""
    fields = dict(_FIELDS_OF_FORMAT)[form]
    return form if fields == (form,) else f"{form} ({', '.join(fields)})"


def usable(row: Row | BrokenRow) -> Row:
    """`row` with lists in place of JSON that stands in a cell, as in csv.

    Raises `BadRow` for a broken row, and where a text holds half a character (JSON allows `"\\ud800"` alone), which no
    tokenizer takes.
    """
    if isinstance(row, BrokenRow):
        raise BadRow(row.reason)
    try:
        json.dumps(row.values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as problem:
        raise BadRow("a text holds half a character, a lone surrogate") from problem
    lists = {field: _list_in(row.values[field]) for field in _LIST_FIELDS if field in row.values}
    either = {field: _messages_in(row.values[field]) for field in _TEXT_OR_LIST_FIELDS if field in row.values}
    return Row({**row.values, **lists, **either}, row.where)


def has_tools(row: Row) -> bool:
    """Whether the row offers tools to the model, which no stage shows it."""
    return row.values.get("tools") not in (None, "", "[]", [])


def to_conversation(row: Row, form: str) -> list[Message]:
    """A conversation that ends with what the assistant said: the chosen of a pair, the first of a ranking's best.

    Raises `BadRow` where it cannot be used.
    """
    values = row.values
    if form == "messages":
        return answered(check_messages(values.get("messages")))
    if form == "sharegpt":
        return answered(sharegpt_messages(values))
    if form == "alpaca":
        return [*_alpaca_prompt(values), _answer(text_of(values, "output"))]
    if form == "prompt_completion":
        return _completed(as_prompt(values.get("prompt")), values.get("completion"))
    if form == "question_answer":
        return [*as_prompt(text_of(values, "question")), _answer(text_of(values, "answer"))]
    ranking = to_ranking(row, form)
    best = ranking.ranks.index(min(ranking.ranks))
    return [*ranking.prompt, _answer(ranking.responses[best])]


def to_ranking(row: Row, form: str) -> Ranking:
    """A ranking; a pair is a ranking of K = 2. Raises `BadRow` where it cannot be used."""
    if form == "pairs":
        prompt, chosen, rejected = read_pair(row.values)
        return Ranking(prompt, [chosen, rejected], [1, 2], **_of_ranking(row.values))
    return _ranking(row.values)


def to_prompt(row: Row, form: str) -> list[Message]:
    """A prompt: a conversation that ends where the assistant would speak. Raises `BadRow` where it cannot be used."""
    if form in ("rankings", "prompts", "prompt_completion"):
        return as_prompt(row.values.get("prompt"))
    if form == "question_answer":
        return as_prompt(text_of(row.values, "question"))
    return to_conversation(row, form)[:-1]


def responses_of(values: dict[str, Any]) -> list[str]:
    """The field `responses`: two or more texts. Raises `BadRow` where it is not, or one of them is empty."""
    responses = values.get("responses")
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses) or len(responses) < 2:
        raise BadRow("responses are not two or more texts")
    if not all(text.strip() for text in responses):
        raise BadRow("a response is empty")
    return responses


def round_of(values: dict[str, Any]) -> int | None:
    """The field `round`, None where it is missing. Raises `BadRow` where it cannot be one."""
    made_in = values.get("round")
    if made_in is not None and (type(made_in) is not int or not 0 <= made_in <= MAX_ROUND):
        raise BadRow(f"round is not a whole number from 0 to {MAX_ROUND:,}")
    return made_in


CONVERTERS: Mapping[What, Callable[[Row, str], Any]] = {
    "conversations": to_conversation,
    "rankings": to_ranking,
    "prompts": to_prompt,
}


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _completed(prompt: list[Message], completion: Any) -> list[Message]:
    """`prompt` with its completion, which is text or messages."""
    if isinstance(completion, str):
        completion = [_answer(completion)]
    if not isinstance(completion, list) or not completion:
        raise BadRow("completion is neither text nor messages")
    return answered(check_messages([*prompt, *completion]))


def _alpaca_prompt(values: dict[str, Any]) -> list[Message]:
    """What stands before the answer: `system`, `history` (a list of [question, answer]), `instruction` and `input`."""
    turns: list[Message] = []
    history = values.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("history is not a list of [question, answer]")
    for pair in history:
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    instruction, extra = text_of(values, "instruction"), values.get("input") or ""
    if not isinstance(extra, str):
        raise BadRow("input is not text")
    asked: Message = {"role": "user", "content": f"{instruction}\n\n{extra}" if extra else instruction}
    return check_messages([*system_message(values), *turns, asked])


def _ranking(values: dict[str, Any]) -> Ranking:
    responses, ranks = responses_of(values), values.get("ranks")
    if not isinstance(ranks, list) or len(ranks) != len(responses) or not all(type(rank) is int for rank in ranks):
        raise BadRow("ranks are not one whole number for each response")
    if not _is_order(ranks):
        raise BadRow("ranks are no order: 1 is best, and the next one follows (1, 2, 3; with ties 1, 1, 2 or 1, 1, 3)")
    return Ranking(as_prompt(values.get("prompt")), responses, ranks, **_of_ranking(values))


def _is_order(ranks: list[int]) -> bool:
    """Whether ranks begin at 1 and leave none out, but behind a tie those that its members take (1, 1, 3).

    Any other gap says that a response was lost, or that ranks belong to another row.
    """
    different = sorted(set(ranks))
    return different == list(range(1, len(different) + 1)) or all(
        rank == 1 + sum(other < rank for other in ranks) for rank in different
    )


def _of_ranking(values: dict[str, Any]) -> dict[str, Any]:
    """Who ranked, in which round, how much it counts and by how much to win, as far as the row says so."""
    weight = values.get("weight")
    if weight is not None and (not _is_number(weight) or weight <= 0):
        raise BadRow("weight is not a number above 0")
    annotator = values.get("annotator")
    if not isinstance(annotator, str | None):
        raise BadRow("annotator is not text")
    return {
        "annotator": annotator or None,
        "round": round_of(values),
        "weight": None if weight is None else float(weight),
        "margin": _margin(values),
    }


def _margin(values: dict[str, Any]) -> float:
    margin = values.get("margin")
    if margin is None:
        return 0.0
    if not _is_number(margin):
        raise BadRow("margin is not a number")
    return float(margin)


def _is_number(value: Any) -> bool:
    """Whether it is a number that float32, in which losses are, does not take for infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX


def _list_in(value: Any) -> Any:
    """The list or object that a cell holds as JSON; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _messages_in(value: Any) -> Any:
    """As `_list_in`, where text may stand too: an answer may be JSON, so only that of messages is taken for a list."""
    found = _list_in(value)
    turns = found if isinstance(found, list) else [found]
    return found if turns and all(map(is_turn, turns)) else value
