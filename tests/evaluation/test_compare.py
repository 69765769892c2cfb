import numpy as np
import pytest

from chatpipe.data.intervals import wilson_interval
from chatpipe.evaluation.policy import mean_change, oracle_comparison, win_rate
from chatpipe.pocketworld.oracle import Rating


def _rating(score: float, right: bool | None) -> Rating:
    return Rating(score, "smalltalk" if right is None else "fact", right, False, True, False, False, False, 0, True)


def test_win_rate_counts_ties_half():
    wins = win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 3.5, -1.0])
    assert wins.rate == (1 + 0.5 + 0 + 1) / 4
    assert wins.low < wins.rate < wins.high


def test_winning_everywhere_has_an_interval_too():
    wins = win_rate([1.0] * 30, [0.0] * 30)
    assert (wins.low, wins.high) == wilson_interval(30, 30)


def test_win_rate_seen_from_the_other_side():
    new, old = np.random.default_rng(0).normal(size=(2, 80))
    there, back = win_rate(new, old), win_rate(old, new)
    assert there.rate == pytest.approx(1 - back.rate)
    assert (there.low, there.high) == pytest.approx((1 - back.high, 1 - back.low))


def test_change_is_measured_prompt_by_prompt():
    old = np.random.default_rng(0).normal(scale=100, size=50)
    change = mean_change(old + 0.5, old)
    assert (change.mean, change.low, change.high) == pytest.approx((0.5, 0.5, 0.5))


def test_oracle_comparison_leaves_small_talk_out_of_right_answers():
    old = [_rating(0.0, True), _rating(-1.0, False), _rating(1.0, None), _rating(-1.0, False)]
    new = [_rating(1.0, True), _rating(2.0, True), _rating(1.0, None), _rating(-2.0, False)]
    metrics = oracle_comparison(new, old)
    assert metrics["win_rate"] == (1 + 1 + 0.5 + 0) / 4
    assert metrics["oracle_score_before"] == -0.25
    assert metrics["oracle_change_low"] < 0.75 < metrics["oracle_change_high"]
    assert metrics["right_before"] == pytest.approx(1 / 3)
    assert 0 <= metrics["right_change_low"] <= 1 / 3 <= metrics["right_change_high"] <= 1


def test_one_answer_of_48_that_no_longer_stops_is_noise_and_six_are_not():
    before = [True] * 48
    assert mean_change([True] * 47 + [False], before).high == 0
    assert mean_change([True] * 42 + [False] * 6, before).high < 0
