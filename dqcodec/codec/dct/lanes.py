"""Vectors of 4, 8 or 16 float32 or int16 as types of compiled code, with the few operations that decoding needs, and
what else numba can't be told in Python.

Whether a compiler makes vectors of a plain loop by itself depends on its version, and on what it can prove about the
arrays. Nothing here checks an index: the caller does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

INT16, INT32, INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


class Lanes(types.Type):  # type: ignore[misc]
    """Type of a vector of `count` elements in compiled code; element is numba's float32 or int16."""

    def __init__(self, element: types.Type, count: int) -> None:
        self.element, self.count = element, count
        super().__init__(f"Lanes({element}, {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Lanes) -> None:
        element = INT16 if kind.element is types.int16 else ir.FloatType()
        super().__init__(manager, kind, ir.VectorType(element, kind.count))


def pointer_in(context, builder, kind, array, index, vector):
    """Address of a vector in an array, their types `vector` and `kind`; without a check, and without Python's negative
    indices."""
    return pointer_at(builder, context.make_array(kind)(context, builder, array).data, index, vector)


def pointer_at(builder, first, index, vector):
    """Address of a vector, of the type `vector`, `index` elements after the address `first`."""
    return builder.bitcast(builder.gep(first, [index]), vector.as_pointer())


def _cut(builder, values, low, high):
    for sign, bound in (("<", low), (">", high)):
        limit = ir.Constant(values.type, [bound] * values.type.count)
        values = builder.select(builder.fcmp_ordered(sign, values, limit), limit, values)
    return values


def broadcast(builder, value, count):
    """A vector of `count` times `value`."""
    nothing = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    one = builder.insert_element(nothing, value, INT32(0))
    return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(INT32, count), None))


def mirrored(builder, vector):
    """Its elements from last to first."""
    order = ir.Constant(ir.VectorType(INT32, vector.type.count), list(range(vector.type.count))[::-1])
    return builder.shuffle_vector(vector, vector, order)


def multiply_add(builder, a, b, c):
    """a b + c, as one instruction where there is one."""
    return builder.fadd(builder.fmul(a, b, flags=["contract"]), c, flags=["contract"])


def _declared(builder, name, vector, arguments):
    """A function of LLVM of so many vectors that returns another."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector] * arguments), name)


@intrinsic(prefer_literal=True)
def load(_, array, index, count):
    """`count` elements of an array from `index` on; count is a constant."""
    kind = Lanes(array.dtype, count.literal_value)

    def generate(context, builder, signature, arguments):
        pointer = pointer_in(context, builder, array, *arguments[:2], context.get_value_type(kind))
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return kind(array, types.int64, count), generate


@intrinsic
def store(_, array, index, lanes):
    """Write a vector to an array of its elements from `index` on."""

    def generate(context, builder, signature, arguments):
        pointer = pointer_in(context, builder, array, *arguments[:2], arguments[2].type)
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), generate


@intrinsic(prefer_literal=True)
def splat(_, value, count):
    """A vector of `count` times `value`, a float32 or int16; count is a constant."""
    kind = Lanes(value, count.literal_value)

    def generate(context, builder, signature, arguments):
        return broadcast(builder, arguments[0], kind.count)

    return kind(value, count), generate


@intrinsic
def either(_, condition, a, b):
    """stream.either as LLVM's select, marked as what no predictor could know, so that no pass makes a jump of it."""

    def generate(context, builder, signature, arguments):
        chosen = builder.select(*arguments)
        chosen.set_metadata("unpredictable", builder.module.add_metadata([]))
        return chosen

    return types.int64(types.boolean, types.int64, types.int64), generate


@intrinsic
def unsigned(_, i):
    """stream.unsigned: the same 64 bits, with which numba does not look whether they count from an array's end."""
    return types.uint64(types.int64), lambda context, builder, signature, arguments: arguments[0]


@intrinsic
def fma(_, a, b, c):
    """a b + c of vectors."""

    def generate(context, builder, signature, arguments):
        return multiply_add(builder, *arguments)

    return a(a, a, a), generate


@intrinsic
def add(_, a, b):
    """a + b of vectors; integers wrap around."""
    name = "add" if a.element is types.int16 else "fadd"
    return a(a, a), lambda context, builder, signature, arguments: getattr(builder, name)(*arguments)


@intrinsic
def subtract(_, a, b):
    """a - b of vectors; integers wrap around."""
    name = "sub" if a.element is types.int16 else "fsub"
    return a(a, a), lambda context, builder, signature, arguments: getattr(builder, name)(*arguments)


@intrinsic
def both(_, a, b):
    """Bits that are set in both integers."""
    return a(a, a), lambda context, builder, signature, arguments: builder.and_(*arguments)


@intrinsic(prefer_literal=True)
def sizes(_, a, bits, most):
    """Absolute values of integers, without so many low bits, at most `most`; both are constants."""
    bits, most = bits.literal_value, most.literal_value

    def generate(context, builder, signature, arguments):
        values = arguments[0]
        zero, limit, shift = (ir.Constant(values.type, [n] * a.count) for n in (0, most, bits))
        size = builder.select(builder.icmp_signed("<", values, zero), builder.sub(zero, values), values)
        size = builder.lshr(size, shift)
        return builder.select(builder.icmp_signed("<", size, limit), size, limit)

    return a(a, types.int64, types.int64), generate


@intrinsic
def scaled(_, a, b):
    """a b / 2^16 of integers, to the nearest, ties up."""

    def generate(context, builder, signature, arguments):
        wide = ir.VectorType(INT32, a.count)
        product = builder.mul(*(builder.sext(value, wide) for value in arguments))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, [16] * a.count)), arguments[0].type)
        half = builder.lshr(builder.mul(*arguments), ir.Constant(arguments[0].type, [15] * a.count))
        return builder.add(high, half)

    return a(a, a), generate


@intrinsic
def add_limited(_, a, b):
    """a + b of integers, cut to their range."""

    def generate(context, builder, signature, arguments):
        return builder.call(_declared(builder, f"llvm.sadd.sat.v{a.count}i16", arguments[0].type, 2), arguments)

    return a(a, a), generate


@intrinsic
def at_least(_, a, b):
    """1 where the integer of a is at least that of b, else 0."""
    return a(a, a), lambda context, builder, signature, arguments: builder.zext(
        builder.icmp_signed(">=", *arguments), arguments[0].type
    )


@intrinsic
def neighbours_added(_, a):
    """The sums of the first two integers, the next two, and so on."""

    def generate(context, builder, signature, arguments):
        kind = ir.VectorType(INT32, a.count // 2)
        halves = [
            builder.shuffle_vector(arguments[0], arguments[0], ir.Constant(kind, list(range(first, a.count, 2))))
            for first in (0, 1)
        ]
        return builder.add(*halves)

    return Lanes(a.element, a.count // 2)(a), generate


@intrinsic
def joined(_, a, b):
    """The elements of a, then those of b."""

    def generate(context, builder, signature, arguments):
        order = ir.Constant(ir.VectorType(INT32, 2 * a.count), list(range(2 * a.count)))
        return builder.shuffle_vector(*arguments, order)

    return Lanes(a.element, 2 * a.count)(a, a), generate


@intrinsic
def to_float(_, a):
    """Integers as float32."""
    kind = Lanes(types.float32, a.count)

    def generate(context, builder, signature, arguments):
        return builder.sitofp(arguments[0], context.get_value_type(kind))

    return kind(a), generate


@intrinsic(prefer_literal=True)
def to_integers(_, a, most):
    """float32 rounded down to integers, cut to -most..most; most is a constant."""
    kind, most = Lanes(types.int16, a.count), float(most.literal_value)

    def generate(context, builder, signature, arguments):
        values = _cut(builder, arguments[0], -most, most)
        name = f"llvm.floor.v{a.count}f32"
        whole = builder.call(_declared(builder, name, values.type, 1), [values])
        return builder.trunc(builder.fptosi(whole, ir.VectorType(INT32, a.count)), context.get_value_type(kind))

    return kind(a, types.int64), generate


@intrinsic
def store_bytes(_, array, index, lanes):
    """Write a vector, cut to 0..255 and rounded down, to a uint8 array from `index` on."""

    def generate(context, builder, signature, arguments):
        # Cut to what an int32 holds; then to bytes, in the form that LLVM makes saturated packing of.
        integers = ir.VectorType(INT32, lanes.count)
        whole = builder.fptosi(_cut(builder, arguments[2], -256.0, 255.0), integers)
        zero, most = ir.Constant(integers, [0] * lanes.count), ir.Constant(integers, [255] * lanes.count)
        whole = builder.select(builder.icmp_signed("<", whole, zero), zero, whole)
        whole = builder.select(builder.icmp_signed("<", whole, most), whole, most)
        narrow = builder.trunc(whole, ir.VectorType(ir.IntType(8), lanes.count))
        builder.store(narrow, pointer_in(context, builder, array, *arguments[:2], narrow.type), align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, lanes), generate
