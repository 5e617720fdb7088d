"""The encoder's search: which levels and which partition cost least, J = distortion + lam * bits (compiled by numba).

Coefficients are in steps, distortion in steps squared. Bits are those of the static tables, so what is chosen depends
on nothing but the sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from dqcodec.codec.dct.contexts import UNITS, contexts, scan

RING = 72  # bytes of a survivor's last 64 magnitudes, one that is always 0, and padding
OUTSIDE = 64
FAR = np.float32(1e30)


def _neighbours() -> np.ndarray:
    """int16 (336, 5): ring places of the five neighbours of each scan index, OUTSIDE where there is none."""
    rows = []
    for size in UNITS:
        places = scan(size).tolist()
        index = {(u, v): k for k, (u, v) in enumerate(places)}
        for u, v in places:
            near = [(u, v + 1), (u + 1, v), (u + 1, v + 1), (u, v + 2), (u + 2, v)]
            rows.append([index[n] & 63 if n in index else OUTSIDE for n in near])
    return np.array(rows, np.int16)


class Work(NamedTuple):
    """Scratch of one search, made by `work`."""

    ring: Any  # int8 (8 * RING,): survivors' magnitudes before and after a step
    wide: Any  # the same memory as int64
    cost: Any  # float32 (8,)
    levels: Any  # int32 (4 * 256,): magnitude by scan index and next state
    origin: Any  # int8 (4 * 256,): the state before, -1 where coding starts
    near: Any  # int16 (336 * 5,)


def work() -> Work:
    ring = np.zeros(8 * RING, np.int8)
    return Work(
        ring, ring.view(np.int64), np.zeros(8, np.float32), np.zeros(1024, np.int32), np.zeros(1024, np.int8),
        _neighbours().ravel(),
    )  # fmt: skip


@njit(nogil=True, cache=True, error_model="numpy")
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


@njit(nogil=True, cache=True, error_model="numpy")
def quantise(x, start, size2, pair, high, low, low_bits, costs, order, offset, dependent, lam, found, scratch):
    """The levels of a block with least cost: (cost, last).

    x        float32 (>= size2,)   coefficients by scan index, DC without its prediction
    costs    float32 (contexts * 16,)  bits of each symbol (sign and raw bits not counted)
    found    int32 (>= size2,)     signed levels 0..last are written here
    """
    near, ring, wide = scratch.near, scratch.ring, scratch.wide
    cost, levels, origin = scratch.cost, scratch.levels, scratch.origin
    position, sum_bin = order.position, order.sum_bin
    top = 0
    tail = np.float32(0)
    for k in range(size2 - 1, 0, -1):
        a = abs(x[k])
        if a > 0.9:
            top = k
            break
        tail += a * a
    states = 4 if dependent else 1
    for s in range(states):
        cost[s] = FAR
    side = 2 * order.pairs
    for k in range(top, -1, -1):
        a = abs(x[k])
        square = a * a
        word = position[start + k]
        base = (pair + (word >> 18)) * 2
        for s in range(4, 4 + states):
            cost[s] = FAR
        tiny = k > 0 and a < np.float32(0.3)
        n = (start + k) * 5
        n0, n1, n2, n3, n4 = near[n], near[n + 1], near[n + 2], near[n + 3], near[n + 4]
        for s in range(states):
            j = cost[s]
            if j >= FAR:
                continue
            r = s * RING
            total = ((ring[r + n0] + ring[r + n1]) << 1) + ring[r + n2] + ring[r + n3] + ring[r + n4]
            q = s >> 1
            context = (base + (sum_bin[total] << 1) + q) << 4
            h = int((a + q) * np.float32(0.5)) if dependent else int(a)
            lowest = h if h >= 2 else 0
            highest = 0 if tiny else h + 1
            for m in range(lowest, highest + 1):
                if m == 0:
                    bits = costs[context]
                    distance = square
                else:
                    code, extra = magnitude_bits(m)
                    bits = costs[context + code] + extra
                    point = (m << dependent) - q
                    d = a - np.float32(point)
                    if k > 0:
                        d -= offset[min(point, 3) - 1]
                    distance = d * d
                value = j + distance + lam * bits
                if dependent:
                    if s == 0:
                        to = (m & 1) << 1
                    elif s == 1:
                        to = 2 - ((m & 1) << 1)
                    elif s == 2:
                        to = 1 + ((m & 1) << 1)
                    else:
                        to = 3 - ((m & 1) << 1)
                else:
                    to = 0
                if value < cost[4 + to]:
                    cost[4 + to] = value
                    levels[(to << 8) + k] = m
                    origin[(to << 8) + k] = s
        if not tiny:
            part = k >> low_bits
            bits = costs[(side + high) * 16 + part]
            if low_bits:
                bits += costs[(side + low + part) * 16 + (k & ((1 << low_bits) - 1))]
            j = tail + lam * bits
            context = (base + 24) << 4
            h = int(a * np.float32(0.5)) if dependent else int(a)
            for m in range(h if h or k == 0 else 1, h + 2):
                code, extra = magnitude_bits(m)
                point = m << dependent
                d = a - np.float32(point)
                if k > 0:
                    d -= offset[min(point, 3) - 1]
                value = j + d * d + lam * (costs[context + code] + extra)
                to = (m & 1) << 1 if dependent else 0
                if value < cost[4 + to]:
                    cost[4 + to] = value
                    levels[(to << 8) + k] = m
                    origin[(to << 8) + k] = -1
        tail += square
        if k == 0:
            break
        # Survivors' magnitudes follow them.
        slot = k & 63
        for s in range(states):
            if cost[4 + s] >= FAR:
                cost[s] = FAR
                continue
            before = origin[(s << 8) + k]
            target = (4 + s) * (RING // 8)
            if before < 0:
                for i in range(8):
                    wide[target + i] = 0
            else:
                source = before * (RING // 8)
                for i in range(8):
                    wide[target + i] = wide[source + i]
            ring[(4 + s) * RING + slot] = min(levels[(s << 8) + k], 15)
        for s in range(states):
            cost[s] = cost[4 + s]
            if cost[s] < FAR:
                for i in range(8):
                    wide[s * (RING // 8) + i] = wide[(4 + s) * (RING // 8) + i]
    s = 0
    for i in range(1, states):
        if cost[4 + i] < cost[4 + s]:
            s = i
    best = cost[4 + s]
    k = 0
    while True:
        m = levels[(s << 8) + k]
        found[k] = m if x[k] >= 0 else -m
        before = origin[(s << 8) + k]
        if before < 0:
            break
        s = before
        k += 1
    return best, k
