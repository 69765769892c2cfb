"""How alike two orders of the same things are: Kendall's tau-b, which knows ties in both."""

import math
from collections.abc import Sequence

import numpy as np


def tau_b(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Kendall's tau-b of two rankings [n], or of numbers that order the same n things; NaN is not ranked.

    (concordant - discordant) / sqrt(pairs untied in the first x pairs untied in the second), over the things that both
    have (Kendall 1945, "The treatment of ties in ranking problems"): between -1 and 1, NaN where one of them ties all.
    """
    both = np.array([first, second], dtype=np.float64)
    both = both[:, ~np.isnan(both).any(0)]
    i, j = np.triu_indices(both.shape[1], 1)
    signs = np.sign(both[:, i] - both[:, j])
    untied = np.abs(signs).sum(1).prod()
    return float(signs.prod(0).sum() / np.sqrt(untied)) if untied else math.nan


def mean_tau_b(truth: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> float:
    """The mean of tau-b over rankings, without those all of whose answers are tied in truth or by score; 0 of none."""
    found = [tau_b(some, others) for some, others in zip(truth, scores, strict=True)]
    known = [tau for tau in found if not math.isnan(tau)]
    return float(np.mean(known)) if known else 0.0
