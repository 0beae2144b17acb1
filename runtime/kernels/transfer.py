"""Strided copies between memories."""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np

from ..jit import jit
from ..native import call, clear_bytes, copy_bytes, copy_rows, copy_words, word_at, words_at
from ..team import COUNTERS
from .bits import I64, U64, population

_LOG_OF_MOST = 6  # of the bytes that are copied at a time
_LONG = 1 << 11  # bytes of a row that are left to the library
_AHEAD = 1 << 11  # bytes that are fetched ahead of strided rows

MOVED, IN_BURSTS = range(2)
"""Counters of :data:`slots_call`: bytes that it moves, and the same in whole bursts."""


@call(words=20)
def copy_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Copy the pieces ``low .. high-1``, of ``extra`` each row has; rows that do not exist are zeroed or dropped.

    Addresses of the first rows (target, source), four counts, source strides and target strides, bytes of a row, first
    and last (exclusive) rows and columns that exist, whether to zero the others.
    """
    a = words_at(args, 20)
    run = a[14]
    length = -(-run // extra)
    part = low % extra
    i0, i1, i2, i3 = row_numbers(a, low // extra)
    left = high - low
    while left > 0:
        rows = min(left, a[5] - i3) if extra == 1 else 1
        first = part * length
        size = min(length, run - first)
        target = a[0] + i0 * a[10] + i1 * a[11] + i2 * a[12] + i3 * a[13] + first
        begin, end = existing(a, i2, i3, rows)
        if begin < end:
            source = a[1] + i0 * a[6] + i1 * a[7] + i2 * a[8] + (i3 + begin) * a[9] + first
            copy_line(target + begin * a[13], source, end - begin, size, a[13], a[9])
        if a[19]:
            clear_rows(target, begin, size, a[13])
            clear_rows(target + end * a[13], rows - end, size, a[13])
        left -= rows
        part += 1
        if part == extra:
            part, i3 = 0, i3 + rows
            if i3 == a[5]:
                i3, i2 = 0, i2 + 1
                if i2 == a[4]:
                    i2, i1 = 0, i1 + 1
                    if i1 == a[3]:
                        i1, i0 = 0, i0 + 1
    return 1


@call(words=25)
def slots_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Copy the pieces ``low .. high-1`` of gradient slots: only bitmaps and live values.

    The words of :data:`copy_call`, bytes of a slot, of a value and of a burst, slots of a unit in DRAM, and rows of a
    piece. Where ``extra`` is not 1, a piece is a unit instead, and a row has so many. With every piece begins a unit.
    """
    a, found = words_at(args, 25), words_at(counts, COUNTERS)
    run, slot, pack = a[14], a[20], a[23]
    state = np.zeros(STATE, np.uint64)
    state[ROOM], state[ITEM], state[BURST], state[PACK] = slot, a[21], a[22], pack
    state[BITMAP] = min(8, ((slot - 8) // a[21] + 7) // 8)
    row, last = (low // extra, -(-high // extra)) if extra > 1 else (low * a[24], high * a[24])
    follows = np.int64(0)
    while row < last:
        i0, i1, i2, i3 = row_numbers(a, row)
        rows, first, size = min(last - row, a[5] - i3), np.int64(0), run
        if extra > 1:
            rows, first = 1, max(low - row * extra, 0) * pack * slot
            size = min(run, (high - row * extra) * pack * slot) - first
        down, across, apart = a[13], a[9], a[9] if a[19] else a[13]
        target = a[0] + i0 * a[10] + i1 * a[11] + i2 * a[12] + i3 * down + first
        source = a[1] + i0 * a[6] + i1 * a[7] + i2 * a[8] + i3 * across + first
        there = source if a[19] else target
        begin, end = existing(a, i2, i3, rows)
        if a[19]:
            clear_rows(target, begin, size, down)
            clear_rows(target + end * down, rows - end, size, down)
        row += rows
        target, source, there = target + begin * down, source + begin * across, there + begin * apart
        lines = end - begin
        if down == across == size:
            size, lines = size * lines, min(lines, 1)
        for i in range(lines):
            if there + i * apart != follows:
                close_unit(state)
            follows = there + i * apart + size
            copy_slots(target + i * down, source + i * across, size, state)
    close_unit(state)
    found[MOVED] += np.int64(state[SUM])
    found[IN_BURSTS] += np.int64(state[SUM_IN_BURSTS])
    return 1


@jit
def row_numbers(a: I64, row: int) -> tuple[int, int, int, int]:
    """Return the numbers of a row in the four dimensions of a transfer."""
    return row // (a[3] * a[4] * a[5]), row // (a[4] * a[5]) % a[3], row // a[5] % a[4], row % a[5]


@jit
def existing(a: I64, i2: int, i3: int, rows: int) -> tuple[int, int]:
    """Return which of the ``rows`` rows from (``i2``, ``i3``) on are the first and the last (exclusive) that exist."""
    if not a[15] <= i2 < a[16]:
        return 0, 0
    begin = min(max(a[17] - i3, 0), rows)
    return begin, min(max(a[18] - i3, begin), rows)


@jit
def clear_rows(target: int, rows: int, size: int, down: int) -> None:
    """Set rows of ``size`` bytes, ``down`` bytes apart, to 0."""
    if down == size:
        size, rows = size * rows, min(rows, 1)
    for i in range(rows):
        clear_bytes(target + i * down, size)


@jit
def copy_line(target: int, source: int, rows: int, size: int, down: int, across: int) -> None:
    """Copy ``rows`` rows of ``size`` bytes, ``down`` bytes apart in the target and ``across`` in the source."""
    if down == across == size:
        size, rows = size * rows, 1
    if size > _LONG:
        for i in range(rows):
            copy_bytes(target + i * down, source + i * across, size)
    elif size > 0:
        ahead = across * max(1, _AHEAD // size) if across != size else 0
        copy_rows(target, source, rows, size, down, across, log_of_block(size), ahead)


@jit
def log_of_block(size: int) -> int:
    """Return the logarithm of the largest power of two that is no more than ``size`` and a block."""
    log = _LOG_OF_MOST
    while 1 << log > size:
        log -= 1
    return log


ROOM, ITEM, BITMAP, BURST, PACK, SLOTS, HELD, SUM, SUM_IN_BURSTS, STATE = range(10)
"""What a transfer knows of slots: bytes of a slot, of a value and of the part of a bitmap that moves, of a burst, slots
of a unit; slots and bytes of the unit that is open, and bytes so far, as they are and of whole units in bursts."""


@jit
def copy_slots(target: int, source: int, size: int, state: U64) -> None:
    """Copy the bitmaps and live values (of 2 or 4 bytes) of the gradient slots in ``size`` bytes, and count them.

    Up to ``state[PACK]`` slots that touch are a unit; each is rounded up to bursts.
    """
    room, item, bitmap, pack = state[ROOM], state[ITEM], state[BITMAP], state[PACK]
    packed, held, moved = state[SLOTS], state[HELD], state[SUM]
    for first in range(np.uint64(0), np.uint64(size), room):
        to, at = target + np.int64(first), source + np.int64(first)
        live = population(word_at(at)) * item
        used = np.int64(min(np.uint64(8) + live, room))
        copy_words(to, at, used >> 2)
        if used & 2:
            copy_bytes(to + used - 2, at + used - 2, 2)
        if packed == pack:
            state[SUM_IN_BURSTS] += whole_bursts(held, state[BURST])
            packed = held = np.uint64(0)
        moved += bitmap + live
        held += min(bitmap + live, room)
        packed += np.uint64(1)
    state[SLOTS], state[HELD], state[SUM] = packed, held, moved


@jit
def close_unit(state: U64) -> None:
    """End the unit that is open."""
    state[SUM_IN_BURSTS] += whole_bursts(state[HELD], state[BURST])
    state[SLOTS] = state[HELD] = np.uint64(0)


@jit
def whole_bursts(size: np.uint64, burst: np.uint64) -> np.uint64:
    """Round bytes up to whole bursts; without a division where a burst is a power of two."""
    more = size + burst - np.uint64(1)
    if burst & (burst - np.uint64(1)) == np.uint64(0):
        return more & ~(burst - np.uint64(1))
    return more // burst * burst
