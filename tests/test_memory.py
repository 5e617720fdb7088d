"""Memory that is used again: never while anything of the former array is left, and never more than stated."""

import gc
import pickle
import threading

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

import dqcodec
from dqcodec import memory

SMALL, MEDIUM, LARGE = memory.LEAST // 4 - 1, memory.LEAST // 4, memory.LEAST // 2  # of four bytes


@pytest.fixture(autouse=True)
def nothing_waiting():
    memory._waiting.clear()


def waiting() -> int:
    return sum(len(block) for block in memory._waiting)


def address(array) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, ">i2", np.complex128])
def test_an_array_is_as_numpys(dtype):
    for shape in ((0,), (), (3, 0, 2), (5, 7), (3, 512, 1024)):
        array = memory.empty(shape, dtype)
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.flags.aligned


def test_what_nothing_uses_is_used_again():
    array = memory.empty((LARGE,), np.float32)
    place = address(array)
    del array
    assert waiting() == 4 * LARGE
    assert address(memory.empty((MEDIUM,), np.float32)) != place  # of another size
    assert address(memory.empty((2, LARGE // 2), np.int32)) == place
    small, before = memory.empty((SMALL,), np.float32), waiting()
    del small
    assert waiting() == before  # numpy's own


KEEPERS = {
    "a view": lambda array: array[1:2],
    "a view of a view": lambda array: array[::2].reshape(-1, 2)[3],
    "another type": lambda array: array.view(np.uint8)[5:],
    "another class": lambda array: array.view(np.ma.MaskedArray)[:4],
    "a memoryview": lambda array: memoryview(array)[4:],
    "an array of a memoryview": lambda array: np.asarray(memoryview(array)),
    "a tensor": torch.from_numpy,
    "a part of a tensor": lambda array: torch.from_numpy(array)[3:7].view(2, 2),
    "numpy of a tensor": lambda array: torch.from_numpy(array)[3:].detach().numpy(),
    "by DLPack": torch.from_dlpack,
}


@pytest.mark.parametrize("how", KEEPERS)
def test_memory_waits_for_the_last_that_shares_it(how):
    array = memory.empty((LARGE,), np.float32)
    array[:] = 7
    kept = KEEPERS[how](array)
    del array
    gc.collect()
    assert waiting() == 0
    memory.empty((LARGE,), np.float32)[:] = 9
    assert np.float32(7).tobytes() in np.asarray(kept).tobytes()
    del kept
    gc.collect()
    assert waiting() == 8 * LARGE


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([SMALL, MEDIUM, LARGE]), st.integers(0, 5)), max_size=40))
def test_arrays_that_live_at_once_share_nothing(steps):
    """Each step takes an array and lets one of those before go, if there is one at that place."""
    living = {}
    for number, (size, gone) in enumerate(steps):
        array = memory.empty((size,), np.int32)
        array[:] = number
        living[number] = array if number % 2 else array[1:-1]
        del array
        living.pop(number - gone - 1, None)
        assert all((other == n).all() for n, other in living.items())


def test_no_more_is_kept_than_stated(monkeypatch):
    arrays = [memory.empty((memory.LEAST + size,), np.uint8) for size in range(3 * memory.KEPT)]
    latest = address(arrays[-1])
    while arrays:
        del arrays[0]
        assert len(memory._waiting) <= memory.KEPT
    assert waiting() < (memory.LEAST + 3 * memory.KEPT) * memory.KEPT
    assert address(memory.empty((memory.LEAST + 3 * memory.KEPT - 1,), np.uint8)) == latest
    monkeypatch.setattr(memory, "MOST", 2 * memory.LEAST)
    before, huge = waiting(), memory.empty((2 * memory.LEAST + 1,), np.uint8)
    del huge
    assert waiting() == before


def test_the_garbage_collector_may_free_arrays_at_any_moment(monkeypatch):
    """Arrays in cycles, which the collector frees while another one is being taken."""
    noise = []
    monkeypatch.setattr("sys.unraisablehook", noise.append)
    before = gc.get_threshold()
    try:
        for step in range(1, 40):
            cycle = [memory.empty((memory.LEAST + n % 3,), np.uint8) for n in range(6)]
            cycle.append(cycle)
            del cycle
            gc.set_threshold(step, 2, 2)
            taken = [memory.empty((memory.LEAST + n % 4,), np.uint8) for n in range(12)]
            for n, array in enumerate(taken):
                array[:: 1 << 12] = n
            assert all((array[:: 1 << 12] == n).all() for n, array in enumerate(taken))
            gc.set_threshold(*before)
    finally:
        gc.set_threshold(*before)
    assert noise == []


def test_threads_may_take_and_free_at_once():
    wrong, passed = [], [None] * 8

    def work(own: int) -> None:
        for turn in range(300):
            array = memory.empty((LARGE if turn % 3 else MEDIUM,), np.int32)
            value = own * 1000 + turn
            array[:: 1 << 12] = value
            other = passed[(own + turn) % len(passed)]  # freed by another thread than the one that took it
            passed[own] = (array[:: 1 << 12], value)
            for part, expected in [(array[:: 1 << 12], value), *([other] if other else [])]:
                if not (part == expected).all():
                    wrong.append((own, turn))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("filter", [False, True])
def test_a_dropped_patch_is_black_whatever_was_there_before(monkeypatch, filter):
    """And so in a batch of which only some samples lack patches."""
    monkeypatch.setattr(memory, "LEAST", 1)
    with dqcodec.open(GOLDEN / "dct-dropped" / "file.dqz", filter=filter) as file:
        every = range(len(file))
        assert not file.mask(every).all()
        first = file.images(every, fill="none")
        expected = first.copy()
        first[:] = 255
        place = address(first)
        del first
        again = file.images(every, fill="none")
        assert address(again) == place
        assert (again == expected).all()


def test_copies_have_memory_of_their_own():
    array = memory.empty((LARGE,), np.float32)
    array[:] = 3
    other = pickle.loads(pickle.dumps(array))
    del array
    memory.empty((LARGE,), np.float32)[:] = 4
    assert (other == 3).all()
