"""The numcodecs codecs dqc_dct and dqc_linear, found by their names, in real Zarr arrays."""

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from test_dct import picture

from dqcodec.codec import quantize
from dqcodec.codec.numcodec import _LINEAR_HEAD, DctCodec, LinearCodec
from dqcodec.errors import FormatError, OptionError


def images(n=5, height=40, width=24, channels=3):
    return np.stack([picture(height, width, channels, seed) for seed in range(n)])


@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(channels, effort):
    codec = numcodecs.get_codec({"id": "dqc_dct", "bits": 5, "effort": effort})
    assert isinstance(codec, DctCodec)
    assert codec.get_config() == {"id": "dqc_dct", "bits": 5, "effort": effort}
    values = images(channels=channels)
    data = codec.encode(values)
    assert len(data) < values.size / 3
    back = codec.decode(data)
    assert back.shape == values.shape
    assert np.abs(back.astype(int) - values).mean() < 5
    out = np.zeros_like(values)
    codec.decode(data, out=out)
    assert np.array_equal(out, back)


def test_in_a_zarr_array():
    values = images(7)
    array = zarr.create_array(
        zarr.storage.MemoryStore(), shape=values.shape, dtype="uint8", chunks=(3, *values.shape[1:]), zarr_format=2,
        filters=[DctCodec(bits=6)], compressors=None,
    )  # fmt: skip
    array[:] = values
    assert np.abs(array[:].astype(int) - values).max() < 20
    assert np.array_equal(array[4], array[:][4])


def test_wrong_arguments():
    for bits in (0.9, 9):
        with pytest.raises(OptionError, match=f"bits: {bits}; allowed: 1 to 8"):
            DctCodec(bits=bits)
    with pytest.raises(OptionError, match="effort: 'much'"):
        DctCodec(effort="much")
    for wrong in (np.zeros((2, 8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((1, 8, 8, 2), np.uint8)):
        with pytest.raises(OptionError, match="allowed: uint8"):
            DctCodec().encode(wrong)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_chunks_are_refused_or_decode(data):
    codec = DctCodec()
    chunk = bytearray(CHUNK)
    for _ in range(data.draw(st.integers(1, 3))):
        chunk[data.draw(st.integers(0, len(chunk) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(chunk), len(chunk) - 1, 30, 20, 3]))
    try:
        found = codec.decode(bytes(chunk[:cut]))
    except FormatError:
        return
    assert found.dtype == np.uint8
    assert found.size <= len(chunk) << 14


CHUNK = DctCodec().encode(images(3, 20, 20))


ROWS = st.tuples(st.integers(0, 5), st.integers(0, 40))


@settings(deadline=None)
@given(hnp.arrays(np.uint8, ROWS), st.integers(2, 8))
def test_linear_gives_what_files_hold(values, bits):
    codec = numcodecs.get_codec({"id": "dqc_linear", "bits": bits})
    data = codec.encode(values)
    assert len(data) == _LINEAR_HEAD.size + len(values) + -(-values.size * bits // 8)
    expected = [quantize.dequantize(*quantize.quantize(row, bits)) for row in values]
    back = codec.decode(data)
    assert np.array_equal(back, np.array(expected, np.uint8).reshape(values.shape))
    out = np.zeros_like(values)
    codec.decode(data, out=out)
    assert np.array_equal(out, back)


@settings(deadline=None)
@given(hnp.arrays(np.float32, ROWS, elements=st.floats(-(2.0**100), 2.0**100, width=32)), st.integers(2, 8))
def test_linear_with_real_numbers(values, bits):
    back = LinearCodec(bits).decode(LinearCodec(bits).encode(values))
    assert back.dtype == np.float32
    largest = np.abs(values.astype(float)).max(1, initial=0, keepdims=True)
    assert (np.abs(back - values.astype(float)) <= largest / quantize.max_level(bits) * 0.50001 + 1e-37).all()


def test_linear_is_bit_packed():
    """Levels -1, 0, 1, -1, 0 of scale 1 in two bits each, plus one: 0, 1, 2, 0, 1 from the lowest bit on."""
    data = LinearCodec(2).encode(np.array([[-1, 0, 1, -1, 0]], np.float32))
    assert data == _LINEAR_HEAD.pack(b"DQCL", 1, 1, 2, 1, 5) + np.float32(1).tobytes() + bytes([0b00_10_01_00, 0b01])


@pytest.mark.parametrize(("kind", "limit"), [("uint8", 5), ("float32", 0.05)])
def test_linear_in_a_zarr_array(kind, limit):
    values = np.random.default_rng(0).random((7, 5, 3)).astype("f4") * 2 - 1
    values = (values * 127 + 128).astype("uint8") if kind == "uint8" else values
    array = zarr.create_array(
        zarr.storage.MemoryStore(), shape=values.shape, dtype=kind, chunks=(3, 5, 3), zarr_format=2,
        filters=[LinearCodec(bits=6)], compressors=None,
    )  # fmt: skip
    array[:] = values
    assert np.abs(array[:].astype(float) - values).max() < limit
    assert np.array_equal(array[4], array[:][4])


@pytest.mark.parametrize("bits", range(2, 9))
def test_linear_with_the_largest_numbers(bits):
    values = np.array([[np.finfo(np.float32).max, -1.0], [1e-37, 0]], np.float32)
    back = LinearCodec(bits).decode(LinearCodec(bits).encode(values))
    np.testing.assert_allclose(back.max(1), values.max(1), rtol=1e-6)


def test_more_values_than_a_block():
    values = np.random.default_rng(0).random((2, 700_001), np.float32)
    assert np.abs(LinearCodec(7).decode(LinearCodec(7).encode(values)) - values).max() < 0.5 / 63 + 1e-6


def test_linear_wrong_arguments():
    for bits in (1, 9, 2.5, "6", None):
        with pytest.raises(OptionError, match=r"bits: .*; allowed: whole bits, 2 to 8"):
            LinearCodec(bits)
    for wrong in (np.zeros(3), np.uint8(3), np.zeros((2, 2), ">f4"), np.zeros(2, complex)):
        with pytest.raises(OptionError, match="allowed: uint8 or float32"):
            LinearCodec().encode(wrong)
    for value in (np.nan, np.inf):
        with pytest.raises(OptionError, match="row 1 has values that are not finite"):
            LinearCodec().encode(np.array([[1, 2], [3, value]], np.float32))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from([np.uint8, np.float32]))
def test_changed_linear_chunks_are_refused_or_decode(data, kind):
    chunk = bytearray(LinearCodec(3).encode(np.arange(30).reshape(3, 10).astype(kind)))
    for _ in range(data.draw(st.integers(1, 3))):
        chunk[data.draw(st.integers(0, len(chunk) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(chunk), len(chunk) - 1, 23, 3]))
    try:
        found = LinearCodec().decode(bytes(chunk[:cut]))
    except FormatError:
        return
    assert found.dtype in (np.uint8, np.float32)
    assert np.isfinite(found).all()
    assert found.size <= 4 * len(chunk)
