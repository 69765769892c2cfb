from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatpipe.data.text_blocks import SampleOrder


def test_the_order_looks_random():
    """Neighbours end up apart, and every block is about as likely to come first."""
    order = SampleOrder([1000], [1.0], seed=7)
    blocks = [order.at(sample)[1] for sample in range(1000)]
    steps = [abs(a - b) for a, b in zip(blocks, blocks[1:], strict=False)]
    assert sum(steps) / len(steps) == pytest.approx(1000 / 3, rel=0.1)  # of independent places
    firsts = Counter(SampleOrder([10], [1.0], seed).at(0)[1] for seed in range(2000))
    assert all(150 < firsts[block] < 250 for block in range(10))


def test_the_order_stays_what_it_is():
    """Resume points of earlier versions continue in it."""
    order = SampleOrder([1000, 37, 5], [0.3, 2.5, 1.0], seed=7)
    read = [order.at(sample) for sample in (0, 1, 1023, 1024, 5 * 10**9)]
    assert read == [
        (1, 5),
        (1, 28),
        (0, 915),
        (0, 454),
        (0, 292),
    ]


def test_any_sample_can_be_asked_for_first():
    seen = [SampleOrder([50, 7], [1.0, 2.5], seed=3).at(sample) for sample in (140, 3, 70)]
    order = SampleOrder([50, 7], [1.0, 2.5], seed=3)
    every = [order.at(sample) for sample in range(141)]
    assert seen == [every[140], every[3], every[70]]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.integers(0, 99))
def test_an_epoch_has_each_block_once(blocks, seed):
    order = SampleOrder(blocks, [1.0] * len(blocks), seed)
    every = sorted((source, block) for source, count in enumerate(blocks) for block in range(count))
    for epoch in range(3):
        start = epoch * order.samples_per_epoch
        assert sorted(order.at(start + i) for i in range(order.samples_per_epoch)) == every


def test_epochs_and_seeds_differ_in_their_order():
    runs = [SampleOrder([50], [1.0], seed) for seed in (0, 1)]
    orders = [[run.at(epoch * 50 + i) for i in range(50)] for run in runs for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert SampleOrder([50], [1.0], 0).at(7) == orders[0][7]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 4)), min_size=1, max_size=3), st.integers(1, 6))
def test_a_weight_is_how_often_a_source_is_read_in_an_epoch(sources, epochs):
    blocks, weights = [count for count, _ in sources], [weight for _, weight in sources]
    order = SampleOrder(blocks, weights, seed=3)
    counts = Counter(order.at(i) for i in range(epochs * order.samples_per_epoch))
    for source, (count, weight) in enumerate(sources):
        times = [counts[source, block] for block in range(count)]
        assert sum(times) == epochs * max(1, round(weight * count))
        assert max(times) - min(times) <= 1  # no block is read twice more often than another


def test_each_epoch_keeps_the_proportions():
    order = SampleOrder([1000, 100], [0.5, 3.0], seed=0)
    assert order.samples_per_epoch == 800
    for epoch in range(3):
        counts = Counter(order.at(epoch * 800 + i)[0] for i in range(800))
        assert counts == {0: 500, 1: 300}


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="needs a block"):
        SampleOrder([3, 0], [1.0, 1.0], 0)
