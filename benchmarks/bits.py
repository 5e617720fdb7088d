"""What is gained by giving samples bits by gradient distance?

    python benchmarks/bits.py TRAIN NAME [TEST]      FOLDER/<class>/*; results/bits-NAME.json, .png

Distance: a proxy is trained on the images of TRAIN (at most 15,000), and distances and coded bytes of 4,000 of them are
measured, with no patch dropped, at the mean width and up to two bits less and more. Beside each other, at the same mean
width: equal widths, `rank`, and `auto` as `--bits auto` does it, from the distances a bit below and a bit above the
mean; and what would be the least if all of these widths had been measured and any of them taken: no way of choosing can
do better.
The picture shows the ten images with the smallest and the ten with the largest distances at 4 bits of `pixel`, as the
paper's Figure 2 does.

Accuracy, with TEST (results/bits-accuracy-NAME.json): the same small network is trained on 10,000 images, coded at
equal widths or by `auto`, at the same coded bytes (payload alone; what `--target-size` does), with several seeds, and
tested on TEST as it is.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, read_images, save
from PIL import Image

from dqcodec.bits import REACH, REACH_BY_BYTES, allocate, allocate_bytes, rank, with_middle
from dqcodec.codec.quantize import MAX_BITS
from dqcodec.container.spec import LEAST_BITS
from dqcodec.models import proxy
from dqcodec.parallel import alone, default_workers, ordered_map
from dqcodec.sources.folder import scan
from dqcodec.stages.images import PROXY_SIZE
from dqcodec.stages.widths import BATCH, measure

CASES = (("pixel", 3.0), ("pixel", 4.0), ("pixel", 5.0), ("dct", 3.5), ("dct", 4.5))
TRAINED = (("dct", 3.0),)
MOST, MEASURED, LEARNED = 15_000, 4000, 10_000
SEEDS = 5
WIDEST = 2  # bits less and more
CPU = torch.device("cpu")
Array = Any


def load(path: str, most: int | None = None) -> tuple[Array, Array, int]:
    """Images, labels, and how many classes there are."""
    folder = scan(path)
    size = min(Image.open(folder.root / folder.names[0]).width, PROXY_SIZE)
    chosen = np.sort(np.random.default_rng(0).permutation(len(folder))[:most])

    return read_images(folder, chosen, size), folder.labels[chosen], len(folder.classes)


def measure_all(
    model: proxy.Proxy, images: Array, labels: Array, transform: str, widths: list[float], sized: bool
) -> tuple[Array, Array, Array]:
    """Distances, bytes (0 if not `sized`), and coded images, (n, K, ...)."""

    def one(start: int) -> tuple[Array, Array, Array]:
        here, own = images[start : start + BATCH], labels[start : start + BATCH]
        found, coded = measure(model, here, own, transform, widths)
        sizes = np.stack([each.sizes() if sized else np.zeros(len(here)) for each in coded], 1)
        return found, sizes, np.stack([each.images for each in coded], 1)

    workers = default_workers()
    parts = list(ordered_map(one, range(0, len(images), BATCH), workers, 2 * workers, alone))
    found, sizes, seen = (np.concatenate(column) for column in zip(*parts, strict=True))
    return found, sizes, seen


def compare(model: proxy.Proxy, images: Array, labels: Array, transform: str, mean: float, epoch: float) -> Any:
    """Total distance and bytes by way of choosing widths, relative to equal ones; seconds relative to an epoch."""
    place = np.arange(len(images))
    near = [mean + more for more in range(-WIDEST, WIDEST + 1)]
    widths = [width for width in near if LEAST_BITS[transform] <= width <= MAX_BITS]
    equal = widths.index(mean)
    start = time.perf_counter()
    measure_all(model, images, labels, transform, [mean - REACH, mean + REACH], False)
    cost = (time.perf_counter() - start) / len(images) / epoch
    found, sizes, _ = measure_all(model, images, labels, transform, widths, True)
    ends = np.minimum.accumulate(found[:, [equal - 1, equal + 1]], 1)
    steps = np.broadcast_to(np.arange(len(widths)), found.shape)
    ways = {
        "equal": np.full(len(place), equal),
        "rank": equal - 1 + rank(found[:, equal]),
        "auto": equal - 1 + allocate(with_middle(ends), len(place)),
        "least": allocate_bytes(found, steps, equal * len(place)),
    }
    return {
        "transform": transform,
        "mean bits": mean,
        "epochs of the proxy": round(cost, 2),
        "widths": widths,
        "mean distance by width": found.mean(0).tolist(),
        "distance": {way: float(found[place, k].sum() / found[:, equal].sum()) for way, k in ways.items()},
        "bytes": {way: float(sizes[place, k].mean()) for way, k in ways.items()},
        "samples by width": {way: np.bincount(k, minlength=len(widths)).tolist() for way, k in ways.items()},
    }


def learn(images: Array, labels: Array, classes: int, test: tuple[Array, Array, int], seed: int) -> float:
    """Top-1 on the test images of a network trained on the images."""
    model = proxy.restore(proxy.train(images, labels, classes, CPU, seed), CPU)
    right = 0
    with torch.no_grad():
        for start in range(0, len(test[0]), 500):
            x = proxy.normalise(proxy.to_tensor(test[0][start : start + 500], CPU))
            right += int((model(x).argmax(1).numpy() == test[1][start : start + 500]).sum())
    return right / len(test[0])


def accuracies(model: proxy.Proxy, images: Array, labels: Array, classes: int, test: tuple[Array, Array, int]) -> Any:
    """Top-1 by way and seed, at equal coded bytes."""
    place, sets = np.arange(len(images)), {"originals": (images, 0.0)}
    for transform, mean in TRAINED:
        reach = REACH_BY_BYTES[transform]
        widths = [mean - reach, mean, mean + reach]
        found, sizes, seen = measure_all(model, images, labels, transform, widths, True)
        distance = with_middle(np.minimum.accumulate(found[:, [0, 2]], 1))
        chosen = allocate_bytes(distance, sizes, sizes[:, 1].sum())
        for name, k in (("equal", np.ones(len(place), np.int64)), (f"auto within {reach:g}", chosen)):
            sets[f"{transform} {mean:g}, {name}"] = seen[place, k], float(sizes[place, k].mean())
    top1: dict[str, list[float]] = {name: [] for name in sets}
    for seed in range(1, SEEDS + 1):
        for name, (pixels, _) in sets.items():
            top1[name].append(learn(pixels, labels, classes, test, seed))
            print(name, seed, top1[name][-1], file=sys.stderr, flush=True)
    return [
        {
            "set": name,
            "bytes": round(sets[name][1], 1),
            "top-1": found,
            "mean": round(float(np.mean(found)), 4),
            "deviation": round(float(np.std(found, ddof=1)), 4),
        }
        for name, found in top1.items()
    ]


def picture(images: Array, distance: Array, path: Path) -> None:
    order = np.argsort(distance, kind="stable")
    rows = [np.concatenate(list(images[chosen]), 1) for chosen in (order[:10], order[-10:])]
    Image.fromarray(np.concatenate(rows)).resize((1280, 256), Image.Resampling.NEAREST).save(path)


def main() -> None:
    images, labels, classes = load(sys.argv[1], MOST)
    name = sys.argv[2]
    start = time.perf_counter()
    weights = proxy.train(images, labels, classes, CPU, 0)
    epoch = (time.perf_counter() - start) / proxy.EPOCHS / len(images)
    model = proxy.restore(weights, CPU)
    some = np.sort(np.random.default_rng(1).permutation(len(images))[:MEASURED])
    RESULTS.mkdir(exist_ok=True)
    at_four = measure_all(model, images[some], labels[some], "pixel", [4.0], False)[0][:, 0]
    picture(images[some], at_four, RESULTS / f"bits-{name}.png")
    measure_all(model, images[:BATCH], labels[:BATCH], "dct", [4.0], True)  # compiles what is timed below
    rows = []
    for transform, mean in CASES:
        rows.append(compare(model, images[some], labels[some], transform, mean, epoch))
        print(rows[-1], file=sys.stderr, flush=True)
    result = {"question": __doc__.splitlines()[0], "images": len(some), "size": images.shape[1], "cases": rows}
    save(f"bits-{name}", result)
    if len(sys.argv) > 3:
        learned = np.sort(np.random.default_rng(2).permutation(len(images))[:LEARNED])
        found = accuracies(model, images[learned], labels[learned], classes, load(sys.argv[3]))
        question = "Does a network get better when bits follow the gradient distance, at equal coded bytes?"
        save(f"bits-accuracy-{name}", {"question": question, "images": len(learned), "sets": found})


if __name__ == "__main__":
    main()
