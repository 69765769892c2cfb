"""95 % confidence intervals: of a mean over prompts by the clustered bootstrap, of a share by Wilson's formula.

Answers to one prompt depend on each other, so whole prompts are resampled, not answers or pairs.
"""

from collections.abc import Callable, Hashable, Sequence
from math import sqrt

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit  # scipy.stats takes five times as long to import

Z = float(ndtri(0.975))
"""Between -Z and Z lie 95 % of a normal distribution."""
RESAMPLES = 2000
ROUNDING = 1e-12
"""Sums of equal numbers differ by less."""
MAX_DRAWS = 4_000_000
"""Group numbers drawn at a time, which bounds the memory of a bootstrap over many groups."""


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` [n], where those with the same entry in `groups` [n] belong together.

    The mean is that of all values in the groups drawn (`resampled_interval`). Raises ValueError when there are no
    values.
    """
    if len(values) == 0:
        raise ValueError("an interval needs at least one value")
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(index, weights=np.asarray(values, dtype=np.float64)), np.bincount(index)
    return resampled_interval(np.stack([sums, counts], 1), lambda drawn: drawn[:, 0] / drawn[:, 1], seed)


def resampled_interval(
    totals: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of what `statistic` makes of the sum of `totals` [groups, d], by drawing groups.

    `statistic` is given the sums [resamples, d] of the groups drawn with replacement; where it is NaN it is not
    defined, and the resample does not count. The quantiles are widened for small numbers of groups (the expanded
    percentile interval; Hesterberg 2015, "What Teachers Should Know about the Bootstrap", section 4.4).
    """
    groups = len(totals)
    rng = np.random.default_rng(seed)
    chunk = max(1, MAX_DRAWS // groups)
    found = []
    for start in range(0, RESAMPLES, chunk):
        drawn = rng.integers(groups, size=(min(chunk, RESAMPLES - start), groups))
        numbered = drawn + groups * np.arange(len(drawn))[:, None]
        times = np.bincount(numbered.ravel(), minlength=drawn.size).reshape(drawn.shape)
        found.append(statistic(times @ totals))
    level = _tail_level(groups)
    low, high = np.nanquantile(np.concatenate(found), [level, 1 - level])
    return float(low), float(high)


def share_interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[Hashable] | np.ndarray, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of the mean of `values` [n] in [0, 1] (1 right, 0 wrong, 0.5 a tie), clustered by `groups`.

    Where all groups have the same mean, as when all are right, resampling them shows no spread and would be sure of
    3 right out of 3; Wilson's interval over the groups takes its place.
    """
    low, high = bootstrap_interval(values, groups, seed)
    if high - low > ROUNDING:
        return low, high
    count = len(set(groups))
    return wilson_interval(float(np.mean(values)) * count, count)


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share of `successes` in `n` (Wilson 1927). Raises ValueError for n < 1.

    Ties count half a success, and scipy's `proportion_ci` takes whole ones only.
    """
    if n < 1:
        raise ValueError("a share needs at least one trial")
    share = successes / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _tail_level(groups: int) -> float:
    """The quantile that is a 95 % interval's lower end: Phi(-sqrt(n / (n - 1)) t) for n groups, 0 for one.

    t is the 97.5 % quantile of Student's distribution with n - 1 degrees of freedom.
    """
    if groups < 2:
        return 0.0
    freedom = groups - 1
    return float(ndtr(-sqrt(groups / freedom) * stdtrit(freedom, 0.975)))
