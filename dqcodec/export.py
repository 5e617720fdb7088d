"""A .dqz back out: to a folder of PNG images, one folder a class, or to a file of records."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy.typing as npt

from dqcodec.container.writer import check_place, hidden, writing
from dqcodec.decode import FILLS, DQZFile
from dqcodec.decode import open as open_dqz
from dqcodec.errors import OptionError, OutputError
from dqcodec.parallel import default_workers, ordered_map
from dqcodec.run import Progress
from dqcodec.sources.records import ENDINGS, ending

if TYPE_CHECKING:
    from dqcodec.records import RecordFile

Array = npt.NDArray[Any]


def export(path: str | Path, target: str | Path, fill: str = "mae", progress: Progress | None = None) -> int:
    """Write every sample and return how many: images as TARGET/<class>/<number>.png, records into the file TARGET.

        target  of images a folder that does not exist, or is empty; classes without samples get an empty folder. Of
                records a new file, by its ending a JSON array (.json), JSON lines (.jsonl, .ndjson; all with .gz or
                .zst too) or .parquet, where a field that some records do not have is null
        fill    of images, as DQZDataset has it; "mae" needs torch where patches are dropped

    The number is the sample's index in the file. Raises OutputError where the target cannot be written, FormatError
    where a sample is damaged, OptionError where records do not fit the kind of file.
    """
    with open_dqz(path) as file:
        if isinstance(file, DQZFile):
            return _export_images(DQZFile(path, filter=True, reader=file.reader), Path(target), fill, progress)
        if fill != "mae":
            raise OptionError(f"fill: {file.path} holds records of text; it is for images")
        return _export_records(file, Path(target), progress)


def _export_images(file: DQZFile, folder: Path, fill: str, progress: Progress | None) -> int:
    from PIL import Image

    if ending(folder):
        raise OptionError(f"target: {folder.name!r}; images are exported to a folder, this is the name of a file")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} exists and is not an empty folder; choose another name", path=folder)
    images, made = images_of(file, fill), not folder.exists()
    digits = len(str(len(file) - 1))

    def write(batch: range) -> int:
        for index, pixels in zip(batch, images(batch), strict=True):
            name = file.classes[file.label[index]]
            flat = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
            Image.fromarray(flat).save(folder / name / f"{index:0{digits}d}.png")
        return batch.stop

    try:
        with writing(folder):
            for name in file.classes:
                (folder / name).mkdir(parents=True)
            if progress:
                progress("export", 0, len(file))  # the first image may wait until the decoder is compiled
            for done in ordered_map(write, file.batches(), default_workers()):
                if progress:
                    progress("export", done, len(file))
    except BaseException:  # an empty folder that was there stays: it may be a mounted one
        for place in [folder] if made else [folder / name for name in file.classes]:
            shutil.rmtree(place, ignore_errors=True)
        raise
    return len(file)


def _export_records(file: RecordFile, target: Path, progress: Progress | None) -> int:
    kind = ending(target)
    if not kind:
        raise OptionError(f"target: {target.name!r}; allowed for records: names that end in {', '.join(ENDINGS)}")
    if target.exists():
        raise OutputError(f"{target} exists; choose another name", path=target)
    check_place(target, overwrite=False)
    temporary = hidden(target, "tmp")
    try:
        with writing(target):
            if kind == ".parquet":
                _write_parquet(file, temporary)
            else:
                before, between, after = ("[\n", ",\n", "\n]\n") if kind == ".json" else ("", "\n", "\n")
                with _open_packed(temporary, target.suffix) as out:
                    out.write(before.encode())
                    for batch in file.batches():
                        for index, record in zip(batch, chain.from_iterable(file.pieces(batch)), strict=True):
                            out.write((between if index else "").encode() + _json(record, index))
                        if progress:
                            progress("export", batch.stop, len(file))
                    out.write(after.encode())
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return len(file)


def _write_parquet(file: RecordFile, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = file.to_arrow()
    try:
        pyarrow.parquet.write_table(table, path)
    except pyarrow.ArrowNotImplementedError as error:  # a field with nothing but {}, for one
        raise OptionError(f"target: the records do not fit Parquet: {error}; JSON lines hold them") from None


def _json(record: dict[str, Any], index: int) -> bytes:
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise OptionError(f"target: sample {index} does not fit JSON: {error}; .parquet holds it") from None
    try:
        return line.encode()
    except UnicodeEncodeError:  # lone surrogates, which only an escape can write
        return json.dumps(record).encode()


def _open_packed(path: Path, suffix: str) -> IO[bytes]:
    if suffix.lower() == ".gz":
        return gzip.open(path, "wb")  # type: ignore[return-value]
    if suffix.lower() == ".zst":
        import zstandard

        return io.BufferedWriter(zstandard.open(path, "wb"))
    return open(path, "wb")


def images_of(file: DQZFile, fill: str) -> Callable[[Sequence[int]], Array]:
    """Indices -> images, uint8 (n, C, H, W), dropped patches filled in any of the ways of DQZDataset."""
    if fill not in ("mae", *FILLS):
        raise OptionError(f"fill: {fill!r}; allowed: mae, {', '.join(FILLS)}")
    if fill != "mae" or file.reader.columns.get("mask") is None:
        return partial(file.images, fill="none" if fill == "mae" else fill)
    try:
        from dqcodec.data.dataset import DQZDataset

        dataset = DQZDataset(file.path, fill=fill, filter=file.filter)
    except ImportError as error:
        message = f"fill: 'mae' needs torch: pip install 'dqcodec[torch]', or choose another fill ({error})"
        raise OptionError(message) from None

    def images(indices: Sequence[int]) -> Array:
        found: Array = dataset.images(indices).numpy()
        return found

    return images
