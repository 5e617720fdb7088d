"""How well dropped patches are brought back: the small MAEs beside the mean colour, interpolation and OpenCV.

    python benchmarks/inpainting.py DATA          needs opencv-python-headless

DATA holds cifar10/{train,test}, tiny-imagenet-100/{train,test} and imagenet-sample-250/photos, as folders of images.
The models were trained on cifar10/train, tiny-imagenet-100/train and photos-train; what is filled here is from
cifar10/test, tiny-imagenet-100/test and imagenet-sample-250. Kept patches went through the transform dct at the default
of 4 bits. Errors are over the dropped patches only, against the original. PSNR is the mean over images; in brackets
that of the mean squared error over all of them.

The masks are those of GradCAM++ of a proxy trained on the training part (at 224 pixels: on tiny-imagenet-100/train,
with the class that it predicts), and random ones.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))

from common import save
from train_mae import Coded

from dqcodec.container.spec import Array
from dqcodec.data.dataset import fill_mean, fill_smooth
from dqcodec.models import checkpoints, proxy
from dqcodec.models.gradcam import patch_scores
from dqcodec.patches import drop_count, join, keep_mask, split, to_pixels
from dqcodec.smooth import smooth
from dqcodec.sources.folder import scan
from dqcodec.sources.images import read, thumbnail

RESULTS = Path(__file__).parent / "results"
COUNT = {32: 1000, 64: 1000, 224: 250}
PROXY = {32: 500, 64: 60}  # training images a class for the proxy
DROPS = (0.25,)
HARMONIC_SWEEPS = 32  # until nothing changes any more
RADII = (3, 5)  # of OpenCV's methods; the better one counts
Fill = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # uint8 (n, 3, H, W), bool (n, P) -> uint8 (n, 3, H, W)


def load(folder: Path, size: int, a_class: int | None) -> tuple[Array, Array]:
    """uint8 (n, size, size, 3) and labels: the first images of each class."""
    found = scan(folder)
    chosen = [
        i for label in range(len(found.classes)) for i in np.flatnonzero(found.labels == label)[:a_class].tolist()
    ]
    images = [read(partial(found.open, i), found.names[i], size, "crop", 3) for i in chosen]
    return np.stack(images), found.labels[chosen]


def cases(data: Path) -> dict[int, tuple[int, Array, Array]]:
    """By size: patch, images uint8 (n, s, s, 3), and GradCAM++ scores of their patches (n, P)."""
    found, device = {}, torch.device("cpu")
    for size, patch, name in ((32, 4, "cifar10"), (64, 8, "tiny-imagenet-100")):
        seen, labels = load(data / name / "train", size, PROXY[size])
        classes = int(labels.max()) + 1
        model = proxy.restore(proxy.train(seen, labels, classes, device, 0), device)
        images, labels = load(data / name / "test", size, COUNT[size] // classes)
        found[size] = patch, images, scores(model, images, labels, size, patch)
    photos, _ = load(data / "imagenet-sample-250", 224, COUNT[224])
    small = np.stack([thumbnail(image, 64) for image in photos])
    with torch.inference_mode():
        guess = torch.cat([model(proxy.normalise(proxy.to_tensor(s, device))).argmax(1) for s in np.split(small, 10)])
    found[224] = 16, photos, scores(model, small, guess.numpy(), 224, 16)
    return found


def scores(model: proxy.Proxy, images: Array, labels: Array, size: int, patch: int) -> Array:
    starts = range(0, len(images), 50)
    return np.concatenate([patch_scores(model, images[s : s + 50], labels[s : s + 50], size, patch) for s in starts])


def fillers(size: int, patch: int) -> dict[str, Fill]:
    grid = (size // patch, size // patch)

    def harmonic(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = smooth(split(images.float(), patch), mask, grid, HARMONIC_SWEEPS)
        return join((found + 0.5).clamp(0, 255).to(torch.uint8), grid)

    def opencv(images: torch.Tensor, mask: torch.Tensor, radius: int, method: int) -> torch.Tensor:
        holes = (~to_pixels(mask, grid, patch))[:, 0].numpy().astype(np.uint8)
        pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        found = [cv2.inpaint(image, hole, radius, method) for image, hole in zip(pixels, holes, strict=True)]
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)

    model = checkpoints.built_in(patch).model
    return {
        "mean": partial(fill_mean, patch=patch),
        "smooth": partial(fill_smooth, patch=patch),
        "harmonic": harmonic,
        **{f"Telea, radius {r}": partial(opencv, radius=r, method=cv2.INPAINT_TELEA) for r in RADII},
        **{f"Navier-Stokes, radius {r}": partial(opencv, radius=r, method=cv2.INPAINT_NS) for r in RADII},
        "mae": partial(model.fill, patch=patch),
    }


def psnr(found: torch.Tensor, images: torch.Tensor, dropped: torch.Tensor) -> tuple[float, float]:
    """Mean over images, and of the mean squared error over all, in dB; over the dropped pixels."""
    square = ((found.float() - images.float()) ** 2 * dropped).sum((1, 2, 3)) / (3 * dropped.sum((1, 2, 3)))
    return (10 * torch.log10(255**2 / square.clamp_min(0.01))).mean().item(), (
        10 * torch.log10(255**2 / square.mean())
    ).item()


def speed(fill: Fill, images: torch.Tensor, mask: torch.Tensor) -> float:
    """Images a second, the best of five runs over a batch."""
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        fill(images, mask)
        best = min(best, time.perf_counter() - start)
    return float(len(images) / best)


def picture(rows: list[list[tuple[str, Array]]]) -> None:
    """benchmarks/results/inpainting.png: images (H, W, 3) in rows, titles over the first."""
    tile, gap = 150, 6
    canvas = Image.new("RGB", (gap + (tile + gap) * len(rows[0]), 24 + (tile + gap) * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for y, row in enumerate(rows):
        for x, (title, pixels) in enumerate(row):
            place = gap + x * (tile + gap), 24 + y * (tile + gap)
            how = Image.Resampling.NEAREST if len(pixels) < tile else Image.Resampling.LANCZOS
            canvas.paste(Image.fromarray(pixels).resize((tile, tile), how), place)
            if y == 0:
                draw.text((place[0], 6), title, "black")
    canvas.save(RESULTS / "inpainting.png", optimize=True)


def main(data: Path) -> None:
    results, rows = [], []
    for size, (patch, pixels, attention) in cases(data).items():
        grid = (size // patch, size // patch)
        rng = np.random.default_rng(0)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        for drop in DROPS:
            chance = rng.random(attention.shape)
            for kind, score in (("GradCAM++", attention), ("random", chance)):
                kept = keep_mask(score, drop, grid)
                mask = torch.from_numpy(kept)
                dropped = ~to_pixels(mask, grid, patch)
                coded = torch.from_numpy(Coded(patch, (4.0, 4.0))(rng, pixels, kept))
                found = {name: fill(coded, mask) for name, fill in fillers(size, patch).items()}
                for name, filled in found.items():
                    one, pooled = psnr(filled, images, dropped)
                    results.append({"size": size, "patch": patch, "masks": kind, "drop": drop, "fill": name,
                                    "psnr": round(one, 3), "psnr_of_mean": round(pooled, 3)})  # fmt: skip
                    print(f"{size:4d} {kind:10s} {drop:.2f} {name:24s} {one:6.2f} dB ({pooled:.2f})", flush=True)
                if kind == "GradCAM++" and drop == DROPS[0]:
                    shown = {"original": images, "kept": coded, **{name: found[name] for name in ("mean", "smooth")},
                             "Telea": found["Telea, radius 3"], "mae": found["mae"]}  # fmt: skip
                    for k in np.linspace(0, len(images) - 1, 5).astype(int)[1:4]:
                        rows.append([(name, x[k].permute(1, 2, 0).numpy()) for name, x in shown.items()])
                    batch = slice(0, 64 if size == 224 else 512)
                    fast = {
                        name: round(speed(fill, coded[batch], mask[batch]), 1)
                        for name, fill in fillers(size, patch).items()
                        if name != "harmonic"
                    }
                    print(f"{size:4d} images a second: {fast}", flush=True)
                    results.append({"size": size, "threads": torch.get_num_threads(), "images_a_second": fast})
        print(f"{size:4d}: {drop_count(grid[0] * grid[1], DROPS[0])} of {grid[0] * grid[1]} patches at 25%", flush=True)
    picture(rows)
    weights = {name: checkpoints.built_in(patch).sha256 for patch, name in checkpoints.BUILT_IN.items()}
    versions = {name: version(name) for name in ("opencv-python-headless", "timm")}
    save("inpainting", {"results": results, "weights": weights, "versions": versions})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
