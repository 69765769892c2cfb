"""What `chatpipe rankings stats` reports of a store: progress, pace, agreement, and the effect of the shown place.

People and programs are separate. What cannot be measured yet is null, with the reason.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import chi2, kendalltau, rankdata

from chatpipe.data.intervals import ROUNDING, resampled_interval, share_interval
from chatpipe.ranking.items import MAX_RESPONSES
from chatpipe.ranking.store import Store, StoredRanking

PAUSE = 1800.0
"""Seconds: of a task that took longer, no more than these count as work."""
LEVELS = np.arange(1.0, MAX_RESPONSES + 1)
FEWEST_FOR_POSITION = 10
"""With fewer rankings that order something, the effect of the place is not tested."""

Matrix = tuple[Hashable, np.ndarray]
"""A prompt, and the ranks of one item with that prompt: annotators x responses."""


@dataclass(frozen=True)
class Measure:
    """A measure with its 95 % interval over prompts; `items` is how many had at least two rankings.

    `value`, or the interval, is None where there is not enough data; `reason` names what is missing.
    """

    value: float | None
    low: float | None
    high: float | None
    items: int
    reason: str | None = None


def store_stats(store: Store) -> dict[str, Any]:
    """Everything for `--json`: the settings of the store, then `people` and `programs`, each as `group_stats`."""
    rankings = store.rankings()
    groups = {
        name: group_stats(
            [one for one in rankings if one.kind == kind],
            [known.name for known in store.annotators() if known.kind == kind],
            store.overlap,
        )
        for name, kind in (("people", "person"), ("programs", "program"))
    }
    return {"items": len(store.items), "overlap": store.overlap, **groups}


def group_stats(rankings: Sequence[StoredRanking], names: Sequence[str], overlap: int) -> dict[str, Any]:
    """Statistics of the annotators `names` together, then of each in `annotators`.

    `items_done` have `overlap` rankings; hidden repeats do not count.
    """
    counts = Counter(one.item.id for one in rankings if one.skipped is None and not one.repeat)
    matrices = _matrices((one.item.id, one) for one in rankings if one.skipped is None and not one.repeat)
    agreement = {
        "pair_agreement": _mean_over(matrices, pair_agreements),
        "tau_b": _mean_over(matrices, tau_bs, low=-1),
        "kendall_w": _mean_over(matrices, lambda ranks: [kendall_w(ranks)]),
        "ordinal_alpha": _alpha(matrices),
    }
    each = {name: [one for one in rankings if one.annotator == name] for name in names}
    return {
        "items_begun": len(counts),
        "items_done": sum(count >= overlap for count in counts.values()),
        **_common(rankings),
        "agreement": {name: asdict(measure) for name, measure in agreement.items()},
        "annotators": {name: {**_common(own), **_pace(own)} for name, own in each.items()},
    }


def _common(rankings: Sequence[StoredRanking]) -> dict[str, Any]:
    """The statistics of one annotator and of all together."""
    ranked = [one for one in rankings if one.skipped is None]
    repeats = _matrices(((one.annotator, one.item.id), one) for one in ranked)
    return {
        "rankings": sum(not one.repeat for one in ranked),
        "repeats": sum(one.repeat for one in ranked),
        "skips": dict(Counter(one.skipped for one in rankings if one.skipped is not None).most_common()),
        "flags": sum(one.flag for one in rankings),
        "all_bad": sum(one.all_bad for one in ranked),
        "self_agreement": asdict(_mean_over(repeats, pair_agreements)),
        "position_effect": _position_effect(ranked),
    }


def _pace(rankings: Sequence[StoredRanking]) -> dict[str, float | None]:
    """`median_seconds` from showing to ranking, and rankings in an hour of work, without pauses; of people alone."""
    seconds = [one.seconds for one in rankings if one.skipped is None and one.kind == "person"]
    worked = sum(min(some, PAUSE) for some in seconds)
    return {
        "median_seconds": median(seconds) if seconds else None,
        "rankings_per_hour": len(seconds) * 3600 / worked if worked else None,
    }


# ---- the place at which a response is shown ----


def _position_effect(ranked: Sequence[StoredRanking]) -> dict[str, Any]:
    effect = position_effect([[one.ranks[index] for index in one.order] for one in ranked if one.kind == "person"])
    if any(one.kind == "program" for one in ranked):
        effect["reason"] = "programs are shown no order"
    return effect


def position_effect(shown: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Whether the place at which a response is shown predicts its rank, of rankings in their shown orders.

    - `mean_rank`: for each K the mean rank at each place; (K + 1) / 2 everywhere if the place does not matter.
    - `p_value`: of Friedman's test, the sum over all K of m (K - 1) W for m rankings, which is chi-squared with as many
      degrees of freedom as the sum of K - 1 (Siegel and Castellan 1988, section 7.2). W is Kendall's, of the places.
    - `rankings`: how many order something; only these count. `reason`: why there is no test.
    """
    ordered = [ranks for ranks in shown if len(set(ranks)) > 1]
    of_size = {k: np.array([ranks for ranks in ordered if len(ranks) == k]) for k in sorted(set(map(len, ordered)))}
    found: dict[str, Any] = {
        "rankings": len(ordered),
        "mean_rank": {str(k): rankdata(ranks, axis=1).mean(0).tolist() for k, ranks in of_size.items()},
        "p_value": None,
        "reason": None,
    }
    if len(ordered) < FEWEST_FOR_POSITION:
        return {**found, "reason": f"{len(ordered)} rankings order something; {FEWEST_FOR_POSITION} are needed"}
    tested = {k: ranks for k, ranks in of_size.items() if len(ranks) > 1}
    statistic = sum(len(ranks) * (k - 1) * kendall_w(ranks) for k, ranks in tested.items())
    return {**found, "p_value": float(chi2.sf(statistic, sum(k - 1 for k in tested)))}


# ---- agreement ----


def _matrices(rankings: Iterable[tuple[Hashable, StoredRanking]]) -> list[Matrix]:
    """One matrix for each key that has at least two rankings."""
    together: dict[Hashable, list[StoredRanking]] = defaultdict(list)
    for key, one in rankings:
        together[key].append(one)
    return [
        (json.dumps(some[0].item.prompt), np.array([one.ranks for one in some], dtype=np.float64))
        for some in together.values()
        if len(some) > 1
    ]


def _mean_over(
    matrices: Sequence[Matrix], values_of: Callable[[np.ndarray], Iterable[float]], low: float = 0
) -> Measure:
    """The mean of all values in [`low`, 1] that the matrices give; undefined ones do not count."""
    found = [(prompt, value) for prompt, ranks in matrices for value in values_of(ranks) if not math.isnan(value)]
    if not found:
        return _nothing(matrices)
    shares = [(value - low) / (1 - low) for _, value in found]
    lowest, highest = share_interval(shares, [prompt for prompt, _ in found])
    mean = float(np.mean([value for _, value in found]))
    return Measure(mean, low + lowest * (1 - low), low + highest * (1 - low), len(matrices))


def _alpha(matrices: Sequence[Matrix]) -> Measure:
    """The ordinal alpha over the responses to all prompts."""
    of_prompt: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros((len(LEVELS), len(LEVELS))))
    for prompt, ranks in matrices:
        of_prompt[prompt] += coincidences(ranks, LEVELS)
    totals = np.array(list(of_prompt.values()))
    value = float(ordinal_alpha(totals.sum(0))) if matrices else math.nan
    if math.isnan(value):
        return _nothing(matrices)
    shape = (-1, len(LEVELS), len(LEVELS))
    low, high = resampled_interval(totals.reshape(len(totals), -1), lambda sums: ordinal_alpha(sums.reshape(shape)))
    if high - low < ROUNDING:  # resampling one prompt, or equal ones, shows no spread, which is not certainty
        return Measure(value, None, None, len(matrices), f"{len(totals)} prompts are too few for an interval")
    return Measure(value, low, high, len(matrices))


def _nothing(matrices: Sequence[Matrix]) -> Measure:
    reason = "all that was ranked twice is tied" if matrices else "nothing was ranked twice"
    return Measure(None, None, None, len(matrices), reason)


# ---- how far annotators agree: functions on matrices of ranks ----
#
# A matrix is annotators x items, [m, n]: 1 is best, equal ranks are ties. A measure is NaN where it is not defined:
# nobody shares two items, or all ranks are tied.


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
