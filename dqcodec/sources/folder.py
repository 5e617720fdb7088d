"""A folder of images, SRC/<class>/..., in the order of torchvision's ImageFolder.

Classes are the first-level folders, sorted by name; a class's files are all files below its folder, folders walked to
the end, sorted. Empty classes stay. Every other thing found is listed in `skipped` with its reason: nothing is lost in
silence.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from dqcodec.container.spec import MAX_CLASSES, plain_name
from dqcodec.errors import SourceError
from dqcodec.run import Progress


@dataclass(frozen=True)
class Folder:
    """
    names    file names relative to `root`, in source order
    labels   int64 (N,)
    sizes    int64 (N,), bytes of each file
    classes  class names, by label
    skipped  (name, reason) of what is not a candidate
    """

    root: Path
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.names)

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
        raise SourceError(
            f"{root} {kind}; expected a folder with one folder a class: {root}/<class>/<image>", path=root
        )
    folders, skipped = [], []
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{root}: {error.strerror}", path=root) from None
    for entry in entries:
        if not entry.is_dir():
            skipped.append((entry.name, "not in a class folder"))
        elif entry.name.startswith("."):
            skipped.append((entry.name + "/", "hidden folder"))
        else:
            folders.append(entry.name)
    if not folders:
        raise SourceError(f"{root} has no class folders; expected {root}/<class>/<image>", path=root)
    if len(folders) > MAX_CLASSES:
        raise SourceError(f"{root} has {len(folders)} class folders; allowed: {MAX_CLASSES}", path=root)
    names: list[str] = []
    labels: list[int] = []
    sizes: list[int] = []
    for label, folder in enumerate(folders):
        _check_class(root, folder)
        for name, status in _walk(root, folder, skipped):
            names.append(name)
            labels.append(label)
            sizes.append(status.st_size)
        if progress:
            progress("scan", label + 1, len(folders))
    return Folder(
        root, tuple(names), np.array(labels, np.int64), np.array(sizes, np.int64), tuple(folders), tuple(skipped)
    )


def _walk(root: Path, folder: str, skipped: list[tuple[str, str]]) -> list[tuple[str, Any]]:
    """Regular files below root/folder, links followed but no folder entered twice."""
    found, seen = [], set()

    def unreadable(error: OSError) -> None:
        skipped.append((os.path.relpath(error.filename, root) + "/", str(error.strerror)))

    for place, subfolders, files in os.walk(root / folder, onerror=unreadable, followlinks=True):
        subfolders.sort()
        identity = os.stat(place)
        if (identity.st_dev, identity.st_ino) in seen:
            skipped.append((os.path.relpath(place, root) + "/", "a link to a folder already read"))
            subfolders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        for file in sorted(files):
            name = os.path.relpath(os.path.join(place, file), root)
            try:
                status = os.stat(os.path.join(place, file))
            except OSError as error:
                skipped.append((name, str(error.strerror)))
                continue
            if stat.S_ISREG(status.st_mode):
                found.append((name, status))
            else:  # reading a pipe would wait for ever
                skipped.append((name, "not a regular file"))
    return found


def _check_class(root: Path, name: str) -> None:
    if not plain_name(name):
        raise SourceError(f"{root}: the class folder {name!a} has a name that no .dqz can hold; rename it", path=root)
