"""What a .snn file becomes: names, shapes, defaults, the training recipe, and the model's own checks."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from xdsl.dialects import builtin

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron
from h2learn.backends.reference.training import RunScalars
from h2learn.compiler.autodiff import SGD, FastSigmoid, Rectangular, Sigmoid, Train, Triangular, differentiate
from h2learn.compiler.frontends.dsl import load_snn, parse_snn
from h2learn.compiler.model import TensorSpec
from h2learn.dialects.common import get_io, source_of
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import integrator_of, neuron_of
from h2learn.dialects.spike.interpreter import interpret, main_block

ROOT = Path(__file__).parents[2]

EVENTS = """
network events   # a comment
input dvs: 2 x 8 x 6 spikes over time
time steps: 5

neuron: lif(decay 0.9, threshold 0.5, reset soft, spike at u > threshold,   # continued
            surrogate triangular(half_width 2, height 0.5))
conv c1: 4 channels, kernel 3x2, stride 2 × 1, padding 1 x 0, no bias
lif
pool p: avg 2 x 2, stride 1
flatten
lif
"""


def ops(model, kind):
    return [op for op in main_block(model.module).ops if isinstance(op, kind)]


def test_how_currents_act_and_surrogates_without_a_window():
    text = (
        EVENTS.replace("lif\nflatten", "flatten").replace("\nlif\npool", "\nlif: DRIVE\npool")
        + "linear f: 3 features\nli: LI\n"
    )
    drive = (
        "gain 2, leak to -0.5, initial 0.25, delayed synapse decay 0.75, reset soft delayed, surrogate atan(alpha 4)"
    )
    text = text.replace("DRIVE", drive).replace("LI\n", "decay 0.5, synapse decay 0.25, gain 0.5\n")
    model = parse_snn(text)
    first, last = ops(model, spike.LifOp)[0], ops(model, spike.LiOp)[0]
    neuron = neuron_of(first)
    assert (neuron.gain, neuron.v_leak, neuron.initial, neuron.beta) == ((2.0,), (-0.5,), (0.25,), (0.75,))
    assert (neuron.synapse, neuron.reset, neuron.surrogate) == ("delayed", "soft_delayed", "atan")
    assert (neuron.width, neuron.height) == pytest.approx((1 / (2 * np.pi), 2.0))
    found = integrator_of(last)
    assert (found.synapse, found.beta, found.gain, found.alpha) == ("immediate", (0.25,), (0.5,), (0.5,))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.snn")), ids=lambda p: p.name)
def test_examples_load_and_train_one_step(path):
    model = load_snn(path).with_batch(2)
    step = differentiate(model.module, model.train)
    io = get_io(step)
    rng = np.random.default_rng(0)
    given = []
    for entry, argument in zip(io, main_block(step).args, strict=False):
        shape = argument.type.get_shape()
        values = {
            "input": lambda s=shape: rng.random(s),
            "label": lambda: np.array([1, 2], np.int32),
            "parameter": lambda e=entry: e.to_device(model.parameters[e.name]),
            "state": lambda s=shape: np.zeros(s),
            "scalars": lambda: RunScalars(lr=0.1, valid=2).to_array(),
        }
        given.append(values[entry.role]())
    loss, *rest = interpret(step, given)
    assert np.isfinite(loss)
    assert all(np.isfinite(r).all() for r in rest)


@pytest.mark.parametrize(
    "line", re.findall(r"^    network(.*\n(?:    .*\n|\n)+)", (ROOT / "docs/dsl.md").read_text(), re.M)
)
def test_whole_files_in_the_manual_load(line):
    parse_snn("\n".join(row[4:] for row in ("    network" + line).split("\n")))


def test_names_shapes_and_layouts():
    model = parse_snn(EVENTS).with_batch(3)
    assert model.name == "events"
    assert model.inputs == {"dvs": TensorSpec((5, 3, 2, 8, 6), "bool")}
    assert model.outputs == {"output": TensorSpec((5, 3, 48), "bool")}
    assert {n: v.shape for n, v in model.parameters.items()} == {"c1.weight": (4, 2, 3, 2)}
    assert model.train is None
    (conv,) = ops(model, spike.ConvOp)
    assert conv.stride.get_values() == (2, 1)
    assert conv.padding.get_values() == (1, 0)
    assert source_of(conv) == "<text>:8:1"
    expected = Neuron((0.9,), (0.5,), (0.0,), "soft", "gt", "triangular", 2.0, 0.5)
    assert [neuron_of(op) for op in ops(model, spike.LifOp)] == [expected] * 2


def test_flattened_outputs_come_back_in_the_source_order():
    model = parse_snn("network n\ninput x: 2 x 2 x 3 over time\ntime steps: 2\npool: max 1 x 1\nflatten").with_batch(2)
    x = np.arange(48.0).reshape(2, 2, 2, 2, 3)
    given, result = get_io(model.module)
    (y,) = interpret(model.module, [given.to_device(x)])
    np.testing.assert_array_equal(result.to_source(y, model.outputs["output"].shape), x.reshape(2, 2, 12))


def test_branches_are_named_and_added():
    lines = [
        "network branches",
        "input x: 2 x 4 x 4",
        "time steps: 3",
        "encode direct",
        "conv a: 2 channels, kernel 1 x 1",
    ]
    lines += ["lif add", "conv b: 2 channels, kernel 3 x 3, padding 1", "conv c from a: 2 channels, kernel 1 x 1"]
    lines += ["add total: b, c, x", "lif n", "pool p from add: max 2 x 2", "flatten f from n", "linear g: 3 features"]
    model = parse_snn("\n".join(lines))
    first, second = ops(model, spike.AddOp)
    a, b, c, _ = (op.result for op in [*ops(model, spike.ConvOp), *ops(model, spike.PoolOp)])
    assert ops(model, spike.ConvOp)[2].x is a
    assert (first.lhs, first.rhs, second.lhs) == (b, c, first.result)
    assert isinstance(second.rhs.owner, spike.EncodeOp)
    assert ops(model, spike.PoolOp)[0].x is ops(model, spike.LifOp)[0].s
    assert ops(model, spike.FlattenOp)[0].x is ops(model, spike.LifOp)[1].s


def test_rows_have_windows_of_one_size():
    lines = [
        "network rows",
        "input x: 3 x 20 over time",
        "time steps: 4",
        "conv c: 4 channels, kernel 5, stride 2, padding 2",
    ]
    lines += ["lif", "pool: avg 2", "conv d: 2 channels, kernel 3, dilation 2", "lif"]
    model = parse_snn("\n".join(lines)).with_batch(2)
    assert model.inputs["x"].shape == (4, 2, 3, 20) and model.outputs["output"].shape == (4, 2, 2, 1)
    assert model.parameters["c.weight"].shape == (4, 3, 5) and model.parameters["d.weight"].shape == (2, 4, 3)
    x = np.random.default_rng(0).normal(0, 2, (4, 2, 3, 20)).astype(np.float32)
    program = h2learn.compile(model, batch=2)
    expected = np.zeros((4, 2, 4, 10))
    for at, k in np.ndindex(10, 5):
        if 0 <= 2 * at + k - 2 < 20:
            expected[..., at] += x[..., 2 * at + k - 2] @ model.parameters["c.weight"][..., k].T
    first = (
        parse_snn("\n".join([*lines[:4], "li: decay 0"]))
        .with_batch(2)
        .with_parameters({n: v for n, v in model.parameters.items() if n.startswith("c.")})
    )
    found = h2learn.compile(first, batch=2).run({"x": x}).outputs["output"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert program.run({"x": x}).outputs["output"].shape == (4, 2, 2, 1)


def test_several_spikes_per_step():
    text = "network n\ninput x: 3 over time\ntime steps: 2\nlinear a: 4 features\n"
    text += "lif n1: reset soft, spikes per step up to 3, potential at least -1, surrogate periodic exponential\n"
    text += "linear b: 4 features\nlif n2: spikes per step any number\nreadout count"
    model = parse_snn(text)
    first, second = ops(model, spike.LifOp)
    neuron = neuron_of(first)
    assert (neuron.max_spikes, neuron.v_min, neuron.surrogate, neuron.periodic) == (3, -1.0, "exponential", True)
    assert [op.s.type.element_type for op in (first, second)] == [builtin.f32] * 2
    assert (neuron_of(second).max_spikes, neuron_of(second).reset, neuron_of(second).detach_reset) == (0, "hard", True)


def test_layer_options_override_the_default_neuron():
    text = "network n\ninput x: 3 over time\ntime steps: 1\nneuron: lif(decay 0.9, reset hard to 0.25)\n"
    text += "linear a: 2 features\nlif: threshold 2, detach reset\nlinear b: 2 features\nlif: reset none, decay 1"
    first, second = (neuron_of(op) for op in ops(parse_snn(text), spike.LifOp))
    assert first == Neuron((0.9,), (2.0,), (0.25,), "hard", detach_reset=True)
    assert second == Neuron((1.0,), (1.0,), (0.0,), "none")


def test_training_recipe():
    base = (
        "network n\ninput x: 3\ntime steps: 1\nencode direct\nlinear a: 2 features\nlif\nreadout logits: rate\ntrain: "
    )
    model = parse_snn(
        base + "loss mse_rate, loss scale 4, optimizer sgd(momentum 0.5, lr 1e-2), method bptt, detach reset"
    )
    expected = Train(loss="mse_rate", loss_scale=4.0, optimizer=SGD(0.01, 0.5), detach_reset=True)
    assert model.train == expected
    assert list(model.outputs) == ["logits"]
    assert parse_snn(base + "surrogate rectangular(height 2)").train == Train(surrogate=Rectangular(0.5, 2.0))
    assert parse_snn(base + "surrogate triangular").train == Train(surrogate=Triangular())
    assert parse_snn(base + "surrogate sigmoid(slope 8)").train == Train(surrogate=Sigmoid(0.125, 2.0))
    assert parse_snn(base + "surrogate fast_sigmoid").train == Train(surrogate=FastSigmoid.with_slope(25.0))


def test_keywords_may_be_names():
    text = "network conv\ninput input: 3 over time\ntime steps: 1\nlinear linear: 2 features\nlif lif\nreadout rate"
    assert list(parse_snn(text).parameters) == ["linear.weight", "linear.bias"]


def test_line_endings_and_byte_order_mark(tmp_path):
    path = tmp_path / "dos.snn"
    path.write_bytes(b"\xef\xbb\xbf" + EVENTS.strip().replace("\n", "\r\n").encode())
    assert str(load_snn(path).module) == str(parse_snn(EVENTS).module)


def test_initial_parameters():
    text = "network n\ninput x: 400 over time\ntime steps: 1\nlinear a: 300 features\nlinear b: 300 features\n"
    model = parse_snn(text + "init: normal gain 1.5 seed 7")
    weights = model.parameters["a.weight"]
    assert weights.dtype == np.float32
    assert weights.std() == pytest.approx(1.5 / 20, rel=0.02)
    assert not model.parameters["a.bias"].any()
    assert not np.array_equal(weights[:, :300], model.parameters["b.weight"])
    same, other = parse_snn(text + "init: normal gain 1.5 seed 7"), parse_snn(text + "init: normal gain 1.5 seed 8")
    np.testing.assert_array_equal(weights, same.parameters["a.weight"])
    assert not np.array_equal(weights, other.parameters["a.weight"])


def test_op_count_does_not_depend_on_time_or_batch():
    long = parse_snn(EVENTS.replace("time steps: 5", "time steps: 64")).with_batch(64)
    assert len(list(long.module.walk())) == len(list(parse_snn(EVENTS).module.walk()))


def test_batch_is_checked_and_only_the_network_changes():
    model = parse_snn(EVENTS)
    assert model.with_batch(7).parameters is model.parameters
    for wrong in (0, -1, True, 1.0):
        with pytest.raises(H2LearnError, match="batch of at least 1"):
            model.with_batch(wrong)


def test_parameters_are_checked():
    model = parse_snn(EVENTS)
    weight = np.ones((4, 2, 3, 2))
    changed = model.with_parameters({"c1.weight": weight})
    np.testing.assert_array_equal(changed.parameters["c1.weight"], weight)
    assert not np.array_equal(model.parameters["c1.weight"], weight)
    bad = weight.copy()
    bad[1, 0, 2, 1] = np.nan
    for parameters, message in (
        ({"c1.weight": weight, "c1.weigth": weight}, "found c1.weigth"),
        ({}, "none named c1.weight"),
        ({"c1.weight": weight[:3]}, "shape [4, 2, 3, 2] for parameter c1.weight, found [3, 2, 3, 2]"),
        ({"c1.weight": bad}, "parameter c1.weight, found nan at [1, 0, 2, 1]"),
        ({"c1.weight": weight * 1e39}, "finite values in parameter c1.weight"),
        ({"c1.weight": weight.astype(str)}, "real numbers for parameter c1.weight"),
    ):
        with pytest.raises(H2LearnError, match=re.escape(message)):
            model.with_parameters(parameters)


def test_the_way_to_build_a_model_survives_pickling():
    build = pickle.loads(pickle.dumps(parse_snn(EVENTS).build))
    assert str(build(2).module) == str(parse_snn(EVENTS).with_batch(2).module)
