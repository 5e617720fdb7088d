"""The filter of decoded planes, compiled by numba: one unit at a time, on vectors as wide as it. See `filter.py`.

Planes are int16, one after the other, each with a rim of RIM pixels; the place of a unit in one is called `at`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from dqcodec.codec.dct import stream
from dqcodec.codec.dct.contexts import STRIDE, UNITS
from dqcodec.codec.dct.engine import inline
from dqcodec.codec.dct.filter import (
    ACTIVITIES,
    COARSE,
    CODED,
    FINE,
    LUMA,
    MOST,
    MOST_CURVATURE,
    NEARLY_HALF,
    PAIRS,
    TURNED,
    Array,
    edge_distance,
    row_of,
)
from dqcodec.codec.dct.lanes import (
    add,
    add_limited,
    at_least,
    both,
    fma,
    joined,
    load,
    neighbours_added,
    scaled,
    sizes,
    splat,
    store,
    subtract,
    to_float,
    to_integers,
)

activity = inline(stream.activity)
RIM = 2  # as far as the pairs reach
RING = 24  # int16 of a row of `ring`
LEVEL, HALF = np.float32(1 / FINE), np.float32(NEARLY_HALF)
DOWN, ACROSS = (np.array(steps, np.int32) for steps in zip(*PAIRS, strict=True))
# How far the four pixels of a cell are from the edges at their sides, in these cases; which case it is, by side of the
# block (4, 8, 16) and the cell's place in a row of four.
PROFILES = ((0, 1, 2, 2), (2, 2, 2, 2), (2, 2, 1, 0), (0, 1, 1, 0))
PROFILE = np.array([(3, 3, 3, 3), (0, 2, 0, 2), (0, 1, 1, 2), (0, 0, 0, 0)], np.int32).ravel() * 4
CLASS = len(PAIRS) * len(PROFILES) * 4  # int16 of the luma table by pair, profile and pixel
DISTANCE = np.resize([edge_distance(np.arange(16), side) for side in UNITS], 64).astype(np.int32)


def luma_table(weights: Array) -> Array:
    """int16: weights of `filter.weights` times 256, by activity, direction, distance to the edge above or below, pair,
    profile and pixel."""
    out = np.zeros((ACTIVITIES, 3, 3, len(PAIRS), len(PROFILES), 4), np.int16)
    for activity, direction, down, profile, x in product(*map(range, (ACTIVITIES, 3, 3, 4, 4))):
        row, turned = row_of(activity * 2 + (direction > 0), np.array(direction), down, PROFILES[profile][x])
        out[activity, direction, down, :, profile, x] = weights[row][list(TURNED) if turned else slice(None)]
    return out.ravel() * np.int16(256)


def chroma_table(weights: Array, unit: int) -> Array:
    """int16: the same of chroma, by activity, distance to the edge above or below, pair, and pixel of a unit's row."""
    out = np.zeros((CODED, 3, len(PAIRS), unit), np.int16)
    for active, down, x in product(*map(range, (CODED, 3, unit))):
        row, turned = row_of(active, np.array(0), down, edge_distance(x, unit))
        out[active, down, :, x] = weights[LUMA + row][list(TURNED) if turned else slice(None)]
    return out.ravel() * np.int16(256)


class Bench(NamedTuple):
    """The weights and scratch of the filter.

    luma     int16, see `luma_table`; empty: nothing is filtered
    chroma   int16, see `chroma_table`
    planes   int16, the planes of an image, each with its rim
    sides    int32, of the luma block that each cell is in: 0, 1, 2 for 4, 8, 16
    active   int32 (units * 2,), of the chroma blocks: see stream.activity
    ring     int16 (3 * RING,), see `mark`
    limits   int16 (9,), see `set_limits`
    sums     int16 (32,), of a row of cells: changes downwards, and from 16 on across; then their kinds
    places   int32 (12,), of four cells: where their kinds are in the table, where their sides are in DISTANCE, and
             where the weights of a row of pixels are
    """

    luma: Any
    chroma: Any
    planes: Any
    sides: Any
    active: Any
    ring: Any
    limits: Any
    sums: Any
    places: Any


def bench(tables: tuple[Array, Array] | None, rows: int, columns: int, planes: int, unit: int) -> Bench:
    """For images of so many units; tables as `tables_of` makes them, None: nothing is filtered."""
    if tables is None:
        rows = columns = 0
    luma, chroma = tables or (np.zeros(0, np.int16), np.zeros(0, np.int16))
    return Bench(
        luma, chroma, np.zeros(planes * (rows * unit + 2 * RIM) * (columns * unit + 2 * RIM), np.int16),
        np.zeros(rows * columns * (unit // 4) ** 2, np.int32), np.zeros(rows * columns * 2, np.int32),
        np.zeros(3 * RING, np.int16), np.zeros(ACTIVITIES - 1, np.int16),
        np.zeros(32, np.int16), np.zeros(12, np.int32),
    )  # fmt: skip


def tables_of(weights: Array, unit: int) -> tuple[Array, Array]:
    """`luma_table` and `chroma_table` of weights as in `filter.weights`."""
    return luma_table(weights), chroma_table(weights, unit)


@inline
def place_of(plane, r, c, rows, columns, unit):
    """Where the unit in row r, column c of a plane begins, in images of rows x columns units."""
    stride = columns * unit + 2 * RIM
    return (plane * (rows * unit + 2 * RIM) + r * unit + RIM) * stride + c * unit + RIM


@inline
def mark(kept, row, column, rows, columns, unit, ring):
    """Note which pixels of a unit and around it are there: whether all are.

    kept  uint8 (units,)
    ring  int16 (3 * RING,), -1 or 0 from RIM pixels left of the unit on: above it, in its rows, below it
    """
    every = True
    for v in range(3):
        for h in range(3):
            y, x = row + v - 1, column + h - 1
            there = 0 <= y < rows and 0 <= x < columns and kept[y * columns + x] != 0
            every = every and there
            start = v * RING + (0 if h == 0 else (RIM if h == 1 else RIM + unit))
            for k in range(unit if h == 1 else RIM):
                ring[start + k] = -1 if there else 0
    return every


@inline
def set_limits(limit, limits):
    """Where each activity from 1 on begins, int16 (9,), from 4 steps; 32767 is beyond all sums."""
    for j in range(ACTIVITIES - 1):
        limits[j] = min(limit << j, 32767)


def _hold(unit: int) -> Callable[..., None]:
    @inline
    def hold(work, first, planes, at, stride):
        """Put a plane of a unit, float32 rows of 16 from `first` on, into its place."""
        for y in range(unit):
            fine = fma(load(work, first + y * STRIDE, unit), splat(np.float32(FINE), unit), splat(HALF, unit))
            store(planes, at + y * stride, to_integers(fine, MOST))

    return hold  # type: ignore[no-any-return]


def _weights(unit: int) -> Callable[..., Any]:
    """The weights of pair j for a row of pixels, where its cells have their tables at `places`."""
    if unit == 16:

        @inline
        def weights(table, places, j):
            at = j * 16
            left = joined(load(table, at + places[8], 4), load(table, at + places[9], 4))
            return joined(left, joined(load(table, at + places[10], 4), load(table, at + places[11], 4)))

    elif unit == 8:

        @inline
        def weights(table, places, j):
            return joined(load(table, j * 16 + places[8], 4), load(table, j * 16 + places[9], 4))

    else:

        @inline
        def weights(table, places, j):
            return load(table, j * 16 + places[8], 4)

    return weights  # type: ignore[no-any-return]


def _bring_all(unit: int, masked: bool) -> Callable[..., None]:
    """Filtering the planes of a unit; masked: one of which a neighbour is not there."""
    cells = unit // 4
    weights = _weights(unit)

    @inline
    def pair_sum(planes, line, stride, y, down, across, centre, ring):
        """The sums of pairs of a row of pixels, row y of the unit, which begins at `line`."""
        offset = down * stride + across
        a, b = load(planes, line + offset, unit), load(planes, line - offset, unit)
        if masked:
            above, below = y - down, y + down
            above = 0 if above < 0 else (RING if above < unit else 2 * RING)
            below = 0 if below < 0 else (RING if below < unit else 2 * RING)
            a = both(subtract(a, centre), load(ring, below + RIM + across, unit))
            b = both(subtract(b, centre), load(ring, above + RIM - across, unit))
            return add(a, b)
        return subtract(add(a, b), add(centre, centre))

    @inline
    def kinds(down, across, limits):
        """Activity * 3 + direction of each cell of a row, from the sums over its rows."""
        down, across = neighbours_added(neighbours_added(down)), neighbours_added(neighbours_added(across))
        total = add(down, across)
        activity = subtract(total, total)
        for j in range(ACTIVITIES - 1):
            activity = add(activity, at_least(total, splat(limits[j], cells)))
        one = splat(np.int16(1), cells)
        steep = at_least(subtract(down, one), add(across, across))
        wide = at_least(subtract(across, one), add(down, down))
        return add(add(add(activity, activity), activity), add(steep, add(wide, wide)))

    @inline
    def finish(centre, total, work, to):
        value = to_float(add_limited(centre, total))
        store(work, to, fma(value, splat(LEVEL, unit), splat(np.float32(0), unit)))

    @inline
    def bring_luma(at, stride, first, row, bench, work):
        """Filter the luma of the unit at `at`; its cells are in bench.sides from `first` on, with rows `row` apart."""
        planes, sums, places, ring = bench.planes, bench.sums, bench.places, bench.ring
        for cell in range(0, unit, 4):
            for y in range(cell, cell + 4):
                line = at + y * stride
                centre = load(planes, line, unit)
                down = sizes(pair_sum(planes, line, stride, y, 1, 0, centre, ring), COARSE, MOST_CURVATURE)
                across = sizes(pair_sum(planes, line, stride, y, 0, 1, centre, ring), COARSE, MOST_CURVATURE)
                if y > cell:
                    down, across = add(down, load(sums, 0, unit)), add(across, load(sums, 16, unit))
                store(sums, 0, down)
                store(sums, 16, across)
            store(sums, 0, kinds(load(sums, 0, unit), load(sums, 16, unit), bench.limits))
            for k in range(cells):
                side = bench.sides[(first + (cell >> 2) * row + k) & 0xFFFFFFF]
                places[k] = sums[k] * (3 * CLASS) + PROFILE[((side << 2) + k) & 15]
                places[4 + k] = side << 4
            for y in range(cell, cell + 4):
                line = at + y * stride
                for k in range(cells):
                    places[8 + k] = places[k] + DISTANCE[(places[4 + k] + y) & 63] * CLASS
                centre = load(planes, line, unit)
                total = subtract(centre, centre)
                for j in range(len(PAIRS)):
                    d = pair_sum(planes, line, stride, y, DOWN[j], ACROSS[j], centre, ring)
                    total = add(total, scaled(d, weights(bench.luma, places, j)))
                finish(centre, total, work, y * STRIDE)

    @inline
    def bring_chroma(at, stride, plane, active, bench, work):
        """Filter a chroma plane of the unit at `at`; active: the activity of its block."""
        planes, ring = bench.planes, bench.ring
        for y in range(unit):
            line = at + y * stride
            table = (active * 3 + DISTANCE[((unit >> 3) << 4) + y]) * (len(PAIRS) * unit)
            centre = load(planes, line, unit)
            total = subtract(centre, centre)
            for j in range(len(PAIRS)):
                d = pair_sum(planes, line, stride, y, DOWN[j], ACROSS[j], centre, ring)
                total = add(total, scaled(d, load(bench.chroma, table + j * unit, unit)))
            finish(centre, total, work, (plane << 8) + y * STRIDE)

    @inline
    def bring(planes, r, c, rows, columns, bench, work):
        """See the function `bring` for units of any size."""
        stride = columns * unit + 2 * RIM
        first = (r * cells * columns + c) * cells
        bring_luma(place_of(0, r, c, rows, columns, unit), stride, first, columns * cells, bench, work)
        for k in range(1, planes):
            active = bench.active[(r * columns + c) * 2 + k - 1]
            bring_chroma(place_of(k, r, c, rows, columns, unit), stride, k, active, bench, work)

    return bring  # type: ignore[no-any-return]


def _bring(unit: int) -> Callable[..., None]:
    plain, masked = _bring_all(unit, masked=False), _bring_all(unit, masked=True)

    @inline
    def bring(every, planes, r, c, rows, columns, bench, work):
        """The function `bring` for units of this size."""
        if every:
            plain(planes, r, c, rows, columns, bench, work)
        else:
            masked(planes, r, c, rows, columns, bench, work)

    return bring  # type: ignore[no-any-return]


hold4, hold8, hold16 = (_hold(unit) for unit in UNITS)
bring4, bring8, bring16 = (_bring(unit) for unit in UNITS)


@inline
def hold(unit, planes, pattern, lasts, r, c, rows, columns, work, bench):
    """Put by what the filter needs of the unit in row r, column c: its planes, float32 rows of 16 in `work`, and what
    its blocks are; pattern and lasts as stream.unit has them."""
    stride = columns * unit + 2 * RIM
    for k in range(planes):
        at = place_of(k, r, c, rows, columns, unit)
        if unit == 16:
            hold16(work, k << 8, bench.planes, at, stride)
        elif unit == 8:
            hold8(work, k << 8, bench.planes, at, stride)
        else:
            hold4(work, k << 8, bench.planes, at, stride)
        if k > 0:
            bench.active[(r * columns + c) * 2 + k - 1] = activity(lasts[15 + k], unit)
    cells = unit >> 2
    for y in range(cells):
        for x in range(cells):
            small = pattern >> ((y >> 1 << 1) + (x >> 1)) & 1
            bench.sides[((r * cells + y) * columns + c) * cells + x] = unit >> 3 if pattern < 0 else 1 - small


@inline
def bring(unit, every, planes, r, c, rows, columns, bench, work):
    """Filter the planes of the unit in row r, column c: float32 rows of 16 in `work`, plane k from 256 k on.

    every  all neighbours are there
    """
    if unit == 16:
        bring16(every, planes, r, c, rows, columns, bench, work)
    elif unit == 8:
        bring8(every, planes, r, c, rows, columns, bench, work)
    else:
        bring4(every, planes, r, c, rows, columns, bench, work)
