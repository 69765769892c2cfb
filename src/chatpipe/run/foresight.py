"""`chatpipe pretrain --dry-run`: the memory and the time that a run would take, told before it starts."""

from pathlib import Path
from typing import Any

from chatpipe import console
from chatpipe.models.model_folder import looks_like_path
from chatpipe.models.vocabulary import expected_vocabulary
from chatpipe.recipe.schema import Pretrain
from chatpipe.run.memory_estimate import check_memory, estimate_memory
from chatpipe.run.speed_probe import Timing, probe
from chatpipe.training.memory import keep_freed_memory
from chatpipe.training.quiet import quiet_libraries


def foresee(section: Pretrain, processes: int) -> dict[str, Any]:
    """`memory_gib` by part and in all, for each process, and `train_seconds`, without evaluations and resume points.

    Raises `UsageError` where the run does not fit into this machine's memory. Models and tokenizers of the hub are not
    fetched for it: nothing is told where the model's size depends on one.
    """
    if section.model is not None and not (looks_like_path(section.model) and Path(section.model).expanduser().is_dir()):
        return {"memory_gib": "unknown: pretrain.model is not here", "train_seconds": "unknown"}
    tokens = 0 if section.model else expected_vocabulary(section)  # a saved model's configuration tells its own
    if tokens is None:
        why = "unknown: pretrain.tokenizer.pretrained is not here, and pretrain.architecture.vocab_size is not given"
        return {"memory_gib": why, "train_seconds": "unknown"}
    quiet_libraries()
    keep_freed_memory()
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
        "train_seconds": round(seconds, 1),
        "train_time": spell(seconds),
        "tokens_per_second": round(section.batch_size * section.block_size / timing.seconds_per_step, 1),
        "probed_with": _probed_with(timing),
    }


def spell(seconds: float) -> str:
    """A span of time for people."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _probed_with(timing: Timing) -> str:
    if timing.probed_tokens == timing.micro_batch_tokens:
        return f"whole micro-batches, {timing.micro_batch_tokens:,} tokens"
    return f"{timing.probed_tokens:,} of the {timing.micro_batch_tokens:,} tokens of a micro-batch, scaled by FLOPs"
