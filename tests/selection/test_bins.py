"""The greedy against Eq. 1 of the paper, evaluated as it stands, in Python integers."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dqcodec.errors import OptionError
from dqcodec.selection import bins as module
from dqcodec.selection.bins import bin_sizes, greedy_bins, integers


def to_integers(features, pool):
    return integers(features, pool)(features)


def brute_force(x: list[list[int]], bins: int) -> tuple[list[int], list[int], list[int]]:
    """Picks in order, bin and gain of each: arg max of Eq. 1 over all that is left, sums of squared distances."""

    def distance(a: list[int], b: list[int]) -> int:
        return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))

    pool, order, bin_of, gain = list(range(len(x))), [], [], []
    for n, size in enumerate(bin_sizes(len(x), bins)):
        chosen: list[int] = []
        for _ in range(size):
            gains = [sum(distance(x[p], x[i]) for p in chosen) - sum(distance(x[p], x[i]) for p in pool) for i in pool]
            best = pool[gains.index(max(gains))]  # the lowest index of equal gains
            chosen.append(best)
            pool.remove(best)
            bin_of.append(n)
            gain.append(max(gains))
        order += chosen
    return order, bin_of, gain


FEATURES = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 18), st.integers(1, 4)),
    elements=st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6)),
)


@settings(deadline=None)
@given(FEATURES, st.integers(1, 6))
@example(np.zeros((7, 2)), 3)  # nothing to tell them apart
@example(np.ones((9, 3)), 2)  # duplicates
@example(np.arange(12.0)[:, None] * np.ones(3), 4)  # collinear
@example(np.vstack([np.full((10, 2), 0.1), [[1e9, -1e9]]]), 3)  # one huge outlier
def test_same_picks_as_brute_force(features, bins):
    x = to_integers(features, len(features))
    found = greedy_bins(x, bins)
    order, bin_of, gain = brute_force([[int(v) for v in row] for row in x], bins)
    assert found.order.tolist() == order
    assert found.bin[found.order].tolist() == bin_of
    assert found.gain[found.order].tolist() == gain


@settings(deadline=None)
@given(FEATURES, st.integers(1, 6), st.integers(0, 9), st.integers(1, 9))
@example(np.zeros((7, 2)), 3, 0, 2)
@example(np.vstack([np.full((10, 2), 0.1), [[1e9, -1e9]]]), 3, 2, 3)
def test_same_picks_without_the_gram_matrix(features, bins, gram, short):
    """The large pool's way, forced on small ones: tiny short lists, the Gram matrix for the last bins only."""
    x = to_integers(features, len(features))
    expected = greedy_bins(x, bins)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_GRAM", gram)
        patch.setattr(module, "_SHORT", short)
        found = greedy_bins(x, bins)
    assert found.order.tolist() == expected.order.tolist()
    assert found.gain.tolist() == expected.gain.tolist()


@pytest.mark.parametrize("kind", ["normal", "relu", "clusters", "few values"])
def test_same_picks_of_a_large_pool(monkeypatch, kind):
    rng = np.random.default_rng(0)
    features = {
        "normal": rng.normal(size=(900, 16)),
        "relu": np.maximum(rng.normal(1, 1, size=(900, 16)), 0),
        "clusters": rng.normal(size=(6, 16))[rng.integers(0, 6, 900)] * 5 + rng.normal(size=(900, 16)),
        "few values": rng.integers(-1, 2, (900, 3)).astype(float),
    }[kind]
    x = to_integers(features, 900)
    expected = greedy_bins(x, 5)
    monkeypatch.setattr(module, "_GRAM", 200)
    monkeypatch.setattr(module, "_SHORT", 64)
    found = greedy_bins(x, 5)
    assert found.order.tolist() == expected.order.tolist()
    assert found.bin.tolist() == expected.bin.tolist()


def test_order_is_a_permutation_and_bins_are_within_one():
    for m, bins in ((100, 10), (7, 10), (23, 4), (1, 1)):
        found = greedy_bins(to_integers(np.random.default_rng(m).normal(size=(m, 5)), m), bins)
        assert sorted(found.order.tolist()) == list(range(m))
        sizes = np.bincount(found.bin, minlength=bins)
        assert sizes.tolist() == bin_sizes(m, bins).tolist()
        assert sizes.max() - sizes.min() <= 1


def test_gains_fall_within_the_first_bin_at_its_start():
    """The first pick is the sample nearest to all others: the medoid by squared distance."""
    x = to_integers(np.random.default_rng(1).normal(size=(60, 3)), 60)
    distances = ((x[:, None] - x[None]) ** 2).sum(2).sum(1)
    assert greedy_bins(x, 4).order[0] == distances.argmin()


@pytest.mark.parametrize(("pool", "dimensions", "bits"), [(1300, 512, 15), (50_000, 384, 13), (1_281_167, 512, 10)])
def test_bits_of_the_integer_features(pool, dimensions, bits):
    """The figures of the design; the top value is 2^b - 1."""
    features = np.linspace(-1, 1, 3 * dimensions).reshape(3, dimensions)
    assert np.abs(to_integers(features, pool)).max() == 2**bits - 1


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint64, np.float16])
def test_extreme_values_of_other_types(kind):
    """The most negative integer has no positive counterpart of its type."""
    info = np.finfo(kind) if kind is np.float16 else np.iinfo(kind)
    features = np.array([[info.min, 0], [info.max, 1], [1, 2]], kind)
    x = to_integers(features, 3)
    assert np.abs(x).max() == 2**15 - 1
    assert x[0, 0] <= x[2, 0] <= x[1, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    features = np.ones((4, 3))
    features[2, 1] = bad
    with pytest.raises(OptionError, match="row 2 is not finite"):
        integers(features, 4)


def test_norms_beyond_float32():
    features = np.array([[1e300, 0.0], [0.0, 1e300], [1e299, 1e299]])
    assert np.abs(to_integers(features, 3)).max() == 2**15 - 1
