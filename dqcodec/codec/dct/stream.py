"""The entropy decoder, one sample at a time: plain functions of integers and flat sequences.

This is the reference, and the only text of it: `engine.py` compiles these very functions for the CPU, `cuda.py` for
the GPU. So they use nothing but integers and indexing, and every function stands before the one that calls it.

A sample's payload is one rANS stream. State x is 32 bits, words are 16 bits, probabilities 12 bits:

    symbol   slot = x mod 4096 says which symbol it is; x becomes frequency * (x // 4096) + place of the slot
    raw      n bits are x mod 2^n; x becomes x // 2^n
    refill   after each of these, x < 65536 takes in one word, as long as there are words

The encoder starts at x = 1, so a decoder that is right ends there, with no word left. Whatever the bytes are, nothing
is read or written outside the given buffers and every loop has a fixed end: a word is only taken while there is one,
`last` is below the block's size, contexts and cells are bounded by the tables, and tables are checked when made.
"""

from __future__ import annotations

from typing import Any

NONE = -1  # activity of a cell that was not decoded
NO_DC = -(2**31)  # DC of a cell that was not decoded
MAX_DC = 1 << 20  # of a DC integer's absolute value
QUANTISERS = 0b_11_01_00_10  # see `block`


def symbol(distribution: int, alias: Any, x: int, words: Any, p: int, end: int) -> tuple[int, int, int]:
    """Decode one symbol: (symbol, x, p)."""
    bucket = (x >> 7) & 31
    rest = x & 127
    entry = alias[(distribution << 5) + bucket]
    inside = (rest - (entry & 255)) >> 63  # -1 where the slot is the bucket's own symbol's, else 0
    own = (entry >> 38) | (128 << 12) | (bucket << 25)
    other = (entry >> 8) & 0x3FFFFFFF
    chosen = other ^ ((other ^ own) & inside)
    x = ((chosen & 4095) + 1) * (x >> 12) + ((chosen >> 12) & 8191) - 128 + rest
    need = ((x - 65536) >> 63) & ((p - end) >> 63)
    x = (x << (need & 16)) | (int(words[p]) & need)
    return chosen >> 25, x, p - need


def raw(count: int, x: int, words: Any, p: int, end: int) -> tuple[int, int, int]:
    """Decode `count` <= 16 raw bits: (value, x, p)."""
    value = x & ((1 << count) - 1)
    x >>= count
    need = ((x - 65536) >> 63) & ((p - end) >> 63)
    x = (x << (need & 16)) | (int(words[p]) & need)
    return value, x, p - need


def escape(code: int, x: int, words: Any, p: int, end: int) -> tuple[int, int, int]:
    """Decode the rest of an escape class, 0..5: (signed level, x, p).

    Class c < 5 has a sign bit and c + 1 bits: magnitude 10, 12, 16, 24, 40 and that value. Class 5 has a sign bit and
    four bits n, at most 10, then n + 6 bits: magnitude 72 + 64 (2^n - 1) and that value.
    """
    if code < 5:
        value, x, p = raw(code + 2, x, words, p, end)
        magnitude = 8 + (2 << code) + (value >> 1)
    else:
        value, x, p = raw(5, x, words, p, end)
        n = min(value >> 1, 10)
        rest, x, p = raw(n + 6, x, words, p, end)
        magnitude = 72 + 64 * ((1 << n) - 1) + rest
    return magnitude - 2 * magnitude * (value & 1), x, p


def block(
    start: int, cells: Any, first_cell: int, pair: int, last: int, origin: int, coefficients: Any,
    order: Any, coding: Any, x: int, words: Any, p: int, end: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Decode the coefficients of a block from scan index `last` to DC: (DC integer without its prediction, x, p).

    Values, 64ths of a step, go to `coefficients` at `origin` + their place in the unit. The context of a coefficient
    is its position class, the sum of five neighbours of higher frequency, and the quantiser that its state has.
    """
    position, sum_bin = order.position, order.sum_bin
    pairs, alias, points = coding.pair, coding.alias, coding.points
    lowest = first_cell + ((position[start + last] >> 8) & 1023) // 20 * 20
    for i in range(lowest, lowest + 60):  # this diagonal and the two after it, as far as the sums look
        cells[i] = 0
    state = 0
    extra = 106  # to the bin of the coefficient at `last`, whose sum is 0
    for k in range(last, 0, -1):
        word = int(position[start + k])
        c = first_cell + ((word >> 8) & 1023)
        total = ((int(cells[c + 20]) + int(cells[c + 21])) << 1) + int(cells[c + 41])
        total += int(cells[c + 40]) + int(cells[c + 42])
        both = int(pairs[pair + (word >> 18) + int(sum_bin[total + extra])])
        extra = 0
        quantiser = state >> 1
        s, x, p = symbol((both >> (quantiser << 3)) & 255, alias, x, words, p, end)
        if s < 20:
            point = int(points[(s << 1) | quantiser])
            cells[c] = point & 15
            coefficients[origin + (word & 255)] = point >> 4
        else:
            level, x, p = escape(s - 20, x, words, p, end)
            s = abs(level)
            cells[c] = min(s, 15)
            value = 64 * ((s << coding.dependent) - quantiser) + coding.far
            coefficients[origin + (word & 255)] = value if level > 0 else -value
        state = (coding.transitions >> ((state << 2) | ((s & 1) << 1))) & 3
    word = int(position[start])
    total = ((int(cells[first_cell + 20]) + int(cells[first_cell + 21])) << 1) + int(cells[first_cell + 41])
    total += int(cells[first_cell + 40]) + int(cells[first_cell + 42])
    both = int(pairs[pair + int(sum_bin[total + extra])])
    quantiser = state >> 1
    s, x, p = symbol((both >> (quantiser << 3)) & 255, alias, x, words, p, end)
    if s < 20:
        return ((int(points[(s << 1) | quantiser]) >> 4) + 32) >> 6, x, p
    level, x, p = escape(s - 20, x, words, p, end)
    value = (abs(level) << coding.dependent) - quantiser
    return (value if level > 0 else -value), x, p


def predict(above: Any, left: Any, a: int, b: int, cells: int) -> int:
    """DC of a block from the cells above it (from `a`) and at its left (from `b`), `cells` of each: the mean of those
    that were decoded, times cells / 4 as a block's DC grows with its side; rounded, ties away from zero."""
    total, shift = 0, 1
    if above[a] != NO_DC:
        for i in range(cells):
            total += int(above[a + i])
        shift += 1
    if left[b] != NO_DC:
        for i in range(cells):
            total += int(left[b + i])
        shift += 1
    size = (abs(total) + (1 << shift >> 1)) >> shift
    return size if total > 0 else -size


def neighbours(above: Any, left: Any, a: int, b: int) -> int:
    """Context from the activities above and at the left: their sum up to 16, one counted twice where the other is
    missing, 17 where both are."""
    up, side = int(above[a]), int(left[b])
    if up < 0 and side < 0:
        return 17
    return min(16, (side if up < 0 else up) + (up if side < 0 else side))


def activity(last: int, size: int) -> int:
    """0 for DC alone, else the bit length, 1..8, of `last` in a block scaled to 16 x 16."""
    scaled = last * 256 // (size * size)
    bits = 0
    while scaled:
        scaled >>= 1
        bits += 1
    return bits


def coded_block(
    kind: int, size: int, high: int, plane: int, column: int, row: int, edges: Any, coefficients: Any,
    cells: Any, order: Any, coding: Any, x: int, words: Any, p: int, end: int,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Decode a block of block set `kind` at cell (row, column) of its plane's edges: (last, activity, x, p).

    `high` is the side context of the high part of `last`.
    """
    low_bits = 0 if size == 4 else (2 if size == 8 else 4)
    last, x, p = symbol(int(coding.side[high]), coding.alias, x, words, p, end)
    if low_bits:
        low, x, p = symbol(int(coding.side[int(order.low[kind]) + last]), coding.alias, x, words, p, end)
        last = last << low_bits | low & (1 << low_bits) - 1
    start = 0 if size == 4 else (16 if size == 8 else 80)
    unit = order.unit
    inside = column % (unit >> 2)
    origin = (plane << 8) + (row << 6) + (inside << 2)
    dc, x, p = block(
        start, cells, (size >> 3) * 660, int(order.pair[kind]), last, origin, coefficients, order, coding,
        x, words, p, end,
    )  # fmt: skip
    count = size >> 2
    a, b = plane * edges.width + column, (plane << 2) + row
    dc = min(max(dc + predict(edges.dc_above, edges.dc_left, a, b, count), -MAX_DC), MAX_DC)
    coefficients[origin] = dc * 64
    active = activity(last, size)
    for i in range(count):
        edges.dc_above[a + i] = edges.dc_left[b + i] = dc * 4 // count
        edges.activity_above[a + i] = edges.activity_left[b + i] = active
    return last, active, x, p


def unit(
    place: int, planes: int, edges: Any, coefficients: Any, lasts: Any, cells: Any,
    order: Any, coding: Any, x: int, words: Any, p: int, end: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Decode the unit in column `place` of its row: (pattern, x, p).

    coefficients  int32 (planes * 256,)   64ths of a step, rows of 16; must be 0 before
    lasts         int32 (18,)             `last` of the luma block that starts at each 4 x 4 cell, then of the chroma
    pattern       bit i set: quadrant i is four 4 x 4 blocks, else one of 8 x 8; -1: one block of the unit's size
    """
    side = order.unit
    column = place * (side >> 2)
    pattern = -1
    if side == 16:
        flags = edges.flags
        context = order.flag + int(flags[place]) + int(flags[edges.columns])
        whole, x, p = symbol(int(coding.side[context]), coding.alias, x, words, p, end)
        flags[place] = flags[edges.columns] = 1 if whole else 0
        if not whole:
            pattern, x, p = symbol(int(coding.side[order.pattern]), coding.alias, x, words, p, end)
    elif side == 8:
        pattern, x, p = symbol(int(coding.side[order.pattern]), coding.alias, x, words, p, end)
        pattern &= 1
    busiest = 0
    luma = side >> 3  # block set of a whole unit
    if pattern < 0:
        high = int(order.high[luma]) + neighbours(
            edges.activity_above, edges.activity_left, column, 0
        )
        last, busiest, x, p = coded_block(
            luma, side, high, 0, column, 0, edges, coefficients, cells, order, coding, x, words, p, end
        )
        lasts[0] = last
    else:
        quads = 4 if side == 16 else 1
        for q in range(quads):
            small = pattern >> q & 1
            for i in range(4 if small else 1):
                row = (q >> 1 << 1) + (i >> 1)
                at = column + ((q & 1) << 1) + (i & 1)
                kind = 0 if small else 1
                high = int(order.high[kind]) + neighbours(edges.activity_above, edges.activity_left, at, row)
                last, active, x, p = coded_block(
                    kind, 4 if small else 8, high, 0, at, row, edges, coefficients, cells, order, coding,
                    x, words, p, end,
                )  # fmt: skip
                lasts[(row << 2) + at - column] = last
                busiest = max(busiest, active)
    for plane in range(1, planes):
        kind = luma + plane
        own = neighbours(edges.activity_above, edges.activity_left, plane * edges.width + column, plane << 2)
        high = int(order.high[kind]) + busiest * 10 + (own + 1 >> 1)
        last, busiest, x, p = coded_block(
            kind, side, high, plane, column, 0, edges, coefficients, cells, order, coding, x, words, p, end
        )
        lasts[15 + plane] = last
    return pattern, x, p


def begin(payload: Any, first: int, length: int) -> tuple[int, int]:
    """The state that a payload of `length` >= 1 bytes at `first` starts with, and the number of bytes that hold it."""
    head = length if length <= 4 else 4 - (length & 1)
    x = 0
    for i in range(head):
        x |= int(payload[first + i]) << (i << 3)
    return x, head


def forget(edges: Any, first: int, count: int) -> None:
    """Mark what was at the left as not decoded, and `count` cells above from `first` on in each plane."""
    planes = len(edges.dc_left) >> 2
    for i in range(len(edges.dc_left)):
        edges.dc_left[i] = NO_DC
        edges.activity_left[i] = NONE
    for plane in range(planes):
        for i in range(first, first + count):
            edges.dc_above[plane * edges.width + i] = NO_DC
            edges.activity_above[plane * edges.width + i] = NONE
    edges.flags[edges.columns] = 0


def row(
    kept: Any, first: int, planes: int, edges: Any, coefficients: Any, patterns: Any, lasts: Any, cells: Any,
    order: Any, coding: Any, x: int, words: Any, p: int, end: int,
) -> tuple[int, int]:  # fmt: skip
    """Decode a row of units, of which `kept` from `first` on says which are there: (x, p)."""
    forget(edges, 0, 0)
    count = order.unit >> 2
    for place in range(edges.columns):
        if kept[first + place]:
            part = coefficients[place * planes * 256 : (place + 1) * planes * 256]
            patterns[place], x, p = unit(
                place, planes, edges, part, lasts[place * 18 : place * 18 + 18], cells, order, coding, x, words, p, end
            )
        else:
            forget(edges, place * count, count)
            edges.flags[place] = 0
    return x, p


FUNCTIONS = (symbol, raw, escape, block, predict, neighbours, activity, coded_block, unit, begin, forget, row)
