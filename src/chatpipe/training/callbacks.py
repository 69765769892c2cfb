"""Shows a training run: a line in metrics.jsonl for each logged step, speed, and a progress bar."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import get_reporting_integration_callbacks

from chatpipe import console
from chatpipe.data.durable import replace_text
from chatpipe.training.progress import METRICS_FILE, LogLines, evaluation_words, progress_words, read_metrics


def watch(trainer: Trainer, stage: str, folder: Path, flops_per_token: float, peak: float | None) -> "Watch":
    """Adds our speed, metrics and progress to `trainer`, and removes the callbacks that print on their own."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    watching = Watch(Speedometer(flops_per_token, peak), Progress(stage))
    # The speedometer comes first: it adds to the logs that the others write and show.
    trainer.add_callback(watching.speed)
    if trainer.is_world_process_zero():
        trainer.add_callback(MetricsFile(folder / METRICS_FILE))
        trainer.add_callback(watching.progress)
    return watching


def closing_log(trainer: Trainer) -> Callable[[dict[str, Any]], None]:
    """Logs metrics of the trained model to metrics.jsonl and the trackers; keeps neither the trainer nor its model.

    Trainer's own `log` would keep the optimizer in memory while the model is evaluated.
    """
    args, state, control = trainer.args, trainer.state, trainer.control
    kinds = (MetricsFile, *get_reporting_integration_callbacks(args.report_to))
    kept = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kinds)]

    def log(metrics: dict[str, Any]) -> None:
        for callback in kept:
            callback.on_log(args, state, control, logs=dict(metrics))

    return log


class CountsTokens(Trainer):
    """Counts the tokens of all ranks for the speedometer. Comes before the Trainer among the bases.

    Trainer adds them up over the ranks in every micro-batch, and waits for the GPU each time. Here that is done when
    something is logged or saved.
    """

    _own_tokens: int = 0

    def count_tokens(self, tokens: int) -> None:
        """Counts tokens that this rank has read."""
        self._own_tokens += tokens

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        if self.args.include_num_input_tokens_seen != "no":
            self.count_tokens(inputs["input_ids"].numel())

    def add_up_tokens(self) -> None:
        """Brings `state.num_input_tokens_seen` up to date. Every rank calls it where tokens have been counted."""
        if self._own_tokens:
            tokens = torch.tensor(self._own_tokens, device=self.args.device)
            self.state.num_input_tokens_seen += int(self.accelerator.reduce(tokens, reduction="sum"))
            self._own_tokens = 0

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Trainer's, with the tokens of all ranks."""
        self.add_up_tokens()
        super().log(logs, start_time)


class Speedometer(TrainerCallback):
    """Adds `tokens_per_second` (over all processes) and `mfu` (share of `peak` FLOP/s a process) to the logs.

    `mfu` is "unknown" where the device's peak is.
    """

    def __init__(self, flops_per_token: float, peak: float | None) -> None:
        self.flops_per_token, self.peak = flops_per_token, peak
        self.train_tokens, self.train_seconds, self.evaluation_seconds = 0, 0.0, 0.0
        self._tokens, self._since = 0, 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock."""
        self._tokens, self._since = int(state.num_input_tokens_seen), time.perf_counter()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Measures since the last log; comes before the callbacks that write."""
        if "eval_loss" in logs:
            return
        if "train_loss" not in logs:
            # Trainer's own, which count from the beginning of this process
            logs.pop("train_runtime", None)
            logs.pop("train_tokens_per_second", None)
        now, seen = time.perf_counter(), int(state.num_input_tokens_seen)
        tokens, seconds = seen - self._tokens, now - self._since
        if tokens <= 0:
            return
        self._tokens, self._since = seen, now
        self.train_tokens += tokens
        self.train_seconds += seconds
        logs["tokens_per_second"] = round(tokens / seconds, 1)
        logs["mfu"] = self._mfu(tokens / seconds, args.world_size)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, Any], **_: Any
    ) -> None:
        """Leaves out the time of an evaluation."""
        seconds = metrics.get("eval_runtime", 0.0)
        self._since += seconds
        self.evaluation_seconds += seconds

    def averages(self, world_size: int) -> dict[str, Any]:
        """The speed over all training steps of this process."""
        if self.train_seconds == 0:
            return {}
        speed = self.train_tokens / self.train_seconds
        return {"tokens_per_second": round(speed, 1), "mfu": self._mfu(speed, world_size)}

    def _mfu(self, tokens_per_second: float, world_size: int) -> float | str:
        if self.peak is None:
            return "unknown"
        return round(tokens_per_second * self.flops_per_token / (self.peak * world_size), 4)


@dataclass
class Watch:
    """The callbacks that a caller needs again after training."""

    speed: Speedometer
    progress: "Progress"


class MetricsFile(TrainerCallback):
    """One JSON object per logged step, flushed as written; a resumed run deletes the lines it will write again."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Cuts the file back to the resume point."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
        replace_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Appends one line."""
        if "train_loss" in logs:  # Trainer's closing summary, no step of its own
            return
        line = {"step": state.global_step, "max_steps": state.max_steps, **logs}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(console.nan_to_none(line)) + "\n")


class Progress(TrainerCallback):
    """Stage, step, loss, tokens/s and time left: in a bar on a terminal, in a line at each log elsewhere."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._stack = ExitStack()
        self._words = ""
        self._log = LogLines(stage)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Opens the bar."""
        self._bar = self._stack.enter_context(console.progress(self.stage, state.max_steps, lines=False))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Moves it."""
        self._bar.update(state.global_step, self._words)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Updates the text of the bar, and prints the result of an evaluation."""
        if "eval_loss" in logs:
            for line in evaluation_words(logs):
                console.note(f"step {state.global_step}: {line}")
            return
        if words := progress_words(logs):
            self._words = words
            self._log.show(state.global_step, state.max_steps, words)

    def close(self) -> None:
        """Removes the bar; also after an error, when Trainer calls no callback any more."""
        self._stack.close()


class StepClock(TrainerCallback):
    """Measures forward and backward, and the optimizer, of each step. It ends the training once a step would end more
    than `most` seconds after the first began, or after `enough` seconds and `steps` steps; never after a single step.

    The first step warms up or compiles, and does not count. `tokens_of` says how many tokens a step has.
    """

    def __init__(self, most: float, enough: float, steps: int, tokens_of: Callable[[int], int] = lambda _: 0) -> None:
        self._most, self._enough, self._steps, self._tokens_of = most, enough, steps, tokens_of
        self.tokens: list[int] = []
        self._passes: list[float] = []
        self._updates: list[float] = []
        self._began = self._last_lap = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock."""
        self._began = self._last_lap = time.perf_counter()

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leaves out what came before the step, such as the rollout of ppo."""
        self.lap(args.device)

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Records forward and backward."""
        self._passes.append(self.lap(args.device))
        self.tokens.append(self._tokens_of(len(self.tokens)))

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Records the optimizer, and decides whether to stop."""
        self._updates.append(self.lap(args.device))
        seconds = self._last_lap - self._began
        enough = seconds > self._enough and len(self._updates) >= self._steps
        enough = enough or seconds + self._passes[-1] + self._updates[-1] > self._most
        control.should_training_stop = (enough and len(self._updates) > 1) or control.should_training_stop

    def medians(self) -> tuple[float, float]:
        """Median seconds of forward and backward, and of the optimizer."""
        passes, updates = (sorted(some[1:] or some) for some in (self._passes, self._updates))
        return passes[len(passes) // 2], updates[len(updates) // 2]

    def seconds_of_a_token(self) -> float:
        """Of forward and backward, over all steps that count."""
        first = 1 if len(self._passes) > 1 else 0
        return sum(self._passes[first:]) / sum(self.tokens[first:])

    def lap(self, device: torch.device) -> float:
        """Seconds since the last call, or the beginning."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        seconds, self._last_lap = now - self._last_lap, now
        return seconds
