"""Arguments that are not what they should be: OptionError with the name, the value, and what is allowed."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dqcodec.errors import OptionError, OutputError


def choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise OptionError(f"{name}: {value!r}; allowed: {', '.join(allowed)}")


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name}: {value!r}; expected True or False")
    return value


def number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise OptionError(f"{name}: {value!r}; expected a number")


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """One in low..high, of Python or numpy."""
    try:
        found = operator.index(value)
    except TypeError:
        found = low - 1
    if isinstance(value, bool) or found < low or (high is not None and found > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        written = str if isinstance(value, int | np.integer) else repr
        shown = written(value)[:40] if abs(found) < 10**40 else "a larger number"  # Python refuses to write the largest
        raise OptionError(f"{name}: {shown}; allowed: an integer, {allowed}")
    return found


def apart(output: str | Path, inputs: Mapping[str, str | Path | None]) -> None:
    """OutputError where the output would replace one of the inputs, which are given by name."""
    for name, place in inputs.items():
        if place and Path(place).resolve() == Path(output).resolve():
            raise OutputError(f"{output} is both the output and {name}; choose another name", path=output)
