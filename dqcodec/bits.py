"""Bit widths by sample: more for those whose input gradient suffers more from quantization (ADQ-bits).

The distance D_i(b) of sample i, between the gradients of the loss at the image and at the image coded with b bits, is
measured at a width below and one above the mean, and between them a step is taken to divide it by the same number; then
the widths are chosen for which the sum of D_i(b_i) is least among those of the same mean (`allocate`), or of the same
coded bytes (`allocate_bytes`). To measure the mean width as well would take 1.3 times as long, for sums that are lower
by 0.01 to 0.04 of that of equal widths. One measured width does not do: a bit divides the distance by 1.45 at 5 bits
and by 1.75 at 2 on CIFAR-10, differently for each sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec.quantize import MAX_BITS
from dqcodec.container.spec import LEAST_BITS
from dqcodec.errors import OptionError

Array = npt.NDArray[Any]

MODES = ("fixed", "auto", "rank")
PRICE_STEPS = 100  # of the bisection, over 23 decimal powers
# Bits less and more than the mean that a sample may have. With a target size `auto` keeps dct to half a bit: at equal
# bytes 13/16 of a bit or a whole one make networks worse that are trained on them (benchmarks/bits.py). pixel has whole
# bits only.
REACH = 1.0
REACH_BY_BYTES = {"dct": 0.5, "pixel": 1.0}
RANK_SHARE = 0.25  # of the samples, one bit up, and as many one down


@dataclass(frozen=True)
class Bits:
    """`--bits`: "6" is the width of all samples, "auto:6" and "rank:6" have 6 as their mean. Without a number (mean
    None) the transform's default is meant, or what a target size leaves."""

    mode: str
    mean: float | None

    def __str__(self) -> str:
        number = "" if self.mean is None else f"{self.mean:g}"
        return number if self.mode == "fixed" and number else f"{self.mode}:{number}".rstrip(":")


def parse(text: object) -> Bits:
    """OptionError where it is none of "6", "auto:6", "rank:6" with 1 to 8 bits, "fixed", "auto", "rank"."""
    if isinstance(text, str) and text in MODES:
        return Bits(text, None)
    known = isinstance(text, str | float) or (isinstance(text, int) and abs(text) < 1000)
    mode, colon, number = (str(text) if known else "").rpartition(":")
    try:
        found = Bits(mode if colon else "fixed", float(number))
    except ValueError:
        found = Bits("", None)
    wrong, low = found.mode not in MODES or (colon and mode == "fixed"), min(LEAST_BITS.values())
    if wrong or found.mean is None or not low <= found.mean <= MAX_BITS:
        what = repr(text) if known else f"a {type(text).__name__}"
        raise OptionError(f"bits: {what}; allowed: {low} to {MAX_BITS} bits, as in 6, auto:6, rank:6, auto")
    return found


def with_middle(ends: Array) -> Array:
    """Values at three widths, equally far apart, from those at the outer two: the middle is their geometric mean.

        ends     (N, 2)  distances, or sizes, of N samples at the smaller and at the larger width
        returns  float64 (N, 3)

    So both steps divide by the same number, which is each sample's own; what falls is convex.
    """
    low, high = np.asarray(ends, np.float64).T
    return np.stack([low, np.sqrt(low * high), high], 1)


def allocate(distance: Array, total: int) -> Array:
    """Widths for which the sum of the distances is least.

        distance  float (N, K)  at K widths, equally far apart, falling and convex
        total     what the steps above the lowest width add up to, 0 to N (K - 1)
        returns   int64 (N,)    steps above the lowest width, 0 to K - 1

    A step more is worth what the distance falls by, and worth less the more a sample has, so the `total` most valuable
    steps are taken; of equally valuable ones those of the lower index.
    """
    n, steps = distance.shape[0], distance.shape[1] - 1
    if not 0 <= total <= n * steps:
        raise ValueError(f"{n} samples cannot take {total} steps of {steps} each")
    value = -np.diff(distance, axis=1)
    chosen = np.argsort(-value.ravel(), kind="stable")[:total]
    return np.bincount(chosen // max(steps, 1), minlength=n)


def allocate_bytes(distance: Array, size: Array, budget: float) -> Array:
    """Choices for which the sum of the distances is least among those of at most as many bytes (Lagrange).

        distance  float (N, K)  of N samples coded in K ways
        size      (N, K)        bytes of each
        budget    bytes that all together may have
        returns   int64 (N,)    0 to K - 1; the smallest ways where even they exceed the budget

    For a price l of a byte every sample takes the way with the least distance + l * size. The least price whose choices
    fit is found by bisection; of the samples that would choose otherwise at a price just under it, the first ones may,
    as far as the budget goes.
    """
    distance, size = np.asarray(distance, np.float64), np.asarray(size, np.float64)
    place = np.arange(len(size))

    def choose(price: float) -> Array:
        found: Array = (distance + price * size).argmin(1)
        return found

    def total(chosen: Array) -> float:
        return float(size[place, chosen].sum())

    smallest = np.lexsort((distance, size), axis=1)[:, 0]
    best = np.lexsort((size, distance), axis=1)[:, 0]
    if total(best) <= budget:
        return best
    if total(smallest) > budget:
        return smallest
    spread = max(float(np.ptp(distance)), np.finfo(float).tiny)
    low, high = spread * 1e-20, spread * 1e3  # a byte for nothing; above any price, as sizes differ by whole bytes
    for _ in range(PRICE_STEPS):
        price = (low * high) ** 0.5
        if total(choose(price)) > budget:
            low = price
        else:
            high = price
    chosen, more = choose(high), choose(low)
    extra = size[place, more] - size[place, chosen]
    fits = (np.cumsum(extra) <= budget - total(chosen)) & (more != chosen)
    chosen[fits] = more[fits]
    return chosen


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
