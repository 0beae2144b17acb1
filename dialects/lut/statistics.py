"""Batch normalisation as the ``lut`` interpreter sees it; see ``v.stat``, ``v.fold`` and ``v.norm``."""

from __future__ import annotations

import numpy as np

from h2learn.backends.h2learn.numerics import round_to_storage

from .base import Block
from .normalisation import NormStatsOp
from .vector import F32, Bits, Ints, position_blocks

ONE = np.float32(1)


def batch_statistics(op: NormStatsOp, z: F32, running: tuple[F32, F32], scalars: Ints) -> tuple[F32, F32, F32, F32]:
    """Return mean and inverse deviation of the biased currents ``z``, and the running statistics after them."""
    count, momentum = _value_count(z, scalars), np.float32(op.momentum)
    counted = np.broadcast_to(_valid(z, scalars), z.shape[:-1])
    mean = _block_sums(z, counted, op.reduce_block) / np.float32(count)
    away = z - mean
    variance = _block_sums(away * away, counted, op.reduce_block) / np.float32(count)
    inverse = ONE / np.sqrt(variance + np.float32(op.eps))
    full = count * op.repeats
    unbiased = (variance * np.float32(full)) / np.float32(max(full - 1, 1))
    kept = ONE - momentum
    return mean, inverse, kept * running[0] + momentum * mean, kept * running[1] + momentum * unbiased


def normalised(z: F32, mean: F32, inverse: F32, weight: F32, shift: F32) -> F32:
    """Return the normalised currents."""
    return ((z - mean) * inverse) * weight + shift


def gradient_sums(z: F32, g: F32, mean: F32, inverse: F32, scalars: Ints, block: Block) -> tuple[F32, F32]:
    """Return the sums of ``g * normalised`` and of ``g``; where ``g`` is 0 nothing is added."""
    live = _valid(z, scalars)[..., None] & (g != 0)
    normal = (z - mean) * inverse
    return _block_sums(g * normal, live, block), _block_sums(g, live, block)


def gradient(z: F32, g: F32, rows: tuple[F32, F32, F32], sums: tuple[F32, F32], scalars: Ints, dtype: str) -> F32:
    """Return the gradient of ``z``; ``rows``: mean, inverse, weight; ``sums``: of ``g * normalised`` and of ``g``."""
    mean, inverse, weight = rows
    count = np.float32(_value_count(z, scalars))
    normal = (z - mean) * inverse
    inner = (g - sums[1] / count) - normal * (sums[0] / count)
    result = round_to_storage((weight * inverse) * inner, dtype)
    return np.where(_valid(z, scalars)[..., None] & (result != 0), result, np.float32(0))


def _valid(z: F32, scalars: Ints) -> Bits:
    """Return which positions ``[(T,)N,H,W]`` belong to samples that are there (time, rows, columns broadcast)."""
    return np.asarray(np.arange(z.shape[-4]) < int(scalars.view(np.uint32)[1]))[:, None, None]


def _value_count(z: F32, scalars: Ints) -> int:
    per_sample = int(z.size // z.shape[-1] // z.shape[-4])
    return max(int(scalars.view(np.uint32)[1]), 1) * per_sample


def _block_sums(values: F32, counted: Bits, block: Block) -> F32:
    """Return the sum per channel of ``[(T,)N,H,W,K]``: block by block, each from +0 and then added."""
    timed = values.reshape(-1, *values.shape[-4:])
    flags = _spread(counted, values).reshape(timed.shape)
    total: F32 = np.zeros(values.shape[-1], dtype=np.float32)
    for cut in position_blocks(timed.shape[:4], block):
        rows, adds = timed[cut].reshape(-1, values.shape[-1]), flags[cut].reshape(-1, values.shape[-1])
        part: F32 = np.zeros_like(total)
        for row, add in zip(rows, adds, strict=True):
            part = np.where(add, part + row, part)
        total += part
    return total


def _spread(counted: Bits, values: F32) -> Bits:
    """Return one flag per value."""
    flags = counted if counted.ndim == values.ndim else counted[..., None]
    return np.broadcast_to(flags, values.shape)
