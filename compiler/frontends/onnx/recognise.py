"""Finds the neuron that a pointwise computation over time is, and proves it pattern by pattern."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from h2learn.compiler.frontends.neuron_description import NeuronDescription

from .forms import ABOVE, BELOW, EQUAL, Closure, Feedback, Form, NotAffineError
from .steps import StepNode
from .values import RefusalError

Channels = npt.NDArray[np.float64]

EXHAUSTIVE_STEPS = 6
RANDOM_PATTERNS = 24
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Recognised:
    """A neuron layer: what it computes, and which of its values the outputs are (``spikes`` or ``potentials``)."""

    neuron: NeuronDescription
    output: str
    surrogate: tuple[str, float] | None = None
    assumed: bool = False
    """Whether the user chose the neuron, not the file."""


def recognise(outputs: Sequence[StepNode], leaves: Sequence[StepNode], feedback: Feedback | None = None) -> Recognised:
    """Return the neuron whose spikes or potentials ``outputs`` are, one per step, for the currents ``leaves``.

    ``leaves`` are one per step, or one that drives all steps; ``feedback`` is what a layer makes of the neuron's own
    spikes. Raises RefusalError with the reason when it is no neuron
    of :class:`NeuronDescription`.
    """
    try:
        closure = Closure(tuple(outputs), tuple(leaves), feedback)
        return _Recogniser(closure).recognise()
    except NotAffineError as error:
        raise RefusalError(str(error)) from None


@dataclass(frozen=True)
class _Constants:
    """The numbers of a neuron, per channel; potentials count from the one it decays to."""

    alpha: Channels
    gain: Channels
    theta: Channels
    v_reset: Channels
    reset: str
    fires: bool


class _Recogniser:
    def __init__(self, closure: Closure) -> None:
        self.closure = closure
        self.count = len(closure.outputs)
        self.static = closure.static

    def recognise(self) -> Recognised:
        """Return the neuron; raises RefusalError."""
        steps = sorted({decision.step for decision in self.closure.decisions.values()})
        if steps != list(range(len(steps))) or len(steps) > self.count:
            raise RefusalError("its thresholds are not one per time step")
        fires = bool(steps)
        constants = self._constants(fires)
        compare = self._compare() if fires else "ge"
        output = self._check(constants, compare)
        neuron = NeuronDescription(
            alpha=_values(constants.alpha),
            gain=_values(constants.gain),
            theta=_values(constants.theta) if fires else (1.0,),
            v_reset=_values(constants.v_reset),
            reset=constants.reset,
            compare=compare,
            fires=fires,
        )
        return Recognised(neuron, output, self._surrogate())

    def _run(self, spikes: dict[int, int]) -> tuple[list[Form], dict[int, Form]]:
        return self.closure.run([spikes.get(t, BELOW) for t in range(self.count)])

    def _responses(self, spikes: dict[int, int], theta: Channels | None = None) -> list[Form]:
        """Return the potential minus the threshold of every step, as compared or (after the last spike) as put out."""
        outputs, decisions = self._run(spikes)
        threshold = -decisions[0][-1] if theta is None and decisions else theta
        result = []
        for step, output in enumerate(outputs):
            form = decisions.get(step)
            if form is None:
                form = output.copy()
                form[-1] = form[-1] - (0.0 if threshold is None else threshold)
            result.append(form)
        return result

    def _row(self, step: int) -> int:
        return 0 if self.static else step

    def _constants(self, fires: bool) -> _Constants:
        """Read the numbers off the responses without a spike and after one."""
        silent = self._responses({})
        first = silent[0]
        gain = first[0]
        if not np.all(gain):
            raise RefusalError(
                "the current of a step acts in a later step only", "synaptic delays are not supported yet"
            )
        if np.any(first[1:-1]):
            raise RefusalError("its first step depends on a later one")
        alpha = np.zeros_like(gain)
        if self.count > 1:
            alpha = silent[1][0] / gain - (1.0 if self.static else 0.0)
        theta = -first[-1] if fires else np.zeros_like(gain)
        constants = _Constants(alpha, gain, theta, np.zeros_like(gain), "none", fires)
        self._check_response(constants, silent)
        return self._with_reset(constants, silent[1]) if fires and self.count > 1 else constants

    def _check_response(self, constants: _Constants, silent: Sequence[Form]) -> None:
        for step, (form, expected) in enumerate(zip(silent, self._predict(constants, ()), strict=True)):
            if not _close(form[:-1], expected[:-1]):
                raise RefusalError(
                    f"the response to a current does not decay by one factor (step {step}): "
                    "a second state, a delay, or steps that differ"
                )
            if not _close(form[-1], expected[-1] - constants.theta, np.abs(constants.gain)):
                raise RefusalError("the potential starts away from the one it decays to, or has a constant drive")

    def _with_reset(self, c: _Constants, before: Form) -> _Constants:
        """Find the reset: what the spike of step 0 changes in step 1."""
        after = self._responses({0: ABOVE}, c.theta)[1]
        scale = np.maximum(np.abs(c.gain), np.abs(c.theta))
        kept = after[0] - (c.gain if self.static else 0.0)
        if not self.static and not _close(after[1], c.gain):
            raise RefusalError("a spike changes how the next current acts", "the reset may only change the potential")
        drop = before[-1] - after[-1]
        if _close(kept, c.alpha * c.gain, scale):
            if _close(drop, 0 * drop, scale):
                return c
            if _close(drop, c.alpha * c.theta, scale):
                return _replace(c, "soft")
            if _close(drop, c.theta, scale):
                return _replace(c, "soft_delayed")
            raise RefusalError(
                f"the reset takes off {_short(drop)}, which is neither the threshold {_short(c.theta)} "
                f"nor its decayed value {_short(c.alpha * c.theta)}"
            )
        if not _close(kept, 0 * kept, scale):
            raise RefusalError("the reset multiplies the potential by a number other than 0")
        alpha = np.where(c.alpha == 0, 1.0, c.alpha)
        return _replace(c, "hard", (after[-1] + c.theta) / alpha * (c.alpha != 0))

    def _compare(self) -> str:
        """Return what happens exactly at the threshold."""
        outputs, decisions = self._run({0: EQUAL})
        for name, side in (("ge", ABOVE), ("gt", BELOW)):
            same, known = self._run({0: side})
            if _all_close(outputs, same) and all(_close(decisions[t], known[t]) for t in decisions if t in known):
                return name
        raise RefusalError("spike and reset disagree exactly at the threshold")

    def _check(self, constants: _Constants, compare: str) -> str:
        """Compare all values with those of the neuron, for many patterns, and return which ones the outputs are."""
        possible = ["spikes", "potentials"] if constants.fires else ["potentials"]
        for pattern in self._patterns(constants.fires):
            outputs, decisions = self.closure.run(pattern)
            potentials = self._predict(constants, pattern)
            for step, form in decisions.items():
                expected = potentials[step].copy()
                expected[-1] = expected[-1] - constants.theta
                if not _proportional(form, expected):
                    raise RefusalError(
                        f"step {step} differs from the neuron found so far {describe(constants, compare)}",
                        "all time steps must be the same cell",
                    )
            actual = {"spikes": [_spike(p, side) for p, side in zip(potentials, pattern, strict=True)]}
            actual["potentials"] = potentials
            possible = [kind for kind in possible if _all_close(outputs, actual[kind])]
            if not possible:
                raise RefusalError(self._strange_output(outputs, pattern, constants))
        return possible[0]

    def _strange_output(self, outputs: Sequence[Form], pattern: Sequence[int], constants: _Constants) -> str:
        if constants.fires and all(not np.any(form[:-1]) for form in outputs):
            return "its spikes are not 0 and 1"
        if not np.any(constants.alpha) and constants.fires:
            return "an activation without state that is no spike (ReLU)"
        return "its output is neither its spikes nor its potential before the reset"

    def _predict(self, c: _Constants, pattern: Sequence[int]) -> list[Form]:
        """Return the potentials of the neuron for a pattern of spikes."""
        rows = self.closure.currents + 1
        channels = max(a.size for a in (c.alpha, c.gain, c.theta, c.v_reset))
        after, taken, result = np.zeros((rows, channels)), np.zeros(channels), []
        for step in range(self.count):
            u = c.alpha * after
            u[self._row(step)] += c.gain
            u[-1] -= taken
            result.append(u)
            spike = bool(pattern) and pattern[step] == ABOVE
            after, taken = u.copy(), np.zeros(channels)
            if spike and c.reset == "hard":
                after[:-1], after[-1] = 0.0, c.v_reset
            elif spike and c.reset == "soft":
                after[-1] -= c.theta
            elif spike and c.reset == "soft_delayed":
                taken = np.broadcast_to(c.theta, (channels,))
        return result

    def _patterns(self, fires: bool) -> Iterator[tuple[int, ...]]:
        if not fires:
            yield (BELOW,) * self.count
            return
        if self.count <= EXHAUSTIVE_STEPS:
            yield from itertools.product((BELOW, ABOVE), repeat=self.count)
            return
        yield (BELOW,) * self.count
        yield (ABOVE,) * self.count
        for single in range(min(self.count, RANDOM_PATTERNS)):
            yield tuple(ABOVE if step == single else BELOW for step in range(self.count))
        generator = np.random.default_rng(0)
        for _ in range(RANDOM_PATTERNS):
            yield tuple(int(b) for b in generator.integers(0, 2, self.count))

    def _surrogate(self) -> tuple[str, float] | None:
        keys = {n.key for n in self.closure.order if n.number in self.closure.decisions and n.key[:1] == ("surrogate",)}
        if not keys:
            return None
        if len(keys) > 1:
            raise RefusalError("its time steps have different surrogates")
        _, kind, width = keys.pop()
        assert isinstance(kind, str) and isinstance(width, float)
        return kind, width


def describe(c: _Constants, compare: str) -> str:
    """Return the numbers of a neuron for a message."""
    if not c.fires:
        return f"(alpha {_short(c.alpha)}, gain {_short(c.gain)})"
    return f"(alpha {_short(c.alpha)}, theta {_short(c.theta)}, reset {c.reset}, {compare})"


def _replace(c: _Constants, reset: str, v_reset: Channels | None = None) -> _Constants:
    return _Constants(c.alpha, c.gain, c.theta, c.v_reset if v_reset is None else v_reset, reset, c.fires)


def _spike(like: Form, side: int) -> Form:
    form = np.zeros_like(like)
    form[-1] = float(side == ABOVE)
    return form


def _close(a: Form | Channels, b: Form | Channels, scale: Channels | float = 0.0) -> bool:
    """Return whether ``a`` is ``b`` up to rounding; ``scale`` is the size of what they were computed from."""
    size = np.maximum(1e-3 * float(np.abs(b).max(initial=0.0)), 1e-2 * np.asarray(scale))
    return bool(np.all(np.abs(a - b) <= TOLERANCE * np.maximum(np.abs(b), np.maximum(size, 1e-30))))


def _all_close(a: Sequence[Form], b: Sequence[Form]) -> bool:
    return all(_close(x, y) for x, y in zip(a, b, strict=True))


def _proportional(form: Form, expected: Form) -> bool:
    newest = np.abs(expected[:-1]).max(axis=0)
    actual = np.abs(form[:-1]).max(axis=0)
    if not (np.all(newest > 0) and np.all(actual > 0)):
        return _close(form, expected)
    return _close(form / actual, expected / newest)


def _values(numbers: Channels) -> tuple[float, ...]:
    flat = tuple(float(v) + 0.0 for v in numbers.ravel())
    return flat[:1] if len(set(flat)) == 1 else flat


def _short(numbers: Channels) -> str:
    flat = _values(np.asarray(numbers))
    return f"{flat[0]:g}" if len(flat) == 1 else f"{min(flat):g} to {max(flat):g}"
