from decimal import Decimal, getcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dqcodec.codec.quantize import SCALES, dequantize, max_level, quantize

PIXELS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=9))


@pytest.mark.spec("R-15")
def test_scales_are_the_nearest_float32():
    getcontext().prec = 60
    for i, scale in enumerate(SCALES):
        exact = Decimal(2) ** (Decimal(i - 128) / 16)
        neighbours = [np.nextafter(scale, np.float32(0)), scale, np.nextafter(scale, np.float32(1e9))]
        assert min(neighbours, key=lambda s: abs(Decimal(float(s)) - exact)) == scale


@given(PIXELS, st.integers(2, 8))
def test_scale_is_the_smallest_that_reaches(values, bits):
    _, index = quantize(values, bits)
    top = max(abs(int(v) - 128) for v in values.ravel())
    reaches = [float(s) * max_level(bits) >= top for s in SCALES]
    assert index == reaches.index(True)


@given(PIXELS, st.integers(2, 8))
def test_error_is_at_most_half_a_step(values, bits):
    levels, index = quantize(values, bits)
    assert np.abs(levels).max() <= max_level(bits)
    error = np.abs(dequantize(levels, index).astype(int) - values)
    assert error.max() <= float(SCALES[index]) / 2 + 0.5 + 1e-4  # rounding to whole grey levels adds half of one


@pytest.mark.spec("R-15")
def test_literal_values():
    levels, index = quantize(np.array([0, 64, 96, 128, 160, 255], np.uint8), 3)
    assert index == 215  # 2^(87/16) = 43.3 >= 128 / 3
    assert levels.tolist() == [-3, -1, -1, 0, 1, 3]
    assert dequantize(levels, index).tolist() == [0, 85, 85, 128, 171, 255]
    assert dequantize(np.array([-1, -2, 2, 2]), 208).tolist() == [96, 64, 192, 192]  # the spec's worked sample


def test_constant_grey_has_the_smallest_scale():
    levels, index = quantize(np.full((2, 2), 128, np.uint8), 8)
    assert (index, levels.tolist()) == (0, [[0, 0], [0, 0]])


def test_scales_broadcast_over_samples():
    levels = np.array([[3, -3], [3, -3]], np.int8)
    assert dequantize(levels, np.array([[128], [160]])).tolist() == [[131, 125], [140, 116]]
