"""The interpreter's sums, bit for bit, against one scalar loop per sentence of docs/semantics.md and docs/levels.md."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.training import Loss
from h2learn.dialects.lut import ConvGeometry, Neuron, Planes, convolution, vector

F32 = np.float32
GEOMETRY = ConvGeometry((3, 2), (2, 1), (1, 1))
SHAPE = (2, 3, 5, 4, 6)  # T, N, H, W, C
K = 5
POSITIONS = (2, 3, *GEOMETRY.extent(5, 4))
DTYPES = ("f32", "f16")


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def st(value, dtype):
    return F32(np.float16(value)) if dtype == "f16" else F32(value)


def stored(values, dtype):
    return np.vectorize(lambda v: st(v, dtype), otypes=[F32])(values)


def entry(pattern, operands, dtype):
    """Recursion of ``fe.fill``: the lowest set bit is added last."""
    if pattern == 0:
        return F32(0)
    lowest = (pattern & -pattern).bit_length() - 1
    return st(F32(entry(pattern & (pattern - 1), operands, dtype) + operands[lowest]), dtype)


def at(x, t, n, y, c_x, c):
    """Element of an activation, 0 outside the map."""
    return x[t, n, y, c_x, c] if 0 <= y < x.shape[2] and 0 <= c_x < x.shape[3] else x.dtype.type(0)


def taps():
    return [(ky, kx) for ky in range(GEOMETRY.kernel[0]) for kx in range(GEOMETRY.kernel[1])]


def beginnings(rng, shape):
    """Return what sums may start from: nothing, or other sums."""
    return None, rng.standard_normal(shape).astype(F32)


def source(oy, ox, ky, kx):
    (sh, sw), (ph, pw) = GEOMETRY.stride, GEOMETRY.padding
    return oy * sh + ky - ph, ox * sw + kx - pw


@pytest.mark.parametrize(("dtype", "fan", "block"), [("f32", 4, 6), ("f16", 2, 3), ("f16", 1, 6)])
@pytest.mark.parametrize("signed", [False, True])
def test_convolution_of_bit_planes(rng, dtype, fan, block, signed):
    """Blocks of channels, taps, groups, and innermost the planes of a group from the lowest to that of the sign."""
    planes, (kh, kw), (sh, sw), (ph, pw) = Planes(3, 1, signed), GEOMETRY.kernel, GEOMETRY.stride, GEOMETRY.padding
    numbers = rng.integers(-4 if signed else 0, 4 if signed else 8, SHAPE)
    x, w = (numbers / 2).astype(F32), stored(rng.normal(size=(kh * kw, SHAPE[-1], K)), dtype)
    found = convolution.number_convolution(x, planes, w, None, GEOMETRY, fan, block, dtype)
    padded = np.pad(numbers, ((0, 0), (0, 0), (ph, ph), (pw, pw), (0, 0)))
    for t, n, y, x_, k in np.ndindex(found.shape):
        total = F32(0)
        for first, ky, kx in product(range(0, SHAPE[-1], block), range(kh), range(kw)):
            last = min(first + block, SHAPE[-1])
            for channel, plane in product(range(first, last, fan), range(3)):
                entry = F32(0)
                for member in reversed(range(channel, min(channel + fan, last))):
                    if padded[t, n, y * sh + ky, x_ * sw + kx, member] >> plane & 1:
                        entry = st(entry + w[kw * ky + kx, member, k], dtype)
                total = F32(total + F32(-1 if signed and plane == 2 else 1) * F32(2.0 ** (plane - 1)) * entry)
        assert found[t, n, y, x_, k] == total
    with pytest.raises(H2LearnError, match="no multiple"):
        convolution.number_convolution(x + F32(0.25), planes, w, None, GEOMETRY, fan, block, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fan", "block"), [(4, 6), (2, 4), (3, 3), (1, 2)])
def test_spike_convolution(rng, dtype, fan, block):
    s = rng.random(SHAPE) < 0.4
    w = stored(rng.standard_normal((6, 6, K)), dtype)
    for onto in beginnings(rng, (*POSITIONS, K)):
        expected = np.zeros((*POSITIONS, K), F32)
        for t, n, oy, ox, k in np.ndindex(*POSITIONS, K):
            acc = F32(0) if onto is None else onto[t, n, oy, ox, k]
            for first in range(0, 6, block):
                for tap, (ky, kx) in enumerate(taps()):
                    y, x = source(oy, ox, ky, kx)
                    for group in range(first, min(first + block, 6), fan):
                        channels = range(group, min(group + fan, first + block, 6))
                        pattern = sum(int(at(s, t, n, y, x, c)) << i for i, c in enumerate(channels))
                        if pattern:
                            acc = F32(acc + entry(pattern, [w[tap, c, k] for c in channels], dtype))
            expected[t, n, oy, ox, k] = acc
        found = convolution.spike_convolution(s, w, onto, GEOMETRY, fan, block, dtype)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("block", [6, 4])
def test_real_convolution(rng, block):
    x = (rng.standard_normal(SHAPE) * (rng.random(SHAPE) < 0.6)).astype(F32)
    w = rng.standard_normal((6, 6, K)).astype(F32)
    for onto in beginnings(rng, (*POSITIONS, K)):
        expected = np.zeros((*POSITIONS, K), F32)
        for t, n, oy, ox, k in np.ndindex(*POSITIONS, K):
            acc = F32(0) if onto is None else onto[t, n, oy, ox, k]
            for first in range(0, 6, block):
                for tap, (ky, kx) in enumerate(taps()):
                    y, column = source(oy, ox, ky, kx)
                    for c in range(first, min(first + block, 6)):
                        acc = F32(acc + F32(at(x, t, n, y, column, c) * w[tap, c, k]))
            expected[t, n, oy, ox, k] = acc
        np.testing.assert_array_equal(convolution.real_convolution(x, w, onto, GEOMETRY, block), expected)


@pytest.mark.parametrize("block", [5, 2])
def test_input_gradient(rng, block):
    g = (rng.standard_normal((*POSITIONS, K)) * (rng.random((*POSITIONS, K)) < 0.6)).astype(F32)
    w = rng.standard_normal((6, 6, K)).astype(F32)
    mask = rng.random(SHAPE) < 0.5
    for onto in beginnings(rng, SHAPE):
        expected = np.zeros(SHAPE, F32)
        for t, n, y, x, c in np.ndindex(*SHAPE):
            acc = F32(0) if onto is None else onto[t, n, y, x, c]
            for first in range(0, K, block):
                for tap, (ky, kx) in enumerate(taps()):
                    (oy, down), (ox, across) = divmod(y + 1 - ky, 2), divmod(x + 1 - kx, 1)
                    if down or across or not (0 <= oy < POSITIONS[2] and 0 <= ox < POSITIONS[3]):
                        continue
                    for k in range(first, min(first + block, K)):
                        acc = F32(acc + F32(g[t, n, oy, ox, k] * w[tap, c, k]))
            expected[t, n, y, x, c] = acc if mask[t, n, y, x, c] else 0
        found = convolution.input_gradient(g, w, mask, onto, GEOMETRY, block, SHAPE)
        np.testing.assert_array_equal(found, expected)
        unmasked = convolution.input_gradient(g, w, None, onto, GEOMETRY, block, SHAPE)
        np.testing.assert_array_equal(np.where(mask, unmasked, F32(0)), expected)


def block_positions(block):
    """Yield the positions of each block; those outside the tensor are filled with zeros."""
    bt, bn, by, bx = block
    steps, samples, rows, columns = POSITIONS
    starts = product(range(0, samples, bn), range(0, rows, by), range(0, columns, bx), range(0, steps, bt))
    for n0, y0, x0, t0 in starts:
        yield [
            (t, n, y, x)
            for t in range(t0, t0 + bt)
            for n in range(n0, n0 + bn)
            for y in range(y0, y0 + by)
            for x in range(x0, x0 + bx)
        ]


def is_inside(position):
    return all(p < size for p, size in zip(position, POSITIONS, strict=True))


BLOCKS = [POSITIONS, (1, 2, 2, 3), (2, 3, 1, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("fan", [4, 3])
def test_spike_weight_gradient(rng, dtype, block, fan):
    s = rng.random(SHAPE) < 0.4
    g = stored(rng.standard_normal((*POSITIONS, K)) * (rng.random((*POSITIONS, K)) < 0.6), dtype)
    expected = np.zeros((6, 6, K), F32)
    for positions in block_positions(block):
        for first in range(0, len(positions), fan):
            group = positions[first : first + fan]
            for tap, c, k in np.ndindex(6, 6, K):
                pattern, operands = 0, []
                for i, (t, n, oy, ox) in enumerate(group):
                    inside = is_inside((t, n, oy, ox))
                    y, x = source(oy, ox, *taps()[tap])
                    pattern |= int(inside and at(s, t, n, y, x, c)) << i
                    operands.append(g[t, n, oy, ox, k] if inside else F32(0))
                if pattern:
                    expected[tap, c, k] = F32(expected[tap, c, k] + entry(pattern, operands, dtype))
    found = convolution.spike_weight_gradient(s, g, GEOMETRY, fan, block, dtype)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("block", BLOCKS)
def test_real_weight_and_bias_gradient(rng, block):
    x = rng.standard_normal(SHAPE).astype(F32)
    g = (rng.standard_normal((*POSITIONS, K)) * (rng.random((*POSITIONS, K)) < 0.6)).astype(F32)
    weights, bias = np.zeros((6, 6, K), F32), np.zeros(K, F32)
    for positions in block_positions(block):
        for t, n, oy, ox in filter(is_inside, positions):
            for k in range(K):
                bias[k] = F32(bias[k] + g[t, n, oy, ox, k])
            for tap, c, k in np.ndindex(6, 6, K):
                value = at(x, t, n, *source(oy, ox, *taps()[tap]), c)
                weights[tap, c, k] = F32(weights[tap, c, k] + F32(value * g[t, n, oy, ox, k]))
    np.testing.assert_array_equal(convolution.real_weight_gradient(x, g, GEOMETRY, block), weights)
    np.testing.assert_array_equal(convolution.bias_gradient(g, block), bias)


def test_order_of_blocks_changes_bits(rng):
    """Otherwise the tests above could not tell one order from another."""
    g = rng.standard_normal((*POSITIONS, 64)).astype(F32)
    assert np.any(convolution.bias_gradient(g, POSITIONS) != convolution.bias_gradient(g, BLOCKS[1]))


NEURONS = [
    Neuron((0.9,), (1.0,), (0.1,), "hard", "gt", "rectangular", 0.5, 1.0, False),
    Neuron((0.7,), (0.5,), (0.0,), "soft", "ge", "triangular", 0.8, 0.6, False),
    Neuron((0.7,), (0.5,), (0.0,), "none", "ge", "triangular", 0.8, 0.6, True),
    Neuron((0.3, 0.6), (0.5, 0.9), (0.2, 0.0), "hard", "ge", "triangular", 0.8, 0.6, True),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_neuron_and_its_gradient(rng, dtype, neuron):
    steps, channels = 4, 2
    current = rng.standard_normal((steps, 3, 1, 1, channels)).astype(F32)
    bias = rng.standard_normal(channels).astype(F32)
    gs = rng.standard_normal(current.shape).astype(F32)
    spikes, potentials, mask = vector.lif(current, bias, neuron, steps, dtype)
    gradients = vector.grad(gs, potentials, spikes, neuron, "all", steps, dtype)
    for n, k in np.ndindex(3, channels):
        alpha, theta, v_reset = (F32(row[k % len(row)]) for row in (neuron.alpha, neuron.theta, neuron.v_reset))
        rest, width, height = F32(0), F32(neuron.width), F32(neuron.height)
        for t in range(steps):
            u = st(F32(F32(alpha * rest) + F32(current[t, n, 0, 0, k] + bias[k])), dtype)
            s = u > theta if neuron.compare == "gt" else u >= theta
            assert (potentials[t, n, 0, 0, k], spikes[t, n, 0, 0, k]) == (u, s)
            assert mask[t, n, 0, 0, k] == (abs(F32(u - theta)) < width)
            rest = {"hard": v_reset, "soft": F32(u - theta), "none": u}[neuron.reset] if s else u
        later = F32(0)
        for t in reversed(range(steps)):
            u, s, g = potentials[t, n, 0, 0, k], spikes[t, n, 0, 0, k], gs[t, n, 0, 0, k]
            d = abs(F32(u - theta))
            slope = height if neuron.surrogate == "rectangular" else F32(height * F32(F32(1) - F32(d / width)))
            slope = slope if d < width else F32(0)
            drop = F32(alpha * F32(u - v_reset)) if neuron.reset == "hard" else F32(alpha * theta)
            attached = neuron.reset != "none" and not neuron.detach_reset
            e = F32(g - F32(drop * later)) if attached else g
            p = F32(0) if neuron.reset == "hard" and s else F32(alpha * later)
            later = st(F32(F32(slope * e) + p) if slope != 0 else p, dtype)
            assert gradients[t, n, 0, 0, k] == later


def test_static_current_is_the_same_at_every_step(rng):
    current = rng.standard_normal((2, 3, 3, 4)).astype(F32)
    over_time = np.stack([current] * 3)
    for once, repeated in zip(
        vector.lif(current, vector.NO_BIAS, NEURONS[0], 3, "f32"),
        vector.lif(over_time, vector.NO_BIAS, NEURONS[0], 3, "f32"),
        strict=True,
    ):
        np.testing.assert_array_equal(once, repeated)


def test_gradient_reaches_the_steps_that_gs_time_names(rng):
    gs = rng.standard_normal((2, 1, 1, 3)).astype(F32)
    leaky = Neuron((0.5,))
    zero = np.zeros_like(gs)
    for gs_time, steps in (("broadcast", [gs, gs, gs]), ("last", [zero, zero, gs])):
        found = vector.grad(gs, None, None, leaky, gs_time, 3, "f16")
        np.testing.assert_array_equal(found, vector.grad(np.stack(steps), None, None, leaky, "all", 3, "f16"))


def test_first_largest_element_wins_and_nan_is_largest():
    x = np.array([[1, 2, 3, 9], [np.nan, 3, 9, 1]], F32).reshape(1, 2, 4, 1)
    y, winners = vector.pool(x, "max", ConvGeometry((2, 2), (2, 2)))
    np.testing.assert_array_equal(y.ravel(), [np.nan, 9])
    np.testing.assert_array_equal(winners.ravel(), [2, 1])
    tied = np.array([[0, 1], [1, 1]], np.bool_).reshape(1, 2, 2, 1)
    assert vector.pool(tied, "max", ConvGeometry((2, 2)))[1].item() == 1


def test_unpool_adds_overlapping_windows_in_order(rng):
    geometry, shape = ConvGeometry((2, 2), (1, 1)), (1, 3, 3, 2)
    g = rng.standard_normal((1, 2, 2, 2)).astype(F32)
    winners = rng.integers(0, 4, g.shape).astype(np.uint8)
    average, routed = np.zeros(shape, F32), np.zeros(shape, F32)
    for y, x, c in np.ndindex(3, 3, 2):
        for ky, kx in product(range(2), range(2)):
            oy, ox = y - ky, x - kx
            if 0 <= oy < 2 and 0 <= ox < 2:
                average[0, y, x, c] = F32(average[0, y, x, c] + F32(g[0, oy, ox, c] / F32(4)))
                if winners[0, oy, ox, c] == ky * 2 + kx:
                    routed[0, y, x, c] = F32(routed[0, y, x, c] + g[0, oy, ox, c])
    np.testing.assert_array_equal(vector.unpool(g, None, "avg", geometry, shape), average)
    np.testing.assert_array_equal(vector.unpool(g, winners, "max", geometry, shape), routed)


def run_scalars(**words):
    values = np.zeros(8, np.uint32)
    for index, word in words.items():
        values[int(index[1:])] = word
    return values.view(np.int32)


def test_random_spikes_depend_on_sample_number_not_on_batch(rng):
    x = rng.random((4, 2, 2, 3)).astype(F32)
    whole = vector.rng(x, run_scalars(w4=5, w6=10), stream=1, steps=8)
    assert 0 < whole.mean() < 1
    np.testing.assert_array_equal(vector.rng(x[2:], run_scalars(w4=5, w6=12), stream=1, steps=8), whole[:, 2:])
    assert np.any(vector.rng(x, run_scalars(w4=6, w6=10), stream=1, steps=8) != whole)
    assert np.any(vector.rng(x, run_scalars(w4=5, w6=10), stream=2, steps=8) != whole)


def test_cross_entropy_and_its_gradient():
    logits = np.array([[1, 2, 3], [0.5, -1, 0], [7, 7, 7]], F32).reshape(3, 1, 1, 3)
    label = np.array([2, 0, 1], np.int32)
    loss, gradient = vector.loss(logits, label, run_scalars(w1=2), Loss(), 4.0)
    o = logits.reshape(3, 3)[:2].astype(np.float64)
    p = np.exp(o) / np.exp(o).sum(axis=1, keepdims=True)
    hot = np.eye(3)[label[:2]]
    np.testing.assert_allclose(loss, -np.log(p[hot == 1]).mean(), rtol=1e-6)
    np.testing.assert_allclose(gradient.reshape(3, 3)[:2], (p - hot) / 2 * 4, rtol=1e-5, atol=1e-7)
    assert not gradient[2].any(), "samples that are not valid have no gradient"
