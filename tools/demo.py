"""The whole pipeline on a few real photographs: make a folder, encode it, train from it, look at it.

    python tools/demo.py [FOLDER]        default: demo/

The photographs ship with scikit-image and scikit-learn. Each becomes one class: training crops come from its left
part, test crops from its right part, so the network has to know the material and not the place.
"""

from __future__ import annotations

import io
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

import dqcodec
from dqcodec.container.spec import Array
from dqcodec.models.proxy import Proxy
from dqcodec.patches import to_pixels
from dqcodec.sources.folder import Folder, scan
from dqcodec.sources.images import read

SIZE, TRAIN, TEST, SPLIT = 64, 150, 50, 0.6
STEPS, BATCH = 300, 64
SHOWN = 8

console = Console()


def photographs() -> dict[str, Array]:
    """Colour photographs by name, uint8 (H, W, 3)."""
    china, flower = sklearn.datasets.load_sample_images().images
    motorcycle = skimage.data.stereo_motorcycle()[0]
    names = ["astronaut", "cat", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket"]
    return {
        **{name: getattr(skimage.data, name)() for name in names},
        "china": china,
        "flower": flower,
        "motorcycle": motorcycle,
    }


def make_folder(folder: Path) -> None:
    """FOLDER/train/<class>/*.png and FOLDER/test/<class>/*.png: square crops of 80 to 160 pixels, scaled to 64."""
    rng = np.random.default_rng(0)
    for name, photo in photographs().items():
        height, width, _ = photo.shape
        cut = int(SPLIT * width)
        for part, count, left, right in (("train", TRAIN, 0, cut), ("test", TEST, cut, width)):
            place = folder / part / name
            place.mkdir(parents=True)
            for k in range(count):
                side = int(rng.integers(80, min(160, height, right - left) + 1))
                x = int(rng.integers(left, right - side + 1))
                y = int(rng.integers(0, height - side + 1))
                crop = Image.fromarray(photo[y : y + side, x : x + side])
                crop.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(place / f"{k:03d}.png")


def load_folder(folder: Path) -> tuple[Folder, Tensor, Tensor]:
    """All images of a folder, uint8 (N, 3, 64, 64), and their labels."""
    found = scan(folder)
    pixels = [read(partial(found.open, i), found.names[i], SIZE, "squash", 3) for i in range(len(found))]
    return found, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.from_numpy(found.labels)


def train(dataset: Dataset[tuple[Tensor, int]], test: tuple[Tensor, Tensor], classes: int, what: str) -> float:
    """Accuracy after STEPS steps of BATCH images: the same network, steps and augmentation for everyone."""
    torch.manual_seed(0)
    model = Proxy(3, classes, SIZE)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=STEPS)
    epochs = RandomSampler(dataset, num_samples=STEPS * BATCH)  # type: ignore[arg-type]
    loader = DataLoader(dataset, BATCH, sampler=epochs)
    for (x, y), _ in zip(loader, track(range(STEPS), f"training on {what}", console=console), strict=False):
        x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x)
        loss = F.cross_entropy(model((x.float() - 128) / 64), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        return float((model((test[0].float() - 128) / 64).argmax(1) == test[1]).float().mean())


def as_jpeg(images: Tensor, quality: int) -> int:
    """Bytes of the images as one JPEG file each."""
    total = 0
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality, optimize=True)
        total += file.tell()
    return total


def picture(path: Path, default: dqcodec.DQZDataset, small: dqcodec.DQZDataset, originals: Tensor) -> None:
    """Rows: originals, what the default keeps of them; of the small file the kept patches, and what is made of them."""
    file = small.file
    assert isinstance(file, dqcodec.DQZFile)
    chosen = np.linspace(0, len(file) - 1, SHOWN).astype(int)
    assert file.source_index is not None
    source = file.source_index[chosen].astype(np.int64)
    header = file.reader.header
    shown = to_pixels(file.mask(chosen), header.grid, header.patch)
    rows = [
        ("original", originals[torch.from_numpy(source)].numpy()),
        ("default", default.images(source.tolist()).numpy()),
        ("kept patches", np.where(shown, file.images(chosen, fill="none"), 255).astype(np.uint8)),
        ("brought back", small.images(chosen.tolist()).numpy()),
    ]
    scale, gap, margin = 2, 6, 100
    cell = SIZE * scale
    canvas = Image.new("RGB", (margin + SHOWN * (cell + gap), len(rows) * (cell + gap) + gap), "white")
    draw = ImageDraw.Draw(canvas)
    for r, (title, images) in enumerate(rows):
        top = gap + r * (cell + gap)
        draw.text((8, top + cell // 2 - 6), title, fill="black")
        for c, image in enumerate(images):
            tile = Image.fromarray(image.transpose(1, 2, 0)).resize((cell, cell), Image.Resampling.NEAREST)
            canvas.paste(tile, (margin + c * (cell + gap), top))
    canvas.save(path, optimize=True)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    images, image = folder / "images", folder / "demo.png"
    outputs: dict[str, list[str]] = {"demo.dqz": [], "small.dqz": ["--keep", "0.6", "--drop", "0.25"]}
    started = time.perf_counter()
    shutil.rmtree(images, ignore_errors=True)
    make_folder(images)
    from dqcodec.cli import app

    for name, options in outputs.items():
        arguments = ["encode", str(images / "train"), str(folder / name), *options]
        console.print(f"$ dqcodec {' '.join(arguments)}", style="bold")
        app([*arguments, "--overwrite"], standalone_mode=False)

    found, originals, labels = load_folder(images / "train")
    _, test_images, test_labels = load_folder(images / "test")
    files = {name: dqcodec.DQZDataset(folder / name) for name in outputs}
    sets = {"original images": TensorDataset(originals, labels), **files}
    accuracy = {
        name: train(dataset, (test_images, test_labels), len(found.classes), name) for name, dataset in sets.items()
    }
    default, small = (dqcodec.DQZDataset(folder / name, filter=True) for name in outputs)
    picture(image, default, small, originals)

    table = Table(title="The same network, the same number of steps", title_justify="left")
    for name in ("", "images", "bytes", "ratio", "accuracy"):
        table.add_column(name, justify="left" if not name else "right")
    total = int(found.sizes.sum())
    about = {"demo.dqz": "all of it", "small.dqz": "60% of them, parts dropped"}
    rows = [
        ("original images (PNG)", len(found), total, f"{accuracy['original images']:.1%}"),
        *(
            (f"{name}: {about[name]}", len(files[name]), (folder / name).stat().st_size, f"{accuracy[name]:.1%}")
            for name in outputs
        ),
        ("for comparison: all as JPEG, quality 90", len(found), as_jpeg(originals, 90), "not trained"),
    ]
    for name, count, size, score in rows:
        table.add_row(name, f"{count:,}", f"{size:,}", f"{total / size:.1f} : 1", score)
    console.print(table)
    console.print("Dropped patches are predicted by the masked autoencoder of the package. One seed.")
    console.print(f"The picture: {image}. All of it took {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    main()
