"""Bit widths by sample: more for those whose input gradient suffers more from quantization (ADQ-bits).

The distance D_i(b) of sample i, between the gradients of the loss at the image and at the image coded with b bits, is
measured at the mean width and at one bit less and more; then the widths are chosen for which the sum of D_i(b_i) is
least among those of the same mean. (One measured width and a model in which a bit halves the distance do not do: on
CIFAR-10 a bit divides it by 1.5 at 5 bits and by 1.9 at 2, and halving gives widths whose sum at 3 bits is larger than
that of equal ones.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec.quantize import MAX_BITS, MIN_BITS
from dqcodec.errors import OptionError

Array = npt.NDArray[Any]

MODES = ("fixed", "auto", "rank")
RANK_SHARE = 0.25  # of the samples, one bit up, and as many one down


@dataclass(frozen=True)
class Bits:
    """`--bits`: "6" is the width of all samples, "auto:6" and "rank:6" have 6 as their mean."""

    mode: str
    mean: float

    def __str__(self) -> str:
        return f"{self.mean:g}" if self.mode == "fixed" else f"{self.mode}:{self.mean:g}"


def parse(text: str | float) -> Bits:
    """OptionError where it is none of "6", "auto:6", "rank:6" with 2 to 8 bits."""
    mode, colon, number = str(text).rpartition(":")
    try:
        found = Bits(mode if colon else "fixed", float(number))
    except ValueError:
        found = Bits("", np.nan)
    if found.mode not in MODES or (colon and mode == "fixed") or not MIN_BITS <= found.mean <= MAX_BITS:
        raise OptionError(f"bits: {text!r}; allowed: {MIN_BITS} to {MAX_BITS} bits, as in 6, auto:6, rank:6")
    return found


def convex(measured: Array) -> Array:
    """The largest falling and convex curves that lie nowhere above the measured ones.

        measured  float (N, K)  distances of N samples at K widths, one bit apart
        returns   float64 (N, K)

    On the average distances are such; those of a single sample need not be, and then a bit more may be worth nothing
    without another one, so that the best allocation could not be found bit by bit.
    """
    low = np.minimum.accumulate(np.asarray(measured, np.float64), 1)
    hull = low.copy()
    for k in range(low.shape[1]):
        for i in range(k):
            for j in range(k + 1, low.shape[1]):
                line = low[:, i] + (low[:, j] - low[:, i]) * ((k - i) / (j - i))
                hull[:, k] = np.minimum(hull[:, k], line)
    return hull


def allocate(distance: Array, total: int) -> Array:
    """Widths for which the sum of the distances is least.

        distance  float (N, K)  at K widths, one bit apart, falling and convex: see `convex`
        total     what the bits above the lowest width add up to, 0 to N (K - 1)
        returns   int64 (N,)    bits above the lowest width, 0 to K - 1

    A bit more is worth what the distance falls by, and worth less the more a sample has, so the `total` most valuable
    bits are taken; of equally valuable ones those of the lower index.
    """
    n, bits = distance.shape[0], distance.shape[1] - 1
    if not 0 <= total <= n * bits:
        raise ValueError(f"{n} samples cannot take {total} bits of {bits} each")
    value = -np.diff(distance, axis=1)
    chosen = np.argsort(-value.ravel(), kind="stable")[:total]
    return np.bincount(chosen // max(bits, 1), minlength=n)


def rank(distance: Array, share: float = RANK_SHARE) -> Array:
    """The plain form: int64 (N,), 2 for the share of the samples with the largest distances, 0 for as many with the
    smallest, 1 for the others. Of equal distances the lower index counts as larger.

    distance  float (N,)
    """
    count = int(share * len(distance))
    order = np.argsort(-np.asarray(distance, np.float64), kind="stable")
    found = np.ones(len(distance), np.int64)
    found[order[:count]] += 1
    found[order[len(order) - count :]] -= 1
    return found
