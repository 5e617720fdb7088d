"""The training sets that `accuracy.py` compares: each is images to train on, and the bytes that they took on disk."""

from __future__ import annotations

import gzip
import shutil
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import read_images
from contenders import Contender, avif, jpeg, jpegxl, read_avif, read_jpeg, read_jpegxl, read_webp, webp
from PIL import Image
from training import Recipe, fit, logits

import dqcodec
from dqcodec.container.spec import Array
from dqcodec.data.dataset import fill_mean
from dqcodec.models import checkpoints, proxy
from dqcodec.models.gradcam import patch_scores
from dqcodec.patches import keep_mask, to_pixels
from dqcodec.soft import largest, soften, spread
from dqcodec.sources.folder import scan
from dqcodec.sources.images import default_patch

FORMATS = {  # from coarse to fine, in steps as small as the format has them; 4:2:0 is the better one at low rates
    "JPEG": Contender("JPEG", "JPEG", tuple(range(1, 100)), partial(jpeg, chroma="420"), read_jpeg),
    "WebP": Contender("WebP", "WebP", tuple(range(101)), webp, read_webp),
    "JPEG XL": Contender("JPEG XL", "JPEG XL", tuple(np.geomspace(25, 0.1, 150)), jpegxl, read_jpegxl),
    "AVIF": Contender("AVIF", "AVIF", tuple(range(100)), partial(avif, chroma="420"), read_avif),
}
LONG = 3600  # batches that a network is trained on which says soft labels
FEW = 300  # images that a quality is looked for with
BATCH = 500
CPU = torch.device("cpu")


class Unreachable(Exception):  # noqa: N818
    """A budget that even the coarsest setting exceeds."""


@dataclass(frozen=True)
class Case:
    """What a training set is made by.

    kind    "full", "originals" (as many of the files as fit), a format ("WebP"), "dqz"; without a budget "preset"; and
            of uncoded pixels "selected" and "masked"
    budget  bytes for each image of the source; 0: none
    share   of the images that are taken
    half    a format or .dqz: at half the side, brought back bicubically
    method, transform, bits, drop
            .dqz: the options of the encoder
    fill, filter
            .dqz: how dropped patches are brought back, and whether images are filtered
    scores  "masked": by "gradcam" or at "random"
    preset  "preset": a .dqz by these options of the encoder
    soft    with soft labels, the same for all kinds of sets, as a .dqz stores them; their bytes count. They are of the
            "proxy", or of a network of training.py, that is trained on the whole source
    """

    kind: str
    budget: int = 0
    share: float = 1.0
    half: bool = False
    method: str = "random"
    transform: str = "dct"
    bits: str = "fixed"
    drop: float = 0.0
    fill: str = "mae"
    filter: bool = False
    scores: str = "gradcam"
    preset: str = ""
    soft: str = ""

    @property
    def family(self) -> str:
        """What is one line in the plot."""
        kind = ("." if self.kind == "dqz" else "") + self.kind
        kind += (", half side" if self.half else "") + (", filtered" if self.filter else "")
        return kind + (f", soft labels of {self.soft}" if self.soft else "")

    @property
    def file(self) -> str:
        """What distinguishes one .dqz from another."""
        if self.kind == "preset":
            return f"preset {self.preset}"
        drop = f" drop {self.drop:g}" if self.drop else ""
        half = "half " if self.half else ""
        return f"dqz {half}{self.budget} {self.share:g} {self.method} {self.transform} {self.bits}{drop}{self._soft}"

    @property
    def _soft(self) -> str:
        return f" soft of {self.soft}" if self.soft else ""

    @property
    def name(self) -> str:
        if self.kind == "full":
            return self.kind + self._soft
        if self.kind == "originals":
            return f"{self.kind} {self.budget}"
        if self.kind in ("dqz", "preset"):
            soft = self._soft if self.kind == "preset" else ""  # of a .dqz it is in the file's name
            return self.file + soft + (f" {self.fill}" if self.drop else "") + (" filtered" if self.filter else "")
        if self.kind == "selected":
            return f"{self.kind} {self.share:g} {self.method}"
        if self.kind == "masked":
            return f"{self.kind} {self.drop:g} {self.scores} {self.fill}"
        return f"{self.kind} {'half ' if self.half else ''}{self.budget} {self.share:g}{self._soft}"

    @property
    def uses_seed(self) -> bool:
        """Whether another seed makes another set."""
        chooses = self.kind in ("originals", "preset", "masked") or self.share < 1
        return chooses or self.drop > 0 or self.bits == "auto" or bool(self.soft)

    @property
    def needs_proxy(self) -> bool:
        """Whether the encoder trains a network, which is kept for the other sets that need it."""
        if self.kind == "preset" or self.soft:  # whichever says the soft labels
            return True
        encodes = self.kind in ("dqz", "selected")
        return encodes and (self.method != "random" or self.drop > 0 or self.bits == "auto")


@dataclass(frozen=True)
class TrainingSet:
    """
    images  uint8 (N, s, s, 3)
    labels  int64 (N,), or soft ones, float32 (N, classes)
    bytes   of all files on disk (of the pixels, where nothing is coded)
    """

    images: Array
    labels: Array
    bytes: int


@dataclass(frozen=True)
class Source:
    """The original images; sizes are the bytes of their files."""

    folder: Path
    images: Array
    labels: Array
    sizes: Array


def limited(folder: Path, most: int | None, copy: Path) -> Path:
    """A copy with so many images of each class, taken at random; the folder itself without a limit."""
    if most is None:
        return folder
    if not copy.exists():
        temporary, found = copy.with_suffix(".part"), scan(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        for index in by_class(found.labels, 0)[: most * len(found.classes)]:
            target = temporary / found.names[index]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.root / found.names[index], target)
        temporary.rename(copy)
    return copy


def load(folder: Path, saved: Path) -> Source:
    """All images, decoded; kept in the file `saved` for the next time."""
    found = scan(folder)
    if not saved.exists():
        size = Image.open(folder / found.names[0]).width
        images = read_images(found, np.arange(len(found)), size)
        write(saved, TrainingSet(images, found.labels, int(found.sizes.sum())))
    made = restore(saved)
    return Source(folder, made.images, made.labels, found.sizes)


def write(path: Path, made: TrainingSet) -> None:
    """As a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    with open(temporary, "wb") as file:
        np.savez(file, images=made.images, labels=made.labels, bytes=made.bytes)
    temporary.rename(path)


def restore(path: Path) -> TrainingSet:
    with np.load(path) as found:
        return TrainingSet(found["images"], found["labels"], int(found["bytes"]))


def by_class(labels: Array, seed: int) -> Array:
    """All indices in a random order, of which each beginning has equally many of each class, or one more."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        rank[own] = np.arange(len(own))
    return order[np.argsort(rank[order], kind="stable")]


def make(case: Case, source: Source, seed: int, work: Path) -> TrainingSet:
    """Make the set, with what `work` keeps; Unreachable where the budget is too small."""
    budget = case.budget * len(source.images)
    if case.kind == "full":
        labels, extra = with_soft(case, source, np.arange(len(source.images)), seed, work)
        return TrainingSet(source.images, labels, int(source.sizes.sum()) + extra)
    if case.kind in ("dqz", "preset"):
        return from_dqz(case, source, seed, work)
    if case.kind == "selected":
        return selected(case, source, seed, work)
    if case.kind == "masked":
        return masked(case, source, seed)
    order = by_class(source.labels, seed)
    if case.kind == "originals":
        kept = order[: int((np.cumsum(source.sizes[order]) <= budget).sum())]
        return TrainingSet(source.images[kept], source.labels[kept], int(source.sizes[kept].sum()))
    kept = order[: round(case.share * len(order))]
    labels, extra = with_soft(case, source, kept, seed, work)
    images, size = as_files(FORMATS[case.kind], source.images[kept], budget - extra, case.half)
    return TrainingSet(images, labels, size + extra)


def soft_file(teacher: str, source: Source, seed: int, work: Path) -> Path:
    """Where the soft labels of all images of the source are, float32 (N, classes), made where they are not there."""
    path = work / f"soft of {teacher} seed {seed}.npy"
    if not path.exists():
        given = source.images, source.labels, int(source.labels.max()) + 1
        if teacher == "proxy":
            asked = partial(proxy.logits, proxy.restore(proxy.train(*given, CPU, seed), CPU))
        else:
            asked = partial(logits, fit(*given, Recipe(teacher, LONG), seed))
        found = [soften(asked(images), labels) for images, labels in batches(source)]
        with open(path.with_suffix(".part"), "wb") as file:
            np.save(file, np.concatenate(found).astype(np.float32))
        path.with_suffix(".part").rename(path)
    return path


def with_soft(case: Case, source: Source, kept: Array, seed: int, work: Path) -> tuple[Array, int]:
    """The labels of these images, or soft ones as a .dqz gives them back, and the bytes that these take there."""
    if not case.soft:
        return source.labels[kept], 0
    shares = np.load(soft_file(case.soft, source, seed, work))[kept]
    columns = [column.astype(np.uint8) for column in largest(shares)]
    size = sum(len(gzip.compress(column.tobytes(), 9)) for column in columns)
    return spread(columns[0], columns[1], shares.shape[1]), size


def resized(images: Array, side: int) -> Array:
    """Each of uint8 (n, s, s, 3), bicubically, as (n, side, side, 3)."""
    found = (Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images)
    return np.stack([np.asarray(image) for image in found])


def as_files(contender: Contender, images: Array, budget: int, half: bool) -> tuple[Array, int]:
    """One file an image, as fine as the budget allows: decoded, and the bytes of all files.

    The first images have the next finer setting, as many as bring the bytes up to the budget.
    """
    side = images.shape[1]
    small = resized(images, side // 2) if half else images

    def coded(setting: float, some: Array) -> list[bytes]:
        return [contender.encode(image, setting) for image in some]

    def mean(setting: float) -> float:
        return sum(map(len, coded(setting, few))) / len(few)

    few = small[:: max(1, len(small) // FEW)]
    place = max(bisect_right(contender.settings, budget / len(images), key=mean) - 1, 0)
    files = coded(contender.settings[place], small)
    while place and sum(map(len, files)) > budget:
        place -= 1
        files = coded(contender.settings[place], small)
    total = sum(map(len, files))
    if total > budget:
        raise Unreachable(f"{total / len(images):.1f} bytes an image at the coarsest setting")
    if place + 1 < len(contender.settings):
        for n, image in enumerate(small):
            finer = contender.encode(image, contender.settings[place + 1])
            if total + len(finer) - len(files[n]) > budget:
                break
            total += len(finer) - len(files[n])
            files[n] = finer
    decoded = np.stack([contender.decode(data) for data in files])
    return resized(decoded, side) if half else decoded, total


def from_dqz(case: Case, source: Source, seed: int, work: Path) -> TrainingSet:
    path = work / "dqz" / f"{case.file} seed {seed}.dqz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if case.kind == "preset":
            options = replace(dqcodec.PRESETS[case.preset], seed=seed)
        else:
            options = dqcodec.EncodeOptions(
                keep=case.share, drop=case.drop, transform=case.transform, bits=case.bits, method=case.method,
                size=source.images.shape[1] // 2 if case.half else None,
                target_size=case.budget * len(source.images), seed=seed,
                soft_labels=str(soft_file(case.soft, source, seed, work)) if case.soft else None,
            )  # fmt: skip
        encode(source, path, options, work / "stages" if case.needs_proxy else None)
    dataset = dqcodec.DQZDataset(path, fill=case.fill, filter=case.filter, soft_labels=bool(case.soft))
    starts = range(0, len(dataset), BATCH)
    batches = [dataset.images(range(start, min(start + BATCH, len(dataset)))) for start in starts]
    images = torch.cat(batches).permute(0, 2, 3, 1).contiguous().numpy()
    if case.half:
        images = resized(images, source.images.shape[1])
    return TrainingSet(images, dataset.targets_of(list(range(len(dataset)))).numpy(), path.stat().st_size)


def encode(source: Source, path: Path, options: dqcodec.EncodeOptions, work: Path | None) -> dqcodec.EncodeResult:
    try:
        threads = torch.get_num_threads()
        return dqcodec.encode(source.folder, path, options, work=work, workers=threads, overwrite=True)
    except dqcodec.OptionError as error:
        if not str(error).startswith("target_size"):
            raise
        raise Unreachable(str(error)) from None


def selected(case: Case, source: Source, seed: int, work: Path) -> TrainingSet:
    """The pixels of the images that the encoder selects."""
    options = dqcodec.EncodeOptions(
        keep=case.share, drop=0, method=case.method, seed=seed, transform="pixel", bits=2, effort="fast"
    )
    stages = work / "stages" if case.needs_proxy else None
    found = encode(source, work / f"{case.name}.dqz", options, stages).selection
    if found is None:
        raise ValueError(f"{case.name}: nothing is selected")
    images = source.images[found.kept]
    return TrainingSet(images, source.labels[found.kept], images.nbytes)


def masked(case: Case, source: Source, seed: int) -> TrainingSet:
    """All images, uncoded, without a share of their patches, which are brought back."""
    size, classes = source.images.shape[1], int(source.labels.max()) + 1
    patch = default_patch(size)
    grid = size // patch, size // patch
    if case.scores == "gradcam":
        model = proxy.restore(proxy.train(source.images, source.labels, classes, CPU, seed), CPU)
        found = [patch_scores(model, *some, size, patch) for some in batches(source)]
        scores = np.concatenate(found)
    else:
        scores = np.random.default_rng(seed).random((len(source.images), grid[0] * grid[1]))
    mask = torch.from_numpy(keep_mask(scores, case.drop, grid))
    mae, out = checkpoints.built_in(patch).model.float().eval(), []
    for start in range(0, len(source.images), BATCH):
        rows = slice(start, start + BATCH)
        images = torch.from_numpy(source.images[rows]).permute(0, 3, 1, 2)
        fill = mae.fill if case.fill == "mae" else fill_mean
        out.append(fill(images * to_pixels(mask[rows], grid, patch), mask[rows], patch))
    made = torch.cat(out).permute(0, 2, 3, 1).contiguous().numpy()
    return TrainingSet(made, source.labels, made.nbytes)


def batches(source: Source) -> Iterator[tuple[Array, Array]]:
    for start in range(0, len(source.images), BATCH):
        yield source.images[start : start + BATCH], source.labels[start : start + BATCH]
