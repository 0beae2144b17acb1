"""Sums of FE and BE in thin layers: every input position adds its live entries to the outputs that it takes part in.

A sum must take its terms in the contract's order, taps ascending and then entries. Of one row of outputs, kernel row by
kernel row, the sum of each output has exactly that order if input columns are visited so that an output meets its taps
ascending: from the left forwards, from the right backwards. No list of an output's terms is needed, and inputs without
a live entry, the most of them, cost almost nothing. The row of outputs stays in the first-level cache.

``row_of`` and ``shape`` are those of ``convolution.py``; ``column_to`` is ``[input columns][kw]``: the output column
that a tap of an input column belongs to, or -1. Units are rows of outputs, of all images.
"""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np

from ..jit import jit
from .bits import F32, I64, U32
from .convolution import I32, Shape
from .rows import add_products_to_one, add_products_to_three, add_rows_to_one, add_rows_to_three


@jit
def spread_tables(
    acc: F32,
    init: bool,
    tables: F32,
    rows: U32,
    counts: U32,
    spike_counts: U32,
    row_of: I32,
    column_to: I32,
    shape: Shape,
    groups: int,
    tap_rows: int,
    k: int,
    work: I64,
    low: int,
    high: int,
) -> None:
    """``sum_tables`` for the rows of outputs ``low .. high-1``."""
    in_rows, in_columns, oh, ow, kh, kw = shape
    width, per_position, tap_size = np.uint64(k), np.uint64(groups), np.uint64(tap_rows) * np.uint64(k)
    one, two, three, taps_across = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(kw)
    adds = spikes = np.uint64(0)
    for unit in range(low, high):
        start = np.uint64(unit * ow) * width
        if init:
            for j in range(start, start + np.uint64(ow) * width):
                acc[j] = np.float32(0)
        for ky in range(kh):
            base = np.uint64((unit // oh * in_rows + row_of[np.uint64(unit % oh * kh + ky)]) * in_columns)
            taps = np.uint64(ky * kw) * tap_size
            for x in range(np.uint64(in_columns)):
                count = np.uint64(counts[base + x])
                if count == np.uint64(0):
                    continue
                first, there = (base + x) * per_position, x * taps_across
                kx = met = np.uint64(0)
                while kx < taps_across:
                    to, tap = there + kx, taps + kx * tap_size
                    if kx + two < taps_across and min(column_to[to], column_to[to + one], column_to[to + two]) >= 0:
                        add_rows_to_three(
                            *(acc, tables, rows, first, count, width),
                            *(start + np.uint64(column_to[to]) * width, tap),
                            *(start + np.uint64(column_to[to + one]) * width, tap + tap_size),
                            *(start + np.uint64(column_to[to + two]) * width, tap + two * tap_size),
                        )
                        kx, met = kx + three, met + three
                        continue
                    if column_to[to] >= 0:
                        at = start + np.uint64(column_to[to]) * width
                        add_rows_to_one(acc, tables, rows, first, count, width, at, tap)
                        met += one
                    kx += one
                adds += met * count
                spikes += met * np.uint64(spike_counts[base + x])
    work[0] += np.int64(adds)
    work[1] += np.int64(spikes)


@jit
def spread_products(
    acc: F32,
    init: bool,
    weights: F32,
    rows: U32,
    values: F32,
    counts: U32,
    row_of: I32,
    column_to: I32,
    across: I32,
    shape: Shape,
    backwards: bool,
    in_width: int,
    out_width: int,
    live: U32,
    dense: U32,
    outputs: U32,
    low: int,
    high: int,
) -> None:
    """``sum_products`` without a mask for the rows of outputs ``low .. high-1``.

    ``across``: how many taps of a kernel row exist for an output column.
    """
    in_rows, in_columns, oh, ow, kh, kw = shape
    width, per_position = np.uint64(out_width), np.uint64(in_width)
    tap_size = width * per_position
    one, two, three, taps_across = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(kw)
    for unit in range(low, high):
        position = np.uint64(unit * ow)
        start, down = position * width, 0
        if init:
            for j in range(start, start + np.uint64(ow) * width):
                acc[j] = np.float32(0)
        for ox in range(np.uint64(ow)):
            live[position + ox] = np.uint32(0)
        for ky in range(kh):
            y = row_of[np.uint64(unit % oh * kh + ky)]
            if y < 0:
                continue
            down += 1
            base, taps = np.uint64((unit // oh * in_rows + y) * in_columns), np.uint64(ky * kw) * tap_size
            for i in range(np.uint64(in_columns)):
                x = np.uint64(in_columns) - one - i if backwards else i
                count = np.uint64(counts[base + x])
                if count == np.uint64(0):
                    continue
                first, there = (base + x) * per_position, x * taps_across
                for kx in range(taps_across):
                    if column_to[there + kx] >= 0:
                        live[position + np.uint64(column_to[there + kx])] += np.uint32(count)
                kx = np.uint64(0)
                while kx < taps_across:
                    to, tap = there + kx, taps + kx * tap_size
                    if kx + two < taps_across and min(column_to[to], column_to[to + one], column_to[to + two]) >= 0:
                        add_products_to_three(
                            *(acc, weights, rows, values, first, count, width),
                            *(start + np.uint64(column_to[to]) * width, tap),
                            *(start + np.uint64(column_to[to + one]) * width, tap + tap_size),
                            *(start + np.uint64(column_to[to + two]) * width, tap + two * tap_size),
                        )
                        kx += three
                        continue
                    if column_to[to] >= 0:
                        at = start + np.uint64(column_to[to]) * width
                        add_products_to_one(acc, weights, rows, values, first, count, width, at, tap)
                    kx += one
        for ox in range(np.uint64(ow)):
            dense[position + ox] = np.uint32(down * across[ox] * in_width)
            outputs[position + ox] = np.uint32(out_width)
