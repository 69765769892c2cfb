"""The machine under this process: the set-up of its libraries, its memory, and its peak in FLOP/s."""

import contextlib
import ctypes
import gc
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers.utils import logging

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""glibc refuses more (`mallopt(3)`, M_MMAP_THRESHOLD)."""
KEPT_AT_THE_TOP = 2**30
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
CONTAINER_USE = Path("/sys/fs/cgroup/memory.current")
OWN_STATUS = Path("/proc/self/status")
OWN_PEAK = Path("/proc/self/clear_refs")


def prepare_process() -> None:
    """Sets up this process once, before it loads a model or data."""
    quiet_libraries()
    keep_freed_memory()
    # Products of float32 matrices in TF32, where the GPU has it: 7 times faster on an H200. CPUs stay exact.
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


def quiet_libraries() -> None:
    """Turns off the progress bars of transformers and datasets, and messages below the level of an error."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when `datasets` is imported
    if sys.modules.get("datasets"):
        sys.modules["datasets"].disable_progress_bars()


def keep_freed_memory() -> None:
    """Makes glibc keep the memory of freed tensors for the next ones instead of returning it to the kernel.

    A training step allocates and frees the same sizes again and again. By default a large block is mapped and unmapped
    each time, and the kernel clears its pages each time: a third of the processor time of a 0.9 M parameter model.
    Does nothing where there is no glibc.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, KEPT_AT_THE_TOP)


def release_memory() -> None:
    """Frees what a trainer that is gone has held: the optimizer's state, gradients and caches, also on a GPU."""
    gc.collect()  # trainer and callbacks hold each other
    give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Returns the free part of the kept memory: glibc's to the kernel, torch's to the GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc; None where there is no glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None


# ---- memory ----


def begin_peak(device: torch.device) -> None:
    """Resets what `peak_memory` returns, where the system can do that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        OWN_PEAK.write_text("5")  # proc_pid_clear_refs(5)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held: of main memory, or of a GPU's memory as torch reserved it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", OWN_STATUS.read_text())
    except OSError:  # not Linux
        found = None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def used_memory(device: torch.device) -> int:
    """Bytes that this process holds: of main memory, or of a GPU's memory as torch has reserved it."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still allocate on `device`, within the limit of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit = int(CONTAINER_LIMIT.read_text()) - int(CONTAINER_USE.read_text())
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, limit)


# ---- large models on a CPU ----

LARGE = 50_000_000
"""Parameters."""


class _CastAgain(torch.autograd.Function):
    """`functional.linear` in autocast's dtype; the backward pass casts the weight again, so no cast is kept."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = torch.get_autocast_dtype(inputs.device.type)
        inputs = inputs.to(dtype)
        ctx.save_for_backward(inputs, weight)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return functional.linear(inputs, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs, weight = ctx.saved_tensors
        rows, read = gradient.flatten(0, -2), inputs.flatten(0, -2)
        of_bias = None if ctx.bias_dtype is None else rows.sum(0).to(ctx.bias_dtype)
        return gradient @ weight.to(gradient.dtype), (rows.t() @ read).to(weight.dtype), of_bias


class _Linear(nn.Linear):
    """A linear layer that is trained under autocast without keeping a cast of its weight."""

    def forward(self, inputs: Tensor) -> Tensor:
        trains = torch.is_grad_enabled() and self.weight.requires_grad
        if trains and torch.is_autocast_enabled(inputs.device.type):
            return _CastAgain.apply(inputs, self.weight, self.bias)
        return super().forward(inputs)


def is_large(model: nn.Module) -> bool:
    """Whether the weights of a model are so many that reading them takes longer than the calls of Python around it."""
    return sum(weight.numel() for weight in model.parameters()) >= LARGE


def train_leanly(model: nn.Module) -> None:
    """Has the linear layers of a large `model` on a CPU keep no bfloat16 copy of their weights for the backward pass.

    In place. Autocast keeps one from the forward pass on: 2 bytes a parameter, with the same result. On a GPU the calls
    would take longer than the casts.
    """
    if next(model.parameters()).device.type != "cpu" or not is_large(model):
        return
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = _Linear


# ---- speed ----


@dataclass(frozen=True)
class Peak:
    """Dense peaks of a GPU's matrix products in FLOP/s; None where it does not multiply that type."""

    bf16: float | None
    tf32: float | None
    fp32: float


# From the vendors' data sheets, without sparsity; bf16 and tf32 with sums in float32.
PEAK_FLOPS = {
    "H200": Peak(989e12, 495e12, 67e12),
    "H100 NVL": Peak(835e12, 418e12, 60e12),
    "H100 PCIe": Peak(756e12, 378e12, 51e12),
    "H100": Peak(989e12, 495e12, 67e12),
    "A100": Peak(312e12, 156e12, 19.5e12),
    "L40S": Peak(362e12, 183e12, 91.6e12),
    "L4": Peak(121e12, 60e12, 30.3e12),
    "A10G": Peak(70e12, 35e12, 35e12),
    "V100-SXM2": Peak(None, None, 15.7e12),
    "T4": Peak(None, None, 8.1e12),
    "RTX 4090": Peak(165e12, 82.6e12, 82.6e12),
    "RTX 3090": Peak(71e12, 35.6e12, 35.6e12),
}
"""By words of the name that CUDA reports; the first that fits counts."""
VARIANT = r" (NVL|D|Ti|SUPER|Laptop)\b"
"""Words that follow in the names of other cards, which are slower or faster."""


def peak_flops(dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of one process's device in products of `dtype`, float32 or bfloat16; None where it is unknown.

    From the table for a GPU, float32 being TF32 where torch is set to that; measured with a matrix product on a CPU.
    """
    if torch.cuda.is_available():
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return peak_of_gpu(torch.cuda.get_device_name(), dtype, tf32)
    return _measured_matmul_flops(dtype)


def peak_of_gpu(name: str, dtype: torch.dtype, tf32: bool) -> float | None:
    """The table's peak of the GPU that CUDA calls `name`; None where neither it nor the type is in the table."""
    fitting = (peak for words, peak in PEAK_FLOPS.items() if re.search(rf"\b{words}\b(?!{VARIANT})", name))
    peak = next(fitting, None)
    if peak is None:
        return None
    if dtype == torch.bfloat16:
        return peak.bf16
    return peak.tf32 if tf32 and peak.tf32 else peak.fp32


@cache
def _measured_matmul_flops(dtype: torch.dtype) -> float:
    size = 1024
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
