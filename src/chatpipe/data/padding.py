"""Rows of different length in one tensor: which rows go together, and how they are laid out."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

MAX_PADDING = 0.05
"""Share of padding in a micro-batch. At a tenth a small model on a CPU would be 6 % quicker, on half of the padding."""


def length_sorted(lengths: Tensor, size: int) -> tuple[Tensor, ...]:
    """Split rows of `lengths` [n] into micro-batches of rows of similar length: tuple of row numbers, int64.

    A micro-batch is padded to its longest row. It has at most as many tokens, padding included, as `size` of the
    longest rows, and at most `MAX_PADDING` of them is padding. The longest rows come first: if they do not
    fit in memory, one knows at once.
    """
    order = lengths.argsort(descending=True, stable=True)
    descending = lengths[order].tolist()
    return order.split(similar_runs(descending, MAX_PADDING, size * max(descending, default=0)))


def similar_runs(lengths: Sequence[int], max_padding: float, max_tokens: float = math.inf) -> list[int]:
    """How many neighbouring rows of `lengths` go together, run after run, as `length_sorted` has it.

    Of the tokens of a run, padded to its longest row, at most the share `max_padding` is padding, and there are at most
    `max_tokens` of them, padding included (or one row).
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

    For what does without padding. There are as many as `max_tokens` each (and one row more) take, the longest rows
    first. From one batch to the next their numbers of tokens differ little.
    """
    order = lengths.argsort(descending=True, stable=True)
    descending = lengths[order]
    total = int(descending.sum())
    parts = -(-total // max_tokens)
    middles = descending.cumsum(0) - descending / 2
    sizes = (middles * parts / total).long().bincount(minlength=parts)
    return order.split(sizes[sizes > 0].tolist())


def pad_right(rows: Sequence[Sequence[int] | Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """`rows` as one tensor [n, longest] with `fill` behind them, and its mask, 1 on tokens: both int64."""
    padded = pad_sequence([torch.as_tensor(row) for row in rows], batch_first=True, padding_value=fill)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).long()
