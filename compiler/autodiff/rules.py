"""Gradient rules, one per op: gradients of the results in, gradients of the operands out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from xdsl.dialects.builtin import i1
from xdsl.ir import Operation, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron
from h2learn.dialects.common import source_of
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import int_list, int_values, integrator_of, neuron_of, tensor_type

from .scan import differentiate_scan
from .tape import Gradient, Rule, Tape, shape_of


def rule_of(op: Operation) -> Rule:
    """Return the gradient rule of ``op``; raises H2LearnError when there is none."""
    rule = RULES.get(type(op))
    if rule is None:
        raise H2LearnError(
            f"expected an op with a gradient rule, found {op.name}",
            location=source_of(op) or None,
            hint="ops between the parameters and the loss must be differentiable",
        )
    return rule


def _synapse(
    op: Operation, tape: Tape, to_input: Callable[[], Operation], to_weight: Callable[[], Operation], gu: SSAValue
) -> list[Gradient]:
    x, weight, *bias = op.operands
    weight_gradient = tape.emit(to_weight()) if tape.needs(weight) else None
    bias_gradients = [tape.emit(sgrad.BiasOp(gu, location=op.location)) if tape.needs(b) else None for b in bias]
    return [tape.emit(to_input()) if tape.needs(x) else None, weight_gradient, *bias_gradients]


def _conv(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    gu = _required(gradients)
    x, weight = op.operands[:2]
    stride, padding = int_values(op.properties, "stride", 2), int_values(op.properties, "padding", 2)
    return _synapse(
        op,
        tape,
        lambda: sgrad.ConvInputOp(
            gu, weight, stride=stride, padding=padding, input_shape=shape_of(x)[-3:], location=op.location
        ),
        lambda: sgrad.ConvWeightOp(
            x, gu, stride=stride, padding=padding, kernel=shape_of(weight)[:2], location=op.location
        ),
        gu,
    )


def _embed(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    assert isinstance(op, spike.EmbedOp)
    dilation, groups = int_values(op.properties, "dilation", 2), int(op.groups.value.data)
    return [tape.emit(sgrad.ExtractOp(_required(gradients), dilation, groups, location=op.location))]


def _linear(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    gu = _required(gradients)
    x, weight = op.operands[:2]
    return _synapse(
        op,
        tape,
        lambda: sgrad.LinearInputOp(gu, weight, location=op.location),
        lambda: sgrad.LinearWeightOp(x, gu, location=op.location),
        gu,
    )


def _flatten(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    shape = shape_of(op.operands[0])[-3:]
    return [tape.emit(sgrad.UnflattenOp(_required(gradients), shape, location=op.location))]


def _pool(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    assert isinstance(op, spike.PoolOp)
    window = [int_values(op.properties, name, 2) for name in ("kernel", "stride", "padding")]
    gradient = _required(gradients)
    return [tape.emit(sgrad.PoolOp(gradient, op.x, op.kind.data, *window, location=op.location))]


def _concat(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    gradient, first, found = _required(gradients), 0, list[Gradient]()
    for part in op.operands:
        channels = shape_of(part)[-1]
        needed = tape.needs(part)
        found.append(tape.emit(sgrad.SliceOp(gradient, first, channels, location=op.location)) if needed else None)
        first += channels
    return found


def _add(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    gradient = _required(gradients)
    return [gradient, gradient]


def _gate(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    """A gate of reals passes its spikes no gradient."""
    assert isinstance(op, spike.GateOp)
    gradient, kind, binary = _required(gradients), op.kind.data, tensor_type(op.x.type).element_type == i1
    of_x = tape.emit(spike.GateOp(gradient, op.s, kind, location=op.location)) if tape.needs(op.x) else None
    if not binary or not tape.needs(op.s):
        return [of_x, None]
    other = "keep" if kind == "keep" else "negate"
    return [of_x, tape.emit(spike.GateOp(gradient, op.x, other, location=op.location))]


def _lif(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    assert isinstance(op, spike.LifOp)
    through_spikes, through_potential = gradients
    if through_spikes is None or through_potential is not None:
        raise H2LearnError(
            "expected a loss on the spikes of a lif layer, found one on its membrane potential",
            location=source_of(op) or None,
            hint="read membrane potentials from an li layer",
        )
    neuron, rows = neuron_of(op), (op.decay, op.threshold)
    if neuron.reset == "hard_delayed":
        return [_behind_delayed_reset(op, through_spikes, neuron, tape)]
    gradient = tape.emit(sgrad.LifOp(through_spikes, op.u, op.s, neuron, *rows, location=op.location))
    found: list[Gradient] = []
    if any(row is not None for row in rows):
        constants = sgrad.LifConstantsOp(gradient, op.u, op.s, neuron, *rows, location=op.location)
        tape.emit(constants)
        found = [g for g, row in zip(constants.results, rows, strict=True) if row is not None]
    return [gradient, *found]


def _behind_delayed_reset(op: spike.LifOp, through_spikes: SSAValue, neuron: Neuron, tape: Tape) -> SSAValue:
    """Return the gradient of the currents: those of steps behind a spike are lost, so that they have none."""
    same = replace(neuron, reset="hard", detach_reset=True)
    gradient = tape.emit(sgrad.LifOp(through_spikes, op.u, op.s, same, location=op.location))
    before = tape.emit(spike.DelayOp(op.s, [1], location=op.location))
    return tape.emit(spike.GateOp(gradient, before, "drop", location=op.location))


def _neuron_row(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    assert isinstance(op, spike.NeuronRowOp)
    return [tape.emit(sgrad.NeuronRowOp(_required(gradients), op.w, op.kind.data, location=op.location))]


def _li(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    return [tape.emit(sgrad.LiOp(_required(gradients), integrator_of(op), location=op.location))]


def _delay(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    steps = int_list(op.properties, "steps")
    return [tape.emit(sgrad.DelayOp(_required(gradients), steps, location=op.location))]


def _readout(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    assert isinstance(op, spike.ReadoutOp)
    return [tape.emit(sgrad.ReadoutOp(_required(gradients), op))]


def _batch_norm(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    assert isinstance(op, spike.BatchNormTrainOp)
    adjoint = sgrad.BatchNormOp(_required(gradients), op)
    tape.emit(adjoint)
    return [adjoint.result, adjoint.weight_gradient, adjoint.shift_gradient, None, None, None]


def _dropout(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    assert isinstance(op, spike.DropoutTrainOp)
    return [tape.emit(spike.DropoutTrainOp(_required(gradients), op.scalars, op)), None]


def _encode(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    assert isinstance(op, spike.EncodeOp)
    if op.kind.data != "direct":
        raise H2LearnError(
            f"expected a differentiable encoding after a parameter, found {op.kind.data}",
            location=source_of(op) or None,
            hint="put the layers with parameters after the encoding",
        )
    return _repeat(op, gradients, tape)


def _repeat(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    return [tape.emit(sgrad.TimeSumOp(_required(gradients), location=op.location))]


def _scan(op: Operation, gradients: Sequence[Gradient], tape: Tape) -> Sequence[Gradient]:
    assert isinstance(op, spike.ScanOp)
    return differentiate_scan(op, gradients, tape, rule_of)


def _required(gradients: Sequence[Gradient]) -> SSAValue:
    gradient = gradients[0]
    assert gradient is not None, "rules run only for ops with a gradient"
    return gradient


RULES: dict[type[Operation], Rule] = {
    spike.EmbedOp: _embed,
    spike.ConvOp: _conv,
    spike.LinearOp: _linear,
    spike.FlattenOp: _flatten,
    spike.PoolOp: _pool,
    spike.AddOp: _add,
    spike.ConcatOp: _concat,
    spike.GateOp: _gate,
    spike.LifOp: _lif,
    spike.NeuronRowOp: _neuron_row,
    spike.LiOp: _li,
    spike.DelayOp: _delay,
    spike.ScanOp: _scan,
    spike.ReadoutOp: _readout,
    spike.BatchNormTrainOp: _batch_norm,
    spike.DropoutTrainOp: _dropout,
    spike.EncodeOp: _encode,
    spike.RepeatOp: _repeat,
}
"""The registry; other methods and dialects add rows."""
