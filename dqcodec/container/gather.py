"""Many byte ranges of a file in one call, compiled by numba.

Each read by Python gives the interpreter lock away and asks for it again. While another thread decodes, that takes
longer than the read.
"""

from __future__ import annotations

from typing import Any

import numba
from numba import types

Array = Any
_pread = types.ExternalFunction("pread", types.intp(types.int32, types.intp, types.uintp, types.int64))


@numba.njit(nogil=True, cache=True)
def gather(file: int, starts: Array, sizes: Array, out: Array) -> int:
    """Read ranges one after the other into `out`: how many were read whole, before the first that was not.

    file    a descriptor      starts, sizes  int64 (n,)
    out     uint8, as long as all ranges together
    """
    place = out.ctypes.data
    for i in range(len(starts)):
        if _pread(file, place, sizes[i], starts[i]) != sizes[i]:
            return i
        place += sizes[i]
    return len(starts)
