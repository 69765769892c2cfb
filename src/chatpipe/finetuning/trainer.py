"""The trainer of fine-tuning: trl's SFTTrainer with our resume points, evaluation and adapters."""

import time
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerControl
from trl import SFTConfig, SFTTrainer

from chatpipe.errors import UsageError
from chatpipe.finetuning.packing import PackCollator, isolates_packed_rows
from chatpipe.models.lora import Adapter
from chatpipe.training.adapter import TrainsAdapter
from chatpipe.training.best import EvaluateLast, KeepsBest
from chatpipe.training.nonfinite import SkipNonFinite

Measure = Callable[[PreTrainedModel], dict[str, Any]]
"""What is measured of a model at each evaluation: `eval_loss` and whatever else is to be logged."""


class SftTrainer(TrainsAdapter, KeepsBest, SkipNonFinite, SFTTrainer):
    """Trains on sequences as `training_sequences` gives them.

    `packed` says that there are several rows in each; raises `UsageError` for a model that would read across them.
    With `adapter` only that is trained; `model` is then its model. `measure` runs at each of Trainer's evaluations, on
    every process; with `keep_best` the weights with the lowest `eval_loss` are kept for `load_best`.
    """

    control: TrainerControl

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        packed: bool = False,
        adapter: Adapter | None = None,
        measure: Measure | None = None,
        keep_best: bool = False,
    ) -> None:
        if packed and not isolates_packed_rows(model):
            raise UsageError(
                f"{type(model).__name__} reads across conversations that are packed into one sequence.",
                "Set sft.packing to false.",
            )
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            data_collator=PackCollator(processing_class.pad_token_id) if packed else None,
            eval_dataset=[],  # `measure` measures; Trainer wants to see one where it is to evaluate
        )
        self.adapter, self.measure, self.keep_best = adapter, measure, keep_best
        if keep_best:
            self.add_callback(EvaluateLast())

    def evaluate(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Measures the model, logs what comes out and returns it. Every process measures the same."""
        if self.measure is None:
            return {}
        start = time.perf_counter()
        metrics = self.measure(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))
        # past SFTTrainer's, which would put what it averages of the training steps in and begin anew
        super(SFTTrainer, self).log(metrics)
        if self.keep_best:
            self.offer(metrics["eval_loss"])
        metrics = {**metrics, "eval_runtime": time.perf_counter() - start}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """Without trl's count of tokens, which takes a packed batch for one row; Trainer's own is right."""
        self._metrics["train"].pop("num_tokens", None)
        super().log(logs, start_time)

    def extra_state(self) -> dict[str, Any]:
        """Also the metrics that no log has averaged yet."""
        return {**super().extra_state(), "metrics": self._metrics["train"]}

    def load_extra_state(self, extra: dict[str, Any]) -> None:
        """Goes on counting from there."""
        super().load_extra_state(extra)
        self._metrics["train"].update(extra["metrics"])
