"""Decoding the transform dct on a GPU: the part in torch on the CPU; the kernel in numba's simulator, in a process, and
compiled for a GPU that need not be there."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numba
import numpy as np
import pytest
import torch
from numba import cuda
from test_dct import form, picture

from dqcodec.codec.dct import coder, reference
from dqcodec.codec.dct.contexts import UNITS
from dqcodec.codec.dct.pack import Encoder
from dqcodec.codec.dct.transform import CHROMA_STEP, STEPS
from dqcodec.data import dct
from dqcodec.data.dataset import DQZDataset
from dqcodec.data.loader import DQZLoader
from dqcodec.errors import FormatError

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"


def test_the_kernel_in_the_simulator():
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", str(HERE / "simulated_dct_gpu.py")]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}
    child = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent.parent)
    assert child.returncode == 0, child.stdout + child.stderr


def test_the_kernel_compiles(monkeypatch):
    """The simulator checks no types, the compiler does; and threads keep everything in registers."""
    from dqcodec.codec.dct import gpu

    ability = 9, 0
    device = SimpleNamespace(compute_capability=ability)  # numba asks the driver, for functions that a kernel calls
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: device)
    shape, n, rows = form(83, 62, 3, 16), 2, 3

    def arrays(values, *before):
        """A named tuple with its arrays as the kernel takes them."""
        return dct._arrays(values, lambda part: np.zeros((*before, *part.shape), part.dtype))

    arguments = (
        np.zeros(8, np.uint8), np.zeros(4, np.uint16), np.zeros((n, 2), np.int64), np.zeros((n, 24), np.uint8), 0, 3,
        arrays(shape.edges(), n), arrays(shape.order), arrays(shape.tables.coding), np.zeros((n, 2), np.int64),
        np.zeros((n, rows, 8192), np.int32), np.zeros((n, rows, 4), np.int32), np.zeros((n, 18), np.int32),
    )  # fmt: skip
    signature = numba.types.void(*map(numba.typeof, arguments))
    code, _ = cuda.compile(gpu.decode_rows.py_func, signature, cc=ability, device=False, abi="numba")
    assert ".target sm_90" in code
    assert ".entry" in code
    assert ".local" not in code


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("unit", UNITS)
def test_pixels_are_the_references(unit, channels):
    shape = form(83, 62, channels, unit)
    count, units = 3, shape.rows * shape.columns
    kept = (np.random.default_rng(unit).random((count, units)) < 0.8).astype(np.uint8)
    kept[:, 0] = 1
    scale = np.array([20, 60, 110])
    images = [picture(83, 62, channels, seed, 20) for seed in range(count)]
    encoder = Encoder(shape, "fast")
    coded = [encoder.encode(image, there, int(q)) for image, there, q in zip(images, kept, scale, strict=True)]
    rotation = shape.rotations[[colour for _, colour in coded]]
    expected = np.zeros((count, channels, 83, 62), np.uint8)
    payloads = [payload for payload, _ in coded]
    assert reference.decode(shape, payloads, kept, STEPS[scale], rotation, expected) == -1

    parsed = [reference.parse(shape, payload, there) for payload, there in zip(payloads, kept, strict=True)]
    step = STEPS[scale][:, None] / 64 * np.array([1, CHROMA_STEP, CHROMA_STEP], np.float32)[:channels]
    grid = count, shape.rows, shape.columns
    coefficients = torch.from_numpy(np.stack([c for c, _, _ in parsed])).view(*grid, channels, 16, 16)
    coefficients = coefficients[..., :unit, :unit]
    patterns = torch.from_numpy(np.stack([patterns for _, patterns, _ in parsed])).view(grid)
    pixels = dct.to_images(
        shape, dct.to_planes(coefficients, patterns, torch.from_numpy(step)), patterns, dct.activity_of(coefficients),
        torch.from_numpy(kept).view(grid), STEPS[scale], torch.from_numpy(rotation) if channels == 3 else None,
    )  # fmt: skip
    apart = np.abs(pixels.numpy().astype(int) - expected)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def test_without_a_compiler_for_the_gpu_the_cpu_decodes(monkeypatch):
    dataset = DQZDataset(GOLDEN / "pixel-rgb" / "file.dqz", fill="none")
    assert dataset._decoder is coder.decode
    dataset.device = torch.device("cuda")
    monkeypatch.setattr(dct, "available", lambda: False)
    assert dataset._decoder is coder.decode
    monkeypatch.setattr(dct, "available", lambda: True)
    assert dataset._decoder.func is dct.decode
    assert dataset._decoder.keywords == {"device": dataset.device}


@pytest.mark.skipif(not torch.cuda.is_available() or not dct.available(), reason="needs a GPU and dqcodec[torch,cuda]")
@pytest.mark.parametrize("filter", [False, True])
def test_a_gpu_gives_the_cpus_images(encoded_dct, filter):
    dataset = DQZDataset(encoded_dct, device="cuda", fill="none", filter=filter)
    assert dataset._decoder.func is dct.decode
    expected = DQZDataset(encoded_dct, fill="none", filter=filter).images(range(len(dataset)))
    batches = list(DQZLoader(dataset, 4, shuffle=False))
    apart = (torch.cat([images for images, _ in batches]).cpu().int() - expected.int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-3
    payloads = [dataset.file.reader.read([0])[0], b"damaged"]
    with pytest.raises(FormatError, match="does not end where its bytes end"):
        dataset.decode([0, 1], payloads)
