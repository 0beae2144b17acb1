"""Batch normalisation folded into the layer in front of it, dropout left out: what an inference program runs.

``(W * x + b - mean) / d * weight + shift`` with ``d = sqrt(variance + eps)`` is a layer with the weights
``W * weight / d`` and the bias ``(b - mean) * weight / d + shift``, computed once in float64 on the host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from xdsl.dialects import builtin, func
from xdsl.ir import Block, BlockArgument, Operation, SSAValue
from xdsl.rewriter import Rewriter

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.model import Model, Network, Parameters, TensorSpec
from h2learn.dialects.common import IoEntry, get_io, set_io, source_of
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import InferredOp, tensor_type
from h2learn.dialects.spike.interpreter import main_block


@dataclass(frozen=True)
class _Norm:
    """One batch norm: the names of its parameters and of those of its layer, whose bias may be new."""

    weight: str
    bias: str
    has_bias: bool
    output_axis: int
    gain: str
    shift: str
    mean: str
    variance: str
    eps: float


def folded(model: Model) -> Model:
    """Return the model with every batch norm folded into its layer, and without dropout, which is an identity.

    A model without either is returned itself. Raises H2LearnError for a batch norm that is not the only reader of a
    convolution or linear layer.
    """
    if any(isinstance(op, spike.DropoutOp) for op in main_block(model.module).ops):
        build = model.build
        network = _without_dropout(model.network)
        model = replace(model, network=network, build=lambda batch: _without_dropout(build(batch)))
    norms = _norms(model.network)
    if not norms:
        return model
    network = _without_norms(model.network, norms)
    parameters = _folded_parameters(model.parameters, norms)
    return replace(
        model,
        network=network,
        parameters={name: parameters[name] for name in network.parameters},
        build=lambda batch: _without_norms(model.build(batch), norms),
    )


def _without_dropout(network: Network) -> Network:
    """Leave dropout out; where it made reals of spikes, what follows reads spikes again."""
    module = network.module.clone()
    block = main_block(module)
    for op in list(block.ops):
        if isinstance(op, spike.DropoutOp):
            op.result.replace_all_uses_with(op.x)
            block.erase_op(op)
        elif isinstance(op, InferredOp):
            _infer_again(op)
    end = block.last_op
    assert end is not None
    kept = [value.type for value in end.operands]
    if kept != [value.type for value in _end_of(network.module).operands]:
        raise H2LearnError("expected a layer behind a dropout of spikes, found none")
    module.verify()
    return replace(network, module=module)


def _infer_again(op: InferredOp) -> None:
    types = op.infer([tensor_type(value.type) for value in op.operands], op.properties)
    for result, type_ in zip(list(op.results), types, strict=True):
        if result.type != type_:
            Rewriter.replace_value_with_new_type(result, type_)


def _end_of(module: builtin.ModuleOp) -> Operation:
    end = main_block(module).last_op
    assert end is not None
    return end


def _norms(network: Network) -> list[_Norm]:
    block = main_block(network.module)
    entries = dict(zip(block.args, get_io(network.module), strict=False))
    return [_norm(op, entries) for op in block.ops if isinstance(op, spike.BatchNormOp)]


def _norm(op: spike.BatchNormOp, entries: Mapping[BlockArgument, IoEntry]) -> _Norm:
    layer = op.x.owner
    if not isinstance(layer, spike.ConvOp | spike.LinearOp) or len(list(layer.result.uses)) > 1:
        raise H2LearnError(
            "expected batch norm as the only reader of a convolution or linear layer, found another place",
            location=source_of(op) or None,
            hint="elsewhere it can be trained, but not folded for inference",
        )
    layer_weight = spike.parameter_of(layer.weight)
    parameters = [layer_weight, *([] if layer.bias is None else [layer.bias])]
    rows = [op.weight, op.shift, op.mean, op.variance]
    for value in (*parameters, *rows):
        if not isinstance(value, BlockArgument) or len(list(value.uses)) > 1:
            raise H2LearnError(
                "expected parameters that only one layer uses in front of and in a batch norm",
                location=source_of(op) or None,
            )
    names = [entries[value].name for value in (*parameters, *rows) if isinstance(value, BlockArgument)]
    weight, bias = names[0], names[1] if layer.bias is not None else _bias_name(names[0], entries)
    permutation = entries[layer_weight].perm if isinstance(layer_weight, BlockArgument) else ()
    axis = 0 if permutation and permutation[-1] == 0 else -1  # outputs come first, as in PyTorch, or last
    gain, shift, mean, variance = names[-4:]
    eps = float(op.eps.value.data)
    return _Norm(weight, bias, layer.bias is not None, axis, gain, shift, mean, variance, eps)


def _bias_name(weight: str, entries: Mapping[BlockArgument, IoEntry]) -> str:
    layer, dot, _ = weight.rpartition(".")
    name = f"{layer}{dot}bias"
    taken = {entry.name for entry in entries.values()}
    while name in taken:
        name += "_"
    return name


def _without_norms(network: Network, norms: list[_Norm]) -> Network:
    module = network.module.clone()
    block = main_block(module)
    entries = get_io(module)
    arguments, results = entries[: len(block.args)], entries[len(block.args) :]
    found = [op for op in block.ops if isinstance(op, spike.BatchNormOp)]
    parameters = dict(network.parameters)
    for op, norm in zip(found, norms, strict=True):
        layer = op.x.owner
        assert isinstance(layer, spike.ConvOp | spike.LinearOp)
        bias = layer.bias
        if bias is None:
            bias = _insert_bias(block, arguments, layer, norm.bias)
            parameters[norm.bias] = TensorSpec(parameters[norm.gain].shape)
        biased = type(layer).create(
            operands=[layer.x, layer.weight, bias],
            result_types=[layer.result.type],
            properties=layer.properties,
            location=layer.location,
        )
        block.insert_op_before(biased, layer)
        biased.results[0].name_hint = layer.result.name_hint
        rows = op.operands[1:]
        op.result.replace_all_uses_with(biased.results[0])
        block.erase_op(op)
        block.erase_op(layer)
        for row in rows:
            assert isinstance(row, BlockArgument)
            del arguments[row.index]
            block.erase_arg(row)
    function, end = block.parent_op(), block.last_op
    assert isinstance(function, func.FuncOp) and end is not None
    function.function_type = builtin.FunctionType.from_lists(
        [argument.type for argument in block.args], [value.type for value in end.operands]
    )
    set_io(module, [*arguments, *results])
    module.verify()
    kept = {entry.name: parameters[entry.name] for entry in arguments if entry.role == "parameter"}
    constants = {name: value for name, value in network.constants.items() if name in kept}
    return replace(network, module=module, parameters=kept, constants=constants)


def _insert_bias(block: Block, arguments: list[IoEntry], layer: spike.ConvOp | spike.LinearOp, name: str) -> SSAValue:
    """Add the argument for a bias behind the weights."""
    weight = spike.parameter_of(layer.weight)
    assert isinstance(weight, BlockArgument)
    channels = [layer.result.type.get_shape()[-1]] if isinstance(layer.result.type, builtin.TensorType) else []
    bias = block.insert_arg(builtin.TensorType(builtin.f32, channels), weight.index + 1, weight.location)
    arguments.insert(bias.index, IoEntry(name, "parameter"))
    return bias


def _folded_parameters(parameters: Parameters, norms: list[_Norm]) -> Parameters:
    result = {name: np.asarray(value) for name, value in parameters.items()}
    for norm in norms:
        gain, shift, mean, variance = (
            result.pop(name).astype(np.float64) for name in (norm.gain, norm.shift, norm.mean, norm.variance)
        )
        factor = gain / np.sqrt(variance + norm.eps)
        bias = result[norm.bias].astype(np.float64) if norm.has_bias else np.zeros_like(mean)
        result[norm.bias] = _single((bias - mean) * factor + shift)
        weight = result[norm.weight].astype(np.float64)
        spread = [1] * weight.ndim
        spread[norm.output_axis] = -1
        result[norm.weight] = _single(weight * factor.reshape(spread))
    return result


def _single(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return values.astype(np.float32)
