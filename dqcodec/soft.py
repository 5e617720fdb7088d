"""Soft labels: for each sample a share of every class, from a classifier that saw the whole source.

A network that learns from them takes in what the classifier knows of how classes resemble each other (Hinton et al.
2015, "Distilling the Knowledge in a Neural Network"), which from few or coarse images it would not find by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.container.spec import SHARES

Array = npt.NDArray[Any]

PROXY = "proxy"  # where soft labels come from, unless from a file
MOST = 5  # classes of a sample whose shares are stored
TEMPERATURE = 2.0  # that logits are divided by: it lifts what is unlikely
OWN = 0.4  # of the whole for the label itself, whatever the classifier says


def soften(logits: Array, labels: Array) -> Array:
    """Shares q = OWN * one_hot(label) + (1 - OWN) * softmax(logits / TEMPERATURE).

    logits   float (..., n, K); of several views the softmax is averaged
    labels   int (n,)
    returns  float64 (n, K)
    """
    scaled = np.asarray(logits, np.float64) / TEMPERATURE
    scaled = np.exp(scaled - scaled.max(-1, keepdims=True))
    scaled /= scaled.sum(-1, keepdims=True)
    shares: Array = (1 - OWN) * scaled.reshape(-1, *scaled.shape[-2:]).mean(0)
    shares[np.arange(len(labels)), labels] += OWN
    return shares


def largest(shares: Array) -> tuple[Array, Array]:
    """What is stored of shares: the MOST largest of each row, at least one class less than there are.

    shares   float (n, K), K > 1, rows of sum 1
    returns  int64 (n, M) classes, the largest first, of equal ones the lower; int64 (n, M), their shares in 1/SHARES,
             rounded down
    """
    most = min(MOST, shares.shape[1] - 1)
    classes = np.argsort(-shares, axis=1, kind="stable")[:, :most]
    return classes, np.floor(np.take_along_axis(shares, classes, 1) * SHARES + 1e-6).astype(np.int64)


def spread(classes: Array, shares: Array, count: int) -> Array:
    """Shares of all `count` classes: what the stored ones leave is divided equally among the others.

    classes, shares   unsigned (n, M), as `largest` makes them
    returns           float32 (n, count), rows of sum 1
    """
    n, most = classes.shape
    rest = SHARES - shares.sum(1, dtype=np.int64)
    out = np.repeat((rest / (SHARES * (count - most))).astype(np.float32)[:, None], count, 1)
    out[np.arange(n)[:, None], classes] = shares / np.float32(SHARES)
    return out
