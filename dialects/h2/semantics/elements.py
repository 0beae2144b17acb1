"""Element by element and window by window on the vector unit: pooling, random numbers, sums over time, formats."""

from __future__ import annotations

import numpy as np

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.numerics import exp, round_to_storage, uniform
from h2learn.dialects.h2.layouts import (
    F32,
    Bits,
    read_bits,
    read_grads,
    read_numbers,
    read_real,
    write_bits,
    write_grads,
    write_numbers,
    write_real,
)

from .job import Ints, Job, transposed_taps


def bit_planes(job: Job) -> None:
    """Bit-planes of fixed-point numbers."""
    n, k, planes, frac = job.size("n", "k", "planes", "frac")
    if not planes:
        raise H2LearnError("a number needs at least one bit-plane")
    values = read_real(job["src"], (n, k), job.word("dtype"))
    scaled = values.astype(np.float64) * 2.0**frac
    offset = 2.0 ** (planes - 1) if job.word("signed") == "yes" else 0.0
    if not np.all((scaled % 1 == 0) & (scaled >= -offset) & (scaled < 2.0**planes - offset)):
        raise H2LearnError(f"v.pack met a value that {planes} planes down to 2^{-frac} cannot hold")
    numbers = scaled.astype(np.int64) % (1 << planes)
    write_bits(job["dst"], (numbers[:, None] >> np.arange(planes)[:, None]) % 2 == 1)


def pool(job: Job) -> None:
    """Pooling; max keeps the winners."""
    imgs, k = job.size("imgs", "k")
    kind, source, result = job.word("kind"), job.word("src"), job.word("dst")
    legal = {("max", "bits", "bits"), ("max", "f32", "f32")}
    legal |= {(sum_of, *formats) for sum_of in ("avg", "sum") for formats in (("bits", "storage"), ("f32", "f32"))}
    if (kind, source, result) not in legal:
        raise H2LearnError(f"v.pool cannot do {kind} from {source} to {result}")
    shape = (imgs, job.input_rows, job.input_columns, k)
    tile = read_bits(job["src"], shape).astype(np.float32) if source == "bits" else read_real(job["src"], shape, "f32")
    seen = [job.window(tile, ky, kx).astype(np.float32) for ky, kx in job.taps]
    if kind != "max":
        total = np.zeros_like(seen[0])
        for element in seen:
            total = total + element
        value = total / np.float32(len(seen)) if kind == "avg" else total
        write_real(job["dst"], value, "f32" if result == "f32" else job.word("dtype"))
        return
    counts = np.zeros(tile.shape, dtype=np.bool_)
    counts[:, _inside(job, "y", job.input_rows)[:, None] & _inside(job, "x", job.input_columns)] = True
    value, winner, found = seen[0], np.zeros(seen[0].shape, dtype=np.uint8), np.zeros(seen[0].shape, dtype=np.bool_)
    for tap, (element, (ky, kx)) in enumerate(zip(seen, job.taps, strict=True)):
        here = job.window(counts, ky, kx).astype(np.bool_)
        better = here & (~found | (element > value) | (np.isnan(element) & ~np.isnan(value)))
        value, winner, found = np.where(better, element, value), np.where(better, np.uint8(tap), winner), found | here
    write_numbers(job["idx"], winner, "u1")
    if result == "bits":
        write_bits(job["dst"], value != 0)
    else:
        write_real(job["dst"], value, "f32")


def _inside(job: Job, axis: str, size: int) -> Bits:
    """Return which rows (``y``) or columns (``x``) of a source tile take part in a maximum."""
    limit, place = job.integer(f"{axis}lim"), job.coordinate(axis) + np.arange(size)
    return (place >= 0) & (place < limit) if limit else np.ones(size, dtype=np.bool_)


def unpool(job: Job) -> None:
    """Gradient of pooling."""
    imgs, oh, ow, k, gh, gw, gblk = job.size("imgs", "oh", "ow", "k", "gh", "gw", "gblk")
    source, dtype, most = job.word("src"), job.word("dtype"), job.word("kind") == "max"
    if source not in ("f32", "slots") or job.word("dst") != source:
        raise H2LearnError(f"v.unpool cannot make {job.word('dst')} from {source}")
    shape = (imgs, gh, gw, k)
    live = np.ones(shape, dtype=np.bool_)
    if source == "slots":
        live, values = read_grads(job["src"], shape, gblk, dtype)
    else:
        values = read_real(job["src"], shape, "f32")
    winner = read_numbers(job["idx"], shape, "u1") if most else np.zeros(shape, dtype=np.uint8)
    shares = values / np.float32(len(job.taps)) if job.word("kind") == "avg" else values
    total = np.zeros((imgs, oh, ow, k), dtype=np.float32)
    for tap, (to, pooled) in transposed_taps(job):
        adds = live[pooled] & ((winner[pooled] == tap) | (not most))
        total[to] = np.where(adds, total[to] + shares[pooled], total[to])
    if source == "slots":
        write_grads(job["dst"], round_to_storage(total, dtype), gblk, dtype)
    else:
        write_real(job["dst"], total, "f32")


def spread(job: Job) -> None:
    """Gradient of a maximum over time."""
    n, k, steps = job.size("n", "k", "steps")
    first = _first_maximum(read_real(job["x"], (steps, n, k), job.word("dtype")))
    gradient = read_real(job["src"], (n, k), "f32")
    result = np.zeros((steps, n, k), dtype=np.float32)
    np.put_along_axis(result, first[None], gradient[None], axis=0)
    write_real(job["dst"], result, "f32")


def elementwise(job: Job) -> None:
    """A change of format, a sum of two values, a gate, a learned constant or its gradient."""
    shape, kind = job.size("n", "k"), job.word("kind")
    values = _values(job, "a", shape)
    if kind == "add":
        values = values + _values(job, "b", shape)
    elif kind in ("keep", "drop", "negate"):
        fires = _values(job, "b", shape) != 0
        if kind == "drop":
            values = np.where(fires, np.float32(0), values)
        else:
            values = np.where(fires, values if kind == "keep" else -values, np.float32(0))
    elif kind in ("sigmoid", "falling", "unit"):
        values = _learned(kind, values)
    elif kind in ("sigmoid_slope", "falling_slope"):
        value = _learned("sigmoid", _values(job, "b", shape))
        values = values * (value * (np.float32(1) - value))
        values = values if kind == "sigmoid_slope" else -values
    elif kind == "unit_slope":
        w = _values(job, "b", shape)
        values = np.where((w >= 0) & (w <= 1), values, np.float32(0))
    elif kind != "copy":
        raise H2LearnError(f"v.map cannot compute {kind}")
    _write_values(job, values)


def _learned(kind: str, w: F32) -> F32:
    """Return a learned constant."""
    one = np.float32(1)
    if kind == "unit":
        return np.where(w < 0, np.float32(0), np.where(w > 1, one, w))
    return np.asarray(one / (one + exp(-w if kind == "sigmoid" else w)))


def _write_values(job: Job, values: F32) -> None:
    """Write the result of element-wise work in the format that the descriptor gives it."""
    target, dtype = job.word("dst"), job.word("dtype")
    if target == "bits":
        write_bits(job["dst"], values != 0)
    elif target == "slots":
        write_grads(job["dst"], round_to_storage(values, dtype), job.integer("gblk"), dtype)
    else:
        write_real(job["dst"], values, "f32" if target == "f32" else dtype)


def _values(job: Job, operand: str, shape: tuple[int, ...]) -> F32:
    """Return an operand of ``v.map`` ``[n, k]`` in the format that the descriptor gives it."""
    form = job.word(operand)
    if form == "bits":
        return read_bits(job[operand], shape).astype(np.float32)
    if form == "slots":
        return read_grads(job[operand], shape, job.integer("gblk"), job.word("dtype"))[1]
    if form == "row":
        return np.broadcast_to(read_real(job[operand], shape[-1:], "f32"), shape)
    return read_real(job[operand], shape, "f32" if form == "f32" else job.word("dtype"))


def rng(job: Job) -> None:
    """Bernoulli spikes."""
    n, steps, k = job.size("n", "steps", "k")
    spikes = _draw(job) < read_real(job["src"], (n * steps, k), "f32")
    write_bits(job["dst"], spikes)


def drop(job: Job) -> None:
    """Dropout: values that stay are scaled."""
    n, steps, k = job.size("n", "steps", "k")
    values = _values(job, "a", (n * steps, k)) * job.real("share")
    _write_values(job, np.where(_draw(job) < job.real("p0"), values, np.float32(0)))


def _draw(job: Job) -> F32:
    """Return the random numbers of n samples of steps positions, ``[n*steps, k]``."""
    n, steps, k = job.size("n", "steps", "k")
    seed, first = (int(word) for word in read_numbers(job["scal"].offset(16), (2,), "u8"))
    sample = (first + job.coordinate("pos") + np.arange(n, dtype=object)) & 0xFFFFFFFF
    neuron = (job.coordinate("neu") + np.arange(steps * k)) & 0xFFFFFFFF
    tick = job.coordinate("tick") & 0xFFFFFFFF
    draw = uniform(seed, job.integer("stream"), sample.astype(np.uint64)[:, None], neuron[None, :], tick)
    return draw.reshape(n * steps, k)


def reduce(job: Job) -> None:
    """Reductions over time or positions."""
    n, k, steps = job.size("n", "k", "steps")
    kind, dtype, gblk = job.word("kind"), job.word("dtype"), job.integer("gblk")
    if kind in ("rate", "count"):
        count = np.count_nonzero(read_bits(job["src"], (steps, n, k)), axis=0).astype(np.float32)
        write_real(job["dst"], count / np.float32(steps) if kind == "rate" else count, "f32")
    elif kind == "max":
        values = read_real(job["src"], (steps, n, k), dtype)
        write_real(job["dst"], np.take_along_axis(values, _first_maximum(values)[None], axis=0)[0], "f32")
    elif kind in ("mean", "sum", "last"):
        values = read_real(job["src"], (steps, n, k), dtype)
        total = np.zeros((n, k), dtype=np.float32)
        for step in range(steps):
            total = total + values[step]
        total = total / np.float32(steps) if kind == "mean" else total
        write_real(job["dst"], values[-1] if kind == "last" else total, "f32")
    elif kind == "tsum":
        live, values = read_grads(job["src"], (steps, n, k), gblk, dtype)
        total = np.zeros((n, k), dtype=np.float32)
        for step in reversed(range(steps)):
            total = np.where(live[step], total + values[step], total)
        write_grads(job["dst"], round_to_storage(total, dtype), gblk, dtype)
    elif kind == "bias":
        live, values = read_grads(job["src"], (n, k), gblk, dtype)
        bias = job.sums("dst", (k,))
        for position in range(n):
            bias = np.where(live[position], bias + values[position], bias)
        write_real(job["dst"], bias, "f32")
    else:
        raise H2LearnError(f"v.reduce cannot compute {kind}")


def _first_maximum(values: F32) -> Ints:
    """Return the first step with the largest value, or with the first NaN."""
    ranked = np.where(np.isnan(values), np.inf, values)
    first_nan = np.isnan(values).argmax(axis=0)
    return np.asarray(np.where(np.isnan(values).any(axis=0), first_nan, ranked.argmax(axis=0)), dtype=np.int64)
