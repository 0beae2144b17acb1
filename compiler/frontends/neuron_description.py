"""What a front end recognises as a neuron, and the one place that says how the ``spike`` level expresses it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from xdsl.ir import Operation

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.reference.neuron import COMPARES, Neuron
from h2learn.dialects.common import POTENTIAL_SCALE_ATTRIBUTE
from h2learn.dialects.spike.base import number

from .builder import NetworkBuilder, Signal

Values = tuple[float, ...]
RESETS = ("hard", "soft", "soft_delayed", "none")


@dataclass(frozen=True)
class NeuronDescription:
    """A neuron as its framework computes it; every constant is one number, or one per channel.

    With the input current x[t], ``r[t]`` the potential after the reset of step t and ``r[-1] = initial``::

        u[t] = v_leak + alpha * (r[t-1] - v_leak) + gain * x[t]
        s[t] = u[t] > theta                      (compare "ge": u[t] >= theta; not fires: never)
        r[t] = s[t] ? v_reset : u[t]             (reset "hard")
        r[t] = u[t] - theta * s[t]               (reset "soft")
        r[t] = u[t]                              (reset "none")

    Reset "soft_delayed" takes the threshold off one step later, not decayed: ``u[t] -= theta * s[t-1]``.
    """

    alpha: Values = (0.5,)
    gain: Values = (1.0,)
    theta: Values = (1.0,)
    v_reset: Values = (0.0,)
    v_leak: Values = (0.0,)
    initial: Values = (0.0,)
    reset: str = "hard"
    compare: str = "gt"
    fires: bool = True


@dataclass(frozen=True)
class SpikeNeuron:
    """A neuron of the ``spike`` level.

    Its potential is ``potential_scale * (u - offset)`` of the framework's u, and its currents are the framework's x
    times ``input_factor``, which the weights before it have to take in. ``neuron`` has the surrogate of the defaults in
    the framework's units. ``notes`` say what is not exact.
    """

    neuron: Neuron
    fires: bool
    input_factor: Values = (1.0,)
    potential_scale: float = 1.0
    notes: tuple[str, ...] = ()


def spike_neuron(description: NeuronDescription) -> SpikeNeuron:
    """Return how the ``spike`` level computes a neuron; raises H2LearnError with the reason when it cannot."""
    d = description
    _check(d)
    reset = "soft" if d.reset == "soft_delayed" and set(d.alpha) == {1.0} else d.reset
    if d.fires and reset == "soft_delayed":
        raise H2LearnError(
            "reset soft-delayed is not supported yet: the threshold is taken off one step later and not decayed"
        )
    offset = _offset(d, reset)
    if not d.fires:
        return SpikeNeuron(Neuron(alpha=_short(d.alpha)), False, _short(d.gain))
    factor = _short(d.gain)
    scale = 1.0
    if len(factor) == 1 and factor[0] > 0:
        scale, factor = 1.0 / factor[0], (1.0,)
    theta, v_reset = (_short(scale * (np.asarray(values) - offset)) for values in (d.theta, d.v_reset))
    default = Neuron()
    neuron = Neuron(
        alpha=_short(d.alpha),
        theta=theta,
        v_reset=v_reset if reset == "hard" else (0.0,),
        reset=reset,
        compare=d.compare,
        width=default.width * scale,
        height=default.height / scale,
    )
    notes = () if is_power_of_two(scale) else (f"potentials are counted in units of {1 / scale:g}, rounded",)
    return SpikeNeuron(neuron, True, factor, scale, notes)


def add_neuron(builder: NetworkBuilder, x: Signal, form: SpikeNeuron, location: Location, name: str) -> Signal:
    """Add a neuron to a network and return its spikes, or its potentials when it never fires."""
    if not form.fires:
        return builder.li(x, form.neuron, location, name)
    spikes = builder.lif(x, form.neuron, location, name)
    op = spikes.value.owner
    if form.potential_scale != 1.0 and isinstance(op, Operation):
        op.attributes[POTENTIAL_SCALE_ATTRIBUTE] = number(form.potential_scale)
    return spikes


def is_power_of_two(value: float) -> bool:
    """Return whether multiplying by ``value`` never rounds (short of overflow)."""
    return value > 0 and math.frexp(value)[0] == 0.5


def _check(d: NeuronDescription) -> None:
    if d.reset not in RESETS or d.compare not in COMPARES:
        raise H2LearnError(
            f"expected reset {', '.join(RESETS)} and compare {', '.join(COMPARES)}, found {d.reset}, {d.compare}"
        )
    constants = {"alpha": d.alpha, "gain": d.gain, "theta": d.theta, "v_reset": d.v_reset, "v_leak": d.v_leak}
    for name, values in {**constants, "initial": d.initial}.items():
        if not all(math.isfinite(float(np.float32(value))) for value in values):
            raise H2LearnError(f"expected finite float32 numbers as {name}, found {values[0]:g}")
    if 0.0 in d.gain:
        raise H2LearnError("expected a neuron that its input reaches, found a gain of 0")


def _offset(d: NeuronDescription, reset: str) -> npt.NDArray[np.float64]:
    """Return the potential that the ``spike`` level, where every neuron starts at 0 and decays to 0, calls 0."""
    alpha, leak, initial = np.broadcast_arrays(
        *(np.asarray(v, dtype=np.float64) for v in (d.alpha, d.v_leak, d.initial))
    )
    stays = alpha == 1.0
    if not np.all(stays | (leak == initial)):
        raise H2LearnError("a neuron that starts away from the potential it decays to is not supported yet")
    if not d.fires and initial.any():
        raise H2LearnError("an integrator that starts away from 0 is not supported yet: its potential is the output")
    if d.fires and reset == "soft" and initial.any():
        raise H2LearnError("reset soft is not supported yet for a neuron that starts away from 0")
    return initial


def _short(values: npt.ArrayLike) -> Values:
    """Return one number when all are the same."""
    numbers = tuple(float(v) for v in np.ravel(np.asarray(values, dtype=np.float64)))
    return numbers[:1] if len(set(numbers)) == 1 else numbers
