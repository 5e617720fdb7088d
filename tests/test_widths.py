"""Widths by sample inside the encoder, and the distances that they follow from."""

import numpy as np
import pytest
import torch
from conftest import activity, noisy_folder, originals
from PIL import Image

import dqcodec
from dqcodec import EncodeOptions, OptionError, encode
from dqcodec.codec.dct.pack import scale_index
from dqcodec.inspection import info, verify
from dqcodec.models import proxy
from dqcodec.models.sensitivity import distances

pytestmark = pytest.mark.usefixtures("quick_proxy")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 15 images of 32 x 32, from smooth to noisy."""
    return noisy_folder(tmp_path_factory.mktemp("widths"), 30, 1)


def columns(path):
    with dqcodec.open(path) as file:
        return dict(file.reader.columns)


@pytest.mark.parametrize("transform", ["pixel", "dct"])
@pytest.mark.parametrize("drop", [0, 0.3])
def test_auto_keeps_the_mean(folder, tmp_path, transform, drop):
    path = tmp_path / "x.dqz"
    result = encode(folder, path, EncodeOptions(keep=1, drop=drop, transform=transform, bits="auto:4", patch=4))
    assert result.options.bits == "auto:4"
    assert "proxy" in result.seconds
    found = columns(path)
    widths = found["bits"].astype(float)
    assert widths.mean() == 4
    assert {3, 5} <= set(widths.tolist()) <= {3, 4, 5}
    assert found["distance"].shape == (30,)
    assert np.isfinite(found["distance"]).all()
    by_width = [found["distance"][widths == bits].mean() for bits in (3, 5)]
    assert by_width[0] < by_width[1]
    assert verify(path).ok
    about = info(path)
    assert about.encode["bits"] == "auto:4"
    assert [width.bits for width in about.widths] == sorted(set(widths.tolist()))
    assert sum(width.samples for width in about.widths) == 30
    assert (about.widths[0].distance, about.widths[-1].distance) == pytest.approx(by_width)


@pytest.mark.parametrize("transform", ["pixel", "dct"])
def test_rank_moves_a_quarter_each_way(folder, tmp_path, transform):
    path = tmp_path / "x.dqz"
    encode(folder, path, EncodeOptions(keep=1, drop=0, transform=transform, bits="rank:4"))
    found = columns(path)
    assert np.bincount(found["bits"]).tolist() == [0, 0, 0, 7, 16, 7]
    order = np.argsort(-found["distance"], kind="stable")
    assert (np.diff(found["bits"][order].astype(int)) <= 0).all()


def test_steps_follow_activity(folder, tmp_path):
    """At one width; busier images have coarser steps, by the exponent, but by no more than a factor of two."""
    path = tmp_path / "x.dqz"
    encode(folder, path, EncodeOptions(keep=1, drop=0, bits=3))
    found, active = columns(path), np.array([activity(image) for image in originals(folder)])
    assert set(found["bits"].tolist()) == {3}
    more = 16 * 0.3 * np.log2((active + 100) / 1500)
    assert found["scale"].tolist() == (96 + np.round(more.clip(-16, 16))).tolist()
    assert np.ptp(found["scale"].astype(int)) > 8


def test_grey_images_have_the_steps_of_colour_ones(tmp_path):
    """Those that are the same."""
    scales = []
    for mode in ("L", "RGB"):
        place = tmp_path / mode / "a"
        place.mkdir(parents=True)
        for k in range(3):
            noise = np.random.default_rng(k).integers(100 - 30 * k, 130 + 40 * k, (32, 32), np.uint8)
            Image.fromarray(noise).convert(mode).save(place / f"{k}.png")
        encode(tmp_path / mode, tmp_path / f"{mode}.dqz", EncodeOptions(keep=1, drop=0, bits=3, transform="dct"))
        scales.append(columns(tmp_path / f"{mode}.dqz")["scale"].tolist())
    assert scales[0] == scales[1]
    assert len(set(scales[0])) == 3


def test_no_step_is_more_than_twice_another():
    """Of the nominal one, and all widths have one."""
    assert [scale_index(4, "default", active) for active in (0, 1400, 1e9)] == [64, 80, 96]
    assert scale_index(8, "default", 0) == 0
    assert scale_index(1, "fast", 1e9) == 153


def test_fractions_of_a_bit_with_dct(folder, tmp_path):
    path = tmp_path / "x.dqz"
    encode(folder, path, EncodeOptions(keep=1, drop=0, bits="auto:3.5"))
    bits = [
        [b for b in (2.5, 3.5, 4.5) if scale_index(b, "default", activity(image)) == q]
        for image, q in zip(originals(folder), columns(path)["scale"].tolist(), strict=True)
    ]
    assert [len(found) for found in bits] == [1] * 30
    assert np.mean(bits) == 3.5
    assert np.ptp(bits) == 2


def test_widths_are_equal_unless_told(folder, tmp_path):
    for options, bits in (
        (EncodeOptions(keep=0.6), "4"),
        (EncodeOptions(drop=0.25), "4"),
        (EncodeOptions(), "4"),
        (EncodeOptions(keep=0.6, transform="pixel"), "6"),
        (EncodeOptions(bits=5), "5"),
        (EncodeOptions(bits="auto", keep=1, drop=0), "auto:4"),
    ):
        result = encode(folder, tmp_path / "x.dqz", options, overwrite=True)
        assert result.options.bits == bits
        found = columns(tmp_path / "x.dqz")
        assert ("distance" in found) == bits.startswith("auto")
        assert (np.ptp(found["bits"]) > 0) == bits.startswith("auto")


def test_the_total_distance_falls(folder, tmp_path):
    """By what the network in the file's own run measures: less than with equal widths, and by the paper's claim."""
    encode(folder, tmp_path / "x.dqz", EncodeOptions(keep=1, drop=0, transform="pixel", bits="auto:4"))
    encode(folder, tmp_path / "y.dqz", EncodeOptions(keep=1, drop=0, transform="pixel", bits=4))
    with dqcodec.open(tmp_path / "x.dqz") as adapted, dqcodec.open(tmp_path / "y.dqz") as equal:
        assert adapted.source_index.tolist() == equal.source_index.tolist() == list(range(30))
        coded = [file.images(range(30)).transpose(0, 2, 3, 1) for file in (adapted, equal)]
        labels = equal.label.astype(np.int64)
    images = originals(folder)
    model = proxy.restore(proxy.train(images, labels, 2, CPU, 0), CPU)
    ours, same = distances(model, images, coded, labels).sum(0)
    assert ours < same


@pytest.mark.parametrize("bits", ["auto:1", "auto:8", "rank:7.5", "rank:1.5", "auto:1.4"])
def test_no_room_for_a_bit_more_and_less(folder, tmp_path, bits):
    result = encode(folder, tmp_path / "x.dqz", EncodeOptions(keep=1, drop=0, transform="dct", bits=bits))
    mean = bits.partition(":")[2]
    assert f"{bits} leaves no room for a bit less and more, so every sample has {mean} bits" in result.notes
    assert result.options.bits == mean
    assert "proxy" not in result.seconds


def test_pixel_takes_whole_bits(folder, tmp_path):
    for bits in ("auto:4.5", "1"):
        with pytest.raises(OptionError, match=f"bits: {bits}; allowed with pixel: whole bits, 2 to 8"):
            encode(folder, tmp_path / "x.dqz", EncodeOptions(transform="pixel", bits=bits))


def test_the_coarsest(folder, tmp_path):
    """One bit with dct: a step of 128 grey levels."""
    sizes = {}
    for bits in (1, 2):
        path = tmp_path / f"{bits}.dqz"
        encode(folder, path, EncodeOptions(keep=1, drop=0, transform="dct", bits=bits))
        assert set(columns(path)["bits"].tolist()) == {bits}
        sizes[bits] = columns(path)["length"].sum()
        assert verify(path).ok
    assert sizes[1] < 0.7 * sizes[2]


@pytest.mark.parametrize(("value", "what"), [(np.nan, "are not finite"), (0.0, "vanish")])
def test_gradients_that_say_nothing(folder, tmp_path, monkeypatch, value, what):
    """A network whose head is broken: every sample gets the same, and a note says so."""
    whole = proxy.train

    def broken(*arguments):
        weights = whole(*arguments)
        return weights | {"head.weight": np.full_like(weights["head.weight"], value)}

    monkeypatch.setattr(proxy, "train", broken)
    result = encode(folder, tmp_path / "x.dqz", EncodeOptions(keep=1, drop=0, bits="auto:4"))
    assert f"the proxy's gradients {what}, so every sample has 4 bits" in result.notes
    found = columns(tmp_path / "x.dqz")
    assert set(found["bits"].tolist()) == {4}
    assert "distance" not in found


def test_distances_by_hand():
    """The distance is that of the gradients that autograd gives one image at a time."""
    weights = proxy.train(np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2, 2, CPU, 0)
    model = proxy.restore(weights, CPU)
    rng = np.random.default_rng(0)
    images, other = rng.integers(0, 256, (2, 3, 8, 8, 1), dtype=np.uint8)
    labels = np.array([0, 1, 1])

    def gradient(x, label):
        tensor = torch.tensor(x[None].transpose(0, 3, 1, 2), dtype=torch.float32, requires_grad=True)
        logits = model((tensor - 128) / 64)
        (-torch.log_softmax(logits, 1)[0, label]).backward()
        return tensor.grad[0].numpy()

    mask = rng.random((3, 2, 2)) < 0.5
    expected = []
    for k in range(3):
        pixels = np.kron(mask[k], np.ones((4, 4)))
        difference = gradient(images[k], labels[k]) - gradient(other[k], labels[k])
        expected.append([np.sqrt((difference**2 * weight).sum()) for weight in (np.ones((8, 8)), pixels)])
    whole = distances(model, images, [other, images], labels)
    assert whole[:, 0] == pytest.approx([row[0] for row in expected], rel=1e-3)
    assert whole[:, 1].tolist() == [0, 0, 0]
    masked = distances(model, images, [other], labels, mask)
    assert masked[:, 0] == pytest.approx([row[1] for row in expected], rel=1e-3)
