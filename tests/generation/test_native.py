"""The decode engine as a backend: the conformance suite, and what it promises beyond it."""

import pytest
from conformance import FINITE_EOS, GREEDY, NEVER, SAMPLED, Conformance, ids_of, transformers_greedy

from chatpipe.generation import SamplingParams, generate


class TestNative(Conformance):
    backend = "native"


@pytest.mark.parametrize("params", [SAMPLED, SamplingParams(12, 1.5, top_k=35, top_p=0.99, min_p=0.001)])
def test_a_seed_gives_the_same_tokens_for_any_number_of_slots(tiny_model, architecture, prompts, params):
    model = tiny_model(architecture).double()  # in fp32 the batch size may round a token's share away
    one = generate(model, prompts, params, FINITE_EOS, seed=5, slots=1)
    assert {completion.ended for completion in one} == {True, False}  # so the rows do finish at different times
    assert ids_of(generate(model, prompts, params, FINITE_EOS, seed=5, slots=3)) == ids_of(one)
    assert ids_of(generate(model, prompts, params, FINITE_EOS, seed=5, slots=64)) == ids_of(one)
    assert ids_of(generate(model, prompts[:4], params, FINITE_EOS, seed=5)) == ids_of(one[:4])
    assert ids_of(generate(model, prompts, params, FINITE_EOS, seed=6)) != ids_of(one)


def test_a_seed_gives_a_prompt_the_same_tokens_in_any_order(tiny_model, prompts):
    """Also with others beside it; of equal prompts the first gets the same as the first."""
    model, prompts = tiny_model("gpt2").double(), [*prompts, prompts[2]]
    completions = ids_of(generate(model, prompts, SAMPLED, FINITE_EOS, seed=5, slots=3))
    assert completions[2] != completions[-1]
    order = [*range(20, -1, -3), *range(19, -1, -3), *range(18, -1, -3)]
    mixed = [[9] * 12, *(prompts[place] for place in order), [8], prompts[2]]
    others = ids_of(generate(model, mixed, SAMPLED, FINITE_EOS, seed=5, slots=5))
    assert others[1:-2] == [completions[place] for place in order]
    assert others[-1] == completions[-1]


def test_logprobs_are_of_the_full_distribution(tiny_model, prompts):
    """Top-k, top-p and min-p choose among the tokens; with k = 1 the log-probs are those of greedy decoding."""
    model = tiny_model("gpt2")
    greedy = generate(model, prompts, GREEDY, NEVER, seed=0, logprobs=True)
    for truncation in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        drawn = generate(model, prompts, SamplingParams(12, **truncation), NEVER, seed=0, logprobs=True)
        assert [(c.ids, c.logprobs) for c in drawn] == [(c.ids, c.logprobs) for c in greedy]


def test_a_sliding_window_bounds_the_sequence(tiny_model, prompts):
    model = tiny_model("mistral", sliding_window=24)
    expected = [transformers_greedy(model, prompt) for prompt in prompts]
    assert ids_of(generate(model, prompts, GREEDY, NEVER, seed=0)) == expected
