"""Memory that begins at a cache line, and at a huge page where it is large.

What NumPy allocates lies 16 bytes behind the start of a page, where every vector of 64 bytes is on two cache lines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

CACHE_LINE = 64
_HUGE = 1 << 21


def aligned_zeros(count: int, dtype: type[Any]) -> npt.NDArray[Any]:
    """Return ``count`` zeros; large ones take no memory before they are written."""
    size = count * np.dtype(dtype).itemsize
    align = _HUGE if size >= _HUGE else CACHE_LINE
    raw = np.zeros(size + align, np.uint8)
    start = -raw.ctypes.data % align
    return raw[start : start + size].view(dtype)
