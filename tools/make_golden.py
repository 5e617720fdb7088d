"""Write the golden files under tests/golden/: files of the released format, and the images that they decode to.

    python tools/make_golden.py          writes what is missing; refuses to change what is there

A golden file stays for ever: a new feature gets a new folder. Every folder holds file.dqz and expected.npz with
`images` (uint8 (N, C, H, W), dropped patches 0) and `mask` (bool (N, P)); SHA256SUMS covers all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dqcodec import DQZFile
from dqcodec.codec import pixel, quantize
from dqcodec.container.spec import Array, Header, pack_mask
from dqcodec.container.writer import Writer
from dqcodec.patches import keep_mask, to_patches

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


def main() -> None:
    wanted: dict[str, Callable[[Path], None]] = {
        "pixel-rgb": lambda path: write(path, 21, 24, 32, 3, 4, 0.25, ["cat", "größe", "snow dog"]),
        "pixel-grey": lambda path: write(path, 15, 10, 10, 1, 5, 0.0, ["one"]),
        "pixel-large": large,
    }
    for name, make in wanted.items():
        folder = GOLDEN / name
        if (folder / "file.dqz").exists():
            print(f"{folder} is there and stays")
            continue
        folder.mkdir(parents=True)
        make(folder / "file.dqz")
        with DQZFile(folder / "file.dqz") as file:
            everything = range(len(file))
            images = file.images(everything, fill="none")
            np.savez_compressed(folder / "expected.npz", images=images, mask=file.mask(everything))
        print(f"wrote {folder}")
    files = sorted(path for path in GOLDEN.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    sums = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(GOLDEN).as_posix()}\n" for path in files
    ]
    (GOLDEN / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
