"""Choice of tiles: pure functions from shapes and a machine to tile sizes.

A tile is as large as the on-chip memories allow with two slots per buffer. Dimensions shrink in a fixed order until
everything fits, so that the result is deterministic; :class:`TileLimits` caps every dimension from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial

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
from h2learn.compiler.mapping.limits import SLOTS, TileLimits
from h2learn.compiler.mapping.streams import Jobs
from h2learn.compiler.mapping.tile_search import TOO_LONG, cheapest_tile, choices_of, divisors, nothing_fits
from h2learn.compiler.mapping.tiles import (
    PLAIN_NEURON,
    BackwardTile,
    ConvShape,
    ForwardTile,
    Joined,
    NeuronKind,
    Tile,
    Usage,
    WeightTile,
    backward_extent,
    input_extent,
    slot_cap,
)

JOB_CYCLES = 4096
"""An engine's job on one tile of a weight gradient, at 2,048 lanes: other streams that want the engine wait as long."""
BACKWARD_TURN, UPDATE_TURN = 2048, 768
"""The same for multipliers and for look-ups where streams come first that have little work at a time, as a head.

What waits on chip for the engine is gone after as many cycles as it took to come (1,280 for the head's weights on
``h2l-v0``), and more can come only then. Processing elements are busy alike only if there are many positions for each.
"""
AS_GOOD = 1.1
"""How much longer an estimate may be for an input gradient's job to keep more lanes busy: it tells no finer."""
AHEAD = tuple(range(SLOTS, 9))
"""Slots of operands where jobs come between long ones of other streams: what waits on chip is done in one turn."""


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
    jobs: Jobs = Jobs.LONG,
) -> ForwardTile:
    """Choose the tile of a forward convolution with the neuron behind it; raises H2LearnError when nothing fits.

    ``reduce_block`` pins the input channels per block, ``fan`` the fan-in of the tables, when they were chosen before.
    ``looped``: the loop over time steps is outside, and one step of whole samples is computed at a time. ``joined``:
    what is looked up in front. ``jobs``: how its own stand to those of other streams.
    """
    if fan is None and not shape.looked_up:
        fan = machine.forward.fan_in
    pinned = fan or limits.fan
    choices = choices_of(shape, shape.out_h, shape.out_w, limits, {})
    if reduce_block is not None:
        choices["c"] = (reduce_block,)
    if looped:
        choices |= {"steps": (1,), "rows": (shape.out_h,), "columns": (shape.out_w,), "k": (shape.k,)}
    wait = _wait(machine) if jobs is Jobs.BETWEEN else 0.0

    def cheapest(*, once: bool) -> list[tuple[float, ForwardTile]]:
        """Return the cheapest tile of every fan-in; ``once``: weights and tables that never change have one slot."""
        best = []
        for number in (pinned,) if pinned else fans_of(machine):

            def usage(t: Tile, number: int = number) -> Usage:
                return _forward_usage(shape, t, number, neuron, joined, once=once)

            def cost(t: Tile, number: int = number) -> float:
                return forward_cost(shape, t, machine, number, neuron.in_tile(t.k, shape.k).ublk, wait=wait).cycles

            found = cheapest_tile(choices, usage, cost, machine, ahead=AHEAD if jobs is Jobs.BETWEEN else (SLOTS,))
            if found is not None:
                best.append((found[0], ForwardTile(**found[1], fan=number)))
        return best

    best = cheapest(once=False)
    if not best and joined is None:  # two layers in one stage are worth two slots, or stand apart
        best = cheapest(once=True)
    return min(best, key=lambda pair: pair[0])[1] if best else nothing_fits("forward tile", machine, (shape.c, shape.k))


def _forward_usage(
    shape: ConvShape, t: Tile, fan: int, neuron: NeuronKind, joined: Joined | None = None, *, once: bool = False
) -> Usage:
    """Return what a tile wants on chip; ``once``: a tile that has all weights has one slot of them and their tables."""
    once = once and (t.c, t.k, t.seen(shape).taps) == (shape.c, shape.k, shape.taps)
    if joined is not None:
        alone = _forward_usage(shape, t, fan, neuron)
        beside = _forward_usage(joined.shape, replace(t, c=joined.block, taps=0), joined.fan, neuron)
        spikes = t.steps * t.samples * _inputs(joined.shape, t) * row_bytes("bits", joined.block)
        return replace(alone, W=alone.W + beside.W, L=alone.L + beside.L, S=alone.S + t.ahead * spikes)
    shape = t.seen(shape)
    images = t.samples * (1 if shape.static else t.steps)
    inputs = images * _inputs(shape, t)
    outs = t.steps * t.positions
    weights = shape.taps * t.c * t.k * shape.item
    tables = 0 if not shape.looked_up else shape.taps * -(-t.c // fan) * (1 << fan) * t.k * shape.item
    bits = row_bytes("bits", t.k)
    return Usage(
        W=(1 if once else t.ahead) * weights,
        S=t.ahead * inputs * (shape.planes if shape.real else 1) * row_bytes("bits", t.c)
        + SLOTS * outs * bits * (shape.onto == "bits")
        + neuron.spike_bytes(outs, t.positions, t.k),
        U=(t.ahead * inputs * t.c * shape.item if shape.real else 0)
        + SLOTS * outs * t.k * shape.item * (shape.onto == "f16")
        + neuron.in_tile(t.k, shape.k).membrane_bytes(outs, t.positions, t.k, shape.item, t.held),
        M=SLOTS * outs * bits,
        A=t.held * images * t.rows * t.columns * t.k * 4 + neuron.parameter_bytes(t.k),
        L=(1 if once else SLOTS) * tables,
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
    jobs: Jobs = Jobs.LONG,
) -> BackwardTile:
    """Choose the tile of an input gradient; raises H2LearnError if nothing fits.

    ``reduce_block`` pins the output channels per block when they were chosen before. ``neuron``: the neuron
    whose gradient alone reads the result; it joins the stage unless its slots leave no room, as with a kernel of very
    many taps. ``looped``: it must join, and one step of whole samples is computed at a time. ``joined``: what is summed
    in front. ``jobs``: how its own stand to those of other streams.
    """
    if looped:
        return _plan_backward(shape, machine, limits, reduce_block, neuron, looped=True)
    plan = partial(_plan_backward, shape, machine, limits, reduce_block)
    if neuron is not None:
        with suppress(H2LearnError):
            return plan(neuron, joined=joined, jobs=jobs)
    return plan(None, joined=joined, jobs=jobs)


def _plan_backward(
    shape: ConvShape,
    machine: Machine,
    limits: TileLimits,
    reduce_block: int | None,
    neuron: NeuronKind | None,
    *,
    looped: bool = False,
    joined: Joined | None = None,
    jobs: Jobs = Jobs.LONG,
) -> BackwardTile:
    fused, short = neuron is not None, jobs is Jobs.SHORT
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
            gradients += t.ahead * t.steps * t.samples * gh * gw * row_bytes(slots, joined.block, gblk)
            beside = t.ahead * joined.shape.taps * t.c * joined.block * shape.item
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
    choices = choices_of(shape, shape.in_h, shape.in_w, limits, units)
    if shape.covers_map and shape.in_h > 1:
        choices["columns"] = (shape.in_w,)  # taps of a tile follow each other
    if reduce_block is not None:
        choices["k"] = (reduce_block,)
    if looped:
        choices |= {"steps": (1,), "rows": (shape.in_h,), "columns": (shape.in_w,), "c": (shape.c,)}
    ublk = 0 if neuron is None else neuron.ublk
    wait = _wait(machine) if jobs is Jobs.BETWEEN else 0.0

    def cheapest(usage: Callable[[Tile], Usage]) -> tuple[float, dict[str, int]] | None:
        return cheapest_tile(
            choices,
            usage,
            lambda t: backward_cost(shape, t, machine, (gblk_in, gblk_out), ublk, by_steps=short, wait=wait).cycles,
            machine,
            (lambda t: backward_job(shape, replace(t, steps=1), machine)) if short else None,
            _wait(machine),
            AHEAD if jobs is Jobs.BETWEEN else (SLOTS,),
        )

    def is_wide(t: Tile) -> bool:
        """Whether the lanes have enough rows, or as many as there are."""
        return t.c == shape.c or missing_rows(t, machine) == 0

    found = cheapest(usage)
    if found is not None and jobs is Jobs.LONG and not is_wide(Tile(**found[1])):
        wide = cheapest(lambda t: usage(t) if is_wide(t) else TOO_LONG)
        found = wide if wide is not None and wide[0] <= found[0] * AS_GOOD else found
    if found is None:
        nothing_fits("backward tile", machine, (shape.c, shape.k))
    return BackwardTile(**found[1], fused=fused, by_steps=short and found[1]["steps"] > 1)


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
    jobs: Jobs = Jobs.LONG,
    together: int | None = None,
) -> WeightTile:
    """Choose the tile of a weight gradient (or, with c = 1 and one tap, of a bias); raises H2LearnError if none fits.

    ``reduce_block`` pins (steps, samples, rows, columns) when they were chosen before. ``step``: what the optimizer's
    step on each tile takes, if it is in the same stage: for all its kernel positions at once or one after the other.
    ``jobs``: how its own stand to those of other streams.
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

    choices = choices_of(shape, shape.out_h, shape.out_w, limits, {"k": gblk})
    if together is not None:
        choices["samples"] = tuple(divisors(together, limits.samples, 1))
    if reduce_block is not None:
        for name, size in zip(("steps", "samples", "rows", "columns"), reduce_block, strict=True):
            choices[name] = (size,)

    unit, short = machine.weight_update, jobs is Jobs.SHORT
    speed = unit.lanes_k * unit.lanes_c / LANES_OF_SHAPES

    def by_steps(t: Tile) -> bool:
        """Whether each step may have its job: positions are looked up in groups, which must end with the step."""
        return short and t.steps > 1 and (shape.real or t.positions % unit.fan_in == 0)

    def job(t: Tile) -> float:
        return weights_job(t.seen(shape), replace(t, steps=1) if by_steps(t) else t, machine) * speed

    turn = BACKWARD_TURN if shape.real else UPDATE_TURN

    def cheapest(by_tap: bool) -> tuple[float, dict[str, int]] | None:
        return cheapest_tile(
            choices,
            lambda t: usage(t, by_tap),
            lambda t: weights_cost(shape, t, machine, gblk, 2 * step.A + step.W, by_tap=by_tap).cycles,
            machine,
            job,
            turn if short else JOB_CYCLES,
        )

    ways = [(by_tap, cheapest(by_tap)) for by_tap in ((False, True) if step.A and shape.taps > 1 else (False,))]
    found = [(*plan, by_tap) for by_tap, plan in ways if plan is not None]
    if not found:
        nothing_fits("weight-gradient tile", machine, (shape.c, shape.k))
    _, tile, by_tap = min(found, key=lambda plan: plan[0])
    chosen = Tile(**tile)
    stay = what_stays(shape, chosen, machine, gblk)
    return WeightTile(**vars(chosen), by_tap=by_tap, stay=stay, by_steps=by_steps(chosen))


def _wait(machine: Machine) -> float:
    """Return the cycles of the multipliers' longest jobs where they give way to others."""
    return BACKWARD_TURN * LANES_OF_SHAPES / (machine.backward.elements * machine.backward.width)
