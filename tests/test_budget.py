"""Files of a wanted size: the search against all widths there are, and whole files of both transforms."""

import sys
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
from conftest import noisy_folder, originals
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import dqcodec
from dqcodec import EncodeOptions, OptionError, encode
from dqcodec.codec.dct.coder import Format
from dqcodec.codec.dct.pack import Encoder
from dqcodec.codec.dct.tables import built_in
from dqcodec.container.spec import unpack_mask
from dqcodec.inspection import info, verify
from dqcodec.options import parse_size
from dqcodec.stages import budget as module
from dqcodec.stages.budget import LEAST, Ladder, climb
from dqcodec.stages.images import Images

pytestmark = pytest.mark.usefixtures("quick_proxy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 40 images of 32 x 32, from smooth to noisy."""
    return noisy_folder(tmp_path_factory.mktemp("budget"), 80, 1 / 3)


def source_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.png"))


@pytest.mark.parametrize("bits", ["fixed", "auto", "rank"])
@pytest.mark.parametrize(
    ("transform", "drop", "keep", "size"),
    [("dct", 0, 1, 16_000), ("dct", 0.25, 1, 22_000), ("pixel", 0, 1, 90_000), ("dct", 0, 0.6, 16_000)],
)
def test_the_file_is_as_large_as_it_may_be(folder, tmp_path, transform, drop, keep, size, bits):
    path = tmp_path / "x.dqz"
    options = EncodeOptions(keep=keep, drop=drop, transform=transform, bits=bits, target_size=size, method="random")
    result = encode(folder, path, options)
    assert LEAST * size <= path.stat().st_size <= size
    assert path.stat().st_size == result.bytes_out
    assert not any("target" in note for note in result.notes)
    assert verify(path).ok
    with dqcodec.open(path) as file:
        found = dict(file.reader.columns)
        mode, _, mean = result.options.bits.rpartition(":")
        assert mode == ("" if bits == "fixed" else bits)
        assert info(path).encode["bits"] == result.options.bits
        widths, finest = found["bits"].astype(float), 1.0
        if transform == "dct":  # in the file their steps follow activity, too
            encoder = Encoder(Format(32, 32, 3, built_in(4 if drop else 16, True)), "default")
            masks = unpack_mask(found["mask"], 64) if drop else np.ones((len(found["scale"]), 4), bool)
            images = originals(folder)[found["source_index"]]
            moments = [encoder.moments(*each) for each in zip(images, masks.astype(np.uint8), strict=True)]
            usual = np.array([encoder.scale(each, 0) for each in moments])
            widths, finest = (usual - found["scale"]) / 16, 1 / 16
        assert float(mean) == pytest.approx(widths.mean(), abs=0.005)
        spread = np.ptp(widths)
        assert (spread <= finest) == (bits == "fixed")
        # Half a bit less and more of dct; some images have the next width, up to the size.
        assert bits != "auto" or spread <= (3 if transform == "pixel" else 17 / 16)
        assert ("distance" in found) == (bits != "fixed")


def test_as_many_samples_as_fit(folder, tmp_path):
    path = tmp_path / "x.dqz"
    kept = []
    for size in (16_000, 19_000, 22_000):
        result = encode(folder, path, EncodeOptions(keep="auto", bits=5, target_size=size, method="dq"), overwrite=True)
        assert LEAST * size <= path.stat().st_size <= size
        assert abs(float(result.options.bits) - 5) < 0.4
        assert result.options.keep == pytest.approx(result.kept / 80, abs=1 / 80)
        kept.append(result.kept)
    assert kept[0] < kept[1] < kept[2] < 80
    result = encode(folder, path, EncodeOptions(keep="auto", bits=2, drop=0, target_size="40kB"), overwrite=True)
    assert (result.kept, result.options.keep, result.selection) == (80, 1, None)
    assert float(result.options.bits) > 3  # all fit, so they are finer
    assert LEAST * 40_000 <= path.stat().st_size <= 40_000


@pytest.mark.parametrize("size", [13_000, 16_000])
def test_fewer_samples_where_bits_cannot_be_fewer(folder, tmp_path, monkeypatch, size):
    """At the smallest width only the number of samples can follow the target; the estimate may say too many."""
    options = EncodeOptions(keep="auto", bits=2, drop=0, transform="pixel", method="random", target_size=size)
    path = tmp_path / "x.dqz"
    encode(folder, path, options)
    assert 0.93 * size <= path.stat().st_size <= size  # a sample is up to a twentieth
    monkeypatch.setattr(sys.modules["dqcodec.encode"], "find_keep", lambda *_: 0.8)
    result = encode(folder, path, options, overwrite=True)
    assert 0.93 * size <= path.stat().st_size <= size
    assert result.kept < 64
    assert verify(path).ok
    with pytest.raises(OptionError, match="target_size: 900 bytes is too small; .* smallest file has "):
        encode(folder, path, replace(options, target_size=900), overwrite=True)


@pytest.mark.parametrize("count", range(7, 13))
def test_equal_images(folder, tmp_path, count):
    """Their checksums are equal too, and compress."""
    (tmp_path / "same" / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "same" / "a" / "0.png")
    for k in range(1, count):
        (tmp_path / "same" / "a" / f"{k}.png").write_bytes((tmp_path / "same" / "a" / "0.png").read_bytes())
    for size in range(2000 * count, 2000 * count + 600, 100):
        options = EncodeOptions(keep=1, drop=0, transform="pixel", target_size=size)
        assert encode(tmp_path / "same", tmp_path / "x.dqz", options, overwrite=True).bytes_out <= size


def test_same_input_same_bytes(folder, tmp_path):
    for name, workers in (("x", 1), ("y", 3)):
        encode(
            folder,
            tmp_path / name,
            EncodeOptions(drop=0, keep=0.5, method="random", target_size=14_321),
            workers=workers,
        )
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_a_share_of_the_source(folder, tmp_path):
    source = source_bytes(folder)
    encode(folder, tmp_path / "x.dqz", EncodeOptions(keep=1, drop=0, target_size="0.1x"))
    assert LEAST * 0.1 * source <= (tmp_path / "x.dqz").stat().st_size <= 0.1 * source


def test_its_own_autoencoder_counts(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dqcodec.stages.fill.MAX_STEPS", 2)
    encode(
        folder,
        tmp_path / "x.dqz",
        EncodeOptions(keep=0.6, drop=0.25, mae="train", method="random", target_size="910kB"),
    )
    assert LEAST * 910_000 <= (tmp_path / "x.dqz").stat().st_size <= 910_000
    assert info(tmp_path / "x.dqz").members["mae/weights"] > 800_000


def test_a_budget_that_cannot_be_met(folder, tmp_path):
    path = tmp_path / "x.dqz"
    with pytest.raises(
        OptionError, match=r"target_size: 8kB \(8,000 bytes\) is too small; .* smallest file has "
    ) as caught:
        encode(folder, path, EncodeOptions(keep=1, drop=0, target_size="8kB"))
    assert list(tmp_path.iterdir()) == []
    least = int(str(caught.value).split("smallest file has ")[-1].split(" bytes")[0].replace(",", ""))
    result = encode(folder, path, EncodeOptions(keep=1, drop=0, target_size=least))
    assert (result.bytes_out, result.options.bits) == (least, "1")


def test_little_is_missing(folder, tmp_path, monkeypatch):
    """An estimate that says that it may just fit: the coded samples say that it does not, and the exact size."""
    monkeypatch.setattr(module, "CLEARLY", 9.0)
    with pytest.raises(OptionError, match=r"target_size: 8,000 bytes is too small; .* smallest file has [0-9,]+ bytes"):
        encode(folder, tmp_path / "x.dqz", EncodeOptions(keep=1, drop=0, target_size=8_000))
    assert list(tmp_path.iterdir()) == []


def test_more_than_there_is(folder, tmp_path):
    result = encode(folder, tmp_path / "x.dqz", EncodeOptions(keep=1, drop=0, target_size="1GB"))
    source, size = source_bytes(folder), (tmp_path / "x.dqz").stat().st_size
    assert f"the target of 1,000,000,000 bytes is more than the {source:,} of the source files" in result.notes
    assert (
        f"the file has {size:,} bytes, less than the target of 1,000,000,000: 8 bits are the most there are"
        in result.notes
    )
    assert result.options.bits == "8"


def test_two_images_move_by_whole_steps(folder, tmp_path):
    """Of few samples a step may be more than three percent; then the file is the largest that fits, and says so."""
    root = tmp_path / "few"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        (root / name / "x.png").write_bytes((folder / name / ("40.png" if name == "a" else "41.png")).read_bytes())
    options = EncodeOptions(keep=1, drop=0, transform="pixel", target_size=7_000)
    size = encode(root, tmp_path / "x.dqz", options).bytes_out
    between = size + 300  # a step is some 390 bytes
    result = encode(root, tmp_path / "y.dqz", replace(options, target_size=between))
    assert result.bytes_out == size < LEAST * between
    assert f"less than the target of {between:,}: nothing comes closer" in result.notes[-1]


def test_an_image_that_goes_away(folder, tmp_path, monkeypatch):
    """Looked at, and unreadable when it is coded: skipped, and the size is met without it."""
    whole = Images.pixels

    def pixels(self, index):
        if index == 7:
            raise dqcodec.SourceError(f"{self.folder.names[index]}: gone")
        return whole(self, index)

    monkeypatch.setattr(Images, "pixels", pixels)
    result = encode(folder, tmp_path / "x.dqz", EncodeOptions(keep=1, drop=0, target_size=16_000))
    assert result.kept == result.images == result.header.extra["source"]["images"] == 79
    assert result.skipped == ((result.skipped[0][0], "gone"),)
    assert LEAST * 16_000 <= result.bytes_out <= 16_000
    assert verify(tmp_path / "x.dqz").ok


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "auto"}, "keep: auto needs a target_size"),
        ({"keep": "half"}, "keep: 'half'; allowed: 0 < keep <= 1, or auto with a target_size"),
        (
            {"target_size": 0},
            "target_size: 0; allowed: bytes above 0, as in 2GB, 500MiB, 120000, or 0.1x of the source",
        ),
        ({"target_size": -5}, "target_size: -5; allowed"),
        ({"target_size": "0x"}, "target_size: '0x'; allowed"),
        ({"target_size": "0.2B"}, "target_size: '0.2B'; allowed"),
        ({"target_size": "8__000_"}, "target_size: '8__000_'; allowed"),
        ({"target_size": Decimal(8000)}, "target_size: Decimal('8000'); allowed"),
        ({"target_size": 0.5}, "target_size: 0.5; allowed"),
        ({"target_size": "0.0000001x"}, "target_size: 0.0000001x of the source is less than a byte"),
        ({"bits": 10**5000}, "bits: a int; allowed: 1 to 8 bits"),
        ({"target_size": "2 parrots"}, "target_size: '2 parrots'; allowed"),
        ({"target_size": float("nan")}, "target_size: nan; allowed"),
        ({"target_size": True}, "target_size: True; allowed"),
        ({"target_size": "1MB", "bits": 4}, "bits: 4 and a target_size; the size decides how many bits"),
        ({"target_size": "1MB", "bits": "auto:4"}, "bits: 'auto:4' and a target_size"),
    ],
)
def test_wrong_options(folder, tmp_path, options, message):
    with pytest.raises(OptionError) as caught:
        encode(folder, tmp_path / "x.dqz", EncodeOptions(**options))
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (7, 7),
        ("12_000", 12_000),
        ("2GB", 2 * 10**9),
        ("1.5 kib", 1536),
        (".5x", 500),
        ("3x", 3000),
        ("0.0001x", 0),
        ("9b", 9),
    ],
)
def test_sizes(text, expected):
    assert parse_size("target_size", text, 1000) == expected


def test_a_number_of_any_length_is_a_size():
    assert parse_size("n", 10**5000, 1) == parse_size("n", "9" * 5000, 1) == 10**15


@settings(deadline=None)
@given(
    st.lists(st.integers(32, 128), min_size=1, max_size=30),
    st.sampled_from([1.0, 1 / 16]),
    st.integers(1, 10**6),
    st.integers(0, 2**32),
    st.floats(-3, 3),
)
@example([32], 1.0, 1, 0, 0.0)
def test_climb(base, step, most, seed, start):
    """The size is known for every width of every sample; nothing else that the ladder has is nearer from below."""
    widths = np.round(np.array(base) / 16 / step) * step
    rng = np.random.default_rng(seed)
    steps = int(6 / step)
    sizes = np.cumsum(rng.integers(0, 50, (len(base), steps + 1)), 1) + rng.integers(0, 9000, (len(base), 1))
    ladder, calls = Ladder.of(widths, step, 2, 0), []

    def size(bits):
        calls.append(bits)
        assert bits.min() >= 2
        assert bits.max() <= 8
        return int(sizes[np.arange(len(base)), np.round((bits - 2) / step).astype(int)].sum()) + 1

    shift = climb(ladder, size, most, start)
    found = size(ladder.at(shift))
    assert len(calls) < 60
    if found > most:
        assert (ladder.at(shift) == 2).all()
    elif found < LEAST * most and not (ladder.at(shift) == 8).all():
        every = np.arange(-8, 8, step / (2 * len(base)))  # each sample's turn
        assert found == max(each for each in (size(ladder.at(shift)) for shift in every) if each <= most)


def test_a_ladder_rises_sample_by_sample():
    ladder = Ladder.of(np.full(10, 4.0), 1.0, 2, 3)
    means = [ladder.at(shift).mean() for shift in np.arange(0, 2.05, 0.1)]
    np.testing.assert_allclose(means, np.arange(4, 6.05, 0.1))
    assert (ladder.at(-9) == 2).all()
    assert (ladder.at(9) == 8).all()
