"""Muon for the matrices inside the model, AdamW for the rest, as one optimizer.

Muon (https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest matrix with
orthogonal rows or columns. Scaled by 0.2 sqrt(max(rows, columns)), its steps are as large as AdamW's (arXiv 2502.16982,
section 2.2), so both take the same learning rate and weight decay.

torch.optim.Muon does the same in bfloat16 alone, which takes twelve times as long on CPUs that cannot multiply it, and
one matrix at a time; `tests/training/test_muon.py` compares the two.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from chatpipe.training.precision import multiplies_bf16

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MOMENTUM = 0.95


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer over both kinds of parameter groups; those of Muon have `muon: True`.

    The state of a parameter is `momentum_buffer`, or AdamW's. Groups and state are ordinary ones: schedules and resume
    points treat them like any optimizer's.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float,
        **adamw: Any,
    ) -> None:
        """`matrices` go to Muon, the groups `others` to AdamW, whose further arguments are `adamw`."""
        muon_group = {"params": list(matrices), "weight_decay": weight_decay, "muon": True}
        groups = [muon_group, *({**group, "muon": False} for group in others)]
        self._adamw = torch.optim.AdamW([nn.Parameter(torch.empty(0))], lr=lr, **adamw)
        super().__init__([group for group in groups if group["params"]], {**self._adamw.defaults, "lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step over all parameters that have a gradient."""
        for group in self.param_groups:
            if group["muon"]:
                self._step_muon(group)
        # The state and the groups are this optimizer's own; AdamW only does its arithmetic on them.
        self._adamw.state = self.state
        self._adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adamw.step()

    def _step_muon(self, group: dict[str, Any]) -> None:
        of_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                of_shape.setdefault(parameter.shape, []).append(parameter)
        for shape, parameters in of_shape.items():
            directions = torch.stack([self._momentum(parameter) for parameter in parameters])
            updates = orthogonalise(directions)
            rate = group["lr"] * 0.2 * max(shape) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-rate)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov's: the gradient as it will be one step on."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"]
        buffer.lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(buffer, MOMENTUM)


def orthogonalise(matrices: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`matrices` (n, rows, columns) with their singular values brought near 1 (between about 0.5 and 1.5).

    Five quintic Newton-Schulz iterations, in `dtype`: by default bfloat16 where the device multiplies it.
    """
    dtype = dtype or (torch.bfloat16 if multiplies_bf16(matrices.device) else torch.float32)
    wide = matrices.shape[1] <= matrices.shape[2]
    x = (matrices if wide else matrices.mT).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


def hidden_matrices(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The parameters that are Muon's: two-dimensional, and in no embedding nor in the output head."""
    outside = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    if model.get_output_embeddings() is not None:
        outside.append(model.get_output_embeddings())
    left_out = {parameter for module in outside for parameter in module.parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and parameter.requires_grad and parameter not in left_out
    }
