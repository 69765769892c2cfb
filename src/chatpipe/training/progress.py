"""Reads metrics.jsonl, and follows a stage that runs in other processes. No torch."""

import json
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
        words.append(f"score {logs['objective/scores']:.2f}  kl {logs['objective/kl']:.1f}")
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


@contextmanager
def follow(stage: str, folder: Path) -> Iterator[Callable[[], None]]:
    """A progress bar that shows the stage's metrics file; call the yielded function to update it."""
    path = folder / METRICS_FILE
    with console.progress(stage, total=None) as bar:

        def show() -> None:
            if lines := read_metrics(path):
                bar.update(lines[-1]["step"], progress_words(lines[-1]), total=lines[-1]["max_steps"])

        yield show
