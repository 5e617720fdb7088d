"""Reading a .dqz: everything is checked before it is believed, a sample is one range of bytes.

Opening reads the ZIP directory, the header and the columns; `read` returns the coded bytes of samples after their
checksums. Nothing is allocated from a stated size before that size is known to fit the file.
"""

from __future__ import annotations

import hashlib
import re
import struct
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dqcodec.container import spec, storage
from dqcodec.container.closing import Closing
from dqcodec.container.spec import Array, Header
from dqcodec.container.storage import Storage
from dqcodec.errors import ChecksumError, FormatError, TruncatedError

_BLOCK = 1 << 20
# Printable ASCII without backslash; no component is empty, "." or "..".
_PLAIN_MEMBER = re.compile(r"(?!.*(^|/)\.{0,2}(/|$))[ -\[\]-~]+")
_UNKNOWN = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)  # what stands in the end record where only the ZIP64 one knows
_MAX_INFLATE_RATIO = 1032  # deflate cannot expand further
_LOCAL_HEADER = 1 << 10  # bytes that hold that of the payload


@dataclass(frozen=True)
class Member:
    """Where the bytes of a stored ZIP member lie: first byte, number of bytes, CRC-32."""

    start: int
    size: int
    crc: int


class Samples(Closing):
    """What an open file and an open folder of parts have in common."""

    header: Header
    columns: dict[str, Array]

    def __len__(self) -> int:
        return self.header.samples

    def mask(self, indices: Sequence[int] | Array) -> Array:
        """bool (n, P), true where a patch is kept."""
        if "mask" not in self.columns:
            return np.ones((len(indices), self.header.patches), bool)
        return spec.unpack_mask(self.columns["mask"][np.asarray(indices, np.int64)], self.header.patches)


class Reader(Samples):
    """An open .dqz.

        header    the checked header
        identity  a digest of the directory: places, sizes and CRC-32 of all members
        columns   arrays by name; `label`, `length` and `checksum` are always there, of images `bits` and `scale`
        offsets   int64 (N + 1,), where each sample starts in the payload, and its end; of records, each frame of them

    `path` may be a URL that fsspec knows, and `cache` then a folder that keeps what was fetched (`storage.connect` says
    what is raised). Safe to use from several threads: reads carry their position.
    """

    close: weakref.finalize[[], Reader]

    def __init__(self, path: str | Path, cache: str | Path | None = None) -> None:
        self.path = storage.place(path)
        try:
            self._storage = storage.connect(self.path, cache)
            self.close = weakref.finalize(self, self._storage.close)  # also when nobody calls it
            with self._storage.opening():
                self._open()
        except FormatError as error:
            if error.path is not None:
                raise
            raise type(error)(
                f"{self.path}: {error}", path=self.path, member=error.member, sample=error.sample
            ) from None

    def _open(self) -> None:
        self.size = self._storage.size
        self.members = read_directory(self._storage)
        self.identity = hashlib.sha256(repr(sorted(self.members.items())).encode()).hexdigest()
        self.header = spec.parse_header(self._member(spec.ROOT, spec.MAX_ROOT))
        payload = self._check_payload()
        if self.header.frames > payload.size:
            raise FormatError(f"{self.header.samples} samples in {payload.size} payload bytes", member=spec.ROOT)
        self._allowance = spec.max_columns(payload.size)
        self.columns = {name: self._column(name) for name in spec.COLUMNS if self._has(name)}
        for name, column in spec.COLUMNS.items():
            if self.header.transform in column.always and name not in self.columns:
                raise FormatError(f"the column {name} is missing", member=name)
            if self.header.transform in column.never and name in self.columns:
                what = f"this file of the transform {self.header.transform}"
                raise FormatError(f"the column {name} does not belong to {what}", member=name)
        self._payload = payload
        self._below("length", 1, None)
        self.offsets = np.concatenate([[0], np.cumsum(self.columns["length"], dtype=np.int64)])
        if int(self.offsets[-1]) != payload.size:
            raise FormatError(
                f"length: the lengths add up to {int(self.offsets[-1])}, the payload has {payload.size} bytes",
                member="length",
            )
        self._check_columns()

    def _check_columns(self) -> None:
        """Values that index something must be inside it."""
        header, columns = self.header, self.columns
        self._below("label", 0, len(header.classes))
        if "bits" in columns:
            self._below("bits", spec.LEAST_BITS[header.transform], 9)
        self._finite("distance")
        spans = np.diff(self.offsets[:: header.checksum_group], append=self.offsets[-1:])
        if header.checksum_group > 1 and int(spans.max()) > spec.MAX_GROUP:
            raise FormatError(f"checksum: {spans.max()} bytes share one; allowed: {spec.MAX_GROUP}", member="checksum")
        if "mask" in columns:
            mask, used = columns["mask"], header.patches % 8
            bad = np.flatnonzero(~mask.any(1) | ((mask[:, -1] >> used > 0) if used else False))
            if bad.size:
                raise FormatError(
                    f"mask: sample {bad[0]} keeps no patch or has bits after the last one",
                    member="mask",
                    sample=int(bad[0]),
                )
        if ("bins/size" in columns) != ("bins/taken" in columns) or ("bin" in columns) != ("bins/size" in columns):
            raise FormatError("bin, bins/size and bins/taken come together or not at all", member="bins")
        self._check_scores()
        self._check_transform()
        self._check_mae()
        self._check_soft()
        if "bin" in columns:
            self._check_group("bins")
            shape = columns["bins/size"].shape
            if shape != columns["bins/taken"].shape or shape[0] != len(header.classes) or shape[1] > spec.MAX_BINS:
                raise FormatError(f"bins/size: shape {shape} does not fit {len(header.classes)} classes", member="bins")
            self._below("bin", 0, shape[1])
            taken = np.zeros(shape, np.int64)
            np.add.at(taken, (columns["label"], columns["bin"]), 1)
            if (columns["bins/taken"] != taken).any() or (taken > columns["bins/size"]).any():
                raise FormatError(
                    "bins/taken: not the samples of the file, or more than bins/size", member="bins/taken"
                )

    def _finite(self, name: str) -> None:
        """Finite and at least 0."""
        values = self.columns.get(name, np.zeros(1))
        bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
        if bad.size:
            raise FormatError(f"{name}: sample {bad[0]} has {values[bad[0]]}; allowed: finite, at least 0", member=name)

    def _check_scores(self) -> None:
        """All three of the bins, or none."""
        columns = self.columns
        found = [name for name in spec.SCORES if name in columns]
        if not found:
            return
        if "bin" not in columns or len(found) < len(spec.SCORES):
            raise FormatError(f"{', '.join(spec.SCORES)} come together, and with bin, or not at all", member="bins")
        for name in found:
            shape, expected = columns[name].shape, columns["bins/size"].shape[1:]
            if shape != expected or np.isinf(columns[name]).any():
                raise FormatError(f"{name}: {shape} or infinite; expected {expected}, finite or NaN", member=name)

    def _check_transform(self) -> None:
        """The columns that a transform has, and no others of their kind."""
        header = self.header
        colours = ("colour",) if header.channels == 3 else ()
        tables = tuple(name for name in spec.TABLES if header.channels == 3 or name != "tables/rotation")
        own = header.parameters.get("tables") == "file"
        wanted = {*colours, *(tables if own else ())} if header.transform == "dct" else set()
        for name in ("colour", *spec.TABLES):
            if (name in wanted) != (name in self.columns):
                reason = (
                    "is missing"
                    if name in wanted
                    else f"does not belong to this file of the transform {header.transform}"
                )
                raise FormatError(f"the column {name} {reason}", member=name)
        if own:
            self._check_group("tables")
        if spec.DICTIONARY in self.columns:
            self._check_group("text")

    def _check_mae(self) -> None:
        """Weights in the file are those that the header names."""
        if spec.MAE in self.columns:
            self._check_group("mae")
            found = hashlib.sha256(self.columns[spec.MAE].tobytes()).hexdigest()
            stated = None if self.header.mae is None else self.header.mae["sha256"]
            if found != stated:
                raise FormatError(f"{spec.MAE}: SHA-256 {found}, zarr.json states {stated}", member=spec.MAE)

    def _check_soft(self) -> None:
        """Soft labels are shares of different classes, at most SHARES together, and leave a class for the rest."""
        found = [self.columns[name] for name in spec.SOFT if name in self.columns]
        if not found:
            return
        self._check_group("soft")
        count = len(self.header.classes)
        shapes = [column.shape for column in found]
        if len(found) < 2 or shapes[0] != shapes[1] or shapes[0][0] != len(self) or shapes[0][1] >= count:
            raise FormatError(
                f"soft: {' and '.join(map(str, shapes))}; expected two of {len(self)} rows, for under {count} classes",
                member="soft",
            )
        classes, shares = np.sort(found[0], axis=1), found[1].sum(1, dtype=np.int64)
        twice = (classes[:, 1:] == classes[:, :-1]).any(1)
        bad = np.flatnonzero((classes[:, -1] >= count) | twice | (shares > spec.SHARES))
        if bad.size:
            reason = f"a class twice or above {count - 1}, or shares of more than {spec.SHARES}"
            raise FormatError(f"soft: sample {bad[0]} has {reason}", member="soft", sample=int(bad[0]))

    def _check_group(self, name: str) -> None:
        group = spec.parse_json(self._member(f"{name}/zarr.json", spec.MAX_ARRAY_JSON), f"{name}/zarr.json")
        if not spec.is_group(group) or group.get("attributes", {}) != {}:
            raise FormatError(f"{name}/zarr.json: not a Zarr v3 group without attributes", member=name)

    def _below(self, name: str, low: int, high: int | None) -> None:
        column = self.columns[name]
        bad = np.flatnonzero((column < low) if high is None else (column < low) | (column >= high))
        if bad.size:
            allowed = f"at least {low}" if high is None else f"{low} to {high - 1}"
            sample = int(bad[0]) * (self.header.frame if name == "length" else 1)
            raise FormatError(
                f"{name}: sample {sample} has {column[bad[0]]}; allowed: {allowed}", member=name, sample=sample
            )

    def _has(self, name: str) -> bool:
        """Whether the file has a column: either of its members makes it one, and then both must be there."""
        return f"{name}/zarr.json" in self.members or spec.chunk(name) in self.members

    def _check_payload(self) -> Member:
        name = f"{spec.PAYLOAD}/zarr.json"
        if name not in self.members or f"{spec.PAYLOAD}/c/0" not in self.members:
            raise FormatError("the payload is missing", member=spec.PAYLOAD)
        payload = self.members[f"{spec.PAYLOAD}/c/0"]
        shape, dtype, compressed = spec.parse_array_json(self._member(name, spec.MAX_ARRAY_JSON), name)
        if shape != (payload.size,) or dtype != "uint8" or compressed:
            raise FormatError(f"{name}: states {shape} {dtype}, the member has {payload.size} bytes", member=name)
        return payload

    def _column(self, name: str) -> Array:
        column = spec.COLUMNS[name]
        about = f"{name}/zarr.json"
        shape, dtype, compressed = spec.parse_array_json(self._member(about, spec.MAX_ARRAY_JSON), about)
        expected = self.header.shape(name)
        if len(shape) != column.ndim or (expected is not None and shape != expected) or dtype not in column.dtypes:
            wanted = expected or f"{column.ndim} axes"
            raise FormatError(
                f"{name}: {dtype} {shape}; allowed: {', '.join(column.dtypes)}, shape {wanted}", member=name
            )
        size = int(np.prod([int(n) for n in shape], dtype=object)) * np.dtype(dtype).itemsize
        chunk = spec.chunk(name)
        if chunk not in self.members:
            raise FormatError(f"{name}: the member {chunk} is missing", member=name)
        stored = self.members[chunk].size
        limit = min(_MAX_INFLATE_RATIO * stored, self._allowance)
        if (size > limit or stored > size + size // 1000 + 1024) if compressed else stored != size:
            raise FormatError(f"{name}: {size} bytes cannot come from {stored} stored ones", member=name)
        self._allowance -= size
        data = self._member(chunk, stored)
        if compressed:
            data = _gunzip(data, size, name)
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape)

    def _member(self, name: str, limit: int) -> bytes:
        """The bytes of a small member, after its CRC."""
        if name not in self.members:
            advice = "; is this a .dqz file?" if name == spec.ROOT else ""
            raise FormatError(f"the member {name} is missing{advice}", member=name)
        member = self.members[name]
        if member.size > limit:
            raise FormatError(f"{name}: {member.size} bytes; allowed: {limit}", member=name)
        data = self._storage.read(member.start, member.size)
        found = zlib.crc32(data)
        if found != member.crc:
            raise ChecksumError(f"{name}: checksum {found:#010x}, expected {member.crc:#010x}", member=name)
        return data

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each member."""
        return {name: member.size for name, member in self.members.items()}

    def read(self, indices: Sequence[int] | Array) -> list[bytes]:
        """The coded bytes of samples, each after the checksum of its group; ChecksumError names file and sample.

        Of records, the bytes of the frame in which each is.
        """
        self._check_open()
        wanted, group = np.asarray(indices, np.int64), self.header.checksum_group
        frames = wanted // self.header.frame
        groups, first, which = np.unique(frames // group, return_index=True, return_inverse=True)
        begins = self.offsets[groups * group]
        blocks = self._read_groups(groups, begins, wanted[first].tolist())
        place = begins[which]
        starts, ends = (self.offsets[frames] - place).tolist(), (self.offsets[frames + 1] - place).tolist()
        return [blocks[n][start:end] for n, start, end in zip(which.tolist(), starts, ends, strict=True)]

    def _read_groups(self, groups: Array, starts: Array, samples: list[int]) -> list[bytes]:
        """The bytes of groups that begin at `starts`, after their checksums; an error names the sample of the group."""
        blocks: list[bytes] = []
        ends = np.minimum((groups + 1) * self.header.checksum_group, self.header.frames)
        sizes = self.offsets[ends] - starts
        ranges = np.stack([starts + self._payload.start, sizes], 1)
        try:
            for data, expected in zip(
                self._storage.read_many(ranges), self.columns["checksum"][groups].tolist(), strict=True
            ):
                whole = zlib.crc32(data) == expected
                blocks.append(data if whole else self._again(ranges[len(blocks)], expected))
        except (TruncatedError, ChecksumError) as error:
            start, size = int(starts[len(blocks)]), int(sizes[len(blocks)])
            reason = f"payload bytes {start} to {start + size - 1}: {error}"
            raise self.error(samples[len(blocks)], reason, type(error)) from None
        return blocks

    def _again(self, place: Array, expected: int) -> bytes:
        """Bytes of the file that did not have their checksum; place: first one and number."""
        data = self._storage.read_again(*place.tolist())
        found = zlib.crc32(data)
        if found != expected:
            raise ChecksumError(f"checksum {found:#010x}, expected {expected:#010x}")
        return data

    def _check_open(self) -> None:
        if not self.close.alive:
            raise ValueError(f"{self.path} is closed")

    def error(self, index: int, reason: str, kind: type[FormatError] = FormatError) -> FormatError:
        """An error that names file and sample."""
        advice = f"Run: dqcodec verify {self.path}"
        return kind(f"{self.path}: sample {index}: {reason}. {advice}", path=self.path, member="payload", sample=index)

    def blocks(self, name: str) -> Iterator[bytes]:
        """A member's bytes in blocks, unchecked."""
        self._check_open()
        member = self.members[name]
        for start in range(0, member.size, _BLOCK):
            yield self._storage.read(member.start + start, min(_BLOCK, member.size - start))

    def fingerprint(self) -> str:
        """The fingerprint computed from the bytes, equal to `header.fingerprint` in a whole file.

        Checks the CRC-32 of every member on the way; ChecksumError names the one that is wrong.
        """
        hashes = {}
        for name in self.members:
            digest, crc = hashlib.sha256(), 0
            for block in self.blocks(name):
                digest.update(block)
                crc = zlib.crc32(block, crc)
            if crc != self.members[name].crc:
                raise ChecksumError(
                    f"{self.path}: {name}: checksum {crc:#010x}, expected {self.members[name].crc:#010x}"
                )
            hashes[name] = digest.digest()
        root, stated = b"".join(self.blocks(spec.ROOT)), self.header.fingerprint.encode()
        del hashes[spec.ROOT]
        return spec.fingerprint(hashes, root.replace(stated, b"0" * 64)) if root.count(stated) == 1 else ""


def read_directory(file: Storage) -> dict[str, Member]:
    """The members of the ZIP by name.

    Stricter than ZIP: no archive comment, at most MAX_MEMBERS, all stored, no name twice, local headers equal to the
    directory, and the members tile the file from its first byte to the directory: nothing overlaps, nothing hides.
    """
    directory, length, count = _find_directory(file)
    try:
        infos = zipfile.ZipFile(storage.Stream(file)).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, EOFError, struct.error) as error:
        raise FormatError(f"not a .dqz file: {error}") from None
    if len(infos) != count:
        raise FormatError(f"the directory has {len(infos)} members and states {count}")
    file.expect(_around_payload(infos, directory))
    members: dict[str, Member] = {}
    position = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename
        if name in members:
            raise FormatError(f"the member {name[:80]!r} occurs twice", member=name)
        if info.header_offset != position:
            raise FormatError(f"the member {name[:80]!r} does not start where the last one ends", member=name)
        if not _PLAIN_MEMBER.fullmatch(name) or info.orig_filename != name:
            raise FormatError(f"the member name {name[:80]!r} is not allowed", member=name)
        if info.comment or info.volume or not _only_zip64(info):
            raise FormatError(
                f"the member {name[:80]!r} has a comment, another disk or an unknown extra field", member=name
            )
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits:
            raise FormatError(f"the member {name[:80]!r} is not a plain stored one", member=name)
        start = position + _check_local(file, info, position, directory)
        position = start + info.file_size
        if position > directory:
            raise FormatError(f"the member {name[:80]!r} reaches beyond its end", member=name)
        members[name] = Member(start, info.file_size, info.CRC)
    if position != directory:
        raise FormatError("there are bytes between the last member and the directory")
    if infos:  # zipfile reads the last entry short where the lengths that it states reach beyond the directory
        lengths = (len(infos[-1].filename), len(infos[-1].extra), 0)
        if struct.unpack("<3H", file.read(directory + length - sum(lengths) - 18, 6)) != lengths:
            raise FormatError("the last entry of the directory reaches beyond its end")
    return members


def _around_payload(infos: list[zipfile.ZipInfo], directory: int) -> list[storage.Range]:
    """What opening reads: everything but the payload; nothing where that is more than columns may have."""
    places = sorted({min(max(0, info.header_offset), directory) for info in infos} | {0, directory})
    start = next((info.header_offset for info in infos if info.filename == f"{spec.PAYLOAD}/c/0"), -1)
    if start not in places[:-1]:
        return []
    end = places[places.index(start) + 1]
    if start + directory - end > spec.max_columns(end - start):
        return []
    return [(0, start + min(_LOCAL_HEADER, end - start)), (end, directory - end)]


def _find_directory(file: Storage) -> tuple[int, int, int]:
    """Where the central directory starts, its length and its number of members, after checks against the limits."""
    size = file.size
    if size < 22:
        raise TruncatedError(f"{size} bytes are too few for a .dqz file; it may be cut off")
    tail = file.read(size - min(size, 98), min(size, 98))
    end = tail[-22:]
    if end[:4] != b"PK\5\6":
        begins = file.read(0, 4) == b"PK\3\4"
        reason = "the file is cut off or something was added at its end" if begins else "is this a .dqz file?"
        raise TruncatedError(f"no ZIP directory at the end: {reason}")
    disks, here, count, length, start, comment = struct.unpack("<IHHIIH", end[4:])
    tail_size = 22
    if tail[-42:-38] == b"PK\6\7" and len(tail) == 98:  # ZIP64: record, locator, end record
        short = (count, length, start)
        signature, rest, disks_64, here, count, length, start = struct.unpack("<4sQ4xQQQQQ", tail[:56])
        disks |= disks_64
        agree = all(a in (b, top) for a, b, top in zip(short, (count, length, start), _UNKNOWN, strict=True))
        locator = struct.unpack("<IQI", tail[60:76])
        if signature != b"PK\6\6" or rest != 44 or locator != (0, size - 98, 1) or not agree:
            raise FormatError("the ZIP64 directory is damaged")
        tail_size = 98
    if here != count or disks or comment:
        raise FormatError("the archive has a comment or several disks")
    if count > spec.MAX_MEMBERS or length > spec.MAX_DIRECTORY:
        raise FormatError(f"a directory of {count} members and {length} bytes; allowed: {spec.MAX_MEMBERS} members")
    if start + length + tail_size != size:
        raise FormatError(f"the directory states bytes {start} to {start + length}, the file has {size}")
    return int(start), int(length), int(count)


def _check_local(file: Storage, info: zipfile.ZipInfo, position: int, directory: int) -> int:
    """The length of a member's local header, which must say the same as the directory."""
    name = info.filename
    if position + 30 > directory:
        raise TruncatedError(f"the member {name[:80]!r} is cut off", member=name)
    fields = struct.unpack("<4s5HIIIHH", file.read(position, 30))
    signature, _, flags, method, _, _, crc, stored, size, name_length, extra_length = fields
    length = 30 + int(name_length) + int(extra_length)
    if position + length > directory:
        raise TruncatedError(f"the member {name[:80]!r} is cut off", member=name)
    rest = file.read(position + 30, length - 30)
    extra = rest[name_length:]
    if stored == size == 0xFFFFFFFF and len(extra) == 20 and extra[:4] == b"\1\0\x10\0":  # ZIP64
        size, stored = struct.unpack("<QQ", extra[4:])
    elif extra:
        raise FormatError(f"the member {name[:80]!r} has an unknown extra field", member=name)
    found = signature, rest[:name_length], flags, method, crc, stored, size
    if found != (b"PK\3\4", name.encode(), 0, 0, info.CRC, info.file_size, info.file_size):
        raise FormatError(f"the local header of {name[:80]!r} differs from the directory", member=name)
    return length


def _only_zip64(info: zipfile.ZipInfo) -> bool:
    """Whether the extra field of a directory entry is empty, or the ZIP64 one with as many values as may need it."""
    if not info.extra:
        return True
    large = sum(value > zipfile.ZIP64_LIMIT for value in (info.file_size, info.compress_size, info.header_offset))
    return large > 0 and info.extra[:4] == struct.pack("<HH", 1, 8 * large) and len(info.extra) == 4 + 8 * large


def _gunzip(data: bytes, size: int, name: str) -> bytes:
    """One gzip stream of exactly `size` bytes."""
    inflate = zlib.decompressobj(wbits=31)
    try:
        result = inflate.decompress(data, size + 1)
    except zlib.error as error:
        raise FormatError(f"{name}: damaged gzip stream ({error})", member=name) from None
    if len(result) != size or not inflate.eof or inflate.unused_data:
        raise FormatError(f"{name}: the gzip stream does not hold {size} bytes", member=name)
    return result
