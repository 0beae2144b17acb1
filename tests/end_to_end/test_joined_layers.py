"""A layer and the shortcut beside it are summed in one stage, forwards and backwards: same numbers, fewer bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.driver import Recipe
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.model import Model, Network
from h2learn.dialects import tile

from .networks import HERE, Case, random_data

NEURON = Neuron(theta=(0.4,))
SANITIZERS = ("race", "uninit", "bounds")


def network(kernel: int, *, strides: Sequence[int]) -> Network:
    """Return a block of two convolutions and a convolution beside them, of the ``strides`` of the first and of that."""
    first, beside = strides
    builder = NetworkBuilder(4)
    x = builder.encode(builder.input("x", (2, 9, 9), HERE), "direct", 2, HERE)
    x = builder.lif(builder.conv(x, "stem", 16, HERE, kernel=(3, 3), padding=(1, 1)), NEURON, HERE)
    inner = builder.conv(x, "inner", 16, HERE, kernel=(3, 3), padding=(1, 1), stride=(first, first), bias=False)
    outer = builder.conv(
        builder.lif(inner, NEURON, HERE),
        "outer",
        24,
        HERE,
        kernel=(3, 3),
        padding=(1, 1),
        stride=(beside // first, beside // first),
        bias=False,
    )
    half = (kernel // 2, kernel // 2)
    short = builder.conv(
        x, "short", 24, HERE, kernel=(kernel, kernel), padding=half, stride=(beside, beside), bias=False
    )
    x = builder.lif(builder.add([outer, short], HERE), NEURON, HERE)
    x = builder.linear(builder.flatten(x, HERE), "last", 4, HERE)
    builder.output("logits", builder.readout(builder.li(x, 0.5, HERE), "membrane_mean", HERE))
    return builder.finish("shortcut", HERE)


def case(recipe: Recipe, kernel: int = 1, strides: Sequence[int] = (2, 2)) -> Case:
    rng = np.random.default_rng(5)
    graph = network(kernel, strides=strides)
    parameters = {
        name: rng.normal(0.03, 1.5 / np.sqrt(np.prod(spec.shape[1:])) if len(spec.shape) > 1 else 0.3, spec.shape)
        for name, spec in graph.parameters.items()
    }
    model = Model("shortcut", graph, {n: p.astype(np.float32) for n, p in parameters.items()}, None, lambda _: graph)
    return Case(model, recipe, random_data(model, recipe.train, rng))


def sums_in_stages(one: Case, kind: type[tile.JobOp]) -> list[int]:
    """Return through how many layers each stage sums with jobs of a kind."""
    stages = [op for op in one.levels["tile"].walk() if isinstance(op, tile.StageOp)]
    return sorted(count for stage in stages if (count := sum(isinstance(op, kind) for op in stage.walk())))


def partial_sums(one: Case) -> list[str]:
    """Return the currents and input gradients that lie in DRAM."""
    labels = [op.label.data for op in one.levels["tile"].walk() if isinstance(op, tile.TensorOp)]
    return [label for label in labels if label.endswith((".gs", ".current"))]


@pytest.mark.parametrize(
    ("arch", "precision", "limits", "kernel"),
    [
        ("h2l-v0", "fp32", "group=2", 1),
        ("h2l-edge", "fp16", "group=2,rows=2,columns=4,c=8,k=8,steps=1", 1),
        ("h2l-edge", "fp16", "group=4,rows=4,samples=1,k=8,overlap=serial", 3),
    ],
)
def test_a_shortcut_is_summed_with_the_layer_beside_it(arch: str, precision: str, limits: str, kernel: int) -> None:
    one = case(Recipe(arch, precision, Train(optimizer=SGD(momentum=0.5, weight_decay=0.1)), limits), kernel)
    assert sums_in_stages(one, tile.FeRunOp) == [1, 1, 2], "inner, last, and outer with short"
    assert sums_in_stages(one, tile.BeRunOp) == [1, 1, 2], "last, outer, and inner with short"
    assert partial_sums(one) == []
    expected = one.run_level("lut")
    for name in ("stem.weight", "inner.weight", "short.weight"):
        assert np.count_nonzero(expected["gradient", name]) > 0
    results = {"tile": one.run_level("tile")}
    for execute in ("fast", "reference"):
        results[execute], report = one.run_device(execute=execute, sanitize=SANITIZERS)
        assert report.findings == []
    for level, found in results.items():
        for key, value in expected.items():
            assert value.tobytes() == found[key].tobytes(), (level, key)


def test_input_gradients_of_other_strides_have_stages_of_their_own() -> None:
    """Tiles of the one's results are no tiles of the other's."""
    one = case(Recipe("h2l-v0", "fp32", Train(), "group=2"), strides=(1, 2))
    assert sums_in_stages(one, tile.BeRunOp) == [1, 1, 1, 1]
    assert sums_in_stages(one, tile.FeRunOp) == [1, 1, 2]
    assert len(partial_sums(one)) == 1


def test_what_has_no_room_is_summed_in_a_stage_of_its_own() -> None:
    """Weights of 5 x 5 positions beside those of 3 x 3 do not fit a small W; the numbers are the same."""
    least = "sram_kib.W=38"
    one = case(Recipe(f"h2l-edge:{least}", "fp16", Train(), "group=2"), kernel=5)
    assert sums_in_stages(one, tile.FeRunOp) == [1, 1, 1, 1]
    expected, found = one.run_level("lut"), one.run_device(sanitize=SANITIZERS)[0]
    for key, value in expected.items():
        assert value.tobytes() == found[key].tobytes(), key
