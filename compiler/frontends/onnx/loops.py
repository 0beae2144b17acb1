"""Operators with a graph inside: loops over time are executed step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .executor import MAX_STEPS, BodyHandler, Executor, Inputs, Scope
from .graph import Constant, GraphNode
from .operands import integers_of, known_array
from .shapes import stack
from .values import RefusalError, Refused, Series, Value, axis_of


def _scan(executor: Executor, node: GraphNode, inputs: Inputs, scope: Scope) -> Sequence[Value]:
    body, count = node.graph("body"), node.integer("num_scan_inputs", 1)
    values = [value for value in inputs if value is not None]
    states, scanned = values[: len(values) - count], values[len(values) - count :]
    if any(node.integers("scan_input_directions", (0,))) or any(node.integers("scan_output_directions", (0,))):
        raise RefusalError("a scan from the last step to the first")
    axes = node.integers("scan_input_axes", (0,) * count)
    columns = [_scanned(executor, value, axis, node) for value, axis in zip(scanned, axes, strict=True)]
    if len({len(column) for column in columns}) != 1 or len(body.inputs) != len(values):
        raise ValueError("the inputs of the scan do not fit its body")
    outputs: list[list[Value]] = []
    for rows in zip(*columns, strict=True):
        arguments = dict(zip((i.name for i in body.inputs), (*states, *rows), strict=True))
        results = executor.run(body, arguments, scope)
        states, row = results[: len(states)], results[len(states) :]
        outputs.append(row)
    places = node.integers("scan_output_axes", (0,) * len(outputs[0]))
    return [*states, *_stacked(executor, node, outputs, places)]


def _scanned(executor: Executor, value: Value, axis: int, node: GraphNode) -> list[Value]:
    if isinstance(value, Constant):
        return [Constant(part) for part in np.moveaxis(value.array, axis, 0)]
    if not isinstance(value, Series) or axis_of(axis, len(value.shape)) != value.axis:
        raise RefusalError("a scan that is not along time")
    return list(value.nodes)


def _stacked(executor: Executor, node: GraphNode, rows: Sequence[Sequence[Value]], axes: Sequence[int]) -> list[Value]:
    results: list[Value] = []
    for column, axis in zip(zip(*rows, strict=True), axes, strict=True):
        if any(isinstance(value, Refused) for value in column):
            results.append(Refused())
        elif all(isinstance(value, Constant) for value in column):
            arrays = [value.array for value in column if isinstance(value, Constant)]
            results.append(Constant(np.stack(arrays, axis)))
        else:
            results.append(stack(executor, column, node, axis))
    return results


def _loop(executor: Executor, node: GraphNode, inputs: Inputs, scope: Scope) -> Sequence[Value]:
    body = node.graph("body")
    if inputs[0] is None:
        raise RefusalError("a loop without a number of iterations")
    count = integers_of(inputs[0], "number of iterations")[0]
    if not 1 <= count <= MAX_STEPS:
        raise RefusalError(f"expected 1 to {MAX_STEPS} iterations, found {count}")
    condition = inputs[1] if len(inputs) > 1 else None
    states = [value for value in inputs[2:] if value is not None]
    rows: list[list[Value]] = []
    if len(body.inputs) != len(states) + 2:
        raise ValueError("the inputs of the loop do not fit its body")
    going: Value = condition if condition is not None else Constant(np.asarray(True))
    for index in range(count):
        if not bool(known_array(going, "loop condition").ravel()[0]):
            raise RefusalError("a loop that ends early")
        arguments = (Constant(np.asarray(index, dtype=np.int64)), going, *states)
        results = executor.run(body, dict(zip((i.name for i in body.inputs), arguments, strict=True)), scope)
        going, states, row = results[0], results[1 : 1 + len(states)], results[1 + len(states) :]
        if isinstance(going, Refused):
            return [Refused()] * len(node.outputs)
        rows.append(row)
    return [*states, *_stacked(executor, node, rows, (0,) * len(rows[0]))]


def _if(executor: Executor, node: GraphNode, inputs: Inputs, scope: Scope) -> Sequence[Value]:
    chosen = "then_branch" if bool(known_array(inputs[0], "condition").ravel()[0]) else "else_branch"
    return executor.run(node.graph(chosen), {}, scope)


BODIES: dict[str, BodyHandler] = {"Scan": _scan, "Loop": _loop, "If": _if}
