"""What the vector unit computes, as the ``lut`` interpreter sees it; all reals are float32 (see docs/semantics.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from types import EllipsisType
from typing import Any

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn import numerics
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.numerics import round_to_storage
from h2learn.backends.reference.coding import Dropout
from h2learn.backends.reference.training import Loss

from .attributes import ADAM_KINDS, WINDOWS, ConvGeometry, Neuron, Update

F32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]
Window = tuple[EllipsisType, slice, slice, slice]

ZERO = np.float32(0)
NO_BIAS = np.zeros(1, dtype=np.float32)


def lif(current: F32, bias: F32, neuron: Neuron, steps: int, dtype: str) -> tuple[F32 | Bits, F32, Bits]:
    """Return spikes, potentials and surrogate mask, all ``[T,..,K]``, of a current ``[T,..,K]`` or ``[..,K]``.

    Counted spikes are reals rounded to the storage type.
    """
    membrane = _Membrane(neuron, current.shape[-4:], dtype)
    spikes: list[npt.NDArray[Any]] = []
    potentials, masks = [], []
    for t in range(steps):
        u = membrane.step((current[t] if current.ndim == 5 else current) + bias)
        s = _fired(u, neuron)
        membrane.reset(s)
        potentials.append(u)
        spikes.append(round_to_storage(s, dtype) if neuron.counts else s)
        inside: Bits = _distance(u, neuron) < np.float32(neuron.width)
        masks.append(inside if neuron.surrogate in WINDOWS else np.ones(u.shape, dtype=np.bool_))
    return np.stack(spikes), np.stack(potentials), np.stack(masks)


def _fired(u: F32, neuron: Neuron) -> F32 | Bits:
    """Return which neurons spike, or how often."""
    theta = _row(neuron.theta)
    if not neuron.counts:
        return u > theta if neuron.compare == "gt" else u >= theta
    ratio = u / theta
    count = np.where(ratio >= np.float32(1), np.floor(ratio), ZERO)
    return np.minimum(count, np.float32(neuron.most)) if neuron.most else count


def _distance(u: F32, neuron: Neuron) -> F32:
    """Return the distance of potentials from the threshold, or above it twice that from its nearest multiple."""
    theta = _row(neuron.theta)
    distance: F32 = np.abs(u - theta)
    if not neuron.periodic:
        return distance
    phase = u / theta - np.float32(0.5)
    inside = np.abs(np.float32(2) * (phase - np.floor(phase)) - np.float32(1))
    return np.where(u < theta, distance, theta * inside)


def _after_reset(u: F32, s: F32 | Bits, neuron: Neuron) -> F32:
    """Return what a reset that is not delayed leaves of potentials, bounds apart."""
    if neuron.reset == "hard":
        return np.where(s != 0, _row(neuron.v_reset), u)
    return np.where(s != 0, u - _row(neuron.theta) * s, u) if neuron.reset == "soft" else u


def li(current: F32, bias: F32, neuron: Neuron, steps: int, dtype: str) -> F32:
    """Return the membrane potentials ``[T,..,K]`` of leaky integrators."""
    membrane = _Membrane(neuron, current.shape[-4:], dtype)
    return np.stack([membrane.step((current[t] if current.ndim == 5 else current) + bias) for t in range(steps)])


class _Membrane:
    """What neurons carry from step to step: potential (after :meth:`reset`, decayed) and synaptic current."""

    def __init__(self, neuron: Neuron, shape: tuple[int, ...], dtype: str) -> None:
        self.neuron, self.dtype = neuron, dtype
        self.alpha = _row(neuron.alpha)
        start = ZERO if neuron.drive == "plain" else _row(neuron.initial)
        self.carried: F32 = np.broadcast_to(self.alpha * start, shape).astype(np.float32)
        self.synaptic = np.zeros(shape, dtype=np.float32)
        self.u = self.carried
        self.lost: Bits | None = None

    def step(self, x: F32) -> F32:
        """Return the potential of the next step for the current ``x``."""
        u = self.carried + self._drive(x)
        self.u = round_to_storage(
            u if self.lost is None else np.where(self.lost, _row(self.neuron.v_reset), u), self.dtype
        )
        self.carried = self.alpha * self.u
        return self.u

    def reset(self, s: F32 | Bits) -> None:
        """Take the spikes of the step into account."""
        n, rest = self.neuron, _after_reset(self.u, s, self.neuron)
        if n.lowest is not None:
            rest = np.where(rest < np.float32(n.lowest), np.float32(n.lowest), rest)
        self.carried = self.alpha * rest
        if n.reset == "soft_delayed":
            self.carried = np.where(s != 0, self.carried - _row(n.theta) * s, self.carried)
        if n.reset == "hard_delayed":
            self.lost = s != 0

    def _drive(self, x: F32) -> F32:
        n = self.neuron
        if n.drive == "plain":
            return x
        arriving = x
        if n.has_synapse:
            before = self.synaptic
            self.synaptic = round_to_storage(_row(n.beta) * before + x, self.dtype)
            arriving = before if n.drive == "delayed" else self.synaptic
        return np.asarray(_row(n.gain) * arriving + _row(n.offset))


def grad(
    gs: F32, u: F32 | Bits | None, s: F32 | Bits | None, neuron: Neuron, gs_time: str, steps: int, dtype: str
) -> F32:
    """Return the gradient of the currents ``[T,..,K]``, the last time step first."""
    alpha = _row(neuron.alpha)
    gradients: list[F32] = []
    carried = np.zeros(gs.shape[-4:], dtype=np.float32)
    synaptic = carried
    for t in reversed(range(steps)):
        g, later = _arriving(gs, gs_time, t, steps), carried
        if u is None or s is None:
            carried = round_to_storage(g + alpha * later, dtype)
        else:
            carried = round_to_storage(_through_spike(g, u[t], s[t], later, neuron), dtype)
        if neuron.has_synapse:
            scaled = _row(neuron.gain) * (later if neuron.drive == "delayed" else carried)
            synaptic = round_to_storage(scaled + _row(neuron.beta) * synaptic, dtype)
            gradients.append(live(synaptic))
        elif neuron.drive == "scaled":
            gradients.append(live(round_to_storage(_row(neuron.gain) * carried, dtype)))
        else:
            gradients.append(live(carried))
    return np.stack(gradients[::-1])


def constants_gradient(
    gu: F32, later: F32, u: F32, s: Bits, neuron: Neuron, block: tuple[int, int, int, int]
) -> list[F32]:
    """Return the gradients ``[K]`` of decay and threshold; gradients, u and s are ``[T,N,H,W,K]``."""
    alpha = _row(neuron.alpha)
    held = {
        "hard": lambda: np.where(s, _row(neuron.v_reset), u),
        "soft": lambda: np.where(s, u - _row(neuron.theta), u),
    }
    decayed: F32 = alpha * later
    passed = np.where(s, ZERO, decayed) if neuron.reset in held else decayed
    taken = np.where(s, later, ZERO) if neuron.reset == "soft_delayed" else np.zeros_like(later)
    of_decay, of_threshold = later * held.get(neuron.reset, lambda: u)(), (passed - gu) - taken
    totals = [np.zeros(u.shape[-1], dtype=np.float32) for _ in range(2)]
    for cut in position_blocks(u.shape[:4], block):
        rows = [values[cut].reshape(-1, u.shape[-1]) for values in (of_decay, later, of_threshold)]
        for decay, g, threshold in zip(*rows, strict=True):
            totals[0] = np.where(g != 0, totals[0] + decay, totals[0])
            totals[1] = totals[1] + threshold
    return totals


def position_blocks(shape: tuple[int, ...], block: tuple[int, int, int, int]) -> Iterator[tuple[slice, ...]]:
    """Yield blocks of ``[T,N,H,W]``: samples outermost, then rows, columns, steps."""
    steps, samples, rows, columns = (range(0, size, part) for size, part in zip(shape, block, strict=True))
    for n, y, x, t in product(samples, rows, columns, steps):
        starts = zip((t, n, y, x), block, strict=True)
        yield tuple(slice(start, start + part) for start, part in starts)


def learned_row(w: F32, kind: str) -> F32:
    """Return the values of a learned constant."""
    one = np.float32(1)
    if kind == "unit":
        return np.where(w < 0, ZERO, np.where(w > 1, one, w))
    if kind == "plain":
        return w
    return np.asarray(one / (one + numerics.exp(-w if kind == "sigmoid" else w)))


def learned_row_gradient(g: F32, w: F32, kind: str) -> F32:
    """Return the gradient of the parameter of a learned constant."""
    found = g
    if kind == "unit":
        found = np.where((w >= 0) & (w <= 1), g, ZERO)
    elif kind != "plain":
        value = learned_row(w, "sigmoid")
        found = g * (value * (np.float32(1) - value))
        found = found if kind == "sigmoid" else -found
    if w.shape == g.shape:
        return found
    total = np.zeros(1, dtype=np.float32)
    for value in found:
        total = np.where(value != 0, total + value, total)
    return total


def live(g: F32) -> F32:
    """Return what the bitmap and values of ``g`` hold: zeros of either sign are dead and read as +0."""
    return np.where(g != 0, g, ZERO)


def pool(x: F32 | Bits, kind: str, geometry: ConvGeometry) -> tuple[F32, Bytes]:
    """Return average, sum or maximum (as float32) and winners of windows over ``[..,H,W,C]``."""
    padded = _padded(np.asarray(x, dtype=np.float32), geometry)
    taps = [padded[window] for window in _windows(x.shape, geometry)]
    if kind != "max":
        total = np.zeros_like(taps[0])
        for value in taps:
            total = total + value
        return total / np.float32(geometry.taps if kind == "avg" else 1), np.zeros(total.shape, dtype=np.uint8)
    inside = _padded(np.ones((*x.shape[-3:-1], 1), dtype=np.float32), geometry)
    best, winner = taps[0], np.zeros(taps[0].shape, dtype=np.uint8)
    seen = np.zeros(best.shape, dtype=np.bool_)
    for tap, (value, window) in enumerate(zip(taps, _windows(x.shape, geometry), strict=True)):
        there = np.broadcast_to(inside[window] != 0, best.shape)
        better = there & (~seen | (value > best) | (np.isnan(value) & ~np.isnan(best)))
        best, winner = np.where(better, value, best), np.where(better, np.uint8(tap), winner)
        seen = seen | there
    return best, winner


def unpool(g: F32, winners: Bytes | None, kind: str, geometry: ConvGeometry, shape: tuple[int, ...]) -> F32:
    """Return the gradient ``shape`` = ``[..,H,W,C]`` of a pooling's input; ``winners`` is there for a maximum."""
    padded = _padded(np.zeros(shape, dtype=np.float32), geometry)
    share = g / np.float32(geometry.taps) if kind == "avg" else g
    for tap, window in enumerate(_windows(shape, geometry)):
        added = padded[window] + share
        padded[window] = added if winners is None else np.where(winners == tap, added, padded[window])
    (ph, pw), (height, width) = geometry.padding, shape[-3:-1]
    return np.ascontiguousarray(padded[..., ph : ph + height, pw : pw + width, :])


def rng(x: F32, scalars: Ints, stream: int, steps: int) -> Bits:
    """Return random spikes ``[T,N,H,W,C]`` with probabilities ``x`` ``[N,H,W,C]``."""
    words = [int(word) for word in scalars.view(np.uint32)]
    seed = words[4] | words[5] << 32
    sample = ((words[6] + np.arange(x.shape[0], dtype=np.uint64)) & np.uint64(0xFFFFFFFF))[:, None]
    neuron = np.arange(x[0].size, dtype=np.uint64)[None]
    ticks = [numerics.uniform(seed, stream, sample, neuron, tick).reshape(x.shape) < x for tick in range(steps)]
    return np.stack(ticks)


def dropout(x: F32 | Bits, scalars: Ints, what: Dropout, steps: int) -> F32:
    """Return values ``[(T,)N,H,W,C]``, some of them 0 and the others scaled, in float32; ``steps``: as many draws."""
    share: F32 = np.full(x.shape[-4:], what.share, dtype=np.float32)
    keeps = rng(share, scalars, what.stream, steps)
    return np.where(keeps if what.every_step else keeps[0], x.astype(np.float32) * what.factor, ZERO)


def readout(x: F32 | Bits, kind: str) -> F32:
    """Return the spike rate or count, mean, last or largest membrane potential of ``[T,..]`` as ``[..]``."""
    steps = np.float32(len(x))
    if kind in ("rate", "count") and x.dtype == np.bool_:
        count = np.asarray(np.count_nonzero(x, axis=0), dtype=np.float32)
        return count if kind == "count" else count / steps
    if kind == "membrane_last":
        return np.asarray(x[-1], dtype=np.float32)
    if kind == "membrane_max":
        values = np.asarray(x, dtype=np.float32)
        return np.asarray(np.take_along_axis(values, _first_largest(values)[None], axis=0)[0])
    total = np.zeros(x.shape[1:], dtype=np.float32)
    for u in x:
        total = total + u
    return total if kind == "count" else total / steps


def spread(g: F32, x: F32) -> F32:
    """Return ``g`` ``[..]`` at the first step with the maximum of ``x`` ``[T,..]``, +0 at the others."""
    steps = np.arange(len(x)).reshape(-1, *(1 for _ in g.shape))
    return np.where(steps == _first_largest(x), g, ZERO)


def _first_largest(x: F32) -> npt.NDArray[np.int64]:
    """Return the first step with the maximum; NaN counts as greater than anything before it that is not NaN."""
    best, where = x[0], np.zeros(x.shape[1:], dtype=np.int64)
    for step, value in enumerate(x[1:], start=1):
        better = (value > best) | (np.isnan(value) & ~np.isnan(best))
        best, where = np.where(better, value, best), np.where(better, step, where)
    return where


def loss(logits: F32, label: Ints, scalars: Ints, what: Loss, scale: float) -> tuple[F32, F32]:
    """Return the mean loss of the valid samples and its gradient times ``scale``; ``logits`` is ``[N,1,1,K]``.

    Raises H2LearnError for a label outside the classes.
    """
    samples, classes = logits.shape[0], logits.shape[-1]
    valid = int(scalars.view(np.uint32)[1])
    count = np.float32(max(valid, 1))
    used = min(valid, samples)
    wrong = [int(y) for y in label[:used] if not 0 <= y < classes]
    if wrong:
        raise H2LearnError(f"label {wrong[0]} is outside 0..{classes - 1}")
    o, hot = logits.reshape(samples, classes)[:used], np.zeros((used, classes), dtype=np.float32)
    hot[np.arange(used), label[:used]] = 1
    losses, gradients = _cross_entropy(o, hot, count) if what.kind == "cross_entropy" else _mse(o, hot, count, what)
    total = ZERO
    for value in losses:
        total = np.float32(total + value / count)
    dlogits = np.zeros((samples, classes), dtype=np.float32)
    dlogits[:used] = gradients * np.float32(scale)
    return np.asarray(total, dtype=np.float32), dlogits.reshape(logits.shape)


def optimize(p: F32, g: F32, states: Sequence[F32], scalars: Ints, update: Update) -> list[F32]:
    """Return the new parameter and the new buffers."""
    one, rate, decay = np.float32(1), scalars.view(np.float32)[0], np.float32(update.weight_decay)
    step = g * np.float32(update.grad_scale)
    if update.kind == "adamw":
        p = p * (one - rate * decay)
    elif decay != 0:
        step = step + decay * p
    if update.kind in ADAM_KINDS:
        return _adam(p, step, states, scalars, update)
    momentum = np.float32(update.momentum)
    if not states:
        return [p - rate * step]
    buffer = momentum * states[0] + step
    direction = step + momentum * buffer if update.kind == "nesterov" else buffer
    return [p - rate * direction, buffer]


def delay(x: F32 | Bits, steps: int) -> F32 | Bits:
    """Return ``[T,..]`` moved by ``steps``, with zeros where nothing comes from."""
    result = np.zeros_like(x)
    for t in range(max(steps, 0), min(len(x), len(x) + steps)):
        result[t] = x[t - steps]
    return result


def time_sum(g: F32) -> F32:
    """Return the sum of ``[T,..]`` over time, last step first."""
    total = np.zeros(g.shape[1:], dtype=np.float32)
    for step in g[::-1]:
        total = total + step
    return total


def _adam(p: F32, step: F32, averages: Sequence[F32], scalars: Ints, update: Update) -> list[F32]:
    shares = [np.float32(1 - beta) for beta in (update.beta1, update.beta2)]
    exponent = int(scalars.view(np.uint32)[2]) + 1
    corrections = [numerics.complement_power(share, exponent) for share in shares]
    mean = averages[0] + shares[0] * (step - averages[0])
    square = (np.float32(1) - shares[1]) * averages[1] + shares[1] * step * step
    rate = scalars.view(np.float32)[0] / corrections[0]
    spread = np.sqrt(square) / np.sqrt(corrections[1]) + np.float32(update.eps)
    return [p - rate * mean / spread, mean, square]


def _row(values: tuple[float, ...]) -> F32:
    return np.asarray(values, dtype=np.float32)


def _arriving(gs: F32, gs_time: str, t: int, steps: int) -> F32:
    if gs_time == "all":
        return np.asarray(gs[t], dtype=np.float32)
    return gs if gs_time == "broadcast" or t == steps - 1 else np.zeros_like(gs)


def _through_spike(gs: F32, u: F32 | Bits, s: F32 | Bits, later: F32, neuron: Neuron) -> F32:
    """Return the gradient of potentials ``u``, or of those of which ``u`` says whether they lie in the window.

    A potential of which nothing is known but that it lies outside is NaN: there the surrogate is 0.
    """
    alpha, theta = _row(neuron.alpha), _row(neuron.theta)
    decayed: F32 = alpha * later
    e, p = gs, decayed
    if neuron.reset != "none" and not neuron.detach_reset:
        drops: dict[str, F32] = {
            "hard": alpha * (u - _row(neuron.v_reset)),
            "soft": alpha * theta,
            "soft_delayed": theta,
        }
        e = gs - drops[neuron.reset] * later
    if neuron.reset == "hard":
        p = np.where(s != 0, ZERO, decayed)
    if neuron.lowest is not None:
        passes = _after_reset(np.asarray(u, dtype=np.float32), s, neuron) > np.float32(neuron.lowest)
        e, p = e if neuron.reset == "soft_delayed" else np.where(passes, e, gs), np.where(passes, p, ZERO)
    width, height = np.float32(neuron.width), np.float32(neuron.height)
    if u.dtype == np.bool_:
        slope = np.where(u, height, ZERO)
    else:
        distance = _distance(np.asarray(u, dtype=np.float32), neuron)
        slope = numerics.surrogate(neuron.surrogate, distance, width, height)
    return np.where(slope != 0, slope * e + p, p)


def _padded(x: F32, geometry: ConvGeometry) -> F32:
    (ph, pw) = geometry.padding
    return np.pad(x, ((0, 0),) * (x.ndim - 3) + ((ph, ph), (pw, pw), (0, 0)))


def _windows(shape: tuple[int, ...], geometry: ConvGeometry) -> list[Window]:
    """Return for each tap, row-major, where the windows' elements lie in ``[..,H,W,C]`` with its padding."""
    (kh, kw), (sh, sw) = geometry.kernel, geometry.stride
    rows, columns = geometry.extent(shape[-3], shape[-2])
    return [
        (..., slice(ky, ky + (rows - 1) * sh + 1, sh), slice(kx, kx + (columns - 1) * sw + 1, sw), slice(None))
        for ky, kx in product(range(kh), range(kw))
    ]


def _ordered_sum(rows: F32) -> F32:
    """Return the sum over the last axis, ascending from +0."""
    total = np.zeros(rows.shape[:-1], dtype=np.float32)
    for j in range(rows.shape[-1]):
        total = total + rows[..., j]
    return total


def _cross_entropy(o: F32, hot: F32, count: np.float32) -> tuple[F32, F32]:
    shifted = o - np.max(o, axis=-1, keepdims=True, initial=-np.inf)
    e = numerics.exp(shifted)
    z = _ordered_sum(e)
    losses = numerics.log(z) - shifted[hot != 0]
    return losses, (e / z[:, None] - hot) / count


def _mse(o: F32, hot: F32, count: np.float32, what: Loss) -> tuple[F32, F32]:
    classes = np.float32(o.shape[-1])
    d = o - np.where(hot != 0, np.float32(what.hit), np.float32(what.miss))
    return _ordered_sum(d * d) / classes * np.float32(what.share), (d * np.float32(2)) / (count * classes)
