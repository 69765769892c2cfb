"""Different answers to each prompt, for somebody to rank, or the best of several by a reward model.

What a prompt is answered depends on nothing but the prompt, the models, the settings and the seed: neither on the other
prompts nor on where an interrupted command went on.
"""

import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.chat_template import decode_answer, encode_prompt, stop_at_end_of_turn
from chatpipe.data.datasets import Conversation
from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams, generate
from chatpipe.generation.engine import context_length
from chatpipe.models.pretrained import load_causal_model, load_tokenizer, placed
from chatpipe.ranking.scoring import Scorer

ATTEMPTS = 4
"""How often a prompt is asked again while it lacks different answers."""

CHUNK = 128
"""Prompts answered together: enough to fill the decode engine, few enough to lose little when killed."""


@dataclass(frozen=True)
class Speaker:
    """A model that answers, under the name by which its answers are marked."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def load(cls, name: str) -> "Speaker":
        """From a folder or a hub id. Raises `UsageError` where there is no model, or it was never taught to chat."""
        tokenizer = load_tokenizer(name)
        if tokenizer.chat_template is None:
            raise UsageError(
                f"{name} is a base model: it completes text and answers nobody.",
                f"Fine-tune it first: chatpipe sft --model {name} --data chats.jsonl --out chat",
            )
        stop_at_end_of_turn(tokenizer)
        return cls(name, placed(load_causal_model(name)), tokenizer)

    @property
    def context(self) -> int:
        """How many tokens the model reads, what it writes with them."""
        return context_length(self.model) or sys.maxsize

    def has_room(self, prompt: Conversation, max_new_tokens: int) -> bool:
        """Whether the model can read `prompt` and write so many tokens."""
        return len(encode_prompt(self.tokenizer, prompt)) + max_new_tokens <= self.context


@dataclass(frozen=True)
class HowToSample:
    """`k` answers a prompt, shared among the speakers in turn; each the best of `best_of` where there is a judge."""

    k: int
    params: SamplingParams
    seed: int
    best_of: int = 1
    judge: Scorer | None = None


@dataclass
class Answers:
    """What was answered to one prompt: texts, and the name of the model that wrote each."""

    prompt: Conversation
    texts: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def add(self, text: str, model: str) -> None:
        """Keeps an answer unless it says the same as one before."""
        if normalised(text) not in map(normalised, self.texts):
            self.texts.append(text)
            self.models.append(model)


def normalised(text: str) -> str:
    """By which two answers count as the same: case, white space and forms of the same letter aside."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def sample_answers(
    speakers: Sequence[Speaker],
    prompts: Sequence[Conversation],
    how: HowToSample,
    on_answered: Callable[[float], None] = lambda _: None,
) -> Iterator[Answers]:
    """For each prompt up to `how.k` different answers that ended by themselves and are not empty.

    There are fewer where the models say nothing else in `ATTEMPTS` attempts (or nothing else that the judge can read),
    and of a model none to a prompt that leaves it no room. `on_answered` hears how many prompts are done, about.
    """
    for start in range(0, len(prompts), CHUNK):
        chunk = [Answers(prompt) for prompt in prompts[start : start + CHUNK]]
        for attempt in range(ATTEMPTS):
            for place, speaker in enumerate(speakers):
                _ask(speaker, place, len(speakers), chunk, how, attempt)
            on_answered(start + len(chunk) * (attempt + 1) / ATTEMPTS)
        yield from chunk
        on_answered(start + len(chunk))


def _ask(speaker: Speaker, place: int, speakers: int, chunk: Sequence[Answers], how: HowToSample, attempt: int) -> None:
    """Has one speaker answer each prompt as often as it owes answers to it."""
    share = len(range(place, how.k, speakers))
    owing = [answers for answers in chunk if speaker.has_room(answers.prompt, how.params.max_new_tokens)]
    asked = [answers for answers in owing for _ in range((share - answers.models.count(speaker.name)) * how.best_of)]
    ids = [encode_prompt(speaker.tokenizer, answers.prompt) for answers in asked]
    eos = speaker.tokenizer.eos_token_id
    # Each attempt and each speaker draws numbers of its own.
    done = generate(speaker.model, ids, how.params, eos, how.seed + ((attempt * speakers + place) << 32))
    texts = [decode_answer(speaker.tokenizer, completion.ids) if completion.ended else "" for completion in done]
    scores = _scores(how.judge, asked, texts)
    for first in range(0, len(asked), how.best_of):
        group = [i for i in range(first, first + how.best_of) if i in scores]
        if group:
            best = max(group, key=scores.__getitem__)
            asked[best].add(texts[best], speaker.name)


def _scores(judge: Scorer | None, asked: Sequence[Answers], texts: Sequence[str]) -> dict[int, float]:
    """What the judge says of each answer, by its number; 0 without a judge.

    Left out are answers that nobody can rank, being empty or cut off in the middle, and what the judge cannot read.
    """
    said = [i for i, text in enumerate(texts) if text]
    if judge is None:
        return dict.fromkeys(said, 0.0)
    judged = judge([(asked[i].prompt, [texts[i]]) for i in said])
    return {i: scores[0] for i, scores in zip(said, judged, strict=True) if scores is not None}
