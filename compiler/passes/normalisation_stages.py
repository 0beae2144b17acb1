"""Stages of batch normalisation: statistics in two passes over the currents, the map itself, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from xdsl.ir import SSAValue

from h2learn.compiler.mapping.layout import item_bytes, row_bytes
from h2learn.compiler.mapping.limits import SLOTS
from h2learn.compiler.mapping.tiles import Tile, Usage
from h2learn.compiler.mapping.vector_tiling import plan_positions, plan_sums
from h2learn.compiler.passes.stage_builder import Affine
from h2learn.compiler.passes.summed_layers import Area
from h2learn.compiler.passes.tile_context import Cut, TileContext, activation_window, leading, load_scalars, trips
from h2learn.dialects import tile
from h2learn.dialects.lut.normalisation import NormalisationOp, NormGradOp, NormOp, NormStatsOp, NormSumsOp


def lower_statistics(ctx: TileContext, op: NormStatsOp) -> None:
    """Lower batch statistics: the mean, then the squares about it. Running statistics are updated where they lie."""
    rows = [_bias(ctx, op)]
    for kind, sums, result, old, new in (
        ("mean", "sum", op.batch_mean, op.mean, op.new_mean),
        ("deviation", "square", op.inverse, op.variance, op.new_variance),
    ):
        ctx.values[new] = ctx.values[old]
        b, label = ctx.builder, ctx.label("statistics", op)
        target = ctx.declare(result, f"{label}.{kind}")
        walk = _sums(ctx, op, sums, op.reduce_block)
        params: dict[str, tile.Param] = {
            "k": walk.tile.k,
            "kind": kind,
            "count": walk.count,
            "repeats": op.repeats,
            "eps": op.eps,
            "momentum": op.momentum,
        }
        with b.stage(label, op.location):
            scal = load_scalars(ctx, ctx.values[op.scalars])
            with b.loop("k", walk.channel_trips) as ik:
                total = walk.sum((walk.tile.k,), ik, rows, scal)
                start, size = (ik * walk.tile.k,), (walk.tile.k,)
                buffers = {"dst": b.alloc(kind, "A", "f32", size), "run": b.alloc("running", "A", "f32", size)}
                b.load(ctx.values[old], buffers["run"], start, size)
                b.job(tile.FoldOp, {**buffers, "src": total, "scal": scal}, params)
                b.store(target, buffers["dst"], start, size)
                b.store(ctx.values[old], buffers["run"], start, size)
        rows.append(target)


def lower_sums(ctx: TileContext, op: NormSumsOp) -> None:
    """Lower the gradients of weight and shift."""
    b, label = ctx.builder, ctx.label("norm sums", op)
    shift = ctx.declare(op.shift_gradient, f"{label}.shift")
    weight = ctx.declare(op.weight_gradient, f"{label}.weight")
    rows = [_bias(ctx, op), ctx.values[op.mean], ctx.values[op.inverse]]
    walk = _sums(ctx, op, "product", op.reduce_block)
    with b.stage(label, op.location):
        scal = load_scalars(ctx, ctx.values[op.scalars])
        with b.loop("k", walk.channel_trips) as ik:
            total = walk.sum((2, walk.tile.k), ik, rows, scal, ctx.values[op.gu])
            for row, target in enumerate((shift, weight)):
                b.store(target, total, (ik * walk.tile.k,), (walk.tile.k,), at=row)


def lower_norm(ctx: TileContext, op: NormOp) -> None:
    """Lower the normalisation of currents."""
    b, label = ctx.builder, ctx.label("normalise", op)
    result = ctx.declare(op.current, f"{label}.current")
    rows = [_bias(ctx, op), *(ctx.values[row] for row in (op.mean, op.inverse, op.weight, op.shift))]
    walk = _elements(ctx, op, "forward")
    with b.stage(label, op.location), b.loop("k", walk.channel_trips) as ik:
        par, cut = load_parameters(ctx, rows, ik, walk.tile.k), Cut(ik * walk.tile.k, walk.tile.k)
        with walk.positions() as (area, time, _):
            x = walk.load(ctx.values[op.x], "x", area, time, cut)
            window = activation_window(result, time, *area.cuts, cut)
            out = b.alloc("normalised", "A", "f32", tuple(window[1]))
            walk.job(tile.NormOp, {"dst": out, "x": x, "par": par}, area)
            b.store(result, out, *window)


def lower_gradient(ctx: TileContext, op: NormGradOp) -> None:
    """Lower the gradient of the currents."""
    b, label = ctx.builder, ctx.label("norm gradient", op)
    result = ctx.declare(op.result, f"{label}.gx")
    statistics = (op.mean, op.inverse, op.weight, op.shift_gradient, op.weight_gradient)
    rows = [_bias(ctx, op), *(ctx.values[row] for row in statistics)]
    walk = _elements(ctx, op, "backward")
    with b.stage(label, op.location):
        scal = load_scalars(ctx, ctx.values[op.scalars])
        with b.loop("k", walk.channel_trips) as ik:
            par, cut = load_parameters(ctx, rows, ik, walk.tile.k), Cut(ik * walk.tile.k, walk.tile.k)
            with walk.positions() as (area, time, _):
                x = walk.load(ctx.values[op.x], "x", area, time, cut)
                g = walk.load(ctx.values[op.gu], "gu", area, time, cut)
                window = activation_window(result, time, *area.cuts, cut)
                out = b.alloc("gx", "G", f"slots.{ctx.dtype}", tuple(window[1]), walk.gblk)
                walk.job(tile.NormOp, {"dst": out, "x": x, "g": g, "par": par, "scal": scal}, area)
                b.store(result, out, *window)


def load_parameters(ctx: TileContext, rows: Sequence[SSAValue], block: Affine, k: int) -> SSAValue:
    """Load ``k`` channels of each row into one buffer."""
    par = ctx.builder.alloc("parameters", "A", "f32", (len(rows), k))
    for place, row in enumerate(rows):
        ctx.builder.load(row, par, (block * k,), (k,), at=place)
    return par


class _Walk:
    """Loops over the tiles of currents, and the jobs on them."""

    def __init__(self, ctx: TileContext, op: NormalisationOp, kind: str, t: Tile) -> None:
        self.ctx, self.op, self.tile = ctx, op, t
        batch, height, width, channels = op.shape[-4:]
        self.gblk = ctx.gblk(channels)
        self.channel_trips = trips(channels, t.k)
        self.batch = batch
        self.trips = [trips(*pair) for pair in ((height, t.rows), (width, t.columns))]
        self.time_trips = trips(leading(op.shape), t.steps)
        self.count = leading(op.shape) * height * width
        self.params: dict[str, tile.Param] = {
            "steps": t.steps,
            "n": t.samples,
            "positions": t.rows * t.columns,
            "k": t.k,
            "kind": kind,
            "dtype": ctx.dtype,
            "gblk": self.gblk,
            "count": self.count,
        }

    @contextmanager
    def positions(self) -> Iterator[tuple[Area, Cut, list[Affine]]]:
        """Open the loops; give the area, the time steps and the counters."""
        b, t = self.ctx.builder, self.tile
        with (
            self.ctx.sample_loop(self.batch, t.samples) as n,
            b.loop("y", self.trips[0]) as y,
            b.loop("x", self.trips[1]) as x,
            b.loop("t", self.time_trips) as it,
        ):
            yield Area(t.samples, t.rows, t.columns, n, y, x), Cut(it * t.steps, t.steps), [n, y, x, it]

    def load(self, source: SSAValue, name: str, area: Area, time: Cut, channels: Cut) -> SSAValue:
        """Load a tile of currents or of gradients."""
        assert isinstance(source.type, tile.TensorType)
        form, gblk = source.type.placed.form, source.type.placed.gblk
        window = activation_window(source, time, *area.cuts, channels)
        buffer = self.ctx.builder.alloc(name, "G" if gblk else "A", form, tuple(window[1]), gblk)
        self.ctx.builder.load(source, buffer, *window)
        return buffer

    def job(
        self, kind: type[tile.JobOp], buffers: dict[str, SSAValue], area: Area, first: Sequence[Affine] = ()
    ) -> None:
        """Append a job on the tile of an area."""
        self.ctx.builder.job(kind, buffers, self.params, first=first, coords=[area.n])

    def sum(
        self,
        shape: tuple[int, ...],
        block: Affine,
        rows: Sequence[SSAValue],
        scal: SSAValue,
        gu: SSAValue | None = None,
    ) -> SSAValue:
        """Sum over all positions of a block of channels; return the sums."""
        total = self.ctx.builder.alloc("sums", "A", "f32", shape)
        par, channels = load_parameters(self.ctx, rows, block, self.tile.k), Cut(block * self.tile.k, self.tile.k)
        with self.positions() as (area, time, counters):
            buffers = {"dst": total, "par": par, "scal": scal}
            buffers["x"] = self.load(self.ctx.values[self.op.x], "x", area, time, channels)
            if gu is not None:
                buffers["g"] = self.load(gu, "gu", area, time, channels)
            self.job(tile.StatOp, buffers, area, counters)
        return total


def _sums(ctx: TileContext, op: NormalisationOp, kind: str, block: tuple[int, int, int, int]) -> _Walk:
    sizes = op.shape if len(op.shape) == 5 else (1, *op.shape)
    gradients = isinstance(op, NormSumsOp)
    t = plan_sums(sizes, item_bytes(ctx.dtype), ctx.chip, ctx.limits, block, gradients=gradients)
    return _Walk(ctx, op, kind, t)


def _elements(ctx: TileContext, op: NormalisationOp, kind: str) -> _Walk:
    batch, height, width, channels = op.shape[-4:]
    gblk = ctx.gblk(channels)

    def usage(t: Tile) -> Usage:
        values = SLOTS * t.steps * t.positions
        if kind == "forward":
            return Usage(A=2 * values * t.k * 4 + SLOTS * 20 * t.k)
        slots = row_bytes(f"slots.{ctx.dtype}", t.k, gblk)
        return Usage(A=values * t.k * 4 + SLOTS * 24 * t.k + SLOTS * 64, G=2 * values * slots)

    return _Walk(
        ctx, op, kind, plan_positions(leading(op.shape), batch, height, width, channels, usage, ctx.chip, ctx.limits)
    )


def _bias(ctx: TileContext, op: NormalisationOp) -> SSAValue:
    """Return the bias of the layer below, or zeros."""
    if op.bias is not None:
        return ctx.values[op.bias]
    channels = op.shape[-1]
    zeros = ctx.builder.tensor(f"{ctx.label('no bias', op)}", "f32", (1, channels), rows=((0.0,),))
    return ctx.builder.view(zeros, (channels,))
