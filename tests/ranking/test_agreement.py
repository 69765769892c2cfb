"""The measures against scipy and krippendorff, by hand, and in simulations whose truth is known."""

from itertools import combinations

import krippendorff
import numpy as np
import pytest
from scipy.stats import friedmanchisquare, kendalltau, t

from chatpipe.data import intervals
from chatpipe.data.intervals import resampled_interval, share_interval
from chatpipe.ranking.stats import coincidences, kendall_w, ordinal_alpha, pair_agreements, tau_bs

CASES = 3000
"""Most have ties, in all shapes: a formula that is wrong in any case is wrong for hundreds of them."""
nan = np.nan


def matrices(seed: int, missing: bool = False) -> list[np.ndarray]:
    """Annotators x items, 2 to 6 by 2 to 9: dense ranks with many ties; if `missing`, up to a fifth not given."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(CASES):
        m, n = rng.integers(2, 7), rng.integers(2, 10)
        drawn = rng.integers(0, rng.integers(2, n + 2), size=(m, n))
        ranks = np.array([np.unique(row, return_inverse=True)[1] + 1.0 for row in drawn])
        if missing:
            ranks[rng.random((m, n)) < rng.choice([0, 0.05, 0.2])] = nan
        found.append(ranks)
    return found


def alpha(ranks: np.ndarray) -> float:
    """Of one matrix, with the levels that are in it."""
    return float(ordinal_alpha(coincidences(ranks, np.unique(ranks[~np.isnan(ranks)]))))


def test_w_is_that_of_friedmans_test_in_scipy():
    # scipy takes many tests of one shape at once.
    of_shape: dict[tuple[int, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for ranks in matrices(2):
        of_shape.setdefault(ranks.shape, []).append((ranks, ranks))
    compared = 0
    for (m, n), cases in of_shape.items():
        ours = np.array([kendall_w(ranks) for ranks, _ in cases])
        if m < 2 or n < 2:
            assert np.isnan(ours).all()
        elif n > 2:  # Friedman's test has three items at least
            stacked = np.stack([kept for _, kept in cases])
            with np.errstate(invalid="ignore", divide="ignore"):
                chi = friedmanchisquare(*np.moveaxis(stacked, 2, 0), axis=1).statistic
            np.testing.assert_allclose(ours, chi / (m * (n - 1)), atol=1e-9, rtol=0)
            compared += np.isfinite(chi).sum()
        else:
            # Of two items: the square of the share by which one is more often before the other, among untied rows.
            before = np.array([np.sign(kept[:, 1] - kept[:, 0]) for _, kept in cases])
            with np.errstate(invalid="ignore"):
                expected = before.sum(1) ** 2 / (m * np.abs(before).sum(1))
            np.testing.assert_allclose(ours, expected, atol=1e-9, rtol=0)
    assert compared > CASES / 2


def test_alpha_is_krippendorffs():
    defined = 0
    for ranks in matrices(3, missing=True):
        together = ranks[:, (~np.isnan(ranks)).sum(0) >= 2]
        if len(np.unique(together[~np.isnan(together)])) < 2:
            assert np.isnan(alpha(ranks))
            continue
        expected = krippendorff.alpha(reliability_data=ranks, level_of_measurement="ordinal")
        assert alpha(ranks) == pytest.approx(expected, abs=1e-9)
        defined += 1
    assert defined > CASES / 2


def test_pair_agreement_is_counted_pair_by_pair():
    def by_hand(ranks: np.ndarray) -> list[float]:
        found = []
        for one, other in combinations(ranks, 2):
            for i, j in combinations(range(ranks.shape[1]), 2):
                orders = np.sign(one[i] - one[j]), np.sign(other[i] - other[j])
                found.append(1.0 if orders[0] == orders[1] else 0.5 if 0 in orders else 0.0)
        return found

    for ranks in matrices(4)[:500]:
        assert pair_agreements(ranks).tolist() == by_hand(ranks)


def test_pair_agreement_without_ties_is_kendalls_tau():
    rng = np.random.default_rng(5)
    for _ in range(200):
        ranks = np.array([rng.permutation(7), rng.permutation(7)], dtype=float)
        assert pair_agreements(ranks).mean() == pytest.approx((kendalltau(*ranks).statistic + 1) / 2, abs=1e-12)


def test_what_is_not_defined_is_nan():
    tied, alone = np.ones((3, 4)), np.array([[1.0, 2, 3]])
    assert np.isnan([kendall_w(tied), *tau_bs(tied), alpha(tied)]).all()
    assert np.isnan([kendall_w(alone), alpha(alone)]).all()
    assert tau_bs(alone) == []
    assert pair_agreements(alone).size == 0
    assert pair_agreements(tied).tolist() == [1.0] * 18


@pytest.mark.parametrize("measure", [kendall_w, alpha, lambda ranks: pair_agreements(ranks).mean()])
def test_agreement_is_one_where_all_agree_and_the_order_of_annotators_and_items_changes_nothing(measure):
    row = [2.0, 1, 3, 3, 1]
    assert measure(np.array([row, row, row])) == pytest.approx(1)
    ranks = np.array([row, [1, 2, 3, 3, 3], [3, 3, 2, 1, 1]])
    rng = np.random.default_rng(6)
    moved = ranks[rng.permutation(3)][:, rng.permutation(5)]
    assert measure(moved) == pytest.approx(measure(ranks), abs=1e-12)


# ---- intervals ----

PROMPTS = 50
LEVELS = np.arange(1.0, 5)


def simulated(rng: np.random.Generator, prompts: int) -> np.ndarray:
    """Three annotators rank four answers to each prompt, with noise around a truth that is clearer here than there.

    Every fourth answer is put on the level of its neighbour: [prompts, 3, 4].
    """
    truth = rng.normal(size=(prompts, 1, 4)) * rng.gamma(2, size=(prompts, 1, 1))
    seen = truth + rng.normal(size=(prompts, 3, 4))
    order = seen.argsort(2).argsort(2)
    return np.where((order == 3) & (rng.random(order.shape) < 0.5), 2, order) + 1.0


@pytest.fixture
def fewer_resamples(monkeypatch):
    """The quantiles of fewer vary more, and cover the truth about as often."""
    monkeypatch.setattr(intervals, "RESAMPLES", 400)


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    return simulated(np.random.default_rng(7), 3000)


def coverage(truth: float, values: np.ndarray, interval) -> float:
    """How often the interval of PROMPTS prompts, drawn from all of `values`, covers the truth of all."""
    rng = np.random.default_rng(8)
    trials = 1000
    covered = 0
    for trial in range(trials):
        low, high = interval(values[rng.integers(len(values), size=PROMPTS)], trial)
        covered += low <= truth <= high
    return covered / trials


@pytest.mark.usefixtures("fewer_resamples")
@pytest.mark.parametrize("measure", [lambda ranks: pair_agreements(ranks).mean(), kendall_w], ids=["pairs", "w"])
def test_interval_of_a_mean_over_prompts_covers_the_truth(many, measure):
    values = np.array([measure(ranks) for ranks in many])
    found = coverage(values.mean(), values, lambda drawn, seed: share_interval(drawn, range(PROMPTS)))
    assert 0.93 <= found <= 0.97


@pytest.mark.usefixtures("fewer_resamples")
def test_interval_of_alpha_covers_the_truth(many):
    totals = np.array([coincidences(ranks, LEVELS).ravel() for ranks in many])

    def alpha_of(sums: np.ndarray) -> np.ndarray:
        return ordinal_alpha(sums.reshape(-1, 4, 4))

    truth = alpha_of(totals.sum(0)).item()
    found = coverage(truth, totals, lambda drawn, seed: resampled_interval(drawn, alpha_of, seed))
    assert 0.93 <= found <= 0.97


def test_interval_of_a_mean_is_students():
    """With as many resamples as users get, the bootstrap of a mean comes close to the textbook's interval."""
    assert intervals.RESAMPLES == 2000
    values = np.random.default_rng(9).random(PROMPTS)
    half = t.ppf(0.975, PROMPTS - 1) * values.std(ddof=1) / np.sqrt(PROMPTS)
    low, high = share_interval(values, range(PROMPTS))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.08 * half)


def test_alpha_of_many_prompts_is_that_of_their_matrices_side_by_side(many):
    together = sum(coincidences(ranks, LEVELS) for ranks in many[:200])
    assert ordinal_alpha(together) == pytest.approx(alpha(np.concatenate(many[:200], 1)), abs=1e-12)
