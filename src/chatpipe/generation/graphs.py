"""Decode steps on a few fixed shapes, each recorded once as a CUDA graph.

A decode step of a small model is hundreds of kernels of a few microseconds; launched one by one, the GPU waits for
Python most of the time. A graph replays them with one call, but only for the shapes it was recorded with.
"""

import warnings
from collections.abc import Callable

import torch


def bucket(size: int, smallest: int, limit: int) -> int:
    """The shape that a step of `size` rows or positions runs on: from `smallest`, a multiple of 4, up to `limit`.

    There are four to each doubling (8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ...), so it is at most a quarter more.
    """
    spacing = max(1 << max((size - 1).bit_length() - 3, 0), smallest // 4)
    return min(max(-(-size // spacing) * spacing, smallest), limit)


class StepGraphs:
    """Runs `step(rows, kv_length)`, which must read and write the same memory each time and never wait for the GPU.

    A shape runs without a graph the first time (libraries set themselves up then), is recorded the second time and
    replayed from then on. All graphs share one pool of memory. A model that cannot be recorded runs without graphs.
    """

    def __init__(self, step: Callable[[int, int], None]) -> None:
        """`step` must not refer to this object's owner: such a cycle keeps the KV cache until garbage collection."""
        self._step = step
        self._seen: set[tuple[int, int]] = set()
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._recordable = True

    def run(self, rows: int, kv_length: int) -> None:
        """Do one step."""
        shape = rows, kv_length
        if shape in self._seen and shape not in self._graphs and self._recordable:
            self._record(shape)
        self._seen.add(shape)
        if shape in self._graphs:
            self._graphs[shape].replay()
        else:
            self._step(rows, kv_length)

    def _record(self, shape: tuple[int, int]) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Does not run the step. "thread_local": CUDA calls of other threads (NCCL's watchdog) do not break it off.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._step(*shape)
        except RuntimeError as problem:
            self._recordable = False
            warnings.warn(f"decoding without CUDA graphs, which this model does not allow: {problem}", stacklevel=2)
        else:
            self._graphs[shape] = graph
