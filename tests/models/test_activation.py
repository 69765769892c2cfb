import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chatpipe.models.activation import SigmoidGelu, quickest_gelu


def test_value_and_slope_are_those_of_torch_s_tanh_gelu():
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e-8, -1e4, 1e4])]).requires_grad_()
    ours, theirs = SigmoidGelu()(x), torch.nn.functional.gelu(x, approximate="tanh")
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    upstream = torch.linspace(-1, 1, len(x))
    [slope], [expected] = (torch.autograd.grad(y, x, upstream) for y in (ours, theirs))
    torch.testing.assert_close(slope[:-4], expected[:-4], atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(slope[-4:-2], expected[-4:-2])


def test_the_slope_is_that_of_the_value():
    x = torch.randn(20, dtype=torch.float32)
    double = x.double().requires_grad_()
    exact = torch.nn.functional.gelu(double, approximate="tanh").sum()
    [expected] = torch.autograd.grad(exact, double)
    x.requires_grad_()
    [slope] = torch.autograd.grad(SigmoidGelu()(x).sum(), x)
    torch.testing.assert_close(slope.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("capability, form", [("AVX2", SigmoidGelu), ("AVX512", torch.nn.GELU)])
@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh"])
def test_it_changes_no_logit_no_gradient_and_no_file(tmp_path, monkeypatch, capability, form, name):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=8, activation_function=name)
    model = GPT2LMHeadModel(config).double().eval()
    ids = torch.arange(8)[None]

    def logits_and_gradients():
        model.zero_grad()
        logits = model(input_ids=ids).logits
        logits.square().sum().backward()
        return [logits, *(parameter.grad for parameter in model.parameters())]

    before, after = logits_and_gradients(), (quickest_gelu(model), logits_and_gradients())[1]
    for one, other in zip(after, before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    assert isinstance(model.transformer.h[0].mlp.act, form)
    model.save_pretrained(tmp_path)
    assert GPT2LMHeadModel.from_pretrained(tmp_path).config.activation_function == name
