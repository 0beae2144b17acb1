"""What only training needs: batch statistics, the loss, the optimizer's step."""

from __future__ import annotations

import numpy as np

from h2learn.backends.h2learn import numerics
from h2learn.runtime.operation import ADAM_KINDS, Operation, Work
from h2learn.runtime.work import nonfinite, update_elements

from .values import (
    F32,
    Bool,
    Buffers,
    Scalar,
    decode_slots,
    encode_slots,
    load_values,
    rounded,
    save_values,
    start_values,
)


def v_stat(op: Operation, buffers: Buffers) -> Work:
    """``v.stat``: sums over the valid samples, for batch statistics and the gradients of batch normalisation."""
    kind, k = op.choice("kind"), op.number("k")
    par = load_values(buffers["par"], "f32").reshape(-1, k)
    z, valid = _biased(op, buffers, par), _valid_samples(op, buffers)
    steps, samples, positions = z.shape[:3]
    counts = {"elements": z.size}
    if kind == "product":
        g, bitmap = decode_slots(op, buffers["g"], z.shape[:3])
        counts["live_inputs"] = int(bitmap.sum())
    total = np.zeros((2 if kind == "product" else 1, k), np.float32)
    for t in range(steps):
        for i in range(samples):
            for p in range(positions if valid[i] else 0):
                value = z[t, i, p]
                if kind == "sum":
                    total[0] = total[0] + value
                elif kind == "square":
                    away = value - par[1]
                    total[0] = total[0] + away * away
                else:
                    added = np.stack([g[t, i, p], g[t, i, p] * ((value - par[1]) * par[2])])
                    total = np.where(g[t, i, p] != 0, total + added, total)
    total = start_values(op, buffers["dst"], total.shape) + total
    save_values(buffers["dst"], total, "f32")
    return Work(counts | {"nonfinite": nonfinite(total)})


def v_fold(op: Operation, buffers: Buffers) -> Work:
    """``v.fold``: mean or inverse deviation of the batch; the running statistic follows."""
    one, momentum, count = np.float32(1), np.float32(op.desc["momentum"]), value_count(op, buffers)
    statistic = load_values(buffers["src"], "f32") / np.float32(count)
    result = statistic
    if op.choice("kind") == "deviation":
        result = one / np.sqrt(statistic + np.float32(op.desc["eps"]))
        full = count * op.number("repeats")
        statistic = (statistic * np.float32(full)) / np.float32(max(full - 1, 1))
    running = (one - momentum) * load_values(buffers["run"], "f32") + momentum * statistic
    save_values(buffers["dst"], result, "f32")
    save_values(buffers["run"], running, "f32")
    return Work({"elements": 8 * op.number("k"), "nonfinite": nonfinite(result) + nonfinite(running)})


def v_norm(op: Operation, buffers: Buffers) -> Work:
    """``v.norm``: batch normalisation of a tile, or its gradient through mean and deviation."""
    par = load_values(buffers["par"], "f32").reshape(-1, op.number("k"))
    normal = (_biased(op, buffers, par) - par[1]) * par[2]
    counts = {"elements": normal.size}
    if op.choice("kind") == "forward":
        result = normal * par[3] + par[4]
        save_values(buffers["dst"], result, "f32")
        return Work(counts | {"nonfinite": nonfinite(result)})
    g, bitmap = decode_slots(op, buffers["g"], normal.shape[:3])
    count = np.float32(value_count(op, buffers))
    inner = (g - par[4] / count) - normal * (par[5] / count)
    result = rounded(op, (par[3] * par[2]) * inner)
    result = np.where(_valid_samples(op, buffers)[:, None, None], result, np.float32(0))
    counts |= {"live_inputs": int(bitmap.sum())}
    counts["live_outputs"] = encode_slots(op, buffers["dst"], result.reshape(-1, op.number("k")))
    return Work(counts | {"nonfinite": nonfinite(result)})


def value_count(op: Operation, buffers: Buffers) -> int:
    """Return how many values per channel the statistics of a batch have."""
    return max(int(_scalar(buffers, 4, np.uint32)), 1) * op.number("count")


def _biased(op: Operation, buffers: Buffers, par: F32) -> F32:
    shape = tuple(op.number(name) for name in ("steps", "n", "positions", "k"))
    values: F32 = load_values(buffers["x"], "f32").reshape(shape) + par[0]
    return values


def _valid_samples(op: Operation, buffers: Buffers) -> Bool:
    here = op.operands["pos"].address + np.arange(op.number("n"))
    return np.asarray(here < int(_scalar(buffers, 4, np.uint32)))


def v_loss(op: Operation, buffers: Buffers) -> Work:
    """``v.loss``: loss summed over valid samples / N, and its gradient times p0."""
    n, k, pos = op.number("n"), op.number("k"), op.operands["pos"].address
    logits = load_values(buffers["logits"], "f32").reshape(n, k)
    labels = buffers["label"].copy().view(np.int32)
    valid = int(buffers["scal"][4:8].copy().view(np.uint32)[0])
    count, scale = np.float32(max(valid, 1)), np.float32(op.desc["p0"])
    loss = start_values(op, buffers["loss"], (1,))
    grad = np.zeros((n, k), np.float32)
    for i in range(n):
        if pos + i >= valid:
            continue
        if not 0 <= labels[i] < k:
            raise op.fault(f"label {labels[i]} of sample {pos + i} is outside the classes 0 to {k - 1}")
        hot = (np.arange(k) == labels[i]).astype(np.float32)
        if op.choice("kind") == "cross_entropy":
            shifted = logits[i] - logits[i].max()
            e = numerics.exp(shifted)
            z = _ordered_sum(e)
            loss_i = numerics.log(z) - shifted[labels[i]]
            grad[i] = ((e / z - hot) / count) * scale
        else:
            d = logits[i] - np.where(hot != 0, np.float32(op.desc["hit"]), np.float32(op.desc["miss"]))
            loss_i = _ordered_sum(d * d) / np.float32(k) * np.float32(op.desc["share"])
            grad[i] = ((d * np.float32(2)) / (count * np.float32(k))) * scale
        loss = loss + np.float32(loss_i) / count
    save_values(buffers["loss"], loss, "f32")
    save_values(buffers["grad"], grad, "f32")
    return Work({"elements": n * k, "nonfinite": nonfinite(loss) + nonfinite(grad)})


def v_opt(op: Operation, buffers: Buffers) -> Work:
    """``v.opt``: gradient descent with momentum, or Adam; the storage copy follows."""
    kind, rate, decay = op.choice("kind"), _scalar(buffers, 0, np.float32), np.float32(op.desc["decay"])
    parameter = load_values(buffers["p"], "f32")
    step = load_values(buffers["g"], "f32") * np.float32(op.desc["scale"])
    if kind == "adamw":
        parameter = parameter * (np.float32(1) - rate * decay)
    elif decay != 0:
        step = step + decay * parameter
    if kind in ADAM_KINDS:
        parameter = parameter - _adam(op, buffers, step, rate)
    else:
        parameter = parameter - rate * _direction(op, buffers, step)
    save_values(buffers["p"], parameter, "f32")
    if "w" in buffers:
        save_values(buffers["w"], parameter, "f16")
    return Work({"elements": update_elements(op), "nonfinite": nonfinite(parameter)})


def _direction(op: Operation, buffers: Buffers, step: F32) -> F32:
    momentum = np.float32(op.desc["momentum"])
    if momentum == 0:
        return step
    velocity = momentum * load_values(buffers["mom"], "f32") + step
    save_values(buffers["mom"], velocity, "f32")
    return step + momentum * velocity if op.choice("kind") == "nesterov" else velocity


def _adam(op: Operation, buffers: Buffers, step: F32, rate: np.float32) -> F32:
    time = int(_scalar(buffers, 8, np.uint32)) + 1
    rate1, rate2 = np.float32(op.desc["rate1"]), np.float32(op.desc["rate2"])
    mean, square = load_values(buffers["mom"], "f32"), load_values(buffers["sq"], "f32")
    mean = mean + rate1 * (step - mean)
    square = (np.float32(1) - rate2) * square + (rate2 * step) * step
    save_values(buffers["mom"], mean, "f32")
    save_values(buffers["sq"], square, "f32")
    root = np.sqrt(numerics.complement_power(rate2, time))
    spread = np.sqrt(square) / root + np.float32(op.desc["eps"])
    change: F32 = (rate / numerics.complement_power(rate1, time)) * mean / spread
    return change


def _scalar(buffers: Buffers, offset: int, dtype: type[Scalar]) -> Scalar:
    found: Scalar = buffers["scal"][offset : offset + 4].copy().view(dtype)[0]
    return found


def _ordered_sum(values: F32) -> F32:
    total = np.float32(0)
    for value in values:
        total = total + value
    return np.asarray(total, np.float32)
