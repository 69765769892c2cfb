"""Running a trainer from its newest complete resume point to its end, watched and interruptible."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatpipe import console
from chatpipe.errors import Interrupted
from chatpipe.recipe.architectures import flops_per_token
from chatpipe.training.callbacks import watch
from chatpipe.training.machine import peak_flops
from chatpipe.training.nonfinite import SkipNonFinite
from chatpipe.training.process import give_back_freed_memory
from chatpipe.training.ranks import STOP_FILE, has_parent
from chatpipe.training.resume import RESUME_POINTS, common_resume_point


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
    config = model.config
    flops = flops_per_token(model.num_parameters(), config.num_hidden_layers, config.hidden_size, context)
    watching = watch(trainer, stage, folder, flops, peak_flops(torch.bfloat16 if trainer.args.bf16 else torch.float32))
    point = common_resume_point(folder / RESUME_POINTS)
    if point is not None and trainer.is_world_process_zero():
        console.note(f"{stage}: going on from {point.name}")
    stop = StopOnRequest(folder, resumable)
    trainer.add_callback(stop)
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
