"""How the functions of this folder are compiled by numba, and where the machine code is kept.

numba keeps machine code by the file that a function stands in, and does not see that another file, from which a
constant or a function came, has changed. So the folder it is kept in has a hash of all files here in its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numba

from dqcodec.codec.dct import stream
from dqcodec.codec.dct.lanes import either, unsigned

_config: Any = numba.config
_SOURCES = sorted(Path(__file__).parent.glob("*.py"))
_DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in _SOURCES) + numba.__version__.encode()).hexdigest()
_FOLDER = Path(_config.CACHE_DIR or Path(__file__).parent / "__pycache__") / f"numba-{_DIGEST[:16]}"


def jit(**options: Any) -> Callable[[Any], Any]:
    """A decorator that compiles on the first call, without the interpreter lock and with numpy's divisions."""

    def decorate(function: Any) -> Any:
        before = _config.CACHE_DIR
        _config.CACHE_DIR = str(_FOLDER)  # read once, here; where it cannot be written numba finds another place
        try:
            return numba.njit(nogil=True, cache=True, error_model="numpy", **options)(function)
        finally:
            _config.CACHE_DIR = before

    return decorate


# For functions that make no array, each put into its callers: calls, and counting the references to arrays in each,
# would take longer than what most of the decoder's functions do.
inline = jit(_nrt=False, forceinline=True)


def build(module: ModuleType, compile_one: Callable[[Any], Any], given: dict[str, Any] | None = None) -> dict[str, Any]:
    """Every function of module.FUNCTIONS compiled, callees before callers, by name.

    It is the code of these very functions, with compiled ones for those that they call; `given` ones are taken as they
    are.
    """
    names: dict[str, Any] = dict(given or {})
    for function in module.FUNCTIONS:
        if function.__name__ in names:
            continue
        copy = FunctionType(function.__code__, {**vars(module), **names}, function.__name__, function.__defaults__)
        names[function.__name__] = compile_one(copy)
    return names


# The decoder for the CPU, with what a compiler would not make of two of its functions by itself.
DECODER = build(stream, inline, {"either": either, "unsigned": unsigned})
