"""What only training needs: batch statistics, the loss, the optimizer's step."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics

from .job import F32, ONE, ZERO, Buffers, Params, integers, real


def _norm_values(b: Buffers, p: Params) -> tuple[F32, npt.NDArray[np.bool_]]:
    """Return the biased currents ``[steps,n,positions,k]`` and which of the samples are valid."""
    steps, n, positions, k, first = integers(p, "steps", "n", "positions", "k", "pos")
    counts = np.ones(n, np.bool_)
    if "scal" in b:
        counts = first + np.arange(n) < int(b["scal"].view(np.uint32)[1])
    return b["x"].reshape(steps, n, positions, k) + b["par"][0], counts


def statistics(b: Buffers, p: Params, fresh: bool) -> None:
    """Sums of batch normalisation over the valid samples."""
    z, counts = _norm_values(b, p)
    k = z.shape[-1]
    used = z[:, counts].reshape(-1, k)
    total: F32 = np.zeros((2, k), np.float32)
    if p["kind"] == "product":
        mean, inverse = b["par"][1:3]
        gradient = b["g"].reshape(z.shape)[:, counts].reshape(-1, k)
        for g, h in zip(gradient, (used - mean) * inverse, strict=True):
            total = np.where(g != 0, total + np.stack([g, g * h]), total)
    else:
        away = used if p["kind"] == "sum" else np.square(used - b["par"][1])
        for row in away:
            total[0] = total[0] + row
    total = total.reshape(-1)[: b["dst"].size].reshape(b["dst"].shape)
    b["dst"][...] = (np.zeros_like(total) if fresh else b["dst"]) + total


def _value_count(b: Buffers, p: Params) -> int:
    return max(int(b["scal"].view(np.uint32)[1]), 1) * int(p["count"])


def fold(b: Buffers, p: Params, fresh: bool) -> None:
    """A batch statistic, and the running one that follows it."""
    count, momentum = _value_count(b, p), real(p, "momentum")
    statistic = b["src"].reshape(b["dst"].shape) / np.float32(count)
    b["dst"][...] = statistic
    if p["kind"] == "deviation":
        b["dst"][...] = ONE / np.sqrt(statistic + real(p, "eps"))
        full = count * int(p["repeats"])
        statistic = statistic * np.float32(full) / np.float32(max(full - 1, 1))
    b["run"][...] = (ONE - momentum) * b["run"] + momentum * statistic.reshape(b["run"].shape)


def normalise(b: Buffers, p: Params, fresh: bool) -> None:
    """Batch normalisation of a tile, or its gradient."""
    z, counts = _norm_values(b, p)
    mean, inverse, weight = b["par"][1:4]
    h = (z - mean) * inverse
    if p["kind"] == "forward":
        b["dst"][...] = (h * weight + b["par"][4]).reshape(b["dst"].shape)
        return
    count = np.float32(_value_count(b, p))
    away = b["g"].reshape(z.shape) - b["par"][4] / count - h * (b["par"][5] / count)
    result = numerics.round_to_storage(weight * inverse * away, str(p["dtype"]))
    b["dst"][...] = np.where(counts[:, None, None], result, ZERO).reshape(b["dst"].shape)


def loss(b: Buffers, p: Params, fresh: bool) -> None:
    """Loss and gradient of the valid samples."""
    n, k, first = integers(p, "n", "k", "pos")
    valid = int(b["scal"].view(np.uint32)[1])
    count = np.float32(max(valid, 1))
    logits, scale = b["logits"].reshape(n, k), real(p, "scale")
    gradient = np.zeros((n, k), np.float32)
    loss = ZERO if fresh else np.float32(b["loss"].reshape(-1)[0])
    for i in range(min(n, valid - first)):
        label = int(b["label"].reshape(-1)[i])
        if not 0 <= label < k:
            raise ValueError(f"label {label} is outside 0..{k - 1}")
        target = (np.arange(k) == label).astype(np.float32)
        if p["kind"] == "cross_entropy":
            shifted = logits[i] - logits[i].max()
            powers = numerics.exp(shifted)
            norm = _ordered_sum(powers)
            value = np.float32(numerics.log(norm) - shifted[label])
            gradient[i] = (powers / norm - target) / count * scale
        else:
            error = logits[i] - np.where(target != 0, real(p, "hit"), real(p, "miss"))
            value = np.float32(_ordered_sum(error * error) / np.float32(k) * real(p, "share"))
            gradient[i] = error * np.float32(2) / (count * np.float32(k)) * scale
        loss = np.float32(loss + value / count)
    b["loss"][...] = loss
    b["grad"][...] = gradient.reshape(b["grad"].shape)


def _ordered_sum(values: F32) -> np.float32:
    total = ZERO
    for value in values:
        total = np.float32(total + value)
    return total


def optimize(b: Buffers, p: Params, fresh: bool) -> None:
    """A step of the optimizer."""
    rate, decay, momentum = b["scal"].view(np.float32)[0], real(p, "decay"), real(p, "momentum")
    gradient: F32 = b["g"].reshape(b["p"].shape) * real(p, "scale")
    if p["kind"] == "adamw":
        b["p"][...] = b["p"] * (ONE - rate * decay)
    elif decay != 0:
        gradient += decay * b["p"]
    if p["kind"] in ("adam", "adamw"):
        _adam(b, p, gradient)
    elif momentum == 0:
        b["p"][...] = b["p"] - rate * gradient
    else:
        b["mom"][...] = momentum * b["mom"] + gradient
        direction = gradient + momentum * b["mom"] if p["kind"] == "nesterov" else b["mom"]
        b["p"][...] = b["p"] - rate * direction
    if p["dtype"] == "f16":
        b["w"][...] = numerics.round_to_storage(b["p"], "f16")


def _adam(b: Buffers, p: Params, gradient: F32) -> None:
    rate1, rate2 = real(p, "rate1"), real(p, "rate2")
    count = int(b["scal"].view(np.uint32)[2]) + 1
    b["mom"][...] = b["mom"] + rate1 * (gradient - b["mom"])
    b["sq"][...] = (ONE - rate2) * b["sq"] + rate2 * gradient * gradient
    size = b["scal"].view(np.float32)[0] / numerics.complement_power(rate1, count)
    spread = np.sqrt(b["sq"]) / np.sqrt(numerics.complement_power(rate2, count)) + real(p, "eps")
    b["p"][...] = b["p"] - size * b["mom"] / spread
