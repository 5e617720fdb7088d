"""Write the golden files under tests/golden/: files of the released format, and what they decode to.

    python tools/make_golden.py          writes what is missing; refuses to change what is there

A golden file stays for ever: a new feature gets a new folder. Every folder holds file.dqz. Beside images is
expected.npz with `images` (uint8 (N, C, H, W), dropped patches 0), `mask` (bool (N, P)), and `soft` (float32 (N,
classes)) where there are soft labels; beside records
expected.txt, which has them as Python's `ascii` writes them, one a line. SHA256SUMS covers all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

import dqcodec
from dqcodec.codec import pixel, quantize
from dqcodec.codec import text as text_codec
from dqcodec.codec.dct import train
from dqcodec.codec.dct.coder import Format
from dqcodec.codec.dct.filter import FILTER, NONE, weights
from dqcodec.codec.dct.pack import Encoder, dependent
from dqcodec.codec.dct.tables import OFFSETS, built_in
from dqcodec.container.spec import DICTIONARY, SOFT, Array, Header, pack_mask
from dqcodec.container.writer import Writer
from dqcodec.patches import keep_mask, to_patches, to_units
from dqcodec.records import RecordFile
from dqcodec.stages.code import stored

GOLDEN = Path(__file__).resolve().parent.parent / "tests" / "golden"


def image(number: int, height: int, width: int, channels: int) -> Array:
    """A smooth uint8 image with a little noise, the same on every machine: integers only."""
    y, x, c = np.indices((height, width, channels), dtype=np.int64)
    noise = (y * 7919 + x * 104729 + c * 1299709 + number * 15485863) % 65521 % 13
    wave = (x * (number + 3) + y * (5 - number % 9) + c * 40) * 4 % 512
    values: Array = np.clip(np.abs(wave - 256) * (number % 4 + 1) // 4 + noise, 0, 255).astype(np.uint8)
    return values


def large(path: Path) -> None:
    """Forty images of which one is noise: lengths of 32 bits, columns that gzip makes smaller, unused mask bits, and a
    scale of 1/2, whose products with odd levels are ties."""
    n, patch = 40, 16
    masks = np.ones((n, 100), bool)
    masks[1:, :25] = False
    bits = np.where(np.arange(n) < 2, 8, 4)
    scales = []
    with Writer(path) as writer:
        for k in range(n):
            pixels = np.full((160, 160, 3), 3 * k, np.uint8)
            if k == 0:
                noise = np.asarray(np.random.PCG64(0).random_raw(pixels.size)) >> np.uint64(56)
                pixels[:] = noise.reshape(pixels.shape)
            elif k == 1:
                pixels[:] = (66 + np.arange(160) % 125)[:, None, None]
            levels, scale = quantize.quantize(to_patches(pixels, patch)[masks[k]], int(bits[k]))
            scales.append(scale)
            writer.append(pixel.encode(levels, int(bits[k])))
        columns = {"label": np.zeros(n, np.int64), "bits": bits, "scale": np.array(scales)}
        columns["mask"] = pack_mask(masks)
        writer.finish(Header(0, 160, 160, 3, patch, 1, ("only",), user={"license": "CC0-1.0"}), columns)
    if scales[1] != 112:
        raise ValueError(f"the sample with ties has scale {scales[1]}, not 112")


def write(
    path: Path, n: int, height: int, width: int, channels: int, patch: int, drop: float, classes: list[str]
) -> None:
    """A file of `n` samples with all bit widths in turn."""
    grid = (height // patch, width // patch)
    labels = np.arange(n) * len(classes) // n
    images = [image(k, height, width, channels) for k in range(n)]
    images[0][:] = quantize.ZERO  # nothing to code: the smallest scale
    images[1][:] = np.where(np.indices(images[1].shape).sum(0) % 2, 0, 255)  # the largest contrast
    scores = np.stack([to_patches(a, patch).reshape(grid[0] * grid[1], -1).std(1).round(3) for a in images])
    masks = keep_mask(scores, drop, grid)
    if drop:
        masks[2] = np.arange(masks.shape[1]) == masks.shape[1] - 1  # one patch left
    bits = 2 + np.arange(n) % 7
    scales = []
    with Writer(path) as writer:
        for k in range(n):
            levels, scale = quantize.quantize(to_patches(images[k], patch)[masks[k]], int(bits[k]))
            scales.append(scale)
            writer.append(pixel.encode(levels, int(bits[k])))
        columns = {"label": labels, "bits": bits, "scale": np.array(scales)}
        if drop:
            columns["mask"] = pack_mask(masks)
            columns["bin"] = np.arange(n) % 3
            columns["source_index"] = np.arange(n) * 70
            columns["bins/taken"] = np.stack(
                [np.bincount(columns["bin"][labels == c], minlength=3) for c in range(len(classes))]
            )
            columns["bins/size"] = columns["bins/taken"] * 70
        writer.finish(Header(0, height, width, channels, patch, 1, tuple(classes)), columns)


def soft(path: Path) -> None:
    """Six grey images of four classes with soft labels of two: a share of nothing, shares of all, and what is wrong."""
    levels, scale = quantize.quantize(to_patches(image(0, 8, 8, 1), 4), 4)
    columns = {name: np.full(6, value) for name, value in (("label", 1), ("bits", 4), ("scale", scale))}
    columns["soft/class"] = np.array([[1, 0], [1, 2], [3, 1], [0, 1], [1, 3], [2, 0]])
    columns["soft/share"] = np.array([[64, 0], [40, 24], [33, 21], [0, 0], [63, 0], [1, 1]])
    with Writer(path) as writer:
        for _ in range(6):
            writer.append(pixel.encode(levels, 4))
        writer.finish(Header(0, 8, 8, 1, 4, 1, ("a", "b", "c", "d")), columns)


def dct(path: Path, shape: tuple[int, int, int], patch: int, unit: int, drop: float, effort: str, own: bool) -> None:
    """Nine samples of the transform dct, from the finest step to coarse ones; own: with tables of its own.

    shape   height, width, channels
    """
    n, (height, width, channels) = 9, shape
    grid = (height // patch, width // patch)
    images = [image(k, *shape) for k in range(n)]
    images[0][:] = 128  # nothing to code
    images[1][:] = np.where(np.indices(shape).sum(0) % 2, 0, 255)
    scores = np.stack([np.arange(grid[0] * grid[1]) * 7919 % 31 + k for k in range(n)])
    masks = keep_mask(scores, drop, grid)
    scale = np.arange(n) * 14
    known = built_in(unit, dependent(effort))
    form = Format(height, width, channels, known, weights(FILTER if effort == "default" else NONE, unit))
    units = np.ones((n, form.rows * form.columns), np.uint8)
    if drop:
        units = to_units(masks, grid, patch // unit).astype(np.uint8)
    if own:
        counts = sum(Encoder(form, effort).count(*sample) for sample in zip(images, units, scale.tolist(), strict=True))
        made = train.make(np.asarray(counts), form.order, known.rotation, OFFSETS[known.dependent], known.dependent)
        form = replace(form, tables=made)
    encoder = Encoder(form, effort)
    coded = [encoder.encode(*sample) for sample in zip(images, units, scale.tolist(), strict=True)]
    columns = {"label": np.zeros(n, np.int64), "bits": 2 + np.arange(n) % 7, "scale": scale}
    if channels == 3:
        columns["colour"] = np.array([colour for _, colour in coded])
    if drop:
        columns["mask"] = pack_mask(masks)
    parameters, tables = stored(form, own)
    with Writer(path) as writer:
        for payload, _ in coded:
            writer.append(payload)
        header = Header(0, height, width, channels, patch, 1, ("one",), "dct", ("dct",), parameters=parameters)
        writer.finish(header, columns | tables)


def question(number: int) -> dict[str, Any]:
    """A plain record of a training set."""
    answer = f"{number} times {number % 7} is {number * (number % 7)}."
    return {"instruction": f"What is {number} times {number % 7}?", "input": "", "output": answer, "score": number / 8}


def text(path: Path) -> None:
    """Twenty-two records in frames of four, the last of two, with a dictionary, two classes and bins: every type of
    value, and pairs of values that a careless reader makes equal."""
    zone = timezone(timedelta(hours=1))
    deep: Any = "the bottom"
    for level in range(text_codec.MAX_DEPTH - 1):
        deep = [deep] if level % 2 else {"inner": deep}
    records = [
        *map(question, range(8)),
        {"a": 1, "b": 1.0, "c": True, "d": 0, "e": 0.0, "f": -0.0, "g": False, "h": None},
        {"b": [1, 2.5, [], {}, [None, {"x": ["y", {"z": -1}]}]], "a": {"second": 2, "first": 1}},
        {"64 bits": [-(2**63), 2**63 - 1, 2**63, 2**64 - 1], "beyond": [-(2**63) - 1, 2**64, -(10**40), 7**500]},
        {"low": "\ud83d", "high": "\udca9!", "pair": "\U0001f4a9", "apart": "\udca9\ud83d", "\udfff": "as a key"},
        {"floats": [0.1, 5e-324, 1.7976931348623157e308, -1e16, float("inf"), float("-inf"), float("nan")]},
        {"bytes": b"\x00\xff text", "none": b"", "text": "\x00 text"},
        {"local": datetime(2026, 11, 25, 12), "zone": datetime(2026, 11, 25, 12, 0, 0, 250000, zone)},
        {"first": date(1, 1, 1), "leap": date(2024, 2, 29), "last": datetime(9999, 12, 31, 23, 59, 59, 999999)},
        {"decimals": [Decimal("-12.50"), Decimal("-12.5"), Decimal("1E+6"), Decimal("1000000"), Decimal("0E-9")]},
        {"": "", "empty": ["", [], {}]},
        {},
        {"deep": deep},
        {"long": "dictionary and frame " * 200, "größe": "☃ " * 40},
        {"messages": [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Twenty-two."}]},
    ]
    frame, n = 4, len(records)
    dictionary = zstandard.train_dictionary(512, [text_codec.pack(question(k)) for k in range(1000)]).as_bytes()
    coder = text_codec.Coder(dictionary)
    labels, bins = np.arange(n) * 2 // n, np.arange(n) % 3
    taken = np.stack([np.bincount(bins[labels == c], minlength=3) for c in range(2)])
    columns: dict[str, Array] = {
        "label": labels,
        "bin": bins,
        "source_index": np.arange(n) * 70,
        "bins/taken": taken,
        "bins/size": taken * 70,
        DICTIONARY: np.frombuffer(text_codec.stored_dictionary(dictionary), np.uint8),
    }
    with Writer(path) as writer:
        for start in range(0, n, frame):
            packed = [text_codec.pack(record) for record in records[start : start + frame]]
            writer.append(coder.compress(text_codec.join(packed)))
        classes = ("plain", "größe")
        header = Header(0, 0, 0, 0, 1, 1, classes, "text", ("text",), parameters={"frame": frame})
        writer.finish(header, columns)


def expect(path: Path) -> None:
    """Beside the file, what it decodes to."""
    with dqcodec.open(path) as file:
        everything = range(len(file))
        if isinstance(file, RecordFile):
            lines = [ascii(record) + "\n" for record in file.records(everything)]
            path.with_name("expected.txt").write_text("".join(lines))
        else:
            images = dqcodec.DQZFile(path, filter=True, reader=file.reader).images(everything, fill="none")
            arrays: dict[str, Any] = {"images": images, "mask": file.mask(everything)}
            if SOFT[0] in file.reader.columns:
                arrays["soft"] = file.soft_labels(everything)
            np.savez_compressed(path.with_name("expected.npz"), **arrays)


def main() -> None:
    wanted: dict[str, Callable[[Path], None]] = {
        "pixel-rgb": lambda path: write(path, 21, 24, 32, 3, 4, 0.25, ["cat", "größe", "snow dog"]),
        "pixel-grey": lambda path: write(path, 15, 10, 10, 1, 5, 0.0, ["one"]),
        "pixel-large": large,
        "pixel-soft": soft,
        "dct-rgb": lambda path: dct(path, (40, 56, 3), 8, 16, 0.0, "default", own=True),
        "dct-dropped": lambda path: dct(path, (48, 64, 3), 8, 8, 0.25, "default", own=False),
        "dct-grey": lambda path: dct(path, (24, 36, 1), 12, 4, 0.5, "fast", own=False),
        "text": text,
    }
    for name, make in wanted.items():
        folder = GOLDEN / name
        if (folder / "file.dqz").exists():
            print(f"{folder} is there and stays")
            continue
        folder.mkdir(parents=True)
        make(folder / "file.dqz")
        expect(folder / "file.dqz")
        print(f"wrote {folder}")
    files = sorted(path for path in GOLDEN.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(GOLDEN).as_posix()}\n" for path in files
    ]
    (GOLDEN / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
