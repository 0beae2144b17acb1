"""Stages of the vector unit alone: neurons and gradients behind pools, pooling, element-wise work, sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from xdsl.ir import SSAValue

from h2learn.compiler.mapping.layout import item_bytes, row_bytes
from h2learn.compiler.mapping.limits import SLOTS
from h2learn.compiler.mapping.tiles import ConvShape, Tile, Usage, gradient_extent, input_extent
from h2learn.compiler.mapping.tiling import plan_weights
from h2learn.compiler.mapping.vector_tiling import plan_positions
from h2learn.compiler.passes.convolution_stages import GradientStep, NeuronStep, map_format, memory_of
from h2learn.compiler.passes.stage_builder import Affine, Place, Start
from h2learn.compiler.passes.summed_layers import Area
from h2learn.compiler.passes.tile_context import (
    Cut,
    TileContext,
    activation_window,
    images,
    leading,
    trips,
)
from h2learn.dialects import lut, tile
from h2learn.dialects.lut.attributes import GradsType, SpikesType, shape_of
from h2learn.dialects.lut.gate import GateOp
from h2learn.dialects.lut.scan import DelayOp


def lower_neuron(ctx: TileContext, op: lut.LifOp | lut.LiOp) -> None:
    """Lower neurons whose current lies in DRAM (behind a pool, or read by others too)."""
    current = ctx.values[op.current]
    batch, height, width, channels = shape_of(op.current.type)[-4:]
    item, kind = item_bytes(ctx.dtype), ctx.kind(op)

    def usage(t: Tile) -> Usage:
        outs, bits = t.steps * t.positions, row_bytes("bits", t.k)
        return Usage(
            S=kind.spike_bytes(outs, t.positions, t.k),
            U=kind.in_tile(t.k, channels).membrane_bytes(outs, t.positions, t.k, item),
            M=SLOTS * outs * bits,
            A=SLOTS * outs * t.k * 4 + kind.parameter_bytes(t.k),
        )

    t = plan_positions(op.time_steps, ctx.samples(batch), height, width, channels, usage, ctx.chip, ctx.limits)
    b, label = ctx.builder, ctx.label("neuron", op)
    stage = NeuronStep(ctx, op, label, channels, t.k)
    with b.stage(label, op.location), b.loop("k", trips(channels, t.k)) as ik:
        par = stage.parameters(ik * t.k, t.k)
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(height, t.rows)) as y,
            b.loop("x", trips(width, t.columns)) as x,
        ):
            area = Area(t.samples, t.rows, t.columns, n, y, x)
            state = stage.state(area, t.k)
            with b.loop("t", trips(op.time_steps, t.steps)) as it:
                window = activation_window(current, Cut(it * t.steps, t.steps), *area.cuts, Cut(ik * t.k, t.k))
                acc = b.alloc("current", "A", "f32", tuple(window[1]))
                b.load(current, acc, *window)
                static = len(window[1]) == 4
                stage.steps(acc, par, state, area, it, t.steps, ik * t.k, t.k, static)


def lower_gradient(ctx: TileContext, op: lut.GradOp) -> None:
    """Lower neuron gradients whose incoming gradient lies in DRAM."""
    source = ctx.values[op.gs]
    steps, batch, height, width, channels = shape_of(op.gu.type)
    gblk, item, kind = ctx.gblk(channels), item_bytes(ctx.dtype), ctx.kind(op)

    def usage(t: Tile) -> Usage:
        outs, bits = t.steps * t.positions, row_bytes("bits", t.k)
        return Usage(
            S=SLOTS * outs * bits,
            U=replace(kind, counts=False).membrane_bytes(outs, t.positions, t.k, item),
            M=SLOTS * outs * bits,
            G=SLOTS * outs * row_bytes(f"slots.{ctx.dtype}", t.k, gblk),
            A=SLOTS * outs * t.k * 4 + kind.parameter_bytes(t.k),
        )

    t = plan_positions(steps, ctx.samples(batch), height, width, channels, usage, ctx.chip, ctx.limits)
    b, label = ctx.builder, ctx.label("gradient", op)
    stage = GradientStep(ctx, op, label)
    blocks = trips(steps, t.steps)
    with b.stage(label, op.location), b.loop("k", trips(channels, t.k)) as ik:
        par = stage.parameters(ik * t.k, t.k)
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(height, t.rows)) as y,
            b.loop("x", trips(width, t.columns)) as x,
        ):
            area = Area(t.samples, t.rows, t.columns, n, y, x)
            state = stage.state(area, t.k)
            with b.loop("t", blocks) as it:
                time, cut = Cut(it * -t.steps + (blocks - 1) * t.steps, t.steps), Cut(ik * t.k, t.k)
                window = activation_window(source, time, *area.cuts, cut)
                gs = b.alloc("gs", "A", "f32", tuple(window[1]))
                b.load(source, gs, *window)
                stage.steps(gs, par, state, area, it, time, cut)


def lower_pool(ctx: TileContext, op: lut.PoolOp) -> None:
    """Lower pooling: one tile of windows at a time."""
    source = ctx.values[op.x]
    spikes = isinstance(op.x.type, SpikesType)
    shape = shape_of(op.y.type)
    steps, (batch, height, width, channels) = leading(shape), shape[-4:]
    (kh, kw), (sh, sw), (ph, pw) = op.geometry.kernel, op.geometry.stride, op.geometry.padding
    bounded = op.kind == "max" and (ph > 0 or pw > 0)
    in_h, in_w = shape_of(op.x.type)[-3:-1]
    dst = "f32" if not spikes else "bits" if op.kind == "max" else "storage"
    memory, form = {"f32": ("A", "f32"), "bits": ("S", "bits"), "storage": ("U", ctx.dtype)}[dst]

    def usage(t: Tile) -> Usage:
        outs = SLOTS * t.steps * t.positions
        inputs = SLOTS * t.steps * t.samples * input_extent(t.rows, kh, sh) * input_extent(t.columns, kw, sw)
        source_bytes = inputs * row_bytes("bits" if spikes else "f32", t.k)
        out_bytes = outs * row_bytes(form, t.k)
        return Usage(
            S=(source_bytes if spikes else 0) + (out_bytes if memory == "S" else 0),
            U=out_bytes if memory == "U" else 0,
            A=(0 if spikes else source_bytes) + (out_bytes if memory == "A" else 0),
            M=outs * t.k,
        )

    t = plan_positions(steps, ctx.samples(batch), height, width, channels, usage, ctx.chip, ctx.limits)
    b, label = ctx.builder, ctx.label("pool", op)
    result = ctx.declare(op.y, f"{label}.y")
    winners = ctx.declare(op.winners, f"{label}.winners") if op.winners is not None else None
    params: dict[str, tile.Param] = {
        "imgs": images(source, t),
        **_window_params(t, op, ctx.dtype, ctx.gblk(channels), "bits" if spikes else "f32", dst),
        "ylim": in_h if bounded else 0,
        "xlim": in_w if bounded else 0,
    }
    with (
        b.stage(label, op.location),
        b.loop("k", trips(channels, t.k)) as ik,
        ctx.sample_loop(batch, t.samples) as n,
        b.loop("y", trips(height, t.rows)) as y,
        b.loop("x", trips(width, t.columns)) as x,
        b.loop("t", trips(steps, t.steps)) as it,
    ):
        area = Area(t.samples, t.rows, t.columns, n, y, x)
        time, cut = Cut(it * t.steps, t.steps), Cut(ik * t.k, t.k)
        rows = Cut(y * (t.rows * sh) + -ph, input_extent(t.rows, kh, sh))
        columns = Cut(x * (t.columns * sw) + -pw, input_extent(t.columns, kw, sw))
        window = activation_window(source, time, area.cuts[0], rows, columns, cut)
        inputs = b.alloc("inputs", "S" if spikes else "A", "bits" if spikes else "f32", tuple(window[1]))
        b.load(source, inputs, *window)
        out_window = activation_window(result, time, *area.cuts, cut)
        buffers = {"dst": b.alloc("pooled", memory, form, tuple(out_window[1])), "src": inputs}
        if winners is not None:
            buffers["idx"] = b.alloc("winners", "M", "u8", tuple(out_window[1]))
        b.job(tile.PoolOp, buffers, params, coords=[rows.start, columns.start] if bounded else [0, 0])
        b.store(result, buffers["dst"], *out_window)
        if winners is not None:
            b.store(winners, buffers["idx"], *out_window)


def lower_unpool(ctx: TileContext, op: lut.UnpoolOp) -> None:
    """Lower the gradient of pooling: tiles of the larger side."""
    source = ctx.values[op.g]
    slots = isinstance(op.g.type, GradsType)
    shape = shape_of(op.result.type)
    steps, (batch, height, width, channels) = leading(shape), shape[-4:]
    (kh, kw), (sh, sw), (ph, pw) = op.geometry.kernel, op.geometry.stride, op.geometry.padding
    gblk = ctx.gblk(channels) if slots else 0
    memory, form = ("G", f"slots.{ctx.dtype}") if slots else ("A", "f32")

    def usage(t: Tile) -> Usage:
        gh, gw = gradient_extent(t.rows, kh, sh, ph)[0], gradient_extent(t.columns, kw, sw, pw)[0]
        pooled = SLOTS * t.steps * t.samples * gh * gw
        total = (pooled + SLOTS * t.steps * t.positions) * row_bytes(form, t.k, gblk)
        return Usage(G=total if slots else 0, A=0 if slots else total, M=pooled * t.k)

    t = plan_positions(
        steps,
        ctx.samples(batch),
        height,
        width,
        channels,
        usage,
        ctx.chip,
        ctx.limits,
        row_unit=sh,
        column_unit=sw,
    )
    b, label = ctx.builder, ctx.label("unpool", op)
    result = ctx.declare(op.result, f"{label}.gs")
    winners = ctx.values[op.winners] if op.winners is not None else None
    gh, py, first_y = gradient_extent(t.rows, kh, sh, ph)
    gw, px, first_x = gradient_extent(t.columns, kw, sw, pw)
    name = "slots" if slots else "f32"
    params: dict[str, tile.Param] = {
        "imgs": images(source, t),
        **_window_params(t, op, ctx.dtype, gblk, name, name),
        "gh": gh,
        "gw": gw,
        "py": py,
        "px": px,
    }
    with (
        b.stage(label, op.location),
        b.loop("k", trips(channels, t.k)) as ik,
        ctx.sample_loop(batch, t.samples) as n,
        b.loop("y", trips(height, t.rows)) as y,
        b.loop("x", trips(width, t.columns)) as x,
        b.loop("t", trips(steps, t.steps)) as it,
    ):
        area = Area(t.samples, t.rows, t.columns, n, y, x)
        time, cut = Cut(it * t.steps, t.steps), Cut(ik * t.k, t.k)
        rows, columns = Cut(y * (t.rows // sh) + first_y, gh), Cut(x * (t.columns // sw) + first_x, gw)
        window = activation_window(source, time, area.cuts[0], rows, columns, cut)
        buffers = {"dst": b.alloc("gs", memory, form, (*window[1][:-3], t.rows, t.columns, t.k), gblk)}
        buffers["src"] = b.alloc("pooled", memory, form, tuple(window[1]), gblk)
        b.load(source, buffers["src"], *window)
        if winners is not None:
            buffers["idx"] = b.alloc("winners", "M", "u8", tuple(window[1]))
            b.load(winners, buffers["idx"], *window)
        b.job(tile.UnpoolOp, buffers, params)
        b.store(result, buffers["dst"], *activation_window(result, time, *area.cuts, cut))


def has_samples(
    op: lut.AddOp | lut.ConvertOp | lut.EmbedOp | lut.ExtractOp | lut.NeuronRowOp | lut.NeuronRowGradOp,
) -> bool:
    """Whether an op works on activations; parameters and their gradients have no samples."""
    return len(shape_of(op.result.type)) >= 4


def lower_elementwise(ctx: TileContext, op: lut.AddOp | lut.ConvertOp | GateOp) -> None:
    """Lower a sum, a gate or a change of format; parameters and their gradients are rows of one image."""
    operands, kind = {"a": op.operands[0]}, "copy"
    if not isinstance(op, lut.ConvertOp):
        operands["b"] = op.operands[1]
        kind = op.kind if isinstance(op, GateOp) else "add"
    shape = shape_of(op.result.type)
    steps, (batch, height, width, channels) = leading(shape), _as_image(shape)[-4:]
    b, label = ctx.builder, ctx.label(_elementwise_label(op), op)
    result = ctx.declare(op.result, f"{label}.result")
    forms = {role: ctx.form_of(value.type) for role, value in (*operands.items(), ("dst", op.result))}
    row = "b" in forms and len(forms["b"][1]) == 1 < len(shape)
    once = "" if row else next((role for role, value in operands.items() if len(forms[role][1]) < len(shape)), "")

    def usage(t: Tile) -> Usage:
        used = dict.fromkeys(("A", "S", "U", "G"), 0)
        for role, (form, _, gblk) in forms.items():
            rows = 1 if role == "b" and row else t.positions * (1 if role == once else t.steps)
            used[memory_of(form)] += SLOTS * rows * row_bytes(form, t.k, gblk)
        return Usage(**used)

    t = plan_positions(steps, ctx.samples(batch), height, width, channels, usage, ctx.chip, ctx.limits)
    tensors = {role: _image_view(ctx, ctx.values[value], row and role == "b") for role, value in operands.items()}
    target = _image_view(ctx, result, False)
    params: dict[str, tile.Param] = {
        "n": t.positions if once else images(target, t) * t.rows * t.columns,
        "k": t.k,
        "kind": kind,
        "dtype": ctx.dtype,
        "gblk": max(gblk for _, _, gblk in forms.values()),
        "b": "f32",
        **{role: "row" if role == "b" and row else map_format(form) for role, (form, _, _) in forms.items()},
    }
    with b.stage(label, op.location), b.loop("k", trips(channels, t.k)) as ik:
        cut = Cut(ik * t.k, t.k)
        held = {}
        if row:
            held["b"] = b.alloc("b", "A", "f32", (t.k,))
            b.load(tensors["b"], held["b"], [cut.start], [cut.size])
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(height, t.rows)) as y,
            b.loop("x", trips(width, t.columns)) as x,
        ):
            area = Area(t.samples, t.rows, t.columns, n, y, x)

            def load(role: str, time: Cut) -> SSAValue:
                form, _, gblk = forms[role]
                window = activation_window(tensors[role], time, *area.cuts, cut)
                buffer = b.alloc(role, memory_of(form), form, tuple(window[1]), gblk)
                b.load(tensors[role], buffer, *window)
                return buffer

            buffers = {**held, **({once: load(once, Cut(0, 1))} if once else {})}
            with b.loop("t", trips(steps, t.steps)) as it:
                time = Cut(it * t.steps, t.steps)
                buffers |= {role: load(role, time) for role in tensors if role not in buffers}
                form, _, gblk = forms["dst"]
                window = activation_window(target, time, *area.cuts, cut)
                out = b.alloc("dst", memory_of(form), form, tuple(window[1]), gblk)
                if once:
                    with b.loop("step", t.steps) as step:
                        places: dict[str, Place] = {
                            role: buffer if role == once else (buffer, step)
                            for role, buffer in {"dst": out, **buffers}.items()
                        }
                        b.job(tile.MapOp, places, params)
                else:
                    b.job(tile.MapOp, {"dst": out, **buffers}, params)
                b.store(target, out, *window)


def lower_delay(ctx: TileContext, op: DelayOp) -> None:
    """Lower a delay: every window is copied from the time steps before; whole maps, as the steps before 0 are zeros."""
    source = ctx.values[op.x]
    form, (steps, batch, height, width, channels), gblk = ctx.form_of(op.x.type)
    memory = "M" if form == "u8" else memory_of(form)

    def usage(t: Tile) -> Usage:
        return Usage(**{memory: SLOTS * t.steps * t.positions * row_bytes(form, t.k, gblk)})

    seen = ctx.samples(batch)
    t = plan_positions(
        steps, seen, height, width, channels, usage, ctx.chip, ctx.limits, row_unit=height, column_unit=width
    )
    b, label = ctx.builder, ctx.label("delay", op)
    result = ctx.declare(op.result, f"{label}.result")
    with (
        b.stage(label, op.location),
        b.loop("k", trips(channels, t.k)) as ik,
        ctx.sample_loop(batch, t.samples) as n,
        b.loop("t", trips(steps, t.steps)) as it,
    ):
        area, cut = Area(t.samples, height, width, n, Affine(), Affine()), Cut(ik * t.k, t.k)
        window = activation_window(source, Cut(it * t.steps + -op.steps, t.steps), *area.cuts, cut)
        moved = b.alloc("moved", memory, form, tuple(window[1]), gblk)
        b.load(source, moved, *window)
        b.store(result, moved, *activation_window(result, Cut(it * t.steps, t.steps), *area.cuts, cut))


def _elementwise_label(op: lut.AddOp | lut.ConvertOp | GateOp) -> str:
    if isinstance(op, lut.ConvertOp):
        return "convert"
    kind = "gate" if isinstance(op, GateOp) else "sum"
    return f"gradient {kind}" if any(map(is_gradient, op.operands)) else kind


def is_gradient(value: SSAValue) -> bool:
    """Whether a value comes from the backward pass."""
    if isinstance(value.owner, lut.AddOp):
        return is_gradient(value.owner.a) or is_gradient(value.owner.b)
    if isinstance(value.owner, lut.DropoutOp | GateOp):
        return is_gradient(value.owner.x)
    return isinstance(
        value.owner,
        lut.BeGradOp
        | lut.GradOp
        | lut.UnpoolOp
        | lut.LossOp
        | lut.WuOp
        | lut.BeWgtOp
        | lut.BiasGradOp
        | lut.LifConstantsOp,
    )


def _as_image(shape: Sequence[int]) -> tuple[int, ...]:
    """Return an activation shape as it is, any other (a parameter's) as the rows of one image."""
    return tuple(shape) if len(shape) > 3 else (1, prod(shape[:-1]), 1, shape[-1])


def _image_view(ctx: TileContext, tensor: SSAValue, row: bool) -> SSAValue:
    """Return a tensor with the shape of an image; a row of channels stays one."""
    assert isinstance(tensor.type, tile.TensorType)
    shape = tensor.type.shape
    return tensor if row or len(shape) > 3 else ctx.builder.view(tensor, _as_image(shape))


def lower_sparse_weights(ctx: TileContext, op: lut.EmbedOp | lut.ExtractOp) -> None:
    """Lower a move of grouped or dilated weights into plain ones, or of gradients out of them: transfers alone."""
    embeds = isinstance(op, lut.EmbedOp)
    source = op.w if isinstance(op, lut.EmbedOp) else op.g
    _, inner, k = shape_of(source.type if embeds else op.result.type)
    (kh, kw), (down, across), outputs = op.kernel, op.dilation, k // op.groups
    b, label = ctx.builder, ctx.label("embed" if embeds else "extract", op)
    tensors = (ctx.values[source], ctx.declare(op.result, f"{label}.result"))
    form = ctx.form_of(op.result.type)[0]
    capacity = ctx.chip.memory_bytes(memory_of(form)) // 2
    rows = next(
        size
        for size in range(inner, 0, -1)
        if inner % size == 0 and (SLOTS * size * row_bytes(form, outputs) <= capacity or size == 1)
    )
    with (
        b.stage(label, op.location),
        b.loop("ky", kh) as ky,
        b.loop("kx", kw) as kx,
        b.loop("group", op.groups) as group,
        b.loop("c", inner // rows) as ic,
    ):
        sizes = (1, rows, outputs)
        buffer = b.alloc("weights", memory_of(form), form, sizes)
        place = ky * (down * ((kw - 1) * across + 1)) + kx * across
        sparse: list[Start] = [ky * kw + kx, ic * rows, group * outputs]
        plain: list[Start] = [place, group * inner + ic * rows, group * outputs]
        b.load(tensors[0], buffer, sparse if embeds else plain, sizes)
        b.store(tensors[1], buffer, plain if embeds else sparse, sizes)


def lower_channels(ctx: TileContext, op: lut.ConcatOp | lut.SliceOp) -> None:
    """Lower parts put side by side, or one taken out: transfers of whole channels."""
    joins = isinstance(op, lut.ConcatOp)
    whole = op.result if isinstance(op, lut.ConcatOp) else op.g
    parts = op.parts if isinstance(op, lut.ConcatOp) else [op.result]
    form, shape, _ = ctx.form_of(whole.type)
    steps, (batch, height, width, channels) = leading(shape), shape[-4:]

    def usage(t: Tile) -> Usage:
        return Usage(**{memory_of(form): SLOTS * t.steps * t.positions * row_bytes(form, channels)})

    t = plan_positions(steps, ctx.samples(batch), height, width, 1, usage, ctx.chip, ctx.limits)
    b, label = ctx.builder, ctx.label("concat" if joins else "slice", op)
    result = ctx.declare(op.result, f"{label}.result")
    first = op.first if isinstance(op, lut.SliceOp) else 0
    with (
        b.stage(label, op.location),
        ctx.sample_loop(batch, t.samples) as n,
        b.loop("y", trips(height, t.rows)) as y,
        b.loop("x", trips(width, t.columns)) as x,
        b.loop("t", trips(steps, t.steps)) as it,
    ):
        area, time = Area(t.samples, t.rows, t.columns, n, y, x), Cut(it * t.steps, t.steps)
        for part in parts:
            count = shape_of(part.type)[-1]
            small, large = Cut(0, count), Cut(first, count)
            source, target = (ctx.values[part], result) if joins else (ctx.values[whole], result)
            window = activation_window(source, time, *area.cuts, small if joins else large)
            buffer = b.alloc("channels", memory_of(form), form, tuple(window[1]))
            b.load(source, buffer, *window)
            b.store(target, buffer, *activation_window(target, time, *area.cuts, large if joins else small))
            first += count


def lower_time_sum(ctx: TileContext, op: lut.TimeSumOp) -> None:
    """Lower the sum over time: all steps of a tile at once."""
    source = ctx.values[op.g]
    steps, batch, height, width, channels = shape_of(op.g.type)
    gblk, form = ctx.gblk(channels), f"slots.{ctx.dtype}"

    def usage(t: Tile) -> Usage:
        return Usage(G=SLOTS * (t.steps + 1) * t.positions * row_bytes(form, t.k, gblk))

    t = plan_positions(
        steps, ctx.samples(batch), height, width, channels, usage, ctx.chip, ctx.limits, whole_steps=True
    )
    b, label = ctx.builder, ctx.label("time sum", op)
    result = ctx.declare(op.result, f"{label}.gu")
    params: dict[str, tile.Param] = {
        "n": t.positions,
        "k": t.k,
        "steps": steps,
        "kind": "tsum",
        "dtype": ctx.dtype,
        "gblk": gblk,
    }
    with (
        b.stage(label, op.location),
        b.loop("k", trips(channels, t.k)) as ik,
        ctx.sample_loop(batch, t.samples) as n,
        b.loop("y", trips(height, t.rows)) as y,
        b.loop("x", trips(width, t.columns)) as x,
    ):
        area, cut = Area(t.samples, t.rows, t.columns, n, y, x), Cut(ik * t.k, t.k)
        window = activation_window(source, Cut(0, steps), *area.cuts, cut)
        g = b.alloc("gu", "G", form, tuple(window[1]), gblk)
        b.load(source, g, *window)
        out = b.alloc("sum", "G", form, tuple(window[1][1:]), gblk)
        b.job(tile.ReduceOp, {"dst": out, "src": g}, params)
        b.store(result, out, *activation_window(result, Cut(0, 1), *area.cuts, cut))


def lower_bias(ctx: TileContext, op: lut.BiasGradOp) -> None:
    """Lower a bias gradient: one sum per channel while all positions pass by."""
    source = ctx.values[op.gu]
    full = shape_of(op.gu.type)
    steps, (batch, height, width, channels) = leading(full), full[-4:]
    gblk, form = ctx.gblk(channels), f"slots.{ctx.dtype}"
    one = (1, 1)
    seen, item = ctx.samples(batch), item_bytes(ctx.dtype)
    shape = ConvShape(steps, seen, height, width, 1, height, width, channels, one, one, (0, 0), True, False, item)
    t = plan_weights(shape, ctx.chip, ctx.limits, op.reduce_block)
    b, label = ctx.builder, ctx.label("bias", op)
    result = ctx.declare(op.gb, f"{label}.gradient")
    params: dict[str, tile.Param] = {
        "n": images(source, t) * t.rows * t.columns,
        "k": t.k,
        "steps": 1,
        "kind": "bias",
        "dtype": ctx.dtype,
        "gblk": gblk,
    }
    running = ctx.running_sum(result)
    with b.stage(label, op.location), b.loop("k", trips(channels, t.k)) as ik:
        total = b.alloc("gb", "A", "f32", (t.k,))
        if running is not None:
            b.load(running[0], total, (running[1], ik * t.k), (1, t.k))
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(height, t.rows)) as y,
            b.loop("x", trips(width, t.columns)) as x,
            b.loop("t", trips(steps, t.steps)) as it,
        ):
            area = Area(t.samples, t.rows, t.columns, n, y, x)
            window = activation_window(source, Cut(it * t.steps, t.steps), *area.cuts, Cut(ik * t.k, t.k))
            g = b.alloc("gu", "G", form, tuple(window[1]), gblk)
            b.load(source, g, *window)
            first, carry = ([n, y, x, it], False) if running is None else ([], True)
            b.job(tile.ReduceOp, {"dst": total, "src": g}, params, first=first, carry=carry)
        b.store(result, total, (ik * t.k,), (t.k,))


def _window_params(
    t: Tile, op: lut.PoolOp | lut.UnpoolOp, dtype: str, gblk: int, src: str, dst: str
) -> dict[str, tile.Param]:
    return {
        "oh": t.rows,
        "ow": t.columns,
        "kh": op.geometry.kernel[0],
        "kw": op.geometry.kernel[1],
        "sh": op.geometry.stride[0],
        "sw": op.geometry.stride[1],
        "k": t.k,
        "kind": op.kind,
        "dtype": dtype,
        "gblk": gblk,
        "src": src,
        "dst": dst,
    }
