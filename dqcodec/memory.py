"""Memory for large arrays that is used again.

What an operating system gives out it clears first, page by page, and what is freed goes back to it. For a batch of
images that takes as long as a quarter of decoding it.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LARGE = 1 << 20  # bytes; smaller arrays are left to numpy
KEPT = 1 << 28  # bytes that wait for their next use, at most


class _Block:
    """Memory of an array; a class, so that two of them are never compared by their bytes."""

    def __init__(self, size: int) -> None:
        self.bytes = np.empty(size, np.uint8)


_waiting: deque[_Block] = deque()  # the latest last; what is done with it is atomic: any thread may free an array


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """As numpy.empty: an array of any content, whose memory waits for a next one of its size once nothing uses it."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if not LARGE <= size <= KEPT:
        return np.empty(shape, kind)
    block = _taken(size) or _Block(size)
    # All views of the array, and whatever else shares its memory, hold on to this object. It is none of numpy's,
    # whose views hold on to the first array alone.
    array = np.frombuffer(block.bytes.data, kind).reshape(shape)
    weakref.finalize(_root(array), _give_back, block).atexit = False
    return array


def _root(array: Array) -> Any:
    """What the array and each view of it hold on to."""
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base


def _taken(size: int) -> _Block | None:
    """A block of this size that was waiting."""
    for block in reversed(tuple(_waiting)):  # the last one may still be in a cache
        if len(block.bytes) == size:
            with suppress(ValueError):  # another thread took it
                _waiting.remove(block)
                return block
    return None


def _give_back(block: _Block) -> None:
    _waiting.append(block)
    while sum(len(each.bytes) for each in tuple(_waiting)) > KEPT:
        with suppress(IndexError):  # another thread did it
            _waiting.popleft()
