"""Compiles the decoder of `stream.py` with numba: the same functions, not a copy of their text."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any


def build(module: ModuleType, compile_one: Callable[[Any], Any]) -> dict[str, Any]:
    """Every function of module.FUNCTIONS compiled, callees before callers, by name."""
    names: dict[str, Any] = {}
    for function in module.FUNCTIONS:
        copy = FunctionType(function.__code__, {**vars(module), **names}, function.__name__, function.__defaults__)
        names[function.__name__] = compile_one(copy)
    return names
