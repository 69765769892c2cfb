"""Running a trainer from its newest complete resume point to its end, watched and interruptible."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerState

from chatpipe import console
from chatpipe.errors import Interrupted
from chatpipe.recipe.architectures import flops_per_token
from chatpipe.training.callbacks import watch
from chatpipe.training.interrupt import StopOnRequest
from chatpipe.training.machine import peak_flops
from chatpipe.training.nonfinite import SkipNonFinite
from chatpipe.training.process import give_back_freed_memory
from chatpipe.training.resume import RESUME_POINTS, common_resume_point


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

    FLOPs are counted from `model` and `context` (tokens). `resumable` tells at which steps a resume point may lie; an
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
            f"{stage} was stopped at once.", "The same command goes on from the last resume point."
        ) from problem
    finally:
        stop.restore()
        watching.progress.close()
        give_back_freed_memory()
    if stop.requested:
        raise Interrupted(
            f"{stage} was interrupted at step {trainer.state.global_step} of {trainer.state.max_steps}.",
            "A resume point is saved; the same command goes on from there.",
        )
    evaluating = watching.speed.evaluation_seconds
    return {
        **watching.speed.averages(trainer.args.world_size),
        "train_seconds": time.monotonic() - start - evaluating,
        "evaluation_seconds": evaluating,
    }
