"""Autocast on the pretended GPU: what torch's autocast does on CUDA, for the operations that language models use."""

import torch

from pretended_gpu.tensor import GpuTensor, nested_map

aten = torch.ops.aten

LOWER_PRECISION = [
    "linear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "addbmm",
    "conv1d",
    "conv2d",
    "einsum",
    "scaled_dot_product_attention",
    "prelu",
]
"""Operations that compute in the dtype of autocast."""

FLOAT32 = [
    "softmax.int",
    "log_softmax.int",
    "layer_norm",
    "sum",
    "sum.dim_IntList",
    "prod",
    "cumsum",
    "norm.Scalar",
    "pow.Tensor_Scalar",
    "exp",
    "log",
    "rsqrt",
    "nll_loss",
    "mse_loss",
    "cross_entropy_loss",
    "binary_cross_entropy_with_logits",
    "softplus",
    "logsumexp",
]
"""Operations that compute in float32 under autocast."""


class WeightCasts:
    """Lower-precision copies of trained weights. torch keeps each until the outermost autocast ends."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple] = {}

    def cast(self, value, dtype: torch.dtype):
        """`value` in `dtype` if it is a floating point tensor of the GPU (but for float64, which stays)."""
        if not isinstance(value, GpuTensor) or not value.is_floating_point() or value.dtype in (dtype, torch.float64):
            return value
        is_trained_weight = value.is_leaf and value.requires_grad
        if not is_trained_weight or dtype == torch.float32 or not torch.is_autocast_cache_enabled():
            return value.to(dtype)
        if id(value) not in self._kept:
            self._kept[id(value)] = value, value.to(dtype)
        return self._kept[id(value)][1]

    def clear(self) -> None:
        """Forget all copies."""
        self._kept.clear()


def register_autocast() -> list[torch.library.Library]:
    """Register the kernels of autocast for the pretended device. They last as long as the returned libraries."""
    casts, library = WeightCasts(), torch.library.Library("aten", "IMPL")
    autocast_key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def register(name: str, dtype: torch.dtype | None) -> None:
        packet, _, overload = name.partition(".")
        operation = getattr(getattr(aten, packet), overload or "default")

        def kernel(*args, **kwargs):
            target = dtype or torch.get_autocast_dtype("cuda")
            with torch._C._ExcludeDispatchKeyGuard(autocast_key):
                args, kwargs = nested_map((args, kwargs), lambda value: casts.cast(value, target))
                return operation(*args, **kwargs)

        library.impl(name, kernel, "AutocastPrivateUse1")

    for name in LOWER_PRECISION:
        register(name, None)
    for name in FLOAT32:
        register(name, torch.float32)
    all_others = torch.library.Library("_", "IMPL")
    all_others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    clear_torch = torch.clear_autocast_cache

    def clear() -> None:
        casts.clear()
        clear_torch()

    torch.clear_autocast_cache = clear
    return [library, all_others]
