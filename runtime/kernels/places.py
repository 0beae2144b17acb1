"""Arguments of calls: arrays and numbers from the 64-bit words that ``prepared.Arguments`` writes."""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="no-any-return, attr-defined, call-arg, arg-type"

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from ..jit import jit
from ..native import pointer_to
from .bits import F32, I64, U8, U16, U32, U64, float_of

I32 = npt.NDArray[np.int32]


@jit
def f32_at(words: I64, i: int) -> F32:
    """Return the float32 array whose address and size are words ``i`` and ``i+1``."""
    return numba.carray(pointer_to(words[i]), (words[i + 1],), np.float32)


@jit
def u8_at(words: I64, i: int) -> U8:
    """Return an array of bytes; see ``f32_at``."""
    return numba.carray(pointer_to(words[i]), (words[i + 1],), np.uint8)


@jit
def u16_at(words: I64, i: int) -> U16:
    """Return an array of uint16; see ``f32_at``."""
    return numba.carray(pointer_to(words[i]), (words[i + 1],), np.uint16)


@jit
def u32_at(words: I64, i: int) -> U32:
    """Return an array of uint32; see ``f32_at``."""
    return numba.carray(pointer_to(words[i]), (words[i + 1],), np.uint32)


@jit
def i32_at(words: I64, i: int) -> I32:
    """Return an array of int32; see ``f32_at``."""
    return numba.carray(pointer_to(words[i]), (words[i + 1],), np.int32)


@jit
def u64_at(words: I64, i: int) -> U64:
    """Return an array of uint64; see ``f32_at``."""
    return numba.carray(pointer_to(words[i]), (words[i + 1],), np.uint64)


@jit
def real(words: I64, i: int) -> np.float32:
    """Return the float32 whose bits are word ``i``."""
    return float_of(np.uint32(words[i]))
