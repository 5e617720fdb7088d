import numpy as np
import pytest
import torch
from conftest import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st

from dqcodec.patches import join, split
from dqcodec.smooth import smooth


def harmonic(image, known):
    """Every unknown pixel (H, W) the mean of its neighbours inside the image, by one dense solve."""
    height, width = image.shape
    places = {place: k for k, place in enumerate(zip(*np.nonzero(~known), strict=True))}
    matrix, right = np.zeros((len(places), len(places))), np.zeros(len(places))
    for (y, x), k in places.items():
        for place in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= place[0] < height and 0 <= place[1] < width:
                matrix[k, k] += 1
                if place in places:
                    matrix[k, places[place]] -= 1
                else:
                    right[k] += image[place]
    out = image.copy()
    out[~known] = np.linalg.solve(matrix, right)
    return out


@st.composite
def cases(draw):
    rows, columns, patch = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = rng.random((2, rows * columns)) < draw(st.floats(0, 1))
    mask[:, rng.integers(rows * columns)] = True
    return rng, (rows, columns), patch, mask


@settings(max_examples=60, deadline=None)
@given(cases())
def test_it_is_the_harmonic_image(case):
    """Against a dense solve of the whole image; with so many sweeps nothing of the guess is left."""
    rng, grid, patch, mask = case
    images = rng.uniform(0, 255, (2, 1, grid[0] * patch, grid[1] * patch))
    found = join(smooth(split(images, patch), mask, grid, sweeps=600), grid)
    for image, kept, row in zip(images, mask, found, strict=True):
        known = kept.reshape(grid).repeat(patch, 0).repeat(patch, 1)
        np.testing.assert_allclose(row[0], harmonic(image[0], known), atol=0.02)


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from([1, 3]))
def test_torch_and_numpy_agree_and_kept_patches_stay(case, channels):
    rng, grid, patch, mask = case
    patches = rng.uniform(0, 255, (2, mask.shape[1], channels, patch, patch)).astype(np.float32)
    before = patches.copy()
    found = smooth(patches, mask, grid)
    again = smooth(torch.from_numpy(patches), torch.from_numpy(mask), grid)
    np.testing.assert_allclose(again.numpy(), found, atol=1e-2)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[mask], patches[mask])
    assert_same(patches, before)
    assert found.min() >= patches[mask].min() - 1e-2  # what is harmonic lies between its borders
    assert found.max() <= patches[mask].max() + 1e-2


@pytest.mark.parametrize("fill", [0.0, 255.0, 1e6])
def test_what_dropped_patches_hold_does_not_matter(fill):
    rng = np.random.default_rng(0)
    patches, mask = rng.uniform(0, 255, (3, 20, 3, 4, 4)).astype(np.float32), rng.random((3, 20)) < 0.6
    expected = smooth(patches, mask, (4, 5))
    patches[~mask] = fill
    np.testing.assert_allclose(smooth(patches, mask, (4, 5)), expected, atol=1e-3)


def test_images_do_not_depend_on_their_batch():
    rng = np.random.default_rng(1)
    patches, mask = rng.uniform(0, 255, (5, 36, 3, 4, 4)).astype(np.float32), rng.random((5, 36)) < 0.5
    together = smooth(patches, mask, (6, 6))
    for k in range(5):
        np.testing.assert_allclose(smooth(patches[k : k + 1], mask[k : k + 1], (6, 6)), together[k : k + 1], atol=1e-3)


def test_default_sweeps_are_near_the_limit():
    """A photograph with a hole of 3 x 3 patches in a corner and single ones: the rest is under two grey levels."""
    y, x = np.indices((112, 112)) / 112
    image = 128 + 60 * np.sin(9 * x + 4 * y * y) + 40 * np.cos(13 * y)
    mask = np.ones((1, 49), bool)
    mask[0, [0, 1, 2, 7, 8, 9, 14, 15, 16, 25, 38, 41, 48]] = False
    patches = split(image[None, None].astype(np.float32), 16)
    near, limit = (smooth(patches, mask, (7, 7), sweeps) for sweeps in (16, 500))
    assert abs(near - limit).mean() < 2


def test_nothing_to_do():
    patches = np.arange(2 * 4 * 1 * 2 * 2, dtype=np.float32).reshape(2, 4, 1, 2, 2)
    assert_same(smooth(patches, np.ones((2, 4), bool), (2, 2)), patches)
    assert smooth(patches[:0], np.ones((0, 4), bool), (2, 2)).shape == (0, 4, 1, 2, 2)
