"""How far annotators agree: functions on matrices of ranks.

A matrix is annotators x items, [m, n]: 1 is best, equal ranks are ties. A measure is NaN where it is not defined:
nobody shares two items, or all ranks are tied.
"""

from itertools import combinations

import numpy as np
from scipy.stats import kendalltau, rankdata


def pair_agreements(ranks: np.ndarray) -> np.ndarray:
    """The agreement of each two rows of [m, n] on each two columns: 1 same order, 0 opposite, 0.5 if one ties.

    Two ties agree: 1. The mean is the agreement that InstructGPT reports of its labelers (Ouyang et al. 2022, section
    3.4), with ties counted as in a reward model's accuracy.
    """
    first, second = np.triu_indices(ranks.shape[1], 1)
    orders = np.sign(ranks[:, first] - ranks[:, second])  # [m, pairs]
    one, other = np.triu_indices(len(ranks), 1)
    agreements: np.ndarray = 1 - np.abs(orders[one] - orders[other]).ravel() / 2
    return agreements


def tau_bs(ranks: np.ndarray) -> list[float]:
    """Kendall's tau-b of each two rows of [m, n], in [-1, 1] (Kendall 1945)."""
    return [float(kendalltau(one, other).statistic) for one, other in combinations(ranks, 2)]


def kendall_w(ranks: np.ndarray) -> float:
    """Kendall's coefficient of concordance of [m, n], corrected for ties: 1 if all rows agree, 0 if none do.

    12 S / (m^2 (n^3 - n) - m T): S is the sum of squares of the items' rank sums around their mean, T the sum of
    t^3 - t over all groups of t tied ranks (Siegel and Castellan 1988, section 9.7). scipy's Friedman test, from which
    W follows, needs three items.
    """
    m, n = ranks.shape
    if m < 2 or n < 2:
        return np.nan
    sums = rankdata(ranks, axis=1).sum(0)
    tied = sum(float((sizes**3 - sizes).sum()) for sizes in (np.unique(row, return_counts=True)[1] for row in ranks))
    most = m**2 * (n**3 - n) - m * tied
    return float(12 * ((sums - sums.mean()) ** 2).sum() / most) if most else np.nan


def coincidences(ranks: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """How often two annotators gave each two of the `levels` [v] to one item: [v, v], symmetric.

    An item with k ranks counts k in all. Matrices of several items may be added. (Krippendorff 2011, "Computing
    Krippendorff's Alpha-Reliability", section C; the package krippendorff is GPL.)
    """
    given = (ranks[:, :, None] == levels).sum(0).astype(np.float64)  # [n, v]
    given = given[given.sum(1) >= 2]
    shares = given / (given.sum(1, keepdims=True) - 1)
    together: np.ndarray = shares.T @ given - np.diag(shares.sum(0))
    return together


def ordinal_alpha(together: np.ndarray) -> np.ndarray:
    """Krippendorff's alpha for ordinal values, of coincidences [..., v, v]: 1 if all agree, 0 as chance would: [...].

    1 - (n - 1) sum(o_ck d_ck) / sum(n_c n_k d_ck), d_ck the square of the number of values from c to k, both ends
    counted half (Krippendorff 2011, as above).
    """
    totals = together.sum(-1)  # [..., v]
    middles = totals.cumsum(-1) - totals / 2
    apart = (middles[..., :, None] - middles[..., None, :]) ** 2
    observed = (together * apart).sum((-2, -1)) * (totals.sum(-1) - 1)
    expected = (totals[..., :, None] * totals[..., None, :] * apart).sum((-2, -1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(expected > 0, 1 - observed / expected, np.nan)
