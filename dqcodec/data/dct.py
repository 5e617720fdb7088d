"""Payloads of the transform `dct` -> images on a GPU, a batch at once.

    payloads -> entropy decode (numba) | inverse transform -> colour -> place (torch)

Rows of units are decoded until their coefficients fill BAND bytes; then they become pixels, and the next rows take
their place. So memory does not grow with the images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dqcodec.codec.dct.coder import DAMAGED, Format
from dqcodec.codec.dct.stream import COEFFICIENTS
from dqcodec.codec.dct.transform import CHROMA_STEP, STEPS, matrix
from dqcodec.errors import FormatError

Array = npt.NDArray[Any]

BAND = 64 << 20  # bytes of coefficients; what is made of them on the way to pixels takes about four times as much
STREAMS = 4  # batches that a GPU decodes beside each other: one fills a small part of it


@cache
def available() -> bool:
    """Whether numba compiles for this machine's GPU: `dqcodec[cuda]` is installed and finds a driver and a compiler."""
    if find_spec("numba_cuda") is None:
        return False
    from numba import cuda

    return bool(cuda.is_available())


def decode(
    form: Format, payloads: Sequence[bytes], kept: Array, scale: Array, colour: Array | None, device: torch.device
) -> Tensor:
    """As coder.decode, on a CUDA device: uint8 (n, C, H, W), complete, with no work left in a queue.

    Called from several threads, up to STREAMS batches are decoded beside each other. The images are memory of another
    stream than the caller's; see Tensor.record_stream. In numba's simulator the device is the CPU.
    """
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            return _decode(form, payloads, kept, scale, colour, device, torch.Tensor.numpy, 0)
        from numba import cuda

        queue = next(_queues(device))
        with torch.cuda.stream(queue):
            return _decode(
                form, payloads, kept, scale, colour, device, cuda.as_cuda_array, cuda.external_stream(queue.cuda_stream)
            )


@cache
def _queues(device: torch.device) -> Iterator[torch.cuda.Stream]:
    return itertools.cycle([torch.cuda.Stream(device) for _ in range(STREAMS)])


def _decode(
    form: Format, payloads: Sequence[bytes], kept: Array, scale: Array, colour: Array | None,
    device: torch.device, share: Callable[[Tensor], Any], queue: Any,
) -> Tensor:  # fmt: skip
    """share makes of a tensor the array that numba takes, with the same memory; queue is numba's stream."""
    from dqcodec.codec.dct import gpu

    def put(array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    n, rows, columns, channels, unit = len(payloads), form.rows, form.columns, form.channels, form.unit
    out = zeros(n, channels, form.height, form.width, dtype=torch.uint8)
    if not n:
        return out
    joined, spans = gpu.join(payloads)
    data, there = share(put(joined)), put(kept.astype(np.uint8))
    step = put(STEPS[scale][:, None] / np.float32(64) * np.array([1, CHROMA_STEP, CHROMA_STEP], np.float32)[:channels])
    rotation = None if colour is None else put(form.rotations[colour])
    state = zeros(n, 2, dtype=torch.int64)
    given = data, data.view(np.uint16), share(put(spans)), share(there)
    static = [_arrays(values, lambda array: share(put(array))) for values in (form.order, form.tables.coding)]
    edges = _arrays(form.edges(), lambda array: share(zeros(n, len(array))))
    lasts = share(zeros(n, columns * 18))
    size = COEFFICIENTS + columns * channels * 256
    band = max(1, BAND // (4 * n * size))
    for first in range(0, rows, band):
        count = min(band, rows - first)
        scratch, patterns = zeros(n, count, size), zeros(n, count, columns)
        gpu.decode_rows[max(n, gpu.MIN_BLOCKS), 1, queue](
            *given, first, channels, edges, *static, share(state), share(scratch), share(patterns), lasts
        )
        pixels = to_pixels(
            scratch[:, :, COEFFICIENTS:].view(n, count, columns, channels, 16, 16), patterns, step, rotation,
            there.view(n, rows, columns)[:, first : first + count], unit,
        )  # fmt: skip
        top = first * unit
        out[:, :, top : top + count * unit] = pixels[:, :, : form.height - top, : form.width]
    x, p = state.cpu().numpy().T  # waits for all of the above
    bad = np.flatnonzero((x != 1) | (p != spans[:, 1] >> 1))
    if len(bad):
        raise FormatError(DAMAGED, sample=int(bad[0]))
    return out


def _arrays(values: Any, change: Callable[[Array], Any]) -> Any:
    """A named tuple with its arrays changed."""
    return values._replace(**{k: change(part) for k, part in values._asdict().items() if isinstance(part, np.ndarray)})


def to_pixels(
    coefficients: Tensor, patterns: Tensor, step: Tensor, rotation: Tensor | None, kept: Tensor, unit: int
) -> Tensor:
    """Inverse transform, colour and placing, on any device.

    coefficients  int32 (n, rows, columns, C, 16, 16)   64ths of a step, blocks in their places
    patterns      int32 (n, rows, columns)              see stream.unit
    step          float32 (n, C)                        a 64th of a step
    rotation      float32 (n, 3, 3), or None            with three planes
    kept          uint8 (n, rows, columns)              1 where a unit is there
    returns       uint8 (n, C, rows * unit, columns * unit)   0 where it is not
    """
    n, rows, columns, channels = coefficients.shape[:4]
    c = (coefficients[..., :unit, :unit] * step[:, None, None, :, None, None]).flatten(-2)
    planes = c @ _basis(unit, unit, c.device)
    if unit > 4:  # luma once more as if all of it were split: products cost less than sorting out which is
        small = patterns[..., None] >> _quadrants(unit, c.device) & 1
        c = c[:, :, :, 0]
        split = torch.where(small == 1, c @ _basis(4, unit, c.device), c @ _basis(8, unit, c.device))
        planes[:, :, :, 0] = torch.where(patterns[..., None] < 0, planes[:, :, :, 0], split)
    values = planes.view(n, rows, columns, channels, unit, unit).permute(0, 3, 1, 4, 2, 5)
    if rotation is not None:
        values = (rotation.mT @ values.reshape(n, channels, -1)).view(values.shape)
    pixels = (values + 128.5).clamp_(0, 255).to(torch.uint8).mul_(kept[:, None, :, None, :, None])
    return pixels.reshape(n, channels, rows * unit, columns * unit)


@cache
def _basis(size: int, unit: int, device: torch.device) -> Tensor:
    """float32 (unit^2, unit^2): row (u, v) is what coefficient (u, v) adds to a unit cut into blocks of `size`."""
    blocks = np.kron(np.eye(unit // size), matrix(size))
    return torch.from_numpy(np.kron(blocks, blocks).astype(np.float32)).to(device)


@cache
def _quadrants(unit: int, device: torch.device) -> Tensor:
    """int32 (unit^2,): number of the quadrant of 8 x 8 pixels that each pixel of a unit lies in."""
    y, x = np.mgrid[:unit, :unit] // 8
    return torch.from_numpy((2 * y + x).ravel().astype(np.int32)).to(device)
