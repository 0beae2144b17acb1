"""Look-ups and multipliers: tables, currents, input gradients and weight gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from h2learn.runtime.operation import Bytes, Operation, Work, input_shape
from h2learn.runtime.work import (
    BACKWARD_MODES,
    backward_work,
    issue_width,
    lane_cycles,
    lookup_work,
    nonfinite,
    skips_zero_patterns,
    weight_work,
)

from .values import (
    Bool,
    Buffers,
    Scalar,
    decode_slots,
    load_values,
    positions_shape,
    rounded,
    save_values,
    start_values,
    taps_of,
    transposed_taps,
    under_tap,
    unpack_bits,
)


def fe_fill(op: Operation, buffers: Buffers) -> Work:
    """``fe.fill``: entry[p] = st(entry[p & (p-1)] + w[ctz(p)])."""
    taps, c, k, fan = taps_of(op), op.number("c"), op.number("k"), op.number("fan")
    groups = -(-c // fan)
    weights = np.zeros((taps, groups * fan, k), np.float32)
    weights[:, :c] = load_values(buffers["w"], op.storage()).reshape(taps, c, k)
    grouped = weights.reshape(taps, groups, fan, k)
    entry = np.zeros((taps, groups, 1 << fan, k), np.float32)
    for p in range(1, 1 << fan):
        entry[:, :, p] = rounded(op, entry[:, :, p & (p - 1)] + grouped[:, :, _lowest_bit(p)])
    save_values(buffers["lut"], entry, op.storage())
    tables = taps * groups * k
    adds = tables * ((1 << fan) - 1 - fan)
    return Work({"entries": tables * ((1 << fan) - 1), "adds": adds, "nonfinite": nonfinite(entry)})


def fe_run(op: Operation, buffers: Buffers) -> Work:
    """``fe.run``: acc += entry[tap][group][pattern], taps then groups ascending, zero patterns skipped."""
    if op.number("planes"):
        return _fe_run_planes(op, buffers)
    taps, k, fan = taps_of(op), op.number("k"), op.number("fan")
    groups = -(-op.number("c") // fan)
    patterns = _patterns(_input_spikes(op, buffers["s"]), groups, fan)
    lut = load_values(buffers["lut"], op.storage()).reshape(taps, groups, 1 << fan, k)
    acc = start_values(op, buffers["acc"], positions_shape(op) + (k,))
    nonzero, spikes = np.zeros(positions_shape(op), np.int64), 0
    for tap in range(taps):
        window = under_tap(op, patterns, tap)
        for group in range(groups):
            p = window[..., group]
            acc = np.where((p != 0)[..., None], acc + lut[tap, group][p], acc)
            nonzero += p != 0
            spikes += int(np.bitwise_count(p).sum())
    save_values(buffers["acc"], acc, "f32")
    total = int(np.prod(positions_shape(op))) * taps * groups
    inputs = int(np.prod(positions_shape(op))) * taps * op.number("c")
    work = lookup_work(total, total - int(nonzero.sum()), k, spikes, inputs, nonfinite(acc))
    if skips_zero_patterns(op):
        work.counts["lane_cycles"] = lane_cycles(op, nonzero)
    return work


def _fe_run_planes(op: Operation, buffers: Buffers) -> Work:
    """``fe.run`` on bit-planes: acc += ldexp(entry, plane - frac), planes innermost, the sign plane subtracted."""
    taps, c, k, fan, depth = taps_of(op), op.number("c"), op.number("k"), op.number("fan"), op.number("planes")
    groups = -(-c // fan)
    bits = unpack_bits(buffers["s"], (op.number("imgs"), *input_shape(op), depth, c))
    planes = [_patterns(bits[..., plane, :], groups, fan) for plane in range(depth)]
    lut = load_values(buffers["lut"], op.storage()).reshape(taps, groups, 1 << fan, k)
    acc = start_values(op, buffers["acc"], positions_shape(op) + (k,))
    nonzero, spikes = np.zeros(positions_shape(op), np.int64), 0
    for tap in range(taps):
        windows = [under_tap(op, patterns, tap) for patterns in planes]
        for group in range(groups):
            for plane, window in enumerate(windows):
                p = window[..., group]
                entry = np.ldexp(lut[tap, group][p], plane - op.number("frac")).astype(np.float32)
                negative = op.choice("signed") == "yes" and plane == depth - 1
                acc = np.where((p != 0)[..., None], acc - entry if negative else acc + entry, acc)
                nonzero += p != 0
                spikes += int(np.bitwise_count(p).sum())
    save_values(buffers["acc"], acc, "f32")
    positions = int(np.prod(positions_shape(op)))
    total, inputs = positions * taps * groups * depth, positions * taps * c * depth
    work = lookup_work(total, total - int(nonzero.sum()), k, spikes, inputs, nonfinite(acc), depth)
    if skips_zero_patterns(op):
        work.counts["lane_cycles"] = lane_cycles(op, nonzero)
    return work


def be_fwd(op: Operation, buffers: Buffers) -> Work:
    """``be.fwd``: acc += x * w, taps then channels ascending, zero inputs skipped."""
    taps, c, k = taps_of(op), op.number("c"), op.number("k")
    x = load_values(buffers["x"], op.storage()).reshape(op.number("imgs"), *input_shape(op), c)
    w = load_values(buffers["w"], op.storage()).reshape(taps, c, k)
    acc = start_values(op, buffers["acc"], positions_shape(op) + (k,))
    live = np.zeros(positions_shape(op), np.int64)
    for tap in range(taps):
        window = under_tap(op, x, tap)
        for ch in range(c):
            value = window[..., ch, None]
            acc = np.where(value != 0, acc + value * w[tap, ch], acc)
            live += value[..., 0] != 0
    save_values(buffers["acc"], acc, "f32")
    dense = np.full_like(live, taps * c)
    return backward_work(op, "in", live, dense, np.full_like(live, k), k, nonfinite(acc))


def be_run(op: Operation, buffers: Buffers) -> Work:
    """``be.run``: acc += g * w over taps, then live k ascending; +0 where the mask is 0."""
    c, k = op.number("c"), op.number("k")
    shape = positions_shape(op)
    g, bitmap = decode_slots(op, buffers["g"], (op.number("imgs"), op.number("gh"), op.number("gw")))
    w = load_values(buffers["w"], op.storage()).reshape(taps_of(op), c, k)
    acc = start_values(op, buffers["acc"], (*shape, c))
    live, dense = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for tap, (y, x, ny, nx) in enumerate(transposed_taps(op)):
        for ch in range(k):
            alive, value = bitmap[:, ny, nx, ch], g[:, ny, nx, ch]
            term = value[..., None] * w[tap, :, ch]
            acc[:, y, x] = np.where(alive[..., None], acc[:, y, x] + term, acc[:, y, x])
            live[:, y, x] += alive
            dense[:, y, x] += 1
    mask = np.ones((*shape, c), np.bool_)
    if op.fields.get("masked"):
        mask = unpack_bits(buffers["m"], (*shape, c))
        acc = np.where(mask, acc, np.float32(0))
    save_values(buffers["acc"], acc, "f32")
    mode = BACKWARD_MODES[op.fields.get("mode", 0)]
    return backward_work(op, mode, live, dense, mask.sum(axis=-1), c, nonfinite(acc))


def be_wgt(op: Operation, buffers: Buffers) -> Work:
    """``be.wgt``: acc += x * g, positions ascending, zero x and dead g skipped."""
    taps, c, k = taps_of(op), op.number("c"), op.number("k")
    shape = positions_shape(op)
    x = load_values(buffers["x"], op.storage()).reshape(op.number("imgs"), *input_shape(op), c)
    g, bitmap = decode_slots(op, buffers["g"], shape)
    windows = np.stack([under_tap(op, x, tap) for tap in range(taps)], axis=3).reshape(-1, taps, c)
    acc = start_values(op, buffers["acc"], (taps, c, k))
    for value, gradient, alive in zip(windows, g.reshape(-1, k), bitmap.reshape(-1, k), strict=True):
        both = (value != 0)[..., None] & alive
        acc = np.where(both, acc + value[..., None] * gradient, acc)
    save_values(buffers["acc"], acc, "f32")
    live_x = (windows != 0).reshape(-1, taps * c).astype(np.int64)
    live_g = bitmap.reshape(-1, k).sum(axis=1)[:, None]
    cycles = (live_x * -(-live_g // issue_width(op))).sum(axis=0)
    rows = (live_x.sum(axis=0), cycles, (live_x * live_g).sum(axis=0))
    return weight_work(op, len(windows), int(live_g.sum()), rows, nonfinite(acc))


def wu_run(op: Operation, buffers: Buffers) -> Work:
    """``wu.run``: acc += table(gradients of a group of positions)[spikes of a channel at these positions]."""
    taps, c, k, fan = taps_of(op), op.number("c"), op.number("k"), op.number("fan")
    spikes = _input_spikes(op, buffers["s"])
    windows = np.stack([under_tap(op, spikes, tap) for tap in range(taps)], axis=3).reshape(-1, taps, c)
    g, bitmap = decode_slots(op, buffers["g"], positions_shape(op))
    positions = len(windows)
    groups = -(-positions // fan)
    bits = _padded(windows, groups * fan).reshape(groups, fan, taps, c).astype(np.int64)
    gradients = _padded(g.reshape(-1, k), groups * fan).reshape(groups, fan, k)
    acc = start_values(op, buffers["acc"], (taps, c, k))
    nonzero = 0
    for group in range(groups):
        entry = np.zeros((1 << fan, k), np.float32)
        for p in range(1, 1 << fan):
            entry[p] = rounded(op, entry[p & (p - 1)] + gradients[group, _lowest_bit(p)])
        pattern = sum((bits[group, i] << i for i in range(fan)), np.zeros((taps, c), np.int64))
        acc = np.where((pattern != 0)[..., None], acc + entry[pattern], acc)
        nonzero += int(np.count_nonzero(pattern))
    save_values(buffers["acc"], acc, "f32")
    total = groups * taps * c
    work = lookup_work(total, total - nonzero, k, int(windows.sum()), windows.size, nonfinite(acc))
    table_adds = groups * ((1 << fan) - 1 - fan) * k
    work.counts |= {
        "groups": groups,
        "table_adds": table_adds,
        "live_inputs": int(bitmap.sum()),
        "dense_inputs": positions * k,
    }
    return work


def _lowest_bit(p: int) -> int:
    return (p & -p).bit_length() - 1


def _padded(values: npt.NDArray[Scalar], length: int) -> npt.NDArray[Scalar]:
    missing = np.zeros((length - len(values), *values.shape[1:]), values.dtype)
    return np.concatenate([values, missing])


def _input_spikes(op: Operation, buffer: Bytes) -> Bool:
    return unpack_bits(buffer, (op.number("imgs"), *input_shape(op), op.number("c")))


def _patterns(spikes: Bool, groups: int, fan: int) -> npt.NDArray[np.int64]:
    padded = np.zeros((*spikes.shape[:-1], groups * fan), np.int64)
    padded[..., : spikes.shape[-1]] = spikes
    grouped = padded.reshape(*spikes.shape[:-1], groups, fan)
    return np.asarray((grouped << np.arange(fan)).sum(axis=-1), np.int64)
