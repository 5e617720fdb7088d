import numpy as np
import pytest
import torch

from dqcodec.errors import OptionError
from dqcodec.models import checkpoints
from dqcodec.models.mae import (
    MAE,
    MAEConfig,
    by_channel,
    by_pixel,
    join,
    places,
    position_embedding,
    split,
    windows,
)
from dqcodec.patches import to_pixels
from dqcodec.smooth import smooth

PUBLISHED = MAEConfig(16, 4, 3, 32, 2, 2, 16, 1, 2)
SMALL = MAEConfig(16, 4, 3, 32, 2, 2, 16, 1, 2, smooth=2)


def model(config=PUBLISHED):
    """Random weights, those of the last layer of a small model too."""
    torch.manual_seed(0)
    net = MAE(config).eval()
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net


def random_images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def random_mask(n, kept, patches=16):
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.stack([rng.permutation(patches) < kept for _ in range(n)]))


def test_patches_by_hand_and_back():
    x = torch.arange(2 * 3 * 8 * 12.0).reshape(2, 3, 8, 12)
    patches = split(x, 4)
    assert patches.shape == (2, 6, 3, 4, 4)
    assert torch.equal(patches[1, 4], x[1, :, 4:, 4:8])
    assert torch.equal(join(patches, (2, 3)), x)
    pixels = by_pixel(patches)
    assert pixels[1, 4, :6].tolist() == [x[1, c, 4, column].item() for column in (4, 5) for c in (0, 1, 2)]
    assert torch.equal(by_channel(pixels, 4), patches)


@pytest.mark.parametrize("config", [PUBLISHED, SMALL])
def test_kept_patches_stay_exactly(config):
    images = random_images(6, 3, 16, 16)
    for kept in (1, 9, 15):
        mask = random_mask(6, kept)
        filled = model(config).fill(images, mask, 4)
        same = (split(filled, 4) == split(images, 4)).flatten(2).all(2)
        assert same[mask].all()
        assert not same[~mask].all()
    assert torch.equal(model(config).fill(images, torch.ones(6, 16, dtype=torch.bool), 4), images)


@pytest.mark.parametrize("config", [PUBLISHED, SMALL])
def test_dropped_pixels_do_not_matter(config):
    """The fill is the same whatever stands in the dropped patches."""
    mask = random_mask(4, 10)
    images = random_images(4, 3, 16, 16)
    other = torch.where(to_pixels(mask, (4, 4), 4), images, 255 - images)
    assert torch.equal(model(config).fill(images, mask, 4), model(config).fill(other, mask, 4))


def test_the_encoder_sees_kept_patches_only():
    """What it is given for a dropped patch changes nothing in the published layout."""
    patches, mask = torch.randn(2, 16, 3, 4, 4), random_mask(2, 10)
    other = torch.where(mask[:, :, None, None, None], patches, torch.randn_like(patches))
    net = model()
    assert torch.equal(net(patches, mask, (4, 4)), net(other, mask, (4, 4)))


@pytest.mark.parametrize("config", [PUBLISHED, SMALL])
def test_predict_is_part_of_forward(config):
    patches, mask = torch.randn(3, 16, 3, 4, 4), random_mask(3, 11)
    everything = model(config)(patches, mask, (4, 4))
    torch.testing.assert_close(model(config).predict(patches, mask, (4, 4)), everything[~mask].reshape(3, 5, 48))


@pytest.mark.parametrize("config", [PUBLISHED, SMALL])
def test_rows_with_different_counts_are_filled_alike(config):
    images = random_images(3, 3, 16, 16)
    mask = torch.stack([random_mask(1, kept)[0] for kept in (4, 16, 11)])
    together = model(config).fill(images, mask, 4)
    for row in range(3):
        alone = model(config).fill(images[row : row + 1], mask[row : row + 1], 4)
        assert (together[row].int() - alone[0].int()).abs().max() <= 1


def test_a_small_model_begins_with_the_smooth_fill():
    torch.manual_seed(0)
    images, mask = random_images(2, 3, 16, 24), random_mask(2, 18, 24)
    expected = join(smooth(split(images.float(), 4), mask, (4, 6), sweeps=2), (4, 6))
    found = MAE(SMALL).eval().fill(images, mask, 4)
    assert (found - expected).abs().max() <= 0.51


@pytest.mark.parametrize(
    ("channels", "height", "width", "patch"),
    [
        (1, 16, 16, 4),
        (3, 8, 40, 4),
        (3, 64, 96, 4),
        (1, 32, 32, 8),
        (3, 30, 20, 5),
        (3, 6, 9, 3),
        (3, 4, 4, 1),
        (3, 64, 128, 64),
    ],
)
def test_a_small_model_takes_any_grid(channels, height, width, patch):
    """Also grey images, other patches than its own, grids of several windows, and windows that keep nothing."""
    count = (height // patch) * (width // patch)
    images, mask = random_images(2, channels, height, width), random_mask(2, max(1, count // 2), count)
    if count > 256:
        mask[0] = torch.arange(count) == 0
    filled = model(SMALL).fill(images, mask, patch)
    kept = to_pixels(mask, (height // patch, width // patch), patch).expand_as(images)
    assert (filled.shape, filled.dtype) == (images.shape, torch.uint8)
    assert torch.equal(filled[kept], images[kept])
    assert not torch.equal(filled[~kept], images[~kept])


def test_windows_tile_the_grid():
    for grid in ((1, 1), (14, 14), (15, 14), (29, 40)):
        found = list(windows(grid, 14))
        assert sorted(torch.cat([index for index, _ in found]).tolist()) == list(range(grid[0] * grid[1]))
        assert all(max(shape) <= 14 and len(index) == shape[0] * shape[1] for index, shape in found)


def test_gradients_flow_through_what_was_filled():
    """A network is trained on filled images: they are ordinary tensors."""
    filled = model(SMALL).fill(random_images(2, 3, 16, 16), random_mask(2, 9), 4)
    layer = torch.nn.Linear(768, 1)
    layer(filled.flatten(1).float()).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_places():
    mask = torch.tensor([[True, False, True], [False, True, True]])
    assert places(mask).tolist() == [[0, 2], [1, 2]]
    assert places(~mask).tolist() == [[1], [0]]


def test_position_embedding_by_hand():
    e = position_embedding(4, 2, 2)[0]
    assert e[0].tolist() == [0, 0, 0, 0]
    assert e[1].tolist() == [0, 1, 0, 1]  # sin and cos of column 0, then of row 0
    np.testing.assert_allclose(e[2], [np.sin(1), np.cos(1), 0, 1], rtol=1e-6)
    np.testing.assert_allclose(e[3], [0, 1, np.sin(1), np.cos(1)], rtol=1e-6)


@pytest.mark.parametrize("patch", [4, 8])
def test_the_models_of_the_package_beat_the_smooth_fill(patch):
    """On a photograph that they were not trained on; they are small, and found by patch and by hash."""
    skimage_data = pytest.importorskip("skimage.data")
    found = checkpoints.built_in(patch)
    assert checkpoints.by_hash(found.sha256).name == found.name == f"small-{min(patch, 8)}-1"
    photo = torch.from_numpy(skimage_data.cat()[:288, :432].copy()).permute(2, 0, 1)
    side = 8 * patch
    images = torch.stack([photo[:, y : y + side, x : x + side] for y in range(0, 288 - side + 1, side)
                          for x in range(0, 432 - side + 1, side)])  # fmt: skip
    mask = random_mask(len(images), 48, 64)
    filled = found.model.fill(images, mask, patch).float()
    plain = join(smooth(split(images.float(), patch), mask, (8, 8)), (8, 8))
    errors = [((x - images) ** 2).mean().item() for x in (filled, plain)]
    assert errors[0] < 0.99 * errors[1]


def test_the_weights_of_the_package_are_small():
    assert sum(path.stat().st_size for path in checkpoints.FOLDER.iterdir()) <= 10_000_000


def test_wrong_images():
    images, mask = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.ones(2, 64, dtype=torch.bool)
    with pytest.raises(OptionError, match="it is for images of 16 x 16 with patches of 4; these are 32 x 32"):
        model().fill(images, mask, 4)
    with pytest.raises(OptionError, match="patch: 5 does not divide 32 x 32"):
        model(SMALL).fill(images, mask, 5)
    with pytest.raises(OptionError, match=r"mask: \(2, 64\); these are 2 images with 16 patches of 8"):
        model(SMALL).fill(images, mask, 8)
    mask[1] = False
    with pytest.raises(OptionError, match="mask: image 1 keeps no patch"):
        model(SMALL).fill(images, mask, 4)
    with pytest.raises(OptionError, match="patch 5 does not divide size 16"):
        MAE(MAEConfig(size=16, patch=5))
