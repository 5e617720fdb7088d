"""The compiled encoder of one image: transform, search, and the list of coding operations that the decoder will do.

An operation is an int32: a symbol is context * 32 + symbol, n raw bits are -1 - (value * 32 + n).

The blocks that a unit may be cut into have a number each, their slot, and a place in the unit's coefficients:

    slot 0       luma as one block of the unit's size    coefficients from 0
    slot 1..4    luma as 8 x 8, quadrant by quadrant     256
    slot 5..20   luma as 4 x 4, four of each quadrant    512
    slot 21, 22  chroma                                  768, 1024
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dqcodec.codec.dct import cosine, stream
from dqcodec.codec.dct.engine import DECODER, jit
from dqcodec.codec.dct.search import (
    CLASS,
    DOUBLE_BIN,
    FAR,
    FIRST,
    LAST_BIN,
    STEPS,
    U0,
    U1,
    U2,
    U63,
    compiled,
    compiled_fast,
    magnitude_bits,
    neighbour_bin,
    quantise_dependent,
    quantise_plain,
)
from dqcodec.codec.dct.tables import NEXT, STATE
from dqcodec.codec.dct.transform import scan_places

border, settle, neighbours, activity, forget = (
    DECODER[name] for name in ("border", "settle", "neighbours", "activity", "forget")
)

# By effort (tables.EFFORTS): a choice whose estimated cost is more than this share above the other's is not searched.
# First of 8 x 8 and 4 x 4, then of one 16 x 16 and four quadrants.
MARGINS = np.array([[0.0, 0.0], [0.08, 0.05], [1e9, 1e9]], np.float32)
ONE = np.float32(1)
U44 = np.uint64(44)
SLOTS = 23
# Estimated cost of a block: a constant, and for each coefficient but DC what its absolute value says; fitted to the
# search of photographs. By quantiser (plain, dependent) and size (4, 8, 16).
BLOCK_COST = np.array([[1.0, 0.23, 0.06], [2.14, 0.5, 0.11]], np.float32)
LIMITS = (0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 12, 16, 24, 48)
COEFFICIENT_COST = (
    (-0.04, 0.17, 0.41, 0.5, 0.52, 0.63, 0.75, 0.67, 0.71, 0.8, 0.79, 0.88, 0.91, 1, 1.08, 1.29, 1.79, 2.09, 2.4, 2.8),
    (0.01, 0.2, 0.45, 0.5, 0.48, 0.57, 0.69, 0.6, 0.63, 0.73, 0.68, 0.78, 0.79, 0.86, 0.93, 1.04, 1.2, 1.4, 1.8, 2.3),
    (0.005, 0.2, 0.44, 0.5, 0.47, 0.54, 0.63, 0.54, 0.57, 0.69, 0.67, 0.7, 0.74, 0.8, 0.91, 0.95, 1.1, 1.15, 1.4, 2.29),
    (-0.08, 0.15, 0.42, 0.83, 1.16, 1.3, 1.28, 1.28, 1.39, 1.57, 1.77, 1.78, 1.79, 2, 2.1, 2.4, 2.75, 3.5, 4.7, 5),
    (0.02, 0.21, 0.49, 0.88, 1.16, 1.24, 1.19, 1.17, 1.26, 1.42, 1.51, 1.51, 1.56, 1.7, 1.8, 2, 2.25, 2.6, 3.1, 4.5),
    (0.01, 0.2, 0.44, 0.9, 1.18, 1.2, 1.12, 1.17, 1.15, 1.29, 1.35, 1.39, 1.52, 1.6, 1.64, 1.9, 2.1, 2.5, 2.7, 3.7),
)  # fmt: skip
# The same by quarters of a step: float32 (6 * 256,).
QUARTER_COST = np.array(COEFFICIENT_COST, np.float32)[:, np.searchsorted(LIMITS, np.arange(256) / 4, "right")].ravel()


def _forward(size: int, unit: int) -> Callable[..., None]:
    """The compiled transform of a unit in blocks of `size`."""
    cosines, width = cosine.forward(size, unit), min(size, 8)
    # Where the value goes that `cosines` leaves at (row, column): blocks one after the other, each by scan index; the
    # 4 x 4 blocks of a quadrant stand together.
    target = np.zeros((unit, unit), np.uint16)
    index = scan_places(size).reshape(size, size)
    frequency = np.arange(size).reshape(width, -1).T.ravel()  # in each column of a block
    for row in range(0, unit, size):
        for column in range(0, unit, size):
            y, x = row // size, column // size
            block = (y >> 1) * 8 + (x >> 1) * 4 + (y & 1) * 2 + (x & 1) if unit == 4 * size else y * 2 + x
            target[row : row + size, column : column + size] = index[:, frequency] + block * size * size
    target = target.ravel()

    @compiled
    def forward(plane, at, stride, out, to, temp):
        """Coefficients of the unit at `at` of a plane, float32, to out[to:]; temp is float32 (256,)."""
        cosines(plane, at, stride, temp)
        for i in range(unit * unit):
            out[np.uint64(to) + np.uint64(target[np.uint64(i)])] = temp[np.uint64(i)]

    return forward


forward4_4 = _forward(4, 4)
forward4_8, forward8_8 = _forward(4, 8), _forward(8, 8)
forward4_16, forward8_16, forward16_16 = _forward(4, 16), _forward(8, 16), _forward(16, 16)


class Bench(NamedTuple):
    """Scratch of the encoder of one image."""

    x: Any  # float32 (1280,): coefficients of a unit
    levels: Any  # int32 (1280,): their levels
    last: Any  # int32 (SLOTS,): of the blocks searched
    high: Any  # int32 (SLOTS,): their contexts of the high part of `last`
    place: Any  # int32 (SLOTS,): places of the bins of their DC, see stream.predict
    estimate: Any  # float32 (21,): cost of the luma blocks
    temp: Any  # float32 (256,)
    saved: Any  # int32 (64,): edges put aside
    trail: Any  # uint64 (1024,)


def bench() -> Bench:
    return Bench(
        np.zeros(1280, np.float32), np.zeros(1280, np.int32), np.zeros(SLOTS, np.int32), np.zeros(SLOTS, np.int32),
        np.zeros(SLOTS, np.int32), np.zeros(21, np.float32), np.zeros(256, np.float32), np.zeros(64, np.int32),
        np.zeros(1024, np.uint64),
    )  # fmt: skip


@compiled
def keep(edges, column, row, cells, saved, to):
    """Put the luma edges of a square of `cells` by `cells` aside, at saved[to : to + 16]."""
    for i in range(cells):
        saved[to + i] = edges.dc_above[column + i]
        saved[to + 4 + i] = edges.dc_left[row + i]
        saved[to + 8 + i] = edges.activity_above[column + i]
        saved[to + 12 + i] = edges.activity_left[row + i]


@compiled
def bring_back(edges, column, row, cells, saved, to):
    """Undo all since `keep`."""
    for i in range(cells):
        edges.dc_above[column + i] = saved[to + i]
        edges.dc_left[row + i] = saved[to + 4 + i]
        edges.activity_above[column + i] = saved[to + 8 + i]
        edges.activity_left[row + i] = saved[to + 12 + i]


@compiled
def place_in_unit(slot):
    """Where the coefficients of a slot begin."""
    if slot == 0:
        return 0
    if slot < 5:
        return 192 + 64 * slot
    if slot < 21:
        return 432 + 16 * slot
    return 256 * slot - 4608


@compiled
def search_block(slot, kind, size, high, plane, column, row, edges, order, dependent, prices, b):
    """Find the levels of a block and settle its edges: (cost, activity)."""
    low_bits = 0 if size == 4 else (2 if size == 8 else 4)
    start = 0 if size == 4 else (16 if size == 8 else 80)
    cells = size >> 2
    above, beside = plane * edges.width + column, (plane << 2) + row
    at = place_in_unit(slot)
    rim_above, rim_left = border(edges.dc_above, above, cells), border(edges.dc_left, beside, cells)
    side = np.uint64(2 * order.pairs + high)
    if dependent:
        cost, last, dc, place, bottom, right = quantise_dependent(
            b.x, np.uint64(at), np.uint64(start), np.uint64(size * size), np.uint64(kind), np.uint64(order.pair[kind]),
            side, np.uint64(low_bits), rim_above, rim_left, prices, b.levels, b.trail,
        )  # fmt: skip
    else:
        cost, last, dc, place, bottom, right = quantise_plain(
            b.x, np.uint64(at), np.uint64(start), np.uint64(size * size), np.uint64(kind), np.uint64(order.pair[kind]),
            side, np.uint64(low_bits), rim_above, rim_left, prices, b.levels,
        )  # fmt: skip
    settle(min(max(dc, -stream.MAX_DC), stream.MAX_DC), bottom, right, above, beside, cells, edges)
    active = activity(np.int64(last), size)
    for i in range(cells):
        edges.activity_above[above + i] = edges.activity_left[beside + i] = active
    b.last[slot] = last
    b.high[slot] = high
    b.place[slot] = place
    return cost, active


@compiled
def emit_block(slot, kind, size, order, coding, b, ops, n):
    """Append the operations of a block: their number."""
    low_bits = 0 if size == 4 else (2 if size == 8 else 4)
    start = 0 if size == 4 else (16 if size == 8 else 80)
    side = 2 * order.pairs
    at = place_in_unit(slot)
    last = b.last[slot]
    ops[n] = (side + b.high[slot]) << 5 | (last >> low_bits)
    n += 1
    if low_bits:
        ops[n] = (side + order.low[kind] + (last >> low_bits)) << 5 | (last & ((1 << low_bits) - 1))
        n += 1
    now = near = far = U0
    bin2 = LAST_BIN  # twice the bin of the neighbour sum
    state = 0
    first = np.uint64(order.pair[kind]) << U1
    for k in range(last, -1, -1):
        step = np.uint64(STEPS[np.uint64(start + k)])
        if k == 0:
            bin2 = np.uint64(DOUBLE_BIN[b.place[slot]])
        context = np.int64(first + (step >> CLASS) + bin2) + (state >> 4 & 1)
        level = np.int64(b.levels[np.uint64(at + k)])
        m = abs(level)
        now |= np.uint64(min(m, 15)) << (step & U63)
        if m < 10:
            ops[np.uint64(n)] = context << 5 | (m if level >= 0 else m + 10)
            n += 1
        else:
            n = emit_large(context, m, 1 if level < 0 else 0, ops, n)
        state = np.int64(coding.table[np.uint64(NEXT + (state & STATE) + (m & 1))])
        if step & FIRST:
            now, near, far = U0, now, near
        if k > 1:
            bin2 = neighbour_bin(near, far, np.uint64(STEPS[np.uint64(start + k - 1)]) & U63)
    return n


@compiled
def emit_large(context, m, negative, ops, n):
    """Append the operations of a magnitude of 10 or more; see stream.escape."""
    code, bits = magnitude_bits(m)
    ops[n] = context << 5 | (code + 10)
    n += 1
    if code < 15:
        ops[n] = -1 - (((m - 8 - (2 << (code - 10))) << 1 | negative) << 5 | (code - 8))
        return n + 1
    e = bits - 11
    ops[n] = -1 - ((e << 1 | negative) << 5 | 5)
    ops[n + 1] = -1 - ((m - 72 - 64 * ((1 << e) - 1)) << 5 | (e + 6))
    return n + 2


@compiled
def four(estimate, q):
    """Estimated cost of quadrant q as four 4 x 4."""
    at = 5 + 4 * q
    return estimate[at] + estimate[at + 1] + estimate[at + 2] + estimate[at + 3]


@compiled
def search_quadrant(q, small, column, edges, order, dependent, prices, limit, b):
    """Search a quadrant of a unit as four 4 x 4 (small) or one 8 x 8: (cost, activity). Gives up beyond limit."""
    row, place = q >> 1 << 1, column + ((q & 1) << 1)
    if not small:
        high = order.high[1] + neighbours(edges.activity_above, edges.activity_left, place, row)
        return search_block(1 + q, 1, 8, high, 0, place, row, edges, order, dependent, prices, b)
    cost = np.float32(0)
    busiest = 0
    for i in range(4):
        r, c = row + (i >> 1), place + (i & 1)
        high = order.high[0] + neighbours(edges.activity_above, edges.activity_left, c, r)
        j, active = search_block(5 + 4 * q + i, 0, 4, high, 0, c, r, edges, order, dependent, prices, b)
        cost += j
        busiest = max(busiest, active)
        if cost > limit:
            break
    return cost, busiest


@compiled
def search_quadrants(column, edges, order, dependent, prices, effort, limit, b):
    """Search the luma of a unit in quadrants: (cost, pattern, activity). Gives up beyond limit, at cost FAR."""
    total = np.float32(0)
    pattern = busiest = 0
    margin = ONE + MARGINS[effort, 0]
    for q in range(4 if order.unit == 16 else 1):
        row, place = q >> 1 << 1, column + ((q & 1) << 1)
        large = b.estimate[1 + q]
        fine = four(b.estimate, q)
        cost, active = FAR, 0
        if large <= fine * margin:
            keep(edges, place, row, 2, b.saved, 0)
            cost, active = search_quadrant(q, False, column, edges, order, dependent, prices, FAR, b)
        if cost == FAR or fine <= large * margin:
            if cost < FAR:
                keep(edges, place, row, 2, b.saved, 16)
                bring_back(edges, place, row, 2, b.saved, 0)
            finer, busy = search_quadrant(q, True, column, edges, order, dependent, prices, cost, b)
            if finer < cost:
                pattern |= 1 << q
                cost, active = finer, busy
            else:
                bring_back(edges, place, row, 2, b.saved, 16)
        total += cost
        busiest = max(busiest, active)
        if total > limit:
            return FAR, 0, 0
    return total, pattern, busiest


@compiled
def transform(plane_data, planes, stride, area, at, unit, b):
    """Coefficients of all blocks that the unit at `at` of each plane may be cut into."""
    x, temp = b.x, b.temp
    if unit == 16:
        forward16_16(plane_data, at, stride, x, 0, temp)
        forward8_16(plane_data, at, stride, x, 256, temp)
        forward4_16(plane_data, at, stride, x, 512, temp)
        for plane in range(1, planes):
            forward16_16(plane_data, plane * area + at, stride, x, 512 + 256 * plane, temp)
    elif unit == 8:
        forward8_8(plane_data, at, stride, x, 256, temp)
        forward4_8(plane_data, at, stride, x, 512, temp)
        for plane in range(1, planes):
            forward8_8(plane_data, plane * area + at, stride, x, 512 + 256 * plane, temp)
    else:
        forward4_4(plane_data, at, stride, x, 0, temp)
        for plane in range(1, planes):
            forward4_4(plane_data, plane * area + at, stride, x, 512 + 256 * plane, temp)


@compiled
def estimate_block(x, at, kind, dependent):
    """Estimated cost of the luma block of block set `kind` whose coefficients are in x from `at` on."""
    total = BLOCK_COST[dependent, kind]
    table = np.uint64(256 * (3 * dependent + kind))
    for k in range(at + 1, at + (16 << 2 * kind)):
        total += QUARTER_COST[table + np.uint64(min(np.int32(abs(x[np.uint64(k)]) * np.float32(4)), np.int32(255)))]
    return total


@compiled
def estimate_unit(unit, dependent, b):
    """Estimate the cost of all luma blocks that a unit may be cut into."""
    if unit == 16:
        b.estimate[0] = estimate_block(b.x, 0, 2, dependent)
    for slot in range(1, 5 if unit == 16 else 2):
        b.estimate[slot] = estimate_block(b.x, place_in_unit(slot), 1, dependent)
    for slot in range(5, 21 if unit == 16 else 9):
        b.estimate[slot] = estimate_block(b.x, place_in_unit(slot), 0, dependent)


@compiled
def search_luma(place, edges, order, dependent, prices, effort, b):
    """Search the luma of a unit: (pattern, activity), pattern -1 for one block of the unit's size."""
    unit = order.unit
    cells = unit >> 2
    column = place * cells
    whole, active = FAR, 0
    if unit == 8:
        _, pattern, active = search_quadrants(column, edges, order, dependent, prices, effort, FAR, b)
        return pattern, active
    high = order.high[unit >> 3] + neighbours(edges.activity_above, edges.activity_left, column, 0)
    if unit == 4:
        _, active = search_block(0, 0, 4, high, 0, column, 0, edges, order, dependent, prices, b)
        return -1, active
    split = np.float32(0)
    for q in range(4):
        split += min(b.estimate[1 + q], four(b.estimate, q))
    margin = ONE + MARGINS[effort, 1]
    if b.estimate[0] <= split * margin:
        keep(edges, column, 0, 4, b.saved, 32)
        whole, active = search_block(0, 2, 16, high, 0, column, 0, edges, order, dependent, prices, b)
        if split > b.estimate[0] * margin:
            return -1, active
        keep(edges, column, 0, 4, b.saved, 48)
        bring_back(edges, column, 0, 4, b.saved, 32)
    flag = 2 * order.pairs + order.flag + edges.flags[place] + edges.flags[edges.columns]
    whole += symbol_price(flag, 1, prices) - symbol_price(flag, 0, prices)
    cost, pattern, busy = search_quadrants(column, edges, order, dependent, prices, effort, whole, b)
    if cost + symbol_price(2 * order.pairs + order.pattern, pattern, prices) < whole:
        return pattern, busy
    bring_back(edges, column, 0, 4, b.saved, 48)
    return -1, active


@compiled
def symbol_price(context, symbol, prices):
    """lam * bits of a symbol."""
    return prices.price[np.int64(prices.row[context]) * 16 + symbol]


@compiled
def encode_unit(place, planes, plane_data, stride, area, at, edges, order, coding, prices, effort, b, ops, n):
    """Search and emit the unit whose first pixel is at `at` of each plane: the number of operations then."""
    unit = order.unit
    luma = unit >> 3  # block set of a whole unit
    side = 2 * order.pairs
    transform(plane_data, planes, stride, area, at, unit, b)
    if unit >= 8 and MARGINS[effort, 0] < 1:
        estimate_unit(unit, coding.dependent, b)
    pattern, busiest = search_luma(place, edges, order, coding.dependent, prices, effort, b)
    if unit == 16:
        flag = 1 if pattern < 0 else 0
        ops[n] = (side + order.flag + edges.flags[place] + edges.flags[edges.columns]) << 5 | flag
        n += 1
        edges.flags[place] = edges.flags[edges.columns] = flag
    if pattern < 0:
        n = emit_block(0, luma, unit, order, coding, b, ops, n)
    else:
        ops[n] = (side + order.pattern) << 5 | pattern
        n += 1
        for q in range(4 if unit == 16 else 1):
            if pattern >> q & 1:
                for i in range(4):
                    n = emit_block(5 + 4 * q + i, 0, 4, order, coding, b, ops, n)
            else:
                n = emit_block(1 + q, 1, 8, order, coding, b, ops, n)
    column = place * (unit >> 2)
    for plane in range(1, planes):
        kind = luma + plane
        own = neighbours(edges.activity_above, edges.activity_left, plane * edges.width + column, plane << 2)
        high = order.high[kind] + busiest * 10 + ((own + 1) >> 1)
        _, busiest = search_block(
            20 + plane, kind, unit, high, plane, column, 0, edges, order, coding.dependent, prices, b
        )
        n = emit_block(20 + plane, kind, unit, order, coding, b, ops, n)
    return n


@compiled
def encode_planes(plane_data, planes, kept, rows, edges, order, coding, prices, effort, b, ops):
    """Operations of a whole image, planes float32 (planes, rows * unit, columns * unit) in steps: their number."""
    unit = order.unit
    stride = edges.columns * unit
    area = rows * unit * stride
    n = 0
    forget(edges, 0, edges.width)
    edges.flags[:] = 0
    for r in range(rows):
        forget(edges, 0, 0)
        for place in range(edges.columns):
            if kept[r * edges.columns + place]:
                at = r * unit * stride + place * unit
                n = encode_unit(
                    place, planes, plane_data, stride, area, at, edges, order, coding, prices, effort, b, ops, n
                )
            else:
                forget(edges, place * (unit >> 2), unit >> 2)
                edges.flags[place] = 0
    return n


@compiled
def put_word(x, at, out):
    """Write the low 16 bits of the state before out[at]: (state, at) after that."""
    out[at - 2] = x & np.uint32(255)
    out[at - 1] = (x >> np.uint32(8)) & np.uint32(255)
    return x >> np.uint32(16), at - 2


@compiled
def rans(ops, n, distribution, frequency, inverse, first, slots, out):
    """Code operations into `out`, uint8 (2 n + 8,) or more, from its end: first byte used.

    distribution      int32 (contexts,)     of each context
    frequency, first  int32 (32 * K,)       of each symbol, and where its slots begin
    inverse           uint64 (32 * K,)      2^44 / frequency, rounded up: x * inverse >> 44 is x // frequency for every
                                            x < 2^20 * frequency
    slots             uint16 (4096 * K,)
    """
    x = np.uint32(1)
    at = len(out)
    for i in range(n - 1, -1, -1):
        op = ops[i]
        if op < 0:
            op = -1 - op
            bits = np.uint32(op & 31)
            if x >> (np.uint32(32) - bits):
                x, at = put_word(x, at, out)
            x = x << bits | np.uint32(op >> 5)
        else:
            d = np.uint64((np.int64(distribution[np.uint64(op >> 5)]) << 5) + (op & 31))
            f = np.uint32(frequency[d])
            word = np.uint32(x >> np.uint32(20) >= f)  # nothing branches on it: it cannot be foreseen
            out[np.uint64(at - 2)] = x & np.uint32(255)
            out[np.uint64(at - 1)] = (x >> np.uint32(8)) & np.uint32(255)
            x >>= word << np.uint32(4)
            at -= np.int64(word) << 1
            q = x * inverse[d] >> U44
            x = q << np.uint32(12) | np.uint32(slots[np.uint64(first[d]) + np.uint64(x - q * f)])
    size = 1
    while size < 4 and x >> np.uint32(8 * size):
        size += 1
    if at < len(out) and size < 3:
        size = 3
    at -= size
    for i in range(size):
        out[at + i] = (x >> np.uint32(8 * i)) & np.uint32(255)
    return at


@compiled
def add_differences(pixels, at, step, count, total):
    """Add the second moments of the differences of `count` pixels from byte `at` on and those `step` bytes further."""
    xx = yy = zz = xy = xz = yz = np.int64(0)
    for i in range(count):
        k = np.uint64(at) + np.uint64(3 * i)
        n = k + np.uint64(step)
        r = np.int32(pixels[n]) - np.int32(pixels[k])
        g = np.int32(pixels[n + U1]) - np.int32(pixels[k + U1])
        c = np.int32(pixels[n + U2]) - np.int32(pixels[k + U2])
        xx += np.int32(r * r)
        yy += np.int32(g * g)
        zz += np.int32(c * c)
        xy += np.int32(r * g)
        xz += np.int32(r * c)
        yz += np.int32(g * c)
    total[0] += xx
    total[1] += yy
    total[2] += zz
    total[3] += xy
    total[4] += xz
    total[5] += yz


@jit()
def moments(pixels, height, width, kept, columns, unit):
    """Mean second moments of the differences of neighbouring pixels, the first of them in a kept unit.

    pixels is uint8 (height * width * 3,), the result float64 (3, 3).
    """
    total = np.zeros(6, np.int64)
    count = 0
    for y in range(height):
        row = y // unit * columns
        place = 0
        while place < columns:
            first = place
            while place < columns and kept[row + place]:
                place += 1
            if place > first:
                start, end = first * unit, min(place * unit, width)
                at = (y * width + start) * 3
                add_differences(pixels, at, 3, min(end, width - 1) - start, total)
                count += min(end, width - 1) - start
                if y + 1 < height:
                    add_differences(pixels, at, 3 * width, end - start, total)
                    count += end - start
            place += 1
    found = np.zeros((3, 3))
    for k in range(3):
        found[k, k] = total[k]
    found[0, 1] = found[1, 0] = total[3]
    found[0, 2] = found[2, 0] = total[4]
    found[1, 2] = found[2, 1] = total[5]
    return found / max(count, 1)


@compiled_fast
def rotate_row(pixels, at, width, u, first, scale, out, to):
    """One row of one plane: u[first : first + 3] times scale, times the pixels (width, 3) - 128 from byte `at` on."""
    f0, f1, f2 = u[first] * scale, u[first + 1] * scale, u[first + 2] * scale
    middle = (f0 + f1 + f2) * np.float32(128)
    for x in range(width):
        k = np.uint64(at) + np.uint64(3 * x)
        value = f0 * np.float32(pixels[k]) + f1 * np.float32(pixels[k + U1]) + f2 * np.float32(pixels[k + U2])
        out[np.uint64(to) + np.uint64(x)] = value - middle


@compiled_fast
def rotate(pixels, height, width, u, scale, chroma, rows, columns, unit, out):
    """Planes in steps from pixels, the last row and column repeated up to whole units.

    pixels  uint8 (height * width * 3,), or (height * width,) of one plane
    u       float32 (9,), or (1,) of one plane
    scale, chroma  float32: 1 / step of the first plane, of the others
    out     float32 (planes * rows * unit * columns * unit,)
    """
    stride = columns * unit
    area = rows * unit * stride
    planes = 3 if len(u) == 9 else 1
    for y in range(rows * unit):
        line = min(y, height - 1) * width * planes
        for plane in range(planes):
            to = plane * area + y * stride
            if planes == 3:
                rotate_row(pixels, line, width, u, 3 * plane, chroma if plane else scale, out, to)
            else:
                for x in range(width):
                    out[to + x] = (np.float32(pixels[line + x]) - np.float32(128)) * scale
            for x in range(width, stride):
                out[to + x] = out[to + width - 1]


@jit()
def nearest(moments, rotations):
    """Index of the rotation, of float32 (R, 9), with the least sum of ln(8 + variance) for `moments`, float64 (3, 3).

    train.nearest says the same for many images.
    """
    found, least = 0, np.inf
    for r in range(len(rotations)):
        product = 1.0  # in place of the sum of logarithms
        for first in range(0, 9, 3):
            x, y = np.float64(rotations[r, first]), np.float64(rotations[r, first + 1])
            z = np.float64(rotations[r, first + 2])
            variance = x * x * moments[0, 0] + y * y * moments[1, 1] + z * z * moments[2, 2]
            variance += 2 * (x * y * moments[0, 1] + x * z * moments[0, 2] + y * z * moments[1, 2])
            product *= 8 + variance
        if product < least:
            found, least = r, product
    return found


@jit()
def encode_image(
    pixels, height, width, kept, rotation, scale, chroma, rows, edges, order, coding, prices, effort, plane_data, b,
    ops,
):  # fmt: skip
    """The operations of an image: their number.

    pixels    uint8 (height * width * planes,)
    rotation  float32 (9,), or of one plane (1,)
    The rest is as for `rotate` and `encode_planes`.
    """
    planes = 3 if len(rotation) == 9 else 1
    rotate(pixels, height, width, rotation, scale, chroma, rows, edges.columns, order.unit, plane_data)
    return encode_planes(plane_data, planes, kept, rows, edges, order, coding, prices, effort, b, ops)


@compiled
def count(ops, n, counts):
    """Add the symbols of n operations to counts (contexts, 16)."""
    for i in range(n):
        op = ops[i]
        if op >= 0:
            s = op & 31
            counts[op >> 5, s if s < 10 else s - 10] += 1
