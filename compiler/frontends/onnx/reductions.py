"""Operators that reduce dimensions, and running sums: over time they are readouts, over maps they are pooling."""

from __future__ import annotations

from collections.abc import Sequence

from .executor import Executor, Handler, Inputs
from .graph import GraphNode
from .operands import integers_of, map_steps, source_text, tensor_of
from .shapes import axes_of
from .steps import StepNode
from .values import RefusalError, Series, Tensor, Value, axis_of, reshape_features

_POOLS = {"mean": "avgpool", "sum": "sumpool", "max": "maxpool"}


def reduction(kind: str) -> Handler:
    """Return the handler of ``ReduceMean``, ``ReduceSum`` or ``ReduceMax``."""

    def handle(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
        x = tensor_of(inputs[0])
        rank, keep = len(x.shape), bool(node.integer("keepdims", 1))
        axes = axes_of(node, inputs)
        if axes == [] and node.integer("noop_with_empty_axes", 0):
            return [x]
        chosen = sorted(axis_of(axis, rank) for axis in axes) if axes else list(range(rank))
        return [_reduced(executor, node, kind, x, chosen, keep)]

    return handle


def _reduced(executor: Executor, node: GraphNode, kind: str, x: Tensor, chosen: Sequence[int], keep: bool) -> Value:
    over_time = isinstance(x, Series) and x.axis in chosen
    places = [axis - (isinstance(x, Series) and 0 <= x.axis < axis) for axis in chosen if not _is_time(x, axis)]
    if 0 in places and x.shape[0] != 1:
        raise RefusalError("a reduction over samples")
    kept = keep or not places or not isinstance(x, Series) or x.axis <= 1
    if not kept:
        raise RefusalError("a reduction of features in front of time")
    result = map_steps(x, lambda step: _pooled(executor, node, kind, step, places, keep)) if places else x
    if not over_time:
        return result
    assert isinstance(result, Series)
    first = result.nodes[0]
    over = executor.steps.node(f"time_{kind}", result.nodes, first.shape, source_text(node), scope=node.scope)
    return Series((over,), result.axis) if keep else over


def _is_time(x: Tensor, axis: int) -> bool:
    return isinstance(x, Series) and axis == x.axis


def _pooled(
    executor: Executor, node: GraphNode, kind: str, step: StepNode, places: Sequence[int], keep: bool
) -> StepNode:
    """Return a step reduced over some of its dimensions, which stay as 1 if ``keep``."""
    left = [size for axis, size in enumerate(step.shape) if axis not in places or keep]
    after = [1 if axis in places else size for axis, size in enumerate(step.shape)]
    real = [axis for axis in places if step.shape[axis] > 1]
    if not real:
        return reshape_features(executor.steps, step, left[1:] if keep or 0 not in places else left, source_text(node))
    if 1 in real:
        what = "channels" if len(step.shape) > 2 else "features"
        raise RefusalError(f"a reduction over {what}", _over_features_hint(kind))
    source, window = _maps(step, real)
    pooled = window_over(executor, _POOLS[kind], source, window, source_text(node), node.scope)
    return reshape_features(executor.steps, pooled, after[1:] if keep else left[1:], source_text(node))


def _over_features_hint(kind: str) -> str:
    return "a linear layer with constant weights does the same" if kind != "max" else ""


def _maps(step: StepNode, axes: Sequence[int]) -> tuple[StepNode, tuple[int, ...]]:
    """Return maps and a window over ``axes``; rows that are regrouped maps are those maps."""
    if step.op == "reshape" and len(step.shape) == 3 and len(step.args[0].shape) == 4:
        maps = step.args[0]
        if maps.shape[:3] == step.shape:
            return maps, (maps.shape[2], 1)
        if maps.shape[:2] == step.shape[:2]:
            return maps, maps.shape[2:]
    return step, tuple(size if axis in axes else 1 for axis, size in enumerate(step.shape) if axis > 1)


def window_over(
    executor: Executor, op: str, step: StepNode, window: tuple[int, ...], source: str, scope: str
) -> StepNode:
    """Return maps pooled by a window that does not overlap itself."""
    rank = len(window)
    key = (window, window, (0,) * 2 * rank, (1,) * rank)
    sizes = [size // part for size, part in zip(step.shape[2:], window, strict=True)]
    return executor.steps.node(op, [step], (*step.shape[:2], *sizes), source, key=key, scope=scope)


def _cumulated(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    x = tensor_of(inputs[0])
    axis = axis_of(integers_of(inputs[1], "axis")[0], len(x.shape))
    if not isinstance(x, Series) or axis != x.axis or node.integer("exclusive", 0) or node.integer("reverse", 0):
        raise RefusalError("a running sum that is not over time, from the first step on")
    sums = [x.nodes[0]]
    for step in x.nodes[1:]:
        sums.append(executor.steps.node("add", [sums[-1], step], step.shape, source_text(node), scope=node.scope))
    return [Series(tuple(sums), x.axis)]


def _for_the_loss(executor: Executor, node: GraphNode, inputs: Inputs) -> list[Value]:
    raise RefusalError("it belongs to what reads the output", "leave it out: the loss cross_entropy takes logits")


REDUCTIONS: dict[str, Handler] = {
    "ReduceMean": reduction("mean"),
    "ReduceSum": reduction("sum"),
    "ReduceMax": reduction("max"),
    "CumSum": _cumulated,
    "Softmax": _for_the_loss,
    "LogSoftmax": _for_the_loss,
    "ArgMax": _for_the_loss,
}
