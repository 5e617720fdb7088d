"""Files of the transform "dct" against section 7 of the specification, as the reader made from it alone decodes them.

Beside files of the encoder there are forged ones: their streams hold random symbols, so that all of them occur.
"""

import hashlib
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import spec_reader
from make_golden import image as synthetic
from PIL import Image

import dqcodec
from dqcodec.codec import dct
from dqcodec.container import spec

SPEC = Path(__file__).parent.parent.parent / "spec" / "dqz-1.md"
CONTEXTS = {16: (6916, 318), 8: (5408, 284), 4: (1248, 250)}


# ---- forging


def column(name, values, dtype="uint8"):
    """The two members of a column."""
    values = np.asarray(values, dtype)
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    about = spec.array_json(values.shape, dtype, compressed=False)
    return {f"{name}/zarr.json": about, f"{name}/c" + "/0" * values.ndim: data}


class Author(spec_reader.Stream):
    """Stands in for a coded stream: its symbols and bits are chosen at random, and `payload` codes them.

    wild: share of symbols that are drawn evenly, the others as frequent as the table says; script: the values, first
    to last, instead.
    """

    def __init__(self, rng, wild=0.0, script=()):
        super().__init__(memoryview(b"\1"))
        self.rng, self.wild, self.script, self.taken = rng, wild, list(script)[::-1], []

    def raw(self, count):
        value = self.script.pop() if self.script else int(self.rng.integers(1 << count))
        self.taken.append((None, count, value))
        return value

    def symbol(self, buckets):
        frequencies = np.array([own for _, own, *_ in buckets])
        odds = (frequencies > 0) if self.rng.random() < self.wild else frequencies
        value = self.script.pop() if self.script else int(self.rng.choice(32, p=odds / odds.sum()))
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


def tables_of(unit, channels=3):
    """The built-in tables, as columns of a file."""
    names, kinds = ("context", "coefficient", "side", "rotation"), ("uint8", "uint16", "uint16", "uint8")
    arrays = [array.astype(kind) for array, kind in zip(spec_reader.built_in(unit), kinds, strict=True)]
    return dict(zip(names, arrays, strict=True)) if channels == 3 else dict(zip(names[:3], arrays, strict=False))


def columns_of(payloads):
    """The columns of a payload, with right checksums."""
    members = column("payload", np.frombuffer(b"".join(payloads), np.uint8))
    members |= column("length", [len(data) for data in payloads], "uint32")
    return members | column("checksum", [zlib.crc32(data) for data in payloads], "uint32")


def forge(path, shape, patch, transform, samples, mask=None, tables=None, q=None, seed=0, **author):
    """Write a file whose samples are random streams, and return their payloads."""
    rng = np.random.default_rng(seed)
    channels, height, width = shape
    unit = transform["unit"]
    entries = {"dependent": True, "offset": [9, -6, -2], "tables": "file" if tables else "default-3"}
    dqz = {
        "version": "1.0",
        "requires": ["dct"],
        "samples": samples,
        "image": {"height": height, "width": width, "channels": channels},
        "patch": patch,
        "transform": {"name": "dct", **entries, "filter": "filter-1", **transform},
        "checksum_group": 1,
        "classes": ["a"],
        "fingerprint": "0" * 64,
    }
    root = {"zarr_format": 3, "node_type": "group", "attributes": {"dqz": dqz}}
    members = {"zarr.json": json.dumps(root).encode()}
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
            there = mask[n].reshape(-1, width // patch).repeat(patch // unit, 0).repeat(patch // unit, 1)
        stream = Author(rng, **author)
        spec_reader.DctSample(stream, dqz["transform"], known, there, channels)
        payloads.append(stream.payload())
    members |= columns_of(payloads) | column("label", [0] * samples) | column("bits", [4] * samples)
    members |= column("scale", rng.integers(0, 256, samples) if q is None else [q] * samples)
    if channels == 3:
        members |= column("colour", rng.integers(0, len(known.rotation), samples))
    if mask is not None:
        members |= column("mask", np.packbits(mask, axis=1, bitorder="little"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return payloads


def altered(path, **changes):
    """The root with entries of `transform` replaced, or left out (...)."""
    with zipfile.ZipFile(path) as archive:
        root = json.loads(archive.read("zarr.json"))
    entries = {**root["attributes"]["dqz"]["transform"], **changes}
    root["attributes"]["dqz"]["transform"] = {key: value for key, value in entries.items() if value is not ...}
    return {"zarr.json": json.dumps(root).encode()}


# ---- comparing


def pixels(path, fill="none"):
    """All images of a file, as the package decodes them."""
    with dqcodec.open(path, filter=True) as file:
        return file.images(range(len(file)), fill=fill)


def agree(path):
    """R-32: both readers decode alike, to one grey level; most pixels are exactly the same. Returns the images.

    With a filter one cell of 4 x 4 pixels may differ by more: it may have got other weights (end of section 7.8).
    """
    found, read = pixels(path), spec_reader.read(path)
    expected, filtered = read["images"], read["root"]["transform"]["filter"] != "none"
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    cells = {(n, y // 4, x // 4) for n, _, y, x in np.argwhere(difference > 1).tolist()}
    assert len(cells) <= filtered
    assert (difference > 0).sum() <= 1e-3 * difference.size + 16 * found.shape[1] * len(cells)
    return found


def refused(path, match):
    """Both readers refuse the file, the package with these words."""
    with pytest.raises(spec_reader.SpecError):
        spec_reader.read(path)
    with pytest.raises(dqcodec.FormatError, match=match):
        pixels(path)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two RGB images of 16 x 16, tables in the file; read only."""
    path = tmp_path_factory.mktemp("forged") / "small.dqz"
    forge(path, (3, 16, 16), 16, {"unit": 16}, 2, tables=tables_of(16), q=40)
    return path


# ---- files of the encoder


@pytest.mark.spec("R-27", "R-29", "R-30", "R-31", "R-32")
@pytest.mark.parametrize(
    ("channels", "size", "patch", "options", "noise"),
    [
        (3, 32, 4, {}, 20),
        (3, 32, 32, {"bits": 1}, 20),
        (3, 40, 8, {"bits": 8, "effort": "fast"}, 256),
        (3, 33, 11, {"bits": 5}, 20),
        (1, 48, 16, {"effort": "fast"}, 20),
        (1, 48, 16, {"bits": 6}, 20),
        (1, 37, 37, {"bits": 8}, 256),
    ],
)
def test_files_of_the_encoder(tmp_path, channels, size, patch, options, noise):
    rng = np.random.default_rng(0)
    (tmp_path / "source" / "a").mkdir(parents=True)
    for k in range(6):
        picture = synthetic(k, size, size, channels).astype(int) + rng.integers(0, noise, (size, size, channels))
        picture = np.clip(picture - noise // 2, 0, 255).astype(np.uint8)
        Image.fromarray(picture.squeeze()).save(tmp_path / "source" / "a" / f"{k}.png")
    options = {"keep": 1, "drop": 0, "transform": "dct", "bits": 4, "patch": patch, **options}
    dqcodec.encode(tmp_path / "source", tmp_path / "x.dqz", dqcodec.EncodeOptions(**options))
    found = agree(tmp_path / "x.dqz")
    assert found.shape == (6, channels, size, size)
    assert found.std() > 10
    assert spec_reader.fingerprint(tmp_path / "x.dqz") == spec_reader.read(tmp_path / "x.dqz")["root"]["fingerprint"]


# ---- random streams


@pytest.mark.spec("R-29", "R-30", "R-31", "R-32", "R-40")
@pytest.mark.parametrize(
    ("wild", "weights"), [(0, "filter-1"), (0.02, "filter-1"), (1, "filter-1"), (0.02, "none"), (1, "none")]
)
@pytest.mark.parametrize("dependent", [True, False])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("unit", [16, 8, 4])
def test_random_streams(tmp_path, unit, channels, dependent, wild, weights):
    """wild: how often a symbol is as likely as any other, escapes among them."""
    seed = unit + channels + dependent
    transform = {"unit": unit, "dependent": dependent, "offset": [31 - unit, -31, unit], "filter": weights}
    q = [100, 70, 0][[0, 0.02, 1].index(wild)]
    forge(tmp_path / "x.dqz", (channels, 21, 35), 7, transform, 2, q=q, wild=wild, seed=seed)
    assert len(np.unique(agree(tmp_path / "x.dqz"))) > 10


@pytest.mark.spec("R-32")
@pytest.mark.parametrize("channels", [3, 1])
def test_every_scale(tmp_path, channels):
    forge(tmp_path / "x.dqz", (channels, 8, 8), 8, {"unit": 8}, 60)
    assert len(np.unique(agree(tmp_path / "x.dqz"))) > 10


@pytest.mark.spec("R-27")
def test_payloads_of_every_length(tmp_path):
    """The first bytes are the state; how many follows from the length."""
    payloads = forge(tmp_path / "x.dqz", (1, 4, 4), 4, {"unit": 4}, 300, q=100, wild=0.3)
    assert {len(payload) for payload in payloads} >= set(range(2, 12))
    agree(tmp_path / "x.dqz")


@pytest.mark.spec("R-27", "R-28")
def test_a_payload_of_one_byte(tmp_path, rebuild):
    """x = 1 gives the symbol 0 where its frequency is above 1, and stays 1: every level is 0, every pixel 128."""
    forge(tmp_path / "x.dqz", (1, 16, 16), 16, {"unit": 4}, 1, q=100)
    assert (agree(rebuild(tmp_path / "x.dqz", columns_of([b"\1"]))) == 128).all()


@pytest.mark.spec("R-31")
@pytest.mark.parametrize("odd", [0, 1])
def test_the_dc_is_clipped(tmp_path, odd):
    """Nine steps of 131,079 up (or down), 2^20 at most, then back by exactly 2^20: grey, only if it was clipped."""
    top = [0, 25, 20 + odd, 65535]  # high 0, an escape of the last class, 16 bits more: 72 + 64 * 1023 + 65535
    back = [0, 25, 21 - odd, 65535 - 7]  # 131,072
    transform = {"unit": 4, "dependent": False, "filter": "none"}
    forge(tmp_path / "x.dqz", (1, 4, 68), 4, transform, 1, q=80, script=[*top * 9, *back * 8])
    found = agree(tmp_path / "x.dqz")[0, 0, 0]
    assert found[0] == 255 * (1 - odd)
    assert found[-1] == 128


# ---- dropped patches


def mask_of(rng, samples, patches):
    """Some patches of each sample, at least one."""
    mask = rng.random((samples, patches)) < 0.5
    mask[:, 1] = True
    return mask


@pytest.mark.spec("R-30", "R-33", "R-40")
@pytest.mark.parametrize("weights", ["filter-1", "none"])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("patch", "unit"), [(4, 4), (12, 4), (8, 8), (16, 16), (32, 16)])
def test_dropped_patches(tmp_path, channels, patch, unit, weights):
    path, shape = tmp_path / "x.dqz", (channels, 3 * patch, 2 * patch)
    mask = mask_of(np.random.default_rng(patch), 3, 6)
    forge(path, shape, patch, {"unit": unit, "filter": weights}, 3, mask=mask, q=60, wild=0.005)
    found = agree(path)
    np.testing.assert_array_equal(spec_reader.read(path)["mask"], mask)
    kept = mask.reshape(3, 1, 3, 2).repeat(patch, 2).repeat(patch, 3)
    assert (found[~np.broadcast_to(kept, found.shape)] == 0).all()


@pytest.mark.spec("R-33")
def test_dropped_patches_are_filled_with_the_mean(tmp_path):
    """The kept pixels stay; the others are the mean of their channel, rounded half up."""
    path = tmp_path / "x.dqz"
    mask = mask_of(np.random.default_rng(1), 3, 12)
    forge(path, (3, 32, 24), 8, {"unit": 8}, 3, mask=mask, q=60, wild=0.005)
    plain, filled = pixels(path), pixels(path, "mean")
    for n in range(3):
        kept = mask[n].reshape(4, 3).repeat(8, 0).repeat(8, 1)
        for channel in range(3):
            values = plain[n, channel][kept].astype(int)
            np.testing.assert_array_equal(filled[n, channel][kept], values)
            mean = (2 * values.sum() + values.size) // (2 * values.size)
            assert (filled[n, channel][~kept] == mean).all()


# ---- the filter


@pytest.mark.spec("R-40")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("unit", [16, 8, 4])
def test_flat_images_stay_flat(tmp_path, unit, channels, masked):
    """Nothing comes from outside of the image or from dropped patches. Of 3 x 3 patches the first row and column stay.

    The script: whole blocks that have only a DC, 5, 3 and -3 in the first unit and then as predicted.
    """
    levels = [5, 3, 13][:channels]
    begin, last = {16: ([1], [0, 0]), 8: ([0], [0, 0]), 4: ([], [0])}[unit]
    mask = np.array([[1, 1, 1, 1, 0, 0, 1, 0, 0]], bool) if masked else np.ones((1, 9), bool)
    script = begin + [value for level in levels for value in (*last, level)]
    script += (begin + [*last, 0] * channels) * (4 * int(mask.sum()) - 1)
    shape, path = (channels, 6 * unit, 6 * unit), tmp_path / "x.dqz"
    forge(path, shape, 2 * unit, {"unit": unit}, 1, mask=mask if masked else None, q=80, script=script)
    found = agree(path)[0]
    kept = mask.reshape(3, 3).repeat(2 * unit, 0).repeat(2 * unit, 1)
    for channel in found:
        assert len(np.unique(channel[kept])) == 1
    assert (found[:, 0, 0] != 128).any()


@pytest.mark.spec("R-40")
@pytest.mark.parametrize(("unit", "count"), [(16, 204), (8, 192), (4, 85)])
def test_every_row_of_weights(tmp_path, monkeypatch, unit, count):
    """From flat to noise, at all scales. The other rows occur in no file: a is greater than b only with a direction.

    Small blocks of chroma also lack some activities, and blocks of 4 x 4 the distance 2.
    """
    rows, seen = spec_reader.DctSample.rows, set()

    def recorded(sample, plane, *arguments):
        found = rows(sample, plane, *arguments)
        seen.update(found[0].ravel().tolist())
        return found

    monkeypatch.setattr(spec_reader.DctSample, "rows", recorded)
    for seed, (q, wild) in enumerate([(0, 0), (0, 0.5), (20, 0.1), (40, 0), (60, 0.02), (90, 0), (110, 0.1), (200, 0)]):
        forge(tmp_path / "x.dqz", (3, 13 + 4 * unit, 14 + 6 * unit), 1, {"unit": unit}, 2, q=q, wild=wild, seed=seed)
        agree(tmp_path / "x.dqz")
    assert len(seen) == count


@pytest.mark.spec("R-40")
def test_the_built_in_weights_are_those_of_the_specification():
    text = SPEC.read_text()
    for unit in CONTEXTS:
        data = (Path(dct.__file__).parent / f"filter-1-{unit}.bin").read_bytes()
        assert f"    {unit}  {hashlib.sha256(data).hexdigest()}\n" in text
        assert len(data) == 261 * 6


@pytest.mark.spec("R-40")
def test_without_a_filter_the_pixels_are_others(rebuild, small):
    assert (agree(rebuild(small, altered(small, filter="none"))) != agree(small)).any()


@pytest.mark.spec("R-40")
@pytest.mark.parametrize("name", ["filter-2", "", "filter-1 ", "../filter-1", "Filter-1", "None"])
def test_unknown_filters(rebuild, small, name):
    refused(rebuild(small, altered(small, filter=name)), "filter")


# ---- what is refused


@pytest.mark.spec("R-24")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        *(({"unit": value}, "unit is") for value in (0, 12, 32, "16", 16.0, True, None, ...)),
        *(({"dependent": value}, "dependent is") for value in (0, 1, None, ...)),
        *(({"offset": value}, "offset is") for value in ([9, -6], [0, 0, 0, 0], [32, 0, 0], [0, -32, 0], None, ...)),
        *(({"offset": value}, "offset is") for value in ([1.0, 0, 0], [True, 0, 0], [None, 0, 0], "abc")),
        *(({"tables": value}, "tables is") for value in (None, 1, ...)),
        *(({"filter": value}, "filter is") for value in (None, 1, False, ["filter-1"], ...)),
    ],
)
def test_entries_of_the_transform(rebuild, small, changes, match):
    refused(rebuild(small, altered(small, **changes)), match)


@pytest.mark.spec("R-24")
def test_other_entries_of_the_transform_are_ignored(rebuild, small):
    np.testing.assert_array_equal(agree(rebuild(small, altered(small, weather="fine"))), pixels(small))


@pytest.mark.spec("R-24")
@pytest.mark.parametrize("unit", [8, 16])
def test_units_divide_the_patch_where_there_is_a_mask(tmp_path, rebuild, unit):
    path = tmp_path / "x.dqz"
    forge(path, (3, 24, 24), 12, {"unit": 4}, 2, mask=np.ones((2, 4), bool), q=40)
    agree(path)
    refused(rebuild(path, altered(path, unit=unit)), "unit")


def edited(name, place, value):
    """A table of the file `small` with other values."""
    table = tables_of(16)[name].copy()
    table[place] = value
    return column(f"tables/{name}", table, str(table.dtype))


def without(name, axes):
    """A column left out."""
    return {f"{name}/zarr.json": None, f"{name}/c" + "/0" * axes: None}


A, B = CONTEXTS[16]
K, M, R = (len(tables_of(16)[name]) for name in ("coefficient", "side", "rotation"))
EVEN = [256] * 16


@pytest.mark.spec("R-25")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (edited("context", 0, K), "tables/context: "),
        (edited("context", A - 1, K), "tables/context: "),
        (edited("context", A, M), "tables/context: "),
        (edited("context", -1, M), "tables/context: "),
        (column("tables/context", np.zeros(A + B - 1)), "tables/context: "),
        (column("tables/context", np.zeros(A + B + 1)), "tables/context: "),
        (column("tables/context", np.zeros(A + B), "uint16"), "tables/context: "),
        (edited("coefficient", 0, EVEN), "tables/coefficient: .* add up to 4096"),  # 4096 without the double ones
        (edited("coefficient", 0, [4096 - 18 - 6 + 1, *[1] * 15]), "tables/coefficient: .* add up to 4096"),
        (edited("coefficient", 0, [4096 - 18 - 5, *[1] * 9, 0, *[1] * 5]), "tables/coefficient: .* under 1"),
        (column("tables/coefficient", np.full((K, 15), 9), "uint16"), "tables/coefficient: "),
        (edited("side", M - 1, [*EVEN[:15], 255]), "tables/side: .* add up to 4096"),
        (edited("side", 0, [0, 512, *EVEN[:14]]), "tables/side: .* under 1"),
        (column("tables/side", np.full((M, 16), 256), "uint32"), "tables/side: "),
        (column("tables/side", np.full((257 - K, 16), 256), "uint16"), "more than 256"),
        (column("tables/rotation", np.zeros((257, 3))), "more than 256"),
        (column("tables/rotation", np.zeros((R, 4))), "tables/rotation: "),
        (without("tables/context", 1), "tables/context"),
        (without("tables/coefficient", 2), "tables/coefficient"),
        (without("tables/side", 2), "tables/side"),
        (without("tables/rotation", 2), "tables/rotation"),
        ({"tables/zarr.json": None}, "tables/zarr.json"),
        ({"tables/zarr.json": b"{}"}, "tables/zarr.json"),
    ],
)
def test_tables_of_the_file(rebuild, small, changes, match):
    refused(rebuild(small, changes), match)


@pytest.mark.spec("R-25")
def test_as_many_tables_as_are_allowed(rebuild, small):
    """256 distributions and 256 rotations; those at the end are in no use."""
    tables = tables_of(16)
    side = np.concatenate([tables["side"], np.full((256 - K - M, 16), 256)])
    rotation = np.concatenate([tables["rotation"], np.zeros((256 - R, 3))])
    changes = column("tables/side", side, "uint16") | column("tables/rotation", rotation)
    np.testing.assert_array_equal(agree(rebuild(small, changes)), pixels(small))


@pytest.mark.spec("R-25")
def test_a_grey_file_has_no_rotations(tmp_path, rebuild):
    path = tmp_path / "x.dqz"
    forge(path, (1, 16, 16), 16, {"unit": 8}, 2, tables=tables_of(8, 1), q=40)
    agree(path)
    refused(rebuild(path, column("tables/rotation", np.zeros((1, 3)))), "tables/rotation")
    refused(rebuild(path, column("colour", [0, 0])), "colour")


@pytest.mark.spec("R-26")
def test_the_built_in_tables_are_those_of_the_specification():
    text = SPEC.read_text()
    for unit, contexts in CONTEXTS.items():
        data = (Path(dct.__file__).parent / f"default-3-{unit}.bin").read_bytes()
        assert f"    {unit}  {hashlib.sha256(data).hexdigest()}\n" in text
        assert len(tables_of(unit)["context"]) == sum(contexts)


@pytest.mark.spec("R-26")
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("unit", [16, 8, 4])
def test_built_in_tables_decode_as_those_of_the_file(tmp_path, unit, channels):
    arguments = (channels, 24, 24), 8, {"unit": unit}, 2
    payloads = forge(tmp_path / "x.dqz", *arguments, q=40, wild=0.02)
    assert payloads == forge(tmp_path / "y.dqz", *arguments, q=40, wild=0.02, tables=tables_of(unit, channels))
    np.testing.assert_array_equal(agree(tmp_path / "x.dqz"), agree(tmp_path / "y.dqz"))


@pytest.mark.spec("R-26")
@pytest.mark.parametrize("name", ["default-2", "", "default-3 ", "../default-3"])
def test_unknown_tables(tmp_path, rebuild, name):
    forge(tmp_path / "x.dqz", (3, 16, 16), 16, {"unit": 16}, 1)
    refused(rebuild(tmp_path / "x.dqz", altered(tmp_path / "x.dqz", tables=name)), "built-in tables")


@pytest.mark.spec("R-26")
def test_built_in_tables_leave_no_column(rebuild, small):
    refused(rebuild(small, altered(small, tables="default-3")), "tables/context")


@pytest.mark.spec("R-26")
def test_colours_are_rotations(rebuild, small):
    agree(rebuild(small, column("colour", [0, R - 1])))
    refused(rebuild(small, column("colour", [0, R])), "colour: ")
    refused(rebuild(small, without("colour", 1)), "colour")


@pytest.mark.spec("R-27", "R-28")
def test_damaged_payloads(tmp_path, rebuild):
    """Right checksums: each reader refuses the sample where the other does, or decodes alike; no other sample."""
    path = tmp_path / "x.dqz"
    payload, good = forge(path, (3, 16, 16), 16, {"unit": 8}, 2, q=40, wild=0.01)
    expected, rng = pixels(path)[1], np.random.default_rng(0)
    damaged = [payload[:-1], payload[:-2], payload[2:], payload + b"\0", payload + b"\0\0", b"\0", b"\2", b"\0\1"]
    damaged += [b"\xff" * 4, b"\xff" * 5, bytes(300), b"\xff" * 300, *(rng.bytes(n) for n in range(1, 30))]
    for _ in range(40):
        flipped = bytearray(payload)
        flipped[rng.integers(len(flipped))] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    readable = 0
    for bad in damaged:
        changed = rebuild(path, columns_of([bad, good]))
        try:
            spec_reader.read(changed)
        except spec_reader.SpecError as error:
            assert "sample 0: " in str(error)
            with dqcodec.open(changed, filter=True) as file:
                with pytest.raises(dqcodec.FormatError, match="sample 0: the coded stream does not end") as caught:
                    file[0]
                assert caught.value.sample == 0
                np.testing.assert_array_equal(file.images([1], fill="none")[0], expected)
        else:  # raw bits may be any
            readable += 1
            agree(changed)
    assert readable <= 5
