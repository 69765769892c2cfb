"""`--dry-run` of a stage: the memory and the time that it would take.

A few steps are taken and timed. sft, rm and ppo take them with the real model on real rows (`try_stages`). pretrain
needs neither its data nor the hub: it reads random tokens, and is scaled to whole steps by FLOPs; its memory is counted
on fake tensors.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from chatpipe import console
from chatpipe.data.text_blocks import Masking
from chatpipe.evaluation.text import rows_at_once
from chatpipe.generation import SamplingParams, generate
from chatpipe.models.model_folder import looks_like_path
from chatpipe.models.pretrained import training_device
from chatpipe.models.properties import evaluation_mode
from chatpipe.recipe.architectures import flops_per_token
from chatpipe.recipe.schema import Pretrain
from chatpipe.run.memory_estimate import blank_model, check_memory, estimate_memory
from chatpipe.run.try_stages import rehearsed
from chatpipe.stages.language_steps import expected_vocabulary
from chatpipe.stages.step import Step
from chatpipe.training.arguments import pretrain_arguments, training_arguments, use_bf16
from chatpipe.training.callbacks import StepClock
from chatpipe.training.machine import (
    begin_peak,
    peak_flops,
    peak_memory,
    prepare_process,
)
from chatpipe.training.pretrain_trainer import PretrainTrainer
from chatpipe.training.progress import format_duration

MAX_SECONDS, ENOUGH_SECONDS, ENOUGH_STEPS = 30.0, 12.0, 5
"""The probe starts no step after `MAX_SECONDS`, so that a dry run takes less than a minute. It ends as soon as it has
`ENOUGH_STEPS` steps and `ENOUGH_SECONDS` seconds."""
MAX_STEP_SECONDS = 5.0
MAX_STEPS = 300
ASSUMED_SHARE_OF_PEAK = 0.5
SAMPLES, SAMPLE_TOKENS, LARGE_MODEL = 2, 32, 200_000_000
"""The probe's evaluation writes `SAMPLES` samples of `SAMPLE_TOKENS` tokens, because a CPU keeps kernels in memory for
each length. A model of `LARGE_MODEL` parameters writes a few tokens only: there the kernels are negligible."""


@dataclass(frozen=True)
class Timing:
    """The result of a probe: seconds of one optimizer step, and the process's peak in bytes.

    The probe used micro-batches of `rows` x `length` tokens; the run uses `micro_batch_tokens`.
    """

    seconds_per_step: float
    peak: int
    rows: int
    length: int
    micro_batch_tokens: int

    @property
    def probed_tokens(self) -> int:
        """Tokens of a micro-batch of the probe."""
        return self.rows * self.length


def foresee(step: Step, processes: int, plan: Mapping[str, Any]) -> dict[str, Any]:
    """`memory_gib` of each process, `train_seconds` without resume points, and `evaluation_seconds`.

    `plan` is that of the step, as `plan_step` gives it. Raises `UsageError` where the model cannot be trained, or the
    run does not fit into this machine's memory. Nothing is fetched from the hub: what depends on it is `unknown`.
    """
    prepare_process()
    if step.foreseen_without_data:
        return _of_text(step.section, processes)
    return rehearsed(step, processes, plan)


def _of_text(section: Pretrain, processes: int) -> dict[str, Any]:
    """The forecast of pretraining: `memory_gib` by part, and `train_seconds` without evaluations and resume points.

    Raises `UsageError` where the run does not fit into this machine's memory. Nothing is fetched from the hub: both are
    `unknown` where the model's size depends on a model or tokenizer of the hub.
    """
    if section.model is not None and not (looks_like_path(section.model) and Path(section.model).expanduser().is_dir()):
        return {"memory_gib": "unknown: pretrain.model is not here", "train_seconds": "unknown"}
    tokens = 0 if section.model else expected_vocabulary(section)  # a saved model's configuration holds its vocabulary
    if tokens is None:
        why = "unknown: pretrain.tokenizer.pretrained is not here, and pretrain.architecture.vocab_size is not given"
        return {"memory_gib": why, "train_seconds": "unknown"}
    memory = estimate_memory(section, tokens, processes)
    check_memory(memory, section, processes)
    with console.progress("probing", total=None):
        timing = probe(section, tokens, processes)
    probed = {"batch_size": timing.rows, "per_device_train_batch_size": timing.rows, "block_size": timing.length}
    memory = memory.reached(timing.peak, estimate_memory(section.model_copy(update=probed), tokens, 1))
    check_memory(memory, section, processes)
    seconds = timing.seconds_per_step * section.max_steps
    return {
        "memory_gib": memory.in_gib(),
        "train_seconds": round(seconds, 3),
        "train_time": format_duration(seconds),
        "tokens_per_second": round(section.batch_size * section.block_size / timing.seconds_per_step, 1),
        "probed_with": _probed_with(timing),
    }


def _probed_with(timing: Timing) -> str:
    if timing.probed_tokens == timing.micro_batch_tokens:
        return f"whole micro-batches, {timing.micro_batch_tokens:,} tokens"
    return f"{timing.probed_tokens:,} of the {timing.micro_batch_tokens:,} tokens of a micro-batch, scaled by FLOPs"


def probe(section: Pretrain, tokens: int, processes: int) -> Timing:
    """Times a few training steps on random tokens, as large as a minute allows, and scales them to the run's step."""
    spread = section.micro_batches(processes, "pretrain")
    model = blank_model(section, tokens)
    rows, length = _probe_size(section, model, spread["per_device_train_batch_size"])
    clock = _Probing(MAX_SECONDS, ENOUGH_SECONDS, ENOUGH_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        args = _probe_arguments(section, rows, Path(folder))
        vocabulary = model.get_input_embeddings().num_embeddings
        masking = Masking(0, (), vocabulary, section.mlm_probability) if section.objective == "masked" else None
        data = _RandomTokens(vocabulary, length, rows * MAX_STEPS)
        trainer = PretrainTrainer(
            model,
            args,
            data,
            muon=section.optimizer == "muon",
            masking=masking,
            measure=_Evaluation(min(rows, rows_at_once(model, length)), length, vocabulary),
            eval_dataset=[],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(clock)
        begin_peak(args.device)
        trainer.train()
        peak = peak_memory(args.device)
    pass_seconds, optimizer_seconds = clock.medians()
    scale = _flops(model, section.block_size) * spread["per_device_train_batch_size"] * section.block_size
    scale /= _flops(model, length) * rows * length
    micro_batch = pass_seconds * scale
    return Timing(
        micro_batch * spread["gradient_accumulation_steps"] + optimizer_seconds,
        peak,
        rows,
        length,
        spread["per_device_train_batch_size"] * section.block_size,
    )


class _Probing(StepClock):
    """The clock of pretraining's probe: an evaluation after the first step belongs to the peak, not to the time."""

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Asks for the evaluation."""
        super().on_step_end(args, state, control)
        control.should_evaluate = len(self.tokens) == 1

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leaves the evaluation out of the next step."""
        self.lap(args.device)


class _Evaluation:
    """An evaluation of one batch: the loss, and samples of a causal model."""

    def __init__(self, rows: int, length: int, vocabulary: int) -> None:
        self._ids = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(0))

    def __call__(self, model: PreTrainedModel) -> dict[str, Any]:
        ids = self._ids.to(model.device)
        with evaluation_mode(model), torch.no_grad():
            logits = model(input_ids=ids).logits.float()
            loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten()).item()
        if model.can_generate():
            prompts = [self._ids[0, :4].tolist()] * SAMPLES
            count = min(SAMPLE_TOKENS if model.num_parameters() < LARGE_MODEL else 4, self._ids.shape[1] - 4)
            generate(model, prompts, SamplingParams(max_new_tokens=count), eos_token_id=-1, seed=0)
        return {"eval_loss": loss}


class _RandomTokens(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, vocabulary: int, length: int, rows: int) -> None:
        self._vocabulary, self._length, self._rows = vocabulary, length, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(self._vocabulary, (self._length,), generator=generator)
        return {"input_ids": ids, "labels": ids}


def _probe_arguments(section: Pretrain, rows: int, folder: Path) -> TrainingArguments:
    small = section.model_copy(update={"batch_size": rows, "per_device_train_batch_size": rows, "eval_steps": None})
    more = {**pretrain_arguments(small), "max_steps": MAX_STEPS, "save_strategy": "no", "logging_strategy": "no"}
    more["torch_compile"] = section.torch_compile and torch.cuda.is_available()  # a CPU compiles for minutes
    if section.lr_scheduler_type == "warmup_stable_decay":
        more["lr_scheduler_type"], more["lr_scheduler_kwargs"] = "constant", None
    return training_arguments(TrainingArguments, small, "pretrain", folder, 0, 1, **more)


def _probe_size(section: Pretrain, model: PreTrainedModel, rows: int) -> tuple[int, int]:
    """Rows and length of a micro-batch that takes at most a few seconds: the run's own where that is fast enough."""
    peak = peak_flops(torch.bfloat16 if use_bf16(section.bf16, training_device()) else torch.float32) or 1e14
    affordable = MAX_STEP_SECONDS * ASSUMED_SHARE_OF_PEAK * peak / _flops(model, section.block_size)
    if affordable >= section.block_size:
        return min(rows, int(affordable / section.block_size)), section.block_size
    return 1, max(16, min(section.block_size, int(affordable)))


def _flops(model: PreTrainedModel, context: int) -> float:
    config = model.config.get_text_config()
    return flops_per_token(model.num_parameters(), config.num_hidden_layers, config.hidden_size, context)
