"""Look-ups and multipliers: tables, currents, input gradients and weight gradients."""

from __future__ import annotations

from itertools import product

import numpy as np

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.numerics import round_to_storage
from h2learn.dialects.h2.layouts import F32, Bits, read_bits, read_grads, read_real, write_real

from .job import ONE, ZERO, Ints, Job, transposed_taps


def fe_fill(job: Job) -> None:
    """Build look-up tables."""
    taps, c, k, fan = len(job.taps), *job.size("c", "k", "fan")
    weights = np.zeros((taps, job.groups * fan, k), dtype=np.float32)
    weights[:, :c] = read_real(job["w"], (taps, c, k), job.word("dtype"))
    write_real(job["lut"], _table(weights.reshape(taps, job.groups, fan, k), job.word("dtype")), job.word("dtype"))


def fe_run(job: Job) -> None:
    """Forward convolution of spikes by look-up, or of bit-planes, whose entries count by the weight of their plane."""
    imgs, oh, ow, c, k, fan, planes = job.size("imgs", "oh", "ow", "c", "k", "fan", "planes")
    tables = read_real(job["lut"], (len(job.taps), job.groups, 1 << fan, k), job.word("dtype"))
    tile = (imgs, job.input_rows, job.input_columns, max(1, planes))
    spikes = np.zeros((*tile, job.groups * fan), dtype=np.bool_)
    spikes[..., :c] = read_bits(job["s"], (*tile, c))
    patterns = _patterns(spikes.reshape(*tile, job.groups, fan))
    weights = [np.float32(2.0) ** (plane - job.integer("frac")) for plane in range(planes)] or [ONE]
    if planes and job.word("signed") == "yes":
        weights[-1] = -weights[-1]
    acc = job.sums("acc", (imgs, oh, ow, k))
    for tap, (ky, kx) in enumerate(job.taps):
        seen = job.window(patterns, ky, kx)
        for group, (plane, weight) in product(range(job.groups), enumerate(weights)):
            pattern = seen[..., plane, group].astype(np.int64)
            acc = np.where(pattern[..., None] != 0, acc + weight * tables[tap, group][pattern], acc)
    write_real(job["acc"], acc, "f32")


def be_forward(job: Job) -> None:
    """Forward convolution of real numbers."""
    imgs, oh, ow, c, k = job.size("imgs", "oh", "ow", "c", "k")
    x = read_real(job["x"], (imgs, job.input_rows, job.input_columns, c), job.word("dtype"))
    weights = read_real(job["w"], (len(job.taps), c, k), job.word("dtype"))
    acc = job.sums("acc", (imgs, oh, ow, k))
    for tap, (ky, kx) in enumerate(job.taps):
        seen = job.window(x, ky, kx).astype(np.float32)
        for channel in range(c):
            factor = seen[..., channel, None]
            acc = np.where(factor != 0, acc + factor * weights[tap, channel], acc)
    write_real(job["acc"], acc, "f32")


def be_run(job: Job) -> None:
    """Input gradient of a convolution."""
    imgs, oh, ow, c, k = job.size("imgs", "oh", "ow", "c", "k")
    gh, gw, gblk = job.size("gh", "gw", "gblk")
    dtype = job.word("dtype")
    live, gradients = read_grads(job["g"], (imgs, gh, gw, k), gblk, dtype)
    weights = read_real(job["w"], (len(job.taps), c, k), dtype)
    acc = job.sums("acc", (imgs, oh, ow, c))
    for tap, (to, source) in transposed_taps(job):
        part = acc[to]
        for channel in range(k):
            term = gradients[source][..., channel, None] * weights[tap, :, channel]
            part = np.where(live[source][..., channel, None], part + term, part)
        acc[to] = part
    if job.words["masked"] == "yes":
        acc = np.where(read_bits(job["m"], (imgs, oh, ow, c)), acc, ZERO)
    write_real(job["acc"], acc, "f32")


def be_weights(job: Job) -> None:
    """Weight gradient for real inputs."""
    imgs, oh, ow, c, k = job.size("imgs", "oh", "ow", "c", "k")
    x = read_real(job["x"], (imgs, job.input_rows, job.input_columns, c), job.word("dtype"))
    live, gradients = read_grads(job["g"], (imgs * oh * ow, k), job.integer("gblk"), job.word("dtype"))
    seen = np.stack([job.window(x, ky, kx).reshape(-1, c) for ky, kx in job.taps], axis=1).astype(np.float32)
    acc = job.sums("acc", (len(job.taps), c, k))
    for position in range(imgs * oh * ow):
        factor = seen[position][:, :, None]
        acc = np.where((factor != 0) & live[position], acc + factor * gradients[position], acc)
    write_real(job["acc"], acc, "f32")


def wu_run(job: Job) -> None:
    """Weight gradient for spikes by look-up."""
    imgs, oh, ow, c, k, fan = job.size("imgs", "oh", "ow", "c", "k", "fan")
    if not fan:
        raise H2LearnError("a look-up table needs a fan-in of at least 1")
    positions = imgs * oh * ow
    groups = -(-positions // fan)
    spikes = read_bits(job["s"], (imgs, job.input_rows, job.input_columns, c))
    seen = np.zeros((groups * fan, len(job.taps), c), dtype=np.bool_)
    seen[:positions] = np.stack([job.window(spikes, ky, kx).reshape(-1, c) for ky, kx in job.taps], axis=1)
    gradients = np.zeros((groups * fan, k), dtype=np.float32)
    gradients[:positions] = read_grads(job["g"], (positions, k), job.integer("gblk"), job.word("dtype"))[1]
    patterns = _patterns(np.moveaxis(seen.reshape(groups, fan, len(job.taps), c), 1, -1))
    tables = _table(gradients.reshape(groups, fan, k), job.word("dtype"))
    acc = job.sums("acc", (len(job.taps), c, k))
    for group in range(groups):
        pattern = patterns[group]
        acc = np.where(pattern[..., None] != 0, acc + tables[group][pattern], acc)
    write_real(job["acc"], acc, "f32")


def _table(parts: F32, dtype: str) -> F32:
    """Return tables ``[..., 2^n, k]`` of rounded partial sums of ``parts`` ``[..., n, k]``."""
    *outer, fan, k = parts.shape
    entries = np.zeros((*outer, 1 << fan, k), dtype=np.float32)
    for pattern in range(1, 1 << fan):
        lowest = (pattern & -pattern).bit_length() - 1
        rest = pattern & (pattern - 1)
        entries[..., pattern, :] = round_to_storage(entries[..., rest, :] + parts[..., lowest, :], dtype)
    return entries


def _patterns(bits: Bits) -> Ints:
    """Return the numbers whose bits are the last axis, lowest first."""
    return np.asarray((bits.astype(np.int64) << np.arange(bits.shape[-1])).sum(axis=-1), dtype=np.int64)
