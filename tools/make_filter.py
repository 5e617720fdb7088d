"""Fit the built-in weights of the filter of the transform dct to a folder of photographs.

    python tools/make_filter.py FOLDER

Writes dqcodec/codec/dct/filter-1-UNIT.bin for units of 16, 8 and 4 pixels: least squares between what is decoded and
the photographs, at several sizes and qualities. Released weights never change: a file may need them. So this refuses
to overwrite.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from make_tables import Array, square

import dqcodec.codec.dct
from dqcodec.codec.dct import filter, filter_compiled
from dqcodec.codec.dct.coder import Format, decode_compiled
from dqcodec.codec.dct.contexts import UNITS
from dqcodec.codec.dct.pack import Encoder, scale_index
from dqcodec.codec.dct.tables import built_in
from dqcodec.codec.dct.transform import STEPS

SIZES = {16: ((224, 1), (64, 2), (32, 4)), 8: ((64, 1), (32, 2)), 4: ((64, 1), (32, 2))}  # (side, weight) by unit
BITS = (2.4, 2.8, 3.2, 3.8, 4.5)
RIDGE, FLOOR = 0.003, 0.3  # of the mean square of the sums of pairs; of its unit, a 32nd of a step, squared
MOST = 255  # of the sum of a row's absolute weights, in 256ths


def planes_of(form: Format, image: Array, q: int) -> tuple[Array, Array, filter.Blocks]:
    """The planes of an image as decoded, in the filter's integers, and as they were; what the filter knows of them."""
    kept = np.ones((1, form.rows * form.columns), np.uint8)
    payload, colour = Encoder(form, "default").encode(image, kept[0], q)
    tables = filter_compiled.tables_of(np.zeros((filter.LUMA + filter.CHROMA, 6), np.int8), form.unit)
    bench = filter_compiled.bench(tables, form.rows, form.columns, 3, form.unit)
    out = np.zeros((1, 3, form.height, form.width), np.uint8)
    decode_compiled(form, [payload], kept, STEPS[[q]], form.rotations[[colour]], bench, out)
    rim = filter_compiled.RIM
    planes = bench.planes.reshape(1, 3, form.height + 2 * rim, form.width + 2 * rim)[..., rim:-rim, rim:-rim]
    cells = form.rows * form.unit // 4, form.columns * form.unit // 4
    blocks = filter.Blocks(
        np.ones((1, 1, form.height, form.width), np.int32), np.array([4, 8, 16])[bench.sides].reshape(1, 1, *cells),
        bench.active.reshape(1, form.rows, form.columns, 2).transpose(0, 3, 1, 2),
        filter.limits(STEPS[[q]]).reshape(1, 1, 1, 1), filter.grid(form.rows, form.columns, form.unit),
    )  # fmt: skip
    was = np.einsum("ci,hwi->chw", form.rotations[colour], image.astype(np.float32) - 128)
    return planes.astype(np.int32), was[None] * filter.FINE, blocks


def add_equations(decoded: Array, was: Array, blocks: filter.Blocks, step: float, weight: float, normal: Array) -> None:
    """Add the normal equations of an image: normal (rows, 8, 8) holds weighted sums of products of the pairs, the error
    and a step."""
    row, turned = filter.rows_of(decoded, blocks)
    sums = [filter.pair_sum(decoded, blocks.there, *pair) for pair in filter.PAIRS]
    values = [np.where(turned, sums[other], sums[j]) for j, other in enumerate(filter.TURNED)]
    values += [was - decoded, np.full_like(was, step)]
    flat = [value.astype(np.float64).ravel() for value in values]
    for i in range(8):
        for j in range(i, 8):
            found = np.bincount(row.ravel(), flat[i] * flat[j] * (weight / step**2), len(normal))
            normal[:, i, j] += found
            normal[:, j, i] += found * (i != j)


def solved(normal: Array) -> Array:
    """int8 (rows, 6): the weights with the least error."""
    out = np.zeros((len(normal), 6))
    for row, sums in zip(out, normal, strict=True):
        square = sums[:6, :6] + np.eye(6) * (RIDGE * np.trace(sums[:6, :6]) / 6 + FLOOR * sums[7, 7] + 1e-9)
        row[:] = 256 * np.linalg.solve(square, sums[:6, 6])
        row *= min(1, MOST / (np.abs(row).sum() + 3))  # rounding may add a half each
    return np.round(out).clip(-127, 127).astype(np.int8)


def fitted(paths: list[Path], unit: int) -> Array:
    """The weights for units of this size."""
    normal = np.zeros((filter.LUMA + filter.CHROMA, 8, 8))
    for size, weight in SIZES[unit]:
        form = Format(size, size, 3, built_in(unit, dependent=True))
        for path in paths:
            image = square(path, size)
            for bits in BITS:
                q = scale_index(bits, "default")
                add_equations(*planes_of(form, image, q), float(STEPS[q]), weight, normal)
        print(f"units of {unit}: {size} pixels", file=sys.stderr)
    return solved(normal)


def main(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for unit in UNITS:
        target = Path(dqcodec.codec.dct.__file__).parent / f"{filter.FILTER}-{unit}.bin"
        if target.exists():
            sys.exit(f"{target} exists; released weights never change. Give new ones a new name")
        target.write_bytes(fitted(paths, unit).tobytes())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
