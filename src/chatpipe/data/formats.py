"""The formats of rows: how each is recognised and read as conversations, rankings or prompts."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
from chatpipe.data.rankings import to_ranking
from chatpipe.data.row_files import BadRow, BrokenRow, Row, kind_of
from chatpipe.data.sources import is_hub, one_file_each, source_rows
from chatpipe.data.worlds import is_world
from chatpipe.errors import UsageError
from chatpipe.recipe.schema import DataBlock

What = Literal["conversations", "rankings", "prompts"]
"""The items that a stage reads: conversations (sft), rankings (rm), prompts (ppo and sample)."""

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
"""The fields of the first row decide the format: the first entry whose fields are all there."""

_ANSWERED = ("messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "pairs", "rankings")
_FORMATS_OF: Mapping[What, tuple[str, ...]] = {
    "conversations": _ANSWERED,
    "rankings": ("pairs", "rankings"),
    "prompts": (*_ANSWERED, "prompts"),
}
_KEY_OF: Mapping[What, str] = {"conversations": "sft.data", "rankings": "rm.data", "prompts": "ppo.data"}

_LIST_FIELDS = ("messages", "conversations", "responses", "ranks", "history")
_TEXT_OR_LIST_FIELDS = ("prompt", "completion", "chosen", "rejected")


def format_of(row: Row) -> str | None:
    """The format of the file whose first row is `row`; None where no format has these fields."""
    for name, fields in _FIELDS_OF_FORMAT:
        if all(field in row.values for field in fields):
            return name
    return None


def recognise(row: Row, key: str) -> str:
    """As `format_of`; raises `UsageError` where no format has these fields."""
    form = format_of(row)
    if form is None:
        found = ", ".join(sorted(row.values)) or "none"
        known = " | ".join(", ".join(fields) for _, fields in _FIELDS_OF_FORMAT)
        raise UsageError(
            f"{row.where}: {key} does not know what these fields mean: {found}.",
            f"Known: {known}.\nOther names: data: [{{source: FILE, columns: {{question: THEIR NAME, ...}}}}].",
        )
    return form


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


def check_use(form: str, what: What, source: str, key: str) -> None:
    """Raises `UsageError` where rows of this format cannot be read as `what`, with the keys that read them."""
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
    """A format's name and its fields."""
    fields = dict(_FIELDS_OF_FORMAT)[form]
    return form if fields == (form,) else f"{form} ({', '.join(fields)})"


def usable(row: Row | BrokenRow) -> Row:
    """`row` with each list that a csv cell holds as JSON parsed.

    Raises `BadRow` for a broken row, and for half a character (JSON allows `"\\ud800"` alone): no tokenizer takes it.
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
    """Whether the row offers tools to the model; chatpipe ignores them."""
    return row.values.get("tools") not in (None, "", "[]", [])


def to_conversation(row: Row, form: str) -> list[Message]:
    """A conversation that ends with the assistant. Of a pair it has the chosen answer, of a ranking the first best one.

    Raises `BadRow` where the row cannot be used.
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


def to_prompt(row: Row, form: str) -> list[Message]:
    """A conversation that ends with the user. Raises `BadRow` where the row cannot be used."""
    if form in ("rankings", "prompts", "prompt_completion"):
        return as_prompt(row.values.get("prompt"))
    if form == "question_answer":
        return as_prompt(text_of(row.values, "question"))
    return to_conversation(row, form)[:-1]


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
    """The messages before the answer, of `system`, `history` ([question, answer] pairs), `instruction` and `input`."""
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


def _list_in(value: Any) -> Any:
    """The list or object that a cell holds as JSON; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _messages_in(value: Any) -> Any:
    """As `_list_in` for fields that may hold text: only JSON of messages is parsed, since an answer may be JSON."""
    found = _list_in(value)
    turns = found if isinstance(found, list) else [found]
    return found if turns and all(map(is_turn, turns)) else value
