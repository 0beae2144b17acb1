"""The loss of logits and its gradient."""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.numerics import LOG_C

from ..jit import jit
from .bits import F32, bits_of, float_of
from .vector import exponential

I32 = npt.NDArray[np.int32]


@jit
def logarithm(v: np.float32) -> np.float32:
    """Return the natural logarithm, bit for bit as :func:`h2learn.backends.h2learn.numerics.log`."""
    if not v >= np.float32(1.17549435e-38):
        return np.float32(-np.inf) if v >= np.float32(0) else np.float32(np.nan)
    if v == np.float32(np.inf):
        return v
    bits = bits_of(v)
    exponent = np.int32((bits >> np.uint32(23)) & np.uint32(0xFF)) - np.int32(126)
    r = float_of((bits & np.uint32(0x007FFFFF)) | np.uint32(0x3F000000))
    if r < np.float32(0.707106781186547524):
        exponent -= np.int32(1)
        r = r + r
    e, r = np.float32(exponent), r - np.float32(1)
    z = r * r
    y = np.float32(LOG_C[0])
    for i in range(1, len(LOG_C)):
        y = y * r + np.float32(LOG_C[i])
    y = y * r * z
    y = y + e * np.float32(-2.12194440e-4)
    y = y - z * np.float32(0.5)
    return r + y + e * np.float32(0.693359375)


@jit
def cross_entropy(
    logits: F32, labels: I32, k: int, count: np.float32, scale: np.float32, grad: F32, losses: F32
) -> None:
    """Write the loss of every label and ``scale`` times its gradient by the logits, both over ``count``."""
    width = np.uint64(k)
    for sample in range(np.uint64(labels.size)):
        row, label = sample * width, np.uint64(labels[sample])
        largest = logits[row]
        for j in range(row, row + width):
            value = logits[j]
            if not largest >= value and largest == largest:  # a NaN is the largest
                largest = value
        total = np.float32(0)
        for j in range(row, row + width):
            grad[j] = exponential(logits[j] - largest)
            total = total + grad[j]
        losses[sample] = (logarithm(total) - (logits[row + label] - largest)) / count
        for j in range(width):
            hot = np.float32(1) if j == label else np.float32(0)
            grad[row + j] = ((grad[row + j] / total - hot) / count) * scale


@jit
def squared_error(
    logits: F32,
    labels: I32,
    k: int,
    targets: tuple[np.float32, np.float32],
    share: np.float32,
    count: np.float32,
    scale: np.float32,
    grad: F32,
    losses: F32,
) -> None:
    """``cross_entropy`` for ``share`` of the mean square of the distance to ``targets`` (of the label, others)."""
    width, outputs = np.uint64(k), np.float32(k)
    for sample in range(np.uint64(labels.size)):
        row, label = sample * width, np.uint64(labels[sample])
        total = np.float32(0)
        for j in range(width):
            away = logits[row + j] - (targets[0] if j == label else targets[1])
            total = total + away * away
            grad[row + j] = ((away * np.float32(2)) / (count * outputs)) * scale
        losses[sample] = total / outputs * share / count
