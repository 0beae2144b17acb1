"""Half precision, packed bits and gradient slots, for use inside other kernels and on whole arrays.

Numba has no float16 on the CPU: half values travel as uint16 and are converted by integer operations.
All index arithmetic is unsigned, which spares Numba's wrap-around check and keeps the loops vectorised.
"""

# Kernels follow Numba's typing rules for unsigned integers, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]  # comes without stubs
from numba.core import types
from numba.extending import intrinsic

from ..jit import jit
from .compaction import list_chosen, pack_chosen, spread_chosen
from .rows import LANES

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

SPREAD = np.uint64(0x8040201008040201)
EVERY = np.uint64(0x0101010101010101)
COLLECT = np.uint64(0x0102040810204080)
LOW_SEVEN = np.uint64(0x7F7F7F7F7F7F7F7F)
EXPONENT = np.uint32(0x7F800000)
EXPONENT_HALF = np.uint16(0x7C00)
STRIP_BITS = np.uint64(LANES)
STRIP = np.uint64((1 << LANES) - 1)
"""The bits of as many channels as vector registers have lanes."""


@intrinsic
def bits_of(typing_context: Any, value: Any) -> Any:
    """Return the bits of a float32 as uint32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), codegen


@intrinsic
def float_of(typing_context: Any, bits: Any) -> Any:
    """Return the float32 with the given uint32 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), codegen


@intrinsic
def population(typing_context: Any, word: Any) -> Any:
    """Return the number of set bits of a uint64 as uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), codegen


@intrinsic
def lowest(typing_context: Any, word: Any) -> Any:
    """Return the number of the lowest set bit of a non-zero uint64 as uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), codegen


@jit
def half_value(half: np.uint16) -> np.float32:
    """Widen half bits exactly."""
    magnitude = (np.uint32(half) & np.uint32(0x7FFF)) << np.uint32(13)
    value = float_of(magnitude) * np.float32(2.0**112)
    special = magnitude >= np.uint32(0x0F800000)
    bits = (magnitude | EXPONENT) if special else bits_of(value)
    return float_of(bits | ((np.uint32(half) & np.uint32(0x8000)) << np.uint32(16)))


@jit
def half_bits(value: np.float32) -> np.uint16:
    """Round a float32 to half, to nearest even, and return its bits; a NaN becomes a quiet NaN."""
    bits = bits_of(value)
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    denormal = bits_of(float_of(magnitude) + np.float32(0.5)) - np.uint32(0x3F000000)
    odd = (magnitude >> np.uint32(13)) & np.uint32(1)
    normal = (magnitude - np.uint32(0x38000000) + np.uint32(0xFFF) + odd) >> np.uint32(13)
    special = np.uint32(0x7E00) if magnitude > EXPONENT else np.uint32(0x7C00)
    result = denormal if magnitude < np.uint32(0x38800000) else normal
    return np.uint16((special if magnitude >= np.uint32(0x47800000) else result) | sign)


@jit
def round_half(value: np.float32) -> np.float32:
    """Round a float32 to the nearest half value, ties to even."""
    return half_value(half_bits(value))


@jit
def widen(halves: U16, values: F32) -> None:
    """``values[i] = halves[i]``."""
    for i in range(np.uint64(halves.size)):
        values[i] = half_value(halves[i])


@jit
def narrow(values: F32, halves: U16) -> None:
    """``halves[i] = st(values[i])``."""
    for i in range(np.uint64(values.size)):
        halves[i] = half_bits(values[i])


@jit
def round_all(values: F32) -> None:
    """Round every value to half in place."""
    for i in range(np.uint64(values.size)):
        values[i] = round_half(values[i])


@jit
def count_nonfinite(values: F32) -> int:
    """Return how many values are infinite or NaN."""
    found = np.uint32(0)
    for i in range(np.uint64(values.size)):
        found += np.uint32((bits_of(values[i]) & EXPONENT) == EXPONENT)
    return np.int64(found)


@jit
def count_nonfinite_half(halves: U16) -> int:
    """Return how many half values are infinite or NaN."""
    found = np.uint32(0)
    for i in range(np.uint64(halves.size)):
        found += np.uint32((halves[i] & EXPONENT_HALF) == EXPONENT_HALF)
    return np.int64(found)


@jit
def spread(byte: np.uint8) -> np.uint64:
    """Return eight bytes 0 or 1, byte i from bit i."""
    chosen = (np.uint64(byte) * EVERY) & SPREAD
    return ((chosen + LOW_SEVEN) | chosen) >> np.uint64(7) & EVERY


@jit
def collect(lanes: np.uint64) -> np.uint8:
    """Return the byte whose bit i is byte i (0 or 1) of ``lanes``: the inverse of ``spread``."""
    return np.uint8((lanes * COLLECT) >> np.uint64(56))


@jit
def last_byte_mask(k: np.uint64) -> np.uint8:
    """Return the bits of the last byte of a row of ``k`` packed bits that are not padding."""
    used = k & np.uint64(7)
    return np.uint8(255) if used == np.uint64(0) else np.uint8((np.uint64(1) << used) - np.uint64(1))


@jit
def unpack(packed: U8, first: np.uint64, rows: np.uint64, k: np.uint64, lanes: U8) -> None:
    """Spread rows ``first .. first+rows-1`` of ``k`` packed bits to bytes ``lanes[row*k + ch]``."""
    words = lanes.view(np.uint64)
    row_bytes = (k + np.uint64(7)) >> np.uint64(3)
    if k & np.uint64(7) == np.uint64(0):
        for i in range(rows * row_bytes):
            words[i] = spread(packed[first * row_bytes + i])
        return
    for row in range(rows):
        for ch in range(k):
            byte = packed[(first + row) * row_bytes + (ch >> np.uint64(3))]
            lanes[row * k + ch] = (byte >> np.uint8(ch & np.uint64(7))) & np.uint8(1)


@jit
def pack(lanes: U8, packed: U8, first: np.uint64, rows: np.uint64, k: np.uint64) -> None:
    """The inverse of ``unpack``; pad bits become 0."""
    words = lanes.view(np.uint64)
    row_bytes = (k + np.uint64(7)) >> np.uint64(3)
    if k & np.uint64(7) == np.uint64(0):
        for i in range(rows * row_bytes):
            packed[first * row_bytes + i] = collect(words[i])
        return
    for row in range(rows):
        for byte in range(row_bytes):
            bits = np.uint8(0)
            for j in range(min(np.uint64(8), k - byte * np.uint64(8))):
                bits |= lanes[row * k + byte * np.uint64(8) + j] << np.uint8(j)
            packed[(first + row) * row_bytes + byte] = bits


@jit
def live_bits(bitmap: np.uint64, channels: np.uint64) -> np.uint64:
    """Return the bitmap without bits at or above ``channels``."""
    if channels >= np.uint64(64):
        return bitmap
    return bitmap & ((np.uint64(1) << channels) - np.uint64(1))


@jit
def decode_lists(
    slots: U64,
    slot_words: int,
    half: bool,
    k: int,
    gblk: int,
    scale: int,
    channels: U32,
    values: F32,
    counts: U32,
    work: I64,
    low: int,
    high: int,
) -> None:
    """List the live gradients of the positions ``low .. high-1``; ``work`` += live gradients.

    ``slots`` are the gradient slots as 64-bit words; ``channels`` (times ``scale``) and ``values`` are
    ``[positions][k]``, of which the first ``counts[position]`` entries of a row are written.
    """
    narrow_values, wide_values = slots.view(np.uint16), slots.view(np.float32)
    width, block_channels, words = np.uint64(k), np.uint64(gblk), np.uint64(slot_words)
    blocks = (width + block_channels - np.uint64(1)) // block_channels
    factor = np.uint64(scale)
    total = np.uint64(0)
    for position in range(np.uint64(low), np.uint64(high)):
        target = position * width
        for block in range(blocks):
            first = block * block_channels
            slot = (position * blocks + block) * words
            bitmap = live_bits(slots[slot], min(block_channels, width - first))
            live = population(bitmap)
            if half:
                source = (slot + np.uint64(1)) * np.uint64(4)
                for i in range(live):
                    values[target + i] = half_value(narrow_values[source + i])
                for i in range(live):
                    channels[target + i] = np.uint32((first + lowest(bitmap)) * factor)
                    bitmap &= bitmap - np.uint64(1)
                target += live
                continue
            source = (slot + np.uint64(1)) * np.uint64(2)
            while bitmap:
                number = np.uint32(first * factor)
                list_chosen(channels, target, values, target, wide_values, source, bitmap, number, np.uint32(scale))
                chosen = population(bitmap & STRIP)
                target, source, bitmap = target + chosen, source + chosen, bitmap >> STRIP_BITS
                first += STRIP_BITS
        live = target - position * width
        counts[position] = np.uint32(live)
        total += live
    work[0] += np.int64(total)


@jit
def encode(
    values: F32, slots: U64, slot_words: int, half: bool, first_position: int, rows: int, k: int, gblk: int
) -> int:
    """Write rows of ``k`` values (already rounded to storage) as the gradient slots from ``first_position`` on.

    ``values`` holds ``rows`` rows; returns how many values are live.
    """
    flags = np.empty((rows * k + 7) // 8 * 8, np.uint8)
    for i in range(np.uint64(rows * k)):
        flags[i] = np.uint8(values[i] != np.float32(0))
    return encode_where(flags, values, slots, slot_words, half, first_position, rows, k, gblk)


@jit
def encode_where(
    flags: U8, values: F32, slots: U64, slot_words: int, half: bool, first_position: int, rows: int, k: int, gblk: int
) -> int:
    """Write the values whose flag (0 or 1, a multiple of 8 of them) is set as slots; see ``encode``."""
    narrow_values, wide_values = slots.view(np.uint16), slots.view(np.float32)
    width, block_channels, words = np.uint64(k), np.uint64(gblk), np.uint64(slot_words)
    blocks = (width + block_channels - np.uint64(1)) // block_channels
    total = np.uint64(0)
    in_bytes = (width | block_channels) & np.uint64(7) == np.uint64(0)
    eights = flags.view(np.uint64)
    for row in range(np.uint64(rows)):
        for block in range(blocks):
            first = block * block_channels
            start = row * width + first
            slot = ((np.uint64(first_position) + row) * blocks + block) * words
            here = min(block_channels, width - first)
            bitmap = np.uint64(0)
            if in_bytes:
                for byte in range(here >> np.uint64(3)):
                    lanes = eights[(start >> np.uint64(3)) + byte]
                    bitmap |= np.uint64(collect(lanes)) << (byte << np.uint64(3))
            else:
                for j in range(here):
                    bitmap |= np.uint64(flags[start + j]) << j
            slots[slot] = bitmap
            live = population(bitmap)
            total += live
            if half:
                target = (slot + np.uint64(1)) * np.uint64(4)
                for i in range(live):
                    narrow_values[target + i] = half_bits(values[start + lowest(bitmap)])
                    bitmap &= bitmap - np.uint64(1)
                continue
            target = (slot + np.uint64(1)) * np.uint64(2)
            while bitmap:
                pack_chosen(wide_values, target, values, start, bitmap)
                target, start = target + population(bitmap & STRIP), start + STRIP_BITS
                bitmap >>= STRIP_BITS
    return np.int64(total)


@jit
def decode_where(
    slots: U64, slot_words: int, half: bool, first_position: int, rows: int, k: int, gblk: int, values: F32
) -> int:
    """The inverse of ``encode_where`` for ``rows`` rows; values that the slots do not hold become NaN."""
    total = np.uint64(0)
    narrow_values, wide_values = slots.view(np.uint16), slots.view(np.float32)
    width, block_channels, words = np.uint64(k), np.uint64(gblk), np.uint64(slot_words)
    blocks = (width + block_channels - np.uint64(1)) // block_channels
    for i in range(np.uint64(rows) * width):
        values[i] = np.float32(np.nan)
    for row in range(np.uint64(rows)):
        for block in range(blocks):
            first = block * block_channels
            start = row * width + first
            slot = ((np.uint64(first_position) + row) * blocks + block) * words
            bitmap = live_bits(slots[slot], min(block_channels, width - first))
            live = population(bitmap)
            total += live
            if half:
                source = (slot + np.uint64(1)) * np.uint64(4)
                for i in range(live):
                    values[start + lowest(bitmap)] = half_value(narrow_values[source + i])
                    bitmap &= bitmap - np.uint64(1)
                continue
            source = (slot + np.uint64(1)) * np.uint64(2)
            while bitmap:
                spread_chosen(values, start, wide_values, source, bitmap)
                source, start = source + population(bitmap & STRIP), start + STRIP_BITS
                bitmap >>= STRIP_BITS
    return np.int64(total)


@jit
def encode_rows(
    values: F32, slots: U64, slot_words: int, half: bool, k: int, gblk: int, work: I64, low: int, high: int
) -> None:
    """Write the rows ``low .. high-1`` of ``values`` as gradient slots; ``work`` += live values."""
    work[0] += encode(values[low * k : high * k], slots, slot_words, half, low, high - low, k, gblk)
