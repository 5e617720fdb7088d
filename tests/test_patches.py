import numpy as np
import pytest
import torch
from conftest import assert_same
from hypothesis import given
from hypothesis import strategies as st

from dqcodec.patches import drop_count, fill_mean, join, keep_mask, to_patches, to_pixels


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]))
def test_patches_and_back(rows, columns, patch, channels):
    image = np.random.default_rng(0).integers(0, 256, (rows * patch, columns * patch, channels), dtype=np.uint8)
    patches = to_patches(image, patch)
    assert_same(join(patches[None], (rows, columns))[0], image.transpose(2, 0, 1))
    for k in range(rows * columns):  # row-major numbering
        y, x = k // columns * patch, k % columns * patch
        assert_same(patches[k], image[y : y + patch, x : x + patch].transpose(2, 0, 1))


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 0.999), st.integers(0, 2**32))
def test_the_lowest_scores_are_dropped(rows, columns, drop, seed):
    scores = np.random.default_rng(seed).integers(0, 5, (3, rows * columns)).astype(float)
    mask = keep_mask(scores, drop, (rows, columns))
    assert (mask.sum(1) == rows * columns - drop_count(rows * columns, drop)).all()
    assert mask.any(1).all()
    for row, kept in zip(scores, mask, strict=True):
        if not kept.all():
            assert row[~kept].max() <= row[kept].min()


def test_without_attention_the_border_goes():
    mask = keep_mask(np.zeros((1, 16)), 0.75, (4, 4)).reshape(4, 4)
    assert mask.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_one_patch_stays():
    assert drop_count(1, 0.9) == 0
    assert drop_count(4, 0.999) == 3
    assert drop_count(64, 0.25) == 16


def test_fill_mean_by_hand():
    patches = np.array([[1, 2, 4, 100]], np.uint8).reshape(1, 4, 1, 1, 1)
    mask = np.array([[True, True, False, True]])
    assert fill_mean(patches, mask).ravel().tolist() == [1, 2, 34, 100]  # 103 / 3 = 34.33
    mask = np.array([[True, True, False, False]])
    assert fill_mean(patches, mask).ravel().tolist() == [1, 2, 2, 2]  # 1.5, half up


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_mask_of_pixels(kind):
    mask = np.random.default_rng(0).random((5, 6)) < 0.5
    pixels = np.asarray(to_pixels(kind(mask), (2, 3), 4))
    assert pixels.shape == (5, 1, 8, 12)
    for n, y, x in np.ndindex(5, 8, 12):
        assert pixels[n, 0, y, x] == mask[n, y // 4 * 3 + x // 4]
