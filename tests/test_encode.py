"""The whole encoder: what goes in comes out, and nothing is lost in silence."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_same, noisy_folder
from make_golden import image as synthetic
from PIL import Image

import dqcodec
from dqcodec import EncodeOptions, OptionError, OutputError, SourceError, encode
from dqcodec.codec.quantize import SCALES
from dqcodec.inspection import info, verify
from dqcodec.selection.scores import texture

ALL = EncodeOptions(keep=1, drop=0)
SOME = EncodeOptions(keep=0.6, method="adq", drop=0.25)  # every stage


def originals(folder, size):
    """Images in source order, uint8 (N, C, H, W)."""
    from torchvision.datasets import ImageFolder

    return np.stack([np.asarray(image.resize((size, size))).transpose(2, 0, 1) for image, _ in ImageFolder(folder)])


def test_everything_kept_is_everything(photo_folder, tmp_path):
    stages = []
    result = encode(photo_folder, tmp_path / "x.dqz", ALL, progress=lambda stage, *_: stages.append(stage))
    assert (result.images, result.kept, result.skipped, result.selection) == (21, 21, (), None)
    assert set(stages) == {"scan", "look", "pack"}  # no network, no bins
    assert result.options.size == 24
    assert result.bytes_in == result.bytes_kept == sum(p.stat().st_size for p in photo_folder.rglob("*.png"))
    assert result.bytes_out == (tmp_path / "x.dqz").stat().st_size
    with dqcodec.open(tmp_path / "x.dqz") as file:
        assert file.classes == ("a cat", "größe", "z")
        assert file.label.tolist() == [0] * 12 + [1] * 8 + [2]
        assert file.source_index.tolist() == list(range(21))
        assert file.bin is None
        error = np.abs(file.images(range(21)).astype(int) - originals(photo_folder, 24)).max((1, 2, 3))
        assert (error <= SCALES[file.scale] / 2 + 0.5).all()
        assert (file.mask(range(21))).all()


def test_all_stages(photo_folder, encoded):
    found = info(encoded)
    assert found.samples == round(0.6 * 21)
    assert found.per_class == {"a cat": 7, "größe": 5, "z": 1}
    assert found.kept_patches == 1 - round(0.3 * 36) / 36
    assert [(width.bits, width.samples) for width in found.widths] == [(6, 13)]
    assert found.source == {"images": 21, "bytes": found.source["bytes"], "skipped": 0}
    assert found.encode["drop"] == 0.3
    assert verify(encoded).ok
    with dqcodec.open(encoded) as file:
        expected = originals(photo_folder, 24)[file.source_index]
        images, mask = file.images(range(13), fill="none"), file.mask(range(13))
        pixels = mask.reshape(13, 1, 6, 6).repeat(4, 2).repeat(4, 3)
        error = np.abs(images.astype(int) - expected) * pixels
        assert (error.max((1, 2, 3)) <= SCALES[file.scale] / 2 + 0.5).all()
        assert (images[~np.broadcast_to(pixels, images.shape)] == 0).all()
        assert (mask.sum(1) == 25).all()
        sizes, taken = file.reader.columns["bins/size"], file.reader.columns["bins/taken"]
        assert sizes.tolist() == [[4, 4, 4], [3, 3, 2], [1, 0, 0]]
        for c in range(3):
            assert taken[c].tolist() == np.bincount(file.bin[file.label == c], minlength=3).tolist()
        rs, ds, is_ = (file.reader.columns[f"bins/{name}"] for name in ("rs", "ds", "is"))
    levels = [texture(original.transpose(1, 2, 0)[None])[0] for original in originals(photo_folder, 24)]
    assert rs.min() > min(levels)
    assert rs.max() < max(levels)
    assert (ds < 0).all()
    z = [(score - score.mean()) / score.std() for score in (rs.astype(float), ds.astype(float))]
    assert is_ == pytest.approx(z[0] + z[1], rel=1e-3)
    assert [(own.size, own.taken) for own in found.bins] == list(zip(sizes.sum(0), taken.sum(0), strict=True))
    assert [own.is_ for own in found.bins] == is_.tolist()


def test_the_file_has_the_scores_of_the_selection(photo_folder, tmp_path):
    result = encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=0.6, method="adq", bins=3, alpha=1))
    chosen = result.selection
    with dqcodec.open(tmp_path / "x.dqz") as file:
        columns = file.reader.columns
        for name, score in (("rs", chosen.rs), ("ds", chosen.ds), ("is", chosen.is_)):
            assert columns[f"bins/{name}"].tolist() == score.astype(np.float32).tolist()
        assert columns["bins/taken"].tolist() == chosen.taken.tolist()


@pytest.mark.parametrize("method", ["dq", "graphcut", "random"])
def test_other_methods(photo_folder, tmp_path, method):
    """They have no scores; random needs no network."""
    result = encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=0.5, drop=0, method=method))
    assert ("proxy" in result.seconds) == (method != "random")
    bins = 10 if method == "dq" else 1
    assert result.selection.size.shape == (3, bins)
    found = info(tmp_path / "x.dqz")
    assert sum(own.taken for own in found.bins) == found.samples == 10
    assert len(found.bins) == bins
    assert all(own.rs is None for own in found.bins)
    assert verify(tmp_path / "x.dqz").ok


def test_random_needs_no_torch(photo_folder, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None; import dqcodec; "
        f"dqcodec.encode({str(photo_folder)!r}, {str(tmp_path / 'x.dqz')!r}, "
        "dqcodec.EncodeOptions(keep=0.6, method='random'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(dqcodec.open(tmp_path / "x.dqz")) == 13


def test_adq_by_features_of_a_file(photo_folder, tmp_path):
    np.save(tmp_path / "f.npy", np.random.default_rng(0).normal(size=(21, 4)))
    options = EncodeOptions(keep=0.5, method="adq", bins=3, features=str(tmp_path / "f.npy"))
    first, again = (encode(photo_folder, tmp_path / f"{k}.dqz", options) for k in range(2))
    assert "proxy" not in first.seconds
    assert first.selection.rs.min() > 0  # of the images
    assert first.selection.ds.max() < 0
    assert first.selection.kept.tolist() == again.selection.kept.tolist()


def test_more_bins_than_images(photo_folder, tmp_path):
    with pytest.raises(OptionError, match="bins: 22 for 21 samples; allowed here: 1 to 21"):
        encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=0.5, method="dq", bins=22))


def test_same_input_same_bytes(photo_folder, encoded, tmp_path):
    encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=0.6, method="adq", bins=3, drop=0.3), workers=1)
    assert (tmp_path / "x.dqz").read_bytes() == encoded.read_bytes()


def save(path, array, **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **arguments)


def broken_folder(root):
    """Good images among everything that people's folders hold; returns the names of what must be skipped."""
    for k in range(6):
        save(root / "räv och hund" / f"bild {k}.png", synthetic(k, 32, 32, 3))
    save(root / "b" / "one.png", synthetic(9, 32, 32, 3))
    save(root / "b" / "grey.png", synthetic(9, 32, 32, 1)[..., 0])
    save(root / "b" / "rgba.png", np.dstack([synthetic(9, 32, 32, 3), np.full((32, 32), 255, np.uint8)]))
    Image.fromarray(synthetic(9, 32, 32, 3)).quantize(8).save(root / "b" / "palette.gif")
    Image.fromarray(synthetic(9, 32, 32, 3)).convert("CMYK").save(root / "b" / "cmyk.jpg")
    save(root / "b" / "deep.png", np.linspace(0, 65535, 1024).reshape(32, 32).astype(np.uint16))
    (root / "empty").mkdir()
    data = io.BytesIO()
    Image.fromarray(synthetic(3, 64, 64, 3)).save(data, "JPEG")
    (root / "b" / "cut.jpg").write_bytes(data.getvalue()[:900])
    (root / "b" / "nothing.png").write_bytes(b"")
    (root / "b" / "notes.txt").write_text("hello")
    (root / "stray.png").write_bytes(data.getvalue())
    return {"b/cut.jpg", "b/nothing.png", "b/notes.txt", "stray.png"}


@pytest.mark.parametrize("options", [ALL, EncodeOptions(keep=0.5, method="adq", bins=2, drop=0.25)])
def test_unusable_files_are_skipped_and_named(tmp_path, options):
    bad = broken_folder(tmp_path / "src")
    result = encode(tmp_path / "src", tmp_path / "x.dqz", options)
    assert {name for name, _ in result.skipped} == bad
    assert all(reason for _, reason in result.skipped)
    assert any(note.startswith("no image in 1 class (empty)") for note in result.notes)
    assert result.images == 12
    assert result.kept == (12 if options.keep == 1 else 6)
    with dqcodec.open(tmp_path / "x.dqz") as file:
        assert file.classes == ("b", "empty", "räv och hund")
        assert len(file) == result.kept
        assert file.shape == (3, 32, 32)
        assert 1 not in file.label
    assert verify(tmp_path / "x.dqz").ok


def test_strict_stops_and_leaves_nothing(tmp_path):
    broken_folder(tmp_path / "src")
    with pytest.raises(SourceError, match="with --strict nothing is skipped"):
        encode(tmp_path / "src", tmp_path / "x.dqz", ALL, strict=True)
    (tmp_path / "src" / "stray.png").unlink()
    for name in ("nothing.png", "notes.txt"):
        (tmp_path / "src" / "b" / name).unlink()
    with pytest.raises(SourceError, match=r"b/cut\.jpg: .*truncated"):
        encode(tmp_path / "src", tmp_path / "x.dqz", ALL, strict=True)
    assert [p.name for p in tmp_path.iterdir()] == ["src"]


def test_nothing_usable(tmp_path):
    (tmp_path / "src" / "a").mkdir(parents=True)
    with pytest.raises(SourceError, match="has no usable image; skipped files: 0"):
        encode(tmp_path / "src", tmp_path / "x.dqz")
    (tmp_path / "src" / "a" / "x.png").write_bytes(b"junk")
    with pytest.raises(SourceError, match=r"skipped files: 1; the first: a/x\.png: not an image"):
        encode(tmp_path / "src", tmp_path / "x.dqz")


def test_one_image_a_class(tmp_path):
    for k in range(4):
        save(tmp_path / "src" / f"class {k}" / "x.png", synthetic(k, 16, 16, 3))
    assert encode(tmp_path / "src", tmp_path / "all.dqz", ALL).kept == 4
    result = encode(tmp_path / "src", tmp_path / "some.dqz", replace(SOME, keep=0.5))
    assert result.kept == 2
    assert any("no image is kept of 2 classes (class 2, class 3)" in note for note in result.notes)


def test_one_image_in_all(tmp_path):
    save(tmp_path / "src" / "only" / "x.png", synthetic(0, 16, 16, 3))
    result = encode(tmp_path / "src", tmp_path / "x.dqz", SOME)
    assert result.kept == 1
    assert any("nothing to learn from" in note for note in result.notes)


def test_grey_sets_stay_grey(tmp_path):
    for k in range(4):
        save(tmp_path / "src" / f"{k % 2}" / f"{k}.png", synthetic(k, 28, 28, 1)[..., 0])
    encode(tmp_path / "src", tmp_path / "x.dqz", EncodeOptions(keep=0.5, method="adq", bins=1, drop=0.25))
    with dqcodec.open(tmp_path / "x.dqz") as file:
        assert file.shape == (1, 28, 28)
    image, _ = dqcodec.DQZDataset(tmp_path / "x.dqz")[0]
    assert image.shape == (1, 28, 28)


def test_the_size_follows_the_data_and_enlarging_is_said(tmp_path):
    for k, side in enumerate((100, 90, 130)):
        save(tmp_path / "src" / "a" / f"{k}.png", synthetic(k, side, side + 20, 3))
    result = encode(tmp_path / "src", tmp_path / "x.dqz", ALL)
    assert (result.options.size, result.options.patch) == (96, 8)
    assert len(result.notes) == 3
    assert result.notes[0].startswith("1 of 3 images are smaller than 96 pixels and were enlarged")
    assert result.notes[1].startswith("2 of 3 images were reduced to 96 x 96 pixels, the largest from 150 x 130")
    assert result.notes[2].startswith("3 of 3 images are not square and were squashed")
    assert encode(tmp_path / "src", tmp_path / "y.dqz", EncodeOptions(size=64, resize="crop")).notes == ()


def test_features_from_a_file(photo_folder, tmp_path):
    """The rows decide the bins: the medoid of each class is in the first one."""
    features = np.random.default_rng(0).normal(size=(21, 4))
    np.save(tmp_path / "f.npy", features)
    options = EncodeOptions(keep=0.5, bins=2, drop=0, method="dq", features=str(tmp_path / "f.npy"))
    result = encode(photo_folder, tmp_path / "x.dqz", options)
    assert "proxy" not in result.seconds
    labels = [0] * 12 + [1] * 8 + [2]
    expected = dqcodec.select(features, labels, 0.5, 2, "dq")
    assert_same(result.selection.kept, expected.kept)
    with dqcodec.open(tmp_path / "x.dqz") as file:
        assert file.source_index.tolist() == expected.kept.tolist()
        assert file.bin.tolist() == expected.bin[expected.kept].tolist()
    assert info(tmp_path / "x.dqz").encode["features"] == "f.npy"


def test_features_of_the_wrong_shape(photo_folder, tmp_path):
    for array, message in (
        (np.zeros((20, 4)), r"holds float64 \(20, 4\); expected 21 rows"),
        (np.zeros(21), "expected 21 rows"),
        (np.full((21, 2), np.nan), r"row 0 \(a cat/.*\) is not finite"),
        (np.array([["a"] * 2] * 21), "expected 21 rows of numbers"),
    ):
        np.save(tmp_path / "f.npy", array)
        with pytest.raises(OptionError, match=message):
            encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=0.6, features=str(tmp_path / "f.npy")))
    with pytest.raises(OptionError, match=r"missing\.npy"):
        encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=0.6, features=str(tmp_path / "missing.npy")))
    np.save(tmp_path / "f.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00" + b"(" * 118)
    for name in ("f.npy", "empty.npy", "header.npy"):
        with pytest.raises(OptionError, match=f"{name}: not a .npy file of numbers"):
            encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=0.6, features=str(tmp_path / name)))
    with open(tmp_path / "z.npy", "wb") as file:
        np.savez(file, a=np.zeros((21, 2)))
    with pytest.raises(OptionError, match="is an archive; expected one array"):
        encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=0.6, features=str(tmp_path / "z.npy")))


def test_features_of_a_timm_model(photo_folder, tmp_path):
    """The real loading code with random weights from a file: the same features as by hand."""
    import timm
    from safetensors.torch import save_file
    from timm.data.config import resolve_data_config
    from torchvision.transforms.functional import resize

    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    options = EncodeOptions(
        keep=0.5, bins=3, drop=0, method="dq", features=f"timm:test_resnet@{tmp_path / 'w.safetensors'}"
    )
    result = encode(photo_folder, tmp_path / "x.dqz", options)

    config = resolve_data_config({}, model=model)
    model.reset_classifier(0)
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    x = torch.from_numpy(originals(photo_folder, 24)).float()
    x = resize(x, list(config["input_size"][1:]), interpolation=3, antialias=True)
    with torch.inference_mode():
        features = model((x / 255 - mean) / std).numpy()
    expected = dqcodec.select(features, [0] * 12 + [1] * 8 + [2], 0.5, 3, "dq")
    assert_same(result.selection.kept, expected.kept)


def test_adq_by_a_timm_model(photo_folder, tmp_path):
    """Its features of augmented images for the diversity; grey images too; a second run loads no model."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_resnet", pretrained=False).state_dict(), weights)
    for k in range(6):
        save(tmp_path / "grey" / "ab"[k % 2] / f"{k}.png", synthetic(k, 24, 24, 1)[..., 0])
    for source in (photo_folder, tmp_path / "grey"):
        options = EncodeOptions(keep=0.5, method="adq", bins=2, features=f"timm:test_resnet@{weights}")
        first = encode(source, tmp_path / "x.dqz", options, work=tmp_path / "work", overwrite=True)
        assert np.isfinite(first.selection.ds).all()
        assert first.selection.ds[0] != first.selection.ds[1]
        stages = set()
        again = encode(
            source, tmp_path / "x.dqz", options, work=tmp_path / "work", overwrite=True,
            progress=lambda stage, *_, seen=stages: seen.add(stage),
        )  # fmt: skip
        assert stages == {"scan", "pack"}
        assert again.selection.ds.tolist() == first.selection.ds.tolist()
        fresh = encode(source, tmp_path / "y.dqz", options, overwrite=True)
        assert fresh.selection.ds.tolist() == first.selection.ds.tolist()


def test_timm_models_that_cannot_be_had(photo_folder, tmp_path):
    for features, message in (
        ("timm:resnet1888", "timm has no model 'resnet1888'"),
        ("timm:test_resnet@nowhere.safetensors", "nowhere.safetensors do not exist"),
        (f"timm:test_resnet@{__file__}", "cannot load timm:test_resnet: .* Without network use"),
    ):
        with pytest.raises(OptionError, match=message):
            encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=0.6, features=features))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "keep: 0; allowed: 0 < keep <= 1"),
        ({"keep": 1.01}, "keep: 1.01"),
        ({"bins": 0}, "bins: 0; allowed: an integer, 1 to 65536"),
        ({"bins": "3"}, "bins: '3'; allowed: an integer, 1 to 65536"),
        ({"size": 32.0}, "size: 32.0; allowed: an integer, 1 to 4096"),
        ({"drop": "x"}, "drop: 'x'; expected a number"),
        ({"normalize": "no"}, "normalize: 'no'; expected True or False"),
        ({"features": None}, "features: None; expected text"),
        ({"drop": 1}, "drop: 1; allowed: 0 <= drop < 1"),
        ({"drop": -0.1}, "drop: -0.1"),
        ({"drop": float("nan")}, "drop: nan"),
        ({"bits": 0.5}, "bits: 0.5; allowed: 1 to 8 bits, as in 6, auto:6, rank:6"),
        ({"bits": "auto:9"}, "bits: 'auto:9'"),
        ({"size": 0}, "size: 0; allowed: an integer, 1 to 4096"),
        ({"size": 5000}, "size: 5000"),
        ({"resize": "stretch"}, "resize: 'stretch'; allowed: squash, crop, pad"),
        ({"patch": 0}, "patch: 0"),
        ({"patch": 5}, "patch: 5 does not divide the size 24; allowed here: 1, 2, 3, 4, 6, 8, 12, 24"),
        ({"size": 4096, "patch": 2}, "patch: 2 makes 4194304 patches; allowed: 65536"),
        ({"features": "resnet18"}, "features: 'resnet18'; allowed: proxy, timm:NAME, timm:NAME@WEIGHTS, FILE.npy"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": True}, "seed: True"),
        ({"keep": True}, "keep: True"),
    ],
)
def test_wrong_options(photo_folder, tmp_path, options, message):
    with pytest.raises(OptionError) as caught:
        encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(**options))
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_options_without_effect_are_named(photo_folder, tmp_path):
    for options, found in (
        (EncodeOptions(), []),
        (EncodeOptions(bits=3, seed=4), []),
        (EncodeOptions(method="dq", bins=30, mae="train"), ["method, bins", "mae"]),
        (EncodeOptions(keep=0.6, method="random", bins=2, mae="train"), ["bins", "mae"]),
        (EncodeOptions(keep=0.6, bins=2, alpha=0.1), ["alpha, bins"]),
        (EncodeOptions(keep=0.6, method="random", transform="pixel", effort="fast"), ["effort"]),
    ):
        notes = encode(photo_folder, tmp_path / "x.dqz", options, overwrite=True).notes
        assert [note.partition(", because")[0] for note in notes if "without effect" in note] == [
            f"without effect: {names}" for names in found
        ]


def test_options_of_the_other_kind(photo_folder, tmp_path):
    with pytest.raises(OptionError, match="options: TextOptions; expected EncodeOptions"):
        encode(photo_folder, tmp_path / "x.dqz", dqcodec.TextOptions())
    with pytest.raises(OptionError, match="options: EncodeOptions; expected TextOptions"):
        dqcodec.encode_text(tmp_path / "x.json", tmp_path / "x.dqz", EncodeOptions())
    for features in ("proxy", "timm:resnet18"):
        with pytest.raises(OptionError, match=f"features: '{features}'; allowed for records"):
            dqcodec.encode_text(tmp_path / "x.json", tmp_path / "x.dqz", dqcodec.TextOptions(features=features))


def test_wrong_devices_and_workers(photo_folder, tmp_path):
    for device in ("gpu", "cuda:99", "xla", "meta"):
        with pytest.raises(OptionError, match=f"device: '{device}' is not to be had here; allowed: auto, cpu, cuda"):
            encode(photo_folder, tmp_path / "x.dqz", SOME, device=device)
    with pytest.raises(OptionError, match="workers: 0; allowed: at least 1"):
        encode(photo_folder, tmp_path / "x.dqz", SOME, workers=0)


def test_an_output_that_exists(photo_folder, tmp_path):
    path = tmp_path / "x.dqz"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists; choose another name or add --overwrite"):
        encode(photo_folder, path, ALL)
    assert path.read_bytes() == b"mine"
    encode(photo_folder, path, ALL, overwrite=True)
    assert verify(path).ok
    with pytest.raises(OutputError, match="does not exist"):
        encode(photo_folder, tmp_path / "no" / "x.dqz", ALL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_killed_encode(photo_folder, tmp_path, number):
    """In the middle of the proxy's training: the old file is whole, and nothing new looks complete."""
    path = tmp_path / "x.dqz"
    encode(photo_folder, path, ALL)
    before = path.read_bytes()
    # A shell that starts the tests in the background has them ignore SIGINT, and children inherit it.
    code = f"""
import signal
import dqcodec
signal.signal(signal.SIGINT, signal.default_int_handler)
options = dqcodec.EncodeOptions(keep=0.6, method="adq", drop=0.25)
dqcodec.encode({str(photo_folder)!r}, {str(path)!r}, options, overwrite=True, progress=lambda *a: print(*a, flush=True))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("proxy"):
            break
    time.sleep(0.2)
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    assert path.read_bytes() == before
    left = {p.name for p in tmp_path.iterdir()} - {"x.dqz"}
    if number == signal.SIGINT:
        assert not left
    for name in left:
        assert name.startswith(".x.dqz.")
        assert not verify(tmp_path / name).ok


def test_a_full_disk(photo_folder, tmp_path):
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
import dqcodec
try:
    dqcodec.encode({str(photo_folder)!r}, {str(tmp_path / "x.dqz")!r}, dqcodec.EncodeOptions(keep=1, drop=0))
except dqcodec.OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_images_that_vanish_while_encoding(tmp_path):
    """A file is gone when it is packed: skipped and named, and the counts of the bins say so."""
    for k in range(8):
        save(tmp_path / "src" / "a" / f"{k}.png", synthetic(k, 16, 16, 3))
    np.save(tmp_path / "f.npy", np.arange(16.0).reshape(8, 2))

    def remove(stage, done, total):
        if stage == "bins":
            for k in range(0, 8, 2):
                (tmp_path / "src" / "a" / f"{k}.png").unlink(missing_ok=True)

    options = EncodeOptions(keep=0.99, method="adq", bins=2, features=str(tmp_path / "f.npy"))
    result = encode(tmp_path / "src", tmp_path / "x.dqz", options, progress=remove)
    assert result.kept == 4
    assert [name for name, _ in result.skipped] == [f"a/{k}.png" for k in range(0, 8, 2)]
    with dqcodec.open(tmp_path / "x.dqz") as file:
        assert file.source_index.tolist() == [1, 3, 5, 7]
        assert file.reader.columns["bins/taken"].sum() == 4
    assert os.path.getsize(tmp_path / "x.dqz") == result.bytes_out


@pytest.mark.parametrize("side", [1, 4])
@pytest.mark.parametrize("options", [SOME, EncodeOptions(drop=0.25)])
def test_one_tiny_image(tmp_path, side, options):
    save(tmp_path / "src" / "only" / "x.png", synthetic(0, side, side, 3))
    assert encode(tmp_path / "src", tmp_path / "x.dqz", options).kept == 1
    assert verify(tmp_path / "x.dqz").ok


def test_the_output_is_never_inside_the_source(photo_folder):
    before = {path: path.read_bytes() for path in photo_folder.rglob("*.png")}
    for output in (photo_folder / "x.dqz", photo_folder / "a cat" / "00.png"):
        with pytest.raises(OutputError, match="is inside the source folder"):
            encode(photo_folder, output, ALL, overwrite=True)
    assert {path: path.read_bytes() for path in photo_folder.rglob("*") if path.is_file()} == before


def test_outputs_that_are_no_plain_files(photo_folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        encode(photo_folder, tmp_path / "pipe", ALL, overwrite=True)
    with pytest.raises(OutputError, match="not a regular file"):
        encode(photo_folder, "/dev/null", ALL, overwrite=True)
    (tmp_path / "real").mkdir()
    (tmp_path / "link.dqz").symlink_to(tmp_path / "real" / "x.dqz")
    encode(photo_folder, tmp_path / "link.dqz", ALL)
    assert (tmp_path / "link.dqz").is_symlink()
    assert verify(tmp_path / "real" / "x.dqz").ok
    with pytest.raises(OutputError, match="exists"):
        encode(photo_folder, tmp_path / "link.dqz", ALL)
    long = "n" * 245 + ".dqz"
    assert encode(photo_folder, tmp_path / long, ALL).kept == 21


def test_too_many_bins_for_the_classes_are_refused_at_once(tmp_path):
    for k in range(100):
        save(tmp_path / "src" / str(k) / "x.png", synthetic(k, 8, 8, 3))
    with pytest.raises(OptionError, match="bins: 65536 for 100 samples; allowed here: 1 to 100"):
        encode(tmp_path / "src", tmp_path / "x.dqz", EncodeOptions(keep=0.6, method="dq", bins=65536))


def test_wrong_features_are_known_before_any_work(photo_folder, tmp_path):
    seen = []
    with pytest.raises(OptionError, match=r"nope\.npy: No such file"):
        options = EncodeOptions(keep=0.6, features=str(tmp_path / "nope.npy"))
        encode(photo_folder, tmp_path / "x.dqz", options, progress=lambda stage, *_: seen.append(stage))
    assert set(seen) <= {"scan"}


def test_damage_in_a_file_of_dct_names_its_sample(photo_folder, tmp_path):
    """Whichever samples are asked for, the error is of one that shares the damaged checksum, and verify finds those."""
    encode(photo_folder, tmp_path / "x.dqz", EncodeOptions(keep=1, drop=0, transform="dct"))
    with dqcodec.open(tmp_path / "x.dqz") as file:
        offsets, member = file.reader.offsets, file.reader.members["payload/c/0"]
        group = file.reader.header.checksum_group
    data = bytearray((tmp_path / "x.dqz").read_bytes())
    data[member.start + int(offsets[17])] ^= 1
    (tmp_path / "x.dqz").write_bytes(data)
    found = verify(tmp_path / "x.dqz")
    bad = list(range(17 // group * group, min(17 // group * group + group, 21)))
    assert [index for index, _ in found.bad] == bad
    with dqcodec.open(tmp_path / "x.dqz") as file:
        for wanted in ([17], [16, 17], [0, 5, 17, 20], range(21)):
            with pytest.raises(dqcodec.ChecksumError, match=r"x.dqz: sample \d+: payload bytes") as caught:
                file.images(wanted)
            assert caught.value.sample in bad
            assert str(caught.value).count("sample ") == 1
        assert len(file.images([0, 1])) == 2


def test_names_that_are_not_utf_8(photo_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(photo_folder, source)
    os.rename(os.fsencode(source / "z" / "00.png"), os.fsencode(source / "z") + b"/\xff.png")
    for options in (ALL, replace(SOME, bins=3)):
        result = encode(source, tmp_path / "x.dqz", options, work=tmp_path / "work", overwrite=True)
        assert result.images == 21


def test_names_with_a_colon(photo_folder, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(photo_folder, source)
    (source / "z" / "x: y.png").write_bytes(b"")
    for _ in range(2):
        result = encode(source, tmp_path / "x.dqz", ALL, work=tmp_path / "work", overwrite=True)
        ((name, reason),) = result.skipped
        assert name == "z/x: y.png"
        assert reason == "not an image in a known format"


def test_the_default_bins_are_those_of_whole_images(tmp_path):
    """Ten images of which one is cut: nine bins, not an error."""
    for k in range(10):
        save(tmp_path / "src" / "ab"[k % 2] / f"{k}.png", synthetic(k, 24, 24, 3))
    cut = tmp_path / "src" / "a" / "0.png"
    cut.write_bytes(cut.read_bytes()[:500])
    result = encode(tmp_path / "src", tmp_path / "x.dqz", EncodeOptions(keep=0.5, method="dq"))
    assert (result.images, result.options.bins, result.kept) == (9, 9, 4)
    assert "2 of 2 classes have fewer images than bins" in result.notes


def test_options_of_numpy(photo_folder, tmp_path):
    options = EncodeOptions(
        keep=np.float32(0.5),
        method="dq",
        bins=np.int64(3),
        seed=np.int64(1),
        alpha=np.float64(0.5),
        normalize=np.bool_(True),
        drop=0,
    )
    assert encode(photo_folder, tmp_path / "x.dqz", options).kept == 10
    assert info(tmp_path / "x.dqz").encode["bins"] == 3


def test_the_device_is_checked_first(photo_folder, tmp_path):
    stages = []
    with pytest.raises(OptionError, match="device: 'foo' is not to be had here"):
        encode(photo_folder, tmp_path / "x.dqz", SOME, device="foo", progress=lambda stage, *_: stages.append(stage))
    assert set(stages) == {"scan", "look"}


def test_training_tables_keeps_no_counts_of_each_image(tmp_path):
    """Those of one image are a megabyte."""
    tracemalloc.start()
    try:
        encode(noisy_folder(tmp_path / "src", 150, 0.2), tmp_path / "x.dqz", EncodeOptions(effort="fast"), workers=1)
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "options"),
    [("mae", {"drop": 0.25, "mae": "file:{}"}), ("features", {"keep": 0.5, "features": "timm:test_resnet@{}"})],
)
def test_weights_that_are_read_are_not_overwritten(photo_folder, tmp_path, name, options):
    place = tmp_path / "weights"
    place.write_bytes(b"precious")
    given = {key: value.format(place) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(OutputError, match=f"is both the output and {name}; choose another name"):
        encode(photo_folder, place, EncodeOptions(**given), overwrite=True)
    assert place.read_bytes() == b"precious"
