"""Kernels of numbers as bit-planes: cutting them up, and look-ups whose entries count by the weight of their plane.

``form`` is (planes, frac, signed): plane p counts 2^(p - frac), the last one of a signed number negative.
"""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np

from ..jit import jit
from .bits import F32, I64, U8, U32, population
from .convolution import I32, Shape
from .rows import LANES, add_products, append

Form = tuple[int, int, bool]


@jit
def fits(x: np.float32, form: Form) -> bool:
    """Whether ``x`` is a number of the planes."""
    planes, frac, signed = form
    scaled = np.float64(x) * 2.0**frac
    limit = 2.0 ** (planes - 1) if signed else 2.0**planes
    return scaled == np.floor(scaled) and scaled < limit and scaled >= (-limit if signed else 0.0)


@jit
def pack(x: F32, k: int, form: Form, packed: U8, work: I64, low: int, high: int) -> None:
    """Write the planes of ``x`` ``[position][k]`` as ``[position][plane][ceil(k/8)]``; ``work`` += misfits."""
    planes, frac, _ = form
    width, row_bytes = np.uint64(k), np.uint64((k + 7) // 8)
    for position in range(np.uint64(low), np.uint64(high)):
        base = position * row_bytes * np.uint64(planes)
        for byte in range(row_bytes * np.uint64(planes)):
            packed[base + byte] = np.uint8(0)
        for ch in range(width):
            value = x[position * width + ch]
            if not fits(value, form):
                work[0] += 1
                continue
            number = np.uint64(np.int64(np.float64(value) * 2.0**frac))
            bit = np.uint8(1) << np.uint8(ch & np.uint64(7))
            for plane in range(np.uint64(planes)):
                if (number >> plane) & np.uint64(1):
                    packed[base + plane * row_bytes + (ch >> np.uint64(3))] |= bit


@jit
def first_wrong(x: F32, planes: int, frac: int, signed: bool) -> int:
    """Return the index of the first value that is no number of the planes, -1 where all are."""
    for i in range(x.size):
        if not fits(x[i], (planes, frac, signed)):
            return i
    return -1


@jit
def list_planes(
    packed: U8,
    c: int,
    k: int,
    fan: int,
    form: Form,
    rows: U32,
    factors: F32,
    counts: U32,
    spike_counts: U32,
    low: int,
    high: int,
) -> None:
    """List the non-zero patterns of every position, planes within groups, with what their entries count.

    ``rows[position][i]`` = (group * 2^fan + pattern) * k; there is room for groups * planes entries a position.
    """
    planes, frac, signed = form
    bits, inputs, depth = np.uint64(fan), np.uint64(c), np.uint64(planes)
    groups = (inputs + bits - np.uint64(1)) // bits
    row_bytes = (inputs + np.uint64(7)) >> np.uint64(3)
    weights = np.empty(planes, np.float32)
    for plane in range(planes):
        weights[plane] = np.float32(2.0 ** (plane - frac))
    if signed:
        weights[planes - 1] = -weights[planes - 1]
    for position in range(np.uint64(low), np.uint64(high)):
        start = position * groups * depth
        n = found = np.uint64(0)
        for group in range(groups):
            bit = group * bits
            byte = bit >> np.uint64(3)
            ones = (np.uint64(1) << min(bits, inputs - bit)) - np.uint64(1)
            for plane in range(depth):
                base = (position * depth + plane) * row_bytes
                window = np.uint64(packed[base + byte])
                if byte + np.uint64(1) < row_bytes:
                    window |= np.uint64(packed[base + byte + np.uint64(1)]) << np.uint64(8)
                pattern = (window >> (bit & np.uint64(7))) & ones
                if pattern == np.uint64(0):
                    continue
                rows[start + n] = np.uint32(((group << bits) | pattern) * np.uint64(k))
                factors[start + n] = weights[plane]
                n += np.uint64(1)
                found += population(pattern)
        counts[position] = np.uint32(n)
        spike_counts[position] = np.uint32(found)


@jit
def sum_planes(
    acc: F32,
    init: bool,
    tables: F32,
    rows: U32,
    factors: F32,
    counts: U32,
    spike_counts: U32,
    row_of: I32,
    column_of: I32,
    shape: Shape,
    per_position: int,
    tap_rows: int,
    k: int,
    work: I64,
    low: int,
    high: int,
) -> None:
    """``acc[position] += factor * tables[tap][row]`` over taps and listed rows; ``work`` += (look-ups, spikes)."""
    in_rows, in_columns, oh, ow, kh, kw = shape
    width, entries = np.uint64(k), np.uint64(per_position)
    room = kh * kw * per_position + LANES
    offsets, scales = np.empty(room, np.uint32), np.empty(room, np.float32)
    adds = spikes = np.uint64(0)
    for position in range(low, high):
        image, oy, ox = position // (oh * ow), (position // ow) % oh, position % ow
        start = np.uint64(position) * width
        if init:
            for j in range(width):
                acc[start + j] = np.float32(0)
        n = tap_start = np.uint64(0)
        for ky in range(kh):
            row = (image * in_rows + row_of[np.uint64(oy * kh + ky)]) * in_columns
            for kx in range(kw):
                source = np.uint64(row + column_of[np.uint64(ox * kw + kx)])
                count = np.uint64(counts[source])
                append(offsets, n, rows, source * entries, count, tap_start)
                append(scales, n, factors, source * entries, count, tap_start)
                n += count
                spikes += np.uint64(spike_counts[source])
                tap_start += np.uint64(tap_rows) * width
        adds += n
        add_products(acc, start, tables, offsets, scales, n, width)
    work[0] += np.int64(adds)
    work[1] += np.int64(spikes)
