"""Keeping the weights of the evaluation with the lowest held-out loss, so that a resumed run ends with the same ones.

They lie beside the resume points, in `checkpoints/best-N` for step N, complete or invisible as these are. Which one is
the best so far stands in each resume point, and one that a resume point names is not deleted before that.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatpipe.data.durable import PARTIAL, fault_of, publish, read_json, retire
from chatpipe.errors import TrainingError
from chatpipe.training.resume import RESUME_POINTS, ResumePoints

_log = logging.getLogger(__name__)


class KeepsBest(ResumePoints):
    """Stands first among the bases of a trainer that calls `offer` after each evaluation."""

    best_step: int | None = None
    best_loss: float = float("inf")

    def offer(self, loss: float) -> None:
        """Keeps the weights as they are if no evaluation before had so low a loss. Every rank calls it."""
        # the same number on all ranks, so that they decide alike
        loss = self.accelerator.reduce(torch.tensor(loss, device=self.args.device), reduction="mean").item()
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
        """Puts the best weights in place of the last ones. Raises `TrainingError` where they are damaged."""
        if self.best_step is None or self.best_step == self.state.global_step:
            return
        folder = self._folder_of(self.best_step)
        fault = fault_of(folder)
        if fault is not None:
            raise TrainingError(f"The best weights, {folder}, are not as they were written: {fault}.", "Use --fresh.")
        self.load_weights(folder)

    def extra_state(self) -> dict[str, Any]:
        """Which evaluation was the best so far."""
        return {"best_step": self.best_step, "best_loss": self.best_loss if self.best_step is not None else None}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Goes on from there."""
        if extra["best_step"] is not None:
            self.best_step, self.best_loss = extra["best_step"], extra["best_loss"]

    def delete_unneeded(self, folder: Path, points: list[Path]) -> None:
        """Deletes best weights that no resume point names."""
        named = {read_json(point / "rank-0.json")["extra"]["best_step"] for point in points}
        for best in folder.glob("best-*"):
            if best.suffix != PARTIAL and int(best.name.removeprefix("best-")) not in named:
                retire(best)

    def _folder_of(self, step: int) -> Path:
        return Path(self.args.output_dir) / RESUME_POINTS / f"best-{step}"


class EvaluateLast(TrainerCallback):
    """Evaluates after the last step too, before the last resume point: the last weights may be the best."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Asks for it."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
