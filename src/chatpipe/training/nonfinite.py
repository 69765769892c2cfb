"""A step whose loss or gradient is not finite is skipped, logged, and after some in a row ends the training.

Trainer would hide it (`logging_nan_inf_filter`; that is off with us) and let the optimizer spread it to every weight.
"""

from typing import Any

import torch
from torch import nn
from transformers import Trainer

from chatpipe.errors import TrainingError


class SkipNonFinite(Trainer):
    """Leaves weights and optimizer alone in a step that is not finite. Stands before the Trainer among the bases.

    Such a step counts: data and learning rate go on. It is logged as `nonfinite_in_a_row`; the mean `loss` that is
    logged next covers the steps after it. Raises `TrainingError` after `max_nonfinite_steps` in a row.
    """

    max_nonfinite_steps: int = 3
    nonfinite_in_a_row: int = 0
    _skipped_unreported: bool = False
    _tr_loss: torch.Tensor

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Trainer asks for the norm last before `optimizer.step()`, when the step's losses are in `_tr_loss`
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self._is_finite_on_all_ranks(grad_norm):
            self.nonfinite_in_a_row = 0
        else:
            self.nonfinite_in_a_row += 1
            self._skipped_unreported = True
            # torch optimizers pass over a parameter without a gradient: no decay, no moment, no step counted
            model.zero_grad(set_to_none=True)
            # one nan in the sum of unlogged losses would never leave it again
            self._tr_loss = torch.zeros_like(self._tr_loss)
            self._globalstep_last_logged = self.state.global_step + 1
        return grad_norm

    def _is_finite_on_all_ranks(self, grad_norm: Any) -> bool:
        finite = torch.isfinite(self._tr_loss)
        if self.accelerator.scaler is None:  # fp16 overflows now and then: its scaler skips those steps by itself
            norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
            finite = finite & torch.isfinite(torch.as_tensor(norm, device=finite.device))
        # the norm is the same on all ranks, but a loss can be infinite on one of them and its gradient finite
        ranks_in_trouble = self.accelerator.reduce((~finite).float(), reduction="sum")
        return ranks_in_trouble.item() == 0  # this is a CPU-GPU sync point

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        if self._skipped_unreported:
            self._skipped_unreported = False
            self.log({"nonfinite_in_a_row": self.nonfinite_in_a_row})
        if self.nonfinite_in_a_row >= self.max_nonfinite_steps:
            raise TrainingError(
                f"Loss or gradient was not finite in {self.nonfinite_in_a_row} steps in a row, the last is step "
                f"{self.state.global_step}. Those steps have changed no weight.",
                "Lower learning_rate or lengthen the warm-up (then start over with --fresh), or look for broken rows.",
            )
        super()._maybe_log_save_evaluate(*args, **kwargs)
