"""From the bytes of a .dqz to records of text: dicts with all their fields.

read bytes -> checksum -> zstd -> msgpack
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec import text
from dqcodec.codec.text import Record
from dqcodec.container.reader import Reader
from dqcodec.container.shards import ShardReader
from dqcodec.container.spec import DICTIONARY
from dqcodec.decode import OpenFile, check_indices
from dqcodec.errors import FormatError, OptionError

Array = npt.NDArray[Any]
BATCH = 256


class RecordFile(OpenFile):
    """An open .dqz of records; see OpenFile, too.

    `file[i]` is a dict, `file.records(indices)` a list of them; every field is there, in its order, with its type.
    """

    def __init__(
        self, path: str | Path, cache: str | Path | None = None, reader: Reader | ShardReader | None = None
    ) -> None:
        super().__init__(path, cache, reader)
        self._coder = self._make_coder()

    def __getitem__(self, index: int) -> Record:
        return self.records([index])[0]

    def __iter__(self) -> Iterator[Record]:
        return (record for batch in self.batches() for some in self.pieces(batch) for record in some)

    def records(self, indices: Sequence[int] | Array, payloads: Sequence[bytes] | None = None) -> list[Record]:
        """Decode a batch; those of one frame together.

            indices   sample indices, negative ones count from the end
            payloads  the coded bytes of their frames where `reader.read` gave them before, in another process say

        Raises IndexError, or FormatError (ChecksumError) that names file and sample.
        """
        reader, frame, total = self.reader, self.reader.header.frame, len(self)
        wanted = check_indices(indices, total)
        found: dict[int, list[Any]] = {}
        given: set[int] = set()
        result = []
        payloads = reader.read(wanted) if payloads is None else payloads
        for index, payload in zip(wanted, payloads, strict=True):
            number, place = divmod(index, frame)
            try:
                if number not in found or index in given:  # one that is wanted twice is two records
                    found[number] = text.split(self._coder.decompress(payload), min(frame, total - number * frame))
                result.append(text.as_record(found[number][place]))
                given.add(index)
            except FormatError as error:
                raise reader.error(index, f"its frame of records: {error}") from None
        return result

    def pieces(self, indices: Sequence[int]) -> Iterator[list[Record]]:
        """The records of a batch, some after another: few where they are large, so that they do not fill the memory."""
        payloads, frame = self.reader.read(indices), self.reader.header.frame
        first = total = 0
        for k, payload in enumerate(payloads):
            if k and indices[k] // frame == indices[k - 1] // frame:
                continue
            size = text.stated_size(payload)
            if k > first and total + size > text.MAX_UNPACKED:
                yield self.records(indices[first:k], payloads[first:k])
                first, total = k, 0
            total += size
        yield self.records(indices[first:], payloads[first:])

    def to_arrow(self) -> Any:
        """All records as a pyarrow Table: a column a field, None where a record does not have it.

        OptionError where a field has values of several types, or of one that no column holds.
        """
        import pyarrow

        records = list(self)
        columns = {}
        for name in dict.fromkeys(name for record in records for name in record):
            try:
                name.encode()
                columns[name] = pyarrow.array([record.get(name) for record in records])
            except (pyarrow.ArrowException, ValueError, OverflowError) as error:
                reason = str(error).splitlines()[0]
                raise OptionError(f"the field {name!r} does not make a column: {reason}; JSON lines hold it") from None
        return pyarrow.table(columns)

    def batches(self) -> Iterator[range]:
        """All indices in batches of BATCH."""
        return (range(start, min(start + BATCH, len(self))) for start in range(0, len(self), BATCH))

    def _make_coder(self) -> text.Coder:
        stored = self.reader.columns.get(DICTIONARY, np.empty(0, np.uint8)).tobytes()
        try:
            return text.Coder(text.read_dictionary(stored) if stored else b"")
        except FormatError as error:
            self.close()
            raise FormatError(f"{self.path}: {DICTIONARY}: {error}", path=self.path, member=DICTIONARY) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_coder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._coder = self._make_coder()

    def __repr__(self) -> str:
        return f"RecordFile({str(self.path)!r}, {len(self)} records, {len(self.classes)} classes)"
