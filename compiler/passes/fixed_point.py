"""Which values of the training graph are fixed-point numbers, by how they came about."""

from __future__ import annotations

from xdsl.dialects.builtin import i1
from xdsl.ir import Operation, SSAValue

from h2learn.compiler.mapping.fixed_point import SPIKES, FixedPoint
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import int_values, neuron_of, tensor_type

SAME = (spike.FlattenOp, spike.RepeatOp, spike.DelayOp)
"""Ops that move numbers, or put 0 in between."""

Known = dict[SSAValue, FixedPoint | None]


def fixed_point_of(value: SSAValue, known: Known) -> FixedPoint | None:
    """Return the numbers that ``value`` may hold, None where it may hold any; ``known`` is filled on the way."""
    if value not in known:
        known[value] = _derived(value, known)
    return known[value]


def _derived(value: SSAValue, known: Known) -> FixedPoint | None:
    if tensor_type(value.type).get_element_type() == i1:
        return SPIKES
    op = value.owner
    if not isinstance(op, Operation):
        return None
    if isinstance(op, spike.LifOp) and value is op.s:
        most = neuron_of(op).max_spikes
        return FixedPoint(0, most, 0) if most else None
    if isinstance(op, SAME):
        return fixed_point_of(op.operands[0], known)
    if isinstance(op, spike.AddOp | spike.ConcatOp):
        parts = [fixed_point_of(part, known) for part in op.operands]
        total = parts[0]
        for part in parts[1:]:
            if total is None or part is None:
                return None
            total = total.plus(part) if isinstance(op, spike.AddOp) else total.union(part)
        return total
    if isinstance(op, spike.PoolOp):
        inner = fixed_point_of(op.x, known)
        rows, columns = int_values(op.properties, "kernel", 2)
        if inner is None or op.kind.data == "max":
            return inner
        return inner.averaged(rows * columns) if op.kind.data == "avg" else inner.times(rows * columns)
    return None
