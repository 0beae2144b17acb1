"""How near a step on ``h2l-v0`` comes to its bounds, which are computed without the mapper, and how busy BE is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.machine import load_machine
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.program import Result

from .bounds import bounds, efficiency, layers_with_weights

BATCH = 16
NETWORK = """
network bounds
input image: 3 x 16 x 16
time steps: 4
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset hard, spike at u > threshold)
conv c0: 64 channels, kernel 3 x 3, padding 1
lif n0
conv c1: 128 channels, kernel 3 x 3, padding 1
lif n1
conv c2: 128 channels, kernel 3 x 3, padding 1, stride 2
lif n2
conv c3: 128 channels, kernel 3 x 3, padding 1
lif n3
flatten
linear f1: 10 features
li integrate: decay 0.5
readout membrane mean
train: loss cross_entropy, optimizer sgd(lr 0.05, momentum 0.9),
       surrogate rectangular(half_width 0.5, height 1.0), method bptt
init: normal gain 1.5 seed 0
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> h2learn.Model:
    path = tmp_path_factory.mktemp("bounds") / "net.snn"
    path.write_text(NETWORK)
    return h2learn.load_model(str(path))


@pytest.fixture(scope="module")
def result(model: h2learn.Model) -> Result:
    assert model.train is not None
    train = replace(model.train, keep_gradients=False)
    program = h2learn.compile(model, arch="h2l-v0", train=train, batch=BATCH, precision="fp16")
    rng = np.random.default_rng(0)
    image = rng.random((BATCH, 3, 16, 16), dtype=np.float32)
    return program.run({"image": image, "label": rng.integers(0, 10, BATCH).astype(np.int32)})


def test_no_bound_is_above_the_makespan(model: h2learn.Model, result: Result) -> None:
    found = bounds(layers_with_weights(model, BATCH), BATCH, load_machine("h2l-v0"), result.report)
    ratios = found.ratios(result.cycles)
    print(f"\n{result.cycles:,} cycles over {', '.join(f'{name} {ratio:.2f}' for name, ratio in ratios.items())}")
    assert all(ratio >= 1 for ratio in ratios.values())
    assert result.report.findings == []
    for name, cycles in found.work.items():  # every engine does what the bounds say, whatever the tiles are
        assert result.report.busy[name] >= 0.999 * cycles, name


def test_the_work_is_that_of_the_shapes(model: h2learn.Model) -> None:
    layers = layers_with_weights(model, BATCH)
    macs = [256 * 27 * 64, 256 * 576 * 128, 64 * 1152 * 128, 64 * 1152 * 128, 8192 * 10]
    times = [1, 4, 4, 4, 4]  # the first layer's current is the same at all steps
    assert [layer.macs for layer in layers] == [BATCH * n * t for n, t in zip(macs, times, strict=True)]
    assert [layer.real for layer in layers] == [True, False, False, False, False]


def test_the_step_comes_near_its_bounds(model: h2learn.Model, result: Result) -> None:
    found = bounds(layers_with_weights(model, BATCH), BATCH, load_machine("h2l-v0"), result.report)
    ratios = found.ratios(result.cycles)
    assert ratios["pipeline"] <= 1.5 and ratios["busy"] <= 1.7


@pytest.mark.parametrize(("layer", "least"), [("conv c1", 0.6), ("conv c2", 0.7), ("conv c3", 0.7)])
def test_the_multipliers_are_busy(model: h2learn.Model, result: Result, layer: str, least: float) -> None:
    """By the channels of the input gradient: .6 at 64, .7 at 128."""
    line = next(number for number, text in enumerate(NETWORK.splitlines(), start=1) if text.startswith(layer))
    place = f"net.snn:{line}:1"
    items = [c.work for c in result.report.by_pc if c.mnemonic == "be.run" and Path(c.source).name == place]
    assert items and efficiency(items, 2048) >= least


BEHIND = """
network behind
input image: 24
time steps: 6
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset hard, spike at u > threshold)
linear f1: {c} features
lif n1
linear f2: {k} features
li integrate: decay 0.5
readout membrane mean
train: loss cross_entropy, optimizer sgd(lr 0.05),
       surrogate rectangular(half_width 0.5, height 1.0), method bptt
init: normal gain 1.5 seed 0
"""


@pytest.mark.parametrize(("c", "k"), [(1024, 10), (2048, 200)])
def test_the_multipliers_are_busy_behind_the_loss(c: int, k: int) -> None:
    """A layer of few positions, whose gradients are dense, keeps all lanes busy if its outputs are not cut small."""
    model = parse_snn(BEHIND.format(c=c, k=k))
    assert model.train is not None
    train = replace(model.train, keep_gradients=False)
    program = h2learn.compile(model, arch="h2l-v0", train=train, batch=2, precision="fp16")
    rng = np.random.default_rng(0)
    found = program.run({"image": rng.random((2, 24), dtype=np.float32), "label": rng.integers(0, k, 2)})
    items = [c.work for c in found.report.by_pc if c.mnemonic == "be.run"]
    assert items and efficiency(items, 2048) >= 0.7
