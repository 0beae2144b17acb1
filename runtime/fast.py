"""Every computing instruction on compiled kernels: the same bytes as ``reference/``, at the speed of the host.

What is frequent is a block of calls (``prepared.py``), which the event loop executes too; transfers and what is rare
stand here. Storage in half precision is widened to float32 scratch once per instruction, so that kernels exist for
float32 only.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import isa, numerics

from . import prepare_engines, prepare_vector
from .kernels import bits, loss, planes, transfer, vector
from .kernels.bits import F32, U32
from .kernels.rows import LANES
from .native import Call
from .operation import (
    Bytes,
    Memories,
    Operation,
    Work,
    check_dispatch,
    not_fixed_point,
    open_operands,
    operand_places,
    spans,
    transfer_range,
)
from .prepare_engines import Site, is_half, slot_words
from .prepared import WORTH_A_PIECE, Arguments, Builder, Prepared
from .reference import elements, training
from .team import MOST_PIECES
from .work import update_elements

Buffers = dict[str, Bytes]

TRANSFERS = ("ld", "st")

_ALIGNMENT = 8
_NO_BYTES = np.zeros(0, np.uint8)
_NO_REALS = np.zeros(0, np.float32)


def execute(op: Operation, memories: Memories) -> Work:
    """Execute one instruction; raises H2LearnError on a fault (nothing is promised about memory then)."""
    if op.mnemonic in TRANSFERS:
        return _transfer(op, memories)
    prepared = prepare(op, memories)
    if prepared is not None:
        return prepared.execute()
    opened = op.kept.get("opened")
    if not isinstance(opened, _Opened) or opened.memories is not memories:
        opened = op.kept["opened"] = _open(op, memories)
    buffers = opened.buffers
    if not opened.odd:
        return SEMANTICS[op.mnemonic](op, buffers)
    copies = {name: buffers[name].copy() for name in opened.odd}
    work = _execute_on(op, buffers | copies, memories)
    for name in isa.BY_MNEMONIC[op.mnemonic].writes:
        if name in copies:
            buffers[name][:] = copies[name]
    return work


def prepare(op: Operation, memories: Memories, *, counting: bool = True) -> Prepared | None:
    """Return an instruction as a block of calls; ``counting``: with those that count its work.

    None for one that has none, or whose operands lie where kernels cannot work on them. Raises H2LearnError when it
    faults.
    """
    known = op.kept.get("prepared")
    if not isinstance(known, _Known) or known.memories is not memories:
        prepared, preparer = None, PREPARERS.get(op.mnemonic)
        if preparer is not None:
            places = operand_places(op, memories)
            if not any(address % _ALIGNMENT for address, _ in places.values()):
                prepared = preparer(op, Site(places, memories, counting))
        known = op.kept["prepared"] = _Known(memories, prepared)
    return known.prepared


def _execute_on(op: Operation, buffers: Buffers, memories: Memories) -> Work:
    """Execute an instruction on copies of its operands."""
    preparer = PREPARERS.get(op.mnemonic)
    if preparer is not None:
        places = {name: (buffer.ctypes.data, buffer.size) for name, buffer in buffers.items()}
        prepared = preparer(op, Site(places, memories))
        if prepared is not None:
            return prepared.execute()
    return SEMANTICS[op.mnemonic](op, buffers)


class _Known(NamedTuple):
    """What an instruction is in some memories."""

    memories: Memories
    prepared: Prepared | None


class _Opened(NamedTuple):
    """The operands' bytes in some memories; ``odd``: those that kernels cannot work on where they are."""

    memories: Memories
    buffers: Buffers
    odd: tuple[str, ...]


def _open(op: Operation, memories: Memories) -> _Opened:
    buffers = open_operands(op, memories)
    odd = tuple(name for name, buffer in buffers.items() if buffer.ctypes.data % _ALIGNMENT)
    return _Opened(memories, buffers, odd)


def v_rng(op: Operation, buffers: Buffers) -> Work:
    """``v.rng``: spike where a counter-based uniform lies below the rate."""
    n, steps, k, word = op.number("n"), op.number("steps"), op.number("k"), 0xFFFFFFFF
    seed, first = (int(v) for v in buffers["scal"].view(np.uint64)[2:4])
    sample, neuron, tick = (op.operands[name].address & word for name in ("pos", "neu", "tick"))
    (fired,) = _run(
        vector.bernoulli,
        n * steps,
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
        *(values.reshape(-1), result, np.float32(op.desc["p0"]), np.float32(op.desc["share"]), steps, k),
        *((seed & word, seed >> 32), op.number("stream"), (first + sample) & word, neuron, tick),
    )
    _finish(op, buffers["dst"], result, n * steps, counts)
    return Work(counts | {"nonfinite": int(bits.count_nonfinite(result))})


def v_reduce(op: Operation, buffers: Buffers) -> Work:
    """``v.reduce``: rate, count, mean, maximum or last over time, as in the reference; there are few logits."""
    with np.errstate(all="ignore"):
        return elements.v_reduce(op, buffers)


def v_spread(op: Operation, buffers: Buffers) -> Work:
    """``v.spread``: as in the reference; there are few logits."""
    with np.errstate(all="ignore"):
        return elements.v_spread(op, buffers)


def v_map(op: Operation, buffers: Buffers) -> Work:
    """``v.map``: a change of format, or a + b; the others as in the reference."""
    n, k = op.number("n"), op.number("k")
    if op.choice("kind") in isa.LEARNED_MAPS or op.choice("dst") == "bits":
        with np.errstate(all="ignore"):
            return elements.v_map(op, buffers)
    counts = {"elements": n * k}
    values = [_dense(op, name, buffers[name], counts, n) for name in ("a", "b") if name in buffers]
    result = _unrounded(op, buffers["dst"], n * k)
    if len(values) == 1:
        result[:] = values[0].reshape(-1)
    else:
        with np.errstate(all="ignore"):
            a, b, out = values[0].reshape(n, k), values[1].reshape(-1, k), result.reshape(n, k)
            match op.choice("kind"):
                case "add":
                    np.add(a, b, out=out)
                case "negate":
                    np.copyto(out, np.where(b != 0, -a, np.float32(0)))
                case kind:
                    np.copyto(out, np.where((b != 0) == (kind == "keep"), a, np.float32(0)))
    _finish(op, buffers["dst"], result, n, counts)
    return Work(counts | {"nonfinite": int(bits.count_nonfinite(result))})


def v_pack(op: Operation, buffers: Buffers) -> Work:
    """``v.pack``: bit-planes of fixed-point numbers."""
    n, k, depth, frac = op.number("n"), op.number("k"), op.number("planes"), op.number("frac")
    x = _reals(op, "src", buffers["src"])
    (wrong,) = _run(planes.pack, n, x, k, (depth, frac, op.choice("signed") == "yes"), buffers["dst"], counters=1)
    if wrong:
        raise not_fixed_point(op, float(x[planes.first_wrong(x, depth, frac, op.choice("signed") == "yes")]))
    return Work({"elements": n * k})


def _unrounded(op: Operation, target: Bytes, size: int) -> F32:
    """Return where element-wise results go before they are rounded: the target itself if it holds float32."""
    form = op.choice("dst")
    plain = form == "f32" or (form == "storage" and not is_half(op))
    return target.view(np.float32) if plain else _scratch("mapped", size, np.float32)


def _finish(op: Operation, target: Bytes, result: F32, positions: int, counts: dict[str, int]) -> None:
    """Write what :func:`_unrounded` has to the target, in the format that the descriptor gives it."""
    form = op.choice("dst")
    if form == "slots":
        counts["live_outputs"] = _encode(op, target, result, positions)
    elif form == "storage" and is_half(op):
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
        vector.densify(*lists, k, dense, 0, n)
        return dense
    return _reals(op, name, buffer) if form == "storage" else buffer.view(np.float32)


def v_tune(op: Operation, buffers: Buffers) -> Work:
    """``v.tune``: gradients of decay and threshold, position by position."""
    n, k, dst = op.number("n"), op.number("k"), buffers["dst"].view(np.float32)
    gradients = [_scratch(name, n * k, np.float32) for name in ("dense g", "dense later")]
    live = sum(_densify(op, buffers[name], n, g) for name, g in zip(("g", "later"), gradients, strict=True))
    if op.init:
        dst[:] = 0
    values = (*gradients, _reals(op, "u", buffers["u"]), buffers["s"], buffers["par"].view(np.float32))
    vector.tune(*values, n, k, op.number("reset"), dst)
    return Work({"elements": n * k, "live_inputs": live, "nonfinite": int(bits.count_nonfinite(dst))})


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
        return training.v_fold(op, buffers)


def v_norm(op: Operation, buffers: Buffers) -> Work:
    """``v.norm``: batch normalisation of a tile, or its gradient through mean and deviation."""
    k, shape = op.number("k"), _norm_shape(op)
    positions = shape[0] * shape[1] * shape[2]
    x, par = buffers["x"].view(np.float32), buffers["par"].view(np.float32)
    counts = {"elements": positions * k}
    if op.choice("kind") == "forward":
        dst = buffers["dst"].view(np.float32)
        _run(vector.normalise, positions, x, par, k, dst)
        return Work(counts | {"nonfinite": int(bits.count_nonfinite(dst))})
    g, dst = _scratch("dense", positions * k, np.float32), _scratch("shares", positions * k, np.float32)
    counts["live_inputs"] = _densify(op, buffers["g"], positions, g)
    count, valid = np.float32(training.value_count(op, buffers)), _valid_samples(op, buffers)
    _run(vector.denormalise, positions, x, g, par, k, count, shape, valid, dst)
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
    vector.densify(*lists, op.number("k"), dense, 0, positions)
    return int(live)


def v_loss(op: Operation, buffers: Buffers) -> Work:
    """``v.loss``: loss summed over valid samples / N, and its gradient times p0."""
    n, k, first = op.number("n"), op.number("k"), op.operands["pos"].address
    valid = int(buffers["scal"].view(np.uint32)[1])
    live = min(max(valid - first, 0), n)
    labels, grad = buffers["label"].view(np.int32)[:live], buffers["grad"].view(np.float32)
    wrong = np.flatnonzero((labels < 0) | (labels >= k))
    if wrong.size:
        sample = int(wrong[0])
        raise op.fault(f"label {labels[sample]} of sample {first + sample} is outside the classes 0 to {k - 1}")
    logits = buffers["logits"].view(np.float32)
    count, scale, losses = np.float32(max(valid, 1)), np.float32(op.desc["p0"]), np.empty(live, np.float32)
    if op.choice("kind") == "cross_entropy":
        loss.cross_entropy(logits, labels, k, count, scale, grad, losses)
    else:
        targets = np.float32(op.desc["hit"]), np.float32(op.desc["miss"])
        loss.squared_error(logits, labels, k, targets, np.float32(op.desc["share"]), count, scale, grad, losses)
    grad[live * k :] = 0
    target = buffers["loss"].view(np.float32)
    total = np.float32(0) if op.init else target[0]
    with np.errstate(all="ignore"):
        for share in losses:
            total = total + share
    target[0] = total
    return Work({"elements": n * k, "nonfinite": int(not np.isfinite(total)) + int(bits.count_nonfinite(grad))})


def v_opt(op: Operation, buffers: Buffers) -> Work:
    """``v.opt``: Adam; the storage copy follows."""
    kind, parameters = op.choice("kind"), buffers["p"].view(np.float32)
    gradient, mom = buffers["g"].view(np.float32), buffers["mom"].view(np.float32)
    copy, real = buffers.get("w", _NO_BYTES).view(np.uint16), _factors(op)
    rate = buffers["scal"].view(np.float32)[0]
    count = int(buffers["scal"].view(np.uint32)[2]) + 1
    size = rate / numerics.complement_power(real["rate1"], count)
    root = np.sqrt(numerics.complement_power(real["rate2"], count))
    kept = np.float32(1) - rate * real["decay"] if kind == "adamw" else np.float32(1)
    added = np.float32(0) if kind == "adamw" else real["decay"]
    shares = (real["rate1"], real["rate2"], np.float32(1) - real["rate2"])
    arrays = (parameters, gradient, mom, buffers["sq"].view(np.float32), copy)
    vector.adapt(*arrays, real["scale"], kept, added, shares, size, root, real["eps"], is_half(op))
    return Work({"elements": update_elements(op), "nonfinite": int(bits.count_nonfinite(parameters))})


def _factors(op: Operation) -> dict[str, np.float32]:
    """Return the descriptor fields of ``v.opt`` that are real numbers."""
    return {name: np.float32(op.desc[name]) for name in ("scale", "decay", "momentum", "rate1", "rate2", "eps")}


class Transfer(NamedTuple):
    """An ``ld`` or ``st`` as a call with its ``words``, with addresses in this process.

    ``units``: pieces that it consists of (0: there is nothing to do), ``parts`` of them to a row; ``pieces``: shares
    that are worth while. ``work`` is what is known beforehand.
    """

    call: Call
    words: list[int]
    units: int
    parts: int
    pieces: int
    work: dict[str, int]


def plan_transfer(op: Operation, memories: Memories, burst: int) -> Transfer:
    """Return an ``ld`` or ``st`` as a call; raises H2LearnError when it faults. ``burst``: bytes of one in DRAM."""
    places, ranges = operand_places(op, memories), spans(op)
    start = {name: places[name][0] + op.operands[name].address - ranges[name][0] for name in ("src", "dst")}
    counts = tuple(op.number(f"n{d}") for d in range(4))
    source, target = (tuple(op.number(f"{name}s{d}") for d in range(4)) for name in ("s", "d"))
    rows, columns, run = transfer_range(op, 2), transfer_range(op, 3), op.number("run")
    outer, loads, slotted = counts[0] * counts[1], op.mnemonic == "ld", op.choice("mode") == "slots"
    existing = outer * (rows[1] - rows[0]) * (columns[1] - columns[0])
    missing = outer * counts[2] * counts[3] - existing
    work = {"rows": existing, "zero_rows": missing, "bytes": 0 if slotted else existing * run}
    call, more, parts, grain = transfer.copy_call, [], 1, 1
    if not run or not (existing or loads):
        return Transfer(call, [], 0, 1, 1, work)
    if slotted:
        call, pack, slot = transfer.slots_call, max(1, op.number("pack")), op.number("slot")
        there = (*counts[:2], rows[1] - rows[0], columns[1] - columns[0])
        level = _cut(there, source if loads else target, run, pack * slot)
        parts = -(-run // (pack * slot)) if level == len(counts) else 1
        grain = math.prod(counts[level:])
        more = [slot, op.number("item"), burst, pack, grain]
    else:
        layout = (run, counts, source, target, rows, columns)
        counts, source, target, run, rows, columns = _merged(layout)
        parts = max(1, run // _PART)
    words = [start["dst"], start["src"], *counts, *source, *target, run, *rows, *columns, loads, *more]
    units = parts * math.prod(counts) // grain
    moved = math.prod(counts) * (run + parts * min(max(run, _LEAST_ROW), _SHORT_ROW))
    pieces = min(moved // _WORTH_A_COPY, units) if _is_disjoint(counts, target, run) else 1
    return Transfer(call, [int(word) for word in words], units, parts, max(1, min(pieces, MOST_PIECES)), work)


def _cut(counts: tuple[int, ...], strides: tuple[int, ...], run: int, unit: int) -> int:
    """Return how many dimensions may be cut so that every part begins with a unit of ``unit`` bytes.

    Units are counted from rows on that do not touch the one before them. ``counts`` of rows that exist, ``strides`` in
    DRAM.
    """
    size = [run * math.prod(counts[d:]) for d in range(len(counts) + 1)]
    back = [sum((counts[e] - 1) * strides[e] for e in range(d + 1, len(counts))) for d in range(len(counts))]
    touch = [counts[d] > 1 and strides[d] - back[d] == run for d in range(len(counts))]
    return max(d for d in range(len(counts) + 1) if size[d] % unit == 0 or not any(touch[:d]))


_PART = 1 << 14
_WORTH_A_COPY = 1 << 15
_SHORT_ROW = 1 << 8  # bytes up to which a row takes twice the time of so many bytes of a long one
_LEAST_ROW = 1 << 5  # bytes of a long row that take the time of a very short one


def _is_disjoint(counts: tuple[int, ...], strides: tuple[int, ...], run: int) -> bool:
    """Return whether no two rows of a target share a byte, as far as their strides show."""
    extent = run
    for stride, count in sorted((abs(stride), count) for stride, count in zip(strides, counts, strict=True)):
        if count > 1:
            if stride < extent:
                return False
            extent += stride * (count - 1)
    return True


def _transfer(op: Operation, memories: Memories) -> Work:
    plan = plan_transfer(op, memories, burst=1)
    builder, counts = Builder(), {}
    if plan.units:
        args = Arguments().numbers(*plan.words)
        builder.call(plan.call, args, plan.units, plan.pieces * WORTH_A_PIECE, extra=plan.parts)
    if plan.call is transfer.slots_call:
        counts["bytes"] = (transfer.MOVED, 1)
    return builder.prepared(plan.work, counts).execute()


def _merged(layout: tuple[Any, ...]) -> tuple[Any, ...]:
    """Join innermost dimensions that are contiguous on both sides and exist completely into the run.

    The innermost dimension is then one that has more than a row, if there is any.
    """
    run, counts, source, target, rows, columns = layout
    whole = [True, True, rows == (0, counts[2]), columns == (0, counts[3])]
    counts = list(counts)
    for d in (3, 2, 1, 0):
        if not whole[d] or (counts[d] != 1 and not source[d] == target[d] == run):
            break
        run, counts[d] = run * counts[d], 1
        rows, columns = ((0, 1) if d == 2 else rows), ((0, 1) if d == 3 else columns)
    while counts[3] == 1 and columns == (0, 1) and max(counts) > 1:
        counts, source, target = ([own[3], *own[:3]] for own in (counts, source, target))
        rows, columns = (0, counts[2]), rows
    return tuple(counts), tuple(source), tuple(target), run, rows, columns


def _gradient_lists(op: Operation, slots: Bytes, positions: int, scale: int = 1) -> tuple[U32, F32, U32, int]:
    """Return the channels (times ``scale``), values and counts of the live gradients per position, and their number."""
    k = op.number("k")
    lists = _lists(positions, k)
    layout = (slots.view(np.uint64), slot_words(op), is_half(op), k, op.number("gblk"), scale)
    (live,) = _run(bits.decode_lists, positions, *layout, *lists, counters=1)
    return *lists, live


def _encode(op: Operation, slots: Bytes, values: F32, positions: int) -> int:
    """Round ``values`` to storage in place, write them as gradient slots and return how many are live."""
    k = op.number("k")
    if is_half(op):
        bits.round_all(values)
    layout = (slots.view(np.uint64), slot_words(op), is_half(op), k, op.number("gblk"))
    (live,) = _run(bits.encode_rows, positions, values, *layout, counters=1)
    return live


def _lists(positions: int, width: int) -> tuple[U32, F32, U32]:
    return (
        _scratch("channels", positions * width, np.uint32),
        _scratch("values", positions * width, np.float32),
        _scratch("counts", positions, np.uint32),
    )


def _reals(op: Operation, name: str, buffer: Bytes) -> F32:
    """Return stored values as float32: a view, or scratch named ``name`` when they are half."""
    if not is_half(op):
        return buffer.view(np.float32)
    values = _scratch(f"wide {name}", buffer.size // 2, np.float32)
    bits.widen(buffer.view(np.uint16), values)
    return values


def _run(kernel: Callable[..., object], total: int, *arguments: object, counters: int = 0) -> list[int]:
    """Call ``kernel(*arguments, [work,] 0, total)`` and return the work that it counts."""
    counts = np.zeros(counters, np.int64)
    kernel(*arguments, *((counts,) if counters else ()), 0, total)
    return [int(count) for count in counts]


_local = threading.local()


def _scratch(name: str, size: int, dtype: type[Any]) -> npt.NDArray[Any]:
    """Return ``size`` elements of reusable memory of this thread; a name must not be used twice in an instruction."""
    buffers: dict[str, npt.NDArray[Any]] = _local.__dict__
    kept = buffers.get(name)
    if kept is None or kept.size < size + LANES:
        kept = buffers[name] = np.zeros(size + LANES, dtype)
    return kept[:size]


SEMANTICS: dict[str, Callable[[Operation, Buffers], Work]] = {
    "v.rng": v_rng,
    "v.drop": v_drop,
    "v.tune": v_tune,
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
PREPARERS: dict[str, Callable[[Operation, Site], Prepared | None]] = {
    **prepare_engines.PREPARERS,
    **prepare_vector.PREPARERS,
}
check_dispatch({**SEMANTICS, **PREPARERS, **dict.fromkeys(TRANSFERS)}, "fast semantics")
