"""What makes a CPU quick changes no product, no token, and nothing in the model afterwards."""

import pytest
import torch
from drawing import GREEDY, NEVER, SAMPLED, ids_of
from torch import nn
from transformers.pytorch_utils import Conv1D

from chatpipe.generation import cache, generate
from chatpipe.generation.cache import quick_on_cpu
from chatpipe.generation.decode_rows import DecodeRows, Prompt, read_newest
from chatpipe.models.properties import evaluation_mode


@pytest.fixture(autouse=True)
def small_layers_are_packed(monkeypatch):
    monkeypatch.setitem(cache.SMALLEST, torch.float32, 1)


class Layers(nn.Module):
    """A layer of each kind, with and without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.plain, self.conv = nn.Linear(24, 40), nn.Linear(24, 40, bias=False), Conv1D(40, 24)
        nn.init.normal_(self.conv.bias)


def packed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("rows", [1, 3, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_products_are_the_same(rows, dtype):
    layers, states = Layers().to(dtype), torch.randn(rows, 2, 24, dtype=dtype)
    expected = [layer(states) for layer in layers.children()]
    with quick_on_cpu(layers):
        assert packed(layers) == ["linear", "plain", "conv"]
        found = [layer(states) for layer in layers.children()]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@torch.no_grad()
def test_under_autocast_it_multiplies_in_its_dtype():
    layers, states = Layers(), torch.randn(3, 24)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layers.linear(states)
        with quick_on_cpu(layers):
            torch.testing.assert_close(layers.linear(states), expected)


def test_other_dtypes_stay_as_they_are():
    layers = Layers().double()
    with torch.autocast("cpu", torch.bfloat16), quick_on_cpu(layers):
        assert packed(layers) == []
    with quick_on_cpu(layers.half()):
        assert packed(layers) == []


def test_a_large_model_keeps_the_rest_of_its_weights(tiny_model, prompts, monkeypatch):
    model = tiny_model("qwen3")
    expected = ids_of(generate(model, prompts, GREEDY, NEVER, seed=0))
    monkeypatch.setattr(cache, "MOST_BYTES", 20_000)
    with quick_on_cpu(model):
        assert 0 < len(packed(model)) < 15
    assert ids_of(generate(model, prompts, GREEDY, NEVER, seed=0)) == expected


def test_weights_that_changed_are_seen(tiny_model, prompts):
    model, other = tiny_model("llama"), tiny_model("llama", initializer_range=0.5)
    generate(model, prompts, SAMPLED, NEVER, seed=0)
    model.load_state_dict(other.state_dict())
    assert ids_of(generate(model, prompts, SAMPLED, NEVER, seed=0)) == ids_of(
        generate(other, prompts, SAMPLED, NEVER, seed=0)
    )


def test_a_model_is_left_as_it_was(tiny_model, prompts):
    model = tiny_model("llama")

    def fail(count: int) -> None:
        raise KeyError(count)

    with pytest.raises(KeyError):
        generate(model, prompts, SAMPLED, NEVER, 0, None, fail)
    assert packed(model) == []


def test_a_context_within_another_changes_nothing():
    layers = Layers()
    with quick_on_cpu(layers):
        within = [layer.forward for layer in layers.children()]
        with quick_on_cpu(layers):
            pass
        assert [layer.forward for layer in layers.children()] == within
    assert packed(layers) == []


@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_keys_and_values_are_float32(architecture, tiny_model, prompts, autocast):
    """And so is the attention, of which a bfloat16 kernel would be slow; the tokens stay near those of float32."""
    model = tiny_model(architecture)
    model = model if autocast else model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), evaluation_mode(model), quick_on_cpu(model):
        decoding = DecodeRows(model, GREEDY, NEVER, seed=0, slots=4, max_length=30)
        decoding.admit([Prompt(prompts[place], place, place) for place in range(4)])
        with torch.no_grad():
            quick = read_newest(model, decoding.cache, decoding.state, 4, 13)
        assert {layer.keys.dtype for layer in decoding.cache.layers} == {torch.float32}
    assert model.config._attn_implementation == "sdpa"
    with torch.no_grad():
        forward = torch.stack([model(torch.tensor([prompts[place]])).logits[0, -1] for place in range(4)])
    assert (quick - forward).float().abs().mean() < 0.05 * forward.float().std()


def test_a_padded_forward_within_the_context_keeps_its_mask(tiny_model):
    model, ids = tiny_model("llama").bfloat16(), torch.tensor([[0, 0, 5, 6, 7]])
    asked = {"input_ids": ids, "attention_mask": ids.sign(), "position_ids": torch.tensor([[0, 0, 0, 1, 2]])}
    with torch.no_grad(), quick_on_cpu(model):
        padded, plain = model(**asked).logits[:, 2:], model(ids[:, 2:]).logits
    torch.testing.assert_close(padded, plain, atol=0.03, rtol=0.03)


def test_layers_that_are_too_small_to_gain_stay_as_they_are(monkeypatch):
    monkeypatch.setitem(cache.SMALLEST, torch.float32, 24 * 40 + 1)
    layers = Layers()
    layers.plain = nn.Linear(24, 41)
    with quick_on_cpu(layers):
        assert packed(layers) == ["plain"]
