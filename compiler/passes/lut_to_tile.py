"""``h2l-lut-to-tile``: every ``lut`` op becomes a stage of loops over tiles with buffers in named memories.

Decided here: tile sizes, loop order, what is fused into one stage (a convolution and the neurons that alone read it),
what is loaded where and kept for how long. Optimizer stages come last, because they overwrite the parameters in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from xdsl.context import Context
from xdsl.dialects import builtin, func
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import load_machine
from h2learn.compiler.mapping.tiling import TileLimits
from h2learn.compiler.passes import convolution_stages, normalisation_stages, vector_stages
from h2learn.compiler.passes.stage_builder import StageBuilder
from h2learn.compiler.passes.tile_context import TileContext, only_user
from h2learn.dialects import lut, tile
from h2learn.dialects.common import get_io, precision, source_of
from h2learn.dialects.lut.normalisation import NormGradOp, NormOp, NormStatsOp, NormSumsOp


@dataclass(frozen=True)
class LutToTilePass(ModulePass):
    """Lower ``lut`` to ``tile`` for machine ``arch`` under the tile limits ``limits`` (``"rows=4,k=8"``)."""

    name: ClassVar[str] = "h2l-lut-to-tile"
    arch: str = "h2l-v0"
    limits: str = ""

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Replace the body of ``@main``; raises H2LearnError for ops without a stage."""
        del ctx
        main = next(f for f in op.body.block.ops if isinstance(f, func.FuncOp))
        body = main.body.block
        io = get_io(op)
        block = Block()
        context = TileContext(
            StageBuilder(block),
            load_machine(self.arch),
            TileLimits.parse(self.limits),
            precision(op),
            {arg: entry.name for arg, entry in zip(body.args, io, strict=False)},
        )
        for argument in body.args:
            value = block.insert_arg(tile.tensor_type(*context.form_of(argument.type)), len(block.args))
            value.location = argument.location
            value.name_hint = tile.name_hint(context.names.get(argument, ""))
            context.values[argument] = value
        _lower_all(context, list(body.ops))
        returned = body.last_op
        assert isinstance(returned, func.ReturnOp)
        block.add_op(func.ReturnOp(*(context.values[value] for value in returned.arguments)))
        replacement = func.FuncOp(
            main.sym_name.data,
            ([a.type for a in block.args], [context.values[value].type for value in returned.arguments]),
            Region(block),
        )
        replacement.location = main.location
        op.body.block.insert_op_before(replacement, main)
        op.body.block.erase_op(main)


def _scan(ctx: TileContext, op: lut.ScanOp) -> None:
    """Lower a scan of one layer and the neurons behind it, forwards or backwards."""
    for argument, value in zip(op.arguments, op.inputs, strict=True):
        ctx.values[argument] = ctx.values[value]
    match list(op.body.block.ops)[:-1]:
        case [lut.FeConvOp() as layer, lut.LifOp()] if layer.s is op.fed_back[0]:
            convolution_stages.lower_forward(ctx, layer, fed_back=True)
        case [lut.BeGradOp() as layer, lut.GradOp()] if layer.gu is op.fed_back[0]:
            convolution_stages.lower_backward(ctx, layer, fed_back=True)
        case layers:
            raise H2LearnError(
                f"expected feedback through one layer and its neurons, found {', '.join(one.name for one in layers)}",
                location=source_of(op) or None,
            )
    for result, value in zip(op.outputs, op.yielded, strict=True):
        ctx.values[result] = ctx.values[value]


def _lower_all(ctx: TileContext, ops: list[Operation]) -> None:
    unknown = [op for op in ops if type(op) not in STAGES and not isinstance(op, func.ReturnOp)]
    if unknown:
        raise H2LearnError(
            f"no stage is known for {', '.join(sorted({op.name for op in unknown}))}",
            location=source_of(unknown[0]) or None,
        )
    for op in ops:
        if isinstance(op, lut.OptOp):
            for new, old in zip((op.new_p, *op.new_states), (op.p, *op.states), strict=True):
                ctx.values[new] = ctx.values[old]
            if op.w is not None:
                ctx.values[op.w] = _shadow(ctx, op.p)
        elif not isinstance(op, func.ReturnOp):
            STAGES[type(op)](ctx, op)
    for op in ops:
        if isinstance(op, lut.OptOp):
            vector_stages.lower_optimizer(ctx, op)


def _shadow(ctx: TileContext, parameter: SSAValue) -> SSAValue:
    """Return the storage copy of a parameter; there is one per parameter."""
    name = ctx.names[parameter]
    if parameter not in ctx.shadows:
        form, shape, _ = ctx.form_of(parameter.type)
        assert form == "f32"
        ctx.shadows[parameter] = ctx.builder.tensor(f"{name}.{ctx.dtype}", ctx.dtype, shape, shadow=name)
    return ctx.shadows[parameter]


def _cast(ctx: TileContext, op: lut.CastOp) -> None:
    ctx.values[op.w] = _shadow(ctx, op.p)


def _neuron(ctx: TileContext, op: lut.LifOp | lut.LiOp) -> None:
    producer = op.current.owner
    fused = isinstance(producer, lut.FeConvOp | lut.BeConvOp) and only_user(op.current, type(op)) is op
    if not fused:
        vector_stages.lower_neuron(ctx, op)


def _gradient(ctx: TileContext, op: lut.GradOp) -> None:
    if op.gs in ctx.values:  # not there when it joined the stage of its input gradient
        vector_stages.lower_gradient(ctx, op)


STAGES: dict[type[Operation], Callable[[TileContext, Any], None]] = {
    lut.FeConvOp: convolution_stages.lower_forward,
    lut.BeConvOp: convolution_stages.lower_forward,
    lut.LifOp: _neuron,
    lut.LiOp: _neuron,
    lut.PoolOp: vector_stages.lower_pool,
    lut.UnpoolOp: vector_stages.lower_unpool,
    lut.AddOp: vector_stages.lower_elementwise,
    lut.ConvertOp: vector_stages.lower_elementwise,
    lut.EmbedOp: vector_stages.lower_sparse_weights,
    lut.ExtractOp: vector_stages.lower_sparse_weights,
    lut.RngOp: vector_stages.lower_rng,
    lut.CastOp: _cast,
    lut.ReadoutOp: vector_stages.lower_readout,
    lut.LossOp: vector_stages.lower_loss,
    lut.GradOp: _gradient,
    lut.BeGradOp: convolution_stages.lower_backward,
    lut.TimeSumOp: vector_stages.lower_time_sum,
    lut.ScanOp: _scan,
    lut.DelayOp: vector_stages.lower_delay,
    lut.WuOp: convolution_stages.lower_weights,
    lut.BeWgtOp: convolution_stages.lower_weights,
    lut.BiasGradOp: vector_stages.lower_bias,
    NormStatsOp: normalisation_stages.lower_statistics,
    NormOp: normalisation_stages.lower_norm,
    NormSumsOp: normalisation_stages.lower_sums,
    NormGradOp: normalisation_stages.lower_gradient,
    lut.OptOp: vector_stages.lower_optimizer,
}
"""The lowering of each op; every function takes the op of its key."""
