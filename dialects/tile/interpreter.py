"""Runs the ``tile`` level: tensors and buffers are dense NumPy arrays, ops execute in program order.

Tokens are ignored: the sequential order is the meaning, tokens only say what must be kept of it. Fresh buffers hold
poison (NaN, all ones), so that a read of something never written shows. The arithmetic follows ``docs/semantics.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from xdsl.dialects import builtin, func
from xdsl.ir import Block, Operation, SSAValue

from h2learn.backends.h2learn import numerics
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.dialects import tile
from h2learn.dialects.common import Array, get_io

F32 = npt.NDArray[np.float32]
Values = npt.NDArray[Any]
Buffers = dict[str, Values]
Params = dict[str, tile.Param]
_ONE = np.float32(1)
_ZERO = np.float32(0)
_NONE = np.zeros((), np.bool_)
_OUTSIDE = np.float32(np.nan)  # a potential of which nothing is kept but that it lies outside the window


def interpret(module: builtin.ModuleOp, arguments: Sequence[Array]) -> list[Array]:
    """Run ``@main`` on dense device arrays in io order and return its results; the arguments are not changed."""
    main = next(op for op in module.body.block.ops if isinstance(op, func.FuncOp))
    machine = _Machine()
    for argument, entry, array in zip(main.args, get_io(module), arguments, strict=False):
        assert isinstance(argument.type, tile.TensorType)
        placed = argument.type.placed
        dense = np.array(array, dtype=_dtype(placed.form)).reshape(placed.shape)
        machine.values[argument] = numerics.round_to_storage(dense, "f16") if placed.form == "f16" else dense
        machine.named[entry.name] = machine.values[argument]
    with np.errstate(all="ignore"):
        machine.run(main.body.block)
    return machine.results


class _Machine:
    """Values by SSA name and the counters of the open loops."""

    def __init__(self) -> None:
        self.values: dict[SSAValue, Array] = {}
        self.named: dict[str, Array] = {}
        self.counters: dict[SSAValue, int] = {}
        self.results: list[Array] = []

    def run(self, block: Block) -> None:
        for op in block.ops:
            self.step(op)

    def step(self, op: Operation) -> None:
        if isinstance(op, tile.StreamOp | tile.StageOp):
            self.run(op.body.block)
        elif isinstance(op, tile.ForOp):
            for count in range(op.trips.data):
                self.counters[op.counter] = count
                self.run(op.body.block)
        elif isinstance(op, tile.TensorOp):
            self.values[op.result] = self.initial(op)
        elif isinstance(op, tile.ViewOp):
            assert isinstance(op.result.type, tile.TensorType)
            self.values[op.result] = self.values[op.source].reshape(op.result.type.shape)
        elif isinstance(op, tile.RepeatOp):
            assert isinstance(op.result.type, tile.TensorType)
            self.values[op.result] = np.broadcast_to(self.values[op.source], op.result.type.placed.shape)
        elif isinstance(op, tile.StackOp):
            self.values[op.result] = np.stack([self.values[member] for member in op.members])
            self.values.update(zip(op.members, self.values[op.result], strict=True))
        elif isinstance(op, tile.AllocOp):
            assert isinstance(op.result.type, tile.BufferType)
            self.values[op.result] = _poison(op.result.type.placed)
        elif isinstance(op, tile.LoadOp):
            self.load(op)
        elif isinstance(op, tile.StoreOp):
            self.store(op)
        elif isinstance(op, tile.JobOp):
            self.job(op)
        elif isinstance(op, func.ReturnOp):
            self.results = [self.values[value].copy() for value in op.arguments]
        elif not isinstance(op, tile.SignalOp | tile.WaitOp | tile.FenceOp):
            raise ValueError(f"{op.name} has no meaning at the tile level")

    def initial(self, op: tile.TensorOp) -> Array:
        assert isinstance(op.result.type, tile.TensorType)
        placed = op.result.type.placed
        if op.shadow is not None:
            parameter = self.named[op.shadow.data].astype(np.float32)
            return numerics.round_to_storage(parameter, placed.form).reshape(placed.shape)
        array = np.zeros(placed.shape, dtype=_dtype(placed.form))
        if op.rows is not None:
            for row, values in zip(array, op.rows.data, strict=True):
                row[...] = values
        return array

    def load(self, op: tile.LoadOp) -> None:
        tensor, part = self.values[op.tensor], self.part(op)
        nothing = _OUTSIDE if tile.placed_of(op.tensor).form.startswith("inside.") else 0
        window = np.full(op.sizes.data, nothing, dtype=tensor.dtype)
        inside, outside = self.overlap(op, tensor.shape)
        window[inside] = tensor[outside]
        part[...] = window.reshape(part.shape)

    def store(self, op: tile.StoreOp) -> None:
        tensor, part = self.values[op.tensor], self.part(op)
        inside, outside = self.overlap(op, tensor.shape)
        tensor[outside] = part.reshape(op.sizes.data)[inside]

    def part(self, op: tile.LoadOp | tile.StoreOp) -> Array:
        buffer = self.values[op.buffer]
        if op.at is None:
            return buffer
        return np.asarray(buffer[tile.evaluate(op.at.data[0], self.counts(op.ivs))])

    def overlap(
        self, op: tile.LoadOp | tile.StoreOp, shape: tuple[int, ...]
    ) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the part of the window inside the tensor, and the same part of the tensor."""
        counts = self.counts(op.ivs)
        inside, outside = [], []
        for index, size, limit in zip(op.window.data, op.sizes.data, shape, strict=True):
            start = tile.evaluate(index, counts)
            low, high = min(max(start, 0), limit), min(max(start + size, 0), limit)
            inside.append(slice(low - start, max(high, low) - start))
            outside.append(slice(low, max(high, low)))
        return tuple(inside), tuple(outside)

    def counts(self, ivs: Sequence[SSAValue]) -> list[int]:
        return [self.counters[iv] for iv in ivs]

    def job(self, op: tile.JobOp) -> None:
        counts = self.counts(op.ivs)
        buffers: Buffers = {}
        for role, (buffer, index) in op.places().items():
            whole = self.values[buffer]
            buffers[role] = whole if index is None else whole[tile.evaluate(index, counts)]
        params = op.parameters()
        for name, index in zip(op.facts.coords, op.coords.data, strict=True):
            params[name] = tile.evaluate(index, counts)
        fresh = op.carry is None and all(self.counters[iv] == 0 for iv in op.first)
        JOBS[op.name](buffers, params, fresh)


def _dtype(form: str) -> np.dtype[np.generic]:
    return np.dtype({"bits": np.bool_, "u8": np.uint8, "i32": np.int32}.get(form, np.float32))


def _poison(placed: tile.Placed) -> Array:
    dtype = _dtype(placed.form)
    fill: float = np.nan if dtype == np.float32 else 1
    return np.full(placed.shape, fill, dtype=dtype)


def _int(params: Params, *names: str) -> list[int]:
    return [int(params[name]) for name in names]


def _f32(params: Params, name: str) -> np.float32:
    return np.float32(params[name])


def _taps(params: Params) -> Iterator[tuple[int, int, int]]:
    """Yield (tap, ky, kx) row-major."""
    kh, kw = _int(params, "kh", "kw")
    for tap in range(kh * kw):
        yield tap, tap // kw, tap % kw


def _input_tile(buffer: Values, params: Params, channels: str) -> Values:
    imgs, oh, ow, kh, kw, sh, sw, c = _int(params, "imgs", "oh", "ow", "kh", "kw", "sh", "sw", channels)
    return buffer.reshape(imgs, (oh - 1) * sh + kh, (ow - 1) * sw + kw, c)


def _shifted(inputs: Values, params: Params, ky: int, kx: int) -> Values:
    """Return the inputs under tap (ky, kx) of every position, ``[imgs, oh, ow, c]``."""
    oh, ow, sh, sw = _int(params, "oh", "ow", "sh", "sw")
    return inputs[:, ky : ky + (oh - 1) * sh + 1 : sh, kx : kx + (ow - 1) * sw + 1 : sw]


def _fe_fill(b: Buffers, p: Params, fresh: bool) -> None:
    k, c, fan = _int(p, "k", "c", "fan")
    weights = b["w"].reshape(-1, c, k)
    tables = b["lut"]
    for group in range(tables.shape[1]):
        tables[:, group, 0] = 0
        for pattern in range(1, 1 << fan):
            rest = pattern & (pattern - 1)
            channel = group * fan + (pattern ^ rest).bit_length() - 1
            row = weights[:, channel] if channel < c else _ZERO
            tables[:, group, pattern] = numerics.round_to_storage(tables[:, group, rest] + row, str(p["dtype"]))


def _fe_run(b: Buffers, p: Params, fresh: bool) -> None:
    c, fan = _int(p, "c", "fan")
    acc = b["acc"]
    total = np.zeros_like(acc) if fresh else acc.copy()
    spikes = _input_tile(b["s"], p, "c")
    for tap, ky, kx in _taps(p):
        under = _shifted(spikes, p, ky, kx)
        for group in range(-(-c // fan)):
            bits = under[..., group * fan : min(c, group * fan + fan)]
            pattern = (bits.astype(np.int64) << np.arange(bits.shape[-1])).sum(axis=-1).reshape(acc.shape[:-1])
            summed = total + b["lut"][tap, group][pattern]
            total = np.where((pattern != 0)[..., None], summed, total)
    acc[...] = total


def _fe_planes(b: Buffers, p: Params, fresh: bool) -> None:
    c, fan, planes, frac = _int(p, "c", "fan", "planes", "frac")
    acc = b["acc"]
    total = np.zeros_like(acc) if fresh else acc.copy()
    packed = _input_tile(b["s"].reshape(*b["s"].shape[:-2], planes * c), {**p, "wide": planes * c}, "wide")
    for tap, ky, kx in _taps(p):
        under = _shifted(packed, p, ky, kx)
        for group in range(-(-c // fan)):
            for plane in range(planes):
                first = plane * c + group * fan
                bits = under[..., first : min(first + fan, (plane + 1) * c)]
                pattern = (bits.astype(np.int64) << np.arange(bits.shape[-1])).sum(axis=-1).reshape(acc.shape[:-1])
                entry = np.ldexp(b["lut"][tap, group][pattern], plane - frac)
                minus = p["signed"] == "yes" and plane + 1 == planes
                total = np.where((pattern != 0)[..., None], total - entry if minus else total + entry, total)
    acc[...] = total


def _pack(b: Buffers, p: Params, fresh: bool) -> None:
    planes, frac = _int(p, "planes", "frac")
    numbers = np.ldexp(b["src"].astype(np.float64), frac)
    bits = numbers.astype(np.int64)[..., None, :] >> np.arange(planes)[:, None]
    low = 1 << (planes - 1) if p["signed"] == "yes" else 0
    if not np.all((numbers == np.trunc(numbers)) & (numbers >= -low) & (numbers < (1 << planes) - low)):
        raise H2LearnError(f"{planes} planes down to 2^{-frac} cannot hold all numbers of a tile")
    b["dst"][...] = (bits & 1).astype(np.bool_).reshape(b["dst"].shape)


def _be_fwd(b: Buffers, p: Params, fresh: bool) -> None:
    c, k = _int(p, "c", "k")
    acc = b["acc"]
    weights = b["w"].reshape(-1, c, k)
    total = np.zeros_like(acc) if fresh else acc.copy()
    inputs = _input_tile(b["x"], p, "c")
    for tap, ky, kx in _taps(p):
        under = _shifted(inputs, p, ky, kx).reshape(*acc.shape[:-1], c)
        for channel in range(c):
            x = under[..., channel, None]
            total = np.where(x != 0, total + x * weights[tap, channel], total)
    acc[...] = total


def _sources(p: Params, tap_y: int, tap_x: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (y, x, gy, gx): result positions that tap (tap_y, tap_x) reaches, and the gradient position it reads."""
    oh, ow, sh, sw, gh, gw, py, px = _int(p, "oh", "ow", "sh", "sw", "gh", "gw", "py", "px")
    for y in range(oh):
        ny = y + py - tap_y
        if ny < 0 or ny % sh or ny // sh >= gh:
            continue
        for x in range(ow):
            nx = x + px - tap_x
            if nx >= 0 and nx % sw == 0 and nx // sw < gw:
                yield y, x, ny // sh, nx // sw


def _be_run(b: Buffers, p: Params, fresh: bool) -> None:
    imgs, oh, ow, gh, gw, c, k = _int(p, "imgs", "oh", "ow", "gh", "gw", "c", "k")
    acc = b["acc"]
    total = np.zeros((imgs, oh, ow, c), np.float32) if fresh else acc.reshape(imgs, oh, ow, c).copy()
    gradient = b["g"].reshape(imgs, gh, gw, k)
    weights = b["w"].reshape(-1, c, k)
    for tap, ky, kx in _taps(p):
        for y, x, gy, gx in _sources(p, ky, kx):
            for channel in range(k):
                g = gradient[:, gy, gx, channel, None]
                summed = total[:, y, x] + g * weights[tap, :, channel]
                total[:, y, x] = np.where(g != 0, summed, total[:, y, x])
    if p["masked"] == "yes":
        total = np.where(b["m"].reshape(total.shape), total, _ZERO)
    acc[...] = total.reshape(acc.shape)


def _be_wgt(b: Buffers, p: Params, fresh: bool) -> None:
    c, k = _int(p, "c", "k")
    total = np.zeros_like(b["acc"]) if fresh else b["acc"].copy()
    inputs = _input_tile(b["x"], p, "c")
    gradient = b["g"].reshape(-1, k)
    for tap, ky, kx in _taps(p):
        under = _shifted(inputs, p, ky, kx).reshape(-1, c)
        for x, g in zip(under, gradient, strict=True):
            live = (x != 0)[:, None] & (g != 0)[None, :]
            total[tap] = np.where(live, total[tap] + x[:, None] * g[None, :], total[tap])
    b["acc"][...] = total


def _wu_run(b: Buffers, p: Params, fresh: bool) -> None:
    c, k, fan = _int(p, "c", "k", "fan")
    total = np.zeros_like(b["acc"]) if fresh else b["acc"].copy()
    spikes = _input_tile(b["s"], p, "c")
    under = np.stack([_shifted(spikes, p, ky, kx).reshape(-1, c) for _, ky, kx in _taps(p)])
    gradient = b["g"].reshape(-1, k)
    for start in range(0, len(gradient), fan):
        members = gradient[start : start + fan]
        table = np.zeros((1 << fan, k), np.float32)
        for pattern in range(1, 1 << len(members)):
            rest = pattern & (pattern - 1)
            member = members[(pattern ^ rest).bit_length() - 1]
            table[pattern] = numerics.round_to_storage(table[rest] + member, str(p["dtype"]))
        bits = under[:, start : start + fan]
        pattern_of = (bits.astype(np.int64) << np.arange(bits.shape[1])[:, None]).sum(axis=1)
        total = np.where((pattern_of != 0)[..., None], total + table[pattern_of], total)
    b["acc"][...] = total


def _lif(b: Buffers, p: Params, fresh: bool) -> None:
    bias, alpha, theta, v_reset, *drive = b["par"]
    current = _drive(b, p, b["acc"] + bias, drive, fresh)
    if fresh:
        carried: F32 = alpha * (np.zeros_like(current) if p["drive"] == "plain" else drive[2])
    else:
        before = b["us"].astype(np.float32)
        fired = _spike_count(before, theta, p) if p["counted"] == "yes" else b.get("ss", _NONE)
        membrane = _reset(before, fired, theta, v_reset, p)
        if p["bounded"] == "yes":
            membrane = np.where(membrane < _f32(p, "lowest"), _f32(p, "lowest"), membrane)
        carried = alpha * membrane
        if p["reset"] == "soft_delayed":
            carried = np.where(fired, carried - theta * fired, carried)
    u = carried + current
    if p["reset"] == "hard_delayed" and not fresh:
        u = np.where(fired, v_reset, u)
    u = numerics.round_to_storage(u, str(p["dtype"]))
    b["us"][...] = u
    windowed = p["spike"] != "never" and p["surrogate"] in ("rectangular", "triangular")
    inside = _distance(u, theta, p) < _f32(p, "width") if windowed else np.ones_like(u, dtype=np.bool_)
    if p["save_u"] != "no":
        b["uo"][...] = u if p["save_u"] == "yes" else np.where(inside, u, _OUTSIDE)
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
    count = np.where(times >= 1, np.floor(times), _ZERO)
    return np.where(count > _f32(p, "most"), _f32(p, "most"), count) if p["most"] else count


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


def _grad(b: Buffers, p: Params, fresh: bool) -> None:
    _, alpha, theta, v_reset, *drive = b["par"]
    gs = b["gs"]
    later: F32 = np.zeros_like(gs) if fresh else b["gc"].astype(np.float32)
    if p["spike"] == "never":
        gu = gs + alpha * later
    else:
        u, known = b["u"], p["seen"] != "window"
        if known:
            distance = _distance(u, theta, p)
            slope = numerics.surrogate(str(p["surrogate"]), distance, _f32(p, "width"), _f32(p, "height"))
        else:
            slope = np.where(u, _f32(p, "height"), _ZERO)
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
                passed = np.where(fired, _ZERO, passed)
            if p["bounded"] == "yes":
                free = _reset(u, fired, theta, v_reset, p) > _f32(p, "lowest")
                passed = np.where(free, passed, _ZERO)
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
        scaled = scaled + beta * (_ZERO if fresh else b["gi"].astype(np.float32))
    result = numerics.round_to_storage(scaled, str(p["dtype"]))
    if p["drive"] != "scaled":
        b["gi"][...] = result
    b["go"][...] = result


def _pool(b: Buffers, p: Params, fresh: bool) -> None:
    source = _input_tile(b["src"], p, "k")
    windows = [_shifted(source, p, ky, kx) for _, ky, kx in _taps(p)]
    if p["kind"] != "max":
        total = np.zeros(windows[0].shape, np.float32)
        for window in windows:
            total = total + window.astype(np.float32)
        result = total / np.float32(len(windows)) if p["kind"] == "avg" else total
        rounded = numerics.round_to_storage(result, str(p["dtype"])) if p["dst"] == "storage" else result
        b["dst"][...] = rounded.reshape(b["dst"].shape)
        return
    exists = _existing(source.shape[1], *_int(p, "y", "ylim"))[:, None] & _existing(
        source.shape[2], *_int(p, "x", "xlim")
    )
    inside = np.broadcast_to(exists[None, :, :, None], source.shape)
    best, winner = windows[0].copy(), np.zeros(windows[0].shape, np.uint8)
    started = np.zeros(best.shape, np.bool_)
    for tap, ky, kx in _taps(p):
        window, there = windows[tap], _shifted(inside, p, ky, kx)
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


def _unpool(b: Buffers, p: Params, fresh: bool) -> None:
    imgs, oh, ow, gh, gw, kh, kw, k = _int(p, "imgs", "oh", "ow", "gh", "gw", "kh", "kw", "k")
    gradient = b["src"].reshape(imgs, gh, gw, k)
    total = np.zeros((imgs, oh, ow, k), np.float32)
    for tap, ky, kx in _taps(p):
        for y, x, gy, gx in _sources(p, ky, kx):
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


def _rng(b: Buffers, p: Params, fresh: bool) -> None:
    samples = b["src"].shape[0]
    chance = b["src"].reshape(samples, -1)
    b["dst"][...] = (_uniform(b, p, chance.shape) < chance).reshape(b["dst"].shape)


def _drop(b: Buffers, p: Params, fresh: bool) -> None:
    values = b["a"].astype(np.float32).reshape(int(p["n"]), -1)
    result = np.where(_uniform(b, p, values.shape) < _f32(p, "share"), values * _f32(p, "factor"), _ZERO)
    _put(b, p, result.reshape(b["dst"].shape))


def _uniform(b: Buffers, p: Params, shape: tuple[int, ...]) -> F32:
    """Return the random numbers of some samples and their neurons."""
    scalars = b["scal"].view(np.uint32)
    seed = int(scalars[4]) | int(scalars[5]) << 32
    sample = int(scalars[6]) + int(p["pos"]) + np.arange(shape[0], dtype=np.int64)[:, None]
    neuron = int(p["neu"]) + np.arange(shape[1], dtype=np.int64)[None]
    return numerics.uniform(seed, int(p["stream"]), sample & 0xFFFFFFFF, neuron, int(p["tick"]))


def _reduce(b: Buffers, p: Params, fresh: bool) -> None:
    n, k, steps = _int(p, "n", "k", "steps")
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


def _map(b: Buffers, p: Params, fresh: bool) -> None:
    first = b["a"].astype(np.float32)
    second = b["b"].astype(np.float32) if "b" in b else first
    _put(b, p, _MAPS[str(p["kind"])](first, second))


def _sigmoid(x: F32) -> F32:
    return np.asarray(_ONE / (_ONE + numerics.exp(-x)))


def _sigmoid_slope(g: F32, w: F32) -> F32:
    value = _sigmoid(w)
    return np.asarray(g * (value * (_ONE - value)))


_ONE = np.float32(1)
_MAPS: dict[str, Callable[[F32, F32], F32]] = {
    "copy": lambda a, b: a,
    "add": lambda a, b: a + b,
    "keep": lambda a, b: np.where(b != 0, a, _ZERO),
    "drop": lambda a, b: np.where(b != 0, _ZERO, a),
    "negate": lambda a, b: np.where(b != 0, -a, _ZERO),
    "unit": lambda a, b: np.where(a < 0, _ZERO, np.where(a > 1, _ONE, a)),
    "sigmoid": lambda a, b: _sigmoid(a),
    "falling": lambda a, b: _sigmoid(-a),
    "unit_slope": lambda a, b: np.where((b >= 0) & (b <= 1), a, _ZERO),
    "sigmoid_slope": _sigmoid_slope,
    "falling_slope": lambda a, b: -_sigmoid_slope(a, b),
}


def _tune(b: Buffers, p: Params, fresh: bool) -> None:
    k = int(p["k"])
    alpha, theta, v_reset = (b["par"][row] for row in (1, 2, 3))
    gu, later, u, s = (b[name].reshape(-1, k) for name in ("g", "later", "u", "s"))
    u = u.astype(np.float32)
    held: dict[object, F32] = {"hard": np.where(s, v_reset, u), "soft": np.where(s, u - theta, u)}
    passed = np.where(s, _ZERO, alpha * later) if p["reset"] in held else alpha * later
    taken = np.where(s, later, _ZERO) if p["reset"] == "soft_delayed" else np.zeros_like(later)
    of_decay, of_threshold = later * held.get(p["reset"], u), (passed - gu) - taken
    total: F32 = np.zeros((2, k), np.float32) if fresh else b["dst"].reshape(2, k).astype(np.float32)
    for position in range(len(u)):
        total[0] = np.where(later[position] != 0, total[0] + of_decay[position], total[0])
        total[1] = total[1] + of_threshold[position]
    b["dst"][...] = total.reshape(b["dst"].shape)


def _put(b: Buffers, p: Params, result: F32) -> None:
    """Write the result of element-wise work in the format that the parameters name."""
    if p["dst"] == "bits":
        result = result != 0
    elif p["dst"] != "f32":
        result = numerics.round_to_storage(result, str(p["dtype"]))
    b["dst"][...] = np.where(result != 0, result, _ZERO) if p["dst"] == "slots" else result


def _norm_values(b: Buffers, p: Params) -> tuple[F32, npt.NDArray[np.bool_]]:
    """Return the biased currents ``[steps,n,positions,k]`` and which of the samples are valid."""
    steps, n, positions, k, first = _int(p, "steps", "n", "positions", "k", "pos")
    counts = np.ones(n, np.bool_)
    if "scal" in b:
        counts = first + np.arange(n) < int(b["scal"].view(np.uint32)[1])
    return b["x"].reshape(steps, n, positions, k) + b["par"][0], counts


def _stat(b: Buffers, p: Params, fresh: bool) -> None:
    z, counts = _norm_values(b, p)
    k = z.shape[-1]
    used = z[:, counts].reshape(-1, k)
    total: F32 = np.zeros((2, k), np.float32)
    if p["kind"] == "product":
        mean, inverse = b["par"][1:3]
        gradient = b["g"].reshape(z.shape)[:, counts].reshape(-1, k)
        for g, h in zip(gradient, (used - mean) * inverse, strict=True):
            total = np.where(g != 0, total + np.stack([g, g * h]), total)
    else:
        away = used if p["kind"] == "sum" else np.square(used - b["par"][1])
        for row in away:
            total[0] = total[0] + row
    total = total.reshape(-1)[: b["dst"].size].reshape(b["dst"].shape)
    b["dst"][...] = (np.zeros_like(total) if fresh else b["dst"]) + total


def _value_count(b: Buffers, p: Params) -> int:
    return max(int(b["scal"].view(np.uint32)[1]), 1) * int(p["count"])


def _fold(b: Buffers, p: Params, fresh: bool) -> None:
    count, momentum = _value_count(b, p), _f32(p, "momentum")
    statistic = b["src"].reshape(b["dst"].shape) / np.float32(count)
    b["dst"][...] = statistic
    if p["kind"] == "deviation":
        b["dst"][...] = _ONE / np.sqrt(statistic + _f32(p, "eps"))
        full = count * int(p["repeats"])
        statistic = statistic * np.float32(full) / np.float32(max(full - 1, 1))
    b["run"][...] = (_ONE - momentum) * b["run"] + momentum * statistic.reshape(b["run"].shape)


def _norm(b: Buffers, p: Params, fresh: bool) -> None:
    z, counts = _norm_values(b, p)
    mean, inverse, weight = b["par"][1:4]
    h = (z - mean) * inverse
    if p["kind"] == "forward":
        b["dst"][...] = (h * weight + b["par"][4]).reshape(b["dst"].shape)
        return
    count = np.float32(_value_count(b, p))
    away = b["g"].reshape(z.shape) - b["par"][4] / count - h * (b["par"][5] / count)
    result = numerics.round_to_storage(weight * inverse * away, str(p["dtype"]))
    b["dst"][...] = np.where(counts[:, None, None], result, _ZERO).reshape(b["dst"].shape)


def _running_maximum(values: F32) -> tuple[F32, npt.NDArray[np.int64]]:
    """Return the maximum of ``[steps, ...]`` and the first step that has it."""
    best, first = values[0].astype(np.float32), np.zeros(values.shape[1:], np.int64)
    for step in range(1, len(values)):
        greater = (values[step] > best) | (np.isnan(values[step]) & ~np.isnan(best))
        best, first = np.where(greater, values[step], best), np.where(greater, step, first)
    return best, first


def _spread(b: Buffers, p: Params, fresh: bool) -> None:
    n, k, steps = _int(p, "n", "k", "steps")
    first = _running_maximum(b["x"].reshape(steps, n, k))[1]
    spread = np.where(np.arange(steps)[:, None, None] == first, b["src"].reshape(n, k), _ZERO)
    b["dst"][...] = spread.reshape(b["dst"].shape)


def _loss(b: Buffers, p: Params, fresh: bool) -> None:
    n, k, first = _int(p, "n", "k", "pos")
    valid = int(b["scal"].view(np.uint32)[1])
    count = np.float32(max(valid, 1))
    logits, scale = b["logits"].reshape(n, k), _f32(p, "scale")
    gradient = np.zeros((n, k), np.float32)
    loss = _ZERO if fresh else np.float32(b["loss"].reshape(-1)[0])
    for i in range(min(n, valid - first)):
        label = int(b["label"].reshape(-1)[i])
        if not 0 <= label < k:
            raise ValueError(f"label {label} is outside 0..{k - 1}")
        target = (np.arange(k) == label).astype(np.float32)
        if p["kind"] == "cross_entropy":
            shifted = logits[i] - logits[i].max()
            powers = numerics.exp(shifted)
            norm = _ordered_sum(powers)
            value = np.float32(numerics.log(norm) - shifted[label])
            gradient[i] = (powers / norm - target) / count * scale
        else:
            error = logits[i] - np.where(target != 0, _f32(p, "hit"), _f32(p, "miss"))
            value = np.float32(_ordered_sum(error * error) / np.float32(k) * _f32(p, "share"))
            gradient[i] = error * np.float32(2) / (count * np.float32(k)) * scale
        loss = np.float32(loss + value / count)
    b["loss"][...] = loss
    b["grad"][...] = gradient.reshape(b["grad"].shape)


def _ordered_sum(values: F32) -> np.float32:
    total = _ZERO
    for value in values:
        total = np.float32(total + value)
    return total


def _opt(b: Buffers, p: Params, fresh: bool) -> None:
    rate, decay, momentum = b["scal"].view(np.float32)[0], _f32(p, "decay"), _f32(p, "momentum")
    gradient: F32 = b["g"].reshape(b["p"].shape) * _f32(p, "scale")
    if p["kind"] == "adamw":
        b["p"][...] = b["p"] * (_ONE - rate * decay)
    elif decay != 0:
        gradient += decay * b["p"]
    if p["kind"] in ("adam", "adamw"):
        _adam(b, p, gradient)
    elif momentum == 0:
        b["p"][...] = b["p"] - rate * gradient
    else:
        b["mom"][...] = momentum * b["mom"] + gradient
        direction = gradient + momentum * b["mom"] if p["kind"] == "nesterov" else b["mom"]
        b["p"][...] = b["p"] - rate * direction
    if p["dtype"] == "f16":
        b["w"][...] = numerics.round_to_storage(b["p"], "f16")


def _adam(b: Buffers, p: Params, gradient: F32) -> None:
    rate1, rate2 = _f32(p, "rate1"), _f32(p, "rate2")
    count = int(b["scal"].view(np.uint32)[2]) + 1
    b["mom"][...] = b["mom"] + rate1 * (gradient - b["mom"])
    b["sq"][...] = (_ONE - rate2) * b["sq"] + rate2 * gradient * gradient
    size = b["scal"].view(np.float32)[0] / numerics.complement_power(rate1, count)
    spread = np.sqrt(b["sq"]) / np.sqrt(numerics.complement_power(rate2, count)) + _f32(p, "eps")
    b["p"][...] = b["p"] - size * b["mom"] / spread


JOBS: dict[str, Callable[[Buffers, Params, bool], None]] = {
    "tile.fe_fill": _fe_fill,
    "tile.fe_run": _fe_run,
    "tile.fe_planes": _fe_planes,
    "tile.be_fwd": _be_fwd,
    "tile.be_run": _be_run,
    "tile.be_wgt": _be_wgt,
    "tile.wu_run": _wu_run,
    "tile.lif": _lif,
    "tile.grad": _grad,
    "tile.tune": _tune,
    "tile.pool": _pool,
    "tile.unpool": _unpool,
    "tile.rng": _rng,
    "tile.drop": _drop,
    "tile.reduce": _reduce,
    "tile.map": _map,
    "tile.pack": _pack,
    "tile.stat": _stat,
    "tile.fold": _fold,
    "tile.norm": _norm,
    "tile.spread": _spread,
    "tile.loss": _loss,
    "tile.opt": _opt,
}

if set(JOBS) != set(tile.FACTS):
    raise ImportError(f"jobs without a meaning or meanings without a job: {sorted(set(JOBS) ^ set(tile.FACTS))}")
