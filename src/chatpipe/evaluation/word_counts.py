"""The simplest reward model that reads: a score for each word and for the length, learned from the training pairs.

A logistic regression on the differences of two answers (Bradley and Terry 1952). It knows neither the prompt nor the
order of words. A reward model that is no better has learned only which words annotators like.

    model = WordCounts.learn(train_rankings)
    scores = model.scores(validation_rankings)
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from chatpipe.data.rankings import Ranking
from chatpipe.evaluation.pair_accuracy import Pairs, ordered_pairs

WORD = re.compile(r"\w+|[^\w\s]")
MIN_ANSWERS = 2
"""A word must occur in so many training answers; a rarer one is no evidence about other answers."""
LENGTHS = 2
"""Features of the length: the logarithms of the number of characters and of words."""
PENALTY = 30.0
"""The factor of half the squared weights in the loss. Tried on hh-rlhf and alpaca_eval (docs/rm.md)."""
MAX_RANKINGS = 20_000
"""The first ones are read; more would take minutes and change little."""
MAX_STEPS = 500
PRECISION = 1e-4
"""The largest entry of the gradient at the end, as a share of the first one."""


@dataclass(frozen=True)
class WordCounts:
    """The number of each known word's weight, and the weights: those of words, then those of the length."""

    vocabulary: dict[str, int]
    weights: np.ndarray

    @classmethod
    def learn(cls, rankings: Sequence[Ranking], penalty: float = PENALTY) -> "WordCounts":
        """Learns from all pairs that annotators do not tie."""
        rankings = rankings[:MAX_RANKINGS]
        texts = _texts(rankings)
        counts = Counter(word for text in texts for word in set(_words(text)))
        known = sorted(word for word, count in counts.items() if count >= MIN_ANSWERS)
        vocabulary = {word: number for number, word in enumerate(known)}
        pairs = ordered_pairs([[-rank for rank in ranking.ranks] for ranking in rankings])
        return cls(vocabulary, _fit(_features(texts, vocabulary), pairs, penalty))

    def scores(self, rankings: Sequence[Ranking]) -> list[list[float]]:
        """A score for each response of each ranking."""
        features = _features(_texts(rankings), self.vocabulary)
        found = iter(torch.sparse.mm(features, torch.from_numpy(self.weights)[:, None])[:, 0].tolist())
        return [[next(found) for _ in ranking.responses] for ranking in rankings]


def _texts(rankings: Sequence[Ranking]) -> list[str]:
    return [text for ranking in rankings for text in ranking.responses]


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _features(texts: Sequence[str], vocabulary: dict[str, int]) -> Tensor:
    """log(1 + count) of each known word, and the logarithms of the length: sparse float64 [answers, columns]."""
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for row, text in enumerate(texts):
        words = _words(text)
        found = {vocabulary[word]: log(1 + count) for word, count in Counter(words).items() if word in vocabulary}
        found |= {len(vocabulary): log(1 + len(text)), len(vocabulary) + 1: log(1 + len(words))}
        rows += [row] * len(found)
        columns += found.keys()
        values += found.values()
    size = (len(texts), len(vocabulary) + LENGTHS)
    cells = torch.tensor([rows, columns], dtype=torch.long)
    return torch.sparse_coo_tensor(
        cells, torch.tensor(values, dtype=torch.float64), size, check_invariants=True
    ).coalesce()


def _fit(features: Tensor, pairs: Pairs, penalty: float) -> np.ndarray:
    """The weights with the smallest sum of -log sigmoid(lead of the better) + penalty / 2 |weights|^2."""
    better, worse = torch.from_numpy(pairs.better), torch.from_numpy(pairs.worse)
    weights = torch.zeros(features.shape[1], 1, dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        weights.grad = None
        scores = torch.sparse.mm(features, weights)
        value = -logsigmoid(scores[better] - scores[worse]).sum() + penalty / 2 * weights.square().sum()
        value.backward()
        return value

    loss()
    assert weights.grad is not None
    enough = PRECISION * weights.grad.abs().max().item()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=MAX_STEPS, tolerance_grad=enough, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    optimizer.step(loss)
    return weights.detach()[:, 0].numpy()
