"""The encoder: an image folder goes in, a .dqz comes out.

    read -> features -> bins -> sampling -> patch scores -> mask -> quantize -> pack -> write

This module is the only place that knows that order. A stage that the options make needless does not run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from dqcodec import features
from dqcodec.codec import pixel, quantize
from dqcodec.codec.dct.coder import Format
from dqcodec.codec.dct.tables import EFFORTS
from dqcodec.container.spec import MAX_PATCHES, MAX_SIDE, Header, pack_mask, unpack_mask
from dqcodec.container.writer import Writer
from dqcodec.errors import OptionError, OutputError, SourceError
from dqcodec.parallel import default_workers, ordered_map
from dqcodec.patches import drop_count, keep_mask, to_patches, to_units
from dqcodec.run import Progress, Run
from dqcodec.selection import Selection, check_bins, check_keep, check_seed, select
from dqcodec.sources.folder import Folder, scan
from dqcodec.sources.images import RESIZES, default_patch, default_size, probe, read, thumbnail

if TYPE_CHECKING:
    import torch

    from dqcodec.codec.dct.tables import Tables
    from dqcodec.models.proxy import Proxy

Array = npt.NDArray[Any]
T = TypeVar("T")

PROXY_SIZE = 64  # pixels a side that the proxy looks at; larger images are scaled down
SCORE_BATCH = 64
MAX_CLASS_BINS = 1 << 22  # classes x bins
TRANSFORMS = ("dct", "pixel")
DEFAULT_BITS = {"dct": 4.0, "pixel": 6.0}
DCT_SIZE = 32  # pixels a side from which on dct is the default
TRAINING_PIXELS, TRAINING_IMAGES = 25_000_000, 5000  # that static tables are trained on, at most


@dataclass(frozen=True)
class EncodeOptions:
    """What decides the content of the file; the file stores it.

    keep      share of the samples that are kept, 0 < keep <= 1
    bins      bins a class
    drop      share of the patches dropped of each image, 0 <= drop < 1
    transform "dct" (smaller), "pixel" (the papers' own); None: dct at 32 pixels and up
    bits      nominal width of a value, 2..8: a step of 2^(8 - bits) grey levels; None: 4 with dct, 6 with pixel, which
              takes whole bits only
    effort    "fast", "default" or "best": how long dct searches
    size      pixels a side; None: as the data, at most 224
    resize    how other shapes become square: "squash", "crop" or "pad"
    patch     side of a patch in pixels; None: 16 at 224, 8 at 64, 4 at 32
    features  "proxy", "timm:NAME", "timm:NAME@WEIGHTS" or "FILE.npy"
    seed      of every random choice
    """

    keep: float = 0.6
    bins: int = 10
    drop: float = 0.25
    transform: str | None = None
    bits: float | None = None
    effort: str = "default"
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
        if self.transform is not None and self.transform not in TRANSFORMS:
            raise OptionError(f"transform: {self.transform!r}; allowed: {', '.join(TRANSFORMS)}")
        if self.bits is not None and not quantize.MIN_BITS <= self.bits <= quantize.MAX_BITS:
            raise OptionError(f"bits: {self.bits:g}; allowed: {quantize.MIN_BITS} to {quantize.MAX_BITS}")
        if self.effort not in EFFORTS:
            raise OptionError(f"effort: {self.effort!r}; allowed: {', '.join(EFFORTS)}")
        if self.size is not None and not 1 <= self.size <= MAX_SIDE:
            raise OptionError(f"size: {self.size}; allowed: 1 to {MAX_SIDE}")
        if self.resize not in RESIZES:
            raise OptionError(f"resize: {self.resize!r}; allowed: {', '.join(RESIZES)}")
        if self.patch is not None and not 1 <= self.patch <= MAX_SIDE:
            raise OptionError(f"patch: {self.patch}; allowed: 1 to {MAX_SIDE}")
        check_seed(self.seed)
        features.check(self.features)


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
    run = Run(workers or default_workers(), strict, progress)
    with run.stage("scan"):
        folder = scan(source, run.progress)
        run.skip_all(folder.skipped)
    _check_output(folder, Path(output))
    if options.keep < 1 and options.features.endswith(".npy"):
        features.from_npy(options.features, len(folder))  # what is wrong with it should be known now

    with Writer(output, overwrite) as writer, tempfile.TemporaryFile(dir=Path(output).parent) as scratch:
        with run.stage("read"):
            images = _look(folder, options, run)
            if images.selects or images.drops:
                images = _read(images, scratch, writer, run)
        proxy = selection = masks = None
        if images.selects:
            if images.options.features == "proxy":
                proxy = _train(images, device, run)
            with run.stage("features"):
                rows = _features(images, proxy, device, run)
            with run.stage("bins"):
                selection = _select(images, rows, run)
        kept = np.arange(len(images)) if selection is None else selection.kept
        if images.drops:
            proxy = proxy or _train(images, device, run)
            with run.stage("patch scores"):
                masks = _masks(images, proxy, kept, run)
        if images.transform == "dct":
            with run.stage("tables"):
                pack = _dct(images, kept, masks, run)
        else:
            pack = _pixel(images)
        with run.stage("pack"):
            written, coded = _pack(images, kept, masks, pack, writer, run)
        with run.stage("write"):
            kept, masks = kept[written], None if masks is None else masks[written]
            columns = {**_columns(images, kept, masks, selection), **coded, **pack.tables}
            header = writer.finish(_header(images, pack, run), columns)

    return EncodeResult(
        Path(output), images.options, header, len(images), len(kept),
        bytes_in=images.bytes, bytes_kept=int(folder.sizes[images.usable[kept]].sum()),
        bytes_out=Path(output).stat().st_size, skipped=tuple(run.skipped), notes=tuple(run.notes),
        seconds=run.seconds, selection=selection,
    )  # fmt: skip


@dataclass(frozen=True)
class _Images:
    """The usable images of a folder, and how they are read.

    usable   int64 (N,), their places among the folder's files
    options  with size and patch filled in
    thumbs   uint8 (N, s, s, C), memory-mapped; what the proxy sees, where one is needed
    """

    folder: Folder
    usable: Array
    options: EncodeOptions
    size: int
    patch: int
    channels: int
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
    def needs_proxy(self) -> bool:
        return self.drops or (self.selects and self.options.features == "proxy")

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


def _look(folder: Folder, options: EncodeOptions, run: Run) -> _Images:
    """Read all headers; what they say decides size, patch and channels."""
    usable, probes = [], []
    names = folder.names
    look = _attempt(lambda index: probe(partial(folder.open, index), names[index]))
    for index, found in enumerate(ordered_map(look, range(len(folder)), run.workers)):
        if isinstance(found, SourceError):
            run.skip(found)
        else:
            usable.append(index)
            probes.append(found)
        run.progress("look", index + 1, len(folder))
    _check_any(folder, len(usable), run)
    empty = np.flatnonzero(np.bincount(folder.labels[usable], minlength=len(folder.classes)) == 0)
    if empty.size:
        run.notes.append(f"no image in {_classes(folder, empty)}; the list of classes has it all the same")

    size = options.size or default_size(probes)
    patch = options.patch or default_patch(size)
    if size % patch:
        divisors = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
        raise OptionError(f"patch: {patch} does not divide the size {size}; allowed here: {divisors}")
    if options.keep < 1 and len(folder.classes) * options.bins > MAX_CLASS_BINS:
        raise OptionError(f"bins: {options.bins} for {len(folder.classes)} classes; allowed: {MAX_CLASS_BINS} together")
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
    options = replace(options, size=size, patch=patch, transform=transform, bits=float(bits))
    small = sum(min(found.width, found.height) < size for found in probes)
    if small:
        counts = f"{small:,} of {len(probes):,} images are smaller than {size} pixels"
        run.notes.append(f"{counts} and were enlarged; choose a smaller --size to avoid that")
    channels = max(found.channels for found in probes)
    return _Images(folder, np.array(usable), options, size, patch, channels)


def _read(images: _Images, scratch: IO[bytes], writer: Writer, run: Run) -> _Images:
    """Decode every image once, so that the selection is made among whole images only; keep what the proxy needs.

    The thumbnails lie in `scratch`, which vanishes with the process.
    """
    size = min(images.size, PROXY_SIZE)

    def shrink(index: int) -> bytes:
        pixels = images.pixels(index)
        return thumbnail(pixels, size).tobytes() if images.needs_proxy else b""

    left = []
    for done, thumb in enumerate(ordered_map(_attempt(shrink), images.usable.tolist(), run.workers)):
        if isinstance(thumb, SourceError):
            run.skip(thumb)
        else:
            with writer.writing():
                scratch.write(thumb)
            left.append(images.usable[done])
        run.progress("read", done + 1, len(images))
    _check_any(images.folder, len(left), run)
    with writer.writing():
        scratch.flush()
    shape = (len(left), size, size, images.channels)
    thumbs = np.memmap(scratch, np.uint8, "r", shape=shape) if images.needs_proxy else None
    return replace(images, usable=np.array(left), thumbs=thumbs)


def _train(images: _Images, device: str, run: Run) -> Proxy:
    place = torch_device(device)
    from dqcodec.models.proxy import train

    if len(np.unique(images.labels)) == 1:
        run.notes.append("all images are of one class, so the proxy classifier has nothing to learn from")
    with run.stage("proxy"):
        classes = len(images.folder.classes)
        return train(images.seen, images.labels, classes, place, images.options.seed, run.progress)


def _features(images: _Images, proxy: Proxy | None, device: str, run: Run) -> Array:
    """float (N, D), from where the options say."""
    source = images.options.features
    if proxy is not None:
        return features.from_proxy(proxy, images.seen, run.progress)
    if source.endswith(".npy"):
        return features.from_npy(source, len(images.folder))[images.usable]
    pixels = ordered_map(images.pixels, images.usable.tolist(), run.workers)
    return features.from_timm(source, pixels, len(images), torch_device(device), run.progress)


def _select(images: _Images, found: Array, run: Run) -> Selection:
    options, folder = images.options, images.folder
    selection = select(found, images.labels, options.keep, options.bins, options.seed, run.progress)
    count = len(folder.classes)
    before = np.bincount(images.labels, minlength=count)
    after = np.bincount(images.labels[selection.kept], minlength=count)
    lost = np.flatnonzero((before > 0) & (after == 0))
    if lost.size:
        run.notes.append(f"no image is kept of {_classes(folder, lost)}: so small is it; a larger --keep keeps some")
    return selection


def _masks(images: _Images, proxy: Proxy, kept: Array, run: Run) -> Array:
    """uint8 (n, ceil(P/8)): the packed masks of the kept samples, from the proxy's attention."""
    from dqcodec.models.gradcam import patch_scores

    out = []
    for start in range(0, len(kept), SCORE_BATCH):
        rows = kept[start : start + SCORE_BATCH]
        scores = patch_scores(proxy, images.seen[rows], images.labels[rows], images.size, images.patch)
        mask = keep_mask(scores, images.options.drop, images.grid)
        out.append(pack_mask(mask))
        run.progress("patch scores", start + len(rows), len(kept))
    return np.concatenate(out)


@dataclass(frozen=True)
class _Packer:
    """How one image becomes bytes.

    pack        from uint8 (H, W, C) and the mask bool (P,): payload and the sample's columns
    parameters  of the transform, for the header
    tables      columns that are the same for all samples
    """

    pack: Callable[[Array, Array], tuple[bytes, dict[str, int]]]
    parameters: dict[str, Any]
    tables: dict[str, Array]


def _pixel(images: _Images) -> _Packer:
    bits = int(images.bits)

    def pack(pixels: Array, mask: Array) -> tuple[bytes, dict[str, int]]:
        levels, scale = quantize.quantize(to_patches(pixels, images.patch)[mask], bits)
        return pixel.encode(levels, bits), {"bits": bits, "scale": scale}

    return _Packer(pack, {}, {})


def _dct(images: _Images, kept: Array, masks: Array | None, run: Run) -> _Packer:
    """Train the static tables on some of the kept images; the built-in ones stay where they give the smaller file."""
    from dqcodec.codec.dct import pack as dct
    from dqcodec.codec.dct.tables import DEFAULT

    options, channels = images.options, images.channels
    q = dct.scale_index(images.bits, options.effort)
    tables, own = _tables(images, kept, masks, q, run)
    encoder = dct.Encoder(Format(images.size, images.size, channels, tables), options.effort)
    width = round(images.bits)

    def pack(pixels: Array, mask: Array) -> tuple[bytes, dict[str, int]]:
        payload, colour = encoder.encode(pixels, _units(images, mask), q)
        columns = {"bits": width, "scale": q}
        return payload, columns | {"colour": colour} if channels == 3 else columns

    parameters = {
        "unit": tables.unit, "dependent": tables.dependent, "offset": tables.offset.tolist(),
        "tables": "file" if own else DEFAULT,
    }  # fmt: skip
    names = ["context", "coefficient", "side"] + ["rotation"] * (channels == 3)
    return _Packer(pack, parameters, {f"tables/{name}": getattr(tables, name) for name in names} if own else {})


def _units(images: _Images, mask: Array) -> Array:
    """uint8 (units,): which units the mask bool (P,) keeps."""
    if images.drops:
        units: Array = to_units(mask[None], images.grid, images.patch // images.unit)[0].astype(np.uint8)
        return units
    return np.ones((-(-images.size // images.unit)) ** 2, np.uint8)


def _tables(images: _Images, kept: Array, masks: Array | None, q: int, run: Run) -> tuple[Tables, bool]:
    """The tables that give the smaller file, and whether they are its own: two passes over a sample of the images."""
    from dqcodec.codec.dct import pack as dct
    from dqcodec.codec.dct import train
    from dqcodec.codec.dct.tables import DEFAULT, MAX_ROTATIONS, OFFSETS, default

    options, channels = images.options, images.channels
    dependent = dct.dependent(options.effort)
    limit = min(TRAINING_IMAGES, max(500, TRAINING_PIXELS // images.size**2))
    chosen = np.sort(np.random.default_rng(options.seed).permutation(len(kept))[:limit])
    built_in = default(DEFAULT, images.unit, OFFSETS[dependent], dependent)
    form = partial(Format, images.size, images.size, channels)

    def each(function: Callable[[Array, Array], T], done: int) -> list[T]:
        """The function of every chosen image and its units; images that cannot be read are left for later."""

        def one(place: int) -> T:
            mask = _mask(images, masks, place)
            return function(images.pixels(int(images.usable[kept[place]])), _units(images, mask))

        found = []
        for position, result in enumerate(ordered_map(_attempt(one), chosen.tolist(), run.workers)):
            if not isinstance(result, SourceError):
                found.append(result)
            run.progress("tables", done * len(chosen) + position + 1, 3 * len(chosen))
        return found

    rotation = built_in.rotation
    encoder = dct.Encoder(form(built_in), options.effort)
    if channels == 3:
        moments = each(encoder.moments, 0)
        if moments:
            rotation = train.rotations(np.array(moments), MAX_ROTATIONS)
    tables, used = replace(built_in, rotation=rotation), 0
    counts = []
    for done in (1, 2):
        encoder = dct.Encoder(form(tables), options.effort)
        found = each(lambda pixels, units, encoder=encoder: encoder.count(pixels, units, q), done)  # type: ignore[misc]
        if not found:
            return built_in, False
        counts.append(np.sum(found, 0))
        used = len(found)
        tables = train.make(counts[-1], encoder.form.order, rotation, OFFSETS[dependent], dependent)
    saved = dct.bits_of(counts[0], built_in, form(built_in)) - dct.bits_of(counts[1], tables, form(tables))
    gain = saved / 8 * len(kept) / used
    return (tables, True) if gain > dct.stored_size(tables) else (built_in, False)


def _mask(images: _Images, masks: Array | None, position: int) -> Array:
    patches = images.grid[0] * images.grid[1]
    return np.ones(patches, bool) if masks is None else unpack_mask(masks[position], patches)


def _pack(
    images: _Images, kept: Array, masks: Array | None, packer: _Packer, writer: Writer, run: Run
) -> tuple[Array, dict[str, Array]]:
    """Code and append the kept images; positions in `kept` that were written, and their columns."""
    chosen = images.usable[kept]

    def pack(position: int) -> tuple[bytes, dict[str, int]]:
        return packer.pack(images.pixels(int(chosen[position])), _mask(images, masks, position))

    written, rows = [], []
    for position, packed in enumerate(ordered_map(_attempt(pack), range(len(chosen)), run.workers)):
        if isinstance(packed, SourceError):
            run.skip(packed)
        else:
            payload, row = packed
            writer.append(payload)
            written.append(position)
            rows.append(row)
        run.progress("pack", position + 1, len(chosen))
    _check_any(images.folder, len(written), run)
    return np.array(written), {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _columns(images: _Images, kept: Array, masks: Array | None, selection: Selection | None) -> dict[str, Array]:
    """The columns of the samples in the file that do not depend on the transform."""
    columns = {"label": images.labels[kept], "source_index": images.usable[kept]}
    if masks is not None:
        columns["mask"] = masks
    if selection is not None:
        size, taken = np.zeros((2, len(images.folder.classes), images.options.bins), np.int64)
        np.add.at(size, (images.labels, selection.bin), 1)
        np.add.at(taken, (images.labels[kept], selection.bin[kept]), 1)
        columns |= {"bin": selection.bin[kept], "bins/size": size, "bins/taken": taken}
    return columns


def _header(images: _Images, packer: _Packer, run: Run) -> Header:
    from PIL import __version__ as pillow

    from dqcodec import __version__

    options = images.options
    about = {
        "source": {"images": len(images), "bytes": images.bytes, "skipped": len(run.skipped)},
        "encode": {**asdict(options), "features": Path(options.features).name if images.selects else None},
        "creator": f"dqcodec {__version__}, Pillow {pillow}",
    }
    size = images.size
    return Header(
        0, size, size, images.channels, images.patch, 1, images.folder.classes, images.transform, (images.transform,),
        parameters=packer.parameters, extra=about,
    )  # fmt: skip


def _attempt(function: Callable[[int], T]) -> Callable[[int], T | SourceError]:
    """The function with a SourceError as a result instead of an exception, so that others go on."""

    def tried(index: int) -> T | SourceError:
        try:
            return function(index)
        except SourceError as error:
            return error

    return tried


def _check_any(folder: Folder, usable: int, run: Run) -> None:
    if not usable:
        first = "; the first: {}: {}".format(*run.skipped[0]) if run.skipped else ""
        message = f"{folder.root} has no usable image; skipped files: {len(run.skipped)}{first}"
        raise SourceError(message, path=folder.root)


def _check_output(folder: Folder, output: Path) -> None:
    """An output among the images might replace one, and would be taken for one in the next run."""
    if folder.root.resolve() in output.resolve().parents:
        raise OutputError(f"{output} is inside the source folder {folder.root}; choose a place outside", path=output)


def _classes(folder: Folder, labels: Array) -> str:
    names = ", ".join(folder.classes[label] for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
    return f"{len(labels)} class{'es' if len(labels) > 1 else ''} ({names})"


def torch_device(name: str) -> torch.device:
    """A torch device; OptionError where torch or the device is not to be had."""
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
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not a kind of device that is used here")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"device: {name!r} is not to be had here; allowed: auto, cpu, cuda, cuda:N, mps") from error
    return device
