"""Damaged and forged files of records: both readers say the same, and name the file and the sample."""

import json
import struct
import tracemalloc
import zipfile
import zlib
from datetime import date, datetime
from decimal import Decimal

import msgpack
import numpy as np
import pytest
import spec_reader
import zstandard
from conftest import GOLDEN

import dqcodec
from dqcodec.codec import text
from dqcodec.container import spec
from dqcodec.errors import FormatError
from dqcodec.inspection import verify

GOOD = GOLDEN / "text" / "file.dqz"
LINES = (GOLDEN / "text" / "expected.txt").read_text().splitlines()
FRAME, COUNT = 4, len(LINES)
with zipfile.ZipFile(GOOD) as archive:
    MEMBERS = {name: archive.read(name) for name in archive.namelist()}
HEADER = json.loads(MEMBERS["zarr.json"])["attributes"]["dqz"]
with dqcodec.open(GOOD) as opened:
    FRAMES = opened.reader.read(range(0, COUNT, FRAME))
    DICTIONARY = text.read_dictionary(opened.reader.columns["text/dictionary"].tobytes())
CODER = text.Coder(DICTIONARY)
SHARED = zstandard.ZstdCompressionDict(DICTIONARY)


def column(name, values, dtype):
    """The members of a column."""
    values = np.asarray(values, dtype)
    return {
        f"{name}/zarr.json": spec.array_json(values.shape, values.dtype.name, compressed=False),
        spec.chunk(name): values.tobytes(),
    }


def dictionary(stored):
    """The members of this dictionary."""
    return column("text/dictionary", np.frombuffer(stored, np.uint8), np.uint8)


def header(**changes):
    """The root with entries of `dqz` replaced, or (None) left out."""
    dqz = {key: value for key, value in {**HEADER, **changes}.items() if value is not None}
    return {"zarr.json": json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"dqz": dqz}}).encode()}


def payload(changes):
    """The members of the payload with some frames replaced; lengths and checksums are right."""
    frames = [changes.get(number, frame) for number, frame in enumerate(FRAMES)]
    data, group = b"".join(frames), HEADER["checksum_group"]
    sums = [zlib.crc32(b"".join(frames[start : start + group])) for start in range(0, len(frames), group)]
    return {
        "payload/zarr.json": spec.array_json((len(data),), "uint8", compressed=False),
        "payload/c/0": data,
        **column("length", list(map(len, frames)), np.uint32),
        **column("checksum", sums, np.uint32),
    }


def raw(content, stated=None, descriptor=0xA0, extra=b""):
    """A zstd frame by hand, without its magic number: one stored block, and any size stated."""
    size = struct.pack("<I", len(content) if stated is None else stated) if descriptor & 0xC0 else b""
    block = struct.pack("<I", len(content) << 3 | 1)[:3]
    return bytes([descriptor]) + extra + size + block + content


def refused(path, match, sample=-1):
    """By both readers, in an error that names file and sample, and without much memory."""
    tracemalloc.start()
    with pytest.raises(FormatError, match=match) as caught, dqcodec.open(path) as file:
        list(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)
    assert sample == -1 or (caught.value.sample == sample and f"sample {sample}" in str(caught.value))
    with pytest.raises(spec_reader.SpecError, match="x.dqz|rebuilt.dqz"):
        spec_reader.read(path)


def verdicts(frame, count, dictionary=SHARED):
    """What the package and the second reader make of a frame: its records as text, or None where it is refused."""
    coder = CODER if dictionary is SHARED else text.Coder()
    try:
        ours = ascii([*map(text.as_record, text.split(coder.decompress(frame), count))])
    except FormatError:
        ours = None
    try:
        with spec_reader.refusing("frame"):
            theirs = ascii(spec_reader.decode_records(frame, count, dictionary))
    except spec_reader.SpecError:
        theirs = None
    return ours, theirs


# ---- bits


@pytest.mark.spec("R-38")
@pytest.mark.parametrize("number", range(len(FRAMES)))
def test_a_flipped_bit_in_a_frame(number):
    """With a right checksum: both readers refuse it, or read the same."""
    count = min(FRAME, COUNT - number * FRAME)
    good = verdicts(FRAMES[number], count)
    assert good[0] == good[1] is not None
    outcomes = []
    for place in range(len(FRAMES[number]) * 8):
        damaged = bytearray(FRAMES[number])
        damaged[place // 8] ^= 1 << place % 8
        ours, theirs = verdicts(bytes(damaged), count)
        assert ours == theirs, place
        outcomes.append(ours)
    assert None in outcomes


@pytest.mark.spec("R-39")
@pytest.mark.parametrize("number", range(len(FRAMES)))
def test_a_flipped_bit_in_msgpack(number):
    content, count = CODER.decompress(FRAMES[number]), min(FRAME, COUNT - number * FRAME)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        ours, theirs = verdicts(raw(bytes(damaged)), count, None)
        assert ours == theirs, place
    assert verdicts(raw(content), count, None)[0] is not None
    for end in range(len(content)):
        assert verdicts(raw(content[:end]), count, None) == (None, None)


def test_one_flipped_bit_in_the_file(tmp_path):
    """At every 7th byte: an error that names the file, or exactly the records that were written."""
    data, path = GOOD.read_bytes(), tmp_path / "x.dqz"
    harmless = 0
    for place in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            with dqcodec.open(path) as file:
                assert [ascii(record) for record in file] == LINES
            harmless += 1
        except FormatError as error:
            assert str(path) in str(error)
    assert harmless < 0.2 * len(data) / 7  # ZIP dates, versions and attributes


# ---- frames


@pytest.mark.spec("R-38")
@pytest.mark.parametrize(
    ("frame", "match"),
    [
        (raw(CODER.decompress(FRAMES[1]), stated=(64 << 20) + 1), r"states 67,108,865 bytes; allowed: 67,108,864"),
        (raw(CODER.decompress(FRAMES[1]), stated=0xFFFFFFFF), "states 4,294,967,295 bytes"),
        (raw(CODER.decompress(FRAMES[1]), stated=100), "zstd"),
        (raw(CODER.decompress(FRAMES[1]), stated=10_000), "zstd"),
        (raw(CODER.decompress(FRAMES[1]), descriptor=0, extra=b"\x80"), "does not state its size"),
        (raw(CODER.decompress(FRAMES[1]), descriptor=0xA1, extra=b"\7"), "names the dictionary 7"),
        (raw(CODER.decompress(FRAMES[1]), descriptor=0xA8), "zstd"),  # a reserved bit
        (raw(CODER.decompress(FRAMES[1]), descriptor=0xA4) + b"abcd", "zstd"),  # a wrong checksum of zstd
        (FRAMES[1] + b"\0", "zstd"),
        (FRAMES[1] + FRAMES[1], "zstd"),
        (FRAMES[1] + b"\x50\x2a\x4d\x18\0\0\0\0", "zstd"),  # a skippable frame
        (FRAMES[1][:-1], "zstd"),
        (spec_reader.MAGIC + FRAMES[1], "zstd|msgpack"),
        (raw(b""), "not msgpack"),
        (b"\0", "zstd"),
    ],
)
def test_a_frame_that_is_not_as_stated(rebuild, frame, match):
    refused(rebuild(GOOD, payload({1: frame})), f"sample 4: its frame of records: .*{match}", 4)


@pytest.mark.spec("R-38")
def test_a_bomb(rebuild):
    bomb = zstandard.ZstdCompressor().compress(bytes((64 << 20) + 1))[4:]
    assert len(bomb) < 10_000
    refused(rebuild(GOOD, payload({5: bomb})), "sample 20: .*67,108,865", 20)


@pytest.mark.spec("R-38")
def test_only_the_samples_of_a_damaged_frame_are_refused(rebuild):
    path = rebuild(GOOD, payload({1: b"\0"}))
    with dqcodec.open(path) as file:
        others = [k for k in range(COUNT) if k // FRAME != 1]
        assert [ascii(record) for record in file.records(others)] == [LINES[k] for k in others]
    found = verify(path)
    assert [index for index, _ in found.bad] == [4, 5, 6, 7]
    assert all("rebuilt" not in reason and "zstd" in reason for _, reason in found.bad)


def records(*values):
    return msgpack.packb(values)


RECORD = msgpack.packb({"a": 1})
REFUSED = {
    "no msgpack": b"\xc1",
    "no array": msgpack.packb({"a": 1}),
    "text": msgpack.packb("four"),
    "nothing there": records(),
    "one too few": records({}, {}, {}),
    "one too many": records({}, {}, {}, {}, {}),
    "trailing bytes": records({}, {}, {}, {}) + b"\0",
    "two arrays": records({}, {}, {}, {}) * 2,
    "an array of 2^32 - 1": b"\xdd\xff\xff\xff\xff" + RECORD * 4,
    "a map of 2^32 - 1": b"\x94" + RECORD * 3 + b"\xdf\xff\xff\xff\xff" + RECORD,
    "text of 2^32 - 1": b"\x94" + RECORD * 3 + b"\x81\xa1a\xdb\xff\xff\xff\xffa",
    "too deep": b"\x94" + RECORD * 3 + b"\x81\xa1a" + b"\x91" * 100_000 + b"\xc0",
    **{
        f"a key {name}": b"\x94" + RECORD * 3 + item
        for name, item in {
            "that is an integer": b"\x81\1\1",
            "that is null": b"\x81\xc0\1",
            "that is a map": b"\x81\x81\xa1a\1\1",
            "that is an integer within": b"\x81\xa1a\x81\1\1",
            "that is no UTF-8": b"\x81\xa1\xff\1",
            "that is an extension": b"\x81\xd4\1" + b"1" + b"\1",
        }.items()
    },
    **{
        f"{name} in type {code}": b"\x94" + RECORD * 3 + msgpack.packb({"a": msgpack.ExtType(code, data)})
        for code, name, data in [
            (0, "anything", b"1"),
            (5, "anything", b"1"),
            (127, "anything", b""),
            *((1, repr(data), data) for data in [b"", b"+5", b"0x10", b"1_000", b" 1", b"1.0", b"-", b"007", b"1\n"]),
            (1, "too many digits", b"1" * 4301),
            (1, "other digits", "٣".encode()),
            *((2, repr(data), data) for data in [b"", b"2026-11-25", b"2026-11-25T12:00", b"2026-13-25T12:00:00"]),
            (2, "nanoseconds", b"2026-11-25T12:00:00.123456789"),
            (2, "a letter", b"2026-11-25T12:00:00Z"),
            (2, "a blank", b"2026-11-25 12:00:00"),
            (2, "a far offset", b"2026-11-25T12:00:00+24:00"),
            *((3, repr(data), data) for data in [b"", b"20261125", b"2026-W48-3", b"2026-02-29", b"0000-01-01"]),
            *(
                (4, repr(data), data)
                for data in [b"", b"NaN", b"sNaN", b"Infinity", b"1_0", b" 1", b".5", b"1e5", b"1E+1234567890"]
            ),
            (4, "other digits", "٣".encode()),
        ]
    },
    "an integer cut off": b"\x94" + RECORD * 3 + b"\x81\xa1a\xcf\0",
    "text that is no UTF-8": b"\x94" + RECORD * 3 + b"\x81\xa1a\xa1\xff",
}


@pytest.mark.spec("R-39")
@pytest.mark.parametrize("content", REFUSED.values(), ids=REFUSED.keys())
def test_content_that_is_no_frame_of_records(rebuild, content):
    refused(rebuild(GOOD, payload({3: CODER.compress(content)})), "sample 12: its frame of records: ", 12)


@pytest.mark.spec("R-39")
@pytest.mark.parametrize("value", [None, 1, "text", [["a", 1]], {b"a": 1}, {"a": 1, b"b": 2}], ids=ascii)
def test_a_value_that_is_no_record(rebuild, value):
    """It alone is refused, not the others of its frame."""
    content = records({"a": 1}, value, {"b": 2}, {})
    path = rebuild(GOOD, payload({3: CODER.compress(content)}))
    refused(path, "sample 13: its frame of records: a record is a .*, not a map with text as keys", 13)
    with dqcodec.open(path) as file:
        assert file.records([12, 14, 15]) == [{"a": 1}, {"b": 2}, {}]
    assert [index for index, _ in verify(path).bad] == [13]


@pytest.mark.spec("R-39")
def test_content_that_other_writers_may_write(rebuild):
    """Wider types than need be, short floats, and what is between the values that the package writes."""
    deep = [1]
    for _ in range(100):
        deep = [deep]
    content = b"\xdc\0\4" + b"".join(
        [
            b"\xde\0\2" + b"\xd9\1a" + b"\xd3" + bytes(7) + b"\5" + b"\xdb\0\0\0\1b" + b"\xca\x3f\x80\0\0",
            b"\x80",
            msgpack.packb({"deep": deep}),
            msgpack.packb(
                {
                    "integer": msgpack.ExtType(1, b"9" * 4300),
                    "time": msgpack.ExtType(2, b"0001-01-01T00:00:00.5-00:53:28"),
                    "date": msgpack.ExtType(3, b"9999-12-31"),
                    "decimal": msgpack.ExtType(4, b"-007.50E+06"),
                }
            ),
        ]
    )
    frame = raw(content, descriptor=0xA1, extra=b"\0")  # the field of the dictionary is there, and 0
    expected = [
        {"a": 5, "b": 1.0},
        {},
        {"deep": deep},
        {
            "integer": int("9" * 4300),
            "time": datetime.fromisoformat("0001-01-01T00:00:00.500000-00:53:28"),
            "date": date(9999, 12, 31),
            "decimal": Decimal("-007.50E+06"),
        },
    ]
    path = rebuild(GOOD, payload({2: frame}))
    with dqcodec.open(path) as file:
        assert ascii(file.records(range(8, 12))) == ascii(expected)
    assert ascii(spec_reader.read(path)["records"][8:12]) == ascii(expected)


# ---- the header and the columns


@pytest.mark.spec("R-36")
@pytest.mark.parametrize("frame", [0, 65, -4, 2**40, True, 4.0, "4", None, [4]])
def test_the_frame_of_the_header(rebuild, frame):
    refused(rebuild(GOOD, header(transform={"name": "text", "frame": frame})), "frame")


@pytest.mark.spec("R-36")
@pytest.mark.parametrize("frame", [1, 3, 5, 64])
def test_another_frame_than_the_columns_have(rebuild, frame):
    refused(rebuild(GOOD, header(transform={"name": "text", "frame": frame})), "length")


def test_the_header_without_a_frame(rebuild):
    refused(rebuild(GOOD, header(transform={"name": "text"})), "frame")


@pytest.mark.spec("R-7", "R-8")
@pytest.mark.parametrize(
    "changes",
    [
        {"requires": ["pixel"]},
        {"requires": ["text", "more"]},
        {"transform": {"name": "texts", "frame": 4}},
        {"transform": {"name": "pixel"}},
        {"transform": {"name": "pixel"}, "requires": ["pixel"]},
        {"transform": {"name": "pixel", "frame": 4}, "requires": ["pixel"], "patch": 1,
         "image": {"height": 1, "width": 1, "channels": 1}},
        {"samples": COUNT - 1},
        {"samples": COUNT + 1},
        {"samples": COUNT + 5},
        {"samples": 2**31},
        {"samples": 0},
        {"checksum_group": 1},
        {"classes": ["only"]},
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit(rebuild, changes):
    refused(rebuild(GOOD, header(**changes)), "rebuilt.dqz: ")


@pytest.mark.spec("R-36")
def test_what_is_not_looked_at(rebuild):
    """Of images; and a writer may name more features than it uses."""
    path = rebuild(GOOD, header(image={"height": -1}, patch="none", requires=["dct", "text"]))
    with dqcodec.open(path) as file:
        assert [ascii(record) for record in file] == LINES
    assert [ascii(record) for record in spec_reader.read(path)["records"]] == LINES


@pytest.mark.spec("R-39")
@pytest.mark.parametrize("samples", [21, 23, 24])
def test_another_number_of_records_than_the_last_frame_has(rebuild, samples):
    """Header and columns agree; only the frame knows."""
    few = {name: None for name in MEMBERS if name.startswith(("bin", "source_index"))}
    changes = {**few, **header(samples=samples), **column("label", [0] * samples, np.uint8)}
    refused(rebuild(GOOD, changes), f"sample 20: .*not an array of {samples - 20} records", 20)


@pytest.mark.spec("R-11", "R-36")
@pytest.mark.parametrize(
    ("name", "values", "dtype"),
    [
        ("length", [1] * COUNT, np.uint16),
        ("length", [*map(len, FRAMES[:-1])], np.uint16),
        ("length", [*map(len, FRAMES[:-1]), 1], np.uint16),
        ("length", [*map(len, FRAMES)], np.int64),
        ("label", [0] * len(FRAMES), np.uint8),
        ("label", [2] * COUNT, np.uint8),
        ("source_index", [0] * len(FRAMES), np.uint8),
        ("checksum", [0] * len(FRAMES), np.uint32),
        ("checksum", [0] * COUNT, np.uint32),
        ("bits", [8] * COUNT, np.uint8),
        ("bits", [8] * len(FRAMES), np.uint8),
        ("scale", [0] * COUNT, np.uint8),
        ("mask", [[1]] * COUNT, np.uint8),
        ("distance", [0] * COUNT, np.float32),
        ("colour", [0] * COUNT, np.uint8),
        ("tables/context", [0], np.uint8),
        ("tables/rotation", [[0, 0, 0]], np.uint8),
        ("mae/weights", [0], np.uint8),
    ],
)
def test_columns_that_do_not_fit(rebuild, name, values, dtype):
    group = {f"{name.split('/')[0]}/zarr.json": MEMBERS["text/zarr.json"]} if "/" in name else {}
    refused(rebuild(GOOD, {**column(name, values, dtype), **group}), f"rebuilt.dqz: .*{name}")


@pytest.mark.spec("R-11")
def test_a_frame_without_a_byte(rebuild):
    lengths = [*map(len, FRAMES[:3]), 0, len(FRAMES[3]) + len(FRAMES[4]), len(FRAMES[5])]
    refused(rebuild(GOOD, column("length", lengths, np.uint16)), "length: sample 12 has 0", 12)


@pytest.mark.spec("R-36", "R-37")
@pytest.mark.parametrize("name", ["pixel-rgb", "pixel-grey"])
def test_a_dictionary_among_images(rebuild, name):
    changes = {**dictionary(text.stored_dictionary(b"words")), "text/zarr.json": MEMBERS["text/zarr.json"]}
    path = rebuild(GOLDEN / name / "file.dqz", changes)
    with pytest.raises(FormatError, match=r"rebuilt\.dqz: .*text/dictionary"):
        dqcodec.open(path)
    with pytest.raises(spec_reader.SpecError, match=r"rebuilt\.dqz"):
        spec_reader.read(path)


# ---- the dictionary


def test_the_members_of_the_dictionary(rebuild):
    for name in ("text/zarr.json", "text/dictionary/zarr.json", "text/dictionary/c/0"):
        refused(rebuild(GOOD, {name: None}), r"rebuilt\.dqz: .*text")
    group = b'{"zarr_format": 3, "node_type": "group", "attributes": {"a": 1}}'
    refused(rebuild(GOOD, {"text/zarr.json": group}), "text")


@pytest.mark.spec("R-37")
@pytest.mark.parametrize(
    "stored",
    [
        b"\0",
        DICTIONARY,  # not packed
        text.stored_dictionary(DICTIONARY)[:-1],
        text.stored_dictionary(DICTIONARY) + b"\0",
        text.stored_dictionary(DICTIONARY) * 2,
        text.stored_dictionary(b""),
        text.stored_dictionary(bytes((4 << 20) + 1)),
        text.stored_dictionary(DICTIONARY[:4] + b"x" * 400),  # by its magic number a dictionary, but damaged
        text.stored_dictionary(DICTIONARY[:40]),
        spec_reader.MAGIC + raw(DICTIONARY, stated=(4 << 20) + 1),
        spec_reader.MAGIC + raw(DICTIONARY, descriptor=0, extra=b"\x80"),
        spec_reader.MAGIC + raw(DICTIONARY, descriptor=0xA1, extra=b"\7"),
        b"\x50\x2a\x4d\x18\4\0\0\0abcd",  # a skippable frame
        b"\x50\x2a\x4d\x18\0\0\0\0" + text.stored_dictionary(DICTIONARY),
    ],
)
def test_a_damaged_dictionary(rebuild, stored):
    refused(rebuild(GOOD, dictionary(stored)), r"rebuilt\.dqz: text/dictionary: ")


@pytest.mark.spec("R-37")
def test_a_flipped_bit_in_the_dictionary(tmp_path, rebuild):
    """Both readers refuse the same, and read the same."""
    outcomes = []
    for place in range(0, len(DICTIONARY), 5):
        damaged = bytearray(DICTIONARY)
        damaged[place] ^= 1 << place % 8
        path = rebuild(GOOD, dictionary(text.stored_dictionary(bytes(damaged))))
        found = []
        for read in (lambda path: list(dqcodec.open(path)), lambda path: spec_reader.read(path)["records"]):
            try:
                found.append(ascii(read(path)))
            except (FormatError, spec_reader.SpecError):
                found.append(None)
        assert found[0] == found[1], place
        outcomes.append(found[0])
    assert None in outcomes


@pytest.mark.spec("R-37")
def test_without_its_dictionary(rebuild):
    """Then frames that refer to it cannot be read."""
    path = rebuild(GOOD, {name: None for name in MEMBERS if name.startswith("text/")})
    refused(path, "sample 0: its frame of records: zstd", 0)
    with dqcodec.open(path) as file, pytest.raises(FormatError, match="sample 0"):
        file[0]


@pytest.mark.spec("R-37")
@pytest.mark.parametrize("shared", [b"", b"w", b"What is the answer? It is the output of the instruction. " * 5])
def test_content_as_a_dictionary(rebuild, shared):
    """Anything that does not begin as a dictionary of zstd does; none is one, too."""
    coder = text.Coder(shared)
    frames = {number: coder.compress(CODER.decompress(frame)) for number, frame in enumerate(FRAMES)}
    changes = {name: None for name in MEMBERS if name.startswith("text/")}
    if shared:
        changes = dictionary(text.stored_dictionary(shared))
    path = rebuild(GOOD, {**payload(frames), **changes})
    with dqcodec.open(path) as file:
        assert [ascii(record) for record in file] == LINES
    assert [ascii(record) for record in spec_reader.read(path)["records"]] == LINES
