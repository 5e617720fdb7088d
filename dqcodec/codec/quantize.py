"""Linear symmetric quantization with one bit width and one scale a sample (ADQ-bits; DESIGN: bits).

With x = value - 128, b bits and m = 2^(b-1) - 1:

    q = clip(round(x / s), -m, m)        x' = clip(round(q s) + 128, 0, 255)

The scale s is the smallest 2^((i-128)/16), i = 0..255, that is at least max|x| / m; i is stored, one byte a sample.
Both roundings are to nearest, ties to even, in float32; a product of two float32 is rounded once, so every machine
gets the same integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OptionError

Array = npt.NDArray[Any]

MIN_BITS, MAX_BITS = 2, 8
ZERO = 128  # the pixel value that level 0 stands for

# float32(2^(i/16)), i = 0..15; with powers of two they make the 256 scales without any rounding.
_ROOTS = np.array(
    [
        1.0, 1.0442737340927124, 1.0905077457427979, 1.1387885808944702, 1.1892070770263672, 1.2418577671051025,
        1.2968395948410034, 1.3542555570602417, 1.4142135381698608, 1.4768261909484863, 1.5422108173370361,
        1.6104903221130371, 1.6817928552627563, 1.7562521696090698, 1.8340080976486206, 1.9152065515518188,
    ],
    np.float32,
)  # fmt: skip
SCALES: Array = np.ldexp(np.tile(_ROOTS, 16), np.repeat(np.arange(16) - 8, 16)).astype(np.float32)


def max_level(bits: int) -> int:
    """m: the largest level of a width of `bits`."""
    return int(2 ** (bits - 1) - 1)


def quantize(values: Array, bits: int) -> tuple[Array, int]:
    """Levels and scale index of one sample.

    values   uint8, any shape     pixels
    bits     MIN_BITS..MAX_BITS
    returns  (int8 of that shape, -m..m; scale index 0..255)
    """
    levels, scale = quantize_rows(values.reshape(1, -1), bits)
    return levels.reshape(values.shape), int(scale[0])


def quantize_rows(values: Array, bits: int) -> tuple[Array, Array]:
    """The same for many samples: uint8 (n, k) -> levels int8 (n, k), scale indices uint8 (n,)."""
    x = values.astype(np.float32) - np.float32(ZERO)
    m = max_level(bits)
    # max|x| / m <= s, as max|x| <= s m: float64 products of an 8-bit integer and a float32 are exact.
    index = np.searchsorted(SCALES.astype(np.float64) * m, np.abs(x).max(1, initial=0))
    levels = np.clip(np.rint(x / SCALES[index][:, None]), -m, m)
    return levels.astype(np.int8), index.astype(np.uint8)


def quantize_real(values: Array, bits: int) -> tuple[Array, Array]:
    """Levels and scales of rows of real numbers, as above but around 0 and with the scale s = max|x| / m itself.

    values   float32 (n, k), finite
    bits     MIN_BITS..MAX_BITS
    returns  (int8 (n, k), -m..m; float32 (n,)); x' = q s in float32

    A row whose largest value is subnormal may become zeros.
    """
    largest = np.abs(values).max(1, initial=0)
    if not np.isfinite(largest).all():
        raise OptionError(f"row {int((~np.isfinite(largest)).argmax())} has values that are not finite")
    m = max_level(bits)
    scale = np.minimum(largest / np.float32(m), largest_scale(bits)).astype(np.float32)
    divisor = np.where(scale > 0, scale, np.float32(1))[:, None]
    return np.clip(np.rint(values / divisor), -m, m).astype(np.int8), scale


def largest_scale(bits: int) -> np.float32:
    """The largest scale of real numbers whose product with the largest level is finite."""
    most, m = float(np.finfo(np.float32).max), max_level(bits)
    scale = np.float32(most / m)
    return scale if float(scale) * m <= most else np.nextafter(scale, np.float32(0))


def dequantize(levels: Array, scale: npt.ArrayLike) -> Array:
    """Pixels, uint8, from levels (any integer type) and scale indices that broadcast against them."""
    x = np.rint(levels.astype(np.float32) * SCALES[np.asarray(scale)])
    values: Array = np.clip(x + ZERO, 0, 255).astype(np.uint8)
    return values
