import numpy as np
import pytest

from chatpipe.data import intervals
from chatpipe.data.intervals import bootstrap_interval, share_interval, wilson_interval


@pytest.mark.parametrize(
    "successes, n, low, high",
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric():
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("groups, size", [(12, 1), (40, 4)])
def test_bootstrap_covers_the_truth_at_its_level(groups, size, monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 600)
    rng = np.random.default_rng(5)
    index = np.repeat(np.arange(groups), size)
    covered = 0
    for trial in range(2000):
        values = 3 + rng.normal(size=groups)[index] + rng.normal(size=groups * size)
        low, high = bootstrap_interval(values, index, seed=trial)
        covered += low <= 3 <= high
    assert 0.94 <= covered / 2000 <= 0.96


def test_interval_of_a_win_rate_covers_the_truth_at_its_level(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 400)
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(2000):
        wins = rng.choice([0.0, 0.5, 1.0], p=[0.2, 0.2, 0.6], size=200)
        low, high = bootstrap_interval(wins, range(200), seed=trial)
        covered += low <= 0.7 <= high
    assert 0.94 <= covered / 2000 <= 0.96


def test_values_of_one_prompt_count_as_one_piece_of_evidence():
    values = np.random.default_rng(0).normal(size=30)
    alone = bootstrap_interval(values, range(30), seed=1)
    copied = bootstrap_interval(np.repeat(values, 10), np.repeat(range(30), 10), seed=1)
    assert copied == pytest.approx(alone)


def test_interval_is_about_the_mean_of_values_not_of_groups():
    low, high = bootstrap_interval([0.0] * 90 + [1.0] * 10, [f"prompt {i // 2}" for i in range(100)])
    assert low < 0.1 < high < 0.3


def test_same_seed_same_interval_and_memory_bound_changes_nothing(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_interval(values, range(50), seed=3)
    assert bootstrap_interval(values, range(50), seed=3) == whole
    monkeypatch.setattr(intervals, "MAX_DRAWS", 1000)
    assert bootstrap_interval(values, range(50), seed=3) == pytest.approx(whole, rel=0, abs=1e-14)


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([], [])


@pytest.mark.parametrize("prompts, sure", [(3, False), (4, True)])
def test_a_few_prompts_all_right_are_not_certainty(prompts, sure):
    low, high = share_interval([1.0] * prompts * 6, [i // 6 for i in range(prompts * 6)])
    assert high == 1.0
    assert (low > 0.5) is sure
    assert low == pytest.approx(wilson_interval(prompts, prompts)[0])


def test_equal_shares_are_no_certainty_whatever_their_sums_round_to():
    values = [0.1 + 0.7 / 3] * 7
    low, high = share_interval(values, range(7))
    assert (low, high) == pytest.approx(wilson_interval(sum(values), 7))
    assert high - low > 0.5


def test_share_interval_of_mixed_groups_is_the_bootstrap():
    values, groups = [1, 0, 0.5, 1, 1, 0], [0, 0, 1, 2, 2, 3]
    assert share_interval(values, groups, seed=2) == bootstrap_interval(values, groups, seed=2)
