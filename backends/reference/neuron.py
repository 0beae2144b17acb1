"""Spiking neurons and leaky integrators over time, and their adjoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .arrays import Real, Spikes

RESETS = ("hard", "soft", "none")
COMPARES = ("gt", "ge")
SURROGATES = ("rectangular", "triangular")


@dataclass(frozen=True)
class Neuron:
    """A leaky integrate-and-fire neuron with its surrogate gradient.

    With the current x[t] and ``r[t]`` the membrane potential after the reset of step t (``r[-1] = 0``)::

        u[t] = alpha * r[t-1] + x[t]
        s[t] = u[t] >= theta                     (compare "gt": u[t] > theta)
        r[t] = s[t] ? v_reset : u[t]             (reset "hard")
        r[t] = u[t] - theta * s[t]               (reset "soft")
        r[t] = u[t]                              (reset "none")

    The surrogate of ds/du is ``height`` where ``|u - theta| < width`` (rectangular), or
    ``height * (1 - |u - theta| / width)`` there (triangular), and 0 elsewhere. ``detach_reset`` leaves the dependence
    of the reset on the spike out of the gradient. ``alpha``, ``theta`` and ``v_reset`` hold one number, or one per
    channel (last axis).
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


def lif(x: Real, neuron: Neuron) -> tuple[Spikes, Real]:
    """Return spikes and membrane potentials of currents ``x`` ``[T,N,...,K]``, in the type of ``x``."""
    alpha, theta, v_reset = (np.asarray(v, dtype=x.dtype) for v in (neuron.alpha, neuron.theta, neuron.v_reset))
    u, s = np.empty_like(x), np.empty(x.shape, dtype=np.bool_)
    rest = np.zeros_like(x[0])
    for t, current in enumerate(x):
        u[t] = alpha * rest + current
        s[t] = u[t] > theta if neuron.compare == "gt" else u[t] >= theta
        rest = _after_reset(u[t], s[t], theta, v_reset, neuron.reset)
    return s, u


def lif_gradient(gradient: Real, u: Real, s: Spikes, neuron: Neuron) -> Real:
    """Return the gradient of the currents from that of the spikes, all ``[T,N,...,K]``."""
    alpha, theta, v_reset = (np.asarray(v, dtype=u.dtype) for v in (neuron.alpha, neuron.theta, neuron.v_reset))
    result = np.empty_like(gradient)
    later = np.zeros_like(gradient[0])
    for t in range(len(gradient) - 1, -1, -1):
        through_spike = gradient[t]
        if neuron.reset != "none" and not neuron.detach_reset:
            drop = u[t] - v_reset if neuron.reset == "hard" else theta
            through_spike = through_spike - alpha * drop * later
        carried = alpha * later
        if neuron.reset == "hard":
            carried = np.where(s[t], u.dtype.type(0), carried)
        later = surrogate(u[t], neuron) * through_spike + carried
        result[t] = later
    return result


def surrogate(u: Real, neuron: Neuron) -> Real:
    """Return the surrogate derivative ds/du at membrane potentials ``u`` ``[...,K]``."""
    width, height = u.dtype.type(neuron.width), u.dtype.type(neuron.height)
    distance = np.abs(u - np.asarray(neuron.theta, dtype=u.dtype))
    inside = height * (1 - distance / width) if neuron.surrogate == "triangular" else height
    return np.where(distance < width, inside, u.dtype.type(0))


def li(x: Real, alpha: Sequence[float]) -> Real:
    """Return the membrane potentials of integrators that never spike, currents ``[T,N,...,K]``."""
    factor = np.asarray(alpha, dtype=x.dtype)
    u = x.copy()
    for t in range(1, len(x)):
        u[t] += factor * u[t - 1]
    return u


def li_gradient(gradient: Real, alpha: Sequence[float]) -> Real:
    """Return the gradient of the currents from that of the potentials, both ``[T,N,...,K]``."""
    return np.ascontiguousarray(li(gradient[::-1], alpha)[::-1])


def _after_reset(u: Real, s: Spikes, theta: Real, v_reset: Real, reset: str) -> Real:
    if reset == "hard":
        return np.where(s, v_reset, u)
    if reset == "soft":
        return np.where(s, u - theta, u)
    return u
