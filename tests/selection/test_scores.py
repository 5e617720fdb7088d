"""RS, DS and IS: the properties that the paper claims, and their equations by hand."""

import math

import numpy as np
import pytest
import torch

from dqcodec.models import contrast
from dqcodec.selection import scores


def brute_force_texture(image):
    """Eq. 3 pixel by pixel, in crops of 8 x 8 from the middle."""
    height, width, _ = image.shape
    luma = image.astype(float) @ ([0.299, 0.587, 0.114] if image.shape[2] == 3 else [1.0])
    levels = []
    for top in range(height % 8 // 2, height - 7, 8):
        for left in range(width % 8 // 2, width - 7, 8):
            crop = luma[top : top + 8, left : left + 8]
            total = 0.0
            for i in range(8):
                for j in range(8):
                    a, b = max(i - 1, 0), min(i + 1, 7)
                    c, d = max(j - 1, 0), min(j + 1, 7)
                    total += math.hypot((crop[b, j] - crop[a, j]) / (b - a), (crop[i, d] - crop[i, c]) / (d - c))
            levels.append(total / 64)
    return np.mean(levels)


@pytest.mark.parametrize("shape", [(16, 16, 3), (19, 25, 1), (8, 8, 3), (30, 9, 3)])
def test_texture_is_eq_3(shape):
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    assert scores.texture(images) == pytest.approx([brute_force_texture(image) for image in images], rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 3), (1, 40, 1)])
def test_texture_of_small_images(shape):
    assert scores.texture(np.full((2, *shape), 77, np.uint8)).tolist() == [0, 0]
    assert scores.texture(np.zeros((0, *shape), np.uint8)).shape == (0,)


def test_rs_rises_for_more_textured_bins():
    rng = np.random.default_rng(0)
    images = np.stack([128 + rng.normal(0, 4 * (n % 5), (24, 24, 3)) for n in range(100)]).clip(0, 255).astype(np.uint8)
    rs = scores.mean_of_bins(scores.texture(images), np.arange(100) % 5, 6)
    assert (np.diff(rs[:5]) > 0).all()
    assert np.isnan(rs[5])


def test_closeness():
    """0 for a bin with the mean of all; by hand for another; nan for an empty one; unmoved by scale and shift."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(9000, 3))
    features[4500:] = features[:4500]
    bin_of = np.repeat([0, 1], 4500)
    assert scores.closeness(features, bin_of, 2) == pytest.approx([0, 0], abs=1e-12)
    bin_of = np.where(features[:, 0] > 0.5, 3, 1)
    found = scores.closeness(features, bin_of, 4)
    mean, variance = features.mean(0), features.var(0).sum()
    by_hand = [-(((features[bin_of == n].mean(0) - mean) ** 2).sum()) / variance for n in (1, 3)]
    assert found[[1, 3]] == pytest.approx(by_hand)
    assert np.isnan(found[[0, 2]]).all()
    assert scores.closeness(features * 50 - 7, bin_of, 4)[[1, 3]] == pytest.approx(by_hand)
    assert scores.closeness(np.full((6, 2), 0.1), np.arange(6) % 2, 2).tolist() == [0, 0]


def test_ds_is_eq_5():
    head = torch.nn.Linear(3, 2, bias=False)
    rng = np.random.default_rng(0)
    x, view = rng.normal(size=(2, 5, 3)).astype(np.float32)
    d = head.weight.detach().numpy()

    def cos(a, b):
        a, b = d @ a, d @ b
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    for tau in (0.2, 1.0):
        ratios = [
            math.exp(cos(x[i], x[j]) / tau) / math.exp(cos(x[i], view[i]) / tau)
            for i in range(5)
            for j in range(5)
            if i != j
        ]
        with torch.no_grad():
            found = contrast.diversity_of(head, torch.from_numpy(x), torch.from_numpy(view), tau)
        assert float(found) == pytest.approx(-np.mean(ratios), rel=1e-5)


def bins_with_duplicates(share, seed=0):
    """Two bins of 150 features with two augmented views; of the second this share is close to one sample."""
    rng = np.random.default_rng(seed)
    plain = rng.normal(size=(300, 16))
    copies = 150 + np.arange(round(150 * share))
    plain[copies] = plain[150] + rng.normal(0, 0.05, (len(copies), 16))
    views = plain + rng.normal(0, 0.3, (2, 300, 16))
    return np.concatenate([plain[None], views]).astype(np.float32), np.repeat([0, 1], 150)


@pytest.mark.parametrize("tau", [0.2, 0.5, 1.0])
def test_ds_falls_when_a_bin_is_filled_with_near_duplicates(tau):
    found = [contrast.diversity(*bins_with_duplicates(share), 2, 0, tau) for share in (0, 0.3, 0.6, 1)]
    ratio = np.array([own[1] / own[0] for own in found])  # of negative numbers: higher is less diverse
    assert ratio[0] == pytest.approx(1, abs=0.15)
    assert (np.diff(ratio) > 0).all()
    assert found[3][1] < found[0][1]


def test_the_discriminator_is_trained():
    """It tells samples apart better than an untrained one does, for samples and views that it was not trained on."""
    views, _ = bins_with_duplicates(0)
    x = torch.from_numpy(views)
    rows = [torch.arange(100)]
    untrained = contrast.train_head(x[0], x[1], rows, 0, 0.5, steps=0)
    trained = contrast.train_head(x[0], x[1], rows, 0, 0.5)
    with torch.no_grad():
        before, after = (contrast.diversity_of(head, x[0, 100:], x[2, 100:], 0.5) for head in (untrained, trained))
    assert float(after) > float(before) + 0.05


def test_ds_of_small_bins():
    views, _ = bins_with_duplicates(0)
    bin_of = np.array([0, 0, 1, 3, 3, 3])
    found = contrast.diversity(views[:, :6], bin_of, 4, 0)
    assert np.isnan(found).tolist() == [False, True, True, False]
    assert np.isnan(contrast.diversity(views[:, :2], np.array([0, 1]), 2, 0)).all()


def test_ds_with_the_same_seed_is_the_same():
    views, bin_of = bins_with_duplicates(0.5)
    first, again, other = (contrast.diversity(views, bin_of, 2, seed) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_features_that_do_not_vary():
    found = contrast.diversity(np.ones((3, 10, 4), np.float32), np.arange(10) % 2, 2, 0)
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(found[1])


def test_rows_that_diversity_is_measured_on(monkeypatch):
    monkeypatch.setattr(scores, "SAMPLED", 7)
    bin_of = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [100, 5, 30]))
    rows = scores.sampled(bin_of, 0)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert np.bincount(bin_of[rows]).tolist() == [7, 5, 0, 7]
    assert scores.sampled(bin_of, 1).tolist() != rows.tolist()


def test_views_of_features():
    features = np.random.default_rng(0).normal(7, 1, size=(400, 10))
    for scale in (1, 1e-150, 1e18):  # float32 holds the results, if not the features
        plain, first, second = scores.with_views(features * scale, 0)
        centred = features - features.mean(0)
        np.testing.assert_allclose(plain, centred / np.abs(centred).max(), atol=1e-6)
        for view in (first, second):
            dropped = view != plain
            assert dropped.mean() == pytest.approx(scores.DROPOUT, abs=0.03)
            assert (view[dropped] == 0).all()
        assert (first != second).any()


def test_scores_of_tiny_and_of_offset_features():
    noise = np.random.default_rng(0).normal(size=(20_000, 2))
    bin_of = (noise[:, 0] > 0).astype(int)
    expected = scores.closeness(noise, bin_of, 2)
    for features in (noise * 1e-170, noise * 1e18, 1000 + 0.1 * noise):
        assert scores.closeness(features, bin_of, 2) == pytest.approx(expected, rel=1e-4)


def test_importance():
    rs, ds = np.array([1.0, 2.0, 3.0, np.nan]), np.array([5.0, 5.0, np.nan, 5.0])
    z = 1 / np.std([1, 2, 3])
    assert scores.importance(rs, ds) == pytest.approx([-z, 0, z, 0])
    assert scores.importance(rs * np.nan, ds).tolist() == [0, 0, 0, 0]
    almost = np.full(4, 0.1) + np.array([0, 1e-17, 0, 1e-16])
    assert scores.importance(almost, almost).tolist() == [0, 0, 0, 0]
