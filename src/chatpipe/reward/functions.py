"""Reward functions that a recipe names as `module:function`: their source files, and loading them.

Modules in the working folder are found too, after those that Python finds anyway. Nothing here imports torch.
"""

import difflib
import functools
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from chatpipe.data.durable import sha256_of
from chatpipe.errors import ChatpipeError, UsageError, reason_of

HINT = "Write it as module:function, seen from this folder."


def is_function(name: str) -> bool:
    """Whether `name` is written as `module:function`, and not as a folder or hub id."""
    return ":" in name and "/" not in name


def source_fingerprint(name: str, key: str) -> str:
    """SHA-256 of the source file of `module:function`; nothing is imported or run.

    Raises UsageError naming the recipe's `key` where the module has no file.
    """
    module = name.partition(":")[0]
    file = _file_of(module)
    if file is None:
        without = name.replace(".py:", ":", 1).replace("/", ".")
        hint = f"Did you mean {without}?" if without != name else HINT
        raise UsageError(f"{key} = {name} cannot be imported: there is no file of a module {module}.", hint)
    return sha256_of(file)


def check_function(name: str, key: str) -> None:
    """Raises UsageError naming the recipe's `key` where `module:function` has no file or cannot be imported."""
    source_fingerprint(name, key)
    load_function(name, key)


def load_function(name: str, key: str) -> Callable[..., Any]:
    """Imports the function that `module:function` names. What it prints goes to stderr, since stdout is for data.

    Raises UsageError naming the recipe's `key` where there is none. The function itself raises one for whatever the
    user's code raises.
    """
    module_name, _, function_name = name.partition(":")
    with _errors_of(f"{key} = {name} cannot be imported", HINT), _no_bytecode():
        _look_in_working_folder()
        module = importlib.import_module(module_name)
    if not hasattr(module, function_name):
        near = difflib.get_close_matches(function_name, dir(module), n=1)
        hint = f"Did you mean {module_name}:{near[0]}?" if near else HINT
        where = _shown(module.__file__ or module_name)
        raise UsageError(f"{key} = {name} cannot be imported: there is no {function_name} in {where}.", hint)
    function: Any = getattr(module, function_name)
    if not callable(function):
        raise UsageError(f"{key} = {name} is not a function.", "It is called with prompts and completions.")

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        with _errors_of(f"{key} = {name} broke off", "Mend it; CHATPIPE_DEBUG=1 shows the traceback."):
            return function(*args, **kwargs)

    called.__name__ = getattr(function, "__name__", type(function).__name__)  # a callable object has no name
    return called


@contextmanager
def _errors_of(what: str, hint: str) -> Iterator[None]:
    """Runs the user's code: its prints go to stderr, its exceptions become a UsageError with their file and line."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except ChatpipeError:
        raise
    except (Exception, SystemExit) as problem:
        raise UsageError(f"{_line_of(problem)}{what}: {reason_of(problem)}.", hint) from problem


def _line_of(problem: BaseException) -> str:
    """`file:line: ` of the last line in the working folder that led to `problem`; empty where there is none."""
    if isinstance(problem, SyntaxError) and problem.filename:
        return f"{_shown(problem.filename)}:{problem.lineno}: "
    places = [(_shown(frame.filename), frame.lineno) for frame in traceback.extract_tb(problem.__traceback__)]
    own = [f"{file}:{line}: " for file, line in places if not (Path(file).is_absolute() or file.startswith("<"))]
    return own[-1] if own else ""


@contextmanager
def _no_bytecode() -> Iterator[None]:
    """Imports leave no __pycache__ folder behind: a check writes nothing."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _file_of(module: str) -> Path | None:
    _look_in_working_folder()
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package) if package else None
    for part in inner:  # find_spec("package.module") would run the package
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or [])) if spec else None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _shown(file: str) -> str:
    """The path relative to the working folder, if the file is in it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _look_in_working_folder() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
