"""The entropy decoder on a GPU, compiled by numba for CUDA: a batch of payloads -> coefficients, a thread a sample.

The steps through one payload depend on each other, so samples are what is done side by side. Each has a block of one
thread: threads of one warp would wait for each other at every branch, and a batch has fewer samples than a GPU has
places for warps.
"""

from __future__ import annotations

from typing import Any

from numba import cuda

from dqcodec.codec.dct import stream
from dqcodec.codec.dct.edges import Edges
from dqcodec.codec.dct.engine import build

Array = Any
MIN_BLOCKS = 128  # numba warns of fewer; those without a sample end at once
_COMPILED = build(stream, cuda.jit(device=True))
begin, forget, next_unit = _COMPILED["begin"], _COMPILED["forget"], _COMPILED["next_unit"]


@cuda.jit
def decode_rows(data, words, spans, kept, first, planes, edges, order, coding, state, scratch, patterns, lasts):
    """Decode rows of units from `first` on, as many as there is room for, of the sample that is the block's number.

    data      uint8 (bytes,), spans int64 (n, 2), see coder.join; words uint16, the same bytes
    kept      uint8 (n, units)
    edges     Edges whose arrays have an axis of samples before their own; it keeps what is above the next row
    state     int64 (n, 2): x and p after these rows, from which the next call goes on
    scratch   int32 (n, rows, columns * planes * 256), 0 before; patterns int32 (n, rows, columns);
              lasts int32 (n, 18); see stream.unit

    Coefficients have 32 bits because an escaped level, in 64ths of a step, takes 25 and a DC coefficient 27.
    """
    i = cuda.blockIdx.x
    if i >= len(spans):
        return
    mine = Edges(
        edges.dc_above[i], edges.dc_left[i], edges.activity_above[i], edges.activity_left[i], edges.flags[i],
        edges.near[i], edges.width, edges.columns,
    )  # fmt: skip
    x, p = state[i, 0], state[i, 1]
    end = spans[i, 1] >> 1
    if first == 0:
        x, head = begin(data, spans[i, 0], spans[i, 1] - spans[i, 0])
        p = (spans[i, 0] + head) >> 1
        forget(mine, 0, mine.width)
        for c in range(mine.columns):
            mine.flags[c] = 0
    for r in range(scratch.shape[1]):
        for c in range(mine.columns):
            patterns[i, r, c], x, p = next_unit(
                kept[i, (first + r) * mine.columns + c], c, (c * planes) << 8, planes, mine,
                scratch[i, r], lasts[i], order, coding, x, words, p, end,
            )  # fmt: skip
    state[i, 0], state[i, 1] = x, p
