"""The engine on tiny models: transformers' greedy tokens, the right distribution, a seed's tokens, a model left alone.

`model` is each architecture with each kind of attention; `prompts` are 21 of 1 to 12 tokens.
"""

from copy import deepcopy

import pytest
import torch
from drawing import (
    FINITE_EOS,
    GREEDY,
    NEVER,
    SAMPLED,
    assert_drawn_from,
    ids_of,
    transformers_greedy,
)

from chatpipe.errors import TrainingError, UsageError
from chatpipe.generation import Completion, SamplingParams, decode_rows, generate
from chatpipe.generation.sampling import sample


def complete(model, prompts, params, eos=NEVER, seed=0, **options) -> list[Completion]:
    return generate(model, prompts, params, eos, seed, **options)


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_greedy_is_what_transformers_generates(model, prompts, slots):
    expected = [transformers_greedy(model, prompt) for prompt in prompts]
    assert ids_of(complete(model, prompts, GREEDY, slots=slots)) == expected


def test_tokens_are_drawn_from_the_logits_of_the_training_forward(model, prompts, monkeypatch):
    """As far as float32 goes, in which eager attention computes its softmax also of a float64 model."""
    model, seen = deepcopy(model).double(), []

    def recording(logits, *args):
        seen.append(logits)
        return sample(logits, *args)

    monkeypatch.setattr(decode_rows, "sample", recording)
    written = [complete(model, [prompt], SAMPLED, FINITE_EOS, seed=1)[0].ids for prompt in prompts]
    for prompt, ids in zip(prompts, written, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        drawn_from, seen = torch.cat(seen[: len(ids)]), seen[len(ids) :]
        torch.testing.assert_close(drawn_from.log_softmax(-1), logits.log_softmax(-1), atol=1e-5, rtol=0)


def test_stops_exactly_at_the_eos_and_keeps_it(model, prompts):
    unbounded = ids_of(complete(model, prompts, GREEDY))
    eos = unbounded[0][5]
    completions = complete(model, prompts, GREEDY, eos, slots=3)
    for whole, completion in zip(unbounded, completions, strict=True):
        end = whole.index(eos) + 1 if eos in whole else len(whole)
        assert completion.ids == whole[:end]
        assert completion.ended == (eos in whole)


@pytest.mark.parametrize("max_new_tokens", [1, 2, 12])
def test_max_new_tokens_cuts(tiny_model, prompts, max_new_tokens):
    completions = complete(tiny_model("gpt2"), prompts, SamplingParams(max_new_tokens), slots=4)
    assert {len(completion.ids) for completion in completions} == {max_new_tokens}
    assert not any(completion.ended for completion in completions)


def test_an_eos_as_the_last_token_allowed_counts(tiny_model):
    model = tiny_model("gpt2")
    [first] = complete(model, [[1, 2]], SamplingParams(1, temperature=0))
    [again] = complete(model, [[1, 2]], SamplingParams(1, temperature=0), eos=first.ids[0])
    assert again.ids == first.ids
    assert again.ended


def test_the_whole_context_can_be_used(model):
    [completion] = complete(model, [[1] * 52], GREEDY)
    assert completion.ids == transformers_greedy(model, [1] * 52)


def test_the_same_call_gives_the_same_tokens(tiny_model, prompts):
    model = tiny_model("qwen3")
    once = ids_of(complete(model, prompts, SAMPLED, FINITE_EOS, seed=5, slots=4))
    assert ids_of(complete(model, prompts, SAMPLED, FINITE_EOS, seed=5, slots=4)) == once
    assert ids_of(complete(model, prompts, SAMPLED, FINITE_EOS, seed=6, slots=4)) != once


def test_equal_prompts_get_different_completions(tiny_model):
    completions = complete(tiny_model("gpt2"), [[3, 4]] * 8, SAMPLED)
    assert len({tuple(completion.ids) for completion in completions}) == 8


@pytest.mark.parametrize("params", [{}, {"temperature": 0.6}, {"top_k": 6}])
def test_tokens_are_distributed_as_the_softmax(tiny_model, params):
    model, prompt = tiny_model("gpt2", vocab_size=16, initializer_range=0.1), [3, 1, 2]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1] / params.get("temperature", 1)
    excluded = logits.argsort(descending=True)[params.get("top_k", 16) :]
    drawn = complete(model, [prompt] * 3000, SamplingParams(1, **params), seed=3, slots=500)
    assert_drawn_from(logits.index_fill(0, excluded, -torch.inf).softmax(-1), torch.tensor(ids_of(drawn))[:, 0])


def test_later_tokens_are_distributed_as_the_softmax(tiny_model):
    """The second token, given the most frequent first one."""
    model = tiny_model("gpt2", vocab_size=16, initializer_range=0.1)
    written = torch.tensor(ids_of(complete(model, [[3, 1]] * 3000, SamplingParams(2), seed=4, slots=100)))
    first = int(written[:, 0].mode().values)
    with torch.no_grad():
        probs = model(torch.tensor([[3, 1, first]])).logits[0, -1].softmax(-1)
    assert_drawn_from(probs, written[written[:, 0] == first, 1])


def test_the_model_is_left_as_it_was(tiny_model, prompts):
    model = tiny_model("gpt2", resid_pdrop=0.5)
    in_evaluation = ids_of(complete(model, prompts, SAMPLED))
    model.train()
    model.transformer.h[0].eval()
    model.config.use_cache = False
    modes = [module.training for module in model.modules()]
    attributes, config = set(vars(model)), model.config.to_dict()
    attention, generation_config = model.config._attn_implementation, model.generation_config.to_dict()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    assert ids_of(complete(model, prompts, SAMPLED)) == in_evaluation  # dropout was off
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    assert set(vars(model)) == attributes
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == attention
    assert model.generation_config.to_dict() == generation_config
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_the_model_can_be_trained_afterwards(tiny_model, prompts):
    model = tiny_model("llama")
    complete(model, prompts[:3], SAMPLED)
    ids = torch.tensor([prompts[1]])
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_new_weights_are_used_at_once(tiny_model, prompts):
    model = tiny_model("qwen3")
    complete(model, prompts, GREEDY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
    expected = [transformers_greedy(model, prompt) for prompt in prompts]
    assert ids_of(complete(model, prompts, GREEDY)) == expected


def test_works_inside_inference_mode(tiny_model, prompts):
    model = tiny_model("qwen3")
    expected = ids_of(complete(model, prompts, SAMPLED))
    with torch.inference_mode():
        assert ids_of(complete(model, prompts, SAMPLED)) == expected


def test_bfloat16(tiny_model, prompts):
    """The engine follows the dtype of the model."""
    completions = complete(tiny_model("llama").bfloat16(), prompts, SAMPLED, slots=4)
    assert all(len(completion.ids) == 12 for completion in completions)


def test_ignores_the_generation_config(tiny_model, prompts):
    model = tiny_model("gpt2")
    expected = ids_of(complete(model, prompts, SAMPLED))
    model.generation_config.update(temperature=0.01, top_k=1, eos_token_id=list(range(40)), max_new_tokens=2)
    assert ids_of(complete(model, prompts, SAMPLED)) == expected


def test_no_prompts(tiny_model):
    assert complete(tiny_model("gpt2"), [], SAMPLED) == []


def test_on_finished_counts_the_completions(tiny_model, prompts):
    counts: list[int] = []
    complete(tiny_model("gpt2"), prompts, SAMPLED, FINITE_EOS, slots=4, on_finished=counts.append)
    assert counts == list(range(1, len(prompts) + 1))


@pytest.mark.parametrize(
    "prompts, words", [([[1], [2] * 53], "53 tokens.*max_new_tokens.*12.*has 64"), ([[1], []], "no tokens")]
)
def test_prompts_that_cannot_be_completed_are_refused(tiny_model, prompts, words):
    with pytest.raises(UsageError, match=words):
        complete(tiny_model("gpt2"), prompts, GREEDY)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, SamplingParams(12, top_p=0.5)])
def test_a_broken_model_is_an_error(tiny_model, params):
    model = tiny_model("gpt2")
    model.transformer.ln_f.bias.data[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        complete(model, [[1]], params)
    assert model.config._attn_implementation == "sdpa"


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


@pytest.mark.parametrize("window", [3, 24])
def test_a_sliding_window(tiny_model, prompts, window):
    """Shorter and longer than the sequences."""
    model = tiny_model("mistral", sliding_window=window)
    expected = [transformers_greedy(model, prompt) for prompt in prompts]
    assert ids_of(generate(model, prompts, GREEDY, NEVER, seed=0)) == expected
    assert model.config.sliding_window == window
