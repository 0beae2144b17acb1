"""Average, sum and maximum pooling of maps ``[...,H,W,C]``, and their adjoints.

Padding counts as zeros in averages (which divide by the whole window) and sums; in a maximum it takes no part. The
winner of a maximum is the first largest element of the window in row-major order, and a NaN beats every number, as in
PyTorch on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrays import Real, Spikes


@dataclass(frozen=True)
class Window:
    """Kernel, stride and padding as (rows, columns)."""

    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int] = (0, 0)

    def inner(self, padded: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return padded maps without their padding."""
        rows, columns = self.padding
        return padded[..., rows : padded.shape[-3] - rows, columns : padded.shape[-2] - columns, :]


def total(x: Real, window: Window) -> Real:
    """Return the window sums ``[...,OH,OW,C]``."""
    return np.asarray(sum(part for _, part in _windows(_padded(x, window), window)))


def average(x: Real, window: Window) -> Real:
    """Return the window means ``[...,OH,OW,C]``."""
    return np.asarray(total(x, window) / x.dtype.type(window.kernel[0] * window.kernel[1]))


def total_gradient(gradient: Real, shape: Sequence[int], window: Window) -> Real:
    """Return the gradient of the source of ``shape`` from that of the sums."""
    padded = _padded(np.zeros(tuple(shape), dtype=gradient.dtype), window)
    for _, part in _windows(padded, window):
        part += gradient
    return np.ascontiguousarray(window.inner(padded))


def average_gradient(gradient: Real, shape: Sequence[int], window: Window) -> Real:
    """Return the gradient of the source of ``shape`` from that of the means."""
    share = gradient / gradient.dtype.type(window.kernel[0] * window.kernel[1])
    return total_gradient(share, shape, window)


def maximum(x: Real | Spikes, window: Window) -> Real | Spikes:
    """Return the window maxima ``[...,OH,OW,C]`` in the type of ``x``; the maximum of spikes is their OR."""
    return _winning(x, window)[0]


def maximum_gradient(gradient: Real, x: Real | Spikes, window: Window) -> Real:
    """Return the gradient of the source ``x``: each window's gradient goes to its winner."""
    winner = winners(x, window)
    padded = _padded(np.zeros(x.shape, dtype=gradient.dtype), window)
    for tap, part in _windows(padded, window):
        part += np.where(winner == tap, gradient, gradient.dtype.type(0))
    return np.ascontiguousarray(window.inner(padded))


def winners(x: Real | Spikes, window: Window) -> npt.NDArray[np.int64]:
    """Return for each window the number ``ky * kw + kx`` of its winner."""
    return _winning(x, window)[1]


def _winning(x: Real | Spikes, window: Window) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    exists = np.zeros((x.shape[-3] + 2 * window.padding[0], x.shape[-2] + 2 * window.padding[1], 1), dtype=np.bool_)
    window.inner(exists)[...] = True
    parts = list(zip(_windows(_padded(x, window), window), _windows(exists, window), strict=True))
    best = parts[0][0][1].copy()
    number, seen = np.zeros(best.shape, dtype=np.int64), np.zeros(best.shape, dtype=np.bool_)
    for (tap, part), (_, there) in parts:
        better = there & (~seen | (part > best) | ((part != part) & (best == best)))
        best, number, seen = np.where(better, part, best), np.where(better, tap, number), seen | there
    return best, number


def _padded(x: npt.NDArray[Any], window: Window) -> npt.NDArray[Any]:
    rows, columns = window.padding
    return np.pad(x, ((0, 0),) * (x.ndim - 3) + ((rows, rows), (columns, columns), (0, 0)))


def _windows(padded: npt.NDArray[Any], window: Window) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    kernel, stride = window.kernel, window.stride
    rows = (padded.shape[-3] - kernel[0]) // stride[0] + 1
    columns = (padded.shape[-2] - kernel[1]) // stride[1] + 1
    for tap in range(kernel[0] * kernel[1]):
        y, z = divmod(tap, kernel[1])
        down = slice(y, y + (rows - 1) * stride[0] + 1, stride[0])
        across = slice(z, z + (columns - 1) * stride[1] + 1, stride[1])
        yield tap, padded[..., down, across, :]
