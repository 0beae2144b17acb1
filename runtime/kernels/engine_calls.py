"""The kernels of FE, BE and WUE as calls (``native.py``); the comments name their words in order."""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np

from ..jit import jit
from ..native import call, words_at
from ..team import COUNTERS
from .bits import I64, count_nonfinite, decode_lists, narrow, widen
from .convolution import (
    Shape,
    count_products,
    fill_tables,
    group_tables,
    lane_time,
    list_patterns,
    list_reals,
    needs_care,
    slowest,
    sum_groups,
    sum_products,
    sum_tables,
    sum_weighted,
    tally,
    transpose_weights,
)
from .places import f32_at, i32_at, u8_at, u16_at, u32_at, u64_at
from .planes import list_planes, sum_planes
from .spread import spread_products, spread_tables
from .vector import densify

ADDS, SPIKES, BROKEN, LIVE, LANES_TIME = range(5)
"""Counters of FE and WUE."""
LIVE_INPUTS, LIVE_OUTPUTS, PRODUCTS, DENSE_PRODUCTS = range(4)
MODES, PRODUCTS_BROKEN = 4, 16
"""Counters of BE: of the positions; products, cycles and cycles of the slowest for each mode from ``MODES`` on."""


@jit
def shape_at(words: I64, i: int) -> Shape:
    """Return the six numbers of a shape."""
    return words[i], words[i + 1], words[i + 2], words[i + 3], words[i + 4], words[i + 5]


@call(words=4)
def widen_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Halves, values."""
    a = words_at(args, 4)
    widen(u16_at(a, 0)[low:high], f32_at(a, 2)[low:high])
    return 1


@call(words=4)
def narrow_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Values, halves."""
    a = words_at(args, 4)
    narrow(f32_at(a, 0)[low:high], u16_at(a, 2)[low:high])
    return 1


@call(words=8)
def fill_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Weights, tables, c, k, fan, half."""
    a, found = words_at(args, 8), words_at(counts, COUNTERS)
    found[BROKEN] += fill_tables(f32_at(a, 0), f32_at(a, 2), a[4], a[5], a[6], a[7] != 0, low, high)
    return 1


@call(words=11)
def patterns_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Spikes, c, k, fan, rows, counts, spike counts."""
    a = words_at(args, 11)
    list_patterns(u8_at(a, 0), a[2], a[3], a[4], u32_at(a, 5), u32_at(a, 7), u32_at(a, 9), low, high)
    return 1


@call(words=24)
def tables_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Acc, init, tables, rows, counts, spike counts, row of, column of, shape, groups, rows of a tap, k."""
    a, found = words_at(args, 24), words_at(counts, COUNTERS)
    acc, k = f32_at(a, 0), a[23]
    lists = u32_at(a, 5), u32_at(a, 7), u32_at(a, 9)
    maps = i32_at(a, 11), i32_at(a, 13)
    sum_tables(
        acc,
        a[2] != 0,
        f32_at(a, 3),
        lists[0],
        lists[1],
        lists[2],
        maps[0],
        maps[1],
        shape_at(a, 15),
        a[21],
        a[22],
        k,
        found,
        low,
        high,
    )
    found[BROKEN] += count_nonfinite(acc[low * k : high * k])
    return 1


@call(words=24)
def spread_tables_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """As ``tables_call`` for rows of outputs, with the column to instead of the column of."""
    a, found = words_at(args, 24), words_at(counts, COUNTERS)
    acc, size = f32_at(a, 0), a[18] * a[23]
    spread_tables(
        *(acc, a[2] != 0, f32_at(a, 3), u32_at(a, 5), u32_at(a, 7), u32_at(a, 9), i32_at(a, 11), i32_at(a, 13)),
        *(shape_at(a, 15), a[21], a[22], a[23], found, low, high),
    )
    found[BROKEN] += count_nonfinite(acc[low * size : high * size])
    return 1


@call(words=16)
def list_planes_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Planes, c, k, fan, how many planes, frac, signed, rows, factors, counts, spike counts."""
    a = words_at(args, 16)
    form = a[5], a[6], a[7] != 0
    rows, factors = u32_at(a, 8), f32_at(a, 10)
    list_planes(u8_at(a, 0), a[2], a[3], a[4], form, rows, factors, u32_at(a, 12), u32_at(a, 14), low, high)
    return 1


@call(words=26)
def sum_planes_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Acc, init, tables, rows, factors, counts, spike counts, row of, column of, shape, entries, rows of a tap, k."""
    a, found = words_at(args, 26), words_at(counts, COUNTERS)
    acc, k = f32_at(a, 0), a[25]
    sum_planes(
        acc,
        a[2] != 0,
        f32_at(a, 3),
        u32_at(a, 5),
        f32_at(a, 7),
        u32_at(a, 9),
        u32_at(a, 11),
        i32_at(a, 13),
        i32_at(a, 15),
        shape_at(a, 17),
        a[23],
        a[24],
        k,
        found,
        low,
        high,
    )
    found[BROKEN] += count_nonfinite(acc[low * k : high * k])
    return 1


@call(words=15)
def lanes_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Patterns per input position, row of, column of, shape, images, lanes, least cycles; ``extra``: passes."""
    a, found = words_at(args, 15), words_at(counts, COUNTERS)
    found[LANES_TIME] += extra * lane_time(
        u32_at(a, 0), i32_at(a, 2), i32_at(a, 4), shape_at(a, 6), a[12], a[13], a[14]
    )
    return 1


@call(words=10)
def reals_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Inputs, c, k, rows, values, counts."""
    a = words_at(args, 10)
    list_reals(f32_at(a, 0), a[2], a[3], u32_at(a, 4), f32_at(a, 6), u32_at(a, 8), low, high)
    return 1


@call(words=13)
def decode_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Slots, words of a slot, half, k, gblk, scale, channels, values, counts; ``extra``: the counter of live ones."""
    a, found = words_at(args, 13), words_at(counts, COUNTERS)
    lists = u32_at(a, 7), f32_at(a, 9), u32_at(a, 11)
    decode_lists(
        u64_at(a, 0), a[2], a[3] != 0, a[4], a[5], a[6], lists[0], lists[1], lists[2], found[extra:], low, high
    )
    return 1


@call(words=6)
def transpose_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Weights, c, k, transposed."""
    a = words_at(args, 6)
    transpose_weights(f32_at(a, 0), a[2], a[3], f32_at(a, 4), low, high)
    return 1


@call(words=32)
def products_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Acc, init, weights, rows, values, counts, row of, column of, shape, in width, out width, mask, masked, three
    results per position."""
    a, found = words_at(args, 32), words_at(counts, COUNTERS)
    acc, width = f32_at(a, 0), a[22]
    sum_products(
        acc,
        a[2] != 0,
        f32_at(a, 3),
        u32_at(a, 5),
        f32_at(a, 7),
        u32_at(a, 9),
        i32_at(a, 11),
        i32_at(a, 13),
        shape_at(a, 15),
        a[21],
        width,
        u8_at(a, 23),
        a[25] != 0,
        u32_at(a, 26),
        u32_at(a, 28),
        u32_at(a, 30),
        low,
        high,
    )
    found[PRODUCTS_BROKEN] += count_nonfinite(acc[low * width : high * width])
    return 1


@call(words=32)
def spread_products_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Acc, init, weights, rows, values, counts, row of, column to, taps across, shape, backwards, in width, out width.

    Then three results per position. The work is rows of outputs.
    """
    a, found = words_at(args, 32), words_at(counts, COUNTERS)
    acc, size = f32_at(a, 0), a[20] * a[25]
    spread_products(
        *(acc, a[2] != 0, f32_at(a, 3), u32_at(a, 5), f32_at(a, 7), u32_at(a, 9), i32_at(a, 11), i32_at(a, 13)),
        *(i32_at(a, 15), shape_at(a, 17), a[23] != 0, a[24], a[25], u32_at(a, 26), u32_at(a, 28), u32_at(a, 30)),
        *(low, high),
    )
    found[PRODUCTS_BROKEN] += count_nonfinite(acc[low * size : high * size])
    return 1


@call(words=14)
def tally_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Live and all inputs and live outputs per position, width, row, lanes, room, buckets, marks; a mode each.

    ``extra``: the mode whose call counts the positions' totals too.
    """
    a, found = words_at(args, 14), words_at(counts, COUNTERS)
    live, dense, outputs, room = u32_at(a, 0), u32_at(a, 2), u32_at(a, 4), a[9]
    buckets, marks = u16_at(a, 10), u64_at(a, 12)
    for mode in range(low, high):
        if mode == extra:
            count_products(live, dense, outputs, a[6], found[:MODES])
        own, words = buckets[mode * room : (mode + 1) * room], marks[mode * room // 64 : (mode + 1) * room // 64]
        work = found[MODES + 3 * mode : MODES + 3 * mode + 3]
        tally(live, dense, outputs, a[6], a[7], a[8], room, own, words, mode, work)
    return 1


@call(words=12)
def group_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Channels, values, counts, positions, k, fan, half, tables; ``extra``: the group of the first table."""
    a = words_at(args, 12)
    channels, values, live, tables = u32_at(a, 0), f32_at(a, 2), u32_at(a, 4), f32_at(a, 10)
    positions, k, fan, half = a[6], a[7], a[8], a[9] != 0
    size = (1 << fan) * k
    for group in range(low, high):
        at = group * fan
        start = np.uint64((group - extra) * size)
        group_tables(channels, values, live, at, min(fan, positions - at), k, fan, half, tables, start)
    return 1


@call(words=20)
def groups_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Acc, init, spikes, tables, starts, shape, c, k, fan, groups, groups at a time; ``extra``: the first group."""
    a, found = words_at(args, 20), words_at(counts, COUNTERS)
    acc, c, k, groups = f32_at(a, 0), a[15], a[16], a[18]
    here = min(a[19], groups - extra)
    fresh = a[2] != 0 and extra == 0
    sum_groups(
        acc,
        fresh,
        u8_at(a, 3),
        f32_at(a, 5),
        u64_at(a, 7),
        shape_at(a, 9),
        c,
        k,
        a[17],
        extra,
        here,
        found,
        low,
        high,
    )
    if extra + here == groups:
        words = (c + 63) // 64
        first = low // words * c + low % words * 64
        last = high // words * c + high % words * 64
        found[BROKEN] += count_nonfinite(acc[first * k : last * k])
    return 1


@call(words=12)
def dense_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Channels, values, counts, k, dense values, issues, products of an issue."""
    a = words_at(args, 12)
    live, issues, width = u32_at(a, 4), u32_at(a, 9), np.uint32(a[11])
    densify(u32_at(a, 0), f32_at(a, 2), live, a[6], f32_at(a, 7), low, high)
    for i in range(np.uint64(low), np.uint64(high)):
        issues[i] = (live[i] + width - np.uint32(1)) // width
    return 1


@call(words=7)
def care_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Inputs, acc, init, flag; ``extra``: 0 to lower the flag beforehand, 1 to raise it where it is needed."""
    a = words_at(args, 7)
    flag = u32_at(a, 5)
    if extra == 0:
        flag[0] = np.uint32(0)
    elif needs_care(f32_at(a, 0), u32_at(a, 2), a[4] != 0, low, high):
        flag[0] = np.uint32(1)
    return 1


@call(words=33)
def weighted_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Acc, init, inputs, channels, values, counts, dense values, starts, shape, c, k, flag, issues, three per row."""
    a, found = words_at(args, 33), words_at(counts, COUNTERS)
    acc, k = f32_at(a, 0), a[22]
    sum_weighted(
        acc,
        a[2] != 0,
        f32_at(a, 3),
        u32_at(a, 5),
        f32_at(a, 7),
        u32_at(a, 9),
        f32_at(a, 11),
        u64_at(a, 13),
        shape_at(a, 15),
        a[21],
        k,
        u32_at(a, 23)[0] != 0,
        u32_at(a, 25),
        u64_at(a, 27).view(np.int64),
        u64_at(a, 29).view(np.int64),
        u64_at(a, 31).view(np.int64),
        low,
        high,
    )
    found[PRODUCTS_BROKEN] += count_nonfinite(acc[low * k : high * k])
    return 1


@call(words=7)
def rows_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Live inputs, cycles and products per row, units; counted as LIVE_INPUTS, PRODUCTS and, from MODES, two cycles."""
    a, found = words_at(args, 7), words_at(counts, COUNTERS)
    live, cycles, products = u64_at(a, 0), u64_at(a, 2).view(np.int64), u64_at(a, 4)
    for row in range(np.uint64(live.size)):
        found[LIVE_INPUTS] += np.int64(live[row])
        found[PRODUCTS] += np.int64(products[row])
        found[MODES] += cycles[row]
    found[MODES + 1] += slowest(cycles, a[6])
    return 1
