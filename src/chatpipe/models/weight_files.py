"""The files of a model folder: JSON objects, and weights by the headers of safetensors. No torch."""

import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from chatpipe.errors import UsageError

INDEX = "model.safetensors.index.json"
_LFS_POINTER = b"version https://git-lfs"
_OLD_PICKLE = b"\x80"
"""How weights begin that torch before 1.6 saved; later ones are zip files."""
_OTHER_WEIGHTS = (".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".pth", ".pt", ".ckpt", ".bin", ".npz", ".nemo")
_DTYPES = ("F64", "F32", "F16", "BF16")
_QUANTISED_BESIDE = ("quantize_config.json", "quant_config.json", "hf_quant_config.json", "quantization_config.json")
"""Files in which AutoGPTQ, AutoAWQ and ModelOpt say how they have quantised a model."""
GIVE_COMPLETE = "Give a folder that save_pretrained or a chatpipe stage wrote, or a hub id such as gpt2."
FETCH_AGAIN = "The folder is damaged or incomplete: fetch or make it again."


class Weight(NamedTuple):
    """A weight as the header of a safetensors file describes it. `dtype` as there: F32, BF16, F16."""

    shape: Sequence[int]
    dtype: str


_WRAPPERS = {
    "_orig_mod.": ("a compiled model (torch.compile)", "model._orig_mod.save_pretrained"),
    "_fsdp_wrapped_module.": ("a model that FSDP wraps", "accelerate's unwrap_model"),
    "_checkpoint_wrapped_module.": ("a model with wrapped activation checkpoints", "accelerate's unwrap_model"),
    "module.": ("a model that DDP or DataParallel wraps", "model.module.save_pretrained"),
    "base_model.model.": ("a model with a PEFT adapter", "model.merge_and_unload().save_pretrained"),
}
"""Prefixes of the names of weights that were saved with a wrapper: what that was, and how to save without."""

_LAYER = re.compile(r"(?:^|.*?\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
_COUNTS_OF_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def check_weights(folder: Path, name: str) -> None:
    """Raises `UsageError` where the weights in `folder`, called `name`, are missing, damaged or not its config.json's.

    Reads the headers of safetensors, in one file or several; of a pickle it only checks that it is one.
    """
    files = [path for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("adapter_")]
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if not files and not pickles:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS)
        found = f"in {others[0]}, a format that chatpipe does not read" if others else "missing"
        raise UsageError(
            f"{name} is not a complete model folder: its weights are {found}.",
            GIVE_COMPLETE,
        )
    for path in pickles:
        check_no_pointer(path)
        if not (zipfile.is_zipfile(path) or _begins_with(path, _OLD_PICKLE)):
            raise UsageError(f"{path} is not a complete file of weights.", FETCH_AGAIN)
    weights = {weight: found for path in files for weight, found in weights_in(path).items()}
    indexes = [folder / index for index in (INDEX, "pytorch_model.bin.index.json") if (folder / index).is_file()]
    for index in indexes:
        _check_index(index, name)
    names = [path.name for path in (*files, *pickles)]
    if not indexes and not {"model.safetensors", "pytorch_model.bin"} & {*names}:
        raise UsageError(
            f"{name} is not a complete model folder: it has {names[0]}, but no {INDEX} that names all files.",
            FETCH_AGAIN,
        )
    _check_no_wrapper(weights, name)
    _check_dtypes(folder, weights, name)
    if files and (folder / "config.json").is_file():
        _check_layers(weights, read_object(folder / "config.json"), name)


def weights_in(path: Path) -> dict[str, Weight]:
    """The weights in a safetensors file by name. Raises `UsageError` for an incomplete file."""
    try:
        with safe_open(path, framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: Weight(found.get_shape(), found.get_dtype()) for name, found in slices.items()}
    except (SafetensorError, OSError) as problem:
        check_no_pointer(path)
        raise UsageError(f"{path} is not a complete safetensors file.", FETCH_AGAIN) from problem


def parameters_in(path: Path) -> int:
    """How many numbers a safetensors file holds. Raises `UsageError` for an incomplete file."""
    return sum(math.prod(weight.shape) for weight in weights_in(path).values())


def check_no_pointer(path: Path) -> None:
    """Git LFS leaves such a file where it has not fetched the real one."""
    if _begins_with(path, _LFS_POINTER):
        raise UsageError(
            f"{path} is a pointer of Git LFS, not the file itself.", "Run `git lfs pull` in the folder to fetch it."
        )


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _check_dtypes(folder: Path, weights: Mapping[str, Weight], name: str) -> None:
    """Finds quantised weights of a folder whose config.json does not say so."""
    beside = next((file for file in _QUANTISED_BESIDE if (folder / file).is_file()), None)
    if beside is not None:
        raise quantised(name, beside)
    for weight, found in weights.items():
        if "weight" in weight and found.dtype not in _DTYPES:
            raise quantised(name, f"{weight} is {found.dtype}")


def missing_of(name: str, count: int, first: str) -> str:
    """The beginning of an error: how many weights of `name` are missing, and which is the first."""
    return f"{count} weights of {name} are missing ({first}, ...)" if count > 1 else f"{name} lacks the weight {first}"


def _check_no_wrapper(weights: Iterable[str], name: str) -> None:
    for wrapper, (what, instead) in _WRAPPERS.items():
        inside = wrapper.startswith("_")
        wrapped = sorted(weight for weight in weights if wrapper in weight and (inside or weight.startswith(wrapper)))
        if wrapped:
            raise UsageError(
                f"{missing_of(name, len(wrapped), wrapped[0].replace(wrapper, ''))}; its files have {wrapped[0]}: they "
                f"were saved from {what}.",
                f"Save it again with {instead}, or take {wrapper} out of the names.",
            )


def _check_layers(weights: Iterable[str], config: Mapping[str, Any], name: str) -> None:
    """Finds decoder layers without any weight, or without a place. What else is missing shows when it is loaded."""
    if config.keys() & {"text_config", "vision_config"}:  # several towers, each with layers of its own
        return
    layers = next((config[key] for key in _COUNTS_OF_LAYERS if isinstance(config.get(key), int)), None)
    held: dict[str, Counter[int]] = {}
    for weight in weights:
        match = _LAYER.match(weight)
        if match:
            held.setdefault(weight[: match.start(1)], Counter())[int(match[1])] += 1
    if layers is None or not held:
        return
    place, counts = max(held.items(), key=lambda item: item[1].total())
    missing = [number for number in range(layers) if number not in counts]
    if missing:
        raise UsageError(
            f"{missing_of(name, len(missing) * max(counts.values()), f'{place}{missing[0]}')}: its config.json has "
            f"{layers} layers, its weights {layers - len(missing)} of them.",
            "Fetch or make it again, or give the config.json that belongs to these weights.",
        )
    predicting = config.get("num_nextn_predict_layers") or 0  # DeepSeek's, which predict later tokens
    if max(counts) >= layers + predicting:
        raise UsageError(
            f"{name}: its weights have {max(counts) + 1} layers, its config.json has {layers}.",
            "Give the config.json that belongs to these weights.",
        )


def _check_index(index: Path, name: str) -> None:
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict):
        raise UsageError(f"{index} is not an index of weights.", FETCH_AGAIN)
    files = {str(file) for file in places.values()}
    missing = sorted(file for file in files if not (index.parent / file).is_file())
    if missing:
        raise UsageError(
            f"{name} is not a complete model folder: {missing[0]}, one of {len(files)} files of weights, is missing.",
            FETCH_AGAIN,
        )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model folder. Raises `UsageError` that names the file where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {problem.strerror}.") from problem
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path} is not JSON ({problem}).", FETCH_AGAIN) from problem
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no JSON object.", FETCH_AGAIN)
    return content


def quantised(named: str, found: str) -> UsageError:
    """The refusal of a model called `named`, in which `found` shows that it is quantised."""
    return UsageError(
        f"{named} is quantised ({found}); chatpipe reads and trains bfloat16, float16 and float32 alone.",
        "Give the model that it was made from, before quantisation.",
    )
