"""Different completions of each prompt, for ranking, or the best of several by a reward model.

The completions of a prompt depend on the prompt, the models, the settings and the seed alone: neither on the other
prompts nor on where an interrupted command continued.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.chat_template import decode_answer, encode_prompt, stop_at_end_of_turn
from chatpipe.data.datasets import Conversation
from chatpipe.data.rankings import normalised
from chatpipe.data.rendering import unreadable
from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams, generate
from chatpipe.models.pretrained import load_causal_model, load_tokenizer
from chatpipe.models.properties import end_token_ids, leaves_room, longest_sequence
from chatpipe.ranking.raters import Scorer

ATTEMPTS = 4
"""How often a prompt is asked while it lacks different completions."""
CHUNK = 128
"""Prompts answered together: enough to fill the decode engine, few enough to lose little when killed."""


@dataclass(frozen=True)
class ChatModel:
    """A model that answers; `name` marks its completions."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, model: str, name: str, settings: Mapping[str, Any] | None = None) -> "ChatModel":
        """From a folder or a hub id; `settings` are those of its chat template (`chat_template_kwargs`).

        Raises `UsageError` if there is no model, or if it has no chat template.
        """
        tokenizer = load_tokenizer(model)
        if tokenizer.chat_template is None:
            raise UsageError(
                f"{model} is a base model: it completes text and answers nobody.",
                f"Fine-tune it first: chatpipe sft --model {model} --data chats.jsonl --out chat",
            )
        stop_at_end_of_turn(tokenizer, settings)
        return cls(name, load_causal_model(model, frozen=True), tokenizer)

    @property
    def context(self) -> int:
        """How many tokens prompt and completion may have together."""
        return longest_sequence(self.model)

    def has_room(self, prompt: Conversation, max_new_tokens: int) -> bool:
        """Whether the model can read `prompt`, and a completion of `max_new_tokens` fits into the context behind it."""
        return unreadable(self.tokenizer, prompt) is None and leaves_room(
            len(encode_prompt(self.tokenizer, prompt)), max_new_tokens, self.context
        )


@dataclass
class Answers:
    """The completions of one prompt, each with the name of its model."""

    prompt: Conversation
    texts: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def add(self, text: str, model: str) -> None:
        """Keep a completion unless an earlier one is the same."""
        if normalised(text) not in map(normalised, self.texts):
            self.texts.append(text)
            self.models.append(model)


def sample_answers(
    models: Sequence[ChatModel],
    prompts: Sequence[Conversation],
    params: SamplingParams,
    *,
    k: int,
    seed: int,
    best_of: int = 1,
    score: Scorer | None = None,
    ended: Counter[bool] | None = None,
) -> Iterator[tuple[Answers | None, float]]:
    """For each prompt up to `k` different completions that end by themselves and are not empty.

    The models share the `k` in turn. With `score`, each completion is the best of `best_of`. A prompt gets fewer than
    `k` if the models write nothing else in `ATTEMPTS` attempts, or nothing that `score` can read; a model without room
    for the prompt answers nothing. `ended` counts how many completions end by themselves (True) and how many are cut
    (False). Yields None between the answers, each time with about how many prompts are done.
    """
    for start in range(0, len(prompts), CHUNK):
        chunk = [Answers(prompt) for prompt in prompts[start : start + CHUNK]]
        for attempt in range(ATTEMPTS):
            for place, model in enumerate(models):
                # Each attempt and each model has random numbers of its own.
                own_seed = seed + ((attempt * len(models) + place) << 32)
                share = len(range(place, k, len(models)))
                ends = _ask(model, chunk, params, share=share, seed=own_seed, best_of=best_of, score=score)
                if ended is not None:
                    ended.update(ends)
            yield None, start + len(chunk) * (attempt + 1) / ATTEMPTS
        for answers in chunk:
            yield answers, start + len(chunk)


def _ask(
    model: ChatModel,
    chunk: Sequence[Answers],
    params: SamplingParams,
    *,
    share: int,
    seed: int,
    best_of: int,
    score: Scorer | None,
) -> list[bool]:
    """Let one model answer each prompt until `share` of its completions are its own; returns which end."""
    with_room = [answers for answers in chunk if model.has_room(answers.prompt, params.max_new_tokens)]
    asked = [answers for answers in with_room for _ in range((share - answers.models.count(model.name)) * best_of)]
    ids = [encode_prompt(model.tokenizer, answers.prompt) for answers in asked]
    ends = end_token_ids(model.model, model.tokenizer)
    done = generate(model.model, ids, params, ends, seed, tokenizer=model.tokenizer)
    texts = [decode_answer(model.tokenizer, completion.ids) if completion.ended else "" for completion in done]
    scores = _scores(score, asked, texts)
    for first in range(0, len(asked), best_of):
        group = [i for i in range(first, first + best_of) if i in scores]
        if group:
            best = max(group, key=scores.__getitem__)
            asked[best].add(texts[best], model.name)
    return [completion.ended for completion in done]


def _scores(score: Scorer | None, asked: Sequence[Answers], texts: Sequence[str]) -> dict[int, float]:
    """The score of each completion by its index; 0 without a scorer.

    Completions that are empty or cut off, and those that the scorer cannot read, are left out.
    """
    whole = [i for i, text in enumerate(texts) if text]
    if score is None:
        return dict.fromkeys(whole, 0.0)
    scored = score([(asked[i].prompt, [texts[i]]) for i in whole])
    return {i: scores[0] for i, scores in zip(whole, scored, strict=True) if scores is not None}
