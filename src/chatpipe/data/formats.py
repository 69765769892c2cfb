"""What the rows of a file mean: conversations, rankings or prompts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from chatpipe.data.rows import BadRow, Row
from chatpipe.data.template import Message
from chatpipe.errors import UsageError

ROLES = ("system", "user", "assistant")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

# Recognised by the fields of the first row; the first set that is there wins.
_FIELDS_OF_FORMAT: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("rankings", ("prompt", "responses", "ranks")),
    ("pairs", ("chosen", "rejected")),
    ("messages", ("messages",)),
    ("alpaca", ("instruction", "output")),
    ("prompts", ("prompt",)),
    ("text", ("text",)),
)


@dataclass(frozen=True)
class Ranking:
    """One prompt, K completions, a rank for each: 1 is best, equal ranks are ties."""

    prompt: list[Message]
    responses: list[str]
    ranks: list[int]
    annotator: str | None = None

    def to_row(self) -> dict[str, Any]:
        """As one line of a rankings file."""
        row: dict[str, Any] = {"prompt": self.prompt, "responses": self.responses, "ranks": self.ranks}
        return {**row, "annotator": self.annotator} if self.annotator else row


def recognise(row: Row, key: str) -> str:
    """The format of the file that `row` is the first row of; raises `UsageError` if it is none of ours."""
    for name, fields in _FIELDS_OF_FORMAT:
        if all(field in row.values for field in fields):
            return name
    found = ", ".join(sorted(row.values)) or "none"
    raise UsageError(
        f"{row.where}: {key} does not know what these fields mean: {found}.",
        "Known: text | messages | instruction, output | chosen, rejected | prompt, responses, ranks | prompt.",
    )


def check_characters(row: Row) -> None:
    """Raises `BadRow` where a text holds half a character (JSON allows `"\\ud800"` alone), which no tokenizer takes."""
    try:
        json.dumps(row.values, ensure_ascii=False).encode()
    except UnicodeEncodeError as problem:
        raise BadRow("a text holds half a character, a lone surrogate") from problem


def to_conversation(row: Row, form: str) -> list[Message]:
    """A conversation that ends with what the assistant said."""
    if form == "messages":
        messages = check_messages(row.values.get("messages"))
        if messages[-1]["role"] != "assistant":
            raise BadRow("the conversation does not end with the assistant")
        return messages
    if form == "alpaca":
        return [*_alpaca_prompt(row.values), {"role": "assistant", "content": _text(row.values, "output")}]
    raise BadRow(f"it is {form}, not conversations")


def to_ranking(row: Row, form: str) -> Ranking:
    """A ranking; a pair is a ranking of K = 2."""
    if form == "pairs":
        prompt, chosen, rejected = _pair(row.values)
        return Ranking(prompt, [chosen, rejected], [1, 2])
    if form == "rankings":
        return _ranking(row.values)
    raise BadRow(f"it is {form}, not rankings")


def to_prompt(row: Row, form: str) -> list[Message]:
    """A prompt: a conversation that ends where the assistant would speak."""
    if form in ("rankings", "prompts"):
        return as_prompt(row.values.get("prompt"))
    if form == "pairs":
        return _pair(row.values)[0]
    if form in ("messages", "alpaca"):
        return to_conversation(row, form)[:-1]
    raise BadRow(f"it is {form}, not prompts")


CONVERTERS: dict[str, Callable[[Row, str], Any]] = {
    "conversations": to_conversation,
    "rankings": to_ranking,
    "prompts": to_prompt,
}


def check_messages(value: Any) -> list[Message]:
    """`value` as a conversation; raises `BadRow` for wrong roles, a wrong order or empty turns."""
    if not isinstance(value, list) or not value:
        raise BadRow("there are no messages")
    messages: list[Message] = []
    for item in value:
        if not isinstance(item, dict) or item.get("role") not in ROLES or not isinstance(item.get("content"), str):
            raise BadRow("a message is not {role: system|user|assistant, content: text}")
        if not item["content"].strip():
            raise BadRow("a message is empty")
        messages.append({"role": item["role"], "content": item["content"]})
    turns = [message["role"] for message in messages]
    if turns[0] == "system":
        turns = turns[1:]
    if turns != [("user", "assistant")[i % 2] for i in range(len(turns))] or not turns:
        raise BadRow("user and assistant do not take turns")
    return messages


def as_prompt(value: Any) -> list[Message]:
    """A prompt given as text or as messages."""
    messages = check_messages([{"role": "user", "content": value}] if isinstance(value, str) else value)
    if messages[-1]["role"] != "user":
        raise BadRow("the prompt does not end with the user")
    return messages


def _text(values: dict[str, Any], field: str) -> str:
    text = values.get(field)
    if not isinstance(text, str):
        raise BadRow(f"{field} is not text")
    if not text.strip():
        raise BadRow(f"{field} is empty")
    return text


def _alpaca_prompt(values: dict[str, Any]) -> list[Message]:
    instruction, extra = _text(values, "instruction"), values.get("input") or ""
    return [{"role": "user", "content": f"{instruction}\n\n{extra}" if extra else instruction}]


def _ranking(values: dict[str, Any]) -> Ranking:
    responses, ranks = values.get("responses"), values.get("ranks")
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses) or len(responses) < 2:
        raise BadRow("responses are not two or more texts")
    if not isinstance(ranks, list) or len(ranks) != len(responses) or not all(type(rank) is int for rank in ranks):
        raise BadRow("ranks are not one whole number for each response")
    if not all(text.strip() for text in responses):
        raise BadRow("a response is empty")
    return Ranking(as_prompt(values.get("prompt")), responses, ranks, values.get("annotator"))


def _pair(values: dict[str, Any]) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected answer of a pair: explicit prompt, sharegpt, or the dialogue inside the texts."""
    chosen, rejected = values.get("chosen"), values.get("rejected")
    if isinstance(values.get("conversations"), list):
        prompt = check_messages([_sharegpt(turn) for turn in values["conversations"]])
        return prompt, _sharegpt_answer(chosen), _sharegpt_answer(rejected)
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise BadRow("chosen and rejected are not texts")
    if "prompt" in values:
        prompt = as_prompt(values["prompt"])
    else:
        prompt, chosen = _split_dialogue(chosen)
        other_prompt, rejected = _split_dialogue(rejected)
        if prompt != other_prompt:
            raise BadRow("chosen and rejected have different prompts")
    if not chosen.strip() or not rejected.strip():
        raise BadRow("an answer is empty")
    return prompt, chosen, rejected


def _split_dialogue(text: str) -> tuple[list[Message], str]:
    r"""A dialogue in hh-rlhf's form (`\n\nHuman: ... \n\nAssistant: ...`): the prompt and the last answer."""
    if not text.startswith(_HUMAN):
        raise BadRow("the text does not begin with a Human turn")
    turns: list[Message] = []
    for part in text.split(_HUMAN)[1:]:
        question, *answers = part.split(_ASSISTANT)
        turns.append({"role": "user", "content": question.strip()})
        turns.extend({"role": "assistant", "content": answer.strip()} for answer in answers)
    if turns[-1]["role"] != "assistant":
        raise BadRow("the text does not end with an Assistant turn")
    return check_messages(_merge_turns(turns[:-1])), turns[-1]["content"]


def _merge_turns(turns: Sequence[Message]) -> list[Message]:
    """Turns of one speaker in a row become one, as some dialogues in hh-rlhf have it."""
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            joined = f"{merged[-1]['content']}\n\n{turn['content']}".strip()
            merged[-1] = {"role": turn["role"], "content": joined}
        else:
            merged.append(turn)
    return merged


def _sharegpt(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise BadRow("a turn is not {from, value}")
    return {"role": _SHAREGPT_ROLES.get(str(turn.get("from"))), "content": turn.get("value")}


def _sharegpt_answer(value: Any) -> str:
    text = value.get("value") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise BadRow("an answer is empty")
    return text
