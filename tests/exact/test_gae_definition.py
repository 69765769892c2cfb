"""T3: advantages against their definitions: GAE in O(n^2), whitening, and returns that are sums of raw advantages."""

import pytest
import tabular
import torch

from chatpipe.data.sequences import Sequences
from chatpipe.ppo.experience import Rollout
from chatpipe.ppo.maths import gae, whiten
from chatpipe.ppo.rollout import advantages


def check_gae(gamma, lam):
    torch.manual_seed(0)
    lengths = torch.tensor([1, 7, 3, 1, 12])
    rewards, values = torch.randn(2, int(lengths.sum()), dtype=torch.float64)
    rows = zip(rewards.split(lengths.tolist()), values.split(lengths.tolist()), strict=True)
    expected = torch.cat([by_definition(r, v, gamma, lam) for r, v in rows])
    assert torch.allclose(gae(rewards, values, lengths, gamma, lam), expected, rtol=0, atol=1e-13)


def by_definition(rewards, values, gamma, lam):
    """One row, A_t = sum_l (gamma lam)^l delta_{t+l} (arXiv 1506.02438, eq. 16); the value after the end is 0."""
    n = len(rewards)
    next_values = torch.cat([values[1:], values.new_zeros(1)])
    deltas = rewards + gamma * next_values - values
    return torch.stack([sum((gamma * lam) ** l * deltas[t + l] for l in range(n - t)) for t in range(n)])  # noqa: E741


def check_whitening():
    """Mean 0 and variance 1 over the tokens, whatever they were before."""
    advantages = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    whitened = whiten(advantages)
    assert whitened.mean().item() == pytest.approx(0, abs=1e-12)
    assert whitened.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(whitened, (advantages - advantages.mean()) / advantages.std(correction=0), atol=1e-6)


def check_experience():
    """Score on the last token, KL on every one; returns = raw advantages + values; learned from: whitened ones."""
    torch.manual_seed(0)
    completions = [[1, 2, 3], [2], [0, 1], [2, 2, 0, 3]]
    ended = torch.tensor([True, False, False, True])
    lengths, total = [3, 1, 2, 4], 10
    logprobs, ref_logprobs, values = torch.randn(3, total, dtype=torch.float64)
    scores = torch.randn(4, dtype=torch.float64)
    args = tabular.settings(kl_coef=0.3, missing_eos_penalty=0.7, lam=0.9)
    sequences = Sequences.of([[0]] * 4, completions, ended.tolist())
    made = advantages(Rollout(sequences, scores, logprobs, ref_logprobs, values), 0.3, args, lambda sums: sums)
    rows, penalised = [], scores - 0.7 * (~ended).double()
    for kl, score in zip((logprobs - ref_logprobs).split(lengths), penalised, strict=True):
        row = -0.3 * kl
        row[-1] += score
        rows.append(row)
    expected = [by_definition(r, v, 1.0, 0.9) for r, v in zip(rows, values.split(lengths), strict=True)]
    raw = torch.cat(expected)
    assert torch.allclose(made.rewards, torch.cat(rows), rtol=0, atol=1e-13)
    assert torch.allclose(made.returns - made.values, raw, rtol=0, atol=1e-13)
    assert torch.allclose(made.returns, raw + values, rtol=0, atol=1e-13)
    assert torch.allclose(made.advantages, (raw - raw.mean()) / raw.std(correction=0), atol=1e-6)


@pytest.mark.parametrize("gamma, lam", [(1.0, 1.0), (1.0, 0.95), (0.9, 0.8), (1.0, 0.0)])
def test_ragged_rows(gamma, lam):
    check_gae(gamma, lam)


def test_whitening():
    check_whitening()


def test_experience_by_hand():
    check_experience()


def test_without_discount_and_lambda_1_the_return_is_the_sum_of_rewards_to_come():
    lengths = torch.tensor([3, 2])
    rewards = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])
    values = torch.tensor([0.5, -1.0, 3.0, 2.0, 7.0])
    assert (gae(rewards, values, lengths, 1.0, 1.0) + values).tolist() == [7.0, 6.0, 4.0, 24.0, 16.0]
