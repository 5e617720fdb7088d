"""The network and the training that `accuracy.py` compares data sets by: the same for every set, from memory.

A narrow ResNet with 0.12 million parameters, small enough that one CPU core takes 900 batches of 128 in about 90
seconds, or the same with finer maps for images above 32 pixels, which takes four times as long there; or a network of
timm, for where a GPU is at hand. Images are mirrored and shifted, a batch at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Array = npt.NDArray[Any]

NARROW, FINER = "narrow", "narrow, finer"
RATE, DECAY, MOMENTUM, SMOOTHING, WARM = 0.2, 5e-4, 0.9, 0.1, 0.2


@dataclass(frozen=True)
class Recipe:
    """
    network  "narrow", "narrow, finer", or a name of timm
    steps    batches that it is trained on, whatever the size of the set
    """

    network: str = NARROW
    steps: int = 900
    batch: int = 128


class Residual(nn.Module):
    """Two 3 x 3 convolutions, added to what comes in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(width, width), convolution(width, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def convolution(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> nn.Sequential:
    """With batch normalisation and ReLU."""
    layer = nn.Conv2d(inputs, outputs, side, stride, (side - 1) // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


def narrow(classes: int, stride: int) -> nn.Module:
    """Images (N, 3, s, s) -> logits (N, classes); the first map has s / stride cells a side, the last a fourth."""
    return nn.Sequential(
        convolution(3, 16, 2 * stride, stride),
        convolution(16, 32, 3, 2), Residual(32),
        convolution(32, 64, 3, 2), Residual(64),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


def build(network: str, classes: int, size: int) -> nn.Module:
    """`narrow`, or a network of timm; a ResNet of timm keeps its full resolution longer on small images."""
    if network in (NARROW, FINER):
        return narrow(classes, 2 if size <= 32 or network == FINER else 4)
    import timm

    model: Any = timm.create_model(network, num_classes=classes)
    if size <= 64 and hasattr(model, "maxpool"):
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, 1, 1, bias=False)
        model.maxpool = nn.Identity()
    out: nn.Module = model
    return out


def normalise(images: Tensor) -> Tensor:
    """uint8 (n, h, w, 3) -> float (n, 3, h, w), about -2..2, channels last in memory."""
    return ((images.float() - 128) / 64).permute(0, 3, 1, 2)


def augmented(padded: Tensor, rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """These images, uint8 (n, size, size, 3): each cut at a random place of its padding, half of them mirrored."""
    n, room = len(rows), padded.shape[1] - size + 1
    top, left = torch.randint(room, (2, n, 1), generator=generator)
    line = torch.arange(size)
    mirrored = torch.rand((n, 1), generator=generator) < 0.5
    columns = left + torch.where(mirrored, line.flip(0), line)
    y, x = (place.to(padded.device) for place in (top + line, columns))
    return padded[rows.to(padded.device)[:, None, None], y[:, :, None], x[:, None, :]]


def pad(images: Array, device: torch.device) -> Tensor:
    """uint8 (N, s, s, 3) with an eighth of the side reflected all around, on the device."""
    margin = images.shape[1] // 8
    edges = ((0, 0), (margin, margin), (margin, margin), (0, 0))
    return torch.from_numpy(np.pad(images, edges, "reflect")).to(device)


def accuracy(model: nn.Module, images: Array, labels: Array) -> float:
    """Top-1."""
    model.eval()
    device, right = next(model.parameters()).device, 0
    with torch.inference_mode():
        for start in range(0, len(images), 500):
            x = normalise(torch.from_numpy(images[start : start + 500]).to(device))
            right += int((model(x).argmax(1).cpu().numpy() == labels[start : start + 500]).sum())
    return right / len(images)


def logits(model: nn.Module, images: Array) -> Array:
    """What a network says of images and of their mirror images, float32 (2, n, classes)."""
    model.eval()
    with torch.inference_mode():
        x = normalise(torch.from_numpy(images).to(next(model.parameters()).device))
        return np.stack([model(view).cpu().numpy() for view in (x, x.flip(3))])


def fit(images: Array, labels: Array, classes: int, recipe: Recipe, seed: int) -> nn.Module:
    """A network trained on images; on a GPU, with bfloat16, where there is one.

    images, labels   uint8 (N, s, s, 3) and int (N,), or soft labels float32 (N, classes)

    Soft labels take the place of the smoothing that the others get.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = images.shape[1]
    torch.manual_seed(seed)
    model = build(recipe.network, classes, size).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, nesterov=True, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=recipe.steps, pct_start=WARM)
    generator = torch.Generator().manual_seed(seed)
    padded, targets = pad(images, device), torch.from_numpy(labels).to(device)
    smoothing = SMOOTHING if targets.ndim == 1 else 0.0
    order = torch.empty(0, dtype=torch.int64)
    model.train()
    for _ in range(recipe.steps):
        while len(order) < recipe.batch:  # epochs follow one another without a shorter batch between them
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        rows, order = order[: recipe.batch], order[recipe.batch :]
        x = normalise(augmented(padded, rows, size, generator))
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(model(x), targets[rows.to(device)], label_smoothing=smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model
