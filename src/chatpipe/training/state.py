"""The state of a training run as tensors and JSON: weights, optimizer, random number generators. No pickle.

Under FSDP2 the functions whose docstrings mention it gather shards: every rank must call them, in the same order.
"""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from chatpipe.data.durable import fsync, share
from chatpipe.errors import UsageError


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors as safetensors and returns when they are on the disk. Raises `OSError` when it has no room."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    share(path)
    fsync(path)


def pack(value: Any, tensors: dict[str, Tensor], path: str = "", keep: bool = True) -> Any:
    """JSON for nested dicts, lists and tuples. Its tensors go to `tensors`, whole and on the CPU, named by their path.

    Gathers sharded tensors: every rank calls it. `keep=False` takes part in that and stores no tensor.
    """
    if isinstance(value, Tensor):
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if keep:
            tensors[path] = full.detach().cpu().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"dict": {key: pack(entry, tensors, f"{path}/{key}", keep) for key, entry in value.items()}}
    if isinstance(value, (list, tuple)):
        packed = [pack(entry, tensors, f"{path}/{index}", keep) for index, entry in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": packed}
    return value


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The reverse of `pack`."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(entry, tensors) for key, entry in content.items()}
    return (tuple if kind == "tuple" else list)(unpack(entry, tensors) for entry in content)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tied one once, under its first name."""
    first_names: dict[int, str] = {}
    tensors = module.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        first_names.setdefault(id(tensor), name)
    return {name: tensors[name] for name in first_names.values()}


@torch.no_grad()
def load_weights(module: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Copies `saved` (whole tensors, as `weights` names them) into the module, shard by shard where it is sharded.

    Raises `UsageError` when names or shapes are not the module's.
    """
    own = weights(module)
    wrong = [name for name in own if name not in saved or own[name].shape != saved[name].shape]
    wrong += [name for name in saved if name not in own]
    if wrong:
        raise UsageError(
            f"The resume point holds another model: {len(wrong)} tensors differ, the first is {wrong[0]}.",
            "Restore the recipe's model, or start over with --fresh.",
        )
    for name, tensor in own.items():
        tensor.copy_(_sharded_like(saved[name], tensor))


def parameter_names(modules: Mapping[str, nn.Module]) -> dict[Tensor, str]:
    """`MODULE/PARAMETER` for each parameter of the modules; a tied one has its first name."""
    names: dict[Tensor, str] = {}
    for prefix, module in modules.items():
        for name, parameter in module.named_parameters():
            names.setdefault(parameter, f"{prefix}/{name}")
    return names


def optimizer_state(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Any]:
    """State and groups of an optimizer, with the names of parameters in place of numbers.

    In place of torch's `get_optimizer_state_dict`, which fills an empty state by a step (AdamW then counts it: saving
    would change the training) and whose counterpart refuses a parameter that has had no gradient yet.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        "state": {
            names[parameter]: optimizer.state[parameter] for parameter in parameters if parameter in optimizer.state
        },
        "param_groups": [group | {"params": _names_of(group["params"], names)} for group in optimizer.param_groups],
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], saved: Mapping[str, Any]
) -> None:
    """Loads what `optimizer_state` returned (whole tensors). Raises `UsageError` where the groups differ."""
    if [_names_of(group["params"], names) for group in optimizer.param_groups] != [
        group["params"] for group in saved["param_groups"]
    ]:
        raise UsageError(
            "The resume point was written with other parameter groups in the optimizer.",
            "Restore what the recipe freezes and decays, or start over with --fresh.",
        )
    parameters = {name: parameter for parameter, name in names.items()}
    state = {
        name: {
            key: _sharded_like(value, parameters[name]) if isinstance(value, Tensor) else value
            for key, value in entries.items()
        }
        for name, entries in saved["state"].items()
    }
    # torch matches the two sides by position; the ids of the saved side need only be hashable, and names are
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def _names_of(parameters: Iterable[Tensor], names: Mapping[Tensor, str]) -> list[str]:
    return [names[parameter] for parameter in parameters]


def _sharded_like(value: Tensor, target: Tensor) -> Tensor:
    if isinstance(target, DTensor) and value.shape == target.shape:
        # every rank has read the whole tensor, so each cuts out its own shard and nothing is sent
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return value


def rng_state() -> dict[str, Any]:
    """The generators of this process (python, numpy, torch on the CPU and on this rank's GPU), as JSON."""
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [algorithm, np.asarray(keys).tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Puts the generators of this process where `rng_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))
