"""Kernels of pooling and its gradient: sums, averages and maxima of windows, of bits and of float32 values."""

# numba.core comes without type annotations; kernels follow Numba's typing rules for unsigned integers.
# mypy: disable-error-code="no-untyped-call, assignment, operator, arg-type, call-arg, return-value, no-any-return"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # comes without stubs
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..jit import jit
from .bits import F32, U8, last_byte_mask, spread
from .convolution import I32, Shape
from .rows import LANES, columns_under_mask, load_lanes, splat, store_lanes

_WORD, _SHORT = ir.IntType(64), ir.IntType(LANES)
_BYTES, _BITS = (ir.VectorType(ir.IntType(bits), LANES) for bits in (8, 1))
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
Window = tuple[np.uint64, np.uint64, np.uint64, np.uint64]
"""First and last (exclusive) kernel row and column."""


@intrinsic
def choose_first(
    typing_context: Any,
    source: Any,
    at: Any,
    row: Any,
    column: Any,
    window: Any,
    kw: Any,
    dst: Any,
    to: Any,
    idx: Any,
) -> Any:
    """Write which of sixteen channels spike in a window, and the number of the first place where each does.

    The bits of place (0, 0) stand at byte ``at`` of ``source``, places are ``row`` and ``column`` bytes apart; those of
    ``window`` (top, bottom, left, right) exist. Results go to byte ``to`` of ``dst``, and to ``idx`` as eight times
    ``to``: without a spike it is the first place.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def place(index: int, offset: Any, kind: Any) -> Any:
            data = context.make_array(signature.args[index])(context, builder, args[index]).data
            return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())

        top, bottom, left, right = (builder.extract_value(args[4], i) for i in range(4))

        def number(ky: Any, kx: Any) -> Any:
            return splat(builder, builder.trunc(builder.add(builder.mul(ky, args[5]), kx), ir.IntType(8)))

        winners, seen = cgutils.alloca_once_value(builder, number(top, left)), cgutils.alloca_once(builder, _SHORT)
        builder.store(_SHORT(0), seen)
        with cgutils.for_range(builder, builder.sub(bottom, top), intp=_WORD) as down:
            ky = builder.sub(builder.sub(bottom, _WORD(1)), down.index)  # from the last to the first, which stays
            start = builder.add(args[1], builder.mul(ky, args[2]))
            with cgutils.for_range(builder, builder.sub(right, left), intp=_WORD) as across:
                kx = builder.sub(builder.sub(right, _WORD(1)), across.index)
                spikes = builder.load(place(0, builder.add(start, builder.mul(kx, args[3])), _SHORT), align=1)
                chosen = builder.select(builder.bitcast(spikes, _BITS), number(ky, kx), builder.load(winners))
                builder.store(chosen, winners)
                builder.store(builder.or_(builder.load(seen), spikes), seen)
        builder.store(builder.load(seen), place(6, args[7], _SHORT), align=1)
        builder.store(builder.load(winners), place(8, builder.shl(args[7], _WORD(3)), _BYTES), align=1)
        return context.get_dummy_value()

    return types.void(source, at, row, column, window, kw, dst, to, idx), codegen


@intrinsic
def add_share(
    typing_context: Any,
    dst: Any,
    to: Any,
    source: Any,
    at: Any,
    idx: Any,
    tap: Any,
    width: Any,
    maximum: Any,
    divisor: Any,
    fresh: Any,
) -> Any:
    """``dst[to+j]`` += ``source[at+j]`` over ``divisor``, or for a ``maximum`` where ``idx[at+j]`` is ``tap``, else 0.

    For ``j < width``; onto +0 where the sum is ``fresh``.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        to, at, winner = (
            builder.gep(context.make_array(signature.args[i])(context, builder, args[i]).data, [args[offset]])
            for i, offset in ((0, 1), (2, 3), (4, 3))
        )
        fresh, maximum = (args[i] if args[i].type.width == 1 else builder.trunc(args[i], ir.IntType(1)) for i in (9, 7))
        zeros = ir.Constant(_FLOATS, [0.0] * LANES)

        def strip(column: Any, _: int, mask: Any) -> None:
            share = cgutils.alloca_once_value(builder, load_lanes(builder, at, column, mask))
            with builder.if_else(maximum) as (one, all_):
                with one:
                    wins = load_lanes(builder, winner, column, mask)
                    wins = builder.icmp_unsigned("==", wins, splat(builder, args[5]))
                    builder.store(builder.select(wins, builder.load(share), zeros), share)
                with all_:
                    builder.store(builder.fdiv(builder.load(share), splat(builder, args[8])), share)
            before = cgutils.alloca_once_value(builder, zeros)
            with builder.if_then(builder.not_(fresh)):
                builder.store(load_lanes(builder, to, column, mask), before)
            store_lanes(builder, builder.fadd(builder.load(before), builder.load(share)), to, column, mask)

        columns_under_mask(builder, args[6], (1,), strip)
        return context.get_dummy_value()

    return types.void(dst, to, source, at, idx, tap, width, maximum, divisor, fresh), codegen


@jit
def average_bits(
    source: U8, averages: F32, shape: Shape, sh: int, sw: int, k: int, dst: F32, low: int, high: int
) -> None:
    """``dst[position][ch]`` = ``averages[number of spikes in the window]`` for the positions ``low .. high-1``."""
    in_rows, in_columns, oh, ow, kh, kw = shape
    width = np.uint64(k)
    row_bytes = (width + np.uint64(7)) >> np.uint64(3)
    totals = np.empty(8, np.uint32)
    for position in range(low, high):
        oy, ox, image = (position // ow) % oh, position % ow, position // (oh * ow)
        start = np.uint64((image * in_rows + oy * sh) * in_columns + ox * sw)
        for byte in range(row_bytes):
            totals[:] = np.uint32(0)
            for ky in range(kh):
                lanes = np.uint64(0)
                for kx in range(kw):
                    lanes += spread(source[(start + np.uint64(ky * in_columns + kx)) * row_bytes + byte])
                for j in range(np.uint64(8)):
                    totals[j] += np.uint32((lanes >> (j << np.uint64(3))) & np.uint64(255))
            first = byte << np.uint64(3)
            for j in range(min(np.uint64(8), width - first)):
                dst[np.uint64(position) * width + first + j] = averages[np.uint64(totals[j])]


@jit
def window_bounds(rows: I32, columns: I32, oy: int, ox: int) -> Window:
    """Return first and last (exclusive) kernel row and column of a window that exist; the first place if none does."""
    top, bottom = rows[np.uint64(2 * oy)], rows[np.uint64(2 * oy + 1)]
    left, right = columns[np.uint64(2 * ox)], columns[np.uint64(2 * ox + 1)]
    if top < bottom and left < right:
        return np.uint64(top), np.uint64(bottom), np.uint64(left), np.uint64(right)
    return np.uint64(0), np.uint64(1), np.uint64(0), np.uint64(1)


@jit
def maximum_bits(
    source: U8,
    shape: Shape,
    sh: int,
    sw: int,
    k: int,
    rows: I32,
    columns: I32,
    dst: U8,
    idx: U8,
    low: int,
    high: int,
) -> None:
    """``dst`` = OR of the window, ``idx`` = its first set element, for the positions ``low .. high-1``.

    ``rows`` and ``columns`` bound, per window row and column, the kernel places that exist; without a set element
    ``idx`` is the first of them.
    """
    in_rows, in_columns, oh, ow, _, kw = shape
    width = np.uint64(k)
    row_bytes = (width + np.uint64(7)) >> np.uint64(3)
    in_strips, strip_bytes = width & np.uint64(LANES - 1) == np.uint64(0), np.uint64(LANES // 8)
    row = np.uint64(in_columns) * row_bytes
    image, oy, ox = low // (oh * ow), (low // ow) % oh, low % ow
    for position in range(low, high):
        start = np.uint64((image * in_rows + oy * sh) * in_columns + ox * sw) * row_bytes
        window = window_bounds(rows, columns, oy, ox)
        if in_strips:
            for byte in range(np.uint64(0), row_bytes, strip_bytes):
                to = np.uint64(position) * row_bytes + byte
                choose_first(source, start + byte, row, row_bytes, window, np.uint64(kw), dst, to, idx)
        else:
            choose_by_bytes(source, start, row, window, np.uint64(kw), width, np.uint64(position), dst, idx)
        ox += 1
        if ox == ow:
            ox, oy = 0, oy + 1
            if oy == oh:
                oy, image = 0, image + 1


@jit
def choose_by_bytes(
    source: U8,
    start: np.uint64,
    row: np.uint64,
    window: Window,
    kw: np.uint64,
    width: np.uint64,
    position: np.uint64,
    dst: U8,
    idx: U8,
) -> None:
    """As ``choose_first`` for any number of channels, eight at a time."""
    row_bytes = (width + np.uint64(7)) >> np.uint64(3)
    last = last_byte_mask(width)
    top, bottom, left, right = window
    for byte in range(row_bytes):
        used = last if byte + np.uint64(1) == row_bytes else np.uint8(255)
        seen = np.uint8(0)
        winners = np.uint64(0)
        for ky in range(top, bottom):
            for kx in range(left, right):
                spikes = source[start + ky * row + kx * row_bytes + byte] & used
                winners += spread(spikes & ~seen) * (ky * kw + kx)
                seen |= spikes
        winners += spread(np.uint8(255) & ~seen) * (top * kw + left)
        dst[position * row_bytes + byte] = seen
        first = byte << np.uint64(3)
        for j in range(min(np.uint64(8), width - first)):
            idx[position * width + first + j] = np.uint8(winners >> (j << np.uint64(3)))


@jit
def pool_reals(
    source: F32,
    shape: Shape,
    sh: int,
    sw: int,
    k: int,
    maximum: bool,
    rows: I32,
    columns: I32,
    divisor: np.float32,
    dst: F32,
    idx: U8,
    low: int,
    high: int,
) -> None:
    """Sum / ``divisor`` or maximum (with the winner's number) of float32 windows for the positions ``low .. high-1``.

    ``rows`` and ``columns`` bound, per window row and column, the kernel places that take part in a maximum.
    """
    in_rows, in_columns, oh, ow, kh, kw = shape
    width = np.uint64(k)
    for position in range(low, high):
        oy, ox, image = (position // ow) % oh, position % ow, position // (oh * ow)
        start = (image * in_rows + oy * sh) * in_columns + ox * sw
        to = np.uint64(position) * width
        for tap in range(kh * kw):
            at = np.uint64(start + (tap // kw) * in_columns + tap % kw) * width
            if maximum:
                top, bottom, left, right = window_bounds(rows, columns, oy, ox)
                if not (top <= tap // kw < bottom and left <= tap % kw < right):
                    continue
                begins = tap == top * kw + left
                for j in range(width):
                    value, best = source[at + j], dst[to + j]
                    wins = (value > best) | ((value != value) & (best == best)) | begins
                    dst[to + j] = value if wins else best
                    idx[to + j] = np.uint8(tap) if wins else idx[to + j]
            else:
                for j in range(width):
                    total = np.float32(0) if tap == 0 else dst[to + j]
                    dst[to + j] = total + source[at + j]
        if not maximum:
            for j in range(width):
                dst[to + j] = dst[to + j] / divisor


@jit
def unpool(
    source: F32,
    idx: U8,
    row_of: I32,
    column_of: I32,
    shape: Shape,
    k: int,
    maximum: bool,
    divisor: np.float32,
    dst: F32,
    low: int,
    high: int,
) -> None:
    """Sum every position's share of the window gradients for the positions ``low .. high-1``."""
    in_rows, in_columns, oh, ow, kh, kw = shape
    width = np.uint64(k)
    image, oy, ox = low // (oh * ow), (low // ow) % oh, low % ow - 1
    for position in range(low, high):
        ox += 1
        if ox == ow:
            ox, oy = 0, oy + 1
            if oy == oh:
                oy, image = 0, image + 1
        to = np.uint64(position) * width
        fresh = True
        for ky in range(kh):
            y = row_of[np.uint64(oy * kh + ky)]
            if y < 0:
                continue
            for kx in range(kw):
                x = column_of[np.uint64(ox * kw + kx)]
                if x < 0:
                    continue
                at = np.uint64((image * in_rows + y) * in_columns + x) * width
                add_share(dst, to, source, at, idx, np.uint8(ky * kw + kx), width, maximum, divisor, fresh)
                fresh = False
        if fresh:
            for j in range(width):
                dst[to + j] = np.float32(0)
