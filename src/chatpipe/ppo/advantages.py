"""Generalised advantage estimation over ragged rows, and the whitening of advantages."""

from collections.abc import Callable

import torch
from torch import Tensor

SumOverRanks = Callable[[Tensor], Tensor]
"""Adds up a float64 tensor over all processes, so that statistics are those of the whole batch."""


def on_one_rank(sums: Tensor) -> Tensor:
    """The sum over ranks where there is one."""
    return sums


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float) -> Tensor:
    """Advantages [N] of rows that lie one after another in the flat rewards and values [N]; lengths: [n], sum N.

    A_t = delta_t + gamma * lam * A_{t+1},  delta_t = r_t + gamma * V_{t+1} - V_t   (GAE, arXiv 1506.02438, eq. 16)

    V_t is the value before token t. After a row's last token both V and A are 0: the episode is over, also where the
    completion was cut off. The returns, the value model's targets, are A + V.
    """
    advantages = torch.empty_like(rewards)
    starts = lengths.cumsum(0) - lengths
    next_value, next_advantage = rewards.new_zeros(2, len(lengths))
    for t in range(int(lengths.max()) - 1, -1, -1):
        (alive,) = (lengths > t).nonzero(as_tuple=True)  # rows that have a token t; the others wait at 0
        at = starts[alive] + t
        delta = rewards[at] + gamma * next_value[alive] - values[at]
        advantages[at] = delta + gamma * lam * next_advantage[alive]
        next_value[alive], next_advantage[alive] = values[at], advantages[at]
    return advantages


def whiten(advantages: Tensor, sum_over_ranks: SumOverRanks = on_one_rank) -> Tensor:
    """Advantages [N] shifted and scaled to mean 0 and variance 1 over the tokens of all ranks.

    (A - mean) / sqrt(var + 1e-8), var = mean((A - mean)^2)   (lm-human-preferences, `whiten`)

    Equal advantages become 0. To be called after the returns are computed: they are sums of raw advantages.
    """
    wide = advantages.double()
    count, total = sum_over_ranks(torch.stack([wide.new_tensor(len(wide)), wide.sum()]))
    centred = wide - total / count
    variance = sum_over_ranks(centred.square().sum()) / count
    return (centred * (variance + 1e-8).rsqrt()).to(advantages.dtype)
