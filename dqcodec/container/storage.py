"""What a .dqz is read from: byte ranges of a local file, or of one on a server (`remote`)."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import FormatError, OptionError, TruncatedError
from dqcodec.parallel import beside_others

Array = npt.NDArray[Any]
Range = tuple[int, int]  # first byte, number of bytes
FEW, MANY, MUCH = 16, 256, 1 << 24  # ranges, and bytes of them together, that a local file is asked for at once
COMPILED = find_spec("numba") is not None

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")


class Storage:
    """Byte ranges of one file of `size` bytes, whole or TruncatedError. Safe to use from several threads."""

    size: int

    def read_many(self, ranges: Array) -> Iterator[bytes]:
        """The bytes of each range, int64 (n, 2), in order; an error comes at the range that it concerns."""
        raise NotImplementedError

    def read(self, start: int, size: int) -> bytes:
        return next(self.read_many(np.array([(start, size)])))

    def read_again(self, start: int, size: int) -> bytes:
        """For bytes that were found damaged: from where the file lies, not from a copy."""
        return self.read(start, size)

    def opening(self) -> AbstractContextManager[None]:
        """While a file is opened: what `expect` names is fetched at once and kept until the end."""
        return nullcontext()

    def expect(self, ranges: Sequence[Range]) -> None:
        """These will be read soon, in pieces."""

    def close(self) -> None:
        """Let go of what is open."""


class Local(Storage):
    """A regular file; reads carry their position."""

    def __init__(self, path: Path) -> None:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise FormatError("not a regular file")
        self._file = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self._file).st_size

    def read_many(self, ranges: Array) -> Iterator[bytes]:
        for first in range(0, len(ranges), MANY):
            some = ranges[first : first + MANY]
            found = _at_once(self._file, some)
            yield from found
            yield from (pread(self._file, size, start) for start, size in some[len(found) :].tolist())

    def read(self, start: int, size: int) -> bytes:
        return pread(self._file, size, start)

    def close(self) -> None:
        os.close(self._file)


class Stream(io.RawIOBase):
    """A storage as a seekable file, for `zipfile`."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self._position = storage, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + (0, self._position, self._storage.size)[whence]
        if position < 0:
            raise OSError(errno.EINVAL, f"a position of {position}")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        size = max(0, min(len(view), self._storage.size - self._position))
        view[:size] = self._storage.read(self._position, size)
        self._position += size
        return size


def place(path: str | Path) -> str | Path:
    """A URL as it is, anything else as a Path."""
    return path if isinstance(path, str) and _URL.match(path) else Path(path)


def connect(path: str | Path, cache: str | Path | None = None) -> Storage:
    """The storage of a local file or a URL, which may have a `cache`: a folder that keeps what was fetched.

    Raises OSError where it cannot be opened, FormatError where it is no file, OptionError for wrong arguments.
    """
    where = place(path)
    if isinstance(where, str):
        from dqcodec.container.remote import Remote

        return Remote(where, None if cache is None else Path(cache))
    if cache is not None:
        raise OptionError(f"cache: {cache} given for the local file {where}; only URLs are cached")
    return Local(where)


def _at_once(file: int, ranges: Array) -> list[bytes]:
    """The bytes of the ranges before the first that cannot be read whole; none where it would not pay.

    In a process that was forked to read only, numba may be locked for ever.
    """
    if len(ranges) < FEW or not COMPILED or not beside_others():
        return []
    starts, sizes = np.ascontiguousarray(ranges.T)
    ends = np.cumsum(sizes)
    if ends[-1] > MUCH:
        return []
    from dqcodec.container.gather import gather

    out = np.empty(ends[-1], np.uint8)
    count = gather(file, starts, sizes, out)
    data = out.tobytes()
    return [data[start:end] for start, end in pairwise([0, *ends[:count].tolist()])]


def pread(file: int, size: int, start: int) -> bytes:
    """`size` bytes at `start`, without moving a shared position."""
    data = os.pread(file, min(size, 1 << 30), start)
    while len(data) < size:
        end = start + len(data)
        part = os.pread(file, min(size - len(data), 1 << 30), end)
        if not part:
            raise TruncatedError(f"the file ends at byte {end}, {size - len(data)} bytes too early")
        data += part
    return data
