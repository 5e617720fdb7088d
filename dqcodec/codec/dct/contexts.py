"""Where coefficients stand, in which order they are coded, and which context each symbol has.

A unit is a square of 16, 8 or 4 pixels a side. Its luma plane is cut into blocks of 4, 8 or 16 pixels, its two chroma
planes are one block each. A block set is a kind of block that has contexts of its own: the luma sizes in ascending
order, then chroma 1 and chroma 2.

Contexts are numbered in this order: the coefficients of every set (position class x sum bin x quantiser), then the
side contexts: high part of `last` of every set, low part of `last` of every set, flag, pattern.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

UNITS = (4, 8, 16)
STRIDE = 16  # of a unit's coefficients
BINS = 13  # of the neighbour sum; the last is that of the first coefficient coded. DC has its own: stream.predict
LAST_BIN = 106  # place of the last bin in SUM_BIN
CAP = 15  # magnitudes count at most this in the sum
LOW_BITS = {4: 0, 8: 2, 16: 4}  # bits of `last` in its low part
CLASSES = {4: 16, 8: 64, 16: 62}  # position classes
SUM_LIMITS = (0, 1, 2, 3, 4, 6, 8, 11, 15, 21, 30)

# Bin of the neighbour sum S, 0..105, and of "none" at LAST_BIN.
SUM_BIN: Array = np.append(np.searchsorted(SUM_LIMITS, np.arange(7 * CAP + 1)), 12).astype(np.int32)


def scan(size: int) -> Array:
    """int64 (size^2, 2): row and column frequency (u, v) by scan index.

    Anti-diagonals from DC on, each by ascending u: so none of the neighbours that a sum needs is the coefficient
    decoded just before (but for one place in a block), and a context can be looked up while that is decoded.
    """
    places = [(u, v) for u in range(size) for v in range(size)]
    return np.array(sorted(places, key=lambda p: (p[0] + p[1], p[0])))


def position_class(size: int, k: int, u: int, v: int) -> int:
    """Class of scan index k at (u, v): k itself, but the diagonal and its side further out in a block of 16 x 16."""
    if size < 16 or k < 21:
        return k
    return 21 + 2 * min(20, u + v - 6) + (2 * abs(u - v) > u + v)


class Contexts(NamedTuple):
    """The numbering for units of one size; integers and flat arrays, as the compiled functions want them.

    unit      pixels a side
    place     int32 (336,)   place in the unit, 16 u + v, by size (4, 8, 16) and scan index
    row       int32 (336,)   position class times BINS, by the same
    sum_bin   int32 (107,)   bin of a neighbour sum
    pair      int32 (S,)     first context pair of a set's coefficients
    high, low int32 (S,)     first side context of a set for the two parts of `last`
    flag, pattern            side contexts
    pairs, sides             how many there are
    """

    unit: int
    place: Array
    row: Array
    sum_bin: Array
    pair: Array
    high: Array
    low: Array
    flag: int
    pattern: int
    pairs: int
    sides: int


@cache
def contexts(unit: int) -> Contexts:
    """The numbering for a unit of 4, 8 or 16 pixels."""
    luma = [size for size in UNITS if size <= unit]
    sizes = [*luma, unit, unit]
    pair = np.cumsum([0] + [CLASSES[size] * BINS for size in sizes])
    high = np.cumsum([0] + [18] * len(luma) + [90, 90])
    low = high[-1] + 16 * np.arange(len(sizes) + 1)
    flag = int(low[-1])
    pattern = flag + 3
    return Contexts(
        unit, *_positions(), SUM_BIN, pair[:-1].astype(np.int32), high[:-1].astype(np.int32), low[:-1].astype(np.int32),
        flag, pattern, int(pair[-1]), pattern + 1,
    )  # fmt: skip


@cache
def _positions() -> tuple[Array, Array]:
    places, rows = [], []
    for size in UNITS:
        order = scan(size)
        places.append(order @ (STRIDE, 1))
        rows.append(BINS * np.array([position_class(size, k, u, v) for k, (u, v) in enumerate(order.tolist())]))
    return np.concatenate(places).astype(np.int32), np.concatenate(rows).astype(np.int32)
