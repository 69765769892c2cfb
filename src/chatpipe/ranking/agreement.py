"""How far annotators agree who ranked the same things: pure functions on matrices of ranks.

A matrix is annotators x items, [m, n]: 1 is best, equal ranks are ties, NaN is not ranked. Only the order of the ranks
within a row counts, but for `ordinal_alpha`, which takes rank 2 for the same value in every row. A measure is NaN where
it is not defined: nobody shares two items, or all is tied.
"""

import numpy as np


def pair_agreements(ranks: np.ndarray) -> np.ndarray:
    """How far two annotators agree on a pair of items: 1 the same order, 0 the opposite one, 0.5 where one ties.

    Two ties agree: 1. One value for each two rows of [m, n] and each two columns that both have ranked. Their mean is
    the agreement that InstructGPT reports of its labelers (Ouyang et al. 2022, section 3.4), where ties count as
    they do for a reward model's accuracy.
    """
    first, second = np.triu_indices(ranks.shape[0], 1)
    orders = _orders(ranks)
    apart = np.abs(orders[first] - orders[second]) / 2
    return 1 - apart[~np.isnan(apart)]


def kendall_w(ranks: np.ndarray) -> float:
    """Kendall's coefficient of concordance, corrected for ties: 1 where all rows of [m, n] agree, 0 where none do.

    12 S / (m^2 (n^3 - n) - m T): S is the sum of squares of the items' rank sums around their mean, T the sum of
    t^3 - t over all groups of t tied ranks (Kendall and Babington Smith 1939; Siegel and Castellan 1988, section 9.7).
    Annotators who ranked nothing are left out, then items that not all of the others ranked.
    """
    ranks = ranks[~np.isnan(ranks).all(1)]
    ranks = ranks[:, ~np.isnan(ranks).any(0)]
    m, n = ranks.shape
    if m < 2 or n < 2:
        return np.nan
    sums = mid_ranks(ranks).sum(0)
    # Each of the t members of a group counts t^2 - 1, which comes to t^3 - t for the group.
    tied = ((ranks[:, :, None] == ranks[:, None, :]).sum(2) ** 2 - 1).sum()
    most = m**2 * (n**3 - n) - m * tied
    return float(12 * ((sums - sums.mean()) ** 2).sum() / most) if most else np.nan


def ordinal_alpha(ranks: np.ndarray) -> float:
    """Krippendorff's alpha of [m, n] for ordinal values: 1 where all agree, 0 as far as chance would, below 0 less."""
    levels = np.unique(ranks[~np.isnan(ranks)])
    return float(alpha_of(coincidences(ranks, levels)))


def coincidences(ranks: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """How often which two of the `levels` [v] were given to one item by two annotators: [v, v], symmetric.

    An item with k ranks counts k in all. Matrices of several sets of items may be added. (Krippendorff 2011,
    "Computing Krippendorff's Alpha-Reliability", section C.)
    """
    given = (ranks[:, :, None] == levels).sum(0).astype(np.float64)  # [n, v]
    given = given[given.sum(1) >= 2]
    shares = given / (given.sum(1, keepdims=True) - 1)
    together: np.ndarray = shares.T @ given - np.diag(shares.sum(0))
    return together


def alpha_of(together: np.ndarray) -> np.ndarray:
    """The ordinal alpha of coincidences [..., v, v]: [...].

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


def mid_ranks(ranks: np.ndarray) -> np.ndarray:
    """Of [m, n] without gaps the ranks 1 to n in each row, where those who tie share the mean of their ranks."""
    better = (ranks[:, None, :] < ranks[:, :, None]).sum(2)
    equal = (ranks[:, None, :] == ranks[:, :, None]).sum(2)
    return better + (equal + 1) / 2


def _orders(ranks: np.ndarray) -> np.ndarray:
    """For each row of [m, n] and each two items -1, 0 (tied) or 1, NaN where one is not ranked: [m, n (n - 1) / 2]."""
    first, second = np.triu_indices(ranks.shape[1], 1)
    return np.sign(ranks[:, first] - ranks[:, second])
