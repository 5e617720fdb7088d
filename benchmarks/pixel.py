"""What does the transform `pixel` cost: bytes against PSNR, beside JPEG and WebP on the same pixels?

    python benchmarks/pixel.py FOLDER NAME [LIMIT]      FOLDER/<class>/*, results/pixel-NAME.json

Nothing is dropped. The .dqz counts whole, with all its columns; the others count their bare image files. PSNR is that
of the mean squared error over all images.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import save
from PIL import Image

import dqcodec
from dqcodec.container.spec import Array
from dqcodec.sources.folder import scan


def psnr(a: Array, b: Array) -> float:
    """dB, over everything at once."""
    return float(10 * np.log10(255**2 / max(float(np.mean((a.astype(np.float64) - b) ** 2)), 1e-2)))


def ours(folder: Path, images: Array, bits: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "x.dqz"
        result = dqcodec.encode(folder, path, dqcodec.EncodeOptions(keep=1, drop=0, bits=bits, transform="pixel"))
        with dqcodec.DQZFile(path) as file:
            decoded = np.concatenate([file.images(range(k, min(k + 64, len(file)))) for k in range(0, len(file), 64)])
    return {
        "bytes": round(result.bytes_out / len(images), 1),
        "psnr": round(psnr(decoded.transpose(0, 2, 3, 1), images), 2),
    }


def other(images: Array, kind: str, **arguments: Any) -> dict[str, Any]:
    total, decoded = 0, np.empty_like(images)
    for k, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, **arguments)
        total += buffer.tell()
        decoded[k] = np.asarray(Image.open(buffer).convert("RGB"))
    return {"bytes": round(total / len(images), 1), "psnr": round(psnr(decoded, images), 2)}


def main() -> None:
    source, name = Path(sys.argv[1]), sys.argv[2]
    limit = int(sys.argv[3]) if len(sys.argv) > 3 else 10**9
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = scan(source)
        step = max(1, len(found) // limit)
        for k in range(0, len(found), step):
            target = folder / found.names[k]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to((source / found.names[k]).resolve())
        paths = scan(folder)
        images = np.stack([np.asarray(Image.open(folder / path).convert("RGB")) for path in paths.names])
        rows = {f"pixel, {bits} bits": ours(folder, images, bits) for bits in (3, 4, 5, 6, 8)}
        rows["JPEG 4:4:4 quality 75"] = other(images, "JPEG", quality=75, subsampling=0, optimize=True)
        rows["JPEG 4:4:4 quality 95"] = other(images, "JPEG", quality=95, subsampling=0, optimize=True)
        rows["WebP quality 75, method 6"] = other(images, "WEBP", quality=75, method=6)
        rows["WebP quality 95, method 6"] = other(images, "WEBP", quality=95, method=6)
        rows["WebP lossless"] = other(images, "WEBP", lossless=True, method=6)
        rows["PNG"] = other(images, "PNG", optimize=True)
    shape = "{1} x {2} x {3}".format(*images.shape)
    save(
        f"pixel-{name}", {"question": __doc__.splitlines()[0], "images": len(images), "shape": shape, "an image": rows}
    )


if __name__ == "__main__":
    main()
