import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqcodec import OptionError, select
from dqcodec.selection.sampling import draw, split


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any),
    st.floats(0.001, 1.0),
    st.integers(1, 12),
    st.integers(0, 5),
)
def test_counts_add_up(class_sizes, keep, bins, seed):
    labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
    n = len(labels)
    found = select(np.random.default_rng(seed).normal(size=(n, 3)), labels, keep, bins, seed)
    assert len(found.kept) == len(set(found.kept.tolist())) == max(1, round(keep * n))
    assert found.kept.tolist() == sorted(found.kept.tolist())
    share = len(found.kept) * np.bincount(labels) / n
    assert (np.abs(np.bincount(labels[found.kept], minlength=len(share)) - share) < 1 + 1e-9).all()
    for c in range(len(share)):
        members = labels == c
        assert found.size[c].tolist() == np.bincount(found.bin[members], minlength=bins).tolist()
        kept = found.kept[labels[found.kept] == c]
        assert found.taken[c].tolist() == np.bincount(found.bin[kept], minlength=bins).tolist()
        assert sorted(found.order[members].tolist()) == list(range(members.sum()))
        exact = found.taken[c].sum() * found.size[c] / max(1, found.size[c].sum())
        assert (np.abs(found.taken[c] - exact) < 1 + 1e-9).all()  # uniform over the bins


def test_keep_one_keeps_all():
    found = select(np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3, keep=1.0)
    assert found.kept.tolist() == list(range(30))


def test_same_seed_same_samples_and_the_draw_is_pinned():
    features = np.random.default_rng(0).normal(size=(50, 4))
    first, again, other = (select(features, keep=0.3, seed=seed).kept.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert draw(np.arange(10), 4, np.random.PCG64(7)).tolist() == [3, 4, 6, 9]


def test_the_draw_is_uniform():
    bits = np.random.PCG64(0)
    counts = np.zeros(8)
    for _ in range(4000):
        counts[draw(np.arange(8), 3, bits)] += 1
    assert np.abs(counts / 4000 - 3 / 8).max() < 0.03  # four standard deviations


@given(st.integers(0, 60), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=8))
def test_split_is_exact_and_within_limits(total, parts):
    weights = np.array([w for w, _ in parts], float)
    limits = np.array([limit for _, limit in parts])
    total = min(total, int(limits.sum()))
    counts = split(total, weights, limits)
    assert counts.sum() == total
    assert (counts <= limits).all()
    assert (counts >= 0).all()


def test_split_by_hand():
    assert split(5, np.array([1.0, 1.0, 1.0]), np.array([9, 9, 9])).tolist() == [2, 2, 1]
    assert split(6, np.array([4.0, 1.0, 1.0]), np.array([2, 9, 9])).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep": 0}, "keep: 0; allowed: 0 < keep <= 1"),
        ({"keep": 1.5}, "keep: 1.5"),
        ({"keep": float("nan")}, "keep: nan"),
        ({"bins": 0}, "bins: 0; allowed: 1 to 65536"),
        ({"bins": 2.5}, "bins: 2.5"),
        ({"seed": -1}, "seed: -1"),
        ({"labels": [0, 1]}, "expected one integer a sample"),
        ({"labels": [0.0, 1.0, 0.9]}, "expected one integer a sample"),
        ({"labels": [0, 1, -1]}, "labels: -1 to 1; allowed: 0 to 1048575"),
        ({"labels": [10**9] * 3}, "labels: 1000000000 to 1000000000; allowed"),
        ({"labels": [2**63] * 3}, "labels: 9223372036854775808"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(OptionError, match=message):
        select(np.ones((3, 2)), **arguments)


def test_wrong_features():
    with pytest.raises(OptionError, match="expected \\(samples, dimensions\\)"):
        select(np.ones(5))
    for features in (np.ones((3, 2), complex), np.array([["a"]] * 3), np.array([[None]] * 3)):
        with pytest.raises(OptionError, match="expected real numbers"):
            select(features)
    with pytest.raises(OptionError, match="row 1 is not finite"):
        select(np.array([[1, 2], [np.longdouble("1e4000"), 3]]))
    with pytest.raises(OptionError, match="for 0 samples"):
        select(np.ones((0, 2)))
