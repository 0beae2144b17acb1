"""The kernels of the vector unit as calls (``native.py``); the comments name their words in order."""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np

from ..native import call, words_at
from ..team import COUNTERS
from .bits import count_nonfinite, encode_rows, round_all
from .engine_calls import shape_at
from .neuron import differentiate_plain, integrate_plain
from .places import f32_at, i32_at, real, u8_at, u16_at, u64_at
from .pool import average_bits, maximum_bits, pool_reals, unpool
from .vector import accumulate_slots, descend, differentiate, integrate

FIRED, PASSED, NEURON_BROKEN = range(3)
"""Counters of v.lif."""
LIVE_OUT, LIVE_IN, BROKEN = range(3)
"""Counters of the others."""


@call(words=48)
def integrate_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Acc, par, us twice, ss, so, uo twice, mo, cs twice (float32, half), k, fourteen flags, three reals, so twice.

    Then uo as slots, words and channels of a slot.
    """
    a = words_at(args, 48)
    flags = (
        *(a[23] != 0, a[24] != 0, a[25] != 0, a[26] != 0, a[27] != 0),
        *(a[28] != 0, a[29] != 0, a[30] != 0, a[31] != 0, a[32] != 0, a[33]),
        *(a[34] != 0, a[35] != 0, a[36] != 0),
    )
    integrate(
        f32_at(a, 0),
        f32_at(a, 2),
        f32_at(a, 4),
        u16_at(a, 6),
        u8_at(a, 8),
        u8_at(a, 10),
        f32_at(a, 40),
        u16_at(a, 42),
        f32_at(a, 12),
        u16_at(a, 14),
        u8_at(a, 16),
        f32_at(a, 18),
        u16_at(a, 20),
        u64_at(a, 44),
        a[46],
        a[47],
        a[22],
        flags,
        real(a, 37),
        real(a, 38),
        real(a, 39),
        words_at(counts, COUNTERS),
        low,
        high,
    )
    return 1


@call(words=28)
def integrate_plain_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Acc, par, us, uo, ss, so, mo, k, eight flags, width, uo as slots, words and channels (0: none) of a slot."""
    a = words_at(args, 28)
    flags = (
        *(a[15] != 0, a[16] != 0, a[17] != 0, a[18] != 0, a[19] != 0, a[20] != 0, a[21] != 0, a[22] != 0),
        a[27] != 0,
    )
    state, spikes = (f32_at(a, 4), f32_at(a, 6)), (u8_at(a, 8), u8_at(a, 10))
    found = words_at(counts, COUNTERS)
    integrate_plain(
        f32_at(a, 0),
        f32_at(a, 2),
        state[0],
        state[1],
        spikes[0],
        spikes[1],
        u8_at(a, 12),
        u64_at(a, 24),
        a[26],
        a[27],
        a[14],
        flags,
        real(a, 23),
        found,
        low,
        high,
    )
    return 1


@call(words=29)
def differentiate_plain_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Gs, u, s, par, gc, slots, window, words of a slot, gblk, k, six flags, width, height; u as slots, words, ublk."""
    a, found = words_at(args, 29), words_at(counts, COUNTERS)
    flags = (a[17] != 0, a[18] != 0, a[19] != 0, a[20] != 0, a[21] != 0, a[22] != 0, a[28] != 0)
    operands = f32_at(a, 0), f32_at(a, 2), f32_at(a, 6), f32_at(a, 8)
    work = np.zeros(3, np.int64)
    differentiate_plain(
        operands[0],
        operands[1],
        u8_at(a, 12),
        u64_at(a, 25),
        a[27],
        a[28],
        u8_at(a, 4),
        operands[2],
        operands[3],
        u64_at(a, 10),
        a[14],
        a[15],
        a[16],
        flags,
        real(a, 23),
        real(a, 24),
        work,
        low,
        high,
    )
    found[LIVE_OUT] += work[0]
    found[BROKEN] += work[1]
    found[LIVE_IN] += work[2]
    return 1


@call(words=45)
def differentiate_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Gs, u twice, s, par, gc twice, gi twice, slots, words of a slot, gblk, k, twelve flags, four reals, window.

    Then u as slots, words and channels of a slot.
    """
    a, found = words_at(args, 45), words_at(counts, COUNTERS)
    flags = (
        *(a[23] != 0, a[24] != 0, a[25] != 0, a[26] != 0, a[27] != 0, a[28] != 0, a[29] != 0),
        *(a[30], a[31], a[32] != 0, a[33] != 0, a[34] != 0),
    )
    work = np.zeros(3, np.int64)
    differentiate(
        f32_at(a, 0),
        f32_at(a, 2),
        u16_at(a, 4),
        u8_at(a, 39),
        u64_at(a, 41),
        a[43],
        a[44],
        u8_at(a, 6),
        f32_at(a, 8),
        f32_at(a, 10),
        u16_at(a, 12),
        f32_at(a, 14),
        u16_at(a, 16),
        u64_at(a, 18),
        a[20],
        a[21],
        a[22],
        flags,
        real(a, 35),
        real(a, 36),
        real(a, 37),
        real(a, 38),
        work,
        low,
        high,
    )
    found[LIVE_OUT] += work[0]
    found[BROKEN] += work[1]
    found[LIVE_IN] += work[2]
    return 1


@call(words=15)
def average_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Bits, averages, shape, two strides, k, results."""
    a = words_at(args, 15)
    average_bits(u8_at(a, 0), f32_at(a, 2), shape_at(a, 4), a[10], a[11], a[12], f32_at(a, 13), low, high)
    return 1


@call(words=19)
def maximum_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Bits, shape, two strides, k, bounds of rows and columns, results, winners."""
    a = words_at(args, 19)
    maximum_bits(
        u8_at(a, 0),
        shape_at(a, 2),
        a[8],
        a[9],
        a[10],
        i32_at(a, 11),
        i32_at(a, 13),
        u8_at(a, 15),
        u8_at(a, 17),
        low,
        high,
    )
    return 1


@call(words=21)
def pool_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Values, shape, two strides, k, maximum, bounds of rows and columns, divisor, results, winners."""
    a, found = words_at(args, 21), words_at(counts, COUNTERS)
    dst, k = f32_at(a, 17), a[10]
    pool_reals(
        f32_at(a, 0),
        shape_at(a, 2),
        a[8],
        a[9],
        k,
        a[11] != 0,
        i32_at(a, 12),
        i32_at(a, 14),
        real(a, 16),
        dst,
        u8_at(a, 19),
        low,
        high,
    )
    found[BROKEN] += count_nonfinite(dst[low * k : high * k])
    return 1


@call(words=19)
def unpool_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Values, winners, row of, column of, shape, k, maximum, divisor, results; ``extra``: whether to count here."""
    a, found = words_at(args, 19), words_at(counts, COUNTERS)
    dst, k = f32_at(a, 17), a[14]
    unpool(
        f32_at(a, 0),
        u8_at(a, 2),
        i32_at(a, 4),
        i32_at(a, 6),
        shape_at(a, 8),
        k,
        a[15] != 0,
        real(a, 16),
        dst,
        low,
        high,
    )
    if extra:
        found[BROKEN] += count_nonfinite(dst[low * k : high * k])
    return 1


@call(words=8)
def encode_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Values, slots, words of a slot, half, k, gblk: rounds values to storage and writes slots."""
    a, found = words_at(args, 8), words_at(counts, COUNTERS)
    values, half, k = f32_at(a, 0), a[5] != 0, a[6]
    if half:
        round_all(values[low * k : high * k])
    encode_rows(values, u64_at(a, 2), a[4], half, k, a[7], found[LIVE_OUT:], low, high)
    found[BROKEN] += count_nonfinite(values[low * k : high * k])
    return 1


@call(words=12)
def accumulate_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Sums, slots, words of a slot, half, rows, steps, k, gblk, descending, init; ``extra``: whether to count here."""
    a, found = words_at(args, 12), words_at(counts, COUNTERS)
    acc, k = f32_at(a, 0), a[8]
    if a[11] != 0:
        acc[low * k : high * k] = np.float32(0)
    accumulate_slots(acc, u64_at(a, 2), a[4], a[5] != 0, a[6], a[7], k, a[9], a[10] != 0, found[LIVE_IN:], low, high)
    if extra:
        found[BROKEN] += count_nonfinite(acc[low * k : high * k])
    return 1


@call(words=15)
def descend_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Parameters, gradients, momentum, halves, run scalars, momentum, factor, decay, nesterov, half."""
    a, found = words_at(args, 15), words_at(counts, COUNTERS)
    p, g, mom, w = f32_at(a, 0), f32_at(a, 2), f32_at(a, 4), u16_at(a, 6)
    rate, momentum, half = f32_at(a, 8)[0], real(a, 10), a[14] != 0
    descend(
        p[low:high],
        g[low:high],
        mom[low:high] if momentum != np.float32(0) else mom,
        w[low:high] if half else w,
        rate,
        momentum,
        real(a, 11),
        real(a, 12),
        a[13] != 0,
        half,
    )
    found[BROKEN] += count_nonfinite(p[low:high])
    return 1
