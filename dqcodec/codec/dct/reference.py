"""The reference decoder: the functions of `stream.py` as they stand, and the inverse transform in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec.dct import filter, stream
from dqcodec.codec.dct.transform import CHROMA_STEP, matrix

if TYPE_CHECKING:
    from dqcodec.codec.dct.coder import Format

Array = npt.NDArray[Any]


def parse(form: Format, payload: bytes, kept: Array) -> tuple[Array, Array, bool]:
    """Entropy-decode one sample.

    kept      uint8 (units,)
    returns   int32 (units, C, 16, 16), 64ths of a step, blocks in their places; int32 (units,), the patterns
              (stream.unit), -1 where nothing is split; and whether the payload ended as it should
    """
    columns, planes, coding = form.columns, form.channels, form.tables.coding
    coding = coding._replace(table=coding.table.tolist(), alias=coding.alias.tolist())  # lists are faster one by one
    edges = form.edges()
    coefficients = np.zeros((form.rows * columns, planes, 16, 16), np.int32)
    patterns = np.full(form.rows * columns, -1, np.int32)
    x, head = stream.begin(payload, 0, len(payload))
    words = [*np.frombuffer(payload, "<u2", (len(payload) - head) // 2, head).tolist(), 0]
    p, end = 0, len(words) - 1
    stream.forget(edges, 0, edges.width)
    lasts = np.zeros(18, np.int32)
    for n in range(form.rows * columns):
        scratch = np.zeros(256 * planes, np.int32)
        patterns[n], x, p = stream.next_unit(
            kept[n], n % columns, 0, planes, edges, scratch, lasts, form.order, coding, x, words, p, end
        )
        coefficients[n] = scratch.reshape(planes, 16, 16)
    return coefficients, patterns, x == 1 and p == end


def inverse(coefficients: Array, patterns: Array, step: float, unit: int) -> Array:
    """float32 (units, C, unit, unit): the planes, from what `parse` returns."""
    c = coefficients[:, :, :unit, :unit].astype(np.float32) * np.float32(step / 64)
    c[:, 1:] *= CHROMA_STEP
    d = matrix(unit)
    planes: Array = d.T @ c @ d
    for n in np.flatnonzero(patterns >= 0):
        for quadrant in range((unit // 8) ** 2):
            y, x = quadrant // 2 * 8, quadrant % 2 * 8
            size = 4 if patterns[n] >> quadrant & 1 else 8
            d = matrix(size)
            for v in range(y, y + 8, size):
                for w in range(x, x + 8, size):
                    planes[n, 0, v : v + size, w : w + size] = d.T @ c[n, 0, v : v + size, w : w + size] @ d
    return planes


def filtered(
    form: Format, weights: Array, planes: Array, coefficients: Array, patterns: Array, kept: Array, step: float
) -> Array:
    """float32 (1, C, H, W): the planes (1, C, H, W) of what `parse` returned, filtered."""
    unit, shape = form.unit, (1, form.rows, form.columns)
    grid = filter.grid(form.rows, form.columns, unit)
    active = filter.activity_of(coefficients[:, 1:, :unit, :unit], grid).reshape(*shape, -1).transpose(0, 3, 1, 2)
    limit = filter.limits(np.full((1, 1, 1, 1), step, np.float32))
    blocks = filter.blocks_of(patterns.reshape(shape), active, kept.reshape(shape), limit, grid)
    integers: Array = filter.filtered(filter.to_integers(planes).astype(np.int32), blocks, weights.astype(np.int32))
    return integers.astype(np.float32) / np.float32(filter.FINE)


def to_pixels(planes: Array, rotation: Array) -> Array:
    """uint8 (n, C, H, W) of planes (n, C, H, W): value_i = clip(floor(sum_c U[c, i] Z_c + 128.5), 0, 255)."""
    values = planes if planes.shape[1] == 1 else np.einsum("ci,nchw->nihw", rotation, planes)
    pixels: Array = np.clip(np.floor(values + np.float32(128.5)), 0, 255).astype(np.uint8)
    return pixels


def decode(form: Format, payloads: Sequence[bytes], kept: Array, steps: Array, rotation: Array, out: Array) -> int:
    """Decode into `out`, uint8 (n, C, H, W), as coder.decode: the place of the first damaged payload, or -1."""
    bad, unit = -1, form.unit
    for n, payload in enumerate(payloads):
        coefficients, patterns, whole = parse(form, payload, kept[n])
        units = inverse(coefficients, patterns, float(steps[n]), unit)
        grid = units.reshape(form.rows, form.columns, form.channels, unit, unit).transpose(2, 0, 3, 1, 4)
        planes = grid.reshape(1, form.channels, form.rows * unit, form.columns * unit)
        if form.weights is not None:
            planes = filtered(form, form.weights, planes, coefficients, patterns, kept[n], float(steps[n]))
        pixels = to_pixels(planes, rotation[n])[0]
        pixels *= kept[n].reshape(form.rows, form.columns).repeat(unit, 0).repeat(unit, 1) != 0
        out[n] = pixels[:, : form.height, : form.width]
        if not whole and bad < 0:
            bad = n
    return bad
