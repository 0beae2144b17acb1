"""Kernels of the vector unit: one pass over memory each, in blocks that stay in the first-level cache.

Where the storage type may be half, a kernel takes both a float32 and a uint16 view and uses the one that ``half``
selects, so that each is compiled once.
"""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np

from h2learn.backends.h2learn.numerics import EXP_C

from ..jit import jit
from ..native import copy_bytes
from .bits import (
    EXPONENT,
    F32,
    I64,
    U8,
    U16,
    U32,
    U64,
    bits_of,
    decode_where,
    encode,
    encode_where,
    float_of,
    half_bits,
    half_value,
    live_bits,
    lowest,
    pack,
    population,
    round_half,
    unpack,
)

BLOCK = 1024
PLAIN, SCALED, SYNAPSE, DELAYED = range(4)
"""How a current acts on the potential."""
RECTANGULAR, TRIANGULAR, ATAN, SIGMOID, FAST_SIGMOID, EXPONENTIAL, GAUSSIAN, WINDOW = range(8)
EXP_0, EXP_1, EXP_2, EXP_3, EXP_4, EXP_5 = (np.float32(c) for c in EXP_C)
Pair = tuple[int, int]
Triple = tuple[int, int, int]
Shares = tuple[np.float32, np.float32, np.float32]


@jit
def block_rows(k: int) -> int:
    """Return how many rows of ``k`` elements are worked on at a time."""
    return max(1, BLOCK // k)


@jit
def lanes_for(rows: int, k: int) -> U8:
    """Return zeroed bytes for ``rows * k`` unpacked bits, a multiple of 8."""
    return np.zeros((rows * k + 7) // 8 * 8, np.uint8)


@jit
def tile_row(row: F32, first: int, k: int, rows: int) -> F32:
    """Return ``row[first*k : (first+1)*k]`` repeated ``rows`` times."""
    tiled = np.empty(rows * k, np.float32)
    size = np.uint64(rows * k)
    start, ready = np.uint64(first * k), min(np.uint64(k), size)
    for i in range(ready):
        tiled[i] = row[start + i]
    while ready < size:
        more = min(ready, size - ready)
        copy_bytes(tiled.ctypes.data + 4 * np.int64(ready), tiled.ctypes.data, 4 * np.int64(more))
        ready += more
    return tiled


@jit
def load_block(wide: F32, narrow: U16, half: bool, start: np.uint64, size: np.uint64, block: F32) -> None:
    """``block[i]`` = stored value ``start + i``."""
    if half:
        for i in range(size):
            block[i] = half_value(narrow[start + i])
    else:
        for i in range(size):
            block[i] = wide[start + i]


@jit
def store_block(block: F32, start: np.uint64, size: np.uint64, half: bool, wide: F32, narrow: U16) -> None:
    """Stored value ``start + i`` = ``block[i]``."""
    if half:
        for i in range(size):
            narrow[start + i] = half_bits(block[i])
    else:
        for i in range(size):
            wide[start + i] = block[i]


@jit
def drive_block(
    acc: F32,
    par: F32,
    cs: F32,
    cs_half: U16,
    start: np.uint64,
    rows: np.uint64,
    k: int,
    init: bool,
    half: bool,
    drive: int,
    x: F32,
) -> None:
    """``x[i]`` = what current ``start + i`` adds to the potential; synaptic currents move on by a step."""
    width = np.uint64(k)
    for row in range(rows):
        base = row * width
        for ch in range(width):
            arriving = acc[start + base + ch] + par[ch]
            if drive != SCALED:
                held = np.float32(0)
                if not init:
                    held = half_value(cs_half[start + base + ch]) if half else cs[start + base + ch]
                moved = par[np.uint64(7) * width + ch] * held + arriving
                if half:
                    moved = round_half(moved)
                    cs_half[start + base + ch] = half_bits(moved)
                else:
                    cs[start + base + ch] = moved
                arriving = held if drive == DELAYED else moved
            x[base + ch] = par[np.uint64(4) * width + ch] * arriving + par[np.uint64(5) * width + ch]


@jit
def drive_gradient_block(
    gu: F32,
    later: F32,
    par: F32,
    gi: F32,
    gi_half: U16,
    start: np.uint64,
    rows: np.uint64,
    k: int,
    init: bool,
    half: bool,
    drive: int,
    held: F32,
) -> None:
    """Turn ``gu``, the gradients of the potentials, into those of the currents; ``held`` is scratch."""
    width, size = np.uint64(k), rows * np.uint64(k)
    for row in range(rows):
        base = row * width
        for ch in range(width):
            g = later[base + ch] if drive == DELAYED else gu[base + ch]
            gu[base + ch] = par[np.uint64(4) * width + ch] * g
    if drive != SCALED:
        if init:
            held[:] = np.float32(0)
        else:
            load_block(gi, gi_half, half, start, size, held)
        for row in range(rows):
            base = row * width
            for ch in range(width):
                gu[base + ch] = gu[base + ch] + par[np.uint64(7) * width + ch] * held[base + ch]
    if half:
        for i in range(size):
            gu[i] = round_half(gu[i])
    if drive != SCALED:
        store_block(gu, start, size, half, gi, gi_half)


@jit
def exponential(v: np.float32) -> np.float32:
    """Return e**v, bit for bit as :func:`h2learn.backends.h2learn.numerics.exp`."""
    if v <= np.float32(-87.3):
        return np.float32(0)
    if v >= np.float32(88.7):
        return np.float32(np.inf)
    if v != v:
        return v
    n = np.floor(v * np.float32(1.44269504088896341) + np.float32(0.5))
    r = v - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    y = EXP_0
    y = y * r + EXP_1
    y = y * r + EXP_2
    y = y * r + EXP_3
    y = y * r + EXP_4
    y = y * r + EXP_5
    y = y * (r * r) + r + np.float32(1)
    half = np.floor(n * np.float32(0.5))
    return y * power_of_two(half) * power_of_two(n - half)


@jit
def power_of_two(n: np.float32) -> np.float32:
    """Return 2**n for a whole ``n``."""
    return float_of(np.uint32((np.int32(n) + np.int32(127)) << np.int32(23)))


@jit
def spikes_in(u: np.float32, theta: np.float32, most: np.float32) -> np.float32:
    """Return how often the threshold goes into a potential, at most ``most`` times (0: any number)."""
    ratio = u / theta
    count = np.float32(0)
    if ratio >= np.float32(1):
        count = np.float32(np.floor(ratio))
    if (most != np.float32(0)) & (count > most):
        count = most
    return count


@jit
def count_block(u: F32, theta: F32, most: np.float32, size: np.uint64, count: F32) -> None:
    """``count[i]`` = spikes of potential ``u[i]``."""
    for i in range(size):
        count[i] = spikes_in(u[i], theta[i], most)


@jit
def distance_block(u: F32, theta: F32, periodic: bool, size: np.uint64, distance: F32) -> None:
    """``distance[i]`` = how far ``u[i]`` is from its threshold, or twice that from the multiples above it."""
    for i in range(size):
        distance[i] = abs(u[i] - theta[i])
    if periodic:
        for i in range(size):
            turn = u[i] / theta[i] - np.float32(0.5)
            inside = abs((turn - np.float32(np.floor(turn))) * np.float32(2) - np.float32(1))
            distance[i] = distance[i] if u[i] < theta[i] else theta[i] * inside


@jit
def integrate(
    acc: F32,
    par: F32,
    us: F32,
    us_half: U16,
    ss: U8,
    so: U8,
    numbers: F32,
    numbers_half: U16,
    uo: F32,
    uo_half: U16,
    mo: U8,
    cs: F32,
    cs_half: U16,
    slots: U64,
    slot_words: int,
    ublk: int,
    k: int,
    flags: tuple[bool, bool, bool, bool, bool, bool, bool, bool, bool, bool, int, bool, bool, bool],
    width: np.float32,
    most: np.float32,
    lowest: np.float32,
    work: I64,
    low: int,
    high: int,
) -> None:
    """One neuron step for the positions ``low .. high-1``; ``work`` += (spikes, in the window, non-finite membranes).

    ``flags``: init, half, hard, soft, soft-delayed (with hard: hard-delayed), greater-or-equal, never, save_u, save_m,
    windowed, drive (:data:`PLAIN`, :data:`SCALED`, :data:`SYNAPSE`, :data:`DELAYED`), counted, bounded and periodic.
    Counted spikes, at most ``most``, go to ``numbers`` instead of ``so``; bounded potentials are not below ``lowest``
    after the reset. Where ``ublk`` is not 0, ``slots`` of as many channels take the potentials inside the window.
    """
    init, half, hard, soft, late, inclusive, never, save_u, save_m, windowed, drive, counted, bounded, periodic = flags
    rows = min(block_rows(k), max(1, high - low))
    bias, alpha = tile_row(par, 0, k, rows), tile_row(par, 1, k, rows)
    theta, v_reset = tile_row(par, 2, k, rows), tile_row(par, 3, k, rows)
    u = np.zeros(rows * k, np.float32)
    extra = rows if drive != PLAIN else 0
    x, initial = np.empty(extra * k, np.float32), tile_row(par, 6, k, extra)
    spikes, mask = lanes_for(rows, k), lanes_for(rows, k)
    resets = not never and not init and (hard or soft or late)
    count = np.zeros(rows * k if counted else 0, np.float32)
    masks = save_m or ublk > 0
    distance = np.zeros(rows * k if periodic and masks else 0, np.float32)
    fired = passed = broken = np.uint32(0)
    for first in range(low, high, rows):
        here = np.uint64(min(rows, high - first))
        start, size = np.uint64(first) * np.uint64(k), here * np.uint64(k)
        if init and drive == PLAIN:
            u[:] = np.float32(0)
        elif init:
            u[:] = initial
        else:
            load_block(us, us_half, half, start, size, u)
        if resets and counted:
            count_block(u, theta, most, size, count)
            for i in range(size):
                spikes[i] = np.uint8(count[i] != np.float32(0))
            if not late:
                for i in range(size):
                    after = v_reset[i] if hard else u[i] - theta[i] * count[i]
                    u[i] = after if spikes[i] else u[i]
        elif resets:
            unpack(ss, np.uint64(first), here, np.uint64(k), spikes)
        if resets and not late and not counted:
            for i in range(size):
                after = v_reset[i] if hard else u[i] - theta[i]
                u[i] = after if spikes[i] else u[i]
        if bounded and not init:
            for i in range(size):
                u[i] = lowest if u[i] < lowest else u[i]
        if drive == PLAIN and not (resets and late):
            for i in range(size):
                u[i] = alpha[i] * u[i] + (acc[start + i] + bias[i])
        else:
            for i in range(size):
                u[i] = alpha[i] * u[i]
            if resets and late and counted and not hard:
                for i in range(size):
                    u[i] = u[i] - theta[i] * count[i] if spikes[i] else u[i]
            elif resets and late and not hard:
                for i in range(size):
                    u[i] = u[i] - theta[i] if spikes[i] else u[i]
            if drive == PLAIN:
                for i in range(size):
                    u[i] = u[i] + (acc[start + i] + bias[i])
            else:
                drive_block(acc, par, cs, cs_half, start, here, k, init, half, drive, x)
                for i in range(size):
                    u[i] = u[i] + x[i]
            if resets and hard and late:
                for i in range(size):
                    u[i] = v_reset[i] if spikes[i] else u[i]
        if half:
            for i in range(size):
                u[i] = round_half(u[i])
        for i in range(size):
            broken += np.uint32((bits_of(u[i]) & EXPONENT) == EXPONENT)
        store_block(u, start, size, half, us, us_half)
        if save_u:
            store_block(u, start, size, half, uo, uo_half)
        if never:
            if masks:
                mask[:] = np.uint8(1)
        else:
            if counted:
                count_block(u, theta, most, size, count)
                for i in range(size):
                    fired += np.uint32(count[i] != np.float32(0))
                store_block(count, start, size, half, numbers, numbers_half)
            else:
                for i in range(size):
                    spikes[i] = np.uint8((u[i] > theta[i]) | (inclusive & (u[i] == theta[i])))
                    fired += np.uint32(spikes[i])
                pack(spikes, ss, np.uint64(first), here, np.uint64(k))
                pack(spikes, so, np.uint64(first), here, np.uint64(k))
            if masks and windowed and periodic:
                distance_block(u, theta, periodic, size, distance)
                for i in range(size):
                    mask[i] = np.uint8(distance[i] < width)
            elif masks and windowed:
                for i in range(size):
                    mask[i] = np.uint8(abs(u[i] - theta[i]) < width)
            elif masks:
                mask[:] = np.uint8(1)
        if ublk > 0:
            encode_where(mask, u, slots, slot_words, half, first, np.int64(here), k, ublk)
        if masks:
            for i in range(size):
                passed += np.uint32(mask[i])
        if save_m:
            pack(mask, mo, np.uint64(first), here, np.uint64(k))
    work[0] += np.int64(fired)
    work[1] += np.int64(passed)
    work[2] += np.int64(broken)


@jit
def differentiate(
    gs: F32,
    us: F32,
    us_half: U16,
    window: U8,
    inside: U64,
    inside_words: int,
    ublk: int,
    ss: U8,
    par: F32,
    gc: F32,
    gc_half: U16,
    gi: F32,
    gi_half: U16,
    slots: U64,
    slot_words: int,
    gblk: int,
    k: int,
    flags: tuple[bool, bool, bool, bool, bool, bool, bool, int, int, bool, bool, bool],
    width: np.float32,
    height: np.float32,
    most: np.float32,
    lowest: np.float32,
    work: I64,
    low: int,
    high: int,
) -> None:
    """One step backwards for the positions ``low .. high-1``; ``work`` += live gradients, non-finite ones, potentials.

    ``flags``: init, half, hard, soft, soft-delayed, never, detach, the surrogate (:data:`RECTANGULAR` and on), the
    drive (:data:`PLAIN` and on), counted, bounded and periodic, as in :func:`integrate`. With the surrogate
    :data:`WINDOW` bits stand in ``window`` instead of potentials; where ``ublk`` is not 0, those inside the window
    stand in the slots ``inside`` of as many channels.
    """
    init, half, hard, soft, late, never, detach, surrogate, drive, counted, bounded, periodic = flags
    rows = min(block_rows(k), max(1, high - low))
    alpha, theta, v_reset = tile_row(par, 1, k, rows), tile_row(par, 2, k, rows), tile_row(par, 3, k, rows)
    gn, u, gu = np.zeros(rows * k, np.float32), np.zeros(rows * k, np.float32), np.zeros(rows * k, np.float32)
    later = np.zeros(rows * k if drive == DELAYED else 0, np.float32)
    distance = np.zeros(rows * k, np.float32)
    spikes = lanes_for(rows, k)
    broken = np.uint32(0)
    live = 0
    zero, one = np.float32(0), np.float32(1)
    for first in range(low, high, rows):
        here = np.uint64(min(rows, high - first))
        start, size = np.uint64(first) * np.uint64(k), here * np.uint64(k)
        if not init:
            load_block(gc, gc_half, half, start, size, gn)
        if drive == DELAYED:
            later[:] = gn
        if never:
            for i in range(size):
                gu[i] = gs[start + i] + alpha[i] * gn[i]
        else:
            if ublk > 0:
                work[2] += decode_where(inside, inside_words, half, first, np.int64(here), k, ublk, u)
            elif surrogate != WINDOW:
                load_block(us, us_half, half, start, size, u)
            if surrogate != WINDOW:
                distance_block(u, theta, periodic, size, distance)
            if detach or not (hard or soft or late):
                for i in range(size):
                    gu[i] = gs[start + i]
            elif late:
                for i in range(size):
                    gu[i] = gs[start + i] - theta[i] * gn[i]
            elif hard:
                for i in range(size):
                    gu[i] = gs[start + i] - (alpha[i] * (u[i] - v_reset[i])) * gn[i]
            else:
                for i in range(size):
                    gu[i] = gs[start + i] - (alpha[i] * theta[i]) * gn[i]
            for i in range(size):
                gn[i] = alpha[i] * gn[i]
            if (hard or bounded) and not counted:
                unpack(ss, np.uint64(first), here, np.uint64(k), spikes)
            elif hard or bounded:
                for i in range(size):
                    spikes[i] = np.uint8(spikes_in(u[i], theta[i], most) != zero)
            if hard:
                for i in range(size):
                    gn[i] = zero if spikes[i] else gn[i]
            if bounded:
                for i in range(size):
                    after = u[i]
                    if hard:
                        after = v_reset[i] if spikes[i] else after
                    elif soft and counted:
                        after = after - theta[i] * spikes_in(u[i], theta[i], most) if spikes[i] else after
                    elif soft:
                        after = after - theta[i] if spikes[i] else after
                    free = after > lowest
                    gn[i] = gn[i] if free else zero
                    gu[i] = gu[i] if free | late else gs[start + i]
            if surrogate == TRIANGULAR:
                for i in range(size):
                    slope = height * (one - distance[i] / width) if distance[i] < width else zero
                    gu[i] = slope * gu[i] + gn[i] if slope != zero else gn[i]
            elif surrogate == ATAN:
                for i in range(size):
                    z = distance[i] / width
                    slope = height / (one + z * z)
                    gu[i] = slope * gu[i] + gn[i] if slope != zero else gn[i]
            elif surrogate == SIGMOID:
                peak = np.float32(4) * height
                for i in range(size):
                    e = exponential(-(distance[i] / width))
                    q = one + e
                    slope = peak * (e / (q * q))
                    gu[i] = slope * gu[i] + gn[i] if slope != zero else gn[i]
            elif surrogate == FAST_SIGMOID:
                for i in range(size):
                    q = one + distance[i] / width
                    slope = height / (q * q)
                    gu[i] = slope * gu[i] + gn[i] if slope != zero else gn[i]
            elif (surrogate == EXPONENTIAL) | (surrogate == GAUSSIAN):
                squared = surrogate == GAUSSIAN
                for i in range(size):
                    z = distance[i] / width
                    slope = height * exponential(-(z * z) if squared else -z)
                    gu[i] = slope * gu[i] + gn[i] if slope != zero else gn[i]
            elif surrogate == WINDOW:
                flat = height != zero
                unpack(window, np.uint64(first), here, np.uint64(k), spikes)
                for i in range(size):
                    gu[i] = height * gu[i] + gn[i] if (spikes[i] != np.uint8(0)) & flat else gn[i]
            else:
                flat = height != zero
                for i in range(size):
                    near = (distance[i] < width) & flat
                    gu[i] = height * gu[i] + gn[i] if near else gn[i]
        if half:
            for i in range(size):
                gu[i] = round_half(gu[i])
        store_block(gu, start, size, half, gc, gc_half)
        if drive != PLAIN:
            drive_gradient_block(gu, later, par, gi, gi_half, start, here, k, init, half, drive, gn)
        for i in range(size):
            broken += np.uint32((bits_of(gu[i]) & EXPONENT) == EXPONENT)
        live += encode(gu, slots, slot_words, half, first, np.int64(here), k, gblk)
    work[0] += live
    work[1] += np.int64(broken)


@jit
def densify(channels: U32, values: F32, counts: U32, k: int, dense: F32, low: int, high: int) -> None:
    """``dense[position][ch]`` = the listed values, +0 elsewhere, for the positions ``low .. high-1``."""
    width = np.uint64(k)
    for position in range(np.uint64(low), np.uint64(high)):
        row = position * width
        for j in range(width):
            dense[row + j] = np.float32(0)
        for i in range(np.uint64(counts[position])):
            dense[row + np.uint64(channels[row + i])] = values[row + i]


@jit
def accumulate_slots(
    acc: F32,
    slots: U64,
    slot_words: int,
    half: bool,
    acc_rows: int,
    steps: int,
    k: int,
    gblk: int,
    descending: bool,
    work: I64,
    low: int,
    high: int,
) -> None:
    """``acc[row] += live gradients of [step][row]`` for the rows ``low .. high-1``; ``work`` += live gradients."""
    narrow_values, wide_values = slots.view(np.uint16), slots.view(np.float32)
    width, block_channels, words = np.uint64(k), np.uint64(gblk), np.uint64(slot_words)
    blocks = (width + block_channels - np.uint64(1)) // block_channels
    total = np.uint64(0)
    for step in range(steps):
        here = steps - 1 - step if descending else step
        for row in range(low, high):
            for block in range(blocks):
                first = block * block_channels
                slot = (np.uint64(here * acc_rows + row) * blocks + block) * words
                bitmap = live_bits(slots[slot], min(block_channels, width - first))
                start = np.uint64(row) * width + first
                source = (slot + np.uint64(1)) * (np.uint64(4) if half else np.uint64(2))
                total += population(bitmap)
                while bitmap:
                    value = half_value(narrow_values[source]) if half else wide_values[source]
                    target = start + lowest(bitmap)
                    acc[target] = acc[target] + value
                    bitmap &= bitmap - np.uint64(1)
                    source += np.uint64(1)
    work[0] += np.int64(total)


@jit
def philox(c0: np.uint32, c1: np.uint32, c2: np.uint32, c3: np.uint32, k0: np.uint32, k1: np.uint32) -> np.uint32:
    """Return the first word of Philox4x32-10 (Salmon et al., SC'11)."""
    for _ in range(10):
        p0 = np.uint64(c0) * np.uint64(0xD2511F53)
        p1 = np.uint64(c2) * np.uint64(0xCD9E8D57)
        c0 = np.uint32(p1 >> np.uint64(32)) ^ c1 ^ k0
        c2 = np.uint32(p0 >> np.uint64(32)) ^ c3 ^ k1
        c1, c3 = np.uint32(p1), np.uint32(p0)
        k0 = np.uint32(k0 + np.uint32(0x9E3779B9))
        k1 = np.uint32(k1 + np.uint32(0xBB67AE85))
    return c0


@jit
def uniform(key: Pair, stream: int, sample: np.uint32, neuron: np.uint64, tick: int) -> np.float32:
    """Return a random number from 0 to below 1; ``key`` holds the halves of the seed."""
    bits = philox(np.uint32(neuron), np.uint32(tick), sample, np.uint32(stream), np.uint32(key[0]), np.uint32(key[1]))
    return np.float32(bits >> np.uint32(8)) * np.float32(2.0**-24)


@jit
def bernoulli(
    rates: F32,
    dst: U8,
    steps: int,
    k: int,
    key: Pair,
    stream: int,
    sample: int,
    neuron: int,
    tick: int,
    work: I64,
    low: int,
    high: int,
) -> None:
    """Draw spikes for the rows ``low .. high-1``, ``steps`` of each sample; ``work`` += spikes."""
    width = np.uint64(k)
    lanes = lanes_for(1, k)
    fired = np.uint64(0)
    for position in range(np.uint64(low), np.uint64(high)):
        word = np.uint32(np.uint64(sample) + position // np.uint64(steps))
        start = np.uint64(neuron) + position % np.uint64(steps) * width
        for ch in range(width):
            drawn = uniform(key, stream, word, start + ch, tick)
            lanes[ch] = np.uint8(drawn < rates[position * width + ch])
            fired += np.uint64(lanes[ch])
        pack(lanes, dst, position, np.uint64(1), width)
    work[0] += np.int64(fired)


@jit
def drop(
    values: F32,
    dst: F32,
    share: np.float32,
    factor: np.float32,
    steps: int,
    k: int,
    key: Pair,
    stream: int,
    sample: int,
    neuron: int,
    tick: int,
    low: int,
    high: int,
) -> None:
    """Scale the values of the rows ``low .. high-1`` whose random number lies below ``share``, clear the others."""
    width = np.uint64(k)
    for position in range(np.uint64(low), np.uint64(high)):
        word = np.uint32(np.uint64(sample) + position // np.uint64(steps))
        start = np.uint64(neuron) + position % np.uint64(steps) * width
        for ch in range(width):
            drawn = uniform(key, stream, word, start + ch, tick)
            at = position * width + ch
            dst[at] = values[at] * factor if drawn < share else np.float32(0)


HARD, SOFT, SOFT_DELAYED = 0, 1, 3
"""Numbers of the resets in the neuron descriptor."""


@jit
def tune(g: F32, later: F32, u: F32, s: U8, par: F32, n: int, k: int, reset: int, dst: F32) -> None:
    """Add the gradients of decay and threshold of ``n`` positions to the two rows of ``dst``."""
    width, zero = np.uint64(k), np.float32(0)
    packed = (width + np.uint64(7)) // np.uint64(8)
    for position in range(np.uint64(n)):
        for ch in range(width):
            at = position * width + ch
            fired = (s[position * packed + ch // np.uint64(8)] >> np.uint8(ch % np.uint64(8))) & np.uint8(1)
            rest, passed, taken = u[at], par[width + ch] * later[at], zero
            if fired:
                if reset == HARD:
                    rest, passed = par[np.uint64(3) * width + ch], zero
                elif reset == SOFT:
                    rest, passed = rest - par[np.uint64(2) * width + ch], zero
                elif reset == SOFT_DELAYED:
                    taken = later[at]
            if later[at] != zero:
                dst[ch] = dst[ch] + later[at] * rest
            dst[width + ch] = dst[width + ch] + ((passed - g[at]) - taken)


@jit
def descend(
    p: F32,
    g: F32,
    mom: F32,
    w: U16,
    rate: np.float32,
    momentum: np.float32,
    factor: np.float32,
    decay: np.float32,
    nesterov: bool,
    half: bool,
) -> None:
    """Stochastic gradient descent with momentum (0: without, ``mom`` untouched); ``w`` = st(p) when ``half``."""
    size = np.uint64(p.size)
    for i in range(size):
        step = g[i] * factor
        if decay != np.float32(0):
            step = step + decay * p[i]
        if momentum != np.float32(0):
            mom[i] = momentum * mom[i] + step
            step = step + momentum * mom[i] if nesterov else mom[i]
        p[i] = p[i] - rate * step
    if half:
        for i in range(size):
            w[i] = half_bits(p[i])


@jit
def adapt(
    p: F32,
    g: F32,
    mean: F32,
    square: F32,
    w: U16,
    factor: np.float32,
    kept: np.float32,
    decay: np.float32,
    shares: Shares,
    rate: np.float32,
    root: np.float32,
    eps: np.float32,
    half: bool,
) -> None:
    """Adam on ``kept * p``: ``shares`` of the new gradient, the new and the old square; ``w`` = st(p) when ``half``.

    ``rate`` is the learning rate over the correction of the mean, ``root`` the root of that of the square.
    """
    size = np.uint64(p.size)
    for i in range(size):
        before = p[i] * kept
        step = g[i] * factor
        if decay != np.float32(0):
            step = step + decay * before
        mean[i] = mean[i] + shares[0] * (step - mean[i])
        square[i] = shares[2] * square[i] + (shares[1] * step) * step
        p[i] = before - rate * mean[i] / (np.sqrt(square[i]) / root + eps)
    if half:
        for i in range(size):
            w[i] = half_bits(p[i])


@jit
def sum_norm(x: F32, g: F32, par: F32, shape: Triple, k: int, valid: int, kind: int, total: F32) -> None:
    """Add up ``x + bias`` (kind 0), its squares about the mean (1), or ``g`` and ``g * normalised`` (2) per channel.

    ``shape``: steps, samples, positions; only the first ``valid`` samples count.
    """
    width, zero = np.uint64(k), np.float32(0)
    for t in range(shape[0]):
        for i in range(valid):
            first = np.uint64(t * shape[1] + i) * np.uint64(shape[2])
            for position in range(np.uint64(shape[2])):
                at = (first + position) * width
                for ch in range(width):
                    value = x[at + ch] + par[ch]
                    if kind == 0:
                        total[ch] = total[ch] + value
                        continue
                    away = value - par[width + ch]
                    if kind == 1:
                        total[ch] = total[ch] + away * away
                    elif g[at + ch] != zero:
                        total[ch] = total[ch] + g[at + ch]
                        normal = away * par[np.uint64(2) * width + ch]
                        total[width + ch] = total[width + ch] + g[at + ch] * normal


@jit
def normalise(x: F32, par: F32, k: int, dst: F32, low: int, high: int) -> None:
    """Batch normalisation of the positions ``low .. high-1`` with the rows bias, mean, 1/deviation, weight, shift."""
    width = np.uint64(k)
    for position in range(np.uint64(low), np.uint64(high)):
        at = position * width
        for ch in range(width):
            away = (x[at + ch] + par[ch]) - par[width + ch]
            normal = away * par[np.uint64(2) * width + ch]
            dst[at + ch] = normal * par[np.uint64(3) * width + ch] + par[np.uint64(4) * width + ch]


@jit
def denormalise(
    x: F32,
    g: F32,
    par: F32,
    k: int,
    count: np.float32,
    shape: Triple,
    valid: int,
    dst: F32,
    low: int,
    high: int,
) -> None:
    """Gradient of ``normalise`` through the statistics; rows 4 and 5 are the sums of ``g`` and ``g * normalised``."""
    width, positions, samples = np.uint64(k), np.uint64(shape[2]), np.uint64(shape[1])
    for position in range(np.uint64(low), np.uint64(high)):
        at = position * width
        absent = position // positions % samples >= np.uint64(valid)
        for ch in range(width):
            inverse = par[np.uint64(2) * width + ch]
            normal = ((x[at + ch] + par[ch]) - par[width + ch]) * inverse
            inner = g[at + ch] - par[np.uint64(4) * width + ch] / count
            inner = inner - normal * (par[np.uint64(5) * width + ch] / count)
            value = (par[np.uint64(3) * width + ch] * inverse) * inner
            dst[at + ch] = np.float32(0) if absent else value
