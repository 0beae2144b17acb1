"""Strided copies between memories."""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

import numpy as np

from ..jit import jit
from ..native import call, clear_bytes, copy_bytes, copy_rows, copy_words, word_at, words_at
from .bits import population

Four = tuple[int, int, int, int]
Range = tuple[int, int]


_LOG_OF_MOST = 6  # of the bytes that are copied at a time
_LONG = 1 << 11  # bytes of a row that are left to the library
_AHEAD = 1 << 11  # bytes that are fetched ahead of strided rows


@call(words=22)
def copy_call(args: int, extra: int, low: int, high: int, counts: int) -> int:
    """Copy the pieces ``low .. high-1``, of ``extra`` each row has; rows that do not exist are zeroed or dropped.

    Addresses of the first rows (target, source), four counts, source strides and target strides, bytes of a row, first
    and last (exclusive) rows and columns that exist, whether to zero the others, bytes of a slot (0: plain) and of its
    values.
    """
    a = words_at(args, 22)
    run = a[14]
    length = -(-run // extra)
    row, part = low // extra, low % extra
    i0, i1 = row // (a[3] * a[4] * a[5]), row // (a[4] * a[5]) % a[3]
    i2, i3 = row // a[5] % a[4], row % a[5]
    left = high - low
    while left > 0:
        rows = min(left, a[5] - i3) if extra == 1 else 1
        first = part * length
        size = min(length, run - first)
        target = a[0] + i0 * a[10] + i1 * a[11] + i2 * a[12] + i3 * a[13] + first
        begin = end = 0
        if a[15] <= i2 < a[16]:
            begin = min(max(a[17] - i3, 0), rows)
            end = min(max(a[18] - i3, begin), rows)
            source = a[1] + i0 * a[6] + i1 * a[7] + i2 * a[8] + (i3 + begin) * a[9] + first
            copy_line(target + begin * a[13], source, end - begin, size, a[13], a[9], a[20], a[21])
        if a[19]:
            for i in range(begin):
                clear_bytes(target + i * a[13], size)
            for i in range(end, rows):
                clear_bytes(target + i * a[13], size)
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


@jit
def copy_line(target: int, source: int, rows: int, size: int, down: int, across: int, slot: int, item: int) -> None:
    """Copy ``rows`` rows of ``size`` bytes, ``down`` bytes apart in the target and ``across`` in the source.

    Of gradient slots (``slot`` bytes long) only the bitmaps and the live values of ``item`` bytes.
    """
    if slot:
        for i in range(rows):
            copy_slots(target + i * down, source + i * across, size, slot, item)
    elif size > _LONG:
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


@jit
def copy_slots(target: int, source: int, size: int, slot: int, item: int) -> None:
    """Copy the bitmaps and live values (of 2 or 4 bytes) of the gradient slots in ``size`` bytes."""
    for first in range(np.uint64(0), np.uint64(size), np.uint64(slot)):
        to, at = target + np.int64(first), source + np.int64(first)
        live = min(np.int64(8) + np.int64(population(word_at(at))) * item, slot)
        copy_words(to, at, live >> 2)
        if live & 2:
            copy_bytes(to + live - 2, at + live - 2, 2)


@jit
def slot_traffic(
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

    ``source_start``: address of the first row. Of a slot move the bytes of the bitmap that have channels, and the live
    values; ``slot`` bounds both. Up to ``pack`` slots that touch in DRAM, counted from one that does not touch the slot
    before it, are rounded up to bursts together.
    """
    moved = in_bursts = held = np.uint64(0)
    room, size, unit = np.uint64(slot), np.uint64(item), np.uint64(burst)
    bitmap = np.uint64(min(8, ((slot - 8) // item + 7) // 8))
    most, packed, follows = np.uint64(max(1, pack)), np.uint64(0), np.int64(0)
    for i0 in range(counts[0]):
        for i1 in range(counts[1]):
            for i2 in range(rows[0], rows[1]):
                for i3 in range(columns[0], columns[1]):
                    at = source_start + i0 * strides[0] + i1 * strides[1] + i2 * strides[2] + i3 * strides[3]
                    there = i0 * dram_strides[0] + i1 * dram_strides[1] + i2 * dram_strides[2] + i3 * dram_strides[3]
                    if there != follows:
                        in_bursts += whole_bursts(held, unit)
                        held = packed = np.uint64(0)
                    follows = there + run
                    for first in range(np.uint64(at), np.uint64(at + run), room):
                        live = population(word_at(np.int64(first)))
                        if packed == most:
                            in_bursts += whole_bursts(held, unit)
                            held = packed = np.uint64(0)
                        moved += bitmap + live * size
                        held += min(bitmap + live * size, room)
                        packed += np.uint64(1)
    in_bursts += whole_bursts(held, unit)
    return np.int64(moved), np.int64(in_bursts)


@jit
def whole_bursts(size: np.uint64, burst: np.uint64) -> np.uint64:
    """Round bytes up to whole bursts; without a division where a burst is a power of two."""
    more = size + burst - np.uint64(1)
    if burst & (burst - np.uint64(1)) == np.uint64(0):
        return more & ~(burst - np.uint64(1))
    return more // burst * burst
