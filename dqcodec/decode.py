"""From the bytes of a .dqz to images, in plain numpy: the reference for every faster decoder.

    read bytes -> checksum -> entropy decode -> dequantize -> place patches -> fill

`dqcodec.open` is all an edge device needs: numpy and the standard library.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec import checks
from dqcodec.codec import pixel, quantize
from dqcodec.codec.dct import coder
from dqcodec.codec.dct.filter import weights
from dqcodec.codec.dct.tables import Tables, default
from dqcodec.container.closing import Closing
from dqcodec.container.reader import Reader
from dqcodec.container.shards import ShardReader, open_reader
from dqcodec.container.spec import MAE, SOFT
from dqcodec.container.storage import place
from dqcodec.errors import FormatError, OptionError
from dqcodec.patches import fill_mean, join, split, to_units
from dqcodec.smooth import smooth
from dqcodec.soft import spread

if TYPE_CHECKING:
    from dqcodec.records import RecordFile

Array = npt.NDArray[Any]

FILLS = ("smooth", "mean", "none")


@dataclass(frozen=True)
class Kept:
    """Decoded levels of a batch of the transform pixel, before anything is computed with them.

    levels   int8 (K, C, p, p)   the kept patches of all samples, one sample after the other
    scale    uint8 (K,)          scale index of each of them
    mask     bool (n, P)         which patches they are; its true entries, row by row, are those K
    """

    levels: Array
    scale: Array
    mask: Array


class OpenFile(Closing):
    """What images and records have in common: the columns, and how a file is opened.

        classes            class names, by label
        label              unsigned (N,)
        bin, source_index  unsigned (N,), or None where the file does not have them

    `path` may be a URL (https://, s3:// and what else fsspec knows; needs `dqcodec[remote]`), and `cache` then a folder
    that keeps what was fetched once. Pickles as its path; opens the file anew in another process, and refuses one that
    was replaced in between.
    """

    def __init__(
        self, path: str | Path, cache: str | Path | None = None, reader: Reader | ShardReader | None = None
    ) -> None:
        self.path = place(path)
        # Where workers find it, whatever their working directory is by then.
        self._place = self.path.absolute() if isinstance(self.path, Path) else self.path
        self.cache = None if cache is None else Path(cache).absolute()
        reader = reader or open_reader(path, cache)
        self._opened: tuple[int, Reader | ShardReader] | None = os.getpid(), reader  # the process that did
        self.fingerprint, self._identity = reader.header.fingerprint, reader.identity

    @property
    def reader(self) -> Reader | ShardReader:
        opened = self._opened  # both at once: another thread may be here, too
        if opened is not None and opened[0] == os.getpid():
            return opened[1]
        if opened is not None and isinstance(self._place, Path):  # a server's has threads that are not here
            opened[1].close()
        reader = open_reader(self._place, self.cache)
        if reader.identity != self._identity:
            reader.close()
            raise FormatError(f"{self.path}: replaced by another file while it was in use", path=self.path)
        self._opened = os.getpid(), reader
        return reader

    @property
    def classes(self) -> tuple[str, ...]:
        return self.reader.header.classes

    @property
    def label(self) -> Array:
        return self.reader.columns["label"]

    @property
    def bin(self) -> Array | None:
        return self.reader.columns.get("bin")

    @property
    def source_index(self) -> Array | None:
        return self.reader.columns.get("source_index")

    def __len__(self) -> int:
        return len(self.reader)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def close(self) -> None:
        if self._opened is not None:
            self._opened[1].close()


class DQZFile(OpenFile):
    """An open .dqz of images as numpy arrays; see OpenFile, too.

        bits, scale  unsigned (N,)
        shape        (C, H, W) of the images

    `file[i]` is (uint8 (C, H, W), int label), `file.images(indices)` a batch; filter: see `open`.
    """

    def __init__(
        self,
        path: str | Path,
        cache: str | Path | None = None,
        filter: bool = False,
        reader: Reader | ShardReader | None = None,
    ) -> None:
        checks.boolean("filter", filter)
        super().__init__(path, cache, reader)
        self.filter = filter
        self._dct: coder.Format | None = None
        header = self.reader.header
        if header.transform == "text":
            self.close()
            raise FormatError(f"{self.path}: it holds records of text, not images", path=self.path)
        if header.transform == "dct":
            self._form(self.reader)  # what is wrong with it should be known now

    @property
    def shape(self) -> tuple[int, int, int]:
        header = self.reader.header
        return header.channels, header.height, header.width

    @property
    def bits(self) -> Array:
        return self.reader.columns["bits"]

    @property
    def scale(self) -> Array:
        return self.reader.columns["scale"]

    def mask(self, indices: Sequence[int] | Array) -> Array:
        """bool (n, P): true where a patch is kept, patches in row-major order."""
        return self.reader.mask(check_indices(indices, len(self)))

    def __getitem__(self, index: int) -> tuple[Array, int]:
        index = check_index(index, len(self))
        return self.images([index])[0], int(self.label[index])

    def __iter__(self) -> Iterator[tuple[Array, int]]:
        return (self[index] for index in range(len(self)))

    def images(self, indices: Sequence[int] | Array, fill: str = "smooth") -> Array:
        """Decode a batch.

            indices  n sample indices, negative ones count from the end
            fill     dropped patches: "smooth", interpolated from the pixels around them; "mean", the image's mean
                     colour; "none", black
            returns  uint8 (n, C, H, W)

        Raises IndexError, OptionError, or FormatError (ChecksumError) that names file and sample.
        """
        if fill not in FILLS:
            raise OptionError(f"fill: {fill!r}; allowed: {', '.join(FILLS)}")
        images: Array
        images, mask = self.placed(indices)
        if fill == "none" or mask.all():
            return images
        header = self.reader.header
        patches = split(images, header.patch)
        if fill == "mean":
            return join(fill_mean(patches, mask), header.grid)
        filled = smooth(patches.astype(np.float32), mask, header.grid)
        return join((filled + 0.5).clip(0, 255).astype(np.uint8), header.grid)

    def soft_labels(self, indices: Sequence[int] | Array) -> Array:
        """float32 (n, classes): the shares of all classes that a classifier gives these samples, rows of sum 1.

        OptionError where the file has none.
        """
        columns = self.reader.columns
        if SOFT[0] not in columns:
            raise OptionError(f"soft_labels: {self.path} has none; dqcodec encode --soft-labels proxy makes them")
        wanted = check_indices(indices, len(self))
        return spread(columns[SOFT[0]][wanted], columns[SOFT[1]][wanted], len(self.classes))

    @property
    def mae(self) -> tuple[str, str] | None:
        """SHA-256 and name of the masked autoencoder that the file wants, or None."""
        stated = self.reader.header.mae
        return None if stated is None else (stated["sha256"], stated["name"])

    @property
    def mae_weights(self) -> bytes | None:
        """That of the file itself, as safetensors; None where it is not in the file."""
        weights = self.reader.columns.get(MAE)
        return None if weights is None else weights.tobytes()

    def placed(
        self,
        indices: Sequence[int] | Array,
        payloads: Sequence[bytes] | None = None,
        decode: Callable[..., Any] = coder.decode,
    ) -> tuple[Any, Array]:
        """Images uint8 (n, C, H, W) with dropped patches black, and the mask bool (n, P).

        payloads  the samples' coded bytes where `reader.read` gave them before, in another process say
        decode    for the transform dct: takes what coder.decode takes, and the images are what it returns
        """
        if self.reader.header.transform == "dct":
            return self._placed_dct(indices, payloads, decode)
        kept = self.kept(indices, payloads)
        patches = np.zeros((*kept.mask.shape, *kept.levels.shape[1:]), np.uint8)
        patches[kept.mask] = quantize.dequantize(kept.levels, kept.scale[:, None, None, None])
        return join(patches, self.reader.header.grid), kept.mask

    def _placed_dct(
        self, indices: Sequence[int] | Array, payloads: Sequence[bytes] | None, decode: Callable[..., Any]
    ) -> tuple[Any, Array]:
        reader, header, columns = self.reader, self.reader.header, self.reader.columns
        wanted = check_indices(indices, len(reader))
        mask = reader.mask(wanted)
        form = self._form(reader)
        units = np.ones((len(wanted), form.rows * form.columns), bool)
        if "mask" in columns:
            units = to_units(mask, header.grid, header.patch // form.unit)
        colour = columns["colour"][wanted] if header.channels == 3 else None
        payloads = reader.read(wanted) if payloads is None else payloads
        try:
            images = decode(form, payloads, units, self.scale[wanted], colour)
        except FormatError as error:
            raise reader.error(wanted[error.sample or 0], str(error)) from None
        return images, mask

    def _form(self, reader: Reader | ShardReader) -> coder.Format:
        """What the samples of a file of the transform dct share."""
        if self._dct is None:
            self._dct = form_of(reader, self.filter)
        return self._dct

    def kept(self, indices: Sequence[int] | Array, payloads: Sequence[bytes] | None = None) -> Kept:
        """Read, check and entropy-decode a batch of the transform pixel; payloads as in `placed`."""
        reader, header = self.reader, self.reader.header
        wanted = check_indices(indices, len(reader))
        mask = reader.mask(wanted)
        counts = mask.sum(1)
        levels = [np.empty((0, header.channels, header.patch, header.patch), np.int8)]
        payloads = reader.read(wanted) if payloads is None else payloads
        for index, count, payload in zip(wanted, counts, payloads, strict=True):
            shape = (int(count), header.channels, header.patch, header.patch)
            try:
                levels.append(pixel.decode(payload, shape, int(self.bits[index])))
            except FormatError as error:
                raise reader.error(index, str(error)) from None
        return Kept(np.concatenate(levels), np.repeat(self.scale[wanted], counts), mask)

    def batches(self) -> Iterator[range]:
        """All indices in batches of at most 256 samples and about 64 MB of pixels."""
        size = min(256, max(1, (64 << 20) // int(np.prod(self.shape))))
        return (range(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def __repr__(self) -> str:
        return f"DQZFile({str(self.path)!r}, {len(self)} samples, {len(self.classes)} classes, shape={self.shape})"


def form_of(reader: Reader | ShardReader, filter: bool) -> coder.Format:
    """Tables and geometry of a file of the transform dct; FormatError where they do not fit each other.

    filter   as the file says; False: none
    """
    header, columns, parameters = reader.header, reader.columns, reader.header.parameters
    unit = parameters["unit"]
    try:
        if parameters["tables"] == "file":
            rotation = columns.get("tables/rotation", np.zeros((1, 3), np.uint8))
            tables = Tables(
                unit, columns["tables/context"], columns["tables/coefficient"], columns["tables/side"], rotation,
                np.array(parameters["offset"], np.int8), parameters["dependent"],
            )  # fmt: skip
        else:
            tables = default(parameters["tables"], unit, parameters["offset"], parameters["dependent"])
        if "mask" in columns and header.patch % unit:
            raise FormatError(f"zarr.json: patches of {header.patch} cannot be cut into units of {unit}")
        if "colour" in columns and int(columns["colour"].max()) >= len(tables.rotation):
            bad, top = int(columns["colour"].argmax()), len(tables.rotation) - 1
            raise FormatError(
                f"colour: sample {bad} has {columns['colour'][bad]}; allowed: 0 to {top}", member="colour"
            )
        filters = weights(parameters["filter"], unit)
        return coder.Format(header.height, header.width, header.channels, tables, filters if filter else None)
    except FormatError as error:
        raise type(error)(f"{reader.path}: {error}", path=reader.path, member=error.member) from None


def open(path: str | Path, cache: str | Path | None = None, filter: bool = False) -> DQZFile | RecordFile:
    """Open a .dqz for reading, of images with numpy alone; FormatError where it is not one.

        path    a file, or a URL: "https://host/out.dqz", "s3://bucket/out.dqz" and what else fsspec knows
        cache   for a URL, a folder that keeps what was fetched; it may be shared, and deleted at any time
        filter  images of the transform dct with the file's filter: 0.2 to 0.3 dB nearer to the originals, for 1.3 times
                the time of decoding on a CPU. Networks train as well without it, so it is for looking at images

    A server that cannot be read is an OSError, after some tries.
    """
    reader = open_reader(path, cache)
    if reader.header.transform != "text":
        return DQZFile(path, cache, filter, reader)
    if filter is not False:
        reader.close()
        raise OptionError(f"filter: {path} holds records of text; it is for images")
    try:
        from dqcodec.records import RecordFile
    except ImportError as error:
        reader.close()
        raise OptionError(f"{path}: {error}") from None
    return RecordFile(path, cache, reader)


def check_index(index: Any, length: int) -> int:
    """A sample index in 0..length-1 from one that may be negative; IndexError outside, TypeError for no integer."""
    if type(index) is int and 0 <= index < length:  # the usual case, many times faster than the rest
        return index
    if isinstance(index, bool | np.bool_):
        raise TypeError("a sample index is an integer, not a bool; np.flatnonzero makes indices of a mask")
    if isinstance(index, slice | str | list | tuple):
        raise TypeError(
            f"a sample index is an integer, not a {type(index).__name__}; images([...]) or records([...]) take several"
        )
    index = int(operator.index(index))
    if not -length <= index < length:
        raise IndexError(f"sample {index} of {length}; allowed: {-length} to {length - 1}")
    return int(index % length)


def check_indices(indices: Sequence[int] | Array, length: int) -> list[int]:
    """`check_index` of each."""
    return [check_index(index, length) for index in indices]
