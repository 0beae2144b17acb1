"""Average and maximum pooling of maps ``[...,H,W,C]`` without padding, and their adjoints.

The winner of a maximum is the first largest element of the window in row-major order, and a NaN beats every number,
as in PyTorch on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Real, Spikes


def average(x: Real, kernel: Sequence[int], stride: Sequence[int]) -> Real:
    """Return the window means ``[...,OH,OW,C]``."""
    total = sum(window for _, window in _windows(x, kernel, stride))
    return np.asarray(total / x.dtype.type(kernel[0] * kernel[1]))


def average_gradient(gradient: Real, shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int]) -> Real:
    """Return the gradient of the source of ``shape`` from that of the means."""
    result = np.zeros(tuple(shape), dtype=gradient.dtype)
    share = gradient / gradient.dtype.type(kernel[0] * kernel[1])
    for _, window in _windows(result, kernel, stride):
        window += share
    return result


def maximum(x: Real | Spikes, kernel: Sequence[int], stride: Sequence[int]) -> Real | Spikes:
    """Return the window maxima ``[...,OH,OW,C]`` in the type of ``x``; the maximum of spikes is their OR."""
    best = np.empty(0)
    for _, window in _windows(x, kernel, stride):
        best = np.maximum(best, window) if best.size else window.copy()
    return best


def maximum_gradient(gradient: Real, x: Real | Spikes, kernel: Sequence[int], stride: Sequence[int]) -> Real:
    """Return the gradient of the source ``x``: each window's gradient goes to its winner."""
    winner = winners(x, kernel, stride)
    result = np.zeros(x.shape, dtype=gradient.dtype)
    for tap, window in _windows(result, kernel, stride):
        window += np.where(winner == tap, gradient, gradient.dtype.type(0))
    return result


def winners(x: Real | Spikes, kernel: Sequence[int], stride: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return for each window the number ``ky * kw + kx`` of its winner."""
    best, number = np.empty(0), np.empty(0, dtype=np.int64)
    for tap, window in _windows(x, kernel, stride):
        if tap == 0:
            best, number = window.copy(), np.zeros(window.shape, dtype=np.int64)
            continue
        better = (window > best) | ((window != window) & (best == best))
        best, number = np.where(better, window, best), np.where(better, tap, number)
    return number


def _windows(
    x: npt.NDArray[Any], kernel: Sequence[int], stride: Sequence[int]
) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    rows = (x.shape[-3] - kernel[0]) // stride[0] + 1
    columns = (x.shape[-2] - kernel[1]) // stride[1] + 1
    for tap in range(kernel[0] * kernel[1]):
        y, z = divmod(tap, kernel[1])
        down = slice(y, y + (rows - 1) * stride[0] + 1, stride[0])
        across = slice(z, z + (columns - 1) * stride[1] + 1, stride[1])
        yield tap, x[..., down, across, :]
