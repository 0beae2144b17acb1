"""Backpropagation through time: from a model to its training graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from xdsl.dialects import builtin, func
from xdsl.dialects.builtin import TensorType, f32, i1, i32
from xdsl.ir import Block, BlockArgument, Operation, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron
from h2learn.backends.reference.training import Loss
from h2learn.dialects.common import (
    GRADIENT_SCALE_ATTRIBUTE,
    IoEntry,
    get_io,
    precision,
    set_io,
    source_of,
    state_name,
)
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import SCALARS, SPIKE_READOUTS, neuron_of, neuron_properties, tensor_type
from h2learn.dialects.spike.interpreter import main_block
from h2learn.dialects.spike.optimizers import UpdateOp
from h2learn.dialects.spike.scan import reads, scans, with_all_values, without_unused_values

from .rules import rule_of
from .spec import Adam, AdamW, Optimizer, Train
from .tape import Tape, shape_of


def differentiate(module: builtin.ModuleOp, spec: Train) -> builtin.ModuleOp:
    """Return the training graph of a ``spike`` module; the module itself is not changed.

    ``@main`` gains the label after the inputs, the optimizer's buffers after the parameters and the run scalars at the
    end; its results are the loss, the outputs, the gradients (with ``keep_gradients``; they carry the loss scale), the
    new parameters and the new buffers. The loss reads the first output, averaged over its time steps if any.
    Raises H2LearnError when an op has no gradient rule or the output cannot be classified.
    """
    graph = module.clone()
    block = main_block(graph)
    entries = get_io(graph)
    arguments = _split(block, entries)
    _set_surrogates(block, spec)
    _take_out_synapses(block)
    for scan in scans(block):
        with_all_values(scan)

    end = block.last_op
    assert isinstance(end, func.ReturnOp)
    output_entries = entries[len(block.args) :]
    scalars = arguments.scalars or block.insert_arg(SCALARS, len(block.args), end.location)
    statistics = _use_batch_statistics(block, scalars)
    _use_dropout(block, scalars)
    outputs = list(end.operands)
    block.detach_op(end)

    scale = spec.scale_for(precision(graph))
    graph.attributes[GRADIENT_SCALE_ATTRIBUTE] = builtin.FloatAttr(scale, builtin.f64)
    logits = _logits(block, outputs)
    where = _location(logits)
    label = block.insert_arg(TensorType(i32, [shape_of(logits)[0]]), len(arguments.inputs), where)
    what = _loss(spec, logits)
    loss = spike.LossOp(logits, label, scalars, what, location=where)
    block.add_op(loss)
    names = arguments.parameter_entries
    own = {p: e for p, e in zip(arguments.parameters, names, strict=True) if p not in statistics}
    gradients = _backward(block, logits, label, scalars, what, scale, {p: e.name for p, e in own.items()})

    optimizer = spec.optimizer
    position = arguments.parameters[-1].index + 1
    updates = _update(block, position, list(own), gradients, scalars, optimizer, 1.0 / scale)
    kept = gradients if spec.keep_gradients else []
    new = statistics | {p: u.new_parameter for p, u in zip(own, updates, strict=True)}
    results = [loss.result, *outputs, *kept, *(new[p] for p in arguments.parameters)]
    results += [u.new_states[n] for n in range(len(optimizer.states)) for u in updates]
    block.add_op(_return(results, end))
    for scan in scans(block):
        without_unused_values(scan)

    states = [
        replace(e, name=state_name(state, e.name), role="state") for state in optimizer.states for e in own.values()
    ]
    function = block.parent_op()
    assert isinstance(function, func.FuncOp)
    function.function_type = builtin.FunctionType.from_lists([a.type for a in block.args], [r.type for r in results])
    set_io(
        graph,
        [
            *arguments.input_entries,
            IoEntry("label", "label"),
            *names,
            *states,
            IoEntry("scalars", "scalars"),
            IoEntry("loss", "loss"),
            *output_entries,
            *(replace(e, role="gradient") for e in own.values() if spec.keep_gradients),
            *names,
            *states,
        ],
    )
    graph.verify()
    return graph


@dataclass(frozen=True)
class _Arguments:
    """The arguments of an inference function by role."""

    inputs: list[BlockArgument]
    input_entries: list[IoEntry]
    parameters: list[BlockArgument]
    parameter_entries: list[IoEntry]
    scalars: BlockArgument | None


def _split(block: Block, entries: Sequence[IoEntry]) -> _Arguments:
    found = list(zip(block.args, entries, strict=False))
    other = [entry.role for _, entry in found if entry.role not in ("input", "parameter", "scalars")]
    if other:
        raise H2LearnError(f"expected a model without training, found an argument with role {other[0]}")
    inputs = [(a, e) for a, e in found if e.role == "input"]
    parameters = [(a, e) for a, e in found if e.role == "parameter"]
    if not parameters:
        raise H2LearnError("expected a model with parameters to train, found none")
    scalars = [a for a, e in found if e.role == "scalars"]
    return _Arguments(
        [a for a, _ in inputs],
        [e for _, e in inputs],
        [a for a, _ in parameters],
        [e for _, e in parameters],
        scalars[0] if scalars else None,
    )


def _set_surrogates(block: Block, spec: Train) -> None:
    for op in block.walk():
        if isinstance(op, spike.LifOp):
            neuron = neuron_of(op)
            chosen = spec.surrogate.apply(neuron) if spec.surrogate else neuron
            detached = replace(chosen, detach_reset=neuron.detach_reset or spec.detach_reset)
            op.properties.pop("periodic", None)
            op.properties.update(neuron_properties(detached))


def _take_out_synapses(block: Block) -> None:
    """Give neurons with a hard-delayed reset their synaptic current by an op of its own: it outlives a lost step."""
    for op in list(block.walk()):
        if not isinstance(op, spike.LifOp) or neuron_of(op).reset != "hard_delayed":
            continue
        neuron, inside = neuron_of(op), op.parent_block()
        if neuron.synapse == "none" or inside is None:
            continue
        synapse: Operation = spike.LiOp(op.x, Neuron(alpha=neuron.beta, reset="none"), location=op.location)
        inside.insert_op_before(synapse, op)
        if neuron.synapse == "delayed":
            synapse = spike.DelayOp(synapse.results[0], [1], location=op.location)
            inside.insert_op_before(synapse, op)
        op.operands[0] = synapse.results[0]
        op.properties.update(neuron_properties(replace(neuron, synapse="none", beta=(0.0,))))


def _use_batch_statistics(block: Block, scalars: SSAValue) -> dict[SSAValue, SSAValue]:
    """Let batch normalisation use the statistics of the batch; return running statistics -> their new values."""
    new: dict[SSAValue, SSAValue] = {}
    for op in list(block.ops):
        if isinstance(op, spike.BatchNormOp):
            for statistic in (op.mean, op.variance):
                if statistic in new or not isinstance(statistic, BlockArgument):
                    raise H2LearnError(
                        "expected running statistics of one batch norm each", location=source_of(op) or None
                    )
            norm = spike.BatchNormTrainOp(op, scalars)
            block.insert_op_before(norm, op)
            norm.result.name_hint = op.result.name_hint
            new |= {op.mean: norm.new_mean, op.variance: norm.new_variance}
            op.result.replace_all_uses_with(norm.result)
            block.erase_op(op)
    return new


def _use_dropout(block: Block, scalars: SSAValue) -> None:
    for op in list(block.ops):
        if isinstance(op, spike.DropoutOp):
            dropout = spike.DropoutTrainOp(op.x, scalars, op)
            block.insert_op_before(dropout, op)
            dropout.result.name_hint = op.result.name_hint
            op.result.replace_all_uses_with(dropout.result)
            block.erase_op(op)


def _logits(block: Block, outputs: Sequence[SSAValue]) -> SSAValue:
    if not outputs:
        raise H2LearnError("expected a model with an output to train, found none")
    output = outputs[0]
    kind = tensor_type(output.type)
    if len(kind.get_shape()) == 3 and kind.element_type in (i1, f32):
        mean = "rate" if kind.element_type == i1 else "membrane_mean"
        readout = spike.ReadoutOp(output, mean, location=_location(output))
        block.add_op(readout)
        return readout.result
    if len(kind.get_shape()) != 2 or kind.element_type != f32:
        raise H2LearnError(
            f"expected logits [N, K] or [T, N, K] as output to train on, found {kind}",
            location=source_of(output.owner) if isinstance(output.owner, Operation) else None,
            hint="end the network with a readout",
        )
    return output


def _loss(spec: Train, logits: SSAValue) -> Loss:
    """Return what the loss computes of logits that are spike rates, spike counts, or anything else."""
    if spec.loss_name == "cross_entropy":
        return Loss()
    if spec.loss_name == "mse_rate":
        return Loss("mse")
    readout = logits.owner
    if not isinstance(readout, spike.ReadoutOp) or readout.kind.data not in SPIKE_READOUTS:
        raise H2LearnError(
            "expected spikes that are read out for a loss on counts, found other logits",
            location=source_of(readout) or None if isinstance(readout, Operation) else None,
            hint="end the network with `readout count` or `readout rate`",
        )
    steps = shape_of(readout.x)[0]
    unit = 1.0 if readout.kind.data == "count" else float(steps)
    hit, miss = (int(steps * share) / unit for share in (spec.targets.correct, spec.targets.incorrect))
    return Loss("mse", hit, miss, unit * unit / steps)


def _backward(
    block: Block,
    logits: SSAValue,
    label: SSAValue,
    scalars: SSAValue,
    what: Loss,
    scale: float,
    names: Mapping[BlockArgument, str],
) -> list[SSAValue]:
    """Append the gradient ops and return the gradient of every parameter of ``names``, in its order."""
    parameters = list(names)
    forward = list(block.ops)[:-1]
    needed: set[SSAValue] = set(parameters)
    for op in forward:
        if not needed.isdisjoint(reads(op)):
            needed.update(op.results)
    tape = Tape(block, needed)
    seed = sgrad.LossOp(logits, label, scalars, what, scale=scale, location=_location(logits))
    gradients: dict[SSAValue, SSAValue] = {logits: tape.emit(seed)}
    for op in reversed(forward):
        of_results = [gradients.get(result) for result in op.results]
        if all(g is None for g in of_results) or needed.isdisjoint(reads(op)):
            continue
        for operand, gradient in zip(reads(op), rule_of(op)(op, of_results, tape), strict=True):
            if gradient is None or not tape.needs(operand):
                continue
            before = gradients.get(operand)
            both = gradient if before is None else tape.emit(sgrad.AddOp(before, gradient, location=op.location))
            gradients[operand] = both
    return [gradients[p] if p in gradients else _without_gradient(p, names[p]) for p in parameters]


def _without_gradient(parameter: BlockArgument, name: str) -> NoReturn:
    """Raise H2LearnError: no gradient of the loss reaches ``parameter``."""
    use = next(iter(parameter.uses), None)
    raise H2LearnError(
        f"expected every parameter to get a gradient of the loss, found {name} that gets none",
        location=None if use is None else source_of(use.operation),
        hint="no output depends on its layer, or only by what has no gradient, such as the spikes of a gate of reals",
    )


def _update(
    block: Block,
    position: int,
    parameters: Sequence[BlockArgument],
    gradients: Sequence[SSAValue],
    scalars: SSAValue,
    optimizer: Optimizer,
    grad_scale: float,
) -> list[UpdateOp]:
    """Append one update per parameter; the buffers become arguments from ``position``, those of one kind together."""
    buffers: list[list[SSAValue]] = [[] for _ in parameters]
    for state in optimizer.states:
        for parameter, own in zip(parameters, buffers, strict=True):
            buffer = block.insert_arg(parameter.type, position, parameter.location)
            buffer.name_hint = f"{state}_{parameter.name_hint}" if parameter.name_hint else None
            own.append(buffer)
            position += 1
    updates = []
    for parameter, gradient, states in zip(parameters, gradients, buffers, strict=True):
        update = _update_of(optimizer, parameter, gradient, states, scalars, grad_scale)
        block.add_op(update)
        updates.append(update)
    return updates


def _update_of(
    optimizer: Optimizer,
    parameter: BlockArgument,
    gradient: SSAValue,
    states: Sequence[SSAValue],
    scalars: SSAValue,
    grad_scale: float,
) -> UpdateOp:
    if isinstance(optimizer, Adam):
        mean, square = states
        return spike.AdamOp(
            parameter,
            gradient,
            (mean, square),
            scalars,
            betas=optimizer.betas,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            decoupled=isinstance(optimizer, AdamW),
            grad_scale=grad_scale,
            location=parameter.location,
        )
    return spike.SgdOp(
        parameter,
        gradient,
        states[0] if states else None,
        scalars,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        weight_decay=optimizer.weight_decay,
        grad_scale=grad_scale,
        location=parameter.location,
    )


def _return(results: Sequence[SSAValue], old: func.ReturnOp) -> func.ReturnOp:
    new = func.ReturnOp(*results)
    new.location = old.location
    old.erase()
    return new


def _location(value: SSAValue) -> builtin.LocationAttr:
    owner = value if isinstance(value, BlockArgument) else value.owner
    assert not isinstance(owner, Block)
    return owner.location
