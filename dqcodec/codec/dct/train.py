"""Static tables from counts: which contexts share a distribution, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec.dct.contexts import BINS, Contexts
from dqcodec.codec.dct.tables import LARGEST, SYMBOLS, TOTAL, Tables
from dqcodec.codec.dct.transform import angles

Array = npt.NDArray[Any]

COEFFICIENT_TABLES, SIDE_TABLES = 52, 20  # distributions of a file


def costs(tables: Tables, order: Contexts) -> Array:
    """float32 (contexts * 16,): bits of every symbol of every context, a sign or escape bit not counted."""
    count = 2 * order.pairs
    f = tables.coefficient.astype(float)
    f[:, 1 : LARGEST + 1] *= 2
    coefficient = -np.log2(f / TOTAL)[tables.context[:count]]
    side = -np.log2(tables.side / TOTAL)[tables.context[count:]]
    return np.concatenate([coefficient, side]).astype(np.float32).ravel()


def cluster(counts: Array, k: int, rounds: int = 25) -> Array:
    """Which of k groups each row of counts (n, 16) belongs to, so that coding takes few bits; -1 for rows of zeros.

    k-means with the cost n(context, symbol) * -log2 P_group(symbol), from groups of equal count by mean symbol.
    """
    total = counts.sum(1)
    seen = np.flatnonzero(total)
    if not len(seen):
        return np.where(np.arange(len(counts)) == 0, 0, -1)
    c = counts[seen].astype(float)
    mean = (c * np.arange(SYMBOLS)).sum(1) / total[seen]
    by = np.argsort(mean, kind="stable")
    share = np.cumsum(total[seen][by])
    k = min(k, len(seen))
    group = np.zeros(len(seen), np.int64)
    group[by] = np.minimum((share - 1) * k // share[-1], k - 1)
    for _ in range(rounds):
        sums = np.zeros((k, SYMBOLS))
        np.add.at(sums, group, c)
        empty = np.flatnonzero(sums.sum(1) == 0)
        p = sums + 0.02
        bits = -np.log2(p / p.sum(1, keepdims=True))
        cost = c @ bits.T
        if len(empty):
            own = (c + 0.02) / (c + 0.02).sum(1, keepdims=True)
            loss = cost[np.arange(len(seen)), group] + (c * np.log2(own)).sum(1)
            worst = np.argsort(-loss, kind="stable")[: len(empty)]
            q = c[worst] + 0.02
            bits[empty] = -np.log2(q / q.sum(1, keepdims=True))
            cost = c @ bits.T
        group = cost.argmin(1)
    result = np.full(len(counts), -1)
    result[seen] = group
    return result


def frequencies(sums: Array, signed: bool) -> Array:
    """uint16 (K, 16) as Tables holds them, from counts (K, 16)."""
    out = []
    for row in sums:
        weight = np.ones(SYMBOLS, np.int64)
        if signed:
            weight[1 : LARGEST + 1] = 2
        row = row + 0.02
        left = TOTAL - weight.sum()
        f = 1 + np.floor(row / weight / row.sum() * left).astype(np.int64)
        rest = TOTAL - (f * weight).sum()
        # What is left goes to the most frequent symbols that it fits.
        while rest:
            gain = np.where(weight <= rest, row / weight / f, -1)
            best = int(gain.argmax())
            f[best] += 1
            rest -= weight[best]
        out.append(f)
    return np.array(out, np.uint16)


def make(counts: Array, order: Contexts, rotation: Array, offset: Sequence[int], dependent: bool) -> Tables:
    """Tables from counts (contexts, 16)."""
    border = 2 * order.pairs
    parts = [(counts[:border], COEFFICIENT_TABLES, 2 * BINS), (counts[border:], SIDE_TABLES, 1)]
    context, frequency = [], []
    for part, groups, step in parts:
        group = cluster(part, groups)
        sums = np.zeros((group.max() + 1, SYMBOLS))
        np.add.at(sums, group[group >= 0], part[group >= 0])
        context.append(lend(group, step).astype(np.uint8))
        frequency.append(frequencies(sums, signed=step > 1))
    return Tables(
        order.unit, np.concatenate(context), frequency[0], frequency[1], rotation, np.array(offset, np.int8), dependent
    )


def lend(group: Array, step: int) -> Array:
    """Contexts that were never seen (-1) take the group of the nearest one seen a multiple of `step` away, or 0."""
    group = group.copy()
    seen = group >= 0
    for start in range(step):
        column, known = group[start::step], np.flatnonzero(seen[start::step])
        if len(known):
            places = np.arange(len(column))
            right = np.clip(np.searchsorted(known, places), 0, len(known) - 1)
            left = np.maximum(right - 1, 0)
            nearer = np.where(np.abs(known[left] - places) <= np.abs(known[right] - places), left, right)
            group[start::step] = column[known[nearer]]
    return np.maximum(group, 0)


def rotations(moments: Array, k: int) -> Array:
    """uint8 (at most k, 3): angles of rotations for images whose pixel differences have the moments (n, 3, 3)."""
    trace = np.trace(moments, axis1=1, axis2=2)
    moments = moments[trace > 0]  # images of one colour have none
    if not len(moments):
        return np.zeros((1, 3), np.uint8)
    m = moments / trace[trace > 0][:, None, None]
    rng = np.random.default_rng(0)
    k = min(k, len(m))
    centre = best_rotation(m[rng.choice(len(m), k, replace=False)])
    for _ in range(12):
        group = nearest(moments, centre)
        for g in range(k):
            if (group == g).any():
                centre[g] = best_rotation(m[group == g].sum(0)[None])[0]
    turn = np.array([angles(u) for u in centre])
    return np.unique(np.round(turn * 256).astype(np.int64) % 256, axis=0).astype(np.uint8)


def best_rotation(m: Array) -> Array:
    """float64 (n, 3, 3): eigenvectors of m (n, 3, 3) as rows, largest first, with fixed signs and determinant 1."""
    _, v = np.linalg.eigh(m)
    u = np.swapaxes(v, 1, 2)[:, ::-1].copy()
    u[u[:, 0].sum(1) < 0, 0] *= -1
    flip = np.take_along_axis(u[:, 1], np.abs(u[:, 1]).argmax(1)[:, None], 1)[:, 0] < 0
    u[flip, 1] *= -1
    u[np.linalg.det(u) < 0, 2] *= -1
    return u


def nearest(moments: Array, rotation: Array) -> Array:
    """int64 (n,): the rotation (R, 3, 3) with the least sum of ln(8 + variance) for each moment matrix (n, 3, 3)."""
    squares = rotation[:, :, :, None] * rotation[:, :, None, :]  # of each axis, so that variances are inner products
    variance = moments.reshape(-1, 9) @ squares.reshape(-1, 9).T
    index: Array = np.log(8 + variance).reshape(-1, len(rotation), 3).sum(2).argmin(1)
    return index
