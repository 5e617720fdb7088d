"""soft labels: what a classifier says of the kept samples, beside their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.container.spec import SOFT
from dqcodec.errors import OptionError
from dqcodec.features import from_npy
from dqcodec.run import Run
from dqcodec.soft import PROXY, largest, soften
from dqcodec.stages.images import Images

if TYPE_CHECKING:
    from dqcodec.models.proxy import Proxy

Array = npt.NDArray[Any]

BATCH = 256
TOLERANCE = 0.01  # of a sum that should be 1


def check_source(source: str, names: Sequence[str], classes: int) -> None:
    """OptionError for what can be known to be wrong before any image is read.

    names  of the files of the source
    """
    if source != PROXY:
        for _ in _of_file(source, names, classes, np.arange(len(names))):
            pass


def soft_labels(images: Images, proxy: Proxy | None, kept: Array, run: Run) -> dict[str, Array]:
    """The columns of the soft labels of the kept samples; none where none are wanted."""
    source = images.options.soft_labels
    if source is None:
        return {}
    if proxy is not None and source == PROXY:
        shares = _of_proxy(images, proxy, kept)
    else:
        shares = _of_file(source, images.folder.names, len(images.folder.classes), images.usable[kept])
    found = []
    for some in shares:  # those of all classes may be many
        if not np.isfinite(some).all():
            note = "no soft labels: what the proxy says is not finite"
            run.notes += [note] if note not in run.notes else []
            return {}
        found.append(largest(some))
        run.progress("soft labels", min(len(found) * BATCH, len(kept)), len(kept))
    return {name: np.concatenate(column) for name, column in zip(SOFT, zip(*found, strict=True), strict=True)}


def _of_proxy(images: Images, proxy: Proxy, kept: Array) -> Iterator[Array]:
    """Shares of these images, float64 (n, K), BATCH of them after another."""
    from dqcodec.models.proxy import logits

    for start in range(0, len(kept), BATCH):
        rows = kept[start : start + BATCH]
        yield soften(logits(proxy, images.seen[rows]), images.labels[rows])


def _of_file(path: str, names: Sequence[str], classes: int, wanted: Array) -> Iterator[Array]:
    """The wanted rows of a .npy file likewise; OptionError where they are no shares of the classes for every file."""
    table = from_npy(path, len(names), option="soft_labels")
    if table.shape[1] != classes:
        raise OptionError(f"soft_labels: {path} has {table.shape[1]} columns, the source {classes} classes")
    for start in range(0, len(wanted), BATCH):
        rows = wanted[start : start + BATCH]
        shares = table[rows].astype(np.float64)
        with np.errstate(all="ignore"):  # of infinite ones
            bad = np.flatnonzero(~((shares >= 0).all(1) & (abs(shares.sum(1) - 1) < TOLERANCE)))
        if bad.size:
            row = rows[bad[0]]
            raise OptionError(
                f"soft_labels: {path}: row {row}, of {names[row]}, is no distribution over the classes; allowed: "
                "numbers of at least 0 whose sum is 1, as softmax gives them"
            )
        yield shares
