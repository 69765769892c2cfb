"""From a stage's section of the recipe to the arguments of its trainer: precision, schedule, batches."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, TrainingArguments

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import Pretrain, TrainingSection

Arguments = TypeVar("Arguments", bound=TrainingArguments)

# Keys of a section that have the same name and meaning in TrainingArguments.
SHARED_KEYS = (
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "logging_steps",
    "save_steps",
)


# ---- what fits into memory ----

ACTIVATION_BYTES, HALF_ACTIVATION_BYTES = 120, 80
"""Bytes that a layer keeps for the backward pass, a token and a unit of its width, in float32 and under bfloat16's
autocast, where norms and residuals stay in float32: the most measured of Llama, Qwen3 and GPT-2 (docs/log.md)."""
LOGIT_BYTES = 12
"""Bytes a token and an entry of the vocabulary: logits in half precision, in float32, and the gradient of both."""
MICRO_BATCH_BYTES_ON_CPU = 5 * 2**28
MICRO_BATCH_SHARE_OF_GPU = 1 / 5


@dataclass(frozen=True)
class Reading:
    """What a trainer reads in a micro-batch: its `models`, each row of at most `tokens`, `logits` of each or none."""

    models: tuple[PreTrainedModel, ...]
    tokens: int
    logits: bool = True

    def row_bytes(self, recomputes: bool, half: bool) -> int:
        """Memory of one row in a training step; `recomputes`: with gradient checkpointing, `half`: in bfloat16."""
        return self.tokens * sum(self._token_bytes(model, recomputes, half) for model in self.models)

    def _token_bytes(self, model: PreTrainedModel, recomputes: bool, half: bool) -> int:
        config = model.config.get_text_config()
        of_a_layer = config.hidden_size * (HALF_ACTIVATION_BYTES if half else ACTIVATION_BYTES)
        kept = config.num_hidden_layers * (4 * config.hidden_size if recomputes else of_a_layer)
        return kept + of_a_layer * recomputes + LOGIT_BYTES * config.vocab_size * self.logits


def memory_settings(
    section: TrainingSection, stage: str, reading: Reading | None, device: torch.device
) -> tuple[bool, int | None]:
    """Whether to use gradient checkpointing, and how many rows fit into a micro-batch (None where that is unknown).

    Raises `UsageError` where it is asked for and a model has none (GPT-1, CTRL).
    """
    asked = section.gradient_checkpointing
    if reading is None:
        return asked is True, None
    without = [type(model).__name__ for model in reading.models if not model.supports_gradient_checkpointing]
    if without and asked is True:
        raise UsageError(
            f"{stage}.gradient_checkpointing = true, but {without[0]} has no gradient checkpointing.",
            f"Leave it out; lower {stage}.per_device_train_batch_size where memory is short.",
        )
    if device.type == "cuda":
        budget = int(torch.cuda.mem_get_info(device)[1] * MICRO_BATCH_SHARE_OF_GPU)
    else:
        budget = MICRO_BATCH_BYTES_ON_CPU // len(reading.models)
    half = use_bf16(section.bf16, device)
    recomputes = not without and reading.row_bytes(False, half) > budget if asked == "auto" else asked
    return recomputes, budget // max(reading.row_bytes(recomputes, half), 1)


def recomputes(args: TrainingArguments) -> bool:
    """Whether arguments ask for gradient checkpointing; newer transformers renamed it."""
    renamed = getattr(args, "activation_checkpointing", None)
    return bool(getattr(args, "gradient_checkpointing", False) if renamed is None else renamed)


def training_arguments(
    cls: type[Arguments],
    section: TrainingSection,
    stage: str,
    folder: Path,
    seed: int,
    processes: int,
    report_to: list[str] | str = "none",
    reading: Reading | None = None,
    **more: Any,
) -> Arguments:
    """`cls` filled from `section`; the arguments in `more` belong to this stage only, and win.

    `reading` decides what the section leaves to the memory; without it the micro-batch is the whole batch.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted, fitting = memory_settings(section, stage, reading, device)
    # Newer transformers renamed it. Always given, since trl's SFTConfig turns it on.
    fields = cls.__dataclass_fields__
    recompute = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
    return cls(
        **{
            **{key: getattr(section, key) for key in SHARED_KEYS},
            "learning_rate": section.peak_rate,
            recompute: wanted,
            "bf16": use_bf16(section.bf16, device),
            "output_dir": str(folder),
            "seed": seed,
            "report_to": report_to,
            "save_strategy": "steps",
            "save_total_limit": None,  # ResumePoints rotates: only after the new one is complete
            "logging_nan_inf_filter": False,  # it would hide non-finite losses behind the running mean
            "logging_first_step": True,
            "disable_tqdm": True,
            "include_num_input_tokens_seen": "all",  # counted by ResumePoints
            "remove_unused_columns": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "accelerator_config": {"non_blocking": torch.cuda.is_available()},  # batches are uploaded meanwhile
            "use_cpu": not torch.cuda.is_available(),
            "ddp_find_unused_parameters": False,
            **_schedule(section),
            **section.micro_batches(processes, stage, fitting),
            **more,
        }
    )


def _schedule(section: TrainingSection) -> dict[str, Any]:
    """The schedule under transformers' names: its own class has another one for a cosine that does not end at 0."""
    kind, lowest = section.lr_scheduler_type, section.min_lr_ratio
    if kind == "warmup_stable_decay":
        # A fall as 1 - sqrt(t) ends at a lower loss than a linear one (arXiv 2405.18392, section 3).
        shape = {"num_decay_steps": section.decay_steps, "decay_type": "1-sqrt", "min_lr_ratio": lowest}
        return {"lr_scheduler_type": kind, "lr_scheduler_kwargs": shape}
    if kind == "cosine" and lowest > 0:
        return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": lowest}}
    return {"lr_scheduler_type": kind}


def pretrain_arguments(section: Pretrain) -> dict[str, Any]:
    """The arguments of pretraining only: steps, evaluations and compilation."""
    return {
        "max_steps": section.max_steps,
        "eval_strategy": "no" if section.eval_steps is None else "steps",
        "eval_steps": section.eval_steps,
        "torch_compile": section.torch_compile,
    }


def use_bf16(asked: bool | str, device: torch.device) -> bool:
    """Whether to compute in bfloat16: `auto` means where `device` multiplies it, true and false mean themselves."""
    return multiplies_bf16(device) if asked == "auto" else bool(asked)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether `device` has instructions for products in bfloat16.

    Without them torch widens each number first: a training step then takes twelve times as long as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # AMX multiplies bfloat16 on the CPUs that have it; on others oneDNN uses these of AVX512.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "mps"
