"""bits: how many each sample gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.bits import allocate, convex, rank
from dqcodec.codec import pixel, quantize
from dqcodec.codec.dct.coder import Format, decode
from dqcodec.container.spec import unpack_mask
from dqcodec.parallel import ordered_map
from dqcodec.patches import to_patches
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
        coded = [code_at(seen, images.transform, bits, run.workers)[0] for bits in widths]
        mask = None if masks is None else unpack_mask(masks[start : start + BATCH], images.grid[0] * images.grid[1])
        there = None if mask is None else mask.reshape(-1, *images.grid)
        found.append(distances(proxy, seen, coded, images.labels[rows], there))
        run.progress("bits", start + len(rows), len(kept))
    return np.concatenate(found)


def code_at(seen: Array, transform: str, bits: float, workers: int) -> tuple[Array, Array]:
    """What images are after coding with so many bits, whole: uint8 (n, s, s, C), and int64 (n,) bytes of each.

    seen  uint8 (n, s, s, C)
    """
    if transform == "pixel":
        packed = [quantize.quantize(to_patches(image, len(image)), int(bits)) for image in seen]
        levels, scale = np.stack([levels[0] for levels, _ in packed]), np.array([scale for _, scale in packed])
        sizes = [len(pixel.encode(levels, int(bits))) for levels, _ in packed]
        return quantize.dequantize(levels, scale[:, None, None, None]).transpose(0, 2, 3, 1), np.array(sizes)
    from dqcodec.codec.dct import pack as dct
    from dqcodec.codec.dct.tables import DEFAULT, OFFSETS, default

    effort = "fast"  # the search changes bytes more than pixels
    dependent, size, channels = dct.dependent(effort), seen.shape[1], seen.shape[3]
    form = Format(size, size, channels, default(DEFAULT, 16, OFFSETS[dependent], dependent))
    encoder, q = dct.Encoder(form, effort), dct.scale_index(bits, effort)
    kept = np.ones((len(seen), form.rows * form.columns), np.uint8)
    coded = list(ordered_map(lambda image: encoder.encode(image, kept[0], q), list(seen), workers))
    payloads = [payload for payload, _ in coded]
    colour = np.array([colour for _, colour in coded]) if channels == 3 else None
    images = decode(form, payloads, kept, np.full(len(seen), q, np.uint8), colour)
    return images.transpose(0, 2, 3, 1), np.array([len(payload) for payload in payloads])
