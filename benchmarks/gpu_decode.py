"""How fast does a GPU decode images of the transform `dct`, beside torchvision's JPEGs on the same GPU?

    python benchmarks/gpu_decode.py FOLDER NAME SIZE [COUNT]      needs a CUDA device and dqcodec[torch,cuda]

FOLDER holds folders of images, which are scaled and cropped to SIZE, and repeated until there are COUNT. The JPEGs have
the PSNR of the .dqz, which is decoded without its filter, as by default. From coded bytes in memory to uint8 images on
the device, in batches of 256; the first round, in which the kernel is compiled, does not count, of the others the
median does.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from loaders import jpeg, write_files
from loading import load, matched
from torchvision.io import decode_jpeg

import dqcodec
from dqcodec.codec.dct import coder
from dqcodec.container.spec import Array
from dqcodec.data import dct
from dqcodec.decode import form_of

BATCH, ROUNDS = 256, 5


def rate(images: int, decode: Callable[[], object]) -> float:
    """Images a second."""
    decode()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        decode()
        times.append(time.perf_counter() - started)
    return round(images / statistics.median(times), 1)


def ours(file: dqcodec.DQZFile, device: torch.device) -> dict[str, float]:
    """Images a second: a batch after the other, STREAMS of them at once, and on the CPU in one thread."""
    batches = [range(k, min(k + BATCH, len(file))) for k in range(0, len(file), BATCH)]
    payloads = [file.reader.read(batch) for batch in batches]

    def one(number: int, decode: Callable[..., Any]) -> None:
        file.placed(batches[number], payloads[number], decode)

    def all_of(decode: Callable[..., Any], threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(partial(one, decode=decode), range(len(batches))))

    on_device = partial(dct.decode, device=device)
    return {
        "dqz": rate(len(file), partial(all_of, on_device, 1)),
        f"dqz, {dct.STREAMS} batches at once": rate(len(file), partial(all_of, on_device, dct.STREAMS)),
        "dqz on the CPU, one thread": rate(len(file), partial(all_of, coder.decode, 1)),
    }


def pixels(file: dqcodec.DQZFile, device: torch.device) -> float:
    """Images a second from coefficients, which take the same time whatever they are."""
    form, n = form_of(file.reader, file.filter), min(BATCH, len(file))
    grid = n, form.rows, form.columns
    coefficients = torch.zeros((*grid, form.channels, form.unit, form.unit), dtype=torch.int32, device=device)
    patterns = torch.zeros(grid, dtype=torch.int32, device=device)
    step, steps = torch.ones((n, form.channels), device=device), np.ones(n, np.float32)
    rotation = torch.ones((n, 3, 3), device=device) if form.channels == 3 else None
    kept = torch.ones(grid, dtype=torch.uint8, device=device)

    def convert() -> Any:
        planes, active = dct.to_planes(coefficients, patterns, step), dct.activity_of(coefficients)
        return dct.to_images(form, planes, patterns, active, kept, steps, rotation)[0, 0, 0].cpu()

    return rate(n, convert)


def jpegs(images: Array, quality: int, device: torch.device) -> float:
    """Images a second by torchvision; the last copy waits for all of them."""
    coded = [torch.frombuffer(bytearray(jpeg(image, quality)), dtype=torch.uint8) for image in images]

    def decode() -> None:
        for k in range(0, len(coded), BATCH):
            decode_jpeg(coded[k : k + BATCH], device=device)[-1].cpu()

    return rate(len(coded), decode)


def main(device: torch.device) -> None:
    folder, name, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    images = load(folder, size, int(sys.argv[4]) if len(sys.argv) > 4 else None)
    with tempfile.TemporaryDirectory() as place:
        source, path = Path(place) / "source", Path(place) / "x.dqz"
        write_files(source, images, np.arange(len(images)) % 10, 0, "png")
        dqcodec.encode(source, path, dqcodec.EncodeOptions(keep=1, drop=0))
        dqz, quality, found = matched(path, source, images)
        with dqcodec.DQZFile(path) as file:
            figures = ours(file, device) | {"JPEG": jpegs(images, quality, device)}
            after = pixels(file, device)
    save(
        f"gpu-decode-{name}",
        {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "images": len(images),
            "size": size,
            "batch": BATCH,
            "JPEG quality": quality,
            "PSNR": {"JPEG": round(found, 2), "dqz": round(dqz, 2)},
            "images a second": figures,
            "share of the entropy decoder in dqz": round(1 - figures["dqz"] / after, 3),
        },
    )


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("no CUDA device")
    if not dct.available():
        sys.exit("the GPU decoder needs numba-cuda: pip install 'dqcodec[torch,cuda]'")
    main(torch.device("cuda"))
