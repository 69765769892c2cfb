import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chatpipe.models.activations import FusedGELU, fuse_gelu


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh"])
def test_the_fused_gelu_is_the_same_function_with_the_same_gradient(name):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=16, n_layer=2, n_head=2, activation_function=name)
    stock = GPT2LMHeadModel(config).double().eval()
    fused = copy.deepcopy(stock)
    fuse_gelu(fused)
    assert sum(isinstance(module, FusedGELU) for module in fused.modules()) == 2
    ids = torch.randint(20, (2, 8))
    for model in (stock, fused):
        model(ids).logits.square().sum().backward()
    assert torch.allclose(fused(ids).logits, stock(ids).logits, rtol=0, atol=1e-12)
    for one, other in zip(fused.parameters(), stock.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=0, atol=1e-12)
    assert fused.config.activation_function == stock.config.activation_function == name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_ends_of_the_number_line(dtype):
    x = torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4], dtype=dtype, requires_grad=True)
    y = FusedGELU()(x)
    y.sum().backward()
    assert y.tolist() == pytest.approx([0, 0, 0, *x[3:].tolist()], abs=1e-6)
    assert x.grad.tolist() == pytest.approx([0, 0, 0.5, 1, 1], abs=1e-6)
