"""What the stages of a long run share: workers, times, progress, notes, and the files that were left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dqcodec.errors import OptionError, SourceError
from dqcodec.parallel import default_workers

Progress = Callable[[str, int, int], None]  # stage, done, total


class Run:
    """
    workers  threads; None: one a processor
    skipped  (name, reason) of every file that is no usable image; with `strict` the first is an error
    notes    sentences that a person should read
    seconds  by stage
    """

    def __init__(self, workers: int | None, strict: bool = False, progress: Progress | None = None) -> None:
        if workers is not None and workers < 1:
            raise OptionError(f"workers: {workers}; allowed: at least 1")
        self.workers, self.strict = workers or default_workers(), strict
        self.progress: Progress = progress or (lambda stage, done, total: None)
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to the stage's."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def skip(self, name: str, reason: str) -> None:
        """Leave out a file; the reason may begin with its name, as the text of a SourceError does."""
        reason = reason.removeprefix(f"{name}: ")
        if self.strict:
            raise SourceError(f"{name}: {reason} (with --strict nothing is skipped)", path=name)
        self.skipped.append((name, reason))
