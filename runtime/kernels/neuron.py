"""The common neuron step and its gradient, sixteen neurons at a time in vector registers.

For float32 storage, currents without drive or synapse, reset to a value, by subtraction or none, and a multiple of 16
channels. Spikes and masks stay bits: a comparison of sixteen lanes *is* sixteen packed bits. The arithmetic is that of
``vector.py``, element by element, whatever the vector width; nothing is contracted.
"""

# numba.core comes without type annotations; kernels follow Numba's typing rules for unsigned integers.
# mypy: disable-error-code="no-untyped-call, assignment, operator, arg-type, call-arg, no-any-return, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # comes without stubs
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..jit import jit
from .bits import EXPONENT, F32, I64, U8, U64, decode_where, lowest, population
from .rows import LANES

_BIT, _SHORT, _U32, _WORD = (ir.IntType(bits) for bits in (1, LANES, 32, 64))
_FLOATS, _BITS, _WORDS = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), _BIT, _U32))
_FIELD = 20
_STRIPS = 1 << 14  # between two collections of counts, which stay below 2^_FIELD


def _splat(builder: Any, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _U32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(_U32, LANES), [0] * LANES))


class _Strip:
    """Loads, stores and comparisons of one strip while code is emitted for an intrinsic."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any, first: int) -> None:
        """``first``: number of the arguments that are element, channel and width."""
        self.context, self.builder, self.signature, self.args = context, builder, signature, args
        self.at, self.channel, self.width = args[first : first + 3]

    def data(self, index: int) -> Any:
        return self.context.make_array(self.signature.args[index])(self.context, self.builder, self.args[index]).data

    def floats(self, index: int, at: Any | None = None) -> Any:
        place = self.builder.gep(self.data(index), [self.at if at is None else at])
        return self.builder.load(self.builder.bitcast(place, _FLOATS.as_pointer()), align=4)

    def parameter(self, index: int, row: int) -> Any:
        start = self.builder.mul(self.width, _WORD(row))
        return self.floats(index, self.builder.add(start, self.channel))

    def put_floats(self, index: int, value: Any) -> None:
        place = self.builder.gep(self.data(index), [self.at])
        self.builder.store(value, self.builder.bitcast(place, _FLOATS.as_pointer()), align=4)

    def _bits_place(self, index: int) -> Any:
        place = self.builder.gep(self.data(index), [self.builder.lshr(self.at, _WORD(3))])
        return self.builder.bitcast(place, _SHORT.as_pointer())

    def bits(self, index: int) -> Any:
        return self.builder.bitcast(self.builder.load(self._bits_place(index), align=1), _BITS)

    def put_bits(self, index: int, value: Any) -> None:
        self.builder.store(self.builder.bitcast(value, _SHORT), self._bits_place(index), align=1)

    def constant(self, value: float) -> Any:
        return ir.Constant(_FLOATS, [value] * LANES)

    def flag(self, value: Any) -> Any:
        """A boolean (stored as a byte by Numba) as a mask of all lanes."""
        bit = value if value.type == _BIT else self.builder.trunc(value, _BIT)
        return _splat(self.builder, bit)

    def bit(self, value: Any) -> Any:
        return value if value.type == _BIT else self.builder.trunc(value, _BIT)

    def is_broken(self, value: Any) -> Any:
        exponent = ir.Constant(_WORDS, [int(EXPONENT)] * LANES)
        raw = self.builder.and_(self.builder.bitcast(value, _WORDS), exponent)
        return self.builder.icmp_unsigned("==", raw, exponent)

    def within(self, u: Any, theta: Any, half_width: Any) -> Any:
        magnitude = ir.Constant(_WORDS, [0x7FFFFFFF] * LANES)
        raw = self.builder.bitcast(self.builder.fsub(u, theta), _WORDS)
        distance = self.builder.bitcast(self.builder.and_(raw, magnitude), _FLOATS)
        return self.builder.fcmp_ordered("<", distance, _splat(self.builder, half_width))

    def count(self, mask: Any) -> Any:
        return self.builder.ctpop(self.builder.zext(self.builder.bitcast(mask, _SHORT), _WORD))


@intrinsic
def integrate_strip(
    typing_context: Any,
    acc: Any,
    par: Any,
    us: Any,
    uo: Any,
    ss: Any,
    so: Any,
    mo: Any,
    at: Any,
    channel: Any,
    width: Any,
    flags: Any,
    half_width: Any,
) -> Any:
    """Step the sixteen neurons from element ``at`` on; returns spikes, mask bits and non-finite ones in fields.

    ``flags``: init, hard, soft, greater-or-equal, never, save_u, save_m, windowed.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        strip = _Strip(context, builder, signature, args, 7)
        init, hard, soft, inclusive, never, save_u, save_m, windowed = (
            strip.bit(builder.extract_value(args[10], i)) for i in range(8)
        )
        alpha, theta = strip.parameter(1, 1), strip.parameter(1, 2)
        state = cgutils.alloca_once_value(builder, strip.constant(0.0))
        with builder.if_then(builder.not_(init)):
            before = strip.floats(2)
            builder.store(before, state)
            with builder.if_then(builder.and_(builder.not_(never), builder.or_(hard, soft))):
                after = builder.select(hard, strip.parameter(1, 3), builder.fsub(before, theta))
                builder.store(builder.select(strip.bits(4), after, before), state)
        arriving = builder.fadd(strip.floats(0), strip.parameter(1, 0))
        u = builder.fadd(builder.fmul(alpha, builder.load(state)), arriving)
        strip.put_floats(2, u)
        with builder.if_then(save_u):
            strip.put_floats(3, u)
        counts = cgutils.alloca_once_value(builder, builder.shl(strip.count(strip.is_broken(u)), _WORD(2 * _FIELD)))
        with builder.if_then(builder.not_(never)):
            above, reached = builder.fcmp_ordered(">", u, theta), builder.fcmp_ordered(">=", u, theta)
            spikes = builder.select(inclusive, reached, above)
            strip.put_bits(4, spikes)
            strip.put_bits(5, spikes)
            builder.store(builder.add(builder.load(counts), strip.count(spikes)), counts)
        with builder.if_then(save_m):
            everything = builder.or_(never, builder.not_(windowed))
            mask = builder.or_(strip.within(u, theta, args[11]), strip.flag(everything))
            strip.put_bits(6, mask)
            passed = builder.shl(strip.count(mask), _WORD(_FIELD))
            builder.store(builder.add(builder.load(counts), passed), counts)
        return builder.load(counts)

    return types.uint64(acc, par, us, uo, ss, so, mo, at, channel, width, flags, half_width), codegen


@intrinsic
def differentiate_strip(
    typing_context: Any,
    gs: Any,
    us: Any,
    windows: Any,
    ss: Any,
    par: Any,
    gc: Any,
    at: Any,
    channel: Any,
    width: Any,
    flags: Any,
    half_width: Any,
    height: Any,
    known: Any,
) -> Any:
    """Step sixteen neurons backwards; returns which gradients are not 0 (bits) and how many not finite (above them).

    Their potentials stand in ``us`` from ``known`` on. ``flags``: init, hard, soft, detach, never, and whether
    ``windows`` has bits for the potentials inside the rectangular window of the surrogate (then there are no
    potentials, and nothing goes through the reset).
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        strip = _Strip(context, builder, signature, args, 6)
        init, hard, soft, detach, never, seen = (strip.bit(builder.extract_value(args[9], i)) for i in range(6))
        alpha, zero = strip.parameter(4, 1), strip.constant(0.0)
        later = cgutils.alloca_once_value(builder, zero)
        with builder.if_then(builder.not_(init)):
            builder.store(strip.floats(5), later)
        following = builder.load(later)
        carried, g = builder.fmul(alpha, following), strip.floats(0)
        result = cgutils.alloca_once_value(builder, zero)
        with builder.if_else(never) as (plain, spiking):
            with plain:
                builder.store(builder.fadd(g, carried), result)
            with spiking:
                window = cgutils.alloca_once_value(builder, ir.Constant(_BITS, [0] * LANES))
                entering = cgutils.alloca_once_value(builder, g)
                with builder.if_else(seen) as (bits, potentials):
                    with bits:
                        builder.store(strip.bits(2), window)
                    with potentials:
                        u, theta = strip.floats(1, args[12]), strip.parameter(4, 2)
                        builder.store(strip.within(u, theta, args[10]), window)
                        with builder.if_then(builder.and_(builder.not_(detach), builder.or_(hard, soft))):
                            height_of_reset = builder.select(hard, builder.fsub(u, strip.parameter(4, 3)), theta)
                            lost = builder.fmul(builder.fmul(alpha, height_of_reset), following)
                            builder.store(builder.fsub(g, lost), entering)
                kept = cgutils.alloca_once_value(builder, carried)
                with builder.if_then(hard):
                    builder.store(builder.select(strip.bits(3), zero, carried), kept)
                rest = builder.load(kept)
                passed = builder.fadd(builder.fmul(_splat(builder, args[11]), builder.load(entering)), rest)
                flat = builder.fcmp_unordered("!=", args[11], ir.Constant(ir.FloatType(), 0.0))
                inside = builder.and_(builder.load(window), strip.flag(flat))
                builder.store(builder.select(inside, passed, rest), result)
        gu = builder.load(result)
        strip.put_floats(5, gu)
        live = builder.zext(builder.bitcast(builder.fcmp_unordered("!=", gu, zero), _SHORT), _WORD)
        return builder.or_(live, builder.shl(strip.count(strip.is_broken(gu)), _WORD(LANES)))

    return types.uint64(gs, us, windows, ss, par, gc, at, channel, width, flags, half_width, height, known), codegen


@jit
def integrate_plain(
    acc: F32,
    par: F32,
    us: F32,
    uo: F32,
    ss: U8,
    so: U8,
    mo: U8,
    slots: U64,
    slot_words: int,
    ublk: int,
    k: int,
    flags: tuple[bool, bool, bool, bool, bool, bool, bool, bool],
    half_width: np.float32,
    work: I64,
    low: int,
    high: int,
) -> None:
    """One neuron step for the positions ``low .. high-1``; ``work`` += (spikes, mask bits, non-finite membranes).

    Where ``ublk`` (a multiple of 16) is not 0, ``slots`` of as many channels take the potentials whose bit in ``mo`` is
    set.
    """
    width, lanes = np.uint64(k), np.uint64(LANES)
    field = (np.uint64(1) << np.uint64(_FIELD)) - np.uint64(1)
    found = waiting = np.uint64(0)
    for position in range(np.uint64(low), np.uint64(high)):
        for channel in range(np.uint64(0), width, lanes):
            at = position * width + channel
            found += integrate_strip(acc, par, us, uo, ss, so, mo, at, channel, width, flags, half_width)
        if ublk:
            keep_inside(us, mo, position, width, slots, np.uint64(slot_words), np.uint64(ublk))
        waiting += width
        if waiting > np.uint64(_STRIPS) or position + np.uint64(1) == np.uint64(high):
            work[0] += np.int64(found & field)
            work[1] += np.int64((found >> np.uint64(_FIELD)) & field)
            work[2] += np.int64(found >> np.uint64(2 * _FIELD))
            found = waiting = np.uint64(0)


@jit
def keep_inside(
    us: F32, mo: U8, position: np.uint64, width: np.uint64, slots: U64, words: np.uint64, block: np.uint64
) -> None:
    """Write the slots of a position: the potentials whose bit in ``mo`` is set."""
    values = slots.view(np.float32)
    slot = position * ((width + block - np.uint64(1)) // block) * words
    for first in range(np.uint64(0), width, block):
        start, bitmap = position * width + first, np.uint64(0)
        for byte in range(min(block, width - first) >> np.uint64(3)):
            bitmap |= np.uint64(mo[(start >> np.uint64(3)) + byte]) << (byte << np.uint64(3))
        slots[slot] = bitmap
        target = (slot + np.uint64(1)) * np.uint64(2)
        while bitmap:
            values[target] = us[start + lowest(bitmap)]
            bitmap &= bitmap - np.uint64(1)
            target += np.uint64(1)
        slot += words


@jit
def differentiate_plain(
    gs: F32,
    us: F32,
    windows: U8,
    kept: U64,
    kept_words: int,
    ublk: int,
    ss: U8,
    par: F32,
    gc: F32,
    slots: U64,
    slot_words: int,
    gblk: int,
    k: int,
    flags: tuple[bool, bool, bool, bool, bool, bool],
    half_width: np.float32,
    height: np.float32,
    work: I64,
    low: int,
    high: int,
) -> None:
    """One step backwards for the positions ``low .. high-1``; ``work`` += live gradients, non-finite ones, potentials.

    ``gblk`` is a multiple of 16 too. Where ``ublk`` is not 0, the potentials inside the window stand in the slots
    ``kept`` of as many channels.
    """
    values = slots.view(np.float32)
    row = np.empty(k if ublk else 0, np.float32)
    u = row if ublk else us
    width, block, words, lanes = np.uint64(k), np.uint64(gblk), np.uint64(slot_words), np.uint64(LANES)
    blocks = (width + block - np.uint64(1)) // block
    live = broken = np.uint64(0)
    for position in range(np.uint64(low), np.uint64(high)):
        slot = position * blocks * words
        if ublk:
            work[2] += decode_where(kept, kept_words, False, np.int64(position), 1, k, ublk, row)
        for first in range(np.uint64(0), width, block):
            bitmap = np.uint64(0)
            for channel in range(first, min(first + block, width), lanes):
                at = position * width + channel
                known = channel if ublk else at
                strip = differentiate_strip(
                    gs, u, windows, ss, par, gc, at, channel, width, flags, half_width, height, known
                )
                bitmap |= (strip & np.uint64(0xFFFF)) << (channel - first)
                broken += strip >> lanes
            slots[slot] = bitmap
            live += population(bitmap)
            target, start = (slot + np.uint64(1)) * np.uint64(2), position * width + first
            while bitmap:
                values[target] = gc[start + lowest(bitmap)]
                bitmap &= bitmap - np.uint64(1)
                target += np.uint64(1)
            slot += words
    work[0] += np.int64(live)
    work[1] += np.int64(broken)
