"""The image formats that `rate_distortion.py` sets beside the .dqz: one file an image, through imagecodecs."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import imagecodecs
import numpy as np
from PIL import Image

from dqcodec.container.spec import Array

JPEG = (35, 45, 55, 65, 73, 79, 84, 88, 91, 93, 95, 96, 97, 98)
WEBP = (25, 40, 55, 68, 75, 79, 83, 87, 90, 92, 94, 96, 98, 100)
DISTANCES = (6.0, 4.5, 3.4, 2.6, 2.0, 1.5, 1.15, 0.9, 0.7, 0.55, 0.42, 0.32, 0.25)
AVIF = (35, 44, 52, 60, 67, 74, 80, 86, 91, 95, 98)


@dataclass(frozen=True)
class Contender:
    """A format with one way to store colour.

    settings  from coarse to fine, whatever the format's own scale
    encode    (uint8 (H, W, 3), setting) -> bytes of a file
    decode    those bytes -> uint8 (H, W, 3), on one thread
    """

    family: str
    name: str
    settings: tuple[float, ...]
    encode: Callable[[Array, float], bytes]
    decode: Callable[[bytes], Array]


def jpeg(image: Array, quality: float, chroma: str) -> bytes:
    return bytes(imagecodecs.jpeg8_encode(image, level=int(quality), subsampling=chroma, optimize=True))


def webp(image: Array, quality: float) -> bytes:
    return bytes(imagecodecs.webp_encode(image, level=quality, lossless=False, method=6, numthreads=1))


def jpegxl(image: Array, distance: float) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(image, effort=7, distance=distance, numthreads=1))


def avif(image: Array, quality: float, chroma: str) -> bytes:
    return bytes(imagecodecs.avif_encode(image, level=int(quality), speed=6, pixelformat=chroma, numthreads=1))


def read_jpeg(data: bytes) -> Array:
    """With Pillow, as training code does."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def read_webp(data: bytes) -> Array:
    return np.asarray(imagecodecs.webp_decode(data, hasalpha=False))


def read_jpegxl(data: bytes) -> Array:
    return np.asarray(imagecodecs.jpegxl_decode(data, numthreads=1))


def read_avif(data: bytes) -> Array:
    return np.asarray(imagecodecs.avif_decode(data, numthreads=1))


def contenders() -> list[Contender]:
    """JPEG and AVIF with both chroma formats; WebP has 4:2:0 only, JPEG XL full chroma."""
    return [
        Contender("JPEG", "JPEG 4:2:0", JPEG, partial(jpeg, chroma="420"), read_jpeg),
        Contender("JPEG", "JPEG 4:4:4", JPEG, partial(jpeg, chroma="444"), read_jpeg),
        Contender("WebP", "WebP", WEBP, webp, read_webp),
        Contender("JPEG XL", "JPEG XL", DISTANCES, jpegxl, read_jpegxl),
        Contender("AVIF", "AVIF 4:2:0", AVIF, partial(avif, chroma="420"), read_avif),
        Contender("AVIF", "AVIF 4:4:4", AVIF, partial(avif, chroma="444"), read_avif),
    ]


def versions() -> dict[str, str]:
    """Of imagecodecs, the libraries in it, and what else the figures hang on."""
    libraries = [getattr(imagecodecs, f"{name}_version")() for name in ("jpeg8", "webp", "jpegxl", "avif")]
    names = ("imagecodecs", "matplotlib", "numba", "scikit-image")
    return {**{name: version(name) for name in names}, **dict(text.split(" ", 1) for text in libraries)}
