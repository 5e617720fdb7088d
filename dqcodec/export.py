"""A .dqz back out to a folder of PNG images, one folder a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt

from dqcodec.decode import FILLS, DQZFile
from dqcodec.errors import OptionError, OutputError
from dqcodec.parallel import default_workers, ordered_map
from dqcodec.run import Progress

Array = npt.NDArray[Any]


def export(path: str | Path, folder: str | Path, fill: str = "mae", progress: Progress | None = None) -> int:
    """Write every sample as FOLDER/<class>/<number>.png and return how many.

        folder  must not exist, or be empty; classes without samples get an empty folder
        fill    as DQZDataset has it; "mae" needs torch where patches are dropped

    The number is the sample's index in the file. Raises OutputError where the folder cannot be written, FormatError
    where a sample is damaged.
    """
    from PIL import Image

    folder = Path(folder)
    with DQZFile(path) as file:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} exists and is not an empty folder; choose another name", path=folder)
        images = images_of(file, fill)
        digits = len(str(len(file) - 1))

        def write(batch: range) -> int:
            for index, pixels in zip(batch, images(batch), strict=True):
                name = file.classes[file.label[index]]
                flat = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
                Image.fromarray(flat).save(folder / name / f"{index:0{digits}d}.png")
            return batch.stop

        try:
            for name in file.classes:
                (folder / name).mkdir(parents=True, exist_ok=True)
            for done in ordered_map(write, file.batches(), default_workers()):
                if progress:
                    progress("export", done, len(file))
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror or error}", path=folder) from error
        return len(file)


def images_of(file: DQZFile, fill: str) -> Callable[[Sequence[int]], Array]:
    """Indices -> images, uint8 (n, C, H, W), dropped patches filled in any of the ways of DQZDataset."""
    if fill not in ("mae", *FILLS):
        raise OptionError(f"fill: {fill!r}; allowed: mae, {', '.join(FILLS)}")
    if fill != "mae" or file.reader.columns.get("mask") is None:
        return partial(file.images, fill="none" if fill == "mae" else fill)
    try:
        from dqcodec.data.dataset import DQZDataset

        dataset = DQZDataset(file.path, fill=fill)
    except ImportError as error:
        message = f"fill: 'mae' needs torch: pip install 'dqcodec[torch]', or choose another fill ({error})"
        raise OptionError(message) from None

    def images(indices: Sequence[int]) -> Array:
        found: Array = dataset.images(indices).numpy()
        return found

    return images
