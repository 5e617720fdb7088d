"""bits: how many each sample gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dqcodec.bits import REACH, REACH_BY_BYTES, allocate, allocate_bytes, rank, with_middle
from dqcodec.codec import pixel, quantize
from dqcodec.codec.dct.coder import Format, decode
from dqcodec.container.spec import LEAST_BITS, unpack_mask
from dqcodec.parallel import alone, ordered_map
from dqcodec.run import Run
from dqcodec.stages.images import Images

if TYPE_CHECKING:
    from dqcodec.codec.dct import pack as dct
    from dqcodec.models.proxy import Proxy

Array = npt.NDArray[Any]

BATCH = 128


@dataclass(frozen=True)
class Widths:
    """
    bits      float64 (n,)          of each kept sample
    distance  float64 (n,) or None  between its gradients at the mean width
    """

    bits: Array
    distance: Array | None


def set_widths(images: Images, proxy: Proxy | None, kept: Array, masks: Array | None, run: Run) -> Widths:
    """All the same, or by gradient distance: with the same mean, or for a target size with the same coded bytes."""
    mode, mean = images.bits.mode, images.mean_width
    if proxy is None or mode == "fixed":
        return Widths(np.full(len(kept), whole(images, mean)), None)
    by_bytes = mode == "auto" and images.options.target_size is not None
    reach = REACH_BY_BYTES[images.transform] if by_bytes else REACH
    centre = float(np.clip(whole(images, mean), LEAST_BITS[images.transform] + reach, quantize.MAX_BITS - reach))
    equal = np.full(len(kept), centre)
    ends = [centre - reach, centre + reach]
    widths = ends if mode == "auto" else [centre]
    measured, sizes = _measure(images, proxy, kept, masks, widths, by_bytes, run)
    if not np.isfinite(measured).all() or not measured.any():
        what = "vanish" if np.isfinite(measured).all() else "are not finite"
        run.notes.append(f"the proxy's gradients {what}, so every sample has {mean:.3g} bits")
        return Widths(equal, None)
    if mode == "rank":
        return Widths(equal + reach * (rank(measured[:, 0]) - 1), measured[:, 0])
    distance = with_middle(np.minimum.accumulate(measured, 1))  # of a single sample it need not fall
    if sizes is None:
        more = allocate(distance, len(kept))
    else:
        budget = np.exp(np.interp(mean, ends, np.log(sizes.sum(0))))
        more = allocate_bytes(distance, with_middle(sizes), float(budget))
    return Widths(equal + reach * (more - 1), distance[:, 1])


def whole(images: Images, bits: float) -> float:
    """The nearest width that the transform has."""
    return round(bits / step(images)) * step(images)


def step(images: Images) -> float:
    """Between one width and the next that the transform has."""
    return 1.0 if images.transform == "pixel" else 1 / 16


def _measure(
    images: Images, proxy: Proxy, kept: Array, masks: Array | None, widths: list[float], sized: bool, run: Run
) -> tuple[Array, Array | None]:
    """Gradient distances of the kept samples at each width, float64 (n, K), and, if `sized`, coded bytes of what the
    proxy sees, int64 (n, K)."""

    def one(start: int) -> tuple[Array, Array | None]:
        rows, mask = kept[start : start + BATCH], None
        if masks is not None:
            patches = images.grid[0] * images.grid[1]
            mask = unpack_mask(masks[start : start + BATCH], patches).reshape(-1, *images.grid)
        found, coded = measure(proxy, images.seen[rows], images.labels[rows], images.transform, widths, mask)
        return found, np.stack([each.sizes() for each in coded], 1) if sized else None

    found, sizes = [], []
    for distance, size in ordered_map(one, range(0, len(kept), BATCH), run.workers, 2 * run.workers, alone):
        found.append(distance)
        sizes.append(size)
        run.progress("bits", min(len(found) * BATCH, len(kept)), len(kept))
    return np.concatenate(found), np.concatenate([size for size in sizes if size is not None]) if sized else None


def measure(
    proxy: Proxy, seen: Array, labels: Array, transform: str, widths: list[float], mask: Array | None = None
) -> tuple[Array, list[Seen]]:
    """Gradient distances of a batch at each width, float64 (n, K), and the images as they are coded with each.

    To be called in several threads, each `parallel.alone`: that is a fifth faster than torch's own threads, between
    whose tasks others would wait.
    """
    from dqcodec.models.sensitivity import distances

    coded = [code_at(seen, transform, bits) for bits in widths]
    return distances(proxy, seen, [each.images for each in coded], labels, mask), coded


@dataclass(frozen=True)
class Seen:
    """
    images  uint8 (n, s, s, C), decoded again
    sizes   makes int64 (n,), bytes of each: only on demand, because with `pixel` they take longer than the images
    """

    images: Array
    sizes: Callable[[], Array]


@lru_cache(4)
def _encoder(size: int, channels: int) -> dct.Encoder:
    """For whole images, with built-in tables. The effort is fast, as the search changes bytes more than pixels."""
    from dqcodec.codec.dct.pack import Encoder, dependent
    from dqcodec.codec.dct.tables import built_in

    return Encoder(Format(size, size, channels, built_in(16, dependent("fast"))), "fast")


def code_at(seen: Array, transform: str, bits: float) -> Seen:
    """Images, uint8 (n, s, s, C), coded whole with so many bits, by steps of dct that follow their own activity."""
    if transform == "pixel":
        width = int(bits)
        levels, scale = quantize.quantize_rows(seen.reshape(len(seen), -1), width)
        images = quantize.dequantize(levels, scale[:, None]).reshape(seen.shape)
        planes = levels.reshape(seen.shape).transpose(0, 3, 1, 2)[:, None]
        return Seen(images, lambda: np.array([len(pixel.encode(patches, width)) for patches in planes]))
    encoder = _encoder(seen.shape[1], seen.shape[3])
    form = encoder.form
    kept = np.ones((len(seen), form.rows * form.columns), np.uint8)
    coded = [encoder.encode_at(pixels, units, bits) for pixels, units in zip(seen, kept, strict=True)]
    payloads = [payload for payload, _, _ in coded]
    scale = np.array([q for _, q, _ in coded], np.uint8)
    colour = np.array([colour for _, _, colour in coded]) if form.channels == 3 else None
    images = decode(form, payloads, kept, scale, colour).transpose(0, 2, 3, 1)
    return Seen(images, lambda: np.array([len(payload) for payload in payloads]))
