"""The greedy of `selection/bins.py` on a torch device: many classes at once, the same picks and gains.

A device with fast memory needs neither a Gram matrix nor short lists: one pick of every class is one batched product
with the picked rows. All sums are integers that float64 holds, so no order of adding changes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dqcodec.selection.bins import Greedy, by_sample, same_for_all

Array = npt.NDArray[Any]

BATCH_BYTES = 2 << 30  # of features that are on the device together, unless one class alone has more


def greedy_bins_of(classes: Iterable[Array], sizes: list[Array], device: str) -> Iterator[Greedy]:
    """`greedy_bins` of each class.

    classes  float64 (M, D), integer values from `Integers`
    sizes    of its bins, int64 (bins,)
    """
    batch: list[Array] = []
    done = 0
    for x in classes:
        rows = max(len(x), *(len(other) for other in batch)) if batch else len(x)
        if batch and (len(batch) + 1) * rows * x.shape[1] * 8 > BATCH_BYTES:
            yield from _greedy(batch, sizes[done : done + len(batch)], device)
            done += len(batch)
            batch = []
        batch.append(x)
    yield from _greedy(batch, sizes[done:], device)


def _greedy(classes: list[Array], sizes: list[Array], device: str) -> Iterator[Greedy]:
    """Classes side by side, the shorter ones padded with rows that are never picked; step t is pick t of each."""
    counts = [len(rows) for rows in classes]
    steps = max(counts)
    x = torch.zeros(len(classes), steps, classes[0].shape[1], dtype=torch.float64, device=device)
    value = torch.full((len(classes), steps), -torch.inf, dtype=torch.float64, device=device)
    for c, rows in enumerate(classes):
        x[c, : counts[c]] = torch.from_numpy(rows)
        value[c, : counts[c]] = 0
    norm = (x * x).sum(2)
    rest = x.sum(1)  # s_R
    every = torch.arange(len(classes), device=device)
    picks = torch.zeros(steps, len(classes), dtype=torch.int64, device=device)
    gains = torch.zeros(steps, len(classes), dtype=torch.float64, device=device)
    begins = _begins(sizes)
    for t in range(steps):
        for c in begins.get(t, ()):
            value[c] = torch.where(value[c].isinf(), value[c], 2 * (x[c] @ rest[c]) - (counts[c] - t) * norm[c])
        best = value.argmax(1)  # the first of equal ones
        picks[t], gains[t] = best, value[every, best]
        picked = x[every, best]
        value += 2 * norm - 4 * torch.bmm(x, picked[:, :, None])[:, :, 0]
        value[every, best] = -torch.inf
        rest -= picked
    found, grown, norms = picks.cpu().numpy(), gains.cpu().numpy(), norm.cpu().numpy()
    for c, count in enumerate(counts):
        yield _result(found[:count, c], grown[:count, c], norms[c, :count], sizes[c])


def _begins(sizes: list[Array]) -> dict[int, list[int]]:
    """By step: the classes of which a bin begins there."""
    begins: dict[int, list[int]] = {}
    for c, own in enumerate(sizes):
        for t in (np.cumsum(own) - own)[own > 0].tolist():
            begins.setdefault(t, []).append(c)
    return begins


def _result(order: Array, gain: Array, norm: Array, sizes: Array) -> Greedy:
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        picked = norm[order[start:end]]
        gain[start:end] += same_for_all(norm[order[start:]].sum(), picked)
    return by_sample(order, gain, sizes)
