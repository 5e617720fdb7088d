"""Which masked autoencoder a file wants: of the package, trained on the set, or named by its hash."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import spec_reader
import torch

import dqcodec
from dqcodec import DQZDataset, EncodeOptions, FormatError, OptionError, encode
from dqcodec.inspection import verify
from dqcodec.models import checkpoints
from dqcodec.models.mae import MAE, MAEConfig
from dqcodec.stages import fill

DROP = {"keep": 1, "drop": 0.3}


@pytest.fixture(scope="module")
def trained(photo_folder, tmp_path_factory):
    """A file with a model of its own, after a short training."""
    path = tmp_path_factory.mktemp("fill") / "own.dqz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqcodec.models.proxy.MIN_STEPS", 20)
        patch.setattr(fill, "TRAINING_PATCHES", 30_000)
        encode(photo_folder, path, EncodeOptions(**DROP, mae="train"))
    return path


def errors(path, folder, **arguments):
    """Mean squared error over the dropped patches, against the source images."""
    from torchvision.datasets import ImageFolder

    dataset = DQZDataset(path, **arguments)
    originals = np.stack([np.asarray(image).transpose(2, 0, 1) for image, _ in ImageFolder(folder)])
    header = dataset.file.reader.header
    mask = dataset.file.mask(range(len(dataset))).reshape(-1, 1, *header.grid)
    dropped = ~mask.repeat(header.patch, 2).repeat(header.patch, 3)
    return (((dataset.images(range(len(dataset))).numpy() - originals.astype(float)) ** 2) * dropped).mean()


@pytest.mark.spec("R-34")
def test_a_model_trained_on_the_set_is_in_the_file(trained, photo_folder):
    """It is found there by its hash, by both readers, and fills better than the one it began as."""
    root = json.loads(zipfile.ZipFile(trained).read("zarr.json"))["attributes"]["dqz"]
    with dqcodec.open(trained) as file:
        weights = file.mae_weights
        assert file.mae == (hashlib.sha256(weights).hexdigest(), "small-4-1, trained on the set")
    assert root["mae"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert spec_reader.read(trained)["columns"]["mae/weights"].tobytes() == weights
    assert verify(trained).ok
    start = checkpoints.built_in(4).model
    assert errors(trained, photo_folder) < 0.9 * errors(trained, photo_folder, mae=start)


def test_the_same_bytes_again(trained, photo_folder, tmp_path, quick_proxy, monkeypatch):
    monkeypatch.setattr(fill, "TRAINING_PATCHES", 30_000)
    encode(photo_folder, tmp_path / "again.dqz", EncodeOptions(**DROP, mae="train"))
    assert (tmp_path / "again.dqz").read_bytes() == trained.read_bytes()


NO_NETWORK = """
import socket, sys
def refuse(*_, **__):
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import dqcodec
images = dqcodec.DQZDataset(sys.argv[1]).images(range(5))
print(images.double().mean().item())
"""


def test_a_file_with_its_own_model_decodes_without_network(trained):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", NO_NETWORK, trained], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == DQZDataset(trained).images(range(5)).double().mean().item()


@pytest.mark.spec("R-34")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda mae: mae.update(sha256="0" * 64), "mae/weights: SHA-256"),
        (lambda mae: mae.clear(), "sha256"),
        (lambda mae: mae.update(sha256="z" * 64), "64 hexadecimal digits"),
        (lambda mae: mae.update(name=""), "name of mae has 0 characters"),
        (lambda mae: mae.update(name=7), "name is '7', expected str"),
        (None, "mae/weights: SHA-256"),
    ],
)
def test_weights_that_are_not_those_of_the_header(trained, rebuild, change, message):
    root = json.loads(zipfile.ZipFile(trained).read("zarr.json"))
    if change:
        change(root["attributes"]["dqz"]["mae"])
    else:
        del root["attributes"]["dqz"]["mae"]
    path = rebuild(trained, {"zarr.json": json.dumps(root).encode()})
    with pytest.raises(FormatError, match=message):
        dqcodec.open(path)
    with pytest.raises(spec_reader.SpecError):
        spec_reader.read(path)


def test_hostile_weights_with_a_right_hash(trained, rebuild):
    """The file is whole, so it opens; its weights are refused when they are asked for, and other fills work."""
    name = "mae/weights/c/0"
    weights = dqcodec.open(trained).mae_weights
    forged = weights.replace(b'\\"depth\\": 2', b'\\"depth\\": 3', 1)
    assert forged != weights
    root = json.loads(zipfile.ZipFile(trained).read("zarr.json"))
    root["attributes"]["dqz"]["mae"]["sha256"] = hashlib.sha256(forged).hexdigest()
    about = json.loads(zipfile.ZipFile(trained).read("mae/weights/zarr.json"))
    about["codecs"] = about["codecs"][:1]
    changes = {
        "zarr.json": json.dumps(root).encode(),
        name: forged,
        "mae/weights/zarr.json": json.dumps(about).encode(),
    }
    path = rebuild(trained, changes)
    with pytest.raises(FormatError, match=r"rebuilt\.dqz: the weights in mae/weights do not fit their configuration"):
        DQZDataset(path)
    assert len(DQZDataset(path, fill="smooth")) == 21


def test_weights_of_a_file_are_named_by_their_hash(photo_folder, tmp_path, quick_proxy):
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(checkpoints.to_bytes(MAE(MAEConfig(24, 4, 3, 32, 1, 2, 16, 1, 2)).eval()))
    encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(**DROP, mae=f"file:{weights}"))
    with dqcodec.open(tmp_path / "x.dqz") as file:
        assert file.mae == (hashlib.sha256(weights.read_bytes()).hexdigest(), "file:mine.safetensors")
        assert file.mae_weights is None
    with pytest.raises(OptionError, match=r"wants the weights file:mine\.safetensors"):
        DQZDataset(tmp_path / "x.dqz")
    assert DQZDataset(tmp_path / "x.dqz", mae=weights).images([0]).shape == (1, 3, 24, 24)


@pytest.mark.parametrize(
    ("mae", "message"),
    [
        ("large", "mae: 'large'; allowed: small, train, hf:OWNER/NAME, file:PATH"),
        ("file:", "allowed: small, train"),
        ("file:missing.safetensors", "mae: cannot read missing.safetensors"),
        (None, "allowed: small, train"),
    ],
)
def test_wrong_models(photo_folder, tmp_path, mae, message):
    with pytest.raises(OptionError, match=message):
        encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(**DROP, mae=mae))
    assert not list(tmp_path.iterdir())


def test_a_model_for_other_images_is_refused_at_once(photo_folder, tmp_path):
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(checkpoints.to_bytes(MAE(MAEConfig(32, 8, 3, 32, 1, 2, 16, 1, 2)).eval()))
    stages = []
    with pytest.raises(OptionError, match="it is for images of 32 x 32 with patches of 8; these are 24 x 24"):
        encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(**DROP, mae=f"file:{weights}"),
               progress=lambda stage, *_: stages.append(stage))  # fmt: skip
    assert set(stages) == {"scan", "look"}


def test_where_nothing_is_dropped_no_model_is_named(photo_folder, tmp_path):
    encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=1, drop=0, mae="train"))
    with dqcodec.open(tmp_path / "x.dqz") as file:
        assert file.mae is None


@pytest.mark.parametrize(("transform", "patch"), [("pixel", 3), ("dct", 8), ("dct", 4)])
def test_training_with_other_grids(photo_folder, tmp_path, quick_proxy, monkeypatch, transform, patch):
    """Patches that are none of the model's own, and grids that are cut into windows."""
    monkeypatch.setattr(fill, "TRAINING_PATCHES", 3_000)
    size = 72 if patch == 4 else 48
    options = EncodeOptions(**DROP, mae="train", transform=transform, patch=patch, size=size)
    seen = []
    encode(
        photo_folder, tmp_path / "x.dqz", options, progress=lambda stage, done, total: seen.append((stage, done, total))
    )
    done = [row for row in seen if row[0] == "mae"]
    assert done[-1][1] == done[-1][2] == len(done)
    assert DQZDataset(tmp_path / "x.dqz").images([0]).shape == (1, 3, size, size)


def test_masks_are_made_even():
    rng = np.random.default_rng(0)
    mask = rng.random((20, 30)) < 0.7
    mask[3, :25] = False
    even = fill._even(mask, rng)
    assert (even.sum(1) == mask.sum(1).min()).all()
    assert not (even & ~mask).any()
    assert fill._even(np.ones((2, 5), bool), rng).sum(1).tolist() == [4, 4]


def test_torch_threads_do_not_change_what_is_filled(trained):
    """Within a grey level: the tolerance of a fill."""
    expected, before = DQZDataset(trained).images(range(4)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = DQZDataset(trained).images(range(4))
    finally:
        torch.set_num_threads(before)
    assert (found.int() - expected.int()).abs().max() <= 1
