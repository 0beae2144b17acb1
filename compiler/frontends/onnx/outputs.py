"""What an output of one time step is: a reduction over time, or what layers and factors make of one.

A layer without a threshold commutes with the mean over time and with the choice of the last step, so a classifier of
mean rates is the mean of what the classifier makes of every step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .forms import pointwise_order
from .roll import REGROUPING, Layer, Roller, counts_spikes
from .steps import StepNode, Steps
from .values import RefusalError

MAX_READINGS = 24
FIRST_STEP_CANDIDATES = 4
SAME_FORM_DEPTH = 4
_COMMUTING = ("linear", "conv", "avgpool", "sumpool", "batchnorm", "flatten", "reshape", "pad")


@dataclass(frozen=True)
class Reduction:
    """``kind`` (``mean``, ``last``, ``max``) over ``nodes``, one per time step, times ``factor``; a sum is T means."""

    nodes: tuple[StepNode, ...]
    kind: str
    factor: float = 1.0


def roll_reduction(steps: Steps, roller: Roller, value: StepNode) -> tuple[Layer, int]:
    """Return the readout that gives ``value`` at the end, and its number of time steps; raises RefusalError.

    Readings are tried in turn; when none is a network, the first one's refusals are noted.
    """
    hint = "stack all time steps, or average them; for a network without time, give neurons='lif' and time_steps"
    tried = 0
    for reduction in _reductions(steps, value):
        tried += 1
        layer = _attempt(steps, roller, value, reduction)
        if layer is not None:
            return layer, len(reduction.nodes)
        if tried == MAX_READINGS:
            break
    if not tried:
        raise RefusalError("an output of a single time step", hint)
    _note_first(steps, roller, value)
    raise NotedError("an output of a single time step", hint)


class NotedError(RefusalError):
    """The reasons were told already."""


def _note_first(steps: Steps, roller: Roller, value: StepNode) -> None:
    first = next(_reductions(steps, value))
    roller.roll(first.nodes)


def _attempt(steps: Steps, roller: Roller, value: StepNode, reduction: Reduction) -> Layer | None:
    layer = roller.attempt(reduction.nodes)
    if layer is None:
        return None
    kind, factor = reduction.kind, reduction.factor
    if counts_spikes(layer):
        kind = "sum" if kind == "mean" and _same(factor, len(reduction.nodes)) else kind
    if kind != "sum" and not _same(factor, 1.0):
        layer = roller.attempt(_scaled(steps, reduction.nodes, factor))
        if layer is None:
            raise RefusalError(
                f"the {'sum' if _same(factor, len(reduction.nodes)) else f'{kind} times {factor:g}'} over time of "
                "potentials of neurons that fire is no output",
                "average over time",
            )
    shown = StepNode(-1, f"time_{kind}", reduction.nodes, (), value.shape, value.source)
    readout = Layer(shown.op, shown, (layer,))
    roller.layers.append(readout)
    return readout


def _same(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)


def _scaled(steps: Steps, nodes: Sequence[StepNode], factor: float) -> tuple[StepNode, ...]:
    return tuple(_with_constant(steps, "mul", node, steps.scalar(factor, node.source)) for node in nodes)


def _with_constant(steps: Steps, op: str, node: StepNode, constant: StepNode, *, first: bool = False) -> StepNode:
    operands = (constant, node) if first else (node, constant)
    return steps.node(op, operands, node.shape, node.source, scope=node.scope)


def _reductions(steps: Steps, value: StepNode) -> Iterator[Reduction]:
    """Yield the ways to read a value as a reduction over time, the most likely first."""
    if value.op.startswith("time_"):
        kind = value.op.removeprefix("time_")
        yield Reduction(value.args, "mean", float(len(value.args))) if kind == "sum" else Reduction(value.args, kind)
    elif value.op in _COMMUTING:
        for inner in _reductions(steps, value.args[0]):
            yield from _behind(steps, value, inner)
    elif value.pointwise:
        yield from _pointwise_reductions(steps, value)


def _behind(steps: Steps, layer: StepNode, inner: Reduction) -> Iterator[Reduction]:
    """Yield what a layer makes of a reduction: the reduction of what it makes of every step."""
    if inner.kind == "max" and layer.op not in REGROUPING:
        return
    has_bias = layer.op == "batchnorm" or (layer.synapse is not None and layer.synapse.bias is not None)
    if has_bias and not _same(inner.factor, 1.0):
        raise RefusalError("a bias behind a sum over time is not supported", "take the mean over time in front of it")
    nodes = tuple(
        steps.node(
            layer.op,
            [node],
            layer.shape,
            layer.source,
            key=layer.key,
            scope=layer.scope,
            synapse=layer.synapse,
        )
        for node in inner.nodes
    )
    yield replace(inner, nodes=nodes)


def _pointwise_reductions(steps: Steps, value: StepNode) -> Iterator[Reduction]:
    other, constant = _constant_operand(value)
    if other is not None and constant is not None:
        yield from _scaled_reductions(steps, value, constant, _reductions(steps, other))
    yield from _sum(value)
    yield from _last(value)


def _scaled_reductions(
    steps: Steps, value: StepNode, constant: StepNode, inner: Iterator[Reduction]
) -> Iterator[Reduction]:
    """Yield what a factor or a summand makes of reductions."""
    scalar = constant.scalar
    for found in inner:
        if value.op in ("mul", "div") and scalar:
            yield replace(found, factor=found.factor * scalar if value.op == "mul" else found.factor / scalar)
        elif found.kind != "max":
            nodes = found.nodes if _same(found.factor, 1.0) else _scaled(steps, found.nodes, found.factor)
            first = value.args[0] is constant
            nodes = tuple(_with_constant(steps, value.op, node, constant, first=first) for node in nodes)
            yield Reduction(nodes, found.kind)


def _constant_operand(value: StepNode) -> tuple[StepNode | None, StepNode | None]:
    """Return the other operand and the constant of an affine function of one value."""
    if value.op not in ("add", "sub", "mul", "div") or len(value.args) != 2:
        return None, None
    a, b = value.args
    if b.op == "const":
        return a, b
    return (b, a) if a.op == "const" and value.op != "div" else (None, None)


def _sum(value: StepNode) -> Iterator[Reduction]:
    terms = _terms(value)
    if len(terms) >= 2 and len({(t.op, t.shape) for t in terms}) == 1:
        yield Reduction(terms, "mean", float(len(terms)))


def _terms(node: StepNode) -> tuple[StepNode, ...]:
    """Return the terms of a sum, oldest first; a 0 that it starts from is none."""
    found, waiting = [], [node]
    while waiting:
        current = waiting.pop()
        if current.op == "add":
            waiting += current.args
        elif current.scalar != 0.0:
            found.append(current)
    return tuple(sorted(found, key=lambda term: term.number))


def _last(value: StepNode) -> Iterator[Reduction]:
    """Yield the steps that a value may be the last of: each has one current more, and the same form."""
    leaves: dict[int, frozenset[int]] = {}
    steps: dict[int, list[StepNode]] = {}
    for node in pointwise_order([value]):
        inner = [leaves[a.number] for a in node.args] if node.pointwise else [frozenset({node.number})]
        leaves[node.number] = frozenset().union(*inner)
        if count := len(leaves[node.number]):
            steps.setdefault(count, []).append(node)
    if len(steps) < 2 or sorted(steps) != list(range(1, len(steps) + 1)):
        return
    oldest = min(leaves[steps[2][0].number])
    steps[1] = [node for node in steps[1] if leaves[node.number] == {oldest}]
    columns = [_alike(value, steps[count]) for count in sorted(steps)]
    columns[-1] = [value]
    for first, second in itertools.product(columns[0], columns[1] if len(columns) > 2 else [columns[-1][0]]):
        middle = [column[0] for column in columns[2:-1]]
        nodes = (first, value) if len(columns) == 2 else (first, second, *middle, value)
        yield Reduction(nodes, "last")


def _alike(value: StepNode, nodes: Sequence[StepNode]) -> list[StepNode]:
    """Return the nodes of a step, those whose form is most like that of ``value`` first, newer ones before older."""

    def likeness(node: StepNode) -> tuple[int, int]:
        same = [depth for depth in range(SAME_FORM_DEPTH) if _form(node, depth) == _form(value, depth)]
        return (-len(same), -node.number)

    return sorted(nodes, key=likeness)[:FIRST_STEP_CANDIDATES]


def _form(node: StepNode, depth: int) -> tuple[object, ...]:
    if depth == 0 or not node.pointwise:
        return (node.op if node.pointwise else "leaf",)
    return (node.op, *(_form(arg, depth - 1) for arg in node.args))
