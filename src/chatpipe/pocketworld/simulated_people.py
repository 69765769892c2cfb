"""Simulated annotators: they rank completions by the gold score, with the noise of real people."""

import math
import random
from collections.abc import Sequence


def rank(scores: Sequence[float], completions: Sequence[str], rng: random.Random, temperature: float) -> list[int]:
    """Rank `completions`, 1 for the best, by a draw from the Plackett-Luce model of `scores` / `temperature`.

    Each different text gets its score / temperature plus Gumbel noise, so equal texts tie, and any other two are
    ordered as Bradley and Terry have it: P(i before j) = sigmoid((score_i - score_j) / temperature). `temperature` 0
    ranks exactly; then equal scores tie too. (Yellott 1977, "The relationship between Luce's Choice Axiom, Thurstone's
    Theory of Comparative Judgment, and the double exponential distribution".)
    """
    utilities: dict[str, float] = {}
    for score, text in zip(scores, completions, strict=True):
        if text not in utilities:
            utilities[text] = score / temperature + gumbel(rng) if temperature > 0 else score
    order = sorted(set(utilities.values()), reverse=True)
    return [order.index(utilities[text]) + 1 for text in completions]


def gumbel(rng: random.Random) -> float:
    """A draw from the standard Gumbel distribution."""
    return -math.log(-math.log(rng.random() or 0.5))
