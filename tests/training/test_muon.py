"""Muon against torch's own, its share of a model's parameters, and its steps."""

import pytest
import torch
from transformers import GPT2LMHeadModel

from chatpipe.models.new_model import build_model, model_config
from chatpipe.recipe.architectures import Architecture
from chatpipe.training.pretrain_trainer import MuonAdamW, hidden_matrices


def matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def tiny(family="gpt2"):
    torch.manual_seed(0)
    architecture = Architecture(family=family, n_layer=2, n_head=2, n_embd=16, n_positions=32)
    return build_model(family, model_config(architecture, 40, eos_token_id=1, pad_token_id=0))


def test_matrices_take_torch_s_muon_and_the_rest_adamw_to_the_bit():
    start = [matrix(6, 10), matrix(10, 6, 2), torch.randn(5)]
    ours, theirs = ([torch.nn.Parameter(one.clone()) for one in start] for _ in range(2))
    rest = [{"params": ours[2:], "weight_decay": 0.3}, {"params": [], "weight_decay": 0.0}]
    both = MuonAdamW(ours[:2], rest, lr=0.02, weight_decay=0.1, betas=(0.8, 0.9))
    muon = torch.optim.Muon(theirs[:2], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs[2:], lr=0.02, weight_decay=0.3, betas=(0.8, 0.9))
    for step in range(3):
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(10 * step + i))
            other.grad = one.grad.clone()
        both.step()
        muon.step()
        adamw.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        assert torch.equal(one, other)
        assert (one - before).abs().max() > 0.01


def test_a_step_of_muon_is_as_large_as_one_of_adamw():
    weight, bias = torch.nn.Parameter(torch.zeros(64, 256)), torch.nn.Parameter(torch.zeros(1))
    weight.grad = matrix(64, 256)
    MuonAdamW([weight], [{"params": [bias]}], lr=0.01, weight_decay=0.0).step()
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
