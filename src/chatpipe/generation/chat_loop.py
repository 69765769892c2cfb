"""Talking to a model in the terminal, or through a pipe: one message a line in, one answer a line out."""

import contextlib
import dataclasses
import sys
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from chatpipe import console
from chatpipe.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from chatpipe.data.chat_template import Message
    from chatpipe.generation import SamplingParams

HELP = "/reset forgets the conversation, /quit ends it, /help shows this; Ctrl-C stops an answer, Ctrl-D ends."


class Conversation:
    """A model, the turns of its conversation so far, and the sampling parameters of its answers.

    A model whose tokenizer has no chat template (`is_base`) completes each text on its own and remembers nothing.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerFast",
        params: "SamplingParams",
        seed: int,
        system: str | None = None,
    ) -> None:
        self.model, self.tokenizer, self.params, self.seed = model, tokenizer, params, seed
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Message] = []  # user and assistant in turn
        self.is_base = tokenizer.chat_template is None

    def answer(self, text: str) -> Generator[str, None, None]:
        """Yield the answer to `text` in pieces that are safe to print, and remember both turns.

        An answer that is broken off (close the iterator) is remembered as far as it came. Raises UsageError when
        `text` alone does not fit in the model's context.
        """
        from chatpipe.generation import stream
        from chatpipe.models.properties import end_token_ids, longest_sequence

        user: Message = {"role": "user", "content": text}
        limit = longest_sequence(self.model)
        prompt_ids = self._fit(user, limit)
        room = min(self.params.max_new_tokens, limit - len(prompt_ids))
        params = dataclasses.replace(self.params, max_new_tokens=room)
        ends = end_token_ids(self.model, self.tokenizer)
        self.seed += 1  # the same question asked again may get another answer
        written = ""
        try:
            for piece in stream(self.model, self.tokenizer, prompt_ids, params, ends, self.seed):
                printable = console.printable(piece)
                if not written and not self.is_base:
                    printable = printable.lstrip()  # the chat template puts a space before an answer
                if printable:
                    written += printable
                    yield printable
        finally:
            if written and not self.is_base:
                self.turns += [user, {"role": "assistant", "content": written}]

    def _fit(self, user: "Message", limit: int) -> list[int]:
        """Token ids of the prompt that ends with `user`; drops the oldest turns where no room for an answer is left."""
        ids = self._encode([*self.turns, user])
        longest_prompt = limit - min(self.params.max_new_tokens, limit // 2)
        if len(ids) <= longest_prompt:
            return ids
        if (alone := len(self._encode([user]))) >= limit:
            raise UsageError(f"this message takes {alone} tokens, and the model reads {limit - 1}", "Shorten it.")
        turns = len(self.turns)
        while self.turns and len(ids) > longest_prompt:
            del self.turns[:2]
            ids = self._encode([*self.turns, user])
        if dropped := (turns - len(self.turns)) // 2:
            console.note(
                f"The conversation no longer fits in {limit} tokens: the oldest {dropped} turn(s) are forgotten."
            )
        return ids

    def _encode(self, messages: list["Message"]) -> list[int]:
        from chatpipe.data.chat_template import encode_prompt

        if self.is_base:
            return self.tokenizer(messages[-1]["content"])["input_ids"]
        return encode_prompt(self.tokenizer, [*self.system, *messages])


DEFAULTS: Mapping[str, int | float] = {
    "max_new_tokens": 512,
    "temperature": 0.7,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}
_UNREAD = ("repetition_penalty", "no_repeat_ngram_size", "typical_p", "num_beams", "penalty_alpha")
_OFF = (None, 0, 1)


def chat_params(model: str, given: Mapping[str, Any]) -> "SamplingParams":
    """How answers are drawn: as `given`, else as the model's generation_config.json says, else by `DEFAULTS`.

    Raises `UsageError` for a file that cannot be read, and for values that cannot be.
    """
    from chatpipe.generation import SamplingParams
    from chatpipe.models.model_folder import folder_of
    from chatpipe.models.weight_files import read_object

    file = folder_of(model, ("generation_config.json",)) / "generation_config.json"
    found = read_object(file) if file.is_file() else {}
    own = {name: found[name] for name in DEFAULTS if found.get(name) is not None and name not in given}
    if found.get("do_sample") is False and "temperature" not in given:
        own["temperature"] = 0.0
    wrong = next((name for name, value in own.items() if type(value) not in (int, float)), None)
    if wrong is not None:
        raise UsageError(
            f"{file}: {wrong} is {own[wrong]!r}, not a number.", f"Mend it, or give --{wrong.replace('_', '-')}."
        )
    unread = [name for name in _UNREAD if found.get(name) not in _OFF]
    if unread:
        console.note(f"{file.name} asks for {', '.join(unread)}, which chatpipe does not apply")
    try:
        params = SamplingParams(**{**DEFAULTS, **own})
    except UsageError as problem:
        raise UsageError(f"{file}: {problem.message}", problem.hint) from problem
    return dataclasses.replace(params, **given)


def chat(
    model_folder: str,
    given: Mapping[str, Any],
    seed: int,
    system: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Talk to the model in `model_folder` (or of that hub id) until the input ends.

    `given` are fields of SamplingParams (`chat_params`), `settings` those of its chat template
    (`chat_template_kwargs`).

    On a terminal, answers are streamed as they are written and Ctrl-C stops one. Otherwise each line of stdin is a
    message, and its answer one line on stdout (line breaks become spaces).

    Raises UsageError for a model that cannot be loaded, for input that is not UTF-8 and, when not on a terminal, for a
    message that is too long.
    """
    from transformers.utils import logging

    from chatpipe.data.chat_template import stop_at_end_of_turn
    from chatpipe.generation.cache import quick_on_cpu
    from chatpipe.models.pretrained import load_causal_model, load_tokenizer

    logging.disable_progress_bar()
    tokenizer = load_tokenizer(model_folder)
    params = chat_params(model_folder, given)
    if tokenizer.chat_template is not None:
        stop_at_end_of_turn(tokenizer, settings)
    model = load_causal_model(model_folder, frozen=True)
    conversation = Conversation(model, tokenizer, params, seed, system)
    if conversation.is_base:
        console.note(f"{model_folder} has no chat template: it completes each text instead of answering.")
    with quick_on_cpu(model):  # once, not for each answer
        if sys.stdin.isatty():
            _talk(conversation, model_folder)
        else:
            _answer_lines(conversation)


def _talk(conversation: Conversation, name: str) -> None:
    """The conversation on a terminal, until Ctrl-D, Ctrl-C at the prompt, or /quit."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (importing it gives `input` line editing and a history)
    console.note(f"Talking to {name}. {HELP}")
    prompt = "> " if sys.stdout.isatty() else ""  # `input` would write it into a file or pipe too
    try:
        while (text := _read(prompt)) != "/quit":
            if not _is_command(conversation, text):
                _stream_answer(conversation, text)
    except (EOFError, KeyboardInterrupt):
        sys.stdout.write("\n")


def _stream_answer(conversation: Conversation, text: str) -> None:
    try:
        with contextlib.closing(conversation.answer(text)) as pieces:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        console.note(" (stopped)")
    except UsageError as problem:
        console.note(f"{problem.message}. {problem.hint}")
    sys.stdout.write("\n")


def _answer_lines(conversation: Conversation) -> None:
    """One answer a line for each message a line, for scripts. Empty lines get none."""
    with contextlib.suppress(EOFError):
        while (text := _read("")) != "/quit":
            if not _is_command(conversation, text):
                sys.stdout.write(" ".join("".join(conversation.answer(text)).splitlines()) + "\n")
                sys.stdout.flush()


def _is_command(conversation: Conversation, text: str) -> bool:
    """Whether `text` asks for no answer: it is empty, or a command, which is then carried out."""
    if text == "/reset":
        conversation.turns.clear()
        console.note("The conversation is forgotten.")
    elif text == "/help":
        console.note(HELP)
    return text in ("", "/reset", "/help")


def _read(prompt: str) -> str:
    try:
        line = input(prompt)
    except UnicodeDecodeError as problem:
        raise UsageError(
            f"the input is not UTF-8 ({problem})", "Convert it first, for example with iconv."
        ) from problem
    # Where the locale is not UTF-8, bytes that are no characters come as surrogates, which no tokenizer takes.
    return line.encode("utf-8", "replace").decode().strip()
