"""A policy against the model that it started from, on the same validation prompts: the evaluation of ppo."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatpipe import console
from chatpipe.data.datasets import Conversation
from chatpipe.data.intervals import bootstrap_interval, share_interval
from chatpipe.data.worlds import Oracle, Rating
from chatpipe.evaluation.answers import Answer, Answers, answer_metrics, evaluate_answers
from chatpipe.evaluation.chat import answer_nats
from chatpipe.generation import Completion, SamplingParams, generate
from chatpipe.models.properties import end_token_ids
from chatpipe.training.ranks import over_ranks

Scores = Mapping[str, list[float]]
"""By the name of a scorer, its score of each answer."""
ScoreAnswers = Callable[[Sequence[Conversation], Sequence[Answer]], Scores]


@dataclass(frozen=True)
class WinRate:
    """The share of prompts on which the new model is better, ties counting half, and its 95 % interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class Change:
    """The mean over prompts of new minus old, and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class PolicyEvaluation:
    """What policies are evaluated on.

    `prompts` are answered with `answering`; `score` gives the rewards of answers, `oracle` the truth where it is
    known. `kl_prompts` (token ids) are completed with `sampling`, as PPO samples.
    """

    tokenizer: PreTrainedTokenizerBase
    prompts: Sequence[Conversation]
    answering: SamplingParams
    seed: int
    oracle: Oracle | None
    score: ScoreAnswers
    kl_prompts: Sequence[list[int]]
    sampling: SamplingParams

    def answers(self, model: PreTrainedModel) -> Answers:
        """The answers of `model` to the prompts."""
        return evaluate_answers(model, self.tokenizer, self.prompts, self.answering, self.seed, self.oracle)

    def worth(self, answers: Answers) -> list[float]:
        """The oracle's score of each answer, without an oracle the reward."""
        if answers.ratings is not None:
            return [rating.score for rating in answers.ratings]
        return self.score(self.prompts, answers.answers)["reward"]


def evaluate_policy(
    data: PolicyEvaluation,
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    first: Callable[[], PreTrainedModel] | None = None,
) -> dict[str, Any]:
    """The answers of `policy` compared with those of `reference`, and the KL between them.

    - the metrics of the policy's `Answers`; `eos_share_before`, `eos_change_high` (the upper end of the change's
      interval), `length_before`, `length_after`.
    - for each NAME of `score`: `NAME_score`, `NAME_score_before`, the interval of the change `NAME_change_low` and
      `_high`, and `NAME_win_rate`.
    - `objective/kl`: nats per completion (`sampled_kl`).
    - with an oracle, those of `oracle_comparison`.
    - with `first`, which loads the policy that round 1 started from: `win_rate_over_first`, and
      `win_rate_over_first_before` of the reference, with their intervals `_low` and `_high`.
    """
    before, after = data.answers(reference), data.answers(policy)
    scores_before, scores_after = (data.score(data.prompts, some.answers) for some in (before, after))
    metrics = {
        **after.metrics(),
        **_reward_comparison(scores_after, scores_before),
        "objective/kl": sampled_kl(
            policy, reference, data.kl_prompts, data.sampling, end_token_ids(policy, data.tokenizer), data.seed
        ),
        "eos_share_before": answer_metrics(before.answers)["eos_share"],
        "eos_change_high": mean_change(_ended(after), _ended(before), data.seed).high,
        "length_before": answer_metrics(before.answers)["answer_length"],
        "length_after": answer_metrics(after.answers)["answer_length"],
    }
    if after.ratings is not None and before.ratings is not None:
        metrics |= oracle_comparison(after.ratings, before.ratings, data.seed)
    if first is not None:
        worth_of_first = data.worth(data.answers(first()))
        for name, answers in (("win_rate_over_first", after), ("win_rate_over_first_before", before)):
            wins = win_rate(data.worth(answers), worth_of_first, data.seed)
            metrics |= {name: wins.rate, f"{name}_low": wins.low, f"{name}_high": wins.high}
    return metrics


def _ended(answers: Answers) -> list[bool]:
    return [answer.ended for answer in answers.answers]


def sampled_kl(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    end_tokens: Sequence[int],
    seed: int,
) -> float:
    """KL(policy, reference) in nats per completion: the mean of sum_t (log pi - log pi_ref) over sampled completions.

    One completion to each prompt (token ids), sampled from the policy with `params`.
    """

    def complete(some: Sequence[list[int]]) -> list[Completion]:
        with console.progress("sampling", len(some)) as bar:
            return generate(policy, some, params, end_tokens, seed, on_finished=bar.update)

    completions = over_ranks(prompts, complete, same_rank=tuple, model=policy)
    rows = [
        ([*prompt, *done.ids], [0] * len(prompt) + [1] * len(done.ids))
        for prompt, done in zip(prompts, completions, strict=True)
    ]
    new, old = (answer_nats(model, rows, params.temperature, params.excluded)[0] for model in (policy, reference))
    return float((old - new).mean())


def win_rate(new_scores: Sequence[float], old_scores: Sequence[float], seed: int = 0) -> WinRate:
    """How often the new score of a prompt is above its old one."""
    wins = (np.sign(np.subtract(new_scores, old_scores)) + 1) / 2
    return WinRate(float(wins.mean()), *share_interval(wins, range(len(wins)), seed))


def mean_change(new: Sequence[float], old: Sequence[float], seed: int = 0) -> Change:
    """The change of a number of each prompt; compared prompt by prompt, so that hard ones weigh on both models."""
    change = np.subtract(new, old, dtype=np.float64)
    return Change(float(change.mean()), *bootstrap_interval(change, range(len(change)), seed))


def oracle_comparison(new: Sequence[Rating], old: Sequence[Rating], seed: int = 0) -> dict[str, float]:
    """The oracle's ratings of the new and the old model's answers to the same prompts, as `ppo_verdict` reads them.

    `win_rate` with `_low` and `_high`; `oracle_score_before`, and of its change `oracle_change_low` and `_high`; and
    the same for the share of correct answers, `right_before`, `right_change_low` and `_high`.
    """
    new_scores, old_scores = [rating.score for rating in new], [rating.score for rating in old]
    # Whether there is a correct answer depends on the prompt alone, so both models have the same ones.
    new_right, old_right = ([float(r.right) for r in ratings if r.right is not None] for ratings in (new, old))
    wins = win_rate(new_scores, old_scores, seed)
    change, right = mean_change(new_scores, old_scores, seed), mean_change(new_right, old_right, seed)
    return {
        "win_rate": wins.rate,
        "win_rate_low": wins.low,
        "win_rate_high": wins.high,
        "oracle_score_before": float(np.mean(old_scores)),
        "oracle_change_low": change.low,
        "oracle_change_high": change.high,
        "right_before": float(np.mean(old_right)),
        "right_change_low": right.low,
        "right_change_high": right.high,
    }


def _reward_comparison(after: Scores, before: Scores) -> dict[str, float]:
    metrics = {}
    for name, scores in after.items():
        change = mean_change(scores, before[name])
        metrics[f"{name}_score"] = sum(scores) / len(scores)
        metrics[f"{name}_score_before"] = sum(before[name]) / len(scores)
        metrics[f"{name}_change_low"] = change.low
        metrics[f"{name}_change_high"] = change.high
        metrics[f"{name}_win_rate"] = win_rate(scores, before[name]).rate
    return metrics
