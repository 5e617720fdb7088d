"""The encoder of the transform `dct` for one image after another, with the static tables of its format.

An image's colour rotation is the entry of the file's code book with the least sum of ln(8 + variance) of its pixel
differences; the rest is the search of `encoder.py`. numba is needed, the calls hold no interpreter lock.
"""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec.dct import encoder, search, train
from dqcodec.codec.dct.coder import Format
from dqcodec.codec.dct.tables import BUCKETS, EFFORTS, TOTAL, Tables, alias_parts, alphabet, pack
from dqcodec.codec.dct.transform import CHROMA_STEP, PLAIN_NOTCHES, STEPS

Array = npt.NDArray[Any]

LAMBDA = {True: 0.36, False: 0.12}  # steps^2 a bit
STORED_MEMBERS = 3200  # bytes of four columns but for their values
MAX_OPERATIONS = 3  # of a coefficient; a block has two more


def dependent(effort: str) -> bool:
    """Whether an effort takes the dependent quantiser."""
    return effort != "fast"


def scale_index(bits: float, effort: str) -> int:
    """Scale index q of a nominal width: the step is 2^(8 - bits), as that of 256 grey levels in so many bits."""
    return min(max(round(16 * (9 - bits)) + (0 if dependent(effort) else PLAIN_NOTCHES), 0), 255)


@dataclass(frozen=True)
class Encoder:
    """Encodes images of one format at one effort."""

    form: Format
    effort: str

    @cached_property
    def prices(self) -> search.Prices:
        tables, order = self.form.tables, self.form.order
        offset = tables.offset.astype(np.float32) / np.float32(64)
        return search.prices(train.costs(tables, order), offset, LAMBDA[tables.dependent], order)

    @cached_property
    def codes(self) -> tuple[Array, Array, Array, Array, Array]:
        """Distribution of each context; of each symbol frequency, inverse, first slot; the slots: see encoder.rans."""
        tables = self.form.tables
        count = 2 * self.form.order.pairs
        distribution = tables.context.astype(np.int32)
        distribution[count:] += len(tables.coefficient)
        frequency = np.concatenate([alphabet(tables.coefficient, True), alphabet(tables.side, False)])
        first = np.cumsum(frequency, 1) - frequency + TOTAL * np.arange(len(frequency))[:, None]
        slots = np.concatenate([slots_of(row) for row in frequency])
        inverse = (-(-(1 << 44) // np.maximum(frequency, 1))).astype(np.uint64)
        return distribution, frequency.astype(np.int32).ravel(), inverse.ravel(), first.astype(np.int32).ravel(), slots

    @cached_property
    def _rotations(self) -> Array:
        """float32 (R, 9); of one plane (1, 1)."""
        grey = self.form.channels == 1
        return np.ones((1, 1), np.float32) if grey else np.ascontiguousarray(self.form.rotations).reshape(-1, 9)

    @cached_property
    def _local(self) -> threading.local:
        return threading.local()

    def operations(self, pixels: Array, kept: Array, q: int) -> tuple[Array, int, int]:
        """The coding operations of an image: (int32 buffer, how many of it, index of the rotation).

        pixels  uint8 (H, W, C)
        kept    uint8 (units,)
        """
        form, local = self.form, self._local
        if not hasattr(local, "bench"):
            values = form.rows * form.columns * form.unit**2 * form.channels
            local.bench, local.edges = encoder.bench(), form.edges()
            local.planes = np.zeros(values, np.float32)
            local.operations = np.zeros(MAX_OPERATIONS * values + 64 * form.rows * form.columns, np.int32)
            local.out = np.zeros(2 * len(local.operations) + 8, np.uint8)
        scale = np.float32(1) / STEPS[q]
        count, colour = encoder.encode_image(
            np.ascontiguousarray(pixels).reshape(-1), form.height, form.width, kept, self._rotations, scale,
            scale / CHROMA_STEP, form.rows, local.edges, form.order, form.tables.coding, self.prices,
            EFFORTS.index(self.effort), local.planes, local.bench, local.operations,
        )  # fmt: skip
        return local.operations, count, colour

    def moments(self, pixels: Array, kept: Array) -> Array:
        """float64 (3, 3): mean second moments of the differences of neighbouring pixels."""
        form = self.form
        flat = np.ascontiguousarray(pixels).reshape(-1)
        rr, gg, bb, rg, rb, gb = encoder.moments(flat, form.height, form.width, kept, form.columns, form.unit)
        count = max(1, 2 * int(kept.sum()) * form.unit**2)
        return np.array([[rr, rg, rb], [rg, gg, gb], [rb, gb, bb]]) / count

    def encode(self, pixels: Array, kept: Array, q: int) -> tuple[bytes, int]:
        """(payload, index of the rotation) of an image; arguments as of `operations`."""
        operations, count, colour = self.operations(pixels, kept, q)
        out = self._local.out
        start = encoder.rans(operations, count, *self.codes, out)
        return out[start:].tobytes(), colour

    def count(self, pixels: Array, kept: Array, q: int) -> Array:
        """int64 (contexts, 16): how often the image has each symbol in each context."""
        operations, count, _ = self.operations(pixels, kept, q)
        counts = np.zeros((2 * self.form.order.pairs + self.form.order.sides, 16), np.int64)
        encoder.count(operations, count, counts)
        return counts


def slots_of(frequency: Array) -> Array:
    """uint16 (4096,): the slots of each symbol of frequencies (32,), symbol after symbol; see tables.alias_parts."""
    cut, other, offset = alias_parts(frequency)
    size = TOTAL // BUCKETS
    bucket, rest = np.divmod(np.arange(TOTAL), size)
    own = rest < np.array(cut)[bucket]
    symbol = np.where(own, bucket, np.array(other)[bucket])
    place = np.where(own, rest, np.array(offset)[bucket] + rest)
    slots = np.zeros(TOTAL, np.uint16)
    slots[np.cumsum(frequency)[symbol] - frequency[symbol] + place] = np.arange(TOTAL)
    return slots


def bits_of(counts: Array, tables: Tables, form: Format) -> float:
    """Bits of so many symbols under the tables, raw bits not counted."""
    return float((counts.ravel() * train.costs(tables, form.order)).sum())


def stored_size(tables: Tables) -> int:
    """Bytes that a file takes for tables of its own, about: compressed, with the members around them."""
    return len(zlib.compress(pack(tables), 9)) + STORED_MEMBERS
