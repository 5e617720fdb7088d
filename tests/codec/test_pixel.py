import tracemalloc
import zlib

import numpy as np
import pytest
from conftest import assert_same
from hypothesis import given
from hypothesis import strategies as st

from dqcodec.codec.pixel import decode, encode
from dqcodec.codec.quantize import max_level
from dqcodec.errors import FormatError


@st.composite
def levels_and_bits(draw):
    bits = draw(st.integers(2, 8))
    shape = (draw(st.integers(1, 5)), draw(st.sampled_from([1, 3])), *(draw(st.integers(1, 6)),) * 2)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.integers(0, max_level(bits)))
    return rng.integers(-spread, spread, shape, dtype=np.int8, endpoint=True), bits


@given(levels_and_bits())
def test_round_trip(case):
    levels, bits = case
    assert_same(decode(encode(levels, bits), levels.shape, bits), levels)


@pytest.mark.spec("R-17", "R-18", "R-19")
def test_literal_bytes():
    """The spec's worked sample, and one of two channels-mixing pixels."""
    assert decode(bytes([0, 3, 4, 4]), (1, 1, 2, 2), 3).ravel().tolist() == [-1, -2, 2, 2]
    assert encode(np.array([-1, -2, 2, 2], np.int8).reshape(1, 1, 2, 2), 3) == bytes([0, 3, 4, 4])
    # one pixel, red 1, green -1, blue 0: c = -1, 2, 1 -> u = 1, 4, 2 -> planes 001, 100 (bit 1: blue), 010 (bit 2: red)
    colour = np.array([1, -1, 0], np.int8).reshape(1, 3, 1, 1)
    assert encode(colour, 4) == bytes([0, 0b001, 0b100, 0b010, 0])
    assert decode(bytes([0, 0b001, 0b100, 0b010, 0]), (1, 3, 1, 1), 4).ravel().tolist() == [1, -1, 0]


@pytest.mark.spec("R-17")
def test_the_smaller_method_is_taken():
    smooth = np.zeros((16, 3, 4, 4), np.int8)
    noise = np.random.default_rng(0).integers(-31, 32, (16, 3, 4, 4), dtype=np.int8)
    assert encode(smooth, 6)[0] == 1
    assert len(encode(smooth, 6)) < 20
    assert encode(noise, 6)[0] == 0
    assert len(encode(noise, 6)) == 1 + 6 * 96


@pytest.mark.spec("R-17")
@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\x02" + bytes(6), "coding method 2"),
        (b"\x00" + bytes(5), "5 bytes of bit planes, expected 6"),
        (b"\x00" + bytes(7), "7 coded bytes, more than the 6"),
        (b"\x00", "0 bytes of bit planes"),
        (b"\x01", "does not end"),
        (b"\x01\xff\xff", "damaged deflate stream"),
    ],
)
def test_refuses(payload, reason):
    with pytest.raises(FormatError, match=reason):
        decode(payload, (1, 1, 2, 2), 6)


@pytest.mark.spec("R-17")
def test_a_bomb_is_not_unpacked():
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"\x01" + packer.compress(bytes(1 << 26)) + packer.flush()
    tracemalloc.start()
    with pytest.raises(FormatError, match="does not end with its 98304 bytes"):
        decode(bomb, (1, 1, 512, 256), 6)
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    with pytest.raises(FormatError, match="coded bytes, more than the 6"):
        decode(bomb, (1, 1, 2, 2), 6)


def test_nothing_may_follow_the_stream():
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    whole = b"\x01" + packer.compress(bytes(6)) + packer.flush()
    assert decode(whole, (1, 1, 2, 2), 6).tolist() == np.zeros((1, 1, 2, 2)).tolist()
    with pytest.raises(FormatError, match="does not end"):
        decode(whole + b"x", (1, 1, 2, 2), 6)


@pytest.mark.spec("R-20")
def test_level_below_minus_m_is_refused():
    # u = 2^b - 1 unfolds to -2^(b-1)
    with pytest.raises(FormatError, match="a level of -4 at 3 bits; allowed: -3 to 3"):
        decode(bytes([0, 1, 1, 1]), (1, 1, 1, 1), 3)


@given(st.binary(min_size=1, max_size=80), st.integers(0, 255))
def test_random_payloads_decode_or_are_refused(payload, bits):
    try:
        levels = decode(payload, (1, 3, 2, 2), bits)
    except FormatError:
        return
    assert np.abs(levels.astype(int)).max() <= max_level(bits)


@given(levels_and_bits(), st.data())
def test_mutated_payloads_decode_or_are_refused(case, data):
    levels, bits = case
    payload = bytearray(encode(levels, bits))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = decode(bytes(payload), levels.shape, bits)
    except FormatError:
        return
    assert found.shape == levels.shape
