"""A smooth variant of spiking networks, whose gradients finite differences can check.

The spike becomes the integral of the surrogate derivative, everywhere: in the activations and in the reset. Then the
surrogate *is* the derivative, and backpropagation through time must agree with finite differences of the loss. What
this checks is the training graph; the operations other than the neuron's are those of the ``spike`` interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from xdsl.dialects import builtin
from xdsl.ir import Operation, SSAValue

from h2learn.backends.reference.gate import GATES
from h2learn.backends.reference.neuron import (
    Neuron,
    drive,
    drive_gradient,
    initial_potential,
    surrogate,
)
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import choice, neuron_of
from h2learn.dialects.spike.interpreter import SEMANTICS, Semantics, evaluate, learned_neuron, main_block

Reals = npt.NDArray[np.float64]
Data = npt.NDArray[Any]


def run_smooth(module: builtin.ModuleOp, arguments: Sequence[Data]) -> list[Data]:
    """Run ``@main`` of a ``spike`` and ``sgrad`` module in float64 with smooth spikes; arguments in device shape."""
    block = main_block(module)
    values: dict[SSAValue, Data] = dict(zip(block.args, arguments, strict=True))
    return list(evaluate(block, values, np.dtype(np.float64), SEMANTICS | _SMOOTH))


def reason_against(module: builtin.ModuleOp) -> str:
    """Return why finite differences cannot check the gradients of this program, or an empty string."""
    for op in module.walk():
        if isinstance(op, spike.LifOp) and neuron_of(op).detach_reset and neuron_of(op).reset != "none":
            return "the reset is left out of the gradient (detach_reset)"
        if isinstance(op, spike.LifOp) and neuron_of(op).reset == "hard_delayed":
            return "a hard-delayed reset is left out of the gradient"
        if isinstance(op, spike.LifOp) and (neuron_of(op).periodic or neuron_of(op).v_min is not None):
            return "the surrogate is periodic, or potentials have a lower bound"
    return ""


def soft_spike(u: Reals, neuron: Neuron) -> Reals:
    """Return the integral of the surrogate up to ``u`` ``[...,K]``."""
    width, height = np.float64(neuron.width), np.float64(neuron.height)
    distance: Reals = np.clip(u - np.asarray(neuron.theta, dtype=np.float64), -width, width)
    area = height * width
    z = (u - np.asarray(neuron.theta, dtype=np.float64)) / width
    match neuron.surrogate:
        case "rectangular":
            return np.multiply(height, distance + width, dtype=np.float64)
        case "triangular":
            rising, falling = (distance + width) ** 2 / (2 * width), width - (width - distance) ** 2 / (2 * width)
            return np.multiply(height, np.where(distance < 0, rising, falling), dtype=np.float64)
        case "atan":
            return np.asarray(area * (np.arctan(z) + np.pi / 2))
        case "sigmoid":
            return np.asarray(4 * area / (1 + np.exp(-z)))
        case "exponential":
            return np.asarray(area * np.where(z < 0, np.exp(-np.abs(z)), 2 - np.exp(-np.abs(z))))
        case "gaussian":
            return np.asarray(area * math.sqrt(math.pi) / 2 * (1 + _ERF(z)))
    return np.asarray(area * np.where(z < 0, 1 / (1 + np.abs(z)), 2 - 1 / (1 + np.abs(z))))


_ERF = np.vectorize(math.erf, otypes=[np.float64])


def _lif(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    x, *rows = inputs
    neuron = learned_neuron(op, rows)
    alpha, theta, v_reset = (np.asarray(v) for v in (neuron.alpha, neuron.theta, neuron.v_reset))
    u, s, rest, taken = np.empty_like(x), np.empty_like(x), initial_potential(x, neuron), np.zeros(1)
    for t, current in enumerate(drive(x, neuron)):
        u[t] = alpha * rest + current - taken
        s[t] = soft_spike(u[t], neuron)
        after = {"hard": u[t] * (1 - s[t]) + v_reset * s[t], "soft": u[t] - theta * s[t]}
        rest = after.get(neuron.reset, u[t])
        taken = theta * s[t] if neuron.reset == "soft_delayed" else taken
    return s, u


def _lif_gradient(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    gradient, u, s, *rows = inputs
    neuron = learned_neuron(op, rows)
    alpha, theta, v_reset = (np.asarray(v) for v in (neuron.alpha, neuron.theta, neuron.v_reset))
    result, later = np.empty_like(gradient), np.zeros_like(gradient[0])
    for t in reversed(range(len(gradient))):
        drops = {"hard": alpha * (u[t] - v_reset), "soft": alpha * theta, "soft_delayed": theta, "none": np.zeros(1)}
        kept = 1 - s[t] if neuron.reset == "hard" else np.ones(1)
        later = surrogate(u[t], neuron) * (gradient[t] - drops[neuron.reset] * later) + alpha * kept * later
        result[t] = later
    return [drive_gradient(result, neuron)]


def _gate(op: Operation, inputs: Sequence[Data], real: np.dtype[Any]) -> Sequence[Data]:
    x, s = inputs
    return [x * {"keep": s, "drop": 1 - s, "negate": -s}[choice(op.properties, "kind", GATES)]]


_SMOOTH: dict[type[Operation], Semantics] = {spike.LifOp: _lif, sgrad.LifOp: _lif_gradient, spike.GateOp: _gate}
