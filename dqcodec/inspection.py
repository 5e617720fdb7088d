"""Looking into a .dqz: `info` and `verify` as functions that return frozen dataclasses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.container.reader import Reader
from dqcodec.container.shards import ShardReader
from dqcodec.container.spec import DICTIONARY, SCORES
from dqcodec.decode import DQZFile, OpenFile
from dqcodec.decode import open as open_dqz
from dqcodec.errors import DQZError
from dqcodec.run import Progress

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Bin:
    """A bin over all classes: samples in it, samples taken, and its scores, None where there are none."""

    size: int
    taken: int
    rs: float | None
    ds: float | None
    is_: float | None


@dataclass(frozen=True)
class Width:
    """Samples of one nominal width, rounded, and the mean distance of their gradients; None where none is stored."""

    bits: int
    samples: int
    distance: float | None


@dataclass(frozen=True)
class Info:
    """What a file says of itself.

    samples, classes, channels, height, width, patch, transform, fingerprint, creator   from the header
    bytes          of the file; `members` by name, `raw` of the same images as plain pixels
    per_class      samples by class name
    kept_patches   share of the patches that are kept, 0..1
    widths         samples by nominal width in whole bits, from the smallest on
    bins           what the selection did with each bin; empty where nothing was chosen
    mae            the name of the masked autoencoder that the file wants; None where it names none
    source, encode what the header says about origin and options
    """

    path: str
    bytes: int
    samples: int
    classes: int
    channels: int
    height: int
    width: int
    patch: int
    transform: str
    kept_patches: float
    widths: tuple[Width, ...]
    bins: tuple[Bin, ...]
    raw: int
    members: dict[str, int]
    per_class: dict[str, int]
    mae: str | None
    source: dict[str, Any]
    encode: dict[str, Any]
    creator: str
    fingerprint: str


@dataclass(frozen=True)
class TextInfo:
    """What a file of records says of itself.

    frame        records that are compressed together
    dictionary   bytes of the dictionary that they share, as the file holds it; 0 for none
    The rest is as for Info.
    """

    path: str
    bytes: int
    samples: int
    classes: int
    frame: int
    dictionary: int
    bins: tuple[Bin, ...]
    members: dict[str, int]
    per_class: dict[str, int]
    source: dict[str, Any]
    encode: dict[str, Any]
    creator: str
    fingerprint: str


@dataclass(frozen=True)
class Verification:
    """
    samples  number of samples
    bad      (index, reason) of every sample that cannot be decoded as it was written
    damage   what else is wrong with the file
    """

    path: str
    samples: int
    bad: tuple[tuple[int, str], ...]
    damage: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.bad and not self.damage


def info(path: str | Path) -> Info | TextInfo:
    """Read header and columns; FormatError where the file is not a .dqz."""
    with open_dqz(path) as file:
        reader, header = file.reader, file.reader.header
        source, options = _table(header.extra, "source"), _table(header.extra, "encode")
        creator = str(header.extra.get("creator", ""))
        if not isinstance(file, DQZFile):
            dictionary = len(reader.columns.get(DICTIONARY, ()))
            return TextInfo(
                str(path), reader.size, len(file), len(header.classes), header.frame, dictionary,
                _bins(reader.columns), _members(reader), _per_class(file), source, options, creator, header.fingerprint,
            )  # fmt: skip
        mask = reader.columns.get("mask")
        kept = len(file) * header.patches if mask is None else int(np.bitwise_count(mask).sum())
        return Info(
            str(path), reader.size, len(file), len(header.classes), *file.shape, header.patch, header.transform,
            kept / (len(file) * header.patches), _widths(reader.columns), _bins(reader.columns),
            len(file) * header.channels * header.height * header.width, _members(reader), _per_class(file),
            None if header.mae is None else header.mae["name"], source, options, creator, header.fingerprint,
        )  # fmt: skip


def _members(reader: Reader | ShardReader) -> dict[str, int]:
    """Bytes by column, of all metadata together, and of the ZIP around them."""
    members: dict[str, int] = {}
    for name, size in reader.sizes.items():
        column = name.partition("/c/")[0] if "/c/" in name else "metadata"
        members[column] = members.get(column, 0) + size
    members["zip"] = reader.size - sum(members.values())
    return members


def _per_class(file: OpenFile) -> dict[str, int]:
    counts = np.bincount(file.label, minlength=len(file.classes)).tolist()
    return dict(zip(file.classes, counts, strict=True))


def _widths(columns: Mapping[str, Array]) -> tuple[Width, ...]:
    widths, place, counts = np.unique(columns["bits"], return_inverse=True, return_counts=True)
    means = [None] * len(widths)
    if "distance" in columns:
        means = (np.bincount(place, columns["distance"]) / counts).tolist()
    return tuple(Width(*row) for row in zip(widths.tolist(), counts.tolist(), means, strict=True))


def _bins(columns: Mapping[str, Array]) -> tuple[Bin, ...]:
    if "bin" not in columns:
        return ()
    size, taken = (columns[name].sum(0).tolist() for name in ("bins/size", "bins/taken"))
    scores = [columns[name].tolist() if name in columns else [math.nan] * len(size) for name in SCORES]
    return tuple(
        Bin(s, t, *(None if math.isnan(value) else value for value in row))
        for s, t, *row in zip(size, taken, *scores, strict=True)
    )


def verify(path: str | Path, progress: Progress | None = None) -> Verification:
    """Check every checksum and bound, and decode every sample.

    A damaged structure is a FormatError on opening and comes back as `damage`; then no sample can be looked at.
    """
    try:
        file = open_dqz(path)
    except DQZError as error:
        return Verification(str(path), 0, (), (str(error),))
    with file:
        decode = file.placed if isinstance(file, DQZFile) else lambda batch: sum(map(len, file.pieces(batch)))
        bad: list[tuple[int, str]] = []
        if progress:
            progress("verify", 0, len(file))  # the first sample may wait until the decoder is compiled
        for batch in file.batches():
            try:
                decode(batch)
            except DQZError:
                bad += _each(file, decode, batch)
            if progress:
                progress("verify", batch.stop, len(file))
        damage = []
        try:
            if not bad and file.reader.fingerprint() != file.fingerprint:
                damage.append("the fingerprint is not that of the content: it was changed after the file was written")
        except DQZError as error:
            damage.append(str(error))
        return Verification(str(path), len(file), tuple(bad), tuple(damage))


def _each(file: OpenFile, decode: Callable[[Sequence[int]], Any], batch: range) -> list[tuple[int, str]]:
    """The bad samples of a batch, one by one."""
    bad = []
    for index in batch:
        try:
            decode([index])
        except DQZError as error:
            bad.append((index, str(error).removeprefix(f"{file.path}: sample {index}: ").partition(". Run:")[0]))
    return bad


def _table(extra: Any, key: str) -> dict[str, Any]:
    value = extra.get(key)
    return dict(value) if isinstance(value, dict) else {}
