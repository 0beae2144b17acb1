"""Which layers of a training step are parts of their own, and which samples go through it together.

Both are read off the graph before any layer is lowered, as the orders of all sums depend on them; what later passes
must know is written on the module.
"""

from __future__ import annotations

from math import prod

from xdsl.dialects.builtin import IntAttr, ModuleOp, UnitAttr, i1
from xdsl.ir import Block

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.mapping.groups import Layer, Pool, choose_groups
from h2learn.compiler.mapping.heads import has_entry, head_of, wants_short_jobs
from h2learn.compiler.passes.lut_context import LutContext
from h2learn.dialects.common import ENTRY_ATTRIBUTE, HEAD_ATTRIBUTE, SHORT_JOBS_ATTRIBUTE, apart_of, set_groups
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import tensor_type
from h2learn.dialects.spike.normalisation import BatchNormTrainOp

Weighted = spike.ConvOp | spike.LinearOp


def choose_parts(context: LutContext, module: ModuleOp, source: Block) -> None:
    """Choose parts and groups of the training step ``source``, for ``context`` and on ``module``.

    Raises H2LearnError if groups are asked for that the network or its batch do not allow.
    """
    batch, limits = _batch(source), context.limits
    if any(isinstance(op, BatchNormTrainOp) for op in source.ops):  # its statistics need all samples
        if limits.groups not in (None, (batch,)):
            raise H2LearnError(
                "batch normalisation takes all samples of a batch together, found groups of "
                + ", ".join(map(str, limits.groups or ())),
                hint="leave out groups=",
            )
        context.groups = (batch,)
    else:
        machine, item = context.machine, 4 if context.dtype == "f32" else 2
        weighted = [op for op in source.ops if isinstance(op, Weighted)]
        layers, may_be_apart = _layers(weighted), _may_be_apart(source, weighted)
        head = head_of(layers, machine, limits.head) if may_be_apart else 0
        context.head = frozenset(op.weight for op in weighted[len(weighted) - head :])
        context.groups = choose_groups(layers, batch, machine, item, limits, head, _pools(source))
        if head:
            module.attributes[HEAD_ATTRIBUTE] = IntAttr(head)
        if may_be_apart and has_entry(layers, head, machine, limits.entry):
            module.attributes[ENTRY_ATTRIBUTE] = UnitAttr()
        context.apart = apart_of(module)
        context.short_jobs = wants_short_jobs(layers, head, machine, item, limits.jobs)
        if context.short_jobs:
            module.attributes[SHORT_JOBS_ATTRIBUTE] = UnitAttr()
    set_groups(module, context.groups)


def _batch(block: Block) -> int:
    loss = next(op for op in block.ops if isinstance(op, sgrad.LossOp))
    return int(tensor_type(loss.logits.type).get_shape()[0])


def _layers(weighted: list[Weighted]) -> list[Layer]:
    """Return what the choices need to know of the layers, in their order."""
    layers: list[Layer] = []
    for op in weighted:
        weight = tensor_type(op.weight.type).get_shape()
        result = tensor_type(op.results[0].type).get_shape()
        steps = result[0] if len(result) in (3, 5) else 1
        real = tensor_type(op.x.type).get_element_type() != i1
        taps, positions = prod(weight[:-2]), prod(result[-3:-1]) if len(result) > 3 else 1
        layers.append(Layer(taps, weight[-2], weight[-1], positions, steps, real, not layers))
    return layers


def _pools(block: Block) -> list[Pool]:
    """Return what the choice of groups needs to know of pooled maps."""
    pools: list[Pool] = []
    for op in (op for op in block.ops if isinstance(op, spike.PoolOp)):
        source, result = tensor_type(op.x.type), tensor_type(op.result.type)
        values, results = (prod(one.get_shape()) // one.get_shape()[-4] for one in (source, result))
        pools.append(Pool(values, results, prod(op.kernel.get_values()), source.get_element_type() == i1))
    return pools


def _may_be_apart(block: Block, weighted: list[Weighted]) -> bool:
    """Whether layers can be parts of their own: loops over time leave them no order, shared weights have one place."""
    looped = any(isinstance(op, spike.ScanOp) for op in block.ops)
    return not looped and len({op.weight for op in weighted}) == len(weighted)
