"""Executes a ``lut`` module with NumPy: exact rounding and the stated order of every sum, for small nets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp, TensorType, i32
from xdsl.ir import Attribute, Block, Operation, SSAValue

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.numerics import round_to_storage
from h2learn.dialects.common import Array, source_of
from h2learn.dialects.feedback import settle

from . import convolution, statistics, vector
from .attributes import GradsType, InsideType, Neuron, SpikesType, StoreType, WinnersType, shape_of
from .convolution_ops import BeConvOp, BeGradOp, BeWgtOp, BiasGradOp, CastOp, EmbedOp, ExtractOp, FeConvOp, WuOp
from .gate import GateOp
from .map_ops import AddOp, ConcatOp, ConvertOp, DropoutOp, PoolOp, RngOp, SliceOp, TimeSumOp, UnpoolOp
from .neuron_ops import GradOp, LifConstantsOp, LifOp, LiOp, NeuronRowGradOp, NeuronRowOp
from .normalisation import NormalisationOp, NormGradOp, NormOp, NormStatsOp, NormSumsOp
from .scan import DelayOp, ScanOp, YieldOp
from .training_ops import LossOp, OptOp, ReadoutOp, SpreadOp

Real = npt.NDArray[Any]
Rule = Callable[..., Sequence[Array | None]]


def interpret(module: ModuleOp, arguments: Sequence[Array]) -> list[Array]:
    """Run ``@main`` and return its results in order.

    Arguments are dense arrays in the order of the io table, of any shape with the elements of the argument's type;
    spikes, masks: bool, winners: uint8, labels and scalars: int32, all else float32. Raises H2LearnError for a wrong
    number of arguments or elements, for a label outside the classes, and for an op of another dialect.
    """
    main = _main(module)
    block = main.body.block
    if len(arguments) != len(block.args):
        raise H2LearnError(f"expected {len(block.args)} arguments, found {len(arguments)}")
    values: dict[SSAValue, Array] = {
        value: _device_array(argument, value.type, index)
        for index, (value, argument) in enumerate(zip(block.args, arguments, strict=True))
    }
    with np.errstate(all="ignore"):
        return _run(block, values)


def _run(block: Block, known: Mapping[SSAValue, Array]) -> list[Array]:
    """Run the ops of a block and return the operands of its terminator."""
    values = dict(known)
    for op in block.ops:
        operands = [values[operand] for operand in op.operands]
        if isinstance(op, func.ReturnOp | YieldOp):
            return operands
        results = _scan(op, values) if isinstance(op, ScanOp) else _execute(op, operands)
        values.update(zip(op.results, (r for r in results if r is not None), strict=True))
    raise AssertionError("a block has no terminator")


def _scan(op: ScanOp, known: Mapping[SSAValue, Array]) -> Sequence[Array]:
    inputs: dict[SSAValue, Array] = dict(known)
    inputs.update((argument, known[value]) for argument, value in zip(op.arguments, op.inputs, strict=True))

    def nothing(type_: Attribute) -> Array:
        return np.zeros(shape_of(type_), np.bool_ if isinstance(type_, SpikesType) else np.float32)

    def run(fed: Sequence[Array]) -> Sequence[Array]:
        return _run(op.body.block, inputs | dict[SSAValue, Array](zip(op.fed_back, fed, strict=True)))

    return settle(run, [nothing(argument.type) for argument in op.fed_back], reverse=op.reverse is not None)


def _main(module: ModuleOp) -> func.FuncOp:
    for op in module.ops:
        if isinstance(op, func.FuncOp) and op.sym_name.data == "main":
            return op
    raise H2LearnError("the module has no function @main")


def _device_array(argument: Array, type_: Attribute, index: int) -> Array:
    shape = shape_of(type_)
    if argument.size != int(np.prod(shape)):
        raise H2LearnError(f"argument {index} has the shape {list(argument.shape)}, expected {list(shape)}")
    reshaped = argument.reshape(shape)
    if isinstance(type_, StoreType):
        return round_to_storage(reshaped, type_.dtype)
    if isinstance(type_, SpikesType):
        return reshaped.astype(np.bool_)
    if isinstance(type_, WinnersType):
        return reshaped.astype(np.uint8)
    if isinstance(type_, TensorType) and type_.element_type == i32:
        return reshaped.astype(np.int32)
    return reshaped.astype(np.float32)


def _execute(op: Operation, operands: list[Array]) -> Sequence[Array | None]:
    rule = _RULES.get(type(op))
    if rule is None:
        raise H2LearnError(f"{op.name} is not an operation of the lut level", location=source_of(op) or None)
    return rule(op, *operands)


def _dtype(value: SSAValue) -> str:
    """Storage type of weights: a parameter tensor is used as it is."""
    return value.type.dtype if isinstance(value.type, StoreType | InsideType | GradsType) else "f32"


def _fe_conv(op: FeConvOp, s: Real, w: Real, onto: Real | None = None) -> Sequence[Array]:
    how = (op.geometry, op.fan_in, op.reduce_block, _dtype(op.w))
    if op.planes is None:
        return [convolution.spike_convolution(s, w, onto, *how)]
    return [convolution.number_convolution(s, op.planes, w, onto, *how)]


def _be_conv(op: BeConvOp, x: Real, w: Real, onto: Real | None = None) -> Sequence[Array]:
    return [convolution.real_convolution(x, w, onto, op.geometry, op.reduce_block)]


def _lif(op: LifOp, current: Real, *rest: Real) -> Sequence[Array]:
    bias, rows = (vector.NO_BIAS, rest) if op.bias is None else (rest[0], rest[1:])
    s, u, m = vector.lif(current, bias, _learned(op, rows), op.time_steps, _dtype(op.u))
    return s, np.where(m, u, np.float32(np.nan)) if isinstance(op.u.type, InsideType) else u, m


def _learned(op: LifOp | GradOp | LifConstantsOp, rows: Sequence[Real]) -> Neuron:
    """Return the neuron with its learned constants."""
    found, values = op.neuron, [tuple(map(float, row)) for row in rows]
    if op.decay is not None:
        found = replace(found, alpha=values[0])
    return found if op.threshold is None else replace(found, theta=values[-1])


def _lif_constants(op: LifConstantsOp, gu: Real, later: Real, u: Real, s: Real, *rows: Real) -> Sequence[Array]:
    return vector.constants_gradient(gu, later, u, s, _learned(op, rows), op.reduce_block)


def _neuron_row(op: NeuronRowOp, w: Real) -> Sequence[Array]:
    return [np.broadcast_to(vector.learned_row(w, op.kind), shape_of(op.result.type))]


def _neuron_row_grad(op: NeuronRowGradOp, g: Real, w: Real) -> Sequence[Array]:
    return [vector.learned_row_gradient(g, w, op.kind)]


def _li(op: LiOp, current: Real, bias: Real = vector.NO_BIAS) -> Sequence[Array]:
    return [vector.li(current, bias, op.neuron, op.time_steps, _dtype(op.u))]


def _pool(op: PoolOp, x: Real) -> Sequence[Array | None]:
    y, winners = vector.pool(x, op.kind, op.geometry)
    if isinstance(op.y.type, SpikesType):
        return [y != 0, winners]
    return [round_to_storage(y, _dtype(op.y)), winners if op.winners is not None else None]


def _unpool(op: UnpoolOp, g: Real, winners: Real | None = None) -> Sequence[Array]:
    result = vector.unpool(g, winners, op.kind, op.geometry, shape_of(op.result.type))
    if isinstance(op.result.type, GradsType):
        return [vector.live(round_to_storage(result, op.result.type.dtype))]
    return [result]


def _rng(op: RngOp, x: Real, scalars: Real) -> Sequence[Array]:
    return [vector.rng(x, scalars, op.stream, op.time_steps)]


def _dropout(op: DropoutOp, x: Real, scalars: Real) -> Sequence[Array]:
    steps = shape_of(op.result.type)[0] if op.what.every_step else 1
    return [_formatted(vector.dropout(x, scalars, op.what, steps), op.result)]


def _cast(op: CastOp, p: Real) -> Sequence[Array]:
    return [round_to_storage(p, _dtype(op.w))]


def _readout(op: ReadoutOp, x: Real) -> Sequence[Array]:
    return [vector.readout(x, op.kind)]


def _spread(op: SpreadOp, g: Real, x: Real) -> Sequence[Array]:
    return [vector.spread(g, x)]


def _loss(op: LossOp, logits: Real, label: Real, scalars: Real) -> Sequence[Array]:
    return vector.loss(logits, label, scalars, op.what, op.scale)


def _grad(op: GradOp, gs: Real, u: Real | None = None, s: Real | None = None, *rows: Real) -> Sequence[Array]:
    return [vector.grad(gs, u, s, _learned(op, rows), op.gs_time, op.time_steps, _dtype(op.gu))]


def _be_grad(op: BeGradOp, gu: Real, w: Real, *rest: Real) -> Sequence[Array]:
    mask = rest[0] if op.m is not None else None
    onto = rest[-1] if op.onto is not None else None
    return [convolution.input_gradient(gu, w, mask, onto, op.geometry, op.reduce_block, shape_of(op.gs.type))]


def _add(op: AddOp, a: Real, b: Real) -> Sequence[Array]:
    return [_formatted(a.astype(np.float32) + b.astype(np.float32), op.result)]


def _gate(op: GateOp, x: Real, s: Real) -> Sequence[Array]:
    nothing = np.zeros((), x.dtype)
    through, held = (nothing, x) if op.kind == "drop" else (-x if op.kind == "negate" else x, nothing)
    result = np.where(s, through, held)
    return [vector.live(result) if isinstance(op.result.type, GradsType) else result]


def _convert(op: ConvertOp, a: Real) -> Sequence[Array]:
    return [_formatted(a.astype(np.float32), op.result)]


def _concat(op: ConcatOp, *parts: Real) -> Sequence[Array]:
    return [np.concatenate(parts, axis=-1)]


def _slice(op: SliceOp, g: Real) -> Sequence[Array]:
    return [np.ascontiguousarray(g[..., op.first : op.first + shape_of(op.result.type)[-1]])]


def _embed(op: EmbedOp, w: Real) -> Sequence[Array]:
    return [convolution.embedded(w, op.kernel, op.dilation, op.groups, shape_of(op.result.type))]


def _extract(op: ExtractOp, g: Real) -> Sequence[Array]:
    return [convolution.extracted(g, op.kernel, op.dilation, op.groups, shape_of(op.result.type))]


def _formatted(values: Real, target: SSAValue) -> Array:
    """Return float32 ``values`` as the format of ``target`` holds them."""
    rounded = round_to_storage(values, _dtype(target))
    return vector.live(rounded) if isinstance(target.type, GradsType) else rounded


def _delay(op: DelayOp, x: Real) -> Sequence[Array]:
    return [vector.delay(x, op.steps)]


def _time_sum(op: TimeSumOp, g: Real) -> Sequence[Array]:
    return [vector.live(round_to_storage(vector.time_sum(g), _dtype(op.result)))]


def _wu(op: WuOp, s: Real, gu: Real) -> Sequence[Array]:
    return [convolution.spike_weight_gradient(s, gu, op.geometry, op.fan_in, op.reduce_block, _dtype(op.gu))]


def _be_wgt(op: BeWgtOp, x: Real, gu: Real) -> Sequence[Array]:
    return [convolution.real_weight_gradient(x, gu, op.geometry, op.reduce_block)]


def _bias_grad(op: BiasGradOp, gu: Real) -> Sequence[Array]:
    return [convolution.bias_gradient(gu, op.reduce_block)]


def _opt(op: OptOp, p: Real, g: Real, *rest: Real) -> Sequence[Array | None]:
    *states, scalars = rest
    results = vector.optimize(p, g, states, scalars, op.update)
    return [*results, round_to_storage(results[0], _dtype(op.w)) if op.w is not None else None]


def _norm_stats(op: NormStatsOp, x: Real, *rest: Real) -> Sequence[Array]:
    z, (mean, variance, scalars) = _biased(op, x, rest)
    return statistics.batch_statistics(op, z, (mean, variance), scalars)


def _norm(op: NormOp, x: Real, *rest: Real) -> Sequence[Array]:
    z, (mean, inverse, weight, shift) = _biased(op, x, rest)
    return [statistics.normalised(z, mean, inverse, weight, shift)]


def _norm_sums(op: NormSumsOp, x: Real, *rest: Real) -> Sequence[Array]:
    z, (gu, mean, inverse, scalars) = _biased(op, x, rest)
    return statistics.gradient_sums(z, gu, mean, inverse, scalars, op.reduce_block)


def _norm_grad(op: NormGradOp, x: Real, *rest: Real) -> Sequence[Array]:
    z, (gu, mean, inverse, weight, product, total, scalars) = _biased(op, x, rest)
    rows, sums = (mean, inverse, weight), (product, total)
    return [statistics.gradient(z, gu, rows, sums, scalars, _dtype(op.result))]


def _biased(op: NormalisationOp, x: Real, rest: Sequence[Real]) -> tuple[Real, Sequence[Real]]:
    """Return the currents with their bias, and the operands behind it."""
    return (x + vector.NO_BIAS, rest) if op.bias is None else (x + rest[0], rest[1:])


_RULES: dict[type[Operation], Rule] = {
    FeConvOp: _fe_conv,
    BeConvOp: _be_conv,
    LifOp: _lif,
    LifConstantsOp: _lif_constants,
    NeuronRowOp: _neuron_row,
    NeuronRowGradOp: _neuron_row_grad,
    LiOp: _li,
    PoolOp: _pool,
    UnpoolOp: _unpool,
    RngOp: _rng,
    DropoutOp: _dropout,
    CastOp: _cast,
    ReadoutOp: _readout,
    SpreadOp: _spread,
    LossOp: _loss,
    GradOp: _grad,
    BeGradOp: _be_grad,
    AddOp: _add,
    GateOp: _gate,
    ConvertOp: _convert,
    ConcatOp: _concat,
    SliceOp: _slice,
    EmbedOp: _embed,
    ExtractOp: _extract,
    TimeSumOp: _time_sum,
    DelayOp: _delay,
    WuOp: _wu,
    BeWgtOp: _be_wgt,
    BiasGradOp: _bias_grad,
    OptOp: _opt,
    NormStatsOp: _norm_stats,
    NormOp: _norm,
    NormSumsOp: _norm_sums,
    NormGradOp: _norm_grad,
}
