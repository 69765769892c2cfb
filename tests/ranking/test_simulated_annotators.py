import math
import random
from collections import Counter

import pytest

from chatpipe.ranking.raters import draw_ranks as rank


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_pairs_are_ordered_as_bradley_and_terry_have_it(temperature):
    rng = random.Random(f"pairs {temperature}")
    scores, draws = (1.5, 0.5, -0.25), 20_000
    wins = Counter()
    for _ in range(draws):
        ranks = rank(scores, ("a", "b", "c"), rng, temperature)
        wins.update((i, j) for i in range(3) for j in range(3) if ranks[i] < ranks[j])
    for i in range(3):
        for j in range(i):
            expected = 1 / (1 + math.exp((scores[j] - scores[i]) / temperature))
            assert wins[i, j] / draws == pytest.approx(expected, abs=0.015)


def test_the_first_place_goes_by_softmax():
    rng = random.Random("first")
    scores, draws = (1.0, 0.0, -1.0, 0.5), 20_000
    first = Counter(rank(scores, "abcd", rng, 1.0).index(1) for _ in range(draws))
    total = sum(math.exp(score) for score in scores)
    for i, score in enumerate(scores):
        assert first[i] / draws == pytest.approx(math.exp(score) / total, abs=0.015)


def test_equal_texts_tie_and_different_ones_do_not():
    rng = random.Random("ties")
    for _ in range(200):
        ranks = rank((1.0, 1.0, 1.0, 0.0), ("x", "y", "x", "z"), rng, 1.0)
        assert ranks[0] == ranks[2]
        assert sorted({ranks[0], ranks[1], ranks[3]}) == [1, 2, 3]


def test_without_noise_the_scores_rank_and_equal_scores_tie():
    assert rank((0.5, 2.0, 0.5, -1.0), ("a", "b", "c", "d"), random.Random(0), 0) == [2, 1, 2, 3]


def test_each_completion_needs_a_score():
    with pytest.raises(ValueError, match="zip"):
        rank((1.0,), ("a", "b"), random.Random(0), 1.0)
