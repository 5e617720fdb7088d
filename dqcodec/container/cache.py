"""A folder that keeps the blocks of a remote file that were fetched once.

Two files for each version of a remote file: its bytes, as far as they are known, each at its place; and the CRC-32 of
every block, 0 where there is none. The CRC-32 is written after its block and checked before the block is first used:
whatever a killed process, a full disk or another program left there, a block is whole or counts as missing. Several
processes may share the folder: they write the same bytes. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from pathlib import Path

from dqcodec.container.storage import pread
from dqcodec.errors import OutputError, TruncatedError

BLOCK = 256 << 10


class Cache:
    """The blocks of the file `url` of `size` bytes in the version `version`; OutputError where they cannot be kept."""

    def __init__(self, folder: Path, url: str, size: int, version: str) -> None:
        self.folder, self.size = folder, size
        key = hashlib.sha256(repr((url, size, version)).encode()).hexdigest()[:32]
        name = re.sub(r"[^\w.-]", "_", url.partition("?")[0].rpartition("/")[2])[:48] + f"-{key}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._bytes = os.open(folder / f"{name}.bytes", os.O_RDWR | os.O_CREAT, 0o644)
            self._sums = os.open(folder / f"{name}.crc32", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._error(error) from error
        self._good: set[int] = set()  # blocks that were checked

    def read(self, start: int, size: int) -> bytes | None:
        """A range, None where not all of it is there."""
        blocks = range(start // BLOCK, -(-(start + size) // BLOCK))
        try:
            return pread(self._bytes, size, start) if all(map(self._has, blocks)) else None
        except TruncatedError:  # somebody cut the file
            return None

    def widen(self, start: int, size: int) -> tuple[int, int]:
        """The range of the whole blocks around a range."""
        first = start // BLOCK * BLOCK
        return first, min(-(-(start + size) // BLOCK) * BLOCK, self.size) - first

    def write(self, start: int, data: bytes) -> None:
        """Keep whole blocks."""
        sums = [zlib.crc32(data[place : place + BLOCK]).to_bytes(4, "little") for place in range(0, len(data), BLOCK)]
        try:
            _pwrite(self._bytes, data, start)
            _pwrite(self._sums, b"".join(sums), start // BLOCK * 4)
        except OSError as error:
            raise self._error(error) from error

    def forget(self, start: int, size: int) -> None:
        """Drop the blocks of a range."""
        blocks = range(start // BLOCK, -(-(start + size) // BLOCK))
        _pwrite(self._sums, bytes(4 * len(blocks)), blocks.start * 4)
        self._good.difference_update(blocks)

    def close(self) -> None:
        os.close(self._bytes)
        os.close(self._sums)

    def _has(self, block: int) -> bool:
        if block in self._good:
            return True
        start, stated = block * BLOCK, os.pread(self._sums, 4, block * 4)
        if len(stated) < 4 or not any(stated):
            return False
        if zlib.crc32(pread(self._bytes, min(BLOCK, self.size - start), start)).to_bytes(4, "little") != stated:
            return False
        self._good.add(block)
        return True

    def _error(self, error: OSError) -> OutputError:
        reason = error.strerror or str(error)
        return OutputError(f"cache: cannot write to {self.folder}: {reason}; choose another folder, or none")


def _pwrite(file: int, data: bytes, start: int) -> None:
    left = memoryview(data)
    while left:
        done = os.pwrite(file, left[: 1 << 30], start)
        left, start = left[done:], start + done
