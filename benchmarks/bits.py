"""How much does allocating bits by gradient distance lower the total distance, at the same mean width?

    python benchmarks/bits.py FOLDER NAME      FOLDER/<class>/*, results/bits-NAME.json and .png

A proxy is trained on all images; distances and coded bytes are measured on at most 4,000 of them, with no patch
dropped, at the mean width and one bit less and more. Beside each other: equal widths, `rank` and `auto`. The picture
shows the ten images with the smallest and the ten with the largest distances at 4 bits of `pixel`, as the paper's
Figure 2 does. Accuracy at equal bytes is another question and not measured here.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, save
from PIL import Image

from dqcodec.bits import allocate, convex, rank
from dqcodec.models import proxy
from dqcodec.models.sensitivity import distances
from dqcodec.parallel import default_workers, ordered_map
from dqcodec.sources.folder import scan
from dqcodec.sources.images import read
from dqcodec.stages.images import PROXY_SIZE
from dqcodec.stages.widths import code_at

CASES = (("pixel", 3.0), ("pixel", 4.0), ("pixel", 5.0), ("dct", 3.5), ("dct", 4.5))
MEASURED = 4000
BATCH = 256
Array = Any


def measure(model: proxy.Proxy, images: Array, labels: Array, transform: str, mean: float) -> tuple[Array, Array]:
    """Distances and bytes, (n, 3)."""
    found, sizes = [], []
    for start in range(0, len(images), BATCH):
        seen, own = images[start : start + BATCH], labels[start : start + BATCH]
        coded = [code_at(seen, transform, bits, default_workers()) for bits in (mean - 1, mean, mean + 1)]
        found.append(distances(model, seen, [each.images for each in coded], own))
        sizes.append(np.stack([each.sizes() for each in coded], 1))
    return np.concatenate(found), np.concatenate(sizes)


def picture(images: Array, distance: Array, path: Path) -> None:
    order = np.argsort(distance, kind="stable")
    rows = [np.concatenate(list(images[chosen]), 1) for chosen in (order[:10], order[-10:])]
    Image.fromarray(np.concatenate(rows)).resize((1280, 256), Image.Resampling.NEAREST).save(path)


def main() -> None:
    folder, name = scan(sys.argv[1]), sys.argv[2]
    size = min(Image.open(folder.root / folder.names[0]).width, PROXY_SIZE)
    every = ordered_map(
        lambda n: read(lambda: folder.open(n), folder.names[n], size, "squash", 3),
        range(len(folder)),
        default_workers(),
    )
    images, labels = np.stack(list(every)), folder.labels
    start = time.perf_counter()
    weights = proxy.train(images, labels, len(folder.classes), torch.device("cpu"), 0)
    epoch = (time.perf_counter() - start) / proxy.EPOCHS / len(images)
    model = proxy.restore(weights, torch.device("cpu"))
    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:MEASURED])
    images, labels, place = images[chosen], labels[chosen], np.arange(len(chosen))
    rows = []
    for transform, mean in CASES:
        start = time.perf_counter()
        found, sizes = measure(model, images, labels, transform, mean)
        cost = (time.perf_counter() - start) / len(images) / epoch
        ways = {
            "equal": np.ones(len(place), int),
            "rank": rank(found[:, 1]),
            "auto": allocate(convex(found), len(place)),
        }
        rows.append(
            {
                "transform": transform,
                "mean bits": mean,
                "epochs of the proxy": round(cost, 2),
                "mean distance by width": found.mean(0).tolist(),
                "distance": {way: float(found[place, more].sum() / found[:, 1].sum()) for way, more in ways.items()},
                "bytes": {way: float(sizes[place, more].mean()) for way, more in ways.items()},
                "samples by width": {way: np.bincount(more, minlength=3).tolist() for way, more in ways.items()},
            }
        )
        print(rows[-1], file=sys.stderr)
        if (transform, mean) == ("pixel", 4.0):
            RESULTS.mkdir(exist_ok=True)
            picture(images, found[:, 1], RESULTS / f"bits-{name}.png")
    save(f"bits-{name}", {"question": __doc__.splitlines()[0], "images": len(images), "size": size, "cases": rows})


if __name__ == "__main__":
    main()
