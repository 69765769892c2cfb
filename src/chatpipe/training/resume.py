"""Resume points: folders `checkpoints/step-N` from which a training run continues as if it had never stopped.

    class PretrainTrainer(ResumePoints, Trainer): ...
    point = newest_resume_point(stage / RESUME_POINTS)
    trainer.train(resume_from_checkpoint=str(point) if point else None)

Trainer writes straight into `checkpoint-N`, takes the highest number unchecked, resumes silently with a fresh optimizer
when that file is gone, and stores pickles. A resume point is complete or invisible (`data.durable`), holds safetensors
and JSON only, and has all that the training loop needs to continue exactly:

    trainer_state.json      Trainer's own state with its log history, under the name that Trainer reads
    model.safetensors       one file for each of `modules_to_save()`
    optimizer.safetensors   the tensors of the optimizer
    training.json           the rest of it, the learning rate schedule, what wrote it
    rank-R.json             per process: generators, the loss not logged yet, `extra_state()`
    manifest.json           size and SHA-256 of each, written last

Exact means: on a CPU in fp32, with the same number of processes and the same library versions, all losses are equal to
the bit. It requires that no batch draws from the global generators (a loader reads ahead of the step that is saved)
and that evaluation and saving both go by steps. With another number of processes the run continues, but not bit by bit.
All ranks need the same file system.
"""

import dataclasses
import logging
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

import chatpipe
from chatpipe.data.durable import MANIFEST, PARTIAL, delete_folder, find_damage, publish, read_json, write_json
from chatpipe.errors import TrainingError, UsageError
from chatpipe.training import state
from chatpipe.training.callbacks import CountsTokens

RESUME_POINTS = "checkpoints"
"""Folder of a stage, below `args.output_dir`, in which its resume points lie."""

OPTIMIZER = "optimizer.safetensors"
TRAINING = "training.json"

_log = logging.getLogger(__name__)


def newest_resume_point(folder: Path, report: Callable[[str], None] = _log.warning) -> Path | None:
    """The complete resume point with the highest step in `folder` (`STAGE/checkpoints`), or None.

    Reads every byte of it. Each newer one that is torn or damaged is skipped, and `report` gets a sentence about it.
    """
    for point in sorted(_points(folder), key=_step_of, reverse=True):
        fault = find_damage(point)
        if fault is None:
            return point
        report(f"Resume point {point} is skipped: {fault}.")
    return None


def common_resume_point(folder: Path) -> Path | None:
    """`newest_resume_point`, found by the first process for all of them: every byte is read and hashed once."""
    found = [newest_resume_point(folder) if PartialState().is_main_process else None]
    broadcast_object_list(found)
    return found[0]


class ResumePoints(CountsTokens):
    """Replaces how a Trainer saves and loads checkpoints. Comes first among the bases of a trainer."""

    resume_points_to_keep: int = 2
    # The sum of losses not logged yet, which Trainer keeps while its own loop runs.
    _tr_loss: torch.Tensor = torch.zeros(())
    _globalstep_last_logged: int = 0

    def modules_to_save(self) -> dict[str, nn.Module]:
        """The modules to save, by the name of their file; together they hold every parameter of the optimizer."""
        return {"model": self.accelerator.unwrap_model(self.model, keep_torch_compile=False)}

    def extra_state(self) -> dict[str, Any]:
        """What else this process needs to resume, as JSON: the cursor of a loader, a coefficient that adapts."""
        return {}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Puts `extra_state()` back. Called when model and loader exist and no batch has been taken.

        Each process gets its own; a process that did not exist then gets that of process 0.
        """

    def check_resumable(self) -> None:
        """Raises `UsageError` for a training that resume points cannot hold."""
        if self.is_deepspeed_enabled:
            raise UsageError("DeepSpeed is not supported: its optimizer cannot be resumed.", "Use FSDP2 instead.")
        if self.args.load_best_model_at_end:
            raise UsageError("load_best_model_at_end is not supported: only the newest resume points are kept.")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """`Trainer.train`, after `check_resumable`."""
        self.check_resumable()
        return super().train(*args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:
            # resumed at the last step: Trainer would take one more step in the middle of an epoch
            self.control.should_training_stop = True

    # ---- saving ----

    def save_resume_point(self) -> None:
        """Writes a resume point of this step and deletes those that it supersedes. Every rank calls it.

        Raises `TrainingError` where it cannot be written.
        """
        self.store_flos()
        self.add_up_tokens()
        folder = Path(self.args.output_dir) / RESUME_POINTS
        partial = folder / f"step-{self.state.global_step}{PARTIAL}"
        try:
            if self.is_world_process_zero():
                folder.mkdir(parents=True, exist_ok=True)
                for leftover in folder.glob(f"*{PARTIAL}"):
                    shutil.rmtree(leftover)
                partial.mkdir()
            self.accelerator.wait_for_everyone()
            self._write_resume_point(partial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                publish(partial)
                self._delete_superseded(folder)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(
                f"Resume point {partial.with_suffix('')} could not be written: {error}",
                "Make room or give out= another disk; the same command continues from the resume point before it.",
            ) from error
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        self.save_resume_point()

    def _write_resume_point(self, partial: Path) -> None:
        main = self.is_world_process_zero()
        write_json(partial / f"rank-{self.args.process_index}.json", self._state_of_this_rank())
        self.write_weights(partial)
        tensors: dict[str, torch.Tensor] = {}
        training = state.pack(self._training_state(), tensors, keep=main)
        if main:
            state.write_tensors(partial / OPTIMIZER, tensors)
            write_json(partial / TRAINING, training)
            exportable = [
                cb for cb in [*self.callback_handler.callbacks, self.control] if isinstance(cb, ExportableState)
            ]
            self.state.stateful_callbacks = TrainerState(stateful_callbacks=exportable).stateful_callbacks
            write_json(partial / TRAINER_STATE_NAME, dataclasses.asdict(self.state))

    def write_weights(self, folder: Path) -> None:
        """One file for each of `modules_to_save()`. Gathers sharded weights: every rank calls it."""
        main = self.is_world_process_zero()
        for name, module in self.modules_to_save().items():
            tensors: dict[str, torch.Tensor] = {}
            for key, tensor in state.weights(module).items():
                state.pack(tensor, tensors, key, keep=main)
            if main:
                state.write_tensors(folder / f"{name}.safetensors", tensors)

    def load_weights(self, folder: Path) -> None:
        """Loads what `write_weights` wrote."""
        for name, module in self.modules_to_save().items():
            # mapped, not read: a rank loads only the bytes that it copies
            state.load_weights(module, load_file(folder / f"{name}.safetensors"))

    def _training_state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "optimizer": state.optimizer_state(self._torch_optimizer(), state.parameter_names(self.modules_to_save())),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "versions": {
                "chatpipe": chatpipe.__version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        }

    def _state_of_this_rank(self) -> dict[str, Any]:
        return {
            "world_size": self.args.world_size,
            "rng": state.rng_state(),
            "unlogged_loss": self._tr_loss.item(),
            "last_logged_step": self._globalstep_last_logged,
            "extra": self.extra_state(),
        }

    def _delete_superseded(self, folder: Path) -> None:
        # points after this step were left by a run that was given up or could not be read when this one started
        passed = sorted((p for p in _points(folder) if _step_of(p) <= self.state.global_step), key=_step_of)
        for point in set(_points(folder)) - set(passed[-self.resume_points_to_keep :]):
            delete_folder(point)
        self.delete_unneeded(folder, passed[-self.resume_points_to_keep :])

    def delete_unneeded(self, folder: Path, points: list[Path]) -> None:
        """Deletes other files in `folder` that none of the remaining resume `points` needs. Runs on one process."""

    # ---- loading ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if not (folder / MANIFEST).is_file():
            raise UsageError(f"{folder} is not a resume point of chatpipe: it has no {MANIFEST}.")
        self.load_weights(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        saved = state.unpack(read_json(folder / TRAINING), load_file(folder / OPTIMIZER))
        names = state.parameter_names(self.modules_to_save())
        state.load_optimizer_state(self._torch_optimizer(), names, saved["optimizer"])
        self.lr_scheduler.load_state_dict(saved["lr_scheduler"])
        if saved["scaler"] is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        self.load_extra_state(self._saved_state_of_this_rank(folder)["extra"])
        self._load_rng_state(checkpoint)  # Trainer does so in the first epoch, which a finished run does not enter

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = self._saved_state_of_this_rank(Path(checkpoint))
        if saved["world_size"] == self.args.world_size:
            state.set_rng_state(saved["rng"])
        else:
            _log.warning(
                "%s is of %s processes, this run has %s: it continues, but not bit by bit.",
                checkpoint,
                saved["world_size"],
                self.args.world_size,
            )
            set_seed(self.args.seed + self.state.global_step)
        # Trainer has set both to zero by now, as if the step before had been logged
        self._tr_loss = torch.tensor(saved["unlogged_loss"], device=self.args.device)
        self._globalstep_last_logged = saved["last_logged_step"]

    def _saved_state_of_this_rank(self, folder: Path) -> dict[str, Any]:
        own = folder / f"rank-{self.args.process_index}.json"
        return read_json(own if own.is_file() else folder / "rank-0.json")

    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it


def _points(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if path.is_dir() and re.fullmatch(r"step-\d+", path.name)]


def _step_of(point: Path) -> int:
    return int(point.name.removeprefix("step-"))
