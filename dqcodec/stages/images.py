"""read: which files are usable images, and how they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from dqcodec.bits import REACH, Bits, parse
from dqcodec.codec import quantize
from dqcodec.container.spec import LEAST_BITS, MAX_PATCHES
from dqcodec.errors import OptionError, SourceError
from dqcodec.features import torch_device
from dqcodec.options import AUTO, DEFAULT_BINS, DEFAULT_BITS, EncodeOptions
from dqcodec.parallel import ordered_map
from dqcodec.patches import drop_count
from dqcodec.run import Run
from dqcodec.selection.binning import check_bins
from dqcodec.soft import PROXY
from dqcodec.sources.folder import Folder
from dqcodec.sources.images import Probe, default_patch, default_size, probe, read, thumbnail
from dqcodec.work import Rows, Work, status

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]
T = TypeVar("T")

PROXY_SIZE = 64  # pixels a side that the proxy looks at; larger images are scaled down
DCT_SIZE = 32  # pixels a side from which on dct is the default


@dataclass(frozen=True)
class Images:
    """The usable images of a folder, and how they are read.

    usable   int64 (N,), their places among the folder's files
    options  with size, patch, transform and bits filled in
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
    def bits(self) -> Bits:
        return parse(self.options.bits or "")

    @property
    def mean_width(self) -> float:
        """The mean width in bits, once it is known: given, the default, or found for the target size."""
        mean = self.bits.mean
        if mean is None:
            raise ValueError("the mean width is not known yet")
        return mean

    @property
    def unit(self) -> int:
        """Side of the units of dct: the patch's, where patches are dropped, and 16 where none are."""
        return next(n for n in (16, 8, 4) if self.patch % n == 0) if self.drops else 16

    @property
    def selects(self) -> bool:
        return self.options.keep != 1

    @property
    def drops(self) -> bool:
        return drop_count(self.grid[0] * self.grid[1], self.options.drop) > 0

    @property
    def groups(self) -> Array:
        """int64 (N,): the labels, numbered without the classes that have no usable image."""
        return np.unique(self.labels, return_inverse=True)[1]

    @property
    def needs_proxy(self) -> bool:
        return self.drops or self.sees_by_proxy or self.softens_by_proxy or self.bits.mode != "fixed"

    @property
    def sees_by_proxy(self) -> bool:
        """Whether the proxy gives the features."""
        return self.selects and self.options.method != "random" and self.options.features == "proxy"

    @property
    def softens_by_proxy(self) -> bool:
        """Whether the proxy gives soft labels."""
        return self.options.soft_labels == PROXY

    @property
    def needs_thumbs(self) -> bool:
        return self.needs_proxy or (self.selects and self.options.method == "adq")

    @property
    def bins(self) -> int:
        """Bins a class."""
        one = self.options.method in ("graphcut", "random")
        return 1 if one else self.options.bins or min(DEFAULT_BINS, len(self))

    def having(self, **options: Any) -> Images:
        """The same with other options."""
        return replace(self, options=replace(self.options, **options))

    @cached_property
    def place(self) -> torch.device:
        return torch_device(self.device)

    @cached_property
    def about(self) -> list[Any]:
        """All that the pixels follow from: names, sizes and times of the files, options, versions."""
        usable = hashlib.sha256(self.usable.tobytes()).hexdigest()
        return [_versions(), self.folder.listing, usable, self.size, self.options.resize, self.channels]

    @cached_property
    def about_proxy(self) -> list[Any]:
        """All that the proxy follows from."""
        import torch

        return [self.about, torch.__version__, self.place.type, self.options.seed]

    @cached_property
    def about_features(self) -> list[Any]:
        """All that the features and the scores of the bins follow from; a file is known by its size and times."""
        source = self.options.features
        if source == "proxy":
            return self.about_proxy
        place = self.options.inputs().get("features")  # none for a model that timm fetches
        files = status(Path(place)) if place else []
        networks = ("torch", "timm") if find_spec("torch") else ()
        device = self.place.type if networks else "cpu"
        return [self.about, source, files, device, *(version(name) for name in networks)]

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

    with work.rows("headers", [_versions(), folder.listing]) as rows:
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
    run.notes += _resized(probes, size, options)
    options = replace(options, size=size, patch=patch, transform=transform)
    channels = max(found.channels for found in probes)
    images = Images(folder, usable, options, size, patch, channels, device, work)
    images = images.having(bits=str(_bits(images, run)))
    if images.selects:
        check_bins(images.bins, len(images), len(folder.classes))
    by_network = options.method == "adq" or (options.method != "random" and not options.features.endswith(".npy"))
    if images.needs_proxy or (images.selects and by_network):
        _ = images.place  # a device that is not to be had should be known now
    return images


def _resized(probes: list[Probe], size: int, options: EncodeOptions) -> list[str]:
    """Sentences on what becomes of images of other sizes and shapes."""
    found, total = [], f"of {len(probes):,} images"
    small = sum(min(each.width, each.height) < size for each in probes)
    if small:
        found.append(
            f"{small:,} {total} are smaller than {size} pixels and were enlarged; a smaller --size avoids that"
        )
    large = [each for each in probes if min(each.width, each.height) > size]
    if large and options.size is None:
        most = max(large, key=lambda each: each.width * each.height)
        found.append(
            f"{len(large):,} {total} were reduced to {size} x {size} pixels, the largest from "
            f"{most.width} x {most.height}; a larger --size keeps more of them"
        )
    oblong = sum(each.width != each.height for each in probes)
    if oblong and options.resize == "squash":
        found.append(
            f"{oblong:,} {total} are not square and were squashed; --resize crop or pad keeps their proportions"
        )
    return found


def _bits(images: Images, run: Run) -> Bits:
    """What --bits says, or the default: equal widths, as adaptive ones train no better; so too where a bit less or more
    would not be allowed."""
    options, transform, low, high = images.options, images.transform, LEAST_BITS[images.transform], quantize.MAX_BITS
    bits = parse("fixed" if options.bits is None else options.bits)
    if options.target_size is not None and options.keep != AUTO:
        return bits  # the mean is found later
    mean = DEFAULT_BITS[transform] if bits.mean is None else bits.mean
    bits = Bits(bits.mode, mean)
    if transform == "pixel" and (mean % 1 or mean < low):
        raise OptionError(f"bits: {bits}; allowed with pixel: whole bits, {low} to {high}")
    room = bits.mode == "fixed" or low + REACH <= mean <= high - REACH
    if options.target_size is None and not room:
        run.notes.append(f"{bits} leaves no room for a bit less and more, so every sample has {mean:g} bits")
        return Bits("fixed", mean)
    return bits


def _each(function: Callable[[int], Array], indices: Array, rows: Rows, folder: Folder, stage: str, run: Run) -> Array:
    """Append what the function makes of each file, from where an earlier run stopped; the indices of those that could
    be read. The others are skipped, and noted for the next run by their place among the indices."""
    attempted = attempt(function)
    if not all(isinstance(attempted(int(indices[place])), SourceError) for place, _ in rows.notes):
        rows.restart()  # it was no fault of the file
    for place, reason in rows.notes:
        run.skip(folder.names[indices[place]], reason)
    done = rows.done + len(rows.notes)
    for place, found in enumerate(ordered_map(attempted, indices[done:].tolist(), run.workers), done):
        if isinstance(found, SourceError):
            rows.notes.append([place, str(found)])
            run.skip(folder.names[indices[place]], str(found))
        else:
            rows.append(found[None])
        run.progress(stage, place + 1, len(indices))
    left = np.delete(indices, [place for place, _ in rows.notes])
    check_any(folder, len(left), run)
    return left


def _versions() -> list[str]:
    from PIL import __version__ as pillow

    from dqcodec import __version__

    return [__version__, pillow]


def read_all(images: Images, run: Run) -> Images:
    """Decode every image once, so that the selection is made among whole images only; keep what the proxy sees."""
    size = min(images.size, PROXY_SIZE)
    nothing = np.zeros(0, np.uint8)

    def shrink(index: int) -> Array:
        pixels = images.pixels(index)
        return thumbnail(pixels, size) if images.needs_thumbs else nothing

    with images.work.rows("thumbnails", [images.about, images.needs_thumbs and size]) as rows:
        usable = _each(shrink, images.usable, rows, images.folder, "read", run)
        images = replace(images, usable=usable, thumbs=rows.finish())
    if not images.selects:
        return images
    check_bins(images.bins, len(images))
    return images.having(bins=images.bins)


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
