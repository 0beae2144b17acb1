"""The reference arithmetic on numbers that can be checked by hand or by a plain loop."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from h2learn.backends.h2learn import numerics
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference import coding, neuron, pooling, synapse, training
from h2learn.backends.reference.neuron import Neuron
from h2learn.backends.reference.training import RunScalars
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.dialects.common import IoEntry
from h2learn.dialects.spike.interpreter import interpret


def column(*values):
    return np.array(values, np.float64).reshape(-1, 1, 1)


@pytest.mark.parametrize(
    ("cell", "potentials", "fired"),
    [
        (Neuron(), [0.75, 1.125, 0.5, 1.0], [0, 1, 0, 1]),
        (Neuron(compare="gt"), [0.75, 1.125, 0.5, 1.0], [0, 1, 0, 0]),
        (Neuron(reset="soft"), [0.75, 1.125, 0.5625, 1.03125], [0, 1, 0, 1]),
        (Neuron(reset="none"), [0.75, 1.125, 1.0625, 1.28125], [0, 1, 1, 1]),
        (Neuron(v_reset=(-1.0,)), [0.75, 1.125, 0.0, 0.75], [0, 1, 0, 0]),
    ],
)
def test_lif_by_hand(cell, potentials, fired):
    s, u = neuron.lif(column(0.75, 0.75, 0.5, 0.75), cell)
    assert u.ravel().tolist() == potentials
    assert s.ravel().tolist() == [bool(f) for f in fired]


@pytest.mark.parametrize(
    ("cell", "potentials", "spikes"),
    [
        (Neuron(reset="soft", max_spikes=0), [0.75, 3.375, 0.6875, -1.65625, 1.671875], [0, 3, 0, 0, 1]),
        (Neuron(reset="soft", max_spikes=2), [0.75, 3.375, 1.1875, -1.90625, 1.546875], [0, 2, 1, 0, 1]),
        (Neuron(reset="soft", max_spikes=0, v_min=-0.5), [0.75, 3.375, 0.6875, -1.65625, 2.25], [0, 3, 0, 0, 2]),
        (Neuron(reset="none", max_spikes=0), [0.75, 3.375, 2.1875, -0.90625, 2.046875], [0, 3, 2, 0, 2]),
        (Neuron(reset="soft_delayed", max_spikes=0), [0.75, 3.375, -0.8125, -2.40625, 1.296875], [0, 3, 0, 0, 1]),
        (Neuron(v_reset=(0.25,), max_spikes=0), [0.75, 3.375, 0.625, -1.6875, 1.65625], [0, 3, 0, 0, 1]),
    ],
)
def test_several_spikes_per_step_by_hand(cell, potentials, spikes):
    s, u = neuron.lif(column(0.75, 3.0, 0.5, -2.0, 2.5), cell)
    assert u.ravel().tolist() == potentials
    assert s.ravel().tolist() == spikes


def test_a_periodic_surrogate_repeats_at_multiples_of_the_threshold():
    cell = Neuron(theta=(2.0,), surrogate="triangular", width=1.0, max_spikes=0, periodic=True)
    u = np.array([-2.0, 1.0, 1.5, 2.0, 2.25, 3.0, 3.75, 4.0, 6.25])
    assert neuron.surrogate(u, cell).tolist() == [0, 0, 0.5, 1, 0.5, 0, 0.5, 1, 0.5]


def test_lif_constants_per_channel():
    x = np.full((2, 1, 2), 0.8)
    s, u = neuron.lif(x, Neuron(alpha=(0.5, 1.0), theta=(1.0, 2.0), reset="none"))
    np.testing.assert_allclose(u[1, 0], [1.2, 1.6])
    assert s[1, 0].tolist() == [True, False]


def test_surrogate_windows_are_open():
    u = np.array([0.5, 0.75, 1.0, 1.25, 1.5])
    assert neuron.surrogate(u, Neuron(height=2.0)).tolist() == [0, 2, 2, 2, 0]
    assert neuron.surrogate(u, Neuron(surrogate="triangular", height=2.0)).tolist() == [0, 1, 2, 1, 0]


def test_li_and_its_adjoint_are_transposed():
    rng = np.random.default_rng(0)
    x, g = rng.normal(size=(2, 5, 2, 3))
    for kind in neuron.SYNAPSES:
        plain = Neuron(alpha=(0.2, 0.5, 0.9), gain=(2.0, 1.0, -0.5), synapse=kind, beta=(0.7, 0.1, 0.4))
        assert (neuron.li(x, plain) * g).sum() == pytest.approx((x * neuron.li_gradient(g, plain)).sum())


def test_a_neuron_at_rest_stays_there():
    rest = Neuron(alpha=(0.2, 0.5, 1.0), v_leak=(0.3, -0.2, 7.0), initial=(0.3, -0.2, 0.1), theta=(9.0,))
    u = neuron.lif(np.zeros((4, 2, 3)), rest)[1]
    np.testing.assert_allclose(u, np.broadcast_to(rest.initial, u.shape))


@pytest.mark.parametrize(("stride", "padding"), [((1, 1), (0, 0)), ((2, 3), (1, 2)), ((3, 1), (0, 1))])
def test_conv_by_loops_and_its_adjoints(stride, padding):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(2, 6, 7, 3)), rng.normal(size=(3, 2, 3, 4))
    y = synapse.conv(x, w, stride, padding)
    expected = np.zeros_like(y)
    for n, oy, ox, ky, kx in itertools.product(*map(range, (2, *y.shape[1:3], 3, 2))):
        iy, ix = oy * stride[0] + ky - padding[0], ox * stride[1] + kx - padding[1]
        if 0 <= iy < 6 and 0 <= ix < 7:
            expected[n, oy, ox] += x[n, iy, ix] @ w[ky, kx]
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    g = rng.normal(size=y.shape)
    total = (y * g).sum()
    assert (x * synapse.conv_input_gradient(g, w, stride, padding, x.shape[1:])).sum() == pytest.approx(total)
    assert (w * synapse.conv_weight_gradient(x, g, stride, padding, (3, 2))).sum() == pytest.approx(total)


def test_max_pool_winners_are_the_first_largest():
    x = np.array([[1.0, 2.0, 2.0], [2.0, 0.0, np.nan], [0.0, 0.0, 5.0]]).reshape(1, 3, 3, 1)
    assert pooling.winners(x, pooling.Window((2, 2), (1, 1)))[0, :, :, 0].tolist() == [[1, 3], [0, 1]]
    assert np.isnan(pooling.maximum(x, pooling.Window((2, 2), (1, 1)))[0, 1, 1, 0])
    spikes = np.zeros((1, 2, 2, 1), np.bool_)
    g = np.full((1, 1, 1, 1), 3.0)
    assert pooling.maximum_gradient(g, spikes, pooling.Window((2, 2), (2, 2))).ravel().tolist() == [3, 0, 0, 0]
    spikes[0, 1] = True
    assert pooling.maximum(spikes, pooling.Window((2, 2), (2, 2))).dtype == np.bool_
    assert pooling.maximum_gradient(g, spikes, pooling.Window((2, 2), (2, 2))).ravel().tolist() == [0, 0, 3, 0]


def test_padding_is_zero_in_sums_and_not_there_in_a_maximum():
    x = -np.arange(1.0, 5.0).reshape(1, 2, 2, 1)
    window = pooling.Window((2, 2), (2, 2), (1, 1))
    assert pooling.maximum(x, window).ravel().tolist() == [-1, -2, -3, -4]
    assert pooling.winners(x, window).ravel().tolist() == [3, 2, 1, 0]
    assert pooling.total(x, window).ravel().tolist() == [-1, -2, -3, -4]
    assert pooling.average(x, window).ravel().tolist() == [-0.25, -0.5, -0.75, -1]
    assert (
        pooling.maximum_gradient(x, x, window).tolist()
        == x.tolist()
        == pooling.total_gradient(x, x.shape, window).tolist()
    )


def test_overlapping_windows_add_their_gradients():
    x = np.arange(9.0).reshape(1, 3, 3, 1)
    g = np.array([[1.0, 2.0], [4.0, 8.0]]).reshape(1, 2, 2, 1)
    average = pooling.average_gradient(g, x.shape, pooling.Window((2, 2), (1, 1)))[0, :, :, 0] * 4
    assert average.tolist() == [[1, 3, 2], [5, 15, 10], [4, 12, 8]]
    assert pooling.average(x, pooling.Window((2, 2), (1, 1))).ravel().tolist() == [2, 3, 5, 6]


def test_bernoulli_is_keyed_by_sample_neuron_and_step():
    x = np.random.default_rng(0).random((3, 2, 2, 2)).astype(np.float32)
    scalars = RunScalars(seed=(5 << 32) | 7, first_sample=2**32 - 1)
    s = coding.bernoulli(x, 4, 9, scalars)
    for t, n, y, z, c in itertools.product(range(4), range(3), range(2), range(2), range(2)):
        sample = (2**32 - 1 + n) % 2**32
        draw = numerics.uniform(scalars.seed, 9, sample, (y * 2 + z) * 2 + c, t)
        assert s[t, n, y, z, c] == (draw < x[n, y, z, c])
    assert coding.bernoulli(np.ones((1, 8)), 3, 0, scalars).all()
    assert not coding.bernoulli(np.zeros((1, 8)), 3, 0, scalars).any()


def test_losses_by_hand():
    logits, label = np.log([[1.0, 3.0], [2.0, 2.0]]), np.array([1, 0], np.int32)
    assert training.loss(logits, label, 2, training.Loss()) == pytest.approx((np.log(4 / 3) + np.log(2)) / 2)
    assert training.loss(logits, label, 1, training.Loss()) == pytest.approx(np.log(4 / 3))
    rates = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert training.loss(rates, label, 2, training.Loss("mse")) == pytest.approx(0.125)
    gradient = training.loss_gradient(rates, label, 1, training.Loss("mse"), 8.0)
    assert gradient.tolist() == [[4.0, -4.0], [0.0, 0.0]]


def test_run_scalars_lie_where_the_contract_says():
    words = RunScalars(lr=0.5, valid=3, step=7, seed=2**40 + 1, first_sample=2**33 + 2).to_array()
    assert words.view(np.float32)[0] == 0.5
    assert words[1:3].tolist() == [3, 7]
    assert words.view(np.uint64)[2:].tolist() == [2**40 + 1, 2**33 + 2]
    assert RunScalars.from_array(words).seed == 2**40 + 1


def test_io_entries_go_to_the_device_and_back():
    source = np.arange(2 * 12).reshape(2, 12)
    entry = IoEntry("w", "parameter", (2, 3, 2, 2), (2, 3, 1, 0))
    device = entry.to_device(source).reshape(12, 2)
    assert device[:, 1].tolist() == [12, 16, 20, 13, 17, 21, 14, 18, 22, 15, 19, 23]
    np.testing.assert_array_equal(entry.to_source(device, (2, 12)), source)


def test_flattened_weights_keep_the_order_of_the_source():
    model = parse_snn("network n\ninput x: 2 x 3 x 2\ntime steps: 1\nencode direct\nflatten\nlinear f: 4 features")
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(1, 2, 3, 2)), rng.normal(size=(4, 12)).astype(np.float32)
    weight, bias = IoEntry("w", "parameter", (4, 2, 3, 2), (2, 3, 1, 0)), np.zeros(4)
    (y,) = interpret(model.module, [x.transpose(0, 2, 3, 1), weight.to_device(w), bias], np.float64)
    np.testing.assert_allclose(y[0], x.reshape(1, 12) @ w.T, rtol=1e-12)


def test_wrong_arguments_are_refused():
    model = parse_snn("network n\ninput x: 3\ntime steps: 1\nencode direct\nlinear f: 4 features")
    with pytest.raises(H2LearnError, match="3 arguments, found 1"):
        interpret(model.module, [np.zeros((1, 3))])
    with pytest.raises(H2LearnError, match=r"\[1, 3\] for x, found \[1, 4\]"):
        interpret(model.module, [np.zeros((1, 4)), np.zeros((3, 4)), np.zeros(4)])
