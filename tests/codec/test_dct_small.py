"""Sets that are smaller and flatter than the training of tables would like."""

import numpy as np
import pytest
from PIL import Image

import dqcodec


def folder(path, images):
    (path / "one").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(path / "one" / f"{number}.png")
    return path


@pytest.mark.parametrize("effort", ["fast", "best"])
@pytest.mark.parametrize("size", [1, 16, 33])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_images_come_back_as_they_were(tmp_path, value, channels, size, effort):
    images = [np.full((size, size, channels), value, np.uint8)] * 3
    options = dqcodec.EncodeOptions(keep=1, drop=0, transform="dct", bits=6, effort=effort)
    result = dqcodec.encode(folder(tmp_path / "in", images), tmp_path / "x.dqz", options)
    assert result.kept == 3
    for filter in (False, True):
        with dqcodec.open(tmp_path / "x.dqz", filter=filter) as file:
            assert np.abs(file.images(range(3)).astype(int) - value).max() <= 2


def test_few_noisy_images(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (48, 48, 1), np.uint8) for _ in range(6)]
    options = dqcodec.EncodeOptions(keep=1, drop=0, transform="dct", bits=6)
    dqcodec.encode(folder(tmp_path / "in", images), tmp_path / "x.dqz", options)
    with dqcodec.open(tmp_path / "x.dqz", filter=True) as file:
        for found, image in zip(file.images(range(6)), images, strict=True):
            assert np.abs(found[0].astype(int) - image[..., 0]).mean() < 4  # a step of 8, twice that of usual images
