"""The simplest reward model that reads: a score for each word and for the length, learned from the training pairs.

A logistic regression on the differences of two answers (Bradley and Terry 1952), by Newton's method, in numpy. It knows
neither the prompt nor the order of words. A reward model that is no better has learned no more than which words please.

    model = WordCounts.learn(train_rankings)
    scores = model.scores(held_out_rankings)
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import log

import numpy as np

from chatpipe.data.formats import Ranking
from chatpipe.evaluation.ordering import Pairs, ordered_pairs

WORD = re.compile(r"\w+|[^\w\s]")
MIN_ANSWERS = 2
"""A word that stands in fewer answers to learn from says nothing of others."""
LENGTHS = 2
"""Features of the length: of the logarithms of characters and of words."""
PENALTY = 30.0
"""Of half the squared weights, beside the sum of losses over pairs. Tried on hh-rlhf and alpaca_eval (docs/rm.md)."""
MAX_RANKINGS = 20_000
"""The first ones; more would take minutes and change little."""
NEWTON_STEPS, INNER_STEPS = 20, 100
PRECISION = 1e-4
"""Of the gradient, as a share of the first one."""


@dataclass(frozen=True)
class _Features:
    """A sparse matrix [answers, columns] as its entries that are not 0."""

    answers: int
    columns: int
    row: np.ndarray
    column: np.ndarray
    value: np.ndarray

    def times(self, weights: np.ndarray) -> np.ndarray:
        """The score of each answer."""
        return np.bincount(self.row, self.value * weights[self.column], self.answers)

    def transposed_times(self, of_answers: np.ndarray) -> np.ndarray:
        """For each column the sum over answers of its value times the answer's number."""
        return np.bincount(self.column, self.value * of_answers[self.row], self.columns)


@dataclass(frozen=True)
class WordCounts:
    """The words that it knows, by the number of their weight, and the weights: those of words, then of the length."""

    vocabulary: dict[str, int]
    weights: np.ndarray

    @classmethod
    def learn(cls, rankings: Sequence[Ranking], penalty: float = PENALTY) -> "WordCounts":
        """Learns from all pairs of the annotators' that are not tied."""
        rankings = rankings[:MAX_RANKINGS]
        texts = _texts(rankings)
        counts = Counter(word for text in texts for word in set(_words(text)))
        known = sorted(word for word, count in counts.items() if count >= MIN_ANSWERS)
        vocabulary = {word: number for number, word in enumerate(known)}
        pairs = ordered_pairs([[-rank for rank in ranking.ranks] for ranking in rankings])
        return cls(vocabulary, _fit(_features(texts, vocabulary), pairs, penalty))

    def scores(self, rankings: Sequence[Ranking]) -> list[list[float]]:
        """A score for each response of each ranking."""
        found = iter(_features(_texts(rankings), self.vocabulary).times(self.weights).tolist())
        return [[next(found) for _ in ranking.responses] for ranking in rankings]


def _texts(rankings: Sequence[Ranking]) -> list[str]:
    return [text for ranking in rankings for text in ranking.responses]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _features(texts: Sequence[str], vocabulary: dict[str, int]) -> _Features:
    """log(1 + count) of each known word, and the logarithms of the length."""
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for row, text in enumerate(texts):
        words = _words(text)
        said = {vocabulary[word]: log(1 + count) for word, count in Counter(words).items() if word in vocabulary}
        said |= {len(vocabulary): log(1 + len(text)), len(vocabulary) + 1: log(1 + len(words))}
        rows += [row] * len(said)
        columns += said.keys()
        values += said.values()
    return _Features(
        len(texts), len(vocabulary) + LENGTHS, np.array(rows, dtype=np.int64), np.array(columns), np.array(values)
    )


def _fit(features: _Features, pairs: Pairs, penalty: float) -> np.ndarray:
    """The weights with the smallest sum of -log sigmoid(lead of the better) + penalty / 2 |weights|^2."""

    def leads(weights: np.ndarray) -> np.ndarray:
        scores = features.times(weights)
        return scores[pairs.better] - scores[pairs.worse]

    def back(of_pairs: np.ndarray) -> np.ndarray:
        of_answers = np.bincount(pairs.better, of_pairs, features.answers)
        return features.transposed_times(of_answers - np.bincount(pairs.worse, of_pairs, features.answers))

    def loss(weights: np.ndarray) -> float:
        return float(np.logaddexp(0, -leads(weights)).sum() + penalty / 2 * (weights**2).sum())

    def hessian_times(curvature: np.ndarray, some: np.ndarray) -> np.ndarray:
        return penalty * some + back(curvature * leads(some))

    weights = np.zeros(features.columns)
    first = None
    for _ in range(NEWTON_STEPS):
        wrong = 1 / (1 + np.exp(leads(weights)))
        gradient = penalty * weights - back(wrong)
        size = float(np.linalg.norm(gradient))
        first = size if first is None else first
        if size <= PRECISION * first:
            break
        curvature = wrong * (1 - wrong)
        step = _solve(partial(hessian_times, curvature), -gradient)
        scale, before, slope = 1.0, loss(weights), float(gradient @ step)
        while loss(weights + scale * step) > before + 1e-4 * scale * slope and scale > 1e-6:
            scale /= 2
        weights = weights + scale * step
    return weights


def _solve(times: Callable[[np.ndarray], np.ndarray], wanted: np.ndarray) -> np.ndarray:
    """x for which `times`(x), a product with a positive definite matrix, is about `wanted`: conjugate gradients."""
    found, rest = np.zeros_like(wanted), wanted
    direction, squared = rest, float(rest @ rest)
    enough = 0.01 * squared
    for _ in range(INNER_STEPS):
        if squared <= enough:
            break
        product = times(direction)
        step = squared / float(direction @ product)
        found, rest = found + step * direction, rest - step * product
        before, squared = squared, float(rest @ rest)
        direction = rest + squared / before * direction
    return found
