"""The kernel of codec/dct/gpu.py in numba's simulator; test_dct_gpu.py runs this with NUMBA_ENABLE_CUDASIM=1."""

from functools import partial

import numpy as np
import pytest
import torch
from numba import config
from test_dct import form, picture

import dqcodec
from dqcodec.codec.dct import coder, gpu, reference
from dqcodec.codec.dct.contexts import UNITS
from dqcodec.codec.dct.edges import Edges
from dqcodec.codec.dct.pack import Encoder
from dqcodec.data import dct
from dqcodec.data.dataset import DQZDataset
from dqcodec.errors import FormatError

CPU = torch.device("cpu")
assert config.ENABLE_CUDASIM


@pytest.fixture(autouse=True)
def _no_idle_blocks(monkeypatch):
    monkeypatch.setattr(gpu, "MIN_BLOCKS", 1)


def parse(shape, payloads, kept, band):
    """As reference.parse for each payload, `band` rows of units at a time."""
    n, columns, channels = len(payloads), shape.columns, shape.channels
    data, spans = coder.join(payloads)
    one = shape.edges()
    edges = Edges(
        *(np.full((n, *part.shape), 99, np.int32) for part in one[:5]),
        np.zeros((n, *one.near.shape), np.uint8),
        *one[6:],
    )
    state = np.full((n, 2), 99)
    coefficients, patterns = [], []
    for first in range(0, shape.rows, band):
        count = min(band, shape.rows - first)
        scratch = np.zeros((n, count, columns * channels * 256), np.int32)
        patterns.append(np.full((n, count, columns), -1, np.int32))
        gpu.decode_rows[n, 1](
            data, data.view(np.uint16), spans, kept, first, channels, edges, shape.order, shape.tables.coding,
            state, scratch, patterns[-1], np.zeros((n, 18), np.int32),
        )  # fmt: skip
        coefficients.append(scratch.reshape(n, count * columns, channels, 16, 16))
    whole = (state[:, 0] == 1) & (state[:, 1] == spans[:, 1] >> 1)
    return np.concatenate(coefficients, 1), np.concatenate(patterns, 1).reshape(n, -1), whole


def assert_parsed_alike(shape, payloads, kept, band):
    found = parse(shape, payloads, kept, band)
    for i, payload in enumerate(payloads):
        coefficients, patterns, whole = reference.parse(shape, payload, kept[i])
        np.testing.assert_array_equal(found[0][i], coefficients)
        np.testing.assert_array_equal(found[1][i], patterns)
        assert found[2][i] == whole
    return found[2]


def encoded(shape, count, kept, scale=(0, 50, 90)):
    """Payloads and colours of noisy and smooth pictures; the first has every escape class."""
    encoder = Encoder(shape, "default")
    images = [picture(shape.height, shape.width, shape.channels, seed, 60 - 20 * seed) for seed in range(count)]
    coded = [encoder.encode(image, there, q) for image, there, q in zip(images, kept, scale, strict=False)]
    return [payload for payload, _ in coded], np.array([colour for _, colour in coded])


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("unit", UNITS)
def test_coefficients_are_the_references(unit, channels):
    shape = form(37, 21, channels, unit)
    kept = np.ones((3, shape.rows * shape.columns), np.uint8)
    kept[1:] = np.random.default_rng(unit).random((2, kept.shape[1])) < 0.7
    kept[:, 0] = 1
    payloads, _ = encoded(shape, 3, kept)
    assert assert_parsed_alike(shape, payloads, kept, 2).all()


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("unit", UNITS)
def test_damaged_payloads_are_found_and_harm_no_other(unit, channels):
    shape = form(20, 24, channels, unit)
    rng = np.random.default_rng(unit)
    kept = np.ones((12, shape.rows * shape.columns), np.uint8)
    payload = encoded(shape, 1, kept, [60])[0][0]
    changed = bytearray(payload)
    changed[len(payload) // 2] ^= 1 << rng.integers(8)
    payloads = [
        payload, payload[:-1], payload[:-2], payload + b"\0\0", bytes(changed), payload, payload[: len(payload) // 2],
        b"", b"\1", b"\xff" * 300, *(rng.integers(0, 256, size, np.uint8).tobytes() for size in (64, 65)),
    ]  # fmt: skip
    whole = assert_parsed_alike(shape, [p for p in payloads if p], kept, shape.rows)
    assert whole[[0, 5]].all()
    assert not whole[[1, 2, 3]].any()
    assert parse(shape, payloads, kept, 1)[2].tolist() == np.insert(whole, 7, False).tolist()


@pytest.mark.parametrize("band", [1, 1 << 20])  # bytes: a row at a time, all at once
@pytest.mark.parametrize("channels", [3, 1])
def test_images_are_the_cpu_decoders(channels, band, monkeypatch):
    monkeypatch.setattr(dct, "BAND", band)
    shape = form(33, 40, channels, 16)
    kept = np.random.default_rng(4).random((3, shape.rows * shape.columns)) < 0.7
    kept[:, 0] = True
    payloads, colours = encoded(shape, 3, kept.astype(np.uint8))
    scale, colour = np.array([0, 50, 90]), colours if channels == 3 else None
    expected = coder.decode(shape, payloads, kept, scale, colour)
    images = dct.decode(shape, payloads, kept, scale, colour, CPU).numpy()
    apart = np.abs(images.astype(int) - expected)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3
    assert len(dct.decode(shape, [], kept[:0], scale[:0], None, CPU)) == 0
    payloads[1] = payloads[1][:-2]
    with pytest.raises(FormatError, match="does not end where its bytes end") as caught:
        dct.decode(shape, payloads, kept, scale, colour, CPU)
    assert caught.value.sample == 1


def test_a_dataset_leaves_out_what_the_device_finds_damaged(photo_folder, tmp_path, monkeypatch):
    dqcodec.encode(photo_folder, tmp_path / "x.dqz", dqcodec.EncodeOptions(keep=1, drop=0, transform="dct"))
    dataset = DQZDataset(tmp_path / "x.dqz", on_error="skip")
    wanted = [3, 7, 9]
    expected = dataset.images(wanted)
    monkeypatch.setattr(DQZDataset, "_decoder", partial(dct.decode, device=CPU))
    payloads = dataset.file.reader.read(wanted)
    batch = dataset.decode(wanted, payloads)
    assert (dataset.finish(batch).int() - expected.int()).abs().max() <= 1
    assert dataset.skipped == set()
    batch = dataset.decode(wanted, [payloads[0], payloads[1][:-1], payloads[2]])
    assert batch.indices == [3, 9]
    assert (dataset.finish(batch).int() - expected[[0, 2]].int()).abs().max() <= 1
    assert dataset.skipped == {7}
