"""What a forward and backward pass allocates, counted without allocating it.

The pass runs on fake tensors (`torch._subclasses.FakeTensorMode`), which have shapes and no content. Every storage that
it makes is counted until it is dropped, as an allocator would.
"""

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """While it is on, counts the bytes of new tensors that are alive, by kind; `at_peak` is the moment of the most.

    Tensors whose last size is `vocabulary` are `logits`, the gradients of `parameters` are `gradients`, all others
    `activations`.
    """

    def __init__(self, vocabulary: int, parameters: list[Tensor]) -> None:
        super().__init__()
        self.at_peak: Counter[str] = Counter()
        self._vocabulary, self._parameters = vocabulary, parameters
        self._now: Counter[str] = Counter()
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operation and counts what it made."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        kind = "logits" if tensor.ndim > 1 and tensor.shape[-1] == self._vocabulary else "activations"
        self._seen.add(key)
        self._now[kind] += storage.nbytes()
        weakref.finalize(storage, self._forget, key, kind, storage.nbytes())
        if self._now.total() > self.at_peak.total():
            self.at_peak = self._now.copy()
            self._part_off_gradients()

    def _part_off_gradients(self) -> None:
        """A gradient is made as any other tensor; what parameters hold by now is told apart."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                size = parameter.grad.untyped_storage().nbytes()
                kind = "logits" if parameter.grad.shape[-1] == self._vocabulary else "activations"
                self.at_peak["gradients"] += size
                self.at_peak[kind] -= size

    def _forget(self, key: int, kind: str, size: int) -> None:
        self._seen.discard(key)
        self._now[kind] -= size


def peak_of(run: Callable[[], Any], vocabulary: int, parameters: list[Tensor]) -> Counter[str]:
    """The bytes by kind at the moment of `run` at which most are alive; call it under a FakeTensorMode."""
    with LiveBytes(vocabulary, parameters) as live:
        run()
    return live.at_peak
