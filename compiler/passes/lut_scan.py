"""``spike.scan`` to ``lut``: the layers of its body one by one, with the loop over time steps outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xdsl.dialects import builtin
from xdsl.ir import Attribute, Block, Operation, SSAValue

from h2learn.dialects import lut
from h2learn.dialects.lut.attributes import GradsType, SpikesType, StoreType
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import tensor_type

from .lut_context import Lowering, LutContext, NoLoweringError, lifted


def lower_scan(context: LutContext, op: Operation, layers: Mapping[type[Operation], Lowering]) -> Sequence[SSAValue]:
    """Lower the body with the rules for its ops; what does not depend on the step moves in front of the scan."""
    assert isinstance(op, spike.ScanOp)
    outer, body = context.block, Block()
    for argument, value in zip(op.arguments, op.inputs, strict=True):
        _enter(context, body, argument, value)
    for argument in op.fed_back:
        context.values[argument] = _argument(body, _fed_type(op, argument, context.dtype), argument)
    context.block, context.looped = body, True
    try:
        for inner in list(op.body.block.ops)[:-1]:
            _lower_inner(context, inner, layers)
    finally:
        context.block, context.looped = outer, False
    _hoist(body, outer)
    values = [context.of(value) for value in op.yielded]
    for argument, value in zip(op.fed_back, values, strict=False):
        if context.values[argument].type != value.type:
            raise NoLoweringError(f"expected spikes to be fed back, found {value.type}")
    masks = [mask for mask in _masks(context, op) if mask is not None]
    body.add_op(lut.YieldOp([*values, *masks], location=op.location))
    scan = lut.ScanOp(
        [context.values[value] for value in op.inputs], body, reverse=op.reverse is not None, location=op.location
    )
    outer.add_op(scan)
    outside = dict(zip(masks, scan.outputs[len(values) :], strict=True))
    for result, mask in zip(op.outputs, _masks(context, op), strict=True):
        if mask is not None:
            context.masks[result] = outside[mask]
    return list(scan.outputs[: len(values)])


def _enter(context: LutContext, body: Block, argument: SSAValue, value: SSAValue) -> None:
    """Give the body an argument for an input, which waits for the same bias and reaches the time steps alike."""
    found = context.values[value]
    inner = _argument(body, found.type, argument)
    context.values[argument] = inner
    if found in context.biases:
        context.biases[inner] = context.biases[found]
    if found in context.gs_time:
        context.gs_time[inner] = context.gs_time[found]


def _argument(body: Block, kind: Attribute, argument: SSAValue) -> SSAValue:
    inner = body.insert_arg(kind, len(body.args))
    inner.name_hint = argument.name_hint
    return inner


def _fed_type(op: spike.ScanOp, argument: SSAValue, dtype: str) -> Attribute:
    """Return the format of what is fed back: gradients backwards, spikes as bits or numbers forwards."""
    kind = tensor_type(argument.type)
    shape = lifted(kind.get_shape())
    if op.reverse is not None:
        return GradsType(shape, dtype)
    return SpikesType(shape) if kind.element_type == builtin.i1 else StoreType(shape, dtype)


def _lower_inner(context: LutContext, op: Operation, layers: Mapping[type[Operation], Lowering]) -> None:
    lowering = layers.get(type(op))
    if lowering is None:
        raise NoLoweringError(f"expected layers and neurons in a cycle, found {op.name}")
    context.values.update(zip(op.results, lowering(context, op), strict=True))


def _hoist(body: Block, outer: Block) -> None:
    """Move ops that read nothing of the body in front of it: sums of biases, copies of weights."""
    inside: set[SSAValue] = set(body.args)
    for op in list(body.ops):
        if inside.isdisjoint(op.operands):
            body.detach_op(op)
            outer.add_op(op)
        else:
            inside.update(op.results)


def _masks(context: LutContext, op: spike.ScanOp) -> list[SSAValue | None]:
    """Return, for every result that a gradient of a neuron reads, where that neuron's surrogate is not 0."""
    read = [any(isinstance(use.operation, sgrad.LifOp) for use in result.uses) for result in op.outputs]
    return [context.masks.get(value) if used else None for value, used in zip(op.yielded, read, strict=True)]
