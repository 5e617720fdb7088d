"""Train the small masked autoencoders of the package on images.

    python tools/train_mae.py PATCH FOLDER [FOLDER ...] --steps N --out FILE [--batch N] [--log FILE] [--start FILE]

PATCH is 4, or 8, which serves larger patches too, at a smaller size. Images come from all folders alike. What the
network sees went through the transform dct at 3 to 5 bits, and the masks drop 15 to 50% of the patches: in regions like
those that GradCAM++ leaves, and for a quarter of the images at random. A file that exists is not replaced: a .dqz may
name it by its hash.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from dqcodec.codec.dct import coder
from dqcodec.codec.dct.pack import Encoder, scale_index
from dqcodec.codec.dct.tables import built_in
from dqcodec.models import checkpoints
from dqcodec.models.gradcam import patch_means
from dqcodec.models.mae import MAE, MAEConfig
from dqcodec.models.training import Batch, fit
from dqcodec.patches import keep_mask, split, to_units

Array = npt.NDArray[Any]

CONFIGS = {
    4: MAEConfig(32, 4, 3, 96, 2, 3, 96, 2, 3, smooth=2),
    8: MAEConfig(64, 8, 3, 128, 3, 4, 128, 3, 4, smooth=2),
}
GRIDS = {4: (8, 8, 8, 8, 14), 8: (8, 8, 8, 8, 14)}  # sides of the patch grid, in turn
DROPS = (0.15, 0.25, 0.25, 0.35, 0.5)
BITS = (3.0, 5.0)
MASKS = 1000  # made beforehand for each grid and drop ratio
GREY = 0.1  # of the images


def masks(rng: np.random.Generator, count: int, side: int, drop: float) -> Array:
    """bool (count, side^2): regions of low attention, where attention is a few random spots, or random patches."""
    scores = np.empty((count, side * side))
    for k in range(count):
        if rng.random() < 0.25:
            scores[k] = rng.random(side * side)
        else:
            cells = int(rng.integers(3, 9))
            spots = np.maximum(rng.normal(rng.uniform(-0.7, 0.7), 1, (1, cells, cells)), 0)
            scores[k] = patch_means(torch.from_numpy(spots), 4 * side, 4)[0].numpy()
    return keep_mask(scores, drop, (side, side))


def load(folders: list[Path], least: int) -> list[list[Array]]:
    """The images of each folder, uint8 (h, w, 3), no larger than twice what is needed."""
    found = []
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        images = []
        for path in paths:
            image = Image.open(path).convert("RGB")
            if min(image.size) > 2 * least:
                scale = 2 * least / min(image.size)
                image = image.resize([round(scale * n) for n in image.size], Image.Resampling.LANCZOS)
            images.append(np.asarray(image))
        print(f"{folder}: {len(images):,} images", flush=True)
        found.append(images)
    return found


def crop(rng: np.random.Generator, image: Array, size: int) -> Array:
    """A random square of the image as uint8 (size, size, 3), mirrored or not, sometimes grey."""
    least = min(image.shape[:2])
    side = int(rng.integers(min(size, least), least + 1)) if least > size else least
    y, x = (int(rng.integers(0, n - side + 1)) for n in image.shape[:2])
    cut = Image.fromarray(image[y : y + side, x : x + side])
    pixels = np.asarray(cut if side == size else cut.resize((size, size), Image.Resampling.BILINEAR))
    if rng.random() < GREY:
        pixels = np.repeat(pixels.mean(2, keepdims=True).round().astype(np.uint8), 3, 2)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


class Coded:
    """The transform dct at random widths: images (n, H, W, 3) and masks -> what a file gives back, (n, 3, H, W)."""

    def __init__(self, patch: int, bits: tuple[float, float] = BITS) -> None:
        self.patch, self.bits, self.tables = patch, bits, built_in(patch, True)
        self.encoders: dict[int, Encoder] = {}

    def __call__(self, rng: np.random.Generator, images: Array, mask: Array) -> Array:
        n, size = images.shape[:2]
        side = size // self.patch
        encoder = self.encoders.setdefault(size, Encoder(coder.Format(size, size, 3, self.tables), "default"))
        units = to_units(mask, (side, side), 1)
        scale = np.array([scale_index(float(bits), "default") for bits in rng.uniform(*self.bits, (n,))])
        rows = zip(images, units.astype(np.uint8), scale.tolist(), strict=True)
        coded = [encoder.encode(image, kept, q) for image, kept, q in rows]
        payloads, colour = [payload for payload, _ in coded], np.array([colour for _, colour in coded])
        return coder.decode(encoder.form, payloads, units, scale, colour)


def batches(patch: int, pools: list[list[Array]], batch: int, seed: int) -> Iterator[Batch]:
    """Endless: each batch has one grid and one drop ratio, its images from all pools that are large enough."""
    rng, coded = np.random.default_rng(seed), Coded(patch)
    made: dict[tuple[int, float], Array] = {}
    for step in range(sys.maxsize):
        side, drop = GRIDS[patch][step % len(GRIDS[patch])], float(rng.choice(DROPS))
        if (side, drop) not in made:
            made[side, drop] = masks(rng, MASKS, side, drop)
        mask = made[side, drop][rng.integers(0, MASKS, batch)]
        fitting = [pool for pool in pools if min(pool[0].shape[:2]) >= side * patch] or pools
        chosen = [fitting[int(rng.integers(len(fitting)))] for _ in range(batch)]
        images = np.stack([crop(rng, pool[int(rng.integers(len(pool)))], side * patch) for pool in chosen])
        seen = torch.from_numpy(coded(rng, images, mask)).float()
        target = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        yield Batch(split(seen, patch), split(target, patch), torch.from_numpy(mask), (side, side))


def ahead(made: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches, made by another thread while the network learns."""
    ready: queue.Queue[Batch] = queue.Queue(4)

    def work() -> None:
        for batch in made:
            ready.put(batch)

    threading.Thread(target=work, daemon=True).start()
    while True:
        yield ready.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patch", type=int, choices=CONFIGS)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--start", type=Path, help="weights to go on from, in place of random ones")
    parser.add_argument("--share", type=float, default=1.0, help="of the learning rates; less when going on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    if given.out.exists():
        sys.exit(f"{given.out} exists; released weights never change. Give new ones a new name")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    config = CONFIGS[given.patch]
    model = MAE(config)
    if given.start:
        model.load_state_dict(checkpoints.load(given.start).model.state_dict())
    pools = load(given.folders, max(GRIDS[given.patch]) * given.patch)
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines = [f"# {config}", f"# {weights:,} weights, {given}"]
    started, mean = time.perf_counter(), 0.0
    made = ahead(batches(given.patch, pools, given.batch, given.steps))
    for step, loss in enumerate(fit(model, made, given.steps, given.share)):
        mean += (loss - mean) / min(step + 1, 100)
        if (step + 1) % 100 == 0 or step + 1 == given.steps:
            lines.append(f"{step + 1}\t{mean:.4f}\t{time.perf_counter() - started:.0f} s")
            print(lines[-1], flush=True)
            if given.log:
                given.log.write_text("\n".join(lines) + "\n")
    given.out.write_bytes(checkpoints.to_bytes(model))


if __name__ == "__main__":
    main()
