"""How much a sample suffers from quantization: the distance of its input gradients (ADQ-bits)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dqcodec.models.proxy import Proxy, normalise, to_tensor

Array = npt.NDArray[Any]


def distances(model: Proxy, images: Array, coded: Sequence[Array], labels: Array, mask: Array | None = None) -> Array:
    """d = |grad_x loss(x) - grad_x loss(Q(x))|_2 of each sample and each way Q of coding it: float64 (n, K).

    images, coded  uint8 (n, s, s, C), as the proxy sees them; `coded` K times
    labels         int (n,)
    mask           bool (n, rows, columns): the patches whose pixels count; None: all
    """
    device = model.head.weight.device
    y = torch.from_numpy(labels).to(device)
    before = _gradient(model, to_tensor(images, device), y)
    weight = torch.ones(before.shape[2:], device=device)
    if mask is not None:
        there = torch.from_numpy(mask[:, None]).to(device).float()
        weight = F.interpolate(there, before.shape[2:], mode="nearest")[:, 0]
    found = []
    for other in coded:
        difference = (before - _gradient(model, to_tensor(other, device), y)).square().sum(1) * weight
        found.append(difference.double().sum((1, 2)).sqrt())
    out: Array = torch.stack(found, 1).cpu().numpy()
    return out


def _gradient(model: Proxy, x: Tensor, labels: Tensor) -> Tensor:
    """Of each sample's own cross-entropy by its pixels, float (n, C, s, s)."""
    x = x.requires_grad_()
    with torch.enable_grad():
        loss = F.cross_entropy(model(normalise(x)), labels, reduction="sum")
        (found,) = torch.autograd.grad(loss, x)
    return found
