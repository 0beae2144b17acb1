"""Element by element and window by window on the vector unit: pooling, random numbers, sums over time, formats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics
from h2learn.backends.h2learn.errors import H2LearnError

from .job import F32, ONE, ZERO, Buffers, Params, Values, input_tile, integers, real, sources, taps, under_tap


def pack(b: Buffers, p: Params, fresh: bool) -> None:
    """Bit-planes of fixed-point numbers."""
    planes, frac = integers(p, "planes", "frac")
    numbers = np.ldexp(b["src"].astype(np.float64), frac)
    bits = numbers.astype(np.int64)[..., None, :] >> np.arange(planes)[:, None]
    low = 1 << (planes - 1) if p["signed"] == "yes" else 0
    if not np.all((numbers == np.trunc(numbers)) & (numbers >= -low) & (numbers < (1 << planes) - low)):
        raise H2LearnError(f"{planes} planes down to 2^{-frac} cannot hold all numbers of a tile")
    b["dst"][...] = (bits & 1).astype(np.bool_).reshape(b["dst"].shape)


def pool(b: Buffers, p: Params, fresh: bool) -> None:
    """Average, sum or maximum of windows."""
    source = input_tile(b["src"], p, "k")
    windows = [under_tap(source, p, ky, kx) for _, ky, kx in taps(p)]
    if p["kind"] != "max":
        total = np.zeros(windows[0].shape, np.float32)
        for window in windows:
            total = total + window.astype(np.float32)
        result = total / np.float32(len(windows)) if p["kind"] == "avg" else total
        rounded = numerics.round_to_storage(result, str(p["dtype"])) if p["dst"] == "storage" else result
        b["dst"][...] = rounded.reshape(b["dst"].shape)
        return
    exists = _existing(source.shape[1], *integers(p, "y", "ylim"))[:, None] & _existing(
        source.shape[2], *integers(p, "x", "xlim")
    )
    inside = np.broadcast_to(exists[None, :, :, None], source.shape)
    best, winner = windows[0].copy(), np.zeros(windows[0].shape, np.uint8)
    started = np.zeros(best.shape, np.bool_)
    for tap, ky, kx in taps(p):
        window, there = windows[tap], under_tap(inside, p, ky, kx)
        greater = window > best
        if window.dtype == np.float32:
            greater |= np.isnan(window) & ~np.isnan(best)
        wins = there & (greater | ~started)
        best, winner = np.where(wins, window, best), np.where(wins, np.uint8(tap), winner)
        started = started | there
    b["dst"][...] = best.reshape(b["dst"].shape)
    b["idx"][...] = winner.reshape(b["idx"].shape)


def _existing(size: int, first: int, limit: int) -> Values:
    """Return which of ``size`` rows (or columns) from ``first`` on lie in ``0 .. limit-1`` (limit 0: all)."""
    numbers = first + np.arange(size)
    return (numbers >= 0) & (numbers < limit) if limit else np.ones(size, np.bool_)


def unpool(b: Buffers, p: Params, fresh: bool) -> None:
    """Gradients back through windows."""
    imgs, oh, ow, gh, gw, kh, kw, k = integers(p, "imgs", "oh", "ow", "gh", "gw", "kh", "kw", "k")
    gradient = b["src"].reshape(imgs, gh, gw, k)
    total = np.zeros((imgs, oh, ow, k), np.float32)
    for tap, ky, kx in taps(p):
        for y, x, gy, gx in sources(p, ky, kx):
            g = gradient[:, gy, gx]
            if p["kind"] != "max":
                share = g / np.float32(kh * kw) if p["kind"] == "avg" else g
                counts = np.ones(g.shape, np.bool_)
            else:
                share, counts = g, b["idx"].reshape(gradient.shape)[:, gy, gx] == tap
            if p["src"] != "f32":
                counts = counts & (g != 0)
            total[:, y, x] = np.where(counts, total[:, y, x] + share, total[:, y, x])
    if p["dst"] == "slots":
        total = numerics.round_to_storage(total, str(p["dtype"]))
    b["dst"][...] = total.reshape(b["dst"].shape)


def rng(b: Buffers, p: Params, fresh: bool) -> None:
    """Spikes drawn with given chances."""
    samples = b["src"].shape[0]
    chance = b["src"].reshape(samples, -1)
    b["dst"][...] = (_uniform(b, p, chance.shape) < chance).reshape(b["dst"].shape)


def drop(b: Buffers, p: Params, fresh: bool) -> None:
    """Values that stay or not by a draw."""
    values = b["a"].astype(np.float32).reshape(int(p["n"]), -1)
    result = np.where(_uniform(b, p, values.shape) < real(p, "share"), values * real(p, "factor"), ZERO)
    _put(b, p, result.reshape(b["dst"].shape))


def _uniform(b: Buffers, p: Params, shape: tuple[int, ...]) -> F32:
    """Return the random numbers of some samples and their neurons."""
    scalars = b["scal"].view(np.uint32)
    seed = int(scalars[4]) | int(scalars[5]) << 32
    sample = int(scalars[6]) + int(p["pos"]) + np.arange(shape[0], dtype=np.int64)[:, None]
    neuron = int(p["neu"]) + np.arange(shape[1], dtype=np.int64)[None]
    return numerics.uniform(seed, int(p["stream"]), sample & 0xFFFFFFFF, neuron, int(p["tick"]))


def reduce(b: Buffers, p: Params, fresh: bool) -> None:
    """Sums and the like over time or positions."""
    n, k, steps = integers(p, "n", "k", "steps")
    if p["kind"] == "bias":
        total: F32 = np.zeros(k, np.float32) if fresh else b["dst"].reshape(k).astype(np.float32)
        for row in b["src"].reshape(-1, k):
            total = np.where(row != 0, total + row, total)
        b["dst"][...] = total.reshape(b["dst"].shape)
        return
    source = b["src"].reshape(steps, n, k)
    if p["kind"] in ("rate", "count"):
        result: F32 = source.sum(axis=0).astype(np.float32)
        result = result / np.float32(steps) if p["kind"] == "rate" else result
    elif p["kind"] == "last":
        result = source[-1].astype(np.float32)
    elif p["kind"] == "max":
        result = _running_maximum(source)[0]
    else:
        result = np.zeros((n, k), np.float32)
        for step in source[::-1] if p["kind"] == "tsum" else source:
            result = np.where(step != 0, result + step, result) if p["kind"] == "tsum" else result + step
        if p["kind"] == "mean":
            result = result / np.float32(steps)
        elif p["kind"] == "tsum":
            result = numerics.round_to_storage(result, str(p["dtype"]))
    b["dst"][...] = result.reshape(b["dst"].shape)


def spread(b: Buffers, p: Params, fresh: bool) -> None:
    """A gradient goes to the first step with the maximum."""
    n, k, steps = integers(p, "n", "k", "steps")
    first = _running_maximum(b["x"].reshape(steps, n, k))[1]
    spread = np.where(np.arange(steps)[:, None, None] == first, b["src"].reshape(n, k), ZERO)
    b["dst"][...] = spread.reshape(b["dst"].shape)


def _running_maximum(values: F32) -> tuple[F32, npt.NDArray[np.int64]]:
    """Return the maximum of ``[steps, ...]`` and the first step that has it."""
    best, first = values[0].astype(np.float32), np.zeros(values.shape[1:], np.int64)
    for step in range(1, len(values)):
        greater = (values[step] > best) | (np.isnan(values[step]) & ~np.isnan(best))
        best, first = np.where(greater, values[step], best), np.where(greater, step, first)
    return best, first


def elementwise(b: Buffers, p: Params, fresh: bool) -> None:
    """Element-wise work."""
    first = b["a"].astype(np.float32)
    second = b["b"].astype(np.float32) if "b" in b else first
    _put(b, p, _MAPS[str(p["kind"])](first, second))


def _sigmoid(x: F32) -> F32:
    return np.asarray(ONE / (ONE + numerics.exp(-x)))


def _sigmoid_slope(g: F32, w: F32) -> F32:
    value = _sigmoid(w)
    return np.asarray(g * (value * (ONE - value)))


_MAPS: dict[str, Callable[[F32, F32], F32]] = {
    "copy": lambda a, b: a,
    "add": lambda a, b: a + b,
    "keep": lambda a, b: np.where(b != 0, a, ZERO),
    "drop": lambda a, b: np.where(b != 0, ZERO, a),
    "negate": lambda a, b: np.where(b != 0, -a, ZERO),
    "unit": lambda a, b: np.where(a < 0, ZERO, np.where(a > 1, ONE, a)),
    "sigmoid": lambda a, b: _sigmoid(a),
    "falling": lambda a, b: _sigmoid(-a),
    "unit_slope": lambda a, b: np.where((b >= 0) & (b <= 1), a, ZERO),
    "sigmoid_slope": _sigmoid_slope,
    "falling_slope": lambda a, b: -_sigmoid_slope(a, b),
}


def _put(b: Buffers, p: Params, result: F32) -> None:
    """Write the result of element-wise work in the format that the parameters name."""
    if p["dst"] == "bits":
        result = result != 0
    elif p["dst"] != "f32":
        result = numerics.round_to_storage(result, str(p["dtype"]))
    b["dst"][...] = np.where(result != 0, result, ZERO) if p["dst"] == "slots" else result
