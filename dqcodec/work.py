"""What stages made, kept in a folder for the next run: another keep ratio reads no image and trains no network again.

    features-KEY.npy   rows that were written from the first to the last
    features-KEY.json  how many of them are there
    proxy-KEY.npz      arrays by name

KEY is a hash of all that the content follows from: what no longer fits is not found, and may be deleted at any time.
Without a folder the same rows lie in unnamed files that go with the process.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import OutputError

Array = npt.NDArray[Any]

SAVE = 10  # seconds of work that a killed run may lose


class Work:
    """
    folder   for what is kept, made where it is not there; None: keep nothing
    scratch  a folder for unnamed files
    """

    def __init__(self, folder: str | Path | None, scratch: Path) -> None:
        self.folder, self.scratch = Path(folder) if folder else None, scratch
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Work:
        if self.folder:
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
        return Rows(self._path(name, about), self.scratch)

    def arrays(self, name: str, about: Any, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        """The arrays that an earlier run kept under the same name and `about`, or else those that `make` makes.

        about  all that they follow from, as JSON has it
        """
        base = self._path(name, about)
        if not base:
            return make()
        path = base.with_suffix(".npz")
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
                return dict(found)
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error):  # not there, or damaged
            arrays = make()
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
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
        self.done, self.complete = 0, False
        self.notes: list[Any] = []
        self._shape: tuple[int, ...] = ()
        self._dtype = np.dtype(np.uint8)
        self._state = base.with_suffix(".json") if base else None
        self._place = base.parent if base else scratch
        self._saved = time.monotonic()
        with _writing(self._place):
            self._file = _open(base and base.with_suffix(".npy"), scratch)
        self._resume()

    def _resume(self) -> None:
        """Believe the state only where it fits the data."""
        if not self._state:
            return
        try:
            state = json.loads(self._state.read_bytes())
            done, shape, dtype = int(state["rows"]), tuple(map(int, state["shape"])), np.dtype(state["dtype"])
            sound = min(done, *shape, 0) == 0 and not dtype.hasobject
            if sound and os.fstat(self._file.fileno()).st_size >= self._end(done, shape, dtype):
                self.done, self._shape, self._dtype = done, shape, dtype
                self.notes, self.complete = list(state["notes"]), bool(state["complete"])
        except (OSError, ValueError, KeyError, TypeError):  # no earlier run, or damaged
            pass

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            if not self.complete and (self.done or self.notes):
                self._save()

    def append(self, rows: Array) -> None:
        """Add the next rows; all are of the shape and dtype of the first."""
        if self.done == 0:
            self._shape, self._dtype = rows.shape[1:], rows.dtype
        if rows.shape[1:] != self._shape or rows.dtype != self._dtype:
            raise ValueError(f"rows of {rows.dtype} {rows.shape[1:]} after {self._dtype} {self._shape}")
        with _writing(self._place):
            self._file.seek(self._end(self.done, self._shape, self._dtype))
            self._file.write(rows.tobytes())
        self.done += len(rows)
        if time.monotonic() - self._saved > SAVE:
            self._save()

    def finish(self) -> Array:
        """There are no more rows: all of them, memory-mapped."""
        if not self.complete:
            self.complete = True
            self._save()
        offset = len(_header(0, self._shape, self._dtype))
        return np.memmap(self._file, self._dtype, "r", offset, (self.done, *self._shape))

    def _save(self) -> None:
        """The data first, then what says that they are there."""
        with _writing(self._place):
            self._file.seek(0)
            self._file.write(_header(self.done, self._shape, self._dtype))
            self._file.flush()
            if self._state:
                os.fsync(self._file.fileno())
        state = {
            "rows": self.done, "shape": self._shape, "dtype": self._dtype.str, "complete": self.complete,
            "notes": self.notes,
        }  # fmt: skip
        if self._state:
            _replace(self._state, json.dumps(state).encode())
        self._saved = time.monotonic()

    @staticmethod
    def _end(done: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        return len(_header(done, shape, dtype)) + done * int(np.prod(shape)) * dtype.itemsize


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


def _replace(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.part")
    with _writing(path):
        with open(temporary, "wb") as file:
            file.write(data)
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
    """One run at a time; the lock goes with the process. Where there are no such locks, there is none."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise OutputError(f"another run is using the work folder {folder}", path=folder) from None
