"""Which operations a GPU refuses because of where their arguments are, and which make the CPU wait.

From torch's source: the device check of generated kernels, and `allow_cpu_scalars` of TensorIterator.
"""

import torch
from torch import Tensor

from pretended_gpu.ledger import LEDGER

aten = torch.ops.aten

MOVES = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default}
"""These work between any two devices."""

INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
"""These take indices that are on the CPU."""

SIZE_DEPENDS_ON_VALUES = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
}
"""The CPU waits in these: it needs a value, or the size of the result depends on one."""


def check_mixed(func, args: tuple, kwargs: dict, on_cpu: list[Tensor]) -> None:
    """Raise RuntimeError if a GPU refuses `func` with tensors of the GPU and the tensors `on_cpu` among its arguments.

    Accepted: copies, indices on the CPU, and one 0-dimensional CPU tensor in an elementwise operation that does not
    write to it. `args` and `kwargs` are as torch gave them.
    """
    if func is aten.copy_.default:
        LEDGER.wait("copies to the CPU" if any(args[0] is tensor for tensor in on_cpu) else "copies to the GPU")
    elif func in MOVES:
        pass
    elif func in INDEXING and not any(args[0] is tensor for tensor in on_cpu) and not _vector_among(args[2:3], on_cpu):
        LEDGER.wait("copies indices to the GPU")
    elif not _is_one_scalar(func, args, kwargs, on_cpu):
        found = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in on_cpu)
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"({func} at {LEDGER.calling_line()}; on the CPU: {found})"
        )


def check_wait(func, args: tuple, kwargs: dict, from_gpu: bool, to_gpu: bool) -> None:
    """Count a wait if `func`, whose tensors are all on one device, makes the CPU wait for the GPU."""
    if func is aten._to_copy.default and from_gpu != to_gpu:
        if not (to_gpu and kwargs.get("non_blocking")):
            LEDGER.wait("copies to the GPU" if to_gpu else "copies to the CPU")
    elif from_gpu and (
        func in SIZE_DEPENDS_ON_VALUES or (func in INDEXING and any(_is_boolean_mask(index) for index in args[1]))
    ):
        LEDGER.wait(str(func))


def written_arguments(func, args: tuple, kwargs: dict) -> list:
    """The arguments that `func` writes to."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return found


def _is_one_scalar(func, args: tuple, kwargs: dict, on_cpu: list[Tensor]) -> bool:
    if torch.Tag.pointwise not in func.tags or len(on_cpu) != 1 or on_cpu[0].dim() > 0:
        return False
    return not any(value is on_cpu[0] for value in written_arguments(func, args, kwargs))


def _vector_among(values: tuple, tensors: list[Tensor]) -> bool:
    return any(tensor.dim() > 0 and any(value is tensor for value in values) for tensor in tensors)


def _is_boolean_mask(index) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
