"""The filter of decoded planes, out of the coding loop: what it is, and how it is computed by numpy and by torch.

A pixel z and the sums d_j = a + b - 2 z over six pairs of pixels that lie opposite each other make

    z + sum_j (d_j w_j + 128 >> 8)

In luma the weights depend on the cell of 4 x 4 pixels, how active it is and in which direction, and on how far the
pixel is from the edges of its block; in chroma on the coefficients that the block has, and on the edges. Values are
integers, 32nds of a grey level, so that all decoders filter alike. A pixel beyond the image, or in a unit that is not
there, counts as z itself.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dqcodec.codec.dct.transform import scan_places
from dqcodec.errors import UnsupportedFeatureError

Array = npt.NDArray[Any]

NONE, FILTER = "none", "filter-1"  # names: no filter, the built-in weights; other weights would have another name
FINE = 32  # integers a grey level
NEARLY_HALF = 0.49  # for rounding: many planes lie exactly half-way, which floats of another order would miss
MOST = 8191  # of an integer's absolute value before it is filtered: d_j is below 2^15
PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))  # (rows, columns) to one pixel of a pair
TURNED = (1, 0, 2, 3, 5, 4)  # the pairs when rows and columns change places
ACTIVITIES, CODED = 10, 9  # of a cell of luma; of a block of chroma, see stream.activity
# Of a pixel's curvature these low bits do not count in the sum over a cell, and it counts at most that much: the sum of
# both directions is below 2^15.
COARSE, MOST_CURVATURE = 2, 1023
LUMA, CHROMA = ACTIVITIES * 2 * 3 * 3, CODED * 3 * 3  # rows of weights


@cache
def weights(name: str, unit: int) -> Array | None:
    """int8 (LUMA + CHROMA, 6), 256ths: the built-in weights of the pairs for units of 4, 8 or 16; None for NONE.

    Rows of luma are numbered by activity, whether the cell has a direction, and the pixel's distances (0, 1, 2) to the
    nearer edge above or below and to that at a side; those of chroma by the activity of the block and the distances.
    They are for changes downwards and a first distance that is not above the second; else the pairs are turned.

    Raises UnsupportedFeatureError for another name.
    """
    if name == NONE:
        return None
    if name != FILTER:
        raise UnsupportedFeatureError(
            f"the file needs the filter {name[:80]!r}; this version has {FILTER!r}", member="zarr.json"
        )
    data = (Path(__file__).parent / f"{name}-{unit}.bin").read_bytes()
    return np.frombuffer(data, np.int8).reshape(LUMA + CHROMA, len(PAIRS))


def limits(steps: Array) -> Array:
    """int32 like steps, float32: 4 steps, cut to whole numbers, where activity 1 begins; each further one at twice."""
    return (4 * steps).astype(np.int32)


def to_integers(planes: Any) -> Any:
    """float32, whole: grey levels as the filter takes them."""
    return ((planes * FINE + NEARLY_HALF) // 1).clip(-MOST, MOST)


class Grid(NamedTuple):
    """Where pixels lie, in images up to the end of the last unit.

    rows, columns  numbers of the pixel rows (H, 1) and columns (1, W)
    reach          int64 (unit^2,), index of each coefficient of a chroma block in the scan, as if the block had 256
    unit           pixels a side
    """

    rows: Any
    columns: Any
    reach: Any
    unit: int


def grid(rows: int, columns: int, unit: int) -> Grid:
    """For images of so many units, in numpy."""
    y, x = np.arange(rows * unit)[:, None], np.arange(columns * unit)[None]
    return Grid(y, x, scan_places(unit) * 256 // unit**2, unit)


class Blocks(NamedTuple):
    """What is known of the blocks of a batch.

    there   int (n, 1, H, W), 1 where a pixel is there, else 0
    sides   int (n, 1, H/4, W/4), of the luma block that each cell is in
    active  int (n, C - 1, H/unit, W/unit), activity of the chroma blocks, see stream.activity
    limit   int32 (n, 1, 1, 1), see `limits`
    grid    where it all lies
    """

    there: Any
    sides: Any
    active: Any
    limit: Any
    grid: Grid


def blocks_of(patterns: Any, active: Any, kept: Any, limit: Any, grid: Grid) -> Blocks:
    """Blocks of the patterns of the units (see stream.unit), int32 (n, R, S), and which of them are there, uint8 (n, R,
    S); the rest as in Blocks."""
    y, x, cells = grid.rows, grid.columns, grid.unit // 4
    there = kept[:, None, y // grid.unit, x // grid.unit] * 1
    y, x = y[::4] // 4, x[:, ::4] // 4
    pattern = patterns[:, None, y // cells, x // cells]
    split = 8 - 4 * (pattern >> (y % cells // 2 * 2 + x % cells // 2) & 1)
    return Blocks(there, split + (grid.unit - split) * (pattern < 0), active, limit, grid)


def activity_of(coefficients: Any, grid: Grid) -> Any:
    """int (...): activity of blocks of chroma with the coefficients (..., unit, unit)."""
    coded = coefficients.reshape(*coefficients.shape[:-2], grid.unit**2) != 0
    return sum((coded & (grid.reach >= 2**bit)).any(-1) * 1 for bit in range(CODED - 1))


def filtered(planes: Any, blocks: Blocks, table: Any) -> Any:
    """int32 (n, C, H, W): the planes, int32 (n, C, H, W), filtered with the weights, int32 (LUMA + CHROMA, 6).

    All are arrays of numpy, or tensors on one device.
    """
    row, turned = rows_of(planes, blocks)
    sums, total = [pair_sum(planes, blocks.there, *pair) for pair in PAIRS], planes * 0
    for j, other in enumerate(TURNED):
        d = sums[j] + (sums[other] - sums[j]) * turned
        total += d * table[row, j] + 128 >> 8
    return (planes + total).clip(-(2**15), 2**15 - 1)


def rows_of(planes: Any, blocks: Blocks) -> tuple[Any, Any]:
    """The row of the weights that each pixel has, and whether its pairs are turned; both (n, C, H, W)."""
    row, turned = planes * 0, planes * 0
    y, x, unit = blocks.grid.rows, blocks.grid.columns, blocks.grid.unit
    activity, direction, side = (
        cells[..., y // 4, x // 4] for cells in (*classes(planes[:, :1], blocks), blocks.sides)
    )  # fmt: skip
    kind = activity * 2 + (direction > 0)
    row[:, :1], turned[:, :1] = row_of(kind, direction, edge_distance(y, side), edge_distance(x, side))
    kind = blocks.active[..., y // unit, x // unit]
    row[:, 1:], turned[:, 1:] = row_of(kind, 0 * kind, edge_distance(y, unit), edge_distance(x, unit))
    row[:, 1:] += LUMA
    return row, turned


def row_of(kind: Any, direction: Any, down: Any, across: Any) -> tuple[Any, Any]:
    """The row of the weights at these distances from the edges, and 1 where the pairs are turned, else 0."""
    turned = ((direction == 2) | ((direction == 0) & (down > across))) * 1
    return (kind * 3 + down + (across - down) * turned) * 3 + across + (down - across) * turned, turned


def classes(luma: Any, blocks: Blocks) -> tuple[Any, Any]:
    """Activity 0..9 and direction (0 none, 1 it changes downwards, 2 across) of each cell, both (n, 1, H/4, W/4)."""
    n, _, height, width = luma.shape
    down, across = (
        (abs(pair_sum(luma, blocks.there, *pair)) >> COARSE)
        .clip(0, MOST_CURVATURE)
        .reshape(n, 1, height // 4, 4, width // 4, 4)
        .sum((3, 5))
        for pair in ((1, 0), (0, 1))
    )
    activity = sum((down + across >= blocks.limit * 2**j) * 1 for j in range(ACTIVITIES - 1))
    return activity, (down > 2 * across) * 1 + (across > 2 * down) * 2


def edge_distance(place: Any, side: Any) -> Any:
    """How far a row or column is from the nearer edge of a block of `side` pixels: 0, 1, or 2 and more."""
    place = place % side
    nearer = place + (side - 1 - 2 * place) * (2 * place >= side)
    return nearer + (2 - nearer) * (nearer > 2)


def pair_sum(planes: Any, there: Any, rows: int, columns: int) -> Any:
    """a + b - 2 z of all pixels z; a is so many rows and columns away, b opposite."""
    height, width = planes.shape[-2:]
    out = planes * 0
    for dy, dx in ((rows, columns), (-rows, -columns)):
        here = slice(max(0, -dy), height - max(0, dy)), slice(max(0, -dx), width - max(0, dx))
        then = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
        out[..., *here] += (planes[..., *then] - planes[..., *here]) * there[..., *then]
    return out
