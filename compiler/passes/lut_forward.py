"""Forward ops of the training graph to ``lut``: which engine, which formats, in which order sums run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from xdsl.dialects import func
from xdsl.dialects.builtin import LocationAttr
from xdsl.ir import Attribute, Operation, SSAValue

from h2learn.compiler.mapping import streams
from h2learn.compiler.mapping.tiles import ConvShape
from h2learn.compiler.mapping.tiling import choose_planes, plan_forward
from h2learn.dialects import lut
from h2learn.dialects.lut.attributes import (
    WINDOWS,
    ConvGeometry,
    GradsType,
    Neuron,
    Planes,
    Shape,
    SpikesType,
    StoreType,
    Update,
)
from h2learn.dialects.lut.gate import GateOp
from h2learn.dialects.lut.normalisation import NormOp, NormStatsOp
from h2learn.dialects.lut.scan import DelayOp
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import int_list, int_values, integrator_of, neuron_of
from h2learn.dialects.spike.base import loss_of as spike_loss
from h2learn.dialects.spike.dropout import dropout_of
from h2learn.dialects.spike.optimizers import UpdateOp, flag

from .fixed_point import fixed_point_of
from .lut_context import (
    Lowering,
    LutContext,
    NoLoweringError,
    PendingBias,
    fused,
    is_real,
    is_tensor,
    neuron_constants,
    only_user,
    other_term,
    pair,
    shape,
    window_of,
)


def _encode(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.EncodeOp)
    if op.kind.data == "direct" or op.scalars is None:
        raise NoLoweringError("expected direct encoding to be hoisted; run h2l-hoist-static-current first")
    rng = lut.RngOp(
        context.of(op.x),
        context.values[op.scalars],
        int(op.stream.value.data),
        int(op.time_steps.value.data),
        op.location,
    )
    context.emit(rng)
    return [rng.s]


def _repeat(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """Vanishes: a neuron or a sum takes a value without time as the same at every step."""
    assert isinstance(op, spike.RepeatOp)
    for user in _users(op.result):
        draws = isinstance(user, spike.DropoutTrainOp) and user.every_step is not None
        if not draws and not isinstance(user, spike.LifOp | spike.LiOp | spike.AddOp | spike.GateOp | spike.ScanOp):
            raise NoLoweringError(f"expected a neuron or a sum behind the repeated value, found {user.name}")
    return [context.values[op.x]]


def _flatten(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """Vanishes: neurons do not care, and the linear layer above becomes a convolution whose kernel is the whole map."""
    assert isinstance(op, spike.FlattenOp)
    return [context.values[op.x]]


def _embed(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.EmbedOp)
    dilation = int_values(op.properties, "dilation", 2)
    embed = lut.EmbedOp(
        context.weight(op.weight), shape(op.weight)[:2], dilation, int(op.groups.value.data), op.location
    )
    context.emit(embed)
    return [embed.result]


def _conv(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.ConvOp)
    return _synapse(context, op, window_of(op, shape(op.weight)[:2]))


def _linear(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.LinearOp)
    return _synapse(context, op, ConvGeometry(pair(shape(context.values[op.x])[-3:-1])))


def _synapse(context: LutContext, op: spike.ConvOp | spike.LinearOp, geometry: ConvGeometry) -> Sequence[SSAValue]:
    in_head = op.weight in context.head
    x, w = context.real(op.x) if in_head else context.stored(op.x), context.weight(op.weight)
    onto = _onto(context, op, (*shape(x)[:-3], *geometry.extent(*pair(shape(x)[-3:-1])), shape(w)[-1]))
    planned = context.conv_shape(shape(x), geometry, shape(w)[-1], real=is_real(x), onto=onto)
    conv: lut.BeConvOp | lut.FeConvOp
    planes = _planes(context, op.x, planned) if is_real(x) and not in_head else None
    if planes is not None:
        planned = replace(planned, planes=planes.count)
    context.looks_up = context.looks_up or planned.looked_up
    enters = streams.ENTRY in context.apart and not context.looks_up
    part = streams.HEAD if in_head else streams.ENTRY if enters else streams.FORWARD
    plan = plan_forward(planned, context.chip(part), context.limits, looped=context.looped, jobs=context.jobs(part))
    if is_real(x) and planes is None:
        conv = lut.BeConvOp(x, w, geometry, plan.reduce_block, op.location, onto=onto)
    else:
        conv = lut.FeConvOp(x, w, geometry, plan.fan, plan.reduce_block, op.location, onto=onto, planes=planes)
    own = None if op.bias is None else PendingBias(context.values[op.bias], op.location)
    _wait(context, conv.current, own if onto is None else context.join_biases(context.biases.get(onto), own))
    context.emit(conv)
    return [conv.current]


def _planes(context: LutContext, x: SSAValue, planned: ConvShape) -> Planes | None:
    """Return the bit-planes as which the numbers ``x`` go through the tables, None where they go to the multipliers."""
    numbers = fixed_point_of(x, context.numbers)
    if numbers is None or not numbers.fits(context.dtype):
        return None
    chip = context.chip(streams.FORWARD)
    if not choose_planes(planned, numbers.planes, chip, context.limits, looped=context.looped):
        return None
    return Planes(numbers.planes, numbers.frac, numbers.signed)


def _onto(context: LutContext, op: spike.ConvOp | spike.LinearOp, current: Shape) -> SSAValue | None:
    """Return the current that the sums of ``op`` go on from: the other term of a sum that alone reads its result."""
    add = only_user(op.result)
    if not isinstance(add, spike.AddOp):
        return None
    other = other_term(add, op.result)
    if not context.goes_onto(other, current):
        return None
    context.joined[add.result] = op.result
    return context.values[other]


def _wait(context: LutContext, current: SSAValue, bias: PendingBias | None) -> None:
    if bias is not None:
        context.biases[current] = bias


def _add(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """Computed already where a convolution goes on from the other term; a sum without currents is stored."""
    assert isinstance(op, spike.AddOp)
    if op.result in context.joined:
        return [context.values[context.joined[op.result]]]
    a, b = context.values[op.lhs], context.values[op.rhs]
    if len(shape(a)) < len(shape(b)):
        a, b = b, a
    if shape(b) not in (shape(a), shape(a)[1:]):
        raise NoLoweringError(f"expected two values of one shape to add, found {list(shape(a))} and {list(shape(b))}")
    currents = is_tensor(a) or is_tensor(b)
    total = lut.AddOp(a, b, lut.tensor(shape(a)) if currents else StoreType(shape(a), context.dtype), op.location)
    context.emit(total)
    _wait(context, total.result, context.join_biases(context.biases.get(a), context.biases.get(b)))
    return [total.result]


def _gate(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """A current gets its bias first; what is the same at every step gets a step for each of the spikes."""
    assert isinstance(op, spike.GateOp)
    found, s = context.values[op.x], context.of(op.s)
    x = context.biased(op.x) if found in context.biases else found
    if not isinstance(s.type, SpikesType):
        raise NoLoweringError("expected a gate of spikes, found stored numbers")
    if "last" in (context.gs_time.get(found), context.gs_time.get(x)):
        raise NoLoweringError("expected a layer between a gate and a readout of the last step")
    result: Attribute = lut.tensor(shape(s)) if is_tensor(x) else SpikesType(shape(s))
    if isinstance(x.type, StoreType | GradsType):
        result = type(x.type)(shape(s), x.type.dtype)
    gate = GateOp(x, s, op.kind.data, result, op.location)
    context.emit(gate)
    return [gate.result]


def _concat(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """Spikes stay spikes where their bytes fit together, and are stored as reals otherwise; currents get their bias."""
    found = [context.values[part] for part in op.operands]
    if len({shape(part)[:-1] for part in found}) > 1:
        raise NoLoweringError("expected values that differ in channels only, found one that is repeated over time")
    total = (*shape(found[0])[:-1], sum(shape(part)[-1] for part in found))
    result: Attribute = SpikesType(total)
    parts = found
    if any(is_tensor(part) for part in found):
        waiting = [part in context.biases for part in found]
        parts = [(context.biased if w else context.plain)(p) for p, w in zip(op.operands, waiting, strict=True)]
        result = lut.tensor(total)
    elif any(is_real(part) for part in found) or any(shape(part)[-1] % 8 for part in found[:-1]):
        parts = [context.real(part) for part in op.operands]
        result = StoreType(total, context.dtype)
    concat = lut.ConcatOp(parts, result, op.location)
    context.emit(concat)
    return [concat.result]


def _pool(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """The bias of the layer below moves on where adding a constant per channel commutes with the pooling."""
    assert isinstance(op, spike.PoolOp)
    x = context.plain(op.x) if is_real(context.values[op.x]) else context.values[op.x]
    pool = _pooling(context, op, x)
    if x in context.biases and not pool.keeps_constants:
        pool = _pooling(context, op, context.biased(op.x))
    context.emit(pool)
    if x in context.biases and pool.keeps_constants:
        context.biases[pool.y] = context.biases[x]
    if pool.winners is not None:
        context.winners[op.result] = pool.winners
    return [pool.y]


def _pooling(context: LutContext, op: spike.PoolOp, x: SSAValue) -> lut.PoolOp:
    return lut.PoolOp(
        x, op.kind.data, window_of(op, int_values(op.properties, "kernel", 2)), context.dtype, op.location
    )


def _batch_norm(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    raise NoLoweringError("expected a batch norm that is folded into the layer in front of it, found one by itself")


def _batch_norm_train(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.BatchNormTrainOp)
    x, bias, location = _current(context, op.x, op)
    stats = NormStatsOp(
        x,
        bias,
        (context.values[op.mean], context.values[op.variance]),
        context.values[op.scalars],
        eps=float(op.eps.value.data),
        momentum=float(op.momentum.value.data),
        repeats=int(op.repeats.value.data),
        reduce_block=context.sum_block(x),
        location=location,
    )
    context.emit(stats)
    weight, shift = context.values[op.weight], context.values[op.shift]
    norm = NormOp(x, bias, (stats.batch_mean, stats.inverse), weight, shift, location)
    context.emit(norm)
    return [norm.current, *stats.results]


def _dropout(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """Spikes become reals in storage type, gradients keep their format; a current gets its bias first."""
    assert isinstance(op, spike.DropoutTrainOp)
    found = context.values[op.x]
    x = context.biased(op.x) if found in context.biases else found
    if "last" in (context.gs_time.get(found), context.gs_time.get(x)):
        raise NoLoweringError("expected a layer between dropout and a readout of the last step")
    total = (*shape(op.x)[:1], *shape(x)) if op.every_step is not None and len(shape(x)) == 4 else shape(x)
    result: Attribute = lut.tensor(total) if is_tensor(x) else StoreType(total, context.dtype)
    if isinstance(x.type, GradsType):
        result = GradsType(total, x.type.dtype)
    dropout = lut.DropoutOp(x, context.values[op.scalars], dropout_of(op), result, op.location)
    context.emit(dropout)
    return [dropout.result]


def _lif(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.LifOp)
    current, bias, location = _current(context, op.x, op)
    neuron = neuron_constants(neuron_of(op), fires=True)
    _check_constants(current, neuron)
    learned = learned_rows(context, op, shape(current)[-1])
    inside = _keeps_inside(context, op.u, neuron)
    steps = shape(op.x)[0]
    lif = lut.LifOp(current, bias, neuron, steps, context.dtype, location, learned=learned, inside=inside)
    context.emit(lif)
    if neuron.surrogate in WINDOWS:
        context.masks[op.s] = lif.m
    return [lif.s, lif.u]


def _keeps_inside(context: LutContext, u: SSAValue, neuron: Neuron) -> bool:
    """Whether only gradients read potentials, and need those inside the window alone: slots of these are smaller.

    Where gradients take the mask nothing is kept at all.
    """
    if context.limits.potential == "saved" or neuron.needs_window_only or not neuron.needs_inside_only:
        return False
    readers = list(_readers(u))
    return bool(readers) and all(isinstance(op, sgrad.LifOp) for op in readers)


def _readers(value: SSAValue) -> Iterator[Operation]:
    """Yield the ops that read a value, also outside of the scan that it comes from."""
    for use in value.uses:
        scan = use.operation.parent_op()
        if isinstance(use.operation, spike.YieldOp) and isinstance(scan, spike.ScanOp):
            yield from _readers(scan.outputs[use.index])
        else:
            yield use.operation


def learned_rows(context: LutContext, op: spike.LifOp | sgrad.LifGradientOp, channels: int) -> lut.LearnedRows:
    """Return decay and threshold of neurons where they are learned."""
    rows = [None if row is None else context.values[row] for row in (op.decay, op.threshold)]
    if any(row is not None and shape(row) != (channels,) for row in rows):
        raise NoLoweringError(f"expected {channels} values per learned constant of a neuron behind flatten")
    decay, threshold = rows
    return decay, threshold


def _neuron_row(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """Comes first, because the neurons may run with the layer in front of them."""
    assert isinstance(op, spike.NeuronRowOp)
    row = lut.NeuronRowOp(context.values[op.w], op.kind.data, int(op.channels.value.data), op.location)
    first = context.block.first_op
    if first is None:
        context.emit(row)
    else:
        context.block.insert_op_before(row, first)
    return [row.result]


def _li(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.LiOp)
    current, bias, location = _current(context, op.x, op)
    neuron = neuron_constants(integrator_of(op), fires=False)
    _check_constants(current, neuron)
    li = lut.LiOp(current, bias, neuron, shape(op.x)[0], context.dtype, location)
    context.emit(li)
    return [li.u]


def _current(context: LutContext, x: SSAValue, op: Operation) -> tuple[SSAValue, SSAValue | None, LocationAttr]:
    """Return current, bias and location of a neuron; the layer whose bias it adds is part of the location."""
    current = context.plain(x)
    pending = context.biases.get(current)
    if pending is None:
        return current, None, op.location
    return current, pending.bias, fused(op.location, pending.location)


def _check_constants(current: SSAValue, neuron: Neuron) -> None:
    channels = shape(current)[-1]
    if any(len(values) not in (1, channels) for values in neuron.rows):
        raise NoLoweringError(f"expected 1 or {channels} values per constant of a neuron behind flatten")


def _delay(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    """A current is delayed with its bias, because before the first step there is neither."""
    assert isinstance(op, spike.DelayOp)
    x = context.values[op.x]
    pending = context.biases.get(x)
    if pending is not None:
        total = lut.AddOp(x, pending.bias, x.type, fused(op.location, pending.location))
        context.emit(total)
        x = total.result
    late = delayed(context, x, int_list(op.properties, "steps"), 1, op.location)
    if type(late.type) is not type(x.type) and any(isinstance(use.operation, func.ReturnOp) for use in op.result.uses):
        raise NoLoweringError("expected a layer behind spikes with a delay for each channel, found a result")
    return [late]


def delayed(context: LutContext, x: SSAValue, steps: Sequence[int], direction: int, location: LocationAttr) -> SSAValue:
    """Return ``x`` later (``direction`` 1) or earlier (-1) by ``steps``.

    Where these differ by channel, neighbours with one delay are cut out, delayed and joined again, in fp32.
    """
    if len(shape(x)) != 5:
        raise NoLoweringError("expected a value of its own at every time step to delay, found a repeated one")
    if len(set(steps)) == 1:
        return _moved(context, x, direction * steps[0], location)
    if len(steps) != shape(x)[-1]:
        raise NoLoweringError(
            f"expected one delay for each of {shape(x)[-1]} channels behind flatten, found {len(steps)}"
        )
    whole, parts, first = context.single(x, location), list[SSAValue](), 0
    for late, run in itertools.groupby(steps):
        count = len(list(run))
        part = lut.SliceOp(whole, first, count, location)
        context.emit(part)
        parts.append(_moved(context, part.result, direction * late, location))
        first += count
    joined = lut.ConcatOp(parts, whole.type, location)
    context.emit(joined)
    return joined.result


def _moved(context: LutContext, x: SSAValue, steps: int, location: LocationAttr) -> SSAValue:
    """Return ``x`` by ``steps`` later (below 0: earlier)."""
    if steps == 0:
        return x
    most = shape(x)[0]
    delay = DelayOp(x, max(-most, min(steps, most)), location)
    context.emit(delay)
    return delay.result


def _readout(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.ReadoutOp)
    x = context.of(op.x)
    if is_tensor(x):
        raise NoLoweringError("expected spikes or membrane potentials to read out, found a current")
    if shape(x)[-3:-1] != (1, 1):
        raise NoLoweringError("expected a linear layer between flatten and readout")
    readout = lut.ReadoutOp(x, op.kind.data, op.location)
    context.emit(readout)
    return [readout.logits]


def _loss(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.LossOp)
    return [loss_of(context, op).loss]


def _sgd(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.SgdOp)
    update = Update(
        kind="nesterov" if flag(op.properties, "nesterov") else "sgd",
        grad_scale=float(op.grad_scale.value.data),
        weight_decay=float(op.weight_decay.value.data),
        momentum=float(op.momentum.value.data),
    )
    return _update(context, op, update)


def _adam(context: LutContext, op: Operation) -> Sequence[SSAValue]:
    assert isinstance(op, spike.AdamOp)
    update = Update(
        kind="adamw" if flag(op.properties, "decoupled") else "adam",
        grad_scale=float(op.grad_scale.value.data),
        weight_decay=float(op.weight_decay.value.data),
        beta1=float(op.beta1.value.data),
        beta2=float(op.beta2.value.data),
        eps=float(op.eps.value.data),
    )
    return _update(context, op, update)


def _update(context: LutContext, op: UpdateOp, update: Update) -> Sequence[SSAValue]:
    p = context.values[op.parameter]
    opt = lut.OptOp(
        p,
        context.of(op.gradient),
        [context.values[state] for state in op.states],
        context.values[op.scalars],
        update,
        context.dtype if p in context.copies else None,
        op.location,
    )
    context.emit(opt)
    return [opt.new_p, *opt.new_states]


def loss_of(context: LutContext, op: spike.LossOp | sgrad.LossOp) -> lut.LossOp:
    """Return the one ``lut.loss`` of the logits: it gives both the loss and its gradient."""
    if op.logits in context.losses:
        return context.losses[op.logits]
    users = [op, *_users(op.logits)]
    gradient = next((user for user in users if isinstance(user, sgrad.LossOp)), None)
    loss = lut.LossOp(
        context.of(op.logits),
        context.values[op.label],
        context.values[op.scalars],
        spike_loss(op),
        1.0 if gradient is None else _gradient_factor(gradient),
        op.location,
    )
    context.emit(loss)
    context.losses[op.logits] = loss
    return loss


def _gradient_factor(op: sgrad.LossOp) -> float:
    """Loss scale and share, and 1/T where the readout averages over time."""
    scale = float(op.scale.value.data) * spike_loss(op).share
    for user in _users(op.result):
        if isinstance(user, sgrad.ReadoutOp) and user.kind.data in ("rate", "membrane_mean"):
            return scale / int(user.time_steps.value.data)
    return scale


def _users(value: SSAValue) -> list[Operation]:
    """Return the ops that read ``value``, the function's return apart."""
    return [use.operation for use in value.uses if not isinstance(use.operation, func.ReturnOp)]


FORWARD: dict[type[Operation], Lowering] = {
    spike.EncodeOp: _encode,
    spike.RepeatOp: _repeat,
    spike.FlattenOp: _flatten,
    spike.EmbedOp: _embed,
    spike.ConvOp: _conv,
    spike.LinearOp: _linear,
    spike.PoolOp: _pool,
    spike.AddOp: _add,
    spike.GateOp: _gate,
    spike.ConcatOp: _concat,
    spike.BatchNormOp: _batch_norm,
    spike.BatchNormTrainOp: _batch_norm_train,
    spike.DropoutTrainOp: _dropout,
    spike.LifOp: _lif,
    spike.NeuronRowOp: _neuron_row,
    spike.LiOp: _li,
    spike.DelayOp: _delay,
    spike.ReadoutOp: _readout,
    spike.LossOp: _loss,
    spike.SgdOp: _sgd,
    spike.AdamOp: _adam,
}
"""Lowerings of ``spike``; passes for other machines or dialects add rows."""
