"""From the continuous equations of NIR to one time step.

With the time step dt, forward Euler of ``tau dv/dt = (v_leak - v) + r i`` gives ``alpha = 1 - dt/tau`` and the gain
``r dt/tau``; its exact solution for a current that is constant within a step ``alpha = exp(-dt/tau)`` and the gain
``r (1 - alpha)``. The integrator ``dv/dt = r i`` gives 1 and ``r dt`` under both.

A synaptic current ``tau_syn di/dt = -i + w_in s`` gets its decay and the factor ``w_in dt/tau_syn`` (or ``w_in (1 -
beta)``) in the same way; the membrane sees the current of the same step, as in snnTorch and Norse.

Files hold rounded numbers: ``tau = dt / (1 - beta)`` in float32 gives the beta back only to some digits. So when a
decimal number of up to four digits lies within that rounding, it is taken as the decay, or as the gain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..neuron_description import NeuronDescription, Values
from .options import Preset
from .record import MAX_SIZE, Real, Record

INTEGRATORS = ("I", "IF")
SYNAPTIC = ("CubaLI", "CubaLIF")
NEURONS = ("I", "IF", "LI", "LIF", "Threshold", *SYNAPTIC)
_FIRING = ("IF", "LIF", "CubaLIF", "Threshold")
_DEFAULTS = {"v_reset": 0.0, "w_in": 1.0}
"""Constants that files may leave out, as older versions of NIR did not have them."""
_ROUNDING = 2.0**-51


@dataclass(frozen=True)
class _Constant:
    """One number or one per channel, and the relative error with which the file holds them."""

    values: Values
    error: float = 0.0


def describe(record: Record, shape: tuple[int, ...], rule: Preset, *, starts_at_reset: bool) -> NeuronDescription:
    """Return the neuron of a node for one sample's ``shape`` (F) or (C, H, W).

    Raises H2LearnError that names the field when its values make no neuron of the machine.
    """
    if record.kind == "Threshold":
        theta = _per_channel(record, "threshold", shape).values
        return NeuronDescription(alpha=(0.0,), theta=theta, reset="none", compare=rule.compare)
    leaky = record.kind not in INTEGRATORS
    fires = record.kind in _FIRING
    synaptic = record.kind in SYNAPTIC
    tau = _time_constant(record, "tau_mem" if synaptic else "tau", shape, rule) if leaky else _Constant((math.inf,))
    alpha, gain = _decay_and_gain(tau, _per_channel(record, "r", shape), rule)
    neuron = NeuronDescription(alpha=alpha, gain=gain, reset=rule.reset.replace("-", "_"), compare=rule.compare)
    if synaptic:
        tau_syn = _time_constant(record, "tau_syn", shape, rule)
        beta, factor = _decay_and_gain(tau_syn, _per_channel(record, "w_in", shape), rule)
        whole = tuple((np.asarray(gain) * np.asarray(factor)).tolist())
        neuron = replace(neuron, synapse="immediate", beta=beta, gain=whole)
    if leaky:
        leak = _per_channel(record, "v_leak", shape).values
        neuron = replace(neuron, v_leak=leak, initial=leak)
    if not fires:
        return replace(neuron, fires=False, reset="none")
    theta = _per_channel(record, "v_threshold", shape).values
    v_reset = _per_channel(record, "v_reset", shape).values
    initial = v_reset if starts_at_reset and not leaky else neuron.initial
    return replace(neuron, theta=theta, v_reset=v_reset, initial=initial, max_spikes=rule.max_spikes)


def delay_steps(record: Record, seconds: Real, shape: tuple[int, ...], dt: float) -> tuple[int, ...]:
    """Return a delay in time steps, one number or one per channel; raises H2LearnError when they are not whole."""
    delays = _channel_values(record, "delay", seconds, shape)
    for delay in delays:
        steps = delay / dt
        if not 0 <= steps <= MAX_SIZE or abs(steps - round(steps)) > max(1e-3, 1e-6 * steps):
            raise record.error(f"expected a multiple of dt {dt:g} from 0, found {delay:g}", "delay")
    return tuple(round(delay / dt) for delay in delays)


def short_decimal(value: float, low: float, high: float) -> float:
    """Return a number in [low, high] that has up to four decimal digits, the shortest, or else ``value``."""
    for digits in range(4):
        candidate = float(f"{value:.{digits}e}")
        if low <= candidate <= high:
            return candidate
    return value


def _time_constant(record: Record, field: str, shape: tuple[int, ...], rule: Preset) -> _Constant:
    tau = _per_channel(record, field, shape)
    if min(tau.values) <= 0:
        raise record.error(f"expected a positive time constant, found {min(tau.values):g}", field)
    if rule.discretisation == "forward-euler" and min(tau.values) < rule.dt * (1 - 1e-6):
        raise record.error(
            f"forward Euler needs a time step up to {field}, found dt {rule.dt:g} and {min(tau.values):g}",
            field,
            hint="give the dt of the exporter (norse: 1e-6), or discretisation exponential",
        )
    return tau


def _decay_and_gain(tau: _Constant, r: _Constant, rule: Preset) -> tuple[Values, Values]:
    taus, resistances = np.broadcast_arrays(np.asarray(tau.values), np.asarray(r.values))
    pairs = list(zip(taus.tolist(), resistances.tolist(), strict=True))
    found = {pair: _one_decay_and_gain(*pair, tau.error, r.error, rule) for pair in set(pairs)}
    return tuple(found[pair][0] for pair in pairs), tuple(found[pair][1] for pair in pairs)


def _one_decay_and_gain(tau: float, r: float, tau_error: float, r_error: float, rule: Preset) -> tuple[float, float]:
    error = tau_error + r_error + _ROUNDING
    if math.isinf(tau):
        return 1.0, _short_near(r * rule.dt, error)
    ratio = rule.dt / tau
    if rule.discretisation == "exponential":
        leak, slack = -math.expm1(-ratio), math.exp(-ratio) * ratio
    else:
        leak, slack = min(ratio, 1.0), ratio
    slack = slack * (tau_error + _ROUNDING) + _ROUNDING
    alpha = short_decimal(1 - leak, 1 - leak - slack, 1 - leak + slack)
    return min(max(alpha, 0.0), 1.0), _short_near(r * leak, error)


def _short_near(value: float, error: float) -> float:
    slack = abs(value) * error
    return short_decimal(value, value - slack, value + slack)


def _per_channel(record: Record, field: str, shape: tuple[int, ...]) -> _Constant:
    """Return a constant of a neuron; fields in float32 are taken to be right to 2**-23."""
    if field in _DEFAULTS and not record.has(field):
        return _Constant((_DEFAULTS[field],))
    values = record.real(field)
    single = np.array_equal(values.astype(np.float32).astype(np.float64), values.astype(np.float64))
    return _Constant(_channel_values(record, field, values, shape), 2.0**-23 if single else 0.0)


def _channel_values(record: Record, field: str, values: Real, shape: tuple[int, ...]) -> Values:
    """Return one number when all are the same, else one per channel; raises H2LearnError when they differ in one."""
    aligned = aligned_with(record, field, values, shape)
    spread = aligned.reshape(aligned.shape[0], -1)
    if not (spread == spread[:, :1]).all():
        channel = int(np.argwhere((spread != spread[:, :1]).any(axis=1))[0, 0])
        raise record.error(
            f"expected one value per channel, found several in channel {channel}",
            field,
            hint="constants per neuron are supported for neurons without rows and columns",
        )
    numbers = tuple(float(v) for v in spread[:, 0])
    return numbers[:1] if len(set(numbers)) == 1 else numbers


def aligned_with(record: Record, field: str, values: Real, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Return values with one dimension per dimension of ``shape``, each as large or 1; raises H2LearnError."""
    wide = values.astype(np.float64)
    if wide.size == 1:
        return wide.reshape((1,) * len(shape))
    while wide.ndim > len(shape) and wide.shape[0] == 1:
        wide = wide[0]
    if wide.ndim != len(shape) or any(a not in (1, b) for a, b in zip(wide.shape, shape, strict=True)):
        raise record.error(f"expected shape {list(shape)}, found {list(values.shape)}", field)
    return wide


def constant_fields(record: Record) -> tuple[str, ...]:
    """Return the names of a neuron's constants."""
    if record.kind == "Threshold":
        return ("threshold",)
    if record.kind in SYNAPTIC:
        own: tuple[str, ...] = ("tau_syn", "tau_mem", "r", "v_leak", "w_in")
    else:
        own = ("r",) if record.kind in INTEGRATORS else ("r", "tau", "v_leak")
    return (*own, *(("v_threshold", "v_reset") if record.kind in _FIRING else ()))


def default_of(field: str) -> float:
    """Return the value of a constant that a file leaves out."""
    return _DEFAULTS[field]


def check_fields(record: Record) -> None:
    """Raise H2LearnError when a constant of a neuron is missing or holds no finite numbers, whatever its shape."""
    for field in constant_fields(record):
        if field not in _DEFAULTS or record.has(field):
            record.real(field)
