import gc
import multiprocessing
import subprocess
import sys
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


def test_ctrl_c_at_any_moment():
    """KeyboardInterrupt and nothing else comes out of it, at once, and no thread is left behind.

    In a process of its own: what libraries hang into the garbage collector (hypothesis does) loses KeyboardInterrupt.
    """
    press = """
import os, random, signal, sys, time
for line in sys.stdin:
    time.sleep(random.uniform(0, 0.004))
    os.kill(int(sys.argv[1]), signal.SIGINT)
"""
    pressed = f"""
import gc, os, signal, subprocess, sys, threading, time
from dqcodec.parallel import ordered_map

signal.signal(signal.SIGINT, signal.default_int_handler)  # as it may be ignored where the tests run
gc.disable()  # weak references of Python's own, collected in cycles, lose it too
ask = subprocess.Popen([sys.executable, "-c", {press!r}, str(os.getpid())], stdin=subprocess.PIPE, text=True, bufsize=1)
for n in range(1000):
    try:
        ask.stdin.write("now\\n")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            list(ordered_map(lambda n: sum(range(50 * n)), range(20), 4))
    except KeyboardInterrupt:
        continue
    sys.exit(f"the KeyboardInterrupt of press {{n}} got lost")
ask.stdin.close()
ask.wait(10)
gc.collect()

def left():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("dqcodec-")]

end = time.monotonic() + 10  # it may have come just before a map ends its threads
while left() and time.monotonic() < end:
    time.sleep(0.01)
sys.exit(f"left behind: {{left()}}" if left() else 0)
"""
    done = subprocess.run([sys.executable, "-c", pressed], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
