"""Batch normalisation over time, samples and positions, per channel, and its adjoint.

Source: Ioffe & Szegedy, "Batch Normalization" (ICML 2015); statistics over time steps as well: Zheng et al.,
"Going Deeper With Directly-Trained Larger Spiking Neural Networks" (AAAI 2021).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .arrays import Real


class Normalised(NamedTuple):
    """``y`` of the input's shape; all else ``[K]``: what the batch had, and the running statistics after it."""

    y: Real
    mean: Real
    inverse: Real
    running_mean: Real
    running_variance: Real


def normalise(x: Real, weight: Real, shift: Real, mean: Real, variance: Real, eps: float) -> Real:
    """Return ``(x - mean) / sqrt(variance + eps) * weight + shift``; all but ``x`` ``[...,K]`` are ``[K]``."""
    return (x - mean) / np.sqrt(variance + x.dtype.type(eps)) * weight + shift


def normalise_batch(
    x: Real,
    weight: Real,
    shift: Real,
    running: tuple[Real, Real],
    valid: int,
    *,
    eps: float,
    momentum: float,
    repeats: int,
) -> Normalised:
    """Normalise ``x`` ``[(T,)N,...,K]`` by the statistics of its first ``valid`` samples.

    The running mean and (unbiased) variance move by ``momentum``; every value counts ``repeats`` times.
    """
    real, used = x.dtype.type, _rows(x, valid)
    count = _count(x, valid)
    mean = used.sum(axis=0) / real(count)
    variance = np.square(used - mean).sum(axis=0) / real(count)
    inverse = 1 / np.sqrt(variance + real(eps))
    unbiased = variance * real(count * repeats) / real(max(count * repeats - 1, 1))
    kept, new = real(1 - momentum), real(momentum)
    return Normalised(
        (x - mean) * inverse * weight + shift,
        mean,
        inverse,
        kept * running[0] + new * mean,
        kept * running[1] + new * unbiased,
    )


def normalise_gradient(
    gradient: Real, x: Real, weight: Real, mean: Real, inverse: Real, valid: int
) -> tuple[Real, Real, Real]:
    """Return the gradients of ``x``, ``weight`` and ``shift``; those of samples from ``valid`` on are 0."""
    real, count = x.dtype.type, _count(x, valid)
    scaled = (x - mean) * inverse
    shift = _rows(gradient, valid).sum(axis=0)
    product = _rows(gradient * scaled, valid).sum(axis=0)
    inner = gradient - shift / real(count) - scaled * (product / real(count))
    result = weight * inverse * inner
    result[(slice(None),) * _sample_axis(x) + (slice(valid, None),)] = 0
    return result, product, shift


def _sample_axis(x: Real) -> int:
    return 1 if x.ndim in (3, 5) else 0


def _rows(x: Real, valid: int) -> Real:
    """Return the values of the first ``valid`` samples as ``[count,K]``."""
    return x.swapaxes(0, _sample_axis(x))[:valid].reshape(-1, x.shape[-1])


def _count(x: Real, valid: int) -> int:
    """Return how many values per channel count."""
    return int(x.size // x.shape[-1] // x.shape[_sample_axis(x)] * max(valid, 1))
