"""A time step of neurons, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics

from .job import F32, OUTSIDE, ZERO, Buffers, Params, real

_NONE = np.zeros((), np.bool_)


def lif(b: Buffers, p: Params, fresh: bool) -> None:
    """One forward time step of neurons."""
    bias, alpha, theta, v_reset, *drive = b["par"]
    current = _drive(b, p, b["acc"] + bias, drive, fresh)
    if fresh:
        carried: F32 = alpha * (np.zeros_like(current) if p["drive"] == "plain" else drive[2])
    else:
        before = b["us"].astype(np.float32)
        fired = _spike_count(before, theta, p) if p["counted"] == "yes" else b.get("ss", _NONE)
        membrane = _reset(before, fired, theta, v_reset, p)
        if p["bounded"] == "yes":
            membrane = np.where(membrane < real(p, "lowest"), real(p, "lowest"), membrane)
        carried = alpha * membrane
        if p["reset"] == "soft_delayed":
            carried = np.where(fired, carried - theta * fired, carried)
    u = carried + current
    if p["reset"] == "hard_delayed" and not fresh:
        u = np.where(fired, v_reset, u)
    u = numerics.round_to_storage(u, str(p["dtype"]))
    b["us"][...] = u
    windowed = p["spike"] != "never" and p["surrogate"] in ("rectangular", "triangular")
    inside = _distance(u, theta, p) < real(p, "width") if windowed else np.ones_like(u, dtype=np.bool_)
    if p["save_u"] != "no":
        b["uo"][...] = u if p["save_u"] == "yes" else np.where(inside, u, OUTSIDE)
    if p["counted"] == "yes":
        b["so"][...] = numerics.round_to_storage(_spike_count(u, theta, p), str(p["dtype"]))
    elif p["spike"] != "never":
        spikes = u > theta if p["spike"] == "gt" else u >= theta
        b["ss"][...] = spikes
        b["so"][...] = spikes
    if p["save_m"] == "yes":
        b["mo"][...] = inside


def _spike_count(u: F32, theta: F32, p: Params) -> F32:
    times = u / theta
    count = np.where(times >= 1, np.floor(times), ZERO)
    return np.where(count > real(p, "most"), real(p, "most"), count) if p["most"] else count


def _reset(u: F32, fired: F32 | npt.NDArray[np.bool_], theta: F32, v_reset: F32, p: Params) -> F32:
    """Return potentials after a reset that is not delayed, before any bound."""
    if p["reset"] == "hard":
        return np.where(fired, v_reset, u)
    return np.where(fired, u - theta * fired, u) if p["reset"] == "soft" else u


def _distance(u: F32, theta: F32, p: Params) -> F32:
    """Return how far potentials are from their threshold, for the surrogate."""
    near: F32 = np.abs(u - theta)
    if p["periodic"] == "no":
        return near
    turns = u / theta - np.float32(0.5)
    turns = turns - np.floor(turns)
    return np.where(u < theta, near, theta * np.abs(turns * np.float32(2) - np.float32(1)))


def _drive(b: Buffers, p: Params, current: F32, rows: Sequence[F32], fresh: bool) -> F32:
    """Return what a current adds to the membrane; a synaptic current goes one step on."""
    if p["drive"] == "plain":
        return current
    gain, offset, _, beta = rows
    if p["drive"] != "scaled":
        before: F32 = np.zeros_like(current) if fresh else b["cs"].astype(np.float32)
        b["cs"][...] = after = numerics.round_to_storage(beta * before + current, str(p["dtype"]))
        current = before if p["drive"] == "delayed" else after
    return np.asarray(gain * current + offset)


def gradient(b: Buffers, p: Params, fresh: bool) -> None:
    """One backward time step of neurons."""
    _, alpha, theta, v_reset, *drive = b["par"]
    gs = b["gs"]
    later: F32 = np.zeros_like(gs) if fresh else b["gc"].astype(np.float32)
    if p["spike"] == "never":
        gu = gs + alpha * later
    else:
        u, known = b["u"], p["seen"] != "window"
        if known:
            distance = _distance(u, theta, p)
            slope = numerics.surrogate(str(p["surrogate"]), distance, real(p, "width"), real(p, "height"))
        else:
            slope = np.where(u, real(p, "height"), ZERO)
        arriving = gs
        if p["detach"] == "no" and p["reset"] == "hard":
            gs = gs - alpha * (u - v_reset) * later
        elif p["detach"] == "no" and p["reset"] == "soft":
            gs = gs - alpha * theta * later
        elif p["detach"] == "no" and p["reset"] == "soft_delayed":
            gs = gs - theta * later
        passed = alpha * later
        if p["reset"] == "hard" or p["bounded"] == "yes":
            fired = _spike_count(u, theta, p) if p["counted"] == "yes" else b["s"]
            if p["reset"] == "hard":
                passed = np.where(fired, ZERO, passed)
            if p["bounded"] == "yes":
                free = _reset(u, fired, theta, v_reset, p) > real(p, "lowest")
                passed = np.where(free, passed, ZERO)
                gs = gs if p["reset"] == "soft_delayed" else np.where(free, gs, arriving)
        gu = np.where(slope != 0, slope * gs + passed, passed)
    gu = numerics.round_to_storage(gu, str(p["dtype"]))
    b["gc"][...] = gu
    if p["drive"] == "plain":
        b["go"][...] = gu
        return
    gain, _, _, beta = drive
    scaled = gain * (later if p["drive"] == "delayed" else gu)
    if p["drive"] != "scaled":
        scaled = scaled + beta * (ZERO if fresh else b["gi"].astype(np.float32))
    result = numerics.round_to_storage(scaled, str(p["dtype"]))
    if p["drive"] != "scaled":
        b["gi"][...] = result
    b["go"][...] = result


def tune(b: Buffers, p: Params, fresh: bool) -> None:
    """Gradients of a learned decay and threshold."""
    k = int(p["k"])
    alpha, theta, v_reset = (b["par"][row] for row in (1, 2, 3))
    gu, later, u, s = (b[name].reshape(-1, k) for name in ("g", "later", "u", "s"))
    u = u.astype(np.float32)
    held: dict[object, F32] = {"hard": np.where(s, v_reset, u), "soft": np.where(s, u - theta, u)}
    passed = np.where(s, ZERO, alpha * later) if p["reset"] in held else alpha * later
    taken = np.where(s, later, ZERO) if p["reset"] == "soft_delayed" else np.zeros_like(later)
    of_decay, of_threshold = later * held.get(p["reset"], u), (passed - gu) - taken
    total: F32 = np.zeros((2, k), np.float32) if fresh else b["dst"].reshape(2, k).astype(np.float32)
    for position in range(len(u)):
        total[0] = np.where(later[position] != 0, total[0] + of_decay[position], total[0])
        total[1] = total[1] + of_threshold[position]
    b["dst"][...] = total.reshape(b["dst"].shape)
