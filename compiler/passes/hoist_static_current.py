"""Moves direct encoding below the layers that see the same input at every time step: they are computed once."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter

from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import integer, tensor_type
from h2learn.dialects.spike.interpreter import main_block

JOINS = (spike.AddOp, spike.ConcatOp)
"""Ops whose operands are all values of layers."""

TIMELESS = (
    spike.ConvOp,
    spike.LinearOp,
    spike.PoolOp,
    spike.FlattenOp,
    spike.AddOp,
    spike.ConcatOp,
    spike.BatchNormOp,
    spike.DropoutOp,
)
"""Ops that treat every time step alike, so that ``op(repeat(x)) = repeat(op(x))``, bit for bit.

Batch normalisation counts each of its inputs once for every step."""


@dataclass(frozen=True)
class HoistStaticCurrentPass(ModulePass):
    """Replace direct encoding by ``spike.repeat`` and sink that below convolutions, linear layers and pooling.

    To be run before differentiation: the adjoint of the sunken repeat sums gradients over time once, so that the weight
    gradient of the first layer is computed once, too.
    """

    name = "h2l-hoist-static-current"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        """Rewrite ``@main`` in program order; one walk reaches the fixed point."""
        block = main_block(op)
        for inner in list(block.ops):
            if isinstance(inner, spike.EncodeOp) and inner.kind.data == "direct":
                steps = int(inner.time_steps.value.data)
                _replace(inner, spike.RepeatOp(inner.x, steps, location=inner.location))
            elif isinstance(inner, TIMELESS) and not _draws_every_step(inner):
                _sink(inner)
        for inner in reversed(list(block.ops)):
            if isinstance(inner, spike.RepeatOp) and not inner.result.uses:
                Rewriter.erase_op(inner)


def _sink(
    op: spike.ConvOp
    | spike.LinearOp
    | spike.PoolOp
    | spike.FlattenOp
    | spike.AddOp
    | spike.ConcatOp
    | spike.BatchNormOp
    | spike.DropoutOp,
) -> None:
    """Compute ``op`` once when all that it reads, parameters apart, is repeated."""
    inputs = op.operands if isinstance(op, JOINS) else op.operands[:1]
    repeats = [value.owner for value in inputs if isinstance(value.owner, spike.RepeatOp)]
    if len(repeats) < len(inputs):
        return
    repeat = repeats[0]
    operands = [*(one.x for one in repeats), *op.operands[len(inputs) :]]
    types = op.infer([tensor_type(value.type) for value in operands], op.properties)
    steps = int(repeat.time_steps.value.data)
    properties = dict(op.properties)
    if isinstance(op, spike.BatchNormOp):
        properties["repeats"] = integer(op.repeats.value.data * steps)
    once = type(op).create(operands=operands, result_types=types, properties=properties, location=op.location)
    block = op.parent_block()
    assert block is not None
    block.insert_op_before(once, op)
    _replace(op, spike.RepeatOp(once.results[0], steps, location=repeat.location))


def _draws_every_step(op: Operation) -> bool:
    return isinstance(op, spike.DropoutOp) and op.every_step is not None


def _replace(op: Operation, new: Operation) -> None:
    new.results[0].name_hint = op.results[0].name_hint
    Rewriter.replace_op(op, new)
