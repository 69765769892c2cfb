"""Conversations as lists of messages, read from OpenAI's and sharegpt's shapes."""

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from chatpipe.data.chat_template import Message
from chatpipe.data.row_files import BadRow

ROLES = ("system", "user", "assistant")
_TOOL_ROLES = {"tool", "function", "function_call", "observation"}
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}


def check_messages(value: Any) -> list[Message]:
    """`value` as a conversation; raises `BadRow` for wrong roles, a wrong order, empty turns, or messages of tools."""
    if not isinstance(value, list) or not value:
        raise BadRow("there are no messages")
    messages = [_message(item) for item in value]
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


def answered(messages: list[Message]) -> list[Message]:
    """`messages` unchanged. Raises `BadRow` where the last one is not the assistant's."""
    if messages[-1]["role"] != "assistant":
        raise BadRow("the conversation does not end with the assistant")
    return messages


def sharegpt_messages(values: dict[str, Any]) -> list[Message]:
    """The turns in `conversations`, after the field `system` where it has text."""
    turns = values.get("conversations")
    if not isinstance(turns, list):
        raise BadRow("conversations is not a list of {from, value}")
    return check_messages([*system_message(values), *map(sharegpt_message, turns)])


def sharegpt_message(turn: Any) -> Message:
    """One turn `{from, value}` as a message."""
    speaker = turn.get("from") if isinstance(turn, dict) else None
    if isinstance(speaker, str) and speaker in _TOOL_ROLES:
        raise BadRow("the conversation has messages of tools")
    if not isinstance(speaker, str) or speaker not in _SHAREGPT_ROLES or not isinstance(turn.get("value"), str):
        raise BadRow("a turn is not {from: human|gpt|system, value: text}")
    return {"role": _SHAREGPT_ROLES[speaker], "content": turn["value"]}


def system_message(values: dict[str, Any]) -> list[Message]:
    """The field `system` of a row as a message; none where it is missing or empty."""
    return [{"role": "system", "content": text_of(values, "system")}] if values.get("system") else []


def text_of(values: dict[str, Any], field: str) -> str:
    """The text in a field. Raises `BadRow` where there is none."""
    text = values.get(field)
    if not isinstance(text, str):
        raise BadRow(f"{field} is not text")
    if not text.strip():
        raise BadRow(f"{field} is empty")
    return text


def is_turn(value: Any) -> bool:
    """Whether `value` looks like one message, of either shape."""
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def prompt_key(messages: Sequence[Message]) -> str:
    """The text that identifies a prompt: equal prompts have equal keys."""
    return json.dumps([[message["role"], message["content"]] for message in messages], ensure_ascii=False)


def normalised(text: str) -> str:
    """Two texts are the same if these are equal: case, white space and forms of a letter do not count."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _message(item: Any) -> Message:
    role = item.get("role") if isinstance(item, dict) else None
    if not isinstance(role, str):
        raise BadRow("a message is not {role: system|user|assistant, content: text}")
    if role in _TOOL_ROLES or item.get("tool_calls"):
        raise BadRow("the conversation has messages of tools")
    content = _joined(item.get("content"))
    if not isinstance(content, str) or role not in ROLES:
        raise BadRow("a message is not {role: system|user|assistant, content: text}")
    if not content.strip():
        raise BadRow("a message is empty")
    return {"role": role, "content": content}


def _joined(content: Any) -> Any:
    """OpenAI's list of parts joined to one text; any other value unchanged."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise BadRow("a message has a part that is not text")
    texts = [part.get("text") for part in content]
    return "".join(texts) if all(isinstance(text, str) for text in texts) else None
