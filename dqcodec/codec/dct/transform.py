"""Colour rotation and cosine transform in plain numpy, and the tables that the compiled versions use.

planes  Z_c = sum_i U[c, i] (value_i - 128)        value_i = clip(floor(sum_c U[c, i] Z_c + 128.5), 0, 255)
block   C = D P D^T                                P = D^T C D
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dqcodec.codec.dct.contexts import scan

Array = npt.NDArray[Any]

NOTCHES = 16  # of a scale index, that make a step twice as large
# Step of scale index q: 0.5 * 2^(q / 16), float32.
STEPS: Array = (0.5 * 2.0 ** (np.arange(256) / NOTCHES)).astype(np.float32)
PLAIN_NOTCHES = 9  # the plain quantiser's points lie one step apart, the dependent's two: 2^(9/16) evens the quality
CHROMA_STEP = np.float32(1.08)  # steps of the second and third plane, in steps of the first


@cache
def matrix(size: int) -> Array:
    """float32 (size, size): the orthonormal DCT-II, sqrt(2 / size) cos((2x + 1) k pi / (2 size)), row 0 / sqrt(2)."""
    k, x = np.mgrid[:size, :size]
    d = np.sqrt(2 / size) * np.cos((2 * x + 1) * k * np.pi / (2 * size))
    d[0] /= np.sqrt(2)
    result: Array = d.astype(np.float32)
    return result


def rotation_matrices(angles: Array) -> Array:
    """float32 (R, 3, 3): Rz(a) Ry(b) Rx(c) of angles (R, 3) in 256ths of a turn."""
    turn = angles.astype(np.float64) * (2 * np.pi / 256)
    (ca, cb, cc), (sa, sb, sc) = np.cos(turn).T, np.sin(turn).T
    rows = [
        [ca * cb, ca * sb * sc - sa * cc, ca * sb * cc + sa * sc],
        [sa * cb, sa * sb * sc + ca * cc, sa * sb * cc - ca * sc],
        [-sb, cb * sc, cb * cc],
    ]
    return np.array(rows).transpose(2, 0, 1).astype(np.float32)


def angles(u: Array) -> Array:
    """float64 (3,): the angles a, b, c of a rotation (3, 3), in turns; the inverse of `rotation_matrices`."""
    b = -np.arcsin(np.clip(u[2, 0], -1, 1))
    a, c = np.arctan2(u[1, 0], u[0, 0]), np.arctan2(u[2, 1], u[2, 2])
    return np.array([a, b, c]) / (2 * np.pi)


@cache
def scan_places(size: int) -> Array:
    """int64 (size^2,): scan index of each coefficient (u, v), row by row."""
    places = scan(size)
    index = np.zeros((size, size), np.int64)
    index[places[:, 0], places[:, 1]] = np.arange(size * size)
    return index.ravel()
