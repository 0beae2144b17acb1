"""A time step of neurons, forward and backward."""

from __future__ import annotations

import numpy as np

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import PARAMETER_ROWS, PLAIN_PARAMETER_ROWS
from h2learn.backends.h2learn.numerics import round_to_storage, surrogate
from h2learn.dialects.h2.layouts import (
    F32,
    Bits,
    read_bits,
    read_grads,
    read_real,
    write_bits,
    write_grads,
    write_real,
    write_slots,
)

from .job import ZERO, Job


def lif(job: Job) -> None:
    """One forward time step of neurons."""
    shape = job.size("n", "k")
    dtype, spike, reset = job.word("dtype"), job.word("spike"), job.word("reset")
    par = _parameters(job)
    theta = par["theta"]
    x = _driven(job, par, read_real(job["acc"], shape, "f32") + par["bias"])
    counted = job.word("counted") == "yes"
    spiked: Bits | F32 = np.zeros(shape, dtype=np.bool_)
    rest = np.broadcast_to(par.get("initial", np.zeros(shape[1], dtype=np.float32)), shape)
    if not job.init:
        rest = read_real(job["us"], shape, dtype)
        if counted:
            spiked = _spikes_in(job, rest, theta)
        elif spike != "never" and reset != "none":
            spiked = read_bits(job["ss"], shape)
        rest = _rest(job, par, rest, spiked)
        if job.word("bounded") == "yes":
            lowest = job.real("lowest")
            rest = np.where(rest < lowest, lowest, rest)
    decayed = par["alpha"] * rest
    if reset == "soft_delayed":
        decayed = np.where(spiked != 0, decayed - theta * spiked, decayed)
    u = decayed + x
    u = round_to_storage(np.where(spiked != 0, par["v_reset"], u) if reset == "hard_delayed" else u, dtype)
    write_real(job["us"], u, dtype)
    if counted:
        if spike != "ge":
            raise H2LearnError("spikes are counted at u >= theta only")
        write_real(job["so"], _spikes_in(job, u, theta), dtype)
    elif spike != "never":
        spikes = u > theta if spike == "gt" else u >= theta
        write_bits(job["ss"], spikes)
        write_bits(job["so"], spikes)
    inside: Bits = np.ones(shape, dtype=np.bool_)
    if spike != "never" and job.word("surrogate") in ("rectangular", "triangular"):
        inside = _from_threshold(job, u, theta) < job.real("width")
    if job.word("save_u") == "inside":
        write_slots(job["uo"], inside, u, job.integer("ublk"), dtype)
    elif job.word("save_u") == "yes":
        write_real(job["uo"], u, dtype)
    if job.word("save_m") == "yes":
        write_bits(job["mo"], inside)


def _spikes_in(job: Job, u: F32, theta: F32) -> F32:
    """Return how often the threshold goes into potentials, up to the most spikes there may be."""
    ratio, most = u / theta, job.integer("most")
    count = np.where(ratio >= 1, np.floor(ratio), ZERO)
    return np.minimum(count, np.float32(most)) if most else count


def _rest(job: Job, par: dict[str, F32], u: F32, spiked: Bits | F32) -> F32:
    """Return the potentials after a reset that is not delayed; bounds come later."""
    reset = job.word("reset")
    if reset not in ("hard", "soft"):
        return u
    return np.where(spiked != 0, par["v_reset"] if reset == "hard" else u - par["theta"] * spiked, u)


def _from_threshold(job: Job, u: F32, theta: F32) -> F32:
    """Return the distance of potentials that the surrogate is a function of."""
    apart: F32 = np.abs(u - theta)
    if job.word("periodic") == "yes":
        cycle = u / theta - np.float32(0.5)
        apart = np.where(u < theta, apart, theta * np.abs(2 * (cycle - np.floor(cycle)) - 1))
    return apart


def _parameters(job: Job) -> dict[str, F32]:
    """Return the parameter rows that the descriptor's drive asks for, by name."""
    names = PARAMETER_ROWS[:PLAIN_PARAMETER_ROWS] if job.word("drive") == "plain" else PARAMETER_ROWS
    rows = read_real(job["par"], (len(names), job.integer("k")), "f32")
    return dict(zip(names, rows, strict=True))


def _driven(job: Job, par: dict[str, F32], current: F32) -> F32:
    """Return the step that the current drives the membrane by, the synaptic current moved on."""
    drive, dtype = job.word("drive"), job.word("dtype")
    if drive == "plain":
        return current
    if drive in ("synapse", "delayed"):
        held = np.zeros_like(current) if job.init else read_real(job["cs"], current.shape, dtype)
        moved = round_to_storage(par["beta"] * held + current, dtype)
        write_real(job["cs"], moved, dtype)
        current = moved if drive == "synapse" else held
    return par["gain"] * current + par["offset"]


def gradient(job: Job) -> None:
    """One backward time step of neurons."""
    shape = job.size("n", "k")
    dtype = job.word("dtype")
    par = _parameters(job)
    alpha, theta = par["alpha"], par["theta"]
    gs = read_real(job["gs"], shape, "f32")
    later = np.zeros(shape, dtype=np.float32) if job.init else read_real(job["gc"], shape, dtype)
    if job.word("spike") == "never":
        gu = gs + alpha * later
    else:
        reset = job.word("reset")
        if reset == "hard_delayed":
            raise H2LearnError("a hard-delayed reset has no gradient of its own")
        u, slope = _seen(job, shape, theta)
        e = gs
        if job.word("detach") == "no":
            if reset == "hard":
                e = gs - alpha * (u - par["v_reset"]) * later
            elif reset in ("soft", "soft_delayed"):
                e = gs - (alpha * theta if reset == "soft" else theta) * later
        carry = alpha * later
        bounded = job.word("bounded") == "yes"
        if reset == "hard" or bounded:
            counted = job.word("counted") == "yes"
            spiked = _spikes_in(job, u, theta) if counted else read_bits(job["s"], shape)
            if reset == "hard":
                carry = np.where(spiked != 0, ZERO, carry)
            if bounded:
                free = _rest(job, par, u, spiked) > job.real("lowest")
                carry = np.where(free, carry, ZERO)
                e = e if reset == "soft_delayed" else np.where(free, e, gs)
        gu = np.where(slope != 0, slope * e + carry, carry)
    gu = round_to_storage(gu, dtype)
    write_real(job["gc"], gu, dtype)
    write_grads(job["go"], _driving(job, par, gu, later), job.integer("gblk"), dtype)


def _seen(job: Job, shape: tuple[int, ...], theta: F32) -> tuple[F32, F32]:
    """Return potentials (0 where nothing of them is known) and the derivatives of the surrogate there."""
    kind, seen, dtype = job.word("surrogate"), job.word("seen"), job.word("dtype")
    width, height = job.real("width"), job.real("height")
    if seen != "potential":
        hard = job.word("reset") == "hard"
        resets = job.word("bounded") == "yes" or (hard and job.word("counted") == "yes")
        if resets or kind not in ("rectangular", "triangular"):
            raise H2LearnError("this gradient needs potentials outside the window")
        if seen == "window" and (kind != "rectangular" or (hard and job.word("detach") == "no")):
            raise H2LearnError("this gradient needs more of the potential than its window")
    if seen == "window":
        return np.zeros(shape, dtype=np.float32), read_bits(job["u"], shape) * height
    if seen == "inside":
        open_here, u = read_grads(job["u"], shape, job.integer("ublk"), dtype)
        slope = surrogate(kind, _from_threshold(job, u, theta), width, height)
        return u, np.where(open_here, slope, ZERO)
    u = read_real(job["u"], shape, dtype)
    return u, surrogate(kind, _from_threshold(job, u, theta), width, height)


def _driving(job: Job, par: dict[str, F32], gu: F32, later: F32) -> F32:
    """Return the gradient of the current, that of the synaptic current carried on."""
    drive, dtype = job.word("drive"), job.word("dtype")
    if drive == "plain":
        return gu
    if drive == "scaled":
        return round_to_storage(par["gain"] * gu, dtype)
    held = np.zeros_like(gu) if job.init else read_real(job["gi"], gu.shape, dtype)
    gi = round_to_storage(par["gain"] * (gu if drive == "synapse" else later) + par["beta"] * held, dtype)
    write_real(job["gi"], gi, dtype)
    return gi


def tune(job: Job) -> None:
    """Gradients of decay and threshold."""
    n, k = job.size("n", "k")
    dtype, gblk, reset = job.word("dtype"), job.integer("gblk"), job.word("reset")
    _, alpha, theta, v_reset = read_real(job["par"], (4, k), "f32")
    gu = read_grads(job["g"], (n, k), gblk, dtype)[1]
    later = read_grads(job["later"], (n, k), gblk, dtype)[1]
    u, s = read_real(job["u"], (n, k), dtype), read_bits(job["s"], (n, k))
    sums = job.sums("dst", (2, k))
    for i in range(n):
        held, passed, taken = u[i], alpha * later[i], np.zeros(k, dtype=np.float32)
        if reset in ("hard", "soft"):
            held = np.where(s[i], v_reset if reset == "hard" else u[i] - theta, u[i])
            passed = np.where(s[i], np.float32(0), passed)
        elif reset == "soft_delayed":
            taken = np.where(s[i], later[i], np.float32(0))
        sums[0] = np.where(later[i] != 0, sums[0] + later[i] * held, sums[0])
        sums[1] = sums[1] + ((passed - gu[i]) - taken)
    write_real(job["dst"], sums, "f32")
