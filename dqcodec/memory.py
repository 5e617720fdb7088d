"""Memory for large arrays that is used again.

What an operating system gives out it clears first, page by page, and what is freed goes back to it. For a batch of
images that takes as long as a quarter of decoding it.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LEAST, MOST = 1 << 20, 1 << 28  # bytes; other arrays are left to numpy
KEPT = 8  # arrays whose memory waits for its next use; of more, the oldest is freed

# Any thread may free an array, at any moment: whatever is done with these is one step of the interpreter.
_waiting: deque[Array] = deque(maxlen=KEPT)


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """As numpy.empty: an array of any content, whose memory waits for a next one of its size once nothing uses it."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if not LEAST <= size <= MOST:
        return np.empty(shape, kind)
    block = _taken(size)
    # All views of the array, and whatever else shares its memory, hold on to this memoryview. An array in its place
    # would not do: views hold on to the last of a chain of arrays.
    array = np.frombuffer(block.data, kind).reshape(shape)
    weakref.finalize(_root(array), _waiting.append, block).atexit = False
    return array


def _root(array: Array) -> Any:
    """What the array and each view of it hold on to."""
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base


def _taken(size: int) -> Array:
    """Memory of this size that was waiting, or new."""
    for _ in range(KEPT):
        try:
            block = _waiting.pop()  # the latest: it may still be in a cache
        except IndexError:
            break
        if len(block) == size:
            return block
        _waiting.appendleft(block)
    return np.empty(size, np.uint8)
