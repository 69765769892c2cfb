"""Evaluations that are a function of ours, in place of Trainer's loop over a data set."""

import time
from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel, Trainer, TrainerControl

Measure = Callable[[PreTrainedModel], dict[str, Any]]
"""What is measured of a model at each evaluation: `eval_loss` and whatever else is to be logged."""


class Measured(Trainer):
    """Has `measure` run at each of Trainer's evaluations, on every process. Stands before the Trainer among the bases.

    The model computes as it does in training: with `bf16`, all of the measuring is in the same autocast.
    """

    measure: Measure | None = None
    control: TrainerControl

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Measures the model, logs what comes out and returns it with `eval_runtime`, in seconds."""
        if self.measure is None:
            return {}
        start = time.perf_counter()
        # The autocast of training is in the model's own forward, past which generation reads prompts with its body.
        with self.accelerator.autocast():
            metrics = self.measure(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        # Trainer's own, past those of subclasses, which add to what is logged of training steps
        Trainer.log(self, metrics)
        self.on_measured(metrics)
        metrics = {**metrics, "eval_runtime": time.perf_counter() - start}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def on_measured(self, metrics: dict[str, Any]) -> None:
        """What else an evaluation does, within its time; nothing by default."""
