"""Which block of text is sample number s of a training run: a pure function of the seed and of s.

Nothing is shuffled and nothing is stored, so the order is the same on any number of processes, after any resume, and
for any number of samples. A permutation of n numbers is computed one number at a time (a Feistel network with cycle
walking: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 4).
"""

from collections.abc import Sequence
from functools import reduce
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
AT_ONCE = 1024
"""Samples whose blocks are computed together: one by one they took 1 % of a small model's step."""

Numbers = NDArray[np.uint64]


class SampleOrder:
    """The order of samples over several sources of blocks.

    In an epoch a source with n blocks and weight w has round(w * n) samples, at least one. All epochs together go
    through its blocks in one random order after the other, so that each is read as often as any other of the source,
    up to one, also where w is 0.3 or 2.5.
    """

    def __init__(self, blocks: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """`blocks` and `weights` of each source; raises ValueError where a source has no block."""
        if not blocks or min(blocks) < 1:
            raise ValueError("each source needs a block")
        self.blocks, self.seed = list(blocks), seed
        self.shares = [max(1, round(weight * count)) for weight, count in zip(weights, blocks, strict=True)]
        self._ends = list(accumulate(self.shares))
        self._first, self._known = -1, [(0, 0)]

    @property
    def samples_per_epoch(self) -> int:
        """How many samples make an epoch."""
        return self._ends[-1]

    def at(self, sample: int) -> tuple[int, int]:
        """(source, block) of sample number `sample`, counted from 0 over all epochs and processes."""
        place = sample % AT_ONCE
        if self._first != sample - place:
            self._first, self._known = sample - place, self._from(sample - place)
        return self._known[place]

    def _from(self, first: int) -> list[tuple[int, int]]:
        """(source, block) of the `AT_ONCE` samples from number `first` on."""
        samples = np.arange(first, first + AT_ONCE, dtype=np.uint64)
        per_epoch = _of([self.samples_per_epoch])
        epoch, place = np.divmod(samples, per_epoch)
        slot = permuted(place, per_epoch, _mixed(_of([self.seed]), _of([0]), epoch))
        source = np.searchsorted(_of(self._ends), slot, side="right")
        share, count, end = (_of(numbers)[source] for numbers in (self.shares, self.blocks, self._ends))
        turn, number = np.divmod(epoch * share + slot - (end - share), count)
        block = permuted(number, count, _mixed(_of([self.seed]), source.astype(np.uint64) + _of([1]), turn))
        return list(zip(source.tolist(), block.tolist(), strict=True))


def permuted(numbers: Numbers, sizes: Numbers, keys: Numbers) -> Numbers:
    """Where each of `numbers` goes in the permutation of range(size) that its key chooses; sizes up to 2**53."""
    numbers, sizes, keys = np.broadcast_arrays(numbers, sizes, keys)
    bits = np.frexp(np.maximum(sizes - _of([1]), _of([1])).astype(np.float64))[1]
    halves = np.maximum(2, (bits + 1) // 2).astype(np.uint64)
    found = _feistel(numbers, halves, keys)
    while (outside := np.flatnonzero(found >= sizes)).size:
        # Walk on: the cycle leads back into the range, and to no number twice.
        found[outside] = _feistel(found[outside], halves[outside], keys[outside])
    return found


def _feistel(numbers: Numbers, halves: Numbers, keys: Numbers) -> Numbers:
    """A permutation of the numbers of 2 * half bits."""
    low = (_of([1]) << halves) - _of([1])
    left, right = numbers >> halves, numbers & low
    for turn in range(ROUNDS):
        left, right = right, left ^ (_mixed(keys, _of([turn]), right) & low)
    return left << halves | right


def _mixed(*numbers: Numbers) -> Numbers:
    """64 bits that look random and depend on all `numbers` (splitmix64's finaliser, chained)."""
    return reduce(_chained, numbers, _of([0]))


def _chained(state: Numbers, number: Numbers) -> Numbers:
    state = state + number + _of([0x9E3779B97F4A7C15])
    state = (state ^ (state >> _of([30]))) * _of([0xBF58476D1CE4E5B9])
    state = (state ^ (state >> _of([27]))) * _of([0x94D049BB133111EB])
    return state ^ (state >> _of([31]))


def _of(numbers: Sequence[int]) -> Numbers:
    """As an array, in which 64 bits overflow without a warning."""
    return np.array([number % 2**64 for number in numbers], np.uint64)
