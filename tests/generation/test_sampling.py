"""What `sample` draws, checked on a grid of random numbers so that the counts are exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chatpipe.errors import UsageError
from chatpipe.generation import SamplingParams
from chatpipe.generation.sampling import BLOCK, BROKEN, random_streams, sample, uniform_numbers

GRID = 4096
LARGEST_UNIFORM = 1 - 2.0**-32
PROBS = torch.tensor([0.05, 0.4, 0.1, 0.25, 0.2])


def shares(logits: Tensor, **params: float) -> Tensor:
    """The share of each token when `sample` is given every random number of a fine grid."""
    uniforms = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    tokens = sample(logits.expand(GRID, -1), uniforms, SamplingParams(1, **params))
    return torch.bincount(tokens, minlength=logits.shape[-1]) / GRID


@pytest.mark.parametrize(
    "params, expected",
    [
        ({}, PROBS),
        ({"temperature": 0.5}, PROBS**2),
        ({"temperature": 2.0}, PROBS**0.5),
        ({"temperature": 0.0}, torch.tensor([0, 1.0, 0, 0, 0])),
        ({"top_k": 2}, torch.tensor([0, 0.4, 0, 0.25, 0])),
        ({"top_k": 99}, PROBS),
        ({"top_p": 0.7}, torch.tensor([0, 0.4, 0, 0.25, 0.2])),  # .4 + .25 does not reach .7 yet
        ({"top_p": 0.01}, torch.tensor([0, 1.0, 0, 0, 0])),
        ({"top_k": 3, "top_p": 0.6}, torch.tensor([0, 0.4, 0, 0.25, 0])),  # of .85: .4 is 47 %, .65 is 76 %
        ({"min_p": 0.49}, torch.tensor([0, 0.4, 0, 0.25, 0.2])),  # .2 is the half of .4
        ({"min_p": 0.51}, torch.tensor([0, 0.4, 0, 0.25, 0])),
        ({"min_p": 1.0}, torch.tensor([0, 1.0, 0, 0, 0])),
        ({"temperature": 2.0, "min_p": 0.7}, torch.tensor([0, 0.4**0.5, 0, 0.25**0.5, 0.2**0.5])),
        ({"top_k": 3, "top_p": 0.9, "min_p": 0.6}, torch.tensor([0, 0.4, 0, 0.25, 0])),
        ({"temperature": 0.5, "top_p": 0.6}, torch.tensor([0, 0.16, 0, 0.0625, 0])),  # of the sharpened: 57 %, 79 %
        ({"excluded": (range(1, 2), range(4, 2**31))}, torch.tensor([0.05, 0, 0.1, 0.25, 0])),
        ({"excluded": (range(1, 2),), "temperature": 0.0}, torch.tensor([0, 0, 0, 1.0, 0])),
        ({"excluded": (range(1, 2),), "top_k": 2, "temperature": 0.5}, torch.tensor([0, 0, 0, 0.0625, 0.04])),
        ({"excluded": (range(1, 2),), "top_p": 0.7}, torch.tensor([0, 0, 0, 0.25, 0.2])),  # .75 of .6
    ],
)
def test_the_shares_are_the_allowed_probabilities(params, expected):
    torch.testing.assert_close(shares(PROBS.log(), **params), expected / expected.sum(), atol=1.01 / GRID, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.one_of(st.just(-torch.inf), st.floats(-30, 30)), min_size=2, max_size=30).filter(
        lambda logits: max(logits) > -torch.inf
    ),
    uniform=st.one_of(st.sampled_from([0.0, LARGEST_UNIFORM]), st.floats(0, LARGEST_UNIFORM)),
)
def test_a_token_of_probability_zero_is_never_drawn(logits, uniform):
    wide = torch.full((1, 3 * BLOCK), -torch.inf)  # in several blocks, most of them without weight
    places = torch.arange(len(logits)) * 13
    wide[0, places] = torch.tensor(logits)
    tokens = sample(wide, torch.tensor([uniform], dtype=torch.float64), SamplingParams(max_new_tokens=1))
    assert wide[0, tokens.item()] > -torch.inf


@pytest.mark.parametrize("uniform, token", [(0.0, 0), (0.5, 25_000), (LARGEST_UNIFORM, 49_999)])
def test_a_large_vocabulary(uniform, token):
    tokens = sample(torch.zeros(1, 50_000), torch.tensor([uniform], dtype=torch.float64), SamplingParams(1))
    assert tokens.item() == token


@pytest.mark.parametrize("vocabulary", [BLOCK - 1, BLOCK, BLOCK + 1, 1000])
def test_every_token_has_its_share_of_the_random_numbers(vocabulary):
    """The inverse of the cumulative distribution, against a plain float64 computation of it."""
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0))
    uniforms = (torch.arange(5000, dtype=torch.float64) + 0.5) / 5000
    tokens = sample(logits.expand(5000, -1), uniforms, SamplingParams(1))
    cumulative = logits[0].softmax(-1).double().cumsum(-1)
    assert tokens.tolist() == torch.searchsorted(cumulative / cumulative[-1], uniforms, right=True).tolist()


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}])
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_marked(params, broken):
    logits = torch.zeros(3, 300)
    logits[1, 200] = broken
    logits[2, :299] = -torch.inf
    tokens = sample(logits, torch.zeros(3, dtype=torch.float64), SamplingParams(1, **params))
    assert tokens[0] >= 0
    assert tokens[1:].tolist() == [BROKEN, 299]


def test_streams_depend_on_the_prompt_and_how_often_it_came():
    one, other = [3, 1, 2], [3, 1]
    first, second, third = random_streams([one, other, one])
    assert len({first, second, third}) == 3
    assert random_streams([other, one, [7], one])[:2] == [second, first]
    assert random_streams([one, [7], one])[2] == third


def test_random_numbers_depend_on_seed_stream_and_step_alone():
    numbers = uniform_numbers(seed=3, stream=5, count=1000)
    np.testing.assert_array_equal(uniform_numbers(3, 5, 10), numbers[:10])
    assert not np.array_equal(uniform_numbers(4, 5, 10), numbers[:10])
    assert not np.array_equal(uniform_numbers(3, 6, 10), numbers[:10])
    assert not np.array_equal(uniform_numbers(-3, 5, 10), numbers[:10])
    assert numbers.min() >= 0
    assert numbers.max() < 1


def test_random_numbers_are_uniform_over_streams():
    first = np.sort([uniform_numbers(0, index, 1)[0] for index in range(2000)])
    kolmogorov = np.abs(first - (np.arange(2000) + 0.5) / 2000).max()
    assert kolmogorov < 1.95 / 2000**0.5  # the 99.9 % quantile


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"stop": [""]},
        {"stop": "END"},
        {"stop": [3]},
    ],
)
def test_impossible_parameters_are_refused(values):
    with pytest.raises(UsageError, match=next(iter(values))):
        SamplingParams(**{"max_new_tokens": 4} | values)
