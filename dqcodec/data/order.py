"""The order of an epoch: pure functions of numbers, the same on every machine, for any number of processes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def permutation(samples: int, seed: int, epoch: int) -> Array:
    """int64 (samples,): 0..samples-1 shuffled, another order for each (seed, epoch); both below 2^64.

    Sample i goes where SplitMix64's i-th number ranks among all (Steele et al. 2014), so the order needs no generator
    whose stream could change with a version.
    """
    key = _mix(np.array([seed], np.uint64))
    key = _mix(key + np.array([epoch], np.uint64) * _GOLDEN)
    numbers = _mix(key + np.arange(1, samples + 1, dtype=np.uint64) * _GOLDEN)
    order: Array = np.argsort(numbers)  # no two are equal: the mixing is one to one, and its inputs differ
    return order.astype(np.int64, copy=False)


def share(order: Array, position: int, batch_size: int, rank: int, world_size: int, drop_last: bool) -> list[Array]:
    """The batches of one rank that are left of an epoch when all ranks together have taken `position` samples.

    Each step takes the next batch_size * world_size samples of the order, rank r every world_size-th of them from the
    r-th on. So what has been taken is always the order's beginning, and any number of ranks can go on from there. All
    ranks get equally many batches of equal sizes: the end is filled up with samples from the order's beginning, as
    torch's DistributedSampler does, or left away with drop_last, and then only whole batches are given.
    """
    left = order[position:]
    if drop_last:
        step = batch_size * world_size
        left = left[: len(left) // step * step]
    elif len(left):
        left = np.concatenate([left, np.resize(order, -len(left) % world_size)])
    mine = left[rank::world_size]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


def _mix(x: Array) -> Array:
    """SplitMix64's finalizer; uint64, modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
