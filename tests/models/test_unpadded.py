"""Reading without padding gives what reading with padding gives."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModel

from chatpipe.data.sequences import pad_right
from chatpipe.models import unpadded

LENGTHS = (7, 1, 12, 4, 12)
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 20, "head_dim": 4}
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16, "initializer_range": 0.3}


def body(kind, **more):
    """With large weights, so that attention matters."""
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(kind, **SIZES, **HEADS, **more)).double().eval()


def rows():
    generator = torch.Generator().manual_seed(1)
    ids, mask = pad_right([torch.randint(20, (length,), generator=generator) for length in LENGTHS], 0)
    return unpadded.Rows(ids, mask, torch.arange(ids.shape[1]).expand_as(ids))


def states(model, tokens):
    """Of all tokens, in their order."""
    return unpadded.hidden_states_at(model, tokens, *tokens.attention_mask.nonzero(as_tuple=True))


def padded_states(model, tokens):
    inputs = {"input_ids": tokens.input_ids, "position_ids": tokens.position_ids}
    hidden = model(**inputs, attention_mask=tokens.attention_mask, use_cache=False).last_hidden_state
    return hidden[tokens.attention_mask.bool()]


def states_and_gradients(read, model):
    model.zero_grad()
    states = read(model, rows())
    states.square().sum().backward()
    return states, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("attention, tolerance", [("sdpa", 1e-10), ("eager", 1e-3)])  # eager: softmax in float32
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_states_and_gradients_are_those_of_padded_rows(kind, attention, tolerance):
    model = body(kind)
    model.set_attn_implementation(attention)
    assert unpadded.reads_unpadded(model)
    ours, padded = (states_and_gradients(read, model) for read in (states, padded_states))
    assert padded[1].abs().max() > 1
    for one, other in zip(ours, padded, strict=True):
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)
    assert model.config._attn_implementation == attention


def test_padded_cells_are_not_read():
    model, tokens = body("llama"), rows()
    garbage = torch.where(tokens.attention_mask.bool(), tokens.input_ids, 19 - tokens.input_ids)
    assert not garbage.equal(tokens.input_ids)
    assert states(model, dataclasses.replace(tokens, input_ids=garbage)).equal(states(model, tokens))


def test_only_the_cells_that_were_asked_for_come_back():
    model, tokens = body("gpt2"), rows()
    last = torch.tensor(LENGTHS) - 1
    ends = unpadded.hidden_states_at(model, tokens, torch.arange(len(LENGTHS)), last)
    assert ends.equal(states(model, tokens)[torch.tensor(LENGTHS).cumsum(0) - 1])


def test_fewer_positions_go_through_the_model():
    model, tokens, seen = body("gpt2"), rows(), []
    unpadded.reads_unpadded(model)
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["input_ids"].shape), with_kwargs=True)
    states(model, tokens)
    assert tokens.attention_mask.sum() == 36
    assert seen == [(1, 64)]
    assert unpadded.positions_read(model, tokens.attention_mask) == 64


def test_a_long_row_among_short_ones_costs_no_attention_of_all_to_all(monkeypatch):
    """Rows attend in runs of similar length, in each of the two layers, not all as long as the longest."""
    seen, attend = [], unpadded.scaled_dot_product_attention

    def counting(query, *more, **options):
        seen.append(query.shape[0] * query.shape[2])
        return attend(query, *more, **options)

    ids, mask = pad_right([torch.arange(length) for length in [12] + [3] * 20 + [2] * 8], 0)
    tokens, model = unpadded.Rows(ids, mask, torch.arange(12).expand_as(ids)), body("gpt2")
    assert unpadded.reads_unpadded(model)
    monkeypatch.setattr(unpadded, "scaled_dot_product_attention", counting)
    assert torch.allclose(states(model, tokens), padded_states(model, tokens), rtol=0, atol=1e-10)
    assert mask.sum() <= sum(seen) / 2 <= mask.sum() / (1 - unpadded.MAX_ATTENTION_PADDING)


@pytest.mark.parametrize(
    "kind, more",
    [
        ("gemma2", {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 4, "layer_types": ["full_attention"] * 2}),
        ("mistral", {"sliding_window": 3}),
        ("llama4_text", {"attention_chunk_size": 8, "num_local_experts": 1, "intermediate_size_mlp": 32}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("nemotron", {}),  # does not hand on to its attention what it was called with
        ("bert", {}),
    ],
)
def test_models_with_another_attention_are_read_with_padding(kind, more):
    model = body(kind, **more)
    assert not unpadded.reads_unpadded(model)
    assert states(model, rows()).equal(padded_states(model, rows()))
    assert unpadded.positions_read(model, rows().attention_mask) == rows().input_ids.numel()


@pytest.mark.parametrize("kind, more", [("gpt2", NO_DROPOUT), ("llama", {}), ("qwen3", {})])
def test_layers_that_are_computed_again_in_the_backward_pass_attend_within_rows(kind, more, monkeypatch):
    calls, attend = [], unpadded.scaled_dot_product_attention
    monkeypatch.setattr(
        unpadded, "scaled_dot_product_attention", lambda *given, **how: (calls.append(1), attend(*given, **how))[1]
    )
    model = body(kind, **more).train()
    assert unpadded.reads_unpadded(model)
    calls.clear()
    plain, once = states_and_gradients(states, model), len(calls)
    model.gradient_checkpointing_enable()
    assert unpadded.reads_unpadded(model)
    again = states_and_gradients(states, model)
    assert len(calls) == 3 * once
    for one, other in zip(again, plain, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
    padded = states_and_gradients(padded_states, model)
    for one, other in zip(again, padded, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-10)


def test_bfloat16_is_used_under_autocast_and_the_model_is_tried_without():
    model = body("qwen3").float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert unpadded.reads_unpadded(model)
        rounded = states(model, rows())
    exact = states(model, rows())
    assert (rounded - exact).abs().max() > 1e-4
    assert torch.allclose(rounded.float(), exact, atol=0.2)
