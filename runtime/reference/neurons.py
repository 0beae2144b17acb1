"""A time step of neurons, forward and backward."""

from __future__ import annotations

import numpy as np

from h2learn.backends.h2learn import numerics
from h2learn.runtime.operation import Bytes, Operation, Work, has_synapse, parameter_rows
from h2learn.runtime.work import neuron_counts, nonfinite

from .values import (
    F32,
    Bool,
    Buffers,
    decode_slots,
    encode_slots,
    load_values,
    pack_bits,
    rounded,
    save_values,
    start_values,
    unpack_bits,
)


def v_lif(op: Operation, buffers: Buffers) -> Work:
    """``v.lif``: u = st(alpha*reset(u, s) + drive(acc + bias)); s = u > theta; mask = where the surrogate is not 0."""
    n, k = op.number("n"), op.number("k")
    bias, alpha, theta, v_reset, *rows = _parameter_rows(op, buffers)
    never = op.choice("spike") == "never"
    x = _drive(op, buffers, rows, load_values(buffers["acc"], "f32").reshape(n, k) + bias)
    counted = op.choice("counted") == "yes"
    r = np.zeros((n, k), np.float32)
    s: F32 | Bool = np.zeros((n, k), np.bool_)
    if not op.init:
        before = load_values(buffers["us"], op.storage()).reshape(n, k)
        if counted:
            s = _spike_count(op, before, theta)
        elif not never:
            s = unpack_bits(buffers["ss"], (n, k))
        r = _after_reset(op, before, s, theta, v_reset)
        if op.choice("bounded") == "yes":
            lowest = np.float32(op.desc["lowest"])
            r = np.where(r < lowest, lowest, r)
    elif rows:
        r = np.broadcast_to(rows[2], (n, k))
    decayed = alpha * r
    if op.choice("reset") == "soft_delayed":
        decayed = np.where(s != 0, decayed - theta * s, decayed)
    u = decayed + x
    u = rounded(op, np.where(s != 0, v_reset, u) if op.choice("reset") == "hard_delayed" else u)
    spikes = np.zeros((n, k), np.bool_) if never else (u > theta if op.choice("spike") == "gt" else u >= theta)
    open_ended = never or op.choice("surrogate") not in ("rectangular", "triangular")
    mask = np.ones((n, k), np.bool_) if open_ended else _distance(op, u, theta) < np.float32(op.desc["width"])
    save_values(buffers["us"], u, op.storage())
    counts = neuron_counts(op)
    if op.choice("save_u") == "inside":
        counts["live_outputs"] = encode_slots(op, buffers["uo"], u, mask, "ublk")
    elif "uo" in buffers:
        save_values(buffers["uo"], u, op.storage())
    if counted:
        spikes = _spike_count(op, u, theta)
        save_values(buffers["so"], rounded(op, spikes), op.storage())
    for name, bits in (("ss", spikes), ("so", spikes), ("mo", mask)):
        if name in buffers and (name == "mo" or not counted):
            pack_bits(buffers[name], bits)
    masked_in = int(mask.sum()) if op.choice("save_m") == "yes" else 0
    counts |= {"spikes": int(np.count_nonzero(spikes)), "masked_in": masked_in, "nonfinite": nonfinite(u)}
    return Work(counts)


def _spike_count(op: Operation, u: F32, theta: F32) -> F32:
    """Return how often the threshold goes into a potential, 0 where it does not, and the most there may be."""
    ratio, most = u / theta, op.number("most")
    count = np.where(ratio >= 1, np.floor(ratio), np.float32(0))
    return np.where(count > most, np.float32(most), count) if most else count


def _after_reset(op: Operation, u: F32, s: F32 | Bool, theta: F32, v_reset: F32) -> F32:
    """Return a potential after the reset (not the delayed one), which no bound holds yet."""
    kind = op.choice("reset")
    return np.where(s != 0, v_reset if kind == "hard" else u - theta * s if kind == "soft" else u, u)


def _distance(op: Operation, u: F32, theta: F32) -> F32:
    """Return the distance that the surrogate falls with: from the threshold, or twice that from multiples above it."""
    plain: F32 = np.abs(u - theta)
    if op.choice("periodic") == "no":
        return plain
    turn = u / theta - np.float32(0.5)
    return np.where(u < theta, plain, theta * np.abs((turn - np.floor(turn)) * np.float32(2) - np.float32(1)))


def _parameter_rows(op: Operation, buffers: Buffers) -> F32:
    return load_values(buffers["par"], "f32").reshape(parameter_rows(op), op.number("k"))


def _drive(op: Operation, buffers: Buffers, rows: list[F32], current: F32) -> F32:
    """Return ``current`` as it acts on the potential; a synaptic current moves on by a step."""
    if op.choice("drive") == "plain":
        return current
    gain, offset, _, beta = rows
    if has_synapse(op):
        old = np.zeros_like(current) if op.init else load_values(buffers["cs"], op.storage()).reshape(current.shape)
        new = rounded(op, beta * old + current)
        save_values(buffers["cs"], new, op.storage())
        current = old if op.choice("drive") == "delayed" else new
    return gain * current + offset


def v_grad(op: Operation, buffers: Buffers) -> Work:
    """``v.grad``: gu = sg*e + carried, backwards through one time step of the neuron; then through its drive."""
    n, k = op.number("n"), op.number("k")
    _, alpha, theta, v_reset, *rows = _parameter_rows(op, buffers)
    gs = load_values(buffers["gs"], "f32").reshape(n, k)
    gn = np.zeros((n, k), np.float32) if op.init else load_values(buffers["gc"], op.storage()).reshape(n, k)
    if op.choice("spike") == "never":
        gu = rounded(op, gs + alpha * gn)
    else:
        u, inside = _seen(op, buffers["u"], (n, k))
        s = _spike_count(op, u, theta) if op.choice("counted") == "yes" else unpack_bits(buffers["s"], (n, k))
        reset = op.choice("reset")
        e: F32 = gs
        if op.choice("detach") == "no" and reset != "none":
            drop = {"hard": alpha * (u - v_reset), "soft": alpha * theta, "soft_delayed": theta}[reset]
            e = np.asarray(gs - drop * gn, np.float32)
        p = np.where(s != 0, np.float32(0), alpha * gn) if reset == "hard" else alpha * gn
        if op.choice("bounded") == "yes":
            free = _after_reset(op, u, s, theta, v_reset) > np.float32(op.desc["lowest"])
            p, e = np.where(free, p, np.float32(0)), e if reset == "soft_delayed" else np.where(free, e, gs)
        size = np.float32(op.desc["width"]), np.float32(op.desc["height"])
        if op.choice("seen") == "window":
            sg = np.where(inside, size[1], np.float32(0))
        else:
            sg = numerics.surrogate(op.choice("surrogate"), _distance(op, u, theta), *size)
            sg = np.where(inside, sg, np.float32(0))
        gu = rounded(op, np.where(sg != 0, sg * e + p, p))
    save_values(buffers["gc"], gu, op.storage())
    gx = gu
    if rows:
        gain, _, _, beta = rows
        gx = gain * (gn if op.choice("drive") == "delayed" else gu)
        if has_synapse(op):
            gi = np.zeros_like(gu) if op.init else load_values(buffers["gi"], op.storage()).reshape(n, k)
            gx = gx + beta * gi
        gx = rounded(op, gx)
        if has_synapse(op):
            save_values(buffers["gi"], gx, op.storage())
    counts = neuron_counts(op) | {"live_outputs": encode_slots(op, buffers["go"], gx), "nonfinite": nonfinite(gx)}
    if op.choice("seen") == "inside" and op.choice("spike") != "never":
        counts["live_inputs"] = int(inside.sum())
    return Work(counts)


def _seen(op: Operation, buffer: Bytes, shape: tuple[int, int]) -> tuple[F32, Bool]:
    """Return what a gradient sees of potentials, 0 where it sees none, and where the surrogate may be other than 0."""
    if op.choice("seen") == "window":
        return np.zeros(shape, np.float32), unpack_bits(buffer, shape)
    if op.choice("seen") == "inside":
        return decode_slots(op, buffer, shape[:1], "ublk")
    return load_values(buffer, op.storage()).reshape(shape), np.ones(shape, np.bool_)


def v_tune(op: Operation, buffers: Buffers) -> Work:
    """``v.tune``: gradients of decay and threshold, position by position."""
    n, k, reset = op.number("n"), op.number("k"), op.choice("reset")
    par = load_values(buffers["par"], "f32").reshape(-1, k)
    gu, first = decode_slots(op, buffers["g"], (n,))
    later, second = decode_slots(op, buffers["later"], (n,))
    u, s = load_values(buffers["u"], op.storage()).reshape(n, k), unpack_bits(buffers["s"], (n, k))
    total = start_values(op, buffers["dst"], (2, k))
    for i in range(n):
        rest = {"hard": np.where(s[i], par[3], u[i]), "soft": np.where(s[i], u[i] - par[2], u[i])}.get(reset, u[i])
        passed = par[1] * later[i]
        if reset in ("hard", "soft"):
            passed = np.where(s[i], np.float32(0), passed)
        taken = np.where(s[i], later[i], np.float32(0)) if reset == "soft_delayed" else np.zeros(k, np.float32)
        total[0] = np.where(later[i] != 0, total[0] + later[i] * rest, total[0])
        total[1] = total[1] + ((passed - gu[i]) - taken)
    save_values(buffers["dst"], total, "f32")
    counts = {"elements": n * k, "live_inputs": int(first.sum()) + int(second.sum())}
    return Work(counts | {"nonfinite": nonfinite(total)})
