"""From the training graph to ``lut``: random networks give the same numbers, and what has no form is refused."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.dialects.builtin import FloatAttr, StringAttr, TensorType, f64, i1, i32
from xdsl.parser import Parser

from h2learn.backends.h2learn.errors import H2LearnError, Location
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff import SGD, Train, differentiate
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.passes.hoist_static_current import HoistStaticCurrentPass
from h2learn.compiler.passes.spike_to_lut import SpikeToLutPass
from h2learn.compiler.universe import new_context
from h2learn.dialects import lut
from h2learn.dialects.common import get_io, source_of
from h2learn.dialects.lut.interpreter import interpret as interpret_lut
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.interpreter import interpret as interpret_spike
from h2learn.dialects.spike.interpreter import main_block

TILED = "rows=2,columns=2,samples=1,steps=1,c=8,k=8"

HERE = Location("net.snn", 1, 1)


def random_neuron(rng, *, channels=1):
    rows = 1 if rng.random() < 0.5 else channels
    return Neuron(
        tuple(float(v) for v in rng.choice([0.5, 1.0], rows)),
        tuple(float(v) for v in rng.choice([0.75, 1.0], rows)),
        tuple(float(v) for v in rng.choice([0.0, 0.25], rows)),
        str(rng.choice(["hard", "soft", "none"])),
        str(rng.choice(["gt", "ge"])),
        str(rng.choice(["rectangular", "triangular"])),
        float(rng.choice([0.5, 1.0])),
        float(rng.choice([0.5, 1.0])),
        bool(rng.integers(2)),
    )


def random_network(rng):
    """Return a ``spike`` module: an encoding, one or two convolutions with or without pooling, linear, a readout."""
    batch, steps = int(rng.choice([1, 2, 4])), int(rng.choice([1, 2, 4]))
    channels, height, width = int(rng.choice([1, 3, 5])), int(rng.integers(4, 8)), int(rng.integers(4, 8))
    builder = NetworkBuilder(batch)
    encoding = str(rng.choice(["direct", "bernoulli", "none", "binary"]))
    timed = None if encoding in ("direct", "bernoulli") else steps
    x = builder.input("input", (channels, height, width), HERE, time_steps=timed, binary=encoding == "binary")
    if timed is None:
        x = builder.encode(x, encoding, steps, HERE)
    for layer in range(int(rng.integers(1, 3))):
        k = int(rng.choice([2, 4, 6]))
        kernel = (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        stride = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
        padding = (int(rng.integers(0, 2)), int(rng.integers(0, 2)))
        if x.shape[-3] + 2 * padding[0] < kernel[0] + 1 or x.shape[-2] + 2 * padding[1] < kernel[1] + 1:
            break
        bias = bool(rng.integers(2))
        x = builder.conv(x, f"conv{layer}", k, HERE, kernel=kernel, stride=stride, padding=padding, bias=bias)
        x = _random_pool(builder, x, rng, 0.3)
        x = builder.lif(x, random_neuron(rng, channels=k), HERE)
        x = _random_pool(builder, x, rng, 0.3)
    x = builder.flatten(x, HERE)
    if rng.random() < 0.5:
        x = builder.linear(x, "hidden", 5, HERE, bias=bool(rng.integers(2)))
        x = builder.lif(x, random_neuron(rng, channels=5), HERE)
    x = builder.linear(x, "last", 4, HERE, bias=bool(rng.integers(2)))
    kind = str(rng.choice(["rate", "membrane_mean", "membrane_last"]))
    x = builder.lif(x, random_neuron(rng, channels=4), HERE) if kind == "rate" else builder.li(x, 0.5, HERE)
    builder.output("logits", builder.readout(x, kind, HERE))
    return builder.finish("random", HERE).module


def _random_pool(builder, x, rng, probability):
    if rng.random() >= probability or min(x.shape[-3:-1]) < 3:
        return x
    stride = (int(rng.integers(1, 3)), int(rng.integers(1, 3)))
    kind, padding = str(rng.choice(["avg", "max", "sum"])), (int(rng.integers(0, 2)), int(rng.integers(0, 2)))
    return builder.pool(x, kind, (2, 2), stride, HERE, padding=padding)


def hoisted(module):
    result = module.clone()
    HoistStaticCurrentPass().apply(new_context(), result)
    result.verify()
    return result


def trained(module, *, loss="mse_rate", momentum=0.0, precision="fp32"):
    copy = module.clone()
    copy.attributes["h2learn.precision"] = StringAttr(precision)
    return differentiate(copy, Train(loss=loss, optimizer=SGD(momentum=momentum)))


def lowered(module, **options):
    result = module.clone()
    SpikeToLutPass(**options).apply(new_context(), result)
    result.verify()
    return result


def scalars(valid, *, lr=0.5, seed=7, first=3):
    words = np.zeros(8, dtype=np.int32)
    words[0] = np.float32(lr).view(np.int32)
    words[1], words[4], words[6] = valid, seed, first
    return words


def dyadic_arguments(module, rng, *, valid=4):
    """Return arguments of a ``spike`` module that are small multiples of powers of two."""
    block, arguments = main_block(module), []
    labels = [a for a, e in zip(block.args, get_io(module), strict=False) if e.role == "label"]
    batch = labels[0].type.get_shape()[0] if labels else valid
    for argument, entry in zip(block.args, get_io(module), strict=False):
        assert isinstance(argument.type, TensorType)
        shape = argument.type.get_shape()
        if entry.role == "scalars":
            arguments.append(scalars(min(valid, batch)))
        elif argument.type.element_type == i1:
            arguments.append(rng.random(shape) < 0.3)
        elif argument.type.element_type == i32:
            arguments.append(rng.integers(0, 4, shape).astype(np.int32))
        elif entry.role == "input":
            arguments.append((rng.integers(0, 5, shape) * (rng.random(shape) < 0.7) / 4).astype(np.float32))
        else:
            arguments.append((rng.integers(-4, 7, shape) / 8).astype(np.float32))
    return arguments


def results(module, arguments, interpret, **options):
    entries = get_io(module)[len(arguments) :]
    values = interpret(module, arguments, **options)
    return {(e.role, e.name): v.ravel() for e, v in zip(entries, values, strict=True)}


def compare(module, options, arguments):
    """Compare ``lut`` with the training graph; return whether all its numbers are exact (then they must be equal)."""
    expected = results(module, arguments, interpret_spike)
    in_double = results(module, arguments, interpret_spike, dtype=np.float64)
    found = results(lowered(module, **options), arguments, interpret_lut)
    exact = all(np.array_equal(expected[key], in_double[key]) for key in expected)
    for key, value in in_double.items():
        tolerance = 0.0 if exact else 1e-5 * max(np.abs(value).max(), 1e-6)
        np.testing.assert_allclose(found[key], value, rtol=0, atol=tolerance, err_msg=str(key))
    return exact


def small_network(steps=2, batch=2, *, kind="rate", encoding="direct"):
    builder = NetworkBuilder(batch)
    x = builder.encode(builder.input("input", (1, 6, 6), HERE), encoding, steps, HERE)
    x = builder.conv(x, "conv", 4, Location("net.snn", 3, 1), kernel=(3, 3), padding=(1, 1))
    x = builder.pool(x, "max", (2, 2), (2, 2), HERE)
    x = builder.lif(x, Neuron(), Location("net.snn", 5, 1))
    x = builder.linear(builder.flatten(x, HERE), "last", 4, HERE)
    x = builder.lif(x, Neuron(), HERE) if kind == "rate" else builder.li(x, 0.5, HERE)
    builder.output("logits", builder.readout(x, kind, HERE))
    return builder.finish("small", HERE).module


def of_kind(module, kind):
    return [op for op in main_block(module).ops if isinstance(op, kind)]


@pytest.mark.parametrize("limits", ["", TILED])
def test_random_networks_train_alike(limits):
    exact = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        module = trained(hoisted(random_network(rng)), momentum=float(rng.choice([0.0, 0.5])))
        valid = int(rng.choice([1, 2, 4]))
        exact += compare(module, {"limits": limits}, dyadic_arguments(module, rng, valid=valid))
    assert exact >= 15, "without exact networks this test would say little"


def test_random_networks_infer_alike():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        module = hoisted(random_network(rng))
        compare(module, {}, dyadic_arguments(module, rng))


def test_cross_entropy_agrees_within_rounding():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        module = trained(hoisted(random_network(rng)), loss="cross_entropy")
        compare(module, {}, dyadic_arguments(module, rng))


def test_half_precision_rounds_what_is_stored():
    module = trained(hoisted(small_network()), precision="fp16", momentum=0.5)
    program = lowered(module, limits=TILED)
    arguments = dyadic_arguments(module, np.random.default_rng(3))
    expected = results(module, arguments, interpret_spike)
    found = results(program, arguments, interpret_lut)
    for key, value in expected.items():
        atol = 2e-3 * max(np.abs(value).max(), 1e-6)
        np.testing.assert_allclose(found[key], value, rtol=0, atol=atol, err_msg=str(key))
    assert program.attributes["h2learn.gradient_scale"] == FloatAttr(1024.0, f64)
    readers = of_kind(program, lut.FeConvOp | lut.BeConvOp | lut.BeGradOp)
    assert all(op.w.type.dtype == "f16" for op in readers)
    copied = [op.w is not None for op in of_kind(program, lut.OptOp)]
    assert copied == [True, False, True, False], "weights have a copy in storage type, biases have none"


def test_hoisting_computes_the_first_layer_once():
    module = hoisted(small_network(steps=8))
    assert [type(op).__name__ for op in main_block(module).ops][:4] == ["ConvOp", "PoolOp", "RepeatOp", "LifOp"]
    before = interpret_spike(small_network(steps=8), arguments := dyadic_arguments(module, np.random.default_rng(0)))
    np.testing.assert_array_equal(interpret_spike(module, arguments)[0], before[0])
    program = lowered(trained(module))
    (conv,), (weights,) = of_kind(program, lut.BeConvOp), of_kind(program, lut.BeWgtOp)
    assert conv.current.type.get_shape() == (2, 6, 6, 4)
    assert weights.gu.type.shape == (2, 6, 6, 4)


def test_bias_and_its_gradient_move_behind_the_pooling():
    program = lowered(trained(small_network(encoding="bernoulli")))
    lif, bias_gradient = of_kind(program, lut.LifOp)[0], of_kind(program, lut.BiasGradOp)[-1]
    assert lif.bias is main_block(program).args[3]
    assert bias_gradient.gu.owner in of_kind(program, lut.GradOp)
    assert source_of(lif) == "net.snn:5:1, net.snn:3:1"


def test_mask_of_the_neuron_below_makes_the_input_gradient_dual_sparse():
    program = lowered(trained(hoisted(small_network())))
    (gradient,) = of_kind(program, lut.BeGradOp)
    assert gradient.m is of_kind(program, lut.LifOp)[0].m
    assert gradient.mode == "dual"


def test_input_gradient_below_a_pooling_has_no_mask():
    builder = NetworkBuilder(1)
    x = builder.input("input", (4, 4, 4), HERE, time_steps=2, binary=True)
    x = builder.lif(builder.conv(x, "first", 4, HERE, kernel=(1, 1)), Neuron(), HERE)
    x = builder.flatten(builder.pool(x, "avg", (2, 2), (2, 2), HERE), HERE)
    x = builder.readout(builder.li(builder.linear(x, "last", 4, HERE), 0.5, HERE), "membrane_mean", HERE)
    builder.output("logits", x)
    program = lowered(trained(builder.finish("net", HERE).module))
    assert [(op.m, op.mode) for op in of_kind(program, lut.BeGradOp)] == [(None, "in")]


@pytest.mark.parametrize(
    ("kind", "gs_time", "scale"),
    [("rate", "broadcast", 0.25), ("membrane_mean", "broadcast", 0.25), ("membrane_last", "last", 1.0)],
)
def test_readout_decides_how_the_loss_reaches_the_time_steps(kind, gs_time, scale):
    program = lowered(trained(hoisted(small_network(steps=4, kind=kind))))
    (loss,) = of_kind(program, lut.LossOp)
    assert loss.scale == scale
    assert of_kind(program, lut.GradOp)[0].gs_time == gs_time


def test_linear_after_flatten_is_a_convolution_with_the_map_as_kernel():
    program = lowered(hoisted(small_network()))
    (conv,) = of_kind(program, lut.FeConvOp)
    assert conv.geometry == lut.ConvGeometry((3, 3))
    assert conv.w.type.get_shape() == (9, 4, 4)
    assert conv.current.type.get_shape() == (2, 2, 1, 1, 4)


def test_flattened_neurons_keep_their_maps():
    builder = NetworkBuilder(2)
    x = builder.input("input", (3, 4, 4), HERE, time_steps=2, binary=True)
    x = builder.flatten(builder.conv(x, "first", 4, HERE, kernel=(2, 2)), HERE)
    x = builder.linear(builder.lif(x, Neuron(), HERE), "last", 4, HERE)
    builder.output("logits", builder.readout(builder.lif(x, Neuron(), HERE), "rate", HERE))
    module = trained(builder.finish("net", HERE).module)
    compare(module, {}, dyadic_arguments(module, np.random.default_rng(1)))
    assert of_kind(lowered(module), lut.BeGradOp)[0].mode == "dual"


def test_blocks_of_sums_come_from_the_tile_limits():
    module = trained(hoisted(small_network(steps=4, encoding="bernoulli")))
    (first, second) = of_kind(lowered(module, limits="steps=2,samples=1,rows=3,columns=6"), lut.WuOp)
    assert {first.reduce_block, second.reduce_block} == {(2, 1, 3, 6), (2, 1, 1, 1)}


def test_number_of_ops_does_not_depend_on_steps_and_batch():
    counts = {
        len(main_block(lowered(trained(hoisted(small_network(steps, batch))))).ops)
        for steps, batch in [(4, 1), (64, 1), (4, 64)]
    }
    assert len(counts) == 1


def test_every_op_knows_its_source():
    program = lowered(trained(hoisted(small_network())))
    assert all(source_of(op) for op in main_block(program).ops)


def test_printed_programs_parse_to_the_same():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        program = lowered(trained(hoisted(random_network(rng)), momentum=0.5, precision="fp16"))
        text = str(program)
        parsed = Parser(new_context(), text).parse_module()
        parsed.verify()
        assert str(parsed) == text


def test_lowering_is_deterministic():
    module = trained(hoisted(small_network()))
    assert str(lowered(module)) == str(lowered(module))


def test_direct_encoding_must_be_hoisted():
    with pytest.raises(H2LearnError) as error:
        lowered(small_network())
    assert "h2l-hoist-static-current" in error.value.excerpt


def test_all_ops_without_a_form_are_listed_with_their_places():
    builder = NetworkBuilder(1)
    x = builder.flatten(builder.input("input", (4, 8, 8), HERE, time_steps=2, binary=True), HERE)
    current = builder.linear(x, "linear", 2, HERE)
    builder.output("mean", builder.readout(current, "membrane_mean", Location("net.snn", 3, 1)))
    builder.output("last", builder.readout(current, "membrane_last", Location("net.snn", 5, 1)))
    with pytest.raises(H2LearnError) as error:
        lowered(builder.finish("net", HERE).module)
    assert error.value.message == "2 operations have no form on the accelerator"
    assert [line.split(": ")[0].strip() for line in error.value.excerpt.splitlines()] == ["net.snn:3:1", "net.snn:5:1"]


def shortcut(*, spikes=False, bias=True):
    """Return two layers whose currents (or, of the first, spikes) are added in front of a neuron."""
    builder = NetworkBuilder(2)
    x = builder.input("input", (4, 4, 4), HERE, time_steps=2, binary=True)
    x = builder.lif(builder.conv(x, "below", 4, HERE, kernel=(1, 1)), Neuron(), HERE)
    first = x if spikes else builder.conv(x, "first", 4, HERE, kernel=(1, 1), bias=bias)
    second = builder.conv(x, "second", 4, HERE, kernel=(3, 3), padding=(1, 1), bias=bias)
    x = builder.flatten(builder.lif(builder.add([first, second], HERE), Neuron(), HERE), HERE)
    x = builder.readout(builder.li(builder.linear(x, "last", 4, HERE), 0.5, HERE), "membrane_mean", HERE)
    builder.output("logits", x)
    return trained(builder.finish("net", HERE).module)


def test_the_second_of_two_layers_goes_on_from_the_sums_of_the_first():
    program = lowered(shortcut())
    _, first, second, _ = of_kind(program, lut.FeConvOp)
    assert second.onto is first.current
    biases, *gradients = of_kind(program, lut.AddOp)
    assert biases.result.type == lut.tensor((4,)) and not gradients
    assert of_kind(program, lut.LifOp)[1].bias is biases.result
    _, through_second, through_first = of_kind(program, lut.BeGradOp)
    assert through_first.onto is through_second.gs
    below = of_kind(program, lut.LifOp)[0]
    assert through_first.m is below.m and through_second.m is below.m


def test_spikes_are_added_to_a_current_by_starting_from_them():
    program = lowered(shortcut(spikes=True, bias=False))
    assert of_kind(program, lut.FeConvOp)[1].onto is of_kind(program, lut.LifOp)[0].s
    assert of_kind(program, lut.BeGradOp)[-1].onto is of_kind(program, lut.GradOp)[1].gu


def test_gradients_of_shared_weights_are_added():
    module = trained(hoisted(small_network()))
    update = of_kind(module, spike.SgdOp)[0]
    gradient = update.gradient
    total = sgrad.AddOp(gradient, gradient, location=update.location)
    main_block(module).insert_op_before(total, update)
    update.operands[1] = total.result
    program = lowered(module)
    (added,) = of_kind(program, lut.AddOp)
    assert of_kind(program, lut.OptOp)[0].g is added.result
    assert compare(module, {}, dyadic_arguments(module, np.random.default_rng(0)))


def test_pooled_values_are_pooled_again_and_currents_convolved():
    builder = NetworkBuilder(2)
    x = builder.input("input", (4, 8, 8), HERE, time_steps=2, binary=True)
    x = builder.lif(builder.conv(x, "below", 4, HERE, kernel=(1, 1)), Neuron(alpha=(0.5,)), HERE)
    x = builder.pool(builder.pool(x, "avg", (2, 2), (2, 2), HERE), "max", (2, 2), (1, 1), HERE)
    x = builder.conv(builder.conv(x, "first", 4, HERE, kernel=(1, 1)), "second", 4, HERE, kernel=(2, 2))
    x = builder.flatten(builder.lif(x, Neuron(alpha=(0.5,)), HERE), HERE)
    x = builder.readout(builder.li(builder.linear(x, "last", 4, HERE), 0.5, HERE), "membrane_mean", HERE)
    builder.output("logits", x)
    module = trained(builder.finish("net", HERE).module)
    compare(module, {}, dyadic_arguments(module, np.random.default_rng(1)))


def test_unknown_limits_and_machines_are_refused():
    with pytest.raises(H2LearnError, match="tile limit 'height=3'"):
        lowered(hoisted(small_network()), limits="height=3")
    with pytest.raises(H2LearnError, match="no machine 'nowhere'"):
        lowered(hoisted(small_network()), arch="nowhere")


def test_interpreter_refuses_what_does_not_fit():
    program = lowered(trained(hoisted(small_network())))
    arguments = dyadic_arguments(trained(hoisted(small_network())), np.random.default_rng(0))
    with pytest.raises(H2LearnError, match="expected 7 arguments, found 6"):
        interpret_lut(program, arguments[:-1])
    with pytest.raises(H2LearnError, match="label 9 is outside"):
        interpret_lut(program, [arguments[0], np.array([1, 9], np.int32), *arguments[2:]])
    with pytest.raises(H2LearnError, match="argument 0 has the shape"):
        interpret_lut(program, [arguments[0][:1], *arguments[1:]])
