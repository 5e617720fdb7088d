"""Augmented views of images for the diversity of bins: turned, mirrored, other colours (ADQ-sampling, at Eq. 4)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ANGLE = 15  # degrees, at most
JITTER = 0.2  # of brightness, contrast and saturation, at most


def augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """One view of each image: float (n, C, h, w), 0..255, of the same shape.

    Each image is turned by up to ANGLE degrees (the border repeated by reflection) and mirrored with a chance of one
    half; brightness, contrast and saturation are multiplied by 1 - JITTER to 1 + JITTER.
    """
    n, channels, height, width = x.shape
    turn = np.deg2rad(rng.uniform(-ANGLE, ANGLE, n))
    side = rng.choice([-1.0, 1.0], n)
    theta = np.zeros((n, 2, 3))
    theta[:, 0, 0], theta[:, 0, 1] = side * np.cos(turn), -np.sin(turn) * height / width
    theta[:, 1, 0], theta[:, 1, 1] = side * np.sin(turn) * width / height, np.cos(turn)
    grid = F.affine_grid(torch.from_numpy(theta).to(x), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    light, contrast, colour = torch.from_numpy(rng.uniform(1 - JITTER, 1 + JITTER, (3, n, 1, 1, 1))).to(x)
    x = (x - x.mean((1, 2, 3), keepdim=True)) * contrast + x.mean((1, 2, 3), keepdim=True) * light
    if channels == 3:
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * colour
    return x.clamp(0, 255)
