"""Which samples to keep: features -> bins by submodular gain -> samples from the bins (dataset quantization).

Plain arrays in and out; useful without a .dqz. `divide` makes the bins, `sample` draws from them; `select` is both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec import checks
from dqcodec.errors import OptionError
from dqcodec.run import Progress
from dqcodec.selection import scores
from dqcodec.selection.binning import Binning, at_random, check_device, check_labels, divide, members
from dqcodec.selection.bins import check_features
from dqcodec.selection.sampling import draw, keep_count, split

Array = npt.NDArray[Any]

METHODS = ("adq", "dq", "graphcut", "random")
ALPHA = 0.6


@dataclass(frozen=True)
class Selection:
    """
    kept    int64 (B,)       indices of the kept samples, ascending
    bin     int64 (N,)       bin of every sample
    order   int64 (N,)       place of every sample among the picks of its class, from 0
    gain    float64 (N,)     its submodular gain when it was picked; 0 with `random`
    size    int64 (C, bins)  samples by class and bin
    taken   int64 (C, bins)  kept ones of them
    rs, ds, is_  float64 (bins,)  representativeness, diversity and importance scores, NaN for an empty bin; only with
                             `adq`, else None
    """

    kept: Array
    bin: Array
    order: Array
    gain: Array
    size: Array
    taken: Array
    rs: Array | None = None
    ds: Array | None = None
    is_: Array | None = None


def select(
    features: npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    keep: float = 0.6,
    bins: int = 10,
    method: str = "adq",
    seed: int = 0,
    *,
    alpha: float = ALPHA,
    normalize: bool = False,
    bin_sizes: str = "equal",
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Selection:
    """Choose round(keep N) samples, of every class its share to within one.

        features   float (N, D), finite
        labels     int (N,), 0..C-1, each of them there; None: one class
        keep       0 < keep <= 1
        bins       1..N a class
        method     "adq": bins by their importance; "dq": the same share of every bin; "graphcut": one bin, the first
                   picks; "random"
        seed       of every random choice
        alpha      0..1, the weight of the importance with "adq"; 0 counts as "dq"
        normalize, bin_sizes, device, progress   as for `divide`

    "adq" needs torch. It has only features here, so representativeness is `scores.closeness` and the views
    are `scores.with_views`; `encode`, which has the images, uses `scores.texture` and augmented images.
    Raises OptionError for values outside these ranges, before any work.
    """
    features = np.asarray(features)
    check_sampling(keep, method, seed, alpha)
    if method == "random":
        check_features(features)
        check_device(device)
        return sample(at_random(labels, len(features), seed), labels, keep, method, seed)
    if method == "adq":
        _contrast()  # that it is not to be had should be known before the bins are made
    bins = 1 if method == "graphcut" else bins
    binning = divide(features, labels, bins, normalize=normalize, bin_sizes=bin_sizes, device=device, progress=progress)
    if method != "adq":
        return sample(binning, labels, keep, method, seed)
    scored = adq_scores(features, binning.bin, bins, seed, device, progress)
    return sample(binning, labels, keep, method, seed, alpha, **scored)


def adq_scores(
    features: Array, bin_of: Array, bins: int, seed: int, device: Any = "cpu", progress: Progress | None = None
) -> dict[str, Array]:
    """The scores `rs` and `ds` of the bins from features alone, for `sample`."""
    rows = scores.sampled(bin_of, seed)
    views = scores.with_views(features[rows], seed)
    ds = _contrast().diversity(views, bin_of[rows], bins, seed, device=device, progress=progress)
    return {"rs": scores.closeness(features, bin_of, bins), "ds": ds}


def sample(
    binning: Binning,
    labels: npt.ArrayLike | None,
    keep: float = 0.6,
    method: str = "dq",
    seed: int = 0,
    alpha: float = ALPHA,
    rs: Array | None = None,
    ds: Array | None = None,
) -> Selection:
    """Choose samples from bins: what `select` does after `divide`.

    rs, ds  float64 (bins,), what "adq" needs: the scores of the bins
    """
    check_sampling(keep, method, seed, alpha)
    samples, (classes, bins) = len(binning.bin), binning.size.shape
    labels = check_labels(labels, samples)
    per_class = binning.size.sum(1)
    if not np.array_equal(np.bincount(labels), per_class):
        raise OptionError(f"labels: classes of {np.bincount(labels)[:9]} samples; the bins are of {per_class[:9]}")
    budget = split(keep_count(samples, keep), per_class.astype(np.float64), per_class)
    if method in ("graphcut", "random"):  # the first of each class
        kept = np.flatnonzero(binning.order < budget[labels])
        taken = np.zeros_like(binning.size)
        np.add.at(taken, (labels[kept], binning.bin[kept]), 1)
        return Selection(kept, binning.bin, binning.order, binning.gain, binning.size, taken)
    is_ = None
    shares = binning.size.astype(np.float64)
    if method == "adq":
        if rs is None or ds is None:
            raise OptionError("method: adq needs the scores rs and ds of the bins")
        if np.shape(rs) != (bins,) or np.shape(ds) != (bins,) or np.isinf(rs).any() or np.isinf(ds).any():
            raise OptionError(f"rs, ds: {rs!r}, {ds!r}; expected {bins} values each, finite or NaN")
        is_ = scores.importance(rs, ds)
        shares = np.stack([scores.weights(size, is_, alpha) for size in binning.size])
    taken, owed = np.zeros_like(binning.size), np.zeros(bins)
    for c in range(classes):
        taken[c] = split(int(budget[c]), shares[c], binning.size[c], owed)
        owed += budget[c] * shares[c] / shares[c].sum() - taken[c]
    bits = np.random.PCG64(seed)
    chosen = []
    for c, rows in enumerate(members(labels)):
        for b in range(bins):
            chosen.append(draw(rows[binning.bin[rows] == b], int(taken[c, b]), bits))
    kept = np.sort(np.concatenate(chosen))
    own = (rs, ds, is_) if method == "adq" else (None, None, None)
    return Selection(kept, binning.bin, binning.order, binning.gain, binning.size, taken, *own)


def _contrast() -> Any:
    """The module, or an OptionError where torch is not installed."""
    try:
        from dqcodec.models import contrast
    except ImportError:
        raise OptionError(
            "method: adq needs torch: pip install 'dqcodec[torch]'; dq, graphcut and random do without"
        ) from None
    return contrast


def check_sampling(keep: float, method: str, seed: int, alpha: float) -> None:
    checks.number("keep", keep)
    checks.number("alpha", alpha)
    if not 0 < keep <= 1:
        raise OptionError(f"keep: {keep}; allowed: 0 < keep <= 1, the share to keep")
    checks.choice("method", method, METHODS)
    checks.integer("seed", seed, 0, 2**63 - 1)
    if not 0 <= alpha <= 1:
        raise OptionError(f"alpha: {alpha}; allowed: 0 <= alpha <= 1")
