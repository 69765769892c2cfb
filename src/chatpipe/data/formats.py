"""The formats of rows: how each is recognised and read as conversations, rankings or prompts."""

import json
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import yaml

from chatpipe.data.chat_template import Message
from chatpipe.data.messages import (
    IDS,
    MEDIA,
    REASONING,
    SYSTEM_FIELDS,
    YES_OR_NO,
    answered,
    are_turns,
    as_prompt,
    check_media,
    first_of,
    instruction_of,
    is_trained,
    is_turn,
    json_in,
    reasoning_in,
    text_of,
    unread_in_turns,
    with_context,
)
from chatpipe.data.ranking_shapes import in_our_fields, ranking_fields
from chatpipe.data.rankings import Ranking, is_plain, ranking_of
from chatpipe.data.row_files import BadRow, BrokenRow, MarkedRow, Row
from chatpipe.errors import UsageError
from chatpipe.recipe.loading import RecipeDumper

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

_OTHER_NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "pairs": {
        "chosen": ("chosen_messages", "chosen_response", "preferred_output"),
        "rejected": ("rejected_messages", "rejected_response", "non_preferred_output"),
        "prompt": ("question", "query"),
    },
    "sharegpt": {"conversations": ("conversation", "dialog", "dialogue")},
    "alpaca": {"output": ("response",), "input": ("context",)},
    "prompt_completion": {"completion": ("response",)},
    "question_answer": {"question": ("query", "input"), "answer": ("response", "output")},
}
"""Other names of the same fields, as dolly (context, response), orca_dpo (question) and others have them."""

_ANSWERED = ("messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "pairs", "rankings")
_FORMATS_OF: Mapping[What, tuple[str, ...]] = {
    "conversations": _ANSWERED,
    "rankings": ("pairs", "rankings"),
    "prompts": (*_ANSWERED, "prompts"),
}
_KEY_OF: Mapping[What, str] = {"conversations": "sft.data", "rankings": "rm.data", "prompts": "ppo.data"}

_LIST_FIELDS = (
    *("messages", "conversations", "conversation", "dialog", "dialogue", "conversation_a", "conversation_b"),
    *("responses", "ranks", "scores", "completions", "answers", "history"),
)
_TEXT_OR_LIST_FIELDS = (
    *("prompt", "context", "completion", "chosen", "rejected", "chosen_messages", "rejected_messages"),
    *("preferred_output", "non_preferred_output"),
)

_PROMPTS_OF_PAIRS = ("prompt", "question", "query", "instruction", "input", "messages", "conversations")
_LABELS = ("label", "kto_tag")
_MARKS_OF_ROWS = ("weight", "train", "trainable")
_OF_WHOLE = ("history", "tools", "functions", "chat_template_kwargs")
_READ_IN_ALL = (*SYSTEM_FIELDS, *MEDIA, *_MARKS_OF_ROWS, *_OF_WHOLE, *IDS)
_OF_EXPORTS = ("kind", "all_bad", "group_id", "models", "made")
"""Fields of our own files that are for people."""
_READ_WITH: Mapping[str, tuple[str, ...]] = {
    "rankings": ("annotator", "judge", "round", "weight", "margin", "turns", *_OF_EXPORTS),
    "pairs": ("instruction", "input", "messages", "conversations", "annotator", "round", "margin", *_OF_EXPORTS),
    **dict.fromkeys(("alpaca", "prompt_completion", "question_answer"), REASONING),
}


def format_of(row: Row) -> str | None:
    """The format of the file whose first row is `row`; None where no format has these fields.

    A null field counts only where the others are no answered format.
    """
    filled = _format_of({name: value for name, value in row.values.items() if value is not None})
    return filled if filled in _ANSWERED else _format_of(row.values)


def _format_of(values: Mapping[str, Any]) -> str | None:
    if ranking_fields(values) is not None:
        return "rankings"
    fitting = (
        name for name, fields in _FIELDS_OF_FORMAT if all(_name_in(values, name, field) is not None for field in fields)
    )
    return next(fitting, None)


def recognise(row: Row, key: str) -> str:
    """As `format_of`; raises `UsageError` where no format has these fields."""
    form = format_of(row)
    if form is None:
        found = ", ".join(sorted(row.values)) or "none"
        known = " | ".join(", ".join(fields) for _, fields in _FIELDS_OF_FORMAT)
        named = (f"{field}: THEIR NAME" for field in reversed(_WANTED[_what_of(key)]))
        columns = columns_for(row.values, key) or f"{{{', '.join(named)}}}"
        raise UsageError(
            f"{row.where}: {key} does not know what these fields mean: {found}.",
            f"Known: {known}.\nOther names: data: [{{source: FILE, columns: {columns}}}].",
        )
    return form


def columns_for(values: Mapping[str, Any], key: str) -> str | None:
    """The `columns` with which `key` reads a row whose fields are not known, tried on the row; None where none do."""
    what = _what_of(key)
    names = [name for name, value in values.items() if isinstance(value, str | list) and value and not _is_id(name)]
    turns = [name for name in names if are_turns(json_in(values[name]))]
    lists = [name for name in names if isinstance(values[name], list) and name not in turns]
    texts = [name for name in lists if not any(word in name.lower() for word in _WORDS["answer"])]  # as UltraChat
    talks = ([{"messages": name} for name in found] for found in (turns, texts))
    before, behind = ([], []) if what == "rankings" else talks
    for columns in (*before, _alike(names, turns, _WANTED[what]), *behind):
        others = columns is not None and any(ours != theirs for ours, theirs in columns.items())
        if columns is not None and others and _reads(values, columns, what):
            return _as_yaml(columns)
    return None


def _what_of(key: str) -> What:
    """What a recipe's key reads."""
    section = key.partition(".")[0]
    return {"rm": "rankings", "sft": "conversations"}.get(section, "prompts")  # type: ignore[return-value]


def _alike(names: Sequence[str], turns: Sequence[str], wanted: Sequence[str]) -> dict[str, str] | None:
    """Our field -> the one of `names` that is most like it; None where one is missing."""
    left, found = list(names), dict[str, str]()

    def take(field: str, name: str | None) -> None:
        if name is not None:
            found[field] = name
            left.remove(name)

    for field in wanted:
        take(field, next((name for word in _WORDS[field] for name in left if word in name.lower()), None))
    answers = [name for name in left if any(word in name.lower() for word in _WORDS["answer"])]
    missing = [field for field in reversed(wanted) if field not in found]
    # Which of two answers is the better one is never guessed: the reverse would be learned without an error.
    if missing == ["prompt"]:
        take("prompt", next((name for name in turns if name in left), None))
    elif "chosen" not in wanted and len(missing) == len(left) and not answers:
        for field, name in zip(missing, list(left), strict=True):
            take(field, name)
    return {field: found[field] for field in reversed(wanted)} if found.keys() == set(wanted) else None


def _reads(values: Mapping[str, Any], columns: Mapping[str, str], what: What) -> bool:
    """Whether the row can be read with these `columns`."""
    rest = {name: value for name, value in values.items() if name not in columns.values()}
    try:
        row = usable(Row({**rest, **{ours: values[theirs] for ours, theirs in columns.items()}}, ""))
        form = format_of(row)
        return form in _FORMATS_OF[what] and bool(CONVERTERS[what](row, form))
    except BadRow:
        return False


def _is_id(name: str) -> bool:
    return name in SYSTEM_FIELDS or name.lower().endswith("id")


def _as_yaml(columns: Mapping[str, str]) -> str:
    """`columns` on one line as a recipe has them, with quotes where a name needs them."""
    dumped = yaml.dump(columns, Dumper=RecipeDumper, default_flow_style=True, sort_keys=False, width=10**6)
    return str(dumped).strip()


_WANTED: Mapping[What, tuple[str, ...]] = {
    "rankings": ("rejected", "chosen", "prompt"),
    "conversations": ("answer", "question"),
    "prompts": ("prompt",),
}
"""The fields of the simplest format of each kind, the most telling name first."""
_ASKING = ("question", "query", "prompt", "instruct", "input", "problem", "user", "human", "request", "post", "source")
_WORDS: Mapping[str, tuple[str, ...]] = {
    "question": _ASKING,
    "prompt": _ASKING,
    "answer": ("answer", "response", "output", "completion", "reply", "solution", "target", "assistant", "bot"),
    "chosen": ("chosen", "preferred", "accept", "better", "best", "win", "good", "positive"),
    "rejected": ("reject", "non_", "worse", "worst", "lose", "loser", "bad", "negative"),
}
"""Parts of the names under which others have these fields."""


def check_use(form: str, what: What, source: str, key: str, row: Row | None = None) -> None:
    """Raises `UsageError` where rows of this format cannot be read as `what`, with the keys that read them.

    With a `row` of the source, `columns` are named that may read it.
    """
    if form in _FORMATS_OF[what]:
        return
    hint = f"{readers_of(form)} reads {form}; {key} reads {', '.join(map(_with_fields, _FORMATS_OF[what]))}."
    columns = columns_for(row.values, key) if row is not None else None
    if columns is not None:
        hint += f"\nIf other fields are meant: data: [{{source: FILE, columns: {columns}}}]."
    if what == "rankings" and row is not None and any(field in row.values for field in _LABELS):
        hint += "\nIts labels are about one answer each (unpaired preferences); rm compares answers to one prompt."
    raise UsageError(f"{key}: {source} is {form}, which cannot be read as {what}.", hint)


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

    Raises `BadRow` for a broken row, for pictures and sound, and for half a character (JSON allows `"\\ud800"` alone):
    no tokenizer takes it.
    """
    if isinstance(row, BrokenRow):
        raise BadRow(row.reason)
    try:
        json.dumps(row.values, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as problem:
        raise BadRow("a text holds half a character, a lone surrogate") from problem
    check_media(row.values, "the row")
    lists = {field: json_in(row.values[field]) for field in _LIST_FIELDS if field in row.values}
    either = {field: _messages_in(row.values[field]) for field in _TEXT_OR_LIST_FIELDS if field in row.values}
    return Row({**row.values, **lists, **either}, row.where)


def unread_fields(row: Row, form: str) -> list[str]:
    """The fields of a row with a content that its format does not read."""
    fields = (*dict(_FIELDS_OF_FORMAT)[form], *_OTHER_NAMES.get(form, {}))
    read = {_name_in(row.values, form, field) for field in fields}
    read |= {*_READ_IN_ALL, *_READ_WITH.get(form, ())}
    if form == "pairs" and first_of(row.values, ("prompt", *_OTHER_NAMES["pairs"]["prompt"])) is not None:
        read -= {"instruction", "input", "messages", "conversations"}
    read |= {field for field in _LABELS if _label(row.values, field) is not None}
    if form == "rankings":
        read.update(ranking_fields(row.values) or ())
    unread = [field for field, value in row.values.items() if field not in read and value not in (None, "", [], {})]
    turns = [field for field in (*_LIST_FIELDS, *_TEXT_OR_LIST_FIELDS) if field in read and field in row.values]
    return [*unread, *(f"{field}.{name}" for field in turns for name in unread_in_turns(row.values[field]))]


def to_conversation(row: Row, form: str) -> list[Message]:
    """A conversation that ends with the assistant. Of a pair it has the chosen answer, of a ranking the first best one.

    Raises `BadRow` where the row cannot be used, `MarkedRow` where it says that it is not to be learned.
    """
    if form in ("rankings", "pairs"):
        ranking = to_ranking(row, form)
        best = ranking.ranks.index(min(ranking.ranks))
        return ranking.whole(best)
    _check_marks(row.values)
    messages = answered(_messages_of(_in_our_names(row.values, form), form))
    if not any(message.get("train", True) for message in messages if message["role"] == "assistant"):
        raise MarkedRow("no answer of the conversation is to be trained")
    return messages


def to_prompt(row: Row, form: str) -> list[Message]:
    """A conversation that ends with the user: what comes before the last answer, if there is one.

    Raises `BadRow` where the row cannot be used.
    """
    values = _in_our_names(row.values, form)
    if form == "pairs":
        return ranking_of(Row(values, row.where), form).prompt
    if form in ("rankings", "prompts", "prompt_completion"):
        return as_prompt(with_context(values, as_prompt(values.get("prompt"))))
    if form == "question_answer":
        return with_context(values, as_prompt(text_of(values, "question")))
    messages = _messages_of(values, form)
    return as_prompt(messages[:-1] if messages[-1]["role"] == "assistant" else messages)


def to_ranking(row: Row, form: str) -> Ranking:
    """The ranking in a row of any fields of its format. Raises `BadRow` where the row cannot be used."""
    return ranking_of(Row(_in_our_names(row.values, form), row.where), form)


CONVERTERS: Mapping[What, Callable[[Row, str], Any]] = {
    "conversations": to_conversation,
    "rankings": to_ranking,
    "prompts": to_prompt,
}


def _answer(text: str, beside: Mapping[str, Any] = MappingProxyType({})) -> Message:
    """An answer, with the reasoning that the row has in a field of its own."""
    return {"role": "assistant", "content": text, **reasoning_in(beside)}


def _name_in(values: Mapping[str, Any], form: str, field: str) -> str | None:
    """The name under which `values` has a field of a format; None where it is missing."""
    names = (field, *_OTHER_NAMES.get(form, {}).get(field, ()))
    return next((name for name in names if name in values), None)


def _in_our_names(values: dict[str, Any], form: str) -> dict[str, Any]:
    """`values` with the fields of a format under our names. Raises `BadRow` where they cannot be made."""
    if form == "rankings":
        return in_our_fields(values)
    found = {field: _name_in(values, form, field) for field in _OTHER_NAMES.get(form, ())}
    given, values = values, {**values, **{field: values[name] for field, name in found.items() if name is not None}}
    if form == "pairs" and values.get("prompt") is None:
        values["prompt"] = _prompt_of_pair(values)
        if values["prompt"] is None and all(is_plain(values.get(field)) for field in ("chosen", "rejected")):
            _check_no_prompt_beside(given)
    return values


def _check_no_prompt_beside(values: dict[str, Any]) -> None:
    """Raises `BadRow` where another field than the answers may hold the prompt: then these do not begin with it."""
    filled = Row({name: "-" if value is None else value for name, value in values.items()}, "")
    unread = (name for name in unread_fields(filled, "pairs") if isinstance(filled.values.get(name), str | list | dict))
    beside = dict.fromkeys([*(name for name in _PROMPTS_OF_PAIRS if name in values), *unread])
    if beside:
        raise BadRow(f"there is no known field of a prompt; other fields: {', '.join(beside)}")


def _prompt_of_pair(values: dict[str, Any]) -> Any:
    """The prompt of a pair whose prompt is an instruction or turns; None where the answers hold it."""
    if isinstance(values.get("instruction"), str):
        return [{"role": "user", "content": instruction_of(values)}]
    asked = json_in(values.get("input"))
    if isinstance(asked, dict):  # OpenAI's preferences
        asked = asked.get("messages")
    if asked:
        return asked
    return next((values[field] for field in ("conversations", "messages") if isinstance(values.get(field), list)), None)


def _check_marks(values: dict[str, Any]) -> None:
    """Raises `MarkedRow` for a row not to be learned: with weight 0, or a rejected answer of unpaired preferences."""
    if any(_label(values, field) is False for field in _LABELS):
        raise MarkedRow("its label is false: an answer that was rejected")
    if not is_trained(values, "a row", _MARKS_OF_ROWS):
        raise MarkedRow("it is marked as not to be trained")


def _label(values: Mapping[str, Any], field: str) -> bool | None:
    """A label of unpaired preferences, 0 or 1 beside a prompt and a completion alone; None for others, as a class."""
    said = str(values.get(field)).strip().lower()
    return YES_OR_NO.get(said) if said in ("true", "false") or {"prompt", "completion"} <= values.keys() else None


def _messages_of(values: dict[str, Any], form: str) -> list[Message]:
    """The whole conversation in a row of a format that has one."""
    if form == "messages":
        return with_context(values, values.get("messages"))
    if form == "sharegpt":
        return with_context(values, values.get("conversations"))
    if form == "alpaca":
        instruction: Message = {"role": "user", "content": instruction_of(values)}
        return with_context(values, [instruction, _answer(text_of(values, "output"), values)])
    if form == "question_answer":
        asked = as_prompt(text_of(values, "question"))
        return with_context(values, [*asked, _answer(text_of(values, "answer"), values)])
    prompt, completion = as_prompt(values.get("prompt")), values.get("completion")
    if isinstance(completion, str):
        completion = [_answer(completion, values)]
    if not isinstance(completion, list) or not completion:
        raise BadRow("completion is neither text nor messages")
    return with_context(values, [*prompt, *completion])


def _messages_in(value: Any) -> Any:
    """As `json_in` for fields that may hold text: only JSON of messages is parsed, since an answer may be JSON."""
    found = json_in(value)
    turns = found if isinstance(found, list) else [found]
    return found if turns and all(map(is_turn, turns)) else value
