"""bits: how many each sample gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.bits import allocate, convex, rank
from dqcodec.codec import quantize
from dqcodec.codec.dct.coder import Format, decode
from dqcodec.container.spec import unpack_mask
from dqcodec.parallel import ordered_map
from dqcodec.run import Run
from dqcodec.stages.images import Images

if TYPE_CHECKING:
    from dqcodec.models.proxy import Proxy

Array = npt.NDArray[Any]

BATCH = 256


@dataclass(frozen=True)
class Widths:
    """
    bits      float64 (n,)          of each kept sample
    distance  float64 (n,) or None  between its gradients at the mean width
    """

    bits: Array
    distance: Array | None


def set_widths(images: Images, proxy: Proxy | None, kept: Array, masks: Array | None, run: Run) -> Widths:
    """All the same, or by gradient distance with the same mean."""
    bits = images.bits
    equal = np.full(len(kept), bits.mean)
    if proxy is None or bits.mode == "fixed":
        return Widths(equal, None)
    measured = _measure(images, proxy, kept, masks, [bits.mean] if bits.mode == "rank" else images.widths, run)
    if not np.isfinite(measured).all() or not measured.any():
        what = "vanish" if np.isfinite(measured).all() else "are not finite"
        run.notes.append(f"the proxy's gradients {what}, so every sample has {bits.mean:g} bits")
        return Widths(equal, None)
    middle = measured[:, measured.shape[1] // 2]
    more = rank(middle) if bits.mode == "rank" else allocate(convex(measured), len(kept))
    return Widths(equal - 1 + more, middle)


def _measure(images: Images, proxy: Proxy, kept: Array, masks: Array | None, widths: list[float], run: Run) -> Array:
    """Gradient distances of the kept samples at each width, float64 (n, K)."""
    from dqcodec.models.sensitivity import distances

    found = []
    for start in range(0, len(kept), BATCH):
        rows = kept[start : start + BATCH]
        seen = images.seen[rows]
        coded = [_coded(images, seen, bits, run) for bits in widths]
        mask = None if masks is None else unpack_mask(masks[start : start + BATCH], images.grid[0] * images.grid[1])
        there = None if mask is None else mask.reshape(-1, *images.grid)
        found.append(distances(proxy, seen, coded, images.labels[rows], there))
        run.progress("bits", start + len(rows), len(kept))
    return np.concatenate(found)


def _coded(images: Images, seen: Array, bits: float, run: Run) -> Array:
    """What the proxy sees, uint8 (n, s, s, C), after coding it with so many bits."""
    if images.transform == "pixel":
        return np.stack([quantize.dequantize(*quantize.quantize(image, int(bits))) for image in seen])
    from dqcodec.codec.dct import pack as dct
    from dqcodec.codec.dct.tables import DEFAULT, OFFSETS, default

    effort = "fast"  # the search changes bytes more than pixels
    dependent, size = dct.dependent(effort), seen.shape[1]
    form = Format(size, size, seen.shape[3], default(DEFAULT, 16, OFFSETS[dependent], dependent))
    encoder, q = dct.Encoder(form, effort), dct.scale_index(bits, effort)
    kept = np.ones((len(seen), form.rows * form.columns), np.uint8)
    packed = list(ordered_map(lambda image: encoder.encode(image, kept[0], q), list(seen), run.workers))
    colour = np.array([colour for _, colour in packed]) if seen.shape[3] == 3 else None
    scale = np.full(len(seen), q, np.uint8)
    return decode(form, [payload for payload, _ in packed], kept, scale, colour).transpose(0, 2, 3, 1)
