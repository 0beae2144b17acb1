"""Between reals and spike trains: input encodings, readouts, delays, and their adjoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics

from .arrays import Real, Spikes
from .training import RunScalars

Item = TypeVar("Item", bound=np.generic)


def repeat(x: Real, time_steps: int) -> Real:
    """Return ``x`` ``[N,...]`` presented ``time_steps`` times, ``[T,N,...]``."""
    return np.broadcast_to(x, (time_steps, *x.shape))


def bernoulli(x: Real, time_steps: int, stream: int, scalars: RunScalars) -> Spikes:
    """Return spikes ``[T,N,...]`` with probability ``x`` ``[N,...]`` at every step.

    The random number of an element is keyed by the seed, the stream, its sample's number, its flat (channels-last)
    index in the sample, and the time step.
    """
    flat = x.reshape(len(x), -1)
    sample = ((scalars.first_sample + np.arange(len(x), dtype=np.uint64)) & np.uint64(0xFFFFFFFF))[:, None]
    neuron = np.arange(flat.shape[1], dtype=np.uint64)[None]
    ticks = [numerics.uniform(scalars.seed, stream, sample, neuron, t) < flat for t in range(time_steps)]
    return np.stack(ticks).reshape(time_steps, *x.shape)


def delay(x: npt.NDArray[Item], steps: Sequence[int]) -> npt.NDArray[Item]:
    """Return ``x`` ``[T,N,...,K]`` ``steps`` later (one number, or one per channel), with zeros in front."""
    result = np.zeros_like(x)
    channels = np.broadcast_to(steps, x.shape[-1:])
    for late in np.unique(channels):
        result[late:, ..., channels == late] = x[: max(len(x) - late, 0), ..., channels == late]
    return result


def readout(x: Real, kind: str) -> Real:
    """Return logits ``[N,K]`` of ``x`` ``[T,N,K]``: mean over time (of spikes: their rate), count, last or maximum."""
    if kind == "membrane_last":
        return np.asarray(x[-1].copy())
    if kind == "membrane_max":
        return np.asarray(x.max(axis=0))
    total = np.asarray(x.sum(axis=0))
    return total if kind == "count" else np.asarray(total / x.dtype.type(len(x)))


def readout_gradient(gradient: Real, kind: str, time_steps: int) -> Real:
    """Return the gradient ``[T,N,K]`` of what was read out."""
    if kind == "count":
        return repeat(gradient, time_steps)
    if kind != "membrane_last":
        return repeat(gradient / gradient.dtype.type(time_steps), time_steps)
    result = np.zeros((time_steps, *gradient.shape), dtype=gradient.dtype)
    result[-1] = gradient
    return result


def maximum_gradient(gradient: Real, x: Real) -> Real:
    """Return the gradient of ``x`` ``[T,N,K]``: ``gradient`` ``[N,K]`` at the first step with the maximum, else 0."""
    first = np.arange(len(x))[:, None, None] == x.argmax(axis=0)
    return np.where(first, gradient, gradient.dtype.type(0))
