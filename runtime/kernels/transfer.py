"""Strided copies between memories."""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np

from ..jit import jit
from .bits import U8, population

Four = tuple[int, int, int, int]
Range = tuple[int, int]


@jit
def copy_rows(
    target: U8,
    source: U8,
    target_start: int,
    source_start: int,
    counts: Four,
    source_strides: Four,
    target_strides: Four,
    run: int,
    rows: Range,
    columns: Range,
    zero_fill: bool,
) -> None:
    """Copy rows of ``run`` bytes in order; those outside ``rows`` or ``columns`` are zeroed or dropped."""
    length = np.uint64(run)
    for i0 in range(counts[0]):
        for i1 in range(counts[1]):
            for i2 in range(counts[2]):
                for i3 in range(counts[3]):
                    to = target_start + i0 * target_strides[0] + i1 * target_strides[1]
                    start = np.uint64(to + i2 * target_strides[2] + i3 * target_strides[3])
                    if rows[0] <= i2 < rows[1] and columns[0] <= i3 < columns[1]:
                        at = source_start + i0 * source_strides[0] + i1 * source_strides[1]
                        origin = np.uint64(at + i2 * source_strides[2] + i3 * source_strides[3])
                        for j in range(length):
                            target[start + j] = source[origin + j]
                    elif zero_fill:
                        for j in range(length):
                            target[start + j] = np.uint8(0)


@jit
def count_slots(
    source: U8, source_start: int, counts: Four, strides: Four, run: int, slot: int, rows: Range, columns: Range
) -> int:
    """Return the number of live values in the gradient slots of the rows that exist."""
    live = np.uint64(0)
    for i0 in range(counts[0]):
        for i1 in range(counts[1]):
            for i2 in range(rows[0], rows[1]):
                for i3 in range(columns[0], columns[1]):
                    at = source_start + i0 * strides[0] + i1 * strides[1] + i2 * strides[2] + i3 * strides[3]
                    for first in range(at, at + run, slot):
                        for byte in range(np.uint64(8)):
                            live += population(np.uint64(source[np.uint64(first) + byte]))
    return np.int64(live)
