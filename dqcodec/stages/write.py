"""write: what a file holds beside the coded samples, and how large it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.bits import Bits
from dqcodec.container.shards import Output, Part, index_json, part_name, write_parts
from dqcodec.container.spec import MAE, MAX_NAME, Header
from dqcodec.container.writer import Writer, size_of
from dqcodec.errors import OptionError
from dqcodec.options import EncodeOptions, parse_size
from dqcodec.run import Run
from dqcodec.selection import Selection
from dqcodec.stages.code import Coded, Packer, Samples
from dqcodec.stages.images import Images
from dqcodec.stages.widths import Widths

if TYPE_CHECKING:
    from dqcodec.models.checkpoints import Checkpoint

Array = npt.NDArray[Any]


_NOT_STORED = ("target_size", "shard_size")  # options that only lead to others, or to no other samples


@dataclass(frozen=True)
class Draft:
    """All that decides a file.

    kept       int64 (n,), places among the usable images
    masks      uint8 (n, ceil(P/8)), packed; None: all patches are kept
    selection  None: of all usable images
    widths     None: not known yet
    mae        None: nothing is dropped
    soft       columns of the soft labels of the samples in `kept`, (n, M); none where none are wanted
    """

    images: Images
    kept: Array
    masks: Array | None
    selection: Selection | None
    packer: Packer
    widths: Widths | None
    mae: Checkpoint | None
    soft: dict[str, Array]
    run: Run

    @property
    def usable(self) -> int:
        """Images of the source that could be read, so far."""
        folder = self.images.folder
        return len(folder) + len(folder.skipped) - len(self.run.skipped)

    def content(self, coded: Coded, options: EncodeOptions) -> tuple[Header, dict[str, Array]]:
        """Header and columns of the file with these samples; the options are those of all parts."""
        kept, places = self.kept[coded.places], coded.places
        columns = {"label": self.images.labels[kept], "source_index": self.images.usable[kept]}
        columns |= coded.columns | self.packer.tables
        columns |= {name: column[places] for name, column in self.soft.items()}
        if self.masks is not None:
            columns["mask"] = self.masks[places]
        if self.selection is not None:
            columns |= bin_columns(self.images.labels, len(self.images.folder.classes), self.selection, kept)
        if self.widths is not None and self.widths.distance is not None:
            columns["distance"] = _rounded(self.widths.distance[places])
        if self.mae is not None and self.images.options.mae == "train":
            columns[MAE] = np.frombuffer(self.mae.data, np.uint8)
        return self._header(options), columns

    def options(self, coded: Coded) -> EncodeOptions:
        """Those of the images, with the mean width that a target size has led to."""
        options = self.images.options
        if options.target_size is None:
            return options
        return replace(options, bits=str(Bits(self.images.bits.mode, round(float(coded.bits.mean()), 2))))

    def size(self, coded: Coded) -> int:
        """Bytes of the file with these samples, or of all parts and their index."""
        options = self.options(coded)
        if options.shard_size is None:
            return self._bytes(coded, options)
        parts = self.parts(coded)
        index = [Part(part_name(number), len(part.places), "0" * 64) for number, part in enumerate(parts)]
        return sum(self._bytes(part, options) for part in parts) + len(index_json(index))

    def parts(self, coded: Coded) -> list[Coded]:
        """The samples, in order, in as few parts of about equal size as stay within the shard size."""
        size = self.images.options.shard_size
        most = parse_size("shard_size", size) if size is not None else 0
        options = self.options(coded)
        ranges = cut(coded.lengths, lambda rows: self._bytes(coded.some(rows), options), most)
        return [coded.some(rows) for rows in ranges]

    def _bytes(self, coded: Coded, options: EncodeOptions) -> int:
        header, columns = self.content(coded, options)
        return size_of(header, coded.lengths, columns)

    def _header(self, options: EncodeOptions) -> Header:
        from PIL import __version__ as pillow

        from dqcodec import __version__

        images, mae = self.images, self.mae
        about = {
            "source": {"images": self.usable, "bytes": images.bytes, "skipped": len(self.run.skipped)},
            "encode": {
                **{name: value for name, value in asdict(options).items() if name not in _NOT_STORED},
                "features": last_name(options.features) if images.selects else None,
                "soft_labels": last_name(options.soft_labels) if options.soft_labels else None,
                "mae": options.mae if options.mae in ("small", "train") else mae and mae.name,
            },
            "creator": f"dqcodec {__version__}, Pillow {pillow}",
        }
        size = images.size
        return Header(
            0, size, size, images.channels, images.patch, 1, images.folder.classes, images.transform,
            (images.transform,), parameters=self.packer.parameters, extra=about,
            mae=None if mae is None else {"sha256": mae.sha256, "name": mae.name[-MAX_NAME:]},
        )  # fmt: skip


def write(draft: Draft, samples: Samples, coded: Coded, writer: Output) -> Header:
    """The file, or the parts, with these samples; returns the header of all."""
    options = draft.options(coded)

    def put(some: Coded, file: Writer) -> Header:
        samples.write(some.places, file)
        return file.finish(*draft.content(some, options))

    return write_parts(writer, coded, lambda: draft.parts(coded), put)


def last_name(path: str) -> str:
    """The last part of a path, as JSON can hold it: names of files need not be UTF-8."""
    return Path(path).name.encode(errors="replace").decode()


def _rounded(values: Array) -> Array:
    """float32 with 8 significant bits, which are enough to look at and take half the bytes."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64) + (1 << 15)
    rounded: Array = np.minimum(bits >> 16 << 16, 0x7F7F0000).astype(np.uint32).view(np.float32)
    return rounded


def cut(lengths: Array, size: Callable[[Array], int], most: int) -> list[Array]:
    """Ranges of the payload, in order, in as few parts of about equal size as stay within `most` bytes.

    lengths  bytes of each range
    size     of a file with these ranges
    returns  the numbers of the ranges in each part; OptionError where one alone is too large
    """

    def fits(rows: Array) -> bool:
        found = size(rows)
        if found > most and len(rows) == 1:
            raise OptionError(f"shard_size: {most} is too small; one sample alone makes a file of {found:,} bytes")
        return found <= most

    ends = np.cumsum(lengths)
    fits(np.array([int(lengths.argmax())]))  # most likely the largest, so that no time is lost on what cannot be done
    count = -(-size(np.arange(len(ends))) // most)
    while True:
        cuts = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
        parts = [rows for rows in np.split(np.arange(len(ends)), cuts) if len(rows)]
        if all(map(fits, parts)):
            return parts
        count += 1 + count // 20


def bin_columns(labels: Array, classes: int, selection: Selection, kept: Array) -> dict[str, Array]:
    """The columns that say what the selection did.

    labels  int (N,), of all that it chose from
    kept    which of them are in the file
    """
    size, taken = np.zeros((2, classes, selection.size.shape[1]), np.int64)
    np.add.at(size, (labels, selection.bin), 1)
    np.add.at(taken, (labels[kept], selection.bin[kept]), 1)
    scored = {"bins/rs": selection.rs, "bins/ds": selection.ds, "bins/is": selection.is_}
    return {
        "bin": selection.bin[kept],
        "bins/size": size,
        "bins/taken": taken,
        **{name: score for name, score in scored.items() if score is not None},
    }
