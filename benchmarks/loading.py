"""How fast batches come: a .dqz beside the formats that people train from, all with the same images.

    python benchmarks/loading.py FOLDER NAME SIZE [COUNT]      needs what loaders.py needs

FOLDER holds folders of images, which are scaled and cropped to SIZE, and repeated until there are COUNT. The JPEGs have
the PSNR of the .dqz. Every loader makes float batches (128, 3, SIZE, SIZE) in 0..1, shuffled, with two workers
(processes or threads). First the files are dropped from the page cache and an epoch is timed with opening and starting
the workers; then epochs with a warm cache, in turns; the median counts. For the start, a file of a million samples of
SIZE pixels (copies) is opened in a new process and asked for its first batch.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import save
from loaders import BATCH, LEFT_OUT, OPPONENTS, WORKERS, Batch, bytes_on_disk, jpeg, write_files
from PIL import Image
from torch.utils.data import DataLoader

import dqcodec
from dqcodec import DQZDataset, DQZLoader, to_float
from dqcodec.container.spec import Array
from dqcodec.container.writer import Writer
from dqcodec.sources.folder import scan
from dqcodec.sources.images import read

ROUNDS = 5
SAMPLED = 100  # images that PSNR is measured on
MILLION = 1_000_000
CLASSES = 10
START = """
import sys, time
import numpy, torch
from dqcodec import DQZDataset, DQZLoader
import dqcodec.codec.dct.inverse

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
before, started = peak(), time.perf_counter()
next(iter(DQZLoader(DQZDataset(sys.argv[1], fill="mean"), 128, workers=2)))
print(time.perf_counter() - started, (peak() - before) / 1024)
"""


def load(folder: Path, size: int, count: int | None) -> Array:
    """uint8 (count, size, size, 3)."""
    found = scan(folder)
    chosen = np.random.default_rng(0).permutation(len(found))[:count].tolist()
    images = np.stack([read(partial(found.open, i), found.names[i], size, "crop", 3) for i in chosen])
    return images[np.arange(count or len(images)) % len(images)]


def psnr(images: Array, others: Array) -> float:
    """Mean over images, dB."""
    error = ((images.astype(np.float32) - others) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean())


def matched(path: Path, source: Path, images: Array) -> tuple[float, int, float]:
    """PSNR of a .dqz of these images, whose files in `source` are named by their numbers; quality and PSNR of the JPEGs
    that come nearest to it."""
    with dqcodec.DQZFile(path) as file:
        some = np.linspace(0, len(file) - 1, min(SAMPLED, len(file))).astype(int)
        order = np.array([int(Path(name).stem) for name in scan(source).names])
        assert file.source_index is not None
        originals = images[order[file.source_index[some].astype(np.int64)]]
        dqz = psnr(originals, file.images(some).transpose(0, 2, 3, 1))
    return dqz, *quality_for(originals, dqz)


def quality_for(images: Array, wanted: float) -> tuple[int, float]:
    """The lowest JPEG quality (4:2:0, Pillow) with at least this PSNR, and its PSNR."""
    import io

    for quality in range(20, 100):
        decoded = np.stack([np.asarray(Image.open(io.BytesIO(jpeg(image, quality)))) for image in images])
        if (found := psnr(images, decoded)) >= wanted:
            return quality, found
    return 99, found


def by_loader(path: Path, fill: str, filtered: bool = False) -> Iterator[Batch]:
    return iter(DQZLoader(DQZDataset(path, fill=fill, filter=filtered), BATCH, transform=to_float, workers=WORKERS))


def by_workers(path: Path, fill: str) -> Iterator[Batch]:
    loader = DataLoader(DQZDataset(path, fill=fill), BATCH, shuffle=True, num_workers=WORKERS)
    return ((to_float(images), targets) for images, targets in loader)


def drop_cache(place: Path) -> None:
    """From the page cache, for the files of one format."""
    os.sync()
    for path in [place] if place.is_file() else place.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def timed(epoch: Callable[[], Iterator[Batch]], count: int) -> float:
    """Images a second over an epoch, from opening to the last batch."""
    started, seen = time.perf_counter(), 0
    for images, _ in epoch():
        seen += len(images)
    if seen != count:
        raise RuntimeError(f"{seen} of {count} images")
    return count / (time.perf_counter() - started)


def steady(epoch: Callable[[], Iterator[Batch]]) -> float:
    """The same from the first batch on, without opening and starting workers, over epochs of a second or more."""
    seen, took = 0, 0.0
    while took < 1:
        batches = epoch()
        next(batches)
        started = time.perf_counter()
        seen += sum(len(images) for images, _ in batches)
        took += time.perf_counter() - started
    return seen / took


def start(path: Path, place: Path) -> dict[str, float]:
    """Seconds to the first batch of a file of a million samples, and MiB of memory that it takes beyond imports."""
    with dqcodec.DQZFile(path) as file, Writer(place) as writer:
        header, columns = file.reader.header, dict(file.reader.columns)
        n = len(file)
        payloads = file.reader.read(range(n))
        for index in range(MILLION):
            writer.append(payloads[index % n])
        again = np.arange(MILLION) % n
        kept: dict[str, Array] = {
            name: columns[name][again]
            for name in ("label", "bits", "scale", "colour", "mask", "distance", "source_index")
            if name in columns
        }
        tables = {name: value for name, value in columns.items() if name.startswith("tables/")}
        writer.finish(replace(header, mae=None), {**kept, **tables})
    runs = [
        subprocess.run([sys.executable, "-c", START, str(place)], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    seconds, memory = zip(*(map(float, run.stdout.split()) for run in runs), strict=True)
    return {
        "samples": MILLION,
        "bytes": place.stat().st_size,
        "first batch, seconds": round(statistics.median(seconds), 3),
        "memory beyond imports, MiB": round(statistics.median(memory), 1),
    }


def main() -> None:
    folder, name, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    images = load(folder, size, int(sys.argv[4]) if len(sys.argv) > 4 else None)
    labels = np.arange(len(images)) % CLASSES
    place = Path(tempfile.mkdtemp(dir=os.environ.get("TMPDIR")))
    print(f"{len(images)} images of {size} x {size}", file=sys.stderr)
    write_files(place / "source", images, labels, 0, "png")
    whole, dropped = place / "whole.dqz", place / "dropped.dqz"
    dqcodec.encode(place / "source", whole, dqcodec.EncodeOptions(keep=1, drop=0))
    dqcodec.encode(place / "source", dropped, dqcodec.EncodeOptions(keep=1, drop=0.25, method="random", bits="4"))
    dqz, quality, found = matched(whole, place / "source", images)

    epochs: dict[str, tuple[Path, Callable[[], Iterator[Batch]]]] = {}
    for opponent in OPPONENTS:
        at = place / opponent.name.replace(" ", "-")
        opponent.write(at, images, labels, quality)
        epochs[opponent.name] = at, partial(opponent.epoch, at)
    epochs["DQZLoader, nothing dropped"] = whole, partial(by_loader, whole, "none")
    epochs["DQZLoader, nothing dropped, filtered"] = whole, partial(by_loader, whole, "none", filtered=True)
    epochs["DQZDataset in a DataLoader, nothing dropped"] = whole, partial(by_workers, whole, "none")
    for fill in ("mean", "mae"):
        epochs[f"DQZLoader, 25% dropped, {fill}"] = dropped, partial(by_loader, dropped, fill)
    epochs["DQZLoader, 25% dropped, mean, filtered"] = dropped, partial(by_loader, dropped, "mean", filtered=True)
    epochs["DQZDataset in a DataLoader, 25% dropped, mean"] = dropped, partial(by_workers, dropped, "mean")

    figures: dict[str, dict[str, Any]] = {}
    for what, (path, epoch) in epochs.items():
        drop_cache(path)
        stored = path.stat().st_size if path.is_file() else bytes_on_disk(path)
        figures[what] = {"bytes": stored, "first epoch": round(timed(epoch, len(images)), 1), "warm": []}
    for _ in range(ROUNDS):
        for what, (_, epoch) in epochs.items():
            figures[what]["warm"].append(round(steady(epoch), 1))
            print(what, figures[what], file=sys.stderr)
    for figure in figures.values():
        figure["median"] = statistics.median(figure["warm"])
    save(
        f"loading-{name}",
        {
            "images": len(images),
            "size": size,
            "batch": BATCH,
            "workers": WORKERS,
            "JPEG quality": quality,
            "PSNR": {"JPEG": round(found, 2), "dqz": round(dqz, 2)},
            "images a second": figures,
            "start": start(whole, place / "million.dqz") if size < 64 else None,
            "left out": LEFT_OUT,
            "versions": [opponent.version for opponent in OPPONENTS],
        },
    )
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
