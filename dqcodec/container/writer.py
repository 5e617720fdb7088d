"""Writing a .dqz: a temporary file beside the target, synced and renamed when it is complete.

A killed run leaves the old file whole and no new one that looks complete; what it left, the next run for the same place
removes. Members, in this order: the payload (it is streamed), the columns by name, the root `zarr.json`.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import secrets
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from dqcodec.container import spec
from dqcodec.container.closing import Closing
from dqcodec.container.spec import Array, Header
from dqcodec.errors import OutputError
from dqcodec.locks import locked

EPOCH = (1980, 1, 1, 0, 0, 0)  # no clock in the file: the same input gives the same bytes
LEFT = 60  # seconds without a change after which something that is not complete may be a leftover
CHECKSUM_SHARE = 0.01  # checksums cost at most this share of the payload


class Writer(Closing):
    """Appends samples, then `finish`es; leaving the `with` block without `finish` leaves nothing behind.

    Raises OutputError when the target exists (without `overwrite`), its folder is missing or cannot be written, or
    the disk is full.
    """

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.path = Path(os.path.realpath(path))  # a link stays, what it leads to is written
        self.overwrite = overwrite
        self.lengths: list[int] = []
        self._check_target()
        self._temporary = hidden(self.path)
        sweep(self.path)
        self._hashes: dict[str, bytes] = {}
        self._payload_hash = hashlib.sha256()
        with self.writing():
            self._file = open(self._temporary, "x+b")  # noqa: SIM115 - closed by close()
        locked(self._file.fileno())  # it is no leftover
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._payload: IO[bytes] = self._zip.open(_info(f"{spec.PAYLOAD}/c/0"), "w", force_zip64=True)
        self._payload_start = self._file.tell()

    def append(self, payload: bytes) -> None:
        """Add the coded bytes of one sample, or of one frame of records (at least one)."""
        if not payload:
            raise ValueError("a sample has at least one byte")
        with self.writing():
            self._payload.write(payload)
        self._payload_hash.update(payload)
        self.lengths.append(len(payload))

    def finish(self, header: Header, columns: Mapping[str, Array]) -> Header:
        """Write columns and header, sync, and put the file in its place.

            header    `samples`, `checksum_group` and `fingerprint` are filled in here
            columns   by name, all but `length` and `checksum`; dtypes are narrowed as spec.COLUMNS allows

        Returns the header as written.
        """
        with self.writing():
            self._payload.close()
            self._hashes[f"{spec.PAYLOAD}/c/0"] = self._payload_hash.digest()
            group = checksum_group(self.lengths)
            header = replace(header, samples=_samples(header, self.lengths, columns), checksum_group=group)
            everything = {
                "length": np.asarray(self.lengths),
                "checksum": self._checksums(group),
                **columns,
            }
            self._write_columns(header, everything)
            header = self._write_root(header)
            self._zip.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._put_in_place()
            sync_folder(self.path.parent)
        return header

    def _check_target(self) -> None:
        if self.path.exists() and not self.path.is_file():
            what = "a folder" if self.path.is_dir() else "not a regular file"
            raise OutputError(f"{self.path} is {what}; give the name of a file", path=self.path)
        check_place(self.path, self.overwrite)

    def _put_in_place(self) -> None:
        self._check_target()
        if not self.overwrite:
            try:
                os.link(self._temporary, self.path)  # fails where another has written the file in between
                return
            except FileExistsError:
                self._check_target()
            except OSError:  # a file system without links
                pass
        os.replace(self._temporary, self.path)

    def _checksums(self, group: int) -> Array:
        """CRC-32 of each group of samples or frames, read back from the file: what is checked is what was written."""
        ends = np.cumsum(self.lengths)[group - 1 :: group].tolist()
        if len(self.lengths) % group:
            ends.append(sum(self.lengths))
        self._file.flush()
        back, sums, position = self._file.tell(), [], 0
        self._file.seek(self._payload_start)
        for end in ends:
            sums.append(zlib.crc32(self._file.read(end - position)))
            position = end
        self._file.seek(back)
        return np.asarray(sums, np.uint32)

    def _write_columns(self, header: Header, columns: Mapping[str, Array]) -> None:
        try:
            for name, data in _column_members(header, sum(self.lengths), columns):
                self._write(name, data)
        except OutputError as error:
            raise OutputError(f"{self.path}: {error}", path=self.path) from None

    def _write_root(self, header: Header) -> Header:
        digest = spec.fingerprint(self._hashes, replace(header, fingerprint="0" * 64).to_json())
        header = replace(header, fingerprint=digest)
        root = header.to_json()
        if len(root) > spec.MAX_ROOT:
            raise OutputError(f"{self.path}: a header of {len(root)} bytes; allowed: {spec.MAX_ROOT}", path=self.path)
        self._write(spec.ROOT, root)
        return header

    def _write(self, name: str, data: bytes) -> None:
        self._zip.writestr(_info(name), data)
        self._hashes[name] = hashlib.sha256(data).digest()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Whatever cannot be written beside the target is an OutputError."""
        with writing(self.path):
            yield

    def close(self) -> None:
        """Drop what is not finished."""
        if not self._file.closed:
            with suppress(OSError):  # a full disk fails again here
                self._payload.close()
            self._zip.fp = None  # keeps zipfile from writing a directory at its end
            with suppress(OSError):
                self._file.close()
        self._temporary.unlink(missing_ok=True)


def hidden(path: Path, ending: str = "part") -> Path:
    """A name beside `path` for what is not complete; "part" only where its lock is taken, see `sweep`."""
    return path.with_name(f".{path.name[:48]}.{secrets.token_hex(4)}.{ending}")


def sweep(path: Path) -> None:
    """Remove what runs that were killed have left beside `path`: old, and nobody has its lock."""
    for left in path.parent.glob(f".{glob.escape(path.name[:48])}.????????.part"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                if time.time() - os.fstat(descriptor).st_mtime > LEFT and locked(descriptor):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(descriptor)


def check_place(path: Path, overwrite: bool) -> None:
    """OutputError where something is there that may not be replaced, or the folder is missing."""
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; choose another name or add --overwrite", path=path)
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; create it first", path=path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """An OSError becomes an OutputError that names `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write {path}: {reason}; nothing was left behind", path=path) from error


def checksum_group(lengths: Sequence[int] | Array) -> int:
    """How many samples share a checksum, so that it costs CHECKSUM_SHARE; one where some are too long for that."""
    every = np.asarray(lengths, np.int64)
    group = max(1, int(np.ceil(4 / CHECKSUM_SHARE * len(every) / every.sum())))
    spans = np.add.reduceat(every, np.arange(0, len(every), group))
    return group if int(spans.max()) <= spec.MAX_GROUP else 1


def size_of(header: Header, lengths: Array, columns: Mapping[str, Array]) -> int:
    """Bytes of the file that a Writer would make of samples of these lengths; `columns` as for `finish`."""
    total, group = int(lengths.sum()), checksum_group(lengths)
    samples = _samples(header, lengths, columns)
    header = replace(header, samples=samples, checksum_group=group, fingerprint="0" * 64)
    everything = {"length": lengths, "checksum": np.zeros(-(-len(lengths) // group), np.uint32), **columns}
    members = [(name, len(data)) for name, data in _column_members(header, total, everything)]
    members.append((spec.ROOT, len(header.to_json())))

    limit = zipfile.ZIP64_LIMIT  # beyond it, sizes and offsets move to an extra field
    payload = f"{spec.PAYLOAD}/c/0"
    offset = 30 + len(payload) + 20 + total  # local header with room for large sizes
    directory = 46 + len(payload) + (20 if total > limit else 0)
    for name, size in members:
        directory += 46 + len(name) + (12 if offset > limit else 0)
        offset += 30 + len(name) + size
    return offset + directory + 22 + (76 if max(offset, directory) > limit else 0)


def _samples(header: Header, lengths: Sequence[int] | Array, columns: Mapping[str, Array]) -> int:
    """How many the ranges of the payload hold: the last frame of records may have fewer."""
    return len(lengths) if header.frame == 1 else len(columns["label"])


def _column_members(header: Header, total: int, columns: Mapping[str, Array]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of all members but the payload, which has `total` bytes, and the root."""
    yield f"{spec.PAYLOAD}/zarr.json", spec.array_json((total,), "uint8", compressed=False)
    for group in spec.GROUPS:
        if any(name.startswith(f"{group}/") for name in columns):
            yield f"{group}/zarr.json", b'{"zarr_format": 3, "node_type": "group", "attributes": {}}'
    unpacked = 0
    for name in sorted(columns):
        column = spec.COLUMNS[name]
        array = spec.smallest(columns[name], column.dtypes)
        expected = header.shape(name)
        if array.ndim != column.ndim or (expected is not None and array.shape != expected):
            raise ValueError(f"column {name} has shape {array.shape}, expected {expected or f'{column.ndim} axes'}")
        data = array.tobytes()
        packed = gzip.compress(data, 9, mtime=0)
        compressed = len(packed) < len(data) and name != "checksum"  # so that a size is known before its values are
        unpacked += len(data)
        if unpacked > spec.max_columns(total):
            message = f"columns of {unpacked} bytes; allowed: {spec.max_columns(total)}"
            raise OutputError(f"{message}; larger patches or fewer bins make them smaller")
        yield f"{name}/zarr.json", spec.array_json(array.shape, array.dtype.name, compressed)
        yield spec.chunk(name), packed if compressed else data


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system = 3  # the same on every system
    info.external_attr = 0o644 << 16
    return info


def sync_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can open folders."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
