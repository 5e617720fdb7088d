"""quantize -> pack: kept patches become bytes, by one of the two transforms."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from dqcodec.codec import pixel, quantize
from dqcodec.codec.dct.coder import Format, decode
from dqcodec.container.shards import Output
from dqcodec.container.spec import unpack_mask
from dqcodec.container.writer import Writer
from dqcodec.errors import SourceError
from dqcodec.parallel import ordered_map
from dqcodec.patches import join, to_patches, to_units
from dqcodec.run import Run
from dqcodec.stages.images import Images, attempt, check_any

if TYPE_CHECKING:
    from dqcodec.codec.dct.tables import Tables

Array = npt.NDArray[Any]

TRAINING_PIXELS, TRAINING_IMAGES = 25_000_000, 5000  # that static tables are trained on, at most
MIN_TRAINING_IMAGES = 100  # however large they are


@dataclass(frozen=True)
class Packer:
    """How one image becomes bytes.

    pack        from uint8 (H, W, C), the mask bool (P,) and the width in bits: payload and the sample's columns
    unpack      from payloads, masks bool (n, P) and columns: uint8 (n, C, H, W), dropped patches black
    parameters  of the transform, for the header
    tables      columns that are the same for all samples
    """

    pack: Callable[[Array, Array, float], tuple[bytes, dict[str, int]]]
    unpack: Callable[[list[bytes], Array, dict[str, Array]], Array]
    parameters: dict[str, Any]
    tables: dict[str, Array]


@dataclass(frozen=True)
class Coded:
    """
    places   int64 (n,), positions in `kept` of the samples, those that could be read
    lengths  int64 (n,), bytes of each
    bits     float64 (n,), nominal widths
    columns  of the samples, by name
    """

    places: Array
    lengths: Array
    bits: Array
    columns: dict[str, Array]

    def some(self, rows: Array) -> Coded:
        """These of the samples, int64 (m,)."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Coded(self.places[rows], self.lengths[rows], self.bits[rows], columns)


def make_packer(images: Images, kept: Array, masks: Array | None, bits: Array, run: Run) -> Packer:
    """For these images at these widths: with `dct` the tables are trained on them."""
    if images.transform == "pixel":
        return with_pixel(images)
    with run.stage("tables"):
        return with_dct(images, *_tables(images, kept, masks, bits, run))


def quick_packer(images: Images) -> Packer:
    """For images of any kind, a little larger."""
    if images.transform == "pixel":
        return with_pixel(images)
    return with_dct(images, _built_in(images), own=False)


def with_pixel(images: Images) -> Packer:
    def pack(pixels: Array, mask: Array, bits: float) -> tuple[bytes, dict[str, int]]:
        levels, scale = quantize.quantize(to_patches(pixels, images.patch)[mask], int(bits))
        return pixel.encode(levels, int(bits)), {"bits": int(bits), "scale": scale}

    def unpack(payloads: list[bytes], masks: Array, columns: dict[str, Array]) -> Array:
        patches = np.zeros((*masks.shape, images.channels, images.patch, images.patch), np.uint8)
        for k, payload in enumerate(payloads):
            levels = pixel.decode(payload, (int(masks[k].sum()), *patches.shape[2:]), int(columns["bits"][k]))
            patches[k, masks[k]] = quantize.dequantize(levels, columns["scale"][k])
        return join(patches, images.grid)

    return Packer(pack, unpack, {}, {})


def with_dct(images: Images, tables: Tables, own: bool) -> Packer:
    """With these tables, which are the file's own or built in."""
    from dqcodec.codec.dct import pack as dct
    from dqcodec.codec.dct.filter import FILTER, weights

    options, channels = images.options, images.channels
    form = Format(images.size, images.size, channels, tables)  # without the filter, as loaders decode it
    encoder = dct.Encoder(form, options.effort)

    def pack(pixels: Array, mask: Array, bits: float) -> tuple[bytes, dict[str, int]]:
        payload, q, colour = encoder.encode_at(pixels, _units(images, mask), bits)
        columns = {"bits": int(bits + 0.5), "scale": q}
        return payload, columns | {"colour": colour} if channels == 3 else columns

    def unpack(payloads: list[bytes], masks: Array, columns: dict[str, Array]) -> Array:
        units = np.stack([_units(images, mask) for mask in masks])
        return decode(form, payloads, units, columns["scale"], columns.get("colour"))

    return Packer(pack, unpack, *stored(replace(form, weights=weights(FILTER, tables.unit)), own))


def stored(form: Format, own: bool) -> tuple[dict[str, Any], dict[str, Array]]:
    """The parameters and the columns that a file of this format has; own: it holds the tables."""
    from dqcodec.codec.dct.filter import FILTER, NONE
    from dqcodec.codec.dct.tables import DEFAULT

    tables = form.tables
    parameters = {
        "unit": tables.unit, "dependent": tables.dependent, "offset": tables.offset.tolist(),
        "tables": "file" if own else DEFAULT, "filter": NONE if form.weights is None else FILTER,
    }  # fmt: skip
    names = ["context", "coefficient", "side"] + ["rotation"] * (form.channels == 3)
    return parameters, {f"tables/{name}": getattr(tables, name) for name in names} if own else {}


def _units(images: Images, mask: Array) -> Array:
    """uint8 (units,): which units the mask bool (P,) keeps."""
    if images.drops:
        units: Array = to_units(mask[None], images.grid, images.patch // images.unit)[0].astype(np.uint8)
        return units
    return np.ones((-(-images.size // images.unit)) ** 2, np.uint8)


def _built_in(images: Images) -> Tables:
    from dqcodec.codec.dct.pack import dependent
    from dqcodec.codec.dct.tables import built_in

    return built_in(images.unit, dependent(images.options.effort))


def _tables(images: Images, kept: Array, masks: Array | None, bits: Array, run: Run) -> tuple[Tables, bool]:
    """The tables that give the smaller file: its own, trained in two passes over some of the images (True), or the
    built-in ones (False)."""
    from dqcodec.codec.dct import pack as dct
    from dqcodec.codec.dct import train
    from dqcodec.codec.dct.tables import MAX_ROTATIONS, OFFSETS

    options, channels = images.options, images.channels
    known = _built_in(images)
    form = partial(Format, images.size, images.size, channels)
    sample = _sample(images, kept, masks, run)
    if not sample:
        return known, False

    def each(function: Callable[..., Array], given: list[tuple[Any, ...]], done: int) -> Iterator[Array]:
        """The function of every sampled image, with what else is given."""
        results = ordered_map(lambda some: function(*some), given, run.workers)
        for found, result in enumerate(results, 1):
            run.progress("tables", done * len(sample) + found, 4 * len(sample))
            yield result

    rotation = known.rotation
    encoder = dct.Encoder(form(known), options.effort)
    moments = np.array([*each(encoder.moments, [(pixels, units) for _, pixels, units in sample], 1)])
    if channels == 3:
        rotation = train.rotations(moments, MAX_ROTATIONS)
    scaled = [
        (pixels, units, encoder.scale(seen, float(bits[place])))
        for (place, pixels, units), seen in zip(sample, moments, strict=True)
    ]
    tables = replace(known, rotation=rotation)
    counts = []  # a megabyte each
    for done in (2, 3):
        counts.append(reduce(np.add, each(dct.Encoder(form(tables), options.effort).count, scaled, done)))
        tables = train.make(counts[-1], encoder.form.order, rotation, OFFSETS[known.dependent], known.dependent)
    saved = dct.bits_of(counts[0], known, form(known)) - dct.bits_of(counts[1], tables, form(tables))
    gain = saved / 8 * len(kept) / len(sample)
    return (tables, True) if gain > dct.stored_size(tables) else (known, False)


def _sample(images: Images, kept: Array, masks: Array | None, run: Run) -> list[tuple[int, Array, Array]]:
    """Places in `kept`, pixels and units of some of the images; those that cannot be read are left for later."""
    limit = min(TRAINING_IMAGES, max(MIN_TRAINING_IMAGES, TRAINING_PIXELS // images.size**2))
    chosen = some_of(len(kept), limit, images.options.seed).tolist()
    found = []
    read = attempt(lambda place: images.pixels(int(images.usable[kept[place]])))
    for place, pixels in zip(chosen, ordered_map(read, chosen, run.workers), strict=True):
        if not isinstance(pixels, SourceError):
            found.append((place, pixels, _units(images, mask_of(images, masks, place))))
        run.progress("tables", len(found), 4 * len(chosen))
    return found


def some_of(count: int, most: int, seed: int) -> Array:
    """int64: at most so many of the places 0..count-1, at random, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def mask_of(images: Images, masks: Array | None, position: int) -> Array:
    """Patches that the image in this place of `kept` keeps, bool (P,)."""
    patches = images.grid[0] * images.grid[1]
    return np.ones(patches, bool) if masks is None else unpack_mask(masks[position], patches)


class Samples:
    """Kept images, coded at widths that may still change; their bytes wait in a temporary file beside the output.

    places  int64 (n,), which places in `kept`, by default all
    """

    def __init__(
        self, images: Images, kept: Array, masks: Array | None, packer: Packer, writer: Output, run: Run,
        places: Array | None = None,
    ) -> None:  # fmt: skip
        self.places = np.arange(len(kept)) if places is None else places
        self._source = images, kept, masks, packer
        self._writer, self._run, self._final = writer, run, places is None
        self._bits = np.full(len(kept), np.nan)
        self._start, self._length = np.zeros((2, len(kept)), np.int64)
        self._columns: dict[str, Array] = {}
        with writer.writing():
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=writer.path.parent)  # noqa: SIM115 - closed by __exit__

    def code(self, bits: Array) -> Coded:
        """At widths float64 (len(kept),), of which those of other places do not matter; only what changes is coded.

        Files that cannot be read are left out, and skipped where all were to be coded. Those that were read before
        stay as they were.
        """
        images, kept, masks, packer = self._source

        def pack(place: int) -> tuple[bytes, dict[str, int]]:
            pixels = images.pixels(int(images.usable[kept[place]]))
            return packer.pack(pixels, mask_of(images, masks, place), float(bits[place]))

        changed = self.places[bits[self.places] != self._bits[self.places]].tolist()
        for done, (place, found) in enumerate(
            zip(changed, ordered_map(attempt(pack), changed, self._run.workers), strict=True), 1
        ):
            if not isinstance(found, SourceError):
                self._store(place, float(bits[place]), *found)
            elif not self._length[place]:
                self.places = self.places[self.places != place]
                if self._final:
                    self._run.skip(images.folder.names[images.usable[kept[place]]], str(found))
            self._run.progress("pack", done, len(changed))
        check_any(images.folder, len(self.places), self._run)
        columns = {name: column[self.places] for name, column in self._columns.items()}
        return Coded(self.places, self._length[self.places], self._bits[self.places], columns)

    def _store(self, place: int, bits: float, payload: bytes, row: dict[str, int]) -> None:
        with self._writer.writing():
            self._start[place], self._length[place] = self._file.seek(0, 2), len(payload)
            self._file.write(payload)
        self._bits[place] = bits
        for name, value in row.items():
            self._columns.setdefault(name, np.zeros(len(self._bits), np.int64))[place] = value

    def write(self, places: Array, writer: Writer) -> None:
        """Append these to a file, in this order."""
        for payload in self._payloads(places):
            writer.append(payload)

    def unpack(self, coded: Coded, masks: Array) -> Array:
        """The images of some of the samples, uint8 (n, C, H, W), as networks will see them; masks bool (n, P)."""
        *_, packer = self._source
        return packer.unpack(list(self._payloads(coded.places)), masks, coded.columns)

    def _payloads(self, places: Array) -> Iterator[bytes]:
        for place in places.tolist():
            with self._writer.writing():
                self._file.seek(self._start[place])
                payload = self._file.read(int(self._length[place]))
            yield payload

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk fails again here
            self._file.close()
