"""Running a trainer from its newest resume point to its end: watched, interruptible, no step that is not finite.

Trainer would hide such a step (`logging_nan_inf_filter`, which is off here), and its optimizer would spread the
infinity to every weight.
"""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatpipe import console
from chatpipe.errors import Interrupted, TrainingError
from chatpipe.recipe.architectures import flops_per_token
from chatpipe.training.callbacks import watch
from chatpipe.training.machine import give_back_freed_memory, is_large, peak_flops
from chatpipe.training.ranks import STOP_FILE, has_parent
from chatpipe.training.resume import RESUME_POINTS, common_resume_point


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


class CountsRowsOnce(Trainer):
    """Counts each row of the data set once in an epoch, on any number of processes.

    Where the last batch of an epoch does not fill all processes, accelerate repeats rows from its beginning.
    """

    _train_batch_size: int

    def leave_out(self, batch: dict[str, Tensor], first: int) -> None:
        """Changes `batch` so that nothing is learned from its rows from number `first` on."""
        raise NotImplementedError

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Any]:
        """The micro-batches of the next step, as Trainer takes them, and the count that it divides the loss by."""
        return super().get_batch_samples(map(self._without_repeated, epoch_iterator), num_batches, device)

    def _without_repeated(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        size = self._train_batch_size
        left = len(self.train_dataset) % (size * self.args.world_size)  # rows of the last batch, of all processes
        if left and self.accelerator.gradient_state.end_of_dataloader:
            self.leave_out(batch, max(0, left - size * self.args.process_index))
        return batch


class GivesBackMemory(TrainerCallback):
    """Gives the holes between a large model's gradients and moments back after each micro-batch and each step.

    Gradients settle where activations were, and the next activations are taken from the kernel: a quarter of the peak
    of a model of 135 M parameters.
    """

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After a micro-batch."""
        give_back_freed_memory()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """After a step."""
        give_back_freed_memory()


class StopOnRequest(TrainerCallback):
    """Saves and stops at the next step at which the trainer can be resumed, after a request.

    A request is SIGINT or SIGTERM to any rank, or a file that the parent of launched ranks writes: signals sent to the
    launcher would kill the ranks before they can save.
    """

    def __init__(self, folder: Path, resumable: Callable[[TrainerState], bool]) -> None:
        self.requested = False
        self._file = folder / STOP_FILE
        self._resumable = resumable
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Takes over the two signals."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)

    def restore(self) -> None:
        """Gives the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Saves and stops after a request, where the trainer can be resumed; all ranks decide the same."""
        if self._resumable(state) and self._agreed(args.device):
            self.requested = True
            control.should_save = True
            control.should_training_stop = True
        return control

    def _agreed(self, device: torch.device) -> bool:
        # Without a parent, the file is a leftover of a parent that was killed.
        asked = self.requested or (has_parent() and self._file.exists())
        if not distributed.is_initialized():
            return asked
        votes = torch.tensor(int(asked), device=device)
        distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
        return bool(votes)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


def run_trainer(
    trainer: SkipNonFinite,
    model: PreTrainedModel,
    stage: str,
    folder: Path,
    context: int,
    max_nonfinite_steps: int,
    resumable: Callable[[TrainerState], bool] = lambda state: True,
) -> dict[str, Any]:
    """Trains to the end and returns the average speed, `train_seconds` and the `evaluation_seconds` within it.

    FLOPs are counted from `model` and `context` (tokens). `resumable` decides at which steps a resume point may lie; an
    interruption waits for the next one. Raises `Interrupted` when asked to stop before the end, and `TrainingError`
    after `max_nonfinite_steps` in a row with a loss or gradient that is not finite.
    """
    trainer.max_nonfinite_steps = max_nonfinite_steps
    config = model.config.get_text_config()
    flops = flops_per_token(model.num_parameters(), config.num_hidden_layers, config.hidden_size, context)
    watching = watch(trainer, stage, folder, flops, peak_flops(torch.bfloat16 if trainer.args.bf16 else torch.float32))
    point = common_resume_point(folder / RESUME_POINTS)
    if point is not None and trainer.is_world_process_zero():
        console.note(f"{stage}: going on from {point.name}")
    stop = StopOnRequest(folder, resumable)
    trainer.add_callback(stop)
    if trainer.args.device.type == "cpu" and is_large(model):
        trainer.add_callback(GivesBackMemory())
    stop.install()
    give_back_freed_memory()  # of reading data and tokenising
    start = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(point) if point else None)
    except KeyboardInterrupt as problem:
        raise Interrupted(
            f"{stage} was stopped at once.", "The same command continues from the last resume point."
        ) from problem
    finally:
        stop.restore()
        watching.progress.close()
        give_back_freed_memory()
    if stop.requested:
        raise Interrupted(
            f"{stage} was interrupted at step {trainer.state.global_step} of {trainer.state.max_steps}.",
            "A resume point is saved; the same command continues from there.",
        )
    evaluating = watching.speed.evaluation_seconds
    return {
        **watching.speed.averages(trainer.args.world_size),
        "train_seconds": time.monotonic() - start - evaluating,
        "evaluation_seconds": evaluating,
    }
