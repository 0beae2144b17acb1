"""Reads the inputs of operators, and applies an operation to every time step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .executor import Executor
from .graph import Array, Constant, GraphNode
from .simplify import simplified
from .steps import Key, StepNode
from .values import RefusalError, Series, Tensor, Value, reshape_features, single


def tensor_of(value: Value | None) -> Tensor:
    """Return an input that is a step or steps; raises RefusalError for anything else."""
    if not isinstance(value, StepNode | Series):
        raise RefusalError("expected an input that depends on the network's input, found a constant")
    return value


def known_array(value: Value | None, what: str) -> Array:
    """Return the value of a constant input; raises RefusalError, which calls it ``what``, for anything else."""
    if not isinstance(value, Constant):
        raise RefusalError(f"expected a constant as {what}")
    return value.array


def integers_of(value: Value | None, what: str) -> list[int]:
    """Return a constant input as integers; raises RefusalError."""
    return [int(v) for v in known_array(value, what).ravel()]


def batched(executor: Executor, value: Value | None, source: str) -> StepNode | Series:
    """Return a value as steps with the batch first: one step, folded ones, or a constant that stands for a step."""
    if isinstance(value, Constant) and value.uniform is not None and value.array.ndim > 1:
        return executor.steps.filled(value.uniform, value.shape, source)
    tensor = single(tensor_of(value))
    assert isinstance(tensor, StepNode | Series)
    if isinstance(tensor, Series) and tensor.axis > 0 and len(tensor.nodes) == 1:
        node = tensor.nodes[0]
        features = [*node.shape[1 : tensor.axis], 1, *node.shape[tensor.axis :]]
        return reshape_features(executor.steps, node, features, source)
    if isinstance(tensor, Series) and tensor.axis >= 0:
        raise RefusalError("expected one time step, or time folded into the batch, found a separate time dimension")
    return tensor


def map_steps(value: StepNode | Series, function: Callable[[StepNode], StepNode]) -> Value:
    """Apply ``function`` to every step."""
    if isinstance(value, StepNode):
        return function(value)
    return Series(tuple(function(node) for node in value.nodes), value.axis)


def source_text(node: GraphNode) -> str:
    """Return how messages call what a node computes."""
    return f"{node.label} ({node.op})"


def lift(executor: Executor, values: Sequence[Value], source: str) -> tuple[Series | None, list[list[StepNode]]]:
    """Return the operands of every step, and the series whose layout the result has (None: a single step)."""
    found = [value for value in values if isinstance(value, Series)]
    longest = max(found, key=lambda s: len(s.nodes), default=None)
    if longest is None:
        return None, [[operand_of(executor, value, source) for value in values]]
    count = len(longest.nodes)
    if any(s.axis != longest.axis or len(s.nodes) not in (1, count) for s in found):
        raise RefusalError("its inputs have their time steps in different places")
    rank = len(longest.shape)
    columns = []
    for value in values:
        if isinstance(value, Series):
            columns.append(list(value.nodes) * (count // len(value.nodes)))
        elif isinstance(value, Constant):
            parts = constant_steps(value, longest.axis, rank, count)
            columns.append([executor.steps.constant(part, source) for part in parts])
        elif isinstance(value, StepNode) and longest.axis == 0:
            columns.append([value] * count)
        else:
            raise RefusalError("it combines a single time step with all of them")
    return longest, [list(operands) for operands in zip(*columns, strict=True)]


def operand_of(executor: Executor, value: Value, source: str) -> StepNode:
    """Return a single step or a constant as a node."""
    if isinstance(value, Constant):
        return executor.steps.constant(value, source)
    if not isinstance(value, StepNode):
        raise RefusalError("expected tensors, found a sequence")
    return value


def constant_steps(value: Constant, axis: int, rank: int, count: int) -> list[Constant]:
    """Return what each of ``count`` steps on ``axis`` of a tensor of ``rank`` axes sees of a constant."""
    place = axis - (rank - value.array.ndim)
    if value.uniform is not None or place < 0 or axis < 0:
        if axis < 0 and value.uniform is None and value.array.ndim == rank and value.array.shape[0] != 1:
            raise RefusalError("a constant that differs between samples or time steps is not supported")
        return [value] * count
    if value.array.shape[place] == 1:
        return [Constant(value.array.squeeze(place))] * count
    return [Constant(np.take(value.array, t, axis=place)) for t in range(count)]


def pointwise(executor: Executor, op: str, values: Sequence[Value], node: GraphNode, key: Key = ()) -> Value:
    """Apply an elementwise operator of :mod:`steps`."""
    source = source_text(node)
    layout, rows = lift(executor, values, source)
    results = []
    for operands in rows:
        shape = np.broadcast_shapes(*(o.shape for o in operands))
        if len(shape) > max(len(o.shape) for o in operands if o.op != "const"):
            raise RefusalError("it adds dimensions by broadcasting")
        plain = simplified(executor.steps, op, operands)
        results.append(plain or executor.steps.node(op, operands, tuple(shape), source, key=key, scope=node.scope))
    if layout is None and results[0].op == "const" and results[0].value is not None:
        return Constant(results[0].value.astype(np.float32))
    return results[0] if layout is None else Series(tuple(results), layout.axis)
