"""Evaluations during training: a function of ours in place of Trainer's loop, and the best weights so far.

The best weights lie in `checkpoints/best-N` for step N, complete or invisible like resume points. Each resume point
names the best step so far, and weights that a resume point names are kept, so a resumed run ends with the same ones.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatpipe.data.durable import PARTIAL, delete_folder, find_damage, publish, read_json
from chatpipe.errors import TrainingError
from chatpipe.training.resume import RESUME_POINTS, ResumePoints

Measure = Callable[[PreTrainedModel], dict[str, Any]]
"""What is measured of a model at each evaluation: `eval_loss` and whatever else is to be logged."""


class Measured(ResumePoints):
    """Calls `measure` at each of Trainer's evaluations, on every process. Comes first among the bases of a trainer.

    The model computes as it does in training: with `bf16`, all of the measuring is in the same autocast.
    """

    measure: Measure | None = None
    control: TrainerControl

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Measures the model, logs the metrics and returns them with `eval_runtime`, in seconds."""
        if self.measure is None:
            return {}
        start = time.perf_counter()
        # The autocast of training is in the model's own forward; generation reads prompts with its body.
        with self.accelerator.autocast():
            metrics = self.measure(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        self.add_up_tokens()
        Trainer.log(self, metrics)  # not the subclass's, which adds metrics of training steps
        self.on_measured(metrics)
        metrics = {**metrics, "eval_runtime": time.perf_counter() - start}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def on_measured(self, metrics: dict[str, Any]) -> None:
        """Called with the metrics of each evaluation, within its time."""


class KeepsBest(Measured):
    """With `keep_best`, keeps the weights of the evaluation with the lowest `eval_loss`, for `load_best`."""

    keep_best: bool = False
    best_step: int | None = None
    best_loss: float = float("inf")

    def on_measured(self, metrics: dict[str, Any]) -> None:
        """Writes the weights where no evaluation before had so low a loss. Every rank calls it."""
        if not self.keep_best:
            return
        # the mean over the ranks, so that all of them decide the same
        own = torch.tensor(metrics["eval_loss"], device=self.args.device)
        loss = self.accelerator.reduce(own, reduction="mean").item()
        if not loss < self.best_loss:
            return
        self.best_step, self.best_loss = self.state.global_step, loss
        partial = self._folder_of(self.best_step).with_suffix(PARTIAL)
        if self.is_world_process_zero():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.write_weights(partial)
        if self.is_world_process_zero():
            publish(partial)

    def load_best(self) -> None:
        """Replaces the last weights by the best ones. Raises `TrainingError` where these are damaged."""
        if self.best_step is None or self.best_step == self.state.global_step:
            return
        folder = self._folder_of(self.best_step)
        fault = find_damage(folder)
        if fault is not None:
            raise TrainingError(f"The best weights, {folder}, are damaged: {fault}.", "Use --fresh.")
        self.load_weights(folder)

    def extra_state(self) -> dict[str, Any]:
        """Adds the best evaluation so far."""
        best_loss = None if self.best_step is None else self.best_loss
        return {**super().extra_state(), "best_step": self.best_step, "best_loss": best_loss}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Puts it back."""
        super().load_extra_state(extra)
        if extra["best_step"] is not None:
            self.best_step, self.best_loss = extra["best_step"], extra["best_loss"]

    def delete_unneeded(self, folder: Path, points: list[Path]) -> None:
        """Deletes best weights that no resume point names."""
        named = {read_json(point / "rank-0.json")["extra"]["best_step"] for point in points}
        for best in folder.glob("best-*"):
            if best.suffix != PARTIAL and int(best.name.removeprefix("best-")) not in named:
                delete_folder(best)

    def _folder_of(self, step: int) -> Path:
        return Path(self.args.output_dir) / RESUME_POINTS / f"best-{step}"


class EvaluateLast(TrainerCallback):
    """Evaluates after the last step too, before the last resume point: the last weights may be the best."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Requests an evaluation at the last step."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
