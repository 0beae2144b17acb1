"""Formats and shapes of the arguments of ``@main`` at the ``lut`` level."""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.dialects.builtin import TensorType, i1
from xdsl.ir import Attribute, BlockArgument, Operation, SSAValue

from h2learn.dialects.lut import tensor
from h2learn.dialects.lut.attributes import SpikesType, StoreType, shape_of
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.optimizers import UpdateOp

from .lut_context import NoLoweringError, lifted

WEIGHED = (spike.ConvOp, spike.LinearOp, spike.EmbedOp)
"""Ops that read the weights of a layer."""


def argument_type(argument: BlockArgument, role: str, dtype: str) -> Attribute:
    """Return the ``lut`` type of an argument; raises NoLoweringError when its uses need different formats.

    Weights become ``[kh*kw,C,K]``, optimizer buffers follow their parameter, inputs gain H and W; an input of a
    convolution is stored rounded unless an encoder or neuron reads it, too, and any other is fp32.
    """
    if role == "parameter":
        return _parameter_type(argument)
    if role == "state":
        return _parameter_type(_parameter_of_state(argument))
    return _input_type(argument, dtype) if role == "input" else argument.type


def _parameter_type(parameter: SSAValue) -> Attribute:
    types = {
        tensor(_weight_shape(use.operation))
        for use in parameter.uses
        if isinstance(use.operation, WEIGHED) and use.operation.weight is parameter
    }
    if len(types) > 1:
        raise NoLoweringError(f"expected one shape for shared weights, found {len(types)}")
    return types.pop() if types else parameter.type


def _weight_shape(op: spike.ConvOp | spike.LinearOp | spike.EmbedOp) -> tuple[int, ...]:
    *_, channels, k = shape_of(op.weight.type)
    if not isinstance(op, spike.LinearOp):
        kh, kw = shape_of(op.weight.type)[:2]
        return kh * kw, channels, k
    height, width, channels = _maps(op.x)
    return height * width, channels, k


def _maps(value: SSAValue) -> tuple[int, ...]:
    """Return H, W, C of the maps behind the features that a linear layer reads."""
    owner = value.owner
    if isinstance(owner, spike.FlattenOp):
        return shape_of(owner.x.type)[-3:]
    if isinstance(owner, spike.LifOp | spike.LiOp | spike.RepeatOp | spike.DropoutTrainOp | spike.GateOp):
        return _maps(owner.x)
    if isinstance(owner, spike.AddOp):
        return _maps(owner.lhs)
    return lifted(shape_of(value.type))[-3:]


def _parameter_of_state(state: BlockArgument) -> SSAValue:
    for use in state.uses:
        if isinstance(use.operation, UpdateOp):
            return use.operation.parameter
    return state


def _input_type(argument: BlockArgument, dtype: str) -> Attribute:
    assert isinstance(argument.type, TensorType)
    shape = lifted(argument.type.get_shape())
    if argument.type.element_type == i1:
        return SpikesType(shape)
    readers = list(_readers(argument))
    multiplied = any(isinstance(reader, spike.ConvOp | spike.LinearOp) for reader in readers)
    exact = any(isinstance(reader, spike.EncodeOp | spike.LifOp | spike.LiOp) for reader in readers)
    return StoreType(shape, dtype) if multiplied and not exact else tensor(shape)


def _readers(value: SSAValue) -> Iterator[Operation]:
    """Yield the forward ops that read ``value``, through ops that only change its shape."""
    for use in value.uses:
        op = use.operation
        if isinstance(op, spike.FlattenOp | spike.RepeatOp):
            yield from _readers(op.result)
        elif op.dialect_name() == "spike":
            yield op
