"""Smooth fill: dropped patches become the harmonic interpolation of the pixels around them.

In a harmonic image every dropped pixel is the mean of its neighbours, of which there are four, and fewer at the
image's border. One function serves numpy arrays and torch tensors on any device: it indexes, adds and multiplies only.

First comes a guess: mean colours of patches, made smooth on the patch grid and interpolated. Then each dropped patch is
solved exactly for the pixels beside it, the patches of one colour of a chessboard after those of the other, some times
over. The Laplacian of a patch is the sum of a vertical and a horizontal part; with their eigenvectors V, H and
eigenvalues v, h its inverse is F -> V (F_ij / (v_i + h_j)) H^T, where F = V^T f H, f the pixels beside the patch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.patches import join, split

Array = npt.NDArray[Any]

SWEEPS = 8  # over all dropped patches: with 25% dropped within 0.1 dB of the limit
COARSEST = 8  # pixels a side of a patch from which on the guess is the same at half the size, twice as many sweeps
GUESS_SWEEPS = 64  # over the grid of mean colours


def smooth(patches: Any, mask: Any, grid: tuple[int, int], sweeps: int = SWEEPS) -> Any:
    """Dropped patches filled.

    patches  float32 (n, P, C, p, p), numpy or torch; what dropped ones hold does not matter, if it is finite
    mask     bool (n, P) of the same kind, true = kept, at least one in each row
    returns  as `patches`, kept ones unchanged
    """
    n, count, channels, side, _ = patches.shape
    kept = _like(patches, mask)[:, :, None]
    if side >= COARSEST and side % 2 == 0:
        guess = _doubled(smooth(_halved(patches), mask, grid, 2 * sweeps), grid)
    else:
        guess = _guess(patches, kept, grid)
    found = patches * kept[..., None, None] + guess * (1 - kept[..., None, None])
    found = found.reshape(n * count, channels, side, side)
    groups = [(rows, sides, _solver(found, side, sides)) for rows, sides in _groups(mask, grid)]
    for _ in range(sweeps):
        for rows, sides, solver in groups:
            found[rows] = _solved(found, rows, sides, grid[1], solver)
    return found.reshape(patches.shape)


def _halved(patches: Any) -> Any:
    """Each square of 2 x 2 pixels its mean: (n, P, C, p, p) -> (n, P, C, p / 2, p / 2)."""
    rows = patches[..., ::2, :] + patches[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


def _doubled(patches: Any, grid: tuple[int, int]) -> Any:
    """The inverse, interpolated linearly across the patches of an image."""
    return split(_enlarged(join(patches, grid), 2), 2 * patches.shape[-1])


def _guess(patches: Any, kept: Any, grid: tuple[int, int]) -> Any:
    """Mean colours of the patches, harmonic on the patch grid and interpolated linearly to pixels."""
    n, _, channels, side, _ = patches.shape
    colour = patches.mean((3, 4)) * kept
    found = colour + (1 - kept) * (colour.sum(1) / kept.sum(1))[:, None]
    found, colour = found.reshape(n, *grid, channels), colour.reshape(n, *grid, channels)
    quarter = (1 - kept).reshape(n, *grid, 1) / 4
    for _ in range(GUESS_SWEEPS):
        found = colour + quarter * _around(found)
    return split(_enlarged(found.swapaxes(2, 3).swapaxes(1, 2), side), side)


def _around(cells: Any) -> Any:
    """The sum of the four neighbours of each cell, of which one beyond the border is the cell itself.

    cells  (n, rows, columns, C)
    """
    first, last, before, after = np.s_[:, :1], np.s_[:, -1:], np.s_[:, :-1], np.s_[:, 1:]
    total = cells * 0
    for source, target in ((cells, total), (cells.swapaxes(1, 2), total.swapaxes(1, 2))):
        for here, there in ((first, first), (after, before), (before, after), (last, last)):
            part = target[here]
            part += source[there]
    return total


def _enlarged(images: Any, times: int) -> Any:
    """(n, C, h, w) -> (n, C, h * times, w * times), linear between the middles of pixels."""
    down, across = (_like(images, _interpolation(cells, times)) for cells in images.shape[2:])
    return down @ images @ across.swapaxes(0, 1)


@lru_cache(64)
def _interpolation(cells: int, side: int) -> Array:
    """float32 (cells * side, cells): linear between the middles of cells, constant beyond the first and last."""
    place = ((np.arange(cells * side) + 0.5) / side - 0.5).clip(0, cells - 1)
    return np.maximum(0, 1 - abs(place[:, None] - np.arange(cells))).astype(np.float32)


def _groups(mask: Any, grid: tuple[int, int]) -> list[tuple[Any, tuple[bool, ...]]]:
    """Dropped patches that are solved together: of one colour, with neighbours on the same sides.

    Places among all patches of the batch, and whether there is a patch above, below, left and right.
    """
    rows, columns = grid
    dropped = (~mask).reshape(-1).nonzero()
    place = dropped[0] if isinstance(dropped, tuple) else dropped[:, 0]
    y, x = place % (rows * columns) // columns, place % columns
    sides = [y > 0, y < rows - 1, x > 0, x < columns - 1]
    key = (y + x) % 2 * 16 + sides[0] * 8 + sides[1] * 4 + sides[2] * 2 + sides[3] * 1
    return [
        (place[key == kind], tuple(bool(kind >> bit & 1) for bit in (3, 2, 1, 0)))
        for kind in range(32)
        if kind % 16 and bool((key == kind).any())
    ]


@lru_cache(64)
def _spectrum(side: int, before: bool, after: bool) -> tuple[Array, Array]:
    """Eigenvalues and eigenvectors (in columns) of the one-dimensional Laplacian of a patch, float64."""
    matrix = 2 * np.eye(side) - np.eye(side, k=1) - np.eye(side, k=-1)
    matrix[0, 0] -= not before
    matrix[-1, -1] -= not after
    values, vectors = np.linalg.eigh(matrix)
    return values.clip(0), vectors


def _solver(like: Any, side: int, sides: tuple[bool, ...]) -> tuple[Any, Any, Any]:
    """V, H and 1 / (v_i + h_j), as module docstring has them."""
    (v, down), (h, across) = _spectrum(side, *sides[:2]), _spectrum(side, *sides[2:])
    return _like(like, down), _like(like, across), _like(like, 1 / (v[:, None] + h))


def _solved(found: Any, rows: Any, sides: tuple[bool, ...], columns: int, solver: tuple[Any, Any, Any]) -> Any:
    """The patches `rows`, harmonic for what stands beside them now; float32 (k, C, p, p)."""
    down, across, inverse = solver
    above, below, left, right = sides
    total: Any = 0
    if above:
        total = total + down[0][:, None] * (found[rows - columns][:, :, -1] @ across)[:, :, None]
    if below:
        total = total + down[-1][:, None] * (found[rows + columns][:, :, 0] @ across)[:, :, None]
    if left:
        total = total + (found[rows - 1][..., -1] @ down)[..., None] * across[0]
    if right:
        total = total + (found[rows + 1][..., 0] @ down)[..., None] * across[-1]
    wide = (total * inverse) @ across.swapaxes(0, 1)  # (k, C, i, x)
    return (wide.swapaxes(2, 3) @ down.swapaxes(0, 1)).swapaxes(2, 3)


def _like(array: Any, values: Any) -> Any:
    """`values` as an array of the kind, type and device of `array`."""
    if isinstance(array, np.ndarray):
        return np.asarray(values, array.dtype)
    return array.new_tensor(values) if isinstance(values, np.ndarray) else values.to(array.dtype)
