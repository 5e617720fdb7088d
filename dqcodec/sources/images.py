"""One image file -> uint8 pixels, whatever it holds; SourceError with the reason where it holds no usable image.

EXIF rotation is applied; transparency is laid over white; 16-bit grey is scaled to 8 bits, not cut off; CMYK, palette
and other colour spaces become RGB; of several frames the first is taken.
"""

from __future__ import annotations

import math
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec.quantize import ZERO
from dqcodec.errors import SourceError

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]

RESIZES = ("squash", "crop", "pad")
MAX_PIXELS = 1 << 26  # of one image
LARGE = 1 << 24  # images with more pixels are decoded one at a time, whatever the number of threads
# Formats that Pillow decodes by itself: no EPS, which would start another program.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation -> Pillow's transposition that undoes it
_TO_8_BITS: Array = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)
_LARGE = threading.Lock()


@dataclass(frozen=True, slots=True)
class Probe:
    """What a file's header says: width and height in pixels as shown, 1 (grey) or 3 channels."""

    width: int
    height: int
    channels: int


def probe(open_file: Callable[[], IO[bytes]], name: str) -> Probe:
    """Read the header only."""
    with _opened(open_file, name) as image:
        width, height = image.size
        if _orientation(image) >= 5:
            width, height = height, width
        return Probe(width, height, 1 if image.mode in GREY_MODES else 3)


def read(open_file: Callable[[], IO[bytes]], name: str, size: int, resize: str, channels: int) -> Array:
    """Decode one image.

    size      pixels a side of the result
    resize    "squash" to the square, "crop" the middle square, "pad" to a square with mid-grey
    channels  1 or 3
    returns   uint8 (size, size, channels)
    """
    from PIL import Image, ImageOps

    with _opened(open_file, name) as image, _LARGE if math.prod(image.size) > LARGE else nullcontext():
        image.load()
        turn = _TURNS.get(_orientation(image))
        flat = _convert(image if turn is None else image.transpose(Image.Transpose(turn)), channels)
        box = (size, size)
        if flat.size != box:
            if resize == "crop":
                flat = ImageOps.fit(flat, box, Image.Resampling.LANCZOS)
            elif resize == "pad":
                grey = ZERO if channels == 1 else (ZERO,) * 3
                flat = ImageOps.pad(flat, box, Image.Resampling.LANCZOS, color=grey)
            else:
                flat = flat.resize(box, Image.Resampling.LANCZOS)
        return np.asarray(flat, np.uint8).reshape(size, size, channels)


def thumbnail(image: Array, size: int) -> Array:
    """uint8 (H, H, C) scaled to (size, size, C)."""
    from PIL import Image

    if image.shape[0] == size:
        return image
    flat = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(flat.resize((size, size), Image.Resampling.LANCZOS)).reshape(size, size, -1)


@contextmanager
def _opened(open_file: Callable[[], IO[bytes]], name: str) -> Iterator[Image.Image]:
    """Open with Pillow and turn what it raises on bad files into a SourceError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with open_file() as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise SourceError(
                    f"{name}: {width} x {height} pixels, a possible decompression bomb; allowed: {MAX_PIXELS}"
                )
            yield image
    except UnidentifiedImageError:
        raise SourceError(f"{name}: not an image in a known format") from None
    except Image.DecompressionBombError:
        raise SourceError(f"{name}: a possible decompression bomb; allowed: {MAX_PIXELS} pixels") from None
    except MemoryError:
        raise SourceError(f"{name}: too large for the memory") from None
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, struct.error, OverflowError,
            AttributeError, ZeroDivisionError, RuntimeError, NotImplementedError) as error:  # fmt: skip
        # Pillow's decoders raise any of these on damaged files; the reason is kept.
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{name}: {error or type(error).__name__}") from None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; a damaged EXIF block is no reason to lose the image."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # whatever the EXIF parser stumbles over
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """To mode L or RGB."""
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"integer values from {low} to {high}; allowed: 0 to 65535")
        image = Image.fromarray(np.stack([_TO_8_BITS[row] for row in values]))
    elif image.mode == "F":
        raise ValueError("a floating-point image; convert it to 8 or 16 bits first")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if channels == 1 else "RGB")


def default_size(probes: list[Probe]) -> int:
    """The size that follows the data: the common size of all images; else the median of the shorter sides, at most
    224, rounded down to a multiple that a usual patch divides."""
    sides = {(p.width, p.height) for p in probes}
    shorter = sorted(min(p.width, p.height) for p in probes)
    size = shorter[(len(shorter) - 1) // 2]
    if len(sides) == 1 and all(w == h for w, h in sides) and size <= 224:
        return size
    size = min(size, 224)
    step = 16 if size >= 128 else 8 if size >= 64 else 4 if size >= 8 else 1
    return size // step * step


def default_patch(size: int) -> int:
    """16 at 224, 8 at 64, 4 at 32: the divisor of `size` nearest to that by ratio, the smaller of two; at most half
    of `size`, or `size` itself where it has no other divisor."""
    target = 16 if size >= 128 else 8 if size >= 64 else 4
    divisors = [n for n in range(2, size // 2 + 1) if size % n == 0]
    return min(divisors, key=lambda n: abs(math.log(n / target)), default=size)


def quiet() -> None:
    """Pillow's own warnings (bombs, odd EXIF) are errors of one file here, never lines on the terminal."""
    warnings.filterwarnings("ignore", module="PIL")
