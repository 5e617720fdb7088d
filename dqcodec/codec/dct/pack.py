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
from dqcodec.codec.dct.transform import CHROMA_STEP, NOTCHES, PLAIN_NOTCHES, STEPS

Array = npt.NDArray[Any]

LAMBDA = {True: 0.36, False: 0.12}  # squares of the step a bit, by quantiser: least bytes for the same squared error
# Bits below which the factor falls with each bit by half, for an error that grows twice as much with a bit less instead
# of four times; and from which on no more.
FINE, COARSE = 3.6, 1.6
ACTIVITY_EXPONENT = 0.3  # of the step
USUAL_ACTIVITY, LEAST_ACTIVITY = 1500.0, 100.0  # where the step is about the nominal one; what all images have more
STORED_MEMBERS = 3200  # bytes of four columns but for their values
MAX_OPERATIONS = 3  # of a coefficient; a block has two more


def dependent(effort: str) -> bool:
    """Whether an effort takes the dependent quantiser."""
    return effort != "fast"


def scale_index(bits: float, effort: str, activity: float | None = None) -> int:
    """Scale index q of a nominal width: the step is 2^(8 - bits), as that of 256 grey levels in so many bits.

    activity  mean square of the difference of neighbouring pixels, the sum over colours: the trace of Encoder.moments.
              The step is multiplied by ((activity + LEAST_ACTIVITY) / USUAL_ACTIVITY) ** ACTIVITY_EXPONENT, 1/2 to 2;
              without it, it is not
    """
    more = 0.0
    if activity is not None:
        more = NOTCHES * ACTIVITY_EXPONENT * float(np.log2((activity + LEAST_ACTIVITY) / USUAL_ACTIVITY))
    plain = 0 if dependent(effort) else PLAIN_NOTCHES
    return min(max(round(NOTCHES * (9 - bits)) + plain + round(min(max(more, -NOTCHES), NOTCHES)), 0), 255)


def lagrange(q: int, dependent: bool) -> float:
    """The Lagrange factor at a scale index: what a bit costs, in squares of the step.

    Where steps are coarse, the least squared error would leave out nearly all of the detail, by which classes are told.
    """
    bits = 9 - (q - (0 if dependent else PLAIN_NOTCHES)) / NOTCHES
    return float(LAMBDA[dependent] * 2.0 ** (min(max(bits, COARSE), FINE) - FINE))


@dataclass(frozen=True)
class Encoder:
    """Encodes images of one format at one effort."""

    form: Format
    effort: str

    @cached_property
    def prices(self) -> search.Prices:
        """What the search weighs where a bit costs 1."""
        tables, order = self.form.tables, self.form.order
        offset = tables.offset.astype(np.float32) / np.float32(64)
        return search.prices(train.costs(tables, order), offset, order)

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

    def _scratch(self) -> threading.local:
        """This thread's buffers."""
        form, local = self.form, self._local
        if not hasattr(local, "bench"):
            values = form.rows * form.columns * form.unit**2 * form.channels
            local.planes = np.zeros(values, np.float32)
            local.operations = np.zeros(MAX_OPERATIONS * values + 64 * form.rows * form.columns, np.int32)
            local.out = np.zeros(2 * len(local.operations) + 8, np.uint8)
            local.edges, local.bench = form.edges(), encoder.bench()
        return local

    def operations(self, pixels: Array, kept: Array, q: int, colour: int) -> tuple[Array, int]:
        """The coding operations of an image: (int32 buffer, how many of it).

        pixels  uint8 (H, W, C)
        kept    uint8 (units,)
        colour  index of its rotation
        """
        form, local = self.form, self._scratch()
        scale, prices = np.float32(1) / STEPS[q], search.at_lagrange(self.prices, lagrange(q, form.tables.dependent))
        count = encoder.encode_image(
            _flat(pixels), form.height, form.width, kept, self._rotations[colour], scale, scale / CHROMA_STEP,
            form.rows, local.edges, form.order, form.tables.coding, prices, EFFORTS.index(self.effort), local.planes,
            local.bench, local.operations,
        )  # fmt: skip
        return local.operations, count

    def moments(self, pixels: Array, kept: Array) -> Array:
        """float64 (3, 3): mean second moments of the differences of neighbouring pixels; of one plane as of three that
        are equal."""
        form = self.form
        three = pixels if form.channels == 3 else np.repeat(pixels, 3, 2)
        found: Array = encoder.moments(_flat(three), form.height, form.width, kept, form.columns, form.unit)
        return found

    def scale(self, moments: Array, bits: float) -> int:
        """Scale index of an image with these moments at a nominal width."""
        return scale_index(bits, self.effort, float(np.trace(moments)))

    def colour(self, moments: Array) -> int:
        """Index of the rotation of an image with these moments; 0 for one plane."""
        return int(encoder.nearest(moments, self._rotations)) if self.form.channels == 3 else 0

    def encode_at(self, pixels: Array, kept: Array, bits: float) -> tuple[bytes, int, int]:
        """(payload, scale index, index of the rotation) of an image at a nominal width."""
        moments = self.moments(pixels, kept)
        q, colour = self.scale(moments, bits), self.colour(moments)
        return self._encode(pixels, kept, q, colour), q, colour

    def encode(self, pixels: Array, kept: Array, q: int) -> tuple[bytes, int]:
        """(payload, index of the rotation) of an image at a scale index."""
        colour = self.colour(self.moments(pixels, kept))
        return self._encode(pixels, kept, q, colour), colour

    def _encode(self, pixels: Array, kept: Array, q: int, colour: int) -> bytes:
        operations, count = self.operations(pixels, kept, q, colour)
        out = self._scratch().out
        start = encoder.rans(operations, count, *self.codes, out)
        payload: bytes = out[start:].tobytes()
        return payload

    def count(self, pixels: Array, kept: Array, q: int) -> Array:
        """int64 (contexts, 16): how often the image has each symbol in each context."""
        operations, count = self.operations(pixels, kept, q, self.colour(self.moments(pixels, kept)))
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
