"""The layers that a stage sums, block by block: currents from spikes or reals, input gradients from gradients.

Where the sums of a layer go on from those of another one, as where a shortcut has weights, one stage sums both if there
is room: what would go through DRAM in fp32 stays on chip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from math import prod

from xdsl.ir import SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.mapping.cost import lane_shape
from h2learn.compiler.mapping.layout import item_bytes
from h2learn.compiler.mapping.tiles import (
    PLAIN_NEURON,
    BackwardTile,
    ConvShape,
    ForwardTile,
    Joined,
    NeuronKind,
    WeightTile,
    backward_extent,
    input_extent,
)
from h2learn.compiler.mapping.tiling import plan_backward, plan_forward
from h2learn.compiler.passes.stage_builder import Affine, StageBuilder
from h2learn.compiler.passes.tile_context import (
    Cut,
    TileContext,
    activation_window,
    images,
    leading,
    only_user,
    trips,
)
from h2learn.dialects import lut, tile
from h2learn.dialects.lut.attributes import Planes, shape_of


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


class Area:
    """A tile of samples from ``n`` on, and of rows and columns under the loops y, x."""

    def __init__(self, samples: int, rows: int, columns: int, n: Affine, y: Affine, x: Affine) -> None:
        self.n, self.y, self.x = n, y, x
        self.dims = (samples, rows, columns)
        self.positions = samples * rows * columns
        self.cuts = (Cut(n, samples), Cut(y * rows, rows), Cut(x * columns, columns))


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


def input_of(op: lut.FeConvOp | lut.BeConvOp) -> SSAValue:
    """Return the spikes or reals that a convolution reads."""
    return op.s if isinstance(op, lut.FeConvOp) else op.x


def neuron_behind(op: lut.FeConvOp | lut.BeConvOp) -> lut.LifOp | lut.LiOp | None:
    """Return the neuron that alone reads a current."""
    neuron = only_user(op.current, (lut.LifOp, lut.LiOp))
    assert neuron is None or isinstance(neuron, lut.LifOp | lut.LiOp)
    return neuron


def current_shape(ctx: TileContext, op: lut.FeConvOp | lut.BeConvOp) -> ConvShape:
    """Return the shape of a forward convolution, with the time steps of the neuron behind it."""
    real = isinstance(op, lut.BeConvOp)
    k = shape_of(op.w.type)[-1]
    shape = conv_shape(ctx, op, input_of(op), op.current, k, real=real, onto=ctx.onto(op.onto))
    if isinstance(op, lut.FeConvOp) and op.planes is not None:
        shape = replace(shape, real=True, planes=op.planes.count)
    neuron = neuron_behind(op)
    return shape if neuron is None else replace(shape, steps=neuron.time_steps)


def plan_current(
    ctx: TileContext, op: lut.FeConvOp | lut.BeConvOp, *, looped: bool = False, joined: Joined | None = None
) -> ForwardTile:
    """Choose the tile of a forward convolution with the neuron behind it; ``joined``: what is summed in front."""
    neuron = neuron_behind(op)
    kind = PLAIN_NEURON if neuron is None else ctx.kind(neuron)
    fan = op.fan_in if isinstance(op, lut.FeConvOp) else None
    shape = current_shape(ctx, op)
    plan = partial(plan_forward, shape, ctx.chip, ctx.limits, op.reduce_block, kind, fan)
    return plan(looped=looped, joined=joined, jobs=ctx.jobs)


def joined_current(ctx: TileContext, op: lut.FeConvOp | lut.BeConvOp) -> tuple[lut.FeConvOp, Joined] | None:
    """Return the convolution that is summed in the stage of ``op``, which goes on from it: nobody else reads it.

    Both look up spikes of all steps, and there is room for both.
    """
    other = op.onto.owner if op.onto is not None else None
    if not isinstance(op, lut.FeConvOp) or not isinstance(other, lut.FeConvOp):
        return None
    shape, beside = current_shape(ctx, op), current_shape(ctx, other)
    alike = not (shape.static or beside.static or shape.covers_map or beside.covers_map or beside.planes)
    if not alike or other.onto is not None or only_user(other.current, lut.FeConvOp) is not op:
        return None
    found = Joined(beside, other.reduce_block, other.fan_in)
    with suppress(H2LearnError):
        plan_current(ctx, op, joined=found)
        return other, found
    return None


class Summed:
    """A layer whose currents a stage sums, a block of input channels at a time."""

    def __init__(self, ctx: TileContext, op: lut.FeConvOp | lut.BeConvOp, shape: ConvShape, t: ForwardTile) -> None:
        self.ctx, self.op, self.t = ctx, op, t
        self._source, self._weights = ctx.values[input_of(op)], ctx.values[op.w]
        self._part = Part(shape, t)
        self._trips = trips(shape.c, t.c)
        self._real = isinstance(op, lut.BeConvOp)
        self.whole = self._trips == 1 and self._part.count == 1
        self._tables: SSAValue | None = None

    def hold(self, ik: Affine) -> None:
        """Load the weights once for all positions where a tile has all of those that its output channels need."""
        if self.whole:
            self._tables = self._load(Affine(), Affine(), ik)

    def run(self, acc: SSAValue, area: Area, time: Cut, ik: Affine, inputs: SSAValue | None = None) -> None:
        """Add what all input channels give; ``inputs`` may be on chip already."""
        part, t = self._part, self.t
        with self.ctx.builder.loop("c", self._trips) as ic, part.loops(self.ctx.builder) as (ty, tx):
            held = self._tables or self._load(part.tap(ty, tx), ic, ik)
            seen = inputs or load_input(self.ctx, self._source, part, t, area, time, ic * t.c, (ty, tx))
            count = images(self._source, t)
            _convolve(self.ctx, self.op, acc, seen, held, count, part.shape, t, (ic, ty, tx))

    def _load(self, tap: Affine, ic: Affine, ik: Affine) -> SSAValue:
        return _load_weights(self.ctx, self._weights, self._part, self.t, tap, ic, ik, self._real)


def gradient_shape(ctx: TileContext, op: lut.BeGradOp) -> tuple[ConvShape, NeuronKind | None]:
    """Return the shape of the convolution of an input gradient, and the neuron whose gradient alone reads it."""
    reader = only_user(op.gs, lut.GradOp)
    shape = conv_shape(ctx, op, op.gs, op.gu, shape_of(op.w.type)[-1], real=False, onto=ctx.onto(op.onto))
    return shape, ctx.kind(reader) if isinstance(reader, lut.GradOp) else None


def joined_gradient(ctx: TileContext, op: lut.BeGradOp) -> tuple[lut.BeGradOp, Joined] | None:
    """Return the input gradient through another layer that is summed in the stage of ``op``, which goes on from it.

    Nobody else reads it, both are open in the same places and tiles of the one are tiles of the other, and there is
    room for both beside the neuron gradient that would join ``op`` alone.
    """
    other = op.onto.owner if op.onto is not None else None
    if not isinstance(other, lut.BeGradOp) or only_user(other.gs, lut.BeGradOp) is not op:
        return None
    (shape, kind), (beside, _) = gradient_shape(ctx, op), gradient_shape(ctx, other)
    same = other.onto is None and other.m is op.m and other.mode == op.mode and beside.stride == shape.stride
    if not same or shape.covers_map or beside.covers_map:
        return None
    found = Joined(beside, other.reduce_block)
    with suppress(H2LearnError):
        alone, both = (
            plan_backward(
                shape,
                ctx.chip,
                ctx.limits,
                op.reduce_block,
                neuron=kind,
                joined=joined,
                jobs=ctx.jobs,
            )
            for joined in (None, found)
        )
        if both.fused == alone.fused:
            return other, found
    return None


class Through:
    """A layer through which a stage sums gradients of its input, a block of output channels at a time."""

    def __init__(self, ctx: TileContext, op: lut.BeGradOp, shape: ConvShape, t: BackwardTile) -> None:
        self.ctx, self.op, self.shape, self.t = ctx, op, shape, t
        self._source, self._weights = ctx.values[op.gu], ctx.values[op.w]
        (self._gh, py, self._first_y), (self._gw, px, self._first_x) = backward_extent(shape, t)
        self._part = shape.under(t.rows, t.columns)
        self._gblk = ctx.gblk(shape.k)
        self._params: dict[str, tile.Param] = {
            **geometry_params(self._part, t, images(self._source, t), ctx.dtype),
            "gh": self._gh,
            "gw": self._gw,
            "py": py,
            "px": px,
            "gblk": self._gblk,
            "mode": op.mode,
            "masked": "yes" if op.m is not None else "no",
        }

    def weight_tile(self, tap: Affine, ic: Affine, ik: Affine) -> SSAValue:
        """Load the weights of a tile of channels, from kernel position ``tap`` on."""
        b, t = self.ctx.builder, self.t
        sizes = (self._part.taps, t.c, t.k)
        w = b.alloc("weights", "W", self.ctx.dtype, sizes, slots=t.weight_slots(self.shape))
        b.load(self._weights, w, (tap, ic * t.c, ik * t.k), sizes)
        return w

    def run(
        self,
        buffers: Mapping[str, SSAValue],
        area: Area,
        time: Cut,
        ic: Affine,
        ik: Affine,
        weights: SSAValue | None = None,
        gradients: SSAValue | None = None,
    ) -> None:
        """Add what comes through a block of output channels; ``weights`` and ``gradients`` may be on chip already."""
        b, t, shape = self.ctx.builder, self.t, self.shape
        rows = Cut(area.y * (t.rows // shape.stride[0]) + self._first_y, self._gh)
        columns = Cut(area.x * (t.columns // shape.stride[1]) + self._first_x, self._gw)
        tap = Affine()
        if shape.covers_map:
            rows, columns = Cut(0, 1), Cut(0, 1)
            tap = area.y * (t.rows * shape.in_w) + area.x * t.columns
        w = weights if weights is not None else self.weight_tile(tap, ic, ik)
        window = activation_window(self._source, time, area.cuts[0], rows, columns, Cut(ik * t.k, t.k))
        g = gradients or b.alloc("gu", "G", f"slots.{self.ctx.dtype}", tuple(window[1]), self._gblk, slots=t.ahead)
        if gradients is None:
            b.load(self._source, g, *window)
        first, carry = _start(self.op, [ik])
        used = {**buffers, "g": g, "w": w}
        self.ctx.sum_tile(tile.BeRunOp, used, self._params, t, ("acc", "m", "g"), first=first, carry=carry)


def geometry_params(
    shape: ConvShape, t: ForwardTile | BackwardTile | WeightTile, imgs: int, dtype: str
) -> dict[str, tile.Param]:
    """Return the parameters of a job on a tile that say what it is a part of; ``imgs``: images of the tile."""
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
    w = b.alloc("weights", "W", ctx.dtype, (shape.taps, t.c, t.k), slots=t.ahead)
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


def load_input(
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
    inputs = b.alloc("inputs", memory, form, tuple(window[1]), slots=t.ahead)
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
    params = geometry_params(shape, t, imgs, ctx.dtype)
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
