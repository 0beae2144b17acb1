"""Operators that move time steps around: reshapes, selections, stacking, sequences of tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .executor import MAX_STEPS, Executor, Handler, Inputs
from .graph import Constant, GraphNode
from .operands import constant_steps, integers_of, known_array, lift, map_steps, operand_of, source_text, tensor_of
from .steps import StepNode
from .values import (
    RefusalError,
    Refused,
    Series,
    TensorList,
    Value,
    axis_of,
    reshape,
    reshape_features,
    series,
    shape_of,
    transpose,
)


def _shape(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    shape = shape_of(inputs[0] if inputs[0] is not None else Refused())
    end = node.integer("end", len(shape))
    return [Constant(np.asarray(shape[node.integer("start", 0) : end], dtype=np.int64))]


def _size(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [Constant(np.asarray(math.prod(tensor_of(inputs[0]).shape), dtype=np.int64))]


def _reshape(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    target = integers_of(inputs[1], "shape")
    if not node.integer("allowzero", 0):
        target = [x.shape[k] if n == 0 else n for k, n in enumerate(target)]
    if isinstance(x, StepNode):
        _note_unfolding(executor, x, target)
    if target.count(-1) == 1:
        target[target.index(-1)] = math.prod(x.shape) // max(1, -math.prod(target))
    return [reshape(executor.steps, x, target, source_text(node))]


def _note_unfolding(executor: Executor, x: StepNode, target: Sequence[int]) -> None:
    """Note what a reshape makes of the first dimension, if it makes two of it and leaves the features alone."""
    lead, rest, features = (target[0], target[1]) if len(target) > 1 else (), target[2:], math.prod(x.shape[1:])
    free = list(target).count(-1)
    if len(lead) != 2 or free > 1 or (math.prod(rest) != features and -1 not in rest):
        return
    if -1 in rest and math.prod(lead) != x.shape[0]:
        return
    if min(lead) >= -1 and 0 not in lead and lead not in executor.steps.unfolded:
        executor.steps.unfolded.append((lead[0], lead[1]))


def _flatten(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    axis = node.integer("axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    target = (math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    return [reshape(executor.steps, x, target, source_text(node))]


def axes_of(node: GraphNode, inputs: Inputs, place: int = 1) -> list[int] | None:
    """Return the axes of an operator, an attribute or its input ``place``; None when it says none."""
    if "axes" in node.attributes:
        return list(node.integers("axes", ()))
    if len(inputs) > place and inputs[place] is not None:
        return integers_of(inputs[place], "axes")
    return None


def _unsqueeze(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    axes = axes_of(node, inputs) or []
    if len(axes) != 1:
        raise RefusalError("expected one new dimension")
    axis = axis_of(axes[0], len(x.shape) + 1)
    if isinstance(x, StepNode):
        return [Series((x,), axis)]
    if x.axis < 0 or axis <= max(x.axis, 1):
        raise RefusalError("a new dimension before time or batch")
    position = axis - 1

    def apply(step: StepNode) -> StepNode:
        features = list(step.shape[1:])
        features.insert(position - 1, 1)
        return reshape_features(executor.steps, step, features, source_text(node))

    return [map_steps(x, apply)]


def _squeeze(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    axes = axes_of(node, inputs)
    rank = len(x.shape)
    if axes is None:
        axes = [axis for axis, size in enumerate(x.shape) if size == 1]
    removed = sorted(axis_of(axis, rank) for axis in axes)
    if any(x.shape[axis] != 1 for axis in removed):
        raise ValueError("a dimension to remove is not 1")
    if isinstance(x, Series) and removed == [x.axis]:
        return [x.nodes[0]]
    return [reshape(executor.steps, x, [n for axis, n in enumerate(x.shape) if axis not in removed], source_text(node))]


def _gather(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x, indices = tensor_of(inputs[0]), known_array(inputs[1], "indices")
    axis = axis_of(node.integer("axis", 0), len(x.shape))
    if not isinstance(x, Series) or axis != x.axis or indices.ndim > 1:
        raise RefusalError(
            "a selection that is not along time", "time is the first dimension of the input, or the second"
        )
    chosen = [x.nodes[int(index)] for index in indices.ravel()]
    return [chosen[0] if indices.ndim == 0 else series(chosen, axis)]


def _slice(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    starts, ends = (integers_of(inputs[k], name) for k, name in ((1, "starts"), (2, "ends")))
    axes = (axes_of(node, inputs, 3)) or list(range(len(starts)))
    steps = integers_of(inputs[4], "steps") if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    nodes: tuple[StepNode, ...] | None = None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = axis_of(axis, len(x.shape))
        chosen = range(x.shape[place])[start : _end(end, step) : step]
        if list(chosen) == list(range(x.shape[place])):
            continue
        if not isinstance(x, Series) or place != x.axis:
            raise RefusalError("a slice that is not along time")
        nodes = tuple(x.nodes[k] for k in chosen)
    if nodes is None:
        return [x]
    assert isinstance(x, Series)
    return [series(nodes, x.axis)]


def _end(end: int, step: int) -> int | None:
    return None if step < 0 and end <= -(1 << 31) else end


def _split(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    axis = axis_of(node.integer("axis", 0), len(x.shape))
    if not isinstance(x, Series) or axis != x.axis:
        raise RefusalError("a split that is not along time")
    if len(inputs) > 1 and inputs[1] is not None:
        sizes = integers_of(inputs[1], "sizes")
    else:
        part = -(-len(x.nodes) // len(node.outputs))
        sizes = list(node.integers("split", (part,) * len(node.outputs)))
    ends = np.cumsum(sizes)
    return [series(x.nodes[end - size : end], axis) for end, size in zip(ends.tolist(), sizes, strict=True)]


def _transpose(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    default = tuple(reversed(range(len(x.shape))))
    return [transpose(x, node.integers("perm", default))]


def _expand(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    target = integers_of(inputs[1], "shape" if node.op == "Expand" else "repeats")
    if node.op == "Tile":
        if len(target) != len(x.shape):
            raise ValueError("expected one repeat per dimension")
        target = [n * r for n, r in zip(x.shape, target, strict=True)]
    if isinstance(x, StepNode) and len(target) == len(x.shape) + 1:
        x = Series((x,), 0)
    shape = np.broadcast_shapes(x.shape, tuple(target)) if node.op == "Expand" else tuple(target)
    if shape == x.shape:
        return [x]
    changed = [axis for axis, (a, b) in enumerate(zip(x.shape, shape, strict=False)) if a != b]
    if not isinstance(x, Series) or len(shape) != len(x.shape) or changed != [x.axis] or len(x.nodes) != 1:
        raise RefusalError("a repetition that is not along time")
    if shape[x.axis] > MAX_STEPS:
        raise RefusalError(f"expected at most {MAX_STEPS} time steps, found {shape[x.axis]}")
    return [Series(x.nodes * shape[x.axis], x.axis)]


def _concat(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [join(executor, [value for value in inputs if value is not None], node, node.integer("axis", 0))]


def join(executor: Executor, values: Sequence[Value], node: GraphNode, axis: int) -> Value:
    """Return tensors joined along an axis."""
    first = next(value for value in values if isinstance(value, StepNode | Series))
    axis = axis_of(axis, len(first.shape))
    if isinstance(first, Series) and (axis == first.axis or (first.axis == -1 and axis == 0)):
        nodes: list[StepNode] = []
        for value in values:
            if isinstance(value, Constant) and axis == first.axis:
                nodes += _steps_of(executor, value, axis, source_text(node))
            elif isinstance(value, Series) and value.axis == first.axis:
                nodes += value.nodes
            else:
                raise RefusalError("it joins tensors with their time steps in different places")
        return series(nodes, first.axis)
    if any(isinstance(value, Constant) and value.uniform is not None and value.array.ndim > 1 for value in values):
        values = [_whole(executor, value, source_text(node)) for value in values]
    if axis == 0 and all(isinstance(value, StepNode) for value in values):
        return series([value for value in values if isinstance(value, StepNode)], -1)
    layout, rows = lift(executor, values, source_text(node))
    place = axis if layout is None or layout.axis < 0 or axis < layout.axis else axis - 1
    if place == 0:
        raise RefusalError("it joins batches")
    results = []
    for operands in rows:
        width = sum(o.shape[place] for o in operands)
        shape = (*operands[0].shape[:place], width, *operands[0].shape[place + 1 :])
        results.append(
            executor.steps.node("concat", operands, shape, source_text(node), key=(place,), scope=node.scope)
        )
    return results[0] if layout is None else Series(tuple(results), layout.axis)


def _whole(executor: Executor, value: Value, source: str) -> Value:
    if isinstance(value, Constant) and value.uniform is not None:
        return executor.steps.filled(value.uniform, value.shape, source)
    return value


def _steps_of(executor: Executor, value: Constant, axis: int, source: str) -> list[StepNode]:
    """Return the steps of a constant, as tensors."""
    count, shape = value.shape[axis], (*value.shape[:axis], *value.shape[axis + 1 :])
    if value.uniform is not None:
        return [executor.steps.filled(value.uniform, shape, source, place=place) for place in range(count)]
    parts = constant_steps(value, axis, value.array.ndim, count)
    return [executor.steps.constant(part, source) for part in parts]


def _sequence_empty(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [TensorList(())]


def _sequence_construct(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [TensorList(tuple(value for value in inputs if value is not None))]


def _list(value: Value | None) -> TensorList:
    if not isinstance(value, TensorList):
        raise ValueError("expected a sequence of tensors")
    return value


def _sequence_insert(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    items, value = list(_list(inputs[0]).items), inputs[1]
    if value is None:
        raise ValueError("expected a tensor to insert")
    place = integers_of(inputs[2], "position")[0] if len(inputs) > 2 and inputs[2] is not None else len(items)
    items.insert(place, value)
    return [TensorList(tuple(items))]


def _sequence_at(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [_list(inputs[0]).items[integers_of(inputs[1], "position")[0]]]


def _sequence_length(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    return [Constant(np.asarray(len(_list(inputs[0]).items), dtype=np.int64))]


def _split_to_sequence(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    axis = axis_of(node.integer("axis", 0), len(x.shape))
    if not isinstance(x, Series) or axis != x.axis:
        raise RefusalError("a split that is not along time")
    if len(inputs) > 1 and inputs[1] is not None and set(integers_of(inputs[1], "sizes")) != {1}:
        raise RefusalError("expected parts of one time step")
    keep = bool(node.integer("keepdims", 1)) or (len(inputs) > 1 and inputs[1] is not None)
    return [TensorList(tuple(Series((n,), axis) if keep else n for n in x.nodes))]


def _concat_from_sequence(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    items = _list(inputs[0]).items
    if not items:
        raise RefusalError("expected at least one tensor to join")
    axis = node.integer("axis", 0)
    if not node.integer("new_axis", 0):
        return [join(executor, items, node, axis)]
    return [stack(executor, items, node, axis)]


def stack(executor: Executor, items: Sequence[Value], node: GraphNode, axis: int) -> Value:
    """Return time steps stacked on a new axis."""
    nodes = [operand_of(executor, item, source_text(node)) for item in items]
    rank = max(len(n.shape) for n in nodes) + 1
    return series(nodes, axis_of(axis, rank))


SHAPES: dict[str, Handler] = {
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "Slice": _slice,
    "Split": _split,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _expand,
    "Concat": _concat,
    "SequenceEmpty": _sequence_empty,
    "SequenceConstruct": _sequence_construct,
    "SequenceInsert": _sequence_insert,
    "SequenceAt": _sequence_at,
    "SequenceLength": _sequence_length,
    "SplitToSequence": _split_to_sequence,
    "ConcatFromSequence": _concat_from_sequence,
}
