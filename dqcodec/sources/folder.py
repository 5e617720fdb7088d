"""A folder of images, SRC/<class>/..., in the order of torchvision's ImageFolder.

Classes are the first-level folders, sorted by name; a class's files are all files below its folder, folders walked to
the end, sorted. Empty classes stay. Every other thing found is listed in `skipped` with its reason: nothing is lost in
silence.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from dqcodec.container.spec import MAX_CLASSES, MAX_ROOT, plain_name
from dqcodec.errors import SourceError
from dqcodec.run import Progress
from dqcodec.sources.records import ending

MAX_FILE = 1 << 28  # bytes of one image file


@dataclass(frozen=True)
class Folder:
    """
    names    file names relative to `root`, in source order
    labels   int64 (N,)
    sizes    int64 (N,), bytes of each file
    times    int64 (N, 2), nanoseconds, when content and file were last changed
    classes  class names, by label
    skipped  (name, reason) of what is not a candidate
    """

    root: Path
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def listing(self) -> str:
        """A hash of place, classes, names, sizes and times: what says that the files are those of another run."""
        found = hashlib.sha256(os.fsencode("\0".join([str(self.root.resolve()), *self.classes, "", *self.names])))
        for column in (self.labels, self.sizes, self.times):
            found.update(column.tobytes())
        return found.hexdigest()

    def open(self, index: int) -> IO[bytes]:
        """The bytes of file `index`; SourceError where it cannot be opened."""
        try:
            return open(self.root / self.names[index], "rb")
        except OSError as error:
            raise SourceError(f"{self.names[index]}: {error.strerror}") from None


def scan(root: str | Path, progress: Progress | None = None) -> Folder:
    """List `root`; SourceError when it is not a folder of class folders. Progress counts classes."""
    root = Path(root)
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        advice = "; encode_text takes files of records" if ending(root) else ""
        raise SourceError(
            f"{root} {kind}; expected a folder with one folder a class: {root}/<class>/<image>{advice}", path=root
        )
    folders, skipped = [], []
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{root}: {error.strerror}", path=root) from None
    for entry in entries:
        try:
            is_folder = entry.is_dir()
        except OSError as error:  # a link to itself
            skipped.append((entry.name, str(error.strerror)))
            continue
        if not is_folder:
            skipped.append((entry.name, "not in a class folder"))
        elif entry.name.startswith("."):
            skipped.append((entry.name + "/", "hidden folder"))
        else:
            folders.append(entry.name)
    if not folders:
        advice = f"put the images of each class into a folder: {root}/<class>/<image>"
        raise SourceError(f"{root} has no class folders; {advice}", path=root)
    _check_classes(root, folders)
    elsewhere = {_identity(root), *(_identity(root / folder) for folder in folders)}
    names: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    times: list[tuple[int, int]] = []
    for label, folder in enumerate(folders):
        for name, status in _walk(root, folder, elsewhere, skipped):
            names.append(name)
            labels.append(label)
            sizes.append(status.st_size)
            times.append((status.st_mtime_ns, status.st_ctime_ns))
        if progress:
            progress("scan", label + 1, len(folders))
    return Folder(
        root,
        tuple(names),
        np.array(labels, np.int64),
        np.array(sizes, np.int64),
        np.array(times, np.int64).reshape(-1, 2),
        tuple(folders),
        tuple(skipped),
    )


def _walk(
    root: Path, folder: str, elsewhere: set[tuple[int, int]], skipped: list[tuple[str, str]]
) -> list[tuple[str, os.stat_result]]:
    """Regular files below root/folder in the order of os.walk, sorted; links are followed, but into no folder twice,
    and not into `elsewhere`: the root and the class folders."""
    found = []
    seen: set[tuple[int, int]] = set()
    places = [folder]
    while places:
        place = places.pop()
        try:
            entries = sorted(os.scandir(root / place), key=lambda entry: entry.name)
        except OSError as error:
            skipped.append((place + "/", str(error.strerror)))
            continue
        below = []
        for entry in entries:
            name = f"{place}/{entry.name}"
            try:
                status = entry.stat()
            except OSError as error:
                skipped.append((name, str(error.strerror)))
                continue
            if stat.S_ISDIR(status.st_mode):
                identity = status.st_dev, status.st_ino
                if identity in seen or identity in elsewhere:
                    skipped.append((name + "/", "a link to a folder that is read elsewhere"))
                else:
                    seen.add(identity)
                    below.append(name)
            elif not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                skipped.append((name, "not a regular file"))
            elif status.st_size > MAX_FILE:
                skipped.append((name, f"{status.st_size:,} bytes; allowed: {MAX_FILE:,}"))
            else:
                found.append((name, status))
        places += reversed(below)
    return found


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _check_classes(root: Path, folders: list[str]) -> None:
    """Whether the header of a file can hold these names."""
    for name in folders:
        if not plain_name(name):
            raise SourceError(
                f"{root}: the class folder {name!a} has a name that no .dqz can hold; rename it", path=root
            )
    size = sum(len(name.encode()) + 8 for name in folders)
    if len(folders) > MAX_CLASSES or size > MAX_ROOT // 2:
        raise SourceError(f"{root}: {len(folders)} class folders with names of {size} bytes are too many", path=root)
