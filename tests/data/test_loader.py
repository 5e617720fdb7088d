import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from torch.utils.data import DataLoader

import dqcodec
from dqcodec import ChecksumError, DQZDataset, DQZLoader, FormatError, OptionError
from dqcodec.data.order import permutation

RGB = GOLDEN / "pixel-rgb" / "file.dqz"
MEAN = DQZDataset(RGB, fill="mean")  # 21 samples, quick to decode
INDEX = {image.numpy().tobytes(): k for k, image in enumerate(MEAN.images(range(21)))}


def names(loader):
    """What a loader of MEAN hands out, batch by batch, as sample indices."""
    result = []
    for images, labels in loader:
        found = [INDEX[image.numpy().tobytes()] for image in images]
        assert labels.tolist() == MEAN.targets[found].tolist()
        result.append(found)
    return result


def epoch(seed, number, batch):
    order = permutation(21, seed, number).tolist()
    return [order[k : k + batch] for k in range(0, 21, batch)]


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (4, 1), (4, 9), (None, 4)])
def test_the_order_does_not_depend_on_threads(workers, prefetch):
    loader = DQZLoader(MEAN, 4, seed=5, workers=workers, prefetch=prefetch)
    assert [names(loader), names(loader)] == [epoch(5, 0, 4), epoch(5, 1, 4)]
    assert len(loader) == 6
    assert names(DQZLoader(MEAN, 4, shuffle=False, workers=workers)) == [
        [*range(k, min(k + 4, 21))] for k in range(0, 21, 4)
    ]


def test_whole_batches_only():
    loader = DQZLoader(MEAN, 4, drop_last=True)
    assert names(loader) == epoch(0, 0, 4)[:5]
    assert len(loader) == 5
    assert names(DQZLoader(MEAN, 22, drop_last=True)) == []


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("other", [1, 2, 3])
def test_resume_at_every_step(world, drop_last, other):
    """Stopped after each batch and gone on with in a new loader, on as many or another number of ranks."""

    def loaders(count):
        return [
            DQZLoader(MEAN, 2, seed=9, rank=r, world_size=count, drop_last=drop_last, workers=2) for r in range(count)
        ]

    def flat(parts):  # as the ranks' batches follow each other in the epoch's order
        return [i for step in zip(*parts, strict=True) for row in zip(*step, strict=True) for i in row]

    whole = flat([names(loader) for loader in loaders(world)])
    for steps in range(len(loaders(world)[0]) + 1):
        before = loaders(world)
        runs = [iter(loader) for loader in before]
        for _ in range(steps):
            for run in runs:
                next(run)
        states = {json.dumps(loader.state_dict()) for loader in before}
        assert len(states) == 1
        after = loaders(other)
        for loader in after:
            loader.load_state_dict(json.loads(*states))
        rest = flat([names(loader) for loader in after])
        order = permutation(21, 9, 0).tolist()
        left = order[min(steps * 2 * world, 21) :]
        if other == world:
            assert rest == whole[steps * 2 * world :]
        assert rest[: len(left)] == (left[: len(left) // (2 * other) * 2 * other] if drop_last else left)
        next_epoch = flat([names(loader) for loader in after])
        assert next_epoch[:16] == permutation(21, 9, 1).tolist()[:16]


def test_epochs():
    loader = DQZLoader(MEAN, 4)
    assert names(loader) == epoch(0, 0, 4)
    loader.set_epoch(7)
    assert names(loader) == epoch(0, 7, 4)
    assert names(loader) == epoch(0, 8, 4)  # without set_epoch, the next one
    loader.set_epoch(7)
    for _ in loader:
        break  # begun and left: the next is another epoch, as with a DataLoader
    assert loader.state_dict()["position"] == 4
    assert names(loader) == epoch(0, 8, 4)


def test_iterators_that_nobody_asks_are_no_epochs():
    """Lightning makes two for each epoch."""
    loader = DQZLoader(MEAN, 4)
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "position": 8})
    idle = iter(loader)
    assert names(loader) == epoch(0, 2, 4)[2:]
    idle = [idle, iter(loader)]
    assert names(loader) == epoch(0, 3, 4)
    assert loader.state_dict()["epoch"] == 4
    assert names(idle[0]) == epoch(0, 2, 4)[2:]  # asked late: its own epoch, and the state stays
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (4, 0)


def test_an_iterator_that_nobody_asks_leaves_the_state_alone():
    loader = DQZLoader(MEAN, 4)
    run = iter(loader)
    next(run)
    iter(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (0, 4)
    next(run)
    assert loader.state_dict()["position"] == 8
    late = iter(loader)
    loader.set_epoch(5)
    next(late)  # made before that was said
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (5, 0)
    assert names(loader) == epoch(0, 5, 4)


def test_the_state_is_what_was_handed_out():
    loader = DQZLoader(MEAN, 4, seed=2, workers=4, prefetch=6)
    assert loader.state_dict() == {
        "seed": 2, "epoch": 0, "position": 0, "shuffle": True, "fingerprint": loader.dataset.file.fingerprint
    }  # fmt: skip
    positions = [loader.state_dict()["position"] for _ in loader]
    assert positions == [4, 8, 12, 16, 20, 21]
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (1, 0)
    old = iter(loader)
    next(old)
    new = iter(loader)
    next(new)
    assert loader.state_dict()["epoch"] == 2
    list(old)  # an older iterator goes on with its own epoch and does not touch the state
    assert loader.state_dict() == {**loader.state_dict(), "epoch": 2, "position": 4}


def test_set_epoch_after_a_loaded_state():
    """The usual loop says set_epoch(e) at its top: the state's own epoch is gone on with, another begins anew."""
    state = {**DQZLoader(MEAN, 4).state_dict(), "epoch": 3, "position": 8}
    for number, expected in ((3, epoch(0, 3, 4)[2:]), (4, epoch(0, 4, 4))):
        loader = DQZLoader(MEAN, 4)
        loader.load_state_dict(state)
        loader.set_epoch(number)
        assert names(loader) == expected
    loader = DQZLoader(MEAN, 4)
    loader.load_state_dict({**state, "position": 21})  # taken at the last batch
    assert names(loader) == []
    assert names(loader) == epoch(0, 4, 4)


def test_a_transform_that_runs_dry_is_an_error():
    """StopIteration would end the epoch as if that were all."""
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(DQZLoader(MEAN, 4, transform=lambda images: next(iter(()))))


def test_padding_is_counted():
    assert [DQZLoader(MEAN, 4, rank=0, world_size=w).padded for w in (1, 2, 3, 4, 50)] == [0, 1, 0, 3, 29]
    assert DQZLoader(MEAN, 4, rank=0, world_size=2, drop_last=True).padded == 0
    assert [len(names(DQZLoader(MEAN, 4, rank=r, world_size=50))[0]) for r in (0, 21, 49)] == [1, 1, 1]


def test_transforms_see_batches_in_order():
    import torchvision.transforms.v2 as v2

    change = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomCrop(16), v2.ToDtype(torch.float32, scale=True)])
    found = []
    for workers in (1, 4):
        torch.manual_seed(0)
        found.append(list(DQZLoader(MEAN, 4, transform=change, workers=workers)))
    for (a, _), (b, _) in zip(*found, strict=True):
        assert a.shape[1:] == (3, 16, 16)
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["pixel-grey", "pixel-large"])
def test_other_files(name):
    path = GOLDEN / name / "file.dqz"
    dataset = DQZDataset(path, fill="mean")
    images = torch.cat([x for x, _ in DQZLoader(dataset, 4, shuffle=False)])
    assert torch.equal(images, dataset.images(range(len(dataset))))


def test_dct_and_mae(encoded_dct):
    dataset = DQZDataset(encoded_dct)
    images = torch.cat([x for x, _ in DQZLoader(encoded_dct, 5, shuffle=False)])
    expected = dataset.images(range(len(dataset)))
    assert (images.int() - expected.int()).abs().max() <= 1


def mean(path):
    return DQZDataset(path, fill="mean")


@pytest.fixture
def damaged(golden_copy):
    """Samples 9 and 10 are damaged, each alone under its checksum."""
    reader = DQZDataset(golden_copy).file.reader
    assert reader.header.checksum_group == 1
    data = bytearray(golden_copy.read_bytes())
    for index in (9, 10):
        data[reader.members["payload/c/0"].start + int(reader.offsets[index])] ^= 1
    golden_copy.write_bytes(data)
    return golden_copy


LEFT = [[*range(4)], [4, 5, 6, 7], [8, 11], [12, 13, 14, 15], [16, 17, 18, 19], [20]]


def test_damaged_samples(damaged):
    with pytest.raises(ChecksumError, match=r"copy\.dqz: sample 9: payload bytes") as caught:
        list(DQZLoader(mean(damaged), 4, shuffle=False))
    assert caught.value.sample == 9
    loader = DQZLoader(mean(damaged), 4, shuffle=False, on_error="skip")
    with warnings.catch_warnings(action="error"):
        assert names(loader) == LEFT
    assert loader.skipped == {9, 10}
    with (
        pytest.warns(RuntimeWarning, match=r"left out: .*copy\.dqz: sample 9: payload bytes"),
        pytest.warns(RuntimeWarning, match=r"left out: .*copy\.dqz: sample 10: payload bytes"),
    ):
        assert names(DQZLoader(DQZDataset(damaged, fill="mean", on_error="warn"), 4, shuffle=False)) == LEFT
    alone = DQZLoader(mean(damaged), 1, shuffle=False, on_error="skip")
    assert names(alone) == [[k] for k in range(21) if k not in (9, 10)]  # a batch of nothing is left out
    assert (alone.skipped, len(alone)) == ({9, 10}, 21)


def test_an_epoch_of_which_nothing_is_left_is_an_error(golden_copy):
    dataset = mean(golden_copy)
    golden_copy.write_bytes(bytes(golden_copy.stat().st_size))  # overwritten in place, while it is open
    loader = DQZLoader(dataset, 4, on_error="skip")
    with pytest.raises(FormatError, match=r"copy\.dqz: each of the epoch's samples is damaged"):
        list(loader)
    assert loader.skipped == set(range(21))


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_find_the_file_from_another_folder(golden_copy, tmp_path, monkeypatch, start):
    monkeypatch.chdir(golden_copy.parent)
    dataset = mean(golden_copy.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(names(DataLoader(dataset, 4, num_workers=1, multiprocessing_context=start))) == 6


def read_with_few_files(dataset):
    import resource

    taken = set(map(int, os.listdir("/proc/self/fd")))
    limit = [k for k in range(len(taken) + 3) if k not in taken][2] + 1  # three numbers are free
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    dataset[0]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_a_forked_worker_never_holds_parts_open_twice(photo_folder, tmp_path):
    dqcodec.encode(photo_folder, tmp_path / "parts", dqcodec.EncodeOptions(shard_size=6000))
    dataset = DQZDataset(tmp_path / "parts")
    assert len(dataset.file.reader.parts) > 5
    process = multiprocessing.get_context("fork").Process(target=read_with_few_files, args=(dataset,))
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_samples_in_a_data_loader(damaged, workers):
    dataset = DQZDataset(damaged, fill="mean", on_error="skip")
    assert names(DataLoader(dataset, 4, num_workers=workers)) == LEFT
    assert names(map(dataset.collate, DataLoader(dataset.packed, 4, num_workers=workers))) == LEFT
    for wanted in (dataset, dataset.packed):
        with pytest.raises(ChecksumError, match="sample 9"):
            wanted[9]
        with pytest.raises(ChecksumError, match="sample 10"):
            wanted.__getitems__([9, 10])
    with pytest.raises(ChecksumError, match="sample 9"):
        list(DataLoader(DQZDataset(damaged).packed, 4, num_workers=workers))


@pytest.mark.parametrize("source", ["pixel", "dct"])
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_that_only_read(encoded_dct, source, workers):
    path = RGB if source == "pixel" else encoded_dct
    dataset = DQZDataset(path, fill="smooth")
    dataset[0]  # opened before the fork
    loader = DataLoader(dataset.packed, 4, num_workers=workers)
    batches = [dataset.collate(packed) for packed in loader]
    assert torch.equal(torch.cat([x for x, _ in batches]), dataset.images(range(len(dataset))))
    assert torch.cat([y for _, y in batches]).tolist() == dataset.targets.tolist()
    assert dataset.packed[-1] == (len(dataset) - 1, dataset.file.reader.read([len(dataset) - 1])[0])
    dataset.transform = lambda image: image.float().mean((1, 2))
    images, _ = dataset.collate(next(iter(loader)))
    assert torch.equal(images, dataset.images(range(4)).float().mean((2, 3)))


def test_a_killed_worker_is_an_error():
    """Kill -9 of a DataLoader's worker ends in an error in the main process, not in a wait for ever."""
    code = f"""
import os, signal
import dqcodec
from torch.utils.data import DataLoader
run = iter(DataLoader(dqcodec.DQZDataset({str(RGB)!r}).packed, 1, num_workers=2, prefetch_factor=1))
next(run)
for worker in run._workers:
    os.kill(worker.pid, signal.SIGKILL)
list(run)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    # torch raises in a signal handler; where it does so while the interpreter ends, its words are lost.
    assert re.search(r"DataLoader worker .*(killed by signal|exited unexpectedly)|lost sys\.stderr", done.stderr)


def threads():
    return {thread.name for thread in threading.enumerate()}


def test_no_thread_is_left():
    before = threads()
    loader = DQZLoader(MEAN, 2, workers=4)

    def fails():
        for _ in loader:
            assert threads() > before
            raise ValueError("in the training loop")

    with pytest.raises(ValueError, match="in the training loop"):
        fails()
    list(loader)
    for _ in loader:
        break
    run = iter(loader)
    next(run)
    run.close()
    iter(loader)  # never asked for a batch
    del run
    assert threads() == before


def test_ctrl_c():
    """In an endless training: KeyboardInterrupt in the loop, no thread is left, and the process ends."""
    code = f"""
import signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import dqcodec
def train(loader):
    while True:
        for _ in loader:
            print("step", flush=True)
try:
    train(dqcodec.DQZLoader(dqcodec.DQZDataset({str(RGB)!r}, fill="mean"), 2, workers=4))
except KeyboardInterrupt:
    end = time.monotonic() + 10
while threading.active_count() > 1 and time.monotonic() < end:
    time.sleep(0.01)
print("\\nleft", [t.name for t in threading.enumerate()], flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "step\n"
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "left ['MainThread']"
    assert error == ""
    assert process.returncode == 0


def rank_main(rank, place, queue):
    loader = DQZLoader(MEAN, 4)  # a framework may be told of the loader before it makes the ranks
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    queue.put((rank, loader.world_size, names(loader)))
    torch.distributed.destroy_process_group()


def test_ranks_of_torch_distributed(tmp_path):
    """Two real processes: each has its half, batch by batch the next eight samples of the order."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=rank_main, args=(r, tmp_path / "meet", queue)) for r in range(2)]
    for process in processes:
        process.start()
    found = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    order = np.append(permutation(21, 0, 0), permutation(21, 0, 0)[0])
    for rank, world, batches in found:
        assert world == 2
        assert [i for batch in batches for i in batch] == order[rank::2].tolist()
        assert [len(batch) for batch in batches] == [4, 4, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: 0; allowed: an integer, at least 1"),
        ({"batch_size": 2.0}, "batch_size: 2.0; allowed"),
        ({"seed": -1}, "seed: -1; allowed: an integer, 0 to 18446744073709551615"),
        ({"workers": True}, "workers: True; allowed"),
        ({"prefetch": 0}, "prefetch: 0; allowed"),
        ({"shuffle": "no"}, "shuffle: 'no'; expected True or False"),
        ({"drop_last": 0}, "drop_last: 0; expected True or False"),
        ({"device": "nonsense"}, "device: 'nonsense' is not to be had here"),
        ({"rank": 1}, "rank, world_size: give both or none"),
        ({"rank": 2, "world_size": 2}, "rank: 2; allowed: an integer, 0 to 1"),
        ({"on_error": "ignore"}, "on_error: 'ignore'; allowed: raise, skip, warn"),
        ({"dataset": DQZDataset(RGB), "on_error": "ignore"}, "on_error: 'ignore'; allowed: raise, skip, warn"),
        ({"dataset": DQZDataset(RGB, transform=abs)}, "it transforms single images; give a transform of batches"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(OptionError, match=message):
        DQZLoader(**{"dataset": MEAN, "batch_size": 4, **arguments})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 64}, r"of a file with the fingerprint 000000000000\.\.\., .*file\.dqz has"),
        ({"shuffle": False}, "made with shuffle=False, this loader has shuffle=True"),
        ({"position": 22}, "state: position: 22; allowed: an integer, 0 to 21"),
        ({"position": 1.5}, "state: position: 1.5"),
        ({"epoch": -1}, "state: epoch: -1"),
        ({"seed": None}, "state: seed: None"),
        ({7: 1}, "expected a dict with seed, epoch, position, shuffle, fingerprint"),
        ({"fingerprint": np.zeros(2)}, "expected a dict with"),
        ({"position": 10**5000}, "state: position: a larger number; allowed"),
        ({"more": 1}, "expected a dict with seed, epoch, position, shuffle, fingerprint"),
    ],
)
def test_wrong_states(change, message):
    loader = DQZLoader(MEAN, 4)
    before = loader.state_dict()
    with pytest.raises(OptionError, match=message):
        loader.load_state_dict({**before, **change})
    assert loader.state_dict() == before


def test_a_loader_has_its_own_settings():
    """The dataset that it was made of keeps its own."""
    dataset = DQZDataset(RGB)
    loader = DQZLoader(dataset, 4, on_error="skip")
    assert dataset.on_error == "raise"
    assert loader.skipped is not dataset.skipped
    assert dqcodec.DQZLoader is DQZLoader
