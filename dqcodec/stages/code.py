"""quantize -> pack: kept patches become bytes, by one of the two transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from dqcodec.codec import pixel, quantize
from dqcodec.codec.dct.coder import Format
from dqcodec.container.spec import unpack_mask
from dqcodec.container.writer import Writer
from dqcodec.errors import SourceError
from dqcodec.parallel import ordered_map
from dqcodec.patches import to_patches, to_units
from dqcodec.run import Run
from dqcodec.stages.images import Images, attempt, check_any

if TYPE_CHECKING:
    from dqcodec.codec.dct.tables import Tables

Array = npt.NDArray[Any]
T = TypeVar("T")

TRAINING_PIXELS, TRAINING_IMAGES = 25_000_000, 5000  # that static tables are trained on, at most


@dataclass(frozen=True)
class Packer:
    """How one image becomes bytes.

    pack        from uint8 (H, W, C) and the mask bool (P,): payload and the sample's columns
    parameters  of the transform, for the header
    tables      columns that are the same for all samples
    """

    pack: Callable[[Array, Array], tuple[bytes, dict[str, int]]]
    parameters: dict[str, Any]
    tables: dict[str, Array]


def with_pixel(images: Images) -> Packer:
    bits = int(images.bits)

    def pack(pixels: Array, mask: Array) -> tuple[bytes, dict[str, int]]:
        levels, scale = quantize.quantize(to_patches(pixels, images.patch)[mask], bits)
        return pixel.encode(levels, bits), {"bits": bits, "scale": scale}

    return Packer(pack, {}, {})


def with_dct(images: Images, kept: Array, masks: Array | None, run: Run) -> Packer:
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
    return Packer(pack, parameters, {f"tables/{name}": getattr(tables, name) for name in names} if own else {})


def _units(images: Images, mask: Array) -> Array:
    """uint8 (units,): which units the mask bool (P,) keeps."""
    if images.drops:
        units: Array = to_units(mask[None], images.grid, images.patch // images.unit)[0].astype(np.uint8)
        return units
    return np.ones((-(-images.size // images.unit)) ** 2, np.uint8)


def _tables(images: Images, kept: Array, masks: Array | None, q: int, run: Run) -> tuple[Tables, bool]:
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
        for position, result in enumerate(ordered_map(attempt(one), chosen.tolist(), run.workers)):
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


def _mask(images: Images, masks: Array | None, position: int) -> Array:
    patches = images.grid[0] * images.grid[1]
    return np.ones(patches, bool) if masks is None else unpack_mask(masks[position], patches)


def pack_all(
    images: Images, kept: Array, masks: Array | None, packer: Packer, writer: Writer, run: Run
) -> tuple[Array, dict[str, Array]]:
    """Code and append the kept images; positions in `kept` that were written, and their columns."""
    chosen = images.usable[kept]

    def pack(position: int) -> tuple[bytes, dict[str, int]]:
        return packer.pack(images.pixels(int(chosen[position])), _mask(images, masks, position))

    written, rows = [], []
    for position, packed in enumerate(ordered_map(attempt(pack), range(len(chosen)), run.workers)):
        if isinstance(packed, SourceError):
            run.skip(packed)
        else:
            payload, row = packed
            writer.append(payload)
            written.append(position)
            rows.append(row)
        run.progress("pack", position + 1, len(chosen))
    check_any(images.folder, len(written), run)
    return np.array(written), {name: np.array([row[name] for row in rows]) for name in rows[0]}
