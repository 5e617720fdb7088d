"""The static tables of a file: probability distributions, which context uses which, colour rotations, offsets.

A distribution has 16 symbols; frequencies are integers of at least 1, so no symbol is ever impossible. In a coefficient
distribution symbols 1..9 occur with either sign, at the stated frequency each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dqcodec.codec.dct.contexts import contexts
from dqcodec.errors import FormatError, UnsupportedFeatureError

Array = npt.NDArray[Any]

TOTAL = 4096  # the frequencies of a distribution add up to this
SYMBOLS = 16
LARGEST = 9  # largest magnitude that is a symbol of its own; 10..15 are escape classes
MINUS = 10  # symbol of -m is MINUS + m
ESCAPE = 20  # symbol of the first escape class
BUCKETS = 32  # of an alias table
MAX_TABLES = 256  # distributions
MAX_ROTATIONS = 256
MAX_OFFSET = 31
EFFORTS = ("fast", "default", "best")  # how long encoders search
OFFSETS = {True: (11, -6, -2), False: (0, -2, -1)}  # that encoders take: of the dependent, of the plain quantiser
PLACES, ROWS, SUM_BIN, POINTS, NEXT, SIDES, PAIRS = 0, 384, 768, 896, 1152, 1408, 1920  # places in Coding.table
MAX_PAIRS = 4096
SECOND = 16  # bits from the entry of the first quantiser to that of the second in a pair
MAGNITUDES = np.array([*range(LARGEST + 1), 0, *range(1, LARGEST + 1)], np.int32)  # by symbol
# State t of the dependent quantiser is held as 64 t + 16 q, q being its quantiser t // 2: so its low six bits say how
# far to shift an entry of a pair, and those of STATE are its place in a table of 64 entries a state.
STATE, SHIFT = 192, 63
TRANSITIONS = ((0, 2), (2, 0), (1, 3), (3, 1))  # by state and parity of the magnitude


@dataclass(frozen=True)
class Tables:
    """What is the same for all samples of a file.

    context      uint8 (pairs * 2 + sides,)   distribution of each context; the side ones come after the others
    coefficient  uint16 (K, 16)               frequencies, f[0] + 2 (f[1] + ... + f[9]) + f[10] + ... + f[15] = 4096
    side         uint16 (M, 16)               frequencies, their sum 4096
    rotation     uint8 (R, 3)                 angles of the colour rotations, 256ths of a turn
    offset       int8 (3,)                    of reconstruction points 1, 2, 3 and more, in 64ths of a step

    Raises FormatError where a table is not as stated.
    """

    unit: int
    context: Array
    coefficient: Array
    side: Array
    rotation: Array
    offset: Array
    dependent: bool = True

    def __post_init__(self) -> None:
        numbering = contexts(self.unit)
        count = 2 * numbering.pairs
        shapes = {
            "context": (count + numbering.sides,), "coefficient": (len(self.coefficient), SYMBOLS),
            "side": (len(self.side), SYMBOLS), "rotation": (len(self.rotation), 3), "offset": (3,),
        }  # fmt: skip
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape or 0 in shape:
                raise FormatError(f"tables/{name}: shape {found}, expected {shape}", member=f"tables/{name}")
        if len(self.coefficient) + len(self.side) > MAX_TABLES or len(self.rotation) > MAX_ROTATIONS:
            raise FormatError(f"tables: more than {MAX_TABLES} distributions or {MAX_ROTATIONS} rotations")
        spread = {name: alphabet(getattr(self, name), name == "coefficient") for name in ("coefficient", "side")}
        for name, frequency in spread.items():
            if (getattr(self, name) < 1).any() or (frequency.sum(1) != TOTAL).any():
                raise FormatError(f"tables/{name}: frequencies are under 1 or do not add up to {TOTAL}")
        if int(self.context[:count].max()) >= len(self.coefficient) or int(self.context[count:].max()) >= len(
            self.side
        ):
            raise FormatError("tables/context: a distribution that is not there", member="tables/context")
        if int(np.abs(self.offset.astype(int)).max()) > MAX_OFFSET:
            raise FormatError(f"tables/offset: beyond {MAX_OFFSET}", member="tables/offset")

    @cached_property
    def coding(self) -> Coding:
        """The tables as the decoder uses them."""
        order = contexts(self.unit)
        count = 2 * order.pairs
        table = np.zeros(PAIRS + MAX_PAIRS, np.int32)
        dependent = int(self.dependent)
        values, states = by_state(self.offset, dependent)
        parts = {
            PLACES: order.place, ROWS: order.row, SUM_BIN: order.sum_bin, POINTS: values, NEXT: states,
            SIDES: BUCKETS * (self.context[count:].astype(np.int32) + len(self.coefficient)),
            PAIRS: BUCKETS * (self.context[:count:2] | self.context[1:count:2].astype(np.int32) << SECOND),
        }  # fmt: skip
        for at, part in parts.items():
            table[at : at + len(part)] = part
        frequency = np.concatenate([alphabet(self.coefficient, True), alphabet(self.side, False)])
        words = np.zeros(MAX_TABLES * BUCKETS, np.int64)
        words[: frequency.size] = np.concatenate([alias(row) for row in frequency])
        return Coding(table, words, dependent, int(self.offset[2]))


class Coding(NamedTuple):
    """The tables as the decoder uses them; their sizes bound every index that a payload can make.

    table      int32 (PAIRS + MAX_PAIRS,), at these places:
               PLACES, ROWS, SUM_BIN   place, row and sum_bin of contexts.Contexts
               POINTS, NEXT (4 * 64,)  see `by_state`
               SIDES                   where the distribution of each side context begins in `alias`
               PAIRS                   the same of a pair of contexts, for the second quantiser from bit SECOND on
    alias      int64 (32 x MAX_TABLES,), see `alias`
    dependent  1 or 0
    far        offset of magnitudes that are no symbol of their own
    """

    table: Array
    alias: Array
    dependent: int
    far: int


def by_state(offset: Array, dependent: int) -> tuple[Array, Array]:
    """By state and symbol, 64 a state: reconstruction points in 64ths of a step, int32 (256,), and what follows,
    magnitude * 256 + next state, int32 (256,).

    Magnitude m of quantiser q is r = 2m - q (plain: m), its point 64 r + o[min(r, 3)].
    """
    values, states = np.zeros((4, 64), np.int32), np.zeros((4, 64), np.int32)
    for state in range(4 if dependent else 1):
        for s in range(ESCAPE):
            m = int(MAGNITUDES[s])
            r = (m << dependent) - state // 2
            point = 64 * r + int(offset[min(r, 3) - 1])
            values[state, s] = (-point if s > LARGEST else point) if m else 0
            after = TRANSITIONS[state][m % 2] if dependent else 0
            states[state, s] = m << 8 | after << 6 | after // 2 * SECOND
    return values.ravel(), states.ravel()


def alphabet(frequency: Array, signed: bool) -> Array:
    """Frequencies (K, 16) as stored -> int64 (K, 32) of the coded symbols.

    A coefficient's symbols are 0..9 for magnitudes with a plus sign, 11..19 for 1..9 with a minus sign, 20..25 for the
    escape classes; the others' are 0..15.
    """
    coded = np.zeros((len(frequency), BUCKETS), np.int64)
    if signed:
        coded[:, : LARGEST + 1] = frequency[:, : LARGEST + 1]
        coded[:, MINUS + 1 : ESCAPE] = frequency[:, 1 : LARGEST + 1]
        coded[:, ESCAPE : ESCAPE + SYMBOLS - 1 - LARGEST] = frequency[:, LARGEST + 1 :]
    else:
        coded[:, :SYMBOLS] = frequency
    return coded


def alias_parts(frequency: Array) -> tuple[list[int], list[int], list[int]]:
    """(cut, other, offset) of each bucket of 128 slots for frequencies (32,) that add up to 4096.

    The slots of bucket i below cut[i] are symbol i's, the others' are other[i]'s: slot number r of the bucket is then
    occurrence offset[i] + r of that symbol. Symbols with more than 128 slots fill the buckets of those with fewer; both
    are taken from stacks that were filled in ascending order.
    """
    size = TOTAL // BUCKETS
    cut = [int(f) for f in frequency]
    other, offset = list(range(BUCKETS)), [0] * BUCKETS
    over = [i for i in range(BUCKETS) if cut[i] > size]
    under = [i for i in range(BUCKETS) if cut[i] < size]
    while over:
        large, small = over.pop(), under.pop()
        cut[large] -= size - cut[small]
        other[small], offset[small] = large, cut[large]
        if cut[large] < size:
            under.append(large)
        elif cut[large] > size:
            over.append(large)
    for i in range(BUCKETS):
        if cut[i] == size:
            cut[i], offset[i] = 0, 0
        else:
            offset[i] -= cut[i]
    return cut, other, offset


def alias(frequency: Array) -> Array:
    """int64 (32,), a word a bucket: cut in bits 0..7, the other symbol from 8 on, its frequency from 16, the frequency
    of the bucket's own symbol from 32, and from 48 the offset, which is signed."""
    cut, other, offset = alias_parts(frequency)
    words = np.zeros(BUCKETS, np.int64)
    for i in range(BUCKETS):
        theirs = other[i] << 8 | int(frequency[other[i]]) << 16 | offset[i] << 48
        words[i] = cut[i] | theirs | int(frequency[i]) << 32
    return words


DEFAULT = "default-3"  # name of the built-in tables; a change of their bytes would be another name


def default(name: str, unit: int, offset: Sequence[int], dependent: bool) -> Tables:
    """The built-in tables for units of 4, 8 or 16; UnsupportedFeatureError for another name."""
    if name != DEFAULT:
        raise UnsupportedFeatureError(
            f"the file needs the built-in tables {name[:80]!r}; this version has {DEFAULT!r}", member="zarr.json"
        )
    return unpack((Path(__file__).parent / f"{name}-{unit}.bin").read_bytes(), unit, offset, dependent)


def built_in(unit: int, dependent: bool) -> Tables:
    """The built-in tables with the reconstruction points that encoders take."""
    return default(DEFAULT, unit, OFFSETS[dependent], dependent)


def pack(tables: Tables) -> bytes:
    """Tables as the bytes of a built-in file: K, M, R (uint16), context, coefficient, side, rotation; little-endian."""
    sizes = [len(tables.coefficient), len(tables.side), len(tables.rotation)]
    parts = [np.array(sizes, "<u2"), tables.context, tables.coefficient.astype("<u2"), tables.side.astype("<u2")]
    return b"".join(part.tobytes() for part in [*parts, tables.rotation])


def unpack(data: bytes, unit: int, offset: Sequence[int], dependent: bool) -> Tables:
    """The inverse of `pack`."""
    order = contexts(unit)
    k, m, r = np.frombuffer(data, "<u2", 3).tolist()
    ends = np.cumsum([6, 2 * order.pairs + order.sides, 32 * k, 32 * m, 3 * r]).tolist()
    context, coefficient, side, rotation = (data[a:b] for a, b in pairwise(ends))
    return Tables(
        unit, np.frombuffer(context, np.uint8), np.frombuffer(coefficient, "<u2").reshape(k, SYMBOLS),
        np.frombuffer(side, "<u2").reshape(m, SYMBOLS), np.frombuffer(rotation, np.uint8).reshape(r, 3),
        np.array(offset, np.int8), dependent,
    )  # fmt: skip
