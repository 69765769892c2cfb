"""What every backend of `generate` must do, on real tiny models. A backend's tests subclass `Conformance`."""

import math

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from chatpipe.errors import TrainingError, UsageError
from chatpipe.generation import Completion, SamplingParams, generate

NEVER = -1  # an eos that no model writes
GREEDY = SamplingParams(max_new_tokens=12, temperature=0)
SAMPLED = SamplingParams(max_new_tokens=12)
FINITE_EOS = 7


def ids_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.ids for completion in completions]


def transformers_greedy(model: PreTrainedModel, prompt: list[int], max_new_tokens: int = 12) -> list[int]:
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


def assert_drawn_from(probs: Tensor, tokens: Tensor) -> None:
    """Pearson's chi-square test at 0.1 %: `tokens` [n] are draws from `probs` [vocabulary].

    Tokens that are expected less than 5 times count as one. The quantile is Wilson and Hilferty's (1931).
    """
    counts, expected = torch.bincount(tokens, minlength=len(probs)).double(), len(tokens) * probs.double()
    assert not counts[probs == 0].any()
    rare = expected < 5
    counts, expected = (torch.cat((x[~rare], x[rare].sum()[None])) for x in (counts, expected))
    statistic = ((counts - expected) ** 2 / expected.clamp(min=1)).sum().item()
    spread = 2 / (9 * (len(counts) - 1))
    assert statistic < (len(counts) - 1) * (1 - spread + 3.09 * spread**0.5) ** 3


class Conformance:
    """`model` is each architecture with each kind of attention; `prompts` are 21 of 1 to 12 tokens."""

    backend: str

    def complete(self, model, prompts, params, eos=NEVER, seed=0, **options) -> list[Completion]:
        return generate(model, prompts, params, eos, seed, backend=self.backend, **options)

    @pytest.mark.parametrize("slots", [1, 4, 64])
    def test_greedy_is_what_transformers_generates(self, model, prompts, slots):
        expected = [transformers_greedy(model, prompt) for prompt in prompts]
        assert ids_of(self.complete(model, prompts, GREEDY, slots=slots)) == expected

    @pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
    def test_logprobs_are_those_of_the_training_forward(self, model, prompts, temperature):
        completions = self.complete(
            model, prompts, SamplingParams(12, temperature), FINITE_EOS, seed=1, slots=4, logprobs=True
        )
        for prompt, completion in zip(prompts, completions, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion.ids])).logits[0, len(prompt) - 1 : -1]
            logprobs = (logits / (temperature or 1)).log_softmax(-1)
            expected = logprobs.gather(1, torch.tensor(completion.ids)[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)

    def test_logprobs_are_not_given_unasked_and_change_no_token(self, tiny_model, prompts):
        model = tiny_model("gpt2")
        plain = self.complete(model, prompts, SAMPLED, FINITE_EOS)
        asked = self.complete(model, prompts, SAMPLED, FINITE_EOS, logprobs=True)
        assert ids_of(asked) == ids_of(plain)
        assert {completion.logprobs for completion in plain} == {None}

    def test_stops_exactly_at_the_eos_and_keeps_it(self, model, prompts):
        unbounded = ids_of(self.complete(model, prompts, GREEDY))
        eos = unbounded[0][5]
        completions = self.complete(model, prompts, GREEDY, eos, slots=3, logprobs=True)
        for whole, completion in zip(unbounded, completions, strict=True):
            end = whole.index(eos) + 1 if eos in whole else len(whole)
            assert completion.ids == whole[:end]
            assert len(completion.logprobs) == end
            assert completion.ended == (eos in whole)

    @pytest.mark.parametrize("max_new_tokens", [1, 2, 12])
    def test_max_new_tokens_cuts(self, tiny_model, prompts, max_new_tokens):
        completions = self.complete(tiny_model("gpt2"), prompts, SamplingParams(max_new_tokens), slots=4)
        assert {len(completion.ids) for completion in completions} == {max_new_tokens}
        assert not any(completion.ended for completion in completions)

    def test_an_eos_as_the_last_token_allowed_counts(self, tiny_model):
        model = tiny_model("gpt2")
        [first] = self.complete(model, [[1, 2]], SamplingParams(1, temperature=0))
        [again] = self.complete(model, [[1, 2]], SamplingParams(1, temperature=0), eos=first.ids[0])
        assert again.ids == first.ids
        assert again.ended

    def test_the_whole_context_can_be_used(self, model):
        [completion] = self.complete(model, [[1] * 52], GREEDY)
        assert completion.ids == transformers_greedy(model, [1] * 52)

    def test_the_same_call_gives_the_same_tokens(self, tiny_model, prompts):
        model = tiny_model("qwen3")
        once = ids_of(self.complete(model, prompts, SAMPLED, FINITE_EOS, seed=5, slots=4))
        assert ids_of(self.complete(model, prompts, SAMPLED, FINITE_EOS, seed=5, slots=4)) == once
        assert ids_of(self.complete(model, prompts, SAMPLED, FINITE_EOS, seed=6, slots=4)) != once

    def test_equal_prompts_get_different_completions(self, tiny_model):
        completions = self.complete(tiny_model("gpt2"), [[3, 4]] * 8, SAMPLED)
        assert len({tuple(completion.ids) for completion in completions}) == 8

    @pytest.mark.parametrize("params", [{}, {"temperature": 0.6}, {"top_k": 6}])
    def test_tokens_are_distributed_as_the_softmax(self, tiny_model, params):
        model, prompt = tiny_model("gpt2", vocab_size=16, initializer_range=0.1), [3, 1, 2]
        with torch.no_grad():
            logits = model(torch.tensor([prompt])).logits[0, -1] / params.get("temperature", 1)
        excluded = logits.argsort(descending=True)[params.get("top_k", 16) :]
        drawn = self.complete(model, [prompt] * 3000, SamplingParams(1, **params), seed=3, slots=500)
        assert_drawn_from(logits.index_fill(0, excluded, -torch.inf).softmax(-1), torch.tensor(ids_of(drawn))[:, 0])

    def test_later_tokens_are_distributed_as_the_softmax(self, tiny_model):
        """The second token, given the most frequent first one."""
        model = tiny_model("gpt2", vocab_size=16, initializer_range=0.1)
        written = torch.tensor(ids_of(self.complete(model, [[3, 1]] * 3000, SamplingParams(2), seed=4, slots=100)))
        first = int(written[:, 0].mode().values)
        with torch.no_grad():
            probs = model(torch.tensor([[3, 1, first]])).logits[0, -1].softmax(-1)
        assert_drawn_from(probs, written[written[:, 0] == first, 1])

    def test_the_model_is_left_as_it_was(self, tiny_model, prompts):
        model = tiny_model("gpt2", resid_pdrop=0.5)
        in_evaluation = ids_of(self.complete(model, prompts, SAMPLED))
        model.train()
        model.transformer.h[0].eval()
        model.config.use_cache = False
        modes = [module.training for module in model.modules()]
        attributes, config = set(vars(model)), model.config.to_dict()
        attention, generation_config = model.config._attn_implementation, model.generation_config.to_dict()
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        generator = torch.get_rng_state()
        assert ids_of(self.complete(model, prompts, SAMPLED)) == in_evaluation  # dropout was off
        assert torch.equal(torch.get_rng_state(), generator)
        assert [module.training for module in model.modules()] == modes
        assert set(vars(model)) == attributes
        assert model.config.to_dict() == config
        assert model.config._attn_implementation == attention
        assert model.generation_config.to_dict() == generation_config
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert torch.is_grad_enabled()

    def test_the_model_can_be_trained_afterwards(self, tiny_model, prompts):
        model = tiny_model("llama")
        self.complete(model, prompts[:3], SAMPLED)
        ids = torch.tensor([prompts[1]])
        model(ids, labels=ids).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_new_weights_are_used_at_once(self, tiny_model, prompts):
        model = tiny_model("qwen3")
        self.complete(model, prompts, GREEDY)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.numel()).view_as(parameter))
        expected = [transformers_greedy(model, prompt) for prompt in prompts]
        assert ids_of(self.complete(model, prompts, GREEDY)) == expected

    def test_works_inside_inference_mode(self, tiny_model, prompts):
        model = tiny_model("qwen3")
        expected = ids_of(self.complete(model, prompts, SAMPLED))
        with torch.inference_mode():
            assert ids_of(self.complete(model, prompts, SAMPLED)) == expected

    def test_bfloat16(self, tiny_model, prompts):
        completions = self.complete(tiny_model("llama").bfloat16(), prompts, SAMPLED, slots=4, logprobs=True)
        assert all(len(completion.ids) == 12 and math.isfinite(sum(completion.logprobs)) for completion in completions)

    def test_ignores_the_generation_config(self, tiny_model, prompts):
        model = tiny_model("gpt2")
        expected = ids_of(self.complete(model, prompts, SAMPLED))
        model.generation_config.update(temperature=0.01, top_k=1, eos_token_id=list(range(40)), max_new_tokens=2)
        assert ids_of(self.complete(model, prompts, SAMPLED)) == expected

    def test_no_prompts(self, tiny_model):
        assert self.complete(tiny_model("gpt2"), [], SAMPLED) == []

    def test_on_finished_counts_the_completions(self, tiny_model, prompts):
        counts: list[int] = []
        self.complete(tiny_model("gpt2"), prompts, SAMPLED, FINITE_EOS, slots=4, on_finished=counts.append)
        assert counts == list(range(1, len(prompts) + 1))

    @pytest.mark.parametrize(
        "prompts, words", [([[1], [2] * 53], "53 tokens.*max_new_tokens.*12.*has 64"), ([[1], []], "no tokens")]
    )
    def test_prompts_that_cannot_be_completed_are_refused(self, tiny_model, prompts, words):
        with pytest.raises(UsageError, match=words):
            self.complete(tiny_model("gpt2"), prompts, GREEDY)

    @pytest.mark.parametrize("params", [GREEDY, SAMPLED, SamplingParams(12, top_p=0.5)])
    def test_a_broken_model_is_an_error(self, tiny_model, params):
        model = tiny_model("gpt2")
        model.transformer.ln_f.bias.data[0] = float("nan")
        with pytest.raises(TrainingError, match="not finite"):
            self.complete(model, [[1]], params)
        assert model.config._attn_implementation == "sdpa"
