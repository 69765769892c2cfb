"""Conversations as lists of messages, read from the shapes in which data sets have them.

Each turn is read by its own fields: {role, content}, {from, value}, or {human, assistant} for two turns in one; in a
list of texts, user and assistant alternate. What a row has beside its turns, a system message and a history,
comes before them.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from chatpipe.data.chat_template import Message
from chatpipe.data.row_files import BadRow

SYSTEM_ROLES = ("system", "developer")
ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")
_OTHER_ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "model", "bot", "chatbot", "ai"), "assistant"),
}
_RESULT_ROLES = ("tool", "function", "observation", "tool_response", "ipython")
_CALL_ROLES = ("function_call", "tool_call")
_OF_WHOLE = ("tools", "chat_template_kwargs")
"""What holds for a whole conversation lies in its first message."""

IDS = ("id", "prompt_id", "question_id", "conversation_id", "uid", "uuid", "qid")
MEDIA = (
    *("image", "images", "image_path", "image_paths", "image_url"),
    *("video", "videos", "video_path", "audio", "audios", "audio_path"),
)
SYSTEM_FIELDS = ("system", "system_prompt", "system_message", "system_instruction")
MARKS = ("weight", "train", "training", "trainable", "learn", "loss")
"""A message of the assistant with one of these fields at 0 or false is read and not trained."""
YES_OR_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
_UNREAD_MARKS = ("loss_scale", "loss_mask", "mask", "masked", "train_detail", "training_detail")
REASONING = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS, _THOUGHT_PARTS = ("text", "input_text", "output_text"), ("thinking", "reasoning")
_EXCHANGES = (
    *(("instruction", "output", "input"), ("instruction", "output"), ("human", "assistant"), ("user", "assistant")),
    *(("input", "output"), ("question", "answer"), ("prompt", "response")),
)
"""The fields of a question and its answer in one object, as in Capybara; alpaca's `input` belongs to the question."""
_READ_IN_TURNS = (
    *("role", "from", "content", "value", "tool_calls", "function_call", "name", "tool_call_id"),
    *(*_OF_WHOLE, *MARKS, *_UNREAD_MARKS, *REASONING, *MEDIA),
)
_NOTHING: tuple[Any, ...] = (None, "", [], {})
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def check_messages(value: Any) -> list[Message]:
    """`value` as a conversation; raises `BadRow` for wrong roles, a wrong order, empty turns, or wrong calls."""
    if not isinstance(value, list) or not value:
        raise BadRow("there are no messages")
    if all(isinstance(item, str) for item in value):
        value = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(value)]
    messages = [message_of(turn) for item in value for turn in _turns_in(item)]
    turns = ["call" if message.get("tool_calls") else message["role"] for message in messages]
    if turns[0] in SYSTEM_ROLES:
        turns = turns[1:]
    if not turns or any(turn not in _AFTER.get(before, ()) for before, turn in pairwise(["", *turns])):
        raise BadRow("user and assistant do not take turns")
    return messages


_AFTER: Mapping[str, tuple[str, ...]] = {
    "": ("user",),
    "user": ("assistant", "call"),
    "assistant": ("user", "tool"),
    "call": ("tool",),
    "tool": ("tool", "assistant", "call"),
}
"""The turns that may follow each turn; `call` is an answer that calls tools. Some data sets write a call as text."""


def with_context(values: dict[str, Any], messages: Any) -> list[Message]:
    """`messages` behind the system message and the history that the row has beside them."""
    if not isinstance(messages, list) or not messages:
        raise BadRow("there are no messages")
    system, history = system_message(values), _history(values)
    first = messages[0]
    if system and isinstance(first, dict) and _role_in(first) in SYSTEM_ROLES:
        if message_of(first)["content"].strip() != system[0]["content"].strip():
            raise BadRow("the row has two system messages")
        system = []
    if history and isinstance(first, dict) and _role_in(first) in SYSTEM_ROLES:
        found = check_messages([first, *history, *messages[1:]])
    else:
        found = check_messages([*system, *history, *messages])
    return [{**found[0], **_of_whole(values)}, *found[1:]]


def as_prompt(value: Any) -> list[Message]:
    """A prompt given as text, as messages that end with the user or a tool's result, or as a dialogue of hh-rlhf."""
    if isinstance(value, str) and is_dialogue(value):
        turns = dialogue_turns(value)
        messages = check_messages(merge_turns(turns if turns[-1]["content"] else turns[:-1]))
    elif isinstance(value, str):
        messages = check_messages([{"role": "user", "content": value}])
    else:
        messages = check_messages(value)
    if messages[-1]["role"] not in ("user", "tool"):
        raise BadRow("the prompt does not end with the user")
    return messages


def answered(messages: list[Message]) -> list[Message]:
    """`messages` unchanged. Raises `BadRow` where the last one is not the assistant's."""
    if messages[-1]["role"] != "assistant":
        raise BadRow("the conversation does not end with the assistant")
    return messages


def message_of(turn: Any) -> Message:
    """One turn, `{role, content}` or `{from, value}`, as a message.

    An answer that is marked as not to be trained has `train: False`; its reasoning is kept as `reasoning_content`, its
    calls of tools as `tool_calls`.
    """
    if not isinstance(turn, dict):
        raise BadRow("a message is not {role, content} or {from, value}")
    said = turn.get("content")
    if len(turn) == 2 and turn.get("role") in ROLES and isinstance(said, str) and said.strip():  # most turns, quickly
        return {"role": turn["role"], "content": said}
    check_media(turn, "a message")
    role = _role_in(turn)
    content, thought = _text_and_thought(first_of(turn, ("content", "value")))
    calls = _calls_in(turn.get("tool_calls") or turn.get("function_call"))
    if role in _CALL_ROLES:
        role, content, calls = "assistant", "", _calls_in(content)
    if calls and content is None:
        content = ""
    if role is None or not isinstance(content, str):
        raise BadRow("a message is not {role, content} or {from, value}")
    if role not in ROLES:
        raise BadRow(f"there is no role {role[:30]!r}; known are system, developer, user, assistant and tool")
    if not content.strip() and not calls and role != "tool":
        raise BadRow("a message is empty")
    message: Message = {"role": role, "content": content}
    message |= {field: turn[field] for field in _OF_WHOLE if turn.get(field)}
    if role == "tool":
        message |= {field: turn[field] for field in ("name", "tool_call_id") if isinstance(turn.get(field), str)}
    if role == "assistant" and calls:
        message["tool_calls"] = calls
    if role == "assistant":
        message |= reasoning_in(turn) or reasoning_in({"reasoning": thought})
        unread = next((field for field in _UNREAD_MARKS if turn.get(field) is not None), None)
        if unread is not None:
            raise BadRow(f"a message has a mark that is not read: {unread}")
        if not is_trained(turn, "a message"):
            message["train"] = False
    return message


def check_media(values: dict[str, Any], name: str) -> None:
    """Raises `BadRow` where `values` has pictures, films or sound."""
    media = next((field for field in MEDIA if values.get(field) not in (None, "", "[]", [])), None)
    if media is not None:
        raise BadRow(f"{name} has {media}, which a language model cannot read")


def is_trained(values: dict[str, Any], name: str, fields: Sequence[str] = MARKS) -> bool:
    """Whether the marks in `values` say that it is to be trained. Raises `BadRow` for a mark between yes and no."""
    trained = True
    for field in fields:
        mark = values.get(field)
        if mark is None or mark != mark:  # NaN is what pandas writes for a missing mark
            continue
        found = YES_OR_NO.get(str(mark).strip().lower())
        if found is None:
            raise BadRow(f"{name} has {field}: {str(mark)[:20]}; 1 is trained, 0 is not")
        trained = trained and found
    return trained


def reasoning_in(values: Mapping[str, Any]) -> Message:
    """`reasoning_content` of a message, where `values` has a text of that kind under one of its names; else nothing."""
    reasoning = first_of(values, REASONING)
    return {"reasoning_content": reasoning} if isinstance(reasoning, str) and reasoning.strip() else {}


def system_message(values: dict[str, Any]) -> list[Message]:
    """The system message that a row has in a field of its own; none where it is missing or empty."""
    texts = {text_of(values, field).strip(): field for field in SYSTEM_FIELDS if values.get(field)}
    if len(texts) > 1:
        raise BadRow("the row has two system messages")
    return [{"role": "system", "content": text_of(values, field)} for field in texts.values()]


def text_of(values: dict[str, Any], field: str) -> str:
    """The text in a field. Raises `BadRow` where there is none."""
    text = values.get(field)
    if not isinstance(text, str):
        raise BadRow(f"{field} is not text")
    if not text.strip():
        raise BadRow(f"{field} is empty")
    return text


def instruction_of(values: dict[str, Any]) -> str:
    """alpaca's question, of `instruction` and `input`. Raises `BadRow` where they are no texts."""
    instruction, extra = text_of(values, "instruction"), values.get("input") or ""
    if not isinstance(extra, str):
        raise BadRow("input is not text")
    return f"{instruction}\n\n{extra}" if extra else instruction


def is_turn(value: Any) -> bool:
    """Whether `value` looks like one message."""
    return isinstance(value, dict) and any(
        fields <= value.keys()
        for fields in ({"role", "content"}, {"role", "tool_calls"}, {"role", "function_call"}, {"from", "value"})
    )


def unread_in_turns(value: Any) -> list[str]:
    """The fields with a content that nothing reads in a list of turns."""
    turns = [turn for turn in value if isinstance(turn, dict)] if isinstance(value, list) else []
    read = {*_READ_IN_TURNS, *(name for turn in turns for name in _exchange_in(turn) or ())}
    found = (name for turn in turns for name, inner in turn.items() if name not in read and inner not in _NOTHING)
    return list(dict.fromkeys(found))


def are_turns(value: Any) -> bool:
    """Whether `value` looks like a list of messages, or of questions with their answers."""
    return isinstance(value, list) and bool(value) and all(is_turn(item) or _exchange_in(item) for item in value)


Id = str | int


def id_of(values: dict[str, Any]) -> Id | None:
    """The id that a row has of its user's own; None where it has none."""
    found = first_of(values, IDS)
    found = int(found) if isinstance(found, float) and found.is_integer() else found  # pandas makes such of numbers
    return found if isinstance(found, Id) and not isinstance(found, bool) and found != "" else None


def prompt_key(messages: Sequence[Message]) -> str:
    """The text that identifies a prompt: equal prompts have equal keys."""
    said = [[message["role"], message["content"], *message.get("tool_calls", ())] for message in messages]
    return json.dumps(said, ensure_ascii=False)


def _turns_in(item: Any) -> list[Any]:
    """`item` itself, or the two turns that {human, assistant} holds."""
    exchange = _exchange_in(item)
    if exchange is None or _role_in(item) is not None:
        return [item]
    question, answer, *more = exchange
    asked = instruction_of(item) if more and item[question] else item[more[0] if more else question]
    return [{"role": "user", "content": asked}, {**item, "role": "assistant", "content": item[answer]}]


def _exchange_in(item: Any) -> tuple[str, ...] | None:
    """The fields of a question and its answer in one object; None where it has none."""
    if not isinstance(item, dict):
        return None
    return next((fields for fields in _EXCHANGES if all(field in item for field in fields)), None)


def _role_in(turn: dict[str, Any]) -> str | None:
    """The role of a turn in our words; an unknown one unchanged, None where it is missing or no text."""
    role = first_of(turn, ("role", "from"))
    if not isinstance(role, str):
        return None
    role = role.strip().lower()
    return "tool" if role in _RESULT_ROLES else _OTHER_ROLES.get(role, role)


def _history(values: dict[str, Any]) -> list[Any]:
    """The turns in the field `history`: [question, answer] pairs, or messages."""
    history = values.get("history") or []
    if are_turns(history):
        return history
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise BadRow("history is not a list of [question, answer]")
    turns: list[Any] = []
    for question, answer in history:
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return turns


def first_of(values: Mapping[str, Any], fields: Sequence[str]) -> Any:
    """The first value that is not null; parquet has null where another row has the field."""
    for field in fields:
        value = values.get(field)
        if value is not None:
            return value
    return None


def _text_and_thought(content: Any) -> tuple[Any, str]:
    """The parts of a list of parts, as OpenAI has it, joined to a text, and its thoughts; other values unchanged."""
    if not isinstance(content, list):
        return content, ""
    said: list[str] = []
    thought: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in (*_TEXT_PARTS, *_THOUGHT_PARTS):
            raise BadRow("a message has a part that is not text")
        text = first_of(part, ("text", "value", *_THOUGHT_PARTS))
        if not isinstance(text, str):
            return None, ""
        (said if kind in _TEXT_PARTS else thought).append(text)
    return "".join(said), "".join(thought)


# ---- tools ----


def _of_whole(values: dict[str, Any]) -> Message:
    """The tools that a row offers, in OpenAI's form, and the settings of the chat template that it asks for."""
    found: Message = {}
    tools = _parsed(first_of(values, ("tools", "functions")))
    if tools not in (None, "", [], {}):
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise BadRow("tools are not a list of objects")
        found["tools"] = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
    settings = _parsed(values.get("chat_template_kwargs"))
    if settings:
        if not isinstance(settings, dict):
            raise BadRow("chat_template_kwargs is not an object")
        found["chat_template_kwargs"] = settings
    return found


def _calls_in(value: Any) -> list[dict[str, Any]]:
    """Calls of tools in OpenAI's form; their arguments are an object, where OpenAI has its text."""
    value = _parsed(value)
    found = []
    for call in [value] if isinstance(value, dict) else value or []:
        function = call.get("function", call) if isinstance(call, dict) else None
        function = function if isinstance(function, dict) else {}
        arguments = first_of(function, ("arguments", "parameters"))
        arguments = {} if arguments is None else arguments
        arguments = json_in(arguments) if isinstance(arguments, str) else _without_nulls(arguments)
        if not isinstance(function.get("name"), str) or not isinstance(arguments, dict):
            raise BadRow("a call of a tool is not {name, arguments}")
        id = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        found.append({**id, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return found


def json_in(value: Any) -> Any:
    """The list or object that a text holds as JSON; any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _parsed(value: Any) -> Any:
    """The value of a text that is JSON, without the nulls with which parquet fills up objects."""
    return None if value == "null" else _without_nulls(json_in(value))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


# ---- a dialogue inside a text, in hh-rlhf's form: \n\nHuman: ... \n\nAssistant: ... ----


def is_dialogue(text: str) -> bool:
    """Whether a text is a dialogue in hh-rlhf's form."""
    if not text.lstrip().startswith("Human:"):
        return False
    text = text.replace("\r\n", "\n")
    before, found, behind = text.rpartition("Assistant:")
    ends = bool(found) and not behind.strip() and "\n" in before[len(before.rstrip()) :]
    return ends or _ASSISTANT in text or text.startswith(_HUMAN)


def dialogue_turns(text: str) -> list[Message]:
    """The turns of a dialogue; the last one is empty where the text ends with `Assistant:`."""
    turns: list[Message] = []
    for part in f"\n\n{text.strip()}".replace("\r\n", "\n").split(_HUMAN)[1:]:
        question, *answers = part.split(_ASSISTANT)
        turns.append({"role": "user", "content": question.strip()})
        turns.extend({"role": "assistant", "content": answer.strip()} for answer in answers)
    return turns


def merge_turns(turns: Sequence[Message]) -> list[Message]:
    """Consecutive turns of one speaker become one; some dialogues of hh-rlhf have them."""
    merged: list[Message] = []
    for turn in turns:
        if merged and merged[-1]["role"] == turn["role"]:
            joined = f"{merged[-1]['content']}\n\n{turn['content']}".strip()
            merged[-1] = {"role": turn["role"], "content": joined}
        else:
            merged.append(turn)
    return merged
