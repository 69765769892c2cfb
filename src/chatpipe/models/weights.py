"""The weight files of a model folder, looked at through their headers alone: are they whole, and all there?"""

import json
import math
import struct
from pathlib import Path
from typing import Any

from chatpipe.errors import UsageError

INDEX = "model.safetensors.index.json"


def check_weights(folder: Path, name: str) -> None:
    """Raises `UsageError` where the weights in `folder`, called `name`, are missing or broke off in being written.

    safetensors as transformers writes them, in one file or several; of a pickle only that it is there.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files and not any(folder.glob("pytorch_model*.bin")):
        raise UsageError(
            f"{name} is not a whole model folder: it has no weights.", "Give one that was written to its end."
        )
    for path in files:
        tensors(path)
    if (folder / INDEX).is_file():
        _check_index(folder, name)


def parameters_in(path: Path) -> int:
    """How many numbers a safetensors file holds. Raises `UsageError` for one that is not whole."""
    return sum(math.prod(entry["shape"]) for entry in tensors(path).values())


def tensors(path: Path) -> dict[str, Any]:
    """Name -> `{dtype, shape, data_offsets}` of each tensor in a safetensors file, as its header has it.

    Raises `UsageError` for a file that does not end where its header says.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
        found = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in found.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise _not_whole(path) from problem
    if size != end:
        raise _not_whole(path)
    return found


def _check_index(folder: Path, name: str) -> None:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        files = set(index["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise UsageError(f"{folder / INDEX} is not an index of weights.", "Fetch or make the folder anew.") from problem
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise UsageError(
            f"{name} is not a whole model folder: {missing[0]}, one of {len(files)} files of weights, is missing.",
            "Fetch or make the folder anew.",
        )


def _not_whole(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not a whole safetensors file.", "It broke off or is damaged: fetch or make the folder anew."
    )
