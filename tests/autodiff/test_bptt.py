"""The training graph: its signature, what it leaves out, and what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
from xdsl.dialects import builtin, func
from xdsl.ir import Block, Region

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.reference.neuron import Neuron
from h2learn.backends.reference.training import RunScalars
from h2learn.compiler.autodiff import BPTT, RULES, SGD, Rectangular, Train, Triangular, differentiate
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.dialects.common import IoEntry, file_location, get_io, precision, set_io, source_of
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import neuron_of, real
from h2learn.dialects.spike.interpreter import interpret, main_block

HERE = Location("net.snn", 3, 1)

SMOOTH = """
network smooth
input x: 2 x 5 x 4
time steps: 3
encode direct
conv c1: 3 channels, kernel 2 x 3, padding 1
li: decay 0.7
pool: avg 2 x 2
flatten
linear f1: 4 features
li: decay 0.4
readout membrane {kind}
init: normal gain 1.0 seed 3
"""


def count(module, kind):
    return sum(isinstance(op, kind) for op in main_block(module).ops)


def operands(module, values):
    return [
        e.to_device(values[e.name]) if e.name in values else np.zeros(a.type.get_shape())
        for e, a in zip(get_io(module), main_block(module).args, strict=False)
    ]


@pytest.mark.parametrize("kind", ["mean", "last"])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse_rate"])
def test_gradients_of_smooth_networks_are_finite_differences(kind, loss):
    model = parse_snn(SMOOTH.format(kind=kind)).with_batch(2)
    rng = np.random.default_rng(0)
    values = {name: value.astype(np.float64) for name, value in model.parameters.items()}
    values |= {"x": rng.normal(size=(2, 2, 5, 4)), "label": np.array([1, 3], np.int32)}
    values["scalars"] = RunScalars(valid=2).to_array()
    step = differentiate(model.module, Train(loss=loss))
    results = interpret(step, operands(step, values), np.float64)
    gradients = [(e, r) for e, r in zip(get_io(step)[-len(results) :], results, strict=True) if e.role == "gradient"]
    assert len(gradients) == 4
    for entry, gradient in gradients:
        source = values[entry.name]
        direction = rng.normal(size=source.shape)
        change = 1e-6
        ends = []
        for sign in (1, -1):
            moved = values | {entry.name: source + sign * change * direction}
            ends.append(float(interpret(step, operands(step, moved), np.float64)[0]))
        numeric = (ends[0] - ends[1]) / (2 * change)
        assert numeric == pytest.approx((entry.to_source(gradient, source.shape) * direction).sum(), rel=1e-6)
        assert abs(numeric) > 1e-4


def small(batch=2, encode="direct", bias=True):
    builder = NetworkBuilder(batch)
    x = builder.input("x", (3,), HERE)
    x = builder.encode(x, encode, 2, HERE)
    x = builder.linear(x, "f1", 4, HERE, bias=bias)
    x = builder.lif(x, Neuron(), HERE)
    builder.output("rate", builder.readout(x, "rate", HERE))
    return builder.finish("small", HERE).module


def test_signature_of_the_training_graph():
    step = differentiate(small(), Train(optimizer=SGD(0.1, 0.9)))
    roles = [(e.role, e.name) for e in get_io(step)]
    assert roles == [
        ("input", "x"),
        ("label", "label"),
        ("parameter", "f1.weight"),
        ("parameter", "f1.bias"),
        ("state", "momentum.f1.weight"),
        ("state", "momentum.f1.bias"),
        ("scalars", "scalars"),
        ("loss", "loss"),
        ("output", "rate"),
        ("gradient", "f1.weight"),
        ("gradient", "f1.bias"),
        ("parameter", "f1.weight"),
        ("parameter", "f1.bias"),
        ("state", "momentum.f1.weight"),
        ("state", "momentum.f1.bias"),
    ]
    block = main_block(step)
    assert len(block.args) == 7
    assert len(block.last_op.operands) == 8
    assert all(source_of(op) == "net.snn:3:1" for op in block.ops)


def test_random_encoding_keeps_its_scalars_last_and_gets_no_gradient():
    step = differentiate(small(encode="bernoulli"), Train())
    roles = [e.role for e in get_io(step)][: len(main_block(step).args)]
    assert roles == ["input", "label", "parameter", "parameter", "scalars"]


def test_the_model_is_not_changed():
    module = small()
    before = str(module)
    differentiate(module, Train(surrogate=Triangular(0.7, 2.0)))
    assert str(module) == before


def test_gradients_of_the_input_are_not_computed():
    assert count(differentiate(small(), Train()), sgrad.LinearInputOp) == 0
    assert count(differentiate(small(), Train()), sgrad.TimeSumOp) == 0


def test_surrogate_and_detached_reset_reach_both_directions():
    train = Train(surrogate=Triangular(0.7, 2.0), detach_reset=True, method=BPTT())
    step = differentiate(small(), train)
    neurons = [neuron_of(op) for op in main_block(step).ops if isinstance(op, spike.LifOp | sgrad.LifOp)]
    assert len(neurons) == 2
    assert set(neurons) == {Neuron(surrogate="triangular", width=0.7, height=2.0, detach_reset=True)}


def test_spikes_over_time_get_a_rate_for_the_loss():
    builder = NetworkBuilder(2)
    x = builder.input("x", (3,), HERE, time_steps=5)
    x = builder.lif(builder.linear(x, "f1", 4, HERE), Neuron(), HERE)
    builder.output("spikes", x)
    step = differentiate(builder.finish("n", HERE).module, Train())
    assert count(step, spike.ReadoutOp) == 1
    assert main_block(step).last_op.operands[1].type.get_shape() == (5, 2, 4)


def test_absent_samples_count_neither_in_loss_nor_gradient():
    rng = np.random.default_rng(0)
    values = {"f1.weight": rng.normal(0, 1, (4, 3)), "f1.bias": np.full(4, 0.4)}
    x, label = rng.normal(1, 1, (4, 3)), np.array([0, 3, 99, -1], np.int32)
    train = Train(surrogate=Rectangular(2.0, 1.0))
    full, part = differentiate(small(2), train), differentiate(small(4), train)
    scalars = RunScalars(valid=2).to_array()
    of_two = interpret(full, operands(full, values | {"x": x[:2], "label": label[:2], "scalars": scalars}), np.float64)
    of_four = interpret(part, operands(part, values | {"x": x, "label": label, "scalars": scalars}), np.float64)
    assert of_two[0] == pytest.approx(of_four[0])
    assert np.abs(of_two[2]).max() > 0
    np.testing.assert_allclose(of_two[2], of_four[2], rtol=1e-12)


def test_labels_out_of_range_are_refused():
    step = differentiate(small(), Train())
    values = {"label": np.array([0, 4], np.int32), "scalars": RunScalars(valid=2).to_array()}
    with pytest.raises(H2LearnError, match="labels from 0 to 3"):
        interpret(step, operands(step, values))


def shared_weight_module():
    """Return a network that applies the same square weight twice."""
    where = file_location("net.snn", 7, 2)
    block = Block(arg_types=[real((2, 3)), real((3, 3))])
    first = spike.LinearOp(block.args[0], block.args[1], location=where)
    second = spike.LinearOp(first.result, block.args[1], location=where)
    block.add_ops([first, second, func.ReturnOp(second.result)])
    types = [a.type for a in block.args], [second.result.type]
    module = builtin.ModuleOp([func.FuncOp("main", types, Region(block))])
    set_io(module, [IoEntry("x", "input"), IoEntry("w", "parameter"), IoEntry("y", "output")])
    return module


def test_gradients_of_a_shared_weight_add_up():
    step = differentiate(shared_weight_module(), Train(loss="mse_rate"))
    assert count(step, sgrad.AddOp) == 1
    rng = np.random.default_rng(1)
    x, w, label = rng.normal(size=(2, 3)), rng.normal(size=(3, 3)), np.array([0, 2], np.int32)
    gradient = interpret(step, [x, label, w, RunScalars(valid=2).to_array()], np.float64)[2]
    slope = 2 * (x @ w @ w - np.eye(3)[label]) / 6
    np.testing.assert_allclose(gradient, x.T @ slope @ w.T + (x @ w).T @ slope, rtol=1e-12)


def test_an_op_without_rule_is_named_with_its_place(monkeypatch):
    monkeypatch.delitem(RULES, spike.LinearOp)
    with pytest.raises(H2LearnError, match=re.escape("found spike.linear")) as caught:
        differentiate(small(), Train())
    assert caught.value.location == "net.snn:3:1"


def test_what_cannot_be_trained_is_refused():
    builder = NetworkBuilder(1)
    x = builder.encode(builder.input("x", (3,), HERE), "direct", 2, HERE)
    builder.output("y", builder.readout(x, "membrane_mean", HERE))
    with pytest.raises(H2LearnError, match="model with parameters"):
        differentiate(builder.finish("n", HERE).module, Train())
    builder = NetworkBuilder(1)
    x = builder.conv(builder.input("x", (1, 3, 3), HERE, time_steps=2), "c1", 4, HERE, kernel=(2, 2))
    builder.output("y", builder.li(x, 0.5, HERE))
    with pytest.raises(H2LearnError, match="logits"):
        differentiate(builder.finish("n", HERE).module, Train())
    text = "network n\ninput x: 3 over time\ntime steps: 2\nlinear gate: 3 features\nlif s\nkeep: x, s\n"
    model = parse_snn(text + "linear out: 2 features\nli: decay 1\nreadout membrane last\n", "net.snn")
    with pytest.raises(H2LearnError, match=re.escape("found gate.weight that gets none")) as caught:
        differentiate(model.module, Train())
    assert str(caught.value.location) == "net.snn:4:1"
    with pytest.raises(H2LearnError, match="model without training"):
        differentiate(differentiate(small(), Train()), Train())


def test_fp16_scales_the_loss_by_default():
    module = small()
    module.attributes["h2learn.precision"] = builtin.StringAttr("fp16")
    assert precision(module) == "f16"
    step = differentiate(module, Train())
    losses = [op.scale.value.data for op in main_block(step).ops if isinstance(op, sgrad.LossOp)]
    factors = {op.grad_scale.value.data for op in main_block(step).ops if isinstance(op, spike.SgdOp)}
    assert losses == [1024.0]
    assert factors == {1 / 1024}


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Train(loss="hinge"),
        lambda: Train(method="rtrl"),
        lambda: Train(loss_scale=0.0),
        lambda: SGD(lr=-1.0),
        lambda: SGD(lr=float("nan")),
        lambda: SGD(momentum=1.0),
        lambda: Rectangular(half_width=0.0),
        lambda: Triangular(height=float("inf")),
    ],
)
def test_impossible_recipes_are_refused(wrong):
    with pytest.raises(H2LearnError, match="expected"):
        wrong()
