"""Bins by the submodular gain (DQ Eq. 1, 4 and Algorithm 1), exactly, through its closed form.

With the current bin S (k samples), the pool R of unpicked ones (r samples, the candidate among them), s_S and s_R the
sums of their features, and apart from what is the same for every candidate (the sum of |p|^2 over S less that over R):

    P(x) = (k - r) |x|^2 - 2 (s_S - s_R) . x

A pick p moves one sample from R to S, so P(x) of the others grows by

    2 |x|^2 - 4 p . x

Features are integers (see `Integers`), so every sum is exact in float64 and the picks are the same on every machine; of
equal gains the lowest index is picked. Up to 4,096 samples the growth is a row of a matrix made from the Gram matrix;
a larger pool is reduced bin by bin without ever forming one (see `_large_bin`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OptionError

Array = npt.NDArray[Any]

_EXACT = 2.0**52
_GRAM = 4096  # up to this many samples the Gram matrix is formed (128 MiB)
_ROWS = 16_384  # rows looked at together where only a maximum is wanted
_SHORT = 1024  # length of the short list


@dataclass(frozen=True)
class Greedy:
    """
    order   int64 (M,)    sample indices in the order they were picked
    bin     int64 (M,)    the bin of each sample (not of each pick)
    gain    float64 (M,)  Eq. 1 for each sample when it was picked, exactly, in units of the integer features
    """

    order: Array
    bin: Array
    gain: Array


@dataclass(frozen=True)
class Integers:
    """Features as integers: q = round(f / top * (2^bits - 1)), top = max|f| over the whole set."""

    top: float
    bits: int

    def __call__(self, features: Array) -> Array:
        """float64 of the same shape, integer values."""
        scaled = features.astype(np.float64) / (self.top or 1.0)
        scaled *= 2**self.bits - 1
        return np.rint(scaled, out=scaled)


def integers(features: Array, pool: int) -> Integers:
    """How to make integers of features.

        features  float (N, D), finite
        pool      samples of the largest class

    bits <= 15 is the largest for which 3 pool D (2^bits - 1)^2 < 2^52, a bound on every sum that the greedy forms.
    Raises OptionError where the shape is wrong or a feature is not finite.
    """
    if features.ndim != 2 or features.shape[1] == 0:
        raise OptionError(f"features: shape {features.shape}; expected (samples, dimensions)")
    if features.dtype.kind not in "fiu":
        raise OptionError(f"features: {features.dtype}; expected real numbers")
    top = 0.0
    for start in range(0, len(features), _ROWS):
        block = features[start : start + _ROWS]
        if block.dtype not in (np.float32, np.float64):  # others overflow, or hold what float64 does not
            with np.errstate(over="ignore"):
                block = block.astype(np.float64)
        largest = np.maximum(-block.min(1), block.max(1)).astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(largest))
        if bad.size:
            raise OptionError(f"features: row {start + int(bad[0])} is not finite")
        top = max(top, float(largest.max()))
    bits = 15
    while bits > 1 and 3 * max(pool, 1) * features.shape[1] * (2.0**bits - 1) ** 2 >= _EXACT:
        bits -= 1
    return Integers(top, bits)


def bin_sizes(samples: int, bins: int) -> Array:
    """int64 (bins,): sizes that add up to `samples`, all within one, the larger first."""
    return samples // bins + (np.arange(bins) < samples % bins).astype(np.int64)


def greedy_bins(x: Array, bins: int) -> Greedy:
    """Divide one class into bins.

    x   float64 (M, D), integer values from `Integers`
    """
    sizes = bin_sizes(len(x), bins).tolist()
    left = np.arange(len(x))
    order, gain = [], []
    done = 0
    while len(left) > _GRAM and done < bins:
        picks, gains = _large_bin(x[left], sizes[done])
        order.append(left[picks])
        gain.append(gains)
        left = np.delete(left, picks)
        done += 1
    picks, gains = _small_bins(x[left], sizes[done:])
    whole = np.concatenate([*order, left[picks]])
    bin_of, gain_of = np.empty(len(x), np.int64), np.empty(len(x))
    bin_of[whole] = np.repeat(np.arange(bins), sizes)
    gain_of[whole] = np.concatenate([*gain, gains])
    return Greedy(whole, bin_of, gain_of)


def _start(x: Array, norm: Array, free: Array) -> Array:
    """P(x) of every sample with an empty bin and the pool `free` (bool)."""
    value: Array = 2 * (x @ (free.astype(np.float64) @ x)) - float(free.sum()) * norm
    return value


def _small_bins(x: Array, sizes: list[int]) -> tuple[Array, Array]:
    """All bins of a pool through the matrix of growths; picks and their gains."""
    count = sum(sizes)
    picks, gains = np.empty(count, np.int64), np.empty(count)
    growth = x @ x.T
    norm = growth.diagonal().copy()
    growth *= -4
    growth += 2 * norm
    free = np.ones(len(x), bool)
    done = 0
    for size in sizes:
        value = np.where(free, _start(x, norm, free), -np.inf)
        ours = slice(done, done + size)
        for k in range(done, done + size):
            p = int(value.argmax())
            picks[k], gains[k] = p, value[p]
            value += growth[p]
            value[p] = -np.inf
        gains[ours] += _same_for_all(norm[free].sum(), norm[picks[ours]])
        free[picks[ours]] = False
        done += size
    return picks, gains


def _same_for_all(pool: float, picked: Array) -> Array:
    """The sum of |p|^2 over S less that over R before each pick, from that over the pool at the start of the bin."""
    before = np.cumsum(picked) - picked
    return 2 * before - pool


def _large_bin(x: Array, size: int) -> tuple[Array, Array]:
    """One bin of a pool too large for its Gram matrix; picks and their gains.

    In blocks. At the start of a block P(x) is exact for all; then picks are made from a short list only, each at the
    cost of one product with the list. After t picks p_1..p_t of the block with the sum t m + R, m any fixed vector,

        P(x) = P_0(x) + t (2 |x|^2 - 4 m . x) - 4 R . x  <=  P_0(x) + t g(x) + 4 |R| |x|,      g(x) = 2 |x|^2 - 4 m . x

    which bounds all samples outside the list. The block goes on as long as the best of the list is above that bound;
    then one product brings P(x) of all up to date. With m the mean of the last block's picks, R stays short.
    Distances do not change when all samples move, so the mean is taken off first, which makes |x| small.
    """
    shift = np.rint(x.mean(0))
    centred = x - shift
    if 3 * len(x) * float(np.einsum("ij,ij->i", centred, centred).max()) < _EXACT:  # else the sums might be inexact
        x = centred
    norm = np.einsum("ij,ij->i", x, x)
    length = np.sqrt(norm)
    value = _start(x, norm, np.ones(len(x), bool))
    picks: list[int] = []
    gains: list[float] = []
    mean, expected = np.zeros(x.shape[1]), 1
    while len(picks) < size:
        slope = 2 * norm - 4 * (x @ mean)
        block, block_gains, total = _block(x, value, slope, norm, length, mean, size - len(picks), expected)
        picks += block
        gains += block_gains
        value += 2 * len(block) * norm - 4 * (x @ total)
        value[block] = -np.inf
        mean, expected = total / len(block), len(block)
    return np.array(picks), np.array(gains) + _same_for_all(norm.sum(), norm[picks])


class _Outside:
    """The samples outside the short list, and what bounds their P(x)."""

    def __init__(self, value: Array, slope: Array, length: Array) -> None:
        self.value, self.slope, self.length = value, slope, length
        self.tops = [float(np.abs(part).max(initial=0.0)) for part in (value, slope, length)]

    def bound(self, t: int, r: float) -> float:
        """Above P(x) of all of them after t picks whose sum is r away from t m. Linear in t, so the larger of the
        bounds at two ends holds between them; it grows with r."""
        value, slope, length = self.tops
        rounding = 1e-12 * (value + t * slope + 4 * r * length)
        return float((self.value + t * self.slope + 4 * r * self.length).max(initial=-np.inf)) + rounding


def _block(
    x: Array, value: Array, slope: Array, norm: Array, length: Array, mean: Array, most: int, expected: int
) -> tuple[list[int], list[float], Array]:
    """Picks of one block, their gains, and the sum of their features; at least one pick."""
    first = int(value.argmax())
    likely = value + expected / 2 * slope
    likely[first] = np.inf
    count = min(_SHORT, len(x))
    short = np.sort(np.argpartition(likely, len(x) - count)[len(x) - count :])
    others = np.ones(len(x), bool)
    others[short] = False
    others &= value > -np.inf
    outside = _Outside(value[others], slope[others], length[others])
    near, now, twice = x[short], value[short], 2 * norm[short]
    picks: list[int] = []
    gains: list[float] = []
    total = np.zeros(x.shape[1])
    limit_t, limit_r, bound = -1, 0.0, 0.0
    while len(picks) < most:
        best = int(now.argmax())
        if picks:
            t, r = len(picks), float(np.linalg.norm(total - len(picks) * mean))
            if t > limit_t or r > limit_r:  # a bound for all picks up to twice as many
                limit_t, limit_r = 2 * t, 2 * r
                bound = max(outside.bound(t, limit_r), outside.bound(limit_t, limit_r))
            if now[best] <= bound and now[best] <= outside.bound(t, r):
                break
        picks.append(int(short[best]))
        gains.append(float(now[best]))
        total += near[best]
        now += twice - 4 * (near @ near[best])
        now[best] = -np.inf
    return picks, gains, total
