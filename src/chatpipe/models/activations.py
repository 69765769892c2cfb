"""GPT-2's activation function, computed quickly."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUTanh, NewGELUActivation

# 0.5 (1 + tanh(c x (1 + 0.044715 x^2))) = sigmoid(2 c x (1 + 0.044715 x^2)), c = sqrt(2 / pi)
LINEAR = 2 * math.sqrt(2 / math.pi)
CUBIC = 0.044715 * LINEAR


def fuse_gelu(model: nn.Module) -> None:
    """Let `FusedGELU` take the place of GPT-2's GELU in `model`. The configuration stays what it was."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, (NewGELUActivation, GELUTanh)):
                setattr(module, name, FusedGELU())


class FusedGELU(nn.Module):
    """GELU in the tanh approximation (arXiv 1606.08415, section 2), which transformers writes as eight kernels.

    On a GPU it is torch's own kernel. On a CPU that spends its time in tanh, so here it is x * sigmoid(...), the same
    function: half the time forward and backward.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, of any shape."""
        if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
            return nn.functional.gelu(x, approximate="tanh")
        return _SigmoidGELU.apply(x)


class _SigmoidGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = (x * x).mul_(CUBIC).add_(LINEAR).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """d/dx x s(u) = s (1 + x (1 - s) du/dx), in as few passes over memory as can be."""
        x, gate = ctx.saved_tensors
        slope = (x * x).mul_(3 * CUBIC).add_(LINEAR).mul_(x)
        return slope.addcmul_(slope, gate, value=-1).add_(1).mul_(gate).mul_(gradient)
