"""Stages around the look-up and multiplier engines: forward with neurons, input gradient with neurons, weight gradient.

A loop that would run once is not there, so the shape of the program depends on which dimensions a tile covers, never on
how often the others are cut.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from math import prod
from types import MappingProxyType

from xdsl.ir import SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import PARAMETER_ROWS
from h2learn.compiler.mapping.cost import defers_weights
from h2learn.compiler.mapping.limits import SLOTS
from h2learn.compiler.mapping.tiles import ConvShape, WeightTile
from h2learn.compiler.mapping.tiling import plan_backward, plan_weights
from h2learn.compiler.passes.optimizer_step import OptimizerStep, is_returned, step_bytes
from h2learn.compiler.passes.stage_builder import Affine, Start
from h2learn.compiler.passes.summed_layers import (
    Area,
    Part,
    Summed,
    Through,
    conv_shape,
    current_shape,
    geometry_params,
    gradient_shape,
    input_of,
    joined_current,
    joined_gradient,
    load_input,
    neuron_behind,
    plan_current,
)
from h2learn.compiler.passes.tile_context import (
    Cut,
    TileContext,
    Window,
    activation_window,
    images,
    only_user,
    trips,
    used,
)
from h2learn.dialects import lut, tile
from h2learn.dialects.lut.attributes import MaskType, shape_of

NOTHING: Mapping[SSAValue, SSAValue] = MappingProxyType({})


def lower_forward(ctx: TileContext, op: lut.FeConvOp | lut.BeConvOp, *, fed_back: bool = False) -> None:
    """Lower a forward convolution; the neuron that alone reads its current joins the stage.

    So does the convolution on whose sums it goes on. ``fed_back``: its input are the spikes of this neuron one step
    earlier.
    """
    goes_on = only_user(op.current, lut.FeConvOp)
    if isinstance(goes_on, lut.FeConvOp) and joined_current(ctx, goes_on) is not None:
        return
    neuron = neuron_behind(op)
    x = input_of(op)
    shape = current_shape(ctx, op)
    steps = shape.steps
    batch = shape_of(op.current.type)[-4]
    other = None if fed_back else joined_current(ctx, op)
    t = plan_current(ctx, op, looped=fed_back, joined=other and other[1])
    b = ctx.builder
    label = ctx.label("forward", op)
    onto = ctx.values[op.onto] if op.onto is not None and other is None else None
    current = None if neuron is not None else ctx.declare(op.current, f"{label}.current")
    stage = None if neuron is None else NeuronStep(ctx, neuron, label, shape.k, t.k)
    if fed_back and neuron is not None:
        ctx.values[x] = ctx.values[neuron.results[0]]
    source = ctx.values[x]
    summed = Summed(ctx, op, shape, t)
    beside = None
    if other is not None:
        beside = Summed(ctx, other[0], other[1].shape, replace(t, c=other[1].block, fan=other[1].fan, taps=0))
    static_steps = 1 if shape.static else t.steps
    with b.stage(label, op.location), b.loop("k", trips(shape.k, t.k)) as ik:
        par = stage.parameters(ik * t.k, t.k) if stage is not None else None
        for one in filter(None, (beside, summed)):
            one.hold(ik)
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(shape.out_h, t.rows)) as y,
            b.loop("x", trips(shape.out_w, t.columns)) as x_,
        ):
            area = Area(t.samples, t.rows, t.columns, n, y, x_)
            state = stage.state(area, t.k) if stage is not None else None
            before = state.get("ss") if fed_back and state is not None and summed.whole else None
            if before is not None:
                b.load(source, before, *activation_window(source, Cut(-1, 1), *area.cuts, Cut(0, t.k)))

            def accumulate(time: Start) -> SSAValue:
                shape_of_acc = (static_steps, t.samples, t.rows, t.columns, t.k)
                dims = shape_of_acc[1:] if shape.static else shape_of_acc
                acc = b.alloc("current", "A", "f32", dims, slots=t.held)
                if onto is not None:
                    begin(ctx, acc, onto, activation_window(onto, Cut(time, t.steps), *area.cuts, Cut(ik * t.k, t.k)))
                seen = Cut(Affine() + time + -1 if fed_back else time, t.steps)
                if beside is not None:
                    with b.at(beside.op.location):
                        beside.run(acc, area, seen, ik)
                summed.run(acc, area, seen, ik, before)
                return acc

            if shape.static:
                acc = accumulate(0)
            with b.loop("t", trips(steps, t.steps)) as it:
                if not shape.static:
                    acc = accumulate(it * t.steps)
                if stage is not None and par is not None and state is not None:
                    stage.steps(acc, par, state, area, it, t.steps, ik * t.k, t.k, shape.static, t.held)
                if current is not None:
                    window = activation_window(current, Cut(it * t.steps, static_steps), *area.cuts, Cut(ik * t.k, t.k))
                    b.store(current, acc, *window)


def lower_backward(ctx: TileContext, op: lut.BeGradOp, *, fed_back: bool = False) -> None:
    """Lower an input gradient; the neuron gradient that alone reads it joins the stage where there is room.

    So does the gradient of the same input through another layer, on which the sums go on. ``fed_back``: what it reads
    are the results of this neuron gradient one step later.
    """
    goes_on = only_user(op.gs, lut.BeGradOp)
    if isinstance(goes_on, lut.BeGradOp) and joined_gradient(ctx, goes_on) is not None:
        return
    reader = only_user(op.gs, lut.GradOp)
    shape, kind = gradient_shape(ctx, op)
    other = None if fed_back else joined_gradient(ctx, op)
    t = plan_backward(
        shape,
        ctx.chip,
        ctx.limits,
        op.reduce_block,
        neuron=kind,
        looped=fed_back,
        joined=other and other[1],
        jobs=ctx.jobs,
    )
    grad = reader if isinstance(reader, lut.GradOp) and t.fused else None
    b = ctx.builder
    label = ctx.label("backward", op)
    mask = ctx.values[op.m] if op.m is not None else None
    onto = ctx.values[op.onto] if op.onto is not None and other is None else None
    stage = None if grad is None else GradientStep(ctx, grad, label)
    if fed_back and grad is not None:
        ctx.values[op.gu] = ctx.values[grad.gu]
    source = ctx.values[op.gu]
    result = None if grad is not None else ctx.declare(op.gs, f"{label}.gs")
    batch = shape_of(op.gs.type)[-4]
    k_trips = trips(shape.k, t.k)
    blocks = trips(shape.steps, t.steps)
    through = Through(ctx, op, shape, t)
    beside = None
    if other is not None:
        beside = Through(ctx, other[0], other[1].shape, replace(t, k=other[1].block))
    with b.stage(label, op.location), b.loop("c", trips(shape.c, t.c)) as ic:
        par = stage.parameters(ic * t.c, t.c) if stage is not None else None
        held = through.weight_tile(Affine(), ic, Affine()) if t.weights_stay(shape) else None
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(shape.in_h, t.rows)) as y,
            b.loop("x", trips(shape.in_w, t.columns)) as x,
        ):
            area = Area(t.samples, t.rows, t.columns, n, y, x)
            state = stage.state(area, t.c) if stage is not None else None
            later = None
            if fed_back and k_trips == 1:
                gblk = ctx.gblk(shape.k)
                later = b.alloc("gu later", "G", f"slots.{ctx.dtype}", (1, *area.dims, t.k), gblk, slots=1)
                b.load(source, later, *activation_window(source, Cut(shape.steps, 1), *area.cuts, Cut(0, t.k)))
            with b.loop("t", blocks) as it:
                time = Cut(it * -t.steps + (blocks - 1) * t.steps, t.steps)
                channels = Cut(ic * t.c, t.c)
                dims = (t.steps, t.samples, t.rows, t.columns) if len(shape_of(op.gs.type)) == 5 else area.dims
                acc = b.alloc("gs", "A", "f32", (*dims, t.c), slots=t.held)
                if onto is not None:
                    begin(ctx, acc, onto, activation_window(onto, time, *area.cuts, channels))
                buffers: dict[str, SSAValue] = {"acc": acc}
                if mask is not None:
                    buffers["m"] = b.alloc("mask", "M", "bits", (*dims, t.c))
                    b.load(mask, buffers["m"], *activation_window(mask, time, *area.cuts, channels))
                if beside is not None:
                    with b.at(beside.op.location), b.loop("k", trips(beside.shape.k, beside.t.k)) as ik:
                        beside.run(buffers, area, time, ic, ik)
                with b.loop("k", k_trips) as ik:
                    seen = Cut(time.start + 1, t.steps) if fed_back else time
                    through.run(buffers, area, seen, ic, ik, held, later)
                if stage is not None and par is not None and state is not None:
                    here = {} if op.m is None else {op.m: buffers["m"]}
                    stage.steps(acc, par, state, area, it, time, channels, later, t.held, here)
                if result is not None:
                    b.store(result, acc, *activation_window(result, time, *area.cuts, channels))


def waits_for_batch(ctx: TileContext, op: lut.WuOp | lut.BeWgtOp) -> bool:
    """Whether a weight gradient is better computed behind the loops over groups."""
    return defers_weights(_reduction(ctx, op), ctx.machine)


def has_room_for(ctx: TileContext, op: lut.WuOp | lut.BeWgtOp, step: lut.OptOp) -> bool:
    """Whether the stage of a weight gradient has room for the optimizer's step on each of its tiles."""
    with suppress(H2LearnError):
        _plan_weights(ctx, op, _reduction(ctx, op), step)
        return True
    return False


def _plan_weights(ctx: TileContext, op: lut.WuOp | lut.BeWgtOp, shape: ConvShape, step: lut.OptOp | None) -> WeightTile:
    return plan_weights(shape, ctx.chip, ctx.limits, op.reduce_block, step_bytes(step), jobs=ctx.jobs)


def lower_weights(ctx: TileContext, op: lut.WuOp | lut.BeWgtOp, step: lut.OptOp | None = None) -> None:
    """Lower a weight gradient: the sums stay on chip while all positions pass by, and for the optimizer's ``step``."""
    x = op.s if isinstance(op, lut.WuOp) else op.x
    shape = _reduction(ctx, op)
    t = _plan_weights(ctx, op, shape, step)
    b = ctx.builder
    label = ctx.label("weights", op)
    source, gradient = ctx.values[x], ctx.values[op.gu]
    result = ctx.declare(op.gw, f"{label}.gradient") if step is None or is_returned(op.gw) else None
    gblk = ctx.gblk(shape.k)
    batch = shape_of(op.gu.type)[-4]
    running = ctx.running_sum(result) if result is not None else None
    part = Part(shape, t)
    taps = part.shape.taps
    params = {**geometry_params(part.shape, t, images(gradient, t), ctx.dtype), "gblk": gblk}

    def load_gradients(area: Area, time: Start, ik: Affine) -> SSAValue:
        window = activation_window(gradient, Cut(time, t.steps), *area.cuts, Cut(ik * t.k, t.k))
        g = b.alloc("gu", "G", f"slots.{ctx.dtype}", tuple(window[1]), gblk)
        b.load(gradient, g, *window)
        return g

    with ExitStack() as nest:
        nest.enter_context(b.stage(label, op.location))
        optimizer = None if step is None else OptimizerStep(ctx, step, t.held, by_tap=t.by_tap)
        whole = Area(t.samples, t.rows, t.columns, ctx.first_sample, Affine(), Affine())
        ik = Affine()
        inputs = g = None
        if t.stay != "inputs":
            ik = nest.enter_context(b.loop("k", trips(shape.k, t.k)))
            if t.stay:
                g = load_gradients(whole, Affine(), ik)
        ic = nest.enter_context(b.loop("c", trips(shape.c, t.c)))
        ty, tx = nest.enter_context(part.loops(b))
        if t.stay == "inputs":
            inputs = load_input(ctx, source, part, t, whole, Cut(Affine(), t.steps), ic * t.c, (ty, tx))
            ik = nest.enter_context(b.loop("k", trips(shape.k, t.k)))
        tap = part.tap(ty, tx)
        acc = b.alloc("gw", "A", "f32", (taps, t.c, t.k), slots=t.held)
        if running is not None:
            b.load(running[0], acc, (running[1], tap, ic * t.c, ik * t.k), (1, taps, t.c, t.k))
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(shape.out_h, t.rows)) as y,
            b.loop("x", trips(shape.out_w, t.columns)) as x_,
            b.loop("t", trips(shape.steps, t.steps)) as it,
        ):
            area = Area(t.samples, t.rows, t.columns, n, y, x_)
            time = Cut(it * t.steps, t.steps)
            seen = inputs or load_input(ctx, source, part, t, area, time, ic * t.c, (ty, tx))
            first, carry = ([n, y, x_, it], False) if running is None else ([], True)
            read = {"acc": acc, "g": g or load_gradients(area, time.start, ik)}
            if isinstance(op, lut.WuOp):
                used, params = read | {"s": seen}, {**params, "fan": op.fan_in}
                ctx.sum_tile(tile.WuRunOp, used, params, t, ("s", "g"), first=first, carry=carry)
            else:
                ctx.sum_tile(tile.BeWgtOp, read | {"x": seen}, params, t, ("x", "g"), first=first, carry=carry)
        window_of_tile: Window = ([tap, ic * t.c, ik * t.k], [taps, t.c, t.k])
        if result is not None:
            b.store(result, acc, *window_of_tile)
        if optimizer is not None:
            optimizer.tile(acc, *window_of_tile)


def _reduction(ctx: TileContext, op: lut.WuOp | lut.BeWgtOp) -> ConvShape:
    """Return the shape of the convolution whose weight gradient ``op`` is."""
    x, real = (op.x, True) if isinstance(op, lut.BeWgtOp) else (op.s, False)
    return conv_shape(ctx, op, x, op.gu, shape_of(op.gu.type)[-1], real=real)


class NeuronStep:
    """The part of a stage that runs neurons step by step over a tile."""

    def __init__(self, ctx: TileContext, op: lut.LifOp | lut.LiOp, label: str, channels: int, k: int) -> None:
        """``k``: of the ``channels`` in a tile."""
        self.ctx, self.op, self.neuron = ctx, op, op.neuron
        self.bias = ctx.values[op.bias] if op.bias is not None else None
        self.constants = ctx.neuron_rows(label, op.neuron, channels)
        self.spikes = ctx.declare(op.s, f"{label}.s") if isinstance(op, lut.LifOp) else None
        keep_u = isinstance(op, lut.LiOp) or used(op.u)
        self.ublk = ctx.kind(op).in_tile(k, channels).ublk
        self.membrane = ctx.declare(op.u, f"{label}.u", self.ublk) if keep_u else None
        self.mask = ctx.declare(op.m, f"{label}.m") if isinstance(op, lut.LifOp) and used(op.m) else None

    def parameters(self, start: Affine, k: int) -> SSAValue:
        """Load the parameter rows of ``k`` channels."""
        learned = learned_tensors(self.ctx, self.op) if isinstance(self.op, lut.LifOp) else ()
        return load_rows(self.ctx, self.constants, self.bias, start, k, learned)

    def state(self, area: Area, k: int) -> dict[str, SSAValue]:
        """Allocate what a tile carries from step to step."""
        b = self.ctx.builder
        state = {"us": b.alloc("u state", "U", self.ctx.dtype, (*area.dims, k), slots=1)}
        if self.spikes is not None and not self.neuron.counts:
            state["ss"] = b.alloc("s state", "S", "bits", (*area.dims, k), slots=1)
        if self.neuron.has_synapse:
            state["cs"] = b.alloc("i state", "U", self.ctx.dtype, (*area.dims, k), slots=1)
        return state

    def steps(
        self,
        acc: SSAValue,
        par: SSAValue,
        state: dict[str, SSAValue],
        area: Area,
        block: Affine,
        steps: int,
        start: Affine,
        k: int,
        static: bool,
        held: int = SLOTS,
    ) -> None:
        """Run the steps of one time block on ``acc`` and store what is kept; ``held``: slots of the potentials."""
        b = self.ctx.builder
        dims = (steps, *area.dims, k)
        memory, form = ("U", self.ctx.dtype) if self.neuron.counts else ("S", "bits")
        kept = [
            ("so", self.spikes, b.alloc("s", memory, form, dims) if self.spikes is not None else None),
            (
                "uo",
                self.membrane,
                b.alloc("u", "U", self.ctx.form_of(self.op.u.type)[0], dims, self.ublk, slots=held)
                if self.membrane is not None
                else None,
            ),
            ("mo", self.mask, b.alloc("m", "M", "bits", dims) if self.mask is not None else None),
        ]
        params: dict[str, tile.Param] = {
            **self.ctx.neuron_params(self.neuron),
            "n": area.positions,
            "k": k,
            "save_u": "no" if self.membrane is None else "inside" if self.ublk else "yes",
            "ublk": self.ublk,
            "save_m": "yes" if self.mask is not None else "no",
        }
        with b.loop("step", steps) as step:
            buffers: dict[str, SSAValue | tuple[SSAValue, Start]] = {
                "acc": acc if static else (acc, step),
                "par": par,
                **state,
            }
            buffers.update({role: (buffer, step) for role, _, buffer in kept if buffer is not None})
            b.job(tile.LifOp, buffers, params, first=[block, step])
        for _, tensor, buffer in kept:
            if tensor is not None and buffer is not None:
                window = activation_window(tensor, Cut(block * steps, steps), *area.cuts, Cut(start, k))
                b.store(tensor, buffer, *window)


class GradientStep:
    """The part of a stage that runs neuron gradients backwards over a tile."""

    def __init__(self, ctx: TileContext, op: lut.GradOp, label: str) -> None:
        self.ctx, self.op = ctx, op
        channels = shape_of(op.gu.type)[-1]
        self.gblk = ctx.gblk(channels)
        self.constants = ctx.neuron_rows(label, op.neuron, channels)
        self.result = ctx.declare(op.gu, f"{label}.gu")

    def parameters(self, start: Affine, k: int) -> SSAValue:
        """Load the parameter rows of ``k`` channels."""
        return load_rows(self.ctx, self.constants, None, start, k, learned_tensors(self.ctx, self.op))

    def state(self, area: Area, k: int) -> dict[str, SSAValue]:
        """Allocate the gradients that a tile carries from step to step."""
        b, dims = self.ctx.builder, (*area.dims, k)
        state = {"gc": b.alloc("gu state", "U", self.ctx.dtype, dims, slots=1)}
        if self.op.neuron.has_synapse:
            state["gi"] = b.alloc("gi state", "U", self.ctx.dtype, dims, slots=1)
        return state

    def steps(
        self,
        gs: SSAValue,
        par: SSAValue,
        state: dict[str, SSAValue],
        area: Area,
        block: Affine,
        time: Cut,
        channels: Cut,
        out: SSAValue | None = None,
        held: int = SLOTS,
        here: Mapping[SSAValue, SSAValue] = NOTHING,
    ) -> None:
        """Run the steps of one time block backwards and store the gradients; ``gs`` without time serves all steps.

        ``out`` is the buffer of the gradients, where it is not one of this block's own. ``held``: slots of the buffers.
        ``here`` holds the buffers of ``lut`` values that are loaded already.
        """
        b, k, steps = self.ctx.builder, channels.size, time.size
        sizes = (steps, *area.dims, k)
        out = out or b.alloc("gu out", "G", f"slots.{self.ctx.dtype}", sizes, self.gblk, slots=held)
        buffers: dict[str, SSAValue | tuple[SSAValue, Start]] = {"par": par, **state}
        loaded: dict[str, SSAValue] = {}
        masked = self.op.u is not None and isinstance(self.op.u.type, MaskType)
        ublk = self.ctx.ublk(self.op.u)
        for role, memory, value in (("u", "M" if masked else "U", self.op.u), ("s", "S", self.op.s)):
            if value is None or (role == "s" and self.op.neuron.counts):
                continue
            if value in here:
                loaded[role] = here[value]
                continue
            tensor = self.ctx.values[value]
            window = activation_window(tensor, time, *area.cuts, channels)
            placed, slots = tile.placed_of(tensor), held if memory == "U" else None
            loaded[role] = b.alloc(role, memory, placed.form, tuple(window[1]), placed.gblk, slots=slots)
            b.load(tensor, loaded[role], *window)
        params: dict[str, tile.Param] = {
            **self.ctx.neuron_params(self.op.neuron),
            "n": area.positions,
            "k": k,
            "detach": "yes" if self.op.neuron.detach_reset else "no",
            "gblk": self.gblk,
            "seen": "window" if masked else "inside" if ublk else "potential",
            "ublk": ublk,
        }
        assert isinstance(gs.type, tile.BufferType)
        with b.loop("step", steps) as step:
            at = step * -1 + (steps - 1)
            buffers["gs"] = (gs, at) if len(gs.type.shape) == 5 else gs
            buffers["go"] = (out, at)
            buffers.update({role: (buffer, at) for role, buffer in loaded.items()})
            b.job(tile.GradOp, buffers, params, first=[block, step])
        b.store(self.result, out, *activation_window(self.result, time, *area.cuts, channels))


def begin(ctx: TileContext, acc: SSAValue, onto: SSAValue, window: Window) -> None:
    """Fill ``acc`` with what sums go on from: loaded as it is, or through a change of format."""
    assert isinstance(onto.type, tile.TensorType)
    b, placed = ctx.builder, onto.type.placed
    if placed.form == "f32":
        b.load(onto, acc, *window)
        return
    buffer = b.alloc("onto", memory_of(placed.form), placed.form, tuple(window[1]), placed.gblk)
    b.load(onto, buffer, *window)
    params: dict[str, tile.Param] = {
        "n": prod(window[1][:-1]),
        "k": window[1][-1],
        "kind": "copy",
        "dtype": ctx.dtype,
        "gblk": placed.gblk,
        "a": map_format(placed.form),
        "b": "f32",
        "dst": "f32",
    }
    b.job(tile.MapOp, {"dst": acc, "a": buffer}, params)


def memory_of(form: str) -> str:
    """Return the memory for element-wise operands of a format."""
    return {"f32": "A", "bits": "S"}.get(form, "G" if form.startswith("slots.") else "U")


def map_format(form: str) -> str:
    """Return what ``v.map`` calls a format."""
    return form if form in ("f32", "bits") else "slots" if form.startswith("slots.") else "storage"


def learned_tensors(
    ctx: TileContext, op: lut.LifOp | lut.GradOp | lut.LifConstantsOp
) -> tuple[tuple[int, SSAValue], ...]:
    """Return the number of the parameter row and the tensor of every learned constant."""
    rows = (("alpha", op.decay), ("theta", op.threshold))
    return tuple((PARAMETER_ROWS.index(name), ctx.values[row]) for name, row in rows if row is not None)


def load_rows(
    ctx: TileContext,
    constants: SSAValue,
    bias: SSAValue | None,
    start: Affine,
    k: int,
    learned: Sequence[tuple[int, SSAValue]] = (),
) -> SSAValue:
    """Load the parameter rows of ``k`` channels from ``start``; the bias and ``learned`` rows stand for constants."""
    b = ctx.builder
    assert isinstance(constants.type, tile.TensorType)
    rows = constants.type.shape[0]
    par = b.alloc("parameters", "A", "f32", (rows, k))
    b.load(constants, par, (0, start), (rows, k))
    if bias is not None:
        b.load(bias, par, (start,), (k,), at=0)
    for row, tensor in learned:
        b.load(tensor, par, (start,), (k,), at=row)
    return par
