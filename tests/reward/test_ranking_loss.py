"""The ranking loss against its definition, pair by pair."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatpipe.reward import reward_trainer


def ranking_loss(scores, ranks, sizes, margins=None):
    """The loss of prompts whose responses follow each other in `scores` and `ranks`, `sizes` of each."""
    of_prompts = (torch.nn.utils.rnn.pad_sequence(flat.split(sizes.tolist()), True) for flat in (scores, ranks))
    return reward_trainer.ranking_loss(*of_prompts, margins)


def by_definition(scores, ranks, sizes):
    """InstructGPT eq. 1 with loops: per prompt, the mean of -log sigmoid over pairs that are not tied."""
    losses, start = [], 0
    for size in sizes:
        pairs = [
            math.log1p(math.exp(scores[worse] - scores[better]))
            for better in range(start, start + size)
            for worse in range(start, start + size)
            if ranks[better] < ranks[worse]
        ]
        losses.append(sum(pairs) / len(pairs) if pairs else 0.0)
        start += size
    return losses


def some_prompts(sizes, seed=0, ties=True):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(sum(sizes), generator=generator, dtype=torch.float64) * 3
    if ties:
        ranks = torch.randint(1, 4, (sum(sizes),), generator=generator)
    else:
        ranks = torch.cat([torch.randperm(size, generator=generator) + 1 for size in sizes])
    return scores.requires_grad_(), ranks, torch.tensor(sizes)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.integers(0, 10**6), st.booleans())
def test_is_the_mean_over_untied_pairs_of_each_prompt(sizes, seed, ties):
    scores, ranks, size = some_prompts(sizes, seed, ties)
    expected = by_definition(scores.tolist(), ranks.tolist(), sizes)
    assert ranking_loss(scores, ranks, size).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_pair_is_minus_log_sigmoid_of_the_margin():
    loss = ranking_loss(torch.tensor([0.3, 1.8]), torch.tensor([2, 1]), torch.tensor([2]))
    assert loss.item() == pytest.approx(-math.log(1 / (1 + math.exp(-1.5))))


def test_gradient_of_each_prompt_sums_to_zero():
    # only differences count, so a prompt cannot push all its scores up
    sizes = [4, 9, 2, 5]
    scores, ranks, size = some_prompts(sizes)
    ranking_loss(scores, ranks, size).sum().backward()
    for gradient in scores.grad.split(sizes):
        assert gradient.abs().max() > 0
        assert gradient.sum().abs() < 1e-12


def test_prompts_of_different_k_weigh_the_same():
    # equal scores: each pair costs log 2 and so does each prompt, whether it has 6 pairs or 36
    loss = ranking_loss(torch.zeros(13), torch.tensor([*range(4), *range(9)]), torch.tensor([4, 9]))
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)


def test_tied_pairs_do_not_count():
    scores = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([1, 1, 2]), torch.tensor([3]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-0.5)) + math.log1p(math.exp(2.5))) / 2)


def test_all_tied_prompt_gives_exactly_zero_and_no_gradient():
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([2, 2, 2, 1, 2]), torch.tensor([3, 2]))
    loss.sum().backward()
    assert loss[0].item() == 0
    assert scores.grad[:3].tolist() == [0, 0, 0]
    assert loss[1].item() > 0


def test_order_of_responses_does_not_matter():
    scores, ranks, size = some_prompts([6])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ranking_loss(scores[order], ranks[order], size), ranking_loss(scores, ranks, size))


def test_huge_margins_stay_finite():
    scores = torch.tensor([-1e6, 1e6], requires_grad=True)
    ranking_loss(scores, torch.tensor([1, 2]), torch.tensor([2])).sum().backward()
    assert scores.grad.tolist() == [-1.0, 1.0]


def test_a_margin_is_what_the_better_one_is_to_be_ahead_by():
    scores, ranks, sizes = torch.tensor([0.3, 1.8, 0.0, 1.0]), torch.tensor([2, 1, 2, 1]), torch.tensor([2, 2])
    loss = ranking_loss(scores, ranks, sizes, torch.tensor([2.0, 0.0]))
    assert loss.tolist() == pytest.approx([math.log1p(math.exp(2.0 - 1.5)), math.log1p(math.exp(-1.0))])
    plain = ranking_loss(scores, ranks, sizes)
    assert torch.equal(ranking_loss(scores, ranks, sizes, torch.zeros(2)), plain)
