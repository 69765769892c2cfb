"""Conversations to token ids, in one way for sft, rm, ppo, sampling and chat.

Training and serving read the same ids because nothing else in chatpipe renders conversations.

A tokenizer keeps its own template if it is fit for training: every prompt is a prefix of the whole conversation, and
every answer ends with a token of its own. Generation stops at that token, so it becomes the tokenizer's EOS. Some
templates are unfit, such as Qwen3's, which removes the reasoning from earlier answers; trl has replacements for those.
A tokenizer without a template gets chatpipe's.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from chatpipe.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

SYSTEM_TOKEN, USER_TOKEN, ASSISTANT_TOKEN = "<|system|>", "<|user|>", "<|assistant|>"
ROLE_TOKENS = [SYSTEM_TOKEN, USER_TOKEN, ASSISTANT_TOKEN]

# The space before the content makes its first word the same token as inside a sentence: a small model would otherwise
# have to learn every name twice, as " Mara" and as "Mara".
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

# Beginnings of answers to test a template with: a tokenizer may merge them with the characters before them.
_BEGINNINGS = ("Yes", "42", "- one", "'s", "é", "你好", "<b>", "{")


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Token ids of `messages` with the generation prompt behind them.

    Raises `UsageError` where the template refuses them.
    """
    return _tokenise(tokenizer, [_render(tokenizer, messages, add_generation_prompt=True)])[0].ids


def encode_conversation(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]
) -> tuple[list[int], list[int]]:
    """Token ids of a whole conversation, and a mask of the same length, 1 on the assistant's tokens.

    The mask covers each assistant turn with its EOS; the ids end with the last one. Raises `UsageError` where the
    template refuses the conversation, or the prompt of a turn is not a prefix of the whole.
    """
    return encode_conversations(tokenizer, [messages])[0]


def encode_conversations(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Sequence[Message]]
) -> list[tuple[list[int], list[int]]]:
    """As `encode_conversation` for many, which the tokenizer encodes in several threads.

    A conversation is tokenised once; the assistant's turns are found in its text, because rendering is fast.
    """
    rendered = [_render(tokenizer, messages, add_generation_prompt=False) for messages in conversations]
    encodings = _tokenise(tokenizer, rendered)
    return [
        _masked(tokenizer, messages, text, encoding)
        for messages, text, encoding in zip(conversations, rendered, encodings, strict=True)
    ]


def encode_completion(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], completion: str
) -> tuple[list[int], int]:
    """Token ids of `prompt` answered by `completion` with its EOS, and the number of prompt tokens."""
    ids, mask = encode_conversation(tokenizer, [*prompt, {"role": "assistant", "content": completion}])
    return ids, len(mask) - mask[::-1].index(0) if 0 in mask else 0


def decode_answer(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text of a completion without special tokens and outer white space."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def add_chat_template(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Makes a tokenizer fit for training on conversations; returns the number of tokens added.

    It keeps its template, or gets trl's for its family, or, without one, chatpipe's with its role tokens. EOS becomes
    the token that ends an answer. A pad token that equals EOS is replaced: EOS would be masked from the loss and never
    learned (trl #976, transformers #23530). Raises `UsageError` for a template that is unfit for training.
    """
    added = 0
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise UsageError(
                f"The tokenizer of {_place(tokenizer)} has no end-of-text token.",
                "Set eos_token in its tokenizer_config.json.",
            )
        tokenizer.chat_template = ("{{ bos_token }}" if _begins_with_bos(tokenizer) else "") + CHAT_TEMPLATE
        added += tokenizer.add_special_tokens({"extra_special_tokens": ROLE_TOKENS})
    else:
        _choose_template(tokenizer)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        added += tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return added


def stop_at_end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Makes the token with which the chat template ends an answer the EOS, where generation stops.

    Qwen's base models and Gemma's chat models, among others, have another EOS and would continue after their answer.
    Nothing changes where the template ends answers with no token of its own.
    """
    answer = "Aardvarks."  # a word that no template contains
    messages = [{"role": "user", "content": "Yes?"}, {"role": "assistant", "content": answer}]
    _, found, behind = _render(tokenizer, messages, add_generation_prompt=False).rpartition(answer)
    tokens = _tokenise(tokenizer, [behind.lstrip()])[0].tokens
    if found and tokens and (tokens[0] in tokenizer.get_added_vocab() or tokens[0] == tokenizer.eos_token):
        tokenizer.eos_token = tokens[0]


def _choose_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Keeps a template that is fit for training, or replaces it by trl's."""
    if isinstance(tokenizer.chat_template, dict):  # variants by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    fault = "it has no variant of the name default" if tokenizer.chat_template is None else _fault(tokenizer)
    if fault is None:
        return
    training = _training_template(tokenizer)
    if training is not None:
        tokenizer.chat_template = training
        if _fault(tokenizer) is None:
            return
    raise UsageError(
        f"The chat template of {_place(tokenizer)} cannot be trained with: {fault}.",
        "Give a template whose prompts are a prefix of the whole and whose answers end with a token of their own; "
        "or remove it from the model's folder (chat_template), which then gets chatpipe's.",
    )


def _place(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The folder or hub id that a tokenizer was loaded from."""
    return tokenizer.name_or_path or "the model"


def _fault(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Why the template is unfit for training; None where it is fit. Sets the EOS."""
    try:
        stop_at_end_of_turn(tokenizer)
        for beginning in _BEGINNINGS:
            messages = [{"role": ("user", "assistant")[i % 2], "content": f"{beginning} {i}"} for i in range(4)]
            ids, mask = encode_conversation(tokenizer, messages)
            once = encode_conversation(tokenizer, messages[:2])[0]
            if ids[: len(once)] != once:
                return "an answer is rendered differently once the conversation continues"
            for turn in (1, 3):
                prompt = encode_prompt(tokenizer, messages[:turn])
                if ids[: len(prompt)] != prompt or not mask[len(prompt)] or mask[len(prompt) - 1]:
                    return "the tokens of a prompt change when it is answered"
    except UsageError as problem:
        return problem.message.replace("The tokenizer's chat template", "it").rstrip(".")
    return None


def _training_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """trl's training template for the tokenizer's template; None where it has none."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except (ValueError, TypeError, TemplateError):  # trl does not know the template, or cannot render it
        return None


def _begins_with_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts BOS before a text, as Llama's does."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def _render(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], add_generation_prompt: bool) -> str:
    """The text of `messages`. Outer white space is stripped: it would merge with the template's line breaks."""
    stripped = [{"role": message["role"], "content": message["content"].strip()} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(stripped, tokenize=False, add_generation_prompt=add_generation_prompt))
    except TemplateError as problem:
        first = f"{stripped[0]['role']}: {stripped[0]['content'][:40]!r}"
        raise UsageError(
            f"The tokenizer's chat template refuses a conversation ({first}): {problem}.",
            "Leave system messages out if it refuses them, or use a model whose template takes them."
            if stripped[0]["role"] == "system"
            else "Give conversations as the template wants them, or another template.",
        ) from problem


def _tokenise(tokenizer: "PreTrainedTokenizerBase", rendered: list[str]) -> list["Encoding"]:
    """The tokens of rendered text, which has BOS and all other special tokens already."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may have both on
    backend.no_padding()
    return backend.encode_batch(rendered, add_special_tokens=False)


def _masked(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], text: str, encoding: "Encoding"
) -> tuple[list[int], list[int]]:
    """The ids of a rendered conversation up to its last EOS, and the mask of the assistant's tokens."""
    ids, end = encoding.ids, 0
    mask = [0] * len(ids)
    for turn in [number for number, message in enumerate(messages) if message["role"] == "assistant"]:
        prompt = _render(tokenizer, messages[:turn], add_generation_prompt=True) if turn else ""
        start = _token_at(encoding, len(prompt)) if text.startswith(prompt) else None
        if start is None:
            raise UsageError(
                f"The tokenizer's chat template renders turn {turn + 1} differently once it is answered.",
                "Use a chat template whose prompt is the beginning of the whole conversation.",
            )
        try:
            end = ids.index(tokenizer.eos_token_id, start) + 1
        except ValueError as problem:
            raise UsageError(
                f"The tokenizer's chat template ends turn {turn + 1} with no end-of-turn token.",
                "Use a template that ends answers with a token of their own: the model would never learn to stop.",
            ) from problem
        mask[start:end] = [1] * (end - start)
    return ids[:end], mask[:end]


def _token_at(encoding: "Encoding", place: int) -> int | None:
    """The first token at or after the character `place`; None where a token lies across it."""
    for char in range(place, place + 8):  # some tokenizers assign the space before a word to no token
        token = encoding.char_to_token(char)
        if token is not None:
            span = encoding.token_to_chars(token)
            return token if span and span[0] >= place else None
    return None
