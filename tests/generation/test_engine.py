"""The decode engine writes what a plain forward pass and transformers' own `generate` would write."""

import math

import pytest
import torch
from transformers import BloomConfig, BloomForCausalLM

from chatpipe.errors import TrainingError, UsageError
from chatpipe.generation import Completion, SamplingParams, generate
from chatpipe.generation import engine as engine_module

NEVER = -1  # an eos that no model writes
GREEDY = SamplingParams(max_new_tokens=12, temperature=0)
SAMPLED = SamplingParams(max_new_tokens=12)


def ids_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.ids for completion in completions]


def transformers_greedy(model, prompt: list[int], max_new_tokens: int = 12) -> list[int]:
    ids = torch.tensor([prompt])
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return written[0, len(prompt) :].tolist()


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_greedy_is_what_transformers_generates(model, prompts, slots):
    expected = [transformers_greedy(model, prompt) for prompt in prompts]
    assert ids_of(generate(model, prompts, GREEDY, NEVER, seed=0, slots=slots)) == expected


def test_greedy_with_eager_attention(tiny_model, prompts):
    model = tiny_model("llama", attn_implementation="eager")
    expected = [transformers_greedy(model, prompt) for prompt in prompts]
    assert ids_of(generate(model, prompts, GREEDY, NEVER, seed=0, slots=3)) == expected


def test_prefill_in_several_passes_changes_nothing(tiny_model, monkeypatch, prompts):
    model = tiny_model("gpt2")
    whole = ids_of(generate(model, prompts, GREEDY, NEVER, seed=0))
    monkeypatch.setattr(engine_module, "MAX_PREFILL_TOKENS", 20)
    assert ids_of(generate(model, prompts, GREEDY, NEVER, seed=0)) == whole


def test_a_seed_gives_the_same_tokens_for_any_number_of_slots(tiny_model, model, prompts):
    model = tiny_model(model.config.model_type).double()  # in fp32 the batch size may round a token's share away
    eos = 7
    one = generate(model, prompts, SAMPLED, eos, seed=5, slots=1)
    assert {completion.ended for completion in one} == {True, False}  # so the rows do finish at different times
    assert ids_of(generate(model, prompts, SAMPLED, eos, seed=5, slots=3)) == ids_of(one)
    assert ids_of(generate(model, prompts, SAMPLED, eos, seed=5, slots=64)) == ids_of(one)
    assert ids_of(generate(model, prompts[:4], SAMPLED, eos, seed=5)) == ids_of(one[:4])
    assert ids_of(generate(model, prompts, SAMPLED, eos, seed=6)) != ids_of(one)


def test_equal_prompts_get_different_completions(tiny_model):
    completions = generate(tiny_model("gpt2"), [[3, 4]] * 8, SAMPLED, NEVER, seed=0)
    assert len({tuple(completion.ids) for completion in completions}) == 8


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_logprobs_are_those_of_a_plain_forward_pass(model, prompts, temperature):
    params = SamplingParams(12, temperature, top_k=10)
    for prompt, completion in zip(prompts, generate(model, prompts, params, 7, seed=1, slots=4), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1]
        logprobs = (logits / (temperature or 1)).log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=0)


def test_stops_exactly_at_the_eos_and_keeps_it(model, prompts):
    unbounded = ids_of(generate(model, prompts, GREEDY, NEVER, seed=0))
    eos = unbounded[0][5]
    for whole, completion in zip(unbounded, generate(model, prompts, GREEDY, eos, seed=0, slots=3), strict=True):
        end = whole.index(eos) + 1 if eos in whole else len(whole)
        assert completion.ids == whole[:end]
        assert len(completion.logprobs) == end
        assert completion.ended == (eos in whole)


def test_the_first_token_is_distributed_as_the_softmax(tiny_model):
    model, prompt, draws = tiny_model("gpt2", vocab_size=16), [3, 1, 2], 6000
    with torch.no_grad():
        probs = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    tokens = torch.tensor(ids_of(generate(model, [prompt] * draws, SamplingParams(1), NEVER, seed=3)))[:, 0]
    counts = torch.bincount(tokens, minlength=16)
    chi_square = ((counts - draws * probs) ** 2 / (draws * probs)).sum()
    assert chi_square < 37.7  # its 99.9 % quantile for 15 degrees of freedom


def test_the_cache_holds_as_many_rows_as_slots(tiny_model, prompts):
    model = tiny_model("qwen3")
    engine = engine_module.DecodeEngine(model, SAMPLED, NEVER, seed=0, slots=4, max_length=24)
    for start in range(0, 12, 4):
        engine.admit(list(enumerate(prompts))[start : start + 4])
        while engine.occupants:
            engine.step()
            engine.collect()
        assert {layer.keys.shape for layer in engine.cache.layers} == {(4, 24, 2, 8)}


def test_no_prompts(tiny_model):
    assert generate(tiny_model("gpt2"), [], SAMPLED, NEVER, seed=0) == []


def test_on_finished_counts_the_completions(tiny_model, prompts):
    counts: list[int] = []
    generate(tiny_model("gpt2"), prompts, SAMPLED, 7, seed=0, slots=4, on_finished=counts.append)
    assert counts == list(range(1, len(prompts) + 1))


def test_the_model_is_left_as_it_was(tiny_model, prompts):
    model = tiny_model("gpt2", resid_pdrop=0.5)
    in_evaluation = ids_of(generate(model, prompts, SAMPLED, NEVER, seed=0))
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert ids_of(generate(model, prompts, SAMPLED, NEVER, seed=0)) == in_evaluation  # dropout was off
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    ids = torch.tensor([prompts[1]])
    model(ids, labels=ids).loss.backward()


def test_works_inside_inference_mode(tiny_model, prompts):
    model = tiny_model("qwen3")
    expected = ids_of(generate(model, prompts, SAMPLED, NEVER, seed=0))
    with torch.inference_mode():
        assert ids_of(generate(model, prompts, SAMPLED, NEVER, seed=0)) == expected


def test_bfloat16(tiny_model, prompts):
    completions = generate(tiny_model("llama").bfloat16(), prompts, SAMPLED, NEVER, seed=0, slots=4)
    assert all(len(completion.ids) == 12 and math.isfinite(sum(completion.logprobs)) for completion in completions)


def test_ignores_the_generation_config(tiny_model, prompts):
    model = tiny_model("gpt2")
    expected = ids_of(generate(model, prompts, SAMPLED, NEVER, seed=0))
    model.generation_config.update(temperature=0.01, top_k=1, eos_token_id=list(range(40)), max_new_tokens=2)
    assert ids_of(generate(model, prompts, SAMPLED, NEVER, seed=0)) == expected


def test_all_positions_of_the_model_can_be_used(tiny_model):
    model = tiny_model("gpt2")
    [completion] = generate(model, [[1] * 52], GREEDY, NEVER, seed=0)
    assert completion.ids == transformers_greedy(model, [1] * 52)


@pytest.mark.parametrize(
    "prompts, words", [([[1], [2] * 53], "53 tokens.*max_new_tokens.*12.*has 64"), ([[1], []], "no tokens")]
)
def test_prompts_that_cannot_be_completed_are_refused(tiny_model, prompts, words):
    with pytest.raises(UsageError, match=words):
        generate(tiny_model("gpt2"), prompts, GREEDY, NEVER, seed=0)


def test_a_sliding_window_bounds_the_sequence(tiny_model, prompts):
    model = tiny_model("mistral", sliding_window=24)
    expected = [transformers_greedy(model, prompt) for prompt in prompts]
    assert ids_of(generate(model, prompts, GREEDY, NEVER, seed=0)) == expected
    with pytest.raises(UsageError, match="has 24"):
        generate(model, [[1] * 13], GREEDY, NEVER, seed=0)


def test_a_model_without_position_ids_is_refused():
    model = BloomForCausalLM(BloomConfig(vocab_size=40, hidden_size=32, n_layer=1, n_head=2))
    with pytest.raises(UsageError, match="Bloom"):
        generate(model, [[1]], GREEDY, NEVER, seed=0)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_a_broken_model_is_an_error(tiny_model, params):
    model = tiny_model("gpt2")
    model.transformer.ln_f.bias.data[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        generate(model, [[1]], params, NEVER, seed=0)
