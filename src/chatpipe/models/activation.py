"""GPT-2's GELU in as few passes over memory as can be.

0.5 x (1 + tanh(u / 2)) = x sigmoid(u), with u = 2 sqrt(2 / pi) (x + 0.044715 x^3)  (arXiv 1606.08415, section 2)
"""

import math
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

Model = TypeVar("Model", bound=PreTrainedModel)

LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = LINEAR * 0.044715


def quickest_gelu(model: Model) -> Model:
    """Puts the quickest form of the tanh approximation into `model`; what it computes and saves stays the same.

    transformers writes `gelu_new` as eight kernels, which are one of torch's. On CPUs without AVX512 that one spends
    its time in tanh: there the sigmoid takes half as long.
    """
    slow_tanh = not (torch.cuda.is_available() or torch.backends.cpu.get_cpu_capability().startswith("AVX512"))
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (NewGELUActivation, GELUTanh)):
                setattr(module, name, SigmoidGelu() if slow_tanh else nn.GELU(approximate="tanh"))
    return model


class SigmoidGelu(nn.Module):
    """The tanh approximation of GELU by its sigmoid; in float32 the two differ in the seventh digit."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape; half precision goes to torch's own kernel, which rounds once."""
        if x.dtype in (torch.float32, torch.float64):
            return _SigmoidGelu.apply(x)
        return nn.functional.gelu(x, approximate="tanh")


class _SigmoidGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sigmoid = (x * x).mul_(CUBIC).add_(LINEAR).mul_(x).sigmoid_()
        ctx.save_for_backward(x, sigmoid)
        return x * sigmoid

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """d/dx x s(u) = s (1 + x u' (1 - s))"""
        x, sigmoid = ctx.saved_tensors
        slope = (x * x).mul_(3 * CUBIC).add_(LINEAR).mul_(x)
        return slope.addcmul_(slope, sigmoid, value=-1).add_(1).mul_(sigmoid).mul_(gradients[0])
