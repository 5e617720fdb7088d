"""The two ways of coding as numcodecs codecs, found by name through entry points: any Zarr user can have them.

    zarr.create_array(store, data=images, chunks=(64, 224, 224, 3), zarr_format=2, filters=[DctCodec(bits=4)])

`dqc_dct`, for arrays of images of one shape: the transform dct with the built-in tables. A chunk, uint8 (n, H, W, 3),
(n, H, W, 1) or (n, H, W), becomes these bytes, little-endian:

    "DQCD", format 1 (uint8), channels, dependent, q (uint8 each), n, H, W (uint32 each)
    length uint32 (n,), colour uint8 (n,), payloads

`dqc_linear`, for arrays of numbers: linear symmetric quantization with a scale for each row of the first axis, and
levels of b bits one after the other. A chunk, uint8 or float32 (n, ...) of n rows with k values each, becomes:

    "DQCL", format 1, kind (0: uint8, 1: float32), bits (uint8 each), a zero byte, n, k (uint64 each)
    scale: uint8 (n,), as quantize.py has them, or float32 (n,)
    levels + m, m = 2^(b-1) - 1, b bits each, from the lowest bit of the first byte on
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.abc import Codec
from numcodecs.compat import ndarray_copy

from dqcodec.codec import quantize
from dqcodec.codec.dct import coder
from dqcodec.codec.dct.filter import FILTER, weights
from dqcodec.codec.dct.tables import EFFORTS, built_in
from dqcodec.errors import FormatError, OptionError

Array = npt.NDArray[Any]

_HEAD = struct.Struct("<4sBBBBIII")
_MAGIC, _VERSION = b"DQCD", 1
UNIT = 16
MAX_SIDE, MAX_PIXELS = 4096, 1 << 31
MAX_RATIO = 1 << 14  # pixels a coded byte, at most: what forged sizes cost


_LINEAR_HEAD = struct.Struct("<4sBBBxQQ")
_LINEAR_MAGIC = b"DQCL"
_KINDS = (np.dtype("u1"), np.dtype("<f4"))
MAX_COUNT = 1 << 48  # rows, and values of a row
_BLOCK = 1 << 20  # values that are packed at once; a multiple of 8


class DctCodec(Codec):  # type: ignore[misc]
    """Lossy codec of image chunks.

    bits    nominal width of a value, 1 to 8: a step of 2^(8 - bits) grey levels
    effort  "fast", "default" or "best"

    Raises OptionError for wrong options and arrays, FormatError for bytes that are no such chunk.
    """

    codec_id = "dqc_dct"

    def __init__(self, bits: float = 4, effort: str = "default") -> None:
        if not 1 <= bits <= 8:
            raise OptionError(f"bits: {bits}; allowed: 1 to 8")
        if effort not in EFFORTS:
            raise OptionError(f"effort: {effort!r}; allowed: {', '.join(EFFORTS)}")
        self.bits, self.effort = bits, effort

    def encode(self, buf: Any) -> bytes:
        """The bytes of a chunk."""
        from dqcodec.codec.dct.pack import Encoder, dependent, scale_index

        images = np.asarray(buf)
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
            raise OptionError(
                f"an array of {images.dtype} {images.shape}; allowed: uint8 (n, H, W), (n, H, W, 1), (n, H, W, 3)"
            )
        n, height, width = images.shape[:3]
        if not 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
            raise OptionError(f"images of {height} x {width}; allowed: 1 to {MAX_SIDE}")
        channels = images.shape[3] if images.ndim == 4 else 1
        form = _form(height, width, channels, dependent(self.effort))
        encoder, kept = Encoder(form, self.effort), np.ones(form.rows * form.columns, np.uint8)
        q = scale_index(self.bits, self.effort)
        coded = [encoder.encode(image, kept, q) for image in images.reshape(n, height, width, channels)]
        head = _HEAD.pack(_MAGIC, _VERSION, channels, dependent(self.effort), q, n, height, width)
        lengths = np.array([len(payload) for payload, _ in coded], "<u4").tobytes()
        colours = np.array([colour for _, colour in coded], np.uint8).tobytes()
        return b"".join([head, lengths, colours, *(payload for payload, _ in coded)])

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The chunk, uint8 (n, H, W, C), or `out` with its values."""
        data = bytes(memoryview(buf).cast("B"))
        if len(data) < _HEAD.size:
            raise FormatError(f"a chunk of {len(data)} bytes; expected at least {_HEAD.size}")
        magic, version, channels, uses, q, n, height, width = _HEAD.unpack_from(data)
        if magic != _MAGIC or version != _VERSION or channels not in (1, 3) or uses > 1:
            raise FormatError("not a chunk of dqc_dct")
        start = _HEAD.size + 5 * n
        pixels = n * height * width * channels
        if start > len(data) or max(height, width) > MAX_SIDE or pixels > min(MAX_PIXELS, MAX_RATIO * len(data)):
            raise FormatError(f"{n} images of {height} x {width} cannot come from {len(data)} bytes")
        lengths = np.frombuffer(data, "<u4", n, _HEAD.size).astype(np.int64)
        ends = start + np.cumsum(lengths)
        if (lengths < 1).any() or (int(ends[-1]) if n else start) != len(data):
            raise FormatError("the lengths do not add up to the chunk")
        form = _form(height, width, channels, bool(uses))
        colour = np.frombuffer(data, np.uint8, n, _HEAD.size + 4 * n)
        if channels == 3 and (colour >= len(form.tables.rotation)).any():
            raise FormatError(f"a rotation that is not there; allowed: 0 to {len(form.tables.rotation) - 1}")
        payloads = [data[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
        kept = np.ones((n, form.rows * form.columns), bool)
        images = coder.decode(form, payloads, kept, np.full(n, q), colour if channels == 3 else None)
        images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        return ndarray_copy(images, out)


def _form(height: int, width: int, channels: int, dependent: bool) -> coder.Format:
    return coder.Format(height, width, channels, built_in(UNIT, dependent), weights(FILTER, UNIT))


class LinearCodec(Codec):  # type: ignore[misc]
    """Lossy codec of chunks of numbers (ADQ-bits; `quantize.py`).

    bits    width of a level, 2 to 8; the error is at most half a scale, which is the largest distance from zero in a
            row (for uint8 from 128) divided by 2^(bits - 1) - 1, with uint8 up to 4.5% more

    Raises OptionError for wrong options and arrays, FormatError for bytes that are no such chunk.
    """

    codec_id = "dqc_linear"

    def __init__(self, bits: int = 6) -> None:
        if bits not in range(quantize.MIN_BITS, quantize.MAX_BITS + 1):
            raise OptionError(f"bits: {bits}; allowed: whole bits, {quantize.MIN_BITS} to {quantize.MAX_BITS}")
        self.bits = int(bits)

    def encode(self, buf: Any) -> bytes:
        """The bytes of a chunk."""
        values = np.asarray(buf)
        if values.dtype not in _KINDS or values.ndim < 1:
            raise OptionError(f"an array of {values.dtype} {values.shape}; allowed: uint8 or float32 (n, ...)")
        rows = values.reshape(len(values), int(np.prod(values.shape[1:])))
        if values.dtype == np.uint8:
            levels, scale = quantize.quantize_rows(rows, self.bits)
        else:
            levels, scale = quantize.quantize_real(rows, self.bits)
        head = _LINEAR_HEAD.pack(_LINEAR_MAGIC, _VERSION, _KINDS.index(values.dtype), self.bits, *rows.shape)
        folded = (levels + quantize.max_level(self.bits)).astype(np.uint8).ravel()
        return b"".join([head, scale.tobytes(), *_packed(folded, self.bits)])

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The chunk as (n, k), or `out` with its values."""
        data = bytes(memoryview(buf).cast("B"))
        if len(data) < _LINEAR_HEAD.size:
            raise FormatError(f"a chunk of {len(data)} bytes; expected at least {_LINEAR_HEAD.size}")
        magic, version, kind, bits, n, k = _LINEAR_HEAD.unpack_from(data)
        known = magic == _LINEAR_MAGIC and version == _VERSION and kind < len(_KINDS)
        if not known or max(n, k) >= MAX_COUNT or not quantize.MIN_BITS <= bits <= quantize.MAX_BITS:
            raise FormatError("not a chunk of dqc_linear")
        scales = np.dtype("u1") if kind == 0 else np.dtype("<f4")
        start, size = _LINEAR_HEAD.size + n * scales.itemsize, -(-n * k * bits // 8)
        if start + size != len(data):
            raise FormatError(f"{n} rows of {k} values in {bits} bits take {start + size} bytes; there are {len(data)}")
        scale: Array = np.frombuffer(data, scales, n, _LINEAR_HEAD.size)[:, None]
        folded = np.concatenate([np.zeros(0, np.uint8), *_unpacked(data[start:], n * k, bits)])
        m = quantize.max_level(bits)
        if kind == 1 and not ((scale >= 0) & (scale <= quantize.largest_scale(bits))).all():
            raise FormatError("a scale that is no finite number of at least 0")
        if folded.max(initial=0) > 2 * m:
            raise FormatError(f"a level of {int(folded.max()) - m}; allowed: {-m} to {m}")
        levels = (folded.astype(np.int16) - m).astype(np.int8).reshape(n, k)
        values: Array = quantize.dequantize(levels, scale) if kind == 0 else levels.astype(np.float32) * scale
        return ndarray_copy(values, out)


def _packed(values: Array, bits: int) -> Iterator[bytes]:
    """The low bits of uint8 (count,), one value after the other."""
    for start in range(0, len(values), _BLOCK):
        spread = np.unpackbits(values[start : start + _BLOCK, None], axis=1, count=bits, bitorder="little")
        yield np.packbits(spread, bitorder="little").tobytes()


def _unpacked(data: bytes, count: int, bits: int) -> Iterator[Array]:
    """The inverse of `_packed`: uint8 arrays, `count` values in all."""
    packed = np.frombuffer(data, np.uint8)
    for start in range(0, count, _BLOCK):
        here = min(_BLOCK, count - start)
        part = packed[start * bits // 8 : (start * bits + here * bits + 7) // 8]
        spread = np.unpackbits(part, count=here * bits, bitorder="little").reshape(here, bits)
        yield np.packbits(spread, axis=1, bitorder="little")[:, 0]
