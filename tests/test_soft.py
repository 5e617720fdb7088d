"""Soft labels: from a classifier through the file to the training loop."""

import gzip
import json
import os
import re
import shutil
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from conftest import GOLDEN, noisy_folder, write_index
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import dqcodec
from dqcodec import DQZDataset, DQZLoader, EncodeOptions, FormatError, OptionError, OutputError, encode
from dqcodec.container.reader import Reader
from dqcodec.container.shards import part_name
from dqcodec.container.spec import SHARES, array_json
from dqcodec.models import proxy
from dqcodec.soft import MOST, OWN, TEMPERATURE, largest, soften, spread
from dqcodec.stages.soften import check_source

COUNT, CLASSES = 40, 4
SOFT = GOLDEN / "pixel-soft" / "file.dqz"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty images of two classes, and one of each of two others."""
    root = noisy_folder(tmp_path_factory.mktemp("photos"), COUNT, 1.0)
    for name, number in (("c", 4), ("d", 9)):
        (root / name).mkdir()
        (root / name / "0.png").write_bytes((root / "ab"[number % 2] / f"{number:02d}.png").read_bytes())
    return root


@pytest.fixture(scope="module")
def shares():
    """Of all 42 images, in the order of the source: the same for any number of parts."""
    drawn = np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.5), COUNT + 2)
    drawn[0] = [1, 0, 0, 0]
    return drawn.astype(np.float32)


@pytest.fixture(scope="module")
def table(shares, tmp_path_factory):
    path = tmp_path_factory.mktemp("shares") / "shares.npy"
    np.save(path, shares)
    return str(path)


@pytest.fixture(scope="module")
def made(photos, table, tmp_path_factory):
    """With the shares of a file; read only."""
    path = tmp_path_factory.mktemp("made") / "soft.dqz"
    encode(photos, path, EncodeOptions(soft_labels=table))
    return path


def test_softened_logits():
    logits = np.random.default_rng(0).normal(0, 5, (2, 7, 5)).astype(np.float32)
    labels = np.arange(7) % 5
    found = soften(logits, labels)
    for n in range(7):
        both = [np.exp(view[n] / TEMPERATURE) / np.exp(view[n] / TEMPERATURE).sum() for view in logits]
        expected = OWN * np.eye(5)[labels[n]] + (1 - OWN) * (both[0] + both[1]) / 2
        np.testing.assert_allclose(found[n], expected, rtol=1e-6)
    assert np.isfinite(soften(np.array([[1e30, -1e30]], np.float32), np.array([1]))).all()


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9).filter(lambda row: sum(row) > 1e-3))
def test_what_is_stored_is_near(row):
    """The largest shares are lowered by less than one unit, and all of it is still a distribution."""
    exact = np.array([row]) / sum(row)
    classes, stored = largest(exact)
    found = spread(classes, stored, len(row))[0]
    assert found.dtype == np.float32
    assert found.sum() == pytest.approx(1, abs=1e-6)
    most = min(MOST, len(row) - 1)
    assert len(set(classes[0].tolist())) == most
    others = np.delete(exact[0], classes[0])
    assert exact[0, classes[0]].min() >= others.max()
    short = exact[0, classes[0]] - found[classes[0]]
    assert ((short > -1e-5) & (short < 1 / SHARES + 1e-5)).all()
    np.testing.assert_allclose(np.delete(found, classes[0]), (others.sum() + short.sum()) / len(others), atol=1e-5)


def test_shares_of_a_file_come_back(made, shares):
    with dqcodec.open(made) as file:
        expected = spread(*largest(shares.astype(np.float64)), CLASSES)
        order = file.source_index
        np.testing.assert_array_equal(file.soft_labels(range(len(file))), expected[order])
        np.testing.assert_array_equal(file.soft_labels([3, -1, 3]), expected[order[[3, -1, 3]]])
        assert json.loads(zipfile.ZipFile(made).read("zarr.json"))["attributes"]["dqz"]["encode"]["soft_labels"] == (
            "shares.npy"
        )
        with pytest.raises(IndexError, match="sample 42 of 42"):
            file.soft_labels([42])


def test_of_a_selection_they_are_those_of_its_samples(photos, table, shares, tmp_path, quick_proxy):
    encode(photos, tmp_path / "x.dqz", EncodeOptions(keep=0.5, drop=0.25, soft_labels=table))
    with dqcodec.open(tmp_path / "x.dqz") as file:
        expected = spread(*largest(shares.astype(np.float64)), CLASSES)
        np.testing.assert_array_equal(file.soft_labels(range(len(file))), expected[file.source_index])


def test_the_proxy_says_them(photos, tmp_path):
    """They are the softened logits of the proxy that the same seed trains, and tell the classes better than chance."""
    encode(photos, tmp_path / "x.dqz", EncodeOptions(soft_labels="proxy", seed=3))
    with dqcodec.open(tmp_path / "x.dqz") as file:
        from dqcodec.sources.folder import scan
        from dqcodec.sources.images import read

        folder = scan(photos)
        images = np.stack([read(lambda k=k: folder.open(k), "", 32, "squash", 3) for k in range(len(folder))])
        model = proxy.restore(proxy.train(images, folder.labels, CLASSES, torch.device("cpu"), 3), torch.device("cpu"))
        exact = soften(proxy.logits(model, images), folder.labels)[file.source_index]
        found = file.soft_labels(range(len(file)))
        assert np.abs(found - spread(*largest(exact), CLASSES)).max() < 0.04  # threads sum in another order
        assert (found[np.arange(len(file)), file.label] >= OWN - 1 / SHARES).all()


def test_every_way_of_loading_gives_them(made):
    dataset = DQZDataset(made, soft_labels=True)
    with dqcodec.open(made) as file:
        expected = torch.from_numpy(file.soft_labels(range(len(file))))
        labels = torch.from_numpy(file.label.astype(np.int64))
    image, target = dataset[5]
    assert (image.dtype, target.dtype) == (torch.uint8, torch.float32)
    assert torch.equal(target, expected[5])
    assert torch.equal(torch.cat([t for _, t in DataLoader(dataset, 16)]), expected)
    assert torch.equal(torch.cat([t for _, t in DataLoader(dataset, 16, num_workers=2)]), expected)
    packed = DataLoader(dataset.packed, 16, num_workers=2)
    assert torch.equal(torch.cat([dataset.collate(batch)[1] for batch in packed]), expected)
    assert torch.equal(torch.cat([t for _, t in DQZLoader(dataset, 16, shuffle=False)]), expected)
    assert dataset.targets.tolist() == labels.tolist()
    assert torch.equal(torch.cat([t for _, t in DQZLoader(made, 16, shuffle=False, device="cpu")]), labels)
    doubled = DQZDataset(made, soft_labels=True, target_transform=lambda target: 2 * target)
    assert torch.equal(doubled[1][1], 2 * expected[1])
    logits = torch.randn(len(expected), CLASSES)
    assert torch.isfinite(torch.nn.functional.cross_entropy(logits, expected))


def test_parts_have_them_too(photos, table, made, tmp_path):
    encode(photos, tmp_path / "out", EncodeOptions(soft_labels=table, shard_size=12_000))
    with dqcodec.open(tmp_path / "out") as parts, dqcodec.open(made) as whole:
        assert len(list((tmp_path / "out").iterdir())) > 2
        np.testing.assert_array_equal(parts.soft_labels(range(42)), whole.soft_labels(range(42)))


@pytest.mark.spec("R-35")
def test_parts_with_another_number_of_them(rebuild, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    one = {"soft/class": np.ones((6, 1), np.uint8), "soft/share": np.ones((6, 1), np.uint8)}
    (folder / part_name(0)).write_bytes(SOFT.read_bytes())
    (folder / part_name(1)).write_bytes(rebuild(SOFT, members(one)).read_bytes())
    write_index(folder, 2)
    with pytest.raises(FormatError, match=r"part-00001\.dqz: it does not belong to part-00000\.dqz"):
        dqcodec.open(folder)


@pytest.mark.parametrize("keep", [1.0, "auto"])
def test_a_target_size_counts_them(photos, table, tmp_path, keep):
    wanted = EncodeOptions(target_size=13_000, keep=keep, method="random", soft_labels=table)
    found = encode(photos, tmp_path / "x.dqz", wanted)
    assert 0.97 * 13_000 <= found.bytes_out <= 13_000
    assert dqcodec.open(tmp_path / "x.dqz").soft_labels([0]).shape == (1, CLASSES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "expected 42 rows"),
        (lambda rows: rows[:, :-1], "has 3 columns, the source 4 classes"),
        (lambda rows: np.where(np.arange(42)[:, None] == 1, 2 * rows, rows), "row 1, of a/02.png, is no distribution"),
        (lambda rows: rows - 1, "row 0, of a/00.png, is no distribution"),
        (lambda rows: np.full_like(rows, np.nan), "row 0, of a/00.png, is no distribution"),
        (lambda rows: rows.astype(str), "expected 42 rows of numbers"),
    ],
)
def test_files_that_do_not_fit(photos, shares, tmp_path, change, message):
    np.save(tmp_path / "x.npy", change(shares))
    with pytest.raises(OptionError, match=f"soft_labels: .*{re.escape(message)}"):
        encode(photos, tmp_path / "x.dqz", EncodeOptions(soft_labels=str(tmp_path / "x.npy")))
    assert not (tmp_path / "x.dqz").exists()


def test_what_cannot_be(photos, made, tmp_path):
    for wrong in ("file.txt", "", 3, True):
        with pytest.raises(OptionError, match=r"soft_labels: .*; allowed: proxy, FILE.npy"):
            encode(photos, tmp_path / "x.dqz", EncodeOptions(soft_labels=wrong))
    with pytest.raises(OptionError, match=r"soft_labels: .*nothing\.npy: No such file"):
        encode(photos, tmp_path / "x.dqz", EncodeOptions(soft_labels=str(tmp_path / "nothing.npy")))
    one = tmp_path / "one"
    (one / "only").mkdir(parents=True)
    (one / "only" / "0.png").write_bytes((photos / "a" / "00.png").read_bytes())
    found = encode(one, tmp_path / "x.dqz", EncodeOptions(soft_labels="proxy"))
    assert found.notes == ("no soft labels: they say how classes resemble each other, and there is one",)
    assert "proxy" not in found.seconds
    with pytest.raises(OptionError, match=r"soft_labels: .*x\.dqz has none"):
        DQZDataset(tmp_path / "x.dqz", soft_labels=True)
    with pytest.raises(OptionError, match=r"soft_labels: .*file\.dqz has none; dqcodec encode --soft-labels"):
        DQZDataset(GOLDEN / "pixel-rgb" / "file.dqz", soft_labels=True)
    with pytest.raises(OptionError, match="soft_labels: 'proxy'; expected True or False"):
        DQZDataset(made, soft_labels="proxy")
    with pytest.raises(OptionError, match="soft_labels: .* holds records of text"):
        DQZDataset(GOLDEN / "text" / "file.dqz", soft_labels=True)


def test_the_output_may_not_replace_them(photos, table):
    with pytest.raises(OutputError, match="is both the output and soft_labels"):
        encode(photos, table, EncodeOptions(soft_labels=table), overwrite=True)
    assert np.load(table).shape == (COUNT + 2, CLASSES)


def test_predictions_that_say_nothing(photos, tmp_path, monkeypatch, quick_proxy):
    monkeypatch.setattr(proxy, "logits", lambda model, images: np.full((2, len(images), CLASSES), np.nan))
    found = encode(photos, tmp_path / "x.dqz", EncodeOptions(soft_labels="proxy"))
    assert "no soft labels: what the proxy says is not finite" in found.notes
    with pytest.raises(OptionError, match="has none"):
        dqcodec.open(tmp_path / "x.dqz").soft_labels([0])


def test_a_name_that_is_not_utf_8(photos, table, tmp_path):
    name = tmp_path / os.fsdecode(b"caf\xe9.npy")
    shutil.copy(table, name)
    encode(photos, tmp_path / "x.dqz", EncodeOptions(soft_labels=str(name)))
    assert dqcodec.open(tmp_path / "x.dqz").reader.header.extra["encode"]["soft_labels"] == "caf?.npy"


def test_memory_does_not_grow_with_the_classes(tmp_path):
    """Ten thousand rows of a thousand classes are 40 MB; they are read block by block."""
    rows, classes = 10_000, 1000
    path = tmp_path / "large.npy"
    np.save(path, np.full((rows, classes), 1 / classes, np.float32))
    tracemalloc.start()
    check_source(str(path), ["name"] * rows, classes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6


def members(columns):
    """Members of an archive that hold these columns."""
    found = {}
    for name, values in columns.items():
        found[f"{name}/zarr.json"] = array_json(values.shape, values.dtype.name, True)
        found[f"{name}/c/0/0"] = gzip.compress(values.tobytes())
    return found


def test_the_members_are_as_the_writer_makes_them(rebuild):
    with Reader(SOFT) as reader:
        columns = {name: np.array(reader.columns[name]) for name in ("soft/class", "soft/share")}
    assert dqcodec.open(rebuild(SOFT, members(columns))).soft_labels([1]).tolist() == [[0, 0.625, 0.375, 0]]


CLASS = np.array([[1, 0], [1, 2], [3, 1], [0, 1], [1, 3], [2, 0]], np.uint8)
SHARE = np.full((6, 2), 32, np.uint8)


def with_row(column, row, values):
    changed = column.copy()
    changed[row] = values
    return changed


@pytest.mark.spec("R-41")
@pytest.mark.parametrize(
    ("classes", "shares", "message"),
    [
        (None, SHARE, r"soft: \(6, 2\); expected two of 6 rows"),
        (CLASS, None, r"soft: \(6, 2\); expected two of 6 rows"),
        (CLASS[:, :1], SHARE, r"\(6, 1\) and \(6, 2\)"),
        (CLASS[:5], SHARE[:5], r"\(5, 2\) and \(5, 2\); expected two of 6 rows, for under 4 classes"),
        (np.tile(np.arange(4, dtype=np.uint8), (6, 1)), np.full((6, 4), 16, np.uint8), r"\(6, 4\)"),
        (with_row(CLASS, 3, [0, 4]), SHARE, "sample 3 has a class twice or above 3"),
        (with_row(CLASS, 4, [2, 2]), SHARE, "sample 4 has a class twice"),
        (CLASS, with_row(SHARE, 5, [33, 32]), "sample 5 has .*shares of more than 64"),
        (CLASS, with_row(SHARE, 0, [255, 255]), "sample 0 has .*shares of more than 64"),
        (CLASS, SHARE.astype(np.uint16), "soft/share: uint16"),
    ],
)
def test_forged_columns(rebuild, classes, shares, message):
    import spec_reader

    columns = {"soft/class": classes, "soft/share": shares}
    changes = {f"{name}/{rest}": None for name in columns for rest in ("zarr.json", "c/0/0")}
    changes |= members({name: values for name, values in columns.items() if values is not None})
    path = rebuild(SOFT, changes)
    with pytest.raises(FormatError, match=message):
        dqcodec.open(path)
    with pytest.raises(spec_reader.SpecError):
        spec_reader.read(path)


@pytest.mark.spec("R-36", "R-41")
def test_they_do_not_belong_to_records(rebuild):
    columns = {"soft/class": np.zeros((22, 1), np.uint8), "soft/share": np.zeros((22, 1), np.uint8)}
    group = {"soft/zarr.json": b'{"zarr_format": 3, "node_type": "group"}'}
    with pytest.raises(FormatError, match="the column soft/class does not belong to this file of the transform text"):
        dqcodec.open(rebuild(GOLDEN / "text" / "file.dqz", members(columns) | group))


def test_without_the_group(rebuild):
    with pytest.raises(FormatError, match="soft/zarr.json is missing"):
        dqcodec.open(rebuild(SOFT, {"soft/zarr.json": None}))
