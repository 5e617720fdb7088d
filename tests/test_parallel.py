import gc
import multiprocessing
import threading

import pytest

from dqcodec.parallel import ordered_map


def test_results_come_in_order_and_an_error_ends_them():
    assert list(ordered_map(lambda n: n * n, range(50), 3, ahead=5)) == [n * n for n in range(50)]
    seen = []
    with pytest.raises(ZeroDivisionError):
        for value in ordered_map(lambda n: 1 // (n - 3), range(50), 2):
            seen.append(value)
    assert seen == [1 // (n - 3) for n in range(3)]


def test_an_abandoned_map_may_be_collected_in_one_of_its_own_threads(monkeypatch):
    """As the garbage collector comes by in any thread; what goes wrong there is only printed."""
    wrong = []
    monkeypatch.setattr("sys.unraisablehook", wrong.append)
    collect, collected = threading.Event(), threading.Event()

    def work(n):
        if n == 1:
            collect.wait(60)
            gc.collect()
            collected.set()
        return n

    cycle = [ordered_map(work, range(2), 1, ahead=2)]
    cycle.append(cycle)
    assert next(cycle[0]) == 0
    del cycle
    collect.set()
    assert collected.wait(60)
    assert wrong == []


@pytest.mark.parametrize("taken", [1, 9])  # when tasks are still to be given out, and when all have been
def test_a_forked_process_does_not_wait_for_its_parents_threads(taken):
    results = ordered_map(lambda n: n, range(10), 2, ahead=4)
    assert [next(results) for _ in range(taken)] == list(range(taken))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def go_on():
        try:
            next(results)
        except RuntimeError as error:
            queue.put(str(error))

    process = context.Process(target=go_on)
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert queue.get() == "a forked process cannot go on with an iterator of its parent; make a new one"
    assert list(results) == list(range(taken, 10))
