"""The encoder's search: the levels of a block that cost least, J = distortion + lam * bits (compiled by numba).

Coefficients are in steps, distortion in steps squared. Bits are those of the static tables and, for the time that a
coefficient takes to decode, DECODING; so what is chosen depends on nothing but the sample.

A path remembers three diagonals of magnitudes (at most 15, four bits each, by row frequency u): that of the current
coefficient and the two after it, which is as far as the neighbour sums look. And, as what DC is expected to be depends
on it, its rim: in 64ths the sum of the coefficients of the first column (stream.rims) in the upper 32 bits, that of the
first row in the lower ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dqcodec.codec.dct.contexts import BINS, LOW_BITS, SUM_BIN, UNITS, Contexts, position_class, scan
from dqcodec.codec.dct.engine import DECODER, jit

Array = npt.NDArray[Any]

# No function that is compiled by these makes an array: so none counts references, which would take longer than a small
# block's search.
compiled = jit(_nrt=False)
compiled_fast = jit(_nrt=False, fastmath=True)

predict = DECODER["predict"]

FAR = np.float32(1e30)
HALF = np.float32(0.5)
# Dependent quantiser: coefficients up to NO_START start no block, under ONLY_ZERO they are set to 0 untried.
NO_START, ONLY_ZERO = np.float32(0.9), np.float32(0.3)
# The same for the plain quantiser, whose step is larger.
PLAIN_NO_START, PLAIN_ONLY_ZERO = np.float32(0.6), np.float32(0.5)
RAW_BITS = np.array([0] + [1] * 9 + [2, 3, 4, 5, 6, 11])  # of a coefficient symbol, sign included; of the last at least
# Bits that each coefficient counts for beyond its own, as it takes time to decode: 1/15 fewer are coded, for 1/200 more
# bytes at the same squared error.
DECODING = 0.25

# uint64 constants: numba makes float64 of uint64 with any other integer.
U0, U1, U2, U3, U4, U7, U8, U15, U16, U32, U63 = (np.uint64(n) for n in (0, 1, 2, 3, 4, 7, 8, 15, 16, 32, 63))
# Of a word in STEPS: first of its diagonal; what stream.rims adds up, of the first column, of odd frequency.
FIRST, RIM, COLUMN, ODD = (np.uint64(1 << n) for n in (6, 7, 8, 9))
CLASS = np.uint64(10)  # where the class begins
LAST_BIN = np.uint64(2 * (BINS - 1))
START = U4  # origin of a level where coding starts
DOUBLE_BIN = (2 * SUM_BIN).astype(np.uint8)


def _steps() -> Array:
    """uint32 (336,) by size (4, 8, 16) and scan index: 4 u (6 bits), FIRST, RIM, COLUMN, ODD, class * 26 (from 10)."""
    words = []
    for size in UNITS:
        places = scan(size).tolist()
        for k, (u, v) in enumerate(places):
            first = k == 0 or sum(places[k - 1]) != u + v
            flags = first << 6 | (0 in (u, v) and u + v < 8) << 7 | (v == 0) << 8 | ((u + v) % 2) << 9
            words.append(4 * u | flags | 2 * BINS * position_class(size, k, u, v) << 10)
    return np.array(words, np.uint32)


STEPS = _steps()


class Prices(NamedTuple):
    """What the search weighs, made by `prices`.

    row     uint16 (contexts,)    row of each context in `price`
    price   float32 (rows * 16,)  lam * bits of each symbol, sign, raw bits and DECODING included
    low     float32 (S * 256,)    lam * bits of the low part of `last`, by block set and `last`
    offset  float32 (4,)          of reconstruction points 0, 1, 2, 3 and more, in steps
    fine    int64 (4,)            the same in 64ths of a step
    lam     float32
    """

    row: Any
    price: Any
    low: Any
    offset: Any
    fine: Any
    lam: Any


def prices(costs: Array, offset: Array, order: Contexts) -> Prices:
    """Prices at lam = 1 from bits of every context (contexts * 16,), sign and raw bits not counted, and offsets (3,) in
    steps."""
    bits = costs.reshape(-1, 16).astype(np.float64)
    bits[: 2 * order.pairs] += RAW_BITS + DECODING
    rows, row = np.unique(bits.astype(np.float32), axis=0, return_inverse=True)
    low = np.zeros((len(order.low), 256), np.float32)
    sizes = [*(size for size in UNITS if size <= order.unit), order.unit, order.unit]
    for kind, size in enumerate(sizes):
        n = LOW_BITS[size]
        last = np.arange(256)
        if n:
            context = 2 * order.pairs + order.low[kind] + np.minimum(last >> n, 15)
            low[kind] = bits[context, last & ((1 << n) - 1)]
    points = np.append(0, offset).astype(np.float32)
    fine = np.rint(64 * points).astype(np.int64)
    return Prices(row.ravel().astype(np.uint16), rows.ravel(), low.ravel(), points, fine, np.float32(1))


def at_lagrange(one: Prices, lam: float) -> Prices:
    """Those at lam = 1 at another."""
    factor = np.float32(lam)
    return one._replace(price=one.price * factor, low=one.low * factor, lam=factor)


@compiled
def magnitude_bits(m):
    """(class symbol, raw bits with the sign) of magnitude m."""
    if m < 10:
        return m, 0 if m == 0 else 1
    if m < 12:
        return 10, 2
    if m < 16:
        return 11, 3
    if m < 24:
        return 12, 4
    if m < 40:
        return 13, 5
    if m < 72:
        return 14, 6
    n = 0
    while n < 10 and m >= 72 + 64 * ((2 << n) - 1):
        n += 1
    return 15, 11 + n


@compiled
def large(m, lam):
    """(class symbol uint64, price of the raw bits that its own does not hold) of magnitude m."""
    code, raw = magnitude_bits(m)
    return np.uint64(code), lam * np.float32(max(raw - 11, 0))


@compiled
def neighbour_bin(near, far, shift):
    """Twice the bin of the neighbour sum at 4 u = shift, from the next diagonal and the one after it."""
    n, f = near >> shift, far >> shift
    total = ((n & U15) + (n >> U4 & U15)) * U2 + (f & U15) + (f >> U4 & U15) + (f >> U8 & U15)
    return np.uint64(DOUBLE_BIN[total])


@compiled
def mask(condition):
    """uint64: all ones if true, else 0."""
    return U0 - np.uint64(condition)


@compiled
def choose(a, b, m):
    """a where mask m is set, else b."""
    return b ^ ((a ^ b) & m)


@compiled
def candidates(cost, price, r, zero, even, even_error, even_word, odd, odd_error):
    """What a path may go on with: (cost with the better of 0 and the even magnitude, its word, cost with the odd one).

    r is the row of prices, even and odd are symbols, zero is the squared error of 0.
    """
    none = cost + (price[r] + zero)
    some = cost + (price[r + even] + even_error)
    return min(none, some), even_word & mask(some < none), cost + (price[r + odd] + odd_error)


@compiled
def cheaper(cost, near, far, now, rim, word, cost2, near2, far2, now2, rim2, word2):
    """Of two paths to a state the one of less cost: that, its diagonals, its rim, its word for the trail; no branch."""
    m = mask(cost2 < cost)
    near, far, now = choose(near2, near, m), choose(far2, far, m), choose(now2, now, m)
    return min(cost, cost2), near, far, now, choose(rim2, rim, m), choose(word2, word, m)


@compiled
def distance(a, point, offset):
    """Squared error of |coefficient| a at reconstruction point `point` >= 0 (int32)."""
    d = a - np.float32(point) - offset[np.uint64(min(point, np.int32(3)))]
    return d * d


@compiled
def value(m, quantiser, doubled, negative, fine):
    """Reconstructed coefficient, int64 in 64ths of a step, of magnitude m; see Prices.fine."""
    r = max((np.int64(m) << doubled) - quantiser, 0)
    v = 64 * r + fine[np.uint64(min(r, 3))]
    return -v if negative else v


@compiled
def at_rim(v, step):
    """What coefficient v of the first row or column adds to a path's rim."""
    return np.uint64(v) << (U32 if step & COLUMN else U0)


@compiled
def expected(rim, above, left):
    """What `predict` says after a path with this rim."""
    side = np.int64(np.int32(np.int64(rim)))
    return predict(above, left, (np.int64(rim) - side) >> 32, side)


@compiled
def choose_dc(cost, dc, rim, above, left, first, quantiser, doubled, row, price, lam):
    """The level of DC with least cost after a path: (cost, level, DC integer, place of its bin)."""
    guess, place = expected(rim, above, left)
    a = abs(dc - np.float32(guess))
    r = np.uint64(row[first + np.uint64(DOUBLE_BIN[np.uint64(place)]) + np.uint64(quantiser)]) << U4
    h = (np.int64(min(a, np.float32(1 << 20))) + quantiser) >> doubled
    best, level = FAR, np.int64(0)
    for m in range(0 if h == 1 else h, h + 2):
        code, more = np.uint64(m), np.float32(0)
        if m > 9:
            code, more = large(m, lam)
        d = a - np.float32(max((m << doubled) - quantiser, 0))
        j = cost + (d * d + price[r + code] + more)
        if j < best:
            best, level = j, m
    point = max((level << doubled) - quantiser, 0)
    if dc < np.float32(guess):
        level, point = -level, -point
    return best, level, guess + point, place


@compiled
def first_start(x, at, size2, limit):
    """Scan index (uint64) of the last coefficient beyond limit, 0 if none is."""
    end = at + size2
    while end > at + U16:  # 16 at a time, which the compiler makes one test of
        beyond = np.int32(0)
        for i in range(U16):
            beyond |= np.int32(abs(x[end - U16 + i]) > limit)
        if beyond:
            break
        end -= U16
    k = end - at - U1
    while k > U0 and abs(x[at + k]) <= limit:
        k -= U1
    return k


@compiled_fast
def energy(x, first, end):
    """Sum of squares of x[first:end]."""
    total = np.float32(0)
    for i in range(first, end):
        total += x[i] * x[i]
    return total


@compiled_fast
def quantise_dependent(x, at, start, size2, kind, pair, high, low_bits, above, left, p, levels, trail):
    """The levels of a block with least cost for the dependent quantiser: (cost, last, DC integer, place of its bin, and
    the sums of the lower and of the right rim).

    x       float32   coefficients by scan index from `at` on
    pair    first context pair, high: context of the high part of `last` (all integers uint64)
    above, left  int64   what the neighbours say of the rim, see stream.border
    levels  int32     signed levels 0..last are written here from `at` on
    trail   uint64 (4 * 256,)   scratch: by scan index and state reached, magnitude * 8 + the state before
    """
    row, price, offset, lam = p.row, p.price, p.offset, p.lam
    k = first_start(x, at, size2, NO_START)
    tail = energy(x, at + k + U1, at + size2)
    first_high = np.uint64(row[high]) << U4
    low = kind << U8
    c0 = c1 = c2 = c3 = FAR  # costs of the best path to each state
    now0 = now1 = now2 = now3 = U0
    near0 = near1 = near2 = near3 = U0
    far0 = far1 = far2 = far3 = U0
    rim0 = rim1 = rim2 = rim3 = U0
    while k > U0:
        a = abs(x[at + k])
        square = a * a
        step = np.uint64(STEPS[start + k])
        shift = step & U63
        base = (pair << U1) + (step >> CLASS)
        r0 = np.uint64(row[base + neighbour_bin(near0, far0, shift)]) << U4
        r1 = np.uint64(row[base + neighbour_bin(near1, far1, shift)]) << U4
        r2 = np.uint64(row[base + neighbour_bin(near2, far2, shift) + U1]) << U4
        r3 = np.uint64(row[base + neighbour_bin(near3, far3, shift) + U1]) << U4
        t = k << U2
        if a < ONLY_ZERO:
            c0 += square + price[r0]
            c1, c2 = c2 + (square + price[r2]), c1 + (square + price[r1])
            c3 += square + price[r3]
            now1, now2 = now2, now1
            near1, near2 = near2, near1
            far1, far2 = far2, far1
            rim1, rim2 = rim2, rim1
            trail[t], trail[t + U1], trail[t + U2], trail[t + U3] = U0, U2, U1, U3
        else:
            # Of each quantiser (points 2 m and 2 m - 1) the two magnitudes about a, one even, one odd; and 0 below 2.
            h0, h1 = np.int32(a * HALF), np.int32(a * HALF + HALF)
            even0, odd0 = (h0 + np.int32(1)) & np.int32(-2), h0 | np.int32(1)
            even1, odd1 = (h1 + np.int32(1)) & np.int32(-2), h1 | np.int32(1)
            de0 = distance(a, even0 << np.int32(1), offset)
            do0 = distance(a, odd0 << np.int32(1), offset)
            de1 = distance(a, max((even1 << np.int32(1)) - np.int32(1), np.int32(0)), offset)
            do1 = distance(a, (odd1 << np.int32(1)) - np.int32(1), offset)
            se0, so0, se1, so1 = np.uint64(even0), np.uint64(odd0), np.uint64(even1), np.uint64(odd1)
            me0, mo0, me1, mo1 = se0 << U3, so0 << U3, se1 << U3, so1 << U3
            if h0 > np.int32(7):
                se0, more = large(even0, lam)
                de0 += more
                so0, more = large(odd0, lam)
                do0 += more
                se1, more = large(even1, lam)
                de1 += more
                so1, more = large(odd1, lam)
                do1 += more
            z0 = square if h0 < np.int32(2) else FAR
            z1 = square if h1 < np.int32(2) else FAR
            e0, m0, o0 = candidates(c0, price, r0, z0, se0, de0, me0, so0, do0)
            e1, m1, o1 = candidates(c1, price, r1, z0, se0, de0, me0, so0, do0)
            e2, m2, o2 = candidates(c2, price, r2, z1, se1, de1, me1, so1, do1)
            e3, m3, o3 = candidates(c3, price, r3, z1, se1, de1, me1, so1, do1)
            # Best path to each state: 0 and 1 lead to 0 and 2, 2 and 3 to 1 and 3.
            c0, n0, f0, w0, g0, b0 = cheaper(e0, near0, far0, now0, rim0, m0, o1, near1, far1, now1, rim1, mo0 | U1)
            c1, n1, f1, w1, g1, b1 = cheaper(
                e2, near2, far2, now2, rim2, m2 | U2, o3, near3, far3, now3, rim3, mo1 | U3
            )
            c2, n2, f2, w2, g2, b2 = cheaper(e1, near1, far1, now1, rim1, m1 | U1, o0, near0, far0, now0, rim0, mo0)
            c3, n3, f3, w3, g3, b3 = cheaper(
                e3, near3, far3, now3, rim3, m3 | U3, o2, near2, far2, now2, rim2, mo1 | U2
            )
            if tail < max(c0, c2):  # paths that start here
                rs = np.uint64(row[base + LAST_BIN]) << U4
                j = tail + price[first_high + (k >> low_bits)] + p.low[low + k]
                es = FAR if even0 == np.int32(0) else j + (price[rs + se0] + de0)
                os = j + (price[rs + so0] + do0)
                c0, n0, f0, w0, g0, b0 = cheaper(c0, n0, f0, w0, g0, b0, es, U0, U0, U0, U0, me0 | START)
                c2, n2, f2, w2, g2, b2 = cheaper(c2, n2, f2, w2, g2, b2, os, U0, U0, U0, U0, mo0 | START)
            near0, near1, near2, near3 = n0, n1, n2, n3
            far0, far1, far2, far3 = f0, f1, f2, f3
            now0 = w0 | min(b0 >> U3, U15) << shift
            now1 = w1 | min(b1 >> U3, U15) << shift
            now2 = w2 | min(b2 >> U3, U15) << shift
            now3 = w3 | min(b3 >> U3, U15) << shift
            trail[t], trail[t + U1], trail[t + U2], trail[t + U3] = b0, b1, b2, b3
            rim0, rim1, rim2, rim3 = g0, g1, g2, g3
            if step & RIM:
                negative = x[at + k] < 0
                rim0 += at_rim(value(b0 >> U3, np.int64(b0 >> U1) & 1, 1, negative, p.fine), step)
                rim1 += at_rim(value(b1 >> U3, np.int64(b1 >> U1) & 1, 1, negative, p.fine), step)
                rim2 += at_rim(value(b2 >> U3, np.int64(b2 >> U1) & 1, 1, negative, p.fine), step)
                rim3 += at_rim(value(b3 >> U3, np.int64(b3 >> U1) & 1, 1, negative, p.fine), step)
        tail += square
        if step & FIRST:
            far0, far1, far2, far3 = near0, near1, near2, near3
            near0, near1, near2, near3 = now0, now1, now2, now3
            now0 = now1 = now2 = now3 = U0
        k -= U1
    # DC, after each of the paths, or alone.
    first = pair << U1
    none = tail + price[first_high] + p.low[low]
    best, level, dc, place = choose_dc(none, x[at], U0, above, left, first, 0, 1, row, price, lam)
    state = START
    for s in range(4):
        cost, rim = (c0, rim0) if s == 0 else ((c1, rim1) if s == 1 else ((c2, rim2) if s == 2 else (c3, rim3)))
        if cost < best:
            cost, other, integer, bin_place = choose_dc(
                cost, x[at], rim, above, left, first, s >> 1, 1, row, price, lam
            )
            if cost < best:
                best, level, dc, place, state = cost, other, integer, bin_place, np.uint64(s)
    levels[at] = level
    bottom = right = np.int64(0)
    while state != START:
        k += U1
        word = trail[(k << U2) + state]
        state = word & U7
        m = np.int32(word >> U3)
        levels[at + k] = m if x[at + k] >= 0 else -m
        step = np.uint64(STEPS[start + k])
        if step & RIM:
            v = value(m, np.int64(state >> U1) & 1, 1, (x[at + k] < 0) != (step & ODD > U0), p.fine)
            if step & COLUMN:
                bottom += v
            else:
                right += v
    return best, k, dc, place, bottom, right


@compiled_fast
def quantise_plain(x, at, start, size2, kind, pair, high, low_bits, above, left, p, levels):
    """`quantise_dependent` for the plain quantiser: one path, the best so far."""
    row, price, offset, lam = p.row, p.price, p.offset, p.lam
    k = first_start(x, at, size2, PLAIN_NO_START)
    tail = energy(x, at + k + U1, at + size2)
    first_high = np.uint64(row[high]) << U4
    low = kind << U8
    cost = FAR
    last = k
    now = near = far = rim = U0
    while k > U0:
        a = abs(x[at + k])
        square = a * a
        step = np.uint64(STEPS[start + k])
        shift = step & U63
        base = (pair << U1) + (step >> CLASS)
        r = np.uint64(row[base + neighbour_bin(near, far, shift)]) << U4
        best = cost + (square + price[r])
        m = np.int32(0)
        if a >= PLAIN_ONLY_ZERO:
            h = np.int32(a)
            lower, upper = np.uint64(h), np.uint64(h + np.int32(1))
            d0 = distance(a, h, offset)
            d1 = distance(a, h + np.int32(1), offset)
            if h > np.int32(8):
                lower, more = large(h, lam)
                d0 += more
                upper, more = large(h + np.int32(1), lam)
                d1 += more
            j = cost + (price[r + lower] + d0)
            if j < best:
                best, m = j, h
            j = cost + (price[r + upper] + d1)
            if j < best:
                best, m = j, h + np.int32(1)
            if tail < best:  # a path that starts here
                rs = np.uint64(row[base + LAST_BIN]) << U4
                begin = tail + price[first_high + (k >> low_bits)] + p.low[low + k]
                j0 = begin + (price[rs + lower] + d0) if h > np.int32(0) else FAR
                j1 = begin + (price[rs + upper] + d1)
                if min(j0, j1) < best:
                    best, m, last = min(j0, j1), h + np.int32(j1 < j0), k
                    now = near = far = rim = U0
            now |= np.uint64(min(m, np.int32(15))) << shift
            if step & RIM:
                rim += at_rim(value(m, 0, 0, x[at + k] < 0, p.fine), step)
        cost = best
        levels[at + k] = m if x[at + k] >= 0 else -m
        tail += square
        if step & FIRST:
            now, near, far = U0, now, near
        k -= U1
    first = pair << U1
    none = tail + price[first_high] + p.low[low]
    best, level, dc, place = choose_dc(none, x[at], U0, above, left, first, 0, 0, row, price, lam)
    if cost < best:
        cost, other, integer, bin_place = choose_dc(cost, x[at], rim, above, left, first, 0, 0, row, price, lam)
        if cost < best:
            best, level, dc, place, k = cost, other, integer, bin_place, last
    levels[at] = level
    bottom = right = np.int64(0)
    for i in range(U1, k + U1):
        step = np.uint64(STEPS[start + i])
        if step & RIM:
            m = np.int64(levels[at + i])
            v = value(abs(m), 0, 0, (m < 0) != (step & ODD > U0), p.fine)
            if step & COLUMN:
                bottom += v
            else:
                right += v
    return best, k, dc, place, bottom, right
