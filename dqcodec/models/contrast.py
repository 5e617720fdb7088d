"""Diversity of bins by contrastive learning (ADQ-sampling Eq. 4, 5; after Fang et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dqcodec.run import Progress

Array = npt.NDArray[Any]

WIDTH, OUTPUT = 128, 64  # of the discriminator
STEPS, BATCH = 300, 128
TEMPERATURE = 0.5


@torch.inference_mode(False)
@torch.enable_grad()
def diversity(
    views: Array,
    bin_of: Array,
    bins: int,
    seed: int,
    temperature: float = TEMPERATURE,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> Array:
    """DS of each bin (Eq. 5): float64 (bins,), <= 0, higher is more diverse; NaN for a bin of fewer than two samples.

        views        float32 (3, n, D)  features of samples, and of two augmented views of each
        bin_of       int64 (n,)
        temperature  tau, > 0

    The discriminator d is a perceptron with one hidden layer, one for all bins, because scores of different ones
    could not be compared. A step trains it on a batch from one bin, bins in turn: each sample's view is to be told
    from the other samples of its bin (the cross-entropy of Eq. 5's ratio). It is trained on the first view and judged
    by the second. The paper names no temperature; 0.5 is that of Fang et al., and keeps the mean of ratios from being
    that of a few outliers.
    """
    x = torch.from_numpy(np.ascontiguousarray(views, np.float32)).to(device)
    mean, deviation = x[0].mean(0), x[0].std(0, correction=0)
    x = (x - mean) / torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0)  # a constant says nothing
    plain, first, second = x
    rows = [torch.from_numpy(np.flatnonzero(bin_of == n)).to(device) for n in range(bins)]
    usable = [own for own in rows if len(own) > 1]
    if not usable:
        return np.full(bins, np.nan)
    with _one_thread():
        head = train_head(plain, first, usable, seed, temperature, progress=progress)
    with torch.no_grad():
        found = [
            float(diversity_of(head, plain[own], second[own], temperature)) if len(own) > 1 else np.nan for own in rows
        ]
    return np.array(found)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Layers of this size gain nothing from more threads, which wait for each other long where a machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def cosines(head: nn.Module, x: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 4: of every pair of samples (n, n), and of each sample and its view (n,)."""
    x, view = F.normalize(head(x)), F.normalize(head(view))
    return x @ x.T, (x * view).sum(1)


def train_head(
    plain: Tensor,
    views: Tensor,
    rows: list[Tensor],
    seed: int,
    temperature: float,
    steps: int = STEPS,
    progress: Progress | None = None,
) -> nn.Module:
    """The discriminator, trained on samples and one view of each, float (n, D); `rows` are those of each bin."""
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(plain.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, OUTPUT))
    head = head.to(plain.device)
    optimizer = torch.optim.Adam(head.parameters(), 1e-3)
    for step in range(steps):
        own = rows[step % len(rows)]
        chosen = own[torch.from_numpy(rng.permutation(len(own))[:BATCH]).to(own.device)]
        pairs, positive = cosines(head, plain[chosen], views[chosen])
        pairs = pairs.fill_diagonal_(-torch.inf)
        logits = torch.cat([positive[:, None], pairs], 1) / temperature
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress:
            progress("diversity", step + 1, steps)
    return head


def diversity_of(head: nn.Module, x: Tensor, view: Tensor, temperature: float) -> Tensor:
    """Eq. 5: minus the mean over all pairs of exp(cos(x_i, x_j) / tau) / exp(cos(x_i, x_i+) / tau)."""
    pairs, positive = cosines(head, x, view)
    ratio = torch.exp((pairs - positive[:, None]) / temperature).fill_diagonal_(0)
    return -ratio.sum() / (len(x) * (len(x) - 1))
