"""Stages of learned constants of neurons: rows out of parameters, and their gradients."""

from __future__ import annotations

from xdsl.ir import SSAValue

from h2learn.compiler.mapping.layout import item_bytes
from h2learn.compiler.mapping.vector_tiling import plan_constants
from h2learn.compiler.passes.convolution_stages import learned_tensors, load_rows
from h2learn.compiler.passes.summed_layers import Area
from h2learn.compiler.passes.tile_context import Cut, TileContext, activation_window, images, trips
from h2learn.dialects import lut, tile
from h2learn.dialects.lut.attributes import shape_of

_VALUES = {"plain": "copy", "unit": "unit", "sigmoid": "sigmoid", "falling": "falling"}
_SLOPES = {"plain": "copy", "unit": "unit_slope", "sigmoid": "sigmoid_slope", "falling": "falling_slope"}
"""Kinds of a learned constant -> what ``v.map`` computes for it, and for its gradient."""


def lower_row(ctx: TileContext, op: lut.NeuronRowOp) -> None:
    """Lower the values of a learned constant: channels one below the other, one number read for all of them."""
    (channels,) = shape_of(op.result.type)
    b, label = ctx.builder, ctx.label("constants", op)
    result = b.view(ctx.declare(op.result, f"{label}.row"), (channels, 1))
    parameter = _parameter(ctx, op.w, channels)
    with b.stage(label, op.location):
        w = _load(ctx, parameter, "parameter")
        out = b.alloc("row", "A", "f32", (channels, 1))
        b.job(tile.MapOp, {"dst": out, "a": w}, _map(channels, _VALUES[op.kind], "f32"))
        b.store(result, out, (0, 0), (channels, 1))


def lower_row_gradient(ctx: TileContext, op: lut.NeuronRowGradOp) -> None:
    """Lower the gradient of the parameter of a learned constant; one number is a sum over slots of one channel."""
    (channels,), shared = shape_of(op.g.type), shape_of(op.w.type) != shape_of(op.g.type)
    b, label = ctx.builder, ctx.label("constants gradient", op)
    result = ctx.declare(op.result, f"{label}.gradient")
    result = result if shared else b.view(result, (channels, 1))
    gradient, parameter = b.view(ctx.values[op.g], (channels, 1)), _parameter(ctx, op.w, channels)
    with b.stage(label, op.location):
        buffers = {"a": _load(ctx, gradient, "g")}
        if _SLOPES[op.kind] != "copy":
            buffers["b"] = _load(ctx, parameter, "parameter")
        form = ("G", "slots.f32") if shared else ("A", "f32")
        out = b.alloc("gradients", *form, (channels, 1), 1 if shared else 0)
        target = "slots" if shared else "f32"
        b.job(tile.MapOp, {"dst": out, **buffers}, _map(channels, _SLOPES[op.kind], target))
        if not shared:
            b.store(result, out, (0, 0), (channels, 1))
            return
        total = b.alloc("sum", "A", "f32", (1,))
        params: dict[str, tile.Param] = {"n": channels, "k": 1, "steps": 1, "kind": "bias", "dtype": "f32", "gblk": 1}
        b.job(tile.ReduceOp, {"dst": total, "src": out}, params)
        b.store(result, total, (0,), (1,))


def lower_constants(ctx: TileContext, op: lut.LifConstantsOp) -> None:
    """Lower the gradients of decay and threshold: sums per channel while all positions pass by."""
    steps, batch, height, width, channels = shape_of(op.u.type)
    shape = (steps, ctx.samples(batch), height, width, channels)
    t = plan_constants(shape, item_bytes(ctx.dtype), ctx.chip, ctx.limits, op.reduce_block)
    b, label, gblk = ctx.builder, ctx.label("constants gradient", op), ctx.gblk(channels)
    results = [ctx.declare(op.of_decay, f"{label}.decay"), ctx.declare(op.of_threshold, f"{label}.threshold")]
    constants, learned = ctx.neuron_rows(label, op.neuron, channels), learned_tensors(ctx, op)
    sources = {name: ctx.values[getattr(op, "gu" if name == "g" else name)] for name in ("g", "later", "u", "s")}
    forms = dict.fromkeys(("g", "later"), ("G", f"slots.{ctx.dtype}", gblk)) | {"u": ("U", ctx.dtype, 0)}
    forms["s"] = ("S", "bits", 0)
    params: dict[str, tile.Param] = {
        "n": images(sources["u"], t) * t.rows * t.columns,
        "k": t.k,
        "reset": op.neuron.reset,
        "dtype": ctx.dtype,
        "gblk": gblk,
    }
    running = [ctx.running_sum(result) for result in results]
    with b.stage(label, op.location), b.loop("k", trips(channels, t.k)) as ik:
        par = load_rows(ctx, constants, None, ik * t.k, t.k, learned)
        total = b.alloc("sums", "A", "f32", (2, t.k))
        for row, before in enumerate(running):
            if before is not None:
                b.load(before[0], total, (before[1], ik * t.k), (1, t.k), at=row)
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(height, t.rows)) as y,
            b.loop("x", trips(width, t.columns)) as x,
            b.loop("t", trips(steps, t.steps)) as it,
        ):
            area, time, cut = (
                Area(t.samples, t.rows, t.columns, n, y, x),
                Cut(it * t.steps, t.steps),
                Cut(ik * t.k, t.k),
            )
            buffers: dict[str, SSAValue] = {"dst": total, "par": par}
            for name, (memory, form, block) in forms.items():
                window = activation_window(sources[name], time, *area.cuts, cut)
                buffers[name] = b.alloc(name, memory, form, tuple(window[1]), block)
                b.load(sources[name], buffers[name], *window)
            first, carry = ([n, y, x, it], False) if running[0] is None else ([], True)
            b.job(tile.TuneOp, buffers, params, first=first, carry=carry)
        for row, result in enumerate(results):
            b.store(result, total, (ik * t.k,), (t.k,), at=row)


def _parameter(ctx: TileContext, w: SSAValue, channels: int) -> SSAValue:
    """Return a parameter as one number for each channel, one below the other."""
    tensor = ctx.values[w]
    return ctx.builder.repeat(tensor, channels) if shape_of(w.type) == (1,) else ctx.builder.view(tensor, (channels, 1))


def _load(ctx: TileContext, column: SSAValue, name: str) -> SSAValue:
    assert isinstance(column.type, tile.TensorType)
    buffer = ctx.builder.alloc(name, "A", "f32", column.type.shape)
    ctx.builder.load(column, buffer, (0, 0), column.type.shape)
    return buffer


def _map(channels: int, kind: str, target: str) -> dict[str, tile.Param]:
    return {
        "n": channels,
        "k": 1,
        "kind": kind,
        "dtype": "f32",
        "gblk": 1 if target == "slots" else 0,
        "a": "f32",
        "b": "f32",
        "dst": target,
    }
