"""read: which files are usable images, and how they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from dqcodec.codec import quantize
from dqcodec.container.spec import MAX_PATCHES
from dqcodec.errors import OptionError, SourceError
from dqcodec.features import torch_device
from dqcodec.options import DEFAULT_BINS, DEFAULT_BITS, EncodeOptions
from dqcodec.parallel import ordered_map
from dqcodec.patches import drop_count
from dqcodec.run import Run
from dqcodec.selection.binning import check_bins
from dqcodec.sources.folder import Folder
from dqcodec.sources.images import Probe, default_patch, default_size, probe, read, thumbnail
from dqcodec.work import Rows, Work

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
T = TypeVar("T")

PROXY_SIZE = 64  # pixels a side that the proxy looks at; larger images are scaled down
MAX_CLASS_BINS = 1 << 22  # classes x bins
DCT_SIZE = 32  # pixels a side from which on dct is the default


@dataclass(frozen=True)
class Images:
    """The usable images of a folder, and how they are read.

    usable   int64 (N,), their places among the folder's files
    options  with size and patch filled in
    device   for networks
    work     where stages find what an earlier run made
    thumbs   uint8 (N, s, s, C), memory-mapped; what the proxy sees and texture is measured on, where that is needed
    """

    folder: Folder
    usable: Array
    options: EncodeOptions
    size: int
    patch: int
    channels: int
    device: str
    work: Work
    thumbs: Array | None = None

    def __len__(self) -> int:
        return len(self.usable)

    @cached_property
    def labels(self) -> Array:
        return self.folder.labels[self.usable]

    @property
    def bytes(self) -> int:
        """Bytes of their files."""
        return int(self.folder.sizes[self.usable].sum())

    @property
    def grid(self) -> tuple[int, int]:
        return self.size // self.patch, self.size // self.patch

    @property
    def transform(self) -> str:
        return self.options.transform or ""

    @property
    def bits(self) -> float:
        return self.options.bits or 0

    @property
    def unit(self) -> int:
        """Side of the units of dct: the patch's, where patches are dropped, and 16 where none are."""
        return next(n for n in (16, 8, 4) if self.patch % n == 0) if self.drops else 16

    @property
    def selects(self) -> bool:
        return self.options.keep < 1

    @property
    def drops(self) -> bool:
        return drop_count(self.grid[0] * self.grid[1], self.options.drop) > 0

    @property
    def groups(self) -> Array:
        """int64 (N,): the labels, numbered without the classes that have no usable image."""
        return np.unique(self.labels, return_inverse=True)[1]

    @property
    def needs_proxy(self) -> bool:
        return self.drops or (self.selects and self.options.method != "random" and self.options.features == "proxy")

    @property
    def needs_thumbs(self) -> bool:
        return self.needs_proxy or (self.selects and self.options.method == "adq")

    @property
    def bins(self) -> int:
        """Bins a class."""
        return 1 if self.options.method in ("graphcut", "random") else self.options.bins or DEFAULT_BINS

    @cached_property
    def place(self) -> torch.device:
        return torch_device(self.device)

    @cached_property
    def about(self) -> list[Any]:
        """All that the pixels follow from: names, sizes and times of the files, options, versions."""
        from PIL import __version__ as pillow

        from dqcodec import __version__

        usable = hashlib.sha256(self.usable.tobytes()).hexdigest()
        return [__version__, pillow, _listing(self.folder), usable, self.size, self.options.resize, self.channels]

    @cached_property
    def about_proxy(self) -> list[Any]:
        """All that the proxy follows from."""
        import torch

        return [self.about, torch.__version__, self.place.type, self.options.seed]

    @cached_property
    def about_features(self) -> list[Any]:
        """All that the features follow from; a file is known by its name, size and time."""
        source = self.options.features
        if source == "proxy":
            return self.about_proxy
        path = Path(source if source.endswith(".npy") else source.partition("@")[2])
        file = [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
        return [self.about, source, file, self.device]

    @cached_property
    def about_bins(self) -> list[Any]:
        """All that the bins follow from."""
        options = self.options
        return [self.about_features, self.bins, options.normalize, options.bin_sizes]

    @property
    def seen(self) -> Array:
        """The thumbnails, which are there where a proxy is needed."""
        if self.thumbs is None:
            raise ValueError("no thumbnails were made")
        return self.thumbs

    def pixels(self, index: int) -> Array:
        """uint8 (size, size, C) of the file in place `index`; SourceError where it cannot be read."""
        file = partial(self.folder.open, index)
        return read(file, self.folder.names[index], self.size, self.options.resize, self.channels)


def look(folder: Folder, options: EncodeOptions, device: str, work: Work, run: Run) -> Images:
    """Read all headers; what they say decides size, patch and channels."""
    names = folder.names

    def header(index: int) -> Array:
        found = probe(partial(folder.open, index), names[index])
        return np.array([found.width, found.height, found.channels])

    with work.rows("headers", _listing(folder)) as rows:
        usable = _each(header, np.arange(len(folder)), rows, folder, "look", run)
        probes = [Probe(*row) for row in rows.finish().tolist()]
    empty = np.flatnonzero(np.bincount(folder.labels[usable], minlength=len(folder.classes)) == 0)
    if empty.size:
        run.notes.append(f"no image in {class_list(folder, empty)}; the list of classes has it all the same")

    size = options.size or default_size(probes)
    patch = options.patch or default_patch(size)
    if size % patch:
        divisors = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise OptionError(f"patch: {patch} does not divide the size {size}; allowed here: {divisors}")
    bins = options.bins or min(DEFAULT_BINS, len(usable))
    if options.keep < 1 and len(folder.classes) * bins > MAX_CLASS_BINS:
        raise OptionError(f"bins: {bins} for {len(folder.classes)} classes; allowed: {MAX_CLASS_BINS} together")
    patches = (size // patch) ** 2
    if patches > MAX_PATCHES:
        raise OptionError(f"patch: {patch} makes {patches} patches; allowed: {MAX_PATCHES}")
    if options.drop > 0 and drop_count(patches, options.drop) == 0:
        run.notes.append(
            f"nothing is dropped: {options.drop:g} of {patches} patches of {patch} pixels is under one; "
            "a smaller --patch or another --size has more"
        )
    drops = drop_count(patches, options.drop) > 0
    fits = not drops or patch % 4 == 0
    transform = options.transform or ("dct" if size >= DCT_SIZE and fits else "pixel")
    if transform == "dct" and not fits:
        raise OptionError(f"patch: {patch} with dropped patches; allowed with dct: multiples of 4; with pixel: any")
    bits = DEFAULT_BITS[transform] if options.bits is None else options.bits
    if transform == "pixel" and bits != int(bits):
        raise OptionError(f"bits: {bits:g}; allowed with pixel: whole bits, {quantize.MIN_BITS} to {quantize.MAX_BITS}")
    options = replace(options, bins=bins, size=size, patch=patch, transform=transform, bits=float(bits))
    small = sum(min(found.width, found.height) < size for found in probes)
    if small:
        counts = f"{small:,} of {len(probes):,} images are smaller than {size} pixels"
        run.notes.append(f"{counts} and were enlarged; choose a smaller --size to avoid that")
    channels = max(found.channels for found in probes)
    images = Images(folder, usable, options, size, patch, channels, device, work)
    if images.selects and options.method in ("adq", "dq"):
        check_bins(bins, len(images))
    return images


def _each(function: Callable[[int], Array], indices: Array, rows: Rows, folder: Folder, stage: str, run: Run) -> Array:
    """Append what the function makes of each file, from where an earlier run stopped; the indices of those that could
    be read. The others are skipped, and noted for the next run by their place among the indices."""
    for place, reason in rows.notes:
        run.skip_all([(folder.names[indices[place]], reason)])
    done = rows.done + len(rows.notes)
    for place, found in enumerate(ordered_map(attempt(function), indices[done:].tolist(), run.workers), done):
        if isinstance(found, SourceError):
            rows.notes.append([place, str(found).partition(": ")[2]])
            run.skip(found)
        else:
            rows.append(found[None])
        run.progress(stage, place + 1, len(indices))
    left = np.delete(indices, [place for place, _ in rows.notes])
    check_any(folder, len(left), run)
    return left


def _listing(folder: Folder) -> str:
    """A hash of the files' names, classes, sizes and times: what says that they are the same as in another run."""
    found = hashlib.sha256("\0".join(folder.names).encode())
    for column in (folder.labels, folder.sizes, folder.times):
        found.update(column.tobytes())
    return found.hexdigest()


def read_all(images: Images, run: Run) -> Images:
    """Decode every image once, so that the selection is made among whole images only; keep what the proxy sees."""
    size = min(images.size, PROXY_SIZE)
    nothing = np.zeros(0, np.uint8)

    def shrink(index: int) -> Array:
        pixels = images.pixels(index)
        return thumbnail(pixels, size) if images.needs_thumbs else nothing

    with images.work.rows("thumbnails", [images.about, images.needs_thumbs and size]) as rows:
        usable = _each(shrink, images.usable, rows, images.folder, "read", run)
        return replace(images, usable=usable, thumbs=rows.finish())


def attempt(function: Callable[[int], T]) -> Callable[[int], T | SourceError]:
    """The function with a SourceError as a result instead of an exception, so that others go on."""

    def tried(index: int) -> T | SourceError:
        try:
            return function(index)
        except SourceError as error:
            return error

    return tried


def check_any(folder: Folder, usable: int, run: Run) -> None:
    if not usable:
        first = "; the first: {}: {}".format(*run.skipped[0]) if run.skipped else ""
        message = f"{folder.root} has no usable image; skipped files: {len(run.skipped)}{first}"
        raise SourceError(message, path=folder.root)


def class_list(folder: Folder, labels: Array) -> str:
    names = ", ".join(folder.classes[label] for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
    return f"{len(labels)} class{'es' if len(labels) > 1 else ''} ({names})"
