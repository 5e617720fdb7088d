import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dqcodec.errors import OptionError
from dqcodec.models.mae import MAE, MAEConfig, load, patchify, position_embedding, unpatchify

TINY = MAEConfig(
    size=16, patch=4, channels=3, width=32, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)


def model(config=TINY):
    torch.manual_seed(0)
    return MAE(config).eval()


def random_mask(n, kept):
    rng = np.random.default_rng(0)
    return torch.from_numpy(np.stack([rng.permutation(16) < kept for _ in range(n)]))


def test_patchify_by_hand_and_back():
    x = torch.arange(2 * 3 * 8 * 8.0).reshape(2, 3, 8, 8)
    patches = patchify(x, 4)
    assert patches.shape == (2, 4, 48)
    assert patches[1, 2, :6].tolist() == [x[1, c, 4, col].item() for col in (0, 1) for c in (0, 1, 2)]
    assert torch.equal(unpatchify(patches, 4, 3), x)


def test_kept_patches_stay_exactly():
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    for kept in (1, 9, 15):
        mask = random_mask(6, kept)
        filled = model().fill(images, mask)
        same = (patchify(filled.float(), 4) == patchify(images.float(), 4)).all(2)
        assert same[mask].all()
        assert not same[~mask].all()
    assert torch.equal(model().fill(images, torch.ones(6, 16, dtype=torch.bool)), images)


def test_dropped_pixels_do_not_matter():
    """The encoder sees kept patches only: the fill is the same whatever stands in the dropped ones."""
    mask = random_mask(4, 10)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    other = torch.where(unpatchify(mask[..., None].expand(-1, -1, 48), 4, 3), images, 255 - images)
    assert torch.equal(model().fill(images, mask), model().fill(other, mask))


def test_rows_with_different_counts_are_filled_alike():
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    mask = torch.stack([random_mask(1, kept)[0] for kept in (4, 16, 11)])
    together = model().fill(images, mask)
    for row in range(3):
        alone = model().fill(images[row : row + 1], mask[row : row + 1])
        assert (together[row].int() - alone[0].int()).abs().max() <= 1


def test_it_learns_to_fill():
    """Stripes: after a short training the dropped patches are nearer than the mean colour."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(16)[None] * 0.8 + rng.uniform(0, 6, (64, 1)))
    images = torch.from_numpy(np.repeat(wave[:, None, None], 16, 2).repeat(3, 1)).float()
    mask = random_mask(64, 10)
    net = MAE(TINY).train()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    for _ in range(150):
        loss = net.loss(images, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * images.var()


def test_published_names():
    names = set(model().state_dict())
    assert {"cls_token", "pos_embed", "mask_token", "decoder_pos_embed", "patch_embed.proj.weight"} <= names
    assert {"blocks.0.norm1.weight", "blocks.1.attn.qkv.bias", "blocks.0.mlp.fc1.weight", "norm.weight"} <= names
    assert {
        "decoder_embed.weight",
        "decoder_blocks.0.attn.proj.weight",
        "decoder_norm.bias",
        "decoder_pred.bias",
    } <= names


def test_position_embedding_by_hand():
    e = position_embedding(4, 2)[0]
    assert e[0].tolist() == [0, 0, 0, 0]
    assert e[1].tolist() == [0, 1, 0, 1]  # sin and cos of column 0, then of row 0
    np.testing.assert_allclose(e[2], [np.sin(1), np.cos(1), 0, 1], rtol=1e-6)
    np.testing.assert_allclose(e[3], [0, 1, np.sin(1), np.cos(1)], rtol=1e-6)


def test_save_and_load(tmp_path):
    first = model()
    first.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    images, mask = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), random_mask(2, 7)
    assert torch.equal(first.fill(images, mask), again.fill(images, mask))


def test_wrong_weights(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(OptionError, match="cannot read"):
        load(path)
    path.write_bytes(b"junk" * 100)
    with pytest.raises(OptionError, match="cannot read"):
        load(path)
    model().save(path)
    tensors = load_file(path)
    save_file(tensors, path)
    with pytest.raises(OptionError, match="holds no dqcodec MAE configuration"):
        load(path)
    del tensors["norm.weight"]
    save_file(tensors, path, {"dqcodec.mae": json.dumps(asdict(TINY))})
    with pytest.raises(OptionError, match="do not fit their configuration"):
        load(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(OptionError, match="cannot read"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "do not fit"),
        ({"width": 2**40}, "sizes up to 16384"),
        ({"depth": 10**9}, "sizes up to 16384 and 128 blocks"),
        ({"size": 16384, "patch": 4, "width": 16384}, "do not fit"),
        ({"depth": 0}, "no dqcodec MAE configuration"),
        ({"colour": 1}, "no dqcodec MAE configuration"),
    ],
)
def test_hostile_configurations(tmp_path, changes, message):
    """Refused, and nothing is allocated for them."""
    about = json.dumps({**asdict(TINY), **changes})
    save_file(model().state_dict(), tmp_path / "m.safetensors", {"dqcodec.mae": about})
    with pytest.raises(OptionError, match=message):
        load(tmp_path / "m.safetensors")


def test_weights_that_are_not_finite(tmp_path):
    net = model()
    net.norm.weight.data[0] = float("nan")
    net.save(tmp_path / "m.safetensors")
    with pytest.raises(OptionError, match="not finite"):
        load(tmp_path / "m.safetensors")


def test_wrong_images():
    with pytest.raises(OptionError, match="it is for 3 x 16 x 16 images, patch 4; these are 3 x 32 x 32"):
        model().fill(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.ones(1, 64, dtype=torch.bool))
    with pytest.raises(OptionError, match="patch 5 does not divide size 16"):
        MAE(MAEConfig(size=16, patch=5))
