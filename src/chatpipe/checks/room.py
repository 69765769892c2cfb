"""Which prompts leave room for an answer in a model's context."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from chatpipe.data.chat_template import encode_prompt
from chatpipe.data.datasets import Conversation
from chatpipe.errors import UsageError
from chatpipe.models.context import leaves_room


def prompts_with_room(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Conversation], context: int, key: str, new_tokens: int
) -> list[Conversation]:
    """The prompts that leave room in `context` tokens for an answer of `new_tokens`, which the recipe's `key` sets.

    Raises UsageError where no prompt does.
    """
    fitting = [prompt for prompt in prompts if leaves_room(len(encode_prompt(tokenizer, prompt)), new_tokens, context)]
    if not fitting:
        raise UsageError(
            f"{key} = {new_tokens}: no prompt leaves room for so many new tokens in a context of {context}.",
            f"Lower {key}, or use a model with more positions.",
        )
    return fitting
