"""Reads metrics.jsonl, and follows a stage that runs in other processes. No torch."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chatpipe import console

METRICS_FILE = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last line that a kill has cut off."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def progress_words(logs: dict[str, Any]) -> str:
    """The text of a progress bar."""
    words = []
    if "objective/scores" in logs:
        words.append(f"score {logs['objective/scores']:.2f}  kl {logs['objective/kl']:z.1f}")
    elif "loss" in logs:
        words.append(f"loss {logs['loss']:.3f}")
    if "tokens_per_second" in logs:
        words.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    return "  ".join(words)


def evaluation_words(logs: dict[str, Any]) -> list[str]:
    """The result of an evaluation during training: its numbers in one line, then a line for each sample."""
    numbers = {name: value for name, value in logs.items() if name.startswith("eval_")}
    parts = [f"{name.removeprefix('eval_').replace('_', ' ')} {value:.3f}" for name, value in numbers.items()]
    return [f"validation: {', '.join(parts)}", *(" ".join(sample.split()) for sample in logs.get("samples", []))]


class LogLines:
    """Lines for a log file: where training is, and how long the rest takes."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._start: tuple[int, float] | None = None

    def show(self, step: int, steps: int, words: str) -> None:
        """Prints a line, unless it is a terminal. The time left follows from the second call on."""
        first, since = self._start = self._start or (step, time.monotonic())
        left = ""
        if step > first:
            left = f"  {format_duration((steps - step) * (time.monotonic() - since) / (step - first))} left"
        console.log_line(f"{self.stage}: step {step:,} of {steps:,}  {words}{left}")


def format_duration(seconds: float) -> str:
    """A duration for people, such as `3.5 h`."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


@contextmanager
def follow(stage: str, folder: Path) -> Iterator[Callable[[], None]]:
    """Shows the stage's metrics file in a progress bar or a log file; call the yielded function to update it."""
    path = folder / METRICS_FILE
    lines_shown, log = len(read_metrics(path)), LogLines(stage)
    with console.progress(stage, total=None, lines=False) as bar:

        def show() -> None:
            nonlocal lines_shown
            if lines := read_metrics(path):
                bar.update(lines[-1]["step"], progress_words(lines[-1]), total=lines[-1]["max_steps"])
                for line in lines[lines_shown:]:
                    log.show(line["step"], line["max_steps"], progress_words(line))
                lines_shown = len(lines)

        yield show
