"""Tensors on the pretended GPU, and the two modes through which torch reaches them.

A `GpuTensor` keeps its numbers in a CPU tensor, `held`. To torch's C++ it is on the device `pretend` (PrivateUse1); to
Python it claims to be on cuda:0. `CudaToPretend` turns `cuda` into `pretend` in every call, and `EveryOperation`
sees what is made on the GPU or moved there, and counts what runs on the CPU.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pretended_gpu.ledger import LEDGER
from pretended_gpu.rules import MOVES, check_mixed, check_wait

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
PRETEND = "pretend:0"


class GpuTensor(torch.Tensor):
    """A tensor that claims to be on cuda:0; its numbers are in the CPU tensor `held`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        layout = {"dtype": held.dtype, "strides": held.stride(), "storage_offset": held.storage_offset()}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, device=PRETEND, **layout)

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held
        LEDGER.hold(held)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func in ANSWERS:
            return ANSWERS[func]
        if func in (torch.Tensor.untyped_storage, torch.Tensor.data_ptr):  # a wrapper has no storage of its own
            return func(args[0].held)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if func is torch.Tensor.data.__set__ and isinstance(args[1], GpuTensor):
            args[0].held = args[1].held
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict):
        if id(self) not in memo:
            copy = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
            copy.__dict__.update({name: value for name, value in self.__dict__.items() if name != "held"})
        return memo[id(self)]

    def __repr__(self, **_) -> str:
        return f"GpuTensor({self.held!r})"


ANSWERS = {
    torch.Tensor.device.__get__: CUDA,
    torch.Tensor.is_cuda.__get__: True,
    torch.Tensor.is_cpu.__get__: False,
    torch.Tensor.get_device: 0,
}
"""The attributes that a `GpuTensor` shows to Python."""


class CudaToPretend(TorchFunctionMode):
    """Where Python passes `cuda` to a function of torch, the function gets `pretend`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:  # a device that Python holds still shows cuda
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.cuda:
            func, args = torch.Tensor.to, (args[0], CUDA)
        named = {name: pretended(value) for name, value in (kwargs or {}).items()}
        return func(*(pretended(value) for value in args), **named)


def pretended(value):
    """`value`, or the pretended device where it names cuda."""
    is_cuda = (
        value.type == "cuda" if type(value) is torch.device else type(value) is str and value in ("cuda", "cuda:0")
    )
    return torch.device(PRETEND) if is_cuda else value


class EveryOperation(TorchDispatchMode):
    """Sends what concerns the GPU to `run`, and counts the floating point operations of everything else."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # composite operations come here before they are taken apart
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if any(issubclass(each, GpuTensor) for each in types) or _names_gpu(kwargs.get("device")):
            return run(func, args, kwargs)
        result = func(*args, **kwargs)
        count_flops("cpu", func, args, kwargs, result)
        return result


def run(func, args: tuple, kwargs: dict):
    """Run one operation that reads from the GPU, writes to it or makes a tensor there. Raises what a GPU raises."""
    tensors: list[torch.Tensor] = []
    nested_map((args, kwargs), lambda value: tensors.append(value) if isinstance(value, torch.Tensor) else None)
    wrappers = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, GpuTensor)}
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, GpuTensor) and tensor.device == CPU]
    device = kwargs.get("device")
    to_gpu = bool(wrappers) if device is None else _names_gpu(device)
    if wrappers and on_cpu:
        check_mixed(func, args, kwargs, on_cpu)
    else:
        check_wait(func, args, kwargs, from_gpu=bool(wrappers), to_gpu=to_gpu)

    held_args, held_kwargs = nested_map((args, kwargs), lambda value: getattr(value, "held", value))
    held_kwargs.pop("pin_memory", None)
    if device is not None:
        held_kwargs["device"] = CPU if to_gpu else device
    if LEDGER.capture is not None:
        LEDGER.capture.before(func, held_args, held_kwargs)
    result = func(*held_args, **held_kwargs)
    if LEDGER.capture is not None:
        LEDGER.capture.after(func, held_args, held_kwargs, result)
    count_flops("gpu", func, held_args, held_kwargs, result)
    for wrapper in wrappers.values():
        if wrapper.held.shape != wrapper.shape:
            raise NotImplementedError(f"the pretended GPU has no {func}, which changes a tensor's shape in place")
    if func in MOVES and func is not aten._to_copy.default:
        return args[0] if func is aten.copy_.default else None

    def wrapped(value):
        if not isinstance(value, torch.Tensor) or id(value) in wrappers:
            return wrappers.get(id(value), value)  # written in place
        return GpuTensor(value) if to_gpu and value.device == CPU else value

    return nested_map(result, wrapped)


def nested_map(value, function):
    """`value` with `function` applied to all that is no tuple, list or dict."""
    if isinstance(value, tuple | list):
        return type(value)(nested_map(each, function) for each in value)
    if isinstance(value, dict):
        return {name: nested_map(each, function) for name, each in value.items()}
    return function(value)


def count_flops(device: str, func, args: tuple, kwargs: dict, result) -> None:
    """Add the floating point operations of `func`, if it is one of those that torch knows to count."""
    if func._overloadpacket in flop_registry:
        count = flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        LEDGER.flops[device][LEDGER.calling_line()] += count


def _names_gpu(device) -> bool:
    return device is not None and torch.device(device).type == "pretend"
