"""Damaged and forged files: an error that says what and where, or the right data; never a crash or much memory."""

import gzip
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import spec_reader
from conftest import GOLDEN

import dqcodec
from dqcodec.container import spec
from dqcodec.container.reader import Reader
from dqcodec.errors import ChecksumError, DQZError, FormatError, TruncatedError, UnsupportedFeatureError

RGB = GOLDEN / "pixel-rgb" / "file.dqz"
GREY = GOLDEN / "pixel-grey" / "file.dqz"
EXPECTED = np.load(GOLDEN / "pixel-rgb" / "expected.npz")["images"]


def everything(path):
    """All data of a file."""
    with dqcodec.open(path) as file:
        return file.images(range(len(file)), fill="none"), dict(file.reader.columns), file.classes


def root(path, **changes):
    """The root zarr.json with entries of `dqz` replaced, or left out (None)."""
    with zipfile.ZipFile(path) as archive:
        value = json.loads(archive.read("zarr.json"))
    dqz = {**value["attributes"]["dqz"], **changes}
    value["attributes"]["dqz"] = {key: entry for key, entry in dqz.items() if entry is not None}
    return json.dumps(value).encode()


def refused(path, match, kind=FormatError):
    tracemalloc.start()
    with pytest.raises(kind, match=match) as caught:
        everything(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6
    assert str(path) in str(caught.value)
    assert caught.value.path == str(path)
    return caught.value


# ---- damage


@pytest.mark.spec("R-2")
def test_truncated_anywhere(tmp_path):
    """At every structural boundary, beside it, and at every 97th byte."""
    data = RGB.read_bytes()
    with Reader(RGB) as reader:
        ends = [member.start + member.size for member in reader.members.values()]
        starts = [member.start for member in reader.members.values()]
    places = {0, 1, 21, 22, len(data) - 1, len(data) - 22, len(data) - 23, *range(0, len(data), 97)}
    places |= {place + step for place in (*starts, *ends) for step in (-1, 0, 1)}
    path = tmp_path / "cut.dqz"
    for place in sorted(place for place in places if place < len(data)):
        path.write_bytes(data[:place])
        with pytest.raises(TruncatedError, match=r"cut\.dqz: "):
            Reader(path)


@pytest.mark.spec("R-4", "R-13")
@pytest.mark.parametrize("golden", [RGB, GREY])
def test_one_flipped_bit(tmp_path, golden):
    """Every byte of the small file, every 11th of the other: an error, or exactly the data that were written."""
    data = golden.read_bytes()
    expected = everything(golden)
    path = tmp_path / "flip.dqz"
    rng = np.random.default_rng(0)
    harmless = 0
    for place in range(0, len(data), 1 if golden is GREY else 11):
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            images, columns, classes = everything(path)
        except DQZError as error:
            assert str(path) in str(error)
            continue
        harmless += 1
        np.testing.assert_array_equal(images, expected[0])
        assert classes == expected[2]
        for name, column in expected[1].items():
            np.testing.assert_array_equal(columns[name], column)
    assert harmless < 0.2 * len(data)  # ZIP dates, versions and attributes


@pytest.mark.spec("R-13")
def test_a_damaged_sample_is_named_and_the_others_stay(golden_copy):
    with Reader(golden_copy) as reader:
        start, place = reader.members["payload/c/0"].start, int(reader.offsets[5])
    data = bytearray(golden_copy.read_bytes())
    data[start + place] ^= 0x10
    golden_copy.write_bytes(data)
    with dqcodec.open(golden_copy) as file:
        with pytest.raises(ChecksumError, match=r"copy\.dqz: sample 5: payload bytes .* Run: dqcodec verify") as caught:
            file[5]
        assert (caught.value.path, caught.value.member, caught.value.sample) == (str(golden_copy), "payload", 5)
        np.testing.assert_array_equal(file.images([4, 6], fill="none"), EXPECTED[[4, 6]])
        with pytest.raises(ChecksumError, match="sample 5"):
            file.images([4, 5, 6])


def test_a_closed_file_says_so(golden_copy):
    file = dqcodec.open(golden_copy)
    file.close()
    file.close()
    with open(GREY, "rb"), pytest.raises(ValueError, match=r"copy\.dqz is closed"):
        file[0]


def test_a_file_cut_while_open_names_the_sample(golden_copy):
    with dqcodec.open(golden_copy) as file:
        golden_copy.write_bytes(golden_copy.read_bytes()[:500])
        with pytest.raises(TruncatedError, match=r"copy\.dqz: sample 20: payload bytes .* the file ends"):
            file[20]


@pytest.mark.spec("R-13")
def test_a_checksum_over_too_much_is_refused(tmp_path):
    """Else every sample would cost the reading of all."""
    from dqcodec.container.writer import Writer

    path = tmp_path / "x.dqz"
    payloads = [bytes([0, *np.random.default_rng(k).bytes(3 << 18)]) for k in range(3)]
    with Writer(path) as writer:
        writer.append(b"x")
        for payload in payloads:
            writer.append(payload)
        columns = {"label": np.zeros(4, int), "bits": np.full(4, 8), "scale": np.zeros(4, int)}
        header = writer.finish(spec.Header(0, 512, 512, 3, 512, 1, ("a",)), columns)
    assert header.checksum_group == 1
    crc = zipfile.crc32(b"x" + b"".join(payloads)).to_bytes(4, "little")
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info), {}) for info in archive.infolist()]
    changed = {
        "zarr.json": root(path, checksum_group=4),
        "checksum/zarr.json": spec.array_json((1,), "uint32", compressed=False),
        "checksum/c/0": crc,
    }
    path.write_bytes(raw_zip([(name, changed.get(name, data), over) for name, data, over in members]))
    refused(path, "checksum: 2359300 bytes share one; allowed: 1048576")


def test_batches_follow_the_size_of_the_images():
    with dqcodec.open(RGB) as file:
        assert [*file.batches()] == [range(21)]
    with dqcodec.open(GOLDEN / "pixel-large" / "file.dqz") as file:
        assert max(len(batch) for batch in file.batches()) * 160 * 160 * 3 <= 64 << 20


def test_trailing_bytes(golden_copy):
    golden_copy.write_bytes(golden_copy.read_bytes() + b"x")
    refused(golden_copy, "cut off or something was added", TruncatedError)


@pytest.mark.parametrize("content", [b"", b"x", b"\x89PNG\r\n" * 100, b"PK\5\6" + bytes(18), bytes(10_000)])
def test_not_a_dqz(tmp_path, content):
    path = tmp_path / "x.dqz"
    path.write_bytes(content)
    refused(path, "is this a .dqz file|too few|missing")


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        dqcodec.open(tmp_path / "x.dqz")


# ---- the archive


def raw_zip(members):
    """A ZIP of stored members, from (name, data, overrides) by hand: what zipfile would refuse to write."""
    body, directory = b"", b""
    for name, data, over in members:
        encoded = name.encode()
        at = over.get("at", len(body))
        crc, size = over.get("crc", zipfile.crc32(data)), over.get("size", len(data))
        method, flags = over.get("method", 0), over.get("flags", 0)
        local = struct.pack("<4s5HIIIHH", b"PK\3\4", 20, flags, method, 0, 33, crc, size, size, len(encoded), 0)
        body += local + over.get("local_name", encoded) + data
        central_length = len(over.get("central_name", encoded))
        directory += struct.pack(
            "<4s6HIIIHHHHHII",
            *(
                b"PK\1\2",
                20,
                20,
                flags,
                method,
                0,
                33,
                crc,
                size,
                size,
                central_length,
                0,
                0,
                0,
                0,
                0,
                at,
            ),
        )
        directory += over.get("central_name", encoded)
    end = struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return body + directory + end


def golden_members():
    with zipfile.ZipFile(RGB) as archive:
        return [(info.filename, archive.read(info), {}) for info in archive.infolist()]


def test_raw_zip_is_a_good_forger(tmp_path):
    path = tmp_path / "x.dqz"
    path.write_bytes(raw_zip(golden_members()))
    np.testing.assert_array_equal(everything(path)[0], EXPECTED)


@pytest.mark.spec("R-3")
def test_duplicate_members(tmp_path):
    path = tmp_path / "x.dqz"
    members = golden_members()
    label = next(member for member in members if member[0] == "label/c/0")
    path.write_bytes(raw_zip([*members, label]))
    refused(path, "'label/c/0' occurs twice")


@pytest.mark.spec("R-2")
@pytest.mark.parametrize(
    ("over", "match"),
    [
        ({"at": 0}, "does not start where the last one ends"),
        ({"at": 10**6}, "does not start|cut off"),
        ({"size": 10**9}, "reaches beyond its end|does not start"),
        ({"local_name": b"label/c/1"}, "differs from the directory"),
        ({"central_name": b"label/c/0\0"}, "not allowed"),
        ({"crc": 1}, "checksum"),
    ],
)
def test_forged_directory(tmp_path, over, match):
    path = tmp_path / "x.dqz"
    path.write_bytes(raw_zip([(n, d, over if n == "label/c/0" else {}) for n, d, _ in golden_members()]))
    refused(path, match)


@pytest.mark.spec("R-1")
@pytest.mark.parametrize("over", [{"method": 8}, {"flags": 1}, {"flags": 8}])
def test_members_that_are_not_plain(tmp_path, over):
    path = tmp_path / "x.dqz"
    path.write_bytes(raw_zip([(n, d, over if n == "label/c/0" else {}) for n, d, _ in golden_members()]))
    refused(path, "is not a plain stored one")


@pytest.mark.spec("R-2")
def test_a_hole_and_a_prefix(tmp_path):
    path = tmp_path / "x.dqz"
    data = RGB.read_bytes()
    path.write_bytes(b"#!/bin/sh\n" + data)
    refused(path, "the directory states bytes")
    at = data.index(b"PK\1\2")
    end = bytearray(data[-22:])
    end[16:20] = struct.pack("<I", at + 5)
    path.write_bytes(data[:at] + b"stuff" + data[at:-22] + end)
    refused(path, "bytes between the last member and the directory|not a .dqz file")


@pytest.mark.spec("R-2")
@pytest.mark.parametrize("place", [29, 31, 33])
def test_the_last_entry_is_longer_than_the_directory(golden_copy, place):
    """zipfile takes the lengths of name, extra field and comment on trust, and stops where the directory ends."""
    data = bytearray(golden_copy.read_bytes())
    data[data.rindex(b"PK\1\2") + place] = 4
    golden_copy.write_bytes(data)
    refused(golden_copy, "the last entry of the directory reaches beyond its end")


@pytest.mark.spec("R-2")
@pytest.mark.parametrize("count", [1, 4000])
def test_a_wrong_count_of_members(tmp_path, count):
    path = tmp_path / "x.dqz"
    data = RGB.read_bytes()
    path.write_bytes(data[:-14] + struct.pack("<HH", count, count) + data[-10:])
    refused(path, "members and states")


def test_too_many_members(tmp_path):
    path = tmp_path / "x.dqz"
    path.write_bytes(raw_zip([(f"m{k}", b"", {}) for k in range(spec.MAX_MEMBERS + 1)]))
    refused(path, "allowed: 4096 members")


def zip64_end(data, over=(), locate=None):
    """The file with a ZIP64 end record and locator, some of count, length and start forged."""
    count, length, start = struct.unpack("<10xHII", data[-22:-2])
    forged = [{"count": count, "length": length, "start": start}[key] for key in ("count", "length", "start")]
    for place, value in over:
        forged[place] = value
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, forged[0], *forged)
    at = start + length if locate is None else locate
    return data[:-22] + record + struct.pack("<4sIQI", b"PK\6\7", 0, at, 1) + data[-22:]


@pytest.mark.spec("R-2")
def test_a_zip64_directory_is_read(tmp_path):
    path = tmp_path / "x.dqz"
    path.write_bytes(zip64_end(RGB.read_bytes()))
    np.testing.assert_array_equal(everything(path)[0], EXPECTED)


@pytest.mark.spec("R-2")
@pytest.mark.parametrize("short", [b"", b"\xff"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_forged_zip64_directory(tmp_path, place, short):
    """Counts and sizes of 2^60, with and without the end record agreeing."""
    data = RGB.read_bytes()
    if short:
        data = data[:-14] + b"\xff" * 12 + data[-2:]
    path = tmp_path / "x.dqz"
    real = struct.unpack("<10xHII", RGB.read_bytes()[-22:-2])
    path.write_bytes(zip64_end(data, [*enumerate(real), (place, 1 << 60)], locate=real[1] + real[2]))
    refused(path, "ZIP64 directory is damaged|allowed: 4096 members|the directory states bytes")
    path.write_bytes(zip64_end(data, enumerate(real), locate=0))
    refused(path, "ZIP64 directory is damaged")


@pytest.mark.spec("R-1")
@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/./b", "a/..", "a\\b", "caf\u00e9", "a/", "\x07"])
def test_member_names(tmp_path, name):
    path = tmp_path / "x.dqz"
    path.write_bytes(raw_zip([*golden_members(), (name, b"", {})]))
    refused(path, "is not allowed|differs from the directory")


@pytest.mark.spec("R-3")
def test_unknown_members_are_ignored(rebuild):
    path = rebuild(RGB, {"column/future/zarr.json": b"{}", "notes.txt": b"hello"})
    np.testing.assert_array_equal(everything(path)[0], EXPECTED)


# ---- the root


@pytest.mark.spec("R-5", "R-9")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"samples": 0}, "samples is 0; allowed: 1 to"),
        ({"samples": 20}, "shape"),
        ({"samples": 22}, "shape"),
        ({"samples": 2**31}, "2147483648 samples in"),
        ({"samples": 2**64}, "allowed: 1 to"),
        ({"samples": 10**400}, "allowed: 1 to"),
        ({"samples": "21"}, "samples is 21; allowed"),
        ({"samples": True}, "samples is True"),
        ({"samples": 21.0}, "samples is 21.0"),
        ({"samples": None}, "samples is None"),
        ({"image": {"height": 24, "width": 32, "channels": 2}}, "channels is 2; allowed: 1, 3"),
        ({"image": {"height": 24, "width": 32, "channels": 4}}, "channels is 4"),
        ({"image": {"height": 4096, "width": 4096, "channels": 3}}, "more than 65536 patches"),
        ({"image": {"height": 10**9, "width": 32, "channels": 3}}, "height is 1000000000; allowed: 1 to 4096"),
        ({"image": []}, "image is"),
        ({"patch": 0}, "patch is 0"),
        ({"patch": 7}, "patch 7 does not divide 24 x 32"),
        ({"patch": 8}, "shape"),
        ({"checksum_group": 0}, "checksum_group is 0"),
        ({"checksum_group": 1000}, "shape"),
        ({"classes": []}, "0 classes"),
        ({"classes": ["a", "a", "b"]}, "occurs twice"),
        ({"classes": ["a", "b"]}, "label: sample 14 has 2; allowed: 0 to 1"),
        ({"classes": ["..", "b", "c"]}, "cannot be a folder name"),
        ({"classes": ["../../etc", "b", "c"]}, "cannot be a folder name"),
        ({"classes": ["a\0", "b", "c"]}, "cannot be a folder name"),
        ({"classes": ["", "b", "c"]}, "cannot be a folder name"),
        ({"classes": ["a" * 256, "b", "c"]}, "cannot be a folder name"),
        ({"classes": [1, "b", "c"]}, "not a string"),
        ({"fingerprint": "xyz"}, "fingerprint"),
        ({"version": 1}, "version"),
        ({"version": "1"}, "not MAJOR.MINOR"),
        ({"version": "1.1٣"}, "not MAJOR.MINOR"),
        ({"requires": []}, "requires does not list the transform 'pixel'"),
        ({"classes": ["a\x9b", "b", "c"]}, "cannot be a folder name"),
        ({"classes": ["字" * 86, "b", "c"]}, "cannot be a folder name"),
    ],
)
def test_forged_root(rebuild, changes, match):
    refused(rebuild(RGB, {"zarr.json": root(RGB, **changes)}), match)


@pytest.mark.spec("R-6", "R-7", "R-8")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": "2.0"}, "format version 2.0; this version of dqcodec reads 1.x"),
        ({"requires": ["pixel", "teleport"]}, "needs teleport, which this version of dqcodec does not know"),
        ({"transform": {"name": "wavelet"}}, "needs the transform 'wavelet'"),
    ],
)
def test_files_of_the_future(rebuild, changes, match):
    refused(rebuild(RGB, {"zarr.json": root(RGB, **changes)}), match, UnsupportedFeatureError)


@pytest.mark.spec("R-6")
def test_minor_versions_and_unknown_keys_are_read(rebuild):
    path = rebuild(RGB, {"zarr.json": root(RGB, version="1.7", weather="fine")})
    assert len(everything(path)[0]) == 21


@pytest.mark.spec("R-5")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' * 50_000,
        b'{"zarr_format": 3, "zarr_format": 3}',
        b'{"zarr_format": 2, "node_type": "group", "attributes": {}}',
        b'{"zarr_format": 3, "node_type": "group"}',
        b'{"zarr_format": 3, "node_type": "group", "attributes": {}}',
        b"1" * 100_000,
        b'{"zarr_format": NaN}',
        b'{"zarr_format": 1e999}',
        b'{"a": ' + b"[" * 65 + b"]" * 65 + b"}",
        b'{"zarr_format": 3, "node_type": "group", "attributes": {"dqz": {}}, "consolidated_metadata": {}}',
    ],
)
def test_broken_root(rebuild, data):
    refused(rebuild(RGB, {"zarr.json": data}), "zarr.json|dqz|attributes")


def test_a_root_beyond_its_limit(rebuild):
    refused(rebuild(RGB, {"zarr.json": b" " * (spec.MAX_ROOT + 1)}), "16777217 bytes; allowed: 16777216")


# ---- columns


def column(name, shape, dtype="uint8", **changes):
    value = json.loads(spec.array_json(shape, dtype, compressed=False))
    return {f"{name}/zarr.json": json.dumps({**value, **changes}).encode()}


@pytest.mark.spec("R-10", "R-11", "R-12")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"label/zarr.json": None, "label/c/0": None}, "the column label is missing"),
        ({"label/zarr.json": None}, "the member label/zarr.json is missing"),
        ({"label/c/0": None}, "the member label/c/0 is missing"),
        ({"payload/c/0": None}, "the payload is missing"),
        ({"zarr.json": None}, "zarr.json is missing"),
        (column("label", (22,)), "label: uint8 .22,.; allowed"),
        (column("label", (21, 1)), "label"),
        (column("label", (10**12,)), "label"),
        (column("label", (-1,)), "positive integers"),
        (column("label", (21,), "uint16"), "bytes"),
        (column("label", (21,), data_type="float64"), "data_type 'float64'"),
        (column("label", (21,), codecs=[{"name": "blosc"}]), "codecs"),
        (column("label", (21,), codecs=[]), "codecs"),
        (column("label", (21,), codecs="gzip"), "codecs"),
        (column("label", (21,), fill_value=1), "label"),
        (column("label", (21,), chunk_grid={"name": "regular", "configuration": {"chunk_shape": [7]}}), "one"),
        (column("payload", (5,)), "payload"),
        ({"label/zarr.json": b"{}"}, "shape"),
        ({**column("label", (21,)), "label/c/0": bytes(20)}, "label: 21 bytes cannot come from 20|expected 21"),
        ({**column("label", (21,)), "label/c/0": bytes([3] * 21)}, "label: sample 0 has 3; allowed: 0 to 2"),
        ({**column("length", (21,), "uint16"), "length/c/0": bytes(42)}, "length: sample 0 has 0"),
        ({**column("length", (21,), "uint16"), "length/c/0": b"\xff" * 42}, "the lengths add up to"),
        ({**column("mask", (21, 6)), "mask/c/0/0": bytes(126)}, "mask: sample 0 keeps no patch"),
        (column("label", (21,), storage_transformers=[{"name": "x"}]), "label"),
        ({"source_index/zarr.json": None}, "source_index/zarr.json is missing"),
        ({"bin/zarr.json": None, "bin/c/0": None}, "come together"),
        ({**column("bins/size", (3, 3)), "bins/size/c/0/0": bytes(9)}, "bins/taken: not the samples"),
        ({**column("bins/taken", (3, 3)), "bins/taken/c/0/0": bytes(9)}, "bins/taken: not the samples"),
        ({**column("bits", (21,)), "bits/c/0": bytes([1] * 21)}, "bits: sample 0 has 1; allowed: 2 to 8"),
        (column("label", (21,), fill_value=False), "label"),
        (column("label", (21,), zarr_format=3.0), "label"),
        (column("label", (21,), storage_transformers=0), "label"),
        ({"bins/zarr.json": b"{}"}, "bins/zarr.json: not a Zarr v3 group"),
        ({**column("bins/size", (2, 3)), "bins/size/c/0/0": bytes(6)}, "does not fit 3 classes"),
        ({**column("bin", (21,)), "bin/c/0": bytes([3] * 21)}, "bin: sample 0 has 3; allowed: 0 to 2"),
    ],
)
def test_forged_columns(rebuild, changes, match):
    refused(rebuild(RGB, changes), match)


@pytest.mark.spec("R-12")
def test_mask_bits_after_the_last_patch(rebuild, tmp_path):
    """GREY has 2 x 2 patches: four bits of each byte are unused."""
    mask = np.full((15, 1), 0b0001_1111, np.uint8)
    refused(rebuild(GREY, {**column("mask", (15, 1)), "mask/c/0/0": mask.tobytes()}), "bits after the last one")


@pytest.mark.spec("R-10")
@pytest.mark.parametrize("size", [20, 22, 10**8])
def test_gzip_streams_of_another_size(rebuild, size):
    about = {"label/zarr.json": spec.array_json((21,), "uint8", compressed=True)}
    refused(
        rebuild(RGB, {**about, "label/c/0": gzip.compress(bytes(size))}),
        "label: (the gzip stream does not hold 21|21 bytes cannot come from)",
    )


@pytest.mark.spec("R-10")
def test_two_gzip_streams_and_a_broken_one(rebuild):
    about = {"label/zarr.json": spec.array_json((21,), "uint8", compressed=True)}
    good = gzip.compress(bytes(k // 7 for k in range(21)))
    assert len(everything(rebuild(RGB, {**about, "label/c/0": good}))[0]) == 21
    for bad in (good + good, good[:-1], good[:-8] + bytes(8), b"x" * 30):
        refused(rebuild(RGB, {**about, "label/c/0": bad}), "label: ")


@pytest.mark.spec("R-10", "R-12")
def test_a_column_that_claims_gigabytes(rebuild):
    """65,536 patches a sample in a mask that unpacks to 2 GB: refused before anything is unpacked."""
    n = 20_000
    shape = {"height": 4096, "width": 4096, "channels": 1}
    changes = {
        "zarr.json": root(GREY, samples=n, image=shape, patch=16, checksum_group=n),
        "payload/c/0": bytes(n),
        **column("payload", (n,)),
        "mask/zarr.json": spec.array_json((n, 8192), "uint8", compressed=True),
        "mask/c/0/0": gzip.compress(bytes(n * 8192), 9),
        **column("length", (n,), "uint16"),
        "length/c/0": np.ones(n, "<u2").tobytes(),
        **column("checksum", (1,), "uint32"),
        "checksum/c/0": bytes(4),
    }
    for name in ("label", "bits", "scale"):
        changes |= {**column(name, (n,)), f"{name}/c/0": bytes(n)}
    refused(rebuild(GREY, changes), "mask: 163840000 bytes cannot come from")


# ---- payloads with the right checksum


@pytest.mark.spec("R-11", "R-16")
def test_forged_payloads(tmp_path):
    """Random payloads with right checksums: the sample is refused, or decodes within its bounds."""
    from dqcodec.container.writer import Writer

    rng = np.random.default_rng(0)
    path = tmp_path / "x.dqz"
    n = 300
    with Writer(path) as writer:
        for _ in range(n):
            payload = rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8)
            payload[0] = rng.integers(0, 2)
            writer.append(payload.tobytes())
        columns = {"label": np.zeros(n, int), "bits": rng.integers(2, 9, n), "scale": rng.integers(0, 256, n)}
        writer.finish(spec.Header(0, 4, 4, 3, 2, 1, ("a",)), columns)
    refusals = 0
    with dqcodec.open(path) as file:
        for index in range(n):
            try:
                image, _ = file[index]
            except FormatError as error:
                refusals += 1
                assert error.sample == index
                assert f"sample {index}: " in str(error)
            else:
                assert image.shape == (3, 4, 4)
    assert refusals > n // 2


def scores(*names, values=(0.5, -2.0, np.nan)):
    """Members of the columns bins/NAME."""
    members = {}
    for name in names:
        members |= column(f"bins/{name}", (len(values),), "float32")
        members[f"bins/{name}/c/0"] = np.array(values, "<f4").tobytes()
    return members


@pytest.mark.spec("R-10", "R-11")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (scores("rs", "ds"), "bins/rs, bins/ds, bins/is come together"),
        (scores("is"), "come together"),
        (scores("rs", "ds", "is", values=(1, 2)), "bins/rs: .2,. or infinite; expected .3,., finite or NaN"),
        (scores("rs", "ds", "is", values=(1, np.inf, 2)), "bins/rs: .3,. or infinite"),
        (scores("rs", "ds", "is") | column("bins/rs", (3,), "float64"), "data_type 'float64'; allowed: uint8"),
        (scores("rs", "ds", "is") | column("bins/rs", (3,), "uint32"), "bins/rs: uint32 .3,.; allowed: float32"),
        (column("label", (21,), "float32"), "label: float32 .21,.; allowed: uint8"),
        (
            scores("rs", "ds", "is")
            | {f"{name}{end}": None for name in ("bin", "bins/size", "bins/taken") for end in ("/zarr.json", "/c/0")}
            | {"bins/size/c/0/0": None, "bins/taken/c/0/0": None},
            "come together, and with bin",
        ),
    ],
)
def test_damaged_scores(rebuild, changes, match):
    path = rebuild(RGB, changes)
    refused(path, match)
    with pytest.raises(spec_reader.SpecError):
        spec_reader.read(path)


def test_good_scores(rebuild, encoded):
    """NaN is one; both readers see the same."""
    for path in (rebuild(RGB, scores("rs", "ds", "is")), encoded):
        with dqcodec.open(path) as file:
            found = {name: file.reader.columns[f"bins/{name}"] for name in ("rs", "ds", "is")}
            images = file.images(range(len(file)), fill="none")
        other = spec_reader.read(path)
        for name, values in found.items():
            np.testing.assert_array_equal(values, other["columns"][f"bins/{name}"])
        np.testing.assert_array_equal(images, other["images"])
