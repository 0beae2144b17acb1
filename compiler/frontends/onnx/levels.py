"""Neurons with several thresholds in a time step: spikes that are counted, potentials that are held up.

A pattern of spikes does not say which side of every threshold a potential is on, so here a pattern says where the
potential is: for each step its distance from the threshold. All that is compared or rounded in a step must then be a
multiple of that potential and a constant, whose value follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .forms import ABOVE, BELOW, EQUAL, STAIRS, Closure, Form, NotAffineError, per_channel, pointwise_order
from .steps import StepNode

HIGH = 4095.5
"""A distance from the threshold, in units, beyond all that a neuron tells apart."""
_LEVELS = {BELOW: -(2.0**-10), ABOVE: 0.5, EQUAL: 0.0}
_EXACT = 1e-7
"""Values this small, against what they are the difference of, come from rounding."""


@dataclass(frozen=True)
class _Reference:
    """The distance of a step's potential from the threshold, and the value that it has."""

    form: Form
    value: npt.NDArray[np.float64]


@dataclass
class LevelClosure(Closure):
    """A computation whose patterns say where the potential of each step is, in ``unit`` above the threshold.

    An outcome stands for a small distance on its side. ``unit`` is the threshold where spikes are counted, and some
    other number for spikes that are not.
    """

    unit: npt.NDArray[np.float64] = field(default_factory=lambda: np.ones(1))
    roots: list[float] = field(default_factory=list)
    """Distances at which something else is compared in the first step, as the last run met them."""
    counts: bool = False
    _anchors: dict[int, StepNode] = field(default_factory=dict)
    _known: dict[int, Form] = field(default_factory=dict)
    _references: dict[int, _Reference] = field(default_factory=dict)
    _pattern: Sequence[float] = ()

    def _find_decisions(self) -> None:
        """Find, for every step, what is rounded, or else what is compared: its distance is that of the potential."""
        if len(self.leaves) == 1 < len(self.outputs) and self.feedback is None:
            raise NotAffineError("several thresholds in a time step of neurons that one current drives at all steps")
        met: list[tuple[int, StepNode, Form]] = []

        def decide(node: StepNode, raw: Form) -> float:
            form = self._by_step(raw)
            step, sign = self._newest(node, form)
            met.append((step, node, form))
            return 1.0 if node.op in STAIRS else _uncut(node.op, sign)

        self._evaluate(decide)
        stairs = [(step, node, form) for step, node, form in met if node.op in STAIRS]
        for step, node, _ in stairs or [item for item in met if item[1].op in ("gt", "ge")]:
            self._anchors.setdefault(step, node)
        if sorted(self._anchors) != list(range(len(self._anchors))) or not self._anchors:
            raise NotAffineError("its thresholds are not one per time step")
        self.counts = bool(stairs)
        self.decisions = {node.number: step for step, node in self._anchors.items()}
        if self.counts:
            self.unit = _divisor(self._anchors[0], len(self.leaves[0].shape))
        else:
            self.unit = np.abs(next(form for step, node, form in met if node is self._anchors[0])[0])

    def value(self, side: float) -> npt.NDArray[np.float64]:
        """Return the distance of a potential from the threshold that an entry of a pattern stands for."""
        return np.asarray((_LEVELS[side] if isinstance(side, int) else float(side)) * self.unit)

    def fired(self, side: float) -> float:
        """Return how many spikes a potential has, whatever limit there is."""
        level = _LEVELS[side] if isinstance(side, int) else float(side)
        if not self.counts:
            return float(level >= 0)
        return max(0.0, float(np.floor(level + 1 + _EXACT)))

    def values(self, pattern: Sequence[float]) -> Mapping[int, Form]:
        """Return all values, by the number of their node, for a pattern."""
        self._pattern, self._known, self._references, self.roots = pattern, {}, {}, []
        return self._evaluate(self._outcome, known=self._known)

    def run(self, pattern: Sequence[float]) -> tuple[list[Form], dict[int, Form]]:
        """Return the outputs, and the distances from the threshold, for a pattern; raises NotAffineError."""
        values = self.values(pattern)
        for step, node in self._fed():
            same = node is self.outputs[step] or np.array_equal(values[node.number], values[self.outputs[step].number])
            if not same:
                raise NotAffineError(f"{node.source} feeds back something else than its spikes")
        compared = {step: reference.form for step, reference in self._references.items()}
        return [self._by_step(values[node.number]) for node in self.outputs], compared

    def _newest(self, node: StepNode, form: Form) -> tuple[int, int]:
        """Return the step of the newest current in a form, and the sign with which it enters."""
        found = np.flatnonzero(np.any(form[:-1] != 0, axis=1))
        if not found.size:
            raise NotAffineError(f"{node.source} compares what it feeds back")
        newest = form[int(found[-1])]
        if not (np.all(newest > 0) or np.all(newest < 0)):
            raise NotAffineError(f"{node.source} compares currents of different signs")
        return int(found[-1]), 1 if (newest[0] > 0) != self.falling else -1

    def _outcome(self, node: StepNode, raw: Form) -> float:
        form = self._by_step(raw)
        step, _ = self._newest(node, form)
        reference = self._references.get(step) or self._refer(step)
        factor = form[step] / reference.form[step]
        if not np.allclose(form[:-1], factor * reference.form[:-1], rtol=1e-6, atol=1e-9):
            raise NotAffineError(f"{node.source} compares two potentials in the same time step")
        terms = factor * (reference.value - reference.form[-1]), form[-1]
        value = terms[0] + terms[1]
        size = np.maximum(np.abs(factor * reference.value), np.abs(factor * reference.form[-1])) + np.abs(terms[1])
        if step == 0 and node is not self._anchors[0]:
            zero = (reference.form[-1] - form[-1] / factor) / self.unit
            self.roots += [float(zero[0])] if np.allclose(zero, zero[0]) else []
        value = np.where(np.abs(value) <= _EXACT * size, 0.0, value)
        if node.op in STAIRS:
            whole = np.round(value)
            results = STAIRS[node.op](np.where(np.abs(value - whole) <= _EXACT * np.maximum(size, 1), whole, value))
        else:
            outside = np.where(value > 0, _truth(node.op, 1), _truth(node.op, -1))
            results = np.where(value == 0, _truth(node.op, 0), outside)
        if not np.all(results == results.ravel()[0]):
            raise NotAffineError(f"{node.source} compares with a threshold that differs by channel in its own way")
        return float(results.ravel()[0])

    def _refer(self, step: int) -> _Reference:
        """Find the distance from the threshold in a step, as if nothing were cut off on the way."""
        anchor = self._anchors.get(step)
        if anchor is None:
            raise NotAffineError("its thresholds are not one per time step")
        probed = dict(self._known)
        missing = [node for node in pointwise_order(anchor.args, self.leaves) if node.number not in probed]

        def decide(node: StepNode, raw: Form) -> float:
            found, sign = self._newest(node, self._by_step(raw))
            return _uncut(node.op, sign) if found == step else self._outcome(node, raw)

        self._evaluate(decide, missing, probed)
        if self.counts:
            form = (self._by_step(probed[anchor.args[0].number])) * self.unit
            form = np.concatenate([form[:-1], form[-1:] - self.unit])
        else:
            first, second = (self._by_step(probed[a.number]) for a in anchor.args)
            form = first - second
        _, sign = self._newest(anchor, form)
        self._references[step] = _Reference(sign * form, self.value(self._pattern[step]))
        return self._references[step]


def _uncut(op: str, sign: int) -> float:
    """Return the outcome with which a potential passes a bound; ``sign``: how it enters what is compared."""
    return float(sign < 0) if op == "min" else _truth(op, sign)


def _truth(op: str, side: int) -> float:
    """Return the truth of a comparison of a value above (1), at (0) or below (-1) 0 with 0."""
    return float({"ge": side >= 0, "eq": side == 0, "ne": side != 0}.get(op, side > 0))


def _divisor(stairs: StepNode, rank: int) -> npt.NDArray[np.float64]:
    """Return the constant that a potential was divided by before it was rounded, 1 where there is none in sight."""
    waiting = list(stairs.args)
    while waiting:
        node = waiting.pop()
        if node.op == "div" and node.args[1].value is not None:
            return np.abs(per_channel(node.args[1], rank))
        if node.op in ("abs", "relu", "max", "min", "mul", "where"):
            waiting += [a for a in node.args if a.op != "const"]
    return np.ones(1)
