"""Gradient ops of the training graph to ``lut``."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import Operation, SSAValue

from h2learn.compiler.mapping import streams
from h2learn.compiler.mapping.cost import defers_weights
from h2learn.compiler.mapping.layout import slot_channels
from h2learn.compiler.mapping.tiles import NeuronKind, slot_cap
from h2learn.compiler.mapping.tiling import plan_backward, plan_weights
from h2learn.compiler.mapping.vector_tiling import plan_constants
from h2learn.compiler.passes.tile_context import neuron_kind
from h2learn.dialects import lut
from h2learn.dialects.lut.attributes import ConvGeometry, GradsType, InsideType, Neuron, Shape
from h2learn.dialects.lut.normalisation import NormGradOp, NormSumsOp
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import int_list, int_values, integrator_of, neuron_of

from .lut_context import (
    Lowering,
    LutContext,
    NoLoweringError,
    is_real,
    neuron_constants,
    only_user,
    other_term,
    pair,
    shape,
    window_of,
)
from .lut_forward import delayed, learned_rows, loss_of


def _loss(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.LossOp)
    return [loss_of(context, op).dlogits]


def _readout(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """Vanishes: the loss divides by T, and the neuron's gradient spreads over time."""
    assert isinstance(op, sgrad.ReadoutOp)
    dlogits = context.of(op.gradient)
    users = [use.operation for use in op.result.uses]
    if not all(
        isinstance(user, sgrad.LifOp | sgrad.LiOp | sgrad.AddOp | spike.GateOp | spike.ScanOp) for user in users
    ):
        raise NoLoweringError("expected a neuron in front of the readout")
    if op.x is not None:
        spread = lut.SpreadOp(dlogits, context.of(op.x), op.location)
        context.emit(spread)
        return [spread.gs]
    gs_time = "last" if op.kind.data == "membrane_last" else "broadcast"
    if context.gs_time.setdefault(dlogits, gs_time) != gs_time:
        raise NoLoweringError("expected one readout of the logits, found two kinds")
    return [dlogits]


def _lif(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.LifOp)
    u, s, neuron = context.of(op.u), context.of(op.s), neuron_constants(neuron_of(op), fires=True)
    if neuron.needs_window_only and context.limits.potential != "saved":
        u = context.masks.get(op.s, u)
    learned = learned_rows(context, op, shape(s)[-1])
    return _grad(context, op, op.gradient, u, s, neuron, learned)


def _lif_constants(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.LifConstantsOp)
    gu, u, s = context.slots(op.gradient), context.of(op.u), context.of(op.s)
    later = delayed(context, gu, (1,), -1, op.location)
    neuron = neuron_constants(neuron_of(op), fires=True)
    steps, batch, *rest = shape(gu)
    seen, item = (steps, context.common or batch, *rest), 4 if context.dtype == "f32" else 2
    block = plan_constants(seen, item, context.chip(streams.UPDATE), context.limits).reduce_block
    learned = learned_rows(context, op, shape(u)[-1])
    constants = lut.LifConstantsOp((gu, later), u, s, neuron, block, learned, op.location)
    context.emit(constants)
    return list(constants.results)


def _neuron_row(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.NeuronRowOp)
    row = lut.NeuronRowGradOp(context.values[op.gradient], context.values[op.w], op.kind.data, op.location)
    context.emit(row)
    return [row.result]


def _li(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.LiOp)
    return _grad(context, op, op.gradient, None, None, neuron_constants(integrator_of(op), fires=False))


def _grad(
    context: LutContext,
    op: Operation,
    gradient: SSAValue,
    u: SSAValue | None,
    s: SSAValue | None,
    neuron: Neuron,
    learned: lut.LearnedRows = (None, None),
) -> Sequence[SSAValue]:
    gs = context.plain(gradient)
    gs_time = context.gs_time.get(gs, "all")
    grad = lut.GradOp(gs, u, s, neuron, gs_time, shape(gradient)[0], context.dtype, op.location, learned=learned)
    context.emit(grad)
    return [grad.gu]


def _conv_input(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.ConvInputOp)
    maps = int_values(op.properties, "input_shape", 3)
    return _input_gradient(context, op, window_of(op, shape(op.weight)[:2]), maps, op.result)


def _linear_input(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.LinearInputOp)
    maps = shape(context.values[_forward_layer(op).x])[-3:]
    user = only_user(op.result)
    reader = user.result if isinstance(user, sgrad.UnflattenOp) else op.result
    return _input_gradient(context, op, ConvGeometry(pair(maps[:2])), maps, reader)


def _forward_layer(op: sgrad.LinearInputOp) -> spike.LinearOp:
    for use in op.weight.uses:
        if isinstance(use.operation, spike.LinearOp):
            return use.operation
    raise NoLoweringError("expected the linear layer itself in the same function as its gradient")


def _input_gradient(
    context: LutContext,
    op: sgrad.ConvInputOp | sgrad.LinearInputOp,
    geometry: ConvGeometry,
    maps: Sequence[int],
    result: SSAValue,
) -> Sequence[SSAValue]:
    gu, w = context.slots(op.gradient), context.weight(op.weight)
    target: Shape = (*shape(gu)[:-3], *maps)
    onto = _onto(context, result, op.result, target)
    planned = context.conv_shape(target, geometry, shape(w)[-1], real=False, onto=onto)
    reader = only_user(result if onto is None else _sum_of(result))
    kind = _neuron_kind(context, reader)
    part = streams.HEAD if op.weight in context.head else streams.BACKWARD
    block = plan_backward(
        planned,
        context.chip(part),
        context.limits,
        neuron=kind,
        looped=context.looped,
        jobs=context.jobs(part),
    ).reduce_block
    mask = _mask(context, result)
    mode = context.limits.sparsity or "dual"
    if mask is None:
        mode = {"out": "dense", "dual": "in"}.get(mode, mode)
    grad = lut.BeGradOp(gu, w, mask, geometry, block, mode, target, op.location, onto=onto)
    context.emit(grad)
    return [grad.gs]


def _onto(context: LutContext, term: SSAValue, result: SSAValue, target: Shape) -> SSAValue | None:
    """Return the gradient that the sums of ``result`` go on from: the other term of a sum that alone reads ``term``."""
    add = only_user(term)
    if not isinstance(add, sgrad.AddOp):
        return None
    other = other_term(add, term)
    if not context.goes_onto(other, target):
        return None
    context.joined[add.result] = result
    return context.values[other]


def _sum_of(term: SSAValue) -> SSAValue:
    add = only_user(term)
    assert isinstance(add, sgrad.AddOp)
    return add.result


def _neuron_kind(context: LutContext, op: Operation | None) -> NeuronKind | None:
    if isinstance(op, sgrad.LifOp):
        u = context.values[op.u]
        ublk = slot_channels(shape(u)[-1], slot_cap(context.machine, context.limits))
        return neuron_kind(neuron_constants(neuron_of(op), fires=True), ublk if isinstance(u.type, InsideType) else 0)
    return neuron_kind(neuron_constants(integrator_of(op), fires=False)) if isinstance(op, sgrad.LiOp) else None


def _mask(context: LutContext, gs: SSAValue) -> SSAValue | None:
    """Return where the neuron that alone reads ``gs`` can use it at all: outside its window the surrogate is 0.

    What holds for a sum of gradients holds for its terms, and what holds behind dropout holds in front of it.
    """
    user = only_user(gs)
    while isinstance(user, sgrad.AddOp | spike.DropoutTrainOp):
        gs = user.result
        user = only_user(gs)
    return context.masks.get(user.s) if isinstance(user, sgrad.LifOp) and user.gradient is gs else None


def _unflatten(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """Vanishes: a linear layer behind flatten has the maps as its input already."""
    assert isinstance(op, sgrad.UnflattenOp)
    return [context.of(op.gradient)]


def _conv_weight(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.ConvWeightOp)
    return _weight_gradient(context, op, window_of(op, int_values(op.properties, "kernel", 2)))


def _extract(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.ExtractOp)
    kernel, dilation = shape(op.result)[:2], int_values(op.properties, "dilation", 2)
    extract = lut.ExtractOp(context.of(op.gradient), kernel, dilation, int(op.groups.value.data), op.location)
    context.emit(extract)
    return [extract.result]


def _linear_weight(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.LinearWeightOp)
    return _weight_gradient(context, op, ConvGeometry(pair(shape(context.values[op.x])[-3:-1])))


def _weight_gradient(
    context: LutContext, op: sgrad.ConvWeightOp | sgrad.LinearWeightOp, geometry: ConvGeometry
) -> Sequence[SSAValue]:
    x, gu = context.stored(op.x), context.slots(op.gradient)
    part = streams.BACKWARD if is_real(x) else streams.UPDATE
    planned = _reduction(context, shape(x), geometry, shape(gu)[-1], part, real=is_real(x))
    grad: lut.BeWgtOp | lut.WuOp
    if is_real(x):
        grad = lut.BeWgtOp(x, gu, geometry, planned, op.location)
    else:
        grad = lut.WuOp(x, gu, geometry, context.machine.weight_update.fan_in, planned, op.location)
    context.emit(grad)
    return [grad.gw]


def _bias(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """The neuron adds the bias behind a pooling, so its gradient is taken there, too."""
    assert isinstance(op, sgrad.BiasOp)
    gu = context.slots(op.gradient)
    while isinstance(gu.owner, lut.UnpoolOp) and gu.owner.keeps_constants:
        gu = gu.owner.g
    inputs = (*shape(gu)[:-1], 1)
    block = _reduction(context, inputs, ConvGeometry((1, 1)), shape(gu)[-1], streams.UPDATE, real=True, waits=False)
    grad = lut.BiasGradOp(gu, block, op.location)
    context.emit(grad)
    return [grad.gb]


def _reduction(
    context: LutContext, inputs: Shape, geometry: ConvGeometry, k: int, part: str, *, real: bool, waits: bool = True
) -> lut.Block:
    """Return (steps, samples, rows, columns) of a block; without a time dimension there is one step.

    ``waits``: the sums may be left for the whole batch.
    """
    with_time = inputs if len(inputs) == 5 else (1, *inputs)
    planned = context.conv_shape(with_time, geometry, k, real=real)
    together = context.common or planned.batch
    if waits and context.group is not None and defers_weights(planned, context.machine):
        part = streams.OPTIMIZER
        planned = context.conv_shape(with_time, geometry, k, real=real, whole=True)
        together = planned.batch
    jobs = context.jobs(part) if waits else streams.Jobs.LONG
    return plan_weights(planned, context.chip(part), context.limits, jobs=jobs, together=together).reduce_block


def _pool(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.PoolOp)
    g, x = context.of(op.gradient), context.values[op.x]
    geometry = window_of(op, int_values(op.properties, "kernel", 2))
    unpool = lut.UnpoolOp(g, _winners(context, op), op.kind.data, geometry, shape(x), op.location)
    context.emit(unpool)
    return [unpool.result]


def _winners(context: LutContext, op: sgrad.PoolOp) -> SSAValue | None:
    """Return the winners that the forward pooling of the same input remembered."""
    for use in op.x.uses:
        forward = use.operation
        if isinstance(forward, spike.PoolOp) and forward.properties == op.properties:
            return context.winners.get(forward.result)
    raise NoLoweringError("expected the pooling itself in the same function as its gradient")


def _delay(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.DelayOp)
    return [delayed(context, context.of(op.gradient), int_list(op.properties, "steps"), -1, op.location)]


def _batch_norm(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.BatchNormOp)
    x = context.plain(op.x)
    pending = context.biases.get(x)
    sums = NormSumsOp(
        context.slots(op.gradient),
        x,
        None if pending is None else pending.bias,
        (context.of(op.batch_mean), context.of(op.inverse)),
        context.values[op.scalars],
        context.sum_block(x),
        op.location,
    )
    context.emit(sums)
    grad = NormGradOp(sums, context.values[op.weight], op.location)
    context.emit(grad)
    return [grad.result, sums.weight_gradient, sums.shift_gradient]


def _slice(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.SliceOp)
    channels = int(op.channels.value.data)
    cut = lut.SliceOp(context.plain(op.gradient), int(op.first.value.data), channels, op.location)
    context.emit(cut)
    return [cut.result]


def _time_sum(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, sgrad.TimeSumOp)
    total = lut.TimeSumOp(context.slots(op.gradient), op.location)
    context.emit(total)
    return [total.result]


def _add(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """Computed already where an input gradient goes on from the other term; gradients of currents stay slots."""
    assert isinstance(op, sgrad.AddOp)
    if op.result in context.joined:
        return [context.values[context.joined[op.result]]]
    a, b = context.of(op.lhs), context.of(op.rhs)
    if "last" in (context.gs_time.get(a), context.gs_time.get(b)):
        raise NoLoweringError("expected one reader of the values that are read out at the last step, found several")
    if len(shape(a)) < len(shape(b)):
        a, b = b, a
    slots = isinstance(a.type, GradsType) and isinstance(b.type, GradsType)
    total = lut.AddOp(a, b, a.type if slots else lut.tensor(shape(a)), op.location)
    context.emit(total)
    return [total.result]


BACKWARD: dict[type[Operation], Lowering] = {
    sgrad.LossOp: _loss,
    sgrad.ReadoutOp: _readout,
    sgrad.LifOp: _lif,
    sgrad.LifConstantsOp: _lif_constants,
    sgrad.NeuronRowOp: _neuron_row,
    sgrad.LiOp: _li,
    sgrad.ConvInputOp: _conv_input,
    sgrad.LinearInputOp: _linear_input,
    sgrad.UnflattenOp: _unflatten,
    sgrad.ConvWeightOp: _conv_weight,
    sgrad.ExtractOp: _extract,
    sgrad.LinearWeightOp: _linear_weight,
    sgrad.BiasOp: _bias,
    sgrad.PoolOp: _pool,
    sgrad.BatchNormOp: _batch_norm,
    sgrad.SliceOp: _slice,
    sgrad.TimeSumOp: _time_sum,
    sgrad.DelayOp: _delay,
    sgrad.AddOp: _add,
}
"""Lowerings of ``sgrad``; other training methods add rows."""
