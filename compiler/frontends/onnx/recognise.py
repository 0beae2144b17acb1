"""Finds the neuron that a pointwise computation over time is, and proves it pattern by pattern."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from h2learn.compiler.frontends.neuron_description import NeuronDescription, summary

from .forms import ABOVE, BELOW, EQUAL, Closure, Feedback, Form, NotAffineError, StairsError
from .levels import HIGH, LevelClosure
from .steps import StepNode
from .values import RefusalError

Channels = npt.NDArray[np.float64]

EXHAUSTIVE_STEPS = 6
RANDOM_PATTERNS = 24
TOLERANCE = 1e-5
NO_SYNAPSE = 1e-9
"""Numbers this small come from rounding."""


@dataclass(frozen=True)
class Recognised:
    """A neuron layer: what it computes, and which of its values the outputs are.

    ``spikes``, ``potentials`` before the reset, or ``rest``: after it.
    """

    neuron: NeuronDescription
    output: str
    surrogate: tuple[str, float] | None = None
    assumed: bool = False
    """Whether the user chose the neuron, not the file."""
    half: bool = False
    """Whether the file has half a spike exactly at the threshold, where there is none here."""


def recognise(
    outputs: Sequence[StepNode], leaves: Sequence[StepNode], feedback: Feedback | None = None, *, falling: bool = False
) -> Recognised:
    """Return the neuron whose spikes or potentials ``outputs`` are, one per step, for the currents ``leaves``.

    ``leaves`` are one per step, or one that drives all steps; ``feedback`` is what a layer makes of the neuron's own
    spikes; ``falling``: currents enter with a negative gain. Raises RefusalError with the reason when it is no neuron
    of :class:`NeuronDescription`.
    """
    try:
        try:
            return _Recogniser(Closure(tuple(outputs), tuple(leaves), feedback, falling)).recognise()
        except StairsError:
            return _LevelRecogniser(LevelClosure(tuple(outputs), tuple(leaves), feedback, falling)).recognise()
    except NotAffineError as error:
        raise RefusalError(str(error)) from None


def factor_of(outputs: Sequence[StepNode], leaves: Sequence[StepNode]) -> float | None:
    """Return the one factor by which a computation multiplies its currents, whatever is compared on the way, or None.

    That of a layer which compares nothing is the gain of a neuron like any other, unless it is 1.
    """
    found: set[float] = set()
    compares = False
    try:
        for output, leaf in zip(outputs, leaves, strict=True):
            closure = Closure((output,), (leaf,))
            compares |= bool(closure.decisions)
            for side in (BELOW, ABOVE):
                (form,), _ = closure.run((side,))
                if form.shape[1] > 1 or form[1, 0] != 0:
                    return None
                found.add(float(form[0, 0]))
    except NotAffineError:
        return None
    factor = found.pop() if len(found) == 1 else 0.0
    return factor if factor and (compares or factor == 1.0) else None


@dataclass(frozen=True)
class _Constants:
    """The numbers of a neuron, per channel; ``synapse``: the current decays by ``beta`` on its way."""

    alpha: Channels
    beta: Channels
    synapse: bool
    gain: Channels
    theta: Channels
    v_reset: Channels
    v_leak: Channels
    initial: Channels
    reset: str
    fires: bool
    most: int = 1
    v_min: float | None = None

    def shifted(self, by: Channels) -> _Constants:
        """Return the same neuron with its potentials counted from another one."""
        names = ("theta", "v_reset", "v_leak", "initial") if self.fires else ("v_leak", "initial")
        return replace(self, **{name: getattr(self, name) + by for name in names})


class _Recogniser:
    def __init__(self, closure: Closure) -> None:
        self.closure = closure
        self.count = len(closure.outputs)
        self.static = closure.static
        self.half = False

    def recognise(self) -> Recognised:
        """Return the neuron; raises RefusalError."""
        steps = sorted(set(self.closure.decisions.values()))
        if steps != list(range(len(steps))) or len(steps) > self.count:
            raise RefusalError("its thresholds are not one per time step")
        fires = bool(steps)
        compare = self._compare() if fires else "ge"
        silent = self._responses({})
        refused: RefusalError | None = None
        for alpha, beta, synapse in self._decays(silent):
            try:
                constants = self._completed(self._constants(silent, alpha, beta, synapse, fires))
                output = self._check(constants, compare)
            except RefusalError as error:
                refused = refused or error
                continue
            return Recognised(_description(constants, compare), output, self._surrogate(), half=self.half)
        assert refused is not None
        raise refused

    def _completed(self, constants: _Constants) -> _Constants:
        """Return the constants with what several thresholds in a step say."""
        return constants

    def _run(self, spikes: Mapping[int, float]) -> tuple[list[Form], dict[int, Form]]:
        return self.closure.run([spikes.get(t, BELOW) for t in range(self.count)])

    def _responses(self, spikes: Mapping[int, float]) -> list[Form]:
        """Return the potential minus the threshold of every step, as compared or (after the last spike) as put out."""
        outputs, decisions = self._run(spikes)
        threshold = outputs[0][-1] - decisions[0][-1] if decisions else np.zeros(1)
        result = []
        for step, output in enumerate(outputs):
            form = decisions.get(step)
            if form is None:
                form = output.copy()
                form[-1] = form[-1] - threshold
            result.append(form)
        return result

    def _row(self, step: int) -> int:
        return 0 if self.static else step

    def _decays(self, silent: Sequence[Form]) -> Iterator[tuple[Channels, Channels, bool]]:
        """Yield what the decays of potential and synaptic current may be; they are the same for silent neurons.

        The response to a current is ``gain * (1, a + b, a*a + a*b + b*b, ...)`` for decays a and b.
        """
        gain = silent[0][0]
        if not np.all(gain):
            raise RefusalError(
                "the current of a step acts in a later step only", "synaptic delays are not supported yet"
            )
        if np.any(silent[0][1:-1]):
            raise RefusalError("its first step depends on a later one")
        rows = [form[0] / gain for form in silent[:3]]
        if self.static:
            rows = [rows[0], *(later - earlier for earlier, later in itertools.pairwise(rows))]
        total = rows[1] if self.count > 1 else np.zeros_like(gain)
        product = total * total - rows[2] if self.count > 2 else np.zeros_like(gain)
        if np.all(np.abs(product) <= NO_SYNAPSE * np.maximum(1.0, total * total)):
            yield total, np.zeros_like(total), False
            if self.count == 2 and self.closure.decisions:  # too short to tell, but a hard reset leaves the synapse
                kept = self._responses({0: ABOVE})[1][0] / gain - (1.0 if self.static else 0.0)
                yield total - kept, kept, True
            return
        spread = total * total - 4 * product
        if np.any(spread < -NO_SYNAPSE):
            raise RefusalError("the response to a current oscillates")
        root = np.sqrt(np.maximum(spread, 0.0))
        yield (total + root) / 2, (total - root) / 2, True
        yield (total - root) / 2, (total + root) / 2, True

    def _constants(
        self, silent: Sequence[Form], alpha: Channels, beta: Channels, synapse: bool, fires: bool
    ) -> _Constants:
        """Read the other numbers off the responses without a spike and after one."""
        zero = np.zeros_like(alpha)
        first, second = silent[0][-1], silent[min(1, self.count - 1)][-1]
        fades = alpha - alpha * alpha
        distance = np.where(np.abs(fades) > NO_SYNAPSE, (first - second) / np.where(fades == 0, 1.0, fades), zero)
        distance = np.where(np.abs(distance) > NO_SYNAPSE * np.abs(silent[0][0]), distance, zero)
        level = first - alpha * distance  # v_leak, less the threshold
        theta, v_leak = (-level, zero) if fires else (zero, level)
        constants = _Constants(
            alpha, beta, synapse, silent[0][0], theta, zero, v_leak, v_leak + distance, "none", fires
        )
        self._check_response(constants, silent)
        if fires and self.count > 1:
            constants = self._with_reset(constants, silent[1])
        return constants.shifted(self._shift(constants))

    def _check_response(self, constants: _Constants, silent: Sequence[Form]) -> None:
        theta = constants.theta if constants.fires else 0.0
        for step, (form, expected) in enumerate(zip(silent, self._predict(constants, ()), strict=True)):
            if not _close(form[:-1], expected[:-1]):
                raise RefusalError(
                    f"the response to a current does not decay by one factor, nor by two (step {step}): "
                    "a third state, a delay, or steps that differ"
                )
            if not _close(form[-1], expected[-1] - theta, np.abs(constants.gain)):
                raise RefusalError(f"neither a leak nor an initial potential explains its constant part (step {step})")

    def _with_reset(self, c: _Constants, before: Form) -> _Constants:
        """Find the reset: what the spike of step 0 changes in step 1."""
        if self._is_lost():
            return self._with_lost_step(c)
        after = self._responses({0: ABOVE})[1]
        scale = np.maximum(np.abs(c.gain), np.abs(c.theta))
        kept = after[0] - (c.gain if self.static else 0.0)
        if not self.static and not _close(after[1], c.gain):
            raise RefusalError("a spike changes how the next current acts", "the reset may only change the potential")
        drop = before[-1] - after[-1]
        if _close(kept, (c.alpha + c.beta) * c.gain, scale):
            return self._with_subtraction(c, drop, scale)
        if not _close(kept, c.beta * c.gain, scale):
            raise RefusalError("the reset multiplies the potential by a number other than 0")
        alpha = np.where(c.alpha == 0, 1.0, c.alpha)
        v_reset = c.v_leak + (after[-1] + c.theta - c.v_leak) / alpha * (c.alpha != 0)
        return replace(c, reset="hard", v_reset=v_reset)

    def _is_lost(self) -> bool:
        """Whether the step behind a spike compares nothing: its potential does not depend on the currents."""
        outputs, decisions = self._run({0: ABOVE})
        if 1 in decisions or 0 not in decisions:
            return False
        return 1 in self.closure.decisions.values() or not np.any(outputs[1][:-1])

    def _with_lost_step(self, c: _Constants) -> _Constants:
        """Find the level of a delayed reset; the step behind shows it, the last one of two steps does not."""
        c = replace(c, reset="hard_delayed")
        if self.count < 3 or not np.all(c.alpha):
            return c
        after = self._responses({0: ABOVE})[2]
        return replace(c, v_reset=c.v_leak + (after[-1] + c.theta - c.v_leak) / c.alpha)

    def _with_subtraction(self, c: _Constants, drop: Channels, scale: Channels) -> _Constants:
        """Tell the resets by what they take off; an amount other than the threshold says where potentials start."""
        if _close(drop, 0 * drop, scale):
            return c
        if _close(drop, c.alpha * c.theta, scale):
            return replace(c, reset="soft")
        if _close(drop, c.theta, scale):
            return replace(c, reset="soft_delayed")
        if not np.all(c.alpha):
            raise RefusalError(f"the reset of a neuron without memory takes off {_short(drop)}")
        return replace(c, reset="soft").shifted(drop / c.alpha - c.theta)

    def _shift(self, c: _Constants) -> Channels:
        """Return what the outputs are more than the potentials found, where they are potentials."""
        outputs, _ = self._run({})
        expected = self._predict(c, (BELOW,) * self.count)
        shift = outputs[0][-1] - expected[0][-1]
        reset_by_threshold = c.reset in ("soft", "soft_delayed")
        if not c.fires or reset_by_threshold or not _close(outputs[0][:-1], expected[0][:-1]):
            return np.zeros_like(c.alpha)
        return np.where(np.abs(shift) > TOLERANCE * np.abs(c.gain), shift, 0.0)

    def _compare(self) -> str:
        """Return what happens exactly at the threshold."""
        outputs, decisions = self._run({0: EQUAL})
        sides = []
        for name, side in (("ge", ABOVE), ("gt", BELOW)):
            same, known = self._run({0: side})
            if _all_close(outputs, same) and all(_close(decisions[t], known[t]) for t in decisions if t in known):
                return name
            sides.append(same)
        if _all_close([2 * form for form in outputs], [below + above for above, below in zip(*sides, strict=True)]):
            self.half = True
            return "gt"
        raise RefusalError("spike and reset disagree exactly at the threshold")

    def _check(self, constants: _Constants, compare: str) -> str:
        """Compare all values with those of the neuron, for many patterns, and return which ones the outputs are."""
        possible = ["spikes", "potentials", "rest"] if constants.fires else ["potentials"]
        lost = constants.reset == "hard_delayed"
        if lost and not np.all(constants.v_reset < constants.theta):
            raise RefusalError("a delayed reset to above the threshold")
        for pattern in (
            map(_without_neighbours, self._patterns(constants.fires)) if lost else self._patterns(constants.fires)
        ):
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
            sides = list(zip(potentials, pattern, strict=True))
            actual = {"spikes": [_spike(p, self._fired(side, constants)) for p, side in sides]}
            actual["potentials"] = potentials
            actual["rest"] = [self._at_rest(p, side, constants) for p, side in sides]
            possible = [kind for kind in possible if _all_close(outputs, actual[kind])]
            if not possible:
                raise RefusalError(self._strange_output(outputs, pattern, constants))
        return possible[0]

    def _strange_output(self, outputs: Sequence[Form], pattern: Sequence[float], constants: _Constants) -> str:
        if constants.fires and all(not np.any(form[:-1]) for form in outputs):
            counted = "how often the threshold goes into the potential"
            return f"its spikes are not {'0 and 1' if constants.most == 1 else counted}"
        if not np.any(constants.alpha) and constants.fires:
            return "an activation without state that is no spike (ReLU)"
        return "its output is neither its spikes nor its potential before or after the reset"

    def _predict(self, c: _Constants, pattern: Sequence[float]) -> list[Form]:
        """Return the potentials of the neuron for a pattern of spikes."""
        rows = self.closure.currents + 1
        channels = max(np.size(getattr(c, name)) for name in ("alpha", "gain", "theta", "v_reset", "v_leak", "initial"))
        current, after, taken, result = np.zeros((rows, channels)), np.zeros((rows, channels)), np.zeros(channels), []
        after[-1] = c.initial
        for step in range(self.count):
            current = c.beta * current
            current[self._row(step)] += 1.0
            u = c.alpha * after + c.gain * current
            u[-1] += (1 - c.alpha) * c.v_leak - taken
            if c.reset == "hard_delayed" and step and pattern and pattern[step - 1] == ABOVE:
                u[:-1], u[-1] = 0.0, c.v_reset
            result.append(u)
            side = pattern[step] if pattern else BELOW
            after = self._at_rest(u, side, c)
            taken = np.broadcast_to(c.theta * self._fired(side, c) * (c.reset == "soft_delayed"), (channels,))
        return result

    def _fired(self, side: float, c: _Constants) -> float:
        """Return how many spikes a potential on one side of its threshold makes."""
        return float(side == ABOVE)

    def _at_rest(self, u: Form, side: float, c: _Constants) -> Form:
        """Return the potential after the reset of the same step."""
        after, count = u.copy(), self._fired(side, c)
        if count and c.reset == "hard":
            after[:-1], after[-1] = 0.0, c.v_reset
        elif count and c.reset == "soft":
            after[-1] -= c.theta * count
        return after

    def _patterns(self, fires: bool) -> Iterator[tuple[float, ...]]:
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


class _LevelRecogniser(_Recogniser):
    """Finds neurons with several thresholds in a step: how many spikes there may be, and what potentials stay above."""

    closure: LevelClosure

    def _compare(self) -> str:
        compare = super()._compare()
        if self.closure.counts and compare != "ge":
            raise RefusalError("several spikes per step that come above a multiple of the threshold, not at it")
        return compare

    def _completed(self, constants: _Constants) -> _Constants:
        closure, c = self.closure, constants
        if c.reset == "hard_delayed":
            raise RefusalError("a reset that loses the step behind a spike, beside several thresholds in a step")
        if closure.counts:
            if not _close(c.theta, closure.unit) and c.reset not in ("soft", "soft_delayed"):
                c = c.shifted(closure.unit - c.theta)
            if not _close(c.theta, closure.unit):
                raise RefusalError("a spike takes off something else than the threshold it is counted by")
            c = replace(c, most=self._most(c))
        return replace(c, v_min=self._lowest(c))

    def _most(self, c: _Constants) -> int:
        """Return the most spikes of a step, 0 for any number."""
        outputs, _ = self._run({0: HIGH})
        count = outputs[0][-1] if not np.any(outputs[0][:-1]) else np.asarray([np.inf])
        if np.isinf(count).all() and self.count > 1 and c.reset in ("soft", "soft_delayed"):
            silent, fired = (self._responses({0: side})[1][-1] for side in (BELOW, HIGH))
            count = (silent - fired) / (c.theta * (c.alpha if c.reset == "soft" else 1.0))
        most = float(np.ravel(count)[0])
        if not np.all(np.abs(count - most) < TOLERANCE * HIGH):
            raise RefusalError("its spikes have limits that differ by channel")
        if most > HIGH - 1:
            return 0
        if abs(most - round(most)) > TOLERANCE * max(1.0, most) or round(most) < 1:
            raise RefusalError(f"its spikes are at most {most:g}")
        return round(most)

    def _lowest(self, c: _Constants) -> float | None:
        """Return the potential that a reset does not go below, None where there is no such bound."""
        if self.count < 2:
            return None
        held = self._responses({0: -HIGH})[1]
        kept = held[0]
        if not np.all(np.abs(kept) <= TOLERANCE * np.abs(c.gain)):
            return None
        alpha = np.where(c.alpha == 0, 1.0, c.alpha)
        level = np.ravel(c.v_leak + (held[-1] + c.theta - c.v_leak) / alpha)
        if not np.all(c.alpha) or not np.all(np.abs(level - level[0]) <= TOLERANCE * np.maximum(1.0, np.abs(level))):
            raise RefusalError("its potentials have a lower bound that differs by channel")
        return float(np.float32(level[0]))

    def _check(self, constants: _Constants, compare: str) -> str:
        output = super()._check(constants, compare)
        if output == "rest":
            raise RefusalError("the potential after the reset is no output of neurons with several spikes per step")
        return output

    def _fired(self, side: float, c: _Constants) -> float:
        count = self.closure.fired(side)
        return min(count, c.most) if c.most else count

    def _at_rest(self, u: Form, side: float, c: _Constants) -> Form:
        after = super()._at_rest(u, side, c)
        if c.v_min is None:
            return after
        count, level = self._fired(side, c), self.closure.value(side) + c.theta
        value = {"hard": c.v_reset, "soft": level - c.theta * count}.get(c.reset, level) if count else level
        if np.any(value < c.v_min) and not np.all(value < c.v_min):
            raise RefusalError("a lower bound of potentials that acts in some channels only")
        if np.all(value < c.v_min):
            after[:-1], after[-1] = 0.0, c.v_min
        return after

    def _patterns(self, fires: bool) -> Iterator[tuple[float, ...]]:
        """Yield every distance in one step, and random ones in all."""
        near = self._distances()
        for level in near:
            yield (level,) * self.count
        for step in range(min(self.count, RANDOM_PATTERNS)):
            for level in near:
                yield tuple(level if other == step else BELOW for other in range(self.count))
        generator = np.random.default_rng(0)
        for _ in range(4 * RANDOM_PATTERNS):
            yield tuple(near[k] for k in generator.integers(0, len(near), self.count))

    def _distances(self) -> list[float]:
        """Return distances on both sides of all that is compared in a step, and multiples of the threshold."""
        roots: set[float] = set()
        for side in (BELOW, ABOVE, -HIGH, HIGH):
            self._run({0: side})
            roots |= {round(root, 9) for root in self.closure.roots}
        edges = sorted(roots | {0.0, 1.0, 2.0, 3.0, 4.0})
        inside = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
        found = [edges[0] - 1.5, *inside, edges[-1] + 1.5, -HIGH, 0.0]
        return found + ([1.0, 2.0, HIGH] if self.closure.counts else [])


def describe(c: _Constants, compare: str) -> str:
    """Return the numbers of a neuron for a message."""
    return f"({summary(_description(c, compare))})"


def _description(c: _Constants, compare: str) -> NeuronDescription:
    noise = NO_SYNAPSE * np.maximum(np.abs(c.gain), np.abs(c.theta))
    v_reset, v_leak, initial = (np.where(np.abs(v) > noise, v, 0.0) for v in (c.v_reset, c.v_leak, c.initial))
    return NeuronDescription(
        alpha=_values(c.alpha),
        gain=_values(c.gain),
        theta=_values(c.theta) if c.fires else (1.0,),
        v_reset=_values(v_reset),
        v_leak=_values(v_leak),
        initial=_values(initial),
        synapse="immediate" if c.synapse else "none",
        beta=_values(c.beta),
        reset=c.reset,
        compare=compare,
        fires=c.fires,
        max_spikes=c.most,
        v_min=c.v_min,
    )


def _spike(like: Form, count: float) -> Form:
    form = np.zeros_like(like)
    form[-1] = count
    return form


def _without_neighbours(pattern: Sequence[float]) -> tuple[float, ...]:
    """Return a pattern without the spikes that a lost step behind a spike cannot have."""
    found: list[float] = []
    for side in pattern:
        found.append(BELOW if found and found[-1] == ABOVE else side)
    return tuple(found)


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
