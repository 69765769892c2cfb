"""CUDA graphs on the pretended GPU: the operations of one recording, run again at each replay into the same tensors."""

import contextlib
from collections.abc import Iterator

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves

from pretended_gpu.ledger import LEDGER
from pretended_gpu.rules import written_arguments


class Graph:
    """Stands for torch.cuda.CUDAGraph."""

    def __init__(self, *_, **__) -> None:
        self._operations: list[tuple] = []
        self._overwritten: dict[int, tuple] = {}

    def before(self, func, args: tuple, kwargs: dict) -> None:
        """Keep what `func` is about to overwrite: a recording runs nothing, so `record` puts it back."""
        for value in tree_leaves(written_arguments(func, args, kwargs)):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                self._overwritten.setdefault(storage._cdata, (storage, storage.clone()))

    def after(self, func, args: tuple, kwargs: dict, result) -> None:
        """Add an operation that was run, with the tensors it made."""
        self._operations.append((func, args, kwargs, result))

    def put_back(self) -> None:
        """Undo what the recorded operations wrote."""
        for storage, copy in self._overwritten.values():
            storage.copy_(copy)
        self._overwritten.clear()

    def replay(self) -> None:
        """Run the operations again; each writes its results into the tensors that it made when it was recorded."""
        from pretended_gpu.tensor import count_flops

        LEDGER.replays += 1
        for func, args, kwargs, recorded in self._operations:
            with no_dispatch():
                result = func(*args, **kwargs)
                for old, new in zip(tree_leaves(recorded), tree_leaves(result), strict=True):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)
            count_flops("gpu", func, args, kwargs, result)


@contextlib.contextmanager
def record(graph: Graph, *_, **__) -> Iterator[None]:
    """Stands for torch.cuda.graph."""
    LEDGER.capture = graph
    try:
        yield
    finally:
        LEDGER.capture = None
        graph.put_back()
