"""The cosine transform of blocks and back, as compiled code.

It is made instruction by instruction, on vectors of at most 8 float32, so that what is added up stays in registers, of
which processors have 16 or 32: what a compiler makes of loops takes up to twice as long. transform.py has the matrices.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from dqcodec.codec.dct.lanes import INT64, broadcast, mirrored, multiply_add, pointer_at, pointer_in
from dqcodec.codec.dct.transform import matrix


def inverse(size: int, rows: int) -> Any:
    """The compiled inverse cosine transform of blocks of `size`, P = D^T C D, in place: inverse(array, index, columns).

    The block is at `index` of a float32 array, in rows of 16; only its first `rows` rows and `columns` columns may be
    other than 0. First the rows, a column of coefficients after the other; of 16 x 16 only the left half, even and odd
    columns apart, as by symmetry the right half is their difference, mirrored (an odd number of columns counts as one
    more). Then the columns, see `down`.
    """
    basis, lanes = matrix(size).astype(float), min(size, 8)
    apart = size // lanes  # 2: even and odd columns

    @intrinsic
    def transform(_, array, index, columns):
        def generate(context, builder, signature, arguments):
            vector = ir.VectorType(ir.FloatType(), lanes)
            zero = ir.Constant(vector, [0.0] * lanes)
            lines = [ir.Constant(vector, row[:lanes].tolist()) for row in basis]
            lines = cgutils.global_constant(builder, f"lines{size}", ir.Constant(ir.ArrayType(vector, size), lines))
            first = pointer_in(context, builder, array, *arguments[:2], ir.FloatType())
            count = builder.udiv(builder.add(arguments[2], INT64(apart - 1)), INT64(apart))

            def across(some):
                """Rows of coefficients -> their sums over the columns, by row and parity."""
                sums = [[cgutils.alloca_once_value(builder, zero) for _ in range(apart)] for _ in some]
                with cgutils.for_range(builder, count) as loop:
                    for parity in range(apart):
                        column = builder.add(builder.mul(loop.index, INT64(apart)), INT64(parity))
                        line = builder.load(cgutils.gep_inbounds(builder, lines, 0, column))
                        for u, row in zip(some, sums, strict=True):
                            coefficient = builder.load(builder.gep(first, [builder.add(column, INT64(16 * u))]))
                            total = builder.load(row[parity])
                            total = multiply_add(builder, broadcast(builder, coefficient, lanes), line, total)
                            builder.store(total, row[parity])
                return [[builder.load(total) for total in row] for row in sums]

            def weight(u, y):
                return ir.Constant(vector, [basis[u, y]] * lanes)

            def down(part, count, stride):
                """What the frequencies that are multiples of `stride` add to the first `count` rows of pixels. The odd
                ones of them add the opposite to a row's mirror image, the even ones the same."""
                if stride >= rows:
                    return [builder.fmul(weight(0, 0), part[0])] * count
                upper, lower = [], []
                for y, even in enumerate(down(part, count // 2, 2 * stride)):
                    odd = builder.fmul(weight(stride, y), part[stride])
                    for u in range(3 * stride, rows, 2 * stride):
                        odd = multiply_add(builder, weight(u, y), part[u], odd)
                    upper.append(builder.fadd(even, odd))
                    lower.append(builder.fsub(even, odd))
                return upper + lower[::-1]

            groups = [range(start, min(start + 8, rows)) for start in range(0, rows, 8)]  # few sums, for few registers
            sums = [row for group in groups for row in across(group)]
            parts = [[row[0] for row in sums]]
            if apart == 2:
                left, right = ([fold(*row) for row in sums] for fold in (builder.fadd, builder.fsub))
                parts = [left, [mirrored(builder, row) for row in right]]
            for n, part in enumerate(parts):
                for y, pixels in enumerate(down(part, size, 1)):
                    builder.store(pixels, pointer_at(builder, first, INT64(16 * y + lanes * n), vector), align=4)
            return context.get_dummy_value()

        return types.void(array, types.int64, types.int64), generate

    return transform


def forward(size: int, unit: int) -> Any:
    """The compiled cosine transform of a unit in blocks of `size`, C = D P D^T: forward(source, index, stride, out).

    The unit is at `index` of a float32 array, in rows of `stride`. To `out`, float32 (unit^2,), go the frequencies in
    rows of `unit`, blocks where they are in the unit; in a row of a block of 16 first the even ones, then the odd ones.
    First the columns, see `down`; then the rows, a column of what that gave after the other; of 16 x 16 by symmetry
    from the sum and the difference of the left half and the right one, mirrored.
    """
    basis, lanes, wide = matrix(size).astype(float), min(size, 8), min(unit, 8)
    apart = size // lanes  # 2: even and odd frequencies

    @intrinsic
    def transform(_, source, index, stride, out):
        def generate(context, builder, signature, arguments):
            columns, line = (ir.VectorType(ir.FloatType(), count) for count in (wide, lanes))
            pixels = pointer_in(context, builder, source, *arguments[:2], ir.FloatType())
            target = pointer_in(context, builder, out, arguments[3], INT64(0), ir.FloatType())

            def weight(u, y):
                return ir.Constant(columns, [basis[u, y]] * wide)

            def down(rows, stride):
                """Frequencies that are multiples of `stride`, from as many rows: the even ones from the sums of a row
                and its mirror image, the odd ones from the differences."""
                half = len(rows) // 2
                if not half:
                    return [builder.fmul(weight(0, 0), rows[0])]
                pairs = list(zip(rows[:half], rows[: half - 1 : -1], strict=True))
                differences, odd = [builder.fsub(*pair) for pair in pairs], []
                for u in range(stride, size, 2 * stride):
                    total = builder.fmul(weight(u, 0), differences[0])
                    for y in range(1, half):
                        total = multiply_add(builder, weight(u, y), differences[y], total)
                    odd.append(total)
                even = down([builder.fadd(*pair) for pair in pairs], 2 * stride)
                return [total for both in zip(even, odd, strict=True) for total in both]

            for left in range(0, unit, wide):
                for top in range(0, unit, size):
                    places = [builder.add(builder.mul(arguments[2], INT64(top + y)), INT64(left)) for y in range(size)]
                    rows = [builder.load(pointer_at(builder, pixels, place, columns), align=4) for place in places]
                    for row, total in enumerate(down(rows, 1), top):
                        builder.store(total, pointer_at(builder, target, INT64(unit * row + left), columns), align=4)

            def across(place, k):
                """From `lanes` values at a place the frequencies k, k + apart, and so on."""
                total = ir.Constant(line, [0.0] * lanes)
                for x in range(lanes):
                    value = builder.load(builder.gep(target, [builder.add(place, INT64(x))]))
                    waves = ir.Constant(line, basis[k::apart, x].tolist())
                    total = multiply_add(builder, broadcast(builder, value, lanes), waves, total)
                return total

            with cgutils.for_range(builder, INT64(unit)) as loop:
                for left in range(0, unit, size):
                    first = builder.add(builder.mul(loop.index, INT64(unit)), INT64(left))
                    places = [builder.add(first, INT64(lanes * k)) for k in range(apart)]
                    vectors = [pointer_at(builder, target, place, line) for place in places]
                    if apart == 2:
                        left_half, right_half = (builder.load(vector, align=4) for vector in vectors)
                        right_half = mirrored(builder, right_half)
                        builder.store(builder.fadd(left_half, right_half), vectors[0], align=4)
                        builder.store(builder.fsub(left_half, right_half), vectors[1], align=4)
                    for k, (place, vector) in enumerate(zip(places, vectors, strict=True)):
                        builder.store(across(place, k), vector, align=4)
            return context.get_dummy_value()

        return types.void(source, types.int64, types.int64, out), generate

    return transform
