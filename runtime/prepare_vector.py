"""The frequent instructions of the vector unit as blocks of calls; the others stand in ``fast.py``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .kernels import engine_calls
from .kernels import vector_calls as calls
from .kernels.convolution import I32
from .kernels.rows import LANES
from .kernels.vector import WINDOW
from .operation import ADAM_KINDS, Operation, item_bytes, slot_bytes
from .prepare_engines import (
    Site,
    backward_maps,
    forward_maps,
    gradient_lists,
    is_half,
    position_count,
    slot_words,
    taps,
)
from .prepared import Arguments, Builder, Prepared
from .work import neuron_counts, update_elements

_NOTHING = (0, 0)
_NO_TAPS = np.zeros(0, np.int32)


def v_lif(op: Operation, site: Site) -> Prepared:
    """``v.lif``: u = st(alpha*reset(u, s) + acc + bias); s = u > theta; mask = abs(u - theta) < width."""
    n, k, reset, spike = op.number("n"), op.number("k"), op.choice("reset"), op.choice("spike")
    windowed = op.choice("surrogate") in ("rectangular", "triangular")
    masked, inside = op.choice("save_m") == "yes", op.choice("save_u") == "inside"
    counts = {"spikes": (calls.FIRED, 1), "nonfinite": (calls.NEURON_BROKEN, 1)}
    counts |= {"masked_in": (calls.PASSED, int(masked))} | ({"live_outputs": (calls.PASSED, 1)} if inside else {})
    builder = site.builder()
    if _is_plain(op) and not (inside and op.number("ublk") % LANES):
        args = Arguments()
        for name, item in {"acc": 4, "par": 4, "us": 4, "uo": 4, "ss": 1, "so": 1}.items():
            args.memory(site.places.get(name, _NOTHING), item)
        args.memory(site.places.get("mo", _NOTHING), 1)
        args.numbers(k, op.init, reset == "hard", reset == "soft", spike == "ge", spike == "never")
        args.numbers(op.choice("save_u") == "yes", masked, windowed).reals(op.desc["width"])
        _slots_inside(args, op, site, "uo", inside)
        builder.call(calls.integrate_plain_call, args, n, n * k)
        return builder.prepared(neuron_counts(op), counts)
    counted = op.choice("counted") == "yes"
    args = Arguments().memory(site.places["acc"], 4).memory(site.places["par"], 4)
    _either(args, op, site, "us")
    args.memory(site.places.get("ss", _NOTHING), 1)
    args.memory(_NOTHING if counted else site.places.get("so", _NOTHING), 1)
    _either(args, op, site, "uo")
    args.memory(site.places.get("mo", _NOTHING), 1)
    _either(args, op, site, "cs")
    hard, late = reset in ("hard", "hard_delayed"), reset in ("soft_delayed", "hard_delayed")
    args.numbers(k, op.init, is_half(op), hard, reset == "soft", late, spike == "ge")
    args.numbers(spike == "never", op.choice("save_u") == "yes", masked, windowed)
    args.numbers(op.number("drive"), counted, op.choice("bounded") == "yes", op.choice("periodic") == "yes")
    args.reals(op.desc["width"], op.number("most"), op.desc["lowest"])
    if counted:
        _either(args, op, site, "so")
    else:
        args.memory(_NOTHING, 4).memory(_NOTHING, 2)
    _slots_inside(args, op, site, "uo", inside)
    builder.call(calls.integrate_call, args, n, n * k)
    return builder.prepared(neuron_counts(op), counts)


def v_grad(op: Operation, site: Site) -> Prepared:
    """``v.grad``: gu = sg*e + carried, backwards through one time step of the neuron."""
    n, k, reset = op.number("n"), op.number("k"), op.choice("reset")
    never = op.choice("spike") == "never"
    windowed, inside = op.choice("seen") == "window", op.choice("seen") == "inside" and not never
    counts = {"live_outputs": (calls.LIVE_OUT, 1), "nonfinite": (calls.BROKEN, 1)}
    counts |= {"live_inputs": (calls.LIVE_IN, 1)} if inside else {}
    builder, detach = site.builder(), op.choice("detach") == "yes"
    rectangular = op.choice("surrogate") == "rectangular" and (detach or not windowed)
    in_strips = op.number("gblk") % LANES == 0 and not (inside and op.number("ublk") % LANES)
    if _is_plain(op) and rectangular and in_strips:
        args = Arguments()
        seen = site.places.get("u", _NOTHING)
        args.memory(site.places["gs"], 4).memory(_NOTHING if windowed else seen, 4)
        args.memory(site.places.get("s", _NOTHING), 1).memory(site.places["par"], 4).memory(site.places["gc"], 4)
        args.memory(site.places["go"], 8).memory(seen if windowed else _NOTHING, 1)
        args.numbers(slot_words(op), op.number("gblk"), k, op.init, reset == "hard", reset == "soft", detach, never)
        args.numbers(windowed).reals(op.desc["width"], op.desc["height"])
        _slots_inside(args, op, site, "u", inside)
        builder.call(calls.differentiate_plain_call, args, n, 3 * n * k)
        return builder.prepared(neuron_counts(op), counts)
    args = Arguments().memory(site.places["gs"], 4)
    if windowed or inside:
        args.memory(_NOTHING, 4).memory(_NOTHING, 2)
    else:
        _either(args, op, site, "u")
    args.memory(site.places.get("s", _NOTHING), 1).memory(site.places["par"], 4)
    _either(args, op, site, "gc")
    _either(args, op, site, "gi")
    args.memory(site.places["go"], 8).numbers(slot_words(op), op.number("gblk"), k)
    args.numbers(op.init, is_half(op), reset == "hard", reset == "soft", reset == "soft_delayed")
    surrogate = WINDOW if windowed else op.number("surrogate")
    args.numbers(never, detach, surrogate, op.number("drive"))
    args.numbers(*(op.choice(name) == "yes" for name in ("counted", "bounded", "periodic")))
    args.reals(op.desc["width"], op.desc["height"], op.number("most"), op.desc["lowest"])
    args.memory(site.places.get("u", _NOTHING) if windowed else _NOTHING, 1)
    _slots_inside(args, op, site, "u", inside)
    builder.call(calls.differentiate_call, args, n, 4 * n * k)
    return builder.prepared(neuron_counts(op), counts)


def v_pool(op: Operation, site: Site) -> Prepared:
    """``v.pool``: average, sum, or maximum with the number of the first largest window element that exists."""
    k, positions, builder, places = op.number("k"), position_count(op), site.builder(), site.places
    elements, maximum = positions * k * taps(op), op.choice("kind") == "max"
    geometry = (*forward_maps(op)[2], op.number("sh"), op.number("sw"), k)
    divisor = np.float32(taps(op) if op.choice("kind") == "avg" else 1)
    firsts = (_first_taps(op, "y"), _first_taps(op, "x")) if maximum else (_NO_TAPS, _NO_TAPS)
    counted = {"nonfinite": (calls.BROKEN, 1)}
    if op.choice("src") == "f32":
        args = Arguments().memory(places["src"], 4).numbers(*geometry, maximum).array(firsts[0]).array(firsts[1])
        args.reals(float(divisor)).memory(places["dst"], 4).memory(places.get("idx", _NOTHING), 1)
        builder.call(calls.pool_call, args, positions, elements)
    elif maximum:
        args = Arguments().memory(places["src"], 1).numbers(*geometry).array(firsts[0]).array(firsts[1])
        args.memory(places["dst"], 1).memory(places["idx"], 1)
        builder.call(calls.maximum_call, args, positions, elements)
    else:
        averages = np.arange(taps(op) + 1, dtype=np.float32) / divisor
        args = Arguments().memory(places["src"], 1).array(averages).numbers(*geometry)
        if is_half(op):
            values = site.scratch("averages", positions * k, np.float32)
            builder.call(calls.average_call, args.array(values), positions, elements)
            args = Arguments().array(values).memory(places["dst"], 2)
            builder.call(engine_calls.narrow_call, args, positions * k, positions * k)
        else:
            builder.call(calls.average_call, args.memory(places["dst"], 4), positions, elements)
    return builder.prepared({"elements": elements}, counted)


def v_unpool(op: Operation, site: Site) -> Prepared:
    """``v.unpool``: each element gathers its share of the gradients of the windows that it lies in."""
    k, positions, builder = op.number("k"), position_count(op), site.builder()
    sources = op.number("imgs") * op.number("gh") * op.number("gw")
    elements, slots, maps = positions * k * taps(op), op.choice("src") == "slots", backward_maps(op)
    args, counts = Arguments(), {"nonfinite": (calls.BROKEN, 1)}
    if slots:
        lists = gradient_lists(builder, op, site, "src", sources, calls.LIVE_IN)
        dense = site.scratch("dense", sources * k, np.float32)
        issues = site.scratch("issues", sources, np.uint32)
        listed = lists.append_to(Arguments()).numbers(k).array(dense).array(issues).numbers(1)
        builder.call(engine_calls.dense_call, listed, sources, sources * k)
        args.array(dense)
    else:
        args.memory(site.places["src"], 4)
    divisor = float(taps(op) if op.choice("kind") == "avg" else 1)
    args.memory(site.places.get("idx", _NOTHING), 1).array(maps[0]).array(maps[1])
    args.numbers(*maps[2], k, op.choice("kind") == "max").reals(divisor)
    if slots:
        shares = site.scratch("shares", positions * k, np.float32)
        builder.call(calls.unpool_call, args.array(shares), positions, elements)
        encode(builder, op, site, shares, positions)
        counts |= {"live_inputs": (calls.LIVE_IN, 1), "live_outputs": (calls.LIVE_OUT, 1)}
    else:
        builder.call(calls.unpool_call, args.memory(site.places["dst"], 4), positions, elements, extra=1)
    return builder.prepared({"elements": elements}, counts)


def v_reduce(op: Operation, site: Site) -> Prepared | None:
    """``v.reduce``: time sum or position sum of gradients; the other kinds are rare and small."""
    n, k, kind = op.number("n"), op.number("k"), op.choice("kind")
    if kind not in ("tsum", "bias"):
        return None
    builder, time_sum = site.builder(), kind == "tsum"
    steps, rows = (op.number("steps"), n) if time_sum else (n, 1)
    args, counts = Arguments(), {"live_inputs": (calls.LIVE_IN, 1), "nonfinite": (calls.BROKEN, 1)}
    if time_sum:
        sums = site.scratch("time_sum", n * k, np.float32)
        args.array(sums)
    else:
        args.memory(site.places["dst"], 4)
    args.memory(site.places["src"], 8).numbers(slot_words(op), is_half(op), rows, steps, k, op.number("gblk"))
    args.numbers(time_sum, op.init or time_sum)
    builder.call(calls.accumulate_call, args, rows, 2 * steps * rows * k, extra=not time_sum)
    if time_sum:
        encode(builder, op, site, sums, n)
        counts["live_outputs"] = (calls.LIVE_OUT, 1)
    return builder.prepared({"elements": steps * rows * k}, counts)


def v_opt(op: Operation, site: Site) -> Prepared | None:
    """``v.opt``: gradient descent with momentum; the storage copy follows."""
    if op.choice("kind") in ADAM_KINDS:
        return None
    n, places, builder = op.number("n"), site.places, site.builder()
    args = Arguments().memory(places["p"], 4).memory(places["g"], 4).memory(places.get("mom", _NOTHING), 4)
    args.memory(places.get("w", _NOTHING), 2).memory(places["scal"], 4)
    args.reals(op.desc["momentum"], op.desc["scale"], op.desc["decay"])
    args.numbers(op.choice("kind") == "nesterov", is_half(op))
    builder.call(calls.descend_call, args, n, 2 * n)
    return builder.prepared({"elements": update_elements(op)}, {"nonfinite": (calls.BROKEN, 1)})


PREPARERS: dict[str, Callable[[Operation, Site], Prepared | None]] = {
    "v.lif": v_lif,
    "v.grad": v_grad,
    "v.pool": v_pool,
    "v.unpool": v_unpool,
    "v.reduce": v_reduce,
    "v.opt": v_opt,
}


def encode(builder: Builder, op: Operation, site: Site, values: np.ndarray, positions: int) -> None:
    """Append the writing of ``values`` to ``dst`` as gradient slots."""
    k = op.number("k")
    args = Arguments().array(values).memory(site.places["dst"], 8)
    args.numbers(slot_words(op), is_half(op), k, op.number("gblk"))
    builder.call(calls.encode_call, args, positions, 2 * positions * k)


def _is_plain(op: Operation) -> bool:
    """Return whether the kernels of ``neuron.py`` do for a neuron instruction."""
    common = all(op.choice(name) == "no" for name in ("counted", "bounded", "periodic"))
    resets = common and op.choice("reset") in ("none", "hard", "soft")
    return resets and op.choice("drive") == "plain" and not is_half(op) and op.number("k") % LANES == 0


def _either(args: Arguments, op: Operation, site: Site, name: str) -> None:
    """Append a stored operand as float32 and as half, the one that it is not empty."""
    place = site.places.get(name, _NOTHING)
    args.memory(_NOTHING if is_half(op) else place, 4).memory(place if is_half(op) else _NOTHING, 2)


def _slots_inside(args: Arguments, op: Operation, site: Site, name: str, there: bool) -> None:
    """Append an operand of potentials inside the window, the words of a slot, and its channels (0: not ``there``)."""
    words = slot_bytes(op.number("ublk"), item_bytes(op)) // 8
    args.memory(site.places[name] if there else _NOTHING, 8).numbers(words, op.number("ublk") if there else 0)


def _first_taps(op: Operation, axis: str) -> I32:
    """Return per window row (``y``) or column (``x``) the first and, exclusive, the last kernel place that exists."""
    count, stride, size = (op.number(name) for name in {"y": ("oh", "sh", "kh"), "x": ("ow", "sw", "kw")}[axis])
    limit, start = op.number(f"{axis}lim"), op.operands[axis].address + np.arange(count) * stride
    first, last = np.maximum(0, -start), np.minimum(size, limit - start) if limit else np.full(count, size)
    first = first if limit else np.zeros(count, np.int64)
    return np.ascontiguousarray(np.stack([first, np.maximum(first, last)], axis=1), np.int32).reshape(-1)
