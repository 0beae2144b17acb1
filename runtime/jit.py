"""The one way in which this project compiles kernels with Numba."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import numba

Kernel = Callable[..., Any]
"""A compiled function: its argument types are checked by Numba when it is called."""


def jit(function: Callable[..., object]) -> Kernel:
    """Compile ``function`` on its first call: strict IEEE arithmetic, no GIL, cached on disk where that is possible."""
    try:
        compiled = numba.njit(cache=True, nogil=True, fastmath=False, error_model="numpy")(function)
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        warnings.warn(
            "compiled kernels are not kept: neither the package folder nor the user's cache folder is writable,"
            " so every start compiles them again; set NUMBA_CACHE_DIR to a writable folder",
            RuntimeWarning,
            stacklevel=2,
        )
        compiled = numba.njit(nogil=True, fastmath=False, error_model="numpy")(function)
    return cast(Kernel, compiled)
