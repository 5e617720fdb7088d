"""From decoded coefficients to pixels, compiled by numba: inverse transform, colour and placing, one unit at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from dqcodec.codec.dct import stream
from dqcodec.codec.dct.contexts import UNITS, scan
from dqcodec.codec.dct.engine import build
from dqcodec.codec.dct.transform import matrix

Array = Any
_COMPILED = build(stream, njit(nogil=True, cache=True, error_model="numpy"))
begin, forget, row = _COMPILED["begin"], _COMPILED["forget"], _COMPILED["row"]
COEFFICIENTS = stream.COEFFICIENTS


_compile = njit(nogil=True, cache=True, fastmath=True, error_model="numpy")
TEMP = 1024  # in `work`, this far after a block: its rows, transformed


class Lanes(types.Type):  # type: ignore[misc]
    """Type of a vector of `count` float32 in compiled code."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"Lanes({count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.FloatType(), kind.count))


def _pointer(context, builder, kind, array, index, vector):
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic(prefer_literal=True)
def load(_, array, index, count):
    """`count` elements of a float32 array from `index` on; count is a constant."""
    kind = Lanes(count.literal_value)

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, *arguments[:2], context.get_value_type(kind))
        return builder.load(pointer, align=4)

    return kind(array, types.int64, types.int64), generate


@intrinsic
def store(_, array, index, lanes):
    """Write a vector to a float32 array from `index` on."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _pointer(context, builder, array, *arguments[:2], arguments[2].type), align=4)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), generate


@intrinsic(prefer_literal=True)
def splat(_, value, count):
    """A vector of `count` times `value`; count is a constant."""
    kind = Lanes(count.literal_value)

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(kind)
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), arguments[0], ir.Constant(ir.IntType(32), 0))
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None)
        return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), everywhere)

    return kind(types.float32, types.int64), generate


@intrinsic
def fma(_, a, b, c):
    """a b + c of vectors."""

    def generate(context, builder, signature, arguments):
        a, b, c = arguments
        return builder.fadd(builder.fmul(a, b, flags=["fast"]), c, flags=["fast"])

    return a(a, a, a), generate


@intrinsic
def add(_, a, b):
    """a + b of vectors."""
    return a(a, a), lambda context, builder, signature, arguments: builder.fadd(*arguments)


@intrinsic
def subtract(_, a, b):
    """a - b of vectors."""
    return a(a, a), lambda context, builder, signature, arguments: builder.fsub(*arguments)


@intrinsic
def store_bytes(_, array, index, lanes):
    """Write a vector of values, cut to 0..255, to a uint8 array from `index` on."""

    def generate(context, builder, signature, arguments):
        lanes = arguments[2]
        for bound, sign in ((0, "<"), (255, ">")):
            limit = ir.Constant(lanes.type, [float(bound)] * lanes.type.count)
            lanes = builder.select(builder.fcmp_ordered(sign, lanes, limit, flags=["fast"]), limit, lanes)
        whole = builder.fptosi(lanes, ir.VectorType(ir.IntType(32), lanes.type.count))
        narrow = builder.trunc(whole, ir.VectorType(ir.IntType(8), lanes.type.count))
        builder.store(narrow, _pointer(context, builder, array, *arguments[:2], narrow.type), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), generate


def _live() -> Array:
    """int32 (512,): rows, made even, and, times 32, columns of a block that may be other than 0, by size and `last`."""
    out = []
    for size in UNITS:
        u, v = np.maximum.accumulate(scan(size)).T + 1
        out.append(u + u % 2 | v << 5)
    return np.resize(np.concatenate(out), 512).astype(np.int32)


LIVE = _live()


def _inverse(size: int) -> Callable[..., None]:
    """The compiled inverse transform of one block of `work` in place, P = D^T C D: rows, then columns."""
    basis = matrix(size).ravel()

    @_compile
    def inverse(work: Array, to: int, rows: int, columns: int) -> None:
        to &= 1023
        for u in range(rows):
            line = to + u * 16
            total = splat(np.float32(0), size)
            for v in range(columns):
                total = fma(splat(work[line + v], size), load(basis, v * size, size), total)
            store(work, line + TEMP, total)
        for y in range(size // 2):
            even = odd = splat(np.float32(0), size)
            for u in range(0, rows, 2):
                line = to + TEMP + u * 16
                even = fma(splat(basis[u * size + y], size), load(work, line, size), even)
                odd = fma(splat(basis[u * size + size + y], size), load(work, line + 16, size), odd)
            store(work, to + y * 16, add(even, odd))
            store(work, to + (size - 1 - y) * 16, subtract(even, odd))

    return inverse  # type: ignore[no-any-return]


inverse4, inverse8, inverse16 = _inverse(4), _inverse(8), _inverse(16)


@_compile
def take(coefficients, at, count, scale, work, to):
    """Move `count` coefficients to `work`, in levels."""
    at &= 0xFFFFFF
    to &= 1023
    for i in range(count):
        work[to + i] = np.float32(coefficients[at + i]) * scale
        coefficients[at + i] = 0


@_compile
def plane(size, live, work, to):
    """The inverse transform of one block of a size, in place."""
    rows, columns = live & 31, live >> 5
    if size == 16:
        inverse16(work, to, rows, columns)
    elif size == 8:
        inverse8(work, to, rows, columns)
    else:
        inverse4(work, to, rows, columns)


@_compile
def live_part(size, last):
    return LIVE[((0 if size == 4 else (16 if size == 8 else 80)) + last) & 511]


@_compile
def colour(work, u):
    """Rotate the planes of a unit back, in place."""
    u0, u1, u2, u3, u4, u5, u6, u7, u8 = u[0], u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8]
    for i in range(256):
        a, b, c = work[i], work[256 + i], work[512 + i]
        work[i] = u0 * a + u3 * b + u6 * c
        work[256 + i] = u1 * a + u4 * b + u7 * c
        work[512 + i] = u2 * a + u5 * b + u8 * c


@_compile
def put(work, to, out, at, width, rows, columns):
    """Put `rows` x `columns` pixels of a plane in place."""
    to &= 1023
    at &= 0x7FFFFFFFFFFF
    width &= 0xFFFFFF
    half = np.float32(128.5)
    if columns == 16:
        for y in range(rows):
            store_bytes(out, at + y * width, add(load(work, to + y * 16, 16), splat(half, 16)))
    else:
        for y in range(rows):
            for x in range(columns):
                value = min(max(work[to + y * 16 + x] + half, np.float32(0)), np.float32(255))
                out[at + y * width + x] = np.uint8(np.int32(value))


@njit(nogil=True, cache=True, error_model="numpy")
def decode(data, starts, kept, steps, chroma, rotation, height, width, planes, edges, order, coding, scratch, words, out):
    """Decode samples into out (n * planes * height * width,): the number of the first damaged sample, or -1.

    data      uint8, payloads back to back      starts   int64 (n + 1,)
    kept      uint8 (n, units)                  steps    float32 (n,) of a 64th of a level, first plane
    chroma    float32, the other planes' steps in steps of the first
    rotation  float32 (n, 9)
    """
    unit = order.unit
    columns = edges.columns
    rows = -(-height // unit)
    area = height * width
    work = np.zeros(2048, np.float32)
    patterns = np.zeros(columns, np.int32)
    lasts = np.zeros(columns * 18, np.int32)
    bad = -1
    for i in range(len(starts) - 1):
        x, head = begin(data, starts[i], starts[i + 1] - starts[i])
        first = starts[i] + head
        end = (starts[i + 1] - first) >> 1
        for w in range(end):
            words[w] = np.uint16(data[first + 2 * w]) | np.uint16(data[first + 2 * w + 1]) << 8
        forget(edges, 0, edges.width)
        for c in range(columns):
            edges.flags[c] = 0
        p = 0
        for r in range(rows):
            x, p = row(kept[i], r * columns, planes, edges, scratch, patterns, lasts, order, coding, x, words, p, end)
            for c in range(columns):
                if not kept[i, r * columns + c]:
                    continue
                for k in range(planes):
                    at, to = COEFFICIENTS + ((c * planes + k) << 8), k << 8
                    scale = steps[i] if k == 0 else steps[i] * chroma
                    if k > 0 or patterns[c] < 0:
                        live = live_part(unit, lasts[c * 18 + (15 + k if k else 0)])
                        take(scratch, at, (live & 31) << 4, scale, work, to)
                        plane(unit, live, work, to)
                        continue
                    take(scratch, at, 256, scale, work, to)
                    for q in range(4 if unit == 16 else 1):
                        y4, x4 = q >> 1 << 1, (q & 1) << 1
                        if patterns[c] >> q & 1:
                            for j in range(4):
                                y, z = y4 + (j >> 1), x4 + (j & 1)
                                plane(4, live_part(4, lasts[c * 18 + (y << 2) + z]), work, to + (y << 6) + (z << 2))
                        else:
                            plane(8, live_part(8, lasts[c * 18 + (y4 << 2) + x4]), work, to + (y4 << 6) + (x4 << 2))
                if planes == 3:
                    colour(work, rotation[i])
                to = i * planes * area + r * unit * width + c * unit
                tall, wide = min(unit, height - r * unit), min(unit, width - c * unit)
                for k in range(planes):
                    put(work, k << 8, out, to + k * area, width, tall, wide)
        if (x != 1 or p != end) and bad < 0:
            bad = i
    return bad
