"""The entropy decoder, one sample at a time: plain functions of integers and flat sequences.

This is the reference, and the only text of it: `engine.py` compiles these very functions for the CPU and the GPU (of
`either` and `unsigned` it has its own for the CPU). So they use nothing but integers and indexing, and every function
stands before the one that calls it.

A sample's payload is one rANS stream. State x is 32 bits, words are 16 bits, probabilities 12 bits:

    symbol   slot = x mod 4096 says which symbol it is; x becomes frequency * (x // 4096) + place of the slot
    raw      n bits are x mod 2^n; x becomes x // 2^n
    refill   after each of these, x < 65536 takes in one word, as long as there are words

The encoder starts at x = 1, so a decoder that is right ends there, with no word left. Whatever the bytes are, nothing
is read or written outside the given buffers and every loop has a fixed end: a word is only taken while there is one,
`last` is below the size of the block, a coefficient counts at most CAP in the sums, so all have a bin, and all that is
looked up in the tables was checked when the file was opened.

What decoding takes is the chain from one symbol of a stream to the next, and more so how many operations a processor
keeps waiting for it: so a context is looked up while the symbol before it is decoded, and what follows a symbol stands
in a table.
"""

from __future__ import annotations

from typing import Any

from dqcodec.codec.dct.contexts import CAP, LAST_BIN
from dqcodec.codec.dct.edges import NEAR
from dqcodec.codec.dct.tables import (
    ESCAPE,
    NEXT,
    PAIRS,
    PLACES,
    POINTS,
    ROWS,
    SHIFT,
    SIDES,
    STATE,
    SUM_BIN,
)

NONE = -1  # activity of a cell that was not decoded
NO_DC = -(2**31)  # DC of a cell that was not decoded
MAX_DC = 1 << 20  # of a DC integer's absolute value
RIM = 45  # sqrt(2) in 32nds, about: at a block's rim a coefficient of the first row or column counts so much against DC


def either(condition: bool, a: int, b: int) -> int:
    """a if the condition holds, else b. Compiled for the CPU it is never a jump, which nothing could predict."""
    return a if condition else b


def unsigned(i: int) -> int:
    """An index, of which the compiler is told that it is not negative."""
    return i & 0xFFFFFFFF


def refill(x: int, words: Any, p: int, end: int) -> tuple[int, int]:
    """Take in a word if x needs one and one is left: (x, p)."""
    need = x < (65536 if p < end else 0)
    return either(need, x << 16 | int(words[unsigned(p)]), x), (p + 1 if need else p)


def symbol(first: int, alias: Any, x: int, words: Any, p: int, end: int) -> tuple[int, int, int]:
    """Decode one symbol, of the distribution whose entries of `alias` begin at `first`: (symbol, x, p)."""
    rest, bucket = x & 127, (x >> 7) & 31
    entry = int(alias[unsigned(first + bucket)])
    own = rest < entry & 255
    # Other masks, as a compiler would make of equal ones a choice between the distances, and the shift wait for that.
    frequency = either(own, (entry >> 32) & 0x1FFF, (entry >> 16) & 0xFFFF)
    place = either(own, rest, rest + (entry >> 48))
    s = either(own, bucket, (entry >> 8) & 255)
    x, p = refill(frequency * (x >> 12) + place, words, p, end)
    return s, x, p


def raw(count: int, x: int, words: Any, p: int, end: int) -> tuple[int, int, int]:
    """Decode `count` <= 16 raw bits: (value, x, p)."""
    value = x & ((1 << count) - 1)
    x, p = refill(x >> count, words, p, end)
    return value, x, p


def escape(code: int, x: int, words: Any, p: int, end: int) -> tuple[int, int, int]:
    """Decode the rest of an escape class, 0..5 (others count as 5): (signed level, x, p).

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
    return (-magnitude if value & 1 else magnitude), x, p


def border(values: Any, first: int, count: int) -> int:
    """What the cells next to a block, `count` of them, say of its rim: their sum, NO_DC if they were not decoded."""
    if values[first] == NO_DC:
        return NO_DC
    total = int(values[first])
    if count > 1:
        total += int(values[first + 1])
    if count > 2:
        total += int(values[first + 2]) + int(values[first + 3])
    return total


def rims(origin: int, size: int, scratch: Any) -> tuple[int, int, int, int]:
    """Sums of a block's coefficients at its upper, left, lower and right rim: of the first column (upper and lower) and
    row, without DC, up to frequency 7, for the lower and the right rim those of odd frequency negative."""
    odd, even = int(scratch[origin + 16]) + int(scratch[origin + 48]), int(scratch[origin + 32])
    odd_row, even_row = int(scratch[origin + 1]) + int(scratch[origin + 3]), int(scratch[origin + 2])
    if size > 4:
        odd += int(scratch[origin + 80]) + int(scratch[origin + 112])
        even += int(scratch[origin + 64]) + int(scratch[origin + 96])
        odd_row += int(scratch[origin + 5]) + int(scratch[origin + 7])
        even_row += int(scratch[origin + 4]) + int(scratch[origin + 6])
    return even + odd, even_row + odd_row, even - odd, even_row - odd_row


def predict(above: int, left: int, top: int, side: int) -> tuple[int, int]:
    """What a block's DC integer should be so that its rim goes on from its neighbours': (that, place of its bin).

    above, left  what `border` says, 64ths of a step
    top, side    its own sums for its upper and left rim, as `rims` says
    The bin of DC is that of the difference between the two neighbours' opinions, and LAST_BIN where there is only one.
    """
    up, beside = above - (RIM * top >> 5), left - (RIM * side >> 5)
    if above == NO_DC or left == NO_DC:
        one = up if left == NO_DC else beside
        return (0 if above == left else (one + 32) >> 6), LAST_BIN
    return (up + beside + 64) >> 7, min(abs(up - beside) >> 6, LAST_BIN - 1)


def settle(dc: int, bottom: int, right: int, a: int, b: int, count: int, edges: Any) -> None:
    """Remember a block's DC integer with the sums of its lower and right rim, for the blocks below (from a) and right
    of it (from b)."""
    scale = 4 // count
    below, beside = (16 * dc + (RIM * bottom >> 7)) * scale, (16 * dc + (RIM * right >> 7)) * scale
    for i in range(count):
        edges.dc_above[a + i], edges.dc_left[b + i] = below, beside


def coefficient(
    pair: int, at: int, state: int, scratch: Any, coding: Any, x: int, words: Any, p: int, end: int
) -> tuple[int, int, int, int]:
    """Decode one coefficient, its value to `at`: (magnitude, at most CAP, state, x, p).

    pair   the entry of PAIRS of its contexts
    state  see tables.STATE; what it holds in other bits does not matter
    """
    table = coding.table
    s, x, p = symbol((pair >> (state & SHIFT)) & 0xFFFF, coding.alias, x, words, p, end)
    if s < ESCAPE:
        word = int(table[unsigned(NEXT + (state & STATE) + s)])
        scratch[unsigned(at)] = table[unsigned(POINTS + (state & STATE) + s)]
        return word >> 8, word, x, p
    level, x, p = escape(s - ESCAPE, x, words, p, end)
    magnitude = abs(level)
    value = 64 * ((magnitude << coding.dependent) - (state >> 4 & 1)) + coding.far
    scratch[unsigned(at)] = value if level > 0 else -value
    return min(magnitude, CAP), int(table[unsigned(NEXT + (state & STATE) + (magnitude & 1))]), x, p


def entry_of(k: int, sum_place: int, first: int, table: Any) -> int:
    """The entry of PAIRS for scan index k, counted over all sizes, and a place in SUM_BIN, of pairs from `first` on."""
    row, column = int(table[unsigned(ROWS + k)]), int(table[unsigned(SUM_BIN + sum_place)])
    return int(table[unsigned(PAIRS + first + row + column)])


def look_up(k: int, first: int, near: Any, table: Any) -> tuple[int, int]:
    """(place, entry of PAIRS) of scan index k, counted over all sizes, once those that it depends on are decoded: the
    neighbour sum 2 (a(u, v + 1) + a(u + 1, v)) + a(u, v + 2) + a(u + 1, v + 1) + a(u + 2, v), at most 105, a being
    magnitudes of at most CAP."""
    place = int(table[unsigned(PLACES + k)])
    total = int(near[unsigned(place + 1)]) + int(near[unsigned(place + 16)]) + int(near[unsigned(place + (NEAR + 32))])
    return place, entry_of(k, total, first, table)


def remember(magnitude: int, place: int, near: Any) -> None:
    """Note a coefficient's magnitude for those that depend on it."""
    near[unsigned(place)] = 2 * magnitude + int(near[unsigned(place + (NEAR + 1))])
    near[unsigned(place + NEAR)] = magnitude


def block(
    start: int, first: int, last: int, origin: int, a: int, b: int, count: int, edges: Any,
    scratch: Any, coding: Any, x: int, words: Any, p: int, end: int,
) -> tuple[int, int]:  # fmt: skip
    """Decode the coefficients of a block from scan index `last` to DC: (x, p).

    Values, 64ths of a step, go to `scratch` at `origin` + their place in the unit. The context of a coefficient is its
    position class, the sum of five neighbours of higher frequency, and the quantiser that its state has; DC, which
    comes last, is predicted, and its bin is what `predict` says. first: the block set's first context pair; a, b: the
    block's first cell in edges.dc_above and dc_left, count: how many cells each.
    """
    table, near = coding.table, edges.near
    state = 0
    if last:  # the first one coded has a bin of its own
        k = start + last
        place = int(table[unsigned(PLACES + k)])
        pair = entry_of(k, LAST_BIN, first, table)
        magnitude, state, x, p = coefficient(pair, origin + place, 0, scratch, coding, x, words, p, end)
        remember(magnitude, place, near)
        k -= 1
        place, pair = look_up(k, first, near, table)
        while k > start:
            k -= 1
            after = look_up(k, first, near, table)  # does not depend on the one that is decoded now; of DC not used
            magnitude, state, x, p = coefficient(pair, origin + place, state, scratch, coding, x, words, p, end)
            remember(magnitude, place, near)
            place, pair = after
        for i in range(count << 6):
            near[i] = near[i + NEAR] = 0
    top, side, bottom, right = rims(origin, count << 2, scratch)
    expected, sum_place = predict(border(edges.dc_above, a, count), border(edges.dc_left, b, count), top, side)
    pair = entry_of(start, sum_place, first, table)
    _, _, x, p = coefficient(pair, origin, state, scratch, coding, x, words, p, end)
    dc = expected + ((int(scratch[unsigned(origin)]) + 32) >> 6)  # without the offset
    dc = min(max(dc, -MAX_DC), MAX_DC)
    scratch[unsigned(origin)] = dc * 64
    settle(dc, bottom, right, a, b, count, edges)
    return x, p


def neighbours(above: Any, left: Any, a: int, b: int) -> int:
    """Context from the activities above and at the left: their sum up to 16, one counted twice where the other is
    missing, 17 where both are."""
    up, side = int(above[unsigned(a)]), int(left[unsigned(b)])
    known = either(up < 0, side, up) + either(side < 0, up, side)
    return either(known < 0, 17, min(16, known))


def activity(last: int, size: int) -> int:
    """0 for DC alone, else the bit length, 1..8, of `last` in a block scaled to 16 x 16."""
    scaled = last * 256 // (size * size)
    bits = 0
    for i in range(8):  # no loop whose end depends on it: nothing could predict that
        bits += scaled >> i > 0
    return bits


def coded_block(
    kind: int, size: int, high: int, plane: int, column: int, row: int, place: int, first: int, edges: Any,
    scratch: Any, order: Any, coding: Any, x: int, words: Any, p: int, end: int,
) -> tuple[int, int, int, int]:  # fmt: skip
    """Decode a block of block set `kind` at cell (row, column) of the unit at `place`: (last, activity, x, p).

    `high` is the side context of the high part of `last`.
    """
    table, alias = coding.table, coding.alias
    low_bits = 0 if size == 4 else (2 if size == 8 else 4)
    last, x, p = symbol(int(table[unsigned(SIDES + high)]), alias, x, words, p, end)
    last &= 15
    if low_bits:
        low, x, p = symbol(int(table[unsigned(SIDES + int(order.low[kind]) + last)]), alias, x, words, p, end)
        last = last << low_bits | low & (1 << low_bits) - 1
    start = 0 if size == 4 else (16 if size == 8 else 80)
    origin = first + (plane << 8) + (row << 6) + (column << 2)
    count = size >> 2
    a, b = plane * edges.width + place * (order.unit >> 2) + column, (plane << 2) + row
    x, p = block(start, int(order.pair[kind]), last, origin, a, b, count, edges, scratch, coding, x, words, p, end)
    active = activity(last, size)
    for i in range(count):
        edges.activity_above[a + i] = edges.activity_left[b + i] = active
    return last, active, x, p


def unit(
    place: int, first: int, planes: int, edges: Any, scratch: Any, lasts: Any,
    order: Any, coding: Any, x: int, words: Any, p: int, end: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Decode the unit at `place` in its row: (pattern, x, p).

    scratch  int32, from `first` on (planes, 256): 64ths of a step in rows of 16, 0 before
    lasts    int32 (18,)   `last` of the luma block that starts at each 4 x 4 cell, then of the chroma blocks
    pattern  bit i set: quadrant i is four 4 x 4 blocks, else one of 8 x 8; -1: one block of the unit's size
    """
    table, alias = coding.table, coding.alias
    above, left = edges.activity_above, edges.activity_left
    side = order.unit
    column = place * (side >> 2)
    pattern = -1
    if side == 16:
        flags = edges.flags
        context = SIDES + order.flag + int(flags[place]) + int(flags[edges.columns])
        whole, x, p = symbol(int(table[context]), alias, x, words, p, end)
        flags[place] = flags[edges.columns] = 1 if whole else 0
        if not whole:
            pattern, x, p = symbol(int(table[SIDES + order.pattern]), alias, x, words, p, end)
    elif side == 8:
        pattern, x, p = symbol(int(table[SIDES + order.pattern]), alias, x, words, p, end)
        pattern &= 1
    busiest = 0
    luma = side >> 3  # block set of a whole unit
    if pattern < 0:
        high = int(order.high[luma]) + neighbours(above, left, column, 0)
        lasts[0], busiest, x, p = coded_block(
            luma, side, high, 0, 0, 0, place, first, edges, scratch, order, coding, x, words, p, end
        )
    else:
        for quadrant in range(4 if side == 16 else 1):
            small = pattern >> quadrant & 1
            for i in range(4 if small else 1):
                row = (quadrant >> 1 << 1) + (i >> 1)
                at = ((quadrant & 1) << 1) + (i & 1)
                kind = 0 if small else 1
                high = int(order.high[kind]) + neighbours(above, left, column + at, row)
                lasts[(row << 2) + at], active, x, p = coded_block(
                    kind, 4 if small else 8, high, 0, at, row, place, first, edges, scratch, order, coding,
                    x, words, p, end,
                )  # fmt: skip
                busiest = max(busiest, active)
    for plane in range(1, planes):
        kind = luma + plane
        own = neighbours(above, left, plane * edges.width + column, plane << 2)
        high = int(order.high[kind]) + busiest * 10 + (own + 1 >> 1)
        lasts[15 + plane], busiest, x, p = coded_block(
            kind, side, high, plane, 0, 0, place, first, edges, scratch, order, coding, x, words, p, end
        )
    return pattern, x, p


def begin(payload: Any, first: int, length: int) -> tuple[int, int]:
    """The state that a payload of `length` >= 1 bytes at `first` starts with, and the number of bytes that hold it."""
    head = length if length <= 4 else 4 - (length & 1)
    x = 0
    for i in range(head):
        x |= int(payload[first + i]) << (i << 3)
    return x, head


def forget(edges: Any, first: int, count: int) -> None:
    """Mark what is at the left as not decoded, and in each plane `count` cells above from `first` on."""
    planes = len(edges.dc_left) >> 2
    for i in range(len(edges.dc_left)):
        edges.dc_left[i] = NO_DC
        edges.activity_left[i] = NONE
    for plane in range(planes):
        for i in range(first, first + count):
            edges.dc_above[plane * edges.width + i] = NO_DC
            edges.activity_above[plane * edges.width + i] = NONE
    edges.flags[edges.columns] = 0


def next_unit(
    there: int, place: int, first: int, planes: int, edges: Any, scratch: Any, lasts: Any,
    order: Any, coding: Any, x: int, words: Any, p: int, end: int,
) -> tuple[int, int, int]:  # fmt: skip
    """Go on to `place` of a row, which begins with 0, and decode the unit if it is there: as `unit`."""
    if place == 0:
        forget(edges, 0, 0)
    if there:
        return unit(place, first, planes, edges, scratch, lasts, order, coding, x, words, p, end)
    count = order.unit >> 2
    forget(edges, place * count, count)
    edges.flags[place] = 0
    return -1, x, p


FUNCTIONS = (
    either, unsigned, refill, symbol, raw, escape, border, rims, predict, settle, coefficient, entry_of, look_up,
    remember, block, neighbours, activity, coded_block, unit, begin, forget, next_unit,
)  # fmt: skip
