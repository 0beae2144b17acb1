"""Kernels of the three convolution engines.

Every kernel first turns its sparse operand into lists of live entries per position, then sums whole rows of the dense
operand in the contract's order (``rows.py``). Position ranges ``[low, high)`` and row units are independent of each
other, so callers may give disjoint ranges to different threads.

``row_of`` is ``[rows of positions][kh]``, ``column_of`` ``[columns of positions][kw]``: the input row or column that a
tap reads, or -1 for none. ``shape`` is (input rows, input columns, position rows, position columns, kh, kw).
"""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..jit import jit
from ..native import word_at
from .bits import (
    EXPONENT,
    F32,
    I64,
    U8,
    U16,
    U32,
    U64,
    bits_of,
    last_byte_mask,
    live_bits,
    lowest,
    population,
    round_half,
)
from .rows import (
    FOUR,
    LANES,
    add_four,
    add_four_products,
    add_pair,
    add_products,
    add_row,
    add_rows,
    append,
    transpose_square,
)

I32 = npt.NDArray[np.int32]
_NIBBLES = np.uint64(0x1111111111111111)
Shape = tuple[int, int, int, int, int, int]


@jit
def fill_tables(weights: F32, tables: F32, c: int, k: int, fan: int, half: bool, low: int, high: int) -> int:
    """``tables[unit][p]`` = sum of the weights of the channels in ``p``, for some units of (tap, group).

    Rounded at every step when ``half``; returns how many entries are not finite.
    """
    width, inputs, size = np.uint64(k), np.uint64(c), np.uint64(1) << np.uint64(fan)
    groups = (inputs + np.uint64(fan) - np.uint64(1)) // np.uint64(fan)
    broken = np.uint32(0)
    for unit in range(np.uint64(low), np.uint64(high)):
        tap, group, base = unit // groups, unit % groups, unit * size
        for j in range(width):
            tables[base * width + j] = np.float32(0)
        for p in range(np.uint64(1), size):
            bit = population((p & (~p + np.uint64(1))) - np.uint64(1))
            channel = group * np.uint64(fan) + bit
            target = (base + p) * width
            source = (base + (p & (p - np.uint64(1)))) * width
            row = (tap * inputs + channel) * width
            if channel < inputs:
                add_pair(tables, target, tables, source, weights, row, width)
            else:
                for j in range(width):
                    tables[target + j] = tables[source + j] + np.float32(0)
            if half:
                for j in range(width):
                    tables[target + j] = round_half(tables[target + j])
        for j in range(base * width, (base + size) * width):
            broken += np.uint32((bits_of(tables[j]) & EXPONENT) == EXPONENT)
    return np.int64(broken)


@jit
def append_nibbles(word: np.uint64, first: np.uint64, k: np.uint64, rows: U32, at: np.uint64) -> np.uint64:
    """Append the table rows of the patterns of 4 bits in a word that are not 0, from ``at`` on; returns the end.

    ``first`` is the row of pattern 0 of the lowest four bits; a group has 16 rows of ``k`` elements.
    """
    live = (word | (word >> np.uint64(1)) | (word >> np.uint64(2)) | (word >> np.uint64(3))) & _NIBBLES
    while live:
        bit = lowest(live)
        live &= live - np.uint64(1)
        rows[at] = np.uint32(first + (bit << np.uint64(2)) + ((word >> bit) & np.uint64(15))) * np.uint32(k)
        at += np.uint64(1)
    return at


@jit
def list_nibbles(spikes: U8, c: int, k: int, rows: U32, counts: U32, spike_counts: U32, low: int, high: int) -> None:
    """``list_patterns`` for a fan-in of 4: 64 channels at a time, words without a spike passed over."""
    inputs, width = np.uint64(c), np.uint64(k)
    groups, row_bytes = (inputs + np.uint64(3)) >> np.uint64(2), (inputs + np.uint64(7)) >> np.uint64(3)
    for position in range(np.uint64(low), np.uint64(high)):
        n = start = position * groups
        found = np.uint64(0)
        for first in range(np.uint64(0), inputs, np.uint64(64)):
            word = spike_word(spikes, position * row_bytes, first >> np.uint64(3), row_bytes)
            word = live_bits(word, inputs - first)
            if word:
                n = append_nibbles(word, first << np.uint64(2), width, rows, n)
                found += population(word)
        counts[position] = np.uint32(n - start)
        spike_counts[position] = np.uint32(found)


@jit
def spike_word(spikes: U8, row: np.uint64, byte: np.uint64, row_bytes: np.uint64) -> np.uint64:
    """Return the eight bytes from ``byte`` on of the packed row that begins at ``row``; what is behind it is any."""
    place = row + byte
    if place + np.uint64(8) <= np.uint64(spikes.size):
        return word_at(spikes.ctypes.data + np.int64(place))
    word = np.uint64(0)
    for i in range(min(np.uint64(8), row_bytes - byte)):
        word |= np.uint64(spikes[place + i]) << (i << np.uint64(3))
    return word


@jit
def list_patterns(
    spikes: U8, c: int, k: int, fan: int, rows: U32, counts: U32, spike_counts: U32, low: int, high: int
) -> None:
    """List the non-zero patterns of every position: ``rows[position][i]`` = (group * 2^fan + pattern) * k."""
    if fan == 4:
        list_nibbles(spikes, c, k, rows, counts, spike_counts, low, high)
        return
    bits, inputs = np.uint64(fan), np.uint64(c)
    groups = (inputs + bits - np.uint64(1)) // bits
    row_bytes = (inputs + np.uint64(7)) >> np.uint64(3)
    all_ones = (np.uint64(1) << bits) - np.uint64(1)
    last_ones = (np.uint64(1) << (inputs - (groups - np.uint64(1)) * bits)) - np.uint64(1)
    for position in range(np.uint64(low), np.uint64(high)):
        base, start = position * row_bytes, position * groups
        n = found = np.uint64(0)
        for group in range(groups):
            bit = group * bits
            byte = bit >> np.uint64(3)
            window = np.uint64(spikes[base + byte])
            if byte + np.uint64(1) < row_bytes:
                window |= np.uint64(spikes[base + byte + np.uint64(1)]) << np.uint64(8)
            ones = last_ones if group + np.uint64(1) == groups else all_ones
            pattern = (window >> (bit & np.uint64(7))) & ones
            rows[start + n] = np.uint32(((group << bits) | pattern) * np.uint64(k))
            n += np.uint64(pattern != np.uint64(0))
            found += population(pattern)
        counts[position] = np.uint32(n)
        spike_counts[position] = np.uint32(found)


@jit
def list_reals(x: F32, c: int, k: int, rows: U32, values: F32, counts: U32, low: int, high: int) -> None:
    """List the non-zero inputs of every position: ``rows`` (channel * k) and ``values`` are ``[position][c]``."""
    width = np.uint64(c)
    for position in range(np.uint64(low), np.uint64(high)):
        row = position * width
        n = np.uint64(0)
        for ch in range(width):
            value = x[row + ch]
            rows[row + n] = np.uint32(ch * np.uint64(k))
            values[row + n] = value
            n += np.uint64(value != np.float32(0))
        counts[position] = np.uint32(n)


@jit
def sum_tables(
    acc: F32,
    init: bool,
    tables: F32,
    rows: U32,
    counts: U32,
    spike_counts: U32,
    row_of: I32,
    column_of: I32,
    shape: Shape,
    groups: int,
    tap_rows: int,
    k: int,
    work: I64,
    low: int,
    high: int,
) -> None:
    """``acc[position] += tables[tap][row]`` over taps and listed rows; ``work`` += (look-ups that add, spikes)."""
    in_rows, in_columns, oh, ow, kh, kw = shape
    width, per_position = np.uint64(k), np.uint64(groups)
    room = np.uint64(kh * kw * groups + LANES)
    together = FOUR if k <= 2 * LANES else 1
    offsets = np.empty(room * np.uint64(together), np.uint32)
    starts, lengths = np.zeros(FOUR, np.uint64), np.zeros(FOUR, np.uint64)
    adds = spikes = gathered = np.uint64(0)
    image, oy, ox = low // (oh * ow), (low // ow) % oh, low % ow
    for position in range(low, high):
        start = np.uint64(position) * width
        if init:
            for j in range(width):
                acc[start + j] = np.float32(0)
        list_start = n = gathered * room
        tap_start = np.uint64(0)
        for ky in range(kh):
            row = (image * in_rows + row_of[np.uint64(oy * kh + ky)]) * in_columns
            for kx in range(kw):
                source = np.uint64(row + column_of[np.uint64(ox * kw + kx)])
                count = np.uint64(counts[source])
                append(offsets, n, rows, source * per_position, count, tap_start)
                n += count
                spikes += np.uint64(spike_counts[source])
                tap_start += np.uint64(tap_rows) * width
        starts[gathered], lengths[gathered] = start, n - list_start
        adds += n - list_start
        gathered += np.uint64(1)
        if gathered == np.uint64(together):
            if gathered == np.uint64(1):
                add_rows(acc, start, tables, offsets, np.uint64(0), n, width)
            else:
                add_four(acc, starts, tables, offsets, room, lengths, width)
            gathered = np.uint64(0)
        ox += 1
        if ox == ow:
            ox, oy = 0, oy + 1
            if oy == oh:
                oy, image = 0, image + 1
    for i in range(gathered):
        add_rows(acc, starts[i], tables, offsets, i * room, lengths[i], width)
    work[0] += np.int64(adds)
    work[1] += np.int64(spikes)


@jit
def lane_time(counts: U32, row_of: I32, column_of: I32, shape: Shape, images: int, lanes: int, least: int) -> int:
    """Return when the last of ``lanes`` is done if each position goes to the one that is free first.

    A position takes as many cycles as its taps have listed entries, and at least ``least``.
    """
    in_rows, in_columns, oh, ow, kh, kw = shape
    free = np.zeros((1, lanes), np.int64)
    for image in range(images):
        for oy in range(oh):
            for ox in range(ow):
                cycles = 0
                for ky in range(kh):
                    row = (image * in_rows + row_of[oy * kh + ky]) * in_columns
                    for kx in range(kw):
                        cycles += np.int64(counts[row + column_of[ox * kw + kx]])
                hand_out(free, 0, max(cycles, least))
    return free.max()


@jit
def hand_out(free: I64, row: int, cycles: int) -> None:
    """Give work to the unit that is free first; ``free[row]`` is a heap of the times when units are free."""
    units = free.shape[1]
    until = free[row, 0] + cycles
    hole, child = 0, 1
    while child < units:
        if child + 1 < units and free[row, child + 1] < free[row, child]:
            child += 1
        if free[row, child] >= until:
            break
        free[row, hole] = free[row, child]
        hole, child = child, 2 * child + 1
    free[row, hole] = until


@jit
def transpose_weights(weights: F32, c: int, k: int, transposed: F32, low: int, high: int) -> None:
    """``transposed[tap][k][c] = weights[tap][c][k]`` for the units ``low .. high-1`` of (tap, 16 outputs)."""
    inputs, width, edge = np.uint64(c), np.uint64(k), np.uint64(LANES)
    strips = (width + edge - np.uint64(1)) // edge
    for unit in range(np.uint64(low), np.uint64(high)):
        base, first_out = unit // strips * inputs * width, unit % strips * edge
        whole = inputs & ~(edge - np.uint64(1)) if first_out + edge <= width else np.uint64(0)
        for first_in in range(np.uint64(0), whole, edge):
            at, to = base + first_in * width + first_out, base + first_out * inputs + first_in
            transpose_square(weights, at, width, transposed, to, inputs)
        for j in range(first_out, min(first_out + edge, width)):
            for i in range(whole, inputs):
                transposed[base + j * inputs + i] = weights[base + i * width + j]


@jit
def sum_products(
    acc: F32,
    init: bool,
    weights: F32,
    rows: U32,
    values: F32,
    counts: U32,
    row_of: I32,
    column_of: I32,
    shape: Shape,
    in_width: int,
    out_width: int,
    mask: U8,
    masked: bool,
    live: U32,
    dense: U32,
    outputs: U32,
    low: int,
    high: int,
) -> None:
    """``acc[position] += value * weights[tap][channel]`` over taps and listed inputs, +0 where the mask is 0.

    ``weights`` is ``[tap][in_width][out_width]``, ``rows`` lists channel * out_width. ``live``,
    ``dense`` and ``outputs`` receive per position the listed inputs, all inputs of the taps that exist, and the
    outputs that the mask lets through.
    """
    in_rows, in_columns, oh, ow, kh, kw = shape
    width, per_position = np.uint64(out_width), np.uint64(in_width)
    mask_bytes = (width + np.uint64(7)) >> np.uint64(3)
    last_mask = last_byte_mask(width)
    room = np.uint64(kh * kw * in_width + LANES)
    together = FOUR if out_width <= 2 * LANES else 1
    offsets = np.empty(room * np.uint64(together), np.uint32)
    factors = np.empty(room * np.uint64(together), np.float32)
    starts, lengths = np.zeros(FOUR, np.uint64), np.zeros(FOUR, np.uint64)
    gathered = np.uint64(0)
    image, oy, ox = low // (oh * ow), (low // ow) % oh, low % ow - 1
    for position in range(low, high):
        ox += 1
        if ox == ow:
            ox, oy = 0, oy + 1
            if oy == oh:
                oy, image = 0, image + 1
        start = np.uint64(position) * width
        mask_start = np.uint64(position) * mask_bytes
        alive = width
        if masked:
            alive = population(np.uint64(mask[mask_start + mask_bytes - np.uint64(1)] & last_mask))
            for byte in range(mask_bytes - np.uint64(1)):
                alive += population(np.uint64(mask[mask_start + byte]))
        if init or alive == np.uint64(0):
            for j in range(width):
                acc[start + j] = np.float32(0)
        list_start = n = gathered * room
        taps = 0
        for ky in range(kh):
            y = row_of[np.uint64(oy * kh + ky)]
            if y < 0:
                continue
            for kx in range(kw):
                x = column_of[np.uint64(ox * kw + kx)]
                if x < 0:
                    continue
                taps += 1
                source = np.uint64((image * in_rows + y) * in_columns + x)
                count = np.uint64(counts[source])
                if alive != np.uint64(0):
                    tap_start = np.uint64((ky * kw + kx) * in_width) * width
                    append(offsets, n, rows, source * per_position, count, tap_start)
                    append(factors, n, values, source * per_position, count, tap_start)
                n += count
        live[position] = np.uint32(n - list_start)
        dense[position] = np.uint32(taps * in_width)
        outputs[position] = np.uint32(alive)
        if alive == np.uint64(0):
            continue
        starts[gathered], lengths[gathered] = start, n - list_start
        gathered += np.uint64(1)
        if gathered < np.uint64(together):
            continue
        if gathered == np.uint64(1):
            add_products(acc, start, weights, offsets, factors, n, width)
        else:
            add_four_products(acc, starts, weights, offsets, factors, room, lengths, width)
        if masked:
            for i in range(gathered):
                clear_masked(acc, starts[i], mask, width)
        gathered = np.uint64(0)
    for i in range(gathered):
        first = i * room
        add_products(acc, starts[i], weights, offsets[first:], factors[first:], lengths[i], width)
        if masked:
            clear_masked(acc, starts[i], mask, width)


@jit
def clear_masked(acc: F32, start: np.uint64, mask: U8, width: np.uint64) -> None:
    """Set the row of ``acc`` at ``start`` to +0 where its row of ``mask`` has no bit."""
    mask_start = start // width * ((width + np.uint64(7)) >> np.uint64(3))
    for byte in range((width + np.uint64(7)) >> np.uint64(3)):
        bits = mask[mask_start + byte]
        if bits == np.uint8(255):
            continue
        first = byte << np.uint64(3)
        for j in range(min(np.uint64(8), width - first)):
            if not (bits >> np.uint8(j)) & np.uint8(1):
                acc[start + first + j] = np.float32(0)


@jit
def tally(
    live: U32,
    dense: U32,
    outputs: U32,
    width: int,
    lanes: int,
    units: int,
    room: int,
    buckets: U16,
    marks: U64,
    mode: int,
    work: I64,
) -> None:
    """Count the cycles of positions with ``live`` of ``dense`` inputs and live ``outputs`` out of ``width``.

    ``work``: in ``mode`` (dense, in, out, dual) products that are not skipped, cycles, and when the last of ``units``
    is done if each row of ``lanes`` outputs of a position goes to the one that is free first. ``buckets`` count the
    units that become free at a time, modulo ``room``, a power of two above the cycles of a row; ``marks`` has a bit
    for every bucket that is not empty. Both are all 0, before and after.
    """
    issue, whole, wrap = np.uint32(lanes), np.uint64((width + lanes - 1) // lanes), np.uint64(room - 1)
    by_inputs, by_outputs = mode & 1 != 0, mode & 2 != 0
    now = last = np.uint64(0)
    products = cycles = np.uint64(0)
    add_units(buckets, marks, now, np.uint64(units))
    position, size = np.uint64(0), np.uint64(live.size)
    while position < size:
        ins = np.uint64(live[position]) if by_inputs else np.uint64(dense[position])
        outs = rows = np.uint64(0)
        while True:  # positions with as many inputs are one piece of work
            outs += np.uint64(outputs[position]) if by_outputs else np.uint64(width)
            rows += np.uint64((outputs[position] + issue - np.uint32(1)) // issue) if by_outputs else whole
            position += np.uint64(1)
            if by_inputs or position == size or np.uint64(dense[position]) != ins:
                break
        if ins == np.uint64(0):
            continue
        products += ins * outs
        cycles += ins * rows
        while rows:
            now = first_free(marks, now, wrap)
            taken = take_units(buckets, marks, now & wrap, rows)
            add_units(buckets, marks, (now + ins) & wrap, taken)
            last = max(last, now + ins)
            rows -= taken
    left = np.uint64(units)
    while left:
        now = first_free(marks, now, wrap)
        left -= take_units(buckets, marks, now & wrap, left)
    work[0] += np.int64(products)
    work[1] += np.int64(cycles)
    work[2] += np.int64(last)


@jit
def count_products(live: U32, dense: U32, outputs: U32, width: int, totals: I64) -> None:
    """``totals`` += (live inputs, live outputs, live products, dense products) of positions; see ``tally``."""
    ins = outs = products = every = np.uint64(0)
    for position in range(np.uint64(live.size)):
        ins += np.uint64(live[position])
        outs += np.uint64(outputs[position])
        products += np.uint64(live[position]) * np.uint64(outputs[position])
        every += np.uint64(dense[position])
    totals[0] += np.int64(ins)
    totals[1] += np.int64(outs)
    totals[2] += np.int64(products)
    totals[3] += np.int64(every) * width


@jit
def add_units(buckets: U16, marks: U64, bucket: np.uint64, count: np.uint64) -> None:
    """Put units into a bucket."""
    buckets[bucket] += np.uint16(count)
    marks[bucket >> np.uint64(6)] |= np.uint64(1) << (bucket & np.uint64(63))


@jit
def take_units(buckets: U16, marks: U64, bucket: np.uint64, most: np.uint64) -> np.uint64:
    """Take up to ``most`` units out of a bucket that is not empty; returns how many."""
    taken = min(most, np.uint64(buckets[bucket]))
    left = buckets[bucket] - np.uint16(taken)
    buckets[bucket] = left
    if left == np.uint16(0):
        marks[bucket >> np.uint64(6)] &= ~(np.uint64(1) << (bucket & np.uint64(63)))
    return taken


@jit
def first_free(marks: U64, now: np.uint64, wrap: np.uint64) -> np.uint64:
    """Return the first time from ``now`` on whose bucket is not empty."""
    bucket = now & wrap
    word = marks[bucket >> np.uint64(6)] >> (bucket & np.uint64(63))
    if word == np.uint64(0):
        now += np.uint64(64) - (bucket & np.uint64(63))
        word = marks[(now & wrap) >> np.uint64(6)]
        while word == np.uint64(0):
            now += np.uint64(64)
            word = marks[(now & wrap) >> np.uint64(6)]
    return now + lowest(word)


@jit
def position_starts(shape: Shape, stride_down: int, stride_across: int, images: int, starts: U64) -> None:
    """``starts[position]`` = number of the input position that tap (0, 0) of the position reads."""
    in_rows, in_columns, oh, ow, _, _ = shape
    for image in range(images):
        for oy in range(oh):
            for ox in range(ow):
                source = (image * in_rows + oy * stride_down) * in_columns + ox * stride_across
                starts[(image * oh + oy) * ow + ox] = np.uint64(source)


@jit
def group_tables(
    channels: U32,
    values: F32,
    counts: U32,
    first_position: int,
    positions: int,
    k: int,
    fan: int,
    half: bool,
    tables: F32,
    start: np.uint64,
) -> None:
    """``tables[start:][p]`` = sum of the gradient rows of the ``positions`` (<= fan) in ``p``; the others are 0."""
    width = np.uint64(k)
    for j in range(width):
        tables[start + j] = np.float32(0)
    for bit in range(np.uint64(fan)):
        single = start + (np.uint64(1) << bit) * width
        for j in range(width):
            tables[single + j] = np.float32(0)
        if bit < np.uint64(positions):
            row = (np.uint64(first_position) + bit) * width
            for i in range(np.uint64(counts[np.uint64(first_position) + bit])):
                tables[single + np.uint64(channels[row + i])] = values[row + i] + np.float32(0)
    for p in range(np.uint64(3), np.uint64(1) << np.uint64(fan)):
        rest = p & (p - np.uint64(1))
        if rest == np.uint64(0):
            continue
        target = start + p * width
        add_pair(tables, target, tables, start + rest * width, tables, start + (p ^ rest) * width, width)
        if half:
            for j in range(width):
                tables[target + j] = round_half(tables[target + j])


@jit
def sum_groups(
    acc: F32,
    fresh: bool,
    spikes: U8,
    tables: F32,
    starts: U64,
    shape: Shape,
    c: int,
    k: int,
    fan: int,
    first_group: int,
    here: int,
    work: I64,
    low: int,
    high: int,
) -> None:
    """``acc[tap][c] += table of a group[pattern]`` for the units ``low .. high-1`` of (tap, 64 channels).

    Groups ``first_group .. first_group+here-1`` of ``fan`` consecutive positions, whose ``tables`` these are; sums are
    ``fresh`` where they begin with 0. ``work`` += (look-ups that add, spikes).
    """
    if fan == 4 and k <= 2 * LANES:
        sum_thin_groups(acc, fresh, spikes, tables, starts, shape, c, k, first_group, here, work, low, high)
        return
    _, in_columns, _, _, _, kw = shape
    width, inputs, size = np.uint64(k), np.uint64(c), np.uint64(1) << np.uint64(fan)
    words = (c + 63) // 64
    room, per_group = np.uint64(here + LANES), np.uint64(fan)
    offsets = np.empty(64 * (here + LANES), np.uint32)
    planes = np.empty(64 * fan, np.uint64)
    lengths = np.zeros(64, np.uint64)
    adds = found = np.uint64(0)
    for unit in range(low, high):
        tap, word = unit // words, np.uint64(unit % words)
        shift = np.uint64((tap // kw) * in_columns + tap % kw)
        channels = min(np.uint64(64), inputs - word * np.uint64(64))
        lengths[:] = np.uint64(0)
        for base in range(np.uint64(0), np.uint64(here), np.uint64(64)):
            groups = min(np.uint64(64), np.uint64(here) - base)
            spiked = read_planes(
                spikes, starts, shift, inputs, word, np.uint64(first_group) + base, groups, fan, planes
            )
            if spiked == np.uint64(0):
                continue
            found += spiked
            used = (groups + np.uint64(15)) >> np.uint64(4) if fan == 4 else per_group
            for i in range(used):
                transpose_words(planes[i * np.uint64(64) : (i + np.uint64(1)) * np.uint64(64)])
            for channel in range(channels):
                at = channel * room + lengths[channel]
                end = list_groups(planes, used, channel, per_group, base, size, width, offsets, at)
                lengths[channel] += end - at
        for channel in range(channels):
            row = (np.uint64(tap) * inputs + word * np.uint64(64) + channel) * width
            if fresh:
                for i in range(row, row + width):
                    acc[i] = np.float32(0)
            add_rows(acc, row, tables, offsets, channel * room, lengths[channel], width)
            adds += lengths[channel]
    work[0] += np.int64(adds)
    work[1] += np.int64(found)


@jit
def sum_thin_groups(
    acc: F32,
    fresh: bool,
    spikes: U8,
    tables: F32,
    starts: U64,
    shape: Shape,
    c: int,
    k: int,
    first_group: int,
    here: int,
    work: I64,
    low: int,
    high: int,
) -> None:
    """``sum_groups`` for groups of 4 positions and few columns: rows are added at once, group by group."""
    _, in_columns, _, _, _, kw = shape
    width, inputs, quarter = np.uint64(k), np.uint64(c), np.uint64(16)
    words = (c + 63) // 64
    planes, patterns = np.empty(4 * 64, np.uint64), np.empty(64, np.uint64)
    adds = found = np.uint64(0)
    for unit in range(low, high):
        tap, word = unit // words, np.uint64(unit % words)
        shift = np.uint64((tap // kw) * in_columns + tap % kw)
        channels = min(np.uint64(64), inputs - word * np.uint64(64))
        row = (np.uint64(tap) * inputs + word * np.uint64(64)) * width
        if fresh:
            for i in range(row, row + channels * width):
                acc[i] = np.float32(0)
        for base in range(np.uint64(0), np.uint64(here), np.uint64(64)):
            groups = min(np.uint64(64), np.uint64(here) - base)
            spiked = read_planes(spikes, starts, shift, inputs, word, np.uint64(first_group) + base, groups, 4, planes)
            if spiked == np.uint64(0):
                continue
            found += spiked
            for first in range(np.uint64(0), channels, quarter):
                gather_patterns(planes, first, patterns)
                for group in range(groups):
                    table, pattern = (base + group) << np.uint64(4), patterns[group]
                    live = pattern | (pattern >> np.uint64(1)) | (pattern >> np.uint64(2)) | (pattern >> np.uint64(3))
                    live &= _NIBBLES
                    while live:
                        bit = lowest(live)
                        live &= live - np.uint64(1)
                        target = row + (first + (bit >> np.uint64(2))) * width
                        source = (table + ((pattern >> bit) & np.uint64(15))) * width
                        add_row(acc, target, tables, source, width)
                        adds += np.uint64(1)
    work[0] += np.int64(adds)
    work[1] += np.int64(found)


@jit
def gather_patterns(planes: U64, first: np.uint64, patterns: U64) -> None:
    """``patterns[group]`` = the patterns of 4 bits of the channels ``first .. first+15`` at a group's four positions.

    ``planes[group][i]`` are the channels' bits at the i-th position. With p as the position's and c as the channel's
    number, the bits stand at 16p + c first and at 4c + p in the end; a step exchanges two bits of these places.
    """
    ones = np.uint64(0xFFFF)
    for group in range(np.uint64(64)):
        at = group * np.uint64(4)
        x = (planes[at] >> first) & ones
        x |= ((planes[at + np.uint64(1)] >> first) & ones) << np.uint64(16)
        x |= ((planes[at + np.uint64(2)] >> first) & ones) << np.uint64(32)
        x |= ((planes[at + np.uint64(3)] >> first) & ones) << np.uint64(48)
        t = ((x >> np.uint64(24)) ^ x) & np.uint64(0x00000000FF00FF00)
        x ^= t ^ (t << np.uint64(24))
        t = ((x >> np.uint64(12)) ^ x) & np.uint64(0x0000F0F00000F0F0)
        x ^= t ^ (t << np.uint64(12))
        t = ((x >> np.uint64(6)) ^ x) & np.uint64(0x00CC00CC00CC00CC)
        x ^= t ^ (t << np.uint64(6))
        t = ((x >> np.uint64(3)) ^ x) & np.uint64(0x0A0A0A0A0A0A0A0A)
        patterns[group] = x ^ t ^ (t << np.uint64(3))


@jit
def read_planes(
    spikes: U8,
    starts: U64,
    shift: np.uint64,
    inputs: np.uint64,
    word: np.uint64,
    first_group: np.uint64,
    groups: np.uint64,
    fan: int,
    planes: U64,
) -> np.uint64:
    """Read 64 channels' spikes at the positions of up to 64 groups, 0 where there is none; returns how many.

    ``planes[i][group]`` are those at the i-th position of a group; where a group has 4 positions, these follow each
    other: ``planes[group][i]``.
    """
    row_bytes, per_group = (inputs + np.uint64(7)) >> np.uint64(3), np.uint64(fan)
    to_group, to_next = (np.uint64(1), np.uint64(64)) if fan != 4 else (np.uint64(4), np.uint64(1))
    found = np.uint64(0)
    planes[:] = np.uint64(0)
    for group in range(groups):
        at = (first_group + group) * per_group
        for i in range(min(per_group, np.uint64(starts.size) - at)):
            row = (starts[at + i] + shift) * row_bytes
            value = live_bits(spike_word(spikes, row, word << np.uint64(3), row_bytes), inputs - (word << np.uint64(6)))
            planes[group * to_group + i * to_next] = value
            found += population(value)
    return found


@jit
def transpose_words(x: U64) -> None:
    """Transpose a 64x64 bit matrix: bit i of word j becomes bit j of word i (after Warren, Hacker's Delight, 7-3)."""
    half, mask = np.uint64(32), np.uint64(0x00000000FFFFFFFF)
    while half:
        for base in range(np.uint64(0), np.uint64(64), half * np.uint64(2)):
            for i in range(base, base + half):
                t = ((x[i] >> half) ^ x[i + half]) & mask
                x[i] ^= t << half
                x[i + half] ^= t
        half >>= np.uint64(1)
        mask ^= mask << half


@jit
def list_groups(
    planes: U64,
    used: np.uint64,
    channel: np.uint64,
    fan: np.uint64,
    base: np.uint64,
    size: np.uint64,
    width: np.uint64,
    offsets: U32,
    at: np.uint64,
) -> np.uint64:
    """Append the table rows of a channel's non-zero patterns to ``offsets`` from ``at`` on; returns the end.

    ``planes[i][channel]``, ``i < used``, has a bit for every group; where a group has 4 positions, it has four for each
    of 16 groups. ``base`` is the number of the first group.
    """
    lane = np.uint64(64)
    if fan == np.uint64(4):
        for i in range(used):
            first = (base + (i << np.uint64(4))) << np.uint64(4)
            at = append_nibbles(planes[i * lane + channel], first, width, offsets, at)
        return at
    live = np.uint64(0)
    for i in range(fan):
        live |= planes[i * lane + channel]
    while live:
        group = lowest(live)
        live &= live - np.uint64(1)
        pattern = np.uint64(0)
        for i in range(fan):
            pattern |= ((planes[i * lane + channel] >> group) & np.uint64(1)) << i
        offsets[at] = np.uint32(((base + group) * size + pattern) * width)
        at += np.uint64(1)
    return at


@jit
def sum_weighted(
    acc: F32,
    init: bool,
    x: F32,
    channels: U32,
    values: F32,
    counts: U32,
    dense: F32,
    starts: U64,
    shape: Shape,
    c: int,
    k: int,
    sparse: bool,
    issues: U32,
    row_live: I64,
    row_cycles: I64,
    row_products: I64,
    low: int,
    high: int,
) -> None:
    """``acc[tap][c] += x * g`` over positions ascending for the rows ``low .. high-1`` of (tap, channel).

    ``sparse`` touches live gradients only; without it the ``dense`` ones, of which dead ones add ``x * 0``, which is
    the same bits when all inputs are finite and no sum starts at -0. ``issues`` are the cycles of a position. The row
    counters receive the live inputs, cycles and products of each row.
    """
    _, in_columns, _, _, _, kw = shape
    width, inputs = np.uint64(k), np.uint64(c)
    positions = np.uint64(starts.size)
    block = min(positions, np.uint64(max(1, 65536 // max(k, 1))))
    offsets = np.empty(np.int64(block) + LANES, np.uint32)
    factors = np.empty(np.int64(block) + LANES, np.float32)
    for unit in range(low, high):
        row_live[unit] = row_cycles[unit] = row_products[unit] = 0
    if init:
        for j in range(np.uint64(low) * width, np.uint64(high) * width):
            acc[j] = np.float32(0)
    for first in range(np.uint64(0), positions, block):
        here = min(block, positions - first)
        for unit in range(low, high):
            tap, channel = unit // c, np.uint64(unit) % inputs
            shift = np.uint64((tap // kw) * in_columns + tap % kw)
            n = np.uint64(0)
            cycles = products = np.uint64(0)
            for i in range(here):
                value = x[(starts[first + i] + shift) * inputs + channel]
                if value == np.float32(0):
                    continue
                count = np.uint64(counts[first + i])
                offsets[n] = np.uint32(i * width)
                factors[n] = value
                n += np.uint64(1)
                products += count
                cycles += np.uint64(issues[first + i])
                if sparse:
                    row = (first + i) * width
                    for j in range(count):
                        target = np.uint64(unit) * width + np.uint64(channels[row + j])
                        acc[target] = acc[target] + value * values[row + j]
            row_live[unit] += np.int64(n)
            row_cycles[unit] += np.int64(cycles)
            row_products[unit] += np.int64(products)
            if not sparse:
                start = np.uint64(unit) * width
                add_products(acc, start, dense[first * width :], offsets, factors, n, width)


@jit
def needs_care(x: F32, acc: U32, init: bool, low: int, high: int) -> bool:
    """Return whether a share of ``x`` is not all finite or, unless ``init``, that of ``acc`` holds a -0.

    ``low`` and ``high`` are thousandths of both.
    """
    found = np.uint32(0)
    for i in range(np.uint64(x.size * low // 1000), np.uint64(x.size * high // 1000)):
        found |= np.uint32((bits_of(x[i]) & EXPONENT) == EXPONENT)
    if not init:
        for i in range(np.uint64(acc.size * low // 1000), np.uint64(acc.size * high // 1000)):
            found |= np.uint32(acc[i] == np.uint32(0x80000000))
    return found != np.uint32(0)


@jit
def slowest(cycles: I64, units: int) -> int:
    """Return when the last of ``units`` is done if each piece of work goes to the one that is free first."""
    free = np.zeros((1, units), np.int64)
    for piece in range(np.uint64(cycles.size)):
        hand_out(free, 0, cycles[piece])
    return free.max()
