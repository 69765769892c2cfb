"""Checks of the chat template and its tokens: do the rows hold what the data holds?"""

import tempfile
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from chatpipe.checks.gate import Finding
from chatpipe.data.chat_template import encode_conversation, encode_prompt, stop_at_end_of_turn
from chatpipe.data.datasets import Conversation
from chatpipe.data.rendering import KWARGS, render, spelt_out, traits_of
from chatpipe.models.pretrained import load_tokenizer

MAX_SHARE_OF_TEXTS = 0.01
"""A text may be about `<s>`; in a larger share of the texts it is a mistake."""


def double_bos(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> Finding | None:
    """Rows of token ids begin with two beginning-of-text tokens: one of the template, one of the tokenizer or the data.

    open-r1 #462, OpenRLHF #393, alignment-handbook #127.
    """
    bos = tokenizer.bos_token_id
    found = sum(list(ids[:2]) == [bos, bos] for ids in rows)
    if bos is None or found == 0:
        return None
    return Finding(
        f"{found} of {len(rows)} rows begin with {tokenizer.bos_token!r} twice.",
        "Take it out of the chat template, or out of the texts.",
    )


def turns_lost(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> Finding | None:
    """The rendered conversation does not hold every turn, whole and in order.

    A template may drop system messages or cut out reasoning. LLaMA-Factory #5145, #8720. White space is
    ignored.
    """
    for conversation in conversations:
        rendered = _letters(spelt_out(tokenizer, render(tokenizer, conversation)))
        place = 0
        for number, message in enumerate(conversation, start=1):
            content = _letters(message["content"].rpartition("</think>")[2])
            at = rendered.find(content, place)
            if at < 0:
                return Finding(
                    f"the chat template loses or moves turn {number} ({message['role']}: "
                    f"{message['content'].strip()[:40]!r}) of a conversation.",
                    "Use a template that writes every turn in its order, or leave such turns out of the data.",
                )
            place = at + len(content)
    return None


def header_not_in_prompt(tokenizer: PreTrainedTokenizerBase) -> Finding | None:
    """The template writes a header before an answer, but not at the end of a prompt: it ignores add_generation_prompt.

    The model learns to write the header as a part of its answer, and people and reward models read it there.
    instructlab/training #232, transformers #26539.
    """
    header = traits_of(tokenizer).header
    if not header:
        return None
    return Finding(
        f"the chat template writes {header!r} before an answer, but a prompt does not end with it: the model would "
        "have to say it.",
        "Let the template write it where add_generation_prompt is true.",
    )


def date_in_prompt(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Says that the template writes today's date: rows of another day have other tokens. sglang #3296, unsloth #881."""
    if not traits_of(tokenizer).dated:
        return None
    return "the chat template writes today's date: runs of two days differ (chat_template_kwargs may fix a date)"


def template_not_saved(
    tokenizer: PreTrainedTokenizerBase, served: PreTrainedTokenizerBase, conversations: Sequence[Conversation]
) -> Finding | None:
    """The saved tokenizer (`served`) gives other tokens for a conversation than those trained on.

    LLaMA-Factory #2509 (26 % against 57 % right answers by the template), #6736.
    """
    for conversation in conversations:
        if encode(tokenizer, conversation) != encode(served, conversation):
            return Finding(
                "the saved tokenizer gives other tokens for a conversation than those that are trained on.",
                "Set tokenizer.chat_template to the template of training; one given to a single call is not saved.",
            )
    return None


def as_saved(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer after it is saved and loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        saved = load_tokenizer(folder)
        stop_at_end_of_turn(saved, getattr(tokenizer, KWARGS, None))
        return saved


def other_template(
    tokenizer: PreTrainedTokenizerBase, of_rewards: dict[str, PreTrainedTokenizerBase], prompts: Sequence[Conversation]
) -> Finding | None:
    """A reward model (by recipe key) has another chat template than the policy, so it reads unfamiliar text.

    LLaMA-Factory #6736 (a model trained with another family's template). Tokenizers without a template pass.
    """
    for key, other in of_rewards.items():
        if other.chat_template is not None and any(
            encode(tokenizer, prompt) != encode(other, prompt) for prompt in prompts
        ):
            return Finding(
                f"{key} was trained with another chat template than the policy's.",
                "Train it on the policy's own model, or save the policy's template with it.",
            )
    return None


def special_tokens_in_text(tokens: Sequence[str], texts: Sequence[str], key: str) -> Finding | None:
    """Control tokens are spelt out in the texts under the recipe's `key`.

    In conversations they become control tokens: an answer with `</s>` at its end gets two, as rows got two BOS in
    open-r1 #462. In raw text they stay letters, so that documents are not separated. Fails above 1 % of
    the texts.
    """
    found = {token: sum(token in text for text in texts) for token in tokens}
    token, count = max(found.items(), key=lambda pair: pair[1], default=("", 0))
    if count <= MAX_SHARE_OF_TEXTS * len(texts):
        return None
    return Finding(
        f"{key}: {count} of {len(texts)} texts have {token!r} spelt out in them.",
        "Remove it; documents are separated by being a row or a file each.",
    )


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts that the tokenizer reads as control tokens anywhere in a conversation."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def encode(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> tuple[list[int], list[int]]:
    """Token ids and mask; a conversation that ends with the user is encoded as a prompt, without a mask."""
    if conversation[-1]["role"] == "assistant":
        return encode_conversation(tokenizer, conversation)
    return encode_prompt(tokenizer, conversation), []


def _letters(text: str) -> str:
    return "".join(text.split())
