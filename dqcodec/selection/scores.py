"""How much a bin matters: representativeness, diversity and importance (ADQ-sampling Eq. 3 to 8).

Bin n of all classes together is one bin here, as in the paper, whose classes are divided side by side.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CROP = 8  # L of Eq. 3, pixels
SAMPLED = 512  # samples of a bin that its diversity is measured on, at most
DROPOUT = 0.2  # of feature views
_BLOCK = 4096


def texture(images: Array) -> Array:
    """Texture level T of each image (Eq. 3), in grey levels a pixel.

        images   uint8 (n, H, W, C), C 1 or 3
        returns  float32 (n,): mean over L x L crops of the mean gradient magnitude

    The paper leaves the gradient and L open. The gradient of the luma is taken by central differences, one-sided at
    the border of a crop, so that a crop is judged by its own pixels; crops of 8 x 8 pixels side by side from the
    middle (whole sides where an image is smaller) are as large as the structures that one convolution sees.
    """
    n, height, width, channels = images.shape
    rows, columns = min(CROP, height), min(CROP, width)
    top, left = height % rows // 2, width % columns // 2
    weights = np.array([0.299, 0.587, 0.114] if channels == 3 else [1], np.float32)
    luma = images[:, top : top + height // rows * rows, left : left + width // columns * columns] @ weights
    crops = luma.reshape(n, height // rows, rows, width // columns, columns)
    squares = np.zeros_like(crops)
    for axis, side in ((2, rows), (4, columns)):
        if side > 1:
            squares += np.gradient(crops, axis=axis) ** 2
    level: Array = np.sqrt(squares).mean((1, 2, 3, 4))
    return level


def mean_of_bins(values: Array, bin_of: Array, bins: int) -> Array:
    """RS of each bin from the texture of its images: float64 (bins,), NaN for a bin without any."""
    with np.errstate(invalid="ignore"):
        return np.bincount(bin_of, values, bins) / np.bincount(bin_of, minlength=bins)


def closeness(features: Array, bin_of: Array, bins: int) -> Array:
    """RS of each bin where there are features and no images (text, `select`): float64 (bins,), <= 0, NaN for none.

    Texture stands for how near training on a bin comes to training on the whole. For features the nearest plain
    counterpart is the distance of the means: -|mean(bin) - mean(all)|^2 over the variance of all.
    """
    sums, square = np.zeros((bins, features.shape[1])), 0.0
    scale = max(-float(features.min()), float(features.max()), np.finfo(np.float64).tiny)  # no square underflows
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK] / scale
        own = bin_of[start : start + _BLOCK]
        order = np.argsort(own, kind="stable")
        present, first = np.unique(own[order], return_index=True)
        sums[present] += np.add.reduceat(block[order], first)
        square += float((block * block).sum())
    counts = np.bincount(bin_of, minlength=bins)
    mean = sums.sum(0) / len(features)
    square /= len(features)
    variance = square - float(mean @ mean)
    with np.errstate(invalid="ignore"):
        away = ((sums / counts[:, None] - mean) ** 2).sum(1)
    return np.asarray(-away / variance) if variance > 1e-12 * square else np.where(counts > 0, 0.0, np.nan)


def sampled(bin_of: Array, seed: int) -> Array:
    """The rows that diversity is measured on: at most SAMPLED of each bin, drawn uniformly, ascending."""
    keys = np.asarray(np.random.PCG64(seed).random_raw(len(bin_of)))
    order = np.lexsort((keys, bin_of))
    start = np.searchsorted(bin_of[order], bin_of[order])
    return np.sort(order[np.arange(len(order)) - start < SAMPLED])


def with_views(features: Array, seed: int) -> Array:
    """Features (n, D) and two views of each, float32 (3, n, D), where there are no images to augment: each value of a
    view is set to its mean with a chance of DROPOUT, as SimCSE does with a network's units. The mean is taken off, and
    values are scaled to at most 1."""
    dropped = np.random.default_rng(seed).random((2, *features.shape), np.float32) < DROPOUT
    plain = features - features.astype(np.float64).mean(0)  # before float32, which may hold neither size nor offset
    plain = (plain / max(float(np.abs(plain).max()), np.finfo(np.float64).tiny)).astype(np.float32)
    return np.concatenate([plain[None], np.where(dropped, np.float32(0), plain)])


def importance(rs: Array, ds: Array) -> Array:
    """IS = z(RS) + z(DS) over the bins (Eq. 6 to 8), float64 (bins,). A score that is NaN, or the same for all bins,
    counts as the mean."""
    return _z(rs) + _z(ds)


def _z(score: Array) -> Array:
    known = ~np.isnan(score)
    if not known.any():
        return np.zeros(len(score))
    mean, deviation = score[known].mean(), score[known].std()
    if deviation <= 1e-9 * abs(mean):  # equal but for rounding
        return np.zeros(len(score))
    return np.where(known, (score - mean) / deviation, 0.0)


def weights(size: Array, score: Array, alpha: float) -> Array:
    """What the samples taken of each bin are in proportion to (Eq. 9).

        size     int64 (bins,)    samples in each bin of one class
        score    float64 (bins,)  importance score IS
        alpha    0..1, 0 is dq
        returns  float64 (bins,)

    (1 - alpha) N_n + alpha N_n I_n sum N / sum N I, with I_n = exp(IS_n / 10). IS itself may be negative, which no
    share can be; the exponential gives importances like those that the authors published for CIFAR-10 (0.985 to
    1.182). Eq. 10 as printed takes r_n N(n) samples whatever the keep ratio; here the shares are scaled to the
    class's budget.
    """
    own = size * np.exp(score / 10)
    scale = size.sum() / own.sum() if own.any() else 0.0
    return np.asarray((1 - alpha) * size + alpha * own * scale)
