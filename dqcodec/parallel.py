"""A map over threads that keeps the order and holds few results, and whose tasks may ask whether it has ended."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import thread as pools
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_thread = threading.local()


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


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block.

    In the middle of a Condition it may leave a lock held for ever, and while a thread is forgotten it gets lost, since
    what functions of weak references raise is only printed.
    """
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *signal_and_frame: came.append(signal_and_frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


def _submit(pool: ThreadPoolExecutor, function: Callable[[T], R], item: T) -> SimpleQueue[Future[R]]:
    """Gets the future once it is done. To wait for it is done in C, so that Ctrl-C comes before it or after it."""
    done: SimpleQueue[Future[R]] = SimpleQueue()
    with _uninterrupted():
        pool.submit(function, item).add_done_callback(done.put)
    return done


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

    pool = ThreadPoolExecutor(workers, "dqcodec-", initializer=begin)
    waiting: deque[SimpleQueue[Future[R]]] = deque()
    try:
        for item in items:
            check()
            waiting.append(_submit(pool, function, item))
            if len(waiting) >= (ahead or 8 * workers):
                yield waiting.popleft().get().result()
        while waiting:
            check()
            yield waiting.popleft().get().result()
    finally:
        with _uninterrupted():
            ended.set()
            # What was abandoned may be closed by one of its own threads, as the garbage collector comes by there.
            pool.shutdown(threading.get_ident() not in threads, cancel_futures=True)
            del pool
