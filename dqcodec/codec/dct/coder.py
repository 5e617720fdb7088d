"""The decoder of the transform `dct`: payloads -> images. The encoder is `pack.py`.

With numba the compiled functions run, and hold no interpreter lock; without it the plain Python reference, which gives
the same integers and, but for float rounding, the same pixels, decodes about a hundred times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec import memory
from dqcodec.codec.dct import reference
from dqcodec.codec.dct.contexts import Contexts, contexts
from dqcodec.codec.dct.edges import Edges, edges
from dqcodec.codec.dct.tables import Tables
from dqcodec.codec.dct.transform import CHROMA_STEP, STEPS, rotation_matrices
from dqcodec.errors import FormatError

Array = npt.NDArray[Any]

COMPILED = find_spec("numba") is not None
DAMAGED = "the coded stream does not end where its bytes end"


@dataclass(frozen=True)
class Format:
    """What all samples of a file share.

    height, width   pixels
    channels        1 or 3
    tables          the static tables; their unit is that of the file
    weights         of the filter, see filter.weights; None: decoded planes are not filtered
    """

    height: int
    width: int
    channels: int
    tables: Tables
    weights: Array | None = None

    @property
    def unit(self) -> int:
        return self.tables.unit

    @property
    def rows(self) -> int:
        """Of units; the last one may reach beyond the image."""
        return -(-self.height // self.unit)

    @property
    def columns(self) -> int:
        return -(-self.width // self.unit)

    @property
    def order(self) -> Contexts:
        return contexts(self.unit)

    @cached_property
    def rotations(self) -> Array:
        """float32 (R, 3, 3)."""
        return rotation_matrices(self.tables.rotation)

    @cached_property
    def filter_tables(self) -> tuple[Array, Array] | None:
        """The weights as the compiled filter takes them."""
        from dqcodec.codec.dct import filter_compiled

        return None if self.weights is None else filter_compiled.tables_of(self.weights, self.unit)

    def edges(self) -> Edges:
        return edges(self.columns, self.unit, self.channels)


def decode(form: Format, payloads: Sequence[bytes], kept: Array, scale: Array, colour: Array | None) -> Array:
    """Decode a batch.

        payloads  n payloads
        kept      bool (n, units)       units that are there, row by row
        scale     uint8 (n,)            scale index q; the step is 0.5 * 2^(q / 16)
        colour    uint8 (n,) or None    index of the rotation, with 3 channels
        returns   uint8 (n, C, H, W)    0 where a unit is not there

    Raises FormatError, with `sample` the place in the batch, where a payload does not end as it should.
    """
    count = len(payloads)
    out = memory.empty((count, form.channels, form.height, form.width), np.uint8)
    if not kept.all():
        out.fill(0)
    if not count:
        return out
    rotation = form.rotations[colour] if colour is not None else np.zeros((count, 3, 3), np.float32)
    kept = np.ascontiguousarray(kept, np.uint8)
    if not COMPILED:
        bad = reference.decode(form, payloads, kept, STEPS[scale], rotation, out)
    else:
        from dqcodec.codec.dct import filter_compiled

        bench = filter_compiled.bench(form.filter_tables, form.rows, form.columns, form.channels, form.unit)
        bad = decode_compiled(form, payloads, kept, STEPS[scale], rotation, bench, out)
    if bad >= 0:
        raise FormatError(DAMAGED, sample=int(bad))
    return out


def join(payloads: Sequence[bytes]) -> tuple[Array, Array]:
    """Payloads one after the other, each ending at an even place, so that its words are words of the whole.

    Returns uint8 (bytes,), which ends with a word that decoders may read but do not use; and int64 (n, 2), from where
    to where each payload goes.
    """
    odd = [len(payload) & 1 for payload in payloads]
    ends = np.cumsum([len(payload) + pad for payload, pad in zip(payloads, odd, strict=True)], dtype=np.int64)
    starts = ends - [len(payload) for payload in payloads]
    parts = [part for payload, pad in zip(payloads, odd, strict=True) for part in (bytes(pad), payload)]
    return np.frombuffer(bytearray().join([*parts, bytes(2)]), np.uint8), np.stack([starts, ends], 1)


def decode_compiled(
    form: Format, payloads: Sequence[bytes], kept: Array, steps: Array, rotation: Array, bench: Any, out: Array
) -> int:
    """What reference.decode does, by numba; bench: see filter_compiled.bench. It keeps the last image's planes."""
    from dqcodec.codec.dct import inverse

    data, spans = join(payloads)
    bad: int = inverse.decode(
        data, data.view("<u2"), spans, kept, steps / np.float32(64), CHROMA_STEP,
        rotation.reshape(len(payloads), 9), form.height, form.width, form.channels, form.edges(), form.order,
        form.tables.coding, np.zeros(256 * form.channels, np.int32), bench, out.reshape(-1),
    )  # fmt: skip
    return bad
