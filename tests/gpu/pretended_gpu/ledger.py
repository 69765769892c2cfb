"""What happened on the pretended GPU and on the CPU: waits, floating point operations, and bytes held."""

import sys
import weakref
from collections import Counter

import torch


class Ledger:
    """The counts of one process. `waits` and `flops` are kept by the source line that caused them.

    `waits`: how often the CPU waited for the GPU. `flops`: floating point operations of matrix products, convolutions
    and attention on "cpu" and on "gpu". `live_bytes` and `peak_bytes`: memory of the GPU, by storage. `replays`: how
    often a CUDA graph ran.
    """

    def __init__(self) -> None:
        self.package, self.memory = "", 0
        self.live_bytes = self.peak_bytes = 0
        self.waits: Counter[str] = Counter()
        self.flops: dict[str, Counter[str]] = {"cpu": Counter(), "gpu": Counter()}
        self.replays = 0
        self.capture = None
        """The CUDA graph that is recorded now."""
        self._storages: set[int] = set()

    def reset(self) -> None:
        """Start all counts again; memory that is held stays counted."""
        self.waits.clear()
        self.flops = {"cpu": Counter(), "gpu": Counter()}
        self.replays, self.peak_bytes = 0, self.live_bytes

    def cpu_share(self) -> float:
        """The share of all floating point operations that ran on the CPU."""
        on_cpu, on_gpu = (self.flops[device].total() for device in ("cpu", "gpu"))
        return on_cpu / max(on_cpu + on_gpu, 1)

    def wait(self, why: str) -> None:
        """Count a wait of the CPU for the GPU. Raises RuntimeError while a graph is recorded, as CUDA does."""
        if self.capture is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({why})")
        self.waits[f"{self.calling_line()} {why}"] += 1

    def hold(self, tensor: torch.Tensor) -> None:
        """Count the memory behind `tensor` until it is freed. Raises OutOfMemoryError beyond `memory` bytes."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        if self.live_bytes + size > self.memory:
            raise torch.OutOfMemoryError(f"CUDA out of memory: {size} bytes more than the {self.live_bytes} held")
        self._storages.add(key)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live_bytes -= size

    def calling_line(self) -> str:
        """The innermost line of the package as file:line, or else the innermost one outside torch and this package."""
        outside, frame = None, sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if f"/{self.package}/" in name:
                return f"{name.rpartition(f'/{self.package}/')[2]}:{frame.f_lineno}"
            if outside is None and "/torch/" not in name and "/pretended_gpu/" not in name:
                outside = f"{name.rpartition('site-packages/')[2]}:{frame.f_lineno}"
            frame = frame.f_back
        return outside or "?"


LEDGER = Ledger()
"""Of this process."""
