"""The encoder of the transform `dct` for one image after another, with the static tables of its format.

An image's colour rotation is the entry of the file's code book with the least sum of ln(8 + variance) of its pixel
differences; the rest is the search of `encoder.py`. numba is needed, the calls hold no interpreter lock.

At one nominal width images that are busier get a coarser step (`scale_index`), and the coarser the step the less a bit
counts against the error (`lagrange`). Both were chosen by what a classifier, trained on the originals, still sees of
coded images, and confirmed by training on these (benchmarks/results/accuracy.md).
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
from dqcodec.codec.dct.transform import CHROMA_STEP, PLAIN_NOTCHES, STEPS, nominal_bits

Array = npt.NDArray[Any]

LAMBDA = {True: 0.36, False: 0.12}  # steps^2 a bit, from FINE bits on: least bytes for the same squared error
FINE, COARSE = 3.6, 1.6  # bits; below FINE it falls with each bit by half, down to COARSE
NOTCHES = 16  # of a scale index, a factor of two
EXPONENT = 0.3  # of the step, by activity
USUAL, FLOOR = 1500.0, 100.0  # activity at which the step is about the nominal one; what is added to that of all
MOST = 16  # notches, up and down
STORED_MEMBERS = 3200  # bytes of four columns but for their values
MAX_OPERATIONS = 3  # of a coefficient; a block has two more


def dependent(effort: str) -> bool:
    """Whether an effort takes the dependent quantiser."""
    return effort != "fast"


def scale_index(bits: float, effort: str, activity: float | None = None) -> int:
    """Scale index q of a nominal width: the step is 2^(8 - bits), as that of 256 grey levels in so many bits.

    activity  mean square of the difference of neighbouring pixels, all colours added up (see Encoder.moments): the
              step is multiplied by ((activity + FLOOR) / USUAL) ** EXPONENT, by two at most; None: it is not
    """
    more = 0.0 if activity is None else NOTCHES * EXPONENT * float(np.log2((activity + FLOOR) / USUAL))
    notches = round(NOTCHES * (9 - bits)) + (0 if dependent(effort) else PLAIN_NOTCHES)
    return min(max(notches + round(min(max(more, -MOST), MOST)), 0), 255)


def lagrange(q: int, dependent: bool) -> float:
    """The Lagrange factor at a scale index: what a bit costs, in squares of the step.

    Where steps are coarse, the least squared error would leave out nearly all of the detail, by which classes are told.
    """
    bits = min(max(float(nominal_bits(np.array(q), dependent)), COARSE), FINE)
    factor: float = 2.0 ** (round(4 * (bits - FINE)) / 4)
    return LAMBDA[dependent] * factor


@dataclass(frozen=True)
class Encoder:
    """Encodes images of one format at one effort."""

    form: Format
    effort: str

    def prices(self, q: int) -> search.Prices:
        """What the search weighs at a scale index."""
        tables, order, known = self.form.tables, self.form.order, self._prices
        lam = lagrange(q, tables.dependent)
        if lam not in known:  # nine of them at most; two threads may make the same one
            offset = tables.offset.astype(np.float32) / np.float32(64)
            known[lam] = search.prices(train.costs(tables, order), offset, lam, order)
        return known[lam]

    @cached_property
    def _prices(self) -> dict[float, search.Prices]:
        return {}

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

    def operations(self, pixels: Array, kept: Array, q: int, colour: int) -> tuple[Array, int]:
        """The coding operations of an image: (int32 buffer, how many of it).

        pixels  uint8 (H, W, C)
        kept    uint8 (units,)
        colour  index of its rotation
        """
        form, local = self.form, self._local
        if not hasattr(local, "bench"):
            values = form.rows * form.columns * form.unit**2 * form.channels
            local.bench, local.edges = encoder.bench(), form.edges()
            local.planes = np.zeros(values, np.float32)
            local.operations = np.zeros(MAX_OPERATIONS * values + 64 * form.rows * form.columns, np.int32)
            local.out = np.zeros(2 * len(local.operations) + 8, np.uint8)
        scale = np.float32(1) / STEPS[q]
        count = encoder.encode_image(
            _flat(pixels), form.height, form.width, kept, self._rotations[colour], scale, scale / CHROMA_STEP,
            form.rows, local.edges, form.order, form.tables.coding, self.prices(q), EFFORTS.index(self.effort),
            local.planes, local.bench, local.operations,
        )  # fmt: skip
        return local.operations, count

    def _moments(self, pixels: Array, kept: Array) -> tuple[Array, int]:
        """Sums of the second moments of the differences of neighbouring pixels, see encoder.moments; of how many."""
        form = self.form
        three = pixels if form.channels == 3 else np.repeat(pixels, 3, 2)
        total = encoder.moments(_flat(three), form.height, form.width, kept, form.columns, form.unit)
        return total, max(1, 2 * int(kept.sum()) * form.unit**2)

    def _colour(self, total: Array, count: int) -> int:
        """Index of the rotation for these moments."""
        return int(encoder.nearest(total, count, self._rotations)) if self.form.channels == 3 else 0

    def moments(self, pixels: Array, kept: Array) -> Array:
        """float64 (3, 3): mean second moments of the differences of neighbouring pixels; their trace is the activity.

        Of one plane they are those of three that are equal.
        """
        total, count = self._moments(pixels, kept)
        rr, gg, bb, rg, rb, gb = total
        return np.array([[rr, rg, rb], [rg, gg, gb], [rb, gb, bb]]) / count

    def encode(self, pixels: Array, kept: Array, q: int) -> tuple[bytes, int]:
        """(payload, index of the rotation) of an image; arguments as of `operations`."""
        colour = self._colour(*self._moments(pixels, kept))
        return self._encode(pixels, kept, q, colour), colour

    def encode_at(self, pixels: Array, kept: Array, bits: float) -> tuple[bytes, int, int]:
        """(payload, scale index, index of the rotation) of an image at a nominal width."""
        total, count = self._moments(pixels, kept)
        q = scale_index(bits, self.effort, int(total[:3].sum()) / count)
        colour = self._colour(total, count)
        return self._encode(pixels, kept, q, colour), q, colour

    def _encode(self, pixels: Array, kept: Array, q: int, colour: int) -> bytes:
        operations, count = self.operations(pixels, kept, q, colour)
        out = self._local.out
        start = encoder.rans(operations, count, *self.codes, out)
        payload: bytes = out[start:].tobytes()
        return payload

    def count(self, pixels: Array, kept: Array, q: int) -> Array:
        """int64 (contexts, 16): how often the image has each symbol in each context."""
        operations, count = self.operations(pixels, kept, q, self._colour(*self._moments(pixels, kept)))
        counts = np.zeros((2 * self.form.order.pairs + self.form.order.sides, 16), np.int64)
        encoder.count(operations, count, counts)
        return counts


def _flat(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels).reshape(-1)


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
