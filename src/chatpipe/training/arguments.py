"""From a stage's section of the recipe to the arguments of its trainer."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from chatpipe.errors import UsageError
from chatpipe.recipe.schema import TrainingSection

Arguments = TypeVar("Arguments", bound=TrainingArguments)

# Keys of a section that have the same name and meaning in TrainingArguments.
SHARED_KEYS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "bf16",
    "gradient_checkpointing",
    "logging_steps",
    "save_steps",
)


def training_arguments(
    cls: type[Arguments],
    section: TrainingSection,
    folder: Path,
    seed: int,
    processes: int,
    report_to: list[str] | str = "none",
    **more: Any,
) -> Arguments:
    """`cls` filled from `section`; `more` holds what only this stage has, and wins."""
    return cls(
        **{
            **{key: getattr(section, key) for key in SHARED_KEYS},
            "output_dir": str(folder),
            "seed": seed,
            "report_to": report_to,
            "save_strategy": "steps",
            "save_total_limit": None,  # ResumePoints rotates: only after the new one is complete
            "logging_nan_inf_filter": False,  # it would hide non-finite losses behind the running mean
            "logging_first_step": True,
            "disable_tqdm": True,
            "include_num_input_tokens_seen": "all",
            "remove_unused_columns": False,
            "dataloader_pin_memory": torch.cuda.is_available(),
            "use_cpu": not torch.cuda.is_available(),
            "ddp_find_unused_parameters": False,
            **micro_batches(section, processes),
            **more,
        }
    )


def micro_batches(section: TrainingSection, processes: int) -> dict[str, int]:
    """How `batch_size` is spread over processes and micro-batches; raises `UsageError` where it does not fit."""
    share, rest = divmod(section.batch_size, processes)
    if rest:
        raise UsageError(
            f"batch_size = {section.batch_size} cannot be shared by {processes} processes.",
            f"Make it a multiple of {processes}.",
        )
    micro = min(section.per_device_train_batch_size or share, share)
    if share % micro:
        raise UsageError(
            f"per_device_train_batch_size = {micro} does not divide the {share} sequences of each process.",
            "Choose one that does, or leave it out.",
        )
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": share // micro}
