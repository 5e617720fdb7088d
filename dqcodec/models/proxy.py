"""The proxy: a small classifier trained on the set itself for a few epochs (DQ 4.1).

It gives the features for the bins and the attention for the patch scores. A residual network with 24, 48 and 96
channels (0.3 M parameters) on images of at most 64 pixels a side: 10,000 images of 32 x 32 take 10 epochs in under two
minutes on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dqcodec.run import Progress

Array = npt.NDArray[Any]

WIDTHS = (24, 48, 96)
BATCH = 128
EPOCHS = 10  # as in the paper, within the limits below
MIN_STEPS, MAX_STEPS = 200, 20_000


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Proxy(nn.Module):
    """Images (N, C, s, s), normalised -> logits (N, classes); the last map has s/4 (s <= 32) or s/8 cells a side."""

    def __init__(self, channels: int, classes: int, size: int) -> None:
        super().__init__()
        stride = 2 if size <= 32 else 4
        a, b, c = WIDTHS
        self.stem = nn.Sequential(
            nn.Conv2d(channels, a, 2 * stride - 1, stride, stride - 1, bias=False), nn.BatchNorm2d(a), nn.ReLU()
        )
        self.blocks = nn.Sequential(Block(a, a, 1), Block(a, b, 2), Block(b, c, 1))
        self.head = nn.Linear(c, classes)

    def maps(self, x: Tensor) -> Tensor:
        """The last feature map, (N, 96, h, w)."""
        out: Tensor = self.blocks(self.stem(x))
        return out

    def pools(self, x: Tensor) -> Tensor:
        """The averages of every block's feature maps, (N, 168)."""
        x, out = self.stem(x), []
        for block in self.blocks:
            x = block(x)
            out.append(x.mean((2, 3)))
        return torch.cat(out, 1)

    def classify(self, maps: Tensor) -> Tensor:
        """Logits from the last feature map."""
        out: Tensor = self.head(maps.mean((2, 3)))
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.maps(x))


def to_tensor(images: Array, device: torch.device) -> Tensor:
    """uint8 (n, s, s, C) -> float32 (n, C, s, s), 0..255."""
    return torch.from_numpy(np.array(images)).to(device).permute(0, 3, 1, 2).float()


def normalise(x: Tensor) -> Tensor:
    """0..255 -> about -2..2."""
    return (x - 128) / 64


def logits(model: Proxy, images: Array) -> Array:
    """What the proxy says of images, uint8 (n, s, s, C), and of their mirror images: float32 (2, n, classes)."""
    with torch.inference_mode():
        x = normalise(to_tensor(images, model.head.weight.device))
        return np.stack([model(view).cpu().numpy() for view in (x, x.flip(3))])


@torch.inference_mode(False)
@torch.enable_grad()
def train(
    images: Array,
    labels: Array,
    classes: int,
    device: torch.device,
    seed: int,
    progress: Progress | None = None,
) -> dict[str, Array]:
    """Train on all images: EPOCHS epochs of SGD with one learning-rate cycle, mirrored and shifted images.

    images   uint8 (N, s, s, C); may be a memory map, it is read batch by batch
    labels   int (N,), 0..classes-1
    returns  the weights by name, and "shape": channels, classes, s; what `restore` takes
    """
    n, size = len(images), images.shape[1]
    batch = max(2, min(BATCH, n))  # batch normalisation needs two
    steps = min(max(EPOCHS * n // batch, MIN_STEPS), MAX_STEPS)
    rng = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model: Proxy = Proxy(images.shape[3], classes, size).to(device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.2)
    targets = torch.from_numpy(np.asarray(labels, np.int64))
    model.train()
    for step, rows in enumerate(_batches(n, batch, steps, rng)):
        x = _augment(normalise(to_tensor(images[np.sort(rows)], device)), rng)
        y = targets[np.sort(rows)].to(device)
        loss = F.cross_entropy(model(x.contiguous(memory_format=torch.channels_last)), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress:
            progress("proxy", step + 1, steps)
    weights = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
    return weights | {"shape": np.array([images.shape[3], classes, size])}


def restore(weights: dict[str, Array], device: torch.device) -> Proxy:
    """The proxy from its weights, for inference: its normalisations are parts of the convolutions before them."""
    model = Proxy(*weights["shape"].tolist())
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items() if name != "shape"})
    model.eval()
    _fuse(model.stem, "0", "1")
    for block in model.blocks:
        _fuse(block, "conv1", "norm1")
        _fuse(block, "conv2", "norm2")
        if isinstance(block.shortcut, nn.Sequential):
            _fuse(block.shortcut, "0", "1")
    return model.to(device).to(memory_format=torch.channels_last)


def _fuse(module: nn.Module, convolution: str, norm: str) -> None:
    """Make one of two parts of a module that follow each other."""
    setattr(module, convolution, fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


def _batches(n: int, batch: int, steps: int, rng: np.random.Generator) -> Iterator[Array]:
    """`steps` batches of indices, epoch after epoch, each epoch shuffled anew; the short last batch is left out."""
    done = 0
    while done < steps:
        order = np.resize(rng.permutation(n), max(n, batch))
        for start in range(0, len(order) - batch + 1, batch):
            if done < steps:
                yield order[start : start + batch]
                done += 1


def _augment(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror each image or not, and shift the batch by up to an eighth."""
    flip = torch.from_numpy(rng.random(len(x)) < 0.5).to(x.device)
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    pad = x.shape[2] // 8
    if pad:
        dy, dx = (int(v) for v in rng.integers(0, 2 * pad + 1, 2))
        size = x.shape[2]
        x = F.pad(x, (pad,) * 4)[:, :, dy : dy + size, dx : dx + size]
    return x
