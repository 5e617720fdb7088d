"""Several .dqz files in a folder as one set: `part-00000.dqz`, `part-00001.dqz`, ... and `index.json`.

Every part is a whole file by itself. The index says which parts belong together, in which order.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from dqcodec.container import spec, storage
from dqcodec.container.closing import Closing
from dqcodec.container.reader import Reader, Samples
from dqcodec.container.spec import Array, Header
from dqcodec.container.writer import Writer, check_place, hidden, sweep, sync_folder, writing
from dqcodec.errors import FormatError, OutputError
from dqcodec.locks import locked

T = TypeVar("T")

INDEX = "index.json"
_MAX_INDEX = 4 << 20  # bytes of the index
_ONLY_PARTS = ("length", "checksum")  # columns that say where bytes lie
_SUMMED = ("bins/taken",)
_PART = re.compile(r"part-[0-9]{5,}\.dqz")


@dataclass(frozen=True)
class Part:
    """An entry of the index: a file, its samples and its fingerprint."""

    name: str
    samples: int
    fingerprint: str


def part_name(number: int) -> str:
    return f"part-{number:05d}.dqz"


def index_json(parts: Sequence[Part]) -> bytes:
    """The bytes of the index."""
    entries = [{"name": part.name, "samples": part.samples, "fingerprint": part.fingerprint} for part in parts]
    return json.dumps({"dqz_shards": 1, "fingerprint": fingerprint(parts), "parts": entries}, indent=1).encode()


def fingerprint(parts: Sequence[Part]) -> str:
    """SHA-256 of the parts' fingerprints, 64 characters each, one after the other."""
    return hashlib.sha256("".join(part.fingerprint for part in parts).encode()).hexdigest()


def joined(header: Header, parts: Sequence[Part]) -> Header:
    """The header of all parts together, from that of one."""
    samples = sum(part.samples for part in parts)
    return replace(header, samples=samples, checksum_group=1, fingerprint=fingerprint(parts))


def parse_index(data: bytes) -> tuple[Part, ...]:
    """The parts; FormatError where the index is not one."""
    value = spec.parse_json(data, INDEX)
    if not spec.same(value.get("dqz_shards"), 1):
        raise FormatError(f"{INDEX}: not an index of .dqz parts of version 1", member=INDEX)
    entries = value.get("parts")
    if not isinstance(entries, list) or not entries:
        raise FormatError(f"{INDEX}: no parts", member=INDEX)
    parts = []
    for number, entry in enumerate(entries):
        kinds = {"name": str, "samples": int, "fingerprint": str}
        if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in kinds.items()):
            raise FormatError(f"{INDEX}: part {number} needs name, samples and fingerprint", member=INDEX)
        if entry["name"] != part_name(number):
            raise FormatError(
                f"{INDEX}: part {number} is {entry['name'][:80]!r}, expected {part_name(number)}", member=INDEX
            )
        parts.append(Part(*(entry[key] for key in kinds)))
    if value.get("fingerprint") != fingerprint(parts):
        raise FormatError(f"{INDEX}: its fingerprint is not that of the parts", member=INDEX)
    return tuple(parts)


class ShardReader(Samples):
    """An open folder of parts, as Reader is an open file; samples are numbered through all parts.

    `path` is a folder, or a URL that ends with "/"; `cache` as for Reader.
    """

    def __init__(self, path: str | Path, cache: str | Path | None = None) -> None:
        self.path = storage.place(path)
        index = _read_index(self.path, cache)
        try:
            self._index = parse_index(index)
        except FormatError as error:
            raise type(error)(f"{self.path}: {error}", path=self.path, member=INDEX) from None
        self.parts: list[Reader] = []
        self.close = weakref.finalize(self, _close, self.parts)
        try:
            for part in self._index:
                self.parts.append(self._open(part, cache))
        except BaseException:
            self.close()
            raise
        first = self.parts[0]
        self._starts = np.cumsum([0, *(len(part) for part in self.parts)])
        if self._starts[-1] > spec.MAX_SAMPLES:
            raise FormatError(f"{self.path}: {self._starts[-1]} samples; allowed: {spec.MAX_SAMPLES}")
        self.header = joined(first.header, self._index)
        self.columns = {name: self._column(name) for name in first.columns if name not in _ONLY_PARTS}
        self.size = sum(part.size for part in self.parts) + len(index)
        self.sizes = {name: sum(part.sizes.get(name, 0) for part in self.parts) for name in first.sizes}
        self.identity = hashlib.sha256("".join(part.identity for part in self.parts).encode()).hexdigest()

    def _open(self, stated: Part, cache: str | Path | None) -> Reader:
        """A part, which must be the one that the index names and fit the first one."""
        where = _inside(self.path, stated.name)
        try:
            part = Reader(where, cache)
        except FileNotFoundError:
            raise FormatError(
                f"{where}: missing, {INDEX} names it; copy the whole folder", path=where, member=INDEX
            ) from None
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            count = f"its {len(self._index):,} parts stay open, and the system allows this process fewer files"
            raise OSError(
                errno.EMFILE, f"{count}: raise that limit (ulimit -n), or encode with a larger --shard-size", str(where)
            ) from None
        reason = ""
        if part.header.frame > 1 and stated is not self._index[-1] and len(part) % part.header.frame:
            reason = f"{len(part)} records, which frames of {part.header.frame} do not fill"
        if (part.header.fingerprint, len(part)) != (stated.fingerprint, stated.samples):
            reason = f"another file than {INDEX} names: {len(part)} samples, fingerprint {part.header.fingerprint}"
        elif self.parts and not _same_kind(part, self.parts[0]):
            reason = f"it does not belong to {part_name(0)}: header, tables or weights differ"
        if reason:
            part.close()
            raise FormatError(f"{where}: {reason}", path=where)
        return part

    def _column(self, name: str) -> Array:
        """Of all samples, or what all parts share."""
        if _shared(name):
            return self.parts[0].columns[name]
        columns = [part.columns[name] for part in self.parts]
        joined: Array = np.stack(columns).sum(0, dtype=np.int64) if name in _SUMMED else np.concatenate(columns)
        return joined

    def read(self, indices: Sequence[int] | Array) -> list[bytes]:
        """As Reader.read."""
        wanted = np.asarray(indices, np.int64)
        numbers = np.searchsorted(self._starts, wanted, "right") - 1
        found: list[bytes] = [b""] * len(wanted)
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number)
            try:
                payloads = self.parts[number].read(wanted[places] - self._starts[number])
            except FormatError as error:
                raise self._numbered(error, number) from None
            for place, payload in zip(places.tolist(), payloads, strict=True):
                found[place] = payload
        return found

    def error(self, index: int, reason: str, kind: type[FormatError] = FormatError) -> FormatError:
        """An error that names the part and the sample in it; its `sample` counts through all parts."""
        number = int(np.searchsorted(self._starts, index, "right")) - 1
        return self._numbered(self.parts[number].error(index - int(self._starts[number]), reason, kind), number)

    def _numbered(self, error: FormatError, number: int) -> FormatError:
        sample = None if error.sample is None else error.sample + int(self._starts[number])
        return type(error)(str(error), path=error.path, member=error.member, sample=sample)

    def fingerprint(self) -> str:
        """As Reader.fingerprint: computed from the bytes of all parts."""
        return fingerprint(
            [replace(s, fingerprint=p.fingerprint()) for s, p in zip(self._index, self.parts, strict=True)]
        )


def open_reader(path: str | Path, cache: str | Path | None = None) -> Reader | ShardReader:
    """Of a file, or of a folder of parts."""
    where = storage.place(path)
    folder = where.endswith("/") if isinstance(where, str) else where.is_dir()
    return ShardReader(where, cache) if folder else Reader(where, cache)


def bytes_on_disk(path: str | Path) -> int:
    """Of a file, or of all files in a folder of parts."""
    path = Path(path)
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))


def _shared(name: str) -> bool:
    return name.startswith(("tables/", "mae/", "bins/", "text/")) and name not in _SUMMED


def _same_kind(part: Reader, first: Reader) -> bool:
    a, b = (replace(reader.header, samples=1, checksum_group=1, fingerprint="0" * 64) for reader in (part, first))
    shared = [name for name in first.columns if _shared(name)]
    return (
        a == b
        and part.columns.keys() == first.columns.keys()
        and all(part.columns[name].shape[1:] == column.shape[1:] for name, column in first.columns.items())
        and all(part.columns[name].tobytes() == first.columns[name].tobytes() for name in shared)
    )


def _inside(folder: str | Path, name: str) -> str | Path:
    return folder + name if isinstance(folder, str) else folder / name


def _read_index(folder: str | Path, cache: str | Path | None) -> bytes:
    where = _inside(folder, INDEX)
    try:
        source = storage.connect(where, cache)
    except FileNotFoundError:
        raise FormatError(f"{folder}: a folder without {INDEX}, so no .dqz", path=folder) from None
    try:
        if source.size > _MAX_INDEX:
            raise FormatError(f"{where}: {source.size} bytes; allowed: {_MAX_INDEX}", path=where)
        return source.read(0, source.size)
    finally:
        source.close()


def _close(parts: list[Reader]) -> None:
    for part in parts:
        part.close()


class ShardWriter(Closing):
    """A folder of parts in the making, in a hidden folder beside its place until it is complete.

    Raises OutputError where it cannot be written. A folder that is replaced must be one of parts.
    """

    def __init__(self, path: str | Path, overwrite: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        self.overwrite = overwrite
        self._check_target()
        self._temporary = hidden(self.path)
        sweep(self.path)
        self._lock: int | None = None
        with self.writing():
            self._temporary.mkdir()
            if hasattr(os, "O_DIRECTORY"):
                self._lock = os.open(self._temporary, os.O_RDONLY)
                locked(self._lock)

    def part(self, number: int) -> Writer:
        """Of a part; they are numbered from 0 on."""
        return Writer(self._temporary / part_name(number))

    def finish(self, headers: Sequence[Header]) -> Header:
        """Write the index of these parts and put the folder in its place; returns the header of all together."""
        parts = [Part(part_name(k), header.samples, header.fingerprint) for k, header in enumerate(headers)]
        with self.writing():
            with open(self._temporary / INDEX, "xb") as file:
                file.write(index_json(parts))
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self._temporary)
            self._put_in_place()
            sync_folder(self.path.parent)
        return joined(headers[0], parts)

    def _check_target(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"{self.path} is a file; shards are written into a folder", path=self.path)
        check_place(self.path, self.overwrite)
        if not self.path.exists():
            return
        others = sorted(p.name for p in self.path.iterdir() if p.name != INDEX and not _PART.fullmatch(p.name))
        if others or not (self.path / INDEX).is_file():
            what = f"holds {others[0]}" if others else f"has no {INDEX}"
            raise OutputError(f"{self.path} {what}, so it is not replaced; choose another name", path=self.path)

    def _put_in_place(self) -> None:
        self._check_target()
        if self.path.exists():  # a folder cannot be replaced in one step; both are whole while they change places
            old = self._temporary.with_suffix(".old")
            os.rename(self.path, old)
            os.rename(self._temporary, self.path)
            shutil.rmtree(old)
        else:
            os.rename(self._temporary, self.path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Whatever cannot be written beside the target is an OutputError."""
        with writing(self.path):
            yield

    def close(self) -> None:
        """Drop what is not finished."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        shutil.rmtree(self._temporary, ignore_errors=True)


Output = Writer | ShardWriter


def write_parts(
    output: Output, whole: T, parts: Callable[[], Sequence[T]], put: Callable[[T, Writer], Header]
) -> Header:
    """Put the whole into a file, or one part after another into a folder; returns the header of all.

    put  writes a part and finishes its file
    """
    if isinstance(output, Writer):
        return put(whole, output)
    headers = []
    for number, part in enumerate(parts()):
        with output.part(number) as file:
            headers.append(put(part, file))
    return output.finish(headers)
