"""A .dqz back out to a folder of PNG images, one folder a class."""

from __future__ import annotations

from pathlib import Path

from dqcodec.decode import DQZFile
from dqcodec.errors import OutputError
from dqcodec.parallel import default_workers, ordered_map
from dqcodec.run import Progress


def export(path: str | Path, folder: str | Path, fill: str = "mean", progress: Progress | None = None) -> int:
    """Write every sample as FOLDER/<class>/<number>.png and return how many.

        folder  must not exist, or be empty; classes without samples get an empty folder
        fill    as DQZFile.images has it

    The number is the sample's index in the file. Raises OutputError where the folder cannot be written, FormatError
    where a sample is damaged.
    """
    from PIL import Image

    folder = Path(folder)
    with DQZFile(path) as file:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} exists and is not an empty folder; choose another name", path=folder)
        digits = len(str(len(file) - 1))

        def write(batch: range) -> int:
            for index, pixels in zip(batch, file.images(batch, fill), strict=True):
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
