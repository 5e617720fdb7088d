"""Bins of all classes: each is divided by itself, classes side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec import checks
from dqcodec.errors import OptionError
from dqcodec.parallel import default_workers, ordered_map
from dqcodec.run import Progress
from dqcodec.selection.bins import Greedy, Integers, check_features, greedy_bins, integers, sizes_of

Array = npt.NDArray[Any]

MAX_LABELS = 1 << 20
MAX_BINS = 1 << 16
MAX_CLASS_BINS = 1 << 22  # classes x bins
BIN_SIZES = ("equal", "geometric")
_HINT = "as np.unique(labels, return_inverse=True)[1] gives them"


@dataclass(frozen=True)
class Binning:
    """One binning serves every keep ratio.

    bin    int64 (N,)       bin of every sample, within its class
    order  int64 (N,)       place of every sample among the picks of its class, from 0
    gain   float64 (N,)     Eq. 1 when it was picked, in units of the integer features
    size   int64 (C, bins)  samples by class and bin
    """

    bin: Array
    order: Array
    gain: Array
    size: Array


def divide(
    features: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    bins: int = 10,
    *,
    normalize: bool = False,
    bin_sizes: str = "equal",
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Binning:
    """Divide every class into bins by the submodular gain (DQ Algorithm 1).

        features   float (N, D), finite
        labels     int (N,), 0..C-1, each of them there; None: one class
        bins       1..N a class; a class with fewer samples has empty ones
        normalize  divide each row by its L2 norm: the cosine GraphCut of the papers' public code
        bin_sizes  "equal" or "geometric": see `bins.sizes_of`
        device     "cpu", or a torch device; the picks are the same
        progress   called with ("bins", classes done, classes)

    Raises OptionError for values outside these ranges, before any work.
    """
    features = np.asarray(features)
    check_features(features)
    labels = check_labels(labels, len(features))
    check_bins(bins, len(features), int(labels.max()) + 1)
    check_bin_sizes(bin_sizes)
    check_device(device)
    per_class = np.bincount(labels)
    by_class = members(labels)
    sizes = [sizes_of(int(count), bins, bin_sizes) for count in per_class]
    to_integers = integers(features, int(per_class.max()), normalize)
    found = Binning(
        np.zeros(len(labels), np.int64), np.zeros(len(labels), np.int64), np.zeros(len(labels)), np.array(sizes)
    )
    for c, picked in enumerate(_greedy(features, to_integers, by_class, sizes, str(device))):
        rows = by_class[c]
        found.bin[rows], found.gain[rows] = picked.bin, picked.gain
        found.order[rows[picked.order]] = np.arange(len(rows))
        if progress:
            progress("bins", c + 1, len(per_class))
    return found


def at_random(labels: npt.ArrayLike | None, samples: int, seed: int) -> Binning:
    """One bin a class, its order drawn at random: what `random` keeps the first of."""
    labels = check_labels(labels, samples)
    keys = np.asarray(np.random.PCG64(seed).random_raw(samples))
    order = np.zeros(samples, np.int64)
    for rows in members(labels):
        order[rows[np.argsort(keys[rows], kind="stable")]] = np.arange(len(rows))
    return Binning(np.zeros(samples, np.int64), order, np.zeros(samples), np.bincount(labels)[:, None])


def members(labels: Array) -> list[Array]:
    """The sample indices of each class, ascending."""
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])


def _greedy(
    features: Array, to_integers: Integers, by_class: list[Array], sizes: list[Array], device: str
) -> Iterator[Greedy]:
    """On the CPU classes go side by side, each with one thread for its matrix products: many small products gain
    nothing from more. A class by itself keeps them all."""
    if device != "cpu":
        from dqcodec.models.greedy import greedy_bins_of

        yield from greedy_bins_of((to_integers(features[rows]) for rows in by_class), sizes, device)
        return

    def one(c: int) -> Greedy:
        return greedy_bins(to_integers(features[by_class[c]]), sizes[c])

    if len(by_class) == 1:
        yield one(0)
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):
        yield from ordered_map(one, range(len(by_class)), default_workers())


def check_labels(labels: npt.ArrayLike | None, samples: int) -> Array:
    """int64 (N,); OptionError unless there is one label 0..C-1 a sample and no class without any."""
    found = np.zeros(samples, np.int64) if labels is None else np.asarray(labels)
    if samples == 0 or found.shape != (samples,) or found.dtype.kind not in "iu":
        raise OptionError(
            f"labels: {found.dtype} {found.shape} for {samples} samples; expected one integer a sample, {_HINT}"
        )
    if found.min() < 0 or found.max() >= MAX_LABELS:
        raise OptionError(f"labels: {found.min()} to {found.max()}; allowed: 0 to {MAX_LABELS - 1}, {_HINT}")
    found = found.astype(np.int64)
    empty = np.flatnonzero(np.bincount(found) == 0)
    if empty.size:
        raise OptionError(
            f"labels: class {empty[0]} of 0 to {found.max()} has no sample; number the classes without gaps, {_HINT}"
        )
    return found


def check_bins(bins: int, samples: int | None = None, classes: int = 1) -> None:
    checks.integer("bins", bins, 1, MAX_BINS)
    if samples is not None and bins > samples:
        raise OptionError(f"bins: {bins} for {samples} samples; allowed here: 1 to {min(samples, MAX_BINS)}")
    if bins * classes > MAX_CLASS_BINS:
        raise OptionError(f"bins: {bins} for {classes} classes; allowed here: 1 to {MAX_CLASS_BINS // classes}")


def check_device(device: Any) -> None:
    if str(device) != "cpu":
        from dqcodec.features import torch_device

        torch_device(str(device))


def check_bin_sizes(kind: str) -> None:
    if kind not in BIN_SIZES:
        raise OptionError(f"bin_sizes: {kind!r}; allowed: {', '.join(BIN_SIZES)}")
