"""Files of the transform "dct" against section 7 of the specification, as the reader made from it alone decodes them.

Beside files of the encoder there are forged ones: their streams hold random symbols, so that all of them occur.
"""

import json
import zipfile
import zlib

import numpy as np
import spec_reader

from dqcodec.container import spec


def column(name, values, dtype="uint8"):
    """The two members of a column."""
    values = np.asarray(values, dtype)
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    about = spec.array_json(values.shape, dtype, compressed=False)
    return {f"{name}/zarr.json": about, f"{name}/c" + "/0" * values.ndim: data}


class Author(spec_reader.Stream):
    """Stands in for a coded stream: its symbols and bits are chosen at random, and `payload` codes them.

    wild: share of symbols that are drawn evenly, the others as frequent as the table says; even: no odd bits, so
    that large levels are positive.
    """

    def __init__(self, rng, wild, even=False):
        super().__init__(memoryview(b"\1"))
        self.rng, self.wild, self.even, self.taken = rng, wild, even, []

    def raw(self, count):
        value = int(self.rng.integers(1 << count)) & (-2 if self.even else -1)
        self.taken.append((None, count, value))
        return value

    def symbol(self, buckets):
        frequencies = np.array([own for _, own, *_ in buckets])
        odds = (frequencies > 0) if self.rng.random() < self.wild else frequencies
        value = int(self.rng.choice(32, p=odds / odds.sum()))
        self.taken.append((buckets, int(frequencies[value]), value))
        return value

    def payload(self):
        """Section 7.3 backwards from x = 1."""
        x, words = 1, []
        for buckets, size, value in reversed(self.taken):
            if x >= (size << 20 if buckets else 1 << (32 - size)):
                words.append(x & 0xFFFF)
                x >>= 16
            if buckets:
                high, place = divmod(x, size)
                x = 4096 * high + slot(buckets, value, place)
            else:
                x = x << size | value
        head = max(1, (x.bit_length() + 7) // 8)
        return x.to_bytes(head, "little") + b"".join(word.to_bytes(2, "little") for word in reversed(words))


def slot(buckets, symbol, place):
    """Where an alias table has a place of a symbol."""
    for i, (cut, _, other, offset, _) in enumerate(buckets):
        if i == symbol and place < cut:
            return 128 * i + place
        if other == symbol and cut <= place - offset < 128:
            return 128 * i + place - offset
    raise AssertionError("the table has no such place")


def forge(path, shape, patch, transform, samples, mask=None, tables=None, q=None, seed=0, changes=None, **author):
    """Write a file of random streams; `changes` replaces members, or leaves them out."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    across, unit = width // patch, transform["unit"]
    dqz = {
        "version": "1.0",
        "requires": ["dct"],
        "samples": samples,
        "image": {"height": height, "width": width, "channels": channels},
        "patch": patch,
        "transform": {"name": "dct", "dependent": True, "offset": [9, -6, -2], "tables": "default-1", **transform},
        "checksum_group": 1,
        "classes": ["a"],
        "fingerprint": "0" * 64,
    }
    members = {}
    columns = {f"tables/{name}": table for name, table in (tables or {}).items()}
    for name, table in columns.items():
        members |= column(name, table, str(table.dtype))
    if tables:
        members["tables/zarr.json"] = b'{"zarr_format": 3, "node_type": "group"}'
    known = spec_reader.Tables(dqz, columns)
    payloads = []
    for n in range(samples):
        there = np.ones((-(-height // unit), -(-width // unit)), bool)
        if mask is not None:
            there = mask[n].reshape(-1, across).repeat(patch // unit, 0).repeat(patch // unit, 1)
        stream = Author(rng, **author)
        spec_reader.DctSample(stream, dqz["transform"], known, there, channels)
        payloads.append(stream.payload())
    joined = b"".join(payloads)
    members |= column("payload", np.frombuffer(joined, np.uint8))
    members |= column("length", [len(data) for data in payloads], "uint32")
    members |= column("checksum", [zlib.crc32(data) for data in payloads], "uint32")
    members |= column("label", [0] * samples)
    members |= column("bits", [4] * samples)
    members |= column("scale", rng.integers(0, 256, samples) if q is None else [q] * samples)
    if channels == 3:
        members |= column("colour", rng.integers(0, len(known.rotation), samples))
    if mask is not None:
        members |= column("mask", np.packbits(mask, axis=1, bitorder="little"))
    members["zarr.json"] = json.dumps(
        {"zarr_format": 3, "node_type": "group", "attributes": {"dqz": dqz}}, indent=1
    ).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {**members, **(changes or {})}.items():
            if data is not None:
                archive.writestr(name, data)
    return path
