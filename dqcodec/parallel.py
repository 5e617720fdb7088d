"""One helper: a map over threads that keeps the order and holds only a few results."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    ahead: int = 0,
    initializer: Callable[[], None] | None = None,
) -> Generator[R]:
    """`map` over threads, in order; an exception ends it, and so does `close`.

    ahead        tasks in flight and results waiting, at most; by default 8 for each worker
    initializer  called in each thread before its first task
    """
    threads: set[int] = set()

    def begin() -> None:
        threads.add(threading.get_ident())
        if initializer is not None:
            initializer()

    pool = ThreadPoolExecutor(workers, initializer=begin)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= (ahead or 8 * workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # What was abandoned may be closed by one of the pool's own threads, as the garbage collector comes by there.
        pool.shutdown(wait=threading.get_ident() not in threads, cancel_futures=True)
