"""What the decoder remembers of the units above and at the left, and of the block that it decodes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
NEAR = 18 * 16  # two rows more than a block has, which stay 0


class Edges(NamedTuple):
    """Flat arrays over cells of 4 x 4 pixels; plane k starts at k * width above, and at k * 4 at the left.

    dc_above, dc_left              int32   what a block looks like at its rim, see stream.settle: 16ths of a DC integer,
                                           times 16 / block side; NO_DC where nothing was decoded
    activity_above, activity_left  int32   see stream.activity; NONE where nothing was decoded
    flags                          int32 (columns + 1,)   whether a unit is one luma block: above, and at the left
    near                           uint8 (2 * NEAR,)   of the block that is decoded, in rows of 16: 2 a(u, v) +
                                           a(u, v + 1), and from NEAR on a(u, v), the magnitude (at most CAP) of what
                                           is decoded, else 0; all 0 before and after a block
    width, columns                 cells and units in a row
    """

    dc_above: Array
    dc_left: Array
    activity_above: Array
    activity_left: Array
    flags: Array
    near: Array
    width: int
    columns: int


def edges(columns: int, unit: int, planes: int) -> Edges:
    """Edges for rows of so many units; `stream.forget` makes them new, but for `near`, which blocks leave as it was."""
    width = columns * (unit >> 2)
    above, left = planes * width, planes * 4
    return Edges(
        np.zeros(above, np.int32), np.zeros(left, np.int32), np.zeros(above, np.int32), np.zeros(left, np.int32),
        np.zeros(columns + 1, np.int32), np.zeros(2 * NEAR, np.uint8), width, columns,
    )  # fmt: skip
