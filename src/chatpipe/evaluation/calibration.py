"""Whether a reward model is right as often as it says: sigmoid of two scores' difference is a probability.

Of each pair it is that of the answer that the model prefers, 0.5 to 1; seen from the better answer all outcomes would
be the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 10
"""Of equal width, between 0.5 and 1."""


def reliability(leads: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """A row for each bin of said probability that has pairs: `from`, `to`, `pairs`, `said`, `observed` (both means).

    `leads` [pairs]: the preferred answer's score minus the other's, at least 0. `right` [pairs]: 1, 0, or 0.5 of a tie.
    """
    said = 1 / (1 + np.exp(-leads))
    bins = np.minimum(((said - 0.5) * 2 * BINS).astype(int), BINS - 1)
    return [
        {
            "from": 0.5 + number / (2 * BINS),
            "to": 0.5 + (number + 1) / (2 * BINS),
            "pairs": int((bins == number).sum()),
            "said": float(said[bins == number].mean()),
            "observed": float(right[bins == number].mean()),
        }
        for number in np.unique(bins).tolist()
    ]


def expected_calibration_error(table: Sequence[dict[str, Any]]) -> float:
    """The mean over pairs of how far what was said of their bin is from what was observed (arXiv 1706.04599, eq. 3)."""
    pairs = sum(row["pairs"] for row in table)
    return sum(row["pairs"] * abs(row["said"] - row["observed"]) for row in table) / pairs
