"""Vectors of 4, 8 or 16 float32 as a type of compiled code, with the few operations that the inverse transform needs.

Whether a compiler makes vectors of a plain loop by itself depends on its version, and on what it can prove about the
arrays. Nothing here checks an index: the caller does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model


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
    """Address of a vector in an array, its type `kind`; without a check, and without Python's negative indices."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic(prefer_literal=True)
def load(_, array, index, count):
    """`count` elements of a float32 array from `index` on; count is a constant."""
    kind = Lanes(count.literal_value)

    def generate(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, *arguments[:2], context.get_value_type(kind))
        return builder.load(pointer, align=4)

    return kind(array, types.int64, count), generate


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

    return kind(types.float32, count), generate


@intrinsic
def fma(_, a, b, c):
    """a b + c of vectors."""

    def generate(context, builder, signature, arguments):
        a, b, c = arguments
        return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])

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
    """Write a vector, cut to 0..255 and rounded down, to a uint8 array from `index` on."""

    def generate(context, builder, signature, arguments):
        values, count = arguments[2], lanes.count
        for sign, bound in (("<", 0.0), (">", 255.0)):
            limit = ir.Constant(values.type, [bound] * count)
            values = builder.select(builder.fcmp_ordered(sign, values, limit), limit, values)
        whole = builder.fptosi(values, ir.VectorType(ir.IntType(32), count))
        narrow = builder.trunc(whole, ir.VectorType(ir.IntType(8), count))
        builder.store(narrow, _pointer(context, builder, array, *arguments[:2], narrow.type), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), generate
