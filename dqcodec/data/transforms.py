"""What batches of images go through before a network takes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dqcodec import memory
from dqcodec.errors import OptionError


def each(transform: Callable[[Tensor], Any]) -> Callable[[Tensor], Tensor]:
    """A transform of one image, (C, H, W), as one of a batch: random ones, as torchvision's, draw anew for every image.

    Called with the batch itself they would do the same to all of its images. Results of one batch have one shape.
    """
    return partial(_each, transform)


def _each(transform: Callable[[Tensor], Any], images: Tensor) -> Tensor:
    return torch.stack([transform(image) for image in images])


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in 0..1, of the same shape and on the same device; OptionError for another dtype.

    The same values as `images.float() / 255`. On a CPU it takes a third of the time: its memory is that of a former
    batch, where torch has pages cleared anew; and it takes this thread alone, where torch's other threads would wait
    for more work on the very processors that decode the next batches.
    """
    found = images.dtype if isinstance(images, Tensor) else type(images).__name__
    if found != torch.uint8:
        raise OptionError(f"to_float: {found}; allowed: a tensor of torch.uint8, as images are decoded")
    if images.device.type != "cpu" or not images.is_contiguous():
        return images.float().div_(255)
    out = memory.empty(tuple(images.shape), np.float32)
    return torch.from_numpy(np.true_divide(images.numpy(), np.float32(255), out=out))
