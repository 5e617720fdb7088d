"""Is a network trained from a .dqz better than one trained on the best alternative of the same bytes?

    pip install imagecodecs matplotlib
    python benchmarks/accuracy.py compare TRAIN TEST NAME    FOLDER/<class>/*; results/accuracy-NAME.json and .png
        --limit-per-class 2000  of TRAIN, taken at random
        --budgets 60 120 240    bytes on disk for each image of TRAIN
        --only 'dqz 120*' full  the sets whose names fit one of these patterns; without it all of them
        --steps 900             batches of 128 that each network is trained on, whatever the size of its set
        --seeds 0 1 2           another selection, another network
        --network resnet18      of timm, instead of the narrow ResNet of training.py
        --jobs 2                networks that are trained side by side
        --work FOLDER           keeps the sets for the next time
    python benchmarks/accuracy.py numbers TRAIN TEST NAME    results/accuracy-numbers-NAME.json: of uncoded pixels
        equally many images by each way of selecting; patches dropped by GradCAM++ and at random
    python benchmarks/accuracy.py report NAME                tables and plot of what is there

At each budget, everything on disk counted: as many of the original files as fit; JPEG, WebP, JPEG XL and AVIF files and
.dqz of all or of some images at the quality that meets the budget, at full and at half the side.
Each network is tested on TEST as it is. A run that is in the results is not made again, and each is added as soon as it
is finished, so the work can be stopped and continued at any time.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, machine
from contenders import versions
from sets import FORMATS, Case, Source, TrainingSet, Unreachable, limited, load, make, restore, write
from training import FINER, NARROW, Recipe, accuracy, fit

import dqcodec

BUDGETS = (60, 120, 240)
SHARES = (1.0, 0.5, 0.25, 0.125)
DROPS = (0.15, 0.25, 0.4)
NUMBERS = (0.01, 0.05, 0.1, 0.3, 0.6)
METHODS = ("random", "graphcut", "dq", "adq")
FILLS = ("mae", "mean")
TEACHERS = ("proxy", FINER)  # networks that say soft labels
COLOURS = dict(zip(("", *TEACHERS), ("black", "crimson", "darkorange"), strict=True))  # of a .dqz, by its soft labels
LOSS = 0.02  # of the full set's accuracy, at which bytes are compared

Run = dict[str, Any]


def compared(budgets: list[int]) -> Iterator[Case]:
    """Sets at these budgets, of whose .dqz one thing differs from the first of them; and the encoder's presets."""
    yield Case("full")
    yield from (Case("full", soft=teacher) for teacher in TEACHERS)
    for budget in budgets:
        yield Case("originals", budget)
        for kind in FORMATS:
            for half in (False, True):
                yield from (Case(kind, budget, share, half) for share in SHARES)
            yield from (Case(kind, budget, share, soft=teacher) for share in SHARES for teacher in TEACHERS)
        for share in SHARES:
            plain = Case("dqz", budget, share)
            yield plain
            if share < 1:
                yield from (replace(plain, method=method) for method in METHODS[1:])
            yield from (replace(plain, soft=teacher) for teacher in TEACHERS)
            yield replace(plain, half=True)
            yield replace(plain, bits="auto")
            yield replace(plain, filter=True)
            yield replace(plain, transform="pixel")
            yield from (replace(plain, drop=drop, fill=fill) for drop in DROPS for fill in FILLS)
    yield from (Case("preset", preset=name) for name in dqcodec.PRESETS)


def numbered() -> Iterator[Case]:
    """Sets of uncoded pixels."""
    yield Case("full")
    yield from (Case("selected", share=share, method=method) for share in NUMBERS for method in METHODS)
    for scores in ("gradcam", "random"):
        yield from (Case("masked", drop=0.25, scores=scores, fill=fill) for fill in FILLS)


@dataclass(frozen=True)
class Task:
    """One run: the set, how it is trained on, and where all is."""

    case: Case
    recipe: Recipe
    seed: int
    train: Path
    test: Path
    limit: int | None
    work: Path

    @property
    def key(self) -> tuple[Any, ...]:
        return self.case.name, *asdict(self.recipe).values(), self.seed


def key_of(run: Run) -> tuple[Any, ...]:
    return run["set"], run["network"], run["steps"], run["batch"], run["seed"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def prepared(task: Task) -> tuple[TrainingSet, Source, int]:
    """The set, made where it is not there; the test images; how many images the source has."""
    seed = task.seed if task.case.uses_seed else 0
    path = task.work / "sets" / f"{task.case.name} seed {seed}.npz"
    with locked(task.work / "locks" / "source"):
        folder = limited(task.train, task.limit, task.work / "source")
        source = load(folder, task.work / "source.npz")
        test = load(task.test, task.work / "test.npz")
    with locked(task.work / "locks" / ("proxy" if task.case.needs_proxy else task.case.name)):
        if not path.exists():
            write(path, make(task.case, source, seed, task.work))
    return restore(path), test, len(source.images)


def perform(task: Task) -> Run:
    start = time.perf_counter()
    about = {"set": task.case.name, **asdict(task.case), **asdict(task.recipe), "seed": task.seed}
    try:
        made, test, count = prepared(task)
    except Unreachable as error:
        return {**about, "unreachable": str(error)}
    waited = time.perf_counter() - start
    classes, start = int(test.labels.max()) + 1, time.perf_counter()
    model = fit(made.images, made.labels, classes, task.recipe, task.seed)
    seconds, top1 = time.perf_counter() - start, accuracy(model, test.images, test.labels)
    return {
        **about,
        "source images": count,
        "images": len(made.images),
        "bytes": made.bytes,
        "bytes a source image": round(made.bytes / count, 2),
        "top-1": round(top1, 4),
        "seconds": round(seconds, 1),
        "seconds of making": round(waited, 1),
    }


def use_threads(count: int) -> None:
    torch.set_num_threads(count)


def results(name: str) -> Path:
    return RESULTS / f"accuracy-{name}.json"


def runs_of(name: str) -> list[Run]:
    path = results(name)
    return list(json.loads(path.read_text())["runs"]) if path.exists() else []


def append(name: str, run: Run) -> None:
    """Add a run to the results: one line each, the file replaced as a whole."""
    RESULTS.mkdir(exist_ok=True)
    path = results(name)
    lines = [json.dumps(each) for each in [*runs_of(name), run]]
    text = f'{{"question": {json.dumps(__doc__.splitlines()[0])}, "runs": [\n' + ",\n".join(lines) + "\n]}\n"
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").replace(path)


def carry_out(tasks: list[Task], name: str, jobs: int) -> None:
    """All tasks that are not in the results, side by side."""
    there = set(map(key_of, runs_of(name)))
    tasks = [task for task in tasks if task.key not in there]
    threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // jobs))
    start, where = time.perf_counter(), {**machine(), **versions()}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), use_threads, (threads,)) as pool:
        for done, future in enumerate(as_completed([pool.submit(perform, task) for task in tasks]), 1):
            minutes = (time.perf_counter() - start) / 60
            try:
                run = future.result()
            except Exception as error:  # the others go on
                print(f"{done}/{len(tasks)} {minutes:.1f} min  failed: {error!r}", file=sys.stderr)
                continue
            with locked(tasks[0].work / "locks" / "results"):
                append(name, {**run, "machine": where})
            found = run.get("top-1", run.get("unreachable"))
            print(f"{done}/{len(tasks)} {minutes:.1f} min  {run['set']}, seed {run['seed']}: {found}", file=sys.stderr)


@dataclass(frozen=True)
class Point:
    """The runs of one set with one recipe, over the seeds."""

    case: Case
    recipe: Recipe
    images: int
    bytes: float
    top1: float
    spread: float
    seeds: int


def points(runs: list[Run]) -> list[Point]:
    groups: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if "top-1" in run:
            groups[key_of(run)[:-1]].append(run)
    out = []
    for group in groups.values():
        top1, first = [run["top-1"] for run in group], group[0]
        case = Case(**{name: first[name] for name in Case.__dataclass_fields__ if name in first})
        recipe = Recipe(first["network"], first["steps"], first["batch"])
        size = float(np.mean([run["bytes a source image"] for run in group]))
        spread = float(np.std(top1, ddof=1)) if len(group) > 1 else math.nan
        out.append(Point(case, recipe, first["images"], size, float(np.mean(top1)), spread, len(group)))
    return out


def best(some: list[Point]) -> dict[int, Point]:
    """At each budget the best of those that have been run with most seeds: one good run is no proof."""
    out = {}
    for budget in sorted({point.case.budget for point in some}):
        here = [point for point in some if point.case.budget == budget]
        most = max(point.seeds for point in here)
        out[budget] = max((point for point in here if point.seeds == most), key=lambda point: point.top1)
    return out


def bytes_for(curve: dict[int, Point], goal: float) -> float | None:
    """Bytes a source image at this accuracy, on the log axis between budgets; None where it is not reached between."""
    sizes = np.log([point.bytes for point in curve.values()])
    heights = np.maximum.accumulate([point.top1 for point in curve.values()])
    if len(sizes) < 2 or not heights[0] <= goal <= heights[-1]:
        return None
    return float(np.exp(np.interp(goal, heights, sizes)))


def verdict(some: list[Point], family: str, soft: str) -> Run:
    """What share of the best alternative's bytes a .dqz needs where that loses LOSS against the full set.

    family  of the .dqz; soft: whose soft labels the alternative has beside it
    """
    full = next((point.top1 for point in some if point.case.name == "full"), math.nan)
    ours = best([point for point in some if point.case.family == family])
    images = [point for point in some if point.case.kind not in ("full", "dqz", "preset")]
    others = best([point for point in images if point.case.soft == soft])
    goal = full - LOSS
    mine, theirs = bytes_for(ours, goal), bytes_for(others, goal)
    return {
        "set": family,
        "soft labels of the others": soft,
        "full": full,
        "goal": goal,
        ".dqz": mine,
        "others": theirs,
        "ratio": mine / theirs if mine and theirs else None,
    }


def table(heads: list[str], rows: list[list[Any]]) -> None:
    """In Markdown."""
    for row in (heads, ["---"] * len(heads), *rows):
        print("| " + " | ".join(map(str, row)) + " |")


def percent(point: Point) -> str:
    spread = "" if math.isnan(point.spread) else f" ± {100 * point.spread:.1f}"
    return f"{100 * point.top1:.1f}{spread}"


def report(name: str) -> None:
    """Tables of all runs, one for each recipe, and the plot."""
    found = points(runs_of(name))
    for recipe in dict.fromkeys(point.recipe for point in found):
        some = [point for point in found if point.recipe == recipe]
        print(f"\n{recipe.network}, {recipe.steps} steps\n")
        order = {kind: n for n, kind in enumerate(("full", "originals", *FORMATS, "dqz"))}
        some.sort(key=lambda p: (p.case.budget, order.get(p.case.kind, 9), p.case.half, p.case.name))
        heads = ["set", "images", "bytes a source image", "top-1, %", "seeds"]
        table(heads, [[p.case.name, p.images, f"{p.bytes:.1f}", percent(p), p.seeds] for p in some])
        if any(point.case.budget for point in some):
            for family, soft in sorted({(p.case.family, p.case.soft) for p in some if p.case.kind == "dqz"}):
                for theirs in dict.fromkeys(("", soft)):
                    print(f"\n{verdict(some, family, theirs)}")
    if any(point.case.budget for point in found):
        plot(found, name)


def plot(found: list[Point], name: str) -> None:
    """Accuracy against bytes, one panel for each recipe."""
    from matplotlib import pyplot

    recipes = sorted({point.recipe for point in found}, key=lambda recipe: (recipe.network, recipe.steps))
    figure, axes = pyplot.subplots(
        1, len(recipes), figsize=(6.5 * len(recipes), 5), layout="constrained", sharex=True, squeeze=False
    )
    found = [point for point in found if point.case.kind != "preset"]
    families = {point.case.family: point.case for point in found if point.case.kind != "full"}
    budgets = sorted({point.case.budget for point in found} - {0})
    for axis, recipe in zip(axes[0], recipes, strict=True):
        some = [point for point in found if point.recipe == recipe]
        for point in some:
            if point.case.kind == "full":
                dashes = "-." if point.case.soft else "--"
                axis.axhline(100 * point.top1, color="grey", linestyle=dashes, label=point.case.family)
        for n, family in enumerate(sorted(families)):
            curve = best([point for point in some if point.case.family == family]).values()
            style: dict[str, Any] = {"color": f"C{n}", "linewidth": 1.2}
            if (case := families[family]).kind == "dqz":
                line = "--" if case.filter else ":" if case.half else "-"
                style = {"color": COLOURS[case.soft], "linewidth": 2.2, "linestyle": line}
            spread = [0.0 if math.isnan(point.spread) else 100 * point.spread for point in curve]
            x, y = [point.bytes for point in curve], [100 * point.top1 for point in curve]
            axis.errorbar(x, y, spread, marker="o", markersize=3, capsize=2, label=family, **style)
        axis.set(xscale="log", xlabel="bytes on disk for each image of the source", ylabel="top-1, %")
        axis.set_xticks(budgets, map(str, budgets))
        axis.minorticks_off()
        axis.set_title(f"{recipe.network}, {recipe.steps} steps")
        axis.grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize="small")
    figure.suptitle(f"{name}: the best share of the images at each budget")
    figure.savefig(RESULTS / f"accuracy-{name}.png", dpi=120)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode in ("compare", "numbers"):
        own = modes.add_parser(mode)
        own.add_argument("train", type=Path)
        own.add_argument("test", type=Path)
        own.add_argument("name")
        own.add_argument("--limit-per-class", type=int)
        own.add_argument("--only", nargs="+", default=["*"])
        own.add_argument("--steps", type=int, default=Recipe.steps)
        own.add_argument("--seeds", type=int, nargs="+", default=[0])
        own.add_argument("--network", default=NARROW)
        own.add_argument("--jobs", type=int, default=1 if torch.cuda.is_available() else os.cpu_count())
        own.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "accuracy")
        if mode == "compare":
            own.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    modes.add_parser("report").add_argument("name")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.mode == "report":
        report(given.name)
        return
    name = given.name if given.mode == "compare" else f"numbers-{given.name}"
    cases = list(compared(given.budgets) if given.mode == "compare" else numbered())
    cases = [case for case in cases if any(fnmatchcase(case.name, pattern) for pattern in given.only)]
    recipe, work = Recipe(given.network, given.steps), given.work / f"{given.name}-{given.limit_per_class or 'all'}"
    tasks = [
        Task(case, recipe, seed, given.train, given.test, given.limit_per_class, work)
        for seed in given.seeds
        for case in cases
    ]
    carry_out(tasks, name, given.jobs)
    report(name)


if __name__ == "__main__":
    main()
