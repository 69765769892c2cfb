"""What a reward model's verdict is drawn from, each against its definition: parts, calibration, tau-b, annotators."""

import math

import numpy as np
import pytest

from chatpipe.data.intervals import share_interval
from chatpipe.data.rankings import Ranking
from chatpipe.evaluation.pair_accuracy import between_annotators, mean_tau_b, tau_b


def ranking(responses: list[str], ranks: list[int], prompt: str = "Who?", **more) -> Ranking:
    return Ranking([{"role": "user", "content": prompt}], responses, ranks, **more)


def shares(table: list[dict]) -> list[tuple]:
    """What each row is of, its pairs and its accuracy."""
    return [(next(iter(row.values())), row["pairs"], row["accuracy"]) for row in table]


# ---- Kendall's tau-b ----


@pytest.mark.parametrize("levels", [2, 4, 100])
def test_tau_b_is_what_its_definition_counts(levels):
    rng = np.random.default_rng(levels)
    for _ in range(200):
        size = int(rng.integers(2, 10))
        one, other = rng.integers(levels, size=(2, size)).tolist()
        pairs = [(i, j) for i in range(size) for j in range(i)]
        concordant = sum((one[i] - one[j]) * (other[i] - other[j]) > 0 for i, j in pairs)
        discordant = sum((one[i] - one[j]) * (other[i] - other[j]) < 0 for i, j in pairs)
        untied = [sum(values[i] != values[j] for i, j in pairs) for values in (one, other)]
        if 0 in untied:
            assert math.isnan(tau_b(one, other))
        else:
            expected = (concordant - discordant) / math.sqrt(untied[0] * untied[1])
            assert tau_b(one, other) == pytest.approx(expected, abs=1e-12)


def test_mean_tau_b_leaves_out_what_has_none():
    assert mean_tau_b([[2, 1], [1, 1], [3, 2, 1]], [[0.5, 0.1], [1.0, 2.0], [1.0, 2.0, 3.0]]) == 0.0
    assert mean_tau_b([[1, 1]], [[1.0, 2.0]]) == 0.0


# ---- annotators ----


def test_annotators_are_compared_with_each_other_on_the_same_answers():
    rankings = [
        ranking(["a", "b", "c"], [1, 2, 3], annotator="ann"),
        ranking(["c", "a", "b"], [2, 1, 2], annotator="bob"),  # a first; b and c tied
        ranking(["a", "x", "c"], [3, 2, 1], annotator="bob"),  # other answers
        ranking(["a", "b", "c"], [1, 2, 3], "Why?", annotator="ann"),
    ]
    found = between_annotators(rankings, seed=0)
    # Of ann's three pairs bob orders two as she does and ties one; of bob's two ann orders both as he does.
    assert found["between_annotators_pairs"] == 5
    assert found["between_annotators"] == pytest.approx(4.5 / 5)
    assert found["between_annotators_low"] <= 0.9 <= found["between_annotators_high"]


def test_the_interval_of_what_annotators_agree_on_is_clustered_by_prompt():
    def of(k: int) -> dict:
        """Bob disagrees with ann on every third prompt; of k - 1 pairs each, always the same."""
        liked, others = [1] + [2] * (k - 1), [2] + [1] * (k - 1)
        return between_annotators(
            [
                ranking(list("abcd")[:k], liked if name == "ann" or i % 3 else others, str(i), annotator=name)
                for i in range(60)
                for name in ("ann", "bob")
            ],
            seed=0,
        )

    one, three = of(2), of(4)
    assert three["between_annotators_pairs"] == 3 * one["between_annotators_pairs"] == 360
    for end in ("low", "high"):
        assert three[f"between_annotators_{end}"] == pytest.approx(one[f"between_annotators_{end}"])
    alone = share_interval([1.0 if i % 3 else 0.0 for i in range(60)], range(60))
    assert (one["between_annotators_low"], one["between_annotators_high"]) == pytest.approx(alone)


def test_one_annotator_twice_is_no_agreement_between_annotators():
    twice = [ranking(["a", "b"], [1, 2], annotator="ann"), ranking(["a", "b"], [1, 2], annotator="ann")]
    assert between_annotators(twice, seed=0) == {}
    unknown = [ranking(["a", "b"], [1, 2], annotator=name) for name in (None, None, "ann")]  # all may be ann's
    assert between_annotators(unknown, seed=0) == {}
    tied = [ranking(["a", "b"], [1, 1], annotator=name) for name in ("ann", "bob")]
    assert between_annotators(tied, seed=0) == {}
