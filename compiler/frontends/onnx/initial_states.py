"""Inputs beside the one over time: whether they are states in front of the first step, or act in later steps, too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .steps import StepNode
from .values import Series, TensorList, Value


def acts_later(outputs: Sequence[Value], name: str, over_time: str) -> StepNode | None:
    """Return a value of a later step that the input ``name`` enters other than through the first step, None if none.

    ``outputs`` are those of the graph for symbolic inputs; ``over_time`` is the input that has the steps.
    """
    newest: dict[int, int] = {}
    reached: set[int] = set()
    for node in _below([node for value in outputs for node in _nodes(value)]):
        own = node.key[1] if node.op == "input" and node.key[0] == over_time else None
        newest[node.number] = max([own if isinstance(own, int) else -1, *(newest[a.number] for a in node.args)])
        if node.op == "input" and node.key[0] == name:
            reached.add(node.number)
        entering = [a for a in node.args if a.number in reached]
        if entering:
            reached.add(node.number)
        if newest[node.number] > 0 and any(newest[a.number] < 0 for a in entering):
            return node
    return None


def _nodes(value: Value) -> Iterator[StepNode]:
    if isinstance(value, StepNode):
        yield value
    elif isinstance(value, Series):
        yield from value.nodes
    elif isinstance(value, TensorList):
        for item in value.items:
            yield from _nodes(item)


def _below(nodes: Sequence[StepNode]) -> list[StepNode]:
    """Return all nodes that some are computed from, arguments first."""
    found: dict[int, StepNode] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.number not in found:
            found[node.number] = node
            waiting += node.args
    return [found[number] for number in sorted(found)]
