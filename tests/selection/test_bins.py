"""The greedy against Eq. 1 of the paper, evaluated as it stands, in Python integers."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dqcodec.errors import OptionError
from dqcodec.models import greedy as on_device
from dqcodec.selection import bins as module
from dqcodec.selection.binning import BIN_SIZES
from dqcodec.selection.bins import check_features, greedy_bins, integers, sizes_of


def to_integers(features, pool):
    return integers(features, pool)(features)


def brute_force(x: list[list[int]], sizes: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Picks in order, bin and gain of each: arg max of Eq. 1 over all that is left, sums of squared distances."""

    def distance(a: list[int], b: list[int]) -> int:
        return sum((u - v) ** 2 for u, v in zip(a, b, strict=True))

    pool, order, bin_of, gain = list(range(len(x))), [], [], []
    for n, size in enumerate(sizes):
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


SIZES = st.tuples(st.integers(1, 6), st.sampled_from(BIN_SIZES))


def same(found, expected):
    assert found.order.tolist() == expected.order.tolist()
    assert found.bin.tolist() == expected.bin.tolist()
    assert found.gain.tolist() == expected.gain.tolist()


@settings(deadline=None)
@given(FEATURES, SIZES, st.booleans())
@example(np.zeros((7, 2)), (3, "equal"), False)  # nothing to tell them apart
@example(np.zeros((7, 2)), (3, "equal"), True)
@example(np.ones((9, 3)), (2, "geometric"), False)  # duplicates
@example(np.arange(12.0)[:, None] * np.ones(3), (4, "equal"), False)  # collinear
@example(np.arange(12.0)[:, None] * np.ones(3), (4, "equal"), True)
@example(np.vstack([np.full((10, 2), 0.1), [[1e9, -1e9]]]), (3, "equal"), False)  # one huge outlier
def test_same_picks_as_brute_force(features, shape, normalize):
    x = integers(features, len(features), normalize)(features)
    sizes = sizes_of(len(x), *shape)
    found = greedy_bins(x, sizes)
    order, bin_of, gain = brute_force([[int(v) for v in row] for row in x], sizes.tolist())
    assert found.order.tolist() == order
    assert found.bin[found.order].tolist() == bin_of
    assert found.gain[found.order].tolist() == gain


@settings(deadline=None)
@given(FEATURES, SIZES, st.integers(0, 9), st.integers(1, 9))
@example(np.zeros((7, 2)), (3, "equal"), 0, 2)
@example(np.zeros((4, 2)), (6, "geometric"), 0, 2)  # empty bins before the last
@example(np.vstack([np.full((10, 2), 0.1), [[1e9, -1e9]]]), (3, "equal"), 2, 3)
def test_same_picks_without_the_gram_matrix(features, shape, gram, short):
    """The large pool's way, forced on small ones: tiny short lists, the Gram matrix for the last bins only."""
    x = to_integers(features, len(features))
    sizes = sizes_of(len(x), *shape)
    expected = greedy_bins(x, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_GRAM", gram)
        patch.setattr(module, "_SHORT", short)
        same(greedy_bins(x, sizes), expected)


@settings(deadline=None)
@given(st.lists(FEATURES.map(lambda f: f[:, :1]), min_size=1, max_size=4), SIZES, st.sampled_from([1, 200, 1 << 20]))
def test_same_picks_on_a_torch_device(classes, shape, together):
    """Classes of different sizes in one batch, in several, and one by one."""
    classes = [to_integers(rows, 18) for rows in classes]
    sizes = [sizes_of(len(rows), *shape) for rows in classes]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_device, "BATCH_BYTES", together)
        found = list(on_device.greedy_bins_of(iter(classes), sizes, "cpu"))
    assert len(found) == len(classes)
    for one, rows, own in zip(found, classes, sizes, strict=True):
        same(one, greedy_bins(rows, own))


@pytest.mark.parametrize("kind", ["normal", "relu", "clusters", "few values"])
@pytest.mark.parametrize("shape", [(5, "equal"), (5, "geometric"), (1, "equal")])
def test_same_picks_of_a_large_pool(monkeypatch, kind, shape):
    rng = np.random.default_rng(0)
    features = {
        "normal": rng.normal(size=(900, 16)),
        "relu": np.maximum(rng.normal(1, 1, size=(900, 16)), 0),
        "clusters": rng.normal(size=(6, 16))[rng.integers(0, 6, 900)] * 5 + rng.normal(size=(900, 16)),
        "few values": rng.integers(-1, 2, (900, 3)).astype(float),
    }[kind]
    x = to_integers(features, 900)
    sizes = sizes_of(900, *shape)
    expected = greedy_bins(x, sizes)
    same(next(on_device.greedy_bins_of([x], [sizes], "cpu")), expected)
    monkeypatch.setattr(module, "_GRAM", 200)
    monkeypatch.setattr(module, "_SHORT", 64)
    same(greedy_bins(x, sizes), expected)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes_of_bins(samples, bins):
    equal, geometric = sizes_of(samples, bins), sizes_of(samples, bins, "geometric")
    assert equal.sum() == geometric.sum() == samples
    assert equal.max() - equal.min() <= 1
    assert geometric.min() >= 0
    assert (np.diff(geometric[:-1]) <= 0).all()


def test_geometric_sizes_are_those_of_the_papers_code():
    assert sizes_of(5000, 10, "geometric").tolist() == [500, 450, 405, 364, 328, 295, 266, 239, 215, 1938]


def test_cosine_graph_cut():
    """With normalised features and one bin the picks are those of the graph cut sum_V s(v, x) - 2 sum_S s(p, x)."""
    features = np.random.default_rng(3).normal(1, 1, size=(40, 6))
    x = integers(features, 40, normalize=True)(features)
    similarity = x @ x.T
    value, order = similarity.sum(0), []
    for _ in range(40):
        order.append(int(np.where(np.isin(np.arange(40), order), -np.inf, value).argmax()))
        value = value - 2 * similarity[order[-1]]
    norms = np.linalg.norm(x, axis=1)
    assert np.abs(norms / norms[0] - 1).max() < 1e-3  # so that |x|^2 decides nothing
    assert greedy_bins(x, sizes_of(40, 1)).order[:20].tolist() == order[:20]


def test_gains_fall_within_the_first_bin_at_its_start():
    """The first pick is the sample nearest to all others: the medoid by squared distance."""
    x = to_integers(np.random.default_rng(1).normal(size=(60, 3)), 60)
    distances = ((x[:, None] - x[None]) ** 2).sum(2).sum(1)
    assert greedy_bins(x, sizes_of(60, 4)).order[0] == distances.argmin()


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
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_not_finite(bad, kind):
    features = np.ones((4, 3), kind)
    features[2, 1] = bad
    with pytest.raises(OptionError, match="row 2 is not finite"):
        check_features(features)
    with pytest.raises(OptionError, match=r"row 2 \(c\) is not finite"):
        check_features(features, "abcd")


@pytest.mark.parametrize(("value", "kind"), [(1e300, np.float64), (2e19, np.float32), (1e19, np.float32)])
def test_norms_beyond_float32(value, kind):
    features = np.zeros((5, 4), kind)
    features[3] = value
    with pytest.raises(OptionError, match="row 3 has a norm of more than 1.8e\\+19; scale the features down"):
        check_features(features)
    features[3] = 9e18
    check_features(features)
