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
def slot_traffic(
    source: U8,
    source_start: int,
    counts: Four,
    strides: Four,
    dram_strides: Four,
    run: int,
    slot: int,
    item: int,
    pack: int,
    rows: Range,
    columns: Range,
    burst: int,
) -> tuple[int, int]:
    """Return the bytes that the gradient slots of the rows that exist hold, and the same in whole bursts.

    A slot holds its bitmap and the live values; ``slot`` bounds both. Up to ``pack`` slots that touch in DRAM, counted
    from one that does not touch the slot before it, are rounded up to bursts together.
    """
    moved = in_bursts = held = np.uint64(0)
    room, size, unit = np.uint64(slot), np.uint64(item), np.uint64(burst)
    most, packed, follows = np.uint64(max(1, pack)), np.uint64(0), np.int64(0)
    for i0 in range(counts[0]):
        for i1 in range(counts[1]):
            for i2 in range(rows[0], rows[1]):
                for i3 in range(columns[0], columns[1]):
                    at = source_start + i0 * strides[0] + i1 * strides[1] + i2 * strides[2] + i3 * strides[3]
                    there = i0 * dram_strides[0] + i1 * dram_strides[1] + i2 * dram_strides[2] + i3 * dram_strides[3]
                    if there != follows:
                        in_bursts += (held + unit - np.uint64(1)) // unit * unit
                        held = packed = np.uint64(0)
                    follows = there + run
                    for first in range(np.uint64(at), np.uint64(at + run), room):
                        live = np.uint64(0)
                        for byte in range(np.uint64(8)):
                            live += population(np.uint64(source[first + byte]))
                        if packed == most:
                            in_bursts += (held + unit - np.uint64(1)) // unit * unit
                            held = packed = np.uint64(0)
                        moved += np.uint64(8) + live * size
                        held += min(np.uint64(8) + live * size, room)
                        packed += np.uint64(1)
    in_bursts += (held + unit - np.uint64(1)) // unit * unit
    return np.int64(moved), np.int64(in_bursts)
