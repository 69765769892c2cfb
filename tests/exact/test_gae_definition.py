"""T3: the recursion of `gae` against the definition of the estimator, A_t = sum_l (gamma lam)^l delta_{t+l}."""

import pytest
import torch

from chatpipe.ppo.advantages import gae


def by_definition(rewards, values, gamma, lam):
    """One row, O(n^2) (arXiv 1506.02438, eq. 16); the value after the end is 0."""
    n = len(rewards)
    next_values = torch.cat([values[1:], values.new_zeros(1)])
    deltas = rewards + gamma * next_values - values
    return torch.stack([sum((gamma * lam) ** l * deltas[t + l] for l in range(n - t)) for t in range(n)])  # noqa: E741


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (1.0, 0.95), (0.9, 0.8), (1.0, 0.0)])
def test_ragged_rows(gamma, lam):
    torch.manual_seed(0)
    lengths = torch.tensor([1, 7, 3, 1, 12])
    rewards, values = torch.randn(2, int(lengths.sum()), dtype=torch.float64)
    rows = zip(rewards.split(lengths.tolist()), values.split(lengths.tolist()), strict=True)
    expected = torch.cat([by_definition(r, v, gamma, lam) for r, v in rows])
    assert torch.allclose(gae(rewards, values, lengths, gamma, lam), expected, rtol=0, atol=1e-13)


def test_without_discount_and_lambda_1_the_return_is_the_sum_of_rewards_to_come():
    lengths = torch.tensor([3, 2])
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    values = torch.tensor([0.5, -1.0, 3.0, 2.0, 7.0])
    assert (gae(rewards, values, lengths, 1.0, 1.0) + values).tolist() == [7.0, 6.0, 4.0, 24.0, 16.0]
