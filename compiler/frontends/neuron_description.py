"""What a front end recognises as a neuron, and the one place that says how the ``spike`` level expresses it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.reference.neuron import COMPARES, RESETS, Neuron

from .builder import NetworkBuilder, Signal

Values = tuple[float, ...]
CONSTANTS = ("alpha", "gain", "theta", "v_reset", "v_leak", "initial", "beta")


@dataclass(frozen=True)
class NeuronDescription(Neuron):
    """A neuron as its framework computes it, which may never fire (a leaky integrator)."""

    fires: bool = True


def spike_neuron(d: NeuronDescription) -> Neuron:
    """Return the neuron of the ``spike`` level; raises H2LearnError with the reason when there is none.

    Without decay a delayed reset is an immediate one. With decay only snnTorch has it, and never differentiates it. No
    gradient of a number of spikes goes through a hard reset.
    """
    if d.reset not in RESETS or d.compare not in COMPARES:
        raise H2LearnError(
            f"expected reset {', '.join(RESETS)} and compare {', '.join(COMPARES)}, found {d.reset}, {d.compare}"
        )
    for name in CONSTANTS:
        values = getattr(d, name)
        if not all(math.isfinite(float(np.float32(value))) for value in values):
            raise H2LearnError(f"expected finite float32 numbers as {name}, found {values[0]:g}")
    if 0.0 in d.gain:
        raise H2LearnError("expected a neuron that its input reaches, found a gain of 0")
    neuron = Neuron(**{field.name: getattr(d, field.name) for field in fields(Neuron)})
    if not d.fires:
        return replace(neuron, reset="none")
    if d.counts and d.reset == "hard":
        neuron = replace(neuron, detach_reset=True)
    if neuron.reason_against():
        raise H2LearnError(neuron.reason_against())
    if d.reset == "hard_delayed":
        return replace(neuron, detach_reset=True)
    if d.reset != "soft_delayed":
        return neuron
    return replace(neuron, reset="soft") if set(d.alpha) == {1.0} else replace(neuron, detach_reset=True)


def add_neuron(builder: NetworkBuilder, x: Signal, d: NeuronDescription, location: Location, name: str) -> Signal:
    """Add a neuron to a network and return its spikes, or its potentials when it never fires."""
    add = builder.lif if d.fires else builder.li
    return add(x, spike_neuron(d), location, name)


def summary(d: NeuronDescription) -> str:
    """Return the numbers of the equation in a line; what does nothing is left out."""
    parts = [f"alpha {_range(d.alpha)}"]
    parts += [f"gain {_range(d.gain)}"] if set(d.gain) != {1.0} else []
    parts += [f"leak to {_range(d.v_leak)}"] if any(d.v_leak) else []
    if d.synapse != "none":
        parts.append(f"synaptic current with decay {_range(d.beta)}{', a step later' * (d.synapse == 'delayed')}")
    if not d.fires:
        return f"leaky integrator, {', '.join(parts)}, starts at {_range(d.initial)}"
    parts += [f"theta {_range(d.theta)}", f"reset {d.reset.replace('_', '-')}"]
    if d.reset.startswith("hard"):
        parts[-1] += f" to {_range(d.v_reset)}"
    if d.counts:
        parts.append(f"{f'up to {d.max_spikes}' if d.max_spikes else 'any number of'} spikes per step")
    parts += [f"potentials of at least {d.v_min:g}"] if d.v_min is not None else []
    sign = ">" if d.compare == "gt" else ">="
    return f"{', '.join(parts)}, spikes at u {sign} theta, starts at {_range(d.initial)}"


def _range(values: Values) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{min(values):g} to {max(values):g} by channel"
