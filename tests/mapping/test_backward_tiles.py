"""Input gradients of layers with many kernel positions: those whose kernel is a whole map are cut."""

from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.machine import load_machine
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.compiler.mapping.cost import MASK_DENSITY, backward_cost
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.mapping.streams import share
from h2learn.compiler.mapping.tiles import PLAIN_NEURON, ConvShape, Tile
from h2learn.compiler.mapping.tiling import plan_backward

NET = """
network whole
input x: 1 x 8 x 8
time steps: 2
encode direct
neuron: lif(threshold 0.5)
conv c1: 64 channels, kernel 3 x 3, padding 1
lif
{pool}
flatten
linear f1: 64 features
lif
linear f2: 4 features
li: decay 0.5
readout membrane mean
init: normal gain 2.0 seed 3
"""


def whole_map(side, c, k):
    return ConvShape(4, 8, side, side, c, 1, 1, k, (side, side), (1, 1), (0, 0), False, False, 4)


@pytest.mark.parametrize(("side", "fused"), [(7, True), (11, False)])
def test_a_neuron_gradient_joins_the_stage_only_where_its_slots_fit(side, fused):
    kernel, padding = (side, side), (side // 2, side // 2)
    shape = ConvShape(4, 8, 16, 16, 128, 16, 16, 256, kernel, (1, 1), padding, False, False, 4)
    tile = plan_backward(shape, load_machine("h2l-v0"), TileLimits(), neuron=PLAIN_NEURON)
    assert tile.fused is fused


@pytest.mark.parametrize("machine", ["h2l-v0", "h2l-edge"])
@pytest.mark.parametrize("side", [4, 8, 14])
def test_a_kernel_that_covers_the_map_is_cut_so_that_neuron_gradients_join(side, machine):
    tile = plan_backward(whole_map(side, 128, 256), load_machine(machine), TileLimits(), neuron=PLAIN_NEURON)
    assert tile.fused and tile.columns == side


def test_without_a_neuron_behind_it_nothing_is_fused():
    assert not plan_backward(whole_map(4, 128, 256), load_machine("h2l-v0"), TileLimits(), neuron=None).fused


def test_a_linear_layer_is_few_jobs_with_more_rows_than_lanes():
    """Weights come as a whole whatever the jobs are: small ones would only leave lanes of the engine idle."""
    shape = ConvShape(2, 6, 1, 1, 1024, 1, 1, 512, (1, 1), (1, 1), (0, 0), False, False, 2)
    machine = load_machine("h2l-v0")
    tile = plan_backward(shape, share(machine, "head", ("entry", "head")), TileLimits(), neuron=PLAIN_NEURON)
    rows = tile.steps * tile.samples * -(-int(MASK_DENSITY * tile.c) // (machine.backward.width // 4))
    assert rows >= 4 * machine.backward.elements
    assert -(-shape.c // tile.c) * -(-shape.k // tile.k) <= 4


@pytest.mark.parametrize("machine", ["h2l-v0", "h2l-edge"])
@pytest.mark.parametrize(("c", "k"), [(512, 10), (1024, 10), (2048, 200), (4096, 1000)])
def test_lanes_have_several_rows_behind_the_loss(c, k, machine):
    """Gradients are dense there, so rows are of one length and those of the last round leave the other lanes idle."""
    machine = load_machine(machine)
    shape = ConvShape(6, 2, 1, 1, c, 1, 1, k, (1, 1), (1, 1), (0, 0), False, False, 2)
    tile = plan_backward(shape, share(machine, "backward"), TileLimits(), neuron=PLAIN_NEURON)
    rows = tile.steps * tile.samples * -(-int(MASK_DENSITY * tile.c) // (machine.backward.width // 4))
    assert tile.c == c or rows >= 4 * 4 * machine.backward.elements


def test_weights_of_a_plane_are_read_in_whole_bursts():
    """Storage copies lie in planes of the channels that a tile has; parameters themselves (fp32) lie as they came."""
    machine = load_machine("h2l-v0")
    shape = ConvShape(6, 2, 1, 1, 4096, 1, 1, 1000, (1, 1), (1, 1), (0, 0), False, False, 2)
    whole, part = (Tile(6, 2, 1, 1, 2048, k) for k in (1000, 40))

    def channel(shape, tile):
        return backward_cost(shape, tile, machine, (40, 64)).channel

    assert channel(shape, part) < 1.02 * channel(shape, whole)
    plain = replace(shape, item=4)
    assert channel(plain, part) > 1.1 * channel(plain, whole)


@pytest.mark.parametrize("pool", ["", "pool: max 2 x 2"])
def test_gradients_of_a_whole_map_are_those_of_a_larger_machine(pool, tmp_path):
    text = resources.files("h2learn.backends.h2learn.machines").joinpath("h2l-v0.toml").read_text(encoding="utf-8")
    assert "W = 2048" in text
    (tmp_path / "large.toml").write_text(text.replace("W = 2048", "W = 8192"), encoding="utf-8")
    model = parse_snn(NET.format(pool=pool))
    rng = np.random.default_rng(0)
    inputs = {"x": rng.random((3, 1, 8, 8), dtype=np.float32), "label": np.array([0, 3, 1], np.int32)}
    machines = (str(tmp_path / "large.toml"), "h2l-v0")
    large, small = (h2learn.compile(model, arch, train=h2learn.Train(), batch=3).run(inputs) for arch in machines)
    assert large.loss == pytest.approx(small.loss, rel=1e-6)
    for name, expected in large.gradients.items():
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(small.gradients[name], expected, atol=1e-5 * np.abs(expected).max())
