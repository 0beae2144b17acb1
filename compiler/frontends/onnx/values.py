"""What a tensor of the file is while the graph is executed: a constant, one time step, or time steps in some layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .graph import Constant
from .steps import Shape, StepNode, Steps

TIME_FOLDED = -1
"""``[T*N, ...]``, the samples of a step next to each other."""
BATCH_FOLDED = -2
"""``[N*T, ...]``, the steps of a sample next to each other."""


def time_place(axis: int) -> tuple[int, bool]:
    """Return the axis of time where batch and time are two dimensions, and whether they are folded into one."""
    return (0 if axis == TIME_FOLDED else 1, True) if axis < 0 else (axis, False)


class RefusalError(Exception):
    """A node cannot be imported: one reason, and what to do about it."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass(frozen=True, eq=False)
class Series:
    """Time steps stacked on ``axis``, or folded into the first dimension."""

    nodes: tuple[StepNode, ...]
    axis: int

    @property
    def shape(self) -> Shape:
        """The shape of the tensor in the file."""
        step = self.nodes[0].shape
        if self.axis < 0:
            return (len(self.nodes) * step[0], *step[1:])
        return (*step[: self.axis], len(self.nodes), *step[self.axis :])


@dataclass(frozen=True)
class TensorList:
    """A sequence of tensors."""

    items: tuple[Value, ...]


@dataclass(frozen=True)
class Refused:
    """What depends on a node that cannot be imported."""


Value = Constant | StepNode | Series | TensorList | Refused
Tensor = StepNode | Series


def shape_of(value: Value) -> Shape:
    """Return the shape of a tensor; raises RefusalError for a sequence."""
    if isinstance(value, TensorList | Refused):
        raise RefusalError("expected a tensor, found a sequence of tensors")
    return value.shape


def axis_of(axis: int, rank: int) -> int:
    """Return an axis that counts from the front; raises ValueError when there is no such axis."""
    if not -rank <= axis < rank:
        raise ValueError(f"there is no axis {axis} among {rank}")
    return axis % rank


def series(nodes: Sequence[StepNode], axis: int) -> Series:
    """Return steps as one tensor; raises RefusalError unless they are alike."""
    if not nodes:
        raise RefusalError("expected at least one time step, found none")
    shapes = {node.shape for node in nodes if node.op != "const" or node.shape}
    if len(shapes) > 1:
        raise RefusalError(f"expected time steps of one shape, found {' and '.join(map(str, sorted(shapes)))}")
    return Series(tuple(nodes), axis)


def single(value: Value) -> Value:
    """Return the step of a tensor whose folded time is one step."""
    return value.nodes[0] if isinstance(value, Series) and value.axis < 0 and len(value.nodes) == 1 else value


def reshape(steps: Steps, value: Tensor, target: Sequence[int], source: str) -> Value:
    """Return ``value`` with another shape: time and batch may fold and unfold, features may regroup."""
    target = tuple(target)
    if math.prod(target) != math.prod(value.shape):
        raise ValueError(f"cannot reshape {value.shape} to {target}")
    if target == value.shape:
        return value
    if isinstance(value, StepNode):
        return _reshape_step(steps, value, target, source)
    if value.axis > 1:
        raise RefusalError("a reshape of a tensor whose time steps come after its features is not supported")
    count, batch, *features = (len(value.nodes), *value.nodes[0].shape)
    total = math.prod(features)
    time_first = value.axis in (0, TIME_FOLDED)
    lead = (count, batch) if time_first else (batch, count)
    if target[:2] == lead and math.prod(target[2:]) == total:
        return _each(steps, value, 0 if time_first else 1, target[2:], source)
    if target[:1] == (count * batch,) and math.prod(target[1:]) == total:
        return single(_each(steps, value, TIME_FOLDED if time_first else BATCH_FOLDED, target[1:], source))
    if count == 1 and target[:1] == (batch,):
        return reshape_features(steps, value.nodes[0], target[1:], source)
    raise RefusalError(
        f"a reshape from {list(value.shape)} to {list(target)} mixes time, batch and features",
        "keep time and batch as the first dimensions",
    )


def reshape_features(steps: Steps, node: StepNode, features: Sequence[int], source: str) -> StepNode:
    """Return a step with its features regrouped."""
    shape = (node.shape[0], *features)
    if shape == node.shape:
        return node
    if node.op in ("reshape", "flatten"):
        return reshape_features(steps, node.args[0], features, source)
    return steps.node("flatten" if len(features) == 1 else "reshape", [node], shape, source, key=tuple(features))


def transpose(value: Tensor, order: Sequence[int]) -> Value:
    """Return ``value`` with axes exchanged; only time may move."""
    rank = len(value.shape)
    if sorted(order) != list(range(rank)):
        raise ValueError(f"expected an order of {rank} axes, found {list(order)}")
    if list(order) == list(range(rank)):
        return value
    rest = [axis for axis in order if isinstance(value, StepNode) or axis != value.axis]
    if isinstance(value, StepNode) or value.axis < 0 or rest != sorted(rest):
        raise RefusalError(
            "a transposition of batch or features is not supported", "keep channels before rows, columns"
        )
    return Series(value.nodes, list(order).index(value.axis))


def _each(steps: Steps, value: Series, axis: int, features: Sequence[int], source: str) -> Series:
    return Series(tuple(reshape_features(steps, node, features, source) for node in value.nodes), axis)


def _reshape_step(steps: Steps, node: StepNode, target: Shape, source: str) -> Value:
    batch, features = node.shape[0], math.prod(node.shape[1:])
    if target[:1] == (batch,) and math.prod(target[1:]) == features:
        return reshape_features(steps, node, target[1:], source)
    if target[:2] == (1, batch):
        return Series((reshape_features(steps, node, target[2:], source),), 0)
    raise RefusalError(
        f"a reshape from {list(node.shape)} to {list(target)} mixes batch and features",
        "keep the batch as the first dimension",
    )
