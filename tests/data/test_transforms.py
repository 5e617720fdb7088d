import pickle

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from dqcodec import OptionError, each, to_float


@pytest.mark.parametrize("shape", [(256,), (0, 3, 8, 8), (3, 5, 7), (40, 3, 96, 96)])  # the last one in large pages
def test_to_float_is_the_division(shape):
    count = int(torch.Size(shape).numel())
    images = (torch.arange(count) % 256).to(torch.uint8).view(shape)
    before = images.clone()
    found = to_float(images)
    assert found.dtype == torch.float32
    assert torch.equal(found, images.float() / 255)
    found += 1  # memory of its own
    assert torch.equal(images, before)


def test_to_float_takes_images_in_any_order_of_memory():
    images = torch.randint(256, (4, 6, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(to_float(images.permute(0, 3, 1, 2)), images.permute(0, 3, 1, 2).float() / 255)


def test_to_float_refuses_what_is_no_pixel():
    for images, what in ((torch.zeros(2, 3, 4, 4), "torch.float32"), (np.zeros((3, 4, 4), np.uint8), "ndarray")):
        with pytest.raises(OptionError, match=f"to_float: {what}; allowed: a tensor of torch.uint8"):
            to_float(images)


def test_each_image_draws_by_itself():
    """A flip of the batch as a whole is all or none; this one flips some images, and those wholly."""
    images = torch.arange(64 * 3 * 4 * 4).to(torch.uint8).view(64, 3, 4, 4)
    torch.manual_seed(0)
    found = pickle.loads(pickle.dumps(each(v2.RandomHorizontalFlip())))(images)
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(found, images, strict=True)]
    assert 16 < sum(flipped) < 48
    assert all(torch.equal(a, b) for a, b, turned in zip(found, images, flipped, strict=True) if not turned)
