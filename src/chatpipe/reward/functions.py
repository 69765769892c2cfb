"""Reward functions that a recipe names as `module:function`: in which file they stand, and loading them.

Modules in the working folder are found too, after those that Python finds anyway. Nothing here imports torch.
"""

import ast
import difflib
import functools
import importlib
import importlib.util
import sys
import textwrap
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from chatpipe.data.durable import sha256_of
from chatpipe.errors import ChatpipeError, UsageError

HINT = "Write it as module:function, seen from this folder."
MAX_REASON = 300


def is_function(name: str) -> bool:
    """Whether `name` is written as `module:function`, and not as a folder or hub id."""
    return ":" in name and "/" not in name


def source_fingerprint(name: str, key: str) -> str:
    """SHA-256 of the file in which the module of `module:function` stands; nothing is imported or run.

    Raises UsageError naming the recipe's `key` where there is no such file.
    """
    module = name.partition(":")[0]
    file = _file_of(module)
    if file is None:
        raise UsageError(f"{key} = {name} cannot be imported: there is no file of a module {module}.", HINT)
    return sha256_of(file)


def check_function(name: str, key: str) -> None:
    """Raises UsageError naming the recipe's `key` where the file of `module:function` shows that it cannot be loaded.

    The file is read, not run: a mistake in it is told before the stages that come first.
    """
    module, _, function_name = name.partition(":")
    source_fingerprint(name, key)
    file = _file_of(module)
    assert file is not None  # else there was no fingerprint
    if file.suffix != ".py":
        return
    try:
        defined = _defined_in(ast.parse(file.read_bytes(), str(file)))
    except (SyntaxError, ValueError) as problem:
        where = f"{_shown(file)}:{problem.lineno}" if isinstance(problem, SyntaxError) else _shown(file)
        raise UsageError(
            f"{where}: {key} = {name} cannot be imported: {problem.args[0]}.", "Mend the file."
        ) from problem
    if defined is not None and function_name not in defined:
        near = difflib.get_close_matches(function_name, defined, n=1)
        hint = f"Did you mean {module}:{near[0]}?" if near else HINT
        raise UsageError(f"{key} = {name} cannot be imported: there is no {function_name} in {_shown(file)}.", hint)


def load_function(name: str, key: str) -> Callable[..., Any]:
    """The function that `module:function` names; what it prints (in Python) goes to stderr, since stdout is for data.

    Raises UsageError naming the recipe's `key` where there is none, and so does the function where it raises anything.
    """
    module, _, function_name = name.partition(":")
    _look_in_working_folder()
    try:
        with redirect_stdout(sys.stderr):
            function: Any = getattr(importlib.import_module(module), function_name)
    except (Exception, SystemExit) as problem:  # the module is the user's, and may raise anything
        raise UsageError(f"{key} = {name} cannot be imported: {_reason(problem)}.", HINT) from problem
    if not callable(function):
        raise UsageError(f"{key} = {name} is not a function.", "It is called with prompts and completions.")

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            with redirect_stdout(sys.stderr):
                return function(*args, **kwargs)
        except ChatpipeError:
            raise
        except (Exception, SystemExit) as problem:
            raise UsageError(
                f"{key} = {name} broke off: {_reason(problem)}.", "Mend it; CHATPIPE_DEBUG=1 shows the traceback."
            ) from problem

    called.__name__ = getattr(function, "__name__", type(function).__name__)  # an object that is called has none
    return called


def _reason(problem: BaseException) -> str:
    return textwrap.shorten(f"{type(problem).__name__}: {problem}", MAX_REASON, placeholder=" ...")


def _file_of(module: str) -> Path | None:
    _look_in_working_folder()
    package, *inner = module.split(".")
    spec = importlib.util.find_spec(package) if package else None
    for part in inner:  # find_spec("package.module") would run the package
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or [])) if spec else None
    return Path(spec.origin) if spec and spec.has_location and spec.origin else None


def _defined_in(module: ast.Module) -> set[str] | None:
    """Names that a module binds where it is read from top to bottom; None where only running it would tell."""
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(module)):
        return None
    names = {node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return None if "__getattr__" in names else names


def _shown(file: Path) -> str:
    """The file as seen from the working folder, where it is in there."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)


def _look_in_working_folder() -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
