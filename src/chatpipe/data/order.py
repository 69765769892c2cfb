"""Which block of text is sample number s of a training run: a pure function of the seed and of s.

Nothing is shuffled and nothing is stored, so the order is the same on any number of processes, after any resume, and
for any number of samples. A permutation of n numbers is computed one number at a time (a Feistel network with cycle
walking: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains", section 4).
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

ROUNDS = 4
_MASK = 2**64 - 1


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

    @property
    def samples_per_epoch(self) -> int:
        """How many samples make an epoch."""
        return self._ends[-1]

    def at(self, sample: int) -> tuple[int, int]:
        """(source, block) of sample number `sample`, counted from 0 over all epochs and processes."""
        epoch, place = divmod(sample, self.samples_per_epoch)
        slot = permuted(place, self.samples_per_epoch, _mixed(self.seed, 0, epoch))
        source = bisect_right(self._ends, slot)
        share, count = self.shares[source], self.blocks[source]
        turn, number = divmod(epoch * share + slot - (self._ends[source] - share), count)
        return source, permuted(number, count, _mixed(self.seed, source + 1, turn))


def permuted(number: int, size: int, key: int) -> int:
    """Where `number` goes in the permutation of range(size) that `key` chooses."""
    half = max(2, (max(size - 1, 1).bit_length() + 1) // 2)
    while True:
        number = _feistel(number, half, key)
        if number < size:  # else walk on: the cycle leads back into the range, and to no number twice
            return number


def _feistel(number: int, half: int, key: int) -> int:
    """A permutation of the numbers of 2 * `half` bits."""
    low = (1 << half) - 1
    left, right = number >> half, number & low
    for turn in range(ROUNDS):
        left, right = right, left ^ (_mixed(key, turn, right) & low)
    return left << half | right


def _mixed(*numbers: int) -> int:
    """64 bits that look random and depend on all `numbers` (splitmix64's finaliser, chained)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state
