"""The numcodecs codec dqc_dct, found by its name, in a real Zarr array."""

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dct import picture

from dqcodec.codec.numcodec import DctCodec
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
    assert np.abs(back.astype(int) - values).mean() < 4
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
    with pytest.raises(OptionError, match="bits: 9"):
        DctCodec(bits=9)
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
