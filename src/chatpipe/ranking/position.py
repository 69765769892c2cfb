"""Whether the place at which a response is shown predicts its rank."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from chatpipe.ranking.agreement import mid_ranks

LEAST = 10
"""Rankings that order something, below which nothing is tested."""
PERMUTATIONS = 999


def position_effect(shown: Sequence[Sequence[int]], seed: int = 0) -> dict[str, Any]:
    """Of rankings as they were shown, each the ranks from the first place to the last:

    - `mean_rank`: for each K the mean rank at each place, ties sharing the mean of theirs; (K + 1) / 2 everywhere where
      the place does not matter.
    - `p_value`: how often places drawn anew give means that lie as far from equal. Responses are shown in an order
      drawn for each ranking, so where the place does not matter every other order was as likely (a randomisation
      test; Edgington 1980). The distance is the sum of squares of the mean ranks, put on [0, 1], around 1/2, each place
      counting as often as it was shown.
    - `rankings`: how many order something, which alone can tell; `reason` where they are too few for a test.
    """
    ordered = [ranks for ranks in shown if len(set(ranks)) > 1]
    sizes = sorted({len(ranks) for ranks in ordered})
    of_size = [mid_ranks(np.array([ranks for ranks in ordered if len(ranks) == k], dtype=float)) for k in sizes]
    found: dict[str, Any] = {
        "rankings": len(ordered),
        "mean_rank": {str(k): ranks.mean(0).tolist() for k, ranks in zip(sizes, of_size, strict=True)},
        "p_value": None,
        "reason": None,
    }
    if len(ordered) < LEAST:
        return {**found, "reason": f"{len(ordered)} rankings order something; {LEAST} are needed"}
    return {**found, "p_value": _p_value([(ranks - 1) / (ranks.shape[1] - 1) for ranks in of_size], seed)}


def _p_value(of_size: Sequence[np.ndarray], seed: int) -> float:
    """How likely places drawn anew lie as far from equal, this order itself being one of the draws."""
    rng = np.random.default_rng(seed)
    observed = sum(map(_distance, of_size))
    drawn = [sum(_distance(rng.permuted(ranks, axis=1)) for ranks in of_size) for _ in range(PERMUTATIONS)]
    # Rounding must not tell equal distances apart.
    as_far = sum(distance >= observed * (1 - 1e-9) for distance in drawn)
    return (1 + as_far) / (1 + PERMUTATIONS)


def _distance(ranks: np.ndarray) -> float:
    return len(ranks) * float(((ranks.mean(0) - 0.5) ** 2).sum())
