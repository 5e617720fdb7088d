"""Bins by the submodular gain (DQ Eq. 1, 4 and Algorithm 1), exactly, through its closed form.

With the current bin S (k samples), the pool R of unpicked ones (r samples, the candidate among them), s_S and s_R the
sums of their features, and all that is the same for every candidate dropped:

    P(x) = (k - r) |x|^2 - 2 (s_S - s_R) . x

A pick p moves one sample from R to S, so for the others the factor (k - r) grows by 2 and (s_S - s_R) . x by 2 p . x:
one row of the Gram matrix a pick. Features are integers (see `to_integers`), so every sum is exact in float64 and the
picks are the same on every machine; of equal gains the lowest index is picked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OptionError

Array = npt.NDArray[Any]

_EXACT = 2.0**52
_GRAM = 8192  # up to this many samples the Gram matrix is kept (512 MiB); above, its rows are computed as needed


@dataclass(frozen=True)
class Greedy:
    """
    order   int64 (M,)    sample indices in the order they were picked
    bin     int64 (M,)    the bin of each sample (not of each pick)
    gain    float64 (M,)  P(x) of each sample when it was picked, in units of the integer features
    """

    order: Array
    bin: Array
    gain: Array


def to_integers(features: Array, pool: int) -> Array:
    """Features as integers in float64: q = round(f / max|f| (2^b - 1)).

        features  float (N, D), finite
        pool      samples of the largest class
        returns   float64 (N, D), integer values; b <= 15 is the largest for which 3 pool D (2^b - 1)^2 < 2^52, a bound
                  on every sum that the greedy forms

    Raises OptionError where a feature is not finite.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise OptionError(f"features: shape {features.shape}; expected (samples, dimensions)")
    finite = np.isfinite(features).all(1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise OptionError(f"features: row {row} is not finite ({int((~finite).sum())} rows in all)")
    bits = 15
    while bits > 1 and 3 * max(pool, 1) * features.shape[1] * (2.0**bits - 1) ** 2 >= _EXACT:
        bits -= 1
    top = float(np.abs(features).max(initial=0.0))
    scaled = features.astype(np.float64) / (top or 1.0)
    integers: Array = np.rint(scaled * (2**bits - 1))
    return integers


def bin_sizes(samples: int, bins: int) -> Array:
    """int64 (bins,): sizes that add up to `samples`, all within one, the larger first."""
    return samples // bins + (np.arange(bins) < samples % bins).astype(np.int64)


def greedy_bins(x: Array, bins: int) -> Greedy:
    """Divide one class into bins.

    x   float64 (M, D), integer values from `to_integers`
    """
    m = len(x)
    order, bin_of, gain = np.empty(m, np.int64), np.empty(m, np.int64), np.empty(m)
    gram = x @ x.T if m <= _GRAM else None
    norm = np.einsum("ij,ij->i", x, x)
    free = np.ones(m, bool)
    done = 0
    for n, size in enumerate(bin_sizes(m, bins)):
        factor = -float(m - done)  # k - r with S empty
        cross = -(x @ x[free].sum(0))  # (s_S - s_R) . x
        for _ in range(size):
            value = np.where(free, factor * norm - 2 * cross, -np.inf)
            p = int(value.argmax())
            order[done], bin_of[p], gain[p] = p, n, value[p]
            free[p] = False
            factor += 2
            cross += 2 * (x @ x[p] if gram is None else gram[p])
            done += 1
    return Greedy(order, bin_of, gain)
