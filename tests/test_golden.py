"""Golden files stay readable for ever, also by a reader that was written from the spec alone."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import spec_reader
from conftest import GOLDEN, assert_same

import dqcodec
from dqcodec.inspection import verify

FOLDERS = sorted(path.parent for path in GOLDEN.glob("*/expected.npz"))  # of images
TEXTS = sorted(path.parent for path in GOLDEN.glob("*/expected.txt"))
TESTS = Path(__file__).parent
SPEC = TESTS.parent / "spec" / "dqz-1.md"


def test_they_are_all_there_and_unchanged():
    lines = (GOLDEN / "SHA256SUMS").read_text().splitlines()
    stated = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {path for path in GOLDEN.rglob("*") if path.is_file() and path.name != "SHA256SUMS"}
    assert {path.relative_to(GOLDEN).as_posix() for path in files} == stated.keys()
    for name, digest in stated.items():
        assert hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest() == digest, name
    assert {folder.name for folder in FOLDERS} >= {
        "pixel-rgb",
        "pixel-grey",
        "pixel-large",
        "pixel-soft",
        "dct-rgb",
        "dct-dropped",
        "dct-grey",
    }
    assert {folder.name for folder in TEXTS} >= {"text"}
    assert {path.parent for path in GOLDEN.glob("*/file.dqz")} == {*FOLDERS, *TEXTS}


def assert_alike(found, expected, folder):
    """The same images; those of dct to one grey level (R-32)."""
    if folder.name.startswith("dct"):
        assert found.shape == expected.shape
        apart = np.abs(found.astype(int) - expected)
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3
    else:
        assert_same(found, expected)


@pytest.mark.spec("R-15", "R-18", "R-19", "R-21", "R-22")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_package_decodes_them(folder):
    expected = np.load(folder / "expected.npz")
    with dqcodec.open(folder / "file.dqz", filter=True) as file:
        everything = range(len(file))
        assert_alike(file.images(everything, fill="none"), expected["images"], folder)
        assert_same(file.mask(everything), expected["mask"])
    assert verify(folder / "file.dqz").ok


@pytest.mark.spec("R-15", "R-18", "R-19", "R-21", "R-23")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_reader_from_the_spec_decodes_them(folder):
    expected = np.load(folder / "expected.npz")
    found = spec_reader.read(folder / "file.dqz")
    assert_alike(found["images"], expected["images"], folder)
    assert_same(found["mask"], expected["mask"])
    assert spec_reader.fingerprint(folder / "file.dqz") == found["root"]["fingerprint"]


@pytest.mark.spec("R-41")
def test_soft_labels_are_distributions_over_all_classes():
    path = GOLDEN / "pixel-soft"
    rows = [[0, 1, 0, 0], [0, 40 / 64, 24 / 64, 0], [5 / 64, 21 / 64, 5 / 64, 33 / 64], [0, 0, 0.5, 0.5]]
    rows += [[1 / 128, 63 / 64, 1 / 128, 0], [1 / 64, 31 / 64, 1 / 64, 31 / 64]]
    expected = np.array(rows, np.float32)
    with dqcodec.open(path / "file.dqz") as file:
        assert_same(file.soft_labels(range(6)), expected)
        assert_same(file.soft_labels([-1, 2]), expected[[5, 2]])
    assert_same(spec_reader.read(path / "file.dqz")["soft"].astype(np.float32), expected)
    assert_same(np.load(path / "expected.npz")["soft"], expected)


@pytest.mark.spec("R-36", "R-37", "R-38", "R-39")
@pytest.mark.parametrize("folder", TEXTS, ids=lambda folder: folder.name)
def test_the_package_decodes_records(folder):
    expected = (folder / "expected.txt").read_text().splitlines()
    with dqcodec.open(folder / "file.dqz") as file:
        assert [ascii(record) for record in file.records(range(len(file)))] == expected
        assert [ascii(file[k]) for k in range(len(file))] == expected
    assert verify(folder / "file.dqz").ok


@pytest.mark.spec("R-23", "R-36", "R-37", "R-38", "R-39")
@pytest.mark.parametrize("folder", TEXTS, ids=lambda folder: folder.name)
def test_the_reader_from_the_spec_decodes_records(folder):
    found = spec_reader.read(folder / "file.dqz")
    assert [ascii(record) for record in found["records"]] == (folder / "expected.txt").read_text().splitlines()
    assert spec_reader.fingerprint(folder / "file.dqz") == found["root"]["fingerprint"]
    with dqcodec.open(folder / "file.dqz") as file:
        assert found["columns"].keys() == file.reader.columns.keys()
        for name, column in file.reader.columns.items():
            np.testing.assert_array_equal(found["columns"][name], column)


@pytest.mark.spec("R-23")
def test_the_reader_from_the_spec_decodes_an_encoded_folder(encoded):
    found = spec_reader.read(encoded)
    with dqcodec.open(encoded) as file:
        assert_same(found["images"], file.images(range(len(file)), fill="none"))
        assert found["columns"].keys() >= {"bin", "source_index", "bins/size", "bins/taken", "mask"}
        for name, column in file.reader.columns.items():
            np.testing.assert_array_equal(found["columns"][name], column)
    assert spec_reader.fingerprint(encoded) == found["root"]["fingerprint"]


def everything(path):
    """All samples, as the package reads them."""
    with dqcodec.open(path) as file:
        return file.images(range(len(file))) if isinstance(file, dqcodec.DQZFile) else list(file)


@pytest.mark.parametrize("name", ["pixel-grey", "pixel-soft", "text"])
def test_both_readers_refuse_the_same_damage(tmp_path, name):
    """One flipped bit in every 13th byte: what one refuses to open, the other does too."""
    data = (GOLDEN / name / "file.dqz").read_bytes()
    path = tmp_path / "x.dqz"
    for place in range(0, len(data), 13):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        outcomes = []
        for read in (spec_reader.read, everything):
            try:
                read(path)
                outcomes.append("read")
            except (spec_reader.SpecError, dqcodec.FormatError):
                outcomes.append("refused")
        assert outcomes[0] == outcomes[1], place


def test_every_requirement_of_the_spec_has_a_test():
    stated = set(re.findall(r"\bR-\d+(?=[.:])", SPEC.read_text()))
    marked = set()
    for path in TESTS.rglob("test_*.py"):
        for arguments in re.findall(r"@pytest\.mark\.spec\((.*?)\)", path.read_text()):
            marked |= set(re.findall(r"R-\d+", arguments))
    assert len(stated) >= 23
    assert stated - {"R-14"} == marked - {"R-14"}  # R-14 reserves names


def test_the_reader_from_the_spec_is_independent():
    source = (TESTS / "spec_reader.py").read_text()
    imports = set(re.findall(r"^(?:from|import) (\w+)", source, re.M))
    assert "numpy" in imports
    assert not imports & {"dqcodec", "zarr", "torch"}
