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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OptionError

Array = npt.NDArray[Any]

_EXACT = 2.0**52
_LARGEST = float(np.finfo(np.float32).max)  # squared norm of a row
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
    """Features as integers: q = round(f / top * (2^bits - 1)), top = max|f| over the whole set.

    With `normalize` f is divided by its L2 norm first (a row of zeros stays one), which makes the distances of Eq. 1
    those of the cosine GraphCut: |x - y|^2 = 2 - 2 cos(x, y).
    """

    top: float
    bits: int
    normalize: bool = False

    def __call__(self, features: Array) -> Array:
        """float64 of the same shape, integer values."""
        scaled: Array = _unit(features) if self.normalize else features.astype(np.float64)
        scaled /= self.top or 1.0
        scaled *= 2**self.bits - 1
        return np.rint(scaled, out=scaled)


def integers(features: Array, pool: int, normalize: bool = False) -> Integers:
    """How to make integers of features.

        features   float (N, D), checked by `check_features`
        pool       samples of the largest class
        normalize  divide every row by its L2 norm first

    bits <= 15 is the largest for which 3 pool D (2^bits - 1)^2 < 2^52, a bound on every sum that the greedy forms.
    """
    bits = 15
    while bits > 1 and 3 * max(pool, 1) * features.shape[1] * (2.0**bits - 1) ** 2 >= _EXACT:
        bits -= 1
    top = 0.0
    for start in range(0, len(features), _ROWS):
        block = features[start : start + _ROWS]
        block = _unit(block) if normalize else block
        top = max(top, -float(block.min()), float(block.max()))
    return Integers(top, bits, normalize)


def _unit(features: Array) -> Array:
    """float64: every row divided by its L2 norm, rows of zeros left."""
    x = np.array(features, np.float64)
    peak = np.abs(x).max(1)
    x /= np.where(peak > 0, peak, 1.0)[:, None]  # so that no square underflows
    norm = np.sqrt(np.einsum("ij,ij->i", x, x))
    x /= np.where(norm > 0, norm, 1.0)[:, None]
    return x


def check_features(features: Array, names: Sequence[str] | None = None) -> None:
    """Raise OptionError unless `features` are numbers (N, D), N > 0, D > 0, finite, with squared norms that float32
    holds: larger ones are no features but an accident, and would round all others to zero.

    names  what the rows are called in the message; else by number only
    """
    if features.ndim != 2 or 0 in features.shape:
        raise OptionError(f"features: shape {features.shape}; expected (samples, dimensions), at least one of each")
    if features.dtype.kind not in "fiu":
        raise OptionError(f"features: {features.dtype}; expected real numbers")
    for start in range(0, len(features), _ROWS):
        block = features[start : start + _ROWS]
        with np.errstate(over="ignore", invalid="ignore"):
            if block.dtype not in (np.float32, np.float64):  # others overflow, or hold what float64 does not
                block = block.astype(np.float64)
            norm = np.einsum("ij,ij->i", block, block)
        bad = np.flatnonzero(~(norm <= _LARGEST))
        if bad.size:
            row = start + int(bad[0])
            place = f"row {row}" if names is None else f"row {row} ({names[row]})"
            if not np.isfinite(block[bad[0]]).all():
                raise OptionError(f"features: {place} is not finite")
            raise OptionError(f"features: {place} has a norm of more than {_LARGEST**0.5:.2g}; scale the features down")


def sizes_of(samples: int, bins: int, kind: str = "equal") -> Array:
    """int64 (bins,): sizes of the bins of one class, which add up to `samples`.

    kind  "equal": all within one, the larger first, as in the paper. "geometric": a bins-th of what remains for each
          and the rest for the last, as in the papers' public code (5,000 in ten: 500, 450, 405, ..., 215, 1,938)
    """
    if kind == "equal":
        return samples // bins + (np.arange(bins) < samples % bins).astype(np.int64)
    sizes, left = np.zeros(bins, np.int64), samples
    for n in range(bins - 1):
        sizes[n] = round(left / bins)
        left -= int(sizes[n])
    sizes[-1] = left
    return sizes


def greedy_bins(x: Array, sizes: Array) -> Greedy:
    """Divide one class into bins.

    x      float64 (M, D), integer values from `Integers`
    sizes  int64 (bins,), which add up to M
    """
    bins = len(sizes)
    left = np.arange(len(x))
    order, gain = [], []
    done = 0
    while len(left) > _GRAM and done < bins:
        if sizes[done]:
            picks, gains = _large_bin(x[left], int(sizes[done]))
            order.append(left[picks])
            gain.append(gains)
            left = np.delete(left, picks)
        done += 1
    picks, gains = _small_bins(x[left], [int(size) for size in sizes[done:] if size])
    return by_sample(np.concatenate([*order, left[picks]]), np.concatenate([*gain, gains]), sizes)


def by_sample(order: Array, gains: Array, sizes: Array) -> Greedy:
    """The result from picks and their gains, in the order of the picks."""
    bin_of, gain_of = np.empty(len(order), np.int64), np.empty(len(order))
    bin_of[order] = np.repeat(np.arange(len(sizes)), sizes)
    gain_of[order] = gains
    return Greedy(order, bin_of, gain_of)


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
        gains[ours] += same_for_all(norm[free].sum(), norm[picks[ours]])
        free[picks[ours]] = False
        done += size
    return picks, gains


def same_for_all(pool: float, picked: Array) -> Array:
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
    return np.array(picks), np.array(gains) + same_for_all(norm.sum(), norm[picks])


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
