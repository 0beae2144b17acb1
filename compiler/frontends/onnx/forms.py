"""What a pointwise computation is for a given pattern of spikes: an affine function of the input currents.

Between two layers every element is computed from the same element of the currents ``I[0] .. I[T-1]`` by arithmetic and
comparisons. Once the outcome of every comparison is fixed, each value is ``sum_k c_k * I[k] + c``, whatever the
spelling. A :class:`Form` holds these coefficients in float64, per channel where constants differ by channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .steps import StepNode

Form = npt.NDArray[np.float64]
"""``[leaves + 1, channels or 1]``: the coefficient of each current, and the constant last."""

BELOW, ABOVE, EQUAL = 0, 1, 2
"""Outcomes of the comparison of a step: under the threshold, over it, exactly at it."""


class NotAffineError(Exception):
    """A computation is not an affine function of the currents for a fixed pattern of spikes."""


class StairsError(NotAffineError):
    """A step compares with several thresholds."""


@dataclass(frozen=True)
class Feedback:
    """What a layer makes of the spikes of the step before: a node per step, and the layer's bias.

    In the first step there is no spike yet; exporters leave the node out there (None), and keep the bias.
    """

    nodes: tuple[StepNode | None, ...]
    bias: npt.NDArray[np.float64]

    @property
    def starts_late(self) -> bool:
        """Whether the first step has no node, so that only a constant can stand for the bias there."""
        return self.nodes[0] is None and bool(self.bias.any())


@dataclass
class Closure:
    """The pointwise computation that gives ``outputs``, one per step, from ``leaves``.

    With ``feedback`` the current of a step is the sum of its leaf (or of the one leaf of all steps) and of what is fed
    back; what is fed back must be the spikes that the pattern says.
    """

    outputs: tuple[StepNode, ...]
    leaves: tuple[StepNode, ...]
    feedback: Feedback | None = None
    falling: bool = False
    """Whether a larger current takes a potential away from its threshold: ``ABOVE`` is where the current is small."""
    order: list[StepNode] = field(init=False)
    decisions: dict[int, int] = field(default_factory=dict)
    """Comparison -> the time step whose threshold it is."""
    _static_forms: list[Form] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.order = pointwise_order((*self.outputs, *(node for _, node in self._fed())), self.leaves)
        self._find_decisions()

    @property
    def static(self) -> bool:
        """Whether one current drives all steps."""
        return self.feedback is None and len(self.leaves) == 1 and len(self.outputs) > 1

    @property
    def currents(self) -> int:
        """The number of currents that forms are written in."""
        return len(self.leaves) if self.feedback is None else len(self.outputs)

    def values(self, pattern: Sequence[float]) -> Mapping[int, Form]:
        """Return all values, by the number of their node, for the outcomes ``pattern`` of the steps."""

        def decide(node: StepNode, raw: Form) -> float:
            step, sign = self._decide(node, self._by_step(raw))
            return _outcome(node, pattern[step], sign)

        return self._evaluate(decide)

    def run(self, pattern: Sequence[float]) -> tuple[list[Form], dict[int, Form]]:
        """Return the outputs, and what each step compares with 0, for the outcomes ``pattern`` of the steps.

        Raises NotAffineError when a value is not affine in the currents, or a step has two different thresholds.
        """
        compared: dict[int, Form] = {}

        def decide(node: StepNode, raw: Form) -> float:
            form = self._by_step(raw)
            step, sign = self._decide(node, form)
            oriented = sign * form
            known = compared.setdefault(step, oriented)
            if known is not oriented and not _proportional(known, oriented):
                raise StairsError(f"{node.source} is a second threshold in the same time step")
            return _outcome(node, pattern[step], sign)

        values = self._evaluate(decide)
        for step, node in self._fed():
            spike, form = float(pattern[step] == ABOVE), values[node.number]
            if pattern[step] != EQUAL and (np.any(form[:-1]) or np.any(form[-1] != spike)):
                raise NotAffineError(f"{node.source} feeds back something else than its spikes")
        return [self._by_step(values[node.number]) for node in self.outputs], compared

    def _fed(self) -> list[tuple[int, StepNode]]:
        """Return what is fed back: each value with the step that it comes from."""
        nodes = () if self.feedback is None else self.feedback.nodes
        return [(step - 1, node.args[0]) for step, node in enumerate(nodes) if step and node is not None]

    def _by_step(self, form: Form) -> Form:
        """Return a form in the currents of the steps, into which leaves and what is fed back enter alike."""
        if self.feedback is None:
            return form
        count = len(self.leaves)
        own = {step: count + row for row, step in enumerate(self._feedback_steps())}
        if count == 1 < len(self.outputs):
            fed = {step: form[row] for step, row in own.items() if step}
            result = [form[0] - np.sum(list(fed.values()), axis=0), *(fed[step] for step in sorted(fed))]
        else:
            result = list(form[:count])
        if not all(np.allclose(form[row], result[step], rtol=1e-6, atol=1e-9) for step, row in own.items()):
            raise NotAffineError("what is fed back acts differently from the current")
        drive = form[-1] if 0 in own else form[-1] - result[0] * self.feedback.bias
        return np.stack([np.broadcast_to(row, drive.shape) for row in (*result, drive)])

    def _feedback_steps(self) -> list[int]:
        nodes = () if self.feedback is None else self.feedback.nodes
        return [step for step, node in enumerate(nodes) if node is not None]

    def _find_decisions(self) -> None:
        """Give the comparisons of silent neurons their steps."""

        self.values((BELOW,) * len(self.outputs))

    def _decide(self, node: StepNode, form: Form) -> tuple[int, int]:
        """Return the step of a comparison, and the sign with which its newest current enters the left side.

        The step is that of the newest current it depends on (one current for all: their order). Some comparisons are
        seen only where others have a certain outcome.
        """
        if node.op in STAIRS:
            raise StairsError(f"{node.source} is not piecewise linear: several spikes in one time step")
        if node.number in self.decisions:
            step = self.decisions[node.number]
        elif not self.static:
            found = np.flatnonzero(np.any(form[:-1] != 0, axis=1))
            if not found.size:
                raise NotAffineError(f"{node.source} compares what it feeds back")
            step = int(found[-1])
        else:
            known = self._static_forms
            step = next((k for k, other in enumerate(known) if _proportional(other, form)), len(known))
            if step == len(known):
                known.append(form)
        newest = form[0 if self.static else step]
        if not (np.all(newest > 0) or np.all(newest < 0)):
            raise NotAffineError(f"{node.source} compares currents of different signs")
        self.decisions[node.number] = step
        return step, 1 if (newest[0] > 0) != self.falling else -1

    def _evaluate(
        self, decide: _Decide, nodes: Sequence[StepNode] | None = None, known: dict[int, Form] | None = None
    ) -> Mapping[int, Form]:
        """Return the values of ``nodes`` (default: all) on top of those in ``known``, which is filled on the way."""
        fed = () if self.feedback is None else (node for node in self.feedback.nodes if node is not None)
        leaf_rows = {leaf.number: row for row, leaf in enumerate((*self.leaves, *fed))}
        rows = len(leaf_rows) + 1
        rank = len(self.leaves[0].shape)
        values: dict[int, Form] = {} if known is None else known
        for node in self.order if nodes is None else nodes:
            if node.number in leaf_rows:
                form = np.zeros((rows, 1))
                form[leaf_rows[node.number]] = 1.0
            elif node.op == "const":
                form = np.zeros((rows, 1))
                form = _with_constant(form, per_channel(node, rank))
            elif not node.pointwise:
                raise NotAffineError(f"{node.source} enters beside the sum of all currents")
            else:
                with np.errstate(all="ignore"):
                    form = _apply(node, [values[a.number] for a in node.args], decide)
                if not np.isfinite(form).all():
                    raise NotAffineError(f"{node.source} gives a value that is not finite")
            values[node.number] = form
        return values


def pointwise_order(outputs: Sequence[StepNode], leaves: Sequence[StepNode] = ()) -> list[StepNode]:
    """Return the pointwise nodes that give ``outputs`` and the nodes they start from, arguments first.

    What ``leaves``, which may be pointwise themselves, are computed from is left out.
    """
    ends = {leaf.number for leaf in leaves}
    found: dict[int, StepNode] = {}
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node.number not in found:
            found[node.number] = node
            waiting += node.args if node.pointwise and node.number not in ends else ()
    return [found[number] for number in sorted(found)]


def _apply(node: StepNode, args: Sequence[Form], decide: _Decide) -> Form:
    if node.op in _COMPARE:
        return _compare(node, args[0] - args[1], decide)
    if node.op in _KINKED:
        return _kinked(node, args, decide)
    if node.op in STAIRS and np.any(args[0][:-1]):
        return _with_constant(np.zeros((len(args[0]), 1)), np.asarray([decide(node, args[0])]))
    if node.op in _LINEAR:
        return np.asarray(_LINEAR[node.op](*args))
    if node.op == "mul":
        return _product(node, *args)
    if node.op == "div":
        return args[0] / _constant(node, args[1])
    if node.op == "where":
        return args[1] * _constant(node, args[0]) + args[2] * (1 - _constant(node, args[0]))
    constants = [_constant(node, a) for a in args]
    if node.op not in _ON_CONSTANTS:
        raise NotAffineError(f"{node.source} is not piecewise linear")
    return _with_constant(args[0] * 0, np.asarray(_ON_CONSTANTS[node.op](*constants), dtype=np.float64))


def _compare(node: StepNode, form: Form, decide: _Decide) -> Form:
    if np.any(form[:-1] != 0):
        return _with_constant(np.zeros((len(form), 1)), np.asarray([decide(node, form)]))
    return _with_constant(form * 0, _COMPARE.get(node.op, np.greater)(form[-1], 0).astype(np.float64))


def _kinked(node: StepNode, args: Sequence[Form], decide: _Decide) -> Form:
    """Evaluate an operator with a kink by the side of it that the pattern says."""
    first = args[0]
    second = args[1] if len(args) > 1 else (-first if node.op == "abs" else first * 0)
    above = _compare(node, first - second, decide)[-1]
    larger, smaller = (first, second) if node.op != "min" else (second, first)
    return np.asarray(larger * above + smaller * (1 - above))


def _product(node: StepNode, a: Form, b: Form) -> Form:
    if not np.any(a[:-1]):
        return np.asarray(b * a[-1])
    if not np.any(b[:-1]):
        return np.asarray(a * b[-1])
    raise NotAffineError(f"{node.source} multiplies two values that depend on the currents")


def _constant(node: StepNode, form: Form) -> npt.NDArray[np.float64]:
    if np.any(form[:-1]):
        raise NotAffineError(f"{node.source} is not piecewise linear")
    return np.asarray(form[-1])


def _with_constant(form: Form, constant: npt.NDArray[np.float64]) -> Form:
    result = np.zeros((len(form), max(form.shape[1], constant.size)))
    result[-1] = constant
    return result


def per_channel(node: StepNode, rank: int) -> npt.NDArray[np.float64]:
    """Return a constant as one number, or one per channel (the second dimension of a step)."""
    assert node.value is not None
    if node.value.size == 1:
        return node.value.reshape(1)
    full = node.value.reshape((1,) * (rank - node.value.ndim) + node.value.shape)
    if full.ndim != rank or rank < 2:
        raise NotAffineError(f"{node.source} uses a constant of shape {list(node.value.shape)}")
    channels = full[(slice(0, 1), slice(None), *[slice(0, 1)] * (rank - 2))]
    if not np.array_equal(np.broadcast_to(channels, full.shape), full):
        raise NotAffineError(f"{node.source} uses a constant that differs by sample or by place")
    return channels.reshape(-1)


def _outcome(node: StepNode, side: float, sign: int) -> float:
    """Return the truth of ``form > 0`` (``>= 0``, ``== 0``) when ``sign * form`` is on ``side`` of 0."""
    if side == EQUAL:
        return float(node.op in ("ge", "eq"))
    if node.op in ("eq", "ne"):
        return float(node.op == "ne")
    return float((side == ABOVE) == (sign > 0))


def _proportional(a: Form, b: Form) -> bool:
    scale_a, scale_b = (np.abs(f[:-1]).max(axis=0) for f in (a, b))
    if not (np.all(scale_a > 0) and np.all(scale_b > 0)):
        return bool(np.allclose(a, b, rtol=1e-6, atol=1e-9))
    return bool(np.allclose(a / scale_a, b / scale_b, rtol=1e-6, atol=1e-7))


_Decide = Callable[[StepNode, Form], float]
"""Gives the truth of a comparison of a form that is not constant with 0, or what a staircase makes of it."""

STAIRS: dict[str, Callable[..., npt.NDArray[np.float64]]] = {
    **{"floor": np.floor, "ceil": np.ceil},
    **{"round": np.round, "trunc": np.trunc},
}
"""Operators with a step at every whole number, or between them."""

_COMPARE = {"gt": np.greater, "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal}
_KINKED = {"relu", "max", "min", "abs"}
_LINEAR: dict[str, Callable[..., Form]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "neg": lambda a: -a,
}
_ON_CONSTANTS: dict[str, Callable[..., npt.NDArray[np.float64]]] = {
    "not": lambda a: 1 - a,
    "and": lambda a, b: a * b,
    "or": lambda a, b: np.maximum(a, b),
    **STAIRS,
}
