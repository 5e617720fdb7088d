"""Train the built-in tables of the transform dct on a folder of photographs.

    python tools/make_tables.py FOLDER

Writes dqcodec/codec/dct/default-3-UNIT.bin for units of 16, 8 and 4 pixels: from images of 224, 64 and 32 pixels a side
at three qualities. Released tables never change: a file may need them. So this refuses to overwrite.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

import dqcodec.codec.dct
from dqcodec.codec.dct import train
from dqcodec.codec.dct.coder import Format
from dqcodec.codec.dct.contexts import BINS, Contexts, contexts
from dqcodec.codec.dct.pack import Encoder, scale_index
from dqcodec.codec.dct.tables import DEFAULT, OFFSETS, SYMBOLS, Tables, pack
from dqcodec.codec.dct.transform import rotation_matrices

Array = npt.NDArray[Any]
SIZES = {16: 224, 8: 64, 4: 32}  # image side by unit
BITS = (3, 3.7, 4.5)


def start(order: Contexts) -> Tables:
    """Tables before anything was counted: a geometric distribution for each bin of the neighbour sum."""
    ratio = 1 / (1 + np.array([0.12, 0.3, 0.45, 0.6, 0.8, 1, 1.3, 1.7, 2.3, 3.2, 4.5, 7, 0.9]))[:, None]
    edges = np.array([*range(11), 12, 16, 24, 40, 72, 4000])
    chance = (1 - ratio) ** edges[:-1] - (1 - ratio) ** edges[1:]
    context = np.concatenate([np.tile(np.repeat(np.arange(BINS), 2), order.pairs // BINS), np.zeros(order.sides)])
    return Tables(
        order.unit, context.astype(np.uint8), train.frequencies(chance * 4096, signed=True),
        train.frequencies(np.ones((1, SYMBOLS)), signed=False), np.zeros((1, 3), np.uint8),
        np.array(OFFSETS[True], np.int8), True,
    )  # fmt: skip


def square(path: Path, size: int) -> Array:
    """The middle of a photograph, uint8 (size, size, 3)."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side)))


def trained(images: list[Array], unit: int) -> Tables:
    """Tables after three passes over the images."""
    order, size = contexts(unit), images[0].shape[0]
    kept = np.ones((size // unit) ** 2, np.uint8)
    tables = start(order)
    moments = np.array([Encoder(Format(size, size, 3, tables), "default").moments(image, kept) for image in images])
    rotation = train.rotations(moments, 256)
    tables = Tables(unit, tables.context, tables.coefficient, tables.side, rotation, tables.offset, True)
    for _ in range(3):
        encoder = Encoder(Format(size, size, 3, tables), "default")
        counts = sum(encoder.count(image, kept, scale_index(bits, "default")) for image in images for bits in BITS)
        tables = train.make(np.asarray(counts), order, rotation, OFFSETS[True], dependent=True)
        print(f"unit {unit}: {len(rotation_matrices(rotation))} rotations, {int(np.asarray(counts).sum()):,} symbols")
    return tables


def main(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for unit, size in SIZES.items():
        target = Path(dqcodec.codec.dct.__file__).parent / f"{DEFAULT}-{unit}.bin"
        if target.exists():
            sys.exit(f"{target} exists; released tables never change. Give new ones a new name")
        target.write_bytes(pack(trained([square(path, size) for path in paths], unit)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
