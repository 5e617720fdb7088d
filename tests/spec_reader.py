"""A second reader of .dqz, written from spec/dqz-1.md alone; the tests hold the package to it."""

import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

KIB, MIB = 1 << 10, 1 << 20
FULL = 0xFFFFFFFF  # in a ZIP field: its value is in the ZIP64 field
ROOTS = np.array([2 ** (j / 16) for j in range(16)], np.float32)  # section 5: R[j]
BINS = ("bin", "bins/size", "bins/taken")
Members = dict[str, tuple[int, memoryview]]  # name: CRC-32 and data


class SpecError(ValueError):
    """The file breaks the specification: the reader refuses it."""


def require(condition: bool, message: str) -> None:
    """Refuse with the message unless the condition holds."""
    if not condition:
        raise SpecError(message)


@contextmanager
def refusing(place: object) -> Iterator[None]:
    """Section 1: an error names the file and the sample; what a decoder of the library refuses is refused."""
    try:
        yield
    except (ValueError, struct.error, zlib.error, RecursionError) as error:
        raise SpecError(f"{place}: {error}") from error


def fields(form: str, data: memoryview, place: int) -> tuple:
    """The fields of a ZIP record; struct.error where the file ends within it."""
    return struct.unpack(form, data[place : place + struct.calcsize(form)])


def zip64(extra: memoryview, values: list[int]) -> list[int]:
    """R-2: the values with every 0xFFFFFFFF replaced from the ZIP64 field, the only extra field allowed."""
    if not extra:
        return values
    count = values.count(FULL)
    kind, length, *wide = struct.unpack(f"<2H{count}Q", extra)
    require((kind, length) == (1, 8 * count), "a wrong extra field")
    return [wide.pop(0) if value == FULL else value for value in values]


def open_archive(path: str | Path) -> Members:
    """R-1, R-2, R-3, section 8: walks the file once, from byte 0 to its end."""
    data = memoryview(Path(path).read_bytes())
    place, local, members = 0, {}, {}
    while data[place : place + 4] == b"PK\3\4":
        flags, method, crc, stored, size, *lengths = fields("<6x2H4x3L2H", data, place)
        extra, begin = place + 30 + lengths[0], place + 30 + sum(lengths)
        require(lengths[1] == 0 or (lengths[1], size, stored) == (20, FULL, FULL), "a wrong local extra field")
        size, stored = zip64(data[extra:begin], [size, stored])
        local[place] = (bytes(data[place + 30 : extra]), flags, method, crc, size, stored), data[begin : begin + size]
        place = begin + size
    start = place
    while data[place : place + 4] == b"PK\1\2":
        flags, method, crc, stored, size, *lengths, disk, offset = fields("<8x2H4x3L4H6xL", data, place)
        extra = place + 46 + lengths[0]
        size, stored, offset = zip64(data[extra : extra + lengths[1]], [size, stored, offset])
        header = (bytes(data[place + 46 : extra]), flags, method, crc, size, stored)
        require(offset in local and local[offset][0] == header, "local header and central directory differ")
        require(flags == method == disk == lengths[2] == 0 and size == stored, "a member is not plainly stored")
        name = header[0].decode("ascii")
        fits = re.fullmatch(r"[ -\[\]-~]+", name) and not {"", ".", ".."} & set(name.split("/"))
        require(bool(fits) and name not in members, f"bad member name, or one twice: {name!r}")
        members[name] = (crc, local[offset][1])
        place += 46 + sum(lengths)
    found = (len(members), len(members), place - start, start)
    require(len(members) == len(local) <= 4096 and place - start <= MIB, "wrong number of members or large directory")
    wide = data[place : place + 4] == b"PK\6\6"
    if wide:
        require(fields("<4xQ4x2L4Q", data, place) == (44, 0, 0, *found), "wrong ZIP64 end record")
        require(fields("<4sLQL", data, place + 56) == (b"PK\6\7", 0, place, 1), "wrong ZIP64 locator")
        place += 76
    want = (b"PK\5\6", 0, 0, *found, 0)
    end = zip(want, struct.unpack("<4s4H2LH", data[place:]), (0, 0, 0, 0xFFFF, 0xFFFF, FULL, FULL, 0), strict=True)
    require(all(value == right or (wide and value == full != 0) for right, value, full in end), "wrong end record")
    return members


def whole(members: Members, name: str, limit: float = math.inf) -> bytes:
    """R-4: the bytes of a member that is read whole, its CRC-32 checked."""
    require(name in members, f"no member {name!r}")
    crc, data = members[name]
    require(len(data) <= limit, f"member {name!r} is too large")
    require(zlib.crc32(data) == crc, f"member {name!r}: wrong CRC-32")
    return bytes(data)


def exact(value: Any) -> str:
    """R-5: JSON values are the same where these texts are; true and 1.0 are not 1."""
    return json.dumps(value, sort_keys=True)


def entry(holder: dict, key: str, kind: type, low: int = 0, high: int = 0) -> Any:
    """R-5: the entry of a JSON object, of exactly this type (true is no integer); an integer within its range."""
    value = holder.get(key)
    require(type(value) is kind, f"{key!r} is missing or not a {kind.__name__}")
    require(kind is not int or low <= value <= high, f"{key!r} is {value}, not {low} to {high}")
    return value


def unique(items: list[tuple[str, Any]]) -> dict:
    """R-5: a JSON object without a key twice."""
    require(len(dict(items)) == len(items), "a key twice")
    return dict(items)


def read_json(members: Members, name: str, limit: int, node: str) -> dict:
    """R-5: a `zarr.json` of this type of node; int() refuses NaN and Infinity."""
    value = json.loads(whole(members, name, limit).decode(), object_pairs_hook=unique, parse_constant=int)
    require(type(value) is dict, f"{name!r} is not an object")
    entry(value, "zarr_format", int, 3, 3)
    require(value.get("node_type") == node, f"{name!r} is not of a Zarr {node}")
    return value


def read_root(members: Members) -> dict:
    """Section 3: the `dqz` entry of the root."""
    root = read_json(members, "zarr.json", 16 * MIB, "group")
    attributes = entry(root, "attributes", dict)
    dqz = entry(attributes, "dqz", dict)
    version = re.fullmatch(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})", entry(dqz, "version", str))
    require(version is not None and int(version[1]) == 1, f"version {dqz['version']!r}")
    for feature in entry(dqz, "requires", list):
        require(feature == "pixel", f"requires the unknown feature {feature!r}")
    require("pixel" in dqz["requires"], "'requires' does not name the transform")
    fits = "consolidated_metadata" not in root and type(attributes.get("user", {})) is dict
    require(fits, "consolidated metadata, or 'user' is not an object")
    entry(dqz, "samples", int, 1, 1 << 31)
    image = entry(dqz, "image", dict)
    height, width = entry(image, "height", int, 1, 4096), entry(image, "width", int, 1, 4096)
    require(entry(image, "channels", int, 1, 3) != 2, "2 channels")
    side = entry(dqz, "patch", int, 1, 4096)
    fits = height % side == width % side == 0 and (height // side) * (width // side) <= 65536
    require(fits, "the patch does not divide the image, or too many patches")
    require(entry(entry(dqz, "transform", dict), "name", str) == "pixel", "unknown transform")
    entry(dqz, "checksum_group", int, 1, 1 << 31)
    names = entry(dqz, "classes", list)
    fits = 1 <= len(names) <= 1 << 20 and all(type(name) is str for name in names)
    require(fits and len(set(names)) == len(names), "bad list of classes")
    for name in names:
        bad = name in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]", name)
        require(not bad and 1 <= len(name.encode()) <= 255, f"class name {name!r}")
    require(re.fullmatch("[0-9a-f]{64}", entry(dqz, "fingerprint", str)) is not None, "bad fingerprint")
    return dqz


def array_meta(members: Members, name: str, shape: tuple[int | None, ...], kinds: str) -> tuple[np.dtype, list, bool]:
    """R-10: data type, shape (wanted with None for any size) and whether it is packed, of an array of one chunk."""
    meta = {"storage_transformers": [], **read_json(members, f"{name}/zarr.json", 64 * KIB, "array")}
    kind, sizes = entry(meta, "data_type", str), entry(meta, "shape", list)
    require(kind in kinds.split(), f"{name!r}: data type {kind!r}")
    fits = [type(size) is int and size >= 1 and want in (None, size) for want, size in zip(shape, sizes, strict=True)]
    require(all(fits), f"{name!r}: shape {sizes}, not {shape}")
    grid = {"name": "regular", "configuration": {"chunk_shape": sizes}}
    keys = {"name": "default", "configuration": {"separator": "/"}}
    found = [meta.get(key) for key in ("chunk_grid", "chunk_key_encoding", "fill_value", "storage_transformers")]
    require(exact(found) == exact([grid, keys, 0, []]), f"{name!r}: not one plain chunk")
    first, *rest = entry(meta, "codecs", list) or [None]
    plain = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "bytes"}][: 1 + (kind == "uint8")]
    gzip = [[{"name": "gzip", "configuration": {"level": level}}] for level in range(10)]
    require(first in plain and exact(rest) in map(exact, [[], *gzip]), f"{name!r}: bad codecs")
    return np.dtype(kind).newbyteorder("<"), sizes, bool(rest)


def read_columns(members: Members, dqz: dict, patches: int) -> dict[str, np.ndarray]:
    """Section 4: the columns by name, their values within the ranges of R-11."""
    count, classes, top, any_kind = dqz["samples"], len(dqz["classes"]), FULL, "uint8 uint16 uint32"
    known: dict[str, tuple[tuple[int | None, ...], str, int, int]] = {  # shape, data types, range
        "length": ((count,), "uint16 uint32", 1, top),
        "label": ((count,), any_kind, 0, classes - 1),
        "bits": ((count,), "uint8", 2, 8),
        "scale": ((count,), "uint8", 0, top),
        "checksum": ((-(-count // dqz["checksum_group"]),), "uint32", 0, top),
        "mask": ((count, -(-patches // 8)), "uint8", 0, top),
        "source_index": ((count,), any_kind, 0, top),
        "bin": ((count,), "uint8 uint16", 0, top),
        "bins/size": ((classes, None), any_kind, 0, top),
        "bins/taken": ((classes, None), any_kind, 0, top),
    }
    chunks = {name: f"{name}/c" + "/0" * len(known[name][0]) for name in known}
    there = {"length", "label", "bits", "scale", "checksum"}
    there |= {name for name in known if f"{name}/zarr.json" in members or chunks[name] in members}
    if not there.isdisjoint(BINS):
        there |= set(BINS)
        group = read_json(members, "bins/zarr.json", 64 * KIB, "group")
        require(group.get("attributes", {}) == {}, "the group 'bins' has attributes")
    metas = {name: array_meta(members, name, *known[name][:2]) for name in known if name in there}
    total = sum(math.prod(sizes) * dtype.itemsize for dtype, sizes, _ in metas.values())
    require(total <= 16 * len(members["payload/c/0"][1]) + 64 * MIB, f"columns of {total} bytes")
    columns = {}
    for name, (dtype, sizes, packed) in metas.items():
        data, size = whole(members, chunks[name]), math.prod(sizes) * dtype.itemsize
        data = inflate(data, size, 31) if packed else data
        require(len(data) == size, f"{name!r}: {len(data)} bytes, not {size}")
        columns[name] = np.frombuffer(data, dtype).reshape(sizes)
        low, high = known[name][2:]
        require(low <= int(columns[name].min()) and int(columns[name].max()) <= high, f"{name!r}: not {low} to {high}")
    if "bin" in columns:
        bins, size, taken = (columns[name] for name in BINS)
        require(size.shape == taken.shape and size.shape[1] <= 65536, "bad number of bins")
        require(int(bins.max()) < size.shape[1] and not (taken > size).any(), "bins out of range")
        found = np.zeros(taken.shape, np.int64)
        np.add.at(found, (columns["label"], bins), 1)
        require(bool((found == taken).all()), "bins/taken does not count the samples of the file")
    return columns


def inflate(data: bytes | memoryview, size: int, wbits: int) -> bytes:
    """R-10, R-17, section 8: unpacks one stream with nothing after it, no further than one byte too many."""
    stream = zlib.decompressobj(wbits)
    plain = stream.decompress(data, size + 1)
    require(stream.eof and not stream.unused_data, f"not one packed stream of {size} bytes")
    return plain


def decode(data: memoryview, bits: int, scale: int, shape: tuple[int, int, int, int]) -> np.ndarray:
    """R-15 to R-20: the pixel values (channel, kept patch, row, column) of one sample."""
    count = math.prod(shape)
    plane = -(-count // 8)
    method, coded = data[0], data[1:]
    require(method in (0, 1) and len(coded) <= bits * plane, f"method {method}, {len(coded)} bytes")
    planes = inflate(coded, bits * plane, -15) if method else coded
    require(len(planes) == bits * plane, f"{len(planes)} bytes of planes, not {bits * plane}")
    value = np.zeros(count, np.int32)
    for k, row in enumerate(np.frombuffer(planes, np.uint8).reshape(bits, plane)):
        value |= np.unpackbits(row, count=count, bitorder="little").astype(np.int32) << k
    value = ((value >> 1) ^ -(value & 1)).reshape(shape)  # R-19, step 1
    value[..., 0] = np.cumsum(value[..., 0], axis=2)  # step 2: down the first column,
    value = np.cumsum(value, axis=3, dtype=np.int32)  # then along the rows
    if shape[0] == 3:  # step 3
        green, red, blue = value
        value = np.stack([red + green, green, blue + green])
    half = 1 << (bits - 1)
    level = ((value + half) & (2 * half - 1)) - half  # step 4
    require(bool((level != -half).all()), "a level out of range")
    product = level.astype(np.float32) * np.ldexp(ROOTS[scale % 16], scale // 16 - 8)  # in float32
    return np.clip(np.rint(product).astype(np.int32) + 128, 0, 255).astype(np.uint8)


def read(path: str | Path) -> dict[str, Any]:
    """Everything in the file: `images` (dropped patches 0), `mask`, `root` and `columns`."""
    with refusing(path):
        members = open_archive(path)
        dqz = read_root(members)
        count, group, side = dqz["samples"], dqz["checksum_group"], dqz["patch"]
        height, width, channels = (dqz["image"][key] for key in ("height", "width", "channels"))
        across, patches = width // side, (height // side) * (width // side)
        require("payload/c/0" in members, "no payload")
        payload = members["payload/c/0"][1]
        packed = array_meta(members, "payload", (len(payload),), "uint8")[2]
        require(not packed and count <= len(payload), "a packed payload, or more samples than bytes")
        columns = read_columns(members, dqz, patches)
        mask = np.ones((count, patches), bool)
        if "mask" in columns:
            mask = np.unpackbits(columns["mask"], axis=1, bitorder="little").astype(bool)
            require(not mask[:, patches:].any(), "a bit after the last patch is set in the mask")
            mask = mask[:, :patches]
        require(bool(mask.any(axis=1).all()), "a sample keeps no patch")
        ends = [0, *np.cumsum(columns["length"], dtype=np.uint64).tolist()]
        require(ends[-1] == len(payload), "the lengths do not add up to the payload")
        for j, checksum in enumerate(columns["checksum"].tolist()):
            first, last = j * group, min((j + 1) * group, count)
            found = zlib.crc32(payload[ends[first] : ends[last]])
            require(found == checksum, f"samples {first} to {last - 1}: wrong checksum")
        images = np.zeros((count, channels, height // side, side, across, side), np.uint8)
        for n in range(count):
            kept = np.flatnonzero(mask[n])
            bits, scale = int(columns["bits"][n]), int(columns["scale"][n])
            with refusing(f"sample {n}"):
                value = decode(payload[ends[n] : ends[n + 1]], bits, scale, (channels, len(kept), side, side))
            images[n][:, kept // across, :, kept % across] = value.transpose(1, 0, 2, 3)
        images = images.reshape(count, channels, height, width)
        return {"images": images, "mask": mask, "root": dqz, "columns": columns}


def fingerprint(path: str | Path) -> str:
    """R-23: the fingerprint of the content, computed anew; R-4 of every member, as all are read whole."""
    with refusing(path):
        members = open_archive(path)
        digits = read_root(members)["fingerprint"].encode()
        total = hashlib.sha256()
        for name in sorted(members.keys() - {"zarr.json"}):
            total.update(name.encode() + b"\0" + hashlib.sha256(whole(members, name)).digest())
        root = whole(members, "zarr.json")
        require(root.count(digits) == 1, "the digits of the fingerprint do not stand in the root once")
        total.update(root.replace(digits, b"0" * 64))
        return total.hexdigest()
