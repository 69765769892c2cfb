from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatpipe.data.sample_order import SampleOrder, permuted


def places(numbers, size, keys) -> list[int]:
    return permuted(*(np.array(some, np.uint64, ndmin=1) for some in (numbers, size, keys))).tolist()


@given(st.integers(1, 700), st.integers(0, 2**64 - 1))
def test_each_number_goes_somewhere_else(size, key):
    assert sorted(places(range(size), size, key)) == list(range(size))


def test_the_order_looks_random():
    """Neighbours end up apart, and every place is about as likely for every number."""
    size = 1000
    order = places(range(size), size, 7)
    steps = [abs(a - b) for a, b in zip(order, order[1:], strict=False)]
    assert sum(steps) / len(steps) == pytest.approx(size / 3, rel=0.1)  # of independent places
    firsts = Counter(places(0, 10, range(10_000)))
    assert all(800 < firsts[place] < 1200 for place in range(10))


def test_one_number_of_a_huge_permutation_needs_no_others():
    assert 0 <= places(123_456_789_012, 10**12, 1)[0] < 10**12


def test_the_order_stays_what_it_is():
    """Resume points of earlier versions go on in it."""
    order = SampleOrder([1000, 37, 5], [0.3, 2.5, 1.0], seed=7)
    read = [order.at(sample) for sample in (0, 1, 1023, 1024, 5 * 10**12)]
    assert read == [
        (0, 99),
        (0, 899),
        (0, 64),
        (1, 32),
        (0, 610),
    ]


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
