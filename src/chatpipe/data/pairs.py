r"""The shapes in which a chosen and a rejected answer to one prompt come.

Texts with an explicit `prompt`; texts that hold the dialogue, as hh-rlhf has it (`\n\nHuman: ... \n\nAssistant: ...`);
lists of messages, the whole conversation or what follows `prompt`; sharegpt.
"""

from collections.abc import Sequence
from typing import Any

from chatpipe.data.chat_template import Message
from chatpipe.data.messages import answered, as_prompt, check_messages, sharegpt_message, sharegpt_messages
from chatpipe.data.row_files import BadRow

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

Answered = tuple[list[Message], str]
"""A prompt and the answer to it."""


def read_pair(values: dict[str, Any]) -> tuple[list[Message], str, str]:
    """Prompt, chosen and rejected answer; raises `BadRow` where they are not there, or not of one prompt."""
    prompt, chosen = _side(values, "chosen")
    other_prompt, rejected = _side(values, "rejected")
    if prompt != other_prompt:
        raise BadRow("chosen and rejected have different prompts")
    if not chosen.strip() or not rejected.strip():
        raise BadRow("an answer is empty")
    return prompt, chosen, rejected


def _side(values: dict[str, Any], field: str) -> Answered:
    answer, prompt = values.get(field), values.get("prompt")
    if isinstance(values.get("conversations"), list):
        return as_prompt(sharegpt_messages(values)), _sharegpt_answer(answer)
    if isinstance(answer, list):
        return _conversational(answer, prompt)
    if not isinstance(answer, str):
        raise BadRow("chosen and rejected are neither texts nor messages")
    return _split_dialogue(answer) if prompt is None else (as_prompt(prompt), answer)


def _sharegpt_answer(answer: Any) -> str:
    message: Message = {"role": "assistant", "content": answer} if isinstance(answer, str) else sharegpt_message(answer)
    if message["role"] != "assistant":
        raise BadRow("an answer is not the assistant's")
    return message["content"]


def _conversational(messages: list[Any], prompt: Any) -> Answered:
    """Messages that begin with the assistant go on from `prompt`; others are the whole conversation.

    Both are in use: TRL's explicit prompt, and data sets that repeat the prompt beside whole conversations.
    """
    first = messages[0] if messages else None
    if isinstance(first, dict) and first.get("role") == "assistant" and prompt is not None:
        messages = [*as_prompt(prompt), *messages]
    whole = answered(check_messages(messages))
    return whole[:-1], whole[-1]["content"]


def _split_dialogue(text: str) -> Answered:
    """A dialogue in hh-rlhf's form: the prompt and the last answer."""
    if not text.startswith(_HUMAN):
        raise BadRow("there is no prompt: the text does not begin with a Human turn")
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
