"""The accuracy of a reward model on parts of the pairs: by how far apart answers are, by their lengths, by round."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from chatpipe.data.formats import Ranking
from chatpipe.evaluation.intervals import share_interval
from chatpipe.evaluation.ordering import Pairs, flat

ALIKE = 1.1
"""Two lengths are alike where the longer one is less than this times the other."""


def accuracy_by_margin(
    pairs: Pairs, right: np.ndarray, truth: Sequence[Sequence[float]], seed: int
) -> list[dict[str, Any]]:
    """By how many places the better answer stands before the worse in the true order, ties sharing a place."""
    places = flat([_places(values) for values in truth])
    margin = (places[pairs.better] - places[pairs.worse]).astype(int)
    return [
        {"margin": number, **_accuracy(pairs, right, margin == number, seed)} for number in np.unique(margin).tolist()
    ]


def accuracy_by_length(pairs: Pairs, right: np.ndarray, lengths: np.ndarray, seed: int) -> list[dict[str, Any]]:
    """By whether the better answer is `shorter`, `alike` or `longer` than the worse, in characters.

    A model that goes by length is right where the better one is longer, and wrong where it is shorter.
    """
    better, worse = lengths[pairs.better], lengths[pairs.worse]
    alike = np.maximum(better, worse) < ALIKE * np.minimum(better, worse)
    parts = {"shorter": ~alike & (better < worse), "alike": alike, "longer": ~alike & (better > worse)}
    return [{"better_one": name, **_accuracy(pairs, right, part, seed)} for name, part in parts.items() if part.any()]


def accuracy_by_round(pairs: Pairs, right: np.ndarray, rankings: Sequence[Ranking], seed: int) -> dict[str, Any]:
    """`accuracy_by_round`, where rankings know in which one they were made; -1 of those that do not."""
    if all(ranking.round is None for ranking in rankings):
        return {}
    rounds = np.array([-1 if ranking.round is None else ranking.round for ranking in rankings])[pairs.ranking]
    return {
        "accuracy_by_round": [
            {"round": number, **_accuracy(pairs, right, rounds == number, seed)}
            for number in np.unique(rounds).tolist()
        ]
    }


def _accuracy(pairs: Pairs, right: np.ndarray, part: np.ndarray, seed: int) -> dict[str, Any]:
    low, high = share_interval(right[part], pairs.prompt[part], seed)
    return {"pairs": int(part.sum()), "accuracy": float(right[part].mean()), "low": low, "high": high}


def _places(values: Sequence[float]) -> list[int]:
    order = sorted(set(values))
    return [order.index(value) for value in values]
