"""From decoded coefficients to pixels, compiled by numba: inverse transform, colour and placing, one unit at a time.

Work is done on vectors of 4, 8 or 16 pixels: see `lanes.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dqcodec.codec.dct.contexts import UNITS, scan
from dqcodec.codec.dct.cosine import inverse
from dqcodec.codec.dct.engine import DECODER, inline, jit
from dqcodec.codec.dct.filter_compiled import bring, hold, mark, set_limits
from dqcodec.codec.dct.lanes import fma, load, splat, store_bytes

Array = Any
begin, forget, next_unit = (DECODER[name] for name in ("begin", "forget", "next_unit"))


def _live() -> Array:
    """int32 (512,): rows and, times 32, columns of a block that may be other than 0, by size and `last`; rows rounded
    up to those of the next of the functions `inverse...`: 4, 8 or 16."""
    out = []
    for size in UNITS:
        u, v = np.maximum.accumulate(scan(size)).T + 1
        rows = np.where(u > 8, 16, np.where(u > 4, 8, 4))
        out.append(rows | v << 5)
    return np.resize(np.concatenate(out), 512).astype(np.int32)


LIVE = _live()
inverse4 = inverse(4, 4)
inverse8_4, inverse8_8 = inverse(8, 4), inverse(8, 8)
inverse16_4, inverse16_8, inverse16_16 = inverse(16, 4), inverse(16, 8), inverse(16, 16)


@inline
def take(coefficients, at, count, scale, work, to):
    """Move `count` coefficients to `work`, scaled; 0 is left in their place."""
    at &= 0xFFFFFF
    to &= 1023
    for i in range(count):
        work[to + i] = np.float32(coefficients[at + i]) * scale
        coefficients[at + i] = 0


@inline
def live(size, last):
    """(rows, columns) of a block that may be other than 0, if its coefficients after scan index `last` are 0; rows are
    4, 8 or 16."""
    both = LIVE[((0 if size == 4 else (16 if size == 8 else 80)) + last) & 511]
    return both & 31, both >> 5


@inline
def transform(size, rows, columns, work, to):
    """The inverse transform of a block of which only so many rows, see `live`, and columns may be other than 0."""
    if size == 16:
        if rows == 4:
            inverse16_4(work, to, columns)
        elif rows == 8:
            inverse16_8(work, to, columns)
        else:
            inverse16_16(work, to, columns)
    elif size == 8:
        if rows == 4:
            inverse8_4(work, to, columns)
        else:
            inverse8_8(work, to, columns)
    else:
        inverse4(work, to, columns)


@inline
def blocks(unit, planes, pattern, lasts, coefficients, scale, chroma, work):
    """The planes of a unit, to `work`, from its coefficients, of which 0 is left; pattern and lasts as stream.unit has
    them; scale: of the first plane, chroma: the others' in that."""
    for k in range(planes):
        step = scale * chroma if k else scale
        if k > 0 or pattern < 0:
            rows, columns = live(unit, lasts[15 + k if k else 0])
            take(coefficients, k << 8, rows << 4, step, work, k << 8)
            transform(unit, rows, columns, work, k << 8)
        else:
            take(coefficients, 0, unit << 4, step, work, 0)
    for q in range((4 if unit == 16 else 1) if pattern >= 0 else 0):
        size = 4 if pattern >> q & 1 else 8
        for j in range(4 if size == 4 else 1):
            y, x = (q & 2) + (j >> 1), (q << 1 & 2) + (j & 1)  # cell of 4 x 4
            rows, columns = live(size, lasts[(y << 2) + x])
            transform(size, rows, columns, work, (y << 6) + (x << 2))


def _place(unit: int) -> Callable[..., None]:
    @inline
    def place(work, a, b, c, line, out, at, width, rows, columns):
        """Put `rows` x `columns` pixels of a unit in place, for one colour: the planes times a, b, c.

        line  uint8 (16,): takes the pixels of a row that is not written as a whole, as it ends outside the image
        """
        by_a, by_b, by_c, half = splat(a, unit), splat(b, unit), splat(c, unit), splat(np.float32(128.5), unit)
        for y in range(rows):
            value = fma(by_a, load(work, y * 16, unit), half)
            value = fma(by_b, load(work, 256 + y * 16, unit), value)
            value = fma(by_c, load(work, 512 + y * 16, unit), value)
            to = at + y * width
            if columns == unit:
                store_bytes(out, to, value)
            else:
                store_bytes(line, 0, value)
                for x in range(columns):
                    out[to + x] = line[x]

    @inline
    def place_unit(work, rotation, planes, line, out, start, r, c, height, width):
        """The function `place_unit` for units of this size."""
        to = start + r * unit * width + c * unit
        tall, wide = min(unit, height - r * unit), min(unit, width - c * unit)
        for k in range(planes):
            at = to + k * height * width
            place(work, rotation[k], rotation[3 + k], rotation[6 + k], line, out, at, width, tall, wide)

    return place_unit  # type: ignore[no-any-return]


place4, place8, place16 = (_place(unit) for unit in UNITS)


@inline
def place_unit(work, rotation, planes, line, out, start, r, c, unit, height, width):
    """Put the pixels of the unit in row r, column c, all colours, to the image that starts at `start` of `out`."""
    if unit == 16:
        place16(work, rotation, planes, line, out, start, r, c, height, width)
    elif unit == 8:
        place8(work, rotation, planes, line, out, start, r, c, height, width)
    else:
        place4(work, rotation, planes, line, out, start, r, c, height, width)


@inline
def filter_image(kept, rows, unit, planes, bench, work, rotation, line, out, start, height, width):
    """Put an image to `out` from `start` on whose planes are in the bench, filtered; kept: uint8 (units,)."""
    columns = len(kept) // rows
    for r in range(rows):
        for c in range(columns):
            if kept[r * columns + c]:
                every = mark(kept, r, c, rows, columns, unit, bench.ring)
                bring(unit, every, planes, r, c, rows, columns, bench, work)
                place_unit(work, rotation, planes, line, out, start, r, c, unit, height, width)


@jit()
def decode(
    data, words, spans, kept, steps, chroma, rotation, height, width, planes, edges, order, coding, scratch, bench, out
):  # fmt: skip
    """Decode samples into out (n * planes * height * width,): the number of the first damaged sample, or -1.

    data      uint8, spans int64 (n, 2), see coder.join; words uint16, the same bytes
    kept      uint8 (n, units)                  steps    float32 (n,) of a 64th of a level, first plane
    chroma    float32, the other planes' steps in steps of the first
    rotation  float32 (n, 9)
    bench     of the filter; without tables nothing is filtered
    """
    unit = order.unit
    columns = edges.columns
    rows = -(-height // unit)
    work = np.zeros(768, np.float32)  # three planes of a unit, in rows of 16
    line = np.zeros(16, np.uint8)
    u = np.array([1, 0, 0, 0, 0, 0, 0, 0, 0], np.float32)  # grey: the first plane as it is
    lasts = np.zeros(18, np.int32)
    filters = len(bench.luma) > 0
    bad = -1
    for i in range(len(spans)):
        x, head = begin(data, spans[i, 0], spans[i, 1] - spans[i, 0])
        p, end = (spans[i, 0] + head) >> 1, spans[i, 1] >> 1
        forget(edges, 0, edges.width)
        for c in range(columns):
            edges.flags[c] = 0
        if planes == 3:
            for k in range(9):
                u[k] = rotation[i, k]
        start = i * planes * height * width
        for r in range(rows):
            for c in range(columns):
                there = kept[i, r * columns + c]
                pattern, x, p = next_unit(there, c, 0, planes, edges, scratch, lasts, order, coding, x, words, p, end)
                if not there:
                    continue
                blocks(unit, planes, pattern, lasts, scratch, steps[i], chroma, work)
                if filters:
                    hold(unit, planes, pattern, lasts, r, c, rows, columns, work, bench)
                else:
                    place_unit(work, u, planes, line, out, start, r, c, unit, height, width)
        if filters:
            set_limits(np.int64(256 * steps[i]), bench.limits)  # of 4 steps
            filter_image(kept[i], rows, unit, planes, bench, work, u, line, out, start, height, width)
        if (x != 1 or p != end) and bad < 0:
            bad = i
    return bad
