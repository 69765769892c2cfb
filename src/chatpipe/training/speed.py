"""How fast training is: tokens per second, and the share of the machine's peak that it makes use of (MFU)."""

import time
from functools import cache

import torch

# Dense bf16 peak in FLOP/s, from the vendors' data sheets (without sparsity).
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
    "4090": 165e12,
    "3090": 71e12,
}


@cache
def peak_flops(dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of one process's device: from the table for a GPU, measured with a matrix product on a CPU."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)
    return _measured_matmul_flops(dtype)


def _measured_matmul_flops(dtype: torch.dtype, size: int = 1024, repeats: int = 8) -> float:
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
