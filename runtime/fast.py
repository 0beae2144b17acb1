"""Every computing instruction on compiled kernels: the same bytes as ``reference.py``, at the speed of the host.

Storage in half precision is widened to float32 scratch once per instruction, so that kernels exist for float32 only.
Large instructions are split over independent positions or rows and run on all cores (kernels release the GIL).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import isa, numerics

from . import reference
from .kernels import bits, convolution, planes, transfer, vector
from .kernels.bits import F32, U16, U32, U64
from .kernels.convolution import I32, Shape
from .kernels.rows import LANES
from .operation import (
    ADAM_KINDS,
    Bytes,
    Memories,
    Operation,
    Work,
    check_dispatch,
    input_shape,
    item_bytes,
    not_fixed_point,
    open_operands,
    slot_bytes,
    spans,
    transfer_range,
)
from .regions import HALF
from .work import (
    BACKWARD_MODES,
    issue_width,
    lane_passes,
    lookup_work,
    neuron_counts,
    products_work,
    skips_zero_patterns,
    unit_count,
    update_elements,
    weight_work,
)

Buffers = dict[str, Bytes]

WORTH_A_THREAD = 1 << 17
"""Inner-loop elements below which an instruction stays on the calling thread (about 50 microseconds of work)."""

_ALIGNMENT = 8
_NO_BYTES = np.zeros(0, np.uint8)
_NO_REALS = np.zeros(0, np.float32)
_NO_HALVES = np.zeros(0, np.uint16)
_NO_TAPS = np.zeros(0, np.int32)


def execute(op: Operation, memories: Memories) -> Work:
    """Execute one instruction; raises H2LearnError on a fault (nothing is promised about memory then)."""
    opened = op.kept.get("opened")
    if not isinstance(opened, _Opened) or opened.memories is not memories:
        opened = op.kept["opened"] = _open(op, memories)
    buffers = opened.buffers
    if not opened.odd:
        return SEMANTICS[op.mnemonic](op, buffers)
    copies = {name: buffers[name].copy() for name in opened.odd}
    work = SEMANTICS[op.mnemonic](op, buffers | copies)
    for name in isa.BY_MNEMONIC[op.mnemonic].writes:
        if name in copies:
            buffers[name][:] = copies[name]
    return work


class _Opened(NamedTuple):
    """The operands' bytes in some memories; ``odd``: those that kernels cannot work on where they are."""

    memories: Memories
    buffers: Buffers
    odd: tuple[str, ...]


def _open(op: Operation, memories: Memories) -> _Opened:
    buffers = open_operands(op, memories)
    if op.mnemonic in ("ld", "st"):
        return _Opened(memories, buffers, ())
    return _Opened(memories, buffers, tuple(name for name in buffers if _is_misaligned(op, name, memories)))


def load(op: Operation, buffers: Buffers) -> Work:
    """``ld``: strided rows, zero where the row or column does not exist."""
    return _transfer(op, buffers, zero_fill=True)


def store(op: Operation, buffers: Buffers) -> Work:
    """``st``: strided rows, dropped where the row or column does not exist."""
    return _transfer(op, buffers, zero_fill=False)


def fe_fill(op: Operation, buffers: Buffers) -> Work:
    """``fe.fill``: entry[p] = st(entry[p & (p-1)] + w[ctz(p)])."""
    taps, c, k, fan, half = _taps(op), op.number("c"), op.number("k"), op.number("fan"), _is_half(op)
    weights = _reals(op, "w", buffers["w"])
    tables = _scratch("tables", buffers["lut"].size // 2, np.float32) if half else buffers["lut"].view(np.float32)
    convolution.fill_tables(weights, tables, taps, c, k, fan, half)
    if half:
        bits.narrow(tables, buffers["lut"].view(np.uint16))
    count = taps * -(-c // fan) * k
    adds = count * ((1 << fan) - 1 - fan)
    return Work({"entries": count * ((1 << fan) - 1), "adds": adds, "nonfinite": int(bits.count_nonfinite(tables))})


def fe_run(op: Operation, buffers: Buffers) -> Work:
    """``fe.run``: acc += entry[tap][group][pattern], taps then groups ascending, zero patterns skipped."""
    if op.number("planes"):
        return _fe_run_planes(op, buffers)
    taps, c, k, fan = _taps(op), op.number("c"), op.number("k"), op.number("fan")
    groups = -(-c // fan)
    (ih, iw), (imgs, oh, ow) = input_shape(op), _positions(op)
    sources, positions = imgs * ih * iw, imgs * oh * ow
    sizes = {"rows": groups, "counts": 1, "spikes": 1}
    lists = [_scratch(name, sources * size, np.uint32) for name, size in sizes.items()]
    _run(convolution.list_patterns, sources, 4 * sources * groups, buffers["s"], c, k, fan, *lists)
    acc, tables = buffers["acc"].view(np.float32), _reals(op, "lut", buffers["lut"])
    adds, spikes = _run(
        convolution.sum_tables,
        positions,
        positions * taps * groups * (k + 16) // 4,
        *(acc, op.init, tables, *lists, *_forward_maps(op)),
        *(groups, groups << fan, k),
        counters=2,
    )
    total = positions * taps * groups
    work = lookup_work(total, total - adds, k, spikes, positions * taps * c, int(bits.count_nonfinite(acc)))
    return _with_lane_cycles(op, work, lists[1])


def _fe_run_planes(op: Operation, buffers: Buffers) -> Work:
    """``fe.run`` on bit-planes: as on spikes, with a factor for every listed pattern."""
    taps, c, k, fan, depth = _taps(op), op.number("c"), op.number("k"), op.number("fan"), op.number("planes")
    groups = -(-c // fan)
    (ih, iw), (imgs, oh, ow) = input_shape(op), _positions(op)
    sources, positions, width = imgs * ih * iw, imgs * oh * ow, groups * depth
    lists = *_lists(sources, width), _scratch("spikes", sources, np.uint32)
    form = (depth, op.number("frac"), op.choice("signed") == "yes")
    _run(planes.list_planes, sources, 4 * sources * width, buffers["s"], c, k, fan, form, *lists)
    acc, tables = buffers["acc"].view(np.float32), _reals(op, "lut", buffers["lut"])
    adds, spikes = _run(
        planes.sum_planes,
        positions,
        positions * taps * width * (k + 16) // 4,
        *(acc, op.init, tables, *lists, *_forward_maps(op), width, groups << fan, k),
        counters=2,
    )
    total, inputs = positions * taps * width, positions * taps * c * depth
    work = lookup_work(total, total - adds, k, spikes, inputs, int(bits.count_nonfinite(acc)), depth)
    return _with_lane_cycles(op, work, lists[2])


def _with_lane_cycles(op: Operation, work: Work, counts: U32) -> Work:
    """Add the cycles of lanes that skip zero patterns; ``counts``: the others of every input position."""
    if skips_zero_patterns(op):
        passes, lanes, least = lane_passes(op)
        busiest = convolution.lane_time(counts, *_forward_maps(op), op.number("imgs"), lanes, least)
        work.counts["lane_cycles"] = passes * int(busiest)
    return work


def be_fwd(op: Operation, buffers: Buffers) -> Work:
    """``be.fwd``: acc += x * w, taps then channels ascending, zero inputs skipped."""
    c, k = op.number("c"), op.number("k")
    ih, iw = input_shape(op)
    sources = op.number("imgs") * ih * iw
    lists = _lists(sources, c)
    _run(convolution.list_reals, sources, 2 * sources * c, _reals(op, "x", buffers["x"]), c, k, *lists)
    weights = _reals(op, "w", buffers["w"])
    return _products(op, buffers, weights, lists, _forward_maps(op), c, k, "in")


def be_run(op: Operation, buffers: Buffers) -> Work:
    """``be.run``: acc += g * w over taps, then live k ascending; +0 where the mask is 0."""
    c, k = op.number("c"), op.number("k")
    lists = _gradient_lists(op, buffers["g"], op.number("imgs") * op.number("gh") * op.number("gw"), scale=c)[:3]
    weights = _scratch("transposed", _taps(op) * c * k, np.float32)
    convolution.transpose_weights(_reals(op, "w", buffers["w"]), _taps(op), c, k, weights)
    mode = BACKWARD_MODES[op.fields.get("mode", 0)]
    return _products(op, buffers, weights, lists, _backward_maps(op), k, c, mode)


def be_wgt(op: Operation, buffers: Buffers) -> Work:
    """``be.wgt``: acc += x * g, positions ascending, zero x and dead g skipped."""
    c, k, rows = op.number("c"), op.number("k"), _taps(op) * op.number("c")
    maps, starts = _forward_maps(op), _starts(op)
    channels, values, counts, live = _gradient_lists(op, buffers["g"], starts.size)
    acc, x = buffers["acc"].view(np.float32), _reals(op, "x", buffers["x"])
    negative_zero = not op.init and bool(np.any(buffers["acc"].view(np.uint32) == 0x80000000))
    sparse = negative_zero or bool(bits.count_nonfinite(x))
    issues = (counts + np.uint32(issue_width(op) - 1)) // np.uint32(issue_width(op))
    totals = np.zeros((3, rows), np.int64)
    _run(
        convolution.sum_weighted,
        rows,
        rows * starts.size * (k + 4) // 2,
        *(acc, op.init, x, channels, values, counts, starts, maps[2], c, k, sparse, issues, *totals),
    )
    return weight_work(op, starts.size, live, (totals[0], totals[1], totals[2]), int(bits.count_nonfinite(acc)))


def wu_run(op: Operation, buffers: Buffers) -> Work:
    """``wu.run``: acc += table(gradients of a group of positions)[spikes of a channel at these positions]."""
    taps, c, k, fan = _taps(op), op.number("c"), op.number("k"), op.number("fan")
    maps, starts = _forward_maps(op), _starts(op)
    *lists, live = _gradient_lists(op, buffers["g"], starts.size)
    groups = -(-starts.size // fan)
    acc = buffers["acc"].view(np.float32)
    adds, spikes = _run(
        convolution.sum_groups,
        taps * -(-c // 8),
        taps * c * groups * (k + 32) // 4,
        *(acc, op.init, buffers["s"], *lists, starts, maps[2], c, k, fan, _is_half(op)),
        counters=2,
    )
    total = groups * taps * c
    work = lookup_work(total, total - adds, k, spikes, starts.size * taps * c, int(bits.count_nonfinite(acc)))
    table_adds = groups * ((1 << fan) - 1 - fan) * k
    work.counts |= {"groups": groups, "table_adds": table_adds, "live_inputs": live, "dense_inputs": starts.size * k}
    return work


def v_lif(op: Operation, buffers: Buffers) -> Work:
    """``v.lif``: u = st(alpha*reset(u, s) + acc + bias); s = u > theta; mask = abs(u - theta) < width."""
    arguments = _arguments(op, buffers, _integrate_arguments)
    n, k = op.number("n"), op.number("k")
    fired, passed, broken = _run(vector.integrate, n, n * k, *arguments, counters=3)
    return Work(neuron_counts(op) | {"spikes": fired, "masked_in": passed, "nonfinite": broken})


def _integrate_arguments(op: Operation, buffers: Buffers) -> tuple[object, ...]:
    reset, spike = op.choice("reset"), op.choice("spike")
    save_u, save_m = op.choice("save_u") == "yes", op.choice("save_m") == "yes"
    never = spike == "never"
    resets = (reset == "hard", reset == "soft", reset == "soft_delayed")
    windowed = op.choice("surrogate") in ("rectangular", "triangular")
    flags = (op.init, _is_half(op), *resets, spike == "ge", never, save_u, save_m, windowed, op.number("drive"))
    return (
        *(buffers["acc"].view(np.float32), buffers["par"].view(np.float32), *_either(op, buffers["us"])),
        *(buffers.get("ss", _NO_BYTES), buffers.get("so", _NO_BYTES), *_either(op, buffers.get("uo", _NO_BYTES))),
        *(buffers.get("mo", _NO_BYTES), *_either(op, buffers.get("cs", _NO_BYTES)), op.number("k"), flags),
        np.float32(op.desc["width"]),
    )


def v_grad(op: Operation, buffers: Buffers) -> Work:
    """``v.grad``: gu = sg*e + carried, backwards through one time step of the neuron."""
    arguments = _arguments(op, buffers, _differentiate_arguments)
    n, k = op.number("n"), op.number("k")
    live, broken = _run(vector.differentiate, n, 4 * n * k, *arguments, counters=2)
    return Work(neuron_counts(op) | {"live_outputs": live, "nonfinite": broken})


def _differentiate_arguments(op: Operation, buffers: Buffers) -> tuple[object, ...]:
    k, reset, never = op.number("k"), op.choice("reset"), op.choice("spike") == "never"
    resets = (reset == "hard", reset == "soft", reset == "soft_delayed")
    kinds = (op.number("surrogate"), op.number("drive"))
    flags = (op.init, _is_half(op), *resets, never, op.choice("detach") == "yes", *kinds)
    return (
        *(buffers["gs"].view(np.float32), *_either(op, buffers.get("u", _NO_BYTES)), buffers.get("s", _NO_BYTES)),
        *(buffers["par"].view(np.float32), *_either(op, buffers["gc"]), *_either(op, buffers.get("gi", _NO_BYTES))),
        *(
            buffers["go"].view(np.uint64),
            _slot_words(op),
            op.number("gblk"),
            k,
            flags,
            np.float32(op.desc["width"]),
            np.float32(op.desc["height"]),
        ),
    )


def v_pool(op: Operation, buffers: Buffers) -> Work:
    """``v.pool``: average, sum, or maximum with the number of the first largest window element that exists."""
    k, positions = op.number("k"), _position_count(op)
    elements = positions * k * _taps(op)
    geometry = (_forward_maps(op)[2], op.number("sh"), op.number("sw"), k)
    maximum, idx = op.choice("kind") == "max", buffers.get("idx", _NO_BYTES)
    firsts = (_first_taps(op, "y"), _first_taps(op, "x")) if maximum else (_NO_TAPS, _NO_TAPS)
    divisor = np.float32(_taps(op) if op.choice("kind") == "avg" else 1)
    if op.choice("src") == "f32":
        dst = buffers["dst"].view(np.float32)
        source = buffers["src"].view(np.float32)
        _run(vector.pool_reals, positions, elements, source, *geometry, maximum, *firsts, divisor, dst, idx)
        return Work({"elements": elements, "nonfinite": int(bits.count_nonfinite(dst))})
    if maximum:
        _run(vector.maximum_bits, positions, elements, buffers["src"], *geometry, *firsts, buffers["dst"], idx)
        return Work({"elements": elements, "nonfinite": 0})
    averages = np.arange(_taps(op) + 1, dtype=np.float32) / divisor
    dst = _scratch("averages", positions * k, np.float32) if _is_half(op) else buffers["dst"].view(np.float32)
    _run(vector.average_bits, positions, elements, buffers["src"], averages, *geometry, dst)
    if _is_half(op):
        bits.narrow(dst, buffers["dst"].view(np.uint16))
    return Work({"elements": elements, "nonfinite": 0})


def v_unpool(op: Operation, buffers: Buffers) -> Work:
    """``v.unpool``: each element gathers its share of the gradients of the windows that it lies in."""
    k, positions = op.number("k"), _position_count(op)
    sources = op.number("imgs") * op.number("gh") * op.number("gw")
    elements, slots = positions * k * _taps(op), op.choice("src") == "slots"
    counts = {"elements": elements}
    if slots:
        *lists, counts["live_inputs"] = _gradient_lists(op, buffers["src"], sources)
        source, dst = _scratch("dense", sources * k, np.float32), _scratch("shares", positions * k, np.float32)
        vector.densify(*lists, sources, k, source)
    else:
        source, dst = buffers["src"].view(np.float32), buffers["dst"].view(np.float32)
    idx, maximum = buffers.get("idx", _NO_BYTES), op.choice("kind") == "max"
    divisor = np.float32(_taps(op) if op.choice("kind") == "avg" else 1)
    _run(vector.unpool, positions, elements, source, idx, *_backward_maps(op), k, maximum, divisor, dst)
    if slots:
        counts["live_outputs"] = _encode(op, buffers["dst"], dst, positions)
    return Work(counts | {"nonfinite": int(bits.count_nonfinite(dst))})


def _first_taps(op: Operation, axis: str) -> I32:
    """Return per window row (``y``) or column (``x``) the first and, exclusive, the last kernel place that exists."""
    count, stride, size = (op.number(name) for name in {"y": ("oh", "sh", "kh"), "x": ("ow", "sw", "kw")}[axis])
    limit, start = op.number(f"{axis}lim"), op.operands[axis].address + np.arange(count) * stride
    first, last = np.maximum(0, -start), np.minimum(size, limit - start) if limit else np.full(count, size)
    first = first if limit else np.zeros(count, np.int64)
    return np.ascontiguousarray(np.stack([first, np.maximum(first, last)], axis=1), np.int32).reshape(-1)


def v_rng(op: Operation, buffers: Buffers) -> Work:
    """``v.rng``: spike where a counter-based uniform lies below the rate."""
    n, steps, k, word = op.number("n"), op.number("steps"), op.number("k"), 0xFFFFFFFF
    seed, first = (int(v) for v in buffers["scal"].view(np.uint64)[2:4])
    sample, neuron, tick = (op.operands[name].address & word for name in ("pos", "neu", "tick"))
    (fired,) = _run(
        vector.bernoulli,
        n * steps,
        16 * n * steps * k,
        *(buffers["src"].view(np.float32), buffers["dst"], steps, k, (seed & word, seed >> 32), op.number("stream")),
        *((first + sample) & word, neuron, tick),
        counters=1,
    )
    return Work({"elements": n * steps * k, "spikes": fired})


def v_drop(op: Operation, buffers: Buffers) -> Work:
    """``v.drop``: values whose counter-based uniform lies below the share stay, scaled; the others become 0."""
    n, steps, k, word = op.number("n"), op.number("steps"), op.number("k"), 0xFFFFFFFF
    counts = {"elements": n * steps * k}
    values = _dense(op, "a", buffers["a"], counts, n * steps)
    seed, first = (int(v) for v in buffers["scal"].view(np.uint64)[2:4])
    sample, neuron, tick = (op.operands[name].address & word for name in ("pos", "neu", "tick"))
    result = _unrounded(op, buffers["dst"], n * steps * k)
    _run(
        vector.drop,
        n * steps,
        16 * n * steps * k,
        *(values.reshape(-1), result, np.float32(op.desc["p0"]), np.float32(op.desc["share"]), steps, k),
        *((seed & word, seed >> 32), op.number("stream"), (first + sample) & word, neuron, tick),
    )
    _finish(op, buffers["dst"], result, n * steps, counts)
    return Work(counts | {"nonfinite": int(bits.count_nonfinite(result))})


def v_reduce(op: Operation, buffers: Buffers) -> Work:
    """``v.reduce``: rate, mean or last over time (as in the reference); time sum or position sum of gradients."""
    n, k, kind = op.number("n"), op.number("k"), op.choice("kind")
    if kind not in ("tsum", "bias"):
        with np.errstate(all="ignore"):
            return reference.v_reduce(op, buffers)
    steps, rows = (op.number("steps"), n) if kind == "tsum" else (n, 1)
    acc = _scratch("time_sum", n * k, np.float32) if kind == "tsum" else buffers["dst"].view(np.float32)
    if op.init or kind == "tsum":
        acc[:] = 0
    layout = (buffers["src"].view(np.uint64), _slot_words(op), _is_half(op), rows, steps, k, op.number("gblk"))
    (live,) = _run(vector.accumulate_slots, rows, 2 * steps * n * k, acc, *layout, kind == "tsum", counters=1)
    counts = {"elements": steps * rows * k, "live_inputs": live}
    if kind == "tsum":
        counts["live_outputs"] = _encode(op, buffers["dst"], acc, n)
    return Work(counts | {"nonfinite": int(bits.count_nonfinite(acc))})


def v_spread(op: Operation, buffers: Buffers) -> Work:
    """``v.spread``: as in the reference; there are few logits."""
    with np.errstate(all="ignore"):
        return reference.v_spread(op, buffers)


def v_map(op: Operation, buffers: Buffers) -> Work:
    """``v.map``: a change of format, or a + b."""
    n, k = op.number("n"), op.number("k")
    counts = {"elements": n * k}
    values = [_dense(op, name, buffers[name], counts, n) for name in ("a", "b") if name in buffers]
    result = _unrounded(op, buffers["dst"], n * k)
    if len(values) == 1:
        result[:] = values[0].reshape(-1)
    else:
        with np.errstate(all="ignore"):
            np.add(values[0].reshape(n, k), values[1].reshape(-1, k), out=result.reshape(n, k))
    _finish(op, buffers["dst"], result, n, counts)
    return Work(counts | {"nonfinite": int(bits.count_nonfinite(result))})


def v_pack(op: Operation, buffers: Buffers) -> Work:
    """``v.pack``: bit-planes of fixed-point numbers."""
    n, k, depth, frac = op.number("n"), op.number("k"), op.number("planes"), op.number("frac")
    x = _reals(op, "src", buffers["src"])
    (wrong,) = _run(
        planes.pack, n, 2 * n * k, x, k, (depth, frac, op.choice("signed") == "yes"), buffers["dst"], counters=1
    )
    if wrong:
        raise not_fixed_point(op, float(x[planes.first_wrong(x, depth, frac, op.choice("signed") == "yes")]))
    return Work({"elements": n * k})


def _unrounded(op: Operation, target: Bytes, size: int) -> F32:
    """Return where element-wise results go before they are rounded: the target itself if it holds float32."""
    form = op.choice("dst")
    plain = form == "f32" or (form == "storage" and not _is_half(op))
    return target.view(np.float32) if plain else _scratch("mapped", size, np.float32)


def _finish(op: Operation, target: Bytes, result: F32, positions: int, counts: dict[str, int]) -> None:
    """Write what :func:`_unrounded` has to the target, in the format that the descriptor gives it."""
    form = op.choice("dst")
    if form == "slots":
        counts["live_outputs"] = _encode(op, target, result, positions)
    elif form == "storage" and _is_half(op):
        bits.round_all(result)
        bits.narrow(result, target.view(np.uint16))


def _dense(op: Operation, name: str, buffer: Bytes, counts: dict[str, int], n: int) -> F32:
    """Return operand ``name`` of element-wise work on ``n`` positions as float32; live gradients are counted."""
    k, form = op.number("k"), op.choice(name)
    if form == "bits":
        packed = buffer.reshape(n, -(-k // 8))
        return np.unpackbits(packed, axis=-1, count=k, bitorder="little").astype(np.float32)
    if form == "slots":
        *lists, live = _gradient_lists(op, buffer, n)
        counts["live_inputs"] = counts.get("live_inputs", 0) + live
        dense = _scratch(f"dense {name}", n * k, np.float32)
        vector.densify(*lists, n, k, dense)
        return dense
    return _reals(op, name, buffer) if form == "storage" else buffer.view(np.float32)


def v_stat(op: Operation, buffers: Buffers) -> Work:
    """``v.stat``: sums over the valid samples, position by position."""
    kind, k, shape = op.choice("kind"), op.number("k"), _norm_shape(op)
    positions = shape[0] * shape[1] * shape[2]
    par, dst = buffers["par"].view(np.float32), buffers["dst"].view(np.float32)
    counts, g = {"elements": positions * k}, _NO_REALS
    if kind == "product":
        g = _scratch("dense", positions * k, np.float32)
        counts["live_inputs"] = _densify(op, buffers["g"], positions, g)
    total = np.zeros(dst.size, np.float32)
    valid = _valid_samples(op, buffers)
    which = ("sum", "square", "product").index(kind)
    vector.sum_norm(buffers["x"].view(np.float32), g, par, shape, k, valid, which, total)
    dst[:] = total + np.float32(0) if op.init else dst + total
    return Work(counts | {"nonfinite": int(bits.count_nonfinite(dst))})


def v_fold(op: Operation, buffers: Buffers) -> Work:
    """``v.fold``: as in the reference; there is one row only."""
    with np.errstate(all="ignore"):
        return reference.v_fold(op, buffers)


def v_norm(op: Operation, buffers: Buffers) -> Work:
    """``v.norm``: batch normalisation of a tile, or its gradient through mean and deviation."""
    k, shape = op.number("k"), _norm_shape(op)
    positions = shape[0] * shape[1] * shape[2]
    x, par = buffers["x"].view(np.float32), buffers["par"].view(np.float32)
    counts = {"elements": positions * k}
    if op.choice("kind") == "forward":
        dst = buffers["dst"].view(np.float32)
        _run(vector.normalise, positions, positions * k, x, par, k, dst)
        return Work(counts | {"nonfinite": int(bits.count_nonfinite(dst))})
    g, dst = _scratch("dense", positions * k, np.float32), _scratch("shares", positions * k, np.float32)
    counts["live_inputs"] = _densify(op, buffers["g"], positions, g)
    count, valid = np.float32(reference.value_count(op, buffers)), _valid_samples(op, buffers)
    _run(vector.denormalise, positions, 2 * positions * k, x, g, par, k, count, shape, valid, dst)
    counts["live_outputs"] = _encode(op, buffers["dst"], dst, positions)
    return Work(counts | {"nonfinite": int(bits.count_nonfinite(dst))})


def _norm_shape(op: Operation) -> tuple[int, int, int]:
    return op.number("steps"), op.number("n"), op.number("positions")


def _valid_samples(op: Operation, buffers: Buffers) -> int:
    """Return how many of the first samples of a tile are there."""
    valid = int(buffers["scal"].view(np.uint32)[1])
    return min(max(valid - op.operands["pos"].address, 0), op.number("n"))


def _densify(op: Operation, slots: Bytes, positions: int, dense: F32) -> int:
    """Write gradients with zeros where they are dead; return how many are live."""
    *lists, live = _gradient_lists(op, slots, positions)
    vector.densify(*lists, positions, op.number("k"), dense)
    return int(live)


def v_loss(op: Operation, buffers: Buffers) -> Work:
    """``v.loss``: loss summed over valid samples / N, and its gradient times p0; all samples at a time."""
    n, k, first = op.number("n"), op.number("k"), op.operands["pos"].address
    valid = int(buffers["scal"].view(np.uint32)[1])
    live = min(max(valid - first, 0), n)
    labels, grad = buffers["label"].view(np.int32)[:live], buffers["grad"].view(np.float32).reshape(n, k)
    wrong = np.flatnonzero((labels < 0) | (labels >= k))
    if wrong.size:
        sample = int(wrong[0])
        raise op.fault(f"label {labels[sample]} of sample {first + sample} is outside the classes 0 to {k - 1}")
    logits = buffers["logits"].view(np.float32).reshape(n, k)[:live]
    count, scale, hot = np.float32(max(valid, 1)), np.float32(op.desc["p0"]), labels[:, None] == np.arange(k)
    with np.errstate(all="ignore"):
        if op.choice("kind") == "cross_entropy":
            shifted = logits - logits.max(axis=1, keepdims=True)
            powers = numerics.exp(shifted)
            total = _column_sum(powers)
            losses = numerics.log(total) - shifted[np.arange(live), labels]
            grad[:live] = ((powers / total[:, None] - hot.astype(np.float32)) / count) * scale
        else:
            away = logits - np.where(hot, np.float32(op.desc["hit"]), np.float32(op.desc["miss"]))
            losses = _column_sum(away * away) / np.float32(k) * np.float32(op.desc["share"])
            grad[:live] = ((away * np.float32(2)) / (count * np.float32(k))) * scale
        grad[live:] = 0
        target = buffers["loss"].view(np.float32)
        loss = np.float32(0) if op.init else target[0]
        for share in losses / count:
            loss = loss + share
    target[0] = loss
    return Work(
        {"elements": n * k, "nonfinite": int(not np.isfinite(loss)) + int(bits.count_nonfinite(grad.reshape(-1)))}
    )


def _column_sum(values: F32) -> F32:
    """Return the sums of the rows, columns ascending from +0."""
    total = np.zeros(len(values), np.float32)
    for column in values.T:
        total = total + column
    return total


def v_opt(op: Operation, buffers: Buffers) -> Work:
    """``v.opt``: gradient descent with momentum, or Adam; the storage copy follows."""
    kind, parameters = op.choice("kind"), buffers["p"].view(np.float32)
    gradient, mom = buffers["g"].view(np.float32), buffers.get("mom", _NO_BYTES).view(np.float32)
    copy, real = buffers.get("w", _NO_BYTES).view(np.uint16), _factors(op)
    rate = buffers["scal"].view(np.float32)[0]
    if kind in ADAM_KINDS:
        count = int(buffers["scal"].view(np.uint32)[2]) + 1
        size = rate / numerics.complement_power(real["rate1"], count)
        root = np.sqrt(numerics.complement_power(real["rate2"], count))
        kept = np.float32(1) - rate * real["decay"] if kind == "adamw" else np.float32(1)
        added = np.float32(0) if kind == "adamw" else real["decay"]
        shares = (real["rate1"], real["rate2"], np.float32(1) - real["rate2"])
        arrays = (parameters, gradient, mom, buffers["sq"].view(np.float32), copy)
        vector.adapt(*arrays, real["scale"], kept, added, shares, size, root, real["eps"], _is_half(op))
    else:
        factors = (rate, real["momentum"], real["scale"], real["decay"])
        vector.descend(parameters, gradient, mom, copy, *factors, kind == "nesterov", _is_half(op))
    return Work({"elements": update_elements(op), "nonfinite": int(bits.count_nonfinite(parameters))})


def _factors(op: Operation) -> dict[str, np.float32]:
    """Return the descriptor fields of ``v.opt`` that are real numbers."""
    return {name: np.float32(op.desc[name]) for name in ("scale", "decay", "momentum", "rate1", "rate2", "eps")}


def _is_misaligned(op: Operation, name: str, memories: Memories) -> bool:
    operand = op.operands[name]
    base = memories.dram_base if operand.memory == "DRAM" else 0
    return (operand.address - base) % _ALIGNMENT != 0


class _Rows(NamedTuple):
    """A transfer worked out: arguments of ``slot_traffic`` and ``copy_rows`` behind the buffers (empty: not needed).

    ``bytes``: those that it moves, for slots known only when it is executed.
    """

    slots: tuple[Any, ...]
    copy: tuple[Any, ...]
    existing: int
    missing: int
    bytes: int


def _transfer(op: Operation, buffers: Buffers, zero_fill: bool) -> Work:
    rows = op.kept.get("rows")
    if not isinstance(rows, _Rows):
        rows = op.kept["rows"] = _rows(op, zero_fill)
    moved = rows.bytes
    if rows.slots:
        moved = int(transfer.slot_traffic(buffers["src"], *rows.slots, 1)[0])
    if rows.copy:
        transfer.copy_rows(buffers["dst"], buffers["src"], *rows.copy)
    return Work({"rows": rows.existing, "zero_rows": rows.missing, "bytes": moved})


def _rows(op: Operation, zero_fill: bool) -> _Rows:
    counts = tuple(op.number(f"n{d}") for d in range(4))
    strides = {name: tuple(op.number(f"{name[0]}s{d}") for d in range(4)) for name in ("src", "dst")}
    starts = {name: op.operands[name].address - start for name, (start, _) in spans(op).items()}
    rows, columns, run = transfer_range(op, 2), transfer_range(op, 3), op.number("run")
    outer = counts[0] * counts[1]
    existing = outer * (rows[1] - rows[0]) * (columns[1] - columns[0])
    slots: tuple[Any, ...] = ()
    copy: tuple[Any, ...] = ()
    if op.choice("mode") == "slots":
        in_dram = strides["src" if zero_fill else "dst"]
        sizes = (run, op.number("slot"), op.number("item"), op.number("pack"))
        slots = (starts["src"], counts, strides["src"], in_dram, *sizes, rows, columns)
    if run and (existing or zero_fill):
        layout = _merged((run, counts, strides["src"], strides["dst"], rows, columns))
        copy = (starts["dst"], starts["src"], *layout, zero_fill)
    return _Rows(slots, copy, existing, outer * counts[2] * counts[3] - existing, 0 if slots else existing * run)


class Copy(NamedTuple):
    """A transfer as numbers: ``copy`` and ``slots`` are the arguments of ``copy_rows`` and (but for the burst)
    ``slot_traffic`` with places in whole memories, flat, empty where not needed; ``work`` is what is known beforehand.
    """

    copy: list[int]
    slots: list[int]
    work: dict[str, int]


def plan_copy(op: Operation, memories: Memories) -> Copy:
    """Return an ``ld`` or ``st`` as numbers; raises H2LearnError when it faults."""
    open_operands(op, memories)
    rows = _rows(op, zero_fill=op.mnemonic == "ld")
    bases = {
        name: start - (memories.dram_base if op.operands[name].memory == "DRAM" else 0)
        for name, (start, _) in spans(op).items()
    }
    copy, slots = _flat(rows.copy), _flat(rows.slots)
    if copy:
        copy[0], copy[1] = copy[0] + bases["dst"], copy[1] + bases["src"]
    if slots:
        slots[0] += bases["src"]
    return Copy(copy, slots, {"rows": rows.existing, "zero_rows": rows.missing, "bytes": rows.bytes})


def _flat(arguments: tuple[Any, ...]) -> list[int]:
    return [int(number) for item in arguments for number in (item if isinstance(item, tuple) else (item,))]


def _merged(layout: tuple[Any, ...]) -> tuple[Any, ...]:
    """Join innermost dimensions that are contiguous on both sides and exist completely into the run."""
    run, counts, source, target, rows, columns = layout
    whole = [True, True, rows == (0, counts[2]), columns == (0, counts[3])]
    counts = list(counts)
    for d in (3, 2, 1, 0):
        if not whole[d] or (counts[d] != 1 and not source[d] == target[d] == run):
            break
        run, counts[d] = run * counts[d], 1
        rows, columns = ((0, 1) if d == 2 else rows), ((0, 1) if d == 3 else columns)
    return tuple(counts), source, target, run, rows, columns


def _products(
    op: Operation,
    buffers: Buffers,
    weights: F32,
    lists: tuple[U32, F32, U32],
    maps: tuple[I32, I32, Shape],
    in_width: int,
    out_width: int,
    mode: str,
) -> Work:
    """Sum products into ``acc`` and count the work as the reference does."""
    positions = _position_count(op)
    live, dense, outputs = (_scratch(name, positions, np.uint32) for name in ("live", "dense_inputs", "outputs"))
    _run(
        convolution.sum_products,
        positions,
        positions * _taps(op) * in_width * (out_width + 16) // 2,
        *(buffers["acc"].view(np.float32), op.init, weights, *lists, *maps, in_width, out_width),
        *(buffers.get("m", _NO_BYTES), "m" in buffers, live, dense, outputs),
    )
    totals, modes = np.zeros(4, np.int64), np.zeros((4, 3), np.int64)
    convolution.tally(live, dense, outputs, out_width, issue_width(op), unit_count(op), totals, modes)
    not_finite = int(bits.count_nonfinite(buffers["acc"].view(np.float32)))
    return products_work(op, mode, positions, totals.tolist(), modes.tolist(), not_finite)


def _gradient_lists(op: Operation, slots: Bytes, positions: int, scale: int = 1) -> tuple[U32, F32, U32, int]:
    """Return the channels (times ``scale``), values and counts of the live gradients per position, and their number."""
    k = op.number("k")
    lists = _lists(positions, k)
    layout = (slots.view(np.uint64), _slot_words(op), _is_half(op), k, op.number("gblk"), scale)
    (live,) = _run(bits.decode_lists, positions, 2 * positions * k, *layout, *lists, counters=1)
    return *lists, live


def _encode(op: Operation, slots: Bytes, values: F32, positions: int) -> int:
    """Round ``values`` to storage in place, write them as gradient slots and return how many are live."""
    k = op.number("k")
    if _is_half(op):
        bits.round_all(values)
    layout = (slots.view(np.uint64), _slot_words(op), _is_half(op), k, op.number("gblk"))
    (live,) = _run(bits.encode_rows, positions, 2 * positions * k, values, *layout, counters=1)
    return live


def _lists(positions: int, width: int) -> tuple[U32, F32, U32]:
    return (
        _scratch("channels", positions * width, np.uint32),
        _scratch("values", positions * width, np.float32),
        _scratch("counts", positions, np.uint32),
    )


def _slot_words(op: Operation) -> int:
    return slot_bytes(op.number("gblk"), item_bytes(op)) // 8


def _taps(op: Operation) -> int:
    return op.number("kh") * op.number("kw")


def _positions(op: Operation) -> tuple[int, int, int]:
    return op.number("imgs"), op.number("oh"), op.number("ow")


def _position_count(op: Operation) -> int:
    imgs, oh, ow = _positions(op)
    return imgs * oh * ow


def _is_half(op: Operation) -> bool:
    return op.desc["dtype"] == HALF


def _starts(op: Operation) -> U64:
    imgs, oh, ow = _positions(op)
    starts = _scratch("starts", imgs * oh * ow, np.uint64)
    convolution.position_starts(_forward_maps(op)[2], op.number("sh"), op.number("sw"), imgs, starts)
    return starts


def _forward_maps(op: Operation) -> tuple[I32, I32, Shape]:
    oh, ow, kh, kw = (op.number(name) for name in ("oh", "ow", "kh", "kw"))
    rows, columns = _forward_map(oh, op.number("sh"), kh), _forward_map(ow, op.number("sw"), kw)
    return rows, columns, (*input_shape(op), oh, ow, kh, kw)


def _backward_maps(op: Operation) -> tuple[I32, I32, Shape]:
    oh, ow, kh, kw, gh, gw = (op.number(name) for name in ("oh", "ow", "kh", "kw", "gh", "gw"))
    rows = _backward_map(oh, op.number("py"), op.number("sh"), kh, gh)
    columns = _backward_map(ow, op.number("px"), op.number("sw"), kw, gw)
    return rows, columns, (gh, gw, oh, ow, kh, kw)


@lru_cache(maxsize=256)
def _forward_map(size: int, stride: int, kernel: int) -> I32:
    return np.asarray(np.arange(size)[:, None] * stride + np.arange(kernel), np.int32).reshape(-1)


@lru_cache(maxsize=256)
def _backward_map(size: int, offset: int, stride: int, kernel: int, limit: int) -> I32:
    there = np.arange(size)[:, None] + offset - np.arange(kernel)
    inside = (there >= 0) & (there % stride == 0) & (there // stride < limit)
    return np.where(inside, there // stride, -1).astype(np.int32).reshape(-1)


def _reals(op: Operation, name: str, buffer: Bytes) -> F32:
    """Return stored values as float32: a view, or scratch named ``name`` when they are half."""
    if not _is_half(op):
        return buffer.view(np.float32)
    values = _scratch(f"wide {name}", buffer.size // 2, np.float32)
    bits.widen(buffer.view(np.uint16), values)
    return values


def _either(op: Operation, buffer: Bytes) -> tuple[F32, U16]:
    """Return the buffer as the float32 or the half view that its storage type asks for, the other one empty."""
    return (_NO_REALS, buffer.view(np.uint16)) if _is_half(op) else (buffer.view(np.float32), _NO_HALVES)


class _Arguments(NamedTuple):
    """Arguments of a kernel that stay the same as long as it works on the same ``buffers``."""

    buffers: Buffers
    values: tuple[object, ...]


def _arguments(
    op: Operation, buffers: Buffers, build: Callable[[Operation, Buffers], tuple[object, ...]]
) -> tuple[object, ...]:
    """Return the arguments that ``build`` works out, from the last execution where that had the same buffers."""
    kept = op.kept.get("arguments")
    if not isinstance(kept, _Arguments) or kept.buffers is not buffers:
        kept = op.kept["arguments"] = _Arguments(buffers, build(op, buffers))
    return kept.values


def _run(kernel: Callable[..., object], total: int, elements: int, *arguments: object, counters: int = 0) -> list[int]:
    """Call ``kernel(*arguments, [work,] low, high)`` for ranges that cover ``total`` and return the summed work."""
    parts = max(1, min(_cores(), elements // WORTH_A_THREAD, total))
    if parts == 1:
        counts = np.zeros(counters, np.int64)
        kernel(*arguments, *((counts,) if counters else ()), 0, total)
        return [int(count) for count in counts]
    edges = [total * part // parts for part in range(parts + 1)]
    work = np.zeros((parts, counters), np.int64)
    calls = [(*arguments, *((work[part],) if counters else ()), edges[part], edges[part + 1]) for part in range(parts)]
    others = [_pool().submit(kernel, *call) for call in calls[1:]]
    kernel(*calls[0])
    for other in others:
        other.result()
    return [int(count) for count in work.sum(axis=0)]


@cache
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, _cores() - 1), thread_name_prefix="h2learn-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


_local = threading.local()


def _scratch(name: str, size: int, dtype: type[Any]) -> npt.NDArray[Any]:
    """Return ``size`` elements of reusable memory of this thread; a name must not be used twice in an instruction."""
    buffers: dict[str, npt.NDArray[Any]] = _local.__dict__
    kept = buffers.get(name)
    if kept is None or kept.size < size + LANES:
        kept = buffers[name] = np.zeros(size + LANES, dtype)
    return kept[:size]


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
check_dispatch(dict(SEMANTICS), "fast semantics")
