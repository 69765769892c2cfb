"""Pairs of answers of which one is better, and how well numbers order them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np


@dataclass(frozen=True)
class Pairs:
    """Pairs of answers to the same prompt of which one is better: int arrays [pairs].

    `better` and `worse` number the answers of all rankings in a row; `ranking` numbers the rankings, `prompt` the
    prompts.
    """

    prompt: np.ndarray
    ranking: np.ndarray
    better: np.ndarray
    worse: np.ndarray


def ordered_pairs(truth: Sequence[Sequence[float]], prompts: Sequence[int] | None = None) -> Pairs:
    """All pairs of answers of one ranking whose true values differ; the higher value is the better one.

    `prompts`: the number of each ranking's prompt; default: each has its own.
    """
    found = []
    first = 0
    for number, values in enumerate(truth):
        prompt = number if prompts is None else prompts[number]
        for i, j in combinations(range(len(values)), 2):
            if values[i] != values[j]:
                better, worse = (i, j) if values[i] > values[j] else (j, i)
                found.append((prompt, number, first + better, first + worse))
        first += len(values)
    return Pairs(*np.array(found, dtype=np.int64).reshape(-1, 4).T)


def ordered_alike(pairs: Pairs, values: np.ndarray) -> np.ndarray:
    """For each pair 1 where `values` [answers of all rankings] order it correctly, 0 where not, 0.5 where they tie."""
    return (np.sign(values[pairs.better] - values[pairs.worse]) + 1) / 2


def flat(values: Sequence[Sequence[float]]) -> np.ndarray:
    """The values of all rankings in a row."""
    return np.concatenate([np.asarray(some, dtype=np.float64) for some in values])


def tau_b(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-b of two rankings [n], or of numbers that order the same n things; NaN is not ranked.

    Between -1 and 1, NaN where one of them ties all (Kendall 1945, "The treatment of ties in ranking problems").
    """
    from scipy.stats import kendalltau  # imported here: it takes half a second

    both = np.array([first, second], dtype=np.float64)
    both = both[:, ~np.isnan(both).any(0)]
    return float(kendalltau(*both).statistic) if both.shape[1] > 1 else math.nan


def mean_tau_b(truth: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> float:
    """The mean of tau-b over rankings, without those whose answers are all tied in truth or by score; 0 of none."""
    found = [tau_b(some, others) for some, others in zip(truth, scores, strict=True)]
    known = [tau for tau in found if not math.isnan(tau)]
    return float(np.mean(known)) if known else 0.0
