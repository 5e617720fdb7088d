"""How long do exact bins take, and how much memory beyond the features?

    python benchmarks/selection.py      results/selection.json

Synthetic features (clusters with noise, negative values cut off as a network's last layer does), 10 bins. Beside ours,
on sizes where they finish: the plain greedy that evaluates Eq. 1 anew for every candidate and pick by rows of the
kernel matrix, which is what public coreset code does; and, where they are installed, the graph cuts of apricot and
submodlib, which on normalised features is the same function. Ours makes all ten bins, the libraries pick the first
bin only; "same picks" is the share of that bin that they agree on (they compute in floating point, so near ties may
fall either way). Every case runs in a process of its own; memory is the peak of that process less what it held before
the selection began.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from common import save

from dqcodec.container.spec import Array
from dqcodec.selection import select
from dqcodec.selection.binning import divide
from dqcodec.selection.bins import greedy_bins, integers, sizes_of

CASES = {
    "ImageNet-1K, labelled": (1_281_167, 512, 1000),
    "CIFAR-10, labelled": (50_000, 512, 10),
    "50,000 unlabelled": (50_000, 384, 1),
    "5,000 unlabelled": (5_000, 512, 1),
    "2,000 unlabelled": (2_000, 384, 1),
}
BESIDE = ("5,000 unlabelled", "2,000 unlabelled")


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


def by_apricot(features: Array, picks: int) -> Array:
    import apricot

    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    kernel = (unit @ unit.T).astype(np.float64)
    model = apricot.GraphCutSelection(picks, metric="precomputed", alpha=1, optimizer="lazy")
    return np.asarray(model.fit(kernel).ranking)


def by_submodlib(features: Array, picks: int) -> Array:
    import submodlib

    cut = submodlib.GraphCutFunction(n=len(features), mode="dense", lambdaVal=1, data=features, metric="cosine")
    found = cut.maximize(picks, "LazyGreedy", False, False, show_progress=False)
    return np.array([index for index, _ in found])


def ours(features: Array, labels: Array) -> None:
    select(features, labels, keep=0.6, bins=10, method="dq")


def ours_adq(features: Array, labels: Array) -> None:
    select(features, labels, keep=0.6, bins=10, method="adq")


def plain(features: Array, labels: Array) -> dict[str, Any]:
    x = integers(features, len(features))(features)
    order = by_rows(x, 10)
    return {"same picks": float((order == greedy_bins(x, sizes_of(len(x), 10)).order).mean())}


def library(pick: Callable[[Array, int], Array]) -> Callable[[Array, Array], dict[str, Any]]:
    def run(features: Array, labels: Array) -> dict[str, Any]:
        picks = pick(features, len(features) // 10)
        start = time.perf_counter()
        first = np.flatnonzero(divide(features, None, 10, normalize=True).bin == 0)
        return {"same picks": float(np.isin(picks, first).mean()), "comparing": time.perf_counter() - start}

    return run


WAYS: dict[str, Callable[[Array, Array], dict[str, Any] | None]] = {
    "ours": ours,
    "ours, adq": ours_adq,
    "plain greedy": plain,
    "apricot": library(by_apricot),
    "submodlib": library(by_submodlib),
}

IMPORTED = {"ours, adq": "torch", "apricot": "apricot", "submodlib": "submodlib"}


def run(case: str, way: str) -> None:
    """One case in this process; prints JSON."""
    features, labels = synthetic(*CASES[case])
    if way in IMPORTED:  # what is imported and compiled once is not counted
        import_module(IMPORTED[way])
        WAYS[way](features[:64], np.zeros(64, np.int64))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = WAYS[way](features, labels) or {}
    seconds = time.perf_counter() - start - found.pop("comparing", 0.0)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"seconds": round(seconds, 2), "memory_bytes": memory, **found}))


def measured(case: str, way: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, case, way], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    if len(sys.argv) > 1:
        run(sys.argv[1], sys.argv[2])
        return
    rows: dict[str, Any] = {}
    for case, shape in CASES.items():
        ways = ["ours", "ours, adq"]
        if case in BESIDE:
            ways += [name for name in ("apricot", "submodlib") if find_spec(name)] + ["plain greedy"]
        rows[case] = {"shape": shape, **{way: measured(case, way) for way in ways}}
        print(case, rows[case], file=sys.stderr)
    save("selection", {"question": __doc__.splitlines()[0], "cases": rows})


if __name__ == "__main__":
    main()
