"""Spiking neurons and leaky integrators over time, and their adjoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .arrays import Real, Spikes

RESETS = ("hard", "soft", "soft_delayed", "hard_delayed", "none")
COMPARES = ("gt", "ge")
SURROGATES = ("rectangular", "triangular", "atan", "sigmoid", "fast_sigmoid", "exponential", "gaussian")
COMPACT_SURROGATES = ("rectangular", "triangular")
"""Those that are exactly 0 at and beyond ``width``; the others are 0 nowhere."""
SYNAPSES = ("none", "immediate", "delayed")
MOST_SPIKES = 1 << 24
"""Spikes per step that float32 can count."""
LEARNED_ROWS = ("plain", "unit", "sigmoid", "falling")
"""How a parameter gives a constant of neurons; see :func:`learned_row`."""


@dataclass(frozen=True)
class Neuron:
    """A leaky integrate-and-fire neuron with its surrogate gradient; a leaky integrator uses the first lines of it.

    With the current x[t] and ``r[t]`` the membrane potential after the reset of step t (``r[-1] = initial``)::

        i[t] = beta * i[t-1] + x[t]              (synapse "none": i[t] = x[t]; i[-1] = 0)
        u[t] = v_leak + alpha * (r[t-1] - v_leak) + gain * i[t]         (synapse "delayed": gain * i[t-1])
        s[t] = u[t] >= theta                     (compare "gt": u[t] > theta)
        r[t] = s[t] ? v_reset : u[t]             (reset "hard")
        r[t] = u[t] - theta * s[t]               (reset "soft")
        r[t] = u[t]                              (reset "none")

    Reset "soft_delayed" takes the threshold off one step later and not decayed: ``u[t] -= theta * s[t-1]``.
    Reset "hard_delayed" is that of the step behind a spike, whose current is lost: ``u[t] = v_reset`` where s[t-1]. Its
    dependence on the spike is never in the gradient. With a ``v_min`` r[t] is at least that. With ``max_spikes`` other
    than 1 a step has several spikes (compare "ge")::

        s[t] = max(0, floor(u[t] / theta))       (at most max_spikes of them; 0: any number)

    and "hard" resets where there is any. Then ``periodic`` repeats the surrogate at every multiple of the threshold:
    above it z is ``2 * |u - n * theta| / width``, n * theta the nearest multiple.

    With ``z = |u - theta| / width`` the surrogate of ds/du is ``height`` where ``z < 1`` (rectangular),
    ``height * (1 - z)`` there (triangular), ``height / (1 + z**2)`` (atan), ``4 * height * sigmoid(z) *
    (1 - sigmoid(z))`` (sigmoid), ``height / (1 + z)**2`` (fast_sigmoid), ``height * exp(-z)`` (exponential) or
    ``height * exp(-z**2)`` (gaussian); the first two are 0 elsewhere. ``detach_reset`` leaves the dependence of the
    reset on the spike out of the gradient. ``alpha``, ``theta``, ``v_reset``, ``gain``, ``v_leak``, ``initial`` and
    ``beta`` hold one number, or one per channel (last axis).
    """

    alpha: tuple[float, ...] = (0.5,)
    theta: tuple[float, ...] = (1.0,)
    v_reset: tuple[float, ...] = (0.0,)
    reset: str = "hard"
    compare: str = "ge"
    surrogate: str = "rectangular"
    width: float = 0.5
    height: float = 1.0
    detach_reset: bool = False
    gain: tuple[float, ...] = (1.0,)
    v_leak: tuple[float, ...] = (0.0,)
    initial: tuple[float, ...] = (0.0,)
    synapse: str = "none"
    beta: tuple[float, ...] = (0.0,)
    max_spikes: int = 1
    v_min: float | None = None
    periodic: bool = False

    @property
    def counts(self) -> bool:
        """Whether a step may have several spikes: s are numbers, not bits."""
        return self.max_spikes != 1

    @property
    def may_learn(self) -> bool:
        """Whether the gradients of decay and threshold are known."""
        return not self.counts and self.v_min is None and self.reset != "hard_delayed"

    def reason_against(self) -> str:
        """Return what does not go together, or an empty string."""
        if not 0 <= self.max_spikes <= MOST_SPIKES:
            return f"expected at most {MOST_SPIKES} spikes per step (0: any number), found {self.max_spikes}"
        if self.counts and self.reset == "hard_delayed":
            return "expected one spike per step of neurons with the reset hard_delayed, found several"
        if self.counts and self.compare != "ge":
            return "expected spikes at u >= threshold of neurons with several spikes per step, found >"
        if self.counts and min(self.theta) <= 0:
            return f"expected a threshold above 0 of neurons with several spikes per step, found {min(self.theta):g}"
        if self.counts and self.reset == "hard" and not self.detach_reset:
            return "expected a detached reset of neurons with several spikes per step and a hard reset"
        if self.periodic and not self.counts:
            return "expected neurons with several spikes per step under a periodic surrogate, found one spike"
        return ""

    @property
    def offset(self) -> tuple[float, ...]:
        """What the leak adds at every step, ``(1 - alpha) * v_leak``: one number, or one per channel."""
        return _short((1 - np.asarray(self.alpha)) * np.asarray(self.v_leak))

    @property
    def is_driven_plainly(self) -> bool:
        """Whether the current adds to the potential as it is, which starts at and decays to 0."""
        return (self.gain, self.offset, self.initial, self.synapse) == ((1.0,), (0.0,), (0.0,), "none")


def lif(x: Real, neuron: Neuron) -> tuple[Real | Spikes, Real]:
    """Return spikes and membrane potentials of currents ``x`` ``[T,N,...,K]``, in the type of ``x``.

    Spikes are bits, or numbers in the type of ``x`` where a step may have several.
    """
    alpha, theta, v_reset = (np.asarray(v, dtype=x.dtype) for v in (neuron.alpha, neuron.theta, neuron.v_reset))
    u, s = np.empty_like(x), np.empty(x.shape, dtype=x.dtype if neuron.counts else np.bool_)
    rest, taken = initial_potential(x, neuron), np.zeros((), dtype=x.dtype)
    for t, current in enumerate(drive(x, neuron)):
        u[t] = alpha * rest + current - taken
        if t and neuron.reset == "hard_delayed":
            u[t] = np.where(s[t - 1] != 0, v_reset, u[t])
        if neuron.counts:
            s[t] = spike_count(u[t], theta, neuron.max_spikes)
        else:
            s[t] = u[t] > theta if neuron.compare == "gt" else u[t] >= theta
        rest = _rest(u[t], s[t], theta, v_reset, neuron)
        if neuron.reset == "soft_delayed":
            taken = theta * s[t]
    return s, u


def spike_count(u: Real, theta: Real, most: int) -> Real:
    """Return how often the threshold goes into the potentials ``u``, at most ``most`` times (0: any number)."""
    ratio = u / theta
    count = np.where(ratio >= 1, np.floor(ratio), u.dtype.type(0))
    return np.minimum(count, u.dtype.type(most)) if most else count


def after_reset(u: Real, s: Real | Spikes, theta: Real, v_reset: Real, reset: str) -> Real:
    """Return what a reset leaves of potentials ``u`` with spikes ``s``; a delayed one comes later, and bounds."""
    if reset == "hard":
        return np.where(s != 0, v_reset, u)
    return u - theta * s if reset == "soft" else u


def lif_gradient(gradient: Real, u: Real, s: Real | Spikes, neuron: Neuron) -> Real:
    """Return the gradient of the currents from that of the spikes, all ``[T,N,...,K]``.

    Nothing flows through a potential that ``v_min`` holds up.
    """
    alpha, theta, v_reset = (np.asarray(v, dtype=u.dtype) for v in (neuron.alpha, neuron.theta, neuron.v_reset))
    result = np.empty_like(gradient)
    later = np.zeros_like(gradient[0])
    for t in range(len(gradient) - 1, -1, -1):
        through_spike, passes = gradient[t], _passes(u[t], s[t], theta, v_reset, neuron)
        if neuron.reset not in ("none", "hard_delayed") and not neuron.detach_reset:
            drops = {"hard": alpha * (u[t] - v_reset), "soft": alpha * theta, "soft_delayed": theta}
            lost = drops[neuron.reset] * later
            through_spike = through_spike - (lost if neuron.reset == "soft_delayed" else lost * passes)
        carried = alpha * later * passes
        if neuron.reset == "hard":
            carried = np.where(s[t] != 0, u.dtype.type(0), carried)
        later = surrogate(u[t], neuron) * through_spike + carried
        result[t] = later
    return drive_gradient(result, neuron)


def constants_gradient(gradient: Real, u: Real, s: Real | Spikes, neuron: Neuron) -> tuple[Real, Real]:
    """Return the gradients ``[K]`` of decay and threshold of plainly driven neurons.

    ``gradient`` is that of the potentials, ``[T,N,...,K]`` like ``u`` and ``s``. The decay multiplies the potential
    after the reset of the step before; the threshold acts through the spikes, whose part of the gradient is what the
    potential of the next step did not pass on, and through the reset by subtraction.
    """
    alpha, theta, v_reset = (np.asarray(v, dtype=u.dtype) for v in (neuron.alpha, neuron.theta, neuron.v_reset))
    fired = s.astype(u.dtype)
    later = np.concatenate([gradient[1:], np.zeros_like(gradient[:1])])
    rest = {"hard": u * (1 - fired) + v_reset * fired, "soft": u - theta * fired}.get(neuron.reset, u)
    passed = alpha * later * (1 - fired) if neuron.reset in ("hard", "soft") else alpha * later
    taken = later * fired if neuron.reset == "soft_delayed" else np.zeros_like(later)
    axes = tuple(range(u.ndim - 1))
    return (later * rest).sum(axis=axes), (passed - gradient - taken).sum(axis=axes)


def learned_row(w: Real, kind: str, channels: int) -> Real:
    """Return the values ``[K]`` of a constant whose parameter is ``w``, one number or one per channel.

    ``plain``: w; ``unit``: w, at least 0 and at most 1; ``sigmoid``: sigmoid(w); ``falling``: sigmoid(-w).
    """
    values = w
    if kind == "unit":
        values = np.clip(w, 0, 1)
    elif kind != "plain":
        values = 1 / (1 + np.exp(-w if kind == "sigmoid" else w))
    return np.broadcast_to(values, (channels,)).astype(w.dtype)


def learned_row_gradient(gradient: Real, w: Real, kind: str) -> Real:
    """Return the gradient of the parameter ``w`` from that of the values ``[K]``."""
    falls = {"sigmoid": 1, "falling": -1}.get(kind, 0)
    slope = np.where((w >= 0) & (w <= 1), 1, 0) if kind == "unit" else np.ones_like(w)
    if falls:
        value = 1 / (1 + np.exp(-w))
        slope = falls * value * (1 - value)
    found = gradient * slope
    return np.asarray(found if w.shape == gradient.shape else found.sum(keepdims=True), dtype=gradient.dtype)


def surrogate(u: Real, neuron: Neuron) -> Real:
    """Return the surrogate derivative ds/du at membrane potentials ``u`` ``[...,K]``."""
    width, height = u.dtype.type(neuron.width), u.dtype.type(neuron.height)
    distance = threshold_distance(u, np.asarray(neuron.theta, dtype=u.dtype), periodic=neuron.periodic)
    z = distance / width
    match neuron.surrogate:
        case "atan":
            return np.asarray(height / (1 + z * z))
        case "sigmoid":
            return np.asarray(4 * height * np.exp(-z) / (1 + np.exp(-z)) ** 2)
        case "fast_sigmoid":
            return np.asarray(height / ((1 + z) * (1 + z)))
        case "exponential":
            return np.asarray(height * np.exp(-z))
        case "gaussian":
            return np.asarray(height * np.exp(-(z * z)))
    inside = height * (1 - z) if neuron.surrogate == "triangular" else height
    return np.where(distance < width, inside, u.dtype.type(0))


def threshold_distance(u: Real, theta: Real, *, periodic: bool) -> Real:
    """Return ``|u - theta|``; where it is ``periodic``, above theta twice the distance from the nearest multiple."""
    distance = np.abs(u - theta)
    if not periodic:
        return distance
    phase = u / theta - u.dtype.type(0.5)
    return np.where(u < theta, distance, theta * np.abs(2 * (phase - np.floor(phase)) - 1))


def drive(x: Real, neuron: Neuron) -> Real:
    """Return what the currents ``x`` ``[T,N,...,K]`` (and the leak) add to the potential at every step."""
    if neuron.is_driven_plainly:
        return x
    gain, offset = (np.asarray(v, dtype=x.dtype) for v in (neuron.gain, neuron.offset))
    return np.asarray(gain * _synaptic_current(x, neuron) + offset)


def drive_gradient(gradient: Real, neuron: Neuron) -> Real:
    """Return the gradient of the currents from that of the potentials, both ``[T,N,...,K]``."""
    if neuron.is_driven_plainly:
        return gradient
    scaled = np.asarray(neuron.gain, dtype=gradient.dtype) * gradient
    return np.ascontiguousarray(_synaptic_current(scaled[::-1], neuron)[::-1])


def initial_potential(x: Real, neuron: Neuron) -> Real:
    """Return the potential before the first step of currents ``x`` ``[T,N,...,K]``."""
    return np.broadcast_to(np.asarray(neuron.initial, dtype=x.dtype), x.shape[1:])


def li(x: Real, neuron: Neuron) -> Real:
    """Return the membrane potentials of integrators that never spike, currents ``[T,N,...,K]``."""
    u = drive(x, neuron).copy()
    u[0] += np.asarray(neuron.alpha, dtype=x.dtype) * initial_potential(x, neuron)
    return _decaying_sum(u, neuron.alpha)


def li_gradient(gradient: Real, neuron: Neuron) -> Real:
    """Return the gradient of the currents from that of the potentials, both ``[T,N,...,K]``."""
    return drive_gradient(np.ascontiguousarray(_decaying_sum(gradient[::-1], neuron.alpha)[::-1]), neuron)


def _synaptic_current(x: Real, neuron: Neuron) -> Real:
    """Return what arrives at the membrane at every step; its own adjoint, up to the direction of time."""
    if neuron.synapse == "none":
        return x
    current = _decaying_sum(x, neuron.beta)
    if neuron.synapse == "delayed":
        current = np.concatenate([np.zeros_like(current[:1]), current[:-1]])
    return current


def _decaying_sum(x: Real, decay: Sequence[float]) -> Real:
    factor = np.asarray(decay, dtype=x.dtype)
    total = x.copy()
    for t in range(1, len(x)):
        total[t] += factor * total[t - 1]
    return total


def _short(values: Real) -> tuple[float, ...]:
    """Return one number when all are the same."""
    numbers = tuple(float(v) + 0.0 for v in np.ravel(values))
    return numbers[:1] if len(set(numbers)) == 1 else numbers


def _rest(u: Real, s: Real | Spikes, theta: Real, v_reset: Real, neuron: Neuron) -> Real:
    after = after_reset(u, s, theta, v_reset, neuron.reset)
    return after if neuron.v_min is None else np.maximum(after, u.dtype.type(neuron.v_min))


def _passes(u: Real, s: Real | Spikes, theta: Real, v_reset: Real, neuron: Neuron) -> Real:
    """Return 1 where the potential after the reset is above ``v_min``, else 0."""
    if neuron.v_min is None:
        return np.ones((), dtype=u.dtype)
    after = after_reset(u, s, theta, v_reset, neuron.reset)
    return np.asarray(after > u.dtype.type(neuron.v_min), dtype=u.dtype)
