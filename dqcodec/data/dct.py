"""Payloads of the transform `dct` -> images on a GPU, a batch at once.

    payloads -> entropy decode (numba) | inverse transform -> filter -> colour (torch)

Rows of units are decoded until their coefficients fill BAND bytes; then they become planes, and the next rows take
their place. So planes and images are all that grows with a batch.
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

from dqcodec.codec.dct import filter
from dqcodec.codec.dct.coder import DAMAGED, Format, join
from dqcodec.codec.dct.transform import CHROMA_STEP, STEPS, matrix
from dqcodec.errors import FormatError

Array = npt.NDArray[Any]

BAND = 64 << 20  # bytes of coefficients, or planes, at once; what is made of them on the way is some times as much
STREAMS = 4  # batches that a GPU decodes beside each other: one fills a small part of it


@cache
def available() -> bool:
    """Whether numba compiles for this machine's GPU: what `dqcodec[cuda]` installs is there and finds a driver."""
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
    if not n:
        return zeros(0, channels, form.height, form.width, dtype=torch.uint8)
    joined, spans = join(payloads)
    data, units = share(put(joined)), put(kept.astype(np.uint8)).view(n, rows, columns)
    step = put(STEPS[scale][:, None] / np.float32(64) * np.array([1, CHROMA_STEP, CHROMA_STEP], np.float32)[:channels])
    rotation = None if colour is None else put(form.rotations[colour])
    state = zeros(n, 2, dtype=torch.int64)
    given = data, data.view("<u2"), share(put(spans)), share(units.view(n, -1))
    static = [_arrays(values, lambda array: share(put(array))) for values in (form.order, form.tables.coding)]
    edges = _arrays(form.edges(), lambda array: share(zeros(n, len(array), dtype=torch.from_numpy(array).dtype)))
    lasts = share(zeros(n, 18))
    size = columns * channels * 256
    band = max(1, BAND // (4 * n * size))
    planes = zeros(n, channels, rows * unit, columns * unit, dtype=torch.float32)
    patterns, active = zeros(n, rows, columns), zeros(n, channels - 1, rows, columns)
    for first in range(0, rows, band):
        count = min(band, rows - first)
        here, scratch, its = slice(first, first + count), zeros(n, count, size), zeros(n, count, columns)
        gpu.decode_rows[max(n, gpu.MIN_BLOCKS), 1, queue](
            *given, first, channels, edges, *static, share(state), share(scratch), share(its), lasts
        )
        coefficients = scratch.view(n, count, columns, channels, 16, 16)[..., :unit, :unit]
        planes[:, :, first * unit : (first + count) * unit] = to_planes(coefficients, its, step)
        patterns[:, here], active[:, :, here] = its, activity_of(coefficients)
    out = to_images(form, planes, patterns, active, units, STEPS[scale], rotation)
    x, p = state.cpu().numpy().T  # waits for all of the above
    bad = np.flatnonzero((x != 1) | (p != spans[:, 1] >> 1))
    if len(bad):
        raise FormatError(DAMAGED, sample=int(bad[0]))
    return out


def _arrays(values: Any, change: Callable[[Array], Any]) -> Any:
    """A named tuple with its arrays changed."""
    return values._replace(**{k: change(part) for k, part in values._asdict().items() if isinstance(part, np.ndarray)})


def to_planes(coefficients: Tensor, patterns: Tensor, step: Tensor) -> Tensor:
    """float32 (n, C, rows * unit, columns * unit): the inverse transform, on any device.

    coefficients  int32 (n, rows, columns, C, unit, unit)   64ths of a step, blocks in their places
    patterns      int32 (n, rows, columns)                  see stream.unit
    step          float32 (n, C)                            a 64th of a step
    """
    n, rows, columns, channels, unit, _ = coefficients.shape
    c = (coefficients * step[:, None, None, :, None, None]).flatten(-2)
    planes = c @ _basis(unit, unit, c.device)
    if unit > 4:  # luma once more as if all of it were split: products cost less than sorting out which is
        small = patterns[..., None] >> _quadrants(unit, c.device) & 1
        c = c[:, :, :, 0]
        split = torch.where(small == 1, c @ _basis(4, unit, c.device), c @ _basis(8, unit, c.device))
        planes[:, :, :, 0] = torch.where(patterns[..., None] < 0, planes[:, :, :, 0], split)
    planes = planes.view(n, rows, columns, channels, unit, unit).permute(0, 3, 1, 4, 2, 5)
    return planes.reshape(n, channels, rows * unit, columns * unit)


def activity_of(coefficients: Tensor) -> Tensor:
    """int64 (n, C - 1, rows, columns): activity of the chroma blocks, from coefficients as to_planes takes them."""
    grid = _grid(1, 1, coefficients.shape[-1], coefficients.device)
    active: Tensor = filter.activity_of(coefficients[:, :, :, 1:], grid).permute(0, 3, 1, 2)
    return active


def to_images(
    form: Format, planes: Tensor, patterns: Tensor, active: Tensor, kept: Tensor, steps: Array, rotation: Tensor | None
) -> Tensor:
    """uint8 (n, C, H, W): filter, colour and placing, on any device.

    planes    float32, from to_planes; they are overwritten
    patterns  int32 (n, rows, columns)          active    int64 (n, C - 1, rows, columns)
    kept      uint8 (n, rows, columns)          steps     float32 (n,)
    rotation  float32 (n, 3, 3), with three planes
    """
    n, device = len(planes), planes.device
    grid = _grid(form.rows, form.columns, form.unit, device)
    if form.weights is not None:
        limit = torch.from_numpy(filter.limits(steps)).to(device).view(n, 1, 1, 1)
        table = torch.from_numpy(form.weights.astype(np.int32)).to(device)
        few = max(1, BAND // (planes[0].numel() * 4))
        for k in (slice(start, start + few) for start in range(0, n, few)):
            blocks = filter.blocks_of(patterns[k], active[k], kept[k], limit[k], grid)
            planes[k] = filter.filtered(filter.to_integers(planes[k]).int(), blocks, table) / filter.FINE
    if rotation is not None:
        planes = (rotation.mT @ planes.flatten(2)).view(planes.shape)
    pixels = (planes + 128.5).clamp_(0, 255).to(torch.uint8)
    pixels *= kept[:, None, grid.rows // form.unit, grid.columns // form.unit]
    return pixels[:, :, : form.height, : form.width].contiguous()


@cache
def _grid(rows: int, columns: int, unit: int, device: torch.device) -> filter.Grid:
    grid: filter.Grid = _arrays(filter.grid(rows, columns, unit), lambda array: torch.from_numpy(array).to(device))
    return grid


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
