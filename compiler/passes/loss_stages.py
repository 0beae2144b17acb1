"""Stages from the readout to the loss and its gradient."""

from __future__ import annotations

from h2learn.compiler.mapping.layout import item_bytes, row_bytes
from h2learn.compiler.mapping.limits import SLOTS
from h2learn.compiler.mapping.tiles import Tile, Usage
from h2learn.compiler.mapping.vector_tiling import plan_positions
from h2learn.compiler.passes.tile_context import (
    TileContext,
    load_scalars,
    trips,
)
from h2learn.dialects import lut, tile
from h2learn.dialects.lut.attributes import SpikesType, shape_of


def lower_readout(ctx: TileContext, op: lut.ReadoutOp) -> None:
    """Lower a readout: all steps of some samples, and of some classes if there are many, at once."""
    source = ctx.values[op.x]
    steps, batch, _, _, classes = shape_of(op.x.type)
    bits = isinstance(op.x.type, SpikesType)
    memory, form = ("S", "bits") if bits else ("U", ctx.dtype)

    def usage(t: Tile) -> Usage:
        source_bytes = SLOTS * steps * t.samples * row_bytes(form, t.k)
        return Usage(S=source_bytes if bits else 0, U=0 if bits else source_bytes, A=SLOTS * t.samples * t.k * 4)

    t = plan_positions(steps, ctx.samples(batch), 1, 1, classes, usage, ctx.chip, ctx.limits, whole_steps=True)
    b, label = ctx.builder, ctx.label("readout", op)
    result = ctx.declare(op.logits, f"{label}.logits")
    params: dict[str, tile.Param] = {
        "n": t.samples,
        "k": t.k,
        "steps": steps,
        "kind": op.kind.removeprefix("membrane_") if bits else _OF_NUMBERS[op.kind],
        "dtype": ctx.dtype,
        "gblk": 0,
    }
    with (
        b.stage(label, op.location),
        ctx.sample_loop(batch, t.samples) as n,
        b.loop("k", trips(classes, t.k)) as ik,
    ):
        sizes = (steps, t.samples, 1, 1, t.k)
        inputs = b.alloc("inputs", memory, form, sizes)
        b.load(source, inputs, [0, n, 0, 0, ik * t.k], sizes)
        logits = b.alloc("logits", "A", "f32", sizes[1:])
        b.job(tile.ReduceOp, {"dst": logits, "src": inputs}, params)
        b.store(result, logits, [n, 0, 0, ik * t.k], sizes[1:])


_OF_NUMBERS = {
    **{"rate": "mean", "count": "sum"},
    **{"membrane_mean": "mean", "membrane_last": "last", "membrane_max": "max"},
}
"""Readout of stored numbers -> what ``v.reduce`` calls it."""


def lower_spread(ctx: TileContext, op: lut.SpreadOp) -> None:
    """Lower the gradient of a maximum over time: all steps of some samples, and of some classes, at once."""
    gradient, source = ctx.values[op.g], ctx.values[op.x]
    steps, batch, _, _, classes = shape_of(op.x.type)

    def usage(t: Tile) -> Usage:
        values = SLOTS * t.samples * t.k
        return Usage(U=values * steps * item_bytes(ctx.dtype), A=values * (steps + 1) * 4)

    t = plan_positions(steps, ctx.samples(batch), 1, 1, classes, usage, ctx.chip, ctx.limits, whole_steps=True)
    b, label = ctx.builder, ctx.label("readout gradient", op)
    result = ctx.declare(op.gs, f"{label}.gs")
    params: dict[str, tile.Param] = {"n": t.samples, "k": t.k, "steps": steps, "dtype": ctx.dtype}
    with (
        b.stage(label, op.location),
        ctx.sample_loop(batch, t.samples) as n,
        b.loop("k", trips(classes, t.k)) as ik,
    ):
        sizes = (steps, t.samples, 1, 1, t.k)
        x, g = b.alloc("read", "U", ctx.dtype, sizes), b.alloc("gradient", "A", "f32", sizes[1:])
        b.load(source, x, [0, n, 0, 0, ik * t.k], sizes)
        b.load(gradient, g, [n, 0, 0, ik * t.k], sizes[1:])
        out = b.alloc("gs", "A", "f32", sizes)
        b.job(tile.SpreadOp, {"dst": out, "src": g, "x": x}, params)
        b.store(result, out, [0, n, 0, 0, ik * t.k], sizes)


def lower_loss(ctx: TileContext, op: lut.LossOp) -> None:
    """Lower the loss; a gradient that only the last step receives goes to the last slice of a zero tensor."""
    logits, label_tensor = ctx.values[op.logits], ctx.values[op.label]
    batch, _, _, classes = shape_of(op.logits.type)

    def usage(t: Tile) -> Usage:
        return Usage(A=SLOTS * t.samples * (classes * 8 + 4) + SLOTS * 64)

    t = plan_positions(1, ctx.samples(batch), 1, 1, classes, usage, ctx.chip, ctx.limits)
    b, label = ctx.builder, ctx.label("loss", op)
    loss = ctx.declare(op.loss, f"{label}.loss")
    grads = [use.operation for use in op.dlogits.uses]
    last = [g for g in grads if isinstance(g, lut.GradOp) and g.gs_time == "last"]
    if last:
        shape = (last[0].time_steps, *shape_of(op.dlogits.type))
        gradient = ctx.tensor(op.dlogits, f"{label}.gradient", "f32", shape)
        lead = [last[0].time_steps - 1]
    else:
        gradient, lead = ctx.declare(op.dlogits, f"{label}.gradient"), []
    what = op.what
    params: dict[str, tile.Param] = {"n": t.samples, "k": classes, "kind": what.kind, "scale": op.scale}
    params |= {"hit": what.hit, "miss": what.miss, "share": what.share}
    running = ctx.running_sum(loss)
    with b.stage(label, op.location):
        scal = load_scalars(ctx, ctx.values[op.scalars])
        total = b.alloc("loss", "A", "f32", (1,))
        if running is not None:
            b.load(running[0], total, (running[1], 0), (1, 1))
        with ctx.sample_loop(batch, t.samples) as n:
            shape = (t.samples, 1, 1, classes)
            inputs = b.alloc("logits", "A", "f32", shape)
            b.load(logits, inputs, [n, 0, 0, 0], shape)
            labels = b.alloc("labels", "A", "i32", (t.samples,))
            b.load(label_tensor, labels, [n], (t.samples,))
            out = b.alloc("gradient", "A", "f32", shape)
            buffers = {"loss": total, "grad": out, "logits": inputs, "label": labels, "scal": scal}
            first, carry = ([n], False) if running is None else ([], True)
            b.job(tile.LossOp, buffers, params, first=first, coords=[n], carry=carry)
            b.store(gradient, out, [*lead, n, 0, 0, 0], (*(1 for _ in lead), *shape))
        b.store(loss, total, [0], (1,))
