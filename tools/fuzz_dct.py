"""Fuzz the decoder of the transform dct with atheris.

    pip install atheris
    python tools/fuzz_dct.py [EXECUTIONS] [SECONDS]      10,000,000 and 3,600 unless told; ends after the first of them

Each execution decodes one payload, a mutation of real ones, with a unit size, a channel count and a mask of its own:
once with the entropy decoder compiled with bounds checks, so that a read or write outside any buffer is an exception,
and once with the compiled decoder as it ships, which has to say the same of the payload. What finished is written to
benchmarks/results/fuzz-dct.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import atheris
import numba
import numpy as np

from dqcodec.codec.dct import coder, reference, stream
from dqcodec.codec.dct.engine import build
from dqcodec.codec.dct.pack import Encoder
from dqcodec.codec.dct.tables import built_in
from dqcodec.errors import FormatError

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "fuzz-dct.json"
CHECKED = build(stream, numba.njit(boundscheck=True))
ROW, FORGET, BEGIN = CHECKED["row"], CHECKED["forget"], CHECKED["begin"]
SHAPES = [
    coder.Format(20, 24, channels, built_in(unit, uses))
    for unit, channels, uses in [(16, 3, True), (16, 1, False), (8, 3, False), (4, 3, True), (4, 1, True)]
]


@numba.njit(boundscheck=True)
def checked(data, words, kept, rows, columns, planes, edges, scratch, patterns, lasts, order, coding):  # type: ignore[no-untyped-def]
    """Whether the payload `data` ends as it should; IndexError where anything reaches beyond a buffer."""
    x, head = BEGIN(data, 0, len(data))
    p, end = 0, (len(data) - head) // 2
    for w in range(end):
        words[w] = data[head + 2 * w] | data[head + 2 * w + 1] << 8
    FORGET(edges, 0, edges.width)
    for i in range(columns):
        edges.flags[i] = 0
    for r in range(rows):
        x, p = ROW(kept, r * columns, planes, edges, scratch, patterns, lasts, order, coding, x, words, p, end)
    return x == 1 and p == end


def one(data: bytes) -> bool:
    """Decode one input, whose first two bytes choose shape and mask: whether it was a whole payload."""
    if len(data) < 3:
        return False
    shape = SHAPES[data[0] % len(SHAPES)]
    payload = data[2:]
    kept = np.unpackbits(np.array([data[1] | 1, data[1] ^ 0x5A] * 4, np.uint8), bitorder="little")
    kept = kept[: shape.rows * shape.columns].copy()
    whole = bool(
        checked(
            np.frombuffer(payload, np.uint8), np.zeros(len(payload) // 2 + 1, np.uint16), kept, shape.rows,
            shape.columns, shape.channels, shape.edges(), np.zeros(reference.scratch_size(shape), np.int32),
            np.zeros(shape.columns, np.int32), np.zeros(18 * shape.columns, np.int32), shape.order, shape.tables.coding,
        )
    )  # fmt: skip
    colour = np.zeros(1, np.int64) if shape.channels == 3 else None
    try:
        coder.decode(shape, [payload], kept[None], np.array([data[1]]), colour)
        found = True
    except FormatError:
        found = False
    if found != whole:
        raise AssertionError("the decoders disagree")
    return whole


def seeds() -> list[bytes]:
    """Whole payloads of every shape: noise and smooth pictures."""
    rng = np.random.default_rng(0)
    out = []
    for number, shape in enumerate(SHAPES):
        kept = np.unpackbits(np.array([1, 0x5A] * 4, np.uint8), bitorder="little")[: shape.rows * shape.columns]
        for q in (16, 60, 110):
            for noise in (3, 60):
                base = np.indices((shape.height, shape.width)).sum(0)[..., None] * 4 + 40
                image = np.clip(base + rng.normal(0, noise, (shape.height, shape.width, shape.channels)), 0, 255)
                effort = "default" if shape.tables.dependent else "fast"
                payload, _ = Encoder(shape, effort).encode(image.astype(np.uint8), kept.copy(), q)
                out.append(bytes([number, 0]) + payload)
    return out


def main(executions: int, seconds: float) -> None:
    counts = {"executions": 0, "whole": 0}
    start = time.monotonic()
    corpus = seeds()
    if not all(one(seed) for seed in corpus):
        sys.exit("a seed does not decode")

    def save() -> None:
        taken = round(time.monotonic() - start)
        about: dict[str, Any] = {"question": "Does any payload harm the decoder?", "asked": executions, **counts}
        about |= {"seconds": taken, "failures": 0, "atheris": version("atheris"), "numba": numba.__version__}
        RESULTS.write_text(json.dumps(about, indent=1) + "\n")

    def mutate(data: bytes, size: int, seed: int) -> bytes:
        """Half of the time a fresh seed is mutated, so that inputs stay close to whole payloads."""
        if seed % 2:
            data = corpus[seed // 2 % len(corpus)]
        return bytes(atheris.Mutate(data, size))

    def test(data: bytes) -> None:
        counts["executions"] += 1
        counts["whole"] += one(data)
        if counts["executions"] % 100_000 == 0:
            save()
        if counts["executions"] >= executions or time.monotonic() - start > seconds:
            save()
            print(f"{counts['executions']:,} executions, {counts['whole']:,} whole payloads, no failure")
            sys.stdout.flush()
            os._exit(0)  # libFuzzer takes any other end for a crash

    arguments = [sys.argv[0], "-max_len=600", "-verbosity=0"]
    atheris.Setup(arguments, test, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000, float(sys.argv[2]) if len(sys.argv) > 2 else 3600)
