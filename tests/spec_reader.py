"""A second reader of .dqz, written from spec/dqz-1.md alone; the tests hold the package to it."""

import hashlib
import itertools
import json
import math
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zstandard

KIB, MIB = 1 << 10, 1 << 20
FULL = 0xFFFFFFFF  # in a ZIP field: its value is in the ZIP64 field
ROOTS = np.array([2 ** (j / 16) for j in range(16)], np.float32)  # section 5: R[j]
BINS = ("bin", "bins/size", "bins/taken")
SCORES = ("bins/rs", "bins/ds", "bins/is")
FLOAT = float(np.finfo(np.float32).max)
BUILT_IN = Path(__file__).parent.parent / "dqcodec" / "codec" / "dct"  # data, as the specification is
DEFAULT_3 = {  # SHA-256 by unit
    16: "c48bf7d859dceec2752c00df9ad4bf1a3e637deb53c5e9373f232f85e6137ecd",
    8: "85ffbdf3f77cfc1fc02301547e5ea7dd0ccd560d072419a197e50f2acf7b447f",
    4: "db141a3a43f1d211cf4f8c1c85256f3a80ffd7f21f9477a4343cee3ec2d6b97e",
}
FILTER_1 = {  # SHA-256 by unit
    16: "5472ef290483e84ef5d244ae7a73be451f4a6ae35c6a312951e6f193d23160e3",
    8: "fc6d738a9d33c1895a45aafbeb6d114558debc0624470f9b12355ce0ddb1bdbd",
    4: "d557f2dc693070d77356d74c39d9275f1a25231beccf8e6ff26ab4753d4226e5",
}
CLASSES = {4: 16, 8: 64, 16: 62}  # section 7.2: position classes
BIN_LIMITS = (0, 1, 2, 3, 4, 6, 8, 11, 15, 21, 30)  # section 7.4
DATE = r"\d{4}-\d\d-\d\d"
TIME = r"T\d\d:\d\d:\d\d(\.\d{1,6})?([+-]\d\d:\d\d(:\d\d(\.\d{1,6})?)?)?"
EMPTY = bytes.fromhex("28b52ffd2000010000")  # a Zstandard frame of no bytes
MAGIC = zstandard.FRAME_HEADER  # left out of the frames of records
SOFT = ("soft/class", "soft/share")
IMAGES_ONLY = ("bits", "scale", "mask", "distance", "colour", "mae/weights", *SOFT)  # and tables/...
NEXT_STATE = ((0, 2, 1, 3), (2, 0, 3, 1))  # R-31, of even and odd magnitudes
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
    except (ValueError, struct.error, zlib.error, zstandard.ZstdError, RecursionError) as error:
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
        require(feature in ("pixel", "dct", "text"), f"requires the unknown feature {feature!r}")
    transform = entry(dqz, "transform", dict)
    name = entry(transform, "name", str)
    require(name in ("pixel", "dct", "text"), f"unknown transform {name!r}")
    require(name in dqz["requires"], "'requires' does not name the transform")
    if name == "dct":
        require(entry(transform, "unit", int, 4, 16) in (4, 8, 16), f"units of {transform['unit']}")
        entry(transform, "dependent", bool)
        offset = entry(transform, "offset", list)
        fits = len(offset) == 3 and all(type(value) is int and abs(value) <= 31 for value in offset)
        require(fits, f"offset {offset}")
        require(entry(transform, "tables", str) in ("file", "default-3"), f"tables {transform['tables']!r}")
        require(entry(transform, "filter", str) in ("none", "filter-1"), f"filter {transform['filter']!r}")
    fits = "consolidated_metadata" not in root and type(attributes.get("user", {})) is dict
    require(fits, "consolidated metadata, or 'user' is not an object")
    entry(dqz, "samples", int, 1, 1 << 31)
    if name == "text":  # image and patch are not looked at
        entry(transform, "frame", int, 1, 64)
    else:
        image = entry(dqz, "image", dict)
        height, width = entry(image, "height", int, 1, 4096), entry(image, "width", int, 1, 4096)
        require(entry(image, "channels", int, 1, 3) != 2, "2 channels")
        side = entry(dqz, "patch", int, 1, 4096)
        fits = height % side == width % side == 0 and (height // side) * (width // side) <= 65536
        require(fits, "the patch does not divide the image, or too many patches")
    entry(dqz, "checksum_group", int, 1, 1 << 31)
    names = entry(dqz, "classes", list)
    fits = 1 <= len(names) <= 1 << 20 and all(type(name) is str for name in names)
    require(fits and len(set(names)) == len(names), "bad list of classes")
    for name in names:
        bad = name in (".", "..") or re.search(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]", name)
        require(not bad and 1 <= len(name.encode()) <= 255, f"class name {name!r}")
    require(re.fullmatch("[0-9a-f]{64}", entry(dqz, "fingerprint", str)) is not None, "bad fingerprint")
    if "mae" in dqz:
        mae = entry(dqz, "mae", dict)
        require(re.fullmatch("[0-9a-f]{64}", entry(mae, "sha256", str)) is not None, "bad hash of 'mae'")
        require(1 <= len(entry(mae, "name", str)) <= 255, "bad name of 'mae'")
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


def no_attributes(members: Members, name: str) -> None:
    """Section 2: the `zarr.json` of the group of such columns."""
    group = read_json(members, f"{name}/zarr.json", 64 * KIB, "group")
    require(group.get("attributes", {}) == {}, f"the group {name!r} has attributes")


def read_columns(members: Members, dqz: dict, frames: int, patches: int) -> dict[str, np.ndarray]:
    """Section 4: the columns by name, their values within the ranges of R-11."""
    count, classes, top, any_kind = dqz["samples"], len(dqz["classes"]), FULL, "uint8 uint16 uint32"
    transform = dqz["transform"]
    text = transform["name"] == "text"
    known: dict[str, tuple[tuple[int | None, ...], str, int, int]] = {  # shape, data types, range
        "length": ((frames,), "uint16 uint32", 1, top),
        "label": ((count,), any_kind, 0, classes - 1),
        "bits": ((count,), "uint8", 2 if transform["name"] == "pixel" else 1, 8),
        "scale": ((count,), "uint8", 0, top),
        "checksum": ((-(-frames // dqz["checksum_group"]),), "uint32", 0, top),
        "mask": ((count, -(-patches // 8)), "uint8", 0, top),
        "source_index": ((count,), any_kind, 0, top),
        "bin": ((count,), "uint8 uint16", 0, top),
        "distance": ((count,), "float32", 0, FLOAT),
        "bins/size": ((classes, None), any_kind, 0, top),
        "bins/taken": ((classes, None), any_kind, 0, top),
        "bins/rs": ((None,), "float32", -FLOAT, FLOAT),
        "bins/ds": ((None,), "float32", -FLOAT, FLOAT),
        "bins/is": ((None,), "float32", -FLOAT, FLOAT),
        "soft/class": ((count, None), any_kind, 0, classes - 1),
        "soft/share": ((count, None), "uint8", 0, 64),
        "colour": ((count,), "uint8", 0, 255),
        "tables/context": ((None,), "uint8", 0, 255),
        "tables/coefficient": ((None, 16), "uint16", 1, 4096),
        "tables/side": ((None, 16), "uint16", 1, 4096),
        "tables/rotation": ((None, 3), "uint8", 0, 255),
        "mae/weights": ((None,), "uint8", 0, 255),
        "text/dictionary": ((None,), "uint8", 0, 255),
    }
    chunks = {name: f"{name}/c" + "/0" * len(known[name][0]) for name in known}
    there = {"length", "label", "checksum", *(() if text else ("bits", "scale"))}
    there |= {name for name in known if f"{name}/zarr.json" in members or chunks[name] in members}
    if not there.isdisjoint(BINS):
        there |= set(BINS)
        no_attributes(members, "bins")
    if not there.isdisjoint(SOFT):
        there |= set(SOFT)
        no_attributes(members, "soft")
    scores = there & set(SCORES)
    require(not scores or (len(scores) == 3 and "bin" in there), "bins/rs, bins/ds, bins/is: not together")
    if text:
        found = {name for name in there if name in IMAGES_ONLY or name.startswith("tables/")}
        require(not found, f"records with the columns {sorted(found)}")
    require(text or "text/dictionary" not in there, "images with a dictionary of text")
    rgb = not text and dqz["image"]["channels"] == 3
    expected = {"colour"} if transform["name"] == "dct" and rgb else set()
    if transform["name"] == "dct" and transform["tables"] == "file":
        expected |= {f"tables/{name}" for name in ("context", "coefficient", "side", "rotation")[: 3 + rgb]}
        no_attributes(members, "tables")
    found = {name for name in there if name == "colour" or name.startswith("tables/")}
    require(found == expected, f"the columns {sorted(found)}, not {sorted(expected)}")
    for name in {"mae/weights", "text/dictionary"} & there:
        no_attributes(members, name.split("/")[0])
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
        values = columns[name][~np.isnan(columns[name])] if name in SCORES else columns[name]
        require(bool(((low <= values) & (values <= high)).all()), f"{name!r}: not {low} to {high}")
    if "mae/weights" in columns:
        digest = hashlib.sha256(columns["mae/weights"].tobytes()).hexdigest()
        require(digest == dqz.get("mae", {}).get("sha256"), "mae/weights is not what 'mae' names")
    if "bin" in columns:
        bins, size, taken = (columns[name] for name in BINS)
        require(size.shape == taken.shape and size.shape[1] <= 65536, "bad number of bins")
        require(int(bins.max()) < size.shape[1] and not (taken > size).any(), "bins out of range")
        found = np.zeros(taken.shape, np.int64)
        np.add.at(found, (columns["label"], bins), 1)
        require(bool((found == taken).all()), "bins/taken does not count the samples of the file")
        require(all(columns[name].shape == size.shape[1:] for name in scores), "scores of another number of bins")
    return columns


def soft_labels(columns: dict[str, np.ndarray], classes: int) -> dict[str, np.ndarray]:
    """R-41: `soft`, the shares of all classes for each sample; nothing where the file has none."""
    if "soft/class" not in columns:
        return {}
    stated, shares = (columns[name].astype(np.int64) for name in SOFT)
    require(stated.shape == shares.shape and stated.shape[1] < classes, "soft/class and soft/share do not fit")
    soft = []
    for row, share in zip(stated.tolist(), shares.tolist(), strict=True):
        require(len(set(row)) == len(row) and sum(share) <= 64, "a class twice, or shares of more than 64")
        one = np.full(classes, (64 - sum(share)) / (64 * (classes - len(row))))
        one[row] = np.array(share) / 64
        soft.append(one)
    return {"soft": np.array(soft)}


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


def data_of(name: str, digest: str) -> bytes:
    """R-26, R-40: the bytes of a file that the specification names by its SHA-256."""
    data = (BUILT_IN / name).read_bytes()
    require(hashlib.sha256(data).hexdigest() == digest, f"{name} is not that of the specification")
    return data


def built_in(unit: int) -> list[np.ndarray]:
    """R-26: context, coefficient, side and rotation of "default-3"."""
    data = data_of(f"default-3-{unit}.bin", DEFAULT_3[unit])
    coefficients, sides, rotations = struct.unpack("<3H", data[:6])
    contexts = len(data) - 6 - 32 * (coefficients + sides) - 3 * rotations
    shapes = [("u1", (contexts,)), ("<u2", (coefficients, 16)), ("<u2", (sides, 16)), ("u1", (rotations, 3))]
    place, arrays = 6, []
    for kind, shape in shapes:
        arrays.append(np.frombuffer(data, kind, math.prod(shape), place).reshape(shape))
        place += arrays[-1].nbytes
    return arrays


def built_in_weights(unit: int) -> np.ndarray:
    """R-40: the rows of "filter-1"."""
    return np.frombuffer(data_of(f"filter-1-{unit}.bin", FILTER_1[unit]), np.int8).reshape(261, 6).astype(int)


Buckets = list[tuple[int, int, int, int, int]]  # cut, F of the bucket's own symbol; other symbol, its offset and F


def alias(frequencies: Sequence[int]) -> Buckets:
    """Section 7.3: the slots of the 32 symbols of a distribution."""
    cut, other, offset = list(frequencies), list(range(32)), [0] * 32
    over = [i for i in range(32) if cut[i] > 128]
    under = [i for i in range(32) if cut[i] < 128]
    while over:
        o, u = over.pop(), under.pop()
        cut[o] -= 128 - cut[u]
        other[u], offset[u] = o, cut[o]
        if cut[o] < 128:
            under.append(o)
        if cut[o] > 128:
            over.append(o)
    for i in range(32):
        cut[i], offset[i] = (0, 0) if cut[i] == 128 else (cut[i], offset[i] - cut[i])
    return [(cut[i], frequencies[i], other[i], offset[i], frequencies[other[i]]) for i in range(32)]


class Tables:
    """Section 7.2: the first context of each kind and block set, the distribution of each context, the rotations.

    Section 7.8: the weights of the filter, None without one.
    """

    def __init__(self, dqz: dict, columns: dict[str, np.ndarray]):
        unit = dqz["transform"]["unit"]
        self.weights = built_in_weights(unit) if dqz["transform"]["filter"] == "filter-1" else None
        luma = [side for side in (4, 8, 16) if side <= unit]
        sides, sets = [*luma, unit, unit], len(luma) + 2
        *self.coefficient, first = np.cumsum([0, *(26 * CLASSES[side] for side in sides)]).tolist()
        counts = [18] * len(luma) + [90] * 2 + [16] * sets + [3, 1]
        *starts, total = np.cumsum([first, *counts]).tolist()
        self.high, self.low, (self.flag, self.pattern) = starts[:sets], starts[sets:-2], starts[-2:]
        names = ("context", "coefficient", "side", "rotation")
        if dqz["transform"]["tables"] == "file":
            grey = np.zeros((1, 3), np.uint8)
            context, coefficient, side, self.rotation = (columns.get(f"tables/{name}", grey) for name in names)
        else:
            context, coefficient, side, self.rotation = built_in(unit)
        k, m = len(coefficient), len(side)
        require(k + m <= 256 and len(self.rotation) <= 256, f"{k} + {m} distributions, {len(self.rotation)} rotations")
        sums = coefficient.sum(axis=1) + coefficient[:, 1:10].sum(axis=1)
        require(bool((sums == 4096).all() and (side.sum(axis=1) == 4096).all()), "frequencies of a wrong sum")
        fits = len(context) == total and context[:first].max() < k and context[first:].max() < m
        require(bool(fits), "tables/context: a wrong size or value")
        signed = [alias([*f[:10], 0, *f[1:10], *f[10:], *[0] * 6]) for f in coefficient.tolist()]
        plain = [alias([*f, *[0] * 16]) for f in side.tolist()]
        self.buckets = [signed[j] for j in context[:first]] + [plain[j] for j in context[first:]]
        require(bool((columns.get("colour", np.zeros(1)) < len(self.rotation)).all()), "a colour without rotation")


class Stream:
    """R-27: the state x and the words that are left."""

    def __init__(self, data: memoryview):
        length = len(data)
        head = length if length <= 4 else 4 - length % 2
        self.x = int.from_bytes(data[:head], "little")
        self.words = [word for (word,) in struct.iter_unpack("<H", data[head:])][::-1]

    def take(self, x: int) -> None:
        """After each operation: the next word, if x is small and one is left."""
        self.x = (x << 16) + self.words.pop() if x < 65536 and self.words else x

    def raw(self, count: int) -> int:
        """A number of bits."""
        value = self.x % (1 << count)
        self.take(self.x >> count)
        return value

    def symbol(self, buckets: Buckets) -> int:
        """A symbol of a distribution."""
        high, slot = divmod(self.x, 4096)
        i, place = divmod(slot, 128)
        cut, own, other, offset, its = buckets[i]
        if place < cut:
            self.take(own * high + place)
            return i
        self.take(its * high + offset + place)
        return other

    def end(self) -> None:
        """R-28."""
        require(self.x == 1 and not self.words, "the coded stream does not end as it must")


def scan(side: int) -> list[tuple[int, int, int]]:
    """Section 7.4: u, v and the position class of each place."""
    places = [(u, v) for u in range(side) for v in range(side)]
    places.sort(key=lambda p: (sum(p), p[0]))
    far = [21 + 2 * min(20, u + v - 6) + (2 * abs(u - v) > u + v) for u, v in places]
    return [(u, v, k if side < 16 or k < 21 else far[k]) for k, (u, v) in enumerate(places)]


def basis(side: int) -> np.ndarray:
    """Section 7.7: D."""
    k, x = np.mgrid[:side, :side]
    return np.where(k, math.sqrt(2 / side), math.sqrt(1 / side)) * np.cos((2 * x + 1) * k * math.pi / (2 * side))


SCAN, BASIS = {side: scan(side) for side in CLASSES}, {side: basis(side) for side in CLASSES}


def bin_of(total: int) -> int:
    """Section 7.4: the bin of a sum."""
    return sum(limit < total for limit in BIN_LIMITS)


def differences(z: np.ndarray, there: np.ndarray, i: int, j: int) -> np.ndarray:
    """Section 7.8: d(i, j) of every pixel of a plane."""
    height, width = z.shape
    z_around, there_around = np.pad(z, 2), np.pad(there, 2)
    total = np.zeros_like(z)
    for down, right in ((i, j), (-i, -j)):
        moved = slice(2 + down, 2 + down + height), slice(2 + right, 2 + right + width)
        total += np.where(there_around[moved], z_around[moved] - z, 0)
    return total


def distance(place: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Section 7.8: dy of a row, or dx of a column, in blocks of these sides."""
    inside = place % side
    return np.minimum(np.minimum(inside, side - 1 - inside), 2)


def of_cells(d: np.ndarray) -> np.ndarray:
    """Section 7.8: V or H, at each pixel that of its cell."""
    height, width = d.shape
    sums = np.minimum(np.abs(d) // 4, 1023).reshape(height // 4, 4, width // 4, 4).sum(axis=(1, 3))
    return sums.repeat(4, 0).repeat(4, 1)


class DctSample:
    """Section 7: decodes one sample; `cells` has m, m' and activity by plane, row and column of the cell.

    `planes`, `activities` and `sides` have values, the activity and the side of the block, by plane, row and column.
    """

    def __init__(self, stream: Stream, transform: dict, tables: Tables, there: np.ndarray, channels: int):
        self.stream, self.tables = stream, tables
        self.unit, self.dependent = transform["unit"], transform["dependent"]
        self.offset = [0, *transform["offset"]]
        self.cells: dict[tuple[int, int, int], tuple[int, int, int]] = {}
        self.whole: set[tuple[int, int]] = set()  # units whose luma is one block of 16
        self.there = there.repeat(self.unit, 0).repeat(self.unit, 1)
        self.planes = np.zeros((channels, *self.there.shape))  # in steps
        self.activities, self.sides = np.zeros(self.planes.shape, int), np.full(self.planes.shape, self.unit)
        for row, column in np.argwhere(there).tolist():
            self.decode_unit(row, column)

    def symbol(self, context: int) -> int:
        """A symbol of the distribution of a context."""
        return self.stream.symbol(self.tables.buckets[context])

    def decode_unit(self, row: int, column: int) -> None:
        """R-30."""
        cells = self.unit // 4
        top, left = row * cells, column * cells
        chroma = {4: 1, 8: 2, 16: 3}[self.unit]  # the set of chroma 1
        if self.unit == 4 or (self.unit == 16 and self.one_block(row, column)):
            blocks = [(chroma - 1, top, left)]
        else:
            pattern = self.symbol(self.tables.pattern)
            blocks = []
            for i in range(self.unit**2 // 64):
                y, x = top + i // 2 * 2, left + i % 2 * 2
                quarters = [(0, y, x), (0, y, x + 1), (0, y + 1, x), (0, y + 1, x + 1)]
                blocks += quarters if pattern >> i & 1 else [(1, y, x)]
        activity = max([self.block(0, kind, y, x, self.near(0, y, x)) for kind, y, x in blocks])
        for plane in range(1, len(self.planes)):
            high = 10 * activity + (self.near(plane, top, left) + 1) // 2
            activity = self.block(plane, chroma + plane - 1, top, left, high)

    def one_block(self, row: int, column: int) -> bool:
        """R-30, 1: the flag of a unit of 16."""
        around = ((row, column - 1) in self.whole) + ((row - 1, column) in self.whole)
        if self.symbol(self.tables.flag + around):
            self.whole.add((row, column))
        return (row, column) in self.whole

    def near(self, plane: int, row: int, column: int) -> int:
        """Section 7.5."""
        around = [(plane, row - 1, column), (plane, row, column - 1)]
        activities = [self.cells[cell][2] for cell in around if cell in self.cells]
        return min(16, sum(activities) * 2 // len(activities)) if activities else 17

    def prediction(self, plane: int, row: int, column: int, v: np.ndarray) -> tuple[int, int]:
        """Section 7.6: of the DC integer, and the bin of DC; v has the other coefficients."""
        cells = len(v) // 4
        above = [(plane, row - 1, column + i) for i in range(cells)]
        beside = [(plane, row + i, column - 1) for i in range(cells)]
        sums = int(v[1:8, 0].sum()), int(v[0, 1:8].sum())
        ends = [
            sum(self.cells[cell][which] for cell in edge) - (45 * sums[which] >> 5)
            for which, edge in enumerate((above, beside))
            if edge[0] in self.cells
        ]
        if len(ends) == 2:
            return (sum(ends) + 64) >> 7, bin_of(min(105, abs(ends[0] - ends[1]) >> 6))
        return ((ends[0] + 32) >> 6 if ends else 0), 12

    def level(self, context: int) -> int:
        """R-29, 2."""
        s = self.symbol(context)
        if s < 20:
            return s if s < 10 else 10 - s
        e = s - 20
        if e < 5:
            w = self.stream.raw(e + 2)
            magnitude = 8 + 2 ** (e + 1) + w // 2
        else:
            w = self.stream.raw(5)
            n = min(w // 2, 10)
            magnitude = 72 + 64 * (2**n - 1) + self.stream.raw(n + 6)
        return -magnitude if w % 2 else magnitude

    def block(self, plane: int, kind: int, row: int, column: int, h: int) -> int:
        """R-29, R-31: one block of the set `kind`, its place in cells; returns the activity."""
        side = self.unit if plane else 4 << kind
        cells = side // 4
        high = self.symbol(self.tables.high[kind] + h) & 15
        bits = {4: 0, 8: 2, 16: 4}[side]
        last = high << bits
        if bits:
            last += self.symbol(self.tables.low[kind] + high) & (2**bits - 1)
        v = np.zeros((side, side))
        a = [[0] * (side + 2) for _ in range(side + 2)]
        state = dc = expected = 0
        for k in range(last, -1, -1):
            y, x, place = SCAN[side][k]
            number = 12
            if k == 0:
                expected, number = self.prediction(plane, row, column, v)
            elif k < last:
                number = bin_of(2 * (a[y][x + 1] + a[y + 1][x]) + a[y + 1][x + 1] + a[y][x + 2] + a[y + 2][x])
            level = self.level(self.tables.coefficient[kind] + 26 * place + 2 * number + state // 2)
            m = abs(level)
            a[y][x] = min(15, m)
            r = 2 * m - state // 2 if self.dependent and m else m
            if self.dependent:
                state = NEXT_STATE[m % 2][state]
            value = 64 * r + self.offset[min(r, 3)] if r else 0
            v[y, x] = math.copysign(value, level)
            dc = r if level > 0 else -r
        dc = max(-(2**20), min(2**20, dc + expected))
        lines = [(line[2:8:2].sum() - line[1:8:2].sum()) for line in (v[:, 0], v[0])]
        rims = [16 // side * (16 * dc + (45 * int(line) >> 7)) for line in lines]
        v[0, 0] = 64 * dc
        activity = 1 + int(math.log2(last * 256 // side**2)) if last else 0
        for i, j in np.ndindex(cells, cells):
            self.cells[plane, row + i, column + j] = (*rims, activity)
        place = plane, slice(4 * row, 4 * row + side), slice(4 * column, 4 * column + side)
        self.planes[place] = BASIS[side].T @ (v / 64) @ BASIS[side]
        self.activities[place], self.sides[place] = activity, side
        return activity

    def rows(self, plane: int, d: list[np.ndarray], step: float) -> tuple[np.ndarray, np.ndarray]:
        """Section 7.8: the row of the weights of every pixel of a plane, and whether it is turned."""
        y, x = np.indices(d[0].shape)
        dy, dx = distance(y, self.sides[plane]), distance(x, self.sides[plane])
        if plane == 0:
            v, h, t = of_cells(d[1]), of_cells(d[0]), math.floor(4 * float(np.float32(step)))
            activity = sum((v + h >= 2**j * t).astype(int) for j in range(9))
            direction = np.where(v > 2 * h, 1, np.where(h > 2 * v, 2, 0))
            turned = (direction == 2) | ((direction == 0) & (dy > dx))
            first = (activity * 2 + (direction != 0)) * 9
        else:
            turned = dy > dx
            first = 180 + self.activities[plane] * 9
        return first + np.where(turned, 3 * dx + dy, 3 * dy + dx), turned

    def filtered(self, plane: int, p: np.ndarray, step: float) -> np.ndarray:
        """Section 7.8: what becomes of the values P of a plane."""
        z = np.clip(np.floor(32 * p + 0.49), -8191, 8191).astype(int)
        d = [differences(z, self.there, *place) for place in ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))]
        row, turned = self.rows(plane, d, step)
        for j, other in ((0, 1), (4, 5)):
            d[j], d[other] = np.where(turned, d[other], d[j]), np.where(turned, d[j], d[other])
        w = self.tables.weights[row]
        total = z + sum((d[j] * w[..., j] + 128) >> 8 for j in range(6))
        return np.clip(total, -32768, 32767) / 32

    def pixels(self, q: int, turn: Sequence[int]) -> np.ndarray:
        """Section 7.7: all pixels of all units, those of units that are not there without meaning."""
        step = 0.5 * 2 ** (q / 16)
        z = step * self.planes
        z[1:] *= 1.08
        if self.tables.weights is not None:
            z = np.stack([self.filtered(plane, p, step) for plane, p in enumerate(z)])
        if len(z) == 3:
            (ca, cb, cc), (sa, sb, sc) = (f(2 * math.pi * np.array(turn) / 256) for f in (np.cos, np.sin))
            u = [
                [ca * cb, ca * sb * sc - sa * cc, ca * sb * cc + sa * sc],
                [sa * cb, sa * sb * sc + ca * cc, sa * sb * cc - ca * sc],
                [-sb, cb * sc, cb * cc],
            ]
            z = np.einsum("ji,jyx->iyx", np.array(u), z)
        return np.clip(np.floor(z + 128.5), 0, 255).astype(np.uint8)


def decode_dct(
    data: memoryview, dqz: dict, tables: Tables, mask: np.ndarray, scale: int, turn: Sequence[int]
) -> np.ndarray:
    """Section 7: the pixel values (channel, kept patch, row, column) of one sample."""
    height, width, channels = (dqz["image"][key] for key in ("height", "width", "channels"))
    side, unit = dqz["patch"], dqz["transform"]["unit"]
    across = width // side
    there = np.ones((-(-height // unit), -(-width // unit)), bool)  # section 7.1
    if not mask.all():
        there = mask.reshape(-1, across).repeat(side // unit, 0).repeat(side // unit, 1)
    stream = Stream(data)
    sample = DctSample(stream, dqz["transform"], tables, there, channels)
    stream.end()
    image = sample.pixels(scale, turn)[:, :height, :width]
    return image.reshape(channels, -1, side, across, side).swapaxes(2, 3).reshape(channels, -1, side, side)[:, mask]


def zstd(data: bytes, high: int, dictionary: zstandard.ZstdCompressionDict | None = None) -> bytes:
    """R-37, R-38: the content of one Zstandard frame that states its size, with nothing after it."""
    frame = zstandard.get_frame_parameters(data)
    require(1 <= frame.content_size <= high, f"a content size of {frame.content_size}, not 1 to {high}, or none")
    require(frame.dict_id == 0, "a frame with a dictionary ID")
    return zstandard.ZstdDecompressor(dict_data=dictionary).decompress(data, allow_extra_data=False)


def extension(kind: int, data: bytes) -> int | date | Decimal:
    """R-39: a value of the extension types."""
    text = data.decode("ascii")
    if kind == 1:
        require(re.fullmatch("-?[1-9][0-9]{0,4299}", text) is not None, f"not an integer: {text!r:.40}")
        return int(text)
    if kind in (2, 3):
        require(re.fullmatch(DATE + TIME * (kind == 2), text) is not None, f"not a date (and time): {text!r:.40}")
        return (datetime if kind == 2 else date).fromisoformat(text)
    require(kind == 4, f"the extension type {kind}")
    fits = re.fullmatch(r"-?[0-9]+(\.[0-9]+)?(E[+-]?[0-9]{1,9})?", text)
    require(fits is not None, f"not a decimal number: {text!r:.40}")
    return Decimal(text)


def refuse_timestamp(value: Any) -> Any:
    """R-39: the value, which msgpack makes of its own extension type -1, of which the table does not know."""
    require(type(value) is not msgpack.Timestamp, "the extension type -1")
    for inner in value.values() if type(value) is dict else value if type(value) is list else ():
        refuse_timestamp(inner)
    return value


def decode_records(data: memoryview, count: int, dictionary: zstandard.ZstdCompressionDict | None) -> list[dict]:
    """R-38, R-39: the records of one frame."""
    content = zstd(MAGIC + data, 64 * MIB, dictionary)
    records = msgpack.unpackb(content, ext_hook=extension, unicode_errors="surrogatepass", strict_map_key=True)
    require(type(records) is list and len(records) == count, f"not an array of {count} records")
    for record in records:
        fits = type(record) is dict and all(type(key) is str for key in record)
        require(fits, "a record that is no map with strings as keys")
    return refuse_timestamp(records)


def read_dictionary(columns: dict[str, np.ndarray]) -> zstandard.ZstdCompressionDict | None:
    """R-37: what all frames share, if anything."""
    if "text/dictionary" not in columns:
        return None
    dictionary = zstandard.ZstdCompressionDict(zstd(columns["text/dictionary"].tobytes(), 4 * MIB))
    zstandard.ZstdDecompressor(dict_data=dictionary).decompress(EMPTY)  # refuses a damaged one
    return dictionary


def read(path: str | Path) -> dict[str, Any]:
    """Everything in the file: `root`, `columns`, and `records` or `images` (dropped patches 0), `mask` and `soft`."""
    with refusing(path):
        members = open_archive(path)
        dqz = read_root(members)
        transform, patches = dqz["transform"], 0
        text = transform["name"] == "text"
        if not text:
            patches = (dqz["image"]["height"] // dqz["patch"]) * (dqz["image"]["width"] // dqz["patch"])
        frames = -(-dqz["samples"] // (transform["frame"] if text else 1))
        require("payload/c/0" in members, "no payload")
        payload = members["payload/c/0"][1]
        packed = array_meta(members, "payload", (len(payload),), "uint8")[2]
        require(not packed and frames <= len(payload), "a packed payload, or more frames than bytes")
        columns = read_columns(members, dqz, frames, patches)
        ends = [0, *np.cumsum(columns["length"], dtype=np.uint64).tolist()]
        require(ends[-1] == len(payload), "the lengths do not add up to the payload")
        group = dqz["checksum_group"]
        for j, checksum in enumerate(columns["checksum"].tolist()):
            first, last = j * group, min((j + 1) * group, frames)
            require(last - first == 1 or ends[last] - ends[first] <= MIB, "a checksum over more than 1 MiB")
            found = zlib.crc32(payload[ends[first] : ends[last]])
            require(found == checksum, f"frames {first} to {last - 1}: wrong checksum")
        data = [payload[begin:end] for begin, end in itertools.pairwise(ends)]
        content = read_records(data, dqz, columns) if text else read_images(data, dqz, columns, patches)
        content |= soft_labels(columns, len(dqz["classes"]))
        return {**content, "root": dqz, "columns": columns}


def read_records(data: list[memoryview], dqz: dict, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Section 12: the records of all frames."""
    dictionary, size, records = read_dictionary(columns), dqz["transform"]["frame"], []
    for n, frame in enumerate(data):
        with refusing(f"frame {n}, samples from {n * size}"):
            records += decode_records(frame, min(size, dqz["samples"] - n * size), dictionary)
    return {"records": records}


def read_images(
    data: list[memoryview], dqz: dict, columns: dict[str, np.ndarray], patches: int
) -> dict[str, np.ndarray]:
    """Sections 5 to 7: the images, and the kept patches of each."""
    count, side = len(data), dqz["patch"]
    height, width, channels = (dqz["image"][key] for key in ("height", "width", "channels"))
    across = width // side
    mask = np.ones((count, patches), bool)
    if "mask" in columns:
        mask = np.unpackbits(columns["mask"], axis=1, bitorder="little").astype(bool)
        require(not mask[:, patches:].any(), "a bit after the last patch is set in the mask")
        mask = mask[:, :patches]
    require(bool(mask.any(axis=1).all()), "a sample keeps no patch")
    tables = Tables(dqz, columns) if dqz["transform"]["name"] == "dct" else None
    fits = not tables or "mask" not in columns or side % dqz["transform"]["unit"] == 0
    require(fits, "units that do not divide the patch")
    images = np.zeros((count, channels, height // side, side, across, side), np.uint8)
    for n in range(count):
        kept = np.flatnonzero(mask[n])
        bits, scale = int(columns["bits"][n]), int(columns["scale"][n])
        with refusing(f"sample {n}"):
            if tables:
                turn = tables.rotation[columns["colour"][n]] if channels == 3 else ()
                value = decode_dct(data[n], dqz, tables, mask[n], scale, turn)
            else:
                value = decode(data[n], bits, scale, (channels, len(kept), side, side))
        images[n][:, kept // across, :, kept % across] = value.transpose(1, 0, 2, 3)
    return {"images": images.reshape(count, channels, height, width), "mask": mask}


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
