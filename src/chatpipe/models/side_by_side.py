"""Several models read at the same time, each on its share of the cores.

A small model's operations are too short for two threads: one iteration of PPO at pocket's size is only 1.4 times as
fast on two cores as on one (docs/log.md, 2026-11-30). Different models are independent of each other, so each core can
read its own.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

Reading = tuple[PreTrainedModel, Callable[[], tuple[Tensor, ...]]]
"""A model, and a function that reads it."""

LARGEST = 2**26
"""Parameters of the largest model that is read side by side. Larger ones use all cores, and need their memory one after
the other."""


def side_by_side(readings: Sequence[Reading]) -> list[tuple[Tensor, ...]]:
    """The results of all readings, in their order; gradients flow through each of them, also side by side.

    Each reading has a thread, and the threads share the cores, where small models that have nothing in common are on
    the CPU of a single process. Elsewhere the readings take place one after the other: DDP, for one, must see the
    graph from the loss to its parameters.
    """
    calls = [call for _, call in readings]
    if not _is_possible([model for model, _ in readings]):
        return [call() for call in calls]
    if not torch.is_grad_enabled():
        return _in_threads(calls)
    results: list[tuple[Tensor, ...]] = []
    flat = iter(_SideBySide.apply(torch.zeros((), requires_grad=True), calls, results))
    return [tuple(next(flat) for _ in result) for result in results]


def _is_possible(models: Sequence[PreTrainedModel]) -> bool:
    if len(models) < 2 or torch.compiler.is_compiling() or torch.get_num_threads() < 2 or distributed.is_initialized():
        return False
    if not all(model.device.type == "cpu" and model.num_parameters() <= LARGEST for model in models):
        return False
    # A forward pass writes into its modules and into its configuration; a backward pass into gradients.
    parts = [
        {id(part) for module in model.modules() for part in (module, getattr(module, "config", module))}
        | {id(parameter) for parameter in model.parameters()}
        for model in models
    ]
    return len(set().union(*parts)) == sum(map(len, parts))


class _SideBySide(torch.autograd.Function):
    """Its backward pass goes through each reading's graph in a thread, as its forward pass made them."""

    @staticmethod
    def forward(
        ctx: Any,
        wants_grad: Tensor,
        calls: Sequence[Callable[[], tuple[Tensor, ...]]],
        results: list[tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            results += _in_threads(calls)
        ctx.results = list(results)
        flat = [tensor for result in results for tensor in result]
        outputs = [tensor.detach() for tensor in flat]
        ctx.mark_non_differentiable(
            *[output for output, tensor in zip(outputs, flat, strict=True) if not tensor.requires_grad]
        )
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        flat = iter(gradients)
        pairs = [[(tensor, next(flat)) for tensor in result] for result in ctx.results]
        _in_threads([partial(_backward, [pair for pair in each if pair[0].requires_grad]) for each in pairs])
        return None, None, None


def _backward(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    if pairs:
        tensors, gradients = zip(*pairs, strict=True)
        torch.autograd.backward(tensors, gradients)


def _in_threads(calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of `calls`, which have the caller's gradient mode and autocast. Raises the first error after all."""
    cores = torch.get_num_threads()
    at_once = min(len(calls), cores)
    with_grad, autocast = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def run(call: Callable[[], Any]) -> Any:
        torch.set_num_threads(cores // at_once)
        with torch.set_grad_enabled(with_grad), torch.autocast("cpu", dtype=dtype, enabled=autocast):
            return call()

    try:
        futures = [_pool(at_once).submit(run, call) for call in calls]
        wait(futures)
        return [future.result() for future in futures]
    finally:
        # Also MKL's number of threads, which is one for the whole process.
        torch.set_num_threads(cores)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that stay, since each has worker threads of its own for its operations."""
    return ThreadPoolExecutor(threads, "side-by-side")
