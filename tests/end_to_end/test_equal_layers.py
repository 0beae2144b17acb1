"""Equal layers share their stages: the same numbers as without, at every level, and no more stages for more layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import SGD, Adam, Train
from h2learn.compiler.driver import Recipe, emit_program
from h2learn.compiler.frontends.builder import NetworkBuilder, Signal
from h2learn.compiler.model import Model, Network
from h2learn.compiler.passes.share_stages import ShareStagesPass
from h2learn.compiler.universe import new_context
from h2learn.dialects import tile
from h2learn.dialects.h2.ops import program_ops

from .networks import HERE, Case, Named, random_data, training_graph

Body = Callable[[NetworkBuilder, Signal, int], Signal]
NEURON = Neuron(theta=(0.4,))
TRAIN = Train(optimizer=SGD(momentum=0.5))
SANITIZERS = ("race", "uninit", "bounds")


def plain(builder: NetworkBuilder, x: Signal, layers: int) -> Signal:
    """Convolutions of one shape behind each other."""
    for n in range(layers):
        x = builder.conv(x, f"c{n}", x.shape[-1], HERE, kernel=(3, 3), padding=(1, 1), bias=n >= 0)
        x = builder.lif(x, NEURON, HERE)
    return x


def residual(builder: NetworkBuilder, x: Signal, layers: int) -> Signal:
    """Blocks of two convolutions without bias; the input's spikes are added to the second current."""
    for n in range(layers):
        inner = builder.conv(x, f"a{n}", x.shape[-1], HERE, kernel=(3, 3), padding=(1, 1), bias=False)
        inner = builder.lif(inner, NEURON, HERE)
        outer = builder.conv(inner, f"b{n}", x.shape[-1], HERE, kernel=(3, 3), padding=(1, 1), bias=False)
        x = builder.lif(builder.add([outer, x], HERE), NEURON, HERE)
    return x


def projected(builder: NetworkBuilder, x: Signal, layers: int) -> Signal:
    """Blocks of two convolutions of which the first has a shortcut with weights."""
    for n in range(layers):
        inner = builder.conv(x, f"a{n}", x.shape[-1], HERE, kernel=(3, 3), padding=(1, 1), bias=False)
        inner = builder.lif(inner, NEURON, HERE)
        outer = builder.conv(inner, f"b{n}", x.shape[-1], HERE, kernel=(3, 3), padding=(1, 1), bias=False)
        shortcut = x if n else builder.conv(x, "p", x.shape[-1], HERE, kernel=(1, 1), bias=False)
        x = builder.lif(builder.add([outer, shortcut], HERE), NEURON, HERE)
    return x


def summed_spikes(builder: NetworkBuilder, x: Signal, layers: int) -> Signal:
    """Blocks whose spikes are added to their input's, so that what goes on are no spikes."""
    for n in range(layers):
        spikes = builder.lif(builder.conv(x, f"a{n}", x.shape[-1], HERE, kernel=(1, 1)), NEURON, HERE)
        x = builder.add([spikes, x], HERE)
    return x


def recurrent(builder: NetworkBuilder, x: Signal, layers: int) -> Signal:
    """Recurrent layers of one size, with synapses."""
    x = builder.linear(builder.flatten(x, HERE), "in", 16, HERE)
    for n in range(layers):
        x = builder.recurrent(x, f"r{n}", lambda c: builder.lif(c, NEURON, HERE), HERE)
        x = builder.linear(x, f"f{n}", 16, HERE)
    return builder.lif(x, NEURON, HERE)


BODIES = (plain, residual, projected, summed_spikes, recurrent)


def network(body: Body, layers: int, *, batch: int = 4, steps: int = 2) -> Network:
    """Return layers of the same size between two other layers."""
    builder = NetworkBuilder(batch)
    x = builder.encode(builder.input("x", (2, 4, 4), HERE), "direct", steps, HERE)
    x = builder.lif(builder.conv(x, "first", 8, HERE, kernel=(3, 3), padding=(1, 1)), NEURON, HERE)
    x = body(builder, x, layers)
    x = builder.linear(builder.flatten(x, HERE) if len(x.shape) > 3 else x, "last", 10, HERE)
    builder.output("logits", builder.readout(builder.li(x, 0.5, HERE), "membrane_mean", HERE))
    return builder.finish("equal", HERE)


def case(body: Body, layers: int, recipe: Recipe, seed: int = 0) -> Case:
    rng = np.random.default_rng(seed)
    graph = network(body, layers)
    parameters = {
        name: rng.normal(0.03, 1.5 / np.sqrt(np.prod(spec.shape[1:])) if len(spec.shape) > 1 else 0.3, spec.shape)
        for name, spec in graph.parameters.items()
    }
    model = Model("equal", graph, {n: p.astype(np.float32) for n, p in parameters.items()}, None, lambda _: graph)
    return Case(model, recipe, random_data(model, recipe.train, rng))


def without_sharing(one: Case) -> Named:
    """Return the results of the program that has stages of its own for every layer."""
    module = training_graph(one.model, one.recipe)
    for step in one.recipe.passes("h2")[len(one.recipe.passes("train")) :]:
        if not isinstance(step, ShareStagesPass):
            step.apply(new_context(), module)
    program = emit_program(one.model, module, one.recipe)
    assert len(program.text) > len(one.program.text)
    return one.run_device(program, timing=False)[0]


def equal(expected: Named, found: Named, what: str) -> None:
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=f"{what} {key}")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(train=TRAIN, limits="group=2"),
        Recipe(train=Train(optimizer=Adam()), precision="fp16", limits="group=1,rows=2,c=8,k=8,steps=1,overlap=serial"),
        Recipe(train=Train(), precision="fp16", limits="group=4,samples=1,columns=2,elements=64,overlap=backward"),
    ],
    ids=["fp32", "fp16 serial", "fp16 joined"],
)
@pytest.mark.parametrize("body", BODIES)
def test_shared_stages_give_the_same_bits_at_every_level(body: Body, recipe: Recipe) -> None:
    one = case(body, 3, recipe)
    loops = [op for op in one.levels["tile"].walk() if isinstance(op, tile.ForOp) and op.label.data == "layer"]
    assert len(loops) >= 2
    expected = without_sharing(one)
    assert any(value.any() for (role, _), value in expected.items() if role == "gradient")
    for level in ("lut", "tile", "h2") if recipe.precision == "fp32" else ("tile",):
        equal(expected, one.run_level(level), level)
    for execute in ("fast", "reference"):
        found, report = one.run_device(execute=execute, sanitize=SANITIZERS)
        equal(expected, found, execute)
        assert report.findings == []


def test_more_layers_are_no_more_stages() -> None:
    """Each layer adds its parameters and results, a few declarations; programs do not grow by a single instruction."""
    recipe = Recipe(train=TRAIN)
    few, many = (case(residual, layers, recipe).levels for layers in (3, 7))
    stages = [sum(isinstance(op, tile.StageOp) for op in levels["tile"].walk()) for levels in (few, many)]
    instructions = [[op.mnemonic for op in program_ops(levels["h2"])] for levels in (few, many)]
    assert stages[0] == stages[1] and instructions[0] == instructions[1]
    ops = [sum(1 for _ in levels["tile"].walk()) for levels in (few, many)]
    assert ops[1] - ops[0] <= 4 * 2 * 2, "a gradient and a storage copy for each of two convolutions"


@pytest.mark.parametrize(("precision", "declared"), [("fp32", 0), ("fp16", 1)])
def test_gradients_that_nobody_asks_for_are_declared_once(precision: str, declared: int) -> None:
    """Those of equal layers are one tensor, although weights are stepped as rows and sums go on from group to group."""
    recipe = Recipe(train=replace(TRAIN, keep_gradients=False), precision=precision, limits="group=2")
    few, many = (case(residual, layers, recipe) for layers in (3, 7))
    ops = [sum(1 for _ in one.levels["tile"].walk()) for one in (few, many)]
    assert ops[1] - ops[0] == 4 * 2 * declared, "a storage copy for each of two convolutions"
    expected = without_sharing(few)
    found, report = few.run_device(sanitize=SANITIZERS)
    equal(expected, found, "device")
    assert report.findings == []


def test_a_shortcut_is_out_of_the_way_of_equal_weight_gradients() -> None:
    """It has the gradient of the convolution that it is added to, so its own weight gradient can come behind that."""
    recipe = Recipe(train=TRAIN, limits="group=2")
    levels = case(projected, 3, recipe).levels
    labels = [op.label.data for op in levels["tile"].walk() if isinstance(op, tile.StageOp)]
    assert [label for label in labels if label.startswith("weights")] == [
        "weights b2 to b0",
        "weights p",
        "weights a0",
        "weights last",
        "weights first",
    ]


def test_inference_programs_share_too() -> None:
    one = case(residual, 3, Recipe())
    assert any(isinstance(op, tile.ForOp) and op.label.data == "layer" for op in one.levels["tile"].walk())
    expected = without_sharing(one)
    for level in ("lut", "tile", "h2"):
        equal(expected, one.run_level(level), level)
    found, report = one.run_device(sanitize=SANITIZERS)
    equal(expected, found, "device")
    assert report.findings == []
