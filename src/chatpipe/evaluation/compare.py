"""A new model against an old one on the same prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatpipe.data.worlds import Rating
from chatpipe.evaluation.intervals import bootstrap_interval, share_interval


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


def win_rate(new_scores: Sequence[float], old_scores: Sequence[float], seed: int = 0) -> WinRate:
    """How often the new score of a prompt is above its old one."""
    wins = (np.sign(np.subtract(new_scores, old_scores)) + 1) / 2
    return WinRate(float(wins.mean()), *share_interval(wins, range(len(wins)), seed))


def mean_change(new: Sequence[float], old: Sequence[float], seed: int = 0) -> Change:
    """By how much a measure of each prompt has changed; compared prompt by prompt, so that hard ones weigh on both."""
    change = np.subtract(new, old, dtype=np.float64)
    return Change(float(change.mean()), *bootstrap_interval(change, range(len(change)), seed))


def gold_comparison(new: Sequence[Rating], old: Sequence[Rating], seed: int = 0) -> dict[str, float]:
    """The oracle's ratings of the new and the old model's answers to the same prompts, as `ppo_verdict` reads them.

    `win_rate` with `_low` and `_high`; `gold_score_before`, and of its change `gold_change_low` and `_high`; and the
    same for the share of right answers, `right_before`, `right_change_low` and `_high`.
    """
    new_scores, old_scores = [rating.score for rating in new], [rating.score for rating in old]
    # Whether there is a right answer depends on the prompt alone, so both models have the same ones.
    new_right, old_right = ([float(r.right) for r in ratings if r.right is not None] for ratings in (new, old))
    wins = win_rate(new_scores, old_scores, seed)
    gold, right = mean_change(new_scores, old_scores, seed), mean_change(new_right, old_right, seed)
    return {
        "win_rate": wins.rate,
        "win_rate_low": wins.low,
        "win_rate_high": wins.high,
        "gold_score_before": float(np.mean(old_scores)),
        "gold_change_low": gold.low,
        "gold_change_high": gold.high,
        "right_before": float(np.mean(old_right)),
        "right_change_low": right.low,
        "right_change_high": right.high,
    }
