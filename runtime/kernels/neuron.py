"""The common neuron step and its gradient, sixteen neurons at a time in vector registers.

For float32 storage, currents without drive or synapse, reset to a value, by subtraction or none, and a multiple of 16
channels. Spikes and masks stay bits: a comparison of sixteen lanes *is* sixteen packed bits. The arithmetic is that of
``vector.py``, element by element, whatever the vector width; nothing is contracted.
"""

# numba.core comes without type annotations; kernels follow Numba's typing rules for unsigned integers.
# mypy: disable-error-code="no-untyped-call, assignment, operator, arg-type, call-arg, no-any-return, var-annotated"

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # comes without stubs
from numba.core import cgutils, types
from numba.extending import intrinsic

from ..jit import jit
from .bits import EXPONENT, F32, I64, U8, U64, population
from .compaction import apart, count_chosen, load_first, store_first, together
from .rows import LANES, splat

_BIT, _SHORT, _U32, _WORD = (ir.IntType(bits) for bits in (1, LANES, 32, 64))
_FLOATS, _BITS, _WORDS = (ir.VectorType(kind, LANES) for kind in (ir.FloatType(), _BIT, _U32))
_ALL = np.uint64((1 << LANES) - 1)


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

    def put_chosen(self, index: int, at: Any, value: Any, chosen: Any) -> None:
        """Store the chosen lanes (a 16-bit number) one behind the other."""
        packed = together(self.context, self.builder, value, chosen)
        place = self.builder.gep(self.data(index), [at])
        store_first(self.builder, packed, place, count_chosen(self.builder, chosen))

    def chosen_floats(self, index: int, at: Any, chosen: Any) -> Any:
        """Load the chosen lanes, which stand one behind the other; the others are NaN."""
        place = self.builder.gep(self.data(index), [at])
        packed = load_first(self.builder, place, count_chosen(self.builder, chosen))
        return apart(self.context, self.builder, packed, chosen, self.constant(math.nan))

    def number(self, mask: Any) -> Any:
        """Return a mask of all lanes as a 16-bit number."""
        return self.builder.bitcast(mask, _SHORT)

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
        return splat(self.builder, bit)

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
        return self.builder.fcmp_ordered("<", distance, splat(self.builder, half_width))

    def fields(self, *masks: Any) -> Any:
        """Return masks of all lanes as fields of 16 bits in a word, the first one lowest."""
        word = _WORD(0)
        for place, mask in enumerate(masks):
            field = self.builder.zext(self.number(mask), _WORD)
            word = self.builder.or_(word, self.builder.shl(field, _WORD(LANES * place)))
        return word


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
    kept: Any,
    target: Any,
) -> Any:
    """Step the sixteen neurons from element ``at`` on; returns spikes, mask and non-finite ones as fields of 16 bits.

    ``flags``: init, hard, soft, greater-or-equal, never, save_u, save_m, windowed, and whether the potentials that the
    mask has go to ``kept`` from ``target`` on.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        strip = _Strip(context, builder, signature, args, 7)
        init, hard, soft, inclusive, never, save_u, save_m, windowed, inside = (
            strip.bit(builder.extract_value(args[10], i)) for i in range(9)
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
        spikes, mask = (cgutils.alloca_once_value(builder, ir.Constant(_BITS, [0] * LANES)) for _ in range(2))
        with builder.if_then(builder.not_(never)):
            above, reached = builder.fcmp_ordered(">", u, theta), builder.fcmp_ordered(">=", u, theta)
            fired = builder.select(inclusive, reached, above)
            strip.put_bits(4, fired)
            strip.put_bits(5, fired)
            builder.store(fired, spikes)
        with builder.if_then(builder.or_(save_m, inside)):
            everything = builder.or_(never, builder.not_(windowed))
            passed = builder.or_(strip.within(u, theta, args[11]), strip.flag(everything))
            builder.store(passed, mask)
            with builder.if_then(save_m):
                strip.put_bits(6, passed)
            with builder.if_then(inside):
                strip.put_chosen(12, args[13], u, strip.number(passed))
        return strip.fields(builder.load(spikes), builder.load(mask), strip.is_broken(u))

    return types.uint64(acc, par, us, uo, ss, so, mo, at, channel, width, flags, half_width, kept, target), codegen


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
    chosen: Any,
    kept: Any,
    source: Any,
    slots: Any,
    target: Any,
) -> Any:
    """Step sixteen neurons backwards; returns which gradients are not 0, and not finite, as fields of 16 bits.

    Those that are not 0 go to ``slots`` from ``target`` on. ``flags``: init, hard, soft, detach, never, whether
    ``windows`` has bits for the potentials inside the rectangular window of the surrogate (then there are no
    potentials, and nothing goes through the reset), and whether instead of all potentials those of the neurons
    ``chosen`` (16 bits) stand in ``kept``, from ``source`` on.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        strip = _Strip(context, builder, signature, args, 6)
        init, hard, soft, detach, never, seen, inside = (strip.bit(builder.extract_value(args[9], i)) for i in range(7))
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
                        known = cgutils.alloca_once(builder, _FLOATS)
                        with builder.if_else(inside) as (some, every):
                            with some:
                                bits = builder.trunc(args[12], _SHORT)
                                builder.store(strip.chosen_floats(13, args[14], bits), known)
                            with every:
                                builder.store(strip.floats(1), known)
                        u, theta = builder.load(known), strip.parameter(4, 2)
                        builder.store(strip.within(u, theta, args[10]), window)
                        with builder.if_then(builder.and_(builder.not_(detach), builder.or_(hard, soft))):
                            height_of_reset = builder.select(hard, builder.fsub(u, strip.parameter(4, 3)), theta)
                            lost = builder.fmul(builder.fmul(alpha, height_of_reset), following)
                            builder.store(builder.fsub(g, lost), entering)
                kept = cgutils.alloca_once_value(builder, carried)
                with builder.if_then(hard):
                    builder.store(builder.select(strip.bits(3), zero, carried), kept)
                rest = builder.load(kept)
                passed = builder.fadd(builder.fmul(splat(builder, args[11]), builder.load(entering)), rest)
                flat = builder.fcmp_unordered("!=", args[11], ir.Constant(ir.FloatType(), 0.0))
                inside = builder.and_(builder.load(window), strip.flag(flat))
                builder.store(builder.select(inside, passed, rest), result)
        gu = builder.load(result)
        strip.put_floats(5, gu)
        live = builder.fcmp_unordered("!=", gu, zero)
        strip.put_chosen(15, args[16], gu, strip.number(live))
        return strip.fields(live, strip.is_broken(gu))

    taken = (gs, us, windows, ss, par, gc, at, channel, width, flags, half_width, height)
    return types.uint64(*taken, chosen, kept, source, slots, target), codegen


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
    flags: tuple[bool, bool, bool, bool, bool, bool, bool, bool, bool],
    half_width: np.float32,
    work: I64,
    low: int,
    high: int,
) -> None:
    """One neuron step for the positions ``low .. high-1``; ``work`` += (spikes, mask bits, non-finite membranes).

    ``flags``: see ``integrate_strip``; with the last one ``slots`` of ``ublk`` channels (a multiple of 16) take the
    potentials that the mask has.
    """
    inside, kept = flags[8], slots.view(np.float32)
    width, words, lanes = np.uint64(k), np.uint64(slot_words), np.uint64(LANES)
    block = np.uint64(ublk) if inside else width
    slot, at = np.uint64(low) * ((width + block - np.uint64(1)) // block) * words, np.uint64(low) * width
    fired = passed = broken = np.uint64(0)
    for _ in range(np.uint64(low), np.uint64(high)):
        for first in range(np.uint64(0), width, block):
            bitmap, target = np.uint64(0), (slot + np.uint64(1)) * np.uint64(2)
            for channel in range(first, min(first + block, width), lanes):
                strip = integrate_strip(
                    acc, par, us, uo, ss, so, mo, at, channel, width, flags, half_width, kept, target
                )
                mask = (strip >> lanes) & _ALL
                bitmap |= mask << ((channel - first) & np.uint64(63))
                target += population(mask)
                passed += population(mask)
                fired += population(strip & _ALL)
                broken += population(strip >> (lanes + lanes))
                at += lanes
            if inside:
                slots[slot] = bitmap
                slot += words
    work[0] += np.int64(fired)
    work[1] += np.int64(passed)
    work[2] += np.int64(broken)


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
    flags: tuple[bool, bool, bool, bool, bool, bool, bool],
    half_width: np.float32,
    height: np.float32,
    work: I64,
    low: int,
    high: int,
) -> None:
    """One step backwards for the positions ``low .. high-1``; ``work`` += live gradients, non-finite ones, potentials.

    ``gblk`` is a multiple of 16 too. ``flags``: see ``differentiate_strip``; with the last one the potentials inside
    the window stand in the slots ``kept`` of ``ublk`` channels, a multiple of 16.
    """
    inside, values, potentials = flags[6], slots.view(np.float32), kept.view(np.float32)
    width, block, words, lanes = np.uint64(k), np.uint64(gblk), np.uint64(slot_words), np.uint64(LANES)
    kept_block, kept_size = np.uint64(ublk if inside else k), np.uint64(kept_words)
    slot = np.uint64(low) * ((width + block - np.uint64(1)) // block) * words
    kept_slot = np.uint64(low) * ((width + kept_block - np.uint64(1)) // kept_block) * kept_size
    at = np.uint64(low) * width
    live = broken = held = chosen = source = np.uint64(0)
    for _ in range(np.uint64(low), np.uint64(high)):
        unread = np.uint64(0)
        for first in range(np.uint64(0), width, block):
            bitmap, target = np.uint64(0), (slot + np.uint64(1)) * np.uint64(2)
            for channel in range(first, min(first + block, width), lanes):
                if inside:
                    chosen >>= lanes
                    if unread == np.uint64(0):
                        chosen, source = kept[kept_slot], (kept_slot + np.uint64(1)) * np.uint64(2)
                        kept_slot, unread = kept_slot + kept_size, kept_block
                    unread -= lanes
                strip = differentiate_strip(
                    *(gs, us, windows, ss, par, gc, at, channel, width, flags, half_width, height),
                    *(chosen, potentials, source, values, target),
                )
                bits = strip & _ALL
                bitmap |= bits << (channel - first)
                target += population(bits)
                broken += population(strip >> lanes)
                source += population(chosen & _ALL)
                held += population(chosen & _ALL)
                at += lanes
            slots[slot] = bitmap
            slot += words
            live += population(bitmap)
    work[0] += np.int64(live)
    work[1] += np.int64(broken)
    work[2] += np.int64(held)
