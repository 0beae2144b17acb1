"""Losses, their gradients, the optimizer, and the run-time scalars that they read."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics

from .arrays import Labels, Real

_LAYOUT = "<fIIIQQ"


@dataclass(frozen=True)
class RunScalars:
    """What changes from run to run without recompiling: 32 bytes, passed as ``int32[8]``."""

    lr: float = 0.0
    valid: int = 0
    step: int = 0
    seed: int = 0
    first_sample: int = 0

    @staticmethod
    def from_array(words: npt.NDArray[np.int32]) -> RunScalars:
        """Read the scalars from ``int32[8]``."""
        lr, valid, step, _, seed, first = struct.unpack(_LAYOUT, np.ascontiguousarray(words, dtype="<i4").tobytes())
        return RunScalars(lr, valid, step, seed, first)

    def to_array(self) -> npt.NDArray[np.int32]:
        """Return the scalars as ``int32[8]``."""
        data = struct.pack(_LAYOUT, self.lr, self.valid, self.step, 0, self.seed, self.first_sample)
        return np.frombuffer(data, dtype="<i4").astype(np.int32)


@dataclass(frozen=True)
class Loss:
    """What a loss computes of the logits ``o`` ``[K]`` of a sample with label ``y``; the mean over samples counts.

    ``cross_entropy``: ``log(sum_j exp(o_j)) - o_y``. ``mse``: ``share * mean_j (o_j - t_j)^2`` with ``t_y = hit`` and
    ``t_j = miss`` for the other classes.
    """

    kind: str = "cross_entropy"
    hit: float = 1.0
    miss: float = 0.0
    share: float = 1.0


def loss(logits: Real, label: Labels, valid: int, what: Loss) -> Real:
    """Return the mean loss (shape ``()``) of the first ``valid`` samples of ``logits`` ``[N,K]``."""
    samples = _mse(logits, label, what) if what.kind == "mse" else _cross_entropy(logits, label)
    count = logits.dtype.type(max(valid, 1))
    return np.asarray((samples[:valid] / count).sum(), dtype=logits.dtype)


def loss_gradient(logits: Real, label: Labels, valid: int, what: Loss, scale: float) -> Real:
    """Return ``scale`` times the gradient of the mean loss, ``[N,K]``; 0 for samples from ``valid`` on."""
    count = logits.dtype.type(max(valid, 1))
    if what.kind == "mse":
        away = (logits - _targets(logits, label, what)) * logits.dtype.type(what.share)
        gradient = away * 2 / (count * logits.dtype.type(logits.shape[1]))
    else:
        powers = _exp(logits - logits.max(axis=1, keepdims=True))
        gradient = (powers / powers.sum(axis=1, keepdims=True) - _one_hot(logits, label)) / count
    gradient = gradient * logits.dtype.type(scale)
    gradient[valid:] = 0
    return np.asarray(gradient)


def sgd(
    parameter: Real,
    gradient: Real,
    velocity: Real | None,
    lr: float,
    momentum: float,
    *,
    nesterov: bool,
    weight_decay: float,
    scale: float,
) -> tuple[Real, ...]:
    """Return the new parameter, and the new velocity when there is one; the gradient counts ``scale`` times."""
    real = parameter.dtype.type
    step = gradient * real(scale) + real(weight_decay) * parameter
    if velocity is None:
        return (parameter - real(lr) * step,)
    velocity = real(momentum) * velocity + step
    return parameter - real(lr) * (step + real(momentum) * velocity if nesterov else velocity), velocity


def adam(
    parameter: Real,
    gradient: Real,
    averages: tuple[Real, Real],
    scalars: RunScalars,
    betas: tuple[float, float],
    *,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    scale: float,
) -> tuple[Real, Real, Real]:
    """Return the new parameter and the new averages of the gradient and its square (``spike.adam``)."""
    real = parameter.dtype.type
    corrections = [real(1 - beta ** (scalars.step + 1)) for beta in betas]
    step, rate = gradient * real(scale), real(scalars.lr)
    if decoupled:
        parameter = parameter * (1 - rate * real(weight_decay))
    else:
        step = step + real(weight_decay) * parameter
    mean = averages[0] + real(1 - betas[0]) * (step - averages[0])
    square = real(betas[1]) * averages[1] + real(1 - betas[1]) * step * step
    spread = np.sqrt(square) / np.sqrt(corrections[1]) + real(eps)
    return parameter - rate / corrections[0] * mean / spread, mean, square


def _cross_entropy(logits: Real, label: Labels) -> Real:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(_log(_exp(shifted).sum(axis=1)) - np.take_along_axis(shifted, label[:, None], axis=1)[:, 0])


def _mse(logits: Real, label: Labels, what: Loss) -> Real:
    real, difference = logits.dtype.type, logits - _targets(logits, label, what)
    return np.asarray((difference * difference).sum(axis=1) / real(logits.shape[1]) * real(what.share))


def _targets(logits: Real, label: Labels, what: Loss) -> Real:
    return np.where(_one_hot(logits, label) != 0, logits.dtype.type(what.hit), logits.dtype.type(what.miss))


def _one_hot(logits: Real, label: Labels) -> Real:
    return np.asarray(label[:, None] == np.arange(logits.shape[1]), dtype=logits.dtype)


def _exp(x: Real) -> Real:
    return numerics.exp(x) if x.dtype == np.float32 else np.asarray(np.exp(x))


def _log(x: Real) -> Real:
    return numerics.log(x) if x.dtype == np.float32 else np.asarray(np.log(x))
