"""Choice of tiles: pure functions from shapes and a machine to tile sizes.

A tile is as large as the on-chip memories allow with two slots per buffer. Dimensions shrink in a fixed order until
everything fits, so that the result is deterministic; :class:`TileLimits` caps every dimension from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from itertools import product
from math import gcd, prod
from typing import Any, NoReturn

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.mapping.cost import (
    LANES_OF_SHAPES,
    backward_cost,
    backward_job,
    fans_of,
    forward_cost,
    missing_rows,
    weights_cost,
    weights_job,
    what_stays,
)
from h2learn.compiler.mapping.layout import row_bytes, slot_channels
from h2learn.compiler.mapping.streams import OVERLAPS

JOB_CYCLES = 4096
"""An engine's job on one tile of a weight gradient, at 2,048 lanes: other streams that want the engine wait as long."""
BACKWARD_TURN, UPDATE_TURN = 2048, 768
"""The same for multipliers and for look-ups where streams come first that have little work at a time, as a head.

What waits on chip for the engine is gone after as many cycles as it took to come (1,280 for the head's weights on
``h2l-v0``), and more can come only then. Processing elements are busy alike only if there are many positions for each.
"""
AS_GOOD = 1.1
"""How much longer an estimate may be for an input gradient's job to keep more lanes busy: it tells no finer."""
SLOTS = 2  # every buffer that crosses engines is double-buffered
AHEAD = tuple(range(SLOTS, 9))
"""Slots of operands where jobs come between long ones of other streams: what waits on chip is done in one turn."""


CHOICES: dict[str, tuple[str, ...]] = {
    "overlap": tuple(OVERLAPS),
    "double_buffering": ("on", "off"),
    "operand_form": ("planes", "multipliers"),
    "potential": ("saved", "window"),
    "head": ("apart", "joined"),
    "entry": ("apart", "joined"),
    "jobs": ("short", "long"),
}
"""Values of the choices that are no numbers."""


@dataclass(frozen=True)
class TileLimits:
    """Upper bounds for tile sizes (None: as large as fits), and choices that the mapper would make otherwise.

    ``fan``: fan-in of the look-up tables. ``group``: samples that go through a training step together. ``groups``: the
    samples of every group, where they are not of one size. ``overlap``: which parts of it run side by side
    (``streams.OVERLAPS``). ``double_buffering``: ``off`` gives every buffer one slot instead of two, in the same tiles,
    so that nothing is loaded while the tile before is at work. ``operand_form``: how numbers that have bit-planes enter
    a convolution. ``potential``: whether all membrane potentials are saved for gradients, also where those inside the
    surrogate's window or the window's bits are enough. ``head``: whether the linear layers behind the maps are a part
    of their own. ``entry``: whether what comes before the first look-up is. ``jobs``: whether backward and update work
    gives way to other streams soon.
    """

    steps: int | None = None
    samples: int | None = None
    rows: int | None = None
    columns: int | None = None
    c: int | None = None
    k: int | None = None
    elements: int | None = None
    fan: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None
    overlap: str | None = None
    double_buffering: str | None = None
    operand_form: str | None = None
    potential: str | None = None
    head: str | None = None
    entry: str | None = None
    jobs: str | None = None

    @staticmethod
    def parse(text: str) -> TileLimits:
        """Parse ``"rows=4,k=8,overlap=serial"``; raises H2LearnError for unknown names and values."""
        known = {one.name for one in fields(TileLimits)}
        values: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, value = part.partition("=")
            if name in CHOICES:
                if value not in CHOICES[name]:
                    known_values = ", ".join(CHOICES[name])
                    raise H2LearnError(f"there is no {name} {value!r}", hint=f"known: {known_values}")
                values[name] = value
                continue
            if name == "groups":
                values[name] = _sizes(value)
                continue
            if name not in known or not value.isdigit() or int(value) < 1:
                raise H2LearnError(
                    f"cannot read the tile limit {part!r}",
                    hint=f"write name=count with a name of {', '.join(sorted(known))}",
                )
            values[name] = int(value)
        return TileLimits(**values)

    @property
    def slots(self) -> int:
        """Slots of a buffer between engines."""
        return 1 if self.double_buffering == "off" else SLOTS

    def __str__(self) -> str:
        """Return the text that ``parse`` reads."""
        pairs = ((one.name, getattr(self, one.name)) for one in fields(self))
        return ",".join(f"{name}={_text(value)}" for name, value in pairs if value is not None)


def _sizes(text: str) -> tuple[int, ...]:
    """Return the sizes of groups in ``"1+3+4"``; raises H2LearnError for anything else."""
    sizes = text.split("+")
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise H2LearnError(f"cannot read the groups {text!r}", hint="write the samples of each, such as groups=1+3+4+4")
    return tuple(int(size) for size in sizes)


def _text(value: int | str | tuple[int, ...]) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class ConvShape:
    """A convolution (a linear layer is one): ``static`` means the input has no time dimension.

    ``onto`` is the format of what the sums go on from, empty where they start at 0. ``planes``: the bit-planes as which
    real inputs go through the look-up tables (0: they go to the multipliers).
    """

    steps: int
    batch: int
    in_h: int
    in_w: int
    c: int
    out_h: int
    out_w: int
    k: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    real: bool
    static: bool
    item: int
    onto: str = ""
    planes: int = 0

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.kernel[0] * self.kernel[1]

    @property
    def covers_map(self) -> bool:
        """Whether the kernel is the whole map, as that of a linear layer behind one: its positions may be cut."""
        return self.taps > 1 and self.kernel == (self.in_h, self.in_w) and self.padding == (0, 0)

    def part(self, rows: int, columns: int) -> ConvShape:
        """Return the convolution of a part of the map with as large a part of the kernel that covers it."""
        return replace(self, kernel=(rows, columns), in_h=rows, in_w=columns)

    def under(self, rows: int, columns: int) -> ConvShape:
        """Return what a tile of an input gradient sees: of a kernel that covers the map the positions of the tile."""
        return self.part(rows, columns) if self.covers_map else self

    @property
    def looked_up(self) -> bool:
        """Whether the forward pass works by tables."""
        return not self.real or self.planes > 0

    @property
    def dtype(self) -> str:
        """Storage type."""
        return "f32" if self.item == 4 else "f16"


@dataclass(frozen=True)
class Tile:
    """Tile sizes: time steps, samples, rows and columns of positions, input and output channels.

    ``held``: slots of the buffers with results. One leaves room for larger tiles, but the engine that sums waits until
    the tile before is taken away. ``ahead``: slots of the buffers with operands, one of which is at work. ``taps``:
    kernel positions, whole rows of a kernel or a part of one (0: all).
    """

    steps: int
    samples: int
    rows: int
    columns: int
    c: int
    k: int
    held: int = field(default=SLOTS, kw_only=True)
    ahead: int = field(default=SLOTS, kw_only=True)
    taps: int = field(default=0, kw_only=True)

    @property
    def positions(self) -> int:
        """Positions of one time step."""
        return self.samples * self.rows * self.columns

    def seen(self, shape: ConvShape) -> ConvShape:
        """Return what a tile sees of a convolution: all of it, or the part that ``taps`` kernel positions cover."""
        if self.taps in (0, shape.taps):
            return shape
        return shape.part(max(1, self.taps // shape.kernel[1]), min(self.taps, shape.kernel[1]))

    def weights_stay(self, shape: ConvShape) -> bool:
        """Whether an input gradient loads its weights once for all positions of the stage's samples."""
        return self.k == shape.k and shape.under(self.rows, self.columns).taps == shape.taps

    def weight_slots(self, shape: ConvShape) -> int:
        """Return the slots of the weights of an input gradient: those that stay need no more than results have."""
        return self.held if self.weights_stay(shape) else self.ahead


@dataclass(frozen=True)
class ForwardTile(Tile):
    """Tile of a forward convolution; ``fan`` is the fan-in of its look-up tables."""

    fan: int

    @property
    def reduce_block(self) -> int:
        """Input channels summed before the next block starts."""
        return self.c


@dataclass(frozen=True)
class BackwardTile(Tile):
    """Tile of an input gradient: rows, columns and ``c`` describe the result.

    ``fused``: there is room for the neuron gradient that reads the result in the same stage. ``by_steps``: the engine
    has one job for each time step.
    """

    fused: bool
    by_steps: bool = field(default=False, kw_only=True)

    @property
    def reduce_block(self) -> int:
        """Output channels summed before the next block starts."""
        return self.k


@dataclass(frozen=True)
class SumTile(Tile):
    """Tile of sums over steps, samples, rows and columns."""

    @property
    def reduce_block(self) -> tuple[int, int, int, int]:
        """(steps, samples, rows, columns) of positions that form one flat block."""
        return (self.steps, self.samples, self.rows, self.columns)


@dataclass(frozen=True)
class WeightTile(SumTile):
    """Tile of a weight gradient: steps to columns are the reduction.

    ``by_tap``: an optimizer's step on it goes over one kernel position after the other. ``stay``: what is read once
    where all positions are one block, ``inputs`` or ``gradients``. ``by_steps``: the engine has one job for each time
    step.
    """

    by_tap: bool = False
    stay: str = ""
    by_steps: bool = False


@dataclass(frozen=True)
class Usage:
    """Bytes wanted per on-chip memory."""

    W: int = 0
    S: int = 0
    U: int = 0
    G: int = 0
    M: int = 0
    A: int = 0
    L: int = 0

    def fits(self, machine: Machine) -> bool:
        """Whether every memory of ``machine`` is large enough, with some room left for alignment."""
        return all(_fits(getattr(self, one.name), machine.memory_bytes(one.name)) for one in fields(self))


TOO_LONG = Usage(A=1 << 62)
"""Fits nowhere."""


def _fits(wanted: int, size: int) -> bool:
    room = 4096 if size > 32768 else 512
    return wanted == 0 or wanted + room <= size


@dataclass(frozen=True)
class NeuronKind:
    """What a stage keeps for its neurons: real states per neuron, rows of parameters, whether spikes are numbers.

    ``ublk``: only potentials inside the surrogate's window, in slots of so many channels (0: all, as they are).
    """

    states: int = 1
    rows: int = 4
    counts: bool = False
    ublk: int = 0

    def in_tile(self, k: int, channels: int) -> NeuronKind:
        """Return what a tile of ``k`` of the ``channels`` keeps: its slots are whole, here and in wider tiles."""
        return self if k == channels or not self.ublk else replace(self, ublk=gcd(k, self.ublk))

    def potential_bytes(self, channels: int, item: int) -> int:
        """Return the bytes in U of the saved potentials of a position."""
        dtype = "f32" if item == 4 else "f16"
        return row_bytes(f"inside.{dtype}", channels, self.ublk) if self.ublk else channels * item

    def membrane_bytes(self, outs: int, positions: int, channels: int, item: int, held: int = SLOTS) -> int:
        """Return the bytes in U of ``outs`` potentials (and counted spikes) and of the states of ``positions``."""
        plain = SLOTS * self.counts * outs + self.states * positions
        return held * outs * self.potential_bytes(channels, item) + plain * channels * item

    def spike_bytes(self, outs: int, positions: int, channels: int) -> int:
        """Return the bytes in S of ``outs`` spikes and of those of the step before."""
        return 0 if self.counts else (SLOTS * outs + positions) * row_bytes("bits", channels)

    def parameter_bytes(self, channels: int) -> int:
        """Return the bytes of the parameter rows of ``channels`` channels, all slots."""
        return SLOTS * self.rows * 4 * channels


PLAIN_NEURON = NeuronKind()


@dataclass(frozen=True)
class Joined:
    """Another layer that is summed in the same stage, ``block`` channels at a time; ``fan``: fan-in of its tables."""

    shape: ConvShape
    block: int
    fan: int = 0


def slot_cap(machine: Machine, limits: TileLimits) -> int:
    """Return the most channels of a gradient slot: 64, or 32 on a small machine, where a 64 x 64 weight tile crowds W.

    It depends on the engine, not on a memory: all parts of a training step must agree.
    """
    cap = 64 if machine.backward.elements >= 16 else 32
    return min(cap, limits.k or cap)


def input_extent(count: int, kernel: int, stride: int) -> int:
    """Return how many input rows (or columns) ``count`` output rows need."""
    return (count - 1) * stride + kernel


def gradient_extent(count: int, kernel: int, stride: int, padding: int) -> tuple[int, int, int]:
    """Return (rows of the gradient tile, row offset, first gradient row of tile 0) for ``count`` input rows.

    Tile ``i`` starts ``i * count / stride`` gradient rows later, which needs ``count`` to be a multiple of ``stride``
    unless there is one tile only.
    """
    first = (padding - kernel + 1) // stride
    offset = padding - stride * first
    return (count - 1 + offset) // stride + 1, offset, first


def backward_extent(shape: ConvShape, t: Tile) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return ``gradient_extent`` of a tile down and across; one gradient serves a whole map that a kernel covers."""
    if shape.covers_map:
        return (1, 0, 0), (1, 0, 0)
    down, across = (
        gradient_extent(count, kernel, stride, padding)
        for count, kernel, stride, padding in zip(
            (t.rows, t.columns), shape.kernel, shape.stride, shape.padding, strict=True
        )
    )
    return down, across


def choose_planes(shape: ConvShape, planes: int, machine: Machine, limits: TileLimits, *, looped: bool) -> bool:
    """Whether numbers of so many bit-planes better go through the tables than to the multipliers.

    That is decided by the estimated cycles of the stage, unless the limits say so. Raises H2LearnError if nothing fits.
    """
    if limits.operand_form is not None:
        return limits.operand_form == "planes"
    cycles = []
    for count in (planes, 0):
        form = replace(shape, planes=count)
        tile = plan_forward(form, machine, limits, looped=looped)
        cycles.append(forward_cost(form, tile, machine, tile.fan).cycles)
    return cycles[0] < cycles[1]


@cache
def plan_forward(
    shape: ConvShape,
    machine: Machine,
    limits: TileLimits,
    reduce_block: int | None = None,
    neuron: NeuronKind = PLAIN_NEURON,
    fan: int | None = None,
    *,
    looped: bool = False,
    joined: Joined | None = None,
    between: bool = False,
) -> ForwardTile:
    """Choose the tile of a forward convolution with the neuron behind it; raises H2LearnError when nothing fits.

    ``reduce_block`` pins the input channels per block, ``fan`` the fan-in of the tables, when they were chosen before.
    ``looped``: the loop over time steps is outside, and one step of whole samples is computed at a time. ``joined``:
    what is looked up in front. ``between``: its jobs come between long ones of other streams.
    """
    if fan is None and not shape.looked_up:
        fan = machine.forward.fan_in
    pinned = fan or limits.fan
    choices = _choices(shape, shape.out_h, shape.out_w, limits, {})
    if reduce_block is not None:
        choices["c"] = (reduce_block,)
    if looped:
        choices |= {"steps": (1,), "rows": (shape.out_h,), "columns": (shape.out_w,), "k": (shape.k,)}
    wait = _wait(machine) if between else 0.0
    best: list[tuple[float, ForwardTile]] = []
    for number in (pinned,) if pinned else fans_of(machine):

        def usage(t: Tile, number: int = number) -> Usage:
            return _forward_usage(shape, t, number, neuron, joined)

        def cost(t: Tile, number: int = number) -> float:
            return forward_cost(shape, t, machine, number, neuron.in_tile(t.k, shape.k).ublk, wait=wait).cycles

        found = _cheapest(choices, usage, cost, machine, ahead=AHEAD if between else (SLOTS,))
        if found is not None:
            best.append((found[0], ForwardTile(**found[1], fan=number)))
    return min(best, key=lambda pair: pair[0])[1] if best else _nothing_fits("forward tile", machine)


def _forward_usage(shape: ConvShape, t: Tile, fan: int, neuron: NeuronKind, joined: Joined | None = None) -> Usage:
    if joined is not None:
        alone = _forward_usage(shape, t, fan, neuron)
        beside = _forward_usage(joined.shape, replace(t, c=joined.block, taps=0), joined.fan, neuron)
        spikes = t.steps * t.samples * _inputs(joined.shape, t) * row_bytes("bits", joined.block)
        return replace(alone, W=alone.W + beside.W, L=alone.L + beside.L, S=alone.S + SLOTS * spikes)
    shape = t.seen(shape)
    images = t.samples * (1 if shape.static else t.steps)
    inputs = images * _inputs(shape, t)
    outs = t.steps * t.positions
    weights = shape.taps * t.c * t.k * shape.item
    tables = 0 if not shape.looked_up else shape.taps * -(-t.c // fan) * (1 << fan) * t.k * shape.item
    bits = row_bytes("bits", t.k)
    return Usage(
        W=t.ahead * weights,
        S=t.ahead * inputs * (shape.planes if shape.real else 1) * row_bytes("bits", t.c)
        + SLOTS * outs * bits * (shape.onto == "bits")
        + neuron.spike_bytes(outs, t.positions, t.k),
        U=(t.ahead * inputs * t.c * shape.item if shape.real else 0)
        + SLOTS * outs * t.k * shape.item * (shape.onto == "f16")
        + neuron.in_tile(t.k, shape.k).membrane_bytes(outs, t.positions, t.k, shape.item, t.held),
        M=SLOTS * outs * bits,
        A=t.held * images * t.rows * t.columns * t.k * 4 + neuron.parameter_bytes(t.k),
        L=SLOTS * tables,
    )


def _inputs(shape: ConvShape, t: Tile) -> int:
    """Return the input positions under a tile of one image."""
    ih = input_extent(t.rows, shape.kernel[0], shape.stride[0])
    return ih * input_extent(t.columns, shape.kernel[1], shape.stride[1])


@cache
def plan_backward(
    shape: ConvShape,
    machine: Machine,
    limits: TileLimits,
    reduce_block: int | None = None,
    *,
    neuron: NeuronKind | None,
    looped: bool = False,
    joined: Joined | None = None,
    gives_way: bool = False,
    between: bool = False,
) -> BackwardTile:
    """Choose the tile of an input gradient; raises H2LearnError if nothing fits.

    ``reduce_block`` pins the output channels per block when they were chosen before. ``neuron``: the neuron
    whose gradient alone reads the result; it joins the stage unless its slots leave no room, as with a kernel of very
    many taps. ``looped``: it must join, and one step of whole samples is computed at a time. ``joined``: what is summed
    in front. ``gives_way``: other streams come first at the engine, whose jobs should be short. ``between``: its own
    come between such.
    """
    if looped:
        return _plan_backward(shape, machine, limits, reduce_block, neuron, looped=True)
    plan = partial(_plan_backward, shape, machine, limits, reduce_block)
    if neuron is not None:
        with suppress(H2LearnError):
            return plan(neuron, joined=joined, gives_way=gives_way, between=between)
    return plan(None, joined=joined, gives_way=gives_way, between=between)


def _plan_backward(
    shape: ConvShape,
    machine: Machine,
    limits: TileLimits,
    reduce_block: int | None,
    neuron: NeuronKind | None,
    *,
    looped: bool = False,
    joined: Joined | None = None,
    gives_way: bool = False,
    between: bool = False,
) -> BackwardTile:
    fused = neuron is not None
    gblk_in = slot_channels(shape.k, slot_cap(machine, limits))
    gblk_out = slot_channels(shape.c, slot_cap(machine, limits))
    kept = None if neuron is None else replace(neuron, counts=False)  # their spikes are not read

    def usage(t: Tile) -> Usage:
        (gh, _, _), (gw, _, _) = backward_extent(shape, t)
        outs = t.steps * t.positions
        bits = row_bytes("bits", t.c)
        slots = f"slots.{shape.dtype}"
        gradients = t.ahead * t.steps * t.samples * gh * gw * row_bytes(slots, t.k, gblk_in)
        beside = 0
        if joined is not None:
            (gh, _, _), (gw, _, _) = backward_extent(joined.shape, t)
            gblk = slot_channels(joined.shape.k, slot_cap(machine, limits))
            gradients += SLOTS * t.steps * t.samples * gh * gw * row_bytes(slots, joined.block, gblk)
            beside = SLOTS * joined.shape.taps * t.c * joined.block * shape.item
        return Usage(
            W=beside + t.weight_slots(shape) * shape.under(t.rows, t.columns).taps * t.c * t.k * shape.item,
            S=SLOTS * outs * bits if fused else 0,
            U=kept.membrane_bytes(outs, t.positions, t.c, shape.item, t.held) if kept is not None else 0,
            G=gradients + (fused * t.held + (shape.onto == slots) * SLOTS) * outs * row_bytes(slots, t.c, gblk_out),
            M=SLOTS * outs * bits * (1 + fused),
            A=t.held * outs * t.c * 4 + (neuron.parameter_bytes(t.c) if neuron is not None else 0),
        )

    units = {
        "c": gblk_out if fused or shape.onto.startswith("slots.") else 8,
        "k": gblk_in,
        "rows": 1 if shape.covers_map else shape.stride[0],
        "columns": 1 if shape.covers_map else shape.stride[1],
    }
    choices = _choices(shape, shape.in_h, shape.in_w, limits, units)
    if shape.covers_map and shape.in_h > 1:
        choices["columns"] = (shape.in_w,)  # taps of a tile follow each other
    if reduce_block is not None:
        choices["k"] = (reduce_block,)
    if looped:
        choices |= {"steps": (1,), "rows": (shape.in_h,), "columns": (shape.in_w,), "c": (shape.c,)}
    ublk = 0 if neuron is None else neuron.ublk
    wait = _wait(machine) if between else 0.0

    def cheapest(usage: Callable[[Tile], Usage]) -> tuple[float, dict[str, int]] | None:
        return _cheapest(
            choices,
            usage,
            lambda t: backward_cost(shape, t, machine, (gblk_in, gblk_out), ublk, by_steps=gives_way, wait=wait).cycles,
            machine,
            (lambda t: backward_job(shape, replace(t, steps=1), machine)) if gives_way else None,
            _wait(machine),
            AHEAD if between else (SLOTS,),
        )

    def is_wide(t: Tile) -> bool:
        """Whether the lanes have enough rows, or as many as there are."""
        return t.c == shape.c or missing_rows(t, machine) == 0

    found = cheapest(usage)
    if found is not None and not (gives_way or between) and not is_wide(Tile(**found[1])):
        wide = cheapest(lambda t: usage(t) if is_wide(t) else TOO_LONG)
        found = wide if wide is not None and wide[0] <= found[0] * AS_GOOD else found
    if found is None:
        _nothing_fits("backward tile", machine)
    return BackwardTile(**found[1], fused=fused, by_steps=gives_way and found[1]["steps"] > 1)


@dataclass(frozen=True)
class StepBytes:
    """Bytes that an optimizer's step in the stage of a weight gradient takes per weight, in the memories A and W."""

    A: int = 0
    W: int = 0


@cache
def plan_weights(
    shape: ConvShape,
    machine: Machine,
    limits: TileLimits,
    reduce_block: tuple[int, int, int, int] | None = None,
    step: StepBytes = StepBytes(),
    *,
    gives_way: bool = False,
    together: int | None = None,
) -> WeightTile:
    """Choose the tile of a weight gradient (or, with c = 1 and one tap, of a bias); raises H2LearnError if none fits.

    ``reduce_block`` pins (steps, samples, rows, columns) when they were chosen before. ``step``: what the optimizer's
    step on each tile takes, if it is in the same stage: for all its kernel positions at once or one after the other.
    ``gives_way``: other streams come first at the engine, whose jobs should be short.
    ``together``: the samples of a block divide this number, not that of all samples.
    """
    gblk = slot_channels(shape.k, slot_cap(machine, limits))

    def usage(t: Tile, by_tap: bool) -> Usage:
        part = t.seen(shape)
        ih = input_extent(t.rows, part.kernel[0], shape.stride[0])
        iw = input_extent(t.columns, part.kernel[1], shape.stride[1])
        inputs = t.steps * t.samples * ih * iw
        at_once = 1 if by_tap else part.taps
        return Usage(
            S=0 if shape.real else SLOTS * inputs * row_bytes("bits", t.c),
            U=SLOTS * inputs * t.c * shape.item if shape.real else 0,
            G=SLOTS * t.steps * t.positions * row_bytes(f"slots.{shape.dtype}", t.k, gblk),
            A=t.held * t.c * t.k * (4 * part.taps + step.A * at_once) + (SLOTS * 64 if step.A else 0),
            W=t.held * t.c * t.k * step.W * at_once,
        )

    choices = _choices(shape, shape.out_h, shape.out_w, limits, {"k": gblk})
    if together is not None:
        choices["samples"] = tuple(_divisors(together, limits.samples, 1))
    if reduce_block is not None:
        for name, size in zip(("steps", "samples", "rows", "columns"), reduce_block, strict=True):
            choices[name] = (size,)

    unit = machine.weight_update
    speed = unit.lanes_k * unit.lanes_c / LANES_OF_SHAPES

    def by_steps(t: Tile) -> bool:
        """Whether each step may have its job: positions are looked up in groups, which must end with the step."""
        return gives_way and t.steps > 1 and (shape.real or t.positions % unit.fan_in == 0)

    def job(t: Tile) -> float:
        return weights_job(t.seen(shape), replace(t, steps=1) if by_steps(t) else t, machine) * speed

    turn = BACKWARD_TURN if shape.real else UPDATE_TURN

    def cheapest(by_tap: bool) -> tuple[float, dict[str, int]] | None:
        return _cheapest(
            choices,
            lambda t: usage(t, by_tap),
            lambda t: weights_cost(shape, t, machine, gblk, 2 * step.A + step.W, by_tap=by_tap).cycles,
            machine,
            job,
            turn if gives_way else JOB_CYCLES,
        )

    ways = [(by_tap, cheapest(by_tap)) for by_tap in ((False, True) if step.A and shape.taps > 1 else (False,))]
    found = [(*plan, by_tap) for by_tap, plan in ways if plan is not None]
    if not found:
        _nothing_fits("weight-gradient tile", machine)
    _, tile, by_tap = min(found, key=lambda plan: plan[0])
    chosen = Tile(**tile)
    stay = what_stays(shape, chosen, machine, gblk)
    return WeightTile(**vars(chosen), by_tap=by_tap, stay=stay, by_steps=by_steps(chosen))


def plan_positions(
    steps: int,
    batch: int,
    height: int,
    width: int,
    channels: int,
    usage: Callable[[Tile], Usage],
    machine: Machine,
    limits: TileLimits,
    *,
    whole_steps: bool = False,
    row_unit: int = 1,
    column_unit: int = 1,
) -> Tile:
    """Choose the tile of an element-wise or pooling stage over ``[steps, batch, height, width, channels]``.

    ``usage`` says what a tile (with ``c == k`` channels) needs; ``whole_steps`` keeps all time steps together; rows and
    columns are cut at multiples of the units. Raises H2LearnError when nothing fits.
    """
    shape = ConvShape(
        steps, batch, height, width, channels, height, width, channels, (1, 1), (1, 1), (0, 0), True, False, 4
    )
    units = {"k": slot_channels(channels, slot_cap(machine, limits)), "rows": row_unit, "columns": column_unit}
    choices = _choices(shape, height, width, limits, units)
    choices["c"] = (1,)
    if whole_steps:
        choices["steps"] = (steps,)
    order = ("samples", "rows", "k", "columns", "steps")
    return Tile(**_shrink(choices, order, usage, machine, "tile"))


def plan_sums(
    shape: Sequence[int],
    item: int,
    machine: Machine,
    limits: TileLimits,
    reduce_block: tuple[int, int, int, int] | None = None,
    *,
    gradients: bool = True,
) -> SumTile:
    """Choose the tile of sums per channel over fp32 values ``[steps, batch, height, width, channels]``.

    With ``gradients`` slots (``item`` bytes a value) lie beside the values. Tiles are whole everywhere, because zeros
    around a tensor would count in a variance. ``reduce_block`` pins (steps, samples, rows, columns) when they were
    chosen before. Raises H2LearnError when nothing fits.
    """
    gblk = slot_channels(shape[-1], slot_cap(machine, limits))
    slots = f"slots.{'f32' if item == 4 else 'f16'}"

    def usage(t: Tile) -> Usage:
        values = SLOTS * t.steps * t.positions
        beside = values * row_bytes(slots, t.k, gblk) if gradients else 0
        return Usage(A=values * t.k * 4 + SLOTS * 32 * t.k + SLOTS * 64, G=beside)

    return _whole_tiles(shape, gblk, usage, machine, limits, reduce_block)


def plan_constants(
    shape: Sequence[int],
    item: int,
    machine: Machine,
    limits: TileLimits,
    reduce_block: tuple[int, int, int, int] | None = None,
) -> SumTile:
    """Choose the tile of the gradients of neuron constants over ``[steps, batch, height, width, channels]``.

    Two gradients, potentials (``item`` bytes a value) and spikes are read. Otherwise as :func:`plan_sums`.
    """
    gblk = slot_channels(shape[-1], slot_cap(machine, limits))
    slots = f"slots.{'f32' if item == 4 else 'f16'}"

    def usage(t: Tile) -> Usage:
        values = SLOTS * t.steps * t.positions
        return Usage(
            A=SLOTS * 24 * t.k,
            G=2 * values * row_bytes(slots, t.k, gblk),
            U=values * t.k * item,
            S=values * row_bytes("bits", t.k),
        )

    return _whole_tiles(shape, gblk, usage, machine, limits, reduce_block)


def _whole_tiles(
    shape: Sequence[int],
    gblk: int,
    usage: Callable[[Tile], Usage],
    machine: Machine,
    limits: TileLimits,
    reduce_block: tuple[int, int, int, int] | None,
) -> SumTile:
    """Choose a tile whose sizes divide the ``shape``."""
    steps, batch, height, width, channels = shape
    choices: Choices = {
        "steps": tuple(_divisors(steps, limits.steps, 1)),
        "samples": tuple(_divisors(batch, limits.samples, 1)),
        "rows": tuple(_divisors(height, limits.rows, 1)),
        "columns": tuple(_divisors(width, limits.columns, 1)),
        "c": (1,),
        "k": tuple(_divisors(channels, limits.k, max(8, gblk))),
    }
    if reduce_block is not None:
        for name, size in zip(("steps", "samples", "rows", "columns"), reduce_block, strict=True):
            choices[name] = (size,)
    order = ("samples", "rows", "k", "columns", "steps")
    return SumTile(**_shrink(choices, order, usage, machine, "tile of sums"))


def plan_rows(shape: Sequence[int], bytes_per_element: int, capacity: int, limits: TileLimits) -> tuple[int, int]:
    """Return (elements per row, rows per tile) for an element-wise stage over a parameter of ``shape``.

    A row is as many of the last dimensions as fit one tile, or an equal part of the last; ``capacity`` is the memory
    for the ``bytes_per_element`` that all buffers together take.
    """
    most = max(1, capacity // (SLOTS * bytes_per_element))
    whole = (prod(shape[n:]) for n in range(len(shape)))
    per_row = next((size for size in whole if size <= most), 0) or next(
        size for size in _divisors(shape[-1], None, 1) if size <= most
    )
    elements = min(limits.elements or most, most)
    return per_row, max(1, min(prod(shape) // per_row, elements // per_row))


THINNEST_PLANE = 8
"""Channels of the thinnest planes in which a storage copy may lie: a tile has no fewer."""


def plan_channels(
    shape: Sequence[int], bytes_per_element: int, capacity: int, limits: TileLimits, burst: int
) -> tuple[int, int]:
    """Return (channels, rows per tile) for an element-wise stage over a parameter with a storage copy in planes.

    A tile has an equal part of some rows. Tensors of fp32 move the channels of a row together (whole rows, if those are
    all channels), the copy (fp16) all rows of a plane: such tiles are taken that need the fewest bursts of ``burst``
    bytes, of these the one with the most channels.
    """
    most = max(1, capacity // (SLOTS * bytes_per_element))
    most = min(limits.elements or most, most)
    unit = max(1, burst // (2 * THINNEST_PLANE))
    found: list[tuple[float, int, int]] = []
    for channels in _divisors(shape[-1], most, 1):
        rows = min(prod(shape[:-1]), most // channels)
        rows -= rows % unit if unit < rows < prod(shape[:-1]) else 0
        together = rows * channels if channels == shape[-1] else channels
        plane = gcd(channels, THINNEST_PLANE)
        moved = bytes_per_element * _waste(4 * together, burst) + 2 * _waste(2 * rows * plane, burst)
        found.append((moved, channels, rows))
    _, channels, rows = min(found, key=lambda one: one[0])
    return channels, rows


def _waste(size: int, burst: int) -> float:
    """Return how many times its bytes a row takes in whole bursts."""
    return -(-size // burst) * burst / size


Choices = dict[str, tuple[int, ...]]
CONV_ORDERS = (
    ("taps", "samples", "rows", "columns", "steps"),
    ("taps", "samples", "steps", "rows", "columns"),
    ("steps", "samples", "rows", "columns", "taps"),
)
"""Orders in which dimensions shrink: cut steps have no halo, cut rows and samples leave the weights on chip longer."""


def _choices(shape: ConvShape, height: int, width: int, limits: TileLimits, units: Mapping[str, int]) -> Choices:
    """Return the legal sizes of every dimension from large to small; ``units`` says of what they are multiples."""
    return {
        "steps": tuple(_divisors(shape.steps, limits.steps, 1)),
        "samples": tuple(_divisors(shape.batch, limits.samples, 1)),
        "rows": tuple(_extents(height, limits.rows, units.get("rows", 1))),
        "columns": tuple(_extents(width, limits.columns, units.get("columns", 1))),
        "c": tuple(_divisors(shape.c, limits.c, max(8, units.get("c", 8)))),
        "k": tuple(_divisors(shape.k, limits.k, max(8, units.get("k", 8)))),
        "taps": tuple(_kernel_parts(shape)),
    }


def _kernel_parts(shape: ConvShape) -> Iterator[int]:
    """Yield how many positions of a kernel a tile may have: all, or where it covers the map some rows, or less."""
    if not shape.covers_map:
        yield shape.taps
        return
    rows, columns = shape.kernel
    yield from (count * columns for count in _divisors(rows, None, 1))
    yield from (count for count in _divisors(columns, None, 1) if count < columns)


def _wait(machine: Machine) -> float:
    """Return the cycles of the multipliers' longest jobs where they give way to others."""
    return BACKWARD_TURN * LANES_OF_SHAPES / (machine.backward.elements * machine.backward.width)


def _cheapest(
    choices: Choices,
    usage: Callable[[Tile], Usage],
    cost: Callable[[Tile], float],
    machine: Machine,
    job: Callable[[Tile], float] | None = None,
    longest: float = 0,
    ahead: Sequence[int] = (SLOTS,),
) -> tuple[float, dict[str, int]] | None:
    """Return cost and sizes of the cheapest tile that fits: for each pair of channel counts the largest that do.

    ``job``: cycles of an engine's job on a tile; those of more than ``longest`` are taken only if no others fit.
    ``ahead``: how many slots buffers with operands may have.
    """
    if job is not None:
        short = _cheapest(choices, lambda t: usage(t) if job(t) <= longest else TOO_LONG, cost, machine, ahead=ahead)
        return short or _cheapest(choices, usage, cost, machine, ahead=ahead)
    best: tuple[float, dict[str, int]] | None = None
    for k in choices["k"]:
        for c in choices["c"]:
            seen: list[dict[str, int]] = []
            for held, slots, order in product((SLOTS, 1), ahead, CONV_ORDERS):
                pinned = {"k": (k,), "c": (c,), "held": (held,), "ahead": (slots,)}
                sizes = _largest({**choices, **pinned}, order, usage, machine)
                if sizes is None or sizes in seen:
                    continue
                seen.append(sizes)
                cycles = cost(Tile(**sizes))
                if best is None or cycles < best[0]:
                    best = cycles, sizes
    return best


def _shrink(
    choices: Choices, order: Sequence[str], usage: Callable[[Tile], Usage], machine: Machine, what: str
) -> dict[str, int]:
    return _largest(choices, order, usage, machine) or _nothing_fits(what, machine)


def _largest(
    choices: Choices, order: Sequence[str], usage: Callable[[Tile], Usage], machine: Machine
) -> dict[str, int] | None:
    """Return the largest tile that fits, shrinking dimensions in ``order``."""
    sizes = {name: values[0] for name, values in choices.items()}
    if usage(Tile(**sizes)).fits(machine):
        return sizes
    for name in order:
        for value in choices[name][1:]:
            sizes[name] = value
            if usage(Tile(**sizes)).fits(machine):
                return _regrow(sizes, choices, order, usage, machine)
    return None


def _nothing_fits(what: str, machine: Machine) -> NoReturn:
    raise H2LearnError(
        f"no {what} fits the on-chip memories of {machine.name}",
        hint="use a machine with more SRAM, or fewer channels",
    )


def _regrow(
    sizes: dict[str, int],
    choices: Choices,
    order: Sequence[str],
    usage: Callable[[Tile], Usage],
    machine: Machine,
) -> dict[str, int]:
    """Give back what an early dimension lost before a later one made room."""
    for name in reversed(order):
        for value in choices[name]:
            grown = {**sizes, name: value}
            if value > sizes[name] and usage(Tile(**grown)).fits(machine):
                sizes = grown
                break
    return sizes


def _divisors(count: int, cap: int | None, unit: int) -> Iterator[int]:
    """Yield divisors of ``count`` from large to small that are multiples of ``unit`` (or the count itself)."""
    legal = [d for d in range(count, 0, -1) if count % d == 0 and (d % unit == 0 or d == count)]
    capped = [d for d in legal if cap is None or d <= cap]
    yield from capped or legal[-1:]


def _extents(count: int, cap: int | None, unit: int) -> Iterator[int]:
    """Yield tile extents from large to small: the count cut into 1, 2, 3 ... nearly equal parts."""
    seen: set[int] = set()
    for parts in range(1, count + 1):
        extent = _round_up(-(-count // parts), unit)
        if extent in seen or (cap is not None and extent > max(cap, unit)):
            continue
        seen.add(extent)
        yield extent


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
