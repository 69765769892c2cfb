"""Prompts to train on: from the rows of a dataset to token ids, and what a reward function is shown of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from transformers import PreTrainedTokenizerBase

from chatpipe.data.chat_template import Message, encode_prompt
from chatpipe.errors import UsageError
from chatpipe.reward.rewards import Content


@dataclass(frozen=True)
class Prompt:
    """The token ids that the policy goes on from; `content` is None where only these were given."""

    ids: Sequence[int]
    content: Content | None = None

    def shown(self, tokenizer: PreTrainedTokenizerBase) -> Content:
        """What a reward function gets: the content, else the decoded ids."""
        return tokenizer.decode(self.ids) if self.content is None else self.content


def read_prompts(rows: Iterable[Any], tokenizer: PreTrainedTokenizerBase, name: str = "train_dataset") -> list[Prompt]:
    """The prompts of a dataset: rows with `input_ids`, or with `prompt`, a text or a list of messages.

    Messages, and a text where the tokenizer has a chat template (it is then what the user says), go through chatpipe's
    template function; without a template a text is tokenised as it stands. `attention_mask` marks padding in
    `input_ids`. Raises UsageError naming `name` and the row for one that is neither.
    """
    return [_read(row, tokenizer, f"{name}, row {number}") for number, row in enumerate(rows)]


def _read(row: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> Prompt:
    if not isinstance(row, Mapping) or not ("input_ids" in row or "prompt" in row):
        raise UsageError(f"{where} has neither input_ids nor a prompt.", "A prompt is a text or a list of messages.")
    content = row.get("prompt")
    if "input_ids" in row:
        ids, mask = list(row["input_ids"]), row.get("attention_mask")
        if mask is not None:
            ids = [token for token, is_token in zip(ids, mask, strict=True) if is_token]
        return Prompt([int(token) for token in ids], content)
    if isinstance(content, str) and tokenizer.chat_template is None:
        return Prompt(tokenizer(content)["input_ids"], content)
    messages = [{"role": "user", "content": content}] if isinstance(content, str) else content
    if not _are_messages(messages):
        raise UsageError(
            f"{where}: its prompt is neither a text nor messages with role and content.",
            'Write it as [{"role": "user", "content": "..."}].',
        )
    if tokenizer.chat_template is None:
        raise UsageError(
            f"{where} is a conversation, and the tokenizer has no chat template.",
            "Start from a chat model (chatpipe sft makes one), or give the prompts as text.",
        )
    return Prompt(encode_prompt(tokenizer, messages), content)


def _are_messages(value: Any) -> TypeGuard[list[Message]]:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in value)
    )
