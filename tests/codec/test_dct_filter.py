"""The filter of the transform dct: what it is exactly, and that the compiled one is the same."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dqcodec.codec.dct
from dqcodec.codec.dct import coder, filter, filter_compiled, tables
from dqcodec.codec.dct.contexts import UNITS
from dqcodec.codec.dct.filter import FILTER, NONE, weights
from dqcodec.codec.dct.pack import Encoder
from dqcodec.codec.dct.tables import OFFSETS
from dqcodec.errors import UnsupportedFeatureError

ROWS, COLUMNS = 3, 4  # units of the images here


def blocks_of(unit, patterns, active, kept, limit):
    shape = 1, ROWS, COLUMNS
    return filter.blocks_of(
        patterns.reshape(shape), active.reshape(*shape, -1).transpose(0, 3, 1, 2), kept.reshape(shape),
        np.full((1, 1, 1, 1), limit, np.int32), filter.grid(ROWS, COLUMNS, unit),
    )  # fmt: skip


def compiled(table, unit, planes, patterns, active, kept, limit):
    """int32 (C, H, W): planes int32 (C, H, W), filtered unit by unit; 0 where a unit is not there."""
    channels = len(planes)
    bench = filter_compiled.bench(filter_compiled.tables_of(table, unit), ROWS, COLUMNS, channels, unit)
    filter_compiled.set_limits(limit, bench.limits)
    work, out = np.zeros(1024, np.float32), np.zeros(planes.shape, np.int32)
    lasts_of = np.array([0, *(1 << bit for bit in range(8))]) * unit**2 // 256  # the least `last` of each activity
    cut = [slice(n * unit, (n + 1) * unit) for n in range(max(ROWS, COLUMNS))]
    places = [(r, c) for r in range(ROWS) for c in range(COLUMNS) if kept[r * COLUMNS + c]]
    view = work[:768].reshape(3, 16, 16)[:channels, :unit, :unit]
    for r, c in places:
        view[:] = planes[:, cut[r], cut[c]] / np.float32(filter.FINE)
        lasts = np.zeros(18, np.int32)
        lasts[16 : 15 + channels] = lasts_of[active[r * COLUMNS + c]]
        pattern = patterns[r * COLUMNS + c]
        filter_compiled.hold(unit, channels, pattern, lasts, r, c, ROWS, COLUMNS, work, bench)
    for r, c in places:
        every = filter_compiled.mark(kept, r, c, ROWS, COLUMNS, unit, bench.ring)
        filter_compiled.bring(unit, every, channels, r, c, ROWS, COLUMNS, bench, work)
        out[:, cut[r], cut[c]] = view * np.float32(filter.FINE)
    return out


@settings(max_examples=60, deadline=None)
@given(
    unit=st.sampled_from(UNITS),
    channels=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32),
    size=st.sampled_from([0, 40, 400, filter.MOST]),
    limit=st.sampled_from([2, 60, 500, 120_000]),
    built_in=st.booleans(),
    share=st.sampled_from([0.3, 0.8, 1]),
)
def test_the_compiled_filter_gives_the_same_integers(unit, channels, seed, size, limit, built_in, share):
    """Planes from flat to as wild as they may be, any pattern, activity and mask, weights as large as they may be."""
    rng = np.random.default_rng(seed)
    table = weights(FILTER, unit)
    if not built_in:
        table = rng.multinomial(255, np.ones(6) / 6, len(table)).clip(0, 127) * rng.choice([-1, 1], table.shape)
        table = table.astype(np.int8)
    units = ROWS * COLUMNS
    planes = rng.integers(-size, size + 1, (channels, ROWS * unit, COLUMNS * unit)).astype(np.int32)
    patterns = rng.integers(*{16: (-1, 16), 8: (0, 2), 4: (-1, 0)}[unit], units, np.int32)
    least = {16: 0, 8: 2, 4: 4}[unit]  # no `last` is between: activities of small blocks that do not occur
    active = rng.integers(least + 1, 9, (units, channels - 1)) * rng.integers(0, 2, (units, channels - 1))
    kept = (rng.random(units) < share).astype(np.uint8)
    kept[0] = 1
    there = kept.reshape(ROWS, COLUMNS).repeat(unit, 0).repeat(unit, 1)
    blocks = blocks_of(unit, patterns, active, kept, limit)
    expected = filter.filtered(planes[None], blocks, table.astype(np.int32))[0] * there
    assert np.array_equal(compiled(table, unit, planes, patterns, active, kept, limit), expected)


def literal(z, there, y, x, i, j):
    """e(i, j) of the specification."""
    y2, x2 = y + i, x + j
    inside = 0 <= y2 < z.shape[0] and 0 <= x2 < z.shape[1] and there[y2, x2]
    return int(z[y2, x2]) - int(z[y, x]) if inside else 0


@pytest.mark.parametrize("unit", UNITS)
def test_every_pixel_is_what_the_formula_says(unit):
    """The filter once more, pixel by pixel."""
    rng = np.random.default_rng(unit)
    height, width = ROWS * unit, COLUMNS * unit
    z = rng.integers(-900, 900, (2, height, width)).astype(np.int32)
    kept = np.ones(ROWS * COLUMNS, np.uint8)
    kept[[1, 6]] = 0
    there = kept.reshape(ROWS, COLUMNS).repeat(unit, 0).repeat(unit, 1)
    patterns = np.array([{16: n % 17 - 1, 8: n % 2, 4: -1}[unit] for n in range(len(kept))], np.int32)
    active = rng.integers(0, 9, (len(kept), 1))
    table, limit = weights(FILTER, unit).astype(int), 300
    blocks = blocks_of(unit, patterns, active, kept, limit)
    found = filter.filtered(z[None], blocks, table.astype(np.int32))[0]

    def d(plane, y, x, i, j):
        return literal(z[plane], there, y, x, i, j) + literal(z[plane], there, y, x, -i, -j)

    for y, x in rng.integers(0, [height, width], (150, 2)).tolist():
        n = y // unit * COLUMNS + x // unit
        for plane in (0, 1):
            side, direction = unit, 0
            if plane == 0:
                quadrant = y % unit // 8 * 2 + x % unit // 8
                side = unit if patterns[n] < 0 else (4 if patterns[n] >> quadrant & 1 else 8)
                cell = [(v, w) for v in range(y // 4 * 4, y // 4 * 4 + 4) for w in range(x // 4 * 4, x // 4 * 4 + 4)]
                down = sum(min(abs(d(0, *pixel, 1, 0)) // 4, 1023) for pixel in cell)
                across = sum(min(abs(d(0, *pixel, 0, 1)) // 4, 1023) for pixel in cell)
                kind = sum(down + across >= limit * 2**j for j in range(9)) * 2
                direction = 1 if down > 2 * across else (2 if across > 2 * down else 0)
                kind += direction > 0
            else:
                kind = int(active[n, 0])
            dy, dx = (min(place % side, side - 1 - place % side, 2) for place in (y, x))
            turned = direction == 2 or (direction == 0 and dy > dx)
            row = plane * 180 + (kind * 3 + (dx if turned else dy)) * 3 + (dy if turned else dx)
            pairs = [d(plane, y, x, *pair) for pair in filter.PAIRS]
            if turned:
                pairs = [pairs[k] for k in (1, 0, 2, 3, 5, 4)]
            total = sum((pair * weight + 128) >> 8 for pair, weight in zip(pairs, table[row].tolist(), strict=True))
            assert found[plane, y, x] == z[plane, y, x] + total


@pytest.mark.parametrize("unit", UNITS)
def test_the_weights_cannot_overflow_and_never_change(unit):
    """Sums of 255 256ths keep the compiled filter's sums of d_j w_j below 2^15."""
    table = weights(FILTER, unit)
    assert np.abs(table.astype(int)).sum(1).max() <= 255
    data = (Path(dqcodec.codec.dct.__file__).parent / f"{FILTER}-{unit}.bin").read_bytes()
    spec = (Path(__file__).parents[2] / "spec" / "dqz-1.md").read_text()
    assert hashlib.sha256(data).hexdigest() in spec
    assert weights(NONE, unit) is None
    with pytest.raises(UnsupportedFeatureError, match="'filter-9'"):
        weights("filter-9", unit)


@pytest.mark.parametrize("unit", UNITS)
def test_the_filter_brings_images_closer(unit):
    """Blocks of a smooth picture with some noise, coarsely coded; beside dropped units nothing leaks in."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:64, :96] / 11
    image = 120 + 70 * np.sin(y + x)[..., None] * np.array([1, 0.7, 0.4]) + rng.normal(0, 4, (64, 96, 3))
    image = image.clip(0, 255).astype(np.uint8)
    known = tables.default(tables.DEFAULT, unit, OFFSETS[True], True)
    plain = coder.Format(64, 96, 3, known)
    shape = coder.Format(64, 96, 3, known, weights(FILTER, unit))
    kept = np.ones((1, shape.rows * shape.columns), np.uint8)
    kept[0, ::5] = 0
    there = kept.reshape(shape.rows, shape.columns).repeat(unit, 0).repeat(unit, 1) != 0
    payload, colour = Encoder(shape, "default").encode(image, kept[0], 100)
    decoded = [coder.decode(form, [payload], kept, np.array([100]), np.array([colour]))[0] for form in (plain, shape)]
    before, after = (
        np.mean((image.transpose(2, 0, 1)[:, there] - found[:, there].astype(float)) ** 2) for found in decoded
    )
    assert after < 0.97 * before


def test_flat_planes_stay_as_they_are():
    planes = np.full((1, 3, 48, 64), -777, np.int32)
    kept = np.ones(12, np.uint8)
    blocks = blocks_of(16, np.zeros(12, np.int32), np.full((12, 2), 8), kept, 8)
    assert (filter.filtered(planes, blocks, weights(FILTER, 16).astype(np.int32)) == -777).all()
