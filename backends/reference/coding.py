"""Between reals and spike trains: input encodings, readouts, delays, and their adjoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics

from .arrays import Real, Spikes
from .training import RunScalars

Item = TypeVar("Item", bound=np.generic)


@dataclass(frozen=True)
class Dropout:
    """Dropout with its random stream: a value is 0 with ``probability`` (0 to below 1), else multiplied by ``factor``.

    What a sample drops is the same at all time steps, or drawn anew ``every_step``.
    """

    probability: float
    stream: int
    every_step: bool = False

    @property
    def share(self) -> np.float32:
        """The share of values that stay."""
        return np.float32(1 - self.probability)

    @property
    def factor(self) -> np.float32:
        """What they are multiplied by."""
        return np.float32(1 / (1 - self.probability))


def repeat(x: Real, time_steps: int) -> Real:
    """Return ``x`` ``[N,...]`` presented ``time_steps`` times, ``[T,N,...]``."""
    return np.broadcast_to(x, (time_steps, *x.shape))


def bernoulli(x: Real, time_steps: int, stream: int, scalars: RunScalars) -> Spikes:
    """Return spikes ``[T,N,...]`` with probability ``x`` ``[N,...]`` at every step.

    The random number of an element is keyed by the seed, the stream, its sample's number, its flat (channels-last)
    index in the sample, and the time step.
    """
    flat = x.reshape(len(x), -1)
    return (_uniform(flat.shape, time_steps, stream, scalars) < flat).reshape(time_steps, *x.shape)


def dropout(x: Real, what: Dropout, scalars: RunScalars) -> Real:
    """Return ``x`` ``[(T,)N,...,K]`` with values dropped, the others scaled."""
    return np.where(kept(x.shape, what, scalars), x * x.dtype.type(what.factor), x.dtype.type(0))


def kept(shape: Sequence[int], what: Dropout, scalars: RunScalars) -> Spikes:
    """Return which values of ``[(T,)N,...,K]`` stay; random numbers are keyed as those of :func:`bernoulli`.

    Where one draw serves all time steps, its step is 0.
    """
    outer, inner = (shape[:-3], shape[-3:]) if len(shape) > 3 else (shape[:-1], shape[-1:])
    ticks = outer[0] if what.every_step else 1
    drawn = _uniform((outer[-1], int(np.prod(inner))), ticks, what.stream, scalars) < what.share
    return np.broadcast_to(drawn.reshape(*(ticks, outer[-1])[-len(outer) :], *inner), tuple(shape))


def _uniform(shape: tuple[int, ...], time_steps: int, stream: int, scalars: RunScalars) -> Real:
    """Return ``[T,N,F]`` random numbers from 0 to below 1 for samples of F elements, ``shape`` (N, F)."""
    samples, elements = shape
    sample = ((scalars.first_sample + np.arange(samples, dtype=np.uint64)) & np.uint64(0xFFFFFFFF))[:, None]
    neuron = np.arange(elements, dtype=np.uint64)[None]
    return np.stack([numerics.uniform(scalars.seed, stream, sample, neuron, t) for t in range(time_steps)])


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
