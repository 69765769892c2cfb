"""The engine writes what a plain loop writes, and the checks of that prove something: each known bug is caught."""

from functools import cache

import pytest
import torch
from drawing import FINITE_EOS, ids_of
from plain_sampler import plain_completions
from sampler_mutants import MUTANTS
from transformers import PreTrainedModel

from chatpipe.generation import SamplingParams, generate, sampling
from chatpipe.generation.ways import Way, way_of
from conftest import make_tiny_model
from mutation import replaced

PARAMS = [
    SamplingParams(10),
    SamplingParams(10, temperature=0.7, top_k=12, top_p=0.9, min_p=0.1),
    SamplingParams(10, temperature=1.4, min_p=0.2),
]
PROMPTS = [[3, 1, 2], [5], [5], [8, 9, 10, 11, 3, 4], [5], [7, 7], [3, 1, 2], [20] * 9, [1, 30, 2, 6], [0]]
GRID = 4096
PROBS = torch.tensor([0.05, 0.3, 0.1, 0.3, 0.25])
SHARES = [
    ({"top_k": 1}, [0, 1, 0, 1, 0]),  # both of the likeliest
    ({"top_k": 3, "top_p": 0.65}, [0, 0.3, 0, 0.3, 0]),  # two of the three have 71 %
    ({"top_p": 0.72}, [0, 0.3, 0, 0.3, 0.25]),
    ({"min_p": 0.3}, [0, 0.3, 0.1, 0.3, 0.25]),  # .1 is a third of .3
    ({"temperature": 0.5, "top_p": 0.9}, [0, 0.09, 0, 0.09, 0.0625]),
    ({"temperature": 2.0, "min_p": 0.5}, [0, 0.3**0.5, 0.1**0.5, 0.3**0.5, 0.25**0.5]),
]


@cache
def model_of_the_engine() -> PreTrainedModel:
    """Tried before a bug is put into the engine: the trial would find it, and `model.generate` hide it."""
    model = make_tiny_model("gpt2").double()
    assert way_of(model) is Way.ENGINE
    return model


def check_loop() -> None:
    model = model_of_the_engine()
    for params in PARAMS:
        expected = plain_completions(model, PROMPTS, params, FINITE_EOS, seed=5)
        completions = generate(model, PROMPTS, params, FINITE_EOS, seed=5, slots=4)
        assert ids_of(completions) == expected
        assert [completion.ended for completion in completions] == [ids[-1] == FINITE_EOS for ids in expected]


def drawn(logits: torch.Tensor, uniforms: torch.Tensor, **params: float) -> torch.Tensor:
    return sampling.sample(logits.expand(len(uniforms), -1), uniforms.double(), SamplingParams(1, **params))


def check_shares() -> None:
    """The share of each token when every random number of a fine grid is used once."""
    uniforms = (torch.arange(GRID).double() + 0.5) / GRID
    for params, weights in SHARES:
        found = torch.bincount(drawn(PROBS.log(), uniforms, **params), minlength=len(PROBS)) / GRID
        expected = torch.tensor(weights) / sum(weights)
        assert (found - expected).abs().max() <= 1.01 / GRID, params


def check_large_vocabulary() -> None:
    """Each of 50,000 tokens has the random numbers from the sum of those before it on, to a thousandth of its own."""
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    weights, tokens = logits.softmax(-1).double(), torch.arange(0, 50_000, 211)
    starts = weights.cumsum(-1) - 0.999 * weights
    assert torch.equal(drawn(logits, starts[tokens] / weights.sum()), tokens)


def check_bfloat16() -> None:
    """Logits in bfloat16 are drawn from as the same numbers in float64."""
    logits = torch.randn(2000, generator=torch.Generator().manual_seed(0)).bfloat16()
    uniforms = (torch.arange(1000).double() + 0.5) / 1000
    assert (drawn(logits, uniforms) == drawn(logits.double(), uniforms)).double().mean() > 0.999


def check_no_weight() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    assert drawn(logits, torch.tensor([0.0, 0.5, 1 - 2.0**-32])).tolist() == [1, 3, 3]


CHECKS = {
    "loop": check_loop,
    "shares": check_shares,
    "large vocabulary": check_large_vocabulary,
    "bfloat16": check_bfloat16,
    "no weight": check_no_weight,
}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant):
    """By a failed assertion: a crash shows nothing."""
    model_of_the_engine()
    with replaced(mutant.true, mutant.make(mutant.true)), pytest.raises(AssertionError):
        CHECKS[mutant.killed_by]()


@pytest.mark.parametrize("check", CHECKS)
def test_true_code_passes(check):
    CHECKS[check]()
