import math

import pytest
import torch

from chatpipe.ppo.maths import k1, shape_rewards, whiten

LENGTHS = torch.tensor([3, 1, 2])
SCORES, ENDED = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([True, True, False])
K1 = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, -6.0])


def test_score_lands_on_the_last_token_and_not_a_step_later():
    """On EOS, or where the completion was cut off on its last token (trl #1893, #3750)."""
    rewards = shape_rewards(SCORES, ENDED, K1, LENGTHS, kl_coef=0.5, missing_eos_penalty=None)
    assert rewards.tolist() == [-0.5, -1.0, -1.5 + 10, -2.0 + 20, -2.5, 3.0 + 30]


def test_only_completions_without_eos_are_penalised():
    rewards = shape_rewards(SCORES, ENDED, K1, LENGTHS, kl_coef=0.0, missing_eos_penalty=7.0)
    assert rewards.tolist() == [0, 0, 10, 20, 0, 23]


def test_the_kl_penalty_has_no_gradient():
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    penalty = k1(logprobs, torch.tensor([-1.5, -1.0]))
    assert penalty.tolist() == [0.5, -1.0]
    assert not penalty.requires_grad


def test_whitened_advantages_have_mean_0_and_variance_1():
    advantages = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3 + 5
    whitened = whiten(advantages)
    assert whitened.mean().item() == pytest.approx(0, abs=1e-6)
    assert whitened.var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert whitened.argsort().equal(advantages.argsort())


def test_equal_advantages_become_0():
    for constant in (0.1, 1e6):
        assert whiten(torch.full((17,), constant)).abs().max() < 1e-5


def test_whitening_is_over_all_ranks():
    """Two ranks with different numbers of tokens, together as one."""
    ranks = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0])
    sums = []
    for _ in range(2):  # what both ranks contribute to the first sum, then to the second
        sums.append(sum(_contribution(rank, sums) for rank in ranks))
    expected = whiten(torch.cat(ranks))
    for rank, own in zip(ranks, expected.split([3, 1]), strict=True):
        answers = iter(sums)
        assert torch.allclose(whiten(rank, lambda _, answers=answers: next(answers)), own)
    assert expected.sum().item() == pytest.approx(0, abs=1e-6)


class _Asked(Exception):
    pass


def _contribution(rank, known_sums):
    """What `rank` hands to the next reduction after those whose results are known."""
    answers = iter(known_sums)
    asked = []

    def reduce(value):
        try:
            return next(answers)
        except StopIteration:
            asked.append(value)
            raise _Asked from None

    with pytest.raises(_Asked):
        whiten(rank, reduce)
    return asked[0]


def test_a_score_that_is_not_a_number_is_not_hidden():
    rewards = shape_rewards(torch.tensor([math.nan]), torch.tensor([True]), K1[:3], torch.tensor([3]), 0.1, None)
    assert rewards[-1].isnan()
