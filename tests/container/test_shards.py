import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import noisy_folder, write_index
from torch.utils.data import DataLoader

import dqcodec
from dqcodec import DQZDataset, DQZLoader, EncodeOptions, FormatError, OptionError, OutputError, encode
from dqcodec.container.shards import part_name
from dqcodec.inspection import info, verify
from dqcodec.stages.write import cut

COUNT = 40
LIMIT = 16_000


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return noisy_folder(tmp_path_factory.mktemp("photos"), COUNT, 1.0)


@pytest.fixture(scope="module")
def options():
    """Everything that a file may have: bins and scores, dropped patches, distances."""
    return EncodeOptions(keep=0.9, method="adq", drop=0.25, bins=3, bits="auto:4")


@pytest.fixture(scope="module")
def whole(photos, options, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "whole.dqz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqcodec.models.proxy.MIN_STEPS", 20)
        encode(photos, path, options)
    return path


@pytest.fixture(scope="module")
def shards(photos, options, tmp_path_factory):
    """Read only."""
    path = tmp_path_factory.mktemp("shards") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqcodec.models.proxy.MIN_STEPS", 20)
        result = encode(photos, path, replace(options, shard_size=LIMIT))
    assert result.bytes_out == sum(file.stat().st_size for file in path.iterdir())
    assert result.header.fingerprint == dqcodec.open(path).fingerprint
    assert result.kept == result.header.samples == len(dqcodec.open(path))
    return path


@pytest.fixture
def copy(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "copy")


@pytest.mark.spec("R-35")
def test_the_folder(shards, whole):
    names = sorted(path.name for path in shards.iterdir())
    count = len(names) - 1
    assert count >= 2
    assert names == ["index.json", *map(part_name, range(count))]
    sizes = [(shards / name).stat().st_size for name in names[1:]]
    assert max(sizes) <= LIMIT
    assert not [path for path in shards.parent.iterdir() if path != shards]
    index = json.loads((shards / "index.json").read_text())
    assert sum(part["samples"] for part in index["parts"]) == len(dqcodec.open(whole))
    for number in range(count):  # each is a file by itself
        assert verify(shards / part_name(number)).ok


def test_it_opens_as_one(shards, whole):
    with dqcodec.open(shards) as one, dqcodec.open(whole) as other:
        assert len(one) == len(other)
        assert one.shape == other.shape
        assert one.classes == other.classes
        for name in ("label", "bits", "scale", "bin", "source_index"):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()
        np.testing.assert_array_equal(one.mask(range(len(one))), other.mask(range(len(other))))
        order = np.random.default_rng(0).permutation(len(one)).tolist()
        np.testing.assert_array_equal(one.images(order), other.images(order))
        np.testing.assert_array_equal(one.images([-1, 0, 0]), other.images([-1, 0, 0]))
        assert one.mae == other.mae
    a, b = info(shards), info(whole)
    for name in ("samples", "classes", "per_class", "kept_patches", "widths", "bins", "mae", "encode", "source"):
        assert getattr(a, name) == getattr(b, name), name
    assert a.bytes == sum(path.stat().st_size for path in shards.iterdir())
    assert sum(a.members.values()) == a.bytes


def test_it_loads_as_one(shards, whole):
    """The same batches as from the one file, in a DataLoader too, and through a pickle."""
    one, other = DQZDataset(shards, fill="mean"), DQZDataset(whole, fill="mean")
    for a, b in zip(DQZLoader(one, 7), DQZLoader(other, 7), strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    expected = other.images(range(len(other)))
    assert torch.equal(torch.cat([x for x, _ in DataLoader(one, 7, num_workers=2)]), expected)
    assert torch.equal(pickle.loads(pickle.dumps(one)).images(range(len(one))), expected)


def test_a_target_size_counts_all_parts(photos, tmp_path):
    for target, shard, parts in ((40_000, 16_000, (3, 4, 5)), (40_000, 100_000, (1,))):
        path = tmp_path / f"{shard}"
        made = EncodeOptions(keep=1, drop=0, bits="fixed", target_size=target, shard_size=shard)
        result = encode(photos, path, made)
        assert 0.97 * target <= result.bytes_out <= target
        assert len(list(path.iterdir())) - 1 in parts
        assert verify(path).ok


def test_a_damaged_sample(copy):
    """Named with its part; skipped by its number in the whole."""
    reader = dqcodec.open(copy).reader
    part = reader.parts[1]
    path = copy / part_name(1)
    data = bytearray(path.read_bytes())
    data[part.members["payload/c/0"].start] ^= 1
    path.write_bytes(data)
    first = len(reader.parts[0])
    group = list(range(first, first + part.header.checksum_group))
    with pytest.raises(FormatError, match=rf"{part_name(1)}: sample 0: payload bytes") as caught:
        dqcodec.open(copy).images([0, first])
    assert caught.value.sample == first
    loader = DQZLoader(DQZDataset(copy, fill="mean"), 8, shuffle=False, on_error="skip")
    assert sum(len(x) for x, _ in loader) == len(loader.dataset) - len(group)
    assert loader.skipped == set(group)
    found = verify(copy)
    assert [index for index, _ in found.bad] == group


@pytest.mark.spec("R-35")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "index.json").unlink(), "copy: a folder without index.json, so no .dqz"),
        (lambda f: (f / part_name(1)).unlink(), "part-00001.dqz: missing, index.json names it; copy the whole folder"),
        (lambda f: shutil.copy(f / part_name(0), f / part_name(1)), "part-00001.dqz: another file than index.json"),
        (lambda f: (f / part_name(1)).write_bytes(b"x" * 100), "part-00001.dqz: no ZIP directory at the end"),
        (lambda f: (f / "index.json").write_text("{"), "index.json"),
        (lambda f: (f / "index.json").write_text("{}"), "not an index of .dqz parts of version 1"),
        (lambda f: (f / "index.json").write_text('{"dqz_shards": 1, "parts": []}'), "no parts"),
        (lambda f: (f / "index.json").write_text('{"dqz_shards": 1, "parts": [1]}'), "part 0 needs name, samples"),
        (lambda f: (f / "index.json").write_bytes(b" " * (5 << 20)), "5242880 bytes; allowed: 4194304"),
    ],
)
def test_damaged_folders(copy, damage, message):
    damage(copy)
    with pytest.raises(FormatError, match=message):
        dqcodec.open(copy)
    assert not verify(copy).ok


def edit(folder, change):
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.spec("R-35")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda i: i["parts"][0].update(name="../part-00000.dqz"),
            "part 0 is '../part-00000.dqz', expected part-00000",
        ),
        (lambda i: i["parts"].reverse(), "part 0 is 'part-0000"),
        (lambda i: i["parts"].pop(), "its fingerprint is not that of the parts"),
        (lambda i: i["parts"][0].update(samples=3), "another file than index.json names"),
        (lambda i: i["parts"][0].update(samples="3"), "part 0 needs name, samples and fingerprint"),
        (lambda i: i.update(dqz_shards=2), "version 1"),
    ],
)
def test_forged_indices(copy, change, message):
    edit(copy, change)
    with pytest.raises(FormatError, match=message):
        dqcodec.open(copy)


@pytest.mark.spec("R-35")
def test_parts_that_do_not_belong_together(photos, shards, tmp_path, quick_proxy):
    """Parts of two sets under an index that is right for them."""
    other = tmp_path / "other"
    encode(photos, other, EncodeOptions(keep=0.9, method="adq", drop=0.25, bins=3, bits="auto:5", shard_size=LIMIT))
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(shards / part_name(0), mixed / part_name(0))
    shutil.copy(other / part_name(1), mixed / part_name(1))
    write_index(mixed, 2)
    with pytest.raises(FormatError, match=r"part-00001\.dqz: it does not belong to part-00000\.dqz"):
        dqcodec.open(mixed)


def test_what_is_replaced(photos, copy, tmp_path):
    made = EncodeOptions(keep=1, drop=0, shard_size=LIMIT)
    with pytest.raises(OutputError, match="exists; choose another name or add --overwrite"):
        encode(photos, copy, made)
    with pytest.raises(OutputError, match="is a folder"):
        encode(photos, copy, EncodeOptions(keep=1, drop=0), overwrite=True)
    before = dqcodec.open(copy).fingerprint
    encode(photos, copy, made, overwrite=True)
    assert dqcodec.open(copy).fingerprint != before
    assert len(dqcodec.open(copy)) == COUNT
    (copy / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match=r"holds mine\.txt, so it is not replaced"):
        encode(photos, copy, made, overwrite=True)
    file = tmp_path / "file.dqz"
    file.write_text("x")
    with pytest.raises(OutputError, match="is a file; shards are written into a folder"):
        encode(photos, file, made, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "file.dqz"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (100, "shard_size: 100 is too small; one sample alone makes a file of"),
        (0, "shard_size: 0; allowed: bytes above 0, as in 2GB, 500MiB, 120000$"),
        ("0.1x", "shard_size: '0.1x'; allowed: bytes above 0, as in 2GB, 500MiB, 120000$"),
    ],
)
def test_wrong_sizes(photos, tmp_path, size, message):
    with pytest.raises(OptionError, match=message):
        encode(photos, tmp_path / "out", EncodeOptions(keep=1, drop=0, shard_size=size))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_encode(photos, copy, tmp_path, number):
    """While parts are written: the old folder is whole, and nothing else opens."""
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    code = f"""
import os, signal, sys
import dqcodec.container.shards as shards
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
part = shards.ShardWriter.part
def killing(self, number):
    if number == 1:
        os.kill(os.getpid(), {int(number)})
    return part(self, number)
shards.ShardWriter.part = killing
dqcodec = __import__("dqcodec")
options = dqcodec.EncodeOptions(keep=1, drop=0, shard_size={LIMIT})
dqcodec.encode({str(photos)!r}, {str(copy)!r}, options, overwrite=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    left = [path for path in tmp_path.iterdir() if path != copy]
    if number == signal.SIGTERM:
        assert not left
    for folder in left:
        with pytest.raises(FormatError, match=r"a folder without index\.json"):
            dqcodec.open(folder)
        os.utime(folder, (0, 0))
    encode(photos, copy, EncodeOptions(shard_size=LIMIT), overwrite=True)
    assert [path for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_a_full_disk(photos, tmp_path):
    code = f"""
import resource
import dqcodec
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
options = dqcodec.EncodeOptions(keep=1, drop=0, shard_size={LIMIT})
try:
    dqcodec.encode({str(photos)!r}, {str(tmp_path / "out")!r}, options)
except dqcodec.OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    assert "cannot write" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_sample_that_is_alone_too_large():
    """Which one makes the largest file is not always the one with the longest payload."""
    sizes = np.array([50, 90, 80])
    for lengths in ([9, 8, 7], [7, 9, 8]):
        with pytest.raises(OptionError, match="shard_size: 85 is too small; one sample alone makes a file of 90 bytes"):
            cut(np.array(lengths), lambda rows: int(sizes[rows].sum()), 85)
        parts = cut(np.array(lengths), lambda rows: int(sizes[rows].sum()), 140)
        assert [rows.tolist() for rows in parts] in ([[0, 1], [2]], [[0], [1], [2]])


def test_an_index_that_is_not_quite_one(copy):
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(index, indent=7))
    with dqcodec.open(copy) as file:  # spaced otherwise, it is the same
        assert file.reader.size == sum(path.stat().st_size for path in copy.iterdir())
    for wrong in (True, 1.0, "1", 2):
        (copy / "index.json").write_text(json.dumps({**index, "dqz_shards": wrong}))
        with pytest.raises(FormatError, match="not an index of .dqz parts of version 1") as caught:
            dqcodec.open(copy)
        assert caught.value.path == str(copy)
        assert str(caught.value).startswith(str(copy))


def test_more_parts_than_a_process_may_open(shards):
    script = """if True:
        import resource, sys, dqcodec
        resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))
        try:
            dqcodec.open(sys.argv[1])
        except OSError as error:
            print(error)
    """
    child = subprocess.run([sys.executable, "-c", script, shards], capture_output=True, text=True)
    assert "parts stay open, and the system allows this process fewer files: raise that limit" in child.stdout, child
