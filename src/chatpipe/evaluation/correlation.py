"""How alike two orders of the same answers are: Kendall's tau-b, which knows ties in both (Kendall 1945)."""

from collections.abc import Sequence

import numpy as np


def tau_b(some: Sequence[float], others: Sequence[float]) -> float | None:
    """(pairs ordered alike - pairs ordered otherwise) / sqrt(pairs not tied in one * pairs not tied in the other).

    Between -1 and 1; None where one of them ties all.
    """
    upper = np.triu_indices(len(some), 1)
    signs, other_signs = (np.sign(np.subtract.outer(values, values)[upper]) for values in (some, others))
    untied = np.abs(signs).sum() * np.abs(other_signs).sum()
    return float((signs * other_signs).sum() / np.sqrt(untied)) if untied else None


def mean_tau_b(truth: Sequence[Sequence[float]], scores: Sequence[Sequence[float]]) -> float:
    """The mean of tau-b over rankings, without those all of whose answers are tied in truth or by score; 0 of none."""
    found = [tau_b(some, others) for some, others in zip(truth, scores, strict=True)]
    known = [tau for tau in found if tau is not None]
    return float(np.mean(known)) if known else 0.0
