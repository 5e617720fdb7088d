"""Names, dtypes, limits and checks of the container; spec/dqz-1.md says the same in prose.

Everything here works on JSON values and numpy arrays, never on files. A value from a file is believed only after the
check here has passed; sizes are compared as Python integers before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.errors import FormatError, UnsupportedFeatureError

Array = npt.NDArray[Any]

VERSION = (1, 0)
FEATURES = frozenset({"pixel", "dct", "text"})  # the required features that this version reads

ROOT = "zarr.json"
HEXADECIMAL = "[0-9a-f]{64}"  # of a SHA-256
PAYLOAD = "payload"

MAX_MEMBERS = 4096
MAX_DIRECTORY = 1 << 20  # bytes of the ZIP's central directory
MAX_ROOT = 16 << 20  # bytes of the root zarr.json
MAX_ARRAY_JSON = 64 << 10  # bytes of a column's zarr.json
MAX_SIDE = 4096  # pixels
MAX_PATCHES = 1 << 16  # patches of one image
MAX_SAMPLES = 1 << 31
MAX_CLASSES = 1 << 20
MAX_BINS = 1 << 16
MAX_GROUP = 1 << 20  # bytes of several samples that share one checksum
MAX_DEPTH = 64  # nesting of JSON
MAX_NAME = 255  # bytes of a class name in UTF-8
MAX_FRAME = 64  # records that are compressed together


@dataclass(frozen=True)
class Column:
    """What the format says of one column: its dimensions, its dtypes, and which files have it.

    always  the transforms whose files all have it
    never   the transforms whose files never have it
    """

    ndim: int
    dtypes: tuple[str, ...]
    always: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


IMAGES = ("pixel", "dct")  # the transforms of images
LEAST_BITS = {"pixel": 2, "dct": 1}
COLUMNS: Mapping[str, Column] = {
    "length": Column(1, ("uint16", "uint32"), always=(*IMAGES, "text")),
    "label": Column(1, ("uint8", "uint16", "uint32"), always=(*IMAGES, "text")),
    "bits": Column(1, ("uint8",), always=IMAGES, never=("text",)),
    "scale": Column(1, ("uint8",), always=IMAGES, never=("text",)),
    "checksum": Column(1, ("uint32",), always=(*IMAGES, "text")),
    "mask": Column(2, ("uint8",), never=("text",)),
    "bin": Column(1, ("uint8", "uint16")),
    "source_index": Column(1, ("uint8", "uint16", "uint32")),
    "distance": Column(1, ("float32",), never=("text",)),
    "bins/size": Column(2, ("uint8", "uint16", "uint32")),
    "bins/taken": Column(2, ("uint8", "uint16", "uint32")),
    "bins/rs": Column(1, ("float32",)),
    "bins/ds": Column(1, ("float32",)),
    "bins/is": Column(1, ("float32",)),
    "soft/class": Column(2, ("uint8", "uint16", "uint32"), never=("text",)),
    "soft/share": Column(2, ("uint8",), never=("text",)),
    "colour": Column(1, ("uint8",)),
    "tables/context": Column(1, ("uint8",)),
    "tables/coefficient": Column(2, ("uint16",)),
    "tables/side": Column(2, ("uint16",)),
    "tables/rotation": Column(2, ("uint8",)),
    "mae/weights": Column(1, ("uint8",), never=("text",)),
    "text/dictionary": Column(1, ("uint8",), never=IMAGES),
}
GROUPS = ("bins", "soft", "tables", "mae", "text")  # what comes before the slash of a column
DTYPES = ("uint8", "uint16", "uint32", "float32")
SCORES = ("bins/rs", "bins/ds", "bins/is")
TABLES = tuple(name for name in COLUMNS if name.startswith("tables/"))
UNITS = (4, 8, 16)  # pixels a side of a unit of the transform dct
DICTIONARY = "text/dictionary"  # that all frames of records share
MAE = "mae/weights"  # of the file's own masked autoencoder, as safetensors
SOFT = ("soft/class", "soft/share")
SHARES = 64  # that make up the soft label of a sample
MAX_OFFSET = 31  # of a reconstruction point, in 64ths of a step


def chunk(column: str) -> str:
    """The member that holds the values of a column."""
    return f"{column}/c/{'/'.join('0' * COLUMNS[column].ndim)}"


def pack_mask(mask: Array) -> Array:
    """bool (..., P), true where a patch is kept -> uint8 (..., ceil(P/8)), patch k in bit k % 8 of byte k // 8."""
    return np.packbits(mask, axis=-1, bitorder="little")


def unpack_mask(packed: Array, patches: int) -> Array:
    """The inverse of `pack_mask`."""
    return np.unpackbits(packed, axis=-1, count=patches, bitorder="little").astype(bool)


def smallest(values: npt.ArrayLike, dtypes: tuple[str, ...]) -> Array:
    """Non-negative integers as the first of `dtypes` that holds them all, real numbers as float32; little-endian."""
    array = np.asarray(values)
    if dtypes == ("float32",):
        return array.astype("<f4")
    top = int(array.max(initial=0))
    for name in dtypes:
        if top <= np.iinfo(name).max:
            return np.ascontiguousarray(array, np.dtype(name).newbyteorder("<"))
    raise ValueError(f"{top} does not fit {dtypes[-1]}")


_OWN = frozenset(
    ("version", "requires", "samples", "image", "patch", "transform", "checksum_group", "classes", "fingerprint", "mae")
)  # the entries of `dqz` that Header has as fields


@dataclass(frozen=True)
class Header:
    """What the root's attribute `dqz` holds; `extra` are the informative entries (source, encode, creator).

    samples         number of samples, at least 1
    height, width   pixels; 0 for records
    channels        1 (grey) or 3 (red, green, blue); 0 for records
    patch           side of a patch in pixels; divides height and width; 1 for records
    checksum_group  samples, or frames of records, that share one checksum
    classes         names, by label
    transform       name of the codec
    parameters      of the transform; dct: unit, dependent, offset, tables, filter; text: frame
    requires        features that a reader must know
    mae             "sha256" and "name" of the masked autoencoder that is meant to fill dropped patches, or None
    """

    samples: int
    height: int
    width: int
    channels: int
    patch: int
    checksum_group: int
    classes: tuple[str, ...]
    transform: str = "pixel"
    requires: tuple[str, ...] = ("pixel",)
    fingerprint: str = "0" * 64
    parameters: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    user: Mapping[str, Any] = field(default_factory=dict)
    mae: Mapping[str, str] | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.height // self.patch, self.width // self.patch

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return math.prod(self.grid)

    @property
    def frame(self) -> int:
        """Samples that are coded together: 1, but for records."""
        return int(self.parameters.get("frame", 1))

    @property
    def frames(self) -> int:
        """Ranges of the payload."""
        return -(-self.samples // self.frame)

    @property
    def groups(self) -> int:
        """Number of checksums."""
        return -(-self.frames // self.checksum_group)

    def shape(self, column: str) -> tuple[int, ...] | None:
        """The shape that `column` must have; None where the file is free to choose (the bins, the tables)."""
        if column == "mask":
            return self.samples, -(-self.patches // 8)
        if column == "checksum":
            return (self.groups,)
        if column == "length":
            return (self.frames,)
        return None if column.startswith(tuple(f"{group}/" for group in GROUPS)) else (self.samples,)

    def to_json(self) -> bytes:
        size = {"height": self.height, "width": self.width, "channels": self.channels}
        dqz = {
            "version": "{}.{}".format(*VERSION),
            "requires": list(self.requires),
            "samples": self.samples,
            **({} if self.transform == "text" else {"image": size, "patch": self.patch}),
            "transform": {"name": self.transform, **self.parameters},
            "checksum_group": self.checksum_group,
            "classes": list(self.classes),
            "fingerprint": self.fingerprint,
            **({} if self.mae is None else {"mae": dict(self.mae)}),
            **self.extra,
        }
        root = {"zarr_format": 3, "node_type": "group", "attributes": {"dqz": dqz, "user": dict(self.user)}}
        return json.dumps(root, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def parse_header(data: bytes) -> Header:
    """The header from the bytes of the root `zarr.json`; FormatError or UnsupportedFeatureError where it is unfit."""
    root = parse_json(data, ROOT)
    if not is_group(root):
        raise FormatError("zarr.json: not a Zarr v3 group", member=ROOT)
    attributes = _typed(root, "attributes", dict)
    dqz = dict(_typed(attributes, "dqz", dict))
    _check_version(_typed(dqz, "version", str))
    requires = tuple(_strings(dqz, "requires"))
    unknown = sorted(set(requires) - FEATURES)
    if "consolidated_metadata" in root:
        raise FormatError("zarr.json: consolidated_metadata would be a second account of the columns", member=ROOT)
    if unknown:
        raise UnsupportedFeatureError(
            f"the file needs {', '.join(unknown)}, which this version of dqcodec does not know; a newer one may",
            member=ROOT,
        )
    transform = _typed(dqz, "transform", dict)
    name = _typed(transform, "name", str)
    if name not in FEATURES:
        raise UnsupportedFeatureError(
            f"the file needs the transform {name!r}, which this version does not know", member=ROOT
        )
    if name not in requires:
        raise FormatError(f"zarr.json: requires does not list the transform {name!r}", member=ROOT)
    parameters: dict[str, Any] = {}
    if name == "dct":
        parameters = _dct_parameters(transform)
    if name == "text":
        parameters = {"frame": _integer(transform, "frame", 1, MAX_FRAME)}
    classes = tuple(_strings(dqz, "classes"))
    check_classes(classes)
    fingerprint = _typed(dqz, "fingerprint", str)
    if not re.fullmatch(HEXADECIMAL, fingerprint):
        raise FormatError("zarr.json: fingerprint is not 64 hexadecimal digits", member=ROOT)
    samples = _integer(dqz, "samples", 1, MAX_SAMPLES)
    group = _integer(dqz, "checksum_group", 1, MAX_SAMPLES)
    return Header(
        samples, *(_image(dqz) if name in IMAGES else (0, 0, 0, 1)), group, classes, name, requires, fingerprint,
        parameters,
        extra={key: value for key, value in dqz.items() if key not in _OWN},
        user=_typed(attributes, "user", dict) if "user" in attributes else {},
        mae=_mae(_typed(dqz, "mae", dict)) if "mae" in dqz else None,
    )  # fmt: skip


def _image(dqz: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Height, width, channels and patch of a set of images."""
    image = _typed(dqz, "image", dict)
    height, width = (_integer(image, key, 1, MAX_SIDE) for key in ("height", "width"))
    channels = _integer(image, "channels", 1, 3)
    if channels == 2:
        raise FormatError("zarr.json: channels is 2; allowed: 1, 3", member=ROOT)
    patch = _integer(dqz, "patch", 1, max(height, width))
    if height % patch or width % patch:
        raise FormatError(f"zarr.json: patch {patch} does not divide {height} x {width}", member=ROOT)
    if (height // patch) * (width // patch) > MAX_PATCHES:
        raise FormatError(f"zarr.json: more than {MAX_PATCHES} patches an image", member=ROOT)
    return height, width, channels, patch


def _mae(value: Mapping[str, Any]) -> dict[str, str]:
    """Which masked autoencoder a file wants: the hash of its weights, and what it is called."""
    digest, name = _typed(value, "sha256", str), _typed(value, "name", str)
    if not re.fullmatch(HEXADECIMAL, digest):
        raise FormatError("zarr.json: the sha256 of mae is not 64 hexadecimal digits", member=ROOT)
    if not 1 <= len(name) <= MAX_NAME:
        raise FormatError(
            f"zarr.json: the name of mae has {len(name)} characters; allowed: 1 to {MAX_NAME}", member=ROOT
        )
    return {"sha256": digest, "name": name}


def _dct_parameters(transform: Mapping[str, Any]) -> dict[str, Any]:
    """What the transform dct needs to know: unit, dependent, offset, tables, filter."""
    unit = _integer(transform, "unit", min(UNITS), max(UNITS))
    if unit not in UNITS:
        raise FormatError(f"zarr.json: unit is {unit}; allowed: {', '.join(map(str, UNITS))}", member=ROOT)
    offset = _typed(transform, "offset", list)
    if len(offset) != 3 or not all(_is_integer(value) and abs(value) <= MAX_OFFSET for value in offset):
        raise FormatError(f"zarr.json: offset is not three integers up to {MAX_OFFSET}", member=ROOT)
    return {
        "unit": unit,
        "dependent": _typed(transform, "dependent", bool),
        "offset": offset,
        "tables": _typed(transform, "tables", str),
        "filter": _typed(transform, "filter", str),
    }


def check_classes(classes: tuple[str, ...]) -> None:
    """Class names become folder names on export, and are printed: FormatError for one that is not `plain_name`."""
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise FormatError(f"zarr.json: {len(classes)} classes; allowed: 1 to {MAX_CLASSES}", member=ROOT)
    if len(set(classes)) != len(classes):
        raise FormatError("zarr.json: a class name occurs twice", member=ROOT)
    for name in classes:
        if not plain_name(name):
            raise FormatError(f"zarr.json: class name {name[:80]!r} cannot be a folder name", member=ROOT)


def fingerprint(hashes: Mapping[str, bytes], root: bytes) -> str:
    """SHA-256 over name, NUL and SHA-256 of every member but the root, by name, then the root with 64 zeros for it."""
    total = hashlib.sha256()
    for name in sorted(hashes):
        total.update(name.encode() + b"\0" + hashes[name])
    total.update(root)
    return total.hexdigest()


def plain_name(name: str) -> bool:
    """Whether a folder can have this name: 1 to MAX_NAME bytes, not "." or "..", no slash, backslash or control."""
    if name in ("", ".", "..") or re.search(r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):
        return False
    return len(name.encode()) <= MAX_NAME


def max_columns(payload: int) -> int:
    """Bytes that all columns together may take once unpacked, beside a payload of so many: what forged sizes cost."""
    return 16 * payload + (64 << 20)


def array_json(shape: tuple[int, ...], dtype: str, compressed: bool) -> bytes:
    """The `zarr.json` of an array of one chunk."""
    codecs: list[dict[str, Any]] = [{"name": "bytes"}]
    if np.dtype(dtype).itemsize > 1:
        codecs[0]["configuration"] = {"endian": "little"}
    if compressed:
        codecs.append({"name": "gzip", "configuration": {"level": 9}})
    value = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": codecs,
        "fill_value": 0,
        "attributes": {},
    }
    return json.dumps(value, separators=(",", ":")).encode()


def parse_array_json(data: bytes, member: str) -> tuple[tuple[int, ...], str, bool]:
    """(shape, dtype, compressed) of a column's `zarr.json`, which must be as `array_json` writes it but for spacing."""
    value = parse_json(data, member)
    shape = value.get("shape")
    dtype = value.get("data_type")
    if not isinstance(shape, list) or not shape or not all(_is_integer(n) and n >= 1 for n in shape):
        raise FormatError(f"{member}: shape is {str(shape)[:80]}, not a list of positive integers", member=member)
    if dtype not in DTYPES:
        raise FormatError(f"{member}: data_type {str(dtype)[:80]!r}; allowed: {', '.join(DTYPES)}", member=member)
    for compressed in (False, True):
        expected = json.loads(array_json(tuple(shape), dtype, compressed))
        fits = all(same(value.get(key), expected[key]) for key in expected if key not in ("codecs", "attributes"))
        plain = value.get("storage_transformers", []) == []
        if fits and plain and _same_codecs(value.get("codecs"), expected["codecs"]):
            return tuple(shape), dtype, compressed
    message = f"{member}: not an array of one little-endian chunk with the codecs bytes or bytes, gzip"
    raise FormatError(message, member=member)


def _same_codecs(found: Any, expected: list[dict[str, Any]]) -> bool:
    """Equality but for what may vary: the gzip level, `endian` on single bytes."""
    if not isinstance(found, list) or not all(isinstance(codec, dict) for codec in found):
        return False
    found = [dict(codec) for codec in found]
    if found and "configuration" not in expected[0] and found[0].get("configuration") == {"endian": "little"}:
        del found[0]["configuration"]
    if len(found) == 2 and any(same(found[1].get("configuration"), {"level": level}) for level in range(10)):
        found[1]["configuration"] = {"level": 9}
    return same(found, expected)


def same(found: Any, expected: Any) -> bool:
    """Equality of JSON values, where 1, 1.0 and true differ."""
    return json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)


def is_group(value: Mapping[str, Any]) -> bool:
    """Whether a `zarr.json` is that of a Zarr v3 group."""
    return same(value.get("zarr_format"), 3) and value.get("node_type") == "group"


def parse_json(data: bytes, member: str) -> dict[str, Any]:
    """A JSON object in UTF-8 without repeated keys."""

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise ValueError("a key occurs twice")
        return value

    def finite(text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is out of range")
        return number

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant, parse_float=finite)
        _check_depth(value, MAX_DEPTH)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{member}: not valid JSON ({error})", member=member) from None
    if not isinstance(value, dict):
        raise FormatError(f"{member}: not a JSON object", member=member)
    return value


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, dict | list):
        if not left:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def _check_version(version: str) -> None:
    match = re.fullmatch(r"(0|[1-9][0-9]{0,3})\.(0|[1-9][0-9]{0,3})", version)
    if not match:
        raise FormatError(f"zarr.json: version {version[:20]!r} is not MAJOR.MINOR", member=ROOT)
    if int(match[1]) != VERSION[0]:
        raise UnsupportedFeatureError(
            f"the file has format version {version}; this version of dqcodec reads {VERSION[0]}.x", member=ROOT
        )


def _typed(value: Mapping[str, Any], key: str, kind: type) -> Any:
    found = value.get(key)
    if not isinstance(found, kind):
        raise FormatError(f"zarr.json: {key} is {str(found)[:80]!r}, expected {kind.__name__}", member=ROOT)
    return found


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(value: Mapping[str, Any], key: str, low: int, high: int) -> int:
    found = value.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
        raise FormatError(f"zarr.json: {key} is {str(found)[:80]}; allowed: {low} to {high}", member=ROOT)
    return found


def _strings(value: Mapping[str, Any], key: str) -> list[str]:
    found: list[str] = _typed(value, key, list)
    if not all(isinstance(item, str) for item in found):
        raise FormatError(f"zarr.json: {key} holds something that is not a string", member=ROOT)
    return found
