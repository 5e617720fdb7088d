"""Fuzz the decoder of the transform dct with atheris.

    pip install atheris
    python tools/fuzz_dct.py [EXECUTIONS] [SECONDS]      10,000,000 and 3,600 unless told; ends after the first of them

Each execution decodes one payload, a mutation of real ones, with a unit size, a channel count and a mask of its own:
once with the entropy decoder compiled with bounds checks, so that a read or write outside any buffer is an exception,
and once with the compiled decoder as it ships, the filter included, which has to say the same of the payload. What
finished is written to benchmarks/results/fuzz-dct.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import atheris
import numba
import numpy as np
import numpy.typing as npt

from dqcodec.codec.dct import coder, filter_compiled, inverse, stream
from dqcodec.codec.dct.edges import Edges
from dqcodec.codec.dct.engine import build
from dqcodec.codec.dct.filter import FILTER, weights
from dqcodec.codec.dct.pack import Encoder
from dqcodec.codec.dct.tables import built_in
from dqcodec.codec.dct.transform import CHROMA_STEP, STEPS

Array = npt.NDArray[Any]
MOST_BYTES = 600  # of an input
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "fuzz-dct.json"
CHECKED = build(stream, numba.njit(boundscheck=True))
NEXT, FORGET, BEGIN = CHECKED["next_unit"], CHECKED["forget"], CHECKED["begin"]
SHAPES = [
    coder.Format(20, 24, channels, built_in(unit, uses), weights(FILTER, unit))
    for unit, channels, uses in [(16, 3, True), (16, 1, False), (8, 3, False), (4, 3, True), (4, 1, True)]
]


@numba.njit(boundscheck=True)
def checked(data, words, span, kept, planes, edges, scratch, lasts, order, coding):  # type: ignore[no-untyped-def]
    """Whether the payload at `span` of `data` ends as it should; IndexError where anything reaches beyond a buffer."""
    x, head = BEGIN(data, span[0], span[1] - span[0])
    p, end = (span[0] + head) >> 1, span[1] >> 1
    FORGET(edges, 0, edges.width)
    for i in range(edges.columns):
        edges.flags[i] = 0
    for n in range(len(kept)):
        scratch[:] = 0
        place = n % edges.columns
        _, x, p = NEXT(kept[n], place, 0, planes, edges, scratch, lasts, order, coding, x, words, p, end)
    return x == 1 and p == end


class Bench(NamedTuple):
    """A shape with buffers that every execution uses again."""

    shape: coder.Format
    edges: Edges
    scratch: Array  # int32, of the decoder as it ships, which leaves it as it was: 0
    filter: filter_compiled.Bench
    out: Array  # uint8, an image
    other: Array  # int32, scratch of the decoder with checks
    lasts: Array
    rotation: Array  # float32 (1, 9)


def bench(shape: coder.Format) -> Bench:
    size = 256 * shape.channels
    return Bench(
        shape, shape.edges(), np.zeros(size, np.int32),
        filter_compiled.bench(shape.filter_tables, shape.rows, shape.columns, shape.channels, shape.unit),
        np.zeros(shape.channels * shape.height * shape.width, np.uint8), np.zeros(size, np.int32),
        np.zeros(18, np.int32), shape.rotations[:1].reshape(1, 9),
    )  # fmt: skip


BENCHES = [bench(shape) for shape in SHAPES]


def one(data: bytes) -> bool:
    """Decode one input, whose first two bytes choose shape and mask: whether it was a whole payload."""
    if len(data) < 3:
        return False
    b, q = BENCHES[data[0] % len(BENCHES)], data[1]
    shape, (joined, spans) = b.shape, coder.join([data[2:]])
    words, planes, order, coding = joined.view(np.uint16), shape.channels, shape.order, shape.tables.coding
    kept = np.unpackbits(np.array([q | 1, q ^ 0x5A] * 4, np.uint8), bitorder="little")[: shape.rows * shape.columns]
    whole = checked(joined, words, spans[0], kept, planes, b.edges, b.other, b.lasts, order, coding)
    bad = inverse.decode(
        joined, words, spans, kept[None], STEPS[q : q + 1] / np.float32(64), CHROMA_STEP, b.rotation,
        shape.height, shape.width, planes, b.edges, order, coding, b.scratch, b.filter, b.out,
    )  # fmt: skip
    if (bad < 0) != whole:
        raise AssertionError("the decoders disagree")
    if b.edges.near.any():
        raise AssertionError("a block leaves something behind")
    return bool(whole)


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

    arguments = [sys.argv[0], f"-max_len={MOST_BYTES}", "-verbosity=0"]
    atheris.Setup(arguments, test, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000, float(sys.argv[2]) if len(sys.argv) > 2 else 3600)
