"""Replacing a function everywhere: in every module that has imported it, the tests' own included, and in its class."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(function: Callable[..., Any], by: Callable[..., Any]) -> Iterator[None]:
    """Inside, every module that knows `function` under its name has `by` in its place."""
    name = function.__name__
    holders: list[Any] = [module for module in list(sys.modules.values()) if vars(module).get(name) is function]
    owner = function.__qualname__.rpartition(".")[0]
    if owner:
        holders.append(getattr(sys.modules[function.__module__], owner))
    for module in holders:
        setattr(module, name, by)
    try:
        yield
    finally:
        for module in holders:
            setattr(module, name, function)
