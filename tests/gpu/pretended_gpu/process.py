"""Gives a process the pretended GPU: the backend, the replaced functions of `torch.cuda`, and the modes."""

import contextlib
import types

import torch

from pretended_gpu.autocast import register_autocast
from pretended_gpu.graphs import Graph, record
from pretended_gpu.ledger import LEDGER, Ledger
from pretended_gpu.tensor import CudaToPretend, EveryOperation, GpuTensor

DOES_NOTHING = [
    "_lazy_init",
    "_lazy_call",
    "init",
    "set_device",
    "synchronize",
    "empty_cache",
    "ipc_collect",
    "manual_seed",
    "manual_seed_all",
    "set_rng_state",
    "set_rng_state_all",
    "reset_max_memory_allocated",
    "reset_accumulated_memory_stats",
]
"""Functions of torch.cuda with no effect here."""


def install_for_process(package: str, memory: int) -> Ledger:
    """See `pretended_gpu.install`."""
    import torch._dynamo  # torch imports it with the first operation under a mode; it compares functions by identity
    from torch.optim import optimizer
    from torch.utils import _foreach_utils
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    LEDGER.package, LEDGER.memory = package, memory
    backend = type("Backend", (_DummyBackendModule,), {"get_amp_supported_dtype": lambda self: [torch.bfloat16]})
    _setup_privateuseone_for_python_backend("pretend", backend())
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") then moves where a mode sees it
    # Parameters stay the same objects when a module moves, and tied ones tied, also where a weak reference names them.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.utils.weakref = types.SimpleNamespace(getweakrefs=lambda _: ())
    for supported in (optimizer._foreach_supported_types, _foreach_utils._foreach_supported_types):
        supported.append(GpuTensor)
    _replace_cuda(memory)
    _name_cuda_to_autocast()
    LEDGER.libraries = register_autocast()
    CudaToPretend().__enter__()
    EveryOperation().__enter__()
    return LEDGER


def _replace_cuda(memory: int) -> None:
    """Let torch.cuda speak of one GPU, cuda:0."""
    properties = types.SimpleNamespace(
        name="pretended", major=9, minor=0, total_memory=memory, multi_processor_count=132
    )
    for name in DOES_NOTHING:
        setattr(torch.cuda, name, lambda *_, **__: None)
    for name, value in {
        "is_available": True,
        "is_initialized": True,
        "is_bf16_supported": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "pretended",
        "get_device_capability": (9, 0),
        "get_device_properties": properties,
        "graph_pool_handle": (0, 0),
    }.items():
        setattr(torch.cuda, name, lambda *_, _value=value, **__: _value)
    for name, function in {
        "mem_get_info": lambda *_: (memory - LEDGER.live_bytes, memory),
        "memory_allocated": lambda *_: LEDGER.live_bytes,
        "memory_reserved": lambda *_: LEDGER.live_bytes,
        "max_memory_allocated": lambda *_: LEDGER.peak_bytes,
        "max_memory_reserved": lambda *_: LEDGER.peak_bytes,
        "reset_peak_memory_stats": lambda *_: setattr(LEDGER, "peak_bytes", LEDGER.live_bytes),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "is_current_stream_capturing": lambda: LEDGER.capture is not None,
        "device": contextlib.nullcontext,
        "CUDAGraph": Graph,
        "graph": record,
    }.items():
        setattr(torch.cuda, name, function)
    torch.Tensor.pin_memory = lambda self, *_: self
    torch.accelerator.current_accelerator = lambda *_, **__: torch.device("cuda")


def _name_cuda_to_autocast() -> None:
    """Let autocast's functions take `cuda` for the pretended device."""

    def with_pretend(function):
        def call(*args, **kwargs):
            args = ["pretend" if type(value) is str and value == "cuda" else value for value in args]
            if kwargs.get("device_type") == "cuda":
                kwargs["device_type"] = "pretend"
            return function(*args, **kwargs)

        return call

    for name in ("is_autocast_enabled", "get_autocast_dtype", "set_autocast_enabled", "set_autocast_dtype"):
        setattr(torch, name, with_pretend(getattr(torch, name)))
    torch.autocast.__init__ = with_pretend(torch.autocast.__init__)
