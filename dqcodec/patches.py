"""The patch grid: images <-> patches, and which patches of an image are dropped (DQ 6.2)."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = TypeVar("Arrays", bound=Any)  # of numpy or of torch


def to_patches(image: Array, patch: int) -> Array:
    """(H, W, C) -> (P, C, p, p), patches in row-major order."""
    height, width, channels = image.shape
    blocks = image.reshape(height // patch, patch, width // patch, patch, channels)
    return blocks.transpose(0, 2, 4, 1, 3).reshape(-1, channels, patch, patch)


def split(images: Arrays, patch: int) -> Arrays:
    """(n, C, H, W) -> (n, P, C, p, p), patches in row-major order, of numpy or torch."""
    n, channels, height, width = images.shape
    rows, columns = height // patch, width // patch
    blocks = _turned(images.reshape(n, channels, rows, patch, columns, patch), (0, 2, 4, 1, 3, 5))
    patches: Arrays = blocks.reshape(n, rows * columns, channels, patch, patch)
    return patches


def join(patches: Arrays, grid: tuple[int, int]) -> Arrays:
    """The inverse of `split`, P = rows * columns of the grid."""
    n, _, channels, side, _ = patches.shape
    blocks = _turned(patches.reshape(n, *grid, channels, side, side), (0, 3, 1, 4, 2, 5))
    images: Arrays = blocks.reshape(n, channels, grid[0] * side, grid[1] * side)
    return images


def _turned(array: Any, axes: tuple[int, ...]) -> Any:
    """The array with its axes in this order."""
    return array.transpose(axes) if isinstance(array, np.ndarray) else array.permute(axes)


def to_pixels(mask: Arrays, grid: tuple[int, int], patch: int) -> Arrays:
    """The mask of patches, bool (n, P), for each pixel: bool (n, 1, H, W), of numpy or torch."""
    (rows, columns), n = grid, len(mask)
    cells: Any = mask.reshape(n, 1, rows, 1, columns, 1)
    shape = n, 1, rows, patch, columns, patch
    cells = np.broadcast_to(cells, shape) if isinstance(mask, np.ndarray) else cells.expand(shape)
    pixels: Arrays = cells.reshape(n, 1, rows * patch, columns * patch)
    return pixels


def to_units(mask: Array, grid: tuple[int, int], times: int) -> Array:
    """The mask bool (n, P) of a grid whose patches are cut into `times` x `times` units each."""
    units: Array = to_pixels(mask, grid, times).reshape(len(mask), -1)
    return units


def drop_count(patches: int, drop: float) -> int:
    """Patches dropped of each image: the share `drop`, rounded, but one always stays."""
    return min(round(drop * patches), patches - 1)


def keep_mask(scores: Array, drop: float, grid: tuple[int, int]) -> Array:
    """Which patches are kept: all but the lowest-scored share `drop` of each image (DQ 6.2).

        scores   float (n, P)   importance, finite
        returns  bool (n, P)

    Of equal scores the patch farther from the centre goes first, then the later one, so that images without any
    attention lose their border and not their top rows.
    """
    n, count = scores.shape
    rows, columns = np.indices(grid).reshape(2, -1)
    distance = np.abs(rows - (grid[0] - 1) / 2) + np.abs(columns - (grid[1] - 1) / 2)
    order = np.lexsort((np.tile(-np.arange(count), (n, 1)), np.tile(-distance, (n, 1)), scores), axis=-1)
    mask = np.ones((n, count), bool)
    np.put_along_axis(mask, order[:, : drop_count(count, drop)], False, axis=1)
    return mask


def fill_mean(patches: Array, mask: Array) -> Array:
    """Dropped patches filled with the mean colour of the image's kept pixels, rounded half up.

    patches  uint8 (n, P, C, p, p)
    mask     bool (n, P), at least one patch kept in each
    returns  uint8 (n, P, C, p, p)
    """
    n, _, channels, side, _ = patches.shape
    total = np.where(mask[:, :, None], patches.sum((3, 4), dtype=np.int64), 0).sum(1)  # (n, C)
    pixels = mask.sum(1)[:, None] * side * side
    mean = ((2 * total + pixels) // (2 * pixels)).astype(np.uint8)
    return np.where(mask[:, :, None, None, None], patches, mean.reshape(n, 1, channels, 1, 1))
