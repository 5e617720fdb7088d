"""GradCAM++ attention of a classifier, averaged over patches (DQ Eq. 28, 29)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from dqcodec.models.proxy import Proxy, normalise, to_tensor

Array = npt.NDArray[Any]


class Classifier(Protocol):
    """A network in two parts: images -> last feature map -> logits."""

    def maps(self, x: Tensor) -> Tensor: ...

    def classify(self, maps: Tensor) -> Tensor: ...


def gradcam_pp(model: Classifier, x: Tensor, labels: Tensor) -> Tensor:
    """Attention maps, float (N, h, w), >= 0, at the resolution of the last feature map.

    With A the feature map, y the logit of the label and g = dy/dA, the derivatives of exp(y) in Eq. 28 become powers
    of g (Chattopadhay et al., Eq. 19):

        alpha = g^2 / (2 g^2 + sum_mn A_mn g^3)        w = sum_ij alpha relu(g)        map = relu(sum_k w_k A_k)

    Where the denominator is 0, alpha is 0.
    """
    with torch.no_grad():
        maps = model.maps(x)
    maps = maps.detach().requires_grad_()
    with torch.enable_grad():
        score = model.classify(maps).gather(1, labels[:, None]).sum()
        (g,) = torch.autograd.grad(score, maps)
    maps = maps.detach()
    below = 2 * g**2 + maps.sum((2, 3), keepdim=True) * g**3
    alpha = torch.where(below != 0, g**2 / torch.where(below != 0, below, 1.0), 0.0)
    weights = (alpha * F.relu(g)).sum((2, 3), keepdim=True)
    return F.relu((weights * maps).sum(1))


def patch_means(attention: Tensor, size: int, patch: int) -> Tensor:
    """Eq. 29: attention scaled up to size x size pixels (bilinear) and averaged over each patch; float (N, P)."""
    full = F.interpolate(attention[:, None], (size, size), mode="bilinear", align_corners=False)
    return F.avg_pool2d(full, patch).flatten(1)


def patch_scores(model: Proxy, images: Array, labels: Array, size: int, patch: int) -> Array:
    """Scores of the patches of `size` x `size` images, float32 (N, P), finite.

    images   uint8 (N, s, s, C), as the proxy sees them
    labels   int (N,)
    """
    device = model.head.weight.device
    attention = gradcam_pp(model, normalise(to_tensor(images, device)), torch.from_numpy(labels).to(device))
    scores: Array = patch_means(attention, size, patch).cpu().numpy()
    return np.nan_to_num(scores)
