"""A map over threads that keeps the order and holds few results, and whose tasks may ask whether it has ended."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import thread as pools
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_thread = threading.local()
_numbers = itertools.count()


def beside_others() -> bool:
    """Whether this is a thread of an `ordered_map`, that is one of several."""
    return hasattr(_thread, "ended")


def stopped() -> bool:
    """Whether this thread works for an `ordered_map` that has ended, so that nobody waits for its result.

    Or for one in an interpreter that ends: before anything else it waits for the threads of pools, having set a flag.
    """
    ended: threading.Event | None = getattr(_thread, "ended", None)
    return ended is not None and (ended.is_set() or getattr(pools, "_shutdown", False))


def alone() -> None:
    """One OpenMP thread for this thread, which uses torch: the tasks of its `ordered_map` are what is done together."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.get_num_threads()  # torch sets its number in a thread when it is first asked
    threadpool_limits(1, user_api="openmp")


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    ahead: int = 0,
    initializer: Callable[[], None] | None = None,
) -> Generator[R]:
    """`map` over threads, in order; an exception ends it, and so does `close`. Tasks that run then are waited for; what
    may take long should look at `stopped`.

    ahead        tasks in flight and results waiting, at most; by default 8 for each worker
    initializer  called in each thread before its first task
    """
    threads: set[int] = set()
    ended = threading.Event()

    def begin() -> None:
        threads.add(threading.get_ident())
        _thread.ended = ended
        if initializer is not None:
            initializer()

    process = os.getpid()

    def check() -> None:
        if os.getpid() != process:  # threads are not forked: nobody would do the tasks
            raise RuntimeError("a forked process cannot go on with an iterator of its parent; make a new one")

    name = f"dqcodec-{next(_numbers)}-"
    pool = ThreadPoolExecutor(workers, name, initializer=begin)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            check()
            waiting.append(pool.submit(function, item))
            if len(waiting) >= (ahead or 8 * workers):
                yield waiting.popleft().result()
        while waiting:
            check()
            yield waiting.popleft().result()
    finally:
        ended.set()
        # What was abandoned may be closed by one of the pool's own threads, as the garbage collector comes by there.
        waits = threading.get_ident() not in threads
        try:
            pool.shutdown(waits, cancel_futures=True)
        finally:  # Ctrl-C may come while it waits, or while a thread starts, of which the pool does not know then
            while waits and any(thread.name.startswith(name) for thread in threading.enumerate()):
                time.sleep(0.001)
