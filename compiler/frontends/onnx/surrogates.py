"""Reads the surrogate gradient of a training step off its backward part, by what it computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from h2learn.backends.reference.neuron import SURROGATES, Neuron, surrogate
from h2learn.compiler.autodiff.spec import ATan, FastSigmoid, Rectangular, Sigmoid, Surrogate, Triangular

from .graph import Array
from .step_graph import Numbers, StepGraph
from .values import RefusalError

REACH = 64.0
"""Potentials beyond this are not looked at."""
GRID = 4096
REFINEMENTS = 3

_ARITHMETIC = "Add Sub Mul Div Neg Abs Sign Pow Sqrt Exp Log Erf Reciprocal Sigmoid Tanh Relu Clip Max Min"
_LOGIC = "Greater GreaterOrEqual Less LessOrEqual Equal Not And Or Xor Where Cast CastLike Identity"
_POINTWISE = frozenset(f"{_ARITHMETIC} {_LOGIC}".split())

_HALVED: dict[type[Surrogate], float] = {ATan: 1.0, Sigmoid: 2 * math.acosh(2**0.5), FastSigmoid: 2**0.5 - 1}
"""How many of its half widths a surrogate without a window has fallen to half its height."""

Function = Callable[[Numbers], Numbers]


@dataclass(frozen=True)
class Window:
    """A surrogate as found: its shape around the threshold ``centre``, and the heights it may have.

    ``half_width`` is that of the surrogate's class; without a window, where the shape has fallen in a certain way.
    """

    kind: type[Surrogate]
    centre: float
    half_width: float
    heights: tuple[float, ...]

    def surrogates(self) -> list[Surrogate]:
        """Return the surrogate with each possible height."""
        return [self.kind(self.half_width, height) for height in self.heights]


def find_windows(step: StepGraph, values: Mapping[str, Array]) -> list[Window]:
    """Return the different surrogates of the backward part, with the thresholds they are centred at.

    A surrogate is a function of one forward tensor, not zero around the threshold only, that meets a gradient.
    Raises RefusalError when there is none or one is of no known shape.
    """
    found: list[Window] = []
    refused: list[str] = []
    for root, name, divides in _candidates(step, values):

        def function(x: Numbers, root: str = root, name: str = name, divides: bool = divides) -> Numbers:
            y = step.function(root, name, values, x)
            return np.divide(1.0, y, out=np.zeros_like(y), where=y != 0) if divides else y

        if not _is_bump(function):
            continue
        window = _fit(function)
        if window is None:
            refused.append(name)
            continue
        heights = _heights(step, values, name, window.heights[0])
        window = Window(window.kind, window.centre, window.half_width, heights)
        if window not in found:
            found.append(window)
    if refused:
        raise RefusalError(f"{refused[0]} is a surrogate gradient of no known shape", f"known: {', '.join(SURROGATES)}")
    if not found:
        raise RefusalError("the backward part holds no surrogate gradient")
    return found


def _candidates(step: StepGraph, values: Mapping[str, Array]) -> list[tuple[str, str, bool]]:
    """Return (forward tensor, backward tensor, whether a gradient is divided by it).

    The second is computed from the first alone, one by one.
    """
    roots: dict[str, str | None] = {}
    found: dict[tuple[str, str, bool], None] = {}
    for node in step.graph.nodes:
        inputs = [name for name in node.inputs if name and _varies(step, name)]
        sources = {roots.get(name, name) for name in inputs}
        pointwise = node.op in _POINTWISE and len(node.outputs) == 1
        single = sources.pop() if pointwise and len(sources) == 1 else None
        whole = single is not None and values[node.outputs[0]].shape == values[single].shape
        forward = node.outputs[0] in step.forward
        for name in node.outputs:
            roots[name] = single if whole else name if forward else None
        if not forward and not whole:
            pairs = [(roots.get(name), name) for name in inputs if name not in step.forward]
            divisor = node.inputs[1] if node.op == "Div" else ""
            found |= {(root, name, name == divisor): None for root, name in pairs if root is not None and root != name}
    return list(found)


def _varies(step: StepGraph, name: str) -> bool:
    return (name in step.producers and bool(step.ancestors([name]) & step.inputs.keys())) or name in step.inputs


def _is_bump(function: Function) -> bool:
    ends = function(np.array([-REACH, REACH]))
    inside = function(_grid())
    return bool(np.isfinite(inside).all() and inside.min() >= 0 and inside.max() > 2 * max(abs(ends[0]), abs(ends[1])))


def _grid() -> Numbers:
    """Return points that are dense around 0 and reach far."""
    side = np.concatenate([np.linspace(0, 4, GRID // 4, endpoint=False), np.linspace(4, REACH, GRID // 4)])
    return np.concatenate([-side[:0:-1], side])


def _fit(function: Function) -> Window | None:
    x = _grid()
    y = function(x)
    return _fit_window(function, x, y) or _fit_open(function, float(x[np.argmax(y)]))


def _fit_window(function: Function, x: Numbers, y: Numbers) -> Window | None:
    live = np.flatnonzero(y > 0)
    if live[0] == 0 or live[-1] == len(x) - 1:
        return None
    low = _edge(function, x[live[0] - 1], x[live[0]])
    high = _edge(function, x[live[-1] + 1], x[live[-1]])
    centre, half = (low + high) / 2, (high - low) / 2
    height = float(function(np.array([centre]))[0])
    inside = np.linspace(low, high, 64)[1:-1]
    slopes = {Rectangular: np.ones_like(inside), Triangular: 1 - np.abs(inside - centre) / half}
    for kind, slope in slopes.items():
        if np.allclose(function(inside), height * slope, rtol=1e-4, atol=1e-4 * height):
            return Window(kind, _short(centre), _short(half), (_short(height),))
    return None


def _fit_open(function: Function, peak: float) -> Window | None:
    """Return the surrogate without a window that the function is; its half height tells how wide it is."""
    low, high = (_edge(function, peak + side, peak, function(np.array([peak]))[0] / 2) for side in (-REACH, REACH))
    centre = (low + high) / 2
    height = float(function(np.array([centre]))[0])
    low, high = (_edge(function, centre + side, centre, height / 2) for side in (-REACH, REACH))
    centre, half = (low + high) / 2, (high - low) / 2
    x = centre + half * np.linspace(-8, 8, 65)
    for kind, halved in _HALVED.items():
        width = half / halved
        neuron = replace(kind(width, height).apply(Neuron()), theta=(centre,))
        if np.allclose(function(x), surrogate(x, neuron), rtol=1e-3, atol=1e-4 * height):
            return Window(kind, _short(centre), _short(width), (_short(height),))
    return None


def _edge(function: Function, outside: float, inside: float, level: float = 0.0) -> float:
    """Return where the function rises above ``level``."""
    for _ in range(REFINEMENTS):
        x = np.linspace(outside, inside, GRID)
        first = int(np.argmax(function(x) > level))
        outside, inside = float(x[first - 1]), float(x[first])
    return (outside + inside) / 2


def _heights(step: StepGraph, values: Mapping[str, Array], name: str, height: float) -> tuple[float, ...]:
    """Return the height, and what it may be with the numbers that multiply the gradient beside it."""
    found = [height]
    for node in step.consumers.get(name, ()):
        factor, current = 1.0, node.outputs[0]
        while len(step.consumers.get(current, ())) == 1:
            after = step.scaled(step.consumers[current][0], values)
            if after is None or after[0] != current:
                break
            factor, current = factor * after[1], step.consumers[current][0].outputs[0]
            found.append(_short(height * factor))
        for other in node.inputs:
            before = step.producers.get(other)
            scaled = step.scaled(before, values) if before is not None and other != name else None
            if scaled is not None:
                found.append(_short(height * scaled[1]))
    return tuple(dict.fromkeys(h for h in found if h > 0))


def _short(number: float) -> float:
    """Return a number without the rounding of the search."""
    return float(f"{number:.6g}") + 0.0
