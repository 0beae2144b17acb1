"""Every computing instruction as an executable specification in plain NumPy: ordered, readable, slow.

Loops run over whatever ``docs/semantics.md`` orders (taps, channels, groups, positions); only independent elements are
vectorised. ``fast.py`` must give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics

from .operation import (
    ADAM_KINDS,
    Bytes,
    Memories,
    Operation,
    Work,
    check_dispatch,
    has_synapse,
    input_shape,
    item_bytes,
    moved_bitmap_bytes,
    not_fixed_point,
    open_operands,
    parameter_rows,
    slot_bytes,
    spans,
    transfer_range,
)
from .work import (
    BACKWARD_MODES,
    backward_work,
    issue_width,
    lane_cycles,
    lookup_work,
    neuron_counts,
    nonfinite,
    skips_zero_patterns,
    update_elements,
    weight_work,
)

F32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Buffers = dict[str, Bytes]
Scalar = TypeVar("Scalar", bound=np.generic)


def execute(op: Operation, memories: Memories) -> Work:
    """Execute one instruction; raises H2LearnError on a fault (nothing is promised about memory then)."""
    buffers = open_operands(op, memories)
    with np.errstate(all="ignore"):
        return SEMANTICS[op.mnemonic](op, buffers)


def load(op: Operation, buffers: Buffers) -> Work:
    """``ld``: strided rows, zero where the row or column does not exist."""
    counts = {"rows": 0, "zero_rows": 0, "bytes": 0}
    for exists, source, target in _rows(op):
        if exists:
            _copy(op, buffers["src"][source], buffers["dst"][target])
            counts["rows"] += 1
            counts["bytes"] += _moved(op, buffers["src"][source])
        else:
            buffers["dst"][target] = 0
            counts["zero_rows"] += 1
    return Work(counts)


def store(op: Operation, buffers: Buffers) -> Work:
    """``st``: strided rows, dropped where the row or column does not exist."""
    counts = {"rows": 0, "zero_rows": 0, "bytes": 0}
    for exists, source, target in _rows(op):
        counts["rows" if exists else "zero_rows"] += 1
        if exists:
            _copy(op, buffers["src"][source], buffers["dst"][target])
            counts["bytes"] += _moved(op, buffers["src"][source])
    return Work(counts)


def _copy(op: Operation, source: Bytes, target: Bytes) -> None:
    """Copy a row; of gradient slots the bitmaps and live values."""
    if op.choice("mode") == "plain":
        target[:] = source
        return
    slot = op.number("slot")
    for first in range(0, op.number("run"), slot):
        live = int(np.bitwise_count(source[first : first + 8]).sum())
        end = first + min(8 + live * op.number("item"), slot)
        target[first:end] = source[first:end]


def fe_fill(op: Operation, buffers: Buffers) -> Work:
    """``fe.fill``: entry[p] = st(entry[p & (p-1)] + w[ctz(p)])."""
    taps, c, k, fan = _taps(op), op.number("c"), op.number("k"), op.number("fan")
    groups = -(-c // fan)
    weights = np.zeros((taps, groups * fan, k), np.float32)
    weights[:, :c] = _load(buffers["w"], op.storage()).reshape(taps, c, k)
    grouped = weights.reshape(taps, groups, fan, k)
    entry = np.zeros((taps, groups, 1 << fan, k), np.float32)
    for p in range(1, 1 << fan):
        entry[:, :, p] = _round(op, entry[:, :, p & (p - 1)] + grouped[:, :, _lowest_bit(p)])
    _save(buffers["lut"], entry, op.storage())
    tables = taps * groups * k
    adds = tables * ((1 << fan) - 1 - fan)
    return Work({"entries": tables * ((1 << fan) - 1), "adds": adds, "nonfinite": nonfinite(entry)})


def fe_run(op: Operation, buffers: Buffers) -> Work:
    """``fe.run``: acc += entry[tap][group][pattern], taps then groups ascending, zero patterns skipped."""
    if op.number("planes"):
        return _fe_run_planes(op, buffers)
    taps, k, fan = _taps(op), op.number("k"), op.number("fan")
    groups = -(-op.number("c") // fan)
    patterns = _patterns(_input_spikes(op, buffers["s"]), groups, fan)
    lut = _load(buffers["lut"], op.storage()).reshape(taps, groups, 1 << fan, k)
    acc = _start(op, buffers["acc"], _positions_shape(op) + (k,))
    nonzero, spikes = np.zeros(_positions_shape(op), np.int64), 0
    for tap in range(taps):
        window = _window(op, patterns, tap)
        for group in range(groups):
            p = window[..., group]
            acc = np.where((p != 0)[..., None], acc + lut[tap, group][p], acc)
            nonzero += p != 0
            spikes += int(np.bitwise_count(p).sum())
    _save(buffers["acc"], acc, "f32")
    total = int(np.prod(_positions_shape(op))) * taps * groups
    inputs = int(np.prod(_positions_shape(op))) * taps * op.number("c")
    work = lookup_work(total, total - int(nonzero.sum()), k, spikes, inputs, nonfinite(acc))
    if skips_zero_patterns(op):
        work.counts["lane_cycles"] = lane_cycles(op, nonzero)
    return work


def _fe_run_planes(op: Operation, buffers: Buffers) -> Work:
    """``fe.run`` on bit-planes: acc += ldexp(entry, plane - frac), planes innermost, the sign plane subtracted."""
    taps, c, k, fan, depth = _taps(op), op.number("c"), op.number("k"), op.number("fan"), op.number("planes")
    groups = -(-c // fan)
    bits = _unpack(buffers["s"], (op.number("imgs"), *input_shape(op), depth, c))
    planes = [_patterns(bits[..., plane, :], groups, fan) for plane in range(depth)]
    lut = _load(buffers["lut"], op.storage()).reshape(taps, groups, 1 << fan, k)
    acc = _start(op, buffers["acc"], _positions_shape(op) + (k,))
    nonzero, spikes = np.zeros(_positions_shape(op), np.int64), 0
    for tap in range(taps):
        windows = [_window(op, patterns, tap) for patterns in planes]
        for group in range(groups):
            for plane, window in enumerate(windows):
                p = window[..., group]
                entry = np.ldexp(lut[tap, group][p], plane - op.number("frac")).astype(np.float32)
                negative = op.choice("signed") == "yes" and plane == depth - 1
                acc = np.where((p != 0)[..., None], acc - entry if negative else acc + entry, acc)
                nonzero += p != 0
                spikes += int(np.bitwise_count(p).sum())
    _save(buffers["acc"], acc, "f32")
    positions = int(np.prod(_positions_shape(op)))
    total, inputs = positions * taps * groups * depth, positions * taps * c * depth
    work = lookup_work(total, total - int(nonzero.sum()), k, spikes, inputs, nonfinite(acc), depth)
    if skips_zero_patterns(op):
        work.counts["lane_cycles"] = lane_cycles(op, nonzero)
    return work


def be_fwd(op: Operation, buffers: Buffers) -> Work:
    """``be.fwd``: acc += x * w, taps then channels ascending, zero inputs skipped."""
    taps, c, k = _taps(op), op.number("c"), op.number("k")
    x = _load(buffers["x"], op.storage()).reshape(op.number("imgs"), *input_shape(op), c)
    w = _load(buffers["w"], op.storage()).reshape(taps, c, k)
    acc = _start(op, buffers["acc"], _positions_shape(op) + (k,))
    live = np.zeros(_positions_shape(op), np.int64)
    for tap in range(taps):
        window = _window(op, x, tap)
        for ch in range(c):
            value = window[..., ch, None]
            acc = np.where(value != 0, acc + value * w[tap, ch], acc)
            live += value[..., 0] != 0
    _save(buffers["acc"], acc, "f32")
    dense = np.full_like(live, taps * c)
    return backward_work(op, "in", live, dense, np.full_like(live, k), k, nonfinite(acc))


def be_run(op: Operation, buffers: Buffers) -> Work:
    """``be.run``: acc += g * w over taps, then live k ascending; +0 where the mask is 0."""
    c, k = op.number("c"), op.number("k")
    shape = _positions_shape(op)
    g, bitmap = _decode(op, buffers["g"], (op.number("imgs"), op.number("gh"), op.number("gw")))
    w = _load(buffers["w"], op.storage()).reshape(_taps(op), c, k)
    acc = _start(op, buffers["acc"], (*shape, c))
    live, dense = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for tap, (y, x, ny, nx) in enumerate(_transposed_taps(op)):
        for ch in range(k):
            alive, value = bitmap[:, ny, nx, ch], g[:, ny, nx, ch]
            term = value[..., None] * w[tap, :, ch]
            acc[:, y, x] = np.where(alive[..., None], acc[:, y, x] + term, acc[:, y, x])
            live[:, y, x] += alive
            dense[:, y, x] += 1
    mask = np.ones((*shape, c), np.bool_)
    if op.fields.get("masked"):
        mask = _unpack(buffers["m"], (*shape, c))
        acc = np.where(mask, acc, np.float32(0))
    _save(buffers["acc"], acc, "f32")
    mode = BACKWARD_MODES[op.fields.get("mode", 0)]
    return backward_work(op, mode, live, dense, mask.sum(axis=-1), c, nonfinite(acc))


def be_wgt(op: Operation, buffers: Buffers) -> Work:
    """``be.wgt``: acc += x * g, positions ascending, zero x and dead g skipped."""
    taps, c, k = _taps(op), op.number("c"), op.number("k")
    shape = _positions_shape(op)
    x = _load(buffers["x"], op.storage()).reshape(op.number("imgs"), *input_shape(op), c)
    g, bitmap = _decode(op, buffers["g"], shape)
    windows = np.stack([_window(op, x, tap) for tap in range(taps)], axis=3).reshape(-1, taps, c)
    acc = _start(op, buffers["acc"], (taps, c, k))
    for value, gradient, alive in zip(windows, g.reshape(-1, k), bitmap.reshape(-1, k), strict=True):
        both = (value != 0)[..., None] & alive
        acc = np.where(both, acc + value[..., None] * gradient, acc)
    _save(buffers["acc"], acc, "f32")
    live_x = (windows != 0).reshape(-1, taps * c).astype(np.int64)
    live_g = bitmap.reshape(-1, k).sum(axis=1)[:, None]
    cycles = (live_x * -(-live_g // issue_width(op))).sum(axis=0)
    rows = (live_x.sum(axis=0), cycles, (live_x * live_g).sum(axis=0))
    return weight_work(op, len(windows), int(live_g.sum()), rows, nonfinite(acc))


def wu_run(op: Operation, buffers: Buffers) -> Work:
    """``wu.run``: acc += table(gradients of a group of positions)[spikes of a channel at these positions]."""
    taps, c, k, fan = _taps(op), op.number("c"), op.number("k"), op.number("fan")
    spikes = _input_spikes(op, buffers["s"])
    windows = np.stack([_window(op, spikes, tap) for tap in range(taps)], axis=3).reshape(-1, taps, c)
    g, bitmap = _decode(op, buffers["g"], _positions_shape(op))
    positions = len(windows)
    groups = -(-positions // fan)
    bits = _padded(windows, groups * fan).reshape(groups, fan, taps, c).astype(np.int64)
    gradients = _padded(g.reshape(-1, k), groups * fan).reshape(groups, fan, k)
    acc = _start(op, buffers["acc"], (taps, c, k))
    nonzero = 0
    for group in range(groups):
        entry = np.zeros((1 << fan, k), np.float32)
        for p in range(1, 1 << fan):
            entry[p] = _round(op, entry[p & (p - 1)] + gradients[group, _lowest_bit(p)])
        pattern = sum((bits[group, i] << i for i in range(fan)), np.zeros((taps, c), np.int64))
        acc = np.where((pattern != 0)[..., None], acc + entry[pattern], acc)
        nonzero += int(np.count_nonzero(pattern))
    _save(buffers["acc"], acc, "f32")
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


def v_lif(op: Operation, buffers: Buffers) -> Work:
    """``v.lif``: u = st(alpha*reset(u, s) + drive(acc + bias)); s = u > theta; mask = where the surrogate is not 0."""
    n, k = op.number("n"), op.number("k")
    bias, alpha, theta, v_reset, *rows = _parameter_rows(op, buffers)
    never = op.choice("spike") == "never"
    x = _drive(op, buffers, rows, _load(buffers["acc"], "f32").reshape(n, k) + bias)
    counted = op.choice("counted") == "yes"
    r = np.zeros((n, k), np.float32)
    s: F32 | Bool = np.zeros((n, k), np.bool_)
    if not op.init:
        before = _load(buffers["us"], op.storage()).reshape(n, k)
        if counted:
            s = _spike_count(op, before, theta)
        elif not never:
            s = _unpack(buffers["ss"], (n, k))
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
    u = _round(op, np.where(s != 0, v_reset, u) if op.choice("reset") == "hard_delayed" else u)
    spikes = np.zeros((n, k), np.bool_) if never else (u > theta if op.choice("spike") == "gt" else u >= theta)
    open_ended = never or op.choice("surrogate") not in ("rectangular", "triangular")
    mask = np.ones((n, k), np.bool_) if open_ended else _distance(op, u, theta) < np.float32(op.desc["width"])
    _save(buffers["us"], u, op.storage())
    counts = neuron_counts(op)
    if op.choice("save_u") == "inside":
        counts["live_outputs"] = _encode(op, buffers["uo"], u, mask, "ublk")
    elif "uo" in buffers:
        _save(buffers["uo"], u, op.storage())
    if counted:
        spikes = _spike_count(op, u, theta)
        _save(buffers["so"], _round(op, spikes), op.storage())
    for name, bits in (("ss", spikes), ("so", spikes), ("mo", mask)):
        if name in buffers and (name == "mo" or not counted):
            _pack(buffers[name], bits)
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
    return _load(buffers["par"], "f32").reshape(parameter_rows(op), op.number("k"))


def _drive(op: Operation, buffers: Buffers, rows: list[F32], current: F32) -> F32:
    """Return ``current`` as it acts on the potential; a synaptic current moves on by a step."""
    if op.choice("drive") == "plain":
        return current
    gain, offset, _, beta = rows
    if has_synapse(op):
        old = np.zeros_like(current) if op.init else _load(buffers["cs"], op.storage()).reshape(current.shape)
        new = _round(op, beta * old + current)
        _save(buffers["cs"], new, op.storage())
        current = old if op.choice("drive") == "delayed" else new
    return gain * current + offset


def v_grad(op: Operation, buffers: Buffers) -> Work:
    """``v.grad``: gu = sg*e + carried, backwards through one time step of the neuron; then through its drive."""
    n, k = op.number("n"), op.number("k")
    _, alpha, theta, v_reset, *rows = _parameter_rows(op, buffers)
    gs = _load(buffers["gs"], "f32").reshape(n, k)
    gn = np.zeros((n, k), np.float32) if op.init else _load(buffers["gc"], op.storage()).reshape(n, k)
    if op.choice("spike") == "never":
        gu = _round(op, gs + alpha * gn)
    else:
        u, inside = _seen(op, buffers["u"], (n, k))
        s = _spike_count(op, u, theta) if op.choice("counted") == "yes" else _unpack(buffers["s"], (n, k))
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
        gu = _round(op, np.where(sg != 0, sg * e + p, p))
    _save(buffers["gc"], gu, op.storage())
    gx = gu
    if rows:
        gain, _, _, beta = rows
        gx = gain * (gn if op.choice("drive") == "delayed" else gu)
        if has_synapse(op):
            gi = np.zeros_like(gu) if op.init else _load(buffers["gi"], op.storage()).reshape(n, k)
            gx = gx + beta * gi
        gx = _round(op, gx)
        if has_synapse(op):
            _save(buffers["gi"], gx, op.storage())
    counts = neuron_counts(op) | {"live_outputs": _encode(op, buffers["go"], gx), "nonfinite": nonfinite(gx)}
    if op.choice("seen") == "inside" and op.choice("spike") != "never":
        counts["live_inputs"] = int(inside.sum())
    return Work(counts)


def _seen(op: Operation, buffer: Bytes, shape: tuple[int, int]) -> tuple[F32, Bool]:
    """Return what a gradient sees of potentials, 0 where it sees none, and where the surrogate may be other than 0."""
    if op.choice("seen") == "window":
        return np.zeros(shape, np.float32), _unpack(buffer, shape)
    if op.choice("seen") == "inside":
        return _decode(op, buffer, shape[:1], "ublk")
    return _load(buffer, op.storage()).reshape(shape), np.ones(shape, np.bool_)


def v_pool(op: Operation, buffers: Buffers) -> Work:
    """``v.pool``: average, sum, or maximum with the number of the first largest window element that exists."""
    shape = _positions_shape(op) + (op.number("k"),)
    bits = op.choice("src") == "bits"
    in_shape = (op.number("imgs"), *input_shape(op), op.number("k"))
    source = _unpack(buffers["src"], in_shape).astype(np.float32) if bits else _load(buffers["src"], "f32")
    source = source.reshape(in_shape)
    if op.choice("kind") != "max":
        result: F32 = np.zeros(shape, np.float32)
        for tap in range(_taps(op)):
            result = result + _window(op, source, tap)
        if op.choice("kind") == "avg":
            result = result / np.float32(_taps(op))
        result = _round(op, result) if bits else result
        _save(buffers["dst"], result, op.storage() if bits else "f32")
    else:
        rows, columns = (_limited(op, axis, size) for axis, size in zip("yx", in_shape[1:3], strict=True))
        exists = np.broadcast_to((rows[:, None] & columns)[None, :, :, None], in_shape)
        result, winner = _window(op, source, 0), np.zeros(shape, np.uint8)
        begun = np.zeros(shape, np.bool_)
        for tap in range(_taps(op)):
            value, there = _window(op, source, tap), _window(op, exists, tap)
            wins = there & ((value > result) | (np.isnan(value) & ~np.isnan(result)) | ~begun)
            result, winner = np.where(wins, value, result), np.where(wins, np.uint8(tap), winner)
            begun = begun | there
        buffers["idx"][:] = winner.reshape(-1)
        if bits:
            _pack(buffers["dst"], result != 0)
        else:
            _save(buffers["dst"], result, "f32")
    return Work({"elements": result.size * _taps(op), "nonfinite": nonfinite(result)})


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
        g, bitmap = _decode(op, buffers["src"], shape[:3])
        live_inputs = int(bitmap.sum())
    else:
        g, bitmap = _load(buffers["src"], "f32").reshape(shape), np.ones(shape, np.bool_)
    total = np.zeros(_positions_shape(op) + (k,), np.float32)
    for tap, (y, x, ny, nx) in enumerate(_transposed_taps(op)):
        share, adds = g[:, ny, nx], bitmap[:, ny, nx]
        if op.choice("kind") == "avg":
            share = share / np.float32(_taps(op))
        if op.choice("kind") == "max":
            adds = adds & (buffers["idx"].reshape(shape)[:, ny, nx] == tap)
        total[:, y, x] = np.where(adds, total[:, y, x] + share, total[:, y, x])
    counts = {"elements": total.size * _taps(op)}
    if slots:
        total = _round(op, total)
        counts |= {"live_inputs": live_inputs, "live_outputs": _encode(op, buffers["dst"], total.reshape(-1, k))}
    else:
        _save(buffers["dst"], total, "f32")
    return Work(counts | {"nonfinite": nonfinite(total)})


def v_rng(op: Operation, buffers: Buffers) -> Work:
    """``v.rng``: spike where a counter-based uniform lies below the rate."""
    n, steps, k = op.number("n"), op.number("steps"), op.number("k")
    spikes = _uniforms(op, buffers) < _load(buffers["src"], "f32").reshape(n * steps, k)
    _pack(buffers["dst"], spikes)
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
        g, bitmap = _decode(op, buffers["src"], (steps, n))
        counts["live_inputs"] = int(bitmap.sum())
    if kind in ("rate", "count"):
        result = _unpack(buffers["src"], (steps, n, k)).sum(axis=0).astype(np.float32)
        result = result / np.float32(steps) if kind == "rate" else result
    elif kind == "tsum":
        result = np.zeros((n, k), np.float32)
        for t in reversed(range(steps)):
            result = np.where(bitmap[t], result + g[t], result)
        result = _round(op, result)
        counts["live_outputs"] = _encode(op, buffers["dst"], result)
    elif kind == "bias":
        result = _start(op, buffers["dst"], (k,))
        for i in range(n):
            result = np.where(bitmap[0, i], result + g[0, i], result)
    else:
        source = _load(buffers["src"], op.storage()).reshape(steps, n, k)
        result = source[-1]
        if kind == "max":
            result, _ = _maximum(source)
        if kind in ("mean", "sum"):
            result = np.zeros((n, k), np.float32)
            for t in range(steps):
                result = result + source[t]
            result = result / np.float32(steps) if kind == "mean" else result
    if kind != "tsum":
        _save(buffers["dst"], result, "f32")
    return Work(counts | {"nonfinite": nonfinite(result)})


def v_spread(op: Operation, buffers: Buffers) -> Work:
    """``v.spread``: the gradient goes to the first step with the maximum."""
    n, k, steps = op.number("n"), op.number("k"), op.number("steps")
    _, first = _maximum(_load(buffers["x"], op.storage()).reshape(steps, n, k))
    gradient = _load(buffers["src"], "f32").reshape(n, k)
    result = np.stack([np.where(first == step, gradient, np.float32(0)) for step in range(steps)])
    _save(buffers["dst"], result, "f32")
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


def v_tune(op: Operation, buffers: Buffers) -> Work:
    """``v.tune``: gradients of decay and threshold, position by position."""
    n, k, reset = op.number("n"), op.number("k"), op.choice("reset")
    par = _load(buffers["par"], "f32").reshape(-1, k)
    gu, first = _decode(op, buffers["g"], (n,))
    later, second = _decode(op, buffers["later"], (n,))
    u, s = _load(buffers["u"], op.storage()).reshape(n, k), _unpack(buffers["s"], (n, k))
    total = _start(op, buffers["dst"], (2, k))
    for i in range(n):
        rest = {"hard": np.where(s[i], par[3], u[i]), "soft": np.where(s[i], u[i] - par[2], u[i])}.get(reset, u[i])
        passed = par[1] * later[i]
        if reset in ("hard", "soft"):
            passed = np.where(s[i], np.float32(0), passed)
        taken = np.where(s[i], later[i], np.float32(0)) if reset == "soft_delayed" else np.zeros(k, np.float32)
        total[0] = np.where(later[i] != 0, total[0] + later[i] * rest, total[0])
        total[1] = total[1] + ((passed - gu[i]) - taken)
    _save(buffers["dst"], total, "f32")
    counts = {"elements": n * k, "live_inputs": int(first.sum()) + int(second.sum())}
    return Work(counts | {"nonfinite": nonfinite(total)})


def _put(op: Operation, target: Bytes, values: F32, counts: dict[str, int]) -> F32:
    """Write element-wise results in the format that the descriptor gives them; return them rounded."""
    if op.choice("dst") == "bits":
        _pack(target, values != 0)
    elif op.choice("dst") == "slots":
        values = _round(op, values)
        counts["live_outputs"] = _encode(op, target, values)
    else:
        values = values if op.choice("dst") == "f32" else _round(op, values)
        _save(target, values, "f32" if op.choice("dst") == "f32" else op.storage())
    return values


def _operand(op: Operation, name: str, buffer: Bytes, shape: tuple[int, int], counts: dict[str, int]) -> F32:
    """Return operand ``name`` of ``v.map`` as float32; live gradients are counted."""
    form = op.choice(name)
    if form == "bits":
        return _unpack(buffer, shape).astype(np.float32)
    if form == "slots":
        values, bitmap = _decode(op, buffer, shape[:1])
        counts["live_inputs"] = counts.get("live_inputs", 0) + int(bitmap.sum())
        return values
    if form == "row":
        return np.broadcast_to(_load(buffer, "f32"), shape)
    return _load(buffer, "f32" if form == "f32" else op.storage()).reshape(shape)


def v_pack(op: Operation, buffers: Buffers) -> Work:
    """``v.pack``: bit-planes of fixed-point numbers."""
    n, k, depth = op.number("n"), op.number("k"), op.number("planes")
    scaled = np.ldexp(_load(buffers["src"], op.storage()).reshape(n, k).astype(np.float64), op.number("frac"))
    lowest, highest = (-(1 << (depth - 1)), (1 << (depth - 1)) - 1) if op.number("signed") else (0, (1 << depth) - 1)
    fits = (scaled == np.floor(scaled)) & (scaled >= lowest) & (scaled <= highest)
    if not fits.all():
        raise not_fixed_point(op, float(np.ldexp(scaled[~fits][0], -op.number("frac"))))
    numbers = scaled.astype(np.int64)
    _pack(buffers["dst"], np.stack([(numbers >> plane) & 1 == 1 for plane in range(depth)], axis=1))
    return Work({"elements": n * k})


def v_stat(op: Operation, buffers: Buffers) -> Work:
    """``v.stat``: sums over the valid samples, for batch statistics and the gradients of batch normalisation."""
    kind, k = op.choice("kind"), op.number("k")
    par = _load(buffers["par"], "f32").reshape(-1, k)
    z, valid = _biased(op, buffers, par), _valid_samples(op, buffers)
    steps, samples, positions = z.shape[:3]
    counts = {"elements": z.size}
    if kind == "product":
        g, bitmap = _decode(op, buffers["g"], z.shape[:3])
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
    total = _start(op, buffers["dst"], total.shape) + total
    _save(buffers["dst"], total, "f32")
    return Work(counts | {"nonfinite": nonfinite(total)})


def v_fold(op: Operation, buffers: Buffers) -> Work:
    """``v.fold``: mean or inverse deviation of the batch; the running statistic follows."""
    one, momentum, count = np.float32(1), np.float32(op.desc["momentum"]), value_count(op, buffers)
    statistic = _load(buffers["src"], "f32") / np.float32(count)
    result = statistic
    if op.choice("kind") == "deviation":
        result = one / np.sqrt(statistic + np.float32(op.desc["eps"]))
        full = count * op.number("repeats")
        statistic = (statistic * np.float32(full)) / np.float32(max(full - 1, 1))
    running = (one - momentum) * _load(buffers["run"], "f32") + momentum * statistic
    _save(buffers["dst"], result, "f32")
    _save(buffers["run"], running, "f32")
    return Work({"elements": 8 * op.number("k"), "nonfinite": nonfinite(result) + nonfinite(running)})


def v_norm(op: Operation, buffers: Buffers) -> Work:
    """``v.norm``: batch normalisation of a tile, or its gradient through mean and deviation."""
    par = _load(buffers["par"], "f32").reshape(-1, op.number("k"))
    normal = (_biased(op, buffers, par) - par[1]) * par[2]
    counts = {"elements": normal.size}
    if op.choice("kind") == "forward":
        result = normal * par[3] + par[4]
        _save(buffers["dst"], result, "f32")
        return Work(counts | {"nonfinite": nonfinite(result)})
    g, bitmap = _decode(op, buffers["g"], normal.shape[:3])
    count = np.float32(value_count(op, buffers))
    inner = (g - par[4] / count) - normal * (par[5] / count)
    result = _round(op, (par[3] * par[2]) * inner)
    result = np.where(_valid_samples(op, buffers)[:, None, None], result, np.float32(0))
    counts |= {"live_inputs": int(bitmap.sum())}
    counts["live_outputs"] = _encode(op, buffers["dst"], result.reshape(-1, op.number("k")))
    return Work(counts | {"nonfinite": nonfinite(result)})


def value_count(op: Operation, buffers: Buffers) -> int:
    """Return how many values per channel the statistics of a batch have."""
    return max(int(_scalar(buffers, 4, np.uint32)), 1) * op.number("count")


def _biased(op: Operation, buffers: Buffers, par: F32) -> F32:
    shape = tuple(op.number(name) for name in ("steps", "n", "positions", "k"))
    values: F32 = _load(buffers["x"], "f32").reshape(shape) + par[0]
    return values


def _valid_samples(op: Operation, buffers: Buffers) -> Bool:
    here = op.operands["pos"].address + np.arange(op.number("n"))
    return np.asarray(here < int(_scalar(buffers, 4, np.uint32)))


def v_loss(op: Operation, buffers: Buffers) -> Work:
    """``v.loss``: loss summed over valid samples / N, and its gradient times p0."""
    n, k, pos = op.number("n"), op.number("k"), op.operands["pos"].address
    logits = _load(buffers["logits"], "f32").reshape(n, k)
    labels = buffers["label"].copy().view(np.int32)
    valid = int(buffers["scal"][4:8].copy().view(np.uint32)[0])
    count, scale = np.float32(max(valid, 1)), np.float32(op.desc["p0"])
    loss = _start(op, buffers["loss"], (1,))
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
    _save(buffers["loss"], loss, "f32")
    _save(buffers["grad"], grad, "f32")
    return Work({"elements": n * k, "nonfinite": nonfinite(loss) + nonfinite(grad)})


def v_opt(op: Operation, buffers: Buffers) -> Work:
    """``v.opt``: gradient descent with momentum, or Adam; the storage copy follows."""
    kind, rate, decay = op.choice("kind"), _scalar(buffers, 0, np.float32), np.float32(op.desc["decay"])
    parameter = _load(buffers["p"], "f32")
    step = _load(buffers["g"], "f32") * np.float32(op.desc["scale"])
    if kind == "adamw":
        parameter = parameter * (np.float32(1) - rate * decay)
    elif decay != 0:
        step = step + decay * parameter
    if kind in ADAM_KINDS:
        parameter = parameter - _adam(op, buffers, step, rate)
    else:
        parameter = parameter - rate * _direction(op, buffers, step)
    _save(buffers["p"], parameter, "f32")
    if "w" in buffers:
        _save(buffers["w"], parameter, "f16")
    return Work({"elements": update_elements(op), "nonfinite": nonfinite(parameter)})


def _direction(op: Operation, buffers: Buffers, step: F32) -> F32:
    momentum = np.float32(op.desc["momentum"])
    if momentum == 0:
        return step
    velocity = momentum * _load(buffers["mom"], "f32") + step
    _save(buffers["mom"], velocity, "f32")
    return step + momentum * velocity if op.choice("kind") == "nesterov" else velocity


def _adam(op: Operation, buffers: Buffers, step: F32, rate: np.float32) -> F32:
    time = int(_scalar(buffers, 8, np.uint32)) + 1
    rate1, rate2 = np.float32(op.desc["rate1"]), np.float32(op.desc["rate2"])
    mean, square = _load(buffers["mom"], "f32"), _load(buffers["sq"], "f32")
    mean = mean + rate1 * (step - mean)
    square = (np.float32(1) - rate2) * square + (rate2 * step) * step
    _save(buffers["mom"], mean, "f32")
    _save(buffers["sq"], square, "f32")
    root = np.sqrt(numerics.complement_power(rate2, time))
    spread = np.sqrt(square) / root + np.float32(op.desc["eps"])
    change: F32 = (rate / numerics.complement_power(rate1, time)) * mean / spread
    return change


def _scalar(buffers: Buffers, offset: int, dtype: type[Scalar]) -> Scalar:
    found: Scalar = buffers["scal"][offset : offset + 4].copy().view(dtype)[0]
    return found


def _rows(op: Operation) -> Iterator[tuple[bool, slice, slice]]:
    run = op.number("run")
    origin = {name: op.operands[name].address - start for name, (start, _) in spans(op).items()}
    rows, columns = transfer_range(op, 2), transfer_range(op, 3)
    for index in np.ndindex(*(op.number(f"n{d}") for d in range(4))):
        exists = rows[0] <= index[2] < rows[1] and columns[0] <= index[3] < columns[1]
        source, target = (
            origin[name] + sum(i * op.number(f"{name[0]}s{d}") for d, i in enumerate(index)) for name in ("src", "dst")
        )
        yield exists, slice(source, source + run), slice(target, target + run)


def _moved(op: Operation, row: Bytes) -> int:
    if op.choice("mode") == "plain":
        return row.size
    slot, item = op.number("slot"), op.number("item")
    bitmaps = row.reshape(-1, slot)[:, :8]
    return moved_bitmap_bytes(slot, item) * len(bitmaps) + int(np.bitwise_count(bitmaps).sum()) * item


def _taps(op: Operation) -> int:
    return op.number("kh") * op.number("kw")


def _positions_shape(op: Operation) -> tuple[int, int, int]:
    return op.number("imgs"), op.number("oh"), op.number("ow")


def _lowest_bit(p: int) -> int:
    return (p & -p).bit_length() - 1


def _round(op: Operation, values: F32) -> F32:
    return numerics.round_to_storage(values, op.storage())


def _load(buffer: Bytes, storage: str) -> F32:
    return buffer.copy().view(numerics.storage_dtype(storage)).astype(np.float32)


def _save(buffer: Bytes, values: F32, storage: str) -> None:
    stored = np.ascontiguousarray(values).astype(numerics.storage_dtype(storage))
    buffer[:] = stored.reshape(-1).view(np.uint8)


def _start(op: Operation, buffer: Bytes, shape: tuple[int, ...]) -> F32:
    return np.zeros(shape, np.float32) if op.init else _load(buffer, "f32").reshape(shape)


def _unpack(buffer: Bytes, shape: tuple[int, ...]) -> Bool:
    packed = buffer.reshape(*shape[:-1], -(-shape[-1] // 8))
    return np.unpackbits(packed, axis=-1, count=shape[-1], bitorder="little").astype(np.bool_)


def _pack(buffer: Bytes, bits: Bool) -> None:
    buffer[:] = np.packbits(bits, axis=-1, bitorder="little").reshape(-1)


def _padded(values: npt.NDArray[Scalar], length: int) -> npt.NDArray[Scalar]:
    missing = np.zeros((length - len(values), *values.shape[1:]), values.dtype)
    return np.concatenate([values, missing])


def _input_spikes(op: Operation, buffer: Bytes) -> Bool:
    return _unpack(buffer, (op.number("imgs"), *input_shape(op), op.number("c")))


def _patterns(spikes: Bool, groups: int, fan: int) -> npt.NDArray[np.int64]:
    padded = np.zeros((*spikes.shape[:-1], groups * fan), np.int64)
    padded[..., : spikes.shape[-1]] = spikes
    grouped = padded.reshape(*spikes.shape[:-1], groups, fan)
    return np.asarray((grouped << np.arange(fan)).sum(axis=-1), np.int64)


def _window(op: Operation, values: npt.NDArray[Scalar], tap: int) -> npt.NDArray[Scalar]:
    ky, kx = divmod(tap, op.number("kw"))
    rows = np.arange(op.number("oh")) * op.number("sh") + ky
    columns = np.arange(op.number("ow")) * op.number("sw") + kx
    return values[:, rows[:, None], columns[None, :]]


def _transposed_taps(op: Operation) -> Iterator[tuple[npt.NDArray[np.int64], ...]]:
    """Yield for every tap the result rows and columns it reaches, and the gradient rows and columns behind them."""

    def reach(size: int, offset: int, tap: int, stride: int, limit: int) -> tuple[npt.NDArray[np.int64], ...]:
        here = np.arange(size)
        there = here + offset - tap
        inside = (there >= 0) & (there % stride == 0) & (there // stride < limit)
        return here[inside], there[inside] // stride

    for tap in range(_taps(op)):
        ky, kx = divmod(tap, op.number("kw"))
        y, ny = reach(op.number("oh"), op.number("py"), ky, op.number("sh"), op.number("gh"))
        x, nx = reach(op.number("ow"), op.number("px"), kx, op.number("sw"), op.number("gw"))
        yield y[:, None], x[None, :], ny[:, None], nx[None, :]


def _decode(op: Operation, buffer: Bytes, shape: tuple[int, ...], field: str = "gblk") -> tuple[F32, Bool]:
    """Return values and liveness ``[*shape][k]`` of slots of as many channels as the ``field`` says."""
    k, gblk, item = op.number("k"), op.number(field), item_bytes(op)
    values = np.zeros((int(np.prod(shape)), k), np.float32)
    alive = np.zeros(values.shape, np.bool_)
    blocks = -(-k // gblk)
    for index, slot in enumerate(buffer.reshape(-1, slot_bytes(gblk, item))):
        position, first = index // blocks, index % blocks * gblk
        bits = np.unpackbits(slot[:8], bitorder="little")[: min(gblk, k - first)].astype(np.bool_)
        packed = _load(slot[8 : 8 + int(bits.sum()) * item], op.storage())
        channels = first + np.flatnonzero(bits)
        alive[position, channels] = True
        values[position, channels] = packed
    return values.reshape(*shape, k), alive.reshape(*shape, k)


def _encode(op: Operation, buffer: Bytes, values: F32, alive: Bool | None = None, field: str = "gblk") -> int:
    """Write the ``alive`` ones (None: those that are not 0) of ``values`` [positions][k] as slots; return how many."""
    k, gblk, item = op.number("k"), op.number(field), item_bytes(op)
    alive = values != 0 if alive is None else alive
    slots = buffer.reshape(len(values), -(-k // gblk), slot_bytes(gblk, item))
    for position, row in enumerate(values):
        for block, first in enumerate(range(0, k, gblk)):
            chosen = alive[position, first : first + gblk]
            bits = np.zeros(64, np.bool_)
            bits[: chosen.size] = chosen
            live = row[first : first + gblk][chosen]
            slots[position, block, :8] = np.packbits(bits, bitorder="little")
            _save(slots[position, block, 8 : 8 + live.size * item], live, op.storage())
    return int(np.count_nonzero(alive))


def _ordered_sum(values: F32) -> F32:
    total = np.float32(0)
    for value in values:
        total = total + value
    return np.asarray(total, np.float32)


SEMANTICS: dict[str, Callable[[Operation, Buffers], Work]] = {
    "ld": load,
    "st": store,
    "fe.fill": fe_fill,
    "fe.run": fe_run,
    "be.fwd": be_fwd,
    "be.run": be_run,
    "be.wgt": be_wgt,
    "wu.run": wu_run,
    "v.lif": v_lif,
    "v.grad": v_grad,
    "v.tune": v_tune,
    "v.pool": v_pool,
    "v.unpool": v_unpool,
    "v.rng": v_rng,
    "v.drop": v_drop,
    "v.reduce": v_reduce,
    "v.spread": v_spread,
    "v.map": v_map,
    "v.pack": v_pack,
    "v.stat": v_stat,
    "v.fold": v_fold,
    "v.norm": v_norm,
    "v.loss": v_loss,
    "v.opt": v_opt,
}
check_dispatch(dict(SEMANTICS), "reference semantics")
