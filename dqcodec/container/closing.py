"""What is open until it is closed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self


class Closing:
    """Closes itself at the end of a `with`."""

    close: Callable[[], object]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
