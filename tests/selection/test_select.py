import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dqcodec import OptionError, select
from dqcodec.selection import METHODS, sample
from dqcodec.selection.binning import divide
from dqcodec.selection.sampling import draw, split

CLASSES = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@settings(deadline=None)
@given(CLASSES, st.floats(0.001, 1.0), st.integers(1, 12), st.sampled_from(METHODS), st.integers(0, 5), st.data())
def test_counts_add_up(class_sizes, keep, bins, method, seed, data):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(class_sizes)), class_sizes))
    n = len(labels)
    bins = min(bins, n)
    features = np.random.default_rng(seed).normal(size=(n, 3))
    if method == "adq":
        rs, ds = (
            np.array(data.draw(st.lists(st.floats(-9, 9) | st.just(np.nan), min_size=bins, max_size=bins)))
            for _ in range(2)
        )
        found = sample(divide(features, labels, bins), labels, keep, method, seed, rs=rs, ds=ds)
        assert np.isfinite(found.is_).all()
    else:
        found = select(features, labels, keep, bins, method, seed)
    assert len(found.kept) == len(set(found.kept.tolist())) == max(1, round(keep * n))
    assert found.kept.tolist() == sorted(found.kept.tolist())
    share = len(found.kept) * np.bincount(labels) / n
    assert (np.abs(np.bincount(labels[found.kept], minlength=len(share)) - share) < 1 + 1e-9).all()
    for c in range(len(share)):
        members = labels == c
        assert found.size[c].tolist() == np.bincount(found.bin[members], minlength=found.size.shape[1]).tolist()
        kept = found.kept[labels[found.kept] == c]
        assert found.taken[c].tolist() == np.bincount(found.bin[kept], minlength=found.size.shape[1]).tolist()
        assert sorted(found.order[members].tolist()) == list(range(members.sum()))
        assert (found.taken[c] <= found.size[c]).all()
        if method == "dq":
            exact = found.taken[c].sum() * found.size[c] / found.size[c].sum()
            assert (np.abs(found.taken[c] - exact) < 1 + 1e-9).all()  # uniform over the bins
        if method in ("graphcut", "random"):
            assert found.size.shape[1] == 1
            assert sorted(found.order[kept].tolist()) == list(range(len(kept)))  # the first ones


@settings(deadline=None)
@given(CLASSES, st.floats(0.001, 1.0), st.integers(1, 12), st.lists(st.floats(-9, 9), min_size=12, max_size=12))
def test_adq_without_alpha_is_dq(class_sizes, keep, bins, score):
    labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
    bins = min(bins, len(labels))
    binning = divide(np.random.default_rng(0).normal(size=(len(labels), 2)), labels, bins)
    rs = np.array(score[:bins])
    adq = sample(binning, labels, keep, "adq", alpha=0, rs=rs, ds=rs[::-1])
    dq = sample(binning, labels, keep, "dq")
    assert adq.taken.tolist() == dq.taken.tolist()
    assert adq.kept.tolist() == dq.kept.tolist()


def test_adq_takes_more_of_bins_that_matter():
    features = np.random.default_rng(0).normal(size=(1000, 4))
    binning = divide(features, None, 4)
    rs, ds = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0])
    takes = [sample(binning, None, 0.4, "adq", alpha=alpha, rs=rs, ds=ds).taken[0] for alpha in (0, 0.5, 1)]
    assert takes[0].tolist() == [100, 100, 100, 100]
    for taken in takes[1:]:
        assert (np.diff(taken) < 0).all()
    assert takes[2][0] > takes[1][0]
    z = (rs - rs.mean()) / rs.std() + (ds - ds.mean()) / ds.std()  # by hand: Eq. 6 to 9
    share = np.exp(z / 10) / np.exp(z / 10).sum()
    assert np.abs(takes[2] - 400 * share).max() < 1
    assert np.abs(takes[1] - 400 * (0.125 + share / 2)).max() < 1


def test_rounding_favours_no_bin():
    """50 classes of 9 in 4 bins, 2 of each class: also over all classes every bin gives its share."""
    labels = np.repeat(np.arange(50), 9)
    found = select(np.random.default_rng(0).normal(size=(450, 2)), labels, 100 / 450, 4, "dq")
    exact = 100 * found.size.sum(0) / 450
    assert (np.abs(found.taken.sum(0) - exact) <= 1).all()
    assert found.taken.sum(1).tolist() == [2] * 50


def test_what_exceeds_a_bin_is_handed_on():
    binning = divide(np.random.default_rng(0).normal(size=(100, 4)), None, 2)
    taken = sample(binning, None, 0.98, "adq", alpha=1, rs=np.array([9.0, 0.0]), ds=np.array([9.0, 0.0])).taken
    assert taken.tolist() == [[50, 48]]


def test_the_whole_of_adq_by_features():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(300, 8)), np.arange(300) % 3
    first, again = (select(features, labels, 0.5, 5, seed=4) for _ in range(2))
    assert first.kept.tolist() == again.kept.tolist()
    assert len(first.kept) == 150
    for score in (first.rs, first.ds, first.is_):
        assert score.shape == (5,)
        assert np.isfinite(score).all()
    assert first.rs.max() <= 0
    assert first.ds.max() <= 0
    assert first.is_.sum() == pytest.approx(0, abs=1e-9)
    plain = select(features, labels, 0.5, 5, "dq", seed=4)
    assert (plain.rs, plain.ds, plain.is_) == (None, None, None)
    assert plain.bin.tolist() == first.bin.tolist()


def test_graphcut_is_the_first_bin_of_as_many():
    """Eq. 1's first bin of K samples and graph cut's first K picks are the same samples."""
    features = np.random.default_rng(5).normal(size=(60, 4))
    coreset = select(features, keep=0.25, method="graphcut").kept
    assert coreset.tolist() == np.flatnonzero(divide(features, None, 4).bin == 0).tolist()


def test_one_binning_serves_every_ratio():
    features, labels = np.random.default_rng(0).normal(size=(90, 4)), np.arange(90) % 2
    binning = divide(features, labels, 3)
    for keep in (0.1, 0.5, 0.9):
        again = select(features, labels, keep, 3, "dq", seed=2)
        assert sample(binning, labels, keep, "dq", seed=2).kept.tolist() == again.kept.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_keep_one_keeps_all_and_the_least_is_one(method):
    features, labels = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
    assert select(features, labels, 1.0, method=method).kept.tolist() == list(range(30))
    assert len(select(features, labels, 1e-9, method=method).kept) == 1
    assert select(features[:1], None, 0.5, 1, method).kept.tolist() == [0]


@pytest.mark.parametrize("features", [np.zeros((20, 3)), np.ones((20, 3)), np.arange(20.0)[:, None]])
@pytest.mark.parametrize("method", METHODS)
def test_features_that_say_little(features, method):
    found = select(features, None, 0.5, 4, method)
    assert len(found.kept) == 10
    if method == "adq":
        assert np.isfinite(found.is_).all()


def test_same_seed_same_samples_and_the_draw_is_pinned():
    features = np.random.default_rng(0).normal(size=(50, 4))
    first, again, other = (select(features, keep=0.3, method="dq", seed=seed).kept.tolist() for seed in (1, 1, 2))
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
        ({"bins": 0}, "bins: 0; allowed: an integer, 1 to 65536"),
        ({"bins": 2.5}, "bins: 2.5"),
        ({"bins": 4}, "bins: 4 for 3 samples; allowed here: 1 to 3"),
        ({"seed": -1}, "seed: -1"),
        ({"method": "best"}, "method: 'best'; allowed: adq, dq, graphcut, random"),
        ({"alpha": 1.1}, "alpha: 1.1; allowed: 0 <= alpha <= 1"),
        ({"alpha": float("nan")}, "alpha: nan"),
        ({"alpha": None}, "alpha: None; expected a number"),
        ({"keep": "0.5"}, "keep: '0.5'; expected a number"),
        ({"bins": 1, "bin_sizes": "odd"}, "bin_sizes: 'odd'; allowed: equal, geometric"),
        ({"labels": [0, 2, 2]}, "labels: class 1 of 0 to 2 has no sample"),
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


@pytest.mark.parametrize("method", METHODS)
def test_wrong_features(method):
    with pytest.raises(OptionError, match="expected \\(samples, dimensions\\)"):
        select(np.ones(5), method=method)
    for features in (np.ones((3, 2), complex), np.array([["a"]] * 3), np.array([[None]] * 3)):
        with pytest.raises(OptionError, match="expected real numbers"):
            select(features)
    with pytest.raises(OptionError, match="row 1 is not finite"):
        select(np.array([[1, 2], [np.longdouble("1e4000"), 3]]))
    with pytest.raises(OptionError, match="at least one of each"):
        select(np.ones((0, 2)))


def test_within_no_grad():
    """Where features are made there is often no gradient; the discriminator needs its own."""
    import torch

    features = np.random.default_rng(0).normal(size=(60, 4))
    expected = select(features, bins=3)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert select(features, bins=3).ds.tolist() == expected.ds.tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", ["foo", "", "meta", "cuda:77"])
def test_devices_that_are_not_to_be_had(method, device):
    with pytest.raises(OptionError, match="device: .* is not to be had here"):
        select(np.ones((4, 2)), bins=2, method=method, device=device)


def test_a_device_gives_the_same_samples():
    features, labels = np.random.default_rng(0).normal(size=(200, 5)), np.arange(200) % 3
    first, again = (select(features, labels, 0.4, 4, "dq", device=device) for device in ("cpu", "cpu:0"))
    assert first.kept.tolist() == again.kept.tolist()
    assert first.gain.tolist() == again.gain.tolist()


def test_graphcut_and_random_have_no_use_for_bins():
    for method in ("graphcut", "random"):
        assert select(np.ones((2, 1)), keep=1, method=method).kept.tolist() == [0, 1]


def test_samples_of_another_binning():
    binning = divide(np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2, 2)
    for labels in (np.arange(20) % 4, None, np.arange(20) // 15):
        with pytest.raises(OptionError, match="labels: classes of .* samples; the bins are of"):
            sample(binning, labels)
    for rs in (np.ones(3), np.array([1, np.inf])):
        with pytest.raises(OptionError, match="expected 2 values each, finite or NaN"):
            sample(binning, np.arange(20) % 2, method="adq", rs=rs, ds=np.ones(2))


def test_too_many_bins_of_too_many_classes():
    with pytest.raises(OptionError, match="bins: 65536 for 40000 classes; allowed here: 1 to 104"):
        divide(np.ones((80_000, 1)), np.arange(80_000) % 40_000, 65_536)
