"""What each computing instruction does, one function per mnemonic, in plain NumPy.

Written from ``docs/semantics.md``. Loops run where the order of a sum counts; what is vectorised is independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import PARAMETER_ROWS, PLAIN_PARAMETER_ROWS
from h2learn.backends.h2learn.numerics import complement_power, exp, log, round_to_storage, surrogate, uniform

from .layouts import (
    F32,
    Bits,
    Bytes,
    Memory,
    Place,
    read_bits,
    read_grads,
    read_numbers,
    read_real,
    write_bits,
    write_grads,
    write_numbers,
    write_real,
    write_slots,
)

Ints = npt.NDArray[np.int64]
Value = int | np.float32 | str

_ZERO = np.float32(0)
_ONE = np.float32(1)


@dataclass(frozen=True, slots=True)
class Job:
    """One dispatched instruction: places of its operands, the values of its coordinates, its descriptor, ``init``."""

    places: dict[str, Place]
    descriptor: dict[str, Value]
    words: dict[str, str]
    init: bool

    def __getitem__(self, operand: str) -> Place:
        """Return the place of an address operand."""
        return self.places[operand]

    def coordinate(self, operand: str) -> int:
        """Return the value of an address operand that is a coordinate."""
        return self.places[operand].address

    def size(self, *names: str) -> tuple[int, ...]:
        """Return integer descriptor fields."""
        return tuple(self.integer(name) for name in names)

    def integer(self, name: str) -> int:
        """Return an integer descriptor field."""
        value = self.descriptor[name]
        assert isinstance(value, int)
        return value

    def real(self, name: str) -> np.float32:
        """Return a binary32 descriptor field."""
        value = self.descriptor[name]
        assert isinstance(value, np.float32)
        return value

    def word(self, name: str) -> str:
        """Return an enumerated descriptor field by its name."""
        value = self.descriptor[name]
        assert isinstance(value, str)
        return value

    @property
    def taps(self) -> list[tuple[int, int]]:
        """Kernel rows and columns, row-major."""
        return list(product(range(self.integer("kh")), range(self.integer("kw"))))

    @property
    def groups(self) -> int:
        """Channel groups of a look-up table."""
        if not self.integer("fan"):
            raise H2LearnError("a look-up table needs a fan-in of at least 1")
        return -(-self.integer("c") // self.integer("fan"))

    @property
    def input_rows(self) -> int:
        """Rows of an input tile."""
        return (self.integer("oh") - 1) * self.integer("sh") + self.integer("kh")

    @property
    def input_columns(self) -> int:
        """Columns of an input tile."""
        return (self.integer("ow") - 1) * self.integer("sw") + self.integer("kw")

    def window(self, tile: npt.NDArray[np.generic], ky: int, kx: int) -> npt.NDArray[np.generic]:
        """Return what tap ``(ky, kx)`` sees of an input tile ``[img][row][col]...`` at every position."""
        oh, ow, sh, sw = self.size("oh", "ow", "sh", "sw")
        rows, columns = ky + sh * np.arange(oh), kx + sw * np.arange(ow)
        return tile[:, rows[:, None], columns[None, :]]

    def sums(self, operand: str, shape: tuple[int, ...]) -> F32:
        """Return the binary32 sums to start from: zeros on init, else from memory."""
        return np.zeros(shape, dtype=np.float32) if self.init else read_real(self[operand], shape, "f32")


def load(job: Job) -> None:
    """Copy rows from DRAM; rows that do not exist are zero."""
    sources, targets, exist = _rows(job)
    rows = np.zeros((len(sources), job.integer("run")), dtype=np.uint8)
    rows[exist] = _gather(job["src"].memory, sources[exist], job.integer("run"))
    _scatter(job["dst"].memory, targets, rows)


def store(job: Job) -> None:
    """Copy rows to DRAM; rows that do not exist are dropped."""
    sources, targets, exist = _rows(job)
    _scatter(job["dst"].memory, targets[exist], _gather(job["src"].memory, sources[exist], job.integer("run")))


def fe_fill(job: Job) -> None:
    """Build look-up tables."""
    taps, c, k, fan = len(job.taps), *job.size("c", "k", "fan")
    weights = np.zeros((taps, job.groups * fan, k), dtype=np.float32)
    weights[:, :c] = read_real(job["w"], (taps, c, k), job.word("dtype"))
    write_real(job["lut"], _table(weights.reshape(taps, job.groups, fan, k), job.word("dtype")), job.word("dtype"))


def fe_run(job: Job) -> None:
    """Forward convolution of spikes by look-up, or of bit-planes, whose entries count by the weight of their plane."""
    imgs, oh, ow, c, k, fan, planes = job.size("imgs", "oh", "ow", "c", "k", "fan", "planes")
    tables = read_real(job["lut"], (len(job.taps), job.groups, 1 << fan, k), job.word("dtype"))
    tile = (imgs, job.input_rows, job.input_columns, max(1, planes))
    spikes = np.zeros((*tile, job.groups * fan), dtype=np.bool_)
    spikes[..., :c] = read_bits(job["s"], (*tile, c))
    patterns = _patterns(spikes.reshape(*tile, job.groups, fan))
    weights = [np.float32(2.0) ** (plane - job.integer("frac")) for plane in range(planes)] or [_ONE]
    if planes and job.word("signed") == "yes":
        weights[-1] = -weights[-1]
    acc = job.sums("acc", (imgs, oh, ow, k))
    for tap, (ky, kx) in enumerate(job.taps):
        seen = job.window(patterns, ky, kx)
        for group, (plane, weight) in product(range(job.groups), enumerate(weights)):
            pattern = seen[..., plane, group].astype(np.int64)
            acc = np.where(pattern[..., None] != 0, acc + weight * tables[tap, group][pattern], acc)
    write_real(job["acc"], acc, "f32")


def be_forward(job: Job) -> None:
    """Forward convolution of real numbers."""
    imgs, oh, ow, c, k = job.size("imgs", "oh", "ow", "c", "k")
    x = read_real(job["x"], (imgs, job.input_rows, job.input_columns, c), job.word("dtype"))
    weights = read_real(job["w"], (len(job.taps), c, k), job.word("dtype"))
    acc = job.sums("acc", (imgs, oh, ow, k))
    for tap, (ky, kx) in enumerate(job.taps):
        seen = job.window(x, ky, kx).astype(np.float32)
        for channel in range(c):
            factor = seen[..., channel, None]
            acc = np.where(factor != 0, acc + factor * weights[tap, channel], acc)
    write_real(job["acc"], acc, "f32")


def be_run(job: Job) -> None:
    """Input gradient of a convolution."""
    imgs, oh, ow, c, k = job.size("imgs", "oh", "ow", "c", "k")
    gh, gw, gblk = job.size("gh", "gw", "gblk")
    dtype = job.word("dtype")
    live, gradients = read_grads(job["g"], (imgs, gh, gw, k), gblk, dtype)
    weights = read_real(job["w"], (len(job.taps), c, k), dtype)
    acc = job.sums("acc", (imgs, oh, ow, c))
    for tap, (to, source) in _transposed_taps(job):
        part = acc[to]
        for channel in range(k):
            term = gradients[source][..., channel, None] * weights[tap, :, channel]
            part = np.where(live[source][..., channel, None], part + term, part)
        acc[to] = part
    if job.words["masked"] == "yes":
        acc = np.where(read_bits(job["m"], (imgs, oh, ow, c)), acc, _ZERO)
    write_real(job["acc"], acc, "f32")


def be_weights(job: Job) -> None:
    """Weight gradient for real inputs."""
    imgs, oh, ow, c, k = job.size("imgs", "oh", "ow", "c", "k")
    x = read_real(job["x"], (imgs, job.input_rows, job.input_columns, c), job.word("dtype"))
    live, gradients = read_grads(job["g"], (imgs * oh * ow, k), job.integer("gblk"), job.word("dtype"))
    seen = np.stack([job.window(x, ky, kx).reshape(-1, c) for ky, kx in job.taps], axis=1).astype(np.float32)
    acc = job.sums("acc", (len(job.taps), c, k))
    for position in range(imgs * oh * ow):
        factor = seen[position][:, :, None]
        acc = np.where((factor != 0) & live[position], acc + factor * gradients[position], acc)
    write_real(job["acc"], acc, "f32")


def wu_run(job: Job) -> None:
    """Weight gradient for spikes by look-up."""
    imgs, oh, ow, c, k, fan = job.size("imgs", "oh", "ow", "c", "k", "fan")
    if not fan:
        raise H2LearnError("a look-up table needs a fan-in of at least 1")
    positions = imgs * oh * ow
    groups = -(-positions // fan)
    spikes = read_bits(job["s"], (imgs, job.input_rows, job.input_columns, c))
    seen = np.zeros((groups * fan, len(job.taps), c), dtype=np.bool_)
    seen[:positions] = np.stack([job.window(spikes, ky, kx).reshape(-1, c) for ky, kx in job.taps], axis=1)
    gradients = np.zeros((groups * fan, k), dtype=np.float32)
    gradients[:positions] = read_grads(job["g"], (positions, k), job.integer("gblk"), job.word("dtype"))[1]
    patterns = _patterns(np.moveaxis(seen.reshape(groups, fan, len(job.taps), c), 1, -1))
    tables = _table(gradients.reshape(groups, fan, k), job.word("dtype"))
    acc = job.sums("acc", (len(job.taps), c, k))
    for group in range(groups):
        pattern = patterns[group]
        acc = np.where(pattern[..., None] != 0, acc + tables[group][pattern], acc)
    write_real(job["acc"], acc, "f32")


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
    count = np.where(ratio >= 1, np.floor(ratio), _ZERO)
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
                carry = np.where(spiked != 0, _ZERO, carry)
            if bounded:
                free = _rest(job, par, u, spiked) > job.real("lowest")
                carry = np.where(free, carry, _ZERO)
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
        return u, np.where(open_here, slope, _ZERO)
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


def bit_planes(job: Job) -> None:
    """Bit-planes of fixed-point numbers."""
    n, k, planes, frac = job.size("n", "k", "planes", "frac")
    if not planes:
        raise H2LearnError("a number needs at least one bit-plane")
    values = read_real(job["src"], (n, k), job.word("dtype"))
    scaled = values.astype(np.float64) * 2.0**frac
    offset = 2.0 ** (planes - 1) if job.word("signed") == "yes" else 0.0
    if not np.all((scaled % 1 == 0) & (scaled >= -offset) & (scaled < 2.0**planes - offset)):
        raise H2LearnError(f"v.pack met a value that {planes} planes down to 2^{-frac} cannot hold")
    numbers = scaled.astype(np.int64) % (1 << planes)
    write_bits(job["dst"], (numbers[:, None] >> np.arange(planes)[:, None]) % 2 == 1)


def pool(job: Job) -> None:
    """Pooling; max keeps the winners."""
    imgs, k = job.size("imgs", "k")
    kind, source, result = job.word("kind"), job.word("src"), job.word("dst")
    legal = {("max", "bits", "bits"), ("max", "f32", "f32")}
    legal |= {(sum_of, *formats) for sum_of in ("avg", "sum") for formats in (("bits", "storage"), ("f32", "f32"))}
    if (kind, source, result) not in legal:
        raise H2LearnError(f"v.pool cannot do {kind} from {source} to {result}")
    shape = (imgs, job.input_rows, job.input_columns, k)
    tile = read_bits(job["src"], shape).astype(np.float32) if source == "bits" else read_real(job["src"], shape, "f32")
    seen = [job.window(tile, ky, kx).astype(np.float32) for ky, kx in job.taps]
    if kind != "max":
        total = np.zeros_like(seen[0])
        for element in seen:
            total = total + element
        value = total / np.float32(len(seen)) if kind == "avg" else total
        write_real(job["dst"], value, "f32" if result == "f32" else job.word("dtype"))
        return
    counts = np.zeros(tile.shape, dtype=np.bool_)
    counts[:, _inside(job, "y", job.input_rows)[:, None] & _inside(job, "x", job.input_columns)] = True
    value, winner, found = seen[0], np.zeros(seen[0].shape, dtype=np.uint8), np.zeros(seen[0].shape, dtype=np.bool_)
    for tap, (element, (ky, kx)) in enumerate(zip(seen, job.taps, strict=True)):
        here = job.window(counts, ky, kx).astype(np.bool_)
        better = here & (~found | (element > value) | (np.isnan(element) & ~np.isnan(value)))
        value, winner, found = np.where(better, element, value), np.where(better, np.uint8(tap), winner), found | here
    write_numbers(job["idx"], winner, "u1")
    if result == "bits":
        write_bits(job["dst"], value != 0)
    else:
        write_real(job["dst"], value, "f32")


def _inside(job: Job, axis: str, size: int) -> Bits:
    """Return which rows (``y``) or columns (``x``) of a source tile take part in a maximum."""
    limit, place = job.integer(f"{axis}lim"), job.coordinate(axis) + np.arange(size)
    return (place >= 0) & (place < limit) if limit else np.ones(size, dtype=np.bool_)


def unpool(job: Job) -> None:
    """Gradient of pooling."""
    imgs, oh, ow, k, gh, gw, gblk = job.size("imgs", "oh", "ow", "k", "gh", "gw", "gblk")
    source, dtype, most = job.word("src"), job.word("dtype"), job.word("kind") == "max"
    if source not in ("f32", "slots") or job.word("dst") != source:
        raise H2LearnError(f"v.unpool cannot make {job.word('dst')} from {source}")
    shape = (imgs, gh, gw, k)
    live = np.ones(shape, dtype=np.bool_)
    if source == "slots":
        live, values = read_grads(job["src"], shape, gblk, dtype)
    else:
        values = read_real(job["src"], shape, "f32")
    winner = read_numbers(job["idx"], shape, "u1") if most else np.zeros(shape, dtype=np.uint8)
    shares = values / np.float32(len(job.taps)) if job.word("kind") == "avg" else values
    total = np.zeros((imgs, oh, ow, k), dtype=np.float32)
    for tap, (to, pooled) in _transposed_taps(job):
        adds = live[pooled] & ((winner[pooled] == tap) | (not most))
        total[to] = np.where(adds, total[to] + shares[pooled], total[to])
    if source == "slots":
        write_grads(job["dst"], round_to_storage(total, dtype), gblk, dtype)
    else:
        write_real(job["dst"], total, "f32")


def spread(job: Job) -> None:
    """Gradient of a maximum over time."""
    n, k, steps = job.size("n", "k", "steps")
    first = _first_maximum(read_real(job["x"], (steps, n, k), job.word("dtype")))
    gradient = read_real(job["src"], (n, k), "f32")
    result = np.zeros((steps, n, k), dtype=np.float32)
    np.put_along_axis(result, first[None], gradient[None], axis=0)
    write_real(job["dst"], result, "f32")


def elementwise(job: Job) -> None:
    """A change of format, a sum of two values, a gate, a learned constant or its gradient."""
    shape, kind = job.size("n", "k"), job.word("kind")
    values = _values(job, "a", shape)
    if kind == "add":
        values = values + _values(job, "b", shape)
    elif kind in ("keep", "drop", "negate"):
        fires = _values(job, "b", shape) != 0
        if kind == "drop":
            values = np.where(fires, np.float32(0), values)
        else:
            values = np.where(fires, values if kind == "keep" else -values, np.float32(0))
    elif kind in ("sigmoid", "falling", "unit"):
        values = _learned(kind, values)
    elif kind in ("sigmoid_slope", "falling_slope"):
        value = _learned("sigmoid", _values(job, "b", shape))
        values = values * (value * (np.float32(1) - value))
        values = values if kind == "sigmoid_slope" else -values
    elif kind == "unit_slope":
        w = _values(job, "b", shape)
        values = np.where((w >= 0) & (w <= 1), values, np.float32(0))
    elif kind != "copy":
        raise H2LearnError(f"v.map cannot compute {kind}")
    _write_values(job, values)


def _learned(kind: str, w: F32) -> F32:
    """Return a learned constant."""
    one = np.float32(1)
    if kind == "unit":
        return np.where(w < 0, np.float32(0), np.where(w > 1, one, w))
    return np.asarray(one / (one + exp(-w if kind == "sigmoid" else w)))


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


def _write_values(job: Job, values: F32) -> None:
    """Write the result of element-wise work in the format that the descriptor gives it."""
    target, dtype = job.word("dst"), job.word("dtype")
    if target == "bits":
        write_bits(job["dst"], values != 0)
    elif target == "slots":
        write_grads(job["dst"], round_to_storage(values, dtype), job.integer("gblk"), dtype)
    else:
        write_real(job["dst"], values, "f32" if target == "f32" else dtype)


def _values(job: Job, operand: str, shape: tuple[int, ...]) -> F32:
    """Return an operand of ``v.map`` ``[n, k]`` in the format that the descriptor gives it."""
    form = job.word(operand)
    if form == "bits":
        return read_bits(job[operand], shape).astype(np.float32)
    if form == "slots":
        return read_grads(job[operand], shape, job.integer("gblk"), job.word("dtype"))[1]
    if form == "row":
        return np.broadcast_to(read_real(job[operand], shape[-1:], "f32"), shape)
    return read_real(job[operand], shape, "f32" if form == "f32" else job.word("dtype"))


def rng(job: Job) -> None:
    """Bernoulli spikes."""
    n, steps, k = job.size("n", "steps", "k")
    spikes = _draw(job) < read_real(job["src"], (n * steps, k), "f32")
    write_bits(job["dst"], spikes)


def drop(job: Job) -> None:
    """Dropout: values that stay are scaled."""
    n, steps, k = job.size("n", "steps", "k")
    values = _values(job, "a", (n * steps, k)) * job.real("share")
    _write_values(job, np.where(_draw(job) < job.real("p0"), values, np.float32(0)))


def _draw(job: Job) -> F32:
    """Return the random numbers of n samples of steps positions, ``[n*steps, k]``."""
    n, steps, k = job.size("n", "steps", "k")
    seed, first = (int(word) for word in read_numbers(job["scal"].offset(16), (2,), "u8"))
    sample = (first + job.coordinate("pos") + np.arange(n, dtype=object)) & 0xFFFFFFFF
    neuron = (job.coordinate("neu") + np.arange(steps * k)) & 0xFFFFFFFF
    tick = job.coordinate("tick") & 0xFFFFFFFF
    draw = uniform(seed, job.integer("stream"), sample.astype(np.uint64)[:, None], neuron[None, :], tick)
    return draw.reshape(n * steps, k)


def reduce(job: Job) -> None:
    """Reductions over time or positions."""
    n, k, steps = job.size("n", "k", "steps")
    kind, dtype, gblk = job.word("kind"), job.word("dtype"), job.integer("gblk")
    if kind in ("rate", "count"):
        count = np.count_nonzero(read_bits(job["src"], (steps, n, k)), axis=0).astype(np.float32)
        write_real(job["dst"], count / np.float32(steps) if kind == "rate" else count, "f32")
    elif kind == "max":
        values = read_real(job["src"], (steps, n, k), dtype)
        write_real(job["dst"], np.take_along_axis(values, _first_maximum(values)[None], axis=0)[0], "f32")
    elif kind in ("mean", "sum", "last"):
        values = read_real(job["src"], (steps, n, k), dtype)
        total = np.zeros((n, k), dtype=np.float32)
        for step in range(steps):
            total = total + values[step]
        total = total / np.float32(steps) if kind == "mean" else total
        write_real(job["dst"], values[-1] if kind == "last" else total, "f32")
    elif kind == "tsum":
        live, values = read_grads(job["src"], (steps, n, k), gblk, dtype)
        total = np.zeros((n, k), dtype=np.float32)
        for step in reversed(range(steps)):
            total = np.where(live[step], total + values[step], total)
        write_grads(job["dst"], round_to_storage(total, dtype), gblk, dtype)
    elif kind == "bias":
        live, values = read_grads(job["src"], (n, k), gblk, dtype)
        bias = job.sums("dst", (k,))
        for position in range(n):
            bias = np.where(live[position], bias + values[position], bias)
        write_real(job["dst"], bias, "f32")
    else:
        raise H2LearnError(f"v.reduce cannot compute {kind}")


def statistics(job: Job) -> None:
    """Sums of batch normalisation over the valid samples."""
    kind, k = job.word("kind"), job.integer("k")
    rows = {"sum": 1, "square": 2, "product": 3}.get(kind)
    if rows is None:
        raise H2LearnError(f"v.stat cannot compute {kind}")
    par = read_real(job["par"], (rows, k), "f32")
    z, valid = _biased(job, par[0]), _valid(job)
    sums = job.sums("dst", (2, k) if kind == "product" else (1, k))
    total = np.zeros_like(sums)
    shape = z.shape
    g = read_grads(job["g"], shape, job.integer("gblk"), job.word("dtype"))[1] if rows == 3 else z
    for step, sample, position in np.ndindex(*shape[:3]):
        if not valid[sample]:
            continue
        here = step, sample, position
        if kind == "product":
            h = (z[here] - par[1]) * par[2]
            total = np.where(g[here] != 0, total + np.stack([g[here], g[here] * h]), total)
        else:
            total = total + (z[here] if kind == "sum" else (z[here] - par[1]) * (z[here] - par[1]))
    write_real(job["dst"], sums + total, "f32")


def fold(job: Job) -> None:
    """A batch statistic, and the running one that follows it."""
    k, kind, momentum = job.integer("k"), job.word("kind"), job.real("momentum")
    if kind not in ("mean", "deviation"):
        raise H2LearnError(f"v.fold cannot compute {kind}")
    count = _norm_count(job)
    statistic = read_real(job["src"], (k,), "f32") / np.float32(count)
    result = statistic
    if kind == "deviation":
        result = _ONE / np.sqrt(statistic + job.real("eps"))
        full = count * job.integer("repeats")
        statistic = (statistic * np.float32(full)) / np.float32(max(full - 1, 1))
    write_real(job["dst"], result, "f32")
    run = read_real(job["run"], (k,), "f32")
    write_real(job["run"], (_ONE - momentum) * run + momentum * statistic, "f32")


def normalise(job: Job) -> None:
    """Batch normalisation of a tile, or its gradient."""
    kind, k = job.word("kind"), job.integer("k")
    if kind not in ("forward", "backward"):
        raise H2LearnError(f"v.norm cannot compute {kind}")
    par = read_real(job["par"], (5 if kind == "forward" else 6, k), "f32")
    z = _biased(job, par[0])
    h = (z - par[1]) * par[2]
    if kind == "forward":
        write_real(job["dst"], h * par[3] + par[4], "f32")
        return
    dtype, gblk, count = job.word("dtype"), job.integer("gblk"), np.float32(_norm_count(job))
    g = read_grads(job["g"], z.shape, gblk, dtype)[1]
    inner = (g - par[4] / count) - h * (par[5] / count)
    result = round_to_storage((par[3] * par[2]) * inner, dtype)
    result[:, ~_valid(job)] = 0
    write_grads(job["dst"], result, gblk, dtype)


def loss(job: Job) -> None:
    """Loss and its gradient with respect to the logits."""
    n, k = job.size("n", "k")
    logits = read_real(job["logits"], (n, k), "f32")
    labels = read_numbers(job["label"], (n,), "i4")
    valid = int(read_numbers(job["scal"].offset(4), (1,), "u4")[0])
    samples = np.float32(max(valid, 1))
    total = job.sums("loss", ())
    grads = np.zeros((n, k), dtype=np.float32)
    for i in range(max(0, min(n, valid - job.coordinate("pos")))):
        if not 0 <= labels[i] < k:
            raise H2LearnError(f"label {labels[i]} of sample {i} is not a class of {k}")
        target = (np.arange(k) == labels[i]).astype(np.float32)
        value, grads[i] = _sample_loss(job, logits[i], target, samples)
        total = total + value / samples
    write_real(job["loss"], np.asarray(total, dtype=np.float32), "f32")
    write_real(job["grad"], grads, "f32")


def optimize(job: Job) -> None:
    """An optimizer's step."""
    shape, adam = job.size("n"), job.word("kind") in ("adam", "adamw")
    rate, decay = read_real(job["scal"], (1,), "f32")[0], job.real("decay")
    p = read_real(job["p"], shape, "f32")
    step = read_real(job["g"], shape, "f32") * job.real("scale")
    if job.word("kind") == "adamw":
        p = p * (_ONE - rate * decay)
    elif decay != 0:
        step = step + decay * p
    p = p - (_adam_change(job, step, rate) if adam else rate * _sgd_direction(job, step))
    write_real(job["p"], p, "f32")
    if job.word("dtype") == "f16":
        write_real(job["w"], p, "f16")


SEMANTICS: dict[str, Callable[[Job], None]] = {
    "ld": load,
    "st": store,
    "fe.fill": fe_fill,
    "fe.run": fe_run,
    "be.fwd": be_forward,
    "be.run": be_run,
    "be.wgt": be_weights,
    "wu.run": wu_run,
    "v.lif": lif,
    "v.grad": gradient,
    "v.tune": tune,
    "v.pool": pool,
    "v.unpool": unpool,
    "v.spread": spread,
    "v.map": elementwise,
    "v.pack": bit_planes,
    "v.rng": rng,
    "v.drop": drop,
    "v.reduce": reduce,
    "v.stat": statistics,
    "v.fold": fold,
    "v.norm": normalise,
    "v.loss": loss,
    "v.opt": optimize,
}
"""What each mnemonic does."""


def _rows(job: Job) -> tuple[Ints, Ints, Bits]:
    """Return source address, destination address and existence of every row of a transfer."""
    grid = np.indices(job.size("n0", "n1", "n2", "n3"), dtype=np.int64).reshape(4, -1)
    row, column = job.coordinate("y") + grid[2], job.coordinate("x") + grid[3]
    exist = (row >= 0) & (row < job.integer("ylim")) & (column >= 0) & (column < job.integer("xlim"))
    sources = job["src"].address + np.array(job.size("ss0", "ss1", "ss2", "ss3")) @ grid
    targets = job["dst"].address + np.array(job.size("ds0", "ds1", "ds2", "ds3")) @ grid
    return sources, targets, exist


def _gather(memory: Memory, addresses: Ints, run: int) -> Bytes:
    """Return ``[row, run]`` bytes."""
    if not addresses.size:
        return np.zeros((0, run), dtype=np.uint8)
    low = int(addresses.min())
    rows = memory.view(low, int(addresses.max()) - low + run)
    return np.asarray(rows[(addresses - low)[:, None] + np.arange(run)], dtype=np.uint8)


def _scatter(memory: Memory, addresses: Ints, rows: Bytes) -> None:
    """Write ``[row, run]`` bytes."""
    if not addresses.size:
        return
    low, run = int(addresses.min()), rows.shape[1]
    memory.view(low, int(addresses.max()) - low + run)[(addresses - low)[:, None] + np.arange(run)] = rows


def _table(parts: F32, dtype: str) -> F32:
    """Return tables ``[..., 2^n, k]`` of rounded partial sums of ``parts`` ``[..., n, k]``."""
    *outer, fan, k = parts.shape
    entries = np.zeros((*outer, 1 << fan, k), dtype=np.float32)
    for pattern in range(1, 1 << fan):
        lowest = (pattern & -pattern).bit_length() - 1
        rest = pattern & (pattern - 1)
        entries[..., pattern, :] = round_to_storage(entries[..., rest, :] + parts[..., lowest, :], dtype)
    return entries


def _patterns(bits: Bits) -> Ints:
    """Return the numbers whose bits are the last axis, lowest first."""
    return np.asarray((bits.astype(np.int64) << np.arange(bits.shape[-1])).sum(axis=-1), dtype=np.int64)


Window = tuple[slice, npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _transposed_taps(job: Job) -> Iterator[tuple[int, tuple[Window, Window]]]:
    """Yield, for each tap, the positions it contributes to and where their contributions come from."""
    oh, ow, gh, gw, py, px, sh, sw = job.size("oh", "ow", "gh", "gw", "py", "px", "sh", "sw")
    for tap, (ky, kx) in enumerate(job.taps):
        rows, from_rows = _sources(oh, py - ky, sh, gh)
        columns, from_columns = _sources(ow, px - kx, sw, gw)
        if rows.size and columns.size:
            to = (slice(None), rows[:, None], columns[None, :])
            yield tap, (to, (slice(None), from_rows[:, None], from_columns[None, :]))


def _sources(count: int, offset: int, stride: int, limit: int) -> tuple[Ints, Ints]:
    """Return the positions in ``range(count)`` that one tap reaches, and the gradient positions they come from."""
    shifted = np.arange(count) + offset
    legal = (shifted >= 0) & (shifted % stride == 0) & (shifted // stride < limit)
    return np.flatnonzero(legal), shifted[legal] // stride


def _sample_loss(job: Job, logits: F32, target: F32, samples: np.float32) -> tuple[np.float32, F32]:
    """Return the loss of one sample and its part of the gradient."""
    if job.word("kind") == "cross_entropy":
        top = logits.max()
        powers = exp(logits - top)
        total = _ascending_sum(powers)
        value = log(total) - (logits[target != 0][0] - top)
        return np.float32(value), (powers / total - target) / samples * job.real("p0")
    if job.word("kind") != "mse":
        raise H2LearnError(f"v.loss cannot compute {job.word('kind')}")
    classes = np.float32(len(logits))
    difference = logits - np.where(target != 0, job.real("hit"), job.real("miss"))
    grads = difference * np.float32(2) / (samples * classes) * job.real("p0")
    return _ascending_sum(difference * difference) / classes * job.real("share"), grads


def _sgd_direction(job: Job, step: F32) -> F32:
    """Update the velocity, if any; return where the parameters go."""
    momentum = job.real("momentum")
    if momentum == 0:
        return step
    velocity = momentum * read_real(job["mom"], step.shape, "f32") + step
    write_real(job["mom"], velocity, "f32")
    return step + momentum * velocity if job.word("kind") == "nesterov" else velocity


def _adam_change(job: Job, step: F32, rate: np.float32) -> F32:
    """Update both averages; return what the parameters lose."""
    count = int(read_numbers(job["scal"].offset(8), (1,), "u4")[0]) + 1
    rate1, rate2 = job.real("rate1"), job.real("rate2")
    mean = read_real(job["mom"], step.shape, "f32")
    mean = mean + rate1 * (step - mean)
    square = (_ONE - rate2) * read_real(job["sq"], step.shape, "f32") + rate2 * step * step
    write_real(job["mom"], mean, "f32")
    write_real(job["sq"], square, "f32")
    spread = np.sqrt(square) / np.sqrt(complement_power(rate2, count)) + job.real("eps")
    return np.asarray(rate / complement_power(rate1, count) * mean / spread)


def _biased(job: Job, bias: F32) -> F32:
    """Return the currents of a tile ``[steps,n,positions,k]`` with their bias."""
    return read_real(job["x"], job.size("steps", "n", "positions", "k"), "f32") + bias


def _valid(job: Job) -> Bits:
    """Return which samples of a tile are there."""
    valid = int(read_numbers(job["scal"].offset(4), (1,), "u4")[0])
    return np.asarray(job.coordinate("pos") + np.arange(job.integer("n")) < valid)


def _norm_count(job: Job) -> int:
    """Return how many values per channel the statistics have."""
    return max(int(read_numbers(job["scal"].offset(4), (1,), "u4")[0]), 1) * job.integer("count")


def _first_maximum(values: F32) -> Ints:
    """Return the first step with the largest value, or with the first NaN."""
    ranked = np.where(np.isnan(values), np.inf, values)
    first_nan = np.isnan(values).argmax(axis=0)
    return np.asarray(np.where(np.isnan(values).any(axis=0), first_nan, ranked.argmax(axis=0)), dtype=np.int64)


def _ascending_sum(values: F32) -> np.float32:
    total = _ZERO
    for value in values:
        total = total + value
    return total
