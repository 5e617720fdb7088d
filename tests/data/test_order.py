import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dqcodec.data.order import permutation, share

M = (1 << 64) - 1


def mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M
    return x ^ x >> 31


def ranked(samples, seed, epoch):
    """The order by Python's integers."""
    golden = 0x9E3779B97F4A7C15
    key = mix(mix(seed) + epoch * golden & M)
    return sorted(range(samples), key=lambda i: mix(key + (i + 1) * golden & M))


@given(st.integers(0, 200), st.integers(0, M), st.integers(0, M))
def test_the_order_is_the_stated_one(samples, seed, epoch):
    found = permutation(samples, seed, epoch)
    assert found.dtype == np.int64
    assert found.tolist() == ranked(samples, seed, epoch)


def test_the_order_of_today_is_that_of_ever():
    assert permutation(10, 0, 0).tolist() == [2, 4, 6, 8, 5, 1, 7, 0, 9, 3]
    assert permutation(10, 7, 3).tolist() == [3, 1, 2, 0, 5, 7, 6, 4, 9, 8]


def test_all_orders_are_equally_likely():
    """Over 12,000 epochs each of the 120 orders of five samples comes about 100 times (five deviations)."""
    counts = Counter(tuple(permutation(5, 1, epoch).tolist()) for epoch in range(12_000))
    assert len(counts) == 120
    assert max(abs(n - 100) for n in counts.values()) < 5 * 10


ranks = st.integers(1, 5)


@given(st.integers(0, 60), st.integers(1, 9), ranks, st.booleans(), st.integers(0, 70))
def test_ranks_take_the_beginning_of_what_is_left(samples, batch, world, drop_last, position):
    order = permutation(samples, 0, 0)
    position = min(position, samples)
    parts = [share(order, position, batch, rank, world, drop_last) for rank in range(world)]
    assert len({tuple(map(len, part)) for part in parts}) == 1  # as many batches of the same sizes on each
    taken = []
    for step in zip(*parts, strict=True):
        assert len(step[0]) in range(1, batch + 1)
        taken += [i for row in itertools.zip_longest(*step) for i in row]
    left = order[position:].tolist()
    if drop_last:
        assert taken == left[: len(left) // (batch * world) * batch * world]
    else:
        assert taken[: len(left)] == left
        padding = taken[len(left) :]
        assert len(padding) < world
        assert padding == list(itertools.islice(itertools.cycle(order.tolist()), len(padding)))


@given(st.integers(1, 60), st.integers(1, 9), ranks, st.integers(1, 9), ranks, st.data())
def test_any_ranks_go_on_exactly(samples, batch, world, batch_2, world_2, data):
    """Some steps by some ranks, the rest by others: together the whole order, each sample once."""
    order = permutation(samples, 3, 1)
    steps = data.draw(st.integers(0, samples // (batch * world)))
    position = steps * batch * world
    taken = [share(order, 0, batch, r, world, False)[k] for k in range(steps) for r in range(world)]
    taken += [b for r in range(world_2) for b in share(order, position, batch_2, r, world_2, False)]
    left = -(samples - position) % world_2
    found = Counter(np.concatenate([*taken, np.zeros(0, np.int64)]).tolist())
    assert found == Counter(order.tolist()) + Counter(np.resize(order, left).tolist())
