"""Stages of the vector unit that draw random numbers: encoding and dropout."""

from __future__ import annotations

from h2learn.compiler.mapping.layout import row_bytes
from h2learn.compiler.mapping.limits import SLOTS
from h2learn.compiler.mapping.tiles import Tile, Usage
from h2learn.compiler.mapping.vector_tiling import plan_positions
from h2learn.compiler.passes.convolution_stages import map_format, memory_of
from h2learn.compiler.passes.stage_builder import Affine, Place
from h2learn.compiler.passes.summed_layers import Area
from h2learn.compiler.passes.tile_context import (
    Cut,
    TileContext,
    activation_window,
    leading,
    load_scalars,
    trips,
)
from h2learn.compiler.passes.vector_stages import is_gradient
from h2learn.dialects import lut, tile
from h2learn.dialects.lut.attributes import shape_of


def lower_rng(ctx: TileContext, op: lut.RngOp) -> None:
    """Lower random encoding: rows of whole channels, step by step."""
    source, scalars = ctx.values[op.x], ctx.values[op.scalars]
    batch, height, width, channels = shape_of(op.x.type)

    def usage(t: Tile) -> Usage:
        return Usage(
            S=SLOTS * t.positions * row_bytes("bits", channels), A=SLOTS * t.positions * channels * 4 + SLOTS * 32
        )

    whole = Tile(1, batch, height, width, 1, channels)
    t = plan_positions(1, ctx.samples(batch), height, width, channels, usage, ctx.chip, ctx.limits)
    t = Tile(1, t.samples, t.rows, whole.columns, 1, channels)
    b, label = ctx.builder, ctx.label("encode", op)
    result = ctx.declare(op.s, f"{label}.s")
    params: dict[str, tile.Param] = {
        "n": t.samples,
        "positions": t.rows * t.columns,
        "k": channels,
        "stream": op.stream,
    }
    with b.stage(label, op.location):
        scal = load_scalars(ctx, scalars)
        with ctx.sample_loop(batch, t.samples) as n, b.loop("y", trips(height, t.rows)) as y:
            area = Area(t.samples, t.rows, t.columns, n, y, Affine())
            window = activation_window(source, Cut(0, 1), *area.cuts, Cut(0, channels))
            chances = b.alloc("chances", "A", "f32", tuple(window[1]))
            b.load(source, chances, *window)
            with b.loop("t", op.time_steps) as it:
                out_window = activation_window(result, Cut(it, 1), *area.cuts, Cut(0, channels))
                out = b.alloc("s", "S", "bits", tuple(out_window[1]))
                neuron = y * (t.rows * width * channels)
                b.job(
                    tile.RngOp,
                    {"dst": out, "src": chances, "scal": scal},
                    params,
                    coords=[n, neuron, it],
                )
                b.store(result, out, *out_window)


def lower_dropout(ctx: TileContext, op: lut.DropoutOp) -> None:
    """Lower dropout: rows of whole channels, step by step."""
    source, what = ctx.values[op.x], op.what
    full = shape_of(op.result.type)
    steps, (batch, height, width, channels) = leading(full), full[-4:]
    (source_form, _, source_gblk), (form, _, gblk) = ctx.form_of(op.x.type), ctx.form_of(op.result.type)

    def usage(t: Tile) -> Usage:
        used = dict.fromkeys(("A", "S", "U", "G"), 0)
        used["A"] = SLOTS * 32
        for name, block in ((source_form, source_gblk), (form, gblk)):
            used[memory_of(name)] += SLOTS * t.steps * t.positions * row_bytes(name, channels, block)
        return Usage(**used)

    t = plan_positions(steps, ctx.samples(batch), height, width, 1, usage, ctx.chip, ctx.limits, column_unit=width)
    b, label = ctx.builder, ctx.label("dropout gradient" if is_gradient(op.x) else "dropout", op)
    result = ctx.declare(op.result, f"{label}.result")
    params: dict[str, tile.Param] = {
        "n": t.samples,
        "positions": t.rows * width,
        "k": channels,
        "stream": what.stream,
        "share": float(what.share),
        "factor": float(what.factor),
        "dtype": ctx.dtype,
        "gblk": max(source_gblk, gblk),
        "a": map_format(source_form),
        "dst": map_format(form),
    }
    with b.stage(label, op.location):
        scal = load_scalars(ctx, ctx.values[op.scalars])
        with (
            ctx.sample_loop(batch, t.samples) as n,
            b.loop("y", trips(height, t.rows)) as y,
            b.loop("t", trips(steps, t.steps)) as it,
        ):
            area, time, cut = (
                Area(t.samples, t.rows, width, n, y, Affine()),
                Cut(it * t.steps, t.steps),
                Cut(0, channels),
            )
            window = activation_window(source, time, *area.cuts, cut)
            values = b.alloc("values", memory_of(source_form), source_form, tuple(window[1]), source_gblk)
            b.load(source, values, *window)
            target = activation_window(result, time, *area.cuts, cut)
            out = b.alloc("kept", memory_of(form), form, tuple(target[1]), gblk)
            with b.loop("step", t.steps) as step:
                places: dict[str, Place] = {
                    "dst": (out, step) if len(target[1]) == 5 else out,
                    "a": (values, step) if len(window[1]) == 5 else values,
                    "scal": scal,
                }
                tick = it * t.steps + step if what.every_step else 0
                b.job(tile.DropOp, places, params, coords=[n, y * (t.rows * width * channels), tick])
            b.store(result, out, *target)
