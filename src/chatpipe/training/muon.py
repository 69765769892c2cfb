"""Muon for the matrices inside the model, AdamW for the rest, as one optimizer.

Muon (https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest matrix with
orthogonal rows or columns. Scaled by 0.2 sqrt(max(rows, columns)), its steps are as large as AdamW's (arXiv 2502.16982,
section 2.2), so both take the same learning rate and weight decay.

Both are torch's. torch's Muon orthogonalises in bfloat16, which a CPU without instructions for it does slowly.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer over both kinds of parameter groups; those of Muon have `muon: True`.

    Groups and state are ordinary ones: schedules and resume points treat them like any optimizer's.
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
        self._muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW([group for group in others if group["params"]], lr=lr, **adamw)
        groups = [{**group, "muon": True} for group in self._muon.param_groups]
        super().__init__([*groups, *({**group, "muon": False} for group in self._adamw.param_groups)], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step over all parameters that have a gradient."""
        # State and groups belong to this optimizer: a schedule or a resume point may have replaced them.
        for optimizer, muon in ((self._muon, True), (self._adamw, False)):
            optimizer.state = self.state
            optimizer.param_groups = [group for group in self.param_groups if group["muon"] == muon]
            optimizer.step()


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
