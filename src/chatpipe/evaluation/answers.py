"""A model's answers to validation prompts, and their scores by an oracle where there is one."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.chat_template import Message, decode_answer, encode_prompt
from chatpipe.data.datasets import Conversation
from chatpipe.data.intervals import wilson_interval
from chatpipe.data.worlds import Oracle, Rating
from chatpipe.generation import Completion, SamplingParams, generate
from chatpipe.models.properties import end_token_ids, longest_sequence
from chatpipe.training.ranks import over_ranks

EXAMPLE_TOKENS = 40
LONG_ANSWER = 95
"""The percentile of validation answers that is the longest answer where the recipe sets none."""
UNKNOWN_ANSWER = 512
"""Tokens of the longest answer where the recipe sets none and the data holds no answers."""
MEASURED_ANSWERS = 1000


@dataclass(frozen=True)
class Answer:
    """A model's answer: `ids` with the end-of-turn token if the model wrote it (`ended`); `text` without."""

    text: str
    ids: list[int]
    ended: bool


@dataclass(frozen=True)
class Answers:
    """A model's answers, one to each prompt; `ratings` are those of `oracle`, None where there is no oracle."""

    answers: list[Answer]
    temperature: float
    oracle: Oracle | None = None
    ratings: list[Rating] | None = None

    def metrics(self) -> dict[str, Any]:
        """`eos_share`, `answer_length`, `eval_prompts`, `eval_temperature`; with an oracle also its scores."""
        metrics: dict[str, Any] = {**answer_metrics(self.answers), "eval_prompts": len(self.answers)}
        metrics["eval_temperature"] = self.temperature
        if self.ratings is not None and self.oracle is not None:
            metrics.update(oracle_metrics(self.ratings))
            metrics["chance"] = self.oracle.chance()
        return metrics


def evaluate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    params: SamplingParams,
    seed: int,
    oracle: Oracle | None,
) -> Answers:
    """Has the model answer all `prompts`, and the oracle, if there is one, score the answers."""
    answers = answer_prompts(model, tokenizer, prompts, params, seed)
    ratings = None if oracle is None else rate_answers(oracle, prompts, answers)
    return Answers(answers, params.temperature, oracle, ratings)


def answer_limit(
    asked: int | None, tokenizer: PreTrainedTokenizerBase, answers: Iterable[Message], context: int
) -> int:
    """The longest answer in tokens: what the recipe has `asked` for, else as the `answers` in the data are long.

    That is their 95th percentile, 512 where there are none, and at most half of a model's `context`.
    """
    if asked is not None:
        return asked
    lengths = _answer_lengths(tokenizer, answers)
    longest = int(np.percentile(lengths, LONG_ANSWER, method="higher")) if lengths else UNKNOWN_ANSWER
    return max(1, min(longest, context // 2))


def share_within(limit: int, tokenizer: PreTrainedTokenizerBase, answers: Iterable[Message]) -> float:
    """The share of the data's `answers` that end within `limit` tokens."""
    lengths = _answer_lengths(tokenizer, answers)
    return sum(length <= limit for length in lengths) / len(lengths)


def _answer_lengths(tokenizer: PreTrainedTokenizerBase, answers: Iterable[Message]) -> list[int]:
    """Tokens of each answer with its end, of the first ones: those of its thoughts and tool calls, too."""
    texts = [
        f"{answer.get('reasoning_content') or ''}{answer['content'] or ''}{answer.get('tool_calls') or ''}"
        for answer in islice(answers, MEASURED_ANSWERS)
    ]
    return [len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []


def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    params: SamplingParams,
    seed: int,
) -> list[Answer]:
    """The model's answers, one to each prompt, without special tokens in their text.

    All processes share the prompts and return all answers; a seed gives the same answers for any number of processes.
    Raises `UsageError` for a prompt that leaves no room for its answer.
    """

    def complete(some: Sequence[list[int]]) -> list[Completion]:
        with console.progress("answering", len(some)) as bar:
            return generate(model, some, params, ends, seed, on_finished=bar.update, tokenizer=tokenizer)

    ids, ends = [encode_prompt(tokenizer, prompt) for prompt in prompts], end_token_ids(model, tokenizer)
    # Equal prompts have random numbers of their own, in the order in which one process meets them.
    completions = over_ranks(ids, complete, same_rank=tuple, model=model)
    return [Answer(decode_answer(tokenizer, done.ids), done.ids, done.ended) for done in completions]


def answer_metrics(answers: Sequence[Answer]) -> dict[str, float]:
    """`eos_share`: the share of answers that stop by themselves; `answer_length`: mean tokens."""
    return {
        "eos_share": sum(answer.ended for answer in answers) / len(answers),
        "answer_length": sum(len(answer.ids) for answer in answers) / len(answers),
    }


def rate_answers(oracle: Oracle, prompts: Sequence[Conversation], answers: Sequence[Answer]) -> list[Rating]:
    """The oracle's rating of each answer."""
    return [oracle.rate(prompt, answer.text, answer.ended) for prompt, answer in zip(prompts, answers, strict=True)]


def oracle_metrics(ratings: Sequence[Rating]) -> dict[str, Any]:
    """The means of many ratings.

    `oracle_score`: their mean. `right`, `right_low`, `right_high`: the share of correct answers among questions that
    have one (small talk has none), with its 95 % interval. `right_by_kind`: that share for each kind of question.
    """
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for rating in ratings:
        if rating.right is not None:
            by_kind[rating.kind].append(rating.right)
    right = [is_right for some in by_kind.values() for is_right in some]
    low, high = wilson_interval(sum(right), len(right))
    return {
        "oracle_score": sum(rating.score for rating in ratings) / len(ratings),
        "right": sum(right) / len(right),
        "right_low": low,
        "right_high": high,
        "right_by_kind": {kind: sum(some) / len(some) for kind, some in sorted(by_kind.items())},
    }


def answer_example(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Conversation) -> dict[str, str]:
    """The likeliest answer of a chat model to the run's example question: `question` and `answer`."""
    return {
        "question": prompt[-1]["content"],
        "answer": _greedy(model, tokenizer, encode_prompt(tokenizer, prompt)),
    }


def complete_example(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Conversation
) -> dict[str, str]:
    """As `answer_example`, of a base model, which continues the question as text."""
    question = prompt[-1]["content"]
    ids = tokenizer(question, add_special_tokens=False)["input_ids"]
    return {"question": question, "answer": _greedy(model, tokenizer, ids)}


def _greedy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    context = longest_sequence(model)
    params = SamplingParams(max_new_tokens=min(EXAMPLE_TOKENS, context // 2), temperature=0.0)
    ids, ends = ids[params.max_new_tokens - context :], end_token_ids(model, tokenizer)
    completion = generate(model, [ids], params, ends, seed=0, tokenizer=tokenizer)[0]
    return " ".join(decode_answer(tokenizer, completion.ids).split())
