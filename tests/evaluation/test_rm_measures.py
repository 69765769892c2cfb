"""What a reward model's verdict is drawn from, each against its definition: parts, calibration, tau-b, annotators."""

import math

import numpy as np
import pytest

from chatpipe.data.formats import Ranking
from chatpipe.evaluation.annotators import agreement
from chatpipe.evaluation.calibration import expected_calibration_error, reliability
from chatpipe.evaluation.correlation import mean_tau_b, tau_b
from chatpipe.evaluation.intervals import share_interval
from chatpipe.evaluation.ordering import ordered_alike, ordered_pairs
from chatpipe.evaluation.slices import accuracy_by_length, accuracy_by_margin, accuracy_by_round


def ranking(responses: list[str], ranks: list[int], prompt: str = "Who?", **more) -> Ranking:
    return Ranking([{"role": "user", "content": prompt}], responses, ranks, **more)


def shares(table: list[dict]) -> list[tuple]:
    """What each row is of, its pairs and its accuracy."""
    return [(next(iter(row.values())), row["pairs"], row["accuracy"]) for row in table]


# ---- parts of the pairs ----


def test_margin_is_counted_in_places_and_ties_share_one():
    truth = [[4.0, 2.0, 2.0, -9.0]]  # places: 2, 1, 1, 0
    pairs = ordered_pairs(truth)
    right = ordered_alike(pairs, np.array([3.0, 2.0, 4.0, 2.0]))
    # one place: 0 > 1 right, 0 > 2 wrong, 1 > 3 a tie, 2 > 3 right; two places: 0 > 3 right
    table = accuracy_by_margin(pairs, right, truth, seed=0)
    assert shares(table) == [(1, 4, pytest.approx(2.5 / 4)), (2, 1, 1.0)]
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in table)


def test_length_parts_show_a_model_that_goes_by_length():
    lengths = np.array([10.0, 100.0, 50.0, 52.0, 80.0, 20.0])
    pairs = ordered_pairs([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    table = accuracy_by_length(pairs, ordered_alike(pairs, lengths), lengths, seed=0)
    assert shares(table) == [("shorter", 1, 0.0), ("alike", 1, 0.0), ("longer", 1, 1.0)]


def test_rounds_are_told_apart_where_they_are_known():
    rankings = [ranking(["a", "b"], [1, 2], str(i), round=number) for i, number in enumerate((1, 1, 2, None))]
    pairs = ordered_pairs([[1.0, 0.0]] * 4)
    right = np.array([1.0, 0.0, 1.0, 0.5])
    table = accuracy_by_round(pairs, right, rankings, seed=0)["accuracy_by_round"]
    assert shares(table) == [(-1, 1, 0.5), (1, 2, 0.5), (2, 1, 1.0)]
    assert accuracy_by_round(pairs, right, [ranking(["a", "b"], [1, 2])] * 4, seed=0) == {}


def test_intervals_of_parts_are_clustered_by_prompt():
    """Each judgement three times over, as pairs of one ranking, is no more evidence about other prompts."""

    def tables(k: int) -> list[list[dict]]:
        truth = [[1.0] + [0.0] * (k - 1)] * 60
        scores = np.concatenate([[float(i % 3 > 0)] + [float(i % 3 == 0)] * (k - 1) for i in range(60)])
        rankings = [ranking(list("abcd")[:k], [1] + [2] * (k - 1), str(i), round=1) for i in range(60)]
        pairs = ordered_pairs(truth)
        right = ordered_alike(pairs, scores)
        return [
            accuracy_by_margin(pairs, right, truth, seed=0),
            accuracy_by_length(pairs, right, np.ones(60 * k), seed=0),
            accuracy_by_round(pairs, right, rankings, seed=0)["accuracy_by_round"],
        ]

    for [one], [three] in zip(tables(2), tables(4), strict=True):
        assert (one["pairs"], three["pairs"]) == (60, 180)
        assert (three["low"], three["high"]) == pytest.approx((one["low"], one["high"]))
        assert one["low"] < 0.6 < 2 / 3 < one["high"]


# ---- calibration ----


def test_reliability_sorts_pairs_by_what_was_said_of_them():
    said = np.array([0.5, 0.52, 0.74, 0.98, 1.0])
    leads = np.log(said / (1 - np.minimum(said, 1 - 1e-12)))
    table = reliability(leads, np.array([0.5, 1.0, 1.0, 1.0, 0.0]))
    assert [(row["from"], row["to"], row["pairs"]) for row in table] == [(0.5, 0.55, 2), (0.7, 0.75, 1), (0.95, 1.0, 2)]
    assert [row["said"] for row in table] == pytest.approx([0.51, 0.74, 0.99])
    assert [row["observed"] for row in table] == [0.75, 1.0, 0.5]
    expected = (2 * 0.24 + 0.26 + 2 * 0.49) / 5
    assert expected_calibration_error(table) == pytest.approx(expected)


def test_who_is_right_as_often_as_said_has_no_calibration_error_and_who_boasts_has():
    rng = np.random.default_rng(0)
    leads = rng.exponential(size=40_000)
    right = (rng.random(40_000) < 1 / (1 + np.exp(-leads))).astype(float)
    assert expected_calibration_error(reliability(leads, right)) < 0.01
    assert expected_calibration_error(reliability(4 * leads, right)) > 0.15


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


def test_annotators_are_judged_by_each_other_on_the_same_answers():
    rankings = [
        ranking(["a", "b", "c"], [1, 2, 3], annotator="ann"),
        ranking(["c", "a", "b"], [2, 1, 2], annotator="bob"),  # a first; b and c tied
        ranking(["a", "x", "c"], [3, 2, 1], annotator="bob"),  # other answers
        ranking(["a", "b", "c"], [1, 2, 3], "Why?", annotator="ann"),
    ]
    found = agreement(rankings, seed=0)
    # Of ann's three pairs bob orders two alike and ties one; of bob's two ann orders both alike.
    assert found["between_annotators_pairs"] == 5
    assert found["between_annotators"] == pytest.approx(4.5 / 5)
    assert found["between_annotators_low"] <= 0.9 <= found["between_annotators_high"]


def test_the_interval_of_what_annotators_agree_on_is_clustered_by_prompt():
    def of(k: int) -> dict:
        """Bob disagrees with ann on every third prompt; of k - 1 pairs each, all alike."""
        liked, others = [1] + [2] * (k - 1), [2] + [1] * (k - 1)
        return agreement(
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
    assert agreement(twice, seed=0) == {}
    unknown = [ranking(["a", "b"], [1, 2], annotator=name) for name in (None, None, "ann")]  # all may be ann's
    assert agreement(unknown, seed=0) == {}
    tied = [ranking(["a", "b"], [1, 1], annotator=name) for name in ("ann", "bob")]
    assert agreement(tied, seed=0) == {}
