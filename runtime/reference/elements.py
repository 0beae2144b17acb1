"""Element by element and window by window on the vector unit: pooling, random numbers, sums over time, formats."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics
from h2learn.runtime.operation import Bytes, Operation, Work, input_shape, not_fixed_point
from h2learn.runtime.work import nonfinite

from .values import (
    F32,
    Bool,
    Buffers,
    decode_slots,
    encode_slots,
    load_values,
    pack_bits,
    positions_shape,
    rounded,
    save_values,
    start_values,
    taps_of,
    transposed_taps,
    under_tap,
    unpack_bits,
)


def v_pool(op: Operation, buffers: Buffers) -> Work:
    """``v.pool``: average, sum, or maximum with the number of the first largest window element that exists."""
    shape = positions_shape(op) + (op.number("k"),)
    bits = op.choice("src") == "bits"
    in_shape = (op.number("imgs"), *input_shape(op), op.number("k"))
    source = unpack_bits(buffers["src"], in_shape).astype(np.float32) if bits else load_values(buffers["src"], "f32")
    source = source.reshape(in_shape)
    if op.choice("kind") != "max":
        result: F32 = np.zeros(shape, np.float32)
        for tap in range(taps_of(op)):
            result = result + under_tap(op, source, tap)
        if op.choice("kind") == "avg":
            result = result / np.float32(taps_of(op))
        result = rounded(op, result) if bits else result
        save_values(buffers["dst"], result, op.storage() if bits else "f32")
    else:
        rows, columns = (_limited(op, axis, size) for axis, size in zip("yx", in_shape[1:3], strict=True))
        exists = np.broadcast_to((rows[:, None] & columns)[None, :, :, None], in_shape)
        result, winner = under_tap(op, source, 0), np.zeros(shape, np.uint8)
        begun = np.zeros(shape, np.bool_)
        for tap in range(taps_of(op)):
            value, there = under_tap(op, source, tap), under_tap(op, exists, tap)
            wins = there & ((value > result) | (np.isnan(value) & ~np.isnan(result)) | ~begun)
            result, winner = np.where(wins, value, result), np.where(wins, np.uint8(tap), winner)
            begun = begun | there
        buffers["idx"][:] = winner.reshape(-1)
        if bits:
            pack_bits(buffers["dst"], result != 0)
        else:
            save_values(buffers["dst"], result, "f32")
    return Work({"elements": result.size * taps_of(op), "nonfinite": nonfinite(result)})


def _limited(op: Operation, axis: str, size: int) -> Bool:
    """Return which of the ``size`` rows or columns from the coordinate on lie below the limit (0: all)."""
    limit, first = op.number(f"{axis}lim"), op.operands[axis].address
    return np.array([not limit or 0 <= first + i < limit for i in range(size)], np.bool_)


def v_unpool(op: Operation, buffers: Buffers) -> Work:
    """``v.unpool``: each element gathers its share of the gradients of the windows that it lies in."""
    k, slots = op.number("k"), op.choice("src") == "slots"
    shape = (op.number("imgs"), op.number("gh"), op.number("gw"), k)
    live_inputs = 0
    if slots:
        g, bitmap = decode_slots(op, buffers["src"], shape[:3])
        live_inputs = int(bitmap.sum())
    else:
        g, bitmap = load_values(buffers["src"], "f32").reshape(shape), np.ones(shape, np.bool_)
    total = np.zeros(positions_shape(op) + (k,), np.float32)
    for tap, (y, x, ny, nx) in enumerate(transposed_taps(op)):
        share, adds = g[:, ny, nx], bitmap[:, ny, nx]
        if op.choice("kind") == "avg":
            share = share / np.float32(taps_of(op))
        if op.choice("kind") == "max":
            adds = adds & (buffers["idx"].reshape(shape)[:, ny, nx] == tap)
        total[:, y, x] = np.where(adds, total[:, y, x] + share, total[:, y, x])
    counts = {"elements": total.size * taps_of(op)}
    if slots:
        total = rounded(op, total)
        counts |= {"live_inputs": live_inputs, "live_outputs": encode_slots(op, buffers["dst"], total.reshape(-1, k))}
    else:
        save_values(buffers["dst"], total, "f32")
    return Work(counts | {"nonfinite": nonfinite(total)})


def v_rng(op: Operation, buffers: Buffers) -> Work:
    """``v.rng``: spike where a counter-based uniform lies below the rate."""
    n, steps, k = op.number("n"), op.number("steps"), op.number("k")
    spikes = _uniforms(op, buffers) < load_values(buffers["src"], "f32").reshape(n * steps, k)
    pack_bits(buffers["dst"], spikes)
    return Work({"elements": n * steps * k, "spikes": int(spikes.sum())})


def v_drop(op: Operation, buffers: Buffers) -> Work:
    """``v.drop``: values whose counter-based uniform lies below the share stay, scaled; the others become 0."""
    shape = (op.number("n") * op.number("steps"), op.number("k"))
    counts = {"elements": shape[0] * shape[1]}
    values = _operand(op, "a", buffers["a"], shape, counts) * np.float32(op.desc["share"])
    result = np.where(_uniforms(op, buffers) < np.float32(op.desc["p0"]), values, np.float32(0))
    result = _put(op, buffers["dst"], result, counts)
    return Work(counts | {"nonfinite": nonfinite(result)})


def _uniforms(op: Operation, buffers: Buffers) -> F32:
    """Return the random numbers of n samples of ``steps`` positions, ``[n*steps, k]``."""
    n, steps, k, word = op.number("n"), op.number("steps"), op.number("k"), 0xFFFFFFFF
    seed, first = (int(v) for v in buffers["scal"][16:32].copy().view(np.uint64))
    sample = np.array([(first + op.operands["pos"].address + i) & word for i in range(n)], np.uint64)
    neuron = np.array([(op.operands["neu"].address + i) & word for i in range(steps * k)], np.uint64)
    tick = op.operands["tick"].address & word
    uniforms = numerics.uniform(seed, op.number("stream"), sample[:, None], neuron[None, :], tick)
    return uniforms.reshape(n * steps, k)


def v_reduce(op: Operation, buffers: Buffers) -> Work:
    """``v.reduce``: rate, mean or last over time; time sum or position sum of gradients."""
    n, k, kind = op.number("n"), op.number("k"), op.choice("kind")
    steps = 1 if kind == "bias" else op.number("steps")
    counts = {"elements": steps * n * k}
    if kind in ("tsum", "bias"):
        g, bitmap = decode_slots(op, buffers["src"], (steps, n))
        counts["live_inputs"] = int(bitmap.sum())
    if kind in ("rate", "count"):
        result = unpack_bits(buffers["src"], (steps, n, k)).sum(axis=0).astype(np.float32)
        result = result / np.float32(steps) if kind == "rate" else result
    elif kind == "tsum":
        result = np.zeros((n, k), np.float32)
        for t in reversed(range(steps)):
            result = np.where(bitmap[t], result + g[t], result)
        result = rounded(op, result)
        counts["live_outputs"] = encode_slots(op, buffers["dst"], result)
    elif kind == "bias":
        result = start_values(op, buffers["dst"], (k,))
        for i in range(n):
            result = np.where(bitmap[0, i], result + g[0, i], result)
    else:
        source = load_values(buffers["src"], op.storage()).reshape(steps, n, k)
        result = source[-1]
        if kind == "max":
            result, _ = _maximum(source)
        if kind in ("mean", "sum"):
            result = np.zeros((n, k), np.float32)
            for t in range(steps):
                result = result + source[t]
            result = result / np.float32(steps) if kind == "mean" else result
    if kind != "tsum":
        save_values(buffers["dst"], result, "f32")
    return Work(counts | {"nonfinite": nonfinite(result)})


def v_spread(op: Operation, buffers: Buffers) -> Work:
    """``v.spread``: the gradient goes to the first step with the maximum."""
    n, k, steps = op.number("n"), op.number("k"), op.number("steps")
    _, first = _maximum(load_values(buffers["x"], op.storage()).reshape(steps, n, k))
    gradient = load_values(buffers["src"], "f32").reshape(n, k)
    result = np.stack([np.where(first == step, gradient, np.float32(0)) for step in range(steps)])
    save_values(buffers["dst"], result, "f32")
    return Work({"elements": steps * n * k, "nonfinite": nonfinite(result)})


def _maximum(source: F32) -> tuple[F32, npt.NDArray[np.int64]]:
    """Return the maximum over the first axis, and where it stands first."""
    best, first = source[0], np.zeros(source.shape[1:], np.int64)
    for step in range(1, len(source)):
        better = (source[step] > best) | (np.isnan(source[step]) & ~np.isnan(best))
        best, first = np.where(better, source[step], best), np.where(better, step, first)
    return best, first


def v_map(op: Operation, buffers: Buffers) -> Work:
    """``v.map``: a change of format, a + b, a gate, or a learned constant."""
    shape = (op.number("n"), op.number("k"))
    counts = {"elements": shape[0] * shape[1]}
    values = [_operand(op, name, buffers[name], shape, counts) for name in ("a", "b") if name in buffers]
    result = _MAPS[op.choice("kind")](values[0], values[-1])
    result = _put(op, buffers["dst"], result, counts)
    return Work(counts | {"nonfinite": nonfinite(result)})


def _logistic(x: F32) -> F32:
    return np.asarray(np.float32(1) / (np.float32(1) + numerics.exp(x)), np.float32)


def _logistic_slope(g: F32, w: F32) -> F32:
    value = _logistic(-w)
    return np.asarray(g * (value * (np.float32(1) - value)))


_MAPS: dict[str, Callable[[F32, F32], F32]] = {
    "copy": lambda a, b: a,
    "add": lambda a, b: a + b,
    "keep": lambda a, b: np.where(b != 0, a, np.float32(0)),
    "drop": lambda a, b: np.where(b == 0, a, np.float32(0)),
    "negate": lambda a, b: np.where(b != 0, -a, np.float32(0)),
    "unit": lambda a, b: np.where(a < 0, np.float32(0), np.where(a > 1, np.float32(1), a)),
    "sigmoid": lambda a, b: _logistic(-a),
    "falling": lambda a, b: _logistic(a),
    "unit_slope": lambda a, b: np.where((b >= 0) & (b <= 1), a, np.float32(0)),
    "sigmoid_slope": _logistic_slope,
    "falling_slope": lambda a, b: -_logistic_slope(a, b),
}


def v_pack(op: Operation, buffers: Buffers) -> Work:
    """``v.pack``: bit-planes of fixed-point numbers."""
    n, k, depth = op.number("n"), op.number("k"), op.number("planes")
    scaled = np.ldexp(load_values(buffers["src"], op.storage()).reshape(n, k).astype(np.float64), op.number("frac"))
    lowest, highest = (-(1 << (depth - 1)), (1 << (depth - 1)) - 1) if op.number("signed") else (0, (1 << depth) - 1)
    fits = (scaled == np.floor(scaled)) & (scaled >= lowest) & (scaled <= highest)
    if not fits.all():
        raise not_fixed_point(op, float(np.ldexp(scaled[~fits][0], -op.number("frac"))))
    numbers = scaled.astype(np.int64)
    pack_bits(buffers["dst"], np.stack([(numbers >> plane) & 1 == 1 for plane in range(depth)], axis=1))
    return Work({"elements": n * k})


def _put(op: Operation, target: Bytes, values: F32, counts: dict[str, int]) -> F32:
    """Write element-wise results in the format that the descriptor gives them; return them rounded."""
    if op.choice("dst") == "bits":
        pack_bits(target, values != 0)
    elif op.choice("dst") == "slots":
        values = rounded(op, values)
        counts["live_outputs"] = encode_slots(op, target, values)
    else:
        values = values if op.choice("dst") == "f32" else rounded(op, values)
        save_values(target, values, "f32" if op.choice("dst") == "f32" else op.storage())
    return values


def _operand(op: Operation, name: str, buffer: Bytes, shape: tuple[int, int], counts: dict[str, int]) -> F32:
    """Return operand ``name`` of ``v.map`` as float32; live gradients are counted."""
    form = op.choice(name)
    if form == "bits":
        return unpack_bits(buffer, shape).astype(np.float32)
    if form == "slots":
        values, bitmap = decode_slots(op, buffer, shape[:1])
        counts["live_inputs"] = counts.get("live_inputs", 0) + int(bitmap.sum())
        return values
    if form == "row":
        return np.broadcast_to(load_values(buffer, "f32"), shape)
    return load_values(buffer, "f32" if form == "f32" else op.storage()).reshape(shape)
