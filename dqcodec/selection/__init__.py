"""Which samples to keep: features -> bins by submodular gain -> uniform sampling from the bins (dataset quantization).

Plain arrays in and out; useful without a .dqz.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OptionError
from dqcodec.parallel import default_workers, ordered_map
from dqcodec.run import Progress
from dqcodec.selection.bins import Greedy, Integers, greedy_bins, integers
from dqcodec.selection.sampling import draw, keep_count, split

Array = npt.NDArray[Any]

MAX_LABELS = 1 << 20


@dataclass(frozen=True)
class Selection:
    """
    kept    int64 (B,)      indices of the kept samples, ascending
    bin     int64 (N,)      bin of every sample
    order   int64 (N,)      place of every sample among the picks of its class, from 0
    gain    float64 (N,)    its submodular gain when it was picked
    size    int64 (C, bins) samples by class and bin
    taken   int64 (C, bins) kept ones of them
    """

    kept: Array
    bin: Array
    order: Array
    gain: Array
    size: Array
    taken: Array


def select(
    features: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    keep: float = 0.6,
    bins: int = 10,
    seed: int = 0,
    progress: Progress | None = None,
) -> Selection:
    """Dataset quantization: the same share of every bin of every class.

        features  float (N, D)
        labels    int (N,), 0..C-1; None: one class
        keep      0 < keep <= 1; round(keep N) samples are kept, every class within one of its share
        bins      bins a class, at least 1; a class with fewer samples leaves the later ones empty
        seed      of the uniform draw
        progress  called with ("bins", classes done, classes)

    Raises OptionError for values outside these ranges.
    """
    features = np.asarray(features)
    n = len(features)
    labels = np.zeros(n, np.int64) if labels is None else np.asarray(labels)
    check_keep(keep)
    check_bins(bins)
    check_seed(seed)
    if n == 0 or labels.shape != (n,) or labels.dtype.kind not in "iu":
        raise OptionError(f"labels: {labels.dtype} {labels.shape} for {n} samples; expected one integer a sample")
    if labels.min() < 0 or labels.max() >= MAX_LABELS:
        raise OptionError(f"labels: {labels.min()} to {labels.max()}; allowed: 0 to {MAX_LABELS - 1}")
    labels = labels.astype(np.int64)
    per_class = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(per_class)[:-1])
    to_integers = integers(features, int(per_class.max()))
    bin_of, order, gain = np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n)
    size = np.zeros((len(per_class), bins), np.int64)
    for c, picked in enumerate(_divide(features, to_integers, by_class, bins)):
        members = by_class[c]
        bin_of[members], gain[members] = picked.bin, picked.gain
        order[members[picked.order]] = np.arange(len(members))
        size[c] = np.bincount(picked.bin, minlength=bins)
        if progress:
            progress("bins", c + 1, len(per_class))

    taken = np.zeros_like(size)
    budget = split(keep_count(n, keep), per_class.astype(np.float64), per_class)
    bits = np.random.PCG64(seed)
    kept = []
    for c, members in enumerate(by_class):
        taken[c] = split(int(budget[c]), size[c].astype(np.float64), size[c])
        for b in range(bins):
            kept.append(draw(members[bin_of[members] == b], int(taken[c, b]), bits))
    return Selection(np.sort(np.concatenate(kept)), bin_of, order, gain, size, taken)


def _divide(features: Array, to_integers: Integers, by_class: list[Array], bins: int) -> Iterator[Greedy]:
    """The bins of every class, classes side by side, each with one thread for its matrix products: many small products
    gain nothing from more. A class by itself keeps them all."""

    def divide(members: Array) -> Greedy:
        return greedy_bins(to_integers(features[members]), bins)

    if len(by_class) == 1:
        yield divide(by_class[0])
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield from ordered_map(divide, by_class, default_workers())


def check_seed(seed: int) -> None:
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
        raise OptionError(f"seed: {seed}; allowed: 0 to 2^63 - 1")


def check_keep(keep: float) -> None:
    if not 0 < keep <= 1:
        raise OptionError(f"keep: {keep}; allowed: 0 < keep <= 1")


def check_bins(bins: int) -> None:
    if not isinstance(bins, int | np.integer) or not 1 <= bins <= 65536:
        raise OptionError(f"bins: {bins}; allowed: 1 to 65536")
