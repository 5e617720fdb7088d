"""The transform dct as a numcodecs codec, `dqc_dct`, for arrays of images of one shape: any Zarr user can have it.

    zarr.create_array(store, data=images, chunks=(64, 224, 224, 3), zarr_format=2, filters=[DctCodec(bits=4)])

A chunk, uint8 (n, H, W, 3), (n, H, W, 1) or (n, H, W), becomes these bytes, little-endian, with the built-in tables:

    "DQCD", format 1 (uint8), channels, dependent, q (uint8 each), n, H, W (uint32 each)
    length uint32 (n,), colour uint8 (n,), payloads
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.abc import Codec

from dqcodec.codec.dct import coder
from dqcodec.codec.dct.tables import EFFORTS, built_in
from dqcodec.errors import FormatError, OptionError

Array = npt.NDArray[Any]

_HEAD = struct.Struct("<4sBBBBIII")
_MAGIC, _VERSION = b"DQCD", 1
UNIT = 16
MAX_SIDE, MAX_PIXELS = 4096, 1 << 31
MAX_RATIO = 1 << 14  # pixels a coded byte, at most: what forged sizes cost


class DctCodec(Codec):  # type: ignore[misc]
    """Lossy codec of image chunks.

    bits    nominal width of a value, 2 to 8: a step of 2^(8 - bits) grey levels
    effort  "fast", "default" or "best"

    Raises OptionError for wrong options and arrays, FormatError for bytes that are no such chunk.
    """

    codec_id = "dqc_dct"

    def __init__(self, bits: float = 4, effort: str = "default") -> None:
        if not 2 <= bits <= 8:
            raise OptionError(f"bits: {bits}; allowed: 2 to 8")
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
        if out is None:
            return images
        target = np.frombuffer(memoryview(out).cast("B"), np.uint8)
        target[:] = images.ravel()
        return out


def _form(height: int, width: int, channels: int, dependent: bool) -> coder.Format:
    return coder.Format(height, width, channels, built_in(UNIT, dependent))
