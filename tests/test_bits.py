"""Widths by sample: against all other allocations of the same total."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dqcodec import OptionError
from dqcodec.bits import Bits, allocate, convex, parse, rank

VALUES = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1e6), st.just(1e-12))
TABLES = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=VALUES)


@settings(deadline=None)
@given(TABLES, st.integers(0, 15))
@example(np.zeros((4, 3)), 4)
@example(np.array([[9.0, 9.0, 0.0], [9.0, 5.0, 4.0]]), 2)
def test_no_other_allocation_is_better(measured, total):
    distance = convex(measured)
    n, widths = distance.shape
    total = min(total, n * (widths - 1))
    found = allocate(distance, total)
    assert found.sum() == total
    assert found.min() >= 0
    assert found.max() < widths

    def whole(choice):
        return sum(distance[i, b] for i, b in enumerate(choice))

    best = min(whole(choice) for choice in itertools.product(range(widths), repeat=n) if sum(choice) == total)
    assert whole(found) <= best + 1e-9 * distance.max()


@settings(deadline=None)
@given(TABLES)
def test_convex_curves_are_the_largest_below(measured):
    found = convex(measured)
    rounding = 1e-9 * measured.max()
    assert (found <= measured + rounding).all()
    assert (np.diff(found, axis=1) <= rounding).all()
    assert (np.diff(found, 2, axis=1) >= -rounding).all()
    np.testing.assert_allclose(convex(found), found, atol=rounding)
    falling = np.minimum.accumulate(measured, 1)  # where it is below, it lies on a line between two that are not
    touched = np.isclose(found, falling, atol=rounding)
    assert touched[:, [0, -1]].all()


def test_equal_values_go_to_the_lower_index():
    assert allocate(np.array([[2.0, 1.0, 0.0]] * 3), 3).tolist() == [2, 1, 0]
    assert allocate(np.array([[4.0, 1.0, 0.0]] * 3), 4).tolist() == [2, 1, 1]


@pytest.mark.parametrize("total", [-1, 7])
def test_totals_that_cannot_be(total):
    with pytest.raises(ValueError, match=f"3 samples cannot take {total} bits of 2 each"):
        allocate(np.zeros((3, 3)), total)


@given(st.lists(st.floats(0, 9), min_size=1, max_size=40), st.floats(0, 0.5))
def test_rank(distance, share):
    found, count = rank(np.array(distance), share), int(share * len(distance))
    assert found.mean() == 1
    assert (found == 2).sum() == (found == 0).sum() == count
    for a, b in itertools.pairwise(np.argsort(-np.array(distance), kind="stable")):
        assert found[a] >= found[b]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("6", Bits("fixed", 6)), (3.5, Bits("fixed", 3.5)), ("auto:4", Bits("auto", 4)), ("rank:2.5", Bits("rank", 2.5))],
)
def test_parse(text, expected):
    assert parse(text) == expected
    assert parse(str(parse(text))) == expected


@pytest.mark.parametrize(
    "text", ["", "auto", "auto:", ":6", "fixed:6", "auto:9", "1", "nan", "auto:nan", "6:auto", "x"]
)
def test_what_is_no_width(text):
    with pytest.raises(OptionError, match="bits: .*; allowed: 2 to 8 bits, as in 6, auto:6, rank:6"):
        parse(text)
