"""A picture of samples: original, kept patches and reconstruction side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.container.writer import check_place, hidden, writing
from dqcodec.decode import DQZFile, check_indices
from dqcodec.errors import OptionError, SourceError
from dqcodec.export import images_of
from dqcodec.options import EncodeOptions
from dqcodec.patches import to_pixels

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]

SHOWN = 8  # samples, where none are asked for
MOST = 64  # samples of one picture
TILE, GAP, LINE = 224, 12, 18  # pixels: the least side of a tile, between tiles, a line of text
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True)
class Shown:
    """
    index          of the sample
    label          its class name
    bits, bin      as the file has them; bin None where nothing was chosen
    kept, whole    psnr in dB against the original: of the kept patches, and of the whole image; None without a source
    """

    index: int
    label: str
    bits: int
    bin: int | None
    kept: float | None
    whole: float | None


def show(
    path: str | Path,
    output: str | Path,
    indices: Sequence[int] | None = None,
    source: str | Path | None = None,
    fill: str = "mae",
    *,
    overwrite: bool = False,
) -> list[Shown]:
    """Draw samples of a .dqz into a PNG or JPEG file, a row for each.

        indices  which samples, at most 64; None: eight, spread over the file
        source   the folder that was encoded, for the originals
        fill     as DQZDataset has it

    Raises OptionError, OutputError, and SourceError where the source has other classes or labels than what was
    encoded; that its images are the same is for the caller to know.
    """
    output = Path(output)
    if output.suffix.lower() not in FORMATS:
        raise OptionError(f"output: {output.name!r}; allowed: names that end in {', '.join(FORMATS)}")
    check_place(output, overwrite)
    with DQZFile(path, filter=True) as file:
        if indices is None:
            indices = np.unique(np.linspace(0, len(file) - 1, SHOWN).round().astype(int)).tolist()
        try:
            wanted = check_indices(indices, len(file))
        except IndexError as error:
            raise OptionError(f"index: {error}") from None
        if not 1 <= len(wanted) <= MOST:
            raise OptionError(f"index: {len(wanted)} samples; allowed: 1 to {MOST}")
        images, mask = file.images(wanted, "none"), file.mask(wanted)
        filled = images_of(file, fill)(wanted)
        originals = None if source is None else _originals(file, wanted, Path(source))
        shown = [_facts(file, index, mask[k], filled[k], None if originals is None else originals[k])
                 for k, index in enumerate(wanted)]  # fmt: skip
        picture = _draw(file, shown, originals, _grey(images, mask, file.reader.header.grid), filled, fill)
    temporary = hidden(output, "tmp")
    try:
        with writing(output):
            picture.save(temporary, FORMATS[output.suffix.lower()])
            temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)
    return shown


def _originals(file: DQZFile, indices: Sequence[int], source: Path) -> Array:
    """The source images of samples as the encoder read them, uint8 (n, C, H, W)."""
    from dqcodec.sources.folder import scan
    from dqcodec.sources.images import RESIZES, read

    places, header = file.source_index, file.reader.header
    if places is None:
        raise SourceError(f"{file.path} does not say which file a sample comes from (it has no source_index)")
    folder = scan(source)
    if folder.classes != file.classes:
        raise SourceError(f"{source} has other classes than {file.path}; give the folder that was encoded", path=source)
    options = header.extra.get("encode")
    resize = options.get("resize") if isinstance(options, dict) else None
    resize = resize if resize in RESIZES else EncodeOptions.resize
    found = []
    for index in indices:
        place = int(places[index])
        if place >= len(folder) or folder.labels[place] != file.label[index] or header.height != header.width:
            message = f"{source}: its file number {place} is not what sample {index} of {file.path} was made from"
            raise SourceError(f"{message}; give the folder that was encoded, unchanged", path=source)
        pixels = read(partial(folder.open, place), folder.names[place], header.height, resize, header.channels)
        found.append(pixels.transpose(2, 0, 1))
    return np.stack(found)


def _facts(file: DQZFile, index: int, mask: Array, filled: Array, original: Array | None) -> Shown:
    bins = file.bin
    kept = whole = None
    if original is not None:
        grid, patch = file.reader.header.grid, file.reader.header.patch
        there = to_pixels(mask[None], grid, patch)[0, 0]
        square = (filled.astype(float) - original) ** 2
        kept, whole = _psnr(square[:, there]), _psnr(square)
    label = file.classes[file.label[index]]
    return Shown(index, label, int(file.bits[index]), None if bins is None else int(bins[index]), kept, whole)


def _psnr(square: Array) -> float:
    mean = float(square.mean())
    return math.inf if mean == 0 else 10 * math.log10(255**2 / mean)


def _grey(images: Array, mask: Array, grid: tuple[int, int]) -> Array:
    """Dropped patches, which are black, as a grey that is seen to be none of the image's."""
    side = images.shape[2] // grid[0]
    there = to_pixels(mask, grid, side)
    board = np.indices(images.shape[2:]).sum(0) // max(1, side // 4) % 2 * 40 + 100
    return np.where(there, images, board).astype(np.uint8)


def _draw(
    file: DQZFile, shown: Sequence[Shown], originals: Array | None, kept: Array, filled: Array, fill: str
) -> Image.Image:
    """Titles, then a row a sample: its tiles, and under each what is known."""
    from PIL import Image, ImageDraw

    _, height, width = file.shape
    scale = max(1, -(-TILE // max(height, width)))
    titles = ["kept patches", f"filled ({fill})"]
    tiles = [kept, filled]
    if originals is not None:
        titles, tiles = ["original", *titles], [originals, *tiles]
    step_x, step_y = width * scale + GAP, height * scale + 2 * LINE + GAP
    canvas = Image.new("RGB", (GAP + step_x * len(tiles), GAP + LINE + step_y * len(shown)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, (title, images) in enumerate(zip(titles, tiles, strict=True)):
        x = GAP + column * step_x
        draw.text((x, GAP // 2), title, "black")
        for row, facts in enumerate(shown):
            y = GAP + LINE + row * step_y
            pixels = images[row].transpose(1, 2, 0)
            tile = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
            canvas.paste(tile.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y))
            draw.multiline_text((x, y + height * scale + 2), _caption(title, facts), "black", spacing=2)
    return canvas


def _caption(title: str, facts: Shown) -> str:
    if title == "original":
        return f"sample {facts.index}\n{facts.label.encode('ascii', 'replace').decode()[:40]}"
    value = facts.kept if title == "kept patches" else facts.whole
    psnr = "" if value is None else f"{value:.1f} dB"
    if title != "kept patches":
        return psnr
    bin_ = "" if facts.bin is None else f", bin {facts.bin}"
    return f"{facts.bits} bits{bin_}\n{psnr or f'sample {facts.index}'}"
