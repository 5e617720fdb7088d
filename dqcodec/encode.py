"""The encoder: an image folder goes in, a .dqz comes out.

    read -> features -> bins -> sampling -> patch scores -> mask -> quantize -> pack -> write

This module is the only place that knows that order. A stage that the options make needless does not run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec import features as feature_sources
from dqcodec.codec import pixel, quantize
from dqcodec.container.spec import MAX_PATCHES, MAX_SIDE, Header
from dqcodec.container.writer import Writer
from dqcodec.errors import OptionError, SourceError
from dqcodec.parallel import default_workers, ordered_map
from dqcodec.patches import drop_count, keep_mask, to_patches
from dqcodec.selection import Selection, check_bins, check_keep, select
from dqcodec.sources import images
from dqcodec.sources.folder import Folder, scan

if TYPE_CHECKING:
    import torch

    from dqcodec.models.proxy import Proxy

Array = npt.NDArray[Any]
Progress = Callable[[str, int, int], None]

SCORE_BATCH = 64
PROXY_SIZE = 64  # pixels a side that the proxy looks at; larger images are scaled down


@dataclass(frozen=True)
class EncodeOptions:
    """What decides the content of the file; the file stores it.

    keep      share of the samples that are kept, 0 < keep <= 1
    bins      bins a class
    drop      share of the patches dropped of each image, 0 <= drop < 1
    bits      bits a value, 2..8
    size      pixels a side; None: as the data, at most 224
    resize    how other shapes become square: "squash", "crop" or "pad"
    patch     side of a patch in pixels; None: 16 at 224, 8 at 64, 4 at 32
    features  "proxy", "timm:NAME", "timm:NAME@WEIGHTS" or "FILE.npy"
    seed      of every random choice
    """

    keep: float = 0.6
    bins: int = 10
    drop: float = 0.25
    bits: int = 6
    size: int | None = None
    resize: str = "squash"
    patch: int | None = None
    features: str = "proxy"
    seed: int = 0

    def check(self) -> None:
        """Raise OptionError where a value is outside its range."""
        check_keep(self.keep)
        check_bins(self.bins)
        if not 0 <= self.drop < 1:
            raise OptionError(f"drop: {self.drop}; allowed: 0 <= drop < 1")
        if not quantize.MIN_BITS <= self.bits <= quantize.MAX_BITS:
            raise OptionError(f"bits: {self.bits}; allowed: {quantize.MIN_BITS} to {quantize.MAX_BITS}")
        if self.size is not None and not 1 <= self.size <= MAX_SIDE:
            raise OptionError(f"size: {self.size}; allowed: 1 to {MAX_SIDE}")
        if self.resize not in images.RESIZES:
            raise OptionError(f"resize: {self.resize!r}; allowed: {', '.join(images.RESIZES)}")
        if self.patch is not None and not 1 <= self.patch <= MAX_SIDE:
            raise OptionError(f"patch: {self.patch}; allowed: 1 to {MAX_SIDE}")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed: {self.seed}; allowed: 0 to 2^63 - 1")
        feature_sources.check(self.features)


@dataclass(frozen=True)
class EncodeResult:
    """What was done.

    path, options    the file, and the options with size and patch filled in
    header           the header as written
    images           usable images in the source
    kept             samples in the file
    bytes_in         bytes of the usable source files
    bytes_kept       bytes of the source files whose images were kept
    bytes_out        bytes of the file
    skipped          (name, reason) of everything that was left out because it is no usable image
    notes            sentences that a person should read
    seconds          by stage
    selection        the selection over the usable images, or None where all were kept
    """

    path: Path
    options: EncodeOptions
    header: Header
    images: int
    kept: int
    bytes_in: int
    bytes_kept: int
    bytes_out: int
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    selection: Selection | None


def encode(
    source: str | Path,
    output: str | Path,
    options: EncodeOptions | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> EncodeResult:
    """Encode the image folder `source` (one folder a class) into the .dqz file `output`.

        device     "auto", "cpu", "cuda", "cuda:N" or "mps", for the proxy
        workers    threads that decode and pack images; None: one a processor
        strict     unusable files are an error instead of being skipped and listed
        overwrite  replace an existing output
        progress   called with (stage, done, total)

    Raises OptionError, SourceError or OutputError; then `output` is as it was before.
    """
    options = options or EncodeOptions()
    options.check()
    if workers is not None and workers < 1:
        raise OptionError(f"workers: {workers}; allowed: at least 1")
    run = _Run(workers or default_workers(), strict, progress)

    with run.stage("scan"):
        folder = scan(source)
        run.skip_all(folder.skipped)
    with Writer(output, overwrite) as writer, tempfile.TemporaryFile(dir=Path(output).parent) as scratch:
        with run.stage("read"):
            usable, probes = _probe(folder, run)
            options = _fit(options, probes, run)
            size, patch = _resolved(options)
            grid = (size // patch, size // patch)
            channels = max(probe.channels for probe in probes)
            dropping = drop_count(grid[0] * grid[1], options.drop) > 0
            selecting = options.keep < 1
            with_proxy = dropping or (selecting and options.features == "proxy")
            if selecting or dropping:
                usable, thumbs = _read(folder, usable, options, channels, with_proxy, scratch, run)
        labels = folder.labels[usable]

        if with_proxy:
            with run.stage("proxy"):
                torch_device = _device(device)
                if len(np.unique(labels)) == 1:
                    run.note("all images are of one class, so the proxy classifier has nothing to learn from")
                proxy = _train(thumbs, labels, len(folder.classes), torch_device, options.seed, run)

        selection = None
        kept = np.arange(len(usable))
        if selecting:
            with run.stage("features"):
                if options.features == "proxy":
                    features = feature_sources.from_proxy(proxy, thumbs, torch_device, run.progress)
                elif options.features.endswith(".npy"):
                    features = feature_sources.from_npy(options.features, len(folder))[usable]
                else:
                    pixels = _images(folder, usable, options, channels, run)
                    features = feature_sources.from_timm(
                        options.features, pixels, len(usable), _device(device), run.progress
                    )
            with run.stage("bins"):
                selection = select(features, labels, options.keep, options.bins, options.seed, run.progress)
                kept = selection.kept
                _note_lost_classes(folder, labels, kept, run)

        masks = None
        if dropping:
            with run.stage("patch scores"):
                masks = _masks(proxy, thumbs, labels, kept, options.drop, grid, size, torch_device, run)

        with run.stage("pack"):
            chosen = usable[kept]
            scales: list[int] = []
            written: list[int] = []  # positions in `kept`
            for position, packed in enumerate(_pack(folder, chosen, masks, options, channels, run)):
                if isinstance(packed, SourceError):
                    run.skip(packed)
                    continue
                writer.append(packed[0])
                scales.append(packed[1])
                written.append(position)
                run.report("pack", position + 1, len(chosen))
            if not written:
                raise SourceError(
                    f"{folder.root}: none of the {len(chosen)} chosen images could be read", path=folder.root
                )

        with run.stage("write"):
            kept, chosen = kept[written], chosen[written]
            columns = {
                "label": folder.labels[chosen],
                "bits": np.full(len(chosen), options.bits),
                "scale": np.array(scales),
                "source_index": chosen,
            }
            if masks is not None:
                columns["mask"] = masks[written]
            if selection is not None:
                size_of, taken = np.zeros((2, len(folder.classes), options.bins), np.int64)
                np.add.at(size_of, (labels, selection.bin), 1)
                np.add.at(taken, (labels[kept], selection.bin[kept]), 1)
                columns |= {"bin": selection.bin[kept], "bins/size": size_of, "bins/taken": taken}
            skipped = len(run.skipped)
            about = {
                "source": {"images": len(usable), "bytes": int(folder.sizes[usable].sum()), "skipped": skipped},
                "encode": {**asdict(options), "features": Path(options.features).name},
                "creator": _creator(),
            }
            header = Header(0, size, size, channels, patch, 1, folder.classes, extra=about)
            header = writer.finish(header, columns)

    return EncodeResult(
        Path(output), options, header, len(usable), len(kept),
        bytes_in=int(folder.sizes[usable].sum()), bytes_kept=int(folder.sizes[chosen].sum()),
        bytes_out=Path(output).stat().st_size, skipped=tuple(run.skipped), notes=tuple(run.notes),
        seconds=run.seconds, selection=selection,
    )  # fmt: skip


class _Run:
    """What the stages share: workers, what was skipped, notes, times and the progress callback."""

    def __init__(self, workers: int, strict: bool, progress: Progress | None) -> None:
        self.workers, self.strict, self.progress = workers, strict, progress
        self.skipped: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def report(self, stage: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(stage, done, total)

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def skip(self, error: SourceError) -> None:
        name, _, reason = str(error).partition(": ")
        self.skip_all([(name, reason)])

    def skip_all(self, found: Iterable[tuple[str, str]]) -> None:
        for name, reason in found:
            if self.strict:
                raise SourceError(f"{name}: {reason} (with --strict nothing is skipped)", path=name)
            self.skipped.append((name, reason))


def _probe(folder: Folder, run: _Run) -> tuple[Array, list[images.Probe]]:
    """Read all headers: indices of the files that look usable, and what their headers say."""

    def look(index: int) -> images.Probe | SourceError:
        try:
            return images.probe(lambda: folder.open(index), folder.names[index])
        except SourceError as error:
            return error

    usable, probes = [], []
    for index, found in enumerate(ordered_map(look, range(len(folder)), run.workers)):
        if isinstance(found, SourceError):
            run.skip(found)
        else:
            usable.append(index)
            probes.append(found)
        run.report("look", index + 1, len(folder))
    _check_any(folder, len(usable), run)
    empty = np.flatnonzero(np.bincount(folder.labels[usable], minlength=len(folder.classes)) == 0)
    if empty.size:
        run.note(f"{_classes(folder, empty)} without any image; kept in the list of classes")
    return np.array(usable), probes


def _fit(options: EncodeOptions, probes: list[images.Probe], run: _Run) -> EncodeOptions:
    """Fill in size and patch, and check that they fit each other."""
    size = options.size or images.default_size(probes)
    patch = options.patch or images.default_patch(size)
    if size % patch:
        raise OptionError(f"patch: {patch} does not divide the size {size}; allowed here: {_divisors(size)}")
    if (size // patch) ** 2 > MAX_PATCHES:
        raise OptionError(f"patch: {patch} makes {(size // patch) ** 2} patches; allowed: {MAX_PATCHES}")
    if options.drop > 0 and drop_count((size // patch) ** 2, options.drop) == 0:
        run.note(
            f"nothing is dropped: {options.drop:g} of {(size // patch) ** 2} patches of {patch} pixels is under one; "
            "a smaller --patch or another --size has more"
        )
    small = sum(min(p.width, p.height) < size for p in probes)
    if small:
        run.note(
            f"{small:,} of {len(probes):,} images are smaller than {size} pixels and were enlarged; --size sets another"
        )
    return replace(options, size=size, patch=patch)


def _resolved(options: EncodeOptions) -> tuple[int, int]:
    """Size and patch, once `_fit` has filled them in."""
    if options.size is None or options.patch is None:
        raise ValueError("size and patch are not known yet")
    return options.size, options.patch


def _divisors(size: int) -> str:
    return ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)


def _read(
    folder: Folder,
    usable: Array,
    options: EncodeOptions,
    channels: int,
    keep_thumbs: bool,
    scratch: IO[bytes],
    run: _Run,
) -> tuple[Array, Array]:
    """Decode every image once, so that the selection is made among whole images only.

    Returns the indices that are left and, with `keep_thumbs`, their thumbnails (N, s, s, C) in a memory-mapped
    temporary file (it vanishes with the process), s = the proxy's size.
    """
    size = min(_resolved(options)[0], PROXY_SIZE)
    left = []

    def shrink(index: int) -> bytes | SourceError:
        try:
            pixels = _read_one(folder, index, options, channels)
        except SourceError as error:
            return error
        return images.thumbnail(pixels, size).tobytes() if keep_thumbs else b""

    for done, thumb in enumerate(ordered_map(shrink, usable.tolist(), run.workers)):
        if isinstance(thumb, SourceError):
            run.skip(thumb)
        else:
            scratch.write(thumb)
            left.append(usable[done])
        run.report("read", done + 1, len(usable))
    _check_any(folder, len(left), run)
    scratch.flush()
    if not keep_thumbs:
        return np.array(left), np.empty((0,))
    return np.array(left), np.memmap(scratch, np.uint8, "r", shape=(len(left), size, size, channels))


def _read_one(folder: Folder, index: int, options: EncodeOptions, channels: int) -> Array:
    size, _ = _resolved(options)
    return images.read(lambda: folder.open(index), folder.names[index], size, options.resize, channels)


def _images(folder: Folder, indices: Array, options: EncodeOptions, channels: int, run: _Run) -> Iterator[Array]:
    """The pixels of images that were read before; one that cannot be read any more is an error."""
    return ordered_map(lambda index: _read_one(folder, index, options, channels), indices.tolist(), run.workers)


def _train(thumbs: Array, labels: Array, classes: int, device: torch.device, seed: int, run: _Run) -> Proxy:
    from dqcodec.models.proxy import train

    return train(thumbs, labels, classes, device, seed, run.progress)


def _masks(
    proxy: Proxy, thumbs: Array, labels: Array, kept: Array, drop: float, grid: tuple[int, int], size: int,
    device: torch.device, run: _Run,
) -> Array:  # fmt: skip
    """uint8 (n, ceil(P/8)): the packed masks of the kept samples, from the proxy's attention."""
    import torch

    from dqcodec.models.gradcam import gradcam_pp, patch_scores
    from dqcodec.models.proxy import normalise

    out = []
    for start in range(0, len(kept), SCORE_BATCH):
        rows = kept[start : start + SCORE_BATCH]
        attention = gradcam_pp(proxy, normalise(thumbs[rows], device), torch.from_numpy(labels[rows]).to(device))
        scores = patch_scores(attention, size, size // grid[0]).cpu().numpy()
        out.append(np.packbits(keep_mask(np.nan_to_num(scores), drop, grid), axis=1, bitorder="little"))
        run.report("patch scores", start + len(rows), len(kept))
    return np.concatenate(out)


def _pack(
    folder: Folder, chosen: Array, masks: Array | None, options: EncodeOptions, channels: int, run: _Run
) -> Iterator[tuple[bytes, int] | SourceError]:
    """Payload and scale index of each chosen image, in order."""
    _, patch = _resolved(options)

    def pack(position: int) -> tuple[bytes, int] | SourceError:
        try:
            patches = to_patches(_read_one(folder, int(chosen[position]), options, channels), patch)
        except SourceError as error:
            return error
        if masks is not None:
            patches = patches[np.unpackbits(masks[position], count=len(patches), bitorder="little").astype(bool)]
        levels, scale = quantize.quantize(patches, options.bits)
        return pixel.encode(levels, options.bits), scale

    return ordered_map(pack, range(len(chosen)), run.workers)


def _check_any(folder: Folder, usable: int, run: _Run) -> None:
    if not usable:
        first = "; the first: {}: {}".format(*run.skipped[0]) if run.skipped else ""
        raise SourceError(
            f"{folder.root} has no usable image; {len(run.skipped)} files were skipped{first}", path=folder.root
        )


def _note_lost_classes(folder: Folder, labels: Array, kept: Array, run: _Run) -> None:
    count = len(folder.classes)
    before, after = np.bincount(labels, minlength=count), np.bincount(labels[kept], minlength=count)
    lost = np.flatnonzero((before > 0) & (after == 0))
    if lost.size:
        run.note(f"{_classes(folder, lost)} so small that no image is kept; a larger --keep keeps some")


def _classes(folder: Folder, labels: Array) -> str:
    names = ", ".join(folder.classes[label] for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
    return f"{len(labels)} class{'es are' if len(labels) > 1 else ' is'} ({names})"


def _device(name: str) -> torch.device:
    """A torch device; OptionError where it is not to be had."""
    try:
        import torch
    except ImportError:
        raise OptionError(
            "choosing samples or patches needs torch: pip install 'dqcodec[torch]' (--keep 1 --drop 0 works without)"
        ) from None
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:120]
        raise OptionError(
            f"device: {name!r} cannot be used ({reason}); allowed: auto, cpu, cuda, cuda:N, mps"
        ) from None
    return device


def _creator() -> str:
    from PIL import __version__ as pillow

    from dqcodec import __version__

    return f"dqcodec {__version__}, Pillow {pillow}"
