"""Muon against torch's own, its share of a model's parameters, and its steps."""

import pytest
import torch
from transformers import GPT2LMHeadModel

from chatpipe.models.new_model import build_model, model_config
from chatpipe.recipe.architectures import Architecture
from chatpipe.training.muon import MuonAdamW, hidden_matrices, orthogonalise


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def tiny(family="gpt2"):
    torch.manual_seed(0)
    architecture = Architecture(family=family, n_layer=2, n_head=2, n_embd=16, n_positions=32)
    return build_model(family, model_config(architecture, 40, eos_token_id=1, pad_token_id=0))


@pytest.mark.parametrize("rows, columns", [(8, 8), (8, 20), (20, 8)])
def test_singular_values_come_near_1_and_directions_stay(rows, columns):
    given = matrix(rows, columns)
    out = orthogonalise(given[None], torch.float32)[0]
    values = torch.linalg.svdvals(out)
    assert values.min() > 0.4
    assert values.max() < 1.6
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    inner = left.T @ out @ right.T
    torch.testing.assert_close(inner, torch.diag(inner.diagonal()), atol=1e-4, rtol=0)


def test_in_bfloat16_it_is_torch_s_muon(monkeypatch):
    monkeypatch.setattr("chatpipe.training.muon.multiplies_bf16", lambda device: True)
    start = [matrix(6, 10), matrix(6, 10, 1), matrix(10, 6, 2)]
    ours, theirs = ([torch.nn.Parameter(one.clone()) for one in start] for _ in range(2))
    muon = MuonAdamW(ours, [], lr=0.02, weight_decay=0.1)
    torchs = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = matrix(*one.shape, seed=10 * step + i)
            other.grad = one.grad.clone()
        muon.step()
        torchs.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)  # bfloat16 has three digits
        assert (one - before).abs().max() > 0.02


def test_what_is_not_muon_s_is_adamw_s_to_the_bit():
    start = [matrix(3, 4), torch.randn(5)]
    ours, theirs = ([torch.nn.Parameter(one.clone()) for one in start] for _ in range(2))
    both = MuonAdamW([], [{"params": ours, "weight_decay": 0.1}], lr=0.01, weight_decay=0.3, betas=(0.8, 0.9))
    adamw = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    for step in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.full_like(one, 0.1 * step)
            other.grad = one.grad.clone()
        both.step()
        adamw.step()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_a_step_of_muon_is_as_large_as_one_of_adamw():
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    weight.grad = matrix(64, 256)
    MuonAdamW([weight], [], lr=0.01, weight_decay=0.0).step()
    assert weight.pow(2).mean().sqrt().item() == pytest.approx(0.2 * 0.01, rel=0.15)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "llama", "modernbert"])
def test_muon_gets_the_matrices_between_embedding_and_head(family):
    model = tiny(family)
    names = set(hidden_matrices(model))
    assert all("embed" not in name and "wte" not in name and "wpe" not in name for name in names)
    assert not any(name.startswith(("lm_head", "decoder")) for name in names)
    blocks = {
        name for name, weight in model.named_parameters() if weight.ndim == 2 and ("layers." in name or ".h." in name)
    }
    assert blocks <= names
    assert names - blocks <= {"head.dense.weight"}  # of modernbert's prediction head


def test_a_parameter_without_a_gradient_is_passed_over():
    model: GPT2LMHeadModel = tiny()
    matrices = hidden_matrices(model)
    rest = [weight for name, weight in model.named_parameters() if name not in matrices]
    optimizer = MuonAdamW(matrices.values(), [{"params": rest, "weight_decay": 0.1}], lr=0.1, weight_decay=0.1)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer.step()
    assert not optimizer.state
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
