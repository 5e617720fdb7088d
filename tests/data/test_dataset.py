import json
import multiprocessing
import pickle
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from torch.utils.data import DataLoader

import dqcodec
from dqcodec import ChecksumError, DQZDataset, DQZLoader, FormatError, OptionError
from dqcodec.models import checkpoints
from dqcodec.models.mae import MAE, MAEConfig
from dqcodec.patches import to_pixels

RGB = GOLDEN / "pixel-rgb" / "file.dqz"


@pytest.mark.parametrize("name", ["pixel-rgb", "pixel-grey", "pixel-large"])
@pytest.mark.parametrize(("fill", "tolerance"), [("mean", 0), ("none", 0), ("smooth", 1)])
def test_the_same_integers_as_the_reference(name, fill, tolerance):
    path = GOLDEN / name / "file.dqz"
    dataset = DQZDataset(path, fill=fill)
    with dqcodec.open(path) as file:
        expected = file.images(range(len(file)), fill)
        labels = file.label
    found = dataset.images(range(len(dataset)))
    assert found.dtype == torch.uint8
    np.testing.assert_allclose(found.numpy().astype(int), expected.astype(int), atol=tolerance)
    for index in (0, 7, len(dataset) - 1):
        image, target = dataset[index]
        np.testing.assert_allclose(image.numpy().astype(int), expected[index].astype(int), atol=tolerance)
        assert type(target) is int
        assert target == labels[index]


@pytest.mark.parametrize("name", ["dct-rgb", "dct-grey", "dct-dropped"])
def test_without_the_filter_images_are_those_of_a_file_that_has_none(name, rebuild):
    path = GOLDEN / name / "file.dqz"
    with zipfile.ZipFile(path) as archive:
        root = json.loads(archive.read("zarr.json"))
    root["attributes"]["dqz"]["transform"]["filter"] = "none"
    every = list(range(9))
    expected = DQZDataset(rebuild(path, {"zarr.json": json.dumps(root).encode()}), fill="none").images(every)
    dataset = DQZDataset(path, fill="none")
    assert torch.equal(dataset.images(every), expected)
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).images(every), expected)
    batch = next(iter(DataLoader(dataset.packed, 9)))
    assert torch.equal(dataset.collate(batch)[0], expected)
    assert torch.equal(next(iter(DQZLoader(dataset, 9, shuffle=False, device="cpu")))[0], expected)
    with dqcodec.open(path) as file:
        np.testing.assert_array_equal(file.images(every, "none"), expected.numpy())


@pytest.mark.parametrize("name", ["dct-rgb", "dct-grey", "dct-dropped"])
def test_with_the_filter_images_are_the_golden_ones(name):
    path, every = GOLDEN / name / "file.dqz", list(range(9))
    dataset = DQZDataset(path, fill="none", filter=True)
    expected = torch.from_numpy(np.load(path.with_name("expected.npz"))["images"][every])
    for images in (dataset.images(every), pickle.loads(pickle.dumps(dataset)).images(every)):
        assert (images.int() - expected.int()).abs().max() <= 1
    batch = next(iter(DataLoader(dataset.packed, 9)))
    assert torch.equal(dataset.collate(batch)[0], dataset.images(every))
    assert torch.equal(next(iter(DQZLoader(dataset, 9, shuffle=False, device="cpu")))[0], dataset.images(every))
    same = torch.equal(DQZDataset(path, fill="none").images(every), dataset.images(every))
    assert same == (name == "dct-grey")  # it has none


@pytest.mark.parametrize("fill", ["mean", "smooth", "none"])
def test_a_decoded_batch_can_be_finished_again(fill):
    dataset = DQZDataset(GOLDEN / "dct-dropped" / "file.dqz", fill=fill)
    batch = dataset.decode(range(9))
    first = dataset.finish(batch).clone()
    assert torch.equal(dataset.finish(batch), first)


def test_it_looks_like_image_folder():
    dataset = DQZDataset(RGB)
    assert len(dataset) == 21
    assert dataset.classes == ["cat", "größe", "snow dog"]
    assert dataset.class_to_idx == {"cat": 0, "größe": 1, "snow dog": 2}
    assert dataset.targets.tolist() == [k * 3 // 21 for k in range(21)]
    assert "21 samples, 3 classes" in repr(dataset)


def test_indices():
    dataset = DQZDataset(RGB)
    assert torch.equal(dataset[-1][0], dataset[20][0])
    assert torch.equal(dataset[np.int64(3)][0], dataset[torch.tensor(3)][0])
    for index in (21, -22):
        with pytest.raises(IndexError, match="of 21"):
            dataset[index]
    for index in (True, 1.9, "3", slice(3), [0, 1], np.bool_(True)):
        with pytest.raises(TypeError):
            dataset[index]
    with pytest.raises(TypeError, match="np.flatnonzero makes indices of a mask"):
        dataset.file.images(np.arange(21) == 2)
    images = [image for image, _ in dataset.__getitems__([5, -1, 5])]
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], dataset[20][0])
    assert dataset.__getitems__([]) == []


def test_transforms():
    dataset = DQZDataset(RGB, transform=lambda x: x.float().mean(), target_transform=lambda y: y * 10)
    mean, target = dataset[20]
    assert mean == DQZDataset(RGB)[20][0].float().mean()
    assert target == 20
    dataset.transform = None
    assert dataset[20][0].shape == (3, 24, 32)


def everything(dataset, **arguments):
    loader = DataLoader(dataset, batch_size=4, **arguments)
    return [
        (torch.cat([x for x, _ in epoch]), torch.cat([y for _, y in epoch])) for epoch in (list(loader), list(loader))
    ]


@pytest.mark.parametrize(
    ("workers", "start", "persistent"),
    [(0, None, False), (4, "fork", False), (4, "fork", True), (4, "spawn", True), (1, "forkserver", True)],
)
def test_in_a_data_loader_twice_around(workers, start, persistent):
    dataset = DQZDataset(RGB)
    dataset[0]  # open before the fork
    context = multiprocessing.get_context(start) if start else None
    arguments = {"num_workers": workers, "multiprocessing_context": context, "persistent_workers": persistent}
    for images, targets in everything(dataset, **arguments):
        assert torch.equal(images, dataset.images(range(21)))
        assert targets.tolist() == dataset.targets.tolist()


def test_shuffled_in_a_data_loader():
    dataset = DQZDataset(RGB)
    loader = DataLoader(dataset, 5, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(0))
    seen = torch.cat([x for x, _ in loader])
    rows = {row.numpy().tobytes() for row in seen}
    assert rows == {row.numpy().tobytes() for row in dataset.images(range(21))}


def test_pickles_as_a_path(tmp_path):
    path = shutil.copy(RGB, tmp_path / "a.dqz")
    dataset = DQZDataset(path)
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    again = pickle.loads(data)
    assert torch.equal(again.images(range(21)), dataset.images(range(21)))


def test_a_file_that_was_replaced_is_noticed(tmp_path):
    path = shutil.copy(RGB, tmp_path / "a.dqz")
    data = pickle.dumps(DQZDataset(path))
    shutil.copy(GOLDEN / "pixel-grey" / "file.dqz", path)
    with pytest.raises(FormatError, match=r"a\.dqz: replaced by another file while it was in use"):
        pickle.loads(data)[0]
    path.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)[0]


def test_an_open_dataset_survives_the_replacing_of_its_file(tmp_path):
    path = shutil.copy(RGB, tmp_path / "a.dqz")
    dataset = DQZDataset(path)
    expected = dataset.images(range(21))
    other = shutil.copy(GOLDEN / "pixel-grey" / "file.dqz", tmp_path / "b.dqz")
    other.replace(path)
    assert torch.equal(dataset.images(range(21)), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_named_across_processes(golden_copy, workers):
    dataset = DQZDataset(golden_copy)
    reader = dataset.file.reader
    data = bytearray(golden_copy.read_bytes())
    data[reader.members["payload/c/0"].start + int(reader.offsets[9])] ^= 1
    golden_copy.write_bytes(data)
    with pytest.raises(ChecksumError, match=r"copy\.dqz: sample 9: payload bytes"):
        list(DataLoader(DQZDataset(golden_copy), 4, num_workers=workers))


def kept_pixels(dataset):
    """bool (n, 3, H, W)"""
    header = dataset.file.reader.header
    mask = torch.from_numpy(dataset.file.mask(range(len(dataset))))
    return to_pixels(mask, header.grid, header.patch).expand(-1, 3, -1, -1)


def test_mae_fills_by_default(encoded):
    """What a file drops is predicted by the model that it names; kept patches are as the reference decodes them."""
    dataset, black = DQZDataset(encoded), DQZDataset(encoded, fill="none")
    assert dataset.file.mae == (checkpoints.built_in(4).sha256, "small-4-1")
    kept = kept_pixels(dataset)
    found, expected = dataset.images(range(len(dataset))), black.images(range(len(dataset)))
    assert torch.equal(found[kept], expected[kept])
    for fill in ("smooth", "mean", "none"):
        other = DQZDataset(encoded, fill=fill).images(range(len(dataset)))
        assert torch.equal(found[kept], other[kept])
        assert not torch.equal(found[~kept], other[~kept])


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_mae_in_workers(encoded, start):
    dataset = DQZDataset(encoded)
    expected = dataset.images(range(len(dataset)))  # the model is there before the workers start
    assert len(pickle.dumps(dataset)) < 2000
    context = multiprocessing.get_context(start)
    found = torch.cat([x for x, _ in DataLoader(dataset, 4, num_workers=2, multiprocessing_context=context)])
    assert (found.int() - expected.int()).abs().max() <= 1


def test_another_mae(encoded, tmp_path):
    path = tmp_path / "mae.safetensors"
    torch.manual_seed(0)
    model = MAE(MAEConfig(24, 4, 3, 32, 1, 2, 16, 1, 2)).eval()
    path.write_bytes(checkpoints.to_bytes(model))
    model = checkpoints.load(path).model
    expected = DQZDataset(encoded, mae=model).images(range(9))
    for source in (path, f"file:{path}"):
        assert torch.equal(DQZDataset(encoded, mae=source).images(range(9)), expected)
    assert not torch.equal(DQZDataset(encoded).images(range(9)), expected)
    again = pickle.loads(pickle.dumps(DQZDataset(encoded, mae=model)))
    assert torch.equal(again.images(range(9)), expected)
    with pytest.raises(OptionError, match="it is for images of 24 x 24 with patches of 4; these are 24 x 32"):
        DQZDataset(RGB, mae=path)


def test_where_nothing_is_dropped_no_model_is_loaded(monkeypatch):
    monkeypatch.setattr(checkpoints, "from_bytes", None)
    dataset = DQZDataset(GOLDEN / "pixel-grey" / "file.dqz")
    assert torch.equal(dataset.images([3]), DQZDataset(GOLDEN / "pixel-grey" / "file.dqz", fill="none").images([3]))


def test_a_model_that_is_not_here(encoded, rebuild):
    """A file may name weights that this machine does not have; it is not believed where to fetch them."""
    root = json.loads(zipfile.ZipFile(encoded).read("zarr.json"))
    for name in ("file:mine.safetensors", "hf:somebody/else"):
        root["attributes"]["dqz"]["mae"] = {"sha256": "0" * 64, "name": name}
        path = rebuild(encoded, {"zarr.json": json.dumps(root).encode()})
        with pytest.raises(OptionError, match=rf"wants the weights {name} with SHA-256 0000.*mae=\"file:PATH\""):
            DQZDataset(path)
        assert len(DQZDataset(path, fill="smooth").images(range(4))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter": "no"}, "filter: 'no'; expected True or False"),
        ({"fill": "median"}, "fill: 'median'; allowed: mae, smooth, mean, none"),
        ({"fill": "mean", "mae": "x.safetensors"}, 'only fill="mae" uses it'),
        ({"mae": "x.safetensors"}, "cannot read x.safetensors"),
        ({"device": "nonsense"}, "device: 'nonsense' is not to be had here; allowed: auto"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not to be had here"),
        ({"soft_labels": 1}, "soft_labels: 1; expected True or False"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(OptionError, match=message):
        DQZDataset(RGB, **arguments)


def test_another_device_is_refused_in_workers():
    """`meta` stands for any device that is not the CPU."""
    dataset = DQZDataset(RGB)
    dataset.device = torch.device("meta")
    loader = DataLoader(dataset, 4, num_workers=1)
    with pytest.raises(OptionError, match="meta cannot be used in DataLoader workers; set num_workers=0"):
        list(loader)


def test_it_trains():
    """A linear classifier tells the three classes of the golden file apart."""
    dataset = DQZDataset(RGB)
    torch.manual_seed(0)
    model = torch.nn.Linear(24 * 32 * 3, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(30):
        for x, y in DataLoader(dataset, 7, shuffle=True):
            loss = torch.nn.functional.cross_entropy(model((x.flatten(1).float() - 128) / 128), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x = dataset.images(range(21)).flatten(1).float()
    assert (model((x - 128) / 128).argmax(1).numpy() == dataset.targets).mean() > 0.9
