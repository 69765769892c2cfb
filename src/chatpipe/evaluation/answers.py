"""Held-out prompts answered by a model, and an oracle's ratings of the answers."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe.data.chat_template import Message, decode_answer, encode_prompt
from chatpipe.data.worlds import Oracle, Rating
from chatpipe.evaluation.intervals import wilson_interval
from chatpipe.generation import SamplingParams, generate


@dataclass(frozen=True)
class Answer:
    """What a model wrote to a prompt: `ids` with the end-of-turn token, if that came (`ended`); `text` without."""

    text: str
    ids: list[int]
    ended: bool


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[Message]],
    params: SamplingParams,
    seed: int,
    on_finished: Callable[[int], None] | None = None,
) -> list[Answer]:
    """The model's answers, one to each prompt, without special tokens in their text.

    `on_finished` hears how many are done.
    Raises `UsageError` for a prompt that leaves no room for its answer.
    """
    ids = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    completions = generate(model, ids, params, tokenizer.eos_token_id, seed, on_finished=on_finished)
    return [Answer(decode_answer(tokenizer, done.ids), done.ids, done.ended) for done in completions]


def answer_metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """`eos_share`: the share that stopped by itself; `answer_length`: mean tokens."""
    return {
        "eos_share": sum(answer.ended for answer in answers) / len(answers),
        "answer_length": sum(len(answer.ids) for answer in answers) / len(answers),
    }


def rate_answers(oracle: Oracle, prompts: Sequence[list[Message]], answers: Sequence[Answer]) -> list[Rating]:
    """The oracle's rating of each answer."""
    return [oracle.rate(prompt, answer.text, answer.ended) for prompt, answer in zip(prompts, answers, strict=True)]


def gold_metrics(ratings: Sequence[Rating]) -> dict[str, Any]:
    """What many ratings come to.

    `gold_score`: their mean. `right`, `right_low`, `right_high`: the share of right answers among questions that have
    one (small talk has none), with its 95 % interval. `right_by_kind`: that share for each kind of question.
    """
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for rating in ratings:
        if rating.right is not None:
            by_kind[rating.kind].append(rating.right)
    right = [is_right for some in by_kind.values() for is_right in some]
    low, high = wilson_interval(sum(right), len(right))
    return {
        "gold_score": sum(rating.score for rating in ratings) / len(ratings),
        "right": sum(right) / len(right),
        "right_low": low,
        "right_high": high,
        "right_by_kind": {kind: sum(some) / len(some) for kind, some in sorted(by_kind.items())},
    }
