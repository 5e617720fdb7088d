"""How many samples and which: counts by class and bin that add up exactly, a uniform draw from each bin (DQ Eq. 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def split(total: int, weights: Array, limits: Array, owed: Array | None = None) -> Array:
    """Divide `total` in proportion to `weights` by the largest remainder.

    weights   float64 (n,), >= 0, not all zero
    limits    int64 (n,), capacities with sum >= total; what exceeds one is handed on
    owed      float64 (n,), added to the remainders: what earlier divisions gave too little, so that over many of
              them rounding favours nobody
    returns   int64 (n,), sums to `total`; of equal remainders the lower index gets one more
    """
    counts = np.zeros(len(weights), np.int64)
    while (rest := total - int(counts.sum())) > 0:
        open_ = np.where(counts < limits, weights, 0.0)
        if not open_.any():  # only zero-weight places are left
            open_ = (counts < limits).astype(np.float64)
        quota = rest * open_ / open_.sum()
        whole = np.floor(quota)
        remainder = quota - whole
        remainder = np.where(remainder > 0, remainder + (0 if owed is None else owed), -np.inf)
        more = np.argsort(-remainder, kind="stable")[: rest - int(whole.sum())]
        whole[more] += 1
        counts = np.minimum(counts + whole.astype(np.int64), limits)
    return counts


def keep_count(samples: int, keep: float) -> int:
    """round(keep * samples), at least one."""
    return max(1, round(keep * samples))


def draw(members: Array, count: int, bits: np.random.PCG64) -> Array:
    """`count` of `members`, uniformly, sorted. Raw generator bits, because only they are the same in every numpy."""
    keys = np.asarray(bits.random_raw(len(members)))
    return np.sort(members[np.argsort(keys, kind="stable")[:count]])
