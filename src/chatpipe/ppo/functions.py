"""Reward functions that a recipe names as `module:function`: in which file they stand, and loading them.

Modules in the working folder are found too, after those that Python finds anyway. Nothing here imports torch.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from chatpipe.durable import sha256_of
from chatpipe.errors import UsageError

HINT = "Write it as module:function, seen from this folder."


def source_fingerprint(name: str, key: str) -> str:
    """SHA-256 of the file in which the module of `module:function` stands; nothing is imported or run.

    Raises UsageError naming the recipe's `key` where there is no such file.
    """
    module = name.partition(":")[0]
    file = _file_of(module)
    if file is None:
        raise UsageError(f"{key} = {name} cannot be imported: there is no file of a module {module}.", HINT)
    return sha256_of(file)


def load_function(name: str, key: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises UsageError naming the recipe's `key` where there is none.
    """
    module, _, function_name = name.partition(":")
    _look_in_working_folder()
    try:
        function: Any = getattr(importlib.import_module(module), function_name)
    except (ImportError, AttributeError) as problem:
        raise UsageError(f"{key} = {name} cannot be imported: {problem}.", HINT) from problem
    if not callable(function):
        raise UsageError(f"{key} = {name} is not a function.", "It is called with prompts and completions.")
    return function


def _file_of(module: str) -> Path | None:
    _look_in_working_folder()
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package) if package else None
    for part in inner:  # find_spec("package.module") would run the package
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or [])) if spec else None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _look_in_working_folder() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
