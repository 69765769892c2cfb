"""The baseline that counts words: it finds the words that please, and nothing that depends on the prompt."""

import random

import numpy as np
import pytest

from chatpipe.data.rankings import Ranking
from chatpipe.evaluation.baselines import WordCounts, _features, _fit
from chatpipe.evaluation.pair_accuracy import flat, ordered_correctly, ordered_pairs

FILLER = ["the", "mill", "baker", "Mara", "lives", "near", "a", "river", "and", "keeps", "goats"]


def rankings(count: int, seed: int, liked: str) -> list[Ranking]:
    """Four answers of eight words, two of which have the liked one in them."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        answers = [" ".join([*rng.choices(FILLER, k=7), liked if i < 2 else "hm"]) for i in range(4)]
        made.append(Ranking([{"role": "user", "content": f"{number}?"}], answers, [1, 1, 2, 2]))
    return made


def accuracy(model: WordCounts, validation: list[Ranking]) -> float:
    pairs = ordered_pairs([[-rank for rank in ranking.ranks] for ranking in validation])
    return float(ordered_correctly(pairs, flat(model.scores(validation))).mean())


def test_it_finds_the_word_that_pleases():
    model = WordCounts.learn(rankings(60, 0, "please"))
    assert accuracy(model, rankings(40, 1, "please")) == 1.0
    assert model.weights[model.vocabulary["please"]] > 5 * abs(model.weights[model.vocabulary["mara"]])


def test_it_finds_that_the_longer_answer_pleases():
    rng = random.Random(0)

    def made(count: int) -> list[Ranking]:
        return [
            Ranking([], [" ".join(rng.choices(FILLER, k=length)) for length in (rng.randrange(3, 9), 20)], [2, 1])
            for _ in range(count)
        ]

    assert accuracy(WordCounts.learn(made(60)), made(40)) == 1.0


def test_what_only_the_prompt_decides_is_chance_to_it():
    rng = random.Random(0)
    made = []
    for number in range(400):
        colour = rng.choice(["red", "blue"])
        made.append(
            Ranking([{"role": "user", "content": colour}], ["red", "blue"], [1, 2] if colour == "red" else [2, 1])
        )
    assert 0.4 < accuracy(WordCounts.learn(made[:200]), made[200:]) < 0.6


def test_words_it_has_not_seen_and_ties_alone_count_nothing():
    model = WordCounts.learn(rankings(20, 0, "please"))
    unknown = Ranking([], ["xylo", "zulu"], [1, 2])
    assert model.scores([unknown])[0][0] == model.scores([unknown])[0][1]
    tied = WordCounts.learn([Ranking([], ["a a", "a"], [1, 1])])
    assert not tied.weights.any()


@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_the_weights_are_where_the_gradient_of_the_loss_is_nought(penalty):
    validation = rankings(30, 2, "please")
    texts = [text for ranking in validation for text in ranking.responses]
    vocabulary = {word: number for number, word in enumerate(sorted({*FILLER, "please", "hm"}))}
    features = _features(texts, {word.lower(): number for word, number in vocabulary.items()})
    pairs = ordered_pairs([[-rank for rank in ranking.ranks] for ranking in validation])
    weights = _fit(features, pairs, penalty)
    dense = features.to_dense().numpy()
    differences = dense[pairs.better] - dense[pairs.worse]

    def gradient(at: np.ndarray) -> np.ndarray:
        return penalty * at - differences.T @ (1 / (1 + np.exp(differences @ at)))

    assert np.linalg.norm(gradient(weights)) <= 1e-3 * np.linalg.norm(gradient(np.zeros_like(weights)))
