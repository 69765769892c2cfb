"""The one function that turns a conversation into token ids, for sft, rm, ppo, sampling and chat alike.

Training and serving see the same ids because nothing else in chatpipe renders conversations.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from chatpipe.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM_TOKEN, USER_TOKEN, ASSISTANT_TOKEN = "<|system|>", "<|user|>", "<|assistant|>"
ROLE_TOKENS = [SYSTEM_TOKEN, USER_TOKEN, ASSISTANT_TOKEN]

# The space before the content makes its first word the same token as inside a sentence: a small model that read
# about " Mara" would otherwise have to learn anew that an answer beginning with "Mara" is about her.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}"
    "{% else %}{{ ' ' + message['content'] | trim }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


Message = dict[str, str]
"""One turn of a conversation: `role` (system, user or assistant) and `content`."""


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Token ids of `messages` up to and including the mark that makes the assistant speak next."""
    return _apply(tokenizer, messages, add_generation_prompt=True)


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], only_last: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids of a whole conversation, and a mask of the same length that is 1 on what the assistant says.

    The mask covers each assistant turn (with `only_last`: the last one alone) and the end-of-turn token behind it.
    A turn's tokens are found as what comes after the prompt before it, so any template whose prompts are a prefix of
    the whole works; one that is not raises `UsageError`.
    """
    ids = _apply(tokenizer, messages, add_generation_prompt=False)
    mask = [0] * len(ids)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for turn in turns[-1:] if only_last else turns:
        start = len(encode_prompt(tokenizer, messages[:turn]))
        end = len(_apply(tokenizer, messages[: turn + 1], add_generation_prompt=False))
        _check_prefix(tokenizer, messages, turn, ids, start)
        mask[start:end] = [1] * (end - start)
    return ids, mask


def encode_completion(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], completion: str
) -> tuple[list[int], int]:
    """Token ids of `prompt` answered by `completion` with its end-of-turn token, and the number of prompt tokens."""
    ids = _apply(tokenizer, [*prompt, {"role": "assistant", "content": completion}], add_generation_prompt=False)
    return ids, len(encode_prompt(tokenizer, prompt))


def decode_answer(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text of a completion, as it would stand in a conversation: without special tokens and outer white space."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def add_chat_template(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Gives a tokenizer without chat template ours, with role tokens and a pad token; returns how many were added.

    A pad token that equals EOS is replaced: EOS would be masked from the loss and never learned
    (trl #976, transformers #23530).
    """
    if tokenizer.eos_token is None:
        raise UsageError("The tokenizer has no end-of-text token.", "Set eos_token in its tokenizer_config.json.")
    added = 0
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATE
        added += tokenizer.add_special_tokens({"extra_special_tokens": ROLE_TOKENS})
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        added += tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return added


def _apply(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
    return tokenizer.apply_chat_template(
        list(messages), tokenize=True, add_generation_prompt=add_generation_prompt, return_dict=False
    )


def _check_prefix(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], turn: int, ids: list[int], start: int
) -> None:
    if encode_prompt(tokenizer, messages[:turn]) != ids[:start]:
        raise UsageError(
            f"The tokenizer's chat template writes turn {turn + 1} differently once it is answered.",
            "Use a chat template whose prompt is a prefix of the whole conversation.",
        )
