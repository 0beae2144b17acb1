"""Runs modules of ``spike`` and ``sgrad`` ops with the reference arithmetic, in any real type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from xdsl.dialects import builtin, func
from xdsl.ir import Block, Operation, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference import coding, gate, neuron, normalisation, pooling, synapse, training

from ..common import Array, get_io, source_of
from ..feedback import settle
from ..sgrad import ops as sgrad
from . import ops as spike
from . import scan
from .base import (
    POOL_KINDS,
    READOUT_KINDS,
    choice,
    float_value,
    int_list,
    int_value,
    int_values,
    integrator_of,
    loss_of,
    neuron_of,
    tensor_type,
)
from .dropout import dropout_of
from .optimizers import flag

Data: TypeAlias = npt.NDArray[Any]
Semantics: TypeAlias = Callable[[Operation, Sequence[Data], "np.dtype[Any]"], Sequence[Data]]


def interpret(
    module: builtin.ModuleOp,
    arguments: Sequence[Array],
    dtype: npt.DTypeLike = np.float32,
    *,
    before: Callable[[Operation, Sequence[Data]], None] | None = None,
) -> list[Array]:
    """Run ``@main`` and return its results in device shape, reals in ``dtype``.

    Arguments are positional in the order of the io table and may have any shape with the right number of elements.
    ``before`` is called with every op (outside of scans) and its operands before the op is run; what it changes of it
    counts. Raises H2LearnError when an argument does not fit its type or an op has no semantics here.
    """
    block = main_block(module)
    real = np.dtype(dtype)
    if len(arguments) != len(block.args):
        raise H2LearnError(f"expected {len(block.args)} arguments, found {len(arguments)}")
    names = [entry.name for entry in get_io(module)]
    values: dict[SSAValue, Data] = {
        target: _argument(name, argument, target, real)
        for name, argument, target in zip(names, arguments, block.args, strict=False)
    }
    return list(evaluate(block, values, real, SEMANTICS, before))


def evaluate(
    block: Block,
    values: Mapping[SSAValue, Data],
    real: np.dtype[Any],
    table: Mapping[type[Operation], Semantics],
    before: Callable[[Operation, Sequence[Data]], None] | None = None,
) -> Sequence[Data]:
    """Run the ops of a block on top of known ``values`` and return the operands of its terminator.

    ``before`` hears of every op of the block, but not of those in the body of a scan, which run several times.
    Raises H2LearnError when an op has no semantics in ``table`` or the block no end.
    """
    known = dict(values)
    for op in block.ops:
        inputs = [known[operand] for operand in op.operands]
        if isinstance(op, func.ReturnOp | scan.YieldOp):
            return inputs
        if isinstance(op, scan.ScanOp):
            known.update(zip(op.results, _scan(op, known, real, table), strict=True))
            continue
        if before is not None:
            before(op, inputs)
        semantics = table.get(type(op))
        if semantics is None:
            raise H2LearnError(f"expected a spike or sgrad op, found {op.name}", location=source_of(op) or None)
        known.update(zip(op.results, semantics(op, inputs, real), strict=True))
    raise H2LearnError("expected @main to end with func.return")


def _scan(
    op: scan.ScanOp, known: Mapping[SSAValue, Data], real: np.dtype[Any], table: Mapping[type[Operation], Semantics]
) -> Sequence[Data]:
    inputs: dict[SSAValue, Data] = dict(known)
    inputs.update((argument, known[value]) for argument, value in zip(op.arguments, op.inputs, strict=True))
    kinds = [tensor_type(argument.type) for argument in op.fed_back]
    first = [np.zeros(kind.get_shape(), np.bool_ if kind.element_type == builtin.i1 else real) for kind in kinds]

    def run(fed: Sequence[Data]) -> Sequence[Data]:
        return evaluate(op.body.block, inputs | dict[SSAValue, Data](zip(op.fed_back, fed, strict=True)), real, table)

    return settle(run, first, reverse=op.reverse is not None)


def main_block(module: builtin.ModuleOp) -> Block:
    """Return the body of ``@main``; raises H2LearnError when the module has none."""
    for op in module.ops:
        if isinstance(op, func.FuncOp) and op.sym_name.data == "main" and op.body.blocks:
            return op.body.block
    raise H2LearnError("expected a function @main with a body in the module")


def _argument(name: str, argument: Array, target: SSAValue, real: np.dtype[Any]) -> Data:
    kind = tensor_type(target.type)
    shape = kind.get_shape()
    if argument.size != int(np.prod(shape, dtype=np.int64)):
        raise H2LearnError(f"expected {list(shape)} for {name}, found {list(argument.shape)}")
    array = np.asarray(argument).reshape(shape)
    if kind.element_type == builtin.f32:
        return array.astype(real)
    return array.astype(np.bool_ if kind.element_type == builtin.i1 else np.int32)


def _encode(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    steps = int_value(op.properties, "time_steps", 1)
    if len(inputs) == 1:
        return [coding.repeat(inputs[0], steps)]
    scalars = training.RunScalars.from_array(inputs[1])
    return [coding.bernoulli(inputs[0], steps, int_value(op.properties, "stream", 0), scalars)]


def _repeat(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [coding.repeat(inputs[0], int_value(op.properties, "time_steps", 1))]


def _conv(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    x, weight, *bias = inputs
    result = synapse.conv(x.astype(real, copy=False), weight, *_geometry(op))
    return [result + bias[0] if bias else result]


def _embed(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [synapse.embed(inputs[0], int_values(op.properties, "dilation", 2), int_value(op.properties, "groups", 1))]


def _extract(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [synapse.extract(inputs[0], int_values(op.properties, "dilation", 2), int_value(op.properties, "groups", 1))]


def _linear(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    x, weight, *bias = inputs
    result = synapse.linear(x.astype(real, copy=False), weight)
    return [result + bias[0] if bias else result]


def _reshape(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [inputs[0].reshape(tensor_type(op.results[0].type).get_shape())]


def _pool(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    kind, window = choice(op.properties, "kind", POOL_KINDS), _window(op)
    if kind == "max":
        return [pooling.maximum(inputs[0], window)]
    pool = pooling.average if kind == "avg" else pooling.total
    return [pool(inputs[0].astype(real, copy=False), window)]


def _concat(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    if all(part.dtype == np.bool_ for part in inputs):
        return [np.concatenate(list(inputs), axis=-1)]
    return [np.concatenate([part.astype(real, copy=False) for part in inputs], axis=-1)]


def _slice(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    first = int_value(op.properties, "first", 0)
    return [np.ascontiguousarray(inputs[0][..., first : first + int_value(op.properties, "channels", 1)])]


def _sum(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    lhs, rhs = (value.astype(real, copy=False) for value in inputs)
    return [lhs + rhs]


def _lif(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    x, *rows = inputs
    return neuron.lif(x, learned_neuron(op, rows))


def learned_neuron(op: Operation, rows: Sequence[Data]) -> neuron.Neuron:
    """Return the neuron of an op with its learned constants."""
    assert isinstance(op, spike.LifOp | sgrad.LifGradientOp)
    found, values = neuron_of(op), [tuple(map(float, row)) for row in rows]
    if op.decay is not None:
        found = replace(found, alpha=values[0])
    return found if op.threshold is None else replace(found, theta=values[-1])


def _neuron_row(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    kind = choice(op.properties, "kind", neuron.LEARNED_ROWS)
    return [neuron.learned_row(inputs[0], kind, int_value(op.properties, "channels", 1))]


def _neuron_row_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    gradient, w = inputs
    return [neuron.learned_row_gradient(gradient, w, choice(op.properties, "kind", neuron.LEARNED_ROWS))]


def _li(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [neuron.li(inputs[0].astype(real, copy=False), integrator_of(op))]


def _readout(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [coding.readout(inputs[0].astype(real, copy=False), choice(op.properties, "kind", READOUT_KINDS))]


def _loss(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    logits, label, valid = _labelled(op, inputs)
    return [training.loss(logits, label, valid, loss_of(op))]


def _sgd(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    parameter, gradient, *velocity, scalars = inputs
    return training.sgd(
        parameter,
        gradient,
        velocity[0] if velocity else None,
        training.RunScalars.from_array(scalars).lr,
        float_value(op.properties, "momentum"),
        nesterov=flag(op.properties, "nesterov"),
        weight_decay=float_value(op.properties, "weight_decay"),
        scale=float_value(op.properties, "grad_scale"),
    )


def _adam(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    parameter, gradient, mean, square, scalars = inputs
    return training.adam(
        parameter,
        gradient,
        (mean, square),
        training.RunScalars.from_array(scalars),
        (float_value(op.properties, "beta1"), float_value(op.properties, "beta2")),
        eps=float_value(op.properties, "eps"),
        weight_decay=float_value(op.properties, "weight_decay"),
        decoupled=flag(op.properties, "decoupled"),
        scale=float_value(op.properties, "grad_scale"),
    )


def _loss_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    logits, label, valid = _labelled(op, inputs)
    scale = float_value(op.properties, "scale")
    return [training.loss_gradient(logits, label, valid, loss_of(op), scale)]


def _readout_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    if len(inputs) == 2:
        return [coding.maximum_gradient(*inputs)]
    kind = choice(op.properties, "kind", READOUT_KINDS)
    return [coding.readout_gradient(inputs[0], kind, int_value(op.properties, "time_steps", 1))]


def _lif_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    gradient, u, s, *rows = inputs
    return [neuron.lif_gradient(gradient, u, s, learned_neuron(op, rows))]


def _lif_constants(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    gradient, u, s, *rows = inputs
    return neuron.constants_gradient(gradient, u, s, learned_neuron(op, rows))


def _li_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [neuron.li_gradient(inputs[0], integrator_of(op))]


def _conv_input(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    shape = int_values(op.properties, "input_shape", 3)
    return [synapse.conv_input_gradient(inputs[0], inputs[1], *_geometry(op), shape)]


def _conv_weight(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    kernel = int_values(op.properties, "kernel", 2)
    return [synapse.conv_weight_gradient(inputs[0].astype(real, copy=False), inputs[1], *_geometry(op), kernel)]


def _linear_input(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [synapse.linear_input_gradient(inputs[0], inputs[1])]


def _linear_weight(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [synapse.linear_weight_gradient(inputs[0].astype(real, copy=False), inputs[1])]


def _bias_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [synapse.bias_gradient(inputs[0])]


def _pool_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    gradient, x = inputs
    kind, window = choice(op.properties, "kind", POOL_KINDS), _window(op)
    if kind == "max":
        return [pooling.maximum_gradient(gradient, x, window)]
    return [(pooling.average_gradient if kind == "avg" else pooling.total_gradient)(gradient, x.shape, window)]


def _time_sum(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [inputs[0].sum(axis=0)]


def _add(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [inputs[0] + inputs[1]]


def _delay(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [coding.delay(inputs[0], int_list(op.properties, "steps"))]


def _delay_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [coding.delay(inputs[0][::-1], int_list(op.properties, "steps"))[::-1]]


def _batch_norm(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    x, weight, shift, mean, variance = inputs
    return [normalisation.normalise(x, weight, shift, mean, variance, float_value(op.properties, "eps"))]


def _batch_norm_train(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    x, weight, shift, mean, variance, scalars = inputs
    return normalisation.normalise_batch(
        x,
        weight,
        shift,
        (mean, variance),
        training.RunScalars.from_array(scalars).valid,
        eps=float_value(op.properties, "eps"),
        momentum=float_value(op.properties, "momentum"),
        repeats=int_value(op.properties, "repeats", 1),
    )


def _batch_norm_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    gradient, x, weight, mean, inverse, scalars = inputs
    valid = training.RunScalars.from_array(scalars).valid
    return normalisation.normalise_gradient(gradient, x, weight, mean, inverse, valid)


def _dropout(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [inputs[0].astype(real, copy=False)]


def _dropout_train(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    x, scalars = inputs
    what = dropout_of(op.properties)
    return [coding.dropout(x.astype(real, copy=False), what, training.RunScalars.from_array(scalars))]


def _gate(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    return [gate.gate(inputs[0], inputs[1], choice(op.properties, "kind", gate.GATES))]


def _geometry(op: Operation) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return int_values(op.properties, "stride", 2), int_values(op.properties, "padding", 2)


def _window(op: Operation) -> pooling.Window:
    return pooling.Window(*(int_values(op.properties, name, 2) for name in ("kernel", "stride", "padding")))


def _labelled(op: Operation, inputs: Sequence[Data]) -> tuple[Data, Data, int]:
    logits, label, scalars = inputs
    samples, classes = logits.shape
    valid = min(training.RunScalars.from_array(scalars).valid, samples)
    used = label[:valid]
    if ((used < 0) | (used >= classes)).any():
        raise H2LearnError(f"expected labels from 0 to {classes - 1}", location=source_of(op) or None)
    return logits, np.where(np.arange(samples) < valid, label, 0), valid


SEMANTICS: dict[type[Operation], Semantics] = {
    spike.EncodeOp: _encode,
    spike.RepeatOp: _repeat,
    spike.EmbedOp: _embed,
    spike.ConvOp: _conv,
    spike.LinearOp: _linear,
    spike.FlattenOp: _reshape,
    spike.PoolOp: _pool,
    spike.AddOp: _sum,
    spike.ConcatOp: _concat,
    spike.GateOp: _gate,
    spike.LifOp: _lif,
    spike.NeuronRowOp: _neuron_row,
    spike.LiOp: _li,
    scan.DelayOp: _delay,
    spike.ReadoutOp: _readout,
    spike.LossOp: _loss,
    spike.SgdOp: _sgd,
    spike.AdamOp: _adam,
    sgrad.LossOp: _loss_gradient,
    sgrad.ReadoutOp: _readout_gradient,
    sgrad.LifOp: _lif_gradient,
    sgrad.LifConstantsOp: _lif_constants,
    sgrad.NeuronRowOp: _neuron_row_gradient,
    sgrad.LiOp: _li_gradient,
    sgrad.ConvInputOp: _conv_input,
    sgrad.ConvWeightOp: _conv_weight,
    sgrad.ExtractOp: _extract,
    sgrad.LinearInputOp: _linear_input,
    sgrad.LinearWeightOp: _linear_weight,
    sgrad.BiasOp: _bias_gradient,
    sgrad.PoolOp: _pool_gradient,
    sgrad.TimeSumOp: _time_sum,
    sgrad.SliceOp: _slice,
    sgrad.DelayOp: _delay_gradient,
    sgrad.UnflattenOp: _reshape,
    sgrad.AddOp: _add,
    spike.BatchNormOp: _batch_norm,
    spike.BatchNormTrainOp: _batch_norm_train,
    spike.DropoutOp: _dropout,
    spike.DropoutTrainOp: _dropout_train,
    sgrad.BatchNormOp: _batch_norm_gradient,
}
"""What each op computes."""
