"""Ctrl-C and SIGTERM: during training a resume point is saved, then the stage stops.

A second Ctrl-C stops at once; what was saved before stays.
"""

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chatpipe.training.ranks import STOP_FILE, has_parent


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
