"""Messages to text by a tokenizer's own chat template, and that text to tokens.

Templates differ in what they write: some have no tools, some write reasoning under another name, some end an answer
with no token. `traits_of` finds this by rendering small conversations, never by the template's text or name: a template
that was edited, or that nobody knows, is read as a well-known one is.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from chatpipe.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

KWARGS = "chat_template_kwargs"
"""The attribute of a tokenizer, and the field of a conversation's first message, with the template's own settings."""

_FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What a template raises: its own refusals, and Python's where it reads a message as something else."""

_QUESTION, _ANSWER, _REASONING = "Yes?", "Aardvarks.", "Wombats."  # words that no template contains
_ASKED = {"role": "user", "content": _QUESTION}
_CALL = {"id": "call00001", "type": "function", "function": {"name": "quokka", "arguments": {"place": "Perth"}}}
_PLACE = {"type": "object", "properties": {"place": {"type": "string", "description": "Where."}}}
_TOOL = {"type": "function", "function": {"name": "quokka", "description": "Counts.", "parameters": _PLACE}}
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")

# A control token that a text spells out is hidden from the tokenizer as two characters: a noncharacter of Unicode,
# which no text has, and one for the token.
_HIDDEN, _FIRST = "\ufdd0", 0xF0000


@dataclass(frozen=True)
class Traits:
    """What a chat template writes.

    answers: whether it writes the text of an answer. end: the control token with which it ends one, None where there is
    none. thinks: whether a prompt opens a thought. reasoning: the field of a message that it writes as reasoning.
    tools: whether it writes tools, calls and results; text_arguments: whether it wants a call's arguments as text.
    developer: whether it has that role. header: what it writes before an answer although it belongs to the prompt.
    dated: whether it writes today's date. control: the control tokens that no message may hold; those of thoughts, and
    of tools where the template has none, may be a part of an answer.
    """

    answers: bool
    end: str | None
    thinks: bool
    reasoning: str | None
    tools: bool
    text_arguments: bool
    developer: bool
    header: str
    dated: bool
    control: tuple[str, ...]

    @cached_property
    def hidden(self) -> dict[str, str]:
        """Control token -> what stands for it in a text. Of tokens that begin alike the longest comes first."""
        places = sorted(range(len(self.control)), key=lambda place: -len(self.control[place]))
        return {self.control[place]: _HIDDEN + chr(_FIRST + place) for place in places}

    @cached_property
    def spelt_out(self) -> re.Pattern[str]:
        """Finds control tokens in a text, in one pass: Gemma's tokenizer has 6,000."""
        return re.compile("|".join(map(re.escape, self.hidden)) or "(?!)")


def traits_of(tokenizer: "PreTrainedTokenizerBase") -> Traits:
    """The traits of the tokenizer's chat template. Raises `UsageError` where it cannot write a question and answer."""
    settings = json.dumps(getattr(tokenizer, KWARGS, {}), sort_keys=True)
    return _traits(tokenizer, str(tokenizer.chat_template), str(tokenizer.eos_token), settings)


def render(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = False
) -> str:
    """The text of `messages`, with the control tokens that they spell out hidden from `tokenise`.

    Outer white space is stripped: it would merge with the template's line breaks. The first message may have `tools`
    and `chat_template_kwargs`. Raises `UsageError` where the template refuses the messages.
    """
    traits = traits_of(tokenizer)
    ready = [_for_template(traits, message) for message in messages]
    settings = {**getattr(tokenizer, KWARGS, {}), **messages[0].get(KWARGS, {})}
    try:
        return _write(tokenizer, ready, add_generation_prompt, messages[0].get("tools"), settings)
    except _FAILURES as problem:
        role, content = ready[0]["role"], ready[0]["content"]
        remedy = "Give conversations as the template wants them, or another template."
        if role == "system":
            remedy = "Leave system messages out if it refuses them, or use a model whose template takes them."
        raise UsageError(
            f"The tokenizer's chat template refuses a conversation ({role}: {content[:40]!r}): {problem}.", remedy
        ) from problem


def reasoning_of(tokenizer: "PreTrainedTokenizerBase", message: Mapping[str, Any]) -> str:
    """The reasoning of an answer: its `reasoning_content`, or what its content has before `</think>`.

    Control tokens that it spells out are hidden as `render` does.
    """
    thought, closed, _ = message["content"].rpartition("</think>")
    reasoning = message.get("reasoning_content") or (thought.strip().removeprefix("<think>") if closed else "")
    return hidden(tokenizer, reasoning)


def hidden(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """A text of a message as `render` writes it: without outer white space, with its control tokens hidden."""
    return _hide(traits_of(tokenizer), text.strip())


def spelt_out(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """A rendered text as people read it, with the control tokens that the messages spell out."""
    for number, token in enumerate(traits_of(tokenizer).control):
        text = text.replace(_HIDDEN + chr(_FIRST + number), token)
    return text


def unreadable(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]]) -> str | None:
    """Why the template cannot write a conversation: it has tools, and the template has none. None where it can."""
    return "the chat template has no tools" if uses_tools(messages) and not traits_of(tokenizer).tools else None


def uses_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation offers tools, calls one, or has the result of one."""
    return bool(messages[0].get("tools")) or any(m["role"] == "tool" or m.get("tool_calls") for m in messages)


def loses_reasoning(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an answer to be learned has reasoning that the template does not write."""
    traits = traits_of(tokenizer)
    written = traits.reasoning is not None or traits.thinks
    return not written and any(m.get("reasoning_content") and m.get("train", True) for m in messages)


class Tokens:
    """The tokens of a text, which may be encoded in pieces: each with the characters of the text that it stands for."""

    def __init__(self, pieces: Sequence[tuple[range, "Encoding"]]) -> None:
        self._pieces = pieces
        self.ids: list[int] = [token for _, encoding in pieces for token in encoding.ids]

    def first_at(self, place: int) -> int | None:
        """The first token at or after the character `place`; None where a token lies across it."""
        for char in range(place, place + 8):  # some tokenizers assign the space before a word to no token
            found = self._at(char)
            if found is not None:
                return found[0] if found[1] >= place else None
        return None

    def end_of(self, place: int) -> int:
        """The number of tokens up to the end of the one that has the character before `place`."""
        found = self._at(place - 1)
        return len(self.ids) if found is None else found[0] + 1

    def _at(self, char: int) -> tuple[int, int] | None:
        """The token that has a character, and where it begins."""
        before = 0
        for chars, encoding in self._pieces:
            token = encoding.char_to_token(char - chars.start) if char in chars else None
            span = None if token is None else encoding.token_to_chars(token)
            if token is not None and span is not None:
                return before + token, chars.start + span[0]
            before += len(encoding.ids)
        return None


def tokenise(tokenizer: "PreTrainedTokenizerBase", rendered: Sequence[str]) -> list[Tokens]:
    """The tokens of rendered texts, which have BOS and all other special tokens already.

    Control tokens that the messages spelt out are encoded as plain text: whoever writes `<|im_end|>` ends no turn
    (transformers #29279).
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a tokenizer.json may have both on
    backend.no_padding()
    encodings = backend.encode_batch(list(rendered), add_special_tokens=False)
    return [
        _in_pieces(tokenizer, text) if _HIDDEN in text else Tokens([(range(len(text)), encoding)])
        for text, encoding in zip(rendered, encodings, strict=True)
    ]


def _in_pieces(tokenizer: "PreTrainedTokenizerBase", text: str) -> Tokens:
    backend, control = tokenizer.backend_tokenizer, traits_of(tokenizer).control
    pieces, place = [], 0
    for part in re.split(f"({_HIDDEN}.)", text):
        spelt_out = part.startswith(_HIDDEN)
        backend.encode_special_tokens = spelt_out
        letters = control[ord(part[1]) - _FIRST] if spelt_out else part
        pieces.append((range(place, place + len(part)), backend.encode(letters, add_special_tokens=False)))
        place += len(part)
    backend.encode_special_tokens = False
    return Tokens(pieces)


def _for_template(traits: Traits, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with the fields and the role that the template reads."""
    role = "system" if message["role"] == "developer" and not traits.developer else message["role"]
    ready: dict[str, Any] = {"role": role, "content": _hide(traits, message["content"].strip())}
    ready.update({field: message[field] for field in ("name", "tool_call_id") if field in message})
    if traits.reasoning is not None and message.get("reasoning_content"):
        ready[traits.reasoning] = _hide(traits, message["reasoning_content"].strip())
    if message.get("tool_calls"):
        ready["tool_calls"] = [_as_text(call) if traits.text_arguments else call for call in message["tool_calls"]]
    return ready


def _as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _hide(traits: Traits, text: str) -> str:
    return traits.spelt_out.sub(lambda found: traits.hidden[found[0]], text)


def _write(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> str:
    return str(
        tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=list(tools) if tools else None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **(settings or {}),
        )
    )


# ---- what a template writes ----


@lru_cache(maxsize=32)
def _traits(tokenizer: "PreTrainedTokenizerBase", template: str, eos: str, settings: str) -> Traits:
    """`template`, `eos` and `settings` are the tokenizer's: a change of one asks again."""
    kwargs = json.loads(settings)

    def write(*messages: dict[str, Any], prompt: bool = False, tools: Sequence[dict[str, Any]] = ()) -> str | None:
        try:
            return _write(tokenizer, messages, prompt, tools, kwargs)
        except _FAILURES:
            return None

    answered = {"role": "assistant", "content": _ANSWER}
    try:
        whole = _write(tokenizer, [_ASKED, answered], settings=kwargs)
    except _FAILURES as problem:
        raise UsageError(f"The chat template refuses a conversation: {problem}.", "Give another template.") from problem
    plain, prompt = write(_ASKED), write(_ASKED, prompt=True) or ""
    asked = whole.find(_QUESTION) + len(_QUESTION)
    between = whole[asked : whole.find(_ANSWER)]
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    reasoning = (f for f in _REASONING_FIELDS if _REASONING in (write(_ASKED, {**answered, f: _REASONING}) or ""))
    closed = prompt.rstrip().endswith("</think>")  # an empty thought: there is no place for another
    calls = [_with_tools(write, call) for call in (_CALL, _as_text(_CALL))]
    in_answers = ("think",) if any(calls) else ("think", "tool")
    return Traits(
        answers=_ANSWER in whole,
        end=_end(tokenizer, whole, write(_ASKED, answered, _ASKED), between),
        thinks=prompt.rstrip().endswith("<think>"),
        reasoning=None if closed else next(reasoning, None),
        tools=any(calls),
        text_arguments=not calls[0],
        developer="developer" in template and write({**_ASKED, "role": "developer"}, _ASKED) is not None,
        header=between[max(0, len(prompt) - asked) :].strip() if plain == prompt else "",
        dated="strftime_now" in template and str(datetime.now().year) in whole,
        control=tuple(sorted(t for t in special if not any(part in t.lower() for part in in_answers))),
    )


def _with_tools(write: Any, call: dict[str, Any]) -> str:
    """A conversation with a tool, a call of it with its arguments, and its result; empty where one is not written."""
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "name": "quokka", "tool_call_id": call["id"], "content": "Numbats."}
    offered = write(_ASKED, tools=[_TOOL]) or ""
    used: str = write(_ASKED, calling, result, tools=[_TOOL]) or ""
    written = "quokka" in offered and "Perth" in used and "Numbats." in used and '\\"Perth' not in used
    return used if written else ""


def _end(tokenizer: "PreTrainedTokenizerBase", whole: str, continued: str | None, between: str) -> str | None:
    """The control token that ends an answer.

    Of several in a row it is the tokenizer's EOS, else the last, and one that also ends earlier answers comes first.
    Where an answer has none of its own, it is the one that begins the next question, as in GLM's template.
    """
    own = _leading_control_tokens(tokenizer, whole.rpartition(_ANSWER)[2].lstrip())
    followed = _leading_control_tokens(tokenizer, (continued or "").partition(_ANSWER)[2].lstrip())
    if own:
        always = [token for token in own if token in followed] or own
        return str(tokenizer.eos_token) if tokenizer.eos_token in always else always[-1]
    begins = followed[:1]
    return begins[0] if begins and begins[0] not in between and not whole.rpartition(_ANSWER)[2].strip() else None


def _leading_control_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[str]:
    """The control tokens with which a text begins, with nothing between them."""
    known = {*tokenizer.get_added_vocab(), str(tokenizer.eos_token)}
    any_of_them = "|".join(re.escape(token) for token in sorted(known, key=len, reverse=True))
    run = re.match(f"(?:{any_of_them})*", text)
    return re.findall(any_of_them, run[0] if run else "")
