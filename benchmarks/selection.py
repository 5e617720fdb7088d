"""How long do exact bins take, and how much memory beyond the features?

    python benchmarks/selection.py      results/selection.json

Synthetic features (clusters with noise, negative values cut off as a network's last layer does), 10 bins. Beside ours,
on sizes where it finishes: the plain greedy that evaluates Eq. 1 anew for every candidate and pick by rows of the
kernel matrix, which is what public coreset code does. Every case runs in a process of its own; memory is the peak of
that process less what it held before the selection began.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
from common import save

from dqcodec.container.spec import Array
from dqcodec.selection import select
from dqcodec.selection.bins import greedy_bins, integers, sizes_of

CASES = {
    "ImageNet-1K, labelled": (1_281_167, 512, 1000),
    "CIFAR-10, labelled": (50_000, 512, 10),
    "50,000 unlabelled": (50_000, 384, 1),
    "2,000 unlabelled": (2_000, 384, 1),
}


def synthetic(samples: int, dimensions: int, classes: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(classes, 50), dimensions)).astype(np.float32)
    labels = np.arange(samples) % classes
    features = np.empty((samples, dimensions), np.float32)
    for start in range(0, samples, 50_000):
        rows = slice(start, min(start + 50_000, samples))
        which = labels[rows] if classes > 1 else rng.integers(0, 50, rows.stop - start)
        features[rows] = centres[which] + rng.standard_normal((rows.stop - start, dimensions), np.float32)
    return np.maximum(features, 0, out=features), labels


def by_rows(x: Array, bins: int) -> Array:
    """The plain greedy: for each pick the gains of all candidates from rows of the distance matrix."""
    norm = (x * x).sum(1)
    distance = norm[:, None] + norm - 2 * (x @ x.T)
    free = np.ones(len(x), bool)
    order = []
    for size in sizes_of(len(x), bins):
        chosen: list[int] = []
        for _ in range(size):
            gain = distance[chosen].sum(0) - distance[free].sum(0)
            best = int(np.where(free, gain, -np.inf).argmax())
            chosen.append(best)
            free[best] = False
        order += chosen
    return np.array(order)


def run(case: str, ours: bool) -> None:
    """One case in this process; prints JSON."""
    samples, dimensions, classes = CASES[case]
    features, labels = synthetic(samples, dimensions, classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found: dict[str, Any] = {}
    if ours:
        select(features, labels, keep=0.6, bins=10)
    else:
        x = integers(features, samples)(features)
        order = by_rows(x, 10)
        found["same picks as ours"] = bool((order == greedy_bins(x, sizes_of(len(x), 10)).order).all())
    found["seconds"] = round(time.perf_counter() - start, 2)
    found["memory_bytes"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps(found))


def main() -> None:
    if len(sys.argv) > 1:
        run(sys.argv[1], ours=sys.argv[2] == "ours")
        return
    rows: dict[str, Any] = {}
    for case in CASES:
        done = subprocess.run([sys.executable, __file__, case, "ours"], check=True, capture_output=True, text=True)
        rows[case] = {"shape": CASES[case], "ours": json.loads(done.stdout)}
    case = "2,000 unlabelled"
    done = subprocess.run([sys.executable, __file__, case, "rows"], check=True, capture_output=True, text=True)
    rows[case]["plain greedy"] = json.loads(done.stdout)
    save("selection", {"question": __doc__.splitlines()[0], "cases": rows})


if __name__ == "__main__":
    main()
