"""How many bytes an image at equal PSNR, beside JPEG, WebP, JPEG XL and AVIF, and how fast is decoding?

    pip install imagecodecs matplotlib
    python benchmarks/rate_distortion.py FOLDER NAME [LIMIT]      FOLDER/<class>/*, results/rate-distortion-NAME.*
        --size 64        halve the images (box filter) while they stay above 64 pixels, then cut the middle
        --goals 31 33.7  PSNRs at which bytes are compared; the middle one is that of the times
        --bits 3 3.5     nominal widths of ours
        --others 2000    the other formats see so many images only

Ours is decoded as loaders do by default and, "filtered", with its filter, too. Nothing is dropped; .dqz counts whole,
with all its columns; the others count their bare image files, one an image, each format with its better chroma format
at each PSNR. LIMIT and --others take images evenly spaced over the folder; PSNR and SSIM of every format are those of
the images that the others see, and so are the payloads of ours there, with an equal share of everything else in the
file. Bytes between two settings are interpolated, log bytes against PSNR. Encoding is timed at the width at which each
effort has about the PSNR of the times of decoding; these are taken in a process of their own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from zipfile import ZipFile

import numpy as np
from common import RESULTS, save
from contenders import Contender, contenders, versions
from PIL import Image
from skimage.metrics import structural_similarity

import dqcodec
from dqcodec.container.spec import COLUMNS, PAYLOAD, Array, chunk
from dqcodec.sources.folder import scan

GOALS = (31.0, 33.7, 36.7)  # dB
BITS = (2.6, 2.9, 3.2, 3.5, 3.8, 4.1, 4.4, 4.7, 5.0)
EFFORTS = ("fast", "default", "best")
OURS, FILTERED = "ours", "ours, filtered"  # the same files
TWO = ", two threads"
BESIDE = "WebP"  # what two threads gain by it says what the machine has for a second one
SSIM_IMAGES = 100
ROUNDS, ENCODE_ROUNDS = 8, 7
PASSES, BATCHES = 4, 40  # over the images in a round of decoding, and in how many batches all of these are
MANY = 1000  # images that one round of encoding is enough for
MARGIN = 3.0  # dB around the goals that the settings cover, judged by FEW images
FEW = 20
TARGETS: dict[tuple[int, str], dict[float, float]] = {  # bytes of ours / theirs, by side and family: at a PSNR
    (224, "JPEG"): {31.0: 0.54, 33.7: 0.54, 36.7: 0.54},
    (224, "WebP"): {31.0: 0.80, 33.7: 0.80, 36.7: 0.80},
    (224, "JPEG XL"): {31.0: 0.70, 33.7: 0.70, 36.7: 0.70},
    (224, "AVIF"): {31.0: 0.98, 33.7: 0.94, 36.7: 0.91},
    (32, "WebP"): {30.0: 0.62},
}
DECODE_TARGETS = {"JPEG": 1.0, "WebP": 0.45, "JPEG XL": 0.45, "AVIF": 0.45}  # time of ours / theirs, at 224
THREADS_TARGET = 1.8  # two threads against one
ENCODE_TARGETS = {"fast": 4.0, "default": 8.0}  # ms, at 224
COLUMNS_TARGET = 8.0  # bytes a sample, at 32

Row = dict[str, Any]
Curves = dict[str, list[Row]]


def spread(count: int, limit: int | None) -> Array:
    """`limit` of `count` indices, evenly spaced."""
    taken = min(count, limit or count)
    return np.arange(taken) * count // taken


def reduced(image: Image.Image, size: int | None) -> Image.Image:
    """Halved while it stays above `size`, then the middle square of that side."""
    if size is None:
        return image
    while min(image.size) // 2 >= size:
        image = image.reduce(2)
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


def prepare(source: Path, folder: Path, limit: int | None, size: int | None) -> Array:
    """Write the images as PNGs to `folder`/<class>/; they come back as uint8 (N, H, W, 3), in the folder's order."""
    names = scan(source).names
    for index in spread(len(names), limit):
        target = folder / names[index].partition("/")[0] / f"{index:07}.png"
        target.parent.mkdir(exist_ok=True)
        with Image.open(source / names[index]) as image:
            reduced(image.convert("RGB"), size).save(target)
    return np.stack([np.asarray(Image.open(folder / name)) for name in scan(folder).names])


def psnr(decoded: Array, image: Array) -> float:
    """dB over the three colours."""
    return float(10 * np.log10(255**2 / max(float(np.mean((decoded.astype(np.float64) - image) ** 2)), 1e-2)))


def quality(decoded: list[Array], images: Array) -> Row:
    """Mean PSNR over all images, mean SSIM over some of them."""
    some = spread(len(images), SSIM_IMAGES)
    ssim = [structural_similarity(decoded[k], images[k], channel_axis=2) for k in some]
    decibels = [psnr(*pair) for pair in zip(decoded, images, strict=True)]
    return {"psnr": round(float(np.mean(decibels)), 3), "ssim": round(float(np.mean(ssim)), 5)}


def sizes(path: Path) -> dict[str, int]:
    """Bytes in a .dqz: whole, payload, the columns that have a value a sample, the static tables."""
    with ZipFile(path) as archive:
        stored = {member.filename: member.compress_size for member in archive.infolist()}
    columns = {name: stored.get(chunk(name), 0) for name in COLUMNS}
    return {
        "file": path.stat().st_size,
        "payload": sum(size for name, size in stored.items() if name.startswith(f"{PAYLOAD}/c/")),
        "columns": sum(size for name, size in columns.items() if "/" not in name),
        "tables": sum(size for name, size in columns.items() if name.startswith("tables/")),
    }


def encode(folder: Path, path: Path, bits: float, effort: str, workers: int | None = None) -> dqcodec.EncodeResult:
    options = dqcodec.EncodeOptions(keep=1, drop=0, bits=bits, effort=effort)
    return dqcodec.encode(folder, path, options, workers=workers, overwrite=True)


def ours(folder: Path, path: Path, images: Array, seen: Array, bits: float, effort: str) -> dict[str, Row]:
    """One width and effort, without and with the filter; `images` are those at the indices `seen`."""
    encode(folder, path, bits, effort)
    with dqcodec.DQZFile(path) as file, dqcodec.DQZFile(path, filter=True) as filtered:
        count, payload = len(file), int(file.reader.columns["length"][seen].sum())
        decoded = {
            name: [image.transpose(1, 2, 0) for k in seen for image in each.images([k])]
            for name, each in ((OURS, file), (FILTERED, filtered))
        }
    found = sizes(path)
    coded = round(payload / len(seen) + (found["file"] - found["payload"]) / count, 2)
    shares = {f"{part}_bytes": round(size / count, 2) for part, size in found.items()}
    return {
        name: {"setting": bits, "bytes": coded, **quality(pixels, images), **shares} for name, pixels in decoded.items()
    }


def theirs(contender: Contender, images: Array, setting: float) -> Row:
    files = [contender.encode(image, setting) for image in images]
    return {
        "setting": setting,
        "bytes": round(sum(map(len, files)) / len(files), 2),
        **quality([contender.decode(file) for file in files], images),
    }


def useful(contender: Contender, images: Array, goals: list[float]) -> list[float]:
    """The settings around the goals, judged by a few images."""
    few = images[spread(len(images), FEW)]
    found = []
    for setting in contender.settings:
        reached = np.mean([psnr(contender.decode(contender.encode(image, setting)), image) for image in few])
        if goals[0] - MARGIN < reached < goals[-1] + MARGIN:
            found.append(setting)
    return found


def bytes_at(rows: list[Row], goal: float) -> float:
    """Interpolated, log bytes against PSNR; nan outside."""
    rows = sorted(rows, key=lambda row: float(row["psnr"]))
    logs = np.log([row["bytes"] for row in rows])
    return float(np.exp(np.interp(goal, [row["psnr"] for row in rows], logs, np.nan, np.nan)))


def nearest(rows: list[Row], goal: float) -> Row:
    return min(rows, key=lambda row: float(abs(row["psnr"] - goal)))


def compare(curves: Curves, own: str, formats: list[Contender], goals: list[float], side: int) -> list[Row]:
    """The curve `own` of ours against each family, at each goal; None where a goal is not reached."""
    found = []
    for family in dict.fromkeys(contender.family for contender in formats):
        names = [contender.name for contender in formats if contender.family == family]
        for goal in goals:
            mine, rest = bytes_at(curves[own], goal), {name: bytes_at(curves[name], goal) for name in names}
            better = min(names, key=lambda name: rest[name] if rest[name] > 0 else np.inf)
            values = {"ours": mine, "theirs": rest[better], "ratio": mine / rest[better]}
            found.append({
                "psnr": goal, "format": better,
                **{key: None if np.isnan(value) else round(value, 3) for key, value in values.items()},
                "target": TARGETS.get((side, family), {}).get(goal),
            })  # fmt: skip
    return found


def efforts(curves: Curves, others: list[Row]) -> list[Row]:
    """Bytes of the other efforts against those of the default one, each at its own PSNR."""
    return [{**row, "ratio": round(row["bytes"] / bytes_at(curves[OURS], row["psnr"]), 4)} for row in others]


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def split(samples: Any) -> list[Any]:
    size = -(-len(samples) // BATCHES)
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def decode_times(path: Path, seen: Array, images: Array, chosen: dict[str, tuple[Contender, float]]) -> tuple[Row, Row]:
    """ms an image, bytes to pixels, of `images`, which are ours at `seen`: the median and the fastest of the rounds;
    and how many times faster two threads are.

    Everything takes its turn in each round; ratios are the median of those within a round. Two threads take one batch
    after the other, as those of a loader do, and nobody keeps what they made. A round is of many batches, as the last
    one keeps only one thread busy.
    """

    def decode_all(contender: Contender, files: list[bytes]) -> None:
        for data in files:
            contender.decode(data)

    def by_batch(mapped: Callable[..., Iterator[Any]], decode: Callable[[Any], Any], batches: Sequence[Any]) -> None:
        deque(mapped(decode, batches), maxlen=0)

    batches = split(np.tile(seen, PASSES))
    with dqcodec.DQZFile(path) as file, dqcodec.DQZFile(path, filter=True) as filtered, ThreadPoolExecutor(2) as pool:
        jobs: dict[str, Callable[[], Any]] = {
            OURS: partial(by_batch, map, file.images, batches),
            OURS + TWO: partial(by_batch, pool.map, file.images, batches),
            FILTERED: partial(by_batch, map, filtered.images, batches),
        }
        for name, (contender, setting) in chosen.items():
            files = [contender.encode(image, setting) for image in images] * PASSES
            jobs[name] = partial(decode_all, contender, files)
            if name == BESIDE:
                jobs[name + TWO] = partial(by_batch, pool.map, partial(decode_all, contender), split(files))
        for job in jobs.values():
            job()
        rounds = [{name: seconds(job) for name, job in jobs.items()} for _ in range(ROUNDS)]
    gained = {
        name: {
            "median": round(median(found[name] / found[name + TWO] for found in rounds), 3),
            "fastest": round(min(found[name] for found in rounds) / min(found[name + TWO] for found in rounds), 3),
        }
        for name in (OURS, BESIDE)
    }
    each = 1e3 / (PASSES * len(seen))
    times = {
        name: {
            "ms": round(median(found[name] for found in rounds) * each, 4),
            "fastest": round(min(found[name] for found in rounds) * each, 4),
            **{
                f"{own}/this": round(median(found[own] / found[name] for found in rounds), 3)
                for own in (OURS, FILTERED)
            },
        }
        for name in jobs
    }
    return times, gained


def bits_for(goal: float, made: Row, rows: list[Row]) -> float:
    """Nominal width, in sixteenths, of an effort at which it has a PSNR, from that at another width: as much more or
    less as the default effort needs, whose curve is `rows`."""
    rows = sorted(rows, key=lambda row: float(row["psnr"]))
    decibels, bits = [row["psnr"] for row in rows], [row["setting"] for row in rows]
    more = np.interp(goal, decibels, bits) - np.interp(made["psnr"], decibels, bits)
    return round(16 * (float(made["setting"]) + float(more))) / 16


def encode_times(folder: Path, path: Path, bits: dict[str, float]) -> dict[str, Row]:
    """ms an image by stage for each effort, at its width, on one worker, [median, fastest]; beside it reading the PNGs
    alone."""
    files = [folder / name for name in scan(folder).names]

    def read() -> None:
        for name in files:
            np.asarray(Image.open(name).convert("RGB"))

    reading, rounds = [], []
    for _ in range(ENCODE_ROUNDS if len(files) < MANY else 1):  # compiled they are: the curves came first
        reading.append(seconds(read))
        rounds.append({effort: encode(folder, path, bits[effort], effort, 1).seconds for effort in EFFORTS})

    def summary(times: list[float]) -> list[float]:
        return [round(found(times) * 1e3 / len(files), 4) for found in (median, min)]

    stages = {
        effort: {
            "bits": bits[effort],
            **{stage: summary([found[effort][stage] for found in rounds]) for stage in ("read", "tables", "pack")},
        }
        for effort in EFFORTS
    }
    return {**stages, "PNG": {"read": summary(reading)}}


def plot(curves: Curves, name: str, count: int, side: int) -> None:
    """Bytes against PSNR and against SSIM."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for axis, measure, label in zip(axes, ("psnr", "ssim"), ("PSNR, dB", "SSIM"), strict=True):
        for format_name, rows in curves.items():
            style = {"color": "black", "linewidth": 2.2} if format_name in (OURS, FILTERED) else {"linewidth": 1.2}
            line = "--" if format_name == FILTERED else "-"
            x, y = [row["bytes"] for row in rows], [row[measure] for row in rows]
            axis.plot(x, y, line, marker="o", markersize=3, label=format_name.replace("ours", ".dqz"), **style)
        axis.set(xscale="log", xlabel="bytes an image", ylabel=label)
        axis.grid(alpha=0.3, which="both")
    axes[0].legend()
    figure.suptitle(f"{name}: {count} images, {side} x {side}")
    figure.savefig(RESULTS / f"rate-distortion-{name}.png", dpi=120)


def table(title: str, heads: list[str], rows: list[list[Any]]) -> None:
    text = [heads] + [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    print(f"\n{title}")
    for row in text:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def tables(result: Row, side: int) -> None:
    """What people read, with the targets."""
    large = side == 224
    keys = ["psnr", "format", "ours", "theirs", "ratio", "target"]
    for own, rows in result["equal PSNR"].items():
        table(f"bytes an image at equal PSNR, {own}", keys, [[row[key] for key in keys] for row in rows])
    keys = ["setting", "bytes", "psnr", "ssim", "file_bytes", "payload_bytes", "columns_bytes", "tables_bytes"]
    note = f" (columns: at most {COLUMNS_TARGET:g})" if side == 32 else ""
    for own in (OURS, FILTERED):
        table(f"{own}{note}", keys, [[row[key] for key in keys] for row in result["curves"][own]])
    keys = ["effort", "setting", "bytes", "psnr", "ratio"]
    table("efforts; ratio to default at equal PSNR", keys, [[row[key] for key in keys] for row in result["efforts"]])
    times = result["decoding"]["times"]
    families = {contender.name: contender.family for contender in contenders()}
    rows = [[name, *row.values()] for name, row in times.items()]
    goals: dict[str, float | None] = {name: DECODE_TARGETS.get(families.get(name, "")) for name in times}
    rows = [[*row, goals[row[0]] if large else None] for row in rows]
    heads = ["format", *next(iter(times.values())), "target"]
    table(f"decoding at {result['decoding']['psnr']} dB", heads, rows)
    rows = [[name, *row.values()] for name, row in result["decoding"]["two threads"].items()]
    goal = {OURS: THREADS_TARGET if large else None}
    rows = [[*row, goal.get(row[0])] for row in rows]
    table("two threads, times one", ["format", "median", "fastest", "target"], rows)
    goals = {effort: target for effort, target in ENCODE_TARGETS.items() if large}
    rows = [
        [effort, row.get("bits"), *row.get("pack", row["read"]), row.get("tables", [None])[0], goals.get(effort)]
        for effort, row in result["encoding"].items()
    ]
    heads = ["effort", "bits", "pack", "fastest", "tables", "target"]
    title = f"encoding at {result['decoding']['psnr']} dB, ms an image (pack reads the PNG, too; the last row is that)"
    table(title, heads, rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("name")
    parser.add_argument("limit", type=int, nargs="?")
    parser.add_argument("--size", type=int)
    parser.add_argument("--goals", type=float, nargs="+", default=GOALS)
    parser.add_argument("--bits", type=float, nargs="+", default=BITS)
    parser.add_argument("--others", type=int)
    return parser.parse_args()


def measure(folder: Path, path: Path, given: argparse.Namespace) -> Row:
    every = prepare(given.folder, folder, given.limit, given.size)
    goals, side, seen = sorted(given.goals), every.shape[1], spread(len(every), given.others)
    images, middle, formats = every[seen], sorted(given.goals)[len(given.goals) // 2], contenders()
    made = [ours(folder, path, images, seen, bits, "default") for bits in given.bits]
    curves: Curves = {own: [rows[own] for rows in made] for own in (OURS, FILTERED)}
    for contender in formats:
        print(contender.name, file=sys.stderr)
        curves[contender.name] = [theirs(contender, images, k) for k in useful(contender, images, goals)]

    taken = nearest(curves[OURS], middle)
    bits = taken["setting"]
    rest = [{"effort": k, **ours(folder, path, images, seen, bits, k)[OURS]} for k in ("fast", "best")]
    own = {"default": taken, **{row["effort"]: row for row in rest}}
    encode(folder, path, bits, "default")  # for the times
    best = {contender.name: nearest(curves[contender.name], middle) for contender in formats}
    chosen = {contender.name: (contender, best[contender.name]["setting"]) for contender in formats}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:  # as that of a training run
        times, gained = fresh.submit(decode_times, path, seen, images, chosen).result()
    return {
        "question": __doc__.splitlines()[0],
        "images": len(every),
        "images that the others and the comparison see": len(seen),
        "images of SSIM": len(spread(len(seen), SSIM_IMAGES)),
        "side": side,
        "versions": versions(),
        "equal PSNR": {own: compare(curves, own, formats, goals, side) for own in (OURS, FILTERED)},
        "efforts": efforts(curves, rest),
        "decoding": {
            "psnr": middle,
            "at": {**next(rows for rows in made if rows[OURS]["setting"] == bits), **best},
            "times": times,
            "two threads": gained,
        },
        "encoding": encode_times(folder, path, {k: bits_for(middle, row, curves[OURS]) for k, row in own.items()}),
        "curves": curves,
    }


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        result = measure(folder, Path(place) / "x.dqz", given)
    save(f"rate-distortion-{given.name}", result)
    plot(result["curves"], given.name, result["images that the others and the comparison see"], result["side"])
    tables(result, result["side"])


if __name__ == "__main__":
    main()
