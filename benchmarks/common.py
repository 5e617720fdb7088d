"""What benchmarks share: reading a folder, and writing figures beside machine and versions."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite.binding import get_host_cpu_name

from dqcodec.container.spec import Array
from dqcodec.parallel import default_workers, ordered_map
from dqcodec.sources.folder import Folder
from dqcodec.sources.images import read

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, its kind as LLVM names it, which tells the width of its vectors, cores and versions."""
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "kind": get_host_cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("dqcodec", "numpy", "pillow", "torch")},
    }


def read_images(folder: Folder, chosen: Array, size: int) -> Array:
    """The images of these numbers, uint8 (n, size, size, 3)."""

    def one(n: int) -> Array:
        return read(lambda: folder.open(n), folder.names[n], size, "squash", 3)

    return np.stack(list(ordered_map(one, chosen.tolist(), default_workers())))


def save(name: str, value: dict[str, Any]) -> None:
    """Write benchmarks/results/NAME.json and print it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**value, "machine": machine()}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
