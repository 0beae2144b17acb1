"""What only training needs: batch statistics, the loss, the optimizer's step."""

from __future__ import annotations

import numpy as np

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.numerics import complement_power, exp, log, round_to_storage
from h2learn.dialects.h2.layouts import F32, Bits, read_grads, read_numbers, read_real, write_grads, write_real

from .job import ONE, ZERO, Job


def statistics(job: Job) -> None:
    """Sums of batch normalisation over the valid samples."""
    kind, k = job.word("kind"), job.integer("k")
    rows = {"sum": 1, "square": 2, "product": 3}.get(kind)
    if rows is None:
        raise H2LearnError(f"v.stat cannot compute {kind}")
    par = read_real(job["par"], (rows, k), "f32")
    z, valid = _biased(job, par[0]), _valid(job)
    sums = job.sums("dst", (2, k) if kind == "product" else (1, k))
    total = np.zeros_like(sums)
    shape = z.shape
    g = read_grads(job["g"], shape, job.integer("gblk"), job.word("dtype"))[1] if rows == 3 else z
    for step, sample, position in np.ndindex(*shape[:3]):
        if not valid[sample]:
            continue
        here = step, sample, position
        if kind == "product":
            h = (z[here] - par[1]) * par[2]
            total = np.where(g[here] != 0, total + np.stack([g[here], g[here] * h]), total)
        else:
            total = total + (z[here] if kind == "sum" else (z[here] - par[1]) * (z[here] - par[1]))
    write_real(job["dst"], sums + total, "f32")


def fold(job: Job) -> None:
    """A batch statistic, and the running one that follows it."""
    k, kind, momentum = job.integer("k"), job.word("kind"), job.real("momentum")
    if kind not in ("mean", "deviation"):
        raise H2LearnError(f"v.fold cannot compute {kind}")
    count = _norm_count(job)
    statistic = read_real(job["src"], (k,), "f32") / np.float32(count)
    result = statistic
    if kind == "deviation":
        result = ONE / np.sqrt(statistic + job.real("eps"))
        full = count * job.integer("repeats")
        statistic = (statistic * np.float32(full)) / np.float32(max(full - 1, 1))
    write_real(job["dst"], result, "f32")
    run = read_real(job["run"], (k,), "f32")
    write_real(job["run"], (ONE - momentum) * run + momentum * statistic, "f32")


def normalise(job: Job) -> None:
    """Batch normalisation of a tile, or its gradient."""
    kind, k = job.word("kind"), job.integer("k")
    if kind not in ("forward", "backward"):
        raise H2LearnError(f"v.norm cannot compute {kind}")
    par = read_real(job["par"], (5 if kind == "forward" else 6, k), "f32")
    z = _biased(job, par[0])
    h = (z - par[1]) * par[2]
    if kind == "forward":
        write_real(job["dst"], h * par[3] + par[4], "f32")
        return
    dtype, gblk, count = job.word("dtype"), job.integer("gblk"), np.float32(_norm_count(job))
    g = read_grads(job["g"], z.shape, gblk, dtype)[1]
    inner = (g - par[4] / count) - h * (par[5] / count)
    result = round_to_storage((par[3] * par[2]) * inner, dtype)
    result[:, ~_valid(job)] = 0
    write_grads(job["dst"], result, gblk, dtype)


def loss(job: Job) -> None:
    """Loss and its gradient with respect to the logits."""
    n, k = job.size("n", "k")
    logits = read_real(job["logits"], (n, k), "f32")
    labels = read_numbers(job["label"], (n,), "i4")
    valid = int(read_numbers(job["scal"].offset(4), (1,), "u4")[0])
    samples = np.float32(max(valid, 1))
    total = job.sums("loss", ())
    grads = np.zeros((n, k), dtype=np.float32)
    for i in range(max(0, min(n, valid - job.coordinate("pos")))):
        if not 0 <= labels[i] < k:
            raise H2LearnError(f"label {labels[i]} of sample {i} is not a class of {k}")
        target = (np.arange(k) == labels[i]).astype(np.float32)
        value, grads[i] = _sample_loss(job, logits[i], target, samples)
        total = total + value / samples
    write_real(job["loss"], np.asarray(total, dtype=np.float32), "f32")
    write_real(job["grad"], grads, "f32")


def optimize(job: Job) -> None:
    """An optimizer's step."""
    shape, adam = job.size("n"), job.word("kind") in ("adam", "adamw")
    rate, decay = read_real(job["scal"], (1,), "f32")[0], job.real("decay")
    p = read_real(job["p"], shape, "f32")
    step = read_real(job["g"], shape, "f32") * job.real("scale")
    if job.word("kind") == "adamw":
        p = p * (ONE - rate * decay)
    elif decay != 0:
        step = step + decay * p
    p = p - (_adam_change(job, step, rate) if adam else rate * _sgd_direction(job, step))
    write_real(job["p"], p, "f32")
    if job.word("dtype") == "f16":
        write_real(job["w"], p, "f16")


def _sample_loss(job: Job, logits: F32, target: F32, samples: np.float32) -> tuple[np.float32, F32]:
    """Return the loss of one sample and its part of the gradient."""
    if job.word("kind") == "cross_entropy":
        top = logits.max()
        powers = exp(logits - top)
        total = _ascending_sum(powers)
        value = log(total) - (logits[target != 0][0] - top)
        return np.float32(value), (powers / total - target) / samples * job.real("p0")
    if job.word("kind") != "mse":
        raise H2LearnError(f"v.loss cannot compute {job.word('kind')}")
    classes = np.float32(len(logits))
    difference = logits - np.where(target != 0, job.real("hit"), job.real("miss"))
    grads = difference * np.float32(2) / (samples * classes) * job.real("p0")
    return _ascending_sum(difference * difference) / classes * job.real("share"), grads


def _sgd_direction(job: Job, step: F32) -> F32:
    """Update the velocity, if any; return where the parameters go."""
    momentum = job.real("momentum")
    if momentum == 0:
        return step
    velocity = momentum * read_real(job["mom"], step.shape, "f32") + step
    write_real(job["mom"], velocity, "f32")
    return step + momentum * velocity if job.word("kind") == "nesterov" else velocity


def _adam_change(job: Job, step: F32, rate: np.float32) -> F32:
    """Update both averages; return what the parameters lose."""
    count = int(read_numbers(job["scal"].offset(8), (1,), "u4")[0]) + 1
    rate1, rate2 = job.real("rate1"), job.real("rate2")
    mean = read_real(job["mom"], step.shape, "f32")
    mean = mean + rate1 * (step - mean)
    square = (ONE - rate2) * read_real(job["sq"], step.shape, "f32") + rate2 * step * step
    write_real(job["mom"], mean, "f32")
    write_real(job["sq"], square, "f32")
    spread = np.sqrt(square) / np.sqrt(complement_power(rate2, count)) + job.real("eps")
    return np.asarray(rate / complement_power(rate1, count) * mean / spread)


def _biased(job: Job, bias: F32) -> F32:
    """Return the currents of a tile ``[steps,n,positions,k]`` with their bias."""
    return read_real(job["x"], job.size("steps", "n", "positions", "k"), "f32") + bias


def _valid(job: Job) -> Bits:
    """Return which samples of a tile are there."""
    valid = int(read_numbers(job["scal"].offset(4), (1,), "u4")[0])
    return np.asarray(job.coordinate("pos") + np.arange(job.integer("n")) < valid)


def _norm_count(job: Job) -> int:
    """Return how many values per channel the statistics have."""
    return max(int(read_numbers(job["scal"].offset(4), (1,), "u4")[0]), 1) * job.integer("count")


def _ascending_sum(values: F32) -> np.float32:
    total = ZERO
    for value in values:
        total = total + value
    return total
