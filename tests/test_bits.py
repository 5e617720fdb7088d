"""Widths by sample: against all other allocations of the same total."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dqcodec import OptionError
from dqcodec.bits import Bits, allocate, allocate_bytes, parse, rank, with_middle

VALUES = st.one_of(st.integers(0, 4).map(float), st.floats(0, 1e6), st.just(1e-12))
TABLES = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=VALUES)


@settings(deadline=None)
@given(TABLES, st.integers(0, 15))
@example(np.zeros((4, 3)), 4)
@example(np.array([[9.0, 9.0, 0.0], [9.0, 9.0, 4.0]]), 2)
def test_no_other_allocation_is_better(measured, total):
    steps = -np.sort(-measured[:, 1:], axis=1)  # falling and convex curves down to 0
    distance = np.pad(np.cumsum(steps[:, ::-1], 1)[:, ::-1], ((0, 0), (0, 1)))
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
@given(TABLES, st.integers(0, 99), st.integers(0, 2**32))
@example(np.zeros((4, 3)), 30, 0)
@example(np.ones((5, 4)), 50, 0)
def test_no_other_choice_of_as_many_bytes_is_better(distance, percent, seed):
    n, ways = distance.shape
    size = np.random.default_rng(seed).integers(1, 9, (n, ways))
    budget = int(size.max(1).sum()) * percent / 100
    found = allocate_bytes(distance, size, budget)
    assert found.dtype == np.int64

    def sums(choice):
        return tuple(sum(table[i, k] for i, k in enumerate(choice)) for table in (size, distance))

    every = [sums(choice) for choice in itertools.product(range(ways), repeat=n)]
    total, sum_of_distances = sums(found)
    if budget < size.min(1).sum():
        assert total == size.min(1).sum()
    else:
        assert total <= budget
    best = min(other for bytes_, other in every if bytes_ <= total)
    assert sum_of_distances <= best + 1e-9 * distance.max()


def test_more_bytes_go_where_they_help():
    distance, size = np.array([[9.0, 1.0]] * 4 + [[2.0, 1.0]] * 4), np.array([[10, 20]] * 8)
    assert allocate_bytes(distance, size, 110).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert allocate_bytes(distance, size, 149).tolist() == [1] * 6 + [0] * 2
    assert allocate_bytes(distance, size, 160).tolist() == [1] * 8
    assert allocate_bytes(distance, size, 5).tolist() == [0] * 8


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.just(2)), elements=st.floats(1e-9, 1e9)))
def test_the_middle_divides_both_steps_alike(ends):
    found = with_middle(ends)
    assert found.shape == (len(ends), 3)
    np.testing.assert_array_equal(found[:, [0, 2]], ends)
    np.testing.assert_allclose(found[:, 0] / found[:, 1], found[:, 1] / found[:, 2])
    falling = found[ends[:, 0] >= ends[:, 1]]
    assert (np.diff(falling, 2, axis=1) >= -1e-9 * falling[:, :1]).all()


def test_equal_values_go_to_the_lower_index():
    assert allocate(np.array([[2.0, 1.0, 0.0]] * 3), 3).tolist() == [2, 1, 0]
    assert allocate(np.array([[4.0, 1.0, 0.0]] * 3), 4).tolist() == [2, 1, 1]


@pytest.mark.parametrize("total", [-1, 7])
def test_totals_that_cannot_be(total):
    with pytest.raises(ValueError, match=f"3 samples cannot take {total} steps of 2 each"):
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
    [
        ("6", Bits("fixed", 6)),
        (3.5, Bits("fixed", 3.5)),
        (1, Bits("fixed", 1)),
        ("auto:4", Bits("auto", 4)),
        ("rank:2.5", Bits("rank", 2.5)),
        ("auto", Bits("auto", None)),
        ("fixed", Bits("fixed", None)),
    ],
)
def test_parse(text, expected):
    assert parse(text) == expected
    assert parse(str(parse(text))) == expected


@pytest.mark.parametrize("text", ["", "auto:", ":6", "fixed:6", "auto:9", "0.9", "nan", "auto:nan", "6:auto", "x"])
def test_what_is_no_width(text):
    with pytest.raises(OptionError, match="bits: .*; allowed: 1 to 8 bits, as in 6, auto:6, rank:6"):
        parse(text)
