"""Batches of rows of different length: which rows go together, and padding them to one tensor."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MAX_PADDING = 0.05
"""The most padding in a micro-batch. With a tenth, a small model on a CPU would be 6 % faster."""


def length_sorted(lengths: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split rows of `lengths` [n] into micro-batches of rows of similar length: tuple of row numbers, int64.

    A micro-batch is padded to its longest row. It has at most as many tokens, padding included, as `size` of the
    longest rows, and at most `MAX_PADDING` of them is padding. The longest rows come first, so running
    out of memory happens at once.
    """
    order = lengths.argsort(descending=True, stable=True)
    descending = lengths[order].tolist()
    return order.split(similar_runs(descending, MAX_PADDING, size * max(descending, default=0)))


def similar_runs(lengths: Sequence[int], max_padding: float, max_tokens: float = math.inf) -> list[int]:
    """Sizes of runs of neighbouring rows of `lengths` that go together; they sum to the number of rows.

    A run padded to its longest row has at most the share `max_padding` of padding, and at most `max_tokens` tokens with
    padding (or one row).
    """
    sizes: list[int] = []
    longest = rows = tokens = 0
    for length in lengths:
        padded = max(longest, length) * (rows + 1)
        if rows and (padded > max_tokens or padded - tokens - length > max_padding * padded):
            sizes.append(rows)
            longest = rows = tokens = 0
        longest = max(longest, length)
        rows, tokens = rows + 1, tokens + length
    return [*sizes, rows] if rows else []


def equal_tokens(lengths: Tensor, max_tokens: int) -> tuple[Tensor, ...]:
    """Split rows of `lengths` [n] into micro-batches of similar length and equally many tokens: row numbers, int64.

    For models that read rows without padding. A batch has about `max_tokens` tokens, at most one row more; batches
    differ little in their tokens. The longest rows come first.
    """
    order = lengths.argsort(descending=True, stable=True)
    descending = lengths[order]
    total = int(descending.sum())
    parts = -(-total // max_tokens)
    middles = descending.cumsum(0) - descending / 2
    sizes = (middles * parts / total).long().bincount(minlength=parts)
    return order.split(sizes[sizes > 0].tolist())


def pad_right(rows: Sequence[Sequence[int] | Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """`rows` as one tensor [n, longest] padded on the right with `fill`, and its mask, 1 on tokens: both int64."""
    padded = pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=fill)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long()
