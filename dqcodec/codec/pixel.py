"""The transform `pixel`: levels of the kept patches <-> bytes of one sample.

Levels are in [-m, m], m = 2^(b-1) - 1; all arithmetic below is modulo 2^b. In turn, for kept patches (K, C, p, p):

    colour      (C = 3)  green, red - green, blue - green
    predict     each value minus its left neighbour; the first of a row minus the first of the row above; inside a patch
    fold        d in [-2^(b-1), 2^(b-1)) becomes 2d if d >= 0, else -2d - 1
    planes      values in the order (C, K, p, p); bit 0 of all of them, then bit 1, ...; eight a byte, first in bit 0
    code        raw deflate; the payload is byte 1 and that stream, or byte 0 and the planes where they are smaller

Prediction is undone by two running sums, so decoding has no serial step but inflate. Against plain packed levels with
deflate this takes 35% fewer bytes at 6 bits (CIFAR-10: 1,314 against 2,028 bytes an image), 18% fewer at 4.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec.quantize import MAX_BITS, MIN_BITS, max_level
from dqcodec.errors import FormatError

Array = npt.NDArray[Any]

STORED, DEFLATED = 0, 1
_COLOUR = [1, 0, 2]  # green first


def encode(levels: Array, bits: int) -> bytes:
    """The payload of one sample.

    levels   int8 (K, C, p, p), within -m..m of `bits`
    """
    values = levels.astype(np.uint8)  # modulo 256, of which modulo 2^b is a part
    if values.shape[1] == 3:
        values = values[:, _COLOUR]
        values[:, 1:] -= values[:, :1]
    left = values.copy()
    left[..., 1:] -= values[..., :-1]
    left[..., 1:, 0] -= values[..., :-1, 0]
    planes = _pack(_fold(left, bits).swapaxes(0, 1).ravel(), bits)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    packed = deflate.compress(planes) + deflate.flush()
    if len(packed) < len(planes):  # so a payload is never longer than the planes and one byte
        return bytes([DEFLATED]) + packed
    return bytes([STORED]) + planes


def decode(payload: bytes, shape: tuple[int, int, int, int], bits: int) -> Array:
    """Levels, int8 (K, C, p, p) = `shape`, of one sample; FormatError where the payload cannot be one."""
    if not MIN_BITS <= bits <= MAX_BITS:
        raise FormatError(f"a width of {bits} bits; allowed: {MIN_BITS} to {MAX_BITS}")
    kept, channels, side, _ = shape
    count = int(np.prod(shape))
    planes = _inflate(payload, bits * -(-count // 8))
    folded = _unpack(planes, count, bits).reshape(channels, kept, side, side).swapaxes(0, 1)
    values = _unfold(folded)
    values[..., 0] = np.cumsum(values[..., 0], axis=-1, dtype=np.uint8)
    values = np.cumsum(values, axis=-1, dtype=np.uint8)
    if channels == 3:
        values[:, 1:] += values[:, :1]
        values = values[:, np.argsort(_COLOUR)]
    shift = 8 - bits
    levels: Array = (values << shift).view(np.int8) >> shift  # the low b bits, with their sign
    if int(levels.min()) < -max_level(bits):
        raise FormatError(f"a level of {levels.min()} at {bits} bits; allowed: {-max_level(bits)} to {max_level(bits)}")
    return levels


def _inflate(payload: bytes, size: int) -> bytes:
    method, data = payload[0], payload[1:]
    if len(data) > size:
        raise FormatError(f"{len(data)} coded bytes, more than the {size} of the bit planes")
    if method == DEFLATED:
        inflate = zlib.decompressobj(wbits=-15)
        try:
            planes = inflate.decompress(data, size + 1)
        except zlib.error as error:
            raise FormatError(f"damaged deflate stream ({error})") from None
        if not inflate.eof or inflate.unused_data:
            raise FormatError(f"the deflate stream does not end with its {size} bytes")
    elif method == STORED:
        planes = data
    else:
        raise FormatError(f"coding method {method}; allowed: {STORED}, {DEFLATED}")
    if len(planes) != size:
        raise FormatError(f"{len(planes)} bytes of bit planes, expected {size}")
    return planes


def _fold(values: Array, bits: int) -> Array:
    """Residuals modulo 2^b as small non-negative integers: 0, -1, 1, -2, ... -> 0, 1, 2, 3, ..."""
    shift = 8 - bits
    signed = (values << shift).view(np.int8) >> shift
    folded: Array = ((signed << 1) ^ (signed >> 7)).view(np.uint8)
    return folded


def _unfold(folded: Array) -> Array:
    values: Array = (folded >> 1) ^ (0 - (folded & 1))
    return values


def _pack(values: Array, bits: int) -> bytes:
    planes = (values[None] >> np.arange(bits, dtype=np.uint8)[:, None]) & 1
    return np.packbits(planes, axis=1, bitorder="little").tobytes()


def _unpack(planes: bytes, count: int, bits: int) -> Array:
    values = np.zeros(count, np.uint8)
    for bit, plane in enumerate(np.frombuffer(planes, np.uint8).reshape(bits, -1)):
        values |= np.unpackbits(plane, count=count, bitorder="little") << np.uint8(bit)
    return values
