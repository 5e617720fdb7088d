"""Records of text: each is one msgpack object, some in a row are one zstd frame, and all frames share a dictionary.

    record -> msgpack -> frame of `frame` records -> zstd with the dictionary

A record decodes with the few of its frame; spec/dqz-1.md, section 12, has every byte.
Needs msgpack and zstandard: `pip install 'dqcodec[text]'`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np

from dqcodec.errors import FormatError

try:
    import msgpack
    import zstandard
except ImportError as error:
    raise ImportError(f"records of text need msgpack and zstandard: pip install 'dqcodec[text]' ({error})") from error

Record = dict[str, Any]

LEVEL = 19
MAX_RECORD = 16 << 20  # bytes of a record as msgpack
MAX_UNPACKED = 64 << 20  # bytes of a frame
MAX_DICTIONARY = 4 << 20  # bytes, unpacked
MAX_DEPTH = 64  # nesting of lists and maps

DICTIONARIES = (0, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20)  # sizes that are tried
TRIED = 2000  # records that they are tried on
LEARNED = 64 << 20  # bytes that a dictionary is trained on
FRAME_BYTES = 512  # of msgpack in a frame, about: larger frames save bytes and are read more slowly at random

_DAY, _TIME, _PART = rb"\d{4}-\d\d-\d\d", rb"\d\d:\d\d", rb"(\.\d{1,6})?"  # more digits would be lost
_OFFSET = rb"([+-]" + _TIME + rb"(:\d\d" + _PART + rb")?)?"

# What msgpack has no type for, as the text in an extension type.
_EXTENSIONS: tuple[tuple[int, type, bytes, Callable[[str], Any], Callable[[Any], str]], ...] = (
    (1, int, rb"-?[1-9]\d*", int, str),  # beyond 64 bits
    (2, datetime, _DAY + b"T" + _TIME + rb":\d\d" + _PART + _OFFSET, datetime.fromisoformat, datetime.isoformat),
    (3, date, _DAY, date.fromisoformat, date.isoformat),
    (4, Decimal, rb"-?\d+(\.\d+)?(E[+-]?\d{1,9})?", Decimal, str),
)
_WRITE = {kind: (code, re.compile(form), write) for code, kind, form, _, write in _EXTENSIONS}
_READ = {code: (re.compile(form), read) for code, _, form, read, _ in _EXTENSIONS}
_EMPTY = bytes.fromhex("28b52ffd2000010000")  # a zstd frame of no bytes


def pack(record: Record) -> bytes:
    """A record as msgpack; ValueError where it is too large or deep, or a value is of a type that it does not hold."""
    _check(record, MAX_DEPTH)
    data: bytes = msgpack.packb(record, default=_extension, strict_types=True, unicode_errors="surrogatepass")
    if len(data) > MAX_RECORD:
        raise ValueError(f"{len(data):,} bytes as msgpack; allowed: {MAX_RECORD:,}")
    return data


def join(records: Sequence[bytes]) -> bytes:
    """The bytes of a frame before compression: an array of packed records."""
    header: bytes = msgpack.Packer().pack_array_header(len(records))
    return header + b"".join(records)


def split(data: bytes, count: int) -> list[Any]:
    """What a frame holds, from its bytes; FormatError where that is not `count` values. `as_record` checks each."""
    try:
        records = msgpack.unpackb(data, ext_hook=_value, unicode_errors="surrogatepass", strict_map_key=True)
    except (ValueError, ArithmeticError, RecursionError, MemoryError, msgpack.UnpackException) as error:
        raise FormatError(f"not msgpack ({str(error) or type(error).__name__})") from None
    if not isinstance(records, list) or len(records) != count:
        raise FormatError(f"not an array of {count} records")
    return records


def as_record(value: Any) -> Record:
    """The value itself, if it is a record; else FormatError."""
    if isinstance(value, dict):
        try:
            "".join(value)  # the quickest way to know that all keys are text
            return value
        except TypeError:
            pass
    raise FormatError(f"a record is a {type(value).__name__}, not a map with text as keys")


class Coder:
    """Compresses frames and back, with the dictionary that they share; several threads may use it.

    dictionary  b"" for none
    """

    def __init__(self, dictionary: bytes = b"") -> None:
        self._dictionary = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self._own = threading.local()

    def compress(self, data: bytes) -> bytes:
        if not hasattr(self._own, "compressor"):
            parameters = zstandard.ZstdCompressionParameters.from_level(
                LEVEL, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=True, write_dict_id=False
            )
            self._own.compressor = zstandard.ZstdCompressor(dict_data=self._dictionary, compression_params=parameters)
        packed: bytes = self._own.compressor.compress(data)
        return packed

    def decompress(self, frame: bytes) -> bytes:
        """FormatError where it is no such frame, or of more than MAX_UNPACKED bytes."""
        if not hasattr(self._own, "decompressor"):
            self._own.decompressor = zstandard.ZstdDecompressor(
                dict_data=self._dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS
            )
        return _decompress(self._own.decompressor, frame, zstandard.FORMAT_ZSTD1_MAGICLESS, MAX_UNPACKED)


def stored_dictionary(dictionary: bytes) -> bytes:
    """A dictionary as the file holds it: one zstd frame."""
    packed: bytes = zstandard.ZstdCompressor(level=LEVEL).compress(dictionary)
    return packed


def read_dictionary(stored: bytes) -> bytes:
    """The inverse; FormatError where it is not one."""
    data = _decompress(zstandard.ZstdDecompressor(), stored, zstandard.FORMAT_ZSTD1, MAX_DICTIONARY)
    if not data:
        raise FormatError("it is empty")
    try:
        zstandard.ZstdDecompressor(dict_data=zstandard.ZstdCompressionDict(data)).decompress(_EMPTY)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd: {error}") from None
    return data


def frame_of(sizes: Sequence[int]) -> int:
    """How many records of these packed sizes make a frame: a power of two, so that FRAME_BYTES are about filled."""
    each = np.asarray(sizes, np.int64)
    frame = 1 << int(np.clip(np.round(np.log2(FRAME_BYTES / each.mean())), 0, 4))
    while frame > 1 and int(np.add.reduceat(each, np.arange(0, len(each), frame)).max()) > MAX_UNPACKED:
        frame //= 2
    return frame


def train(packed: Sequence[bytes], frame: int, seed: int = 0) -> bytes:
    """The dictionary with which these records take least, itself counted; b"" where none pays.

    packed  records as `pack` makes them; some are tried, and their bytes taken for those of all
    """
    rng = np.random.default_rng(seed)
    few = max(1, len(packed) // frame)
    tried = np.sort(rng.permutation(few)[: max(1, TRIED // frame)]).tolist()
    frames = [join(packed[n * frame : (n + 1) * frame]) for n in tried]
    learned, room = [], LEARNED
    for n in rng.permutation(len(packed)).tolist():
        if len(packed[n]) <= room:
            learned.append(packed[n])
            room -= len(packed[n])
    best, least = b"", None
    for size in DICTIONARIES:
        dictionary = _dictionary(learned, size)
        if size and not dictionary:
            break
        coder = Coder(dictionary)
        coded = sum(len(coder.compress(data)) for data in frames) * few / len(tried)
        total = coded + (len(stored_dictionary(dictionary)) if dictionary else 0)
        if least is None or total < least:
            best, least = dictionary, total
    return best


def _dictionary(samples: Sequence[bytes], size: int) -> bytes:
    """b"" where zstd cannot train one of that size: too few samples."""
    if not size or sum(map(len, samples)) < 4 * size:
        return b""
    try:
        data: bytes = zstandard.train_dictionary(size, list(samples)).as_bytes()
    except zstandard.ZstdError:
        return b""
    return data


def _decompress(decompressor: Any, frame: bytes, form: int, limit: int) -> bytes:
    """One frame that states its size, and nothing after it."""
    try:
        stated = zstandard.get_frame_parameters(frame, format=form)
        if stated.content_size == zstandard.CONTENTSIZE_UNKNOWN:
            raise FormatError("zstd: the frame does not state its size")
        if stated.content_size > limit:
            raise FormatError(f"zstd: the frame states {stated.content_size:,} bytes; allowed: {limit:,}")
        if stated.dict_id:
            raise FormatError(f"zstd: the frame names the dictionary {stated.dict_id}; allowed: none")
        data: bytes = decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"zstd: {error}") from None
    return data


def stated_size(frame: bytes) -> int:
    """Bytes that a frame says it unpacks to, at most MAX_UNPACKED; 0 where it is damaged, which `decompress` tells."""
    try:
        stated = zstandard.get_frame_parameters(frame, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    except zstandard.ZstdError:
        return 0
    return min(int(stated.content_size), MAX_UNPACKED)


def _extension(value: Any) -> Any:
    """What msgpack calls for what it has no type for."""
    if type(value) not in _WRITE:
        raise ValueError(f"a value of type {type(value).__name__}; allowed: what JSON has, bytes, dates and decimals")
    code, form, write = _WRITE[type(value)]
    data = write(value).encode()
    if not form.fullmatch(data):
        raise ValueError(f"the {type(value).__name__} {value}, which is no number")
    return msgpack.ExtType(code, data)


def _value(code: int, data: bytes) -> Any:
    if code not in _READ:
        raise ValueError(f"extension type {code}")
    form, read = _READ[code]
    if not form.fullmatch(data):
        raise ValueError(f"extension type {code} with {data[:40]!r}")
    return read(data.decode())


def _check(value: Any, depth: int) -> None:
    """ValueError where a value is nested too deep, or a map has keys that are no text."""
    if isinstance(value, dict | list):
        if not depth:
            raise ValueError(f"nested deeper than {MAX_DEPTH}")
        if isinstance(value, dict) and not all(type(key) is str for key in value):
            raise ValueError("a map with keys that are no text")
        for item in value.values() if isinstance(value, dict) else value:
            _check(item, depth - 1)
