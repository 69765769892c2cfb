"""Skips a step whose loss or gradient is not finite, logs it, and ends the training after some in a row.

Trainer would hide it (`logging_nan_inf_filter`, which is off here) and let the optimizer spread it to every weight.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from chatpipe.errors import TrainingError


class SkipNonFinite(Trainer):
    """Leaves weights and optimizer unchanged in a step that is not finite. Comes before the Trainer among the bases.

    Such a step counts: data and learning rate advance. It is logged as `nonfinite_in_a_row`; the mean `loss` that is
    logged next covers the steps after it. Raises `TrainingError` after `max_nonfinite_steps` in a row.

    A trainer with a loop of its own calls `skip_if_nonfinite` before `optimizer.step()` and `report_skipped_step` at
    the end of each step.
    """

    max_nonfinite_steps: int = 3
    nonfinite_in_a_row: int = 0
    _skipped_unreported: bool = False
    _tr_loss: Tensor

    def skip_if_nonfinite(self, model: nn.Module, loss: Tensor, grad_norm: Any) -> bool:
        """Deletes the gradients where `loss` or `grad_norm` is not finite on any rank; returns whether it did.

        Every rank calls it, and all get the same answer. It waits for the GPU once, at the end of a step.
        """
        if self._is_finite_on_all_ranks(loss, grad_norm):
            self.nonfinite_in_a_row = 0
            return False
        self.nonfinite_in_a_row += 1
        self._skipped_unreported = True
        # torch optimizers pass over a parameter without a gradient: no decay, no moment, no step counted
        model.zero_grad(set_to_none=True)
        return True

    def report_skipped_step(self) -> None:
        """Logs a step that was skipped. Raises `TrainingError` after `max_nonfinite_steps` in a row."""
        if self._skipped_unreported:
            self._skipped_unreported = False
            self.log({"nonfinite_in_a_row": self.nonfinite_in_a_row})
        if self.nonfinite_in_a_row >= self.max_nonfinite_steps:
            raise TrainingError(
                f"Loss or gradient was not finite in {self.nonfinite_in_a_row} steps in a row, the last is step "
                f"{self.state.global_step}. Those steps have changed no weight.",
                "Lower learning_rate or lengthen the warm-up (then start over with --fresh), or look for broken rows.",
            )

    def _is_finite_on_all_ranks(self, loss: Tensor, grad_norm: Any) -> bool:
        finite = torch.isfinite(loss)
        if self.accelerator.scaler is None:  # fp16 overflows now and then: its scaler skips those steps by itself
            norm = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
            finite = finite & torch.isfinite(torch.as_tensor(norm, device=finite.device))
        # the norm is the same on all ranks, but a loss can be infinite on one of them and its gradient finite
        ranks_in_trouble = self.accelerator.reduce((~finite).float(), reduction="sum")
        return ranks_in_trouble.item() == 0  # this is a CPU-GPU sync point

    # ---- where Trainer's own loop calls them ----

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Trainer asks for the norm last before `optimizer.step()`, when the step's losses are in `_tr_loss`
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.skip_if_nonfinite(model, self._tr_loss, grad_norm):
            # one nan in the sum of unlogged losses would never leave it again
            self._tr_loss = torch.zeros_like(self._tr_loss)
            self._globalstep_last_logged = self.state.global_step + 1
        return grad_norm

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self.report_skipped_step()
        super()._maybe_log_save_evaluate(*args, **kwargs)
