"""The compiled encoder of one image: transform, search, and the list of coding operations that the decoder will do."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from dqcodec.codec.dct import stream
from dqcodec.codec.dct.engine import build
from dqcodec.codec.dct.search import Work, magnitude_bits, quantise, work
from dqcodec.codec.dct.transform import all_scan_places, matrix

_compiled = build(stream, njit(nogil=True, cache=True))
predict, neighbours, activity, forget = (_compiled[n] for n in ("predict", "neighbours", "activity", "forget"))

MAX_DC = stream.MAX_DC


class Edges(NamedTuple):
    """What is known at the edges of the unit that comes next: of the row above, and at its left; see stream.unit."""

    dc_above: Any
    dc_left: Any
    activity_above: Any
    activity_left: Any
    flags: Any
    width: int
    columns: int


def edges(columns: int, unit: int, planes: int) -> Edges:
    width = columns * (unit >> 2)
    full = lambda n, v: np.full(n, v, np.int32)
    return Edges(
        full(planes * width, stream.NO_DC), full(planes * 4, stream.NO_DC), full(planes * width, stream.NONE),
        full(planes * 4, stream.NONE), np.zeros(columns + 1, np.int32), width, columns,
    )


D4, D8, D16 = matrix(4), matrix(8), matrix(16)
T4, T8, T16 = (np.ascontiguousarray(matrix(n).T) for n in (4, 8, 16))


def _make(d, t, size):
    @njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
    def forward(plane, at, stride, places, first, out, to, temp):
        for u in range(size):
            for x in range(size):
                temp[u * size + x] = 0
            for y in range(size):
                f = d[u, y]
                for x in range(size):
                    temp[u * size + x] += f * plane[at + y * stride + x]
        for u in range(size):
            for v in range(size):
                temp[256 + v] = 0
            for x in range(size):
                f = temp[u * size + x]
                for v in range(size):
                    temp[256 + v] += f * t[x, v]
            for v in range(size):
                out[to + places[first + u * size + v]] = temp[256 + v]

    return forward


forward4, forward8, forward16 = _make(D4, T4, 4), _make(D8, T8, 8), _make(D16, T16, 16)


class Bench(NamedTuple):
    """Scratch of the encoder of one image."""

    x: Any  # float32 (1280,): coefficients of a unit by scan index: 16 x 16, four 8 x 8, sixteen 4 x 4, chroma 1, 2
    levels: Any  # int32 (1280,)
    lasts: Any  # int32 (1 + 4 + 16 + 2,)
    temp: Any  # float32 (512,)
    saved: Any  # int32 (64,)
    cells: Any  # int32 (3 * 660,)
    places: Any
    search: Work


def bench() -> Bench:
    return Bench(
        np.zeros(1280, np.float32), np.zeros(1280, np.int32), np.zeros(32, np.int32), np.zeros(512, np.float32),
        np.zeros(64, np.int32), np.zeros(1980, np.int32), all_scan_places(), work(),
    )


@njit(nogil=True, cache=True, error_model="numpy")
def settle(edges, plane, column, row, count, dc, active):
    a, b = plane * edges.width + column, (plane << 2) + row
    for i in range(count):
        edges.dc_above[a + i] = edges.dc_left[b + i] = dc * (4 // count)
        edges.activity_above[a + i] = edges.activity_left[b + i] = active


@njit(nogil=True, cache=True, error_model="numpy")
def keep_edges(edges, column, cells, saved, back):
    for i in range(cells):
        if back:
            edges.dc_above[column + i] = saved[i]
            edges.dc_left[i] = saved[4 + i]
            edges.activity_above[column + i] = saved[8 + i]
            edges.activity_left[i] = saved[12 + i]
        else:
            saved[i] = edges.dc_above[column + i]
            saved[4 + i] = edges.dc_left[i]
            saved[8 + i] = edges.activity_above[column + i]
            saved[12 + i] = edges.activity_left[i]


@njit(nogil=True, cache=True, error_model="numpy")
def dc_of(level, dependent):
    return (level << dependent)


@njit(nogil=True, cache=True, error_model="numpy")
def final_dc(levels, at, last, dependent, transitions):
    """DC integer without prediction from the signed levels of a block."""
    state = 0
    for k in range(last, 0, -1):
        m = abs(levels[at + k])
        state = (transitions >> ((state << 2) | ((m & 1) << 1))) & 3
    m = abs(levels[at])
    if m == 0:
        return 0
    r = (m << dependent) - (state >> 1)
    return r if levels[at] > 0 else -r


@njit(nogil=True, cache=True, error_model="numpy")
def try_block(kind, size, high, plane, column, row, at, edges, order, coding, costs, offset, lam, b):
    """Search one block and settle its edges: (cost, last, activity)."""
    low_bits = 0 if size == 4 else (2 if size == 8 else 4)
    start = 0 if size == 4 else (16 if size == 8 else 80)
    count = size >> 2
    pred = predict(edges.dc_above, edges.dc_left, plane * edges.width + column, (plane << 2) + row, count)
    x = b.x[at : at + size * size]
    dc0 = x[0]
    x[0] = dc0 - np.float32(pred)
    j, last = quantise(
        x, start, size * size, order.pair[kind], high, order.low[kind], low_bits, costs, order, offset,
        coding.dependent, lam, b.levels[at : at + size * size], b.search,
    )
    x[0] = dc0
    dc = final_dc(b.levels, at, last, coding.dependent, coding.transitions) + pred
    dc = min(max(dc, -MAX_DC), MAX_DC)
    active = activity(last, size)
    settle(edges, plane, column, row, count, dc, active)
    return j, last, active


@njit(nogil=True, cache=True, error_model="numpy")
def emit_block(kind, size, high, at, last, order, coding, b, ops, n):
    """Append the operations of a block."""
    low_bits = 0 if size == 4 else (2 if size == 8 else 4)
    start = 0 if size == 4 else (16 if size == 8 else 80)
    side = 2 * order.pairs
    ops[n] = (side + high) << 5 | (last >> low_bits)
    n += 1
    if low_bits:
        ops[n] = (side + order.low[kind] + (last >> low_bits)) << 5 | (last & ((1 << low_bits) - 1))
        n += 1
    cells, base, levels = b.cells, (size >> 3) * 660, b.levels
    lowest = base + ((order.position[start + last] >> 8) & 1023) // 20 * 20
    for i in range(lowest, lowest + 60):
        cells[i] = 0
    state = 0
    extra = 106
    for k in range(last, -1, -1):
        word = order.position[start + k]
        c = base + ((word >> 8) & 1023)
        total = ((cells[c + 20] + cells[c + 21]) << 1) + cells[c + 41] + cells[c + 40] + cells[c + 42]
        q = state >> 1
        context = (order.pair[kind] + (word >> 18) + order.sum_bin[total + extra]) * 2 + q
        extra = 0
        level = levels[at + k]
        m = abs(level)
        negative = 1 if level < 0 else 0
        cells[c] = min(m, 15)
        if m < 10:
            ops[n] = context << 5 | (m + 10 * negative)
            n += 1
        else:
            code, _ = magnitude_bits(m)
            ops[n] = context << 5 | (code + 10)
            n += 1
            if code < 15:
                ops[n] = -1 - ((((m - 8 - (2 << (code - 10))) << 1 | negative) << 5) | (code - 8))
                n += 1
            else:
                e = 0
                while e < 10 and m >= 72 + 64 * ((2 << e) - 1):
                    e += 1
                ops[n] = -1 - ((e << 1 | negative) << 5 | 5)
                ops[n + 1] = -1 - ((m - 72 - 64 * ((1 << e) - 1)) << 5 | (e + 6))
                n += 2
        state = (coding.transitions >> ((state << 2) | ((m & 1) << 1))) & 3
    return n


@njit(nogil=True, cache=True, error_model="numpy")
def encode_unit(place, planes, plane_data, stride, area, at, edges, order, coding, costs, offset, lam, b, ops, n):
    """Search and emit the unit whose first pixel is at `at` of each plane."""
    unit = order.unit
    cells = unit >> 2
    column = place * cells
    luma = unit >> 3
    side = 2 * order.pairs
    x, t = b.x, b.temp
    keep_edges(edges, column, cells, b.saved, False)
    busiest = 0
    # Split: quadrant by quadrant, one 8 x 8 or four 4 x 4.
    pattern = 0
    split = np.float32(1e30)
    lasts = b.lasts
    flag_context = 0
    whole = False
    if unit >= 8:
        split = np.float32(0)
        for q in range(4 if unit == 16 else 1):
            row, col = q >> 1 << 1, (q & 1) << 1
            origin = at + (row << 2) * stride + (col << 2)
            forward8(plane_data, origin, stride, b.places, 16, x, 256 + q * 64, t)
            high = order.high[1] + neighbours(edges.activity_above, edges.activity_left, column + col, row)
            # Four of 4 x 4 first; the edges they leave are kept aside.
            e0 = edges.dc_above[column + col], edges.dc_above[column + col + 1], edges.dc_left[row], edges.dc_left[row + 1]
            a0 = (edges.activity_above[column + col], edges.activity_above[column + col + 1],
                  edges.activity_left[row], edges.activity_left[row + 1])
            j8, l8, a8 = try_block(1, 8, high, 0, column + col, row, 256 + q * 64, edges, order, coding, costs, offset, lam, b)
            e8 = edges.dc_above[column + col], edges.dc_above[column + col + 1], edges.dc_left[row], edges.dc_left[row + 1]
            edges.dc_above[column + col], edges.dc_above[column + col + 1], edges.dc_left[row], edges.dc_left[row + 1] = e0
            (edges.activity_above[column + col], edges.activity_above[column + col + 1],
                  edges.activity_left[row], edges.activity_left[row + 1]) = a0
            lasts[1 + q] = l8
            j4 = np.float32(1.5) * lam
            a4 = 0
            for i in range(4):
                r4, c4 = row + (i >> 1), col + (i & 1)
                o4 = at + (r4 << 2) * stride + (c4 << 2)
                forward4(plane_data, o4, stride, b.places, 0, x, 512 + (q * 4 + i) * 16, t)
                high4 = order.high[0] + neighbours(edges.activity_above, edges.activity_left, column + c4, r4)
                j, l, a = try_block(0, 4, high4, 0, column + c4, r4, 512 + (q * 4 + i) * 16, edges, order, coding, costs, offset, lam, b)
                lasts[5 + q * 4 + i] = l
                a4 = max(a4, a)
                j4 += j
                if j4 >= j8:
                    break
            if j4 < j8:
                pattern |= 1 << q
                split += j4
                busiest = max(busiest, a4)
            else:
                split += j8
                edges.dc_above[column + col], edges.dc_above[column + col + 1], edges.dc_left[row], edges.dc_left[row + 1] = e8
                settle_activity(edges, column + col, row, 2, a8)
                busiest = max(busiest, a8)
        if unit == 16:
            flag_context = order.flag + edges.flags[place] + edges.flags[edges.columns]
            split += lam * (costs[(side + flag_context) * 16] + costs[(side + order.pattern) * 16 + pattern])
    if unit != 8:
        # Whole.
        for i in range(cells):
            b.saved[16 + i] = edges.dc_above[column + i]
            b.saved[20 + i] = edges.dc_left[i]
            b.saved[24 + i] = edges.activity_above[column + i]
            b.saved[28 + i] = edges.activity_left[i]
        keep_edges(edges, column, cells, b.saved, True)
        if unit == 16:
            forward16(plane_data, at, stride, b.places, 80, x, 0, t)
        else:
            forward4(plane_data, at, stride, b.places, 0, x, 0, t)
        high = order.high[luma] + neighbours(edges.activity_above, edges.activity_left, column, 0)
        j, l, a = try_block(luma, unit, high, 0, column, 0, 0, edges, order, coding, costs, offset, lam, b)
        lasts[0] = l
        if unit == 16:
            j += lam * costs[(side + flag_context) * 16 + 1]
        whole = j < split
        if whole:
            busiest = a
        else:
            for i in range(cells):
                edges.dc_above[column + i] = b.saved[16 + i]
                edges.dc_left[i] = b.saved[20 + i]
                edges.activity_above[column + i] = b.saved[24 + i]
                edges.activity_left[i] = b.saved[28 + i]
    # Emission needs the contexts as they were: redo the edges' activities.
    for i in range(cells):
        b.saved[16 + i] = edges.activity_above[column + i]
        b.saved[20 + i] = edges.activity_left[i]
        edges.activity_above[column + i] = b.saved[8 + i]
        edges.activity_left[i] = b.saved[12 + i]
    if unit == 16:
        ops[n] = (side + flag_context) << 5 | (1 if whole else 0)
        n += 1
        edges.flags[place] = edges.flags[edges.columns] = 1 if whole else 0
    if not whole and unit >= 8:
        ops[n] = (side + order.pattern) << 5 | pattern
        n += 1
        for q in range(4 if unit == 16 else 1):
            row, col = q >> 1 << 1, (q & 1) << 1
            if pattern >> q & 1:
                for i in range(4):
                    r4, c4 = row + (i >> 1), col + (i & 1)
                    high = order.high[0] + neighbours(edges.activity_above, edges.activity_left, column + c4, r4)
                    l = lasts[5 + q * 4 + i]
                    n = emit_block(0, 4, high, 512 + (q * 4 + i) * 16, l, order, coding, b, ops, n)
                    settle_activity(edges, column + c4, r4, 1, activity(l, 4))
            else:
                high = order.high[1] + neighbours(edges.activity_above, edges.activity_left, column + col, row)
                n = emit_block(1, 8, high, 256 + q * 64, lasts[1 + q], order, coding, b, ops, n)
                settle_activity(edges, column + col, row, 2, activity(lasts[1 + q], 8))
    else:
        high = order.high[luma] + neighbours(edges.activity_above, edges.activity_left, column, 0)
        n = emit_block(luma, unit, high, 0, lasts[0], order, coding, b, ops, n)
    for i in range(cells):
        edges.activity_above[column + i] = b.saved[16 + i]
        edges.activity_left[i] = b.saved[20 + i]
    for plane in range(1, planes):
        kind = luma + plane
        own = neighbours(edges.activity_above, edges.activity_left, plane * edges.width + column, plane << 2)
        high = order.high[kind] + busiest * 10 + ((own + 1) >> 1)
        to = 768 + 256 * (plane - 1)
        origin = plane * area + at
        if unit == 16:
            forward16(plane_data, origin, stride, b.places, 80, x, to, t)
        elif unit == 8:
            forward8(plane_data, origin, stride, b.places, 16, x, to, t)
        else:
            forward4(plane_data, origin, stride, b.places, 0, x, to, t)
        j, l, busiest = try_block(kind, unit, high, plane, column, 0, to, edges, order, coding, costs, offset, lam, b)
        n = emit_block(kind, unit, high, to, l, order, coding, b, ops, n)
    return n


@njit(nogil=True, cache=True, error_model="numpy")
def settle_activity(edges, column, row, count, active):
    for i in range(count):
        edges.activity_above[column + i] = active
        edges.activity_left[row + i] = active


@njit(nogil=True, cache=True, error_model="numpy")
def encode_planes(plane_data, planes, kept, rows, edges, order, coding, costs, offset, lam, b, ops):
    """Operations of a whole image, planes float32 (planes, rows * unit, columns * unit) in steps: their number."""
    unit = order.unit
    stride = edges.columns * unit
    area = rows * unit * stride
    n = 0
    forget(edges, 0, edges.width)
    for i in range(edges.columns + 1):
        edges.flags[i] = 0
    for r in range(rows):
        forget(edges, 0, 0)
        for place in range(edges.columns):
            if kept[r * edges.columns + place]:
                at = r * unit * stride + place * unit
                n = encode_unit(
                    place, planes, plane_data, stride, area, at, edges, order, coding, costs, offset, lam, b, ops, n
                )
            else:
                forget(edges, place * (unit >> 2), unit >> 2)
                edges.flags[place] = 0
    return n


@njit(nogil=True, cache=True, error_model="numpy")
def rans(ops, n, distribution, frequency, first, slots, out):
    """Code operations into `out` from its end: first byte used."""
    x = 1
    at = len(out)
    for i in range(n - 1, -1, -1):
        op = ops[i]
        if op < 0:
            op = -1 - op
            bits = op & 31
            if x >= 1 << (32 - bits):
                at -= 2
                out[at] = x & 255
                out[at + 1] = (x >> 8) & 255
                x >>= 16
            x = x << bits | op >> 5
        else:
            d = (distribution[op >> 5] << 5) + (op & 31)
            f = frequency[d]
            if x >= f << 20:
                at -= 2
                out[at] = x & 255
                out[at + 1] = (x >> 8) & 255
                x >>= 16
            q = np.int64(np.uint32(x) // np.uint32(f))
            x = (q << 12) + slots[first[d] + x - q * f]
    size = 1
    while x >> (8 * size):
        size += 1
    if at < len(out) and size < 3:
        size = 3
    at -= size
    for i in range(size):
        out[at + i] = (x >> (8 * i)) & 255
    return at


@njit(nogil=True, cache=True, error_model="numpy")
def moments(pixels, height, width, kept, columns, unit):
    """float64 (6,): second moments of all differences of neighbouring pixels, over kept units (xx, yy, zz, xy, xz, yz)."""
    m = np.zeros(6, np.float64)
    for y in range(height):
        for x in range(width):
            if not kept[y // unit * columns + x // unit]:
                continue
            at = (y * width + x) * 3
            for step in range(2):
                if step == 0:
                    if x + 1 >= width:
                        continue
                    other = at + 3
                else:
                    if y + 1 >= height:
                        continue
                    other = at + width * 3
                r = np.float64(pixels[other]) - np.float64(pixels[at])
                g = np.float64(pixels[other + 1]) - np.float64(pixels[at + 1])
                c = np.float64(pixels[other + 2]) - np.float64(pixels[at + 2])
                m[0] += r * r
                m[1] += g * g
                m[2] += c * c
                m[3] += r * g
                m[4] += r * c
                m[5] += g * c
    return m


@njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
def rotate(pixels, height, width, u, scale, chroma, rows, columns, unit, out):
    """Planes in steps from pixels (height, width, 3 or 1), the last row and column repeated up to whole units."""
    stride = columns * unit
    area = rows * unit * stride
    planes = 3 if len(u) == 9 else 1
    for y in range(rows * unit):
        line = min(y, height - 1) * width
        for x in range(stride):
            at = (line + min(x, width - 1)) * planes
            to = y * stride + x
            if planes == 1:
                out[to] = (np.float32(pixels[at]) - np.float32(128)) * scale
            else:
                r = np.float32(pixels[at]) - np.float32(128)
                g = np.float32(pixels[at + 1]) - np.float32(128)
                c = np.float32(pixels[at + 2]) - np.float32(128)
                out[to] = (u[0] * r + u[1] * g + u[2] * c) * scale
                out[area + to] = (u[3] * r + u[4] * g + u[5] * c) * chroma
                out[2 * area + to] = (u[6] * r + u[7] * g + u[8] * c) * chroma


@njit(nogil=True, cache=True, error_model="numpy")
def count(ops, n, counts):
    """Add the symbols of n operations to counts (contexts, 16)."""
    for i in range(n):
        op = ops[i]
        if op >= 0:
            s = op & 31
            counts[op >> 5, s if s < 10 else s - 10] += 1
