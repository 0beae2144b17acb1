"""Groups of samples of any sizes: all levels and the simulator give the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.driver import Recipe
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.model import Model
from h2learn.dialects import tile

from .networks import HERE, Case, random_data

BATCH = 5
TRAIN = Train(optimizer=SGD(momentum=0.5))


def case(limits: str, *, normalised: bool = False) -> Case:
    """Return a convolution, a linear layer and the maximum of its integrators."""
    builder = NetworkBuilder(BATCH)
    x = builder.encode(builder.input("x", (2, 4, 4), HERE), "direct", 3, HERE)
    x = builder.conv(x, "conv", 8, HERE, kernel=(3, 3), padding=(1, 1), stride=(1, 1))
    x = builder.batch_norm(x, "norm", HERE) if normalised else x
    x = builder.linear(builder.flatten(builder.lif(x, Neuron(), HERE), HERE), "last", 4, HERE)
    builder.output("logits", builder.readout(builder.li(x, 0.5, HERE), "membrane_max", HERE))
    network = builder.finish("maximum", HERE)
    rng = np.random.default_rng(0)
    values = {name: rng.normal(0, 0.5, spec.shape).astype(np.float32) for name, spec in network.parameters.items()}
    model = Model("net", network, values, None, lambda _: network)
    return Case(model, Recipe(train=TRAIN, limits=limits), random_data(model, TRAIN, rng))


@pytest.mark.parametrize("groups", ["group=1", "groups=2+3", "groups=1+1+2+1"])
def test_every_level_gives_the_same_numbers(groups: str) -> None:
    one = case(groups)
    expected = one.run_level("lut")
    loops = [op for op in one.levels["tile"].walk() if isinstance(op, tile.ForOp) and op.label.data == "group"]
    assert {loop.trips.data for loop in loops} == ({5} if groups == "group=1" else {1} if "3" in groups else {1, 2})
    found, report = one.run_device(sanitize=("race", "uninit", "bounds"))
    assert report.findings == []
    for other in (one.run_level("tile"), one.run_level("h2"), found):
        assert all(other[key].tobytes() == value.tobytes() for key, value in expected.items())


def test_batch_normalisation_takes_all_samples_together() -> None:
    assert case("groups=5", normalised=True).levels
    with pytest.raises(H2LearnError, match="takes all samples of a batch together, found groups of 2, 3"):
        case("groups=2+3", normalised=True)
