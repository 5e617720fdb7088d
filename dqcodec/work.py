"""What stages made, kept in a folder for the next run: another keep ratio reads no image and trains no network again.

    features-KEY.npy    rows that were written from the first to the last
    features-KEY.state  how many of them are there, and their checksum
    proxy-KEY.saved     arrays by name

KEY is a hash of all that the content follows from: what no longer fits is not found, and may be deleted at any time.
What is damaged is made again. Without a folder the same rows lie in unnamed files that go with the process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OutputError
from dqcodec.locks import locked

Array = npt.NDArray[Any]

SAVE = 10  # seconds of work that a killed run may lose
_BLOCK = 1 << 24


class Work:
    """
    folder   for what is kept, made where it is not there; None: keep nothing
    scratch  a folder for unnamed files
    found    names of what an earlier run made
    """

    def __init__(self, folder: str | Path | None, scratch: Path) -> None:
        self.folder, self.scratch = Path(folder) if folder else None, scratch
        self.found: list[str] = []
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Work:
        if self.folder:
            if self.folder.exists() and not self.folder.is_dir():
                raise OutputError(f"work: {self.folder} is a file; expected a folder", path=self.folder)
            with _writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._lock = open(self.folder / "lock", "wb")
            _lock(self._lock, self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock:
            self._lock.close()

    def rows(self, name: str, about: Any) -> Rows:
        """Rows to be appended to; those that an earlier run kept under the same name and `about` are there already."""
        rows = Rows(self._path(name, about), self.scratch)
        if rows.done:
            self.found.append(name if rows.complete else f"{rows.done:,} {name}")
        return rows

    def arrays(self, name: str, about: Any, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        """The arrays that an earlier run kept under the same name and `about`, or else those that `make` makes.

        about  all that they follow from, as JSON has it
        """
        base = self._path(name, about)
        if not base:
            return make()
        path = base.with_suffix(".saved")
        saved = _unsealed(path)
        if saved is not None:
            self.found.append(name)
            with np.load(io.BytesIO(saved), allow_pickle=False) as found:
                return dict(found)
        arrays: dict[str, Any] = make()
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        _replace(path, buffer.getvalue())
        return arrays

    def _path(self, name: str, about: Any) -> Path | None:
        text = json.dumps(about, sort_keys=True)
        return self.folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:20]}" if self.folder else None


class Rows:
    """A .npy that grows row by row and need not fit the memory; in `with`, because leaving it keeps what is there.

    done      rows that are there
    notes     what else is to be kept with them, as JSON has it
    complete  whether an earlier run came to the end
    """

    def __init__(self, base: Path | None, scratch: Path) -> None:
        self._state = base.with_suffix(".state") if base else None
        self._place = base.parent if base else scratch
        self._saved = time.monotonic()
        self.restart()
        with _writing(self._place):
            self._file = _open(base and base.with_suffix(".npy"), scratch)
        self._resume()

    def restart(self) -> None:
        """Forget what is there."""
        self.done, self.complete = 0, False
        self.notes: list[Any] = []
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)
        self._checksum = 0

    def _resume(self) -> None:
        """Believe the state where it is whole, and fits the data."""
        sealed = _unsealed(self._state) if self._state else None
        if sealed is None:
            return
        state = json.loads(sealed)
        self.done, self.notes, self.complete = state["rows"], state["notes"], state["complete"]
        self._shape, self._dtype, self._checksum = tuple(state["shape"]), np.dtype(state["dtype"]), state["checksum"]
        with _writing(self._place):
            self._file.seek(self._end(0))
            left, checksum = self._end(self.done) - self._end(0), 0
            while left and (block := self._file.read(min(left, _BLOCK))):
                checksum = zlib.crc32(block, checksum)
                left -= len(block)
        if left or checksum != self._checksum:
            self.restart()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self.complete and (self.done or self.notes):
                self._save()
        finally:
            with suppress(OSError):  # a full disk fails again here
                self._file.close()

    def append(self, rows: Array) -> None:
        """Add the next rows; all are of the shape and dtype of the first."""
        if self.done == 0:
            self._shape, self._dtype = rows.shape[1:], rows.dtype
        if rows.shape[1:] != self._shape or rows.dtype != self._dtype:
            raise ValueError(f"rows of {rows.dtype} {rows.shape[1:]} after {self._dtype} {self._shape}")
        data = rows.tobytes()
        with _writing(self._place):
            self._file.seek(self._end(self.done))
            self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)
        self.done += len(rows)
        if time.monotonic() - self._saved > SAVE:
            self._save()

    def finish(self) -> Array:
        """There are no more rows: all of them, memory-mapped."""
        if not self.complete:
            self.complete = True
            self._save()
        return np.memmap(self._file, self._dtype, "r", self._end(0), (self.done, *self._shape))

    def _save(self) -> None:
        """The data first, then what says that they are there."""
        with _writing(self._place):
            self._file.seek(0)
            self._file.write(_header(self.done, self._shape, self._dtype))
            self._file.flush()
            if self._state:
                os.fsync(self._file.fileno())
        state = {
            "rows": self.done, "shape": self._shape, "dtype": self._dtype.str, "checksum": self._checksum,
            "complete": self.complete, "notes": self.notes,
        }  # fmt: skip
        if self._state:
            _replace(self._state, json.dumps(state).encode())
        self._saved = time.monotonic()

    def _end(self, rows: int) -> int:
        """Where so many rows end."""
        size = int(np.prod(self._shape)) * self._dtype.itemsize
        return len(_header(0, self._shape, self._dtype)) + rows * size


def status(path: Path) -> list[tuple[str, int, int, int]]:
    """Name, size and times of a file, or of all files in a folder: what is the same has, most likely, not changed."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    found = [(str(file), file.stat()) for file in files if file.is_file()]
    return [(name, each.st_size, each.st_mtime_ns, each.st_ctime_ns) for name, each in found]


def _open(path: Path | None, scratch: Path) -> IO[bytes]:
    """To read and write; made where it is not there, and never cut."""
    if not path:
        return tempfile.TemporaryFile(dir=scratch)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")


def _header(rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    """Of a .npy; numpy pads it so that its length does not depend on the number of rows."""
    buffer = io.BytesIO()
    header = {"descr": dtype.str, "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _seal(path: Path, data: bytes) -> bytes:
    """What stands before the data, and fits no other file and no other data."""
    return hashlib.sha256(path.name.encode() + data).digest()


def _unsealed(path: Path) -> bytes | None:
    """The data that `_replace` wrote; None where they are not there, or not whole."""
    try:
        sealed = path.read_bytes() if path.is_file() else b""
    except OSError:
        return None
    seal, data = sealed[:32], sealed[32:]
    return data if seal == _seal(path, data) else None


def _replace(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    with _writing(path):
        with open(temporary, "wb") as file:
            file.write(_seal(path, data) + data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}", path=path) from error


def _lock(file: IO[bytes], folder: Path) -> None:
    """One run at a time, where there are locks."""
    if locked(file.fileno()) is False:
        file.close()
        raise OutputError(f"another run is using the work folder {folder}", path=folder)
