"""How long does `dqcodec encode` take, and how much memory, with its defaults, and when it also chooses and drops?

    python benchmarks/encode.py FOLDER NAME      FOLDER/<class>/*, results/encode-NAME.json

Beside it, in the same run: reading every file and writing it again as JPEG and as WebP with Pillow, which is what
people do to shrink a folder. Peak memory is that of the whole process.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import save
from PIL import Image


def encode(folder: Path, output: Path, *options: str) -> dict[str, Any]:
    """One run of the command, as a process of its own."""
    command = [str(Path(sys.executable).with_name("dqcodec")), "encode", str(folder), str(output), "--json"]
    command += options
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # the peak of this process alone
    seconds = time.perf_counter() - start
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    found = json.loads(text)
    return {
        "images": found["images"],
        "kept": found["kept"],
        "seconds": round(seconds, 1),
        "peak_memory_bytes": usage.ru_maxrss * 1024,
        "bytes_in": found["bytes_in"],
        "bytes_kept": found["bytes_kept"],
        "bytes_out": found["bytes_out"],
        "stages": {stage: round(value, 2) for stage, value in found["seconds"].items()},
    }


def convert(folder: Path, kind: str, **arguments: Any) -> dict[str, Any]:
    """Every image read and encoded again, one thread."""
    start, total = time.perf_counter(), 0
    for path in sorted(folder.glob("*/*")):
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").save(buffer, kind, **arguments)
        total += buffer.tell()
    return {"seconds": round(time.perf_counter() - start, 1), "bytes": total}


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    with tempfile.TemporaryDirectory() as place:
        ours = {
            " ".join(options) or "defaults": encode(folder, Path(place) / f"{len(options)}.dqz", *options)
            for options in ((), ("--keep", "0.6", "--drop", "0.25"))
        }
    others = {
        "JPEG quality 75": convert(folder, "JPEG", quality=75, optimize=True),
        "WebP quality 75, method 6": convert(folder, "WEBP", quality=75, method=6),
    }
    save(f"encode-{name}", {"question": __doc__.splitlines()[0], "dqcodec": ours, "all images converted": others})


if __name__ == "__main__":
    main()
