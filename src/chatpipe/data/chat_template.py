"""Conversations to token ids, in one way for sft, rm, ppo, sampling and chat.

Training and serving read the same ids because nothing else in chatpipe encodes conversations.

A tokenizer keeps its own template. Most templates write each prompt as the beginning of the whole conversation, which
is then one row. Others cut the reasoning out of earlier answers (Qwen3), open a thought that the conversation does not
have (DeepSeek), or end the last answer differently (gpt-oss); then each answer is a row of its own, behind the prompt
that serving gives the model. A tokenizer without a template gets chatpipe's.
"""

from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from chatpipe.data.rendering import KWARGS, Tokens, Traits, hidden, reasoning_of, render, tokenise, traits_of
from chatpipe.errors import UsageError

if TYPE_CHECKING:
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


Message = dict[str, Any]
"""One turn of a conversation: `role` (system, developer, user, assistant or tool) and `content`.

An answer may have `reasoning_content`, `tool_calls`, and `train: False` where it is read as context alone. The first
message may have what holds for the whole conversation: `tools` and `chat_template_kwargs`.
"""

Encoded = tuple[list[int], list[int]]
"""The token ids of a row, and a mask that is 1 on the tokens to learn."""


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Token ids of `messages` with the generation prompt behind them.

    Raises `UsageError` where the template refuses them.
    """
    return tokenise(tokenizer, [render(tokenizer, messages, add_generation_prompt=True)])[0].ids


def encode_conversation(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> Encoded:
    """Token ids of a whole conversation, and a mask of the same length, 1 on the assistant's tokens.

    The mask covers each assistant turn with its EOS; the ids end with the last one. Where each answer is a row of its
    own, this is the row of the last one; without an answer to learn both are empty. Raises `UsageError` where the
    template refuses the conversation.
    """
    rows = encode_conversations(tokenizer, [messages])[0]
    return rows[-1] if rows else ([], [])


def encode_conversations(
    tokenizer: "PreTrainedTokenizerBase", conversations: Sequence[Sequence[Message]]
) -> list[list[Encoded]]:
    """The rows of each conversation: one with all its answers, or one for each, as the template has it.

    An answer with `train: False` is not learned; a conversation without any other has no rows. The tokenizer encodes
    all in several threads. Raises `UsageError` where the template refuses a conversation.
    """
    answers = [_answers(tokenizer, messages) for messages in conversations]
    one_row = [bool(found) and _are_one_row(found) for found in answers]
    texts = ["".join(found[-1]) for found, one in zip(answers, one_row, strict=True) if one]
    tokens = iter(tokenise(tokenizer, texts))
    return [_rows(tokenizer, found, next(tokens) if one else None) for found, one in zip(answers, one_row, strict=True)]


def encode_completion(
    tokenizer: "PreTrainedTokenizerBase", prompt: Sequence[Message], completion: str
) -> tuple[list[int], int]:
    """Token ids of `prompt` answered by `completion` with its EOS, and the number of prompt tokens."""
    messages = [*prompt, {"role": "assistant", "content": completion}]
    ids, mask = _row(tokenizer, _answer(tokenizer, messages, len(prompt)))
    return ids, mask.index(1)


def decode_answer(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    """The text of a completion without special tokens and outer white space."""
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


def add_chat_template(tokenizer: "PreTrainedTokenizerBase", settings: Mapping[str, Any] | None = None) -> int:
    """Makes a tokenizer fit for training on conversations; returns the number of tokens added.

    It keeps its template, or, without one, gets chatpipe's with its role tokens. EOS becomes the token that ends an
    answer. `settings`: `chat_template_kwargs` of the recipe. The pad token may equal EOS or be missing: nothing is
    masked by it, so EOS is learned all the same. Raises `UsageError` for a template that cannot be trained with.
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
        fault = _fault(tokenizer, settings)
        if fault is not None:
            raise UsageError(
                f"The chat template of {_place(tokenizer)} cannot be trained with: {fault}.",
                "Give a template that writes questions and answers; or remove it from the model's folder "
                "(chat_template), which then gets chatpipe's.",
            )
    return added


def stop_at_end_of_turn(tokenizer: "PreTrainedTokenizerBase", settings: Mapping[str, Any] | None = None) -> Traits:
    """Makes the token with which the chat template ends an answer the EOS, where generation stops.

    Qwen's base models and Gemma's chat models, among others, have another EOS and would continue after their answer.
    Nothing changes where the template ends answers with no token of its own. `settings`: `chat_template_kwargs` of the
    recipe, which the template gets from then on. Raises `UsageError` where the template cannot write a question and an
    answer.
    """
    if isinstance(tokenizer.chat_template, dict):  # variants by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if settings:
        setattr(tokenizer, KWARGS, dict(settings))
    traits = traits_of(tokenizer)
    if traits.end is not None:
        tokenizer.eos_token = traits.end
    return traits


def _fault(tokenizer: "PreTrainedTokenizerBase", settings: Mapping[str, Any] | None) -> str | None:
    """Why the template cannot be trained with; None where it can. Sets the EOS."""
    if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        return "it has no variant of the name default"
    try:
        traits = stop_at_end_of_turn(tokenizer, settings)
    except UsageError as problem:
        return problem.message.replace("The chat template", "it").rstrip(".")
    if not traits.answers:
        return "it does not write the text of an answer"
    return "it ends answers with no token, and the tokenizer has no EOS" if tokenizer.eos_token is None else None


def _place(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The folder or hub id that a tokenizer was loaded from."""
    return tokenizer.name_or_path or "the model"


def _begins_with_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer puts BOS before a text, as Llama's does."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


# ---- the answers of a conversation and their rows ----

_Answer = tuple[str, str]
"""The text of a prompt, and of the answer to it with the token that ends it."""


def _answers(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[_Answer]:
    """The answers of a conversation that are to be learned, each behind the prompt that serving gives the model."""
    turns = [turn for turn, message in enumerate(messages) if turn and message["role"] == "assistant"]
    return [_answer(tokenizer, messages, turn) for turn in turns if messages[turn].get("train", True)]


def _answer(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], turn: int) -> _Answer:
    """The answer in `messages[turn]`, up to the token that ends it.

    Where the template writes none that is EOS; for a call of a tool the control token with which its result begins.
    """
    prompt, said = _said(tokenizer, messages[: turn + 1])
    eos, control = str(tokenizer.eos_token), traits_of(tokenizer).control
    if eos in said:
        return prompt, said[: said.index(eos) + len(eos)]
    said = said.rstrip()
    if said.endswith(control):  # a call of a tool may end with another token than an answer
        return prompt, said
    behind = ""
    if messages[turn].get("tool_calls"):
        further = render(tokenizer, messages[: turn + 2])
        behind = further[len(prompt + said) :] if further.startswith(prompt + said) else ""
    return prompt, said + next((token for token in control if behind.startswith(token)), eos)


def _said(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> _Answer:
    """The prompt before the last of `messages`, and all that the template writes for that one."""
    prompt, own = render(tokenizer, messages[:-1], add_generation_prompt=True), render(tokenizer, messages)
    if own.startswith(prompt):
        return prompt, own[len(prompt) :]
    before = render(tokenizer, messages[:-1])
    opened = prompt.removeprefix(before)
    if not own.startswith(before):  # it writes the question differently once it is answered
        begins = own.find(opened, own.rfind(hidden(tokenizer, messages[-2]["content"]))) if opened else -1
        return prompt, own[begins + len(opened) :] if begins >= 0 else hidden(tokenizer, messages[-1]["content"])
    # the answer, without its thought, may begin like the thought that the prompt opens: with "<"
    content = hidden(tokenizer, messages[-1]["content"].rpartition("</think>")[2])
    body = own.rstrip().removesuffix(str(tokenizer.eos_token))
    begins = len(body) - len(content) if body.endswith(content) else len(own)
    shared = min(len(commonprefix([prompt, own])), begins)
    said, opened = own[shared:], prompt[shared:].rstrip()
    if opened.endswith("<think>") and "</think>" not in said:
        return prompt, f"{reasoning_of(tokenizer, messages[-1])}\n</think>\n\n{said.lstrip()}"
    if opened.endswith("</think>"):  # the prompt has an empty thought: there is no place for another
        return prompt, said.rpartition("</think>")[2].lstrip()
    return prompt, said


def _are_one_row(answers: Sequence[_Answer]) -> bool:
    """Whether each answer, behind its prompt, is the beginning of the last prompt with its answer."""
    text = "".join(answers[-1])
    return all(text.startswith(prompt + said) for prompt, said in answers)


def _rows(tokenizer: "PreTrainedTokenizerBase", answers: Sequence[_Answer], tokens: Tokens | None) -> list[Encoded]:
    """`tokens`: of all answers as one row; None where each is a row of its own."""
    if tokens is None:
        return [_row(tokenizer, answer) for answer in answers]
    mask = [0] * len(tokens.ids)
    for prompt, said in answers:
        start, end = tokens.first_at(len(prompt)), tokens.end_of(len(prompt) + len(said))
        if start is None:
            return [_row(tokenizer, answer) for answer in answers]
        mask[start:end] = [1] * (end - start)
    return [(tokens.ids, mask)]


def _row(tokenizer: "PreTrainedTokenizerBase", answer: _Answer) -> Encoded:
    """One answer behind its prompt. Where a token would lie across both, they are encoded apart, as serving does."""
    prompt, said = answer
    whole = tokenise(tokenizer, [prompt + said])[0]
    start = whole.first_at(len(prompt))
    if start is not None:
        return whole.ids, [0] * start + [1] * (len(whole.ids) - start)
    before, behind = (each.ids for each in tokenise(tokenizer, [prompt, said]))
    return before + behind, [0] * len(before) + [1] * len(behind)
