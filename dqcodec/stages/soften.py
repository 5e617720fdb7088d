"""soft labels: what a classifier says of the kept samples, beside their labels."""

from __future__ import annotations

from collections.abc import Sequence
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
        _of_file(source, names, classes)


def soft_labels(images: Images, proxy: Proxy | None, kept: Array, run: Run) -> dict[str, Array]:
    """The columns of the soft labels of the kept samples; none where none are wanted."""
    source, classes = images.options.soft_labels, len(images.folder.classes)
    if source is None:
        return {}
    if proxy is not None and source == PROXY:
        shares = _of_proxy(images, proxy, kept, run)
    else:
        shares = _of_file(source, images.folder.names, classes)[images.usable[kept]]
    return dict(zip(SOFT, largest(shares), strict=True))


def _of_file(path: str, names: Sequence[str], classes: int) -> Array:
    """The rows of a .npy file, float64 (N, K); OptionError where they are not shares of the classes for every file."""
    rows = np.asarray(from_npy(path, len(names), option="soft_labels"), np.float64)
    if rows.shape[1] != classes:
        raise OptionError(f"soft_labels: {path} has {rows.shape[1]} columns, the source {classes} classes")
    bad = np.flatnonzero(~((rows >= 0).all(1) & (abs(rows.sum(1) - 1) < TOLERANCE)))
    if bad.size:
        raise OptionError(
            f"soft_labels: {path}: row {bad[0]}, of {names[bad[0]]}, is no distribution over the classes; allowed: "
            "numbers of at least 0 whose sum is 1, as softmax gives them"
        )
    return rows


def _of_proxy(images: Images, proxy: Proxy, kept: Array, run: Run) -> Array:
    from dqcodec.models.proxy import logits

    found = []
    for start in range(0, len(kept), BATCH):
        rows = kept[start : start + BATCH]
        found.append(soften(logits(proxy, images.seen[rows]), images.labels[rows]))
        run.progress("soft labels", start + len(rows), len(kept))
    return np.concatenate(found)
