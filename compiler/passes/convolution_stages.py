"""Stages around the look-up and multiplier engines: forward with neurons, input gradient with neurons, weight gradient.

A loop that would run once is not there, so the shape of the program depends on which dimensions a tile covers, never on
how often the others are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import prod
from types import MappingProxyType

from xdsl.ir import SSAValue

from h2learn.backends.h2learn.isa import PARAMETER_ROWS
from h2learn.compiler.mapping.cost import defers_weights, lane_shape
from h2learn.compiler.mapping.layout import item_bytes
from h2learn.compiler.mapping.tiling import (
    PLAIN_NEURON,
    SLOTS,
    BackwardTile,
    ConvShape,
    ForwardTile,
    WeightTile,
    backward_extent,
    input_extent,
    plan_backward,
    plan_forward,
    plan_weights,
)
from h2learn.compiler.passes.optimizer_step import OptimizerStep, is_returned, step_bytes
from h2learn.compiler.passes.stage_builder import Affine, StageBuilder, Start
from h2learn.compiler.passes.tile_context import (
    Cut,
    TileContext,
    Window,
    activation_window,
    images,
    leading,
    neuron_kind,
    only_user,
    trips,
    used,
)
from h2learn.dialects import tile
from h2learn.dialects.lut import ops as lut
from h2learn.dialects.lut.attributes import MaskType, Planes, shape_of

NOTHING: Mapping[SSAValue, SSAValue] = MappingProxyType({})


def conv_shape(
    ctx: TileContext, op: lut.ConvolutionOp, x: SSAValue, y: SSAValue, k: int, *, real: bool, onto: str = ""
) -> ConvShape:
    """Return the plain shape of a convolution with layer input ``x`` and output (or its gradient) ``y``."""
    source, result = shape_of(x.type), shape_of(y.type)
    geometry = op.geometry
    return ConvShape(
        leading(result),
        ctx.samples(result[-4]),
        source[-3],
        source[-2],
        source[-1],
        result[-3],
        result[-2],
        k,
        geometry.kernel,
        geometry.stride,
        geometry.padding,
        real,
        len(source) == 4,
        item_bytes(ctx.dtype),
        onto,
    )


def lower_forward(ctx: TileContext, op: lut.FeConvOp | lut.BeConvOp, *, fed_back: bool = False) -> None:
    """Lower a forward convolution; the neuron that alone reads its current joins the stage.

    ``fed_back``: its input are the spikes of this neuron one step earlier.
    """
    neuron = only_user(op.current, (lut.LifOp, lut.LiOp))
    assert neuron is None or isinstance(neuron, lut.LifOp | lut.LiOp)
    x = op.s if isinstance(op, lut.FeConvOp) else op.x
    planes = op.planes if isinstance(op, lut.FeConvOp) else None
    real = isinstance(op, lut.BeConvOp)
    shape = conv_shape(ctx, op, x, op.current, shape_of(op.w.type)[-1], real=real, onto=ctx.onto(op.onto))
    if planes is not None:
        shape = replace(shape, real=True, planes=planes.count)
    steps = neuron.time_steps if neuron is not None else shape.steps
    shape = replace(shape, steps=steps)
    batch = shape_of(op.current.type)[-4]
    kind = PLAIN_NEURON if neuron is None else neuron_kind(neuron.neuron)
    fan = op.fan_in if isinstance(op, lut.FeConvOp) else None
    t = plan_forward(shape, ctx.chip, ctx.limits, op.reduce_block, kind, fan, looped=fed_back)
    b = ctx.builder
    label = ctx.label("forward", op)
    weights = ctx.values[op.w]
    onto = ctx.values[op.onto] if op.onto is not None else None
    current = None if neuron is not None else ctx.declare(op.current, f"{label}.current")
    stage = None if neuron is None else NeuronStep(ctx, neuron, label, shape.k)
    if fed_back and neuron is not None:
        ctx.values[x] = ctx.values[neuron.results[0]]
    source = ctx.values[x]
    k_trips, c_trips = trips(shape.k, t.k), trips(shape.c, t.c)
    part = Part(shape, t)
    whole = c_trips == 1 and part.count == 1
    static_steps = 1 if shape.static else t.steps
    with b.stage(label, op.location), b.loop("k", k_trips) as ik:
        par = stage.parameters(ik * t.k, t.k) if stage is not None else None
        if whole:
            tables = _load_weights(ctx, weights, part, t, Affine(), Affine(), ik, real)
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(shape.out_h, t.rows)) as y,
            b.loop("x", trips(shape.out_w, t.columns)) as x_,
        ):
            area = Area(t.samples, t.rows, t.columns, n, y, x_)
            state = stage.state(area, t.k) if stage is not None else None
            before = state.get("ss") if fed_back and state is not None and whole else None
            if before is not None:
                b.load(source, before, *activation_window(source, Cut(-1, 1), *area.cuts, Cut(0, t.k)))

            def accumulate(time: Start) -> SSAValue:
                shape_of_acc = (static_steps, t.samples, t.rows, t.columns, t.k)
                dims = shape_of_acc[1:] if shape.static else shape_of_acc
                acc = b.alloc("current", "A", "f32", dims, slots=t.held)
                if onto is not None:
                    begin(ctx, acc, onto, activation_window(onto, Cut(time, t.steps), *area.cuts, Cut(ik * t.k, t.k)))
                with b.loop("c", c_trips) as ic, part.loops(b) as (ty, tx):
                    held = tables if whole else _load_weights(ctx, weights, part, t, part.tap(ty, tx), ic, ik, real)
                    seen = Cut(Affine() + time + -1 if fed_back else time, t.steps)
                    inputs = before or _load_input(ctx, source, part, t, area, seen, ic * t.c, (ty, tx))
                    _convolve(ctx, op, acc, inputs, held, images(source, t), part.shape, t, (ic, ty, tx))
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

    ``fed_back``: what it reads are the results of this neuron gradient one step later.
    """
    reader = only_user(op.gs, lut.GradOp)
    shape = conv_shape(ctx, op, op.gs, op.gu, shape_of(op.w.type)[-1], real=False, onto=ctx.onto(op.onto))
    kind = neuron_kind(reader.neuron) if isinstance(reader, lut.GradOp) else None
    t = plan_backward(shape, ctx.chip, ctx.limits, op.reduce_block, neuron=kind, looped=fed_back)
    grad = reader if isinstance(reader, lut.GradOp) and t.fused else None
    b = ctx.builder
    label = ctx.label("backward", op)
    weights = ctx.values[op.w]
    mask = ctx.values[op.m] if op.m is not None else None
    onto = ctx.values[op.onto] if op.onto is not None else None
    stage = None if grad is None else GradientStep(ctx, grad, label)
    if fed_back and grad is not None:
        ctx.values[op.gu] = ctx.values[grad.gu]
    source = ctx.values[op.gu]
    result = None if grad is not None else ctx.declare(op.gs, f"{label}.gs")
    batch = shape_of(op.gs.type)[-4]
    c_trips, k_trips = trips(shape.c, t.c), trips(shape.k, t.k)
    blocks = trips(shape.steps, t.steps)
    (gh, py, first_y), (gw, px, first_x) = backward_extent(shape, t)
    part = shape.under(t.rows, t.columns)
    gblk = ctx.gblk(shape.k)
    imgs = images(source, t)
    params: dict[str, tile.Param] = {
        **_geometry(part, t, imgs, ctx.dtype),
        "gh": gh,
        "gw": gw,
        "py": py,
        "px": px,
        "gblk": gblk,
        "mode": op.mode,
        "masked": "yes" if mask is not None else "no",
    }

    def weight_tile(tap: Affine, ic: Affine, ik: Affine) -> SSAValue:
        w = b.alloc("weights", "W", ctx.dtype, (part.taps, t.c, t.k), slots=t.weight_slots(shape))
        b.load(weights, w, (tap, ic * t.c, ik * t.k), (part.taps, t.c, t.k))
        return w

    with b.stage(label, op.location), b.loop("c", c_trips) as ic:
        par = stage.parameters(ic * t.c, t.c) if stage is not None else None
        held = weight_tile(Affine(), ic, Affine()) if t.weights_stay(shape) else None
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(shape.in_h, t.rows)) as y,
            b.loop("x", trips(shape.in_w, t.columns)) as x,
        ):
            area = Area(t.samples, t.rows, t.columns, n, y, x)
            state = stage.state(area, t.c) if stage is not None else None
            later = None
            if fed_back and k_trips == 1:
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
                with b.loop("k", k_trips) as ik:
                    rows = Cut(y * (t.rows // shape.stride[0]) + first_y, gh)
                    columns = Cut(x * (t.columns // shape.stride[1]) + first_x, gw)
                    tap = Affine()
                    if shape.covers_map:
                        rows, columns = Cut(0, 1), Cut(0, 1)
                        tap = y * (t.rows * shape.in_w) + x * t.columns
                    w = held if held is not None else weight_tile(tap, ic, ik)
                    seen = Cut(time.start + 1, t.steps) if fed_back else time
                    window = activation_window(source, seen, area.cuts[0], rows, columns, Cut(ik * t.k, t.k))
                    g = later or b.alloc("gu", "G", f"slots.{ctx.dtype}", tuple(window[1]), gblk)
                    if later is None:
                        b.load(source, g, *window)
                    first, carry = _start(op, [ik])
                    b.job(tile.BeRunOp, {**buffers, "g": g, "w": w}, params, first=first, carry=carry)
                if stage is not None and par is not None and state is not None:
                    here = {} if op.m is None else {op.m: buffers["m"]}
                    stage.steps(acc, par, state, area, it, time, channels, later, t.held, here)
                if result is not None:
                    b.store(result, acc, *activation_window(result, time, *area.cuts, channels))


def waits_for_batch(ctx: TileContext, op: lut.WuOp | lut.BeWgtOp) -> bool:
    """Whether a weight gradient in the loop over groups is better computed behind it."""
    return ctx.group is not None and defers_weights(_reduction(ctx, op), ctx.machine)


def lower_weights(ctx: TileContext, op: lut.WuOp | lut.BeWgtOp, step: lut.OptOp | None = None) -> None:
    """Lower a weight gradient: the sums stay on chip while all positions pass by, and for the optimizer's ``step``."""
    x = op.s if isinstance(op, lut.WuOp) else op.x
    shape = _reduction(ctx, op)
    t = plan_weights(shape, ctx.chip, ctx.limits, op.reduce_block, step_bytes(step))
    b = ctx.builder
    label = ctx.label("weights", op)
    source, gradient = ctx.values[x], ctx.values[op.gu]
    result = ctx.declare(op.gw, f"{label}.gradient") if step is None or is_returned(op.gw) else None
    gblk = ctx.gblk(shape.k)
    batch = shape_of(op.gu.type)[-4]
    running = ctx.running_sum(result) if result is not None else None
    part = Part(shape, t)
    taps = part.shape.taps
    params = {**_geometry(part.shape, t, images(gradient, t), ctx.dtype), "gblk": gblk}
    with ExitStack() as nest:
        nest.enter_context(b.stage(label, op.location))
        optimizer = None if step is None else OptimizerStep(ctx, step, t.held)
        ik = nest.enter_context(b.loop("k", trips(shape.k, t.k)))
        ic = nest.enter_context(b.loop("c", trips(shape.c, t.c)))
        ty, tx = nest.enter_context(part.loops(b))
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
            inputs = _load_input(ctx, source, part, t, area, time, ic * t.c, (ty, tx))
            window = activation_window(gradient, time, *area.cuts, Cut(ik * t.k, t.k))
            g = b.alloc("gu", "G", f"slots.{ctx.dtype}", tuple(window[1]), gblk)
            b.load(gradient, g, *window)
            first, carry = ([n, y, x_, it], False) if running is None else ([], True)
            if isinstance(op, lut.WuOp):
                b.job(
                    tile.WuRunOp,
                    {"acc": acc, "s": inputs, "g": g},
                    {**params, "fan": op.fan_in},
                    first=first,
                    carry=carry,
                )
            else:
                b.job(tile.BeWgtOp, {"acc": acc, "x": inputs, "g": g}, params, first=first, carry=carry)
        window_of_tile: Window = ([tap, ic * t.c, ik * t.k], [taps, t.c, t.k])
        if result is not None:
            b.store(result, acc, *window_of_tile)
        if optimizer is not None:
            optimizer.tile(acc, *window_of_tile)


def _reduction(ctx: TileContext, op: lut.WuOp | lut.BeWgtOp) -> ConvShape:
    """Return the shape of the convolution whose weight gradient ``op`` is."""
    x, real = (op.x, True) if isinstance(op, lut.BeWgtOp) else (op.s, False)
    return conv_shape(ctx, op, x, op.gu, shape_of(op.gu.type)[-1], real=real)


class Part:
    """The part of a kernel that a tile has at a time; it is all of the kernel unless that covers the map."""

    def __init__(self, shape: ConvShape, t: ForwardTile | WeightTile) -> None:
        self.shape = t.seen(shape)
        self._trips = (trips(shape.kernel[0], self.shape.kernel[0]), trips(shape.kernel[1], self.shape.kernel[1]))
        self._width = shape.kernel[1]
        self.count = self._trips[0] * self._trips[1]

    @contextmanager
    def loops(self, builder: StageBuilder) -> Iterator[tuple[Affine, Affine]]:
        """Open the loops over parts of the kernel and give the first row and column of the part."""
        with builder.loop("ky", self._trips[0]) as row, builder.loop("kx", self._trips[1]) as column:
            yield row * self.shape.kernel[0], column * self.shape.kernel[1]

    def tap(self, row: Affine, column: Affine) -> Affine:
        """Return the first kernel position of the part; those of a part follow each other."""
        return row * self._width + column


class Area:
    """A tile of samples, rows and columns under the loops n, y, x."""

    def __init__(self, samples: int, rows: int, columns: int, n: Affine, y: Affine, x: Affine) -> None:
        self.n, self.y, self.x = n, y, x
        self.dims = (samples, rows, columns)
        self.positions = samples * rows * columns
        self.cuts = (Cut(n * samples, samples), Cut(y * rows, rows), Cut(x * columns, columns))


class NeuronStep:
    """The part of a stage that runs neurons step by step over a tile."""

    def __init__(self, ctx: TileContext, op: lut.LifOp | lut.LiOp, label: str, channels: int) -> None:
        self.ctx, self.op, self.neuron = ctx, op, op.neuron
        self.bias = ctx.values[op.bias] if op.bias is not None else None
        self.constants = ctx.neuron_rows(label, op.neuron, channels)
        self.spikes = ctx.declare(op.s, f"{label}.s") if isinstance(op, lut.LifOp) else None
        keep_u = isinstance(op, lut.LiOp) or used(op.u)
        self.membrane = ctx.declare(op.u, f"{label}.u") if keep_u else None
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
                b.alloc("u", "U", self.ctx.dtype, dims, slots=held) if self.membrane is not None else None,
            ),
            ("mo", self.mask, b.alloc("m", "M", "bits", dims) if self.mask is not None else None),
        ]
        params: dict[str, tile.Param] = {
            **self.ctx.neuron_params(self.neuron),
            "n": area.positions,
            "k": k,
            "save_u": "yes" if self.membrane is not None else "no",
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
        for role, memory, value in (("u", "M" if masked else "U", self.op.u), ("s", "S", self.op.s)):
            if value is None or (role == "s" and self.op.neuron.counts):
                continue
            if value in here:
                loaded[role] = here[value]
                continue
            tensor = self.ctx.values[value]
            window = activation_window(tensor, time, *area.cuts, channels)
            form = self.ctx.dtype if memory == "U" else "bits"
            slots = held if memory == "U" else None
            loaded[role] = b.alloc(role, memory, form, tuple(window[1]), slots=slots)
            b.load(tensor, loaded[role], *window)
        params: dict[str, tile.Param] = {
            **self.ctx.neuron_params(self.op.neuron),
            "n": area.positions,
            "k": k,
            "detach": "yes" if self.op.neuron.detach_reset else "no",
            "gblk": self.gblk,
            "seen": "window" if masked else "potential",
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


def _geometry(
    shape: ConvShape, t: ForwardTile | BackwardTile | WeightTile, imgs: int, dtype: str
) -> dict[str, tile.Param]:
    return {
        "imgs": imgs,
        "oh": t.rows,
        "ow": t.columns,
        "kh": shape.kernel[0],
        "kw": shape.kernel[1],
        "sh": shape.stride[0],
        "sw": shape.stride[1],
        "c": t.c,
        "k": t.k,
        "dtype": dtype,
    }


def _load_weights(
    ctx: TileContext, weights: SSAValue, part: Part, t: ForwardTile, tap: Affine, ic: Affine, ik: Affine, real: bool
) -> SSAValue:
    """Load a weight tile and, for spikes, build its tables; return what the convolution reads."""
    b, shape = ctx.builder, part.shape
    w = b.alloc("weights", "W", ctx.dtype, (shape.taps, t.c, t.k))
    b.load(weights, w, (tap, ic * t.c, ik * t.k), (shape.taps, t.c, t.k))
    if real:
        return w
    fan = t.fan
    tables = b.alloc("tables", "L", f"lut.{ctx.dtype}", (shape.taps, trips(t.c, fan), 1 << fan, t.k))
    params: dict[str, tile.Param] = {
        "kh": shape.kernel[0],
        "kw": shape.kernel[1],
        "c": t.c,
        "k": t.k,
        "fan": fan,
        "dtype": ctx.dtype,
    }
    b.job(tile.FeFillOp, {"lut": tables, "w": w}, params)
    return tables


def _load_input(
    ctx: TileContext,
    source: SSAValue,
    part: Part,
    t: ForwardTile | WeightTile,
    area: Area,
    time: Cut,
    channel: Affine,
    first: tuple[Affine, Affine],
) -> SSAValue:
    """Load the input tile under an area of output positions, with its halo, from the ``first`` kernel position on."""
    b, shape = ctx.builder, part.shape
    (kh, kw), (sh, sw), (ph, pw) = shape.kernel, shape.stride, shape.padding
    rows = Cut(area.y * (t.rows * sh) + first[0] + -ph, input_extent(t.rows, kh, sh))
    columns = Cut(area.x * (t.columns * sw) + first[1] + -pw, input_extent(t.columns, kw, sw))
    window = activation_window(source, time, area.cuts[0], rows, columns, Cut(channel, t.c))
    memory, form = ("U", ctx.dtype) if shape.real else ("S", "bits")
    inputs = b.alloc("inputs", memory, form, tuple(window[1]))
    b.load(source, inputs, *window)
    return inputs


def _convolve(
    ctx: TileContext,
    op: lut.FeConvOp | lut.BeConvOp,
    acc: SSAValue,
    inputs: SSAValue,
    held: SSAValue,
    imgs: int,
    shape: ConvShape,
    t: ForwardTile,
    blocks: Sequence[Affine],
) -> None:
    params = _geometry(shape, t, imgs, ctx.dtype)
    first, carry = _start(op, blocks)
    if isinstance(op, lut.BeConvOp):
        ctx.builder.job(tile.BeFwdOp, {"acc": acc, "x": inputs, "w": held}, params, first=first, carry=carry)
        return
    params.update(fan=op.fan_in, shape=lane_shape(ctx.machine.forward.lanes, t.k, imgs * t.rows * t.columns)[0])
    if op.planes is not None:
        packed, form = _pack(ctx, op.planes, inputs)
        buffers = {"acc": acc, "s": packed, "lut": held}
        ctx.builder.job(tile.FePlanesOp, buffers, params | form, first=first, carry=carry)
        return
    ctx.builder.job(tile.FeRunOp, {"acc": acc, "s": inputs, "lut": held}, params, first=first, carry=carry)


def _pack(ctx: TileContext, planes: Planes, numbers: SSAValue) -> tuple[SSAValue, dict[str, tile.Param]]:
    """Cut a tile of numbers into bit-planes; return them and what jobs must know of them."""
    assert isinstance(numbers.type, tile.BufferType)
    *positions, channels = numbers.type.shape
    form: dict[str, tile.Param] = {
        "planes": planes.count,
        "frac": planes.frac,
        "signed": "yes" if planes.signed else "no",
    }
    packed = ctx.builder.alloc("planes", "S", "bits", (*positions, planes.count, channels))
    size: dict[str, tile.Param] = {"n": prod(positions), "k": channels, "dtype": ctx.dtype}
    ctx.builder.job(tile.PackOp, {"dst": packed, "src": numbers}, size | form)
    return packed, form


def _start(op: lut.ForwardConvolutionOp | lut.BeGradOp, blocks: Sequence[Affine]) -> tuple[list[Affine], bool]:
    """Return where sums start fresh: in the first of all ``blocks``, or never when they go on from others."""
    return (list(blocks), False) if op.onto is None else ([], True)
