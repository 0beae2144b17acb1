"""All time steps of many classes need not fit on chip: readouts take some classes at a time."""

from __future__ import annotations

import numpy as np
import pytest

from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.driver import Recipe
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.model import Model, Network
from h2learn.dialects import tile

from .networks import HERE, Case, random_data, random_train

CLASSES, STEPS = 96, 24


def network(readout: str) -> Network:
    """Return one linear layer of random spikes with integrators behind."""
    builder = NetworkBuilder(STEPS)
    x = builder.encode(builder.input("x", (1, 4, 4), HERE), "bernoulli", STEPS, HERE)
    x = builder.li(builder.linear(builder.flatten(x, HERE), "last", CLASSES, HERE), Neuron(), HERE)
    builder.output("logits", builder.readout(x, readout, HERE))
    return builder.finish("wide", HERE)


@pytest.mark.parametrize(
    ("readout", "cut"), [("membrane_mean", {"readout"}), ("membrane_max", {"readout", "readout gradient"})]
)
def test_classes_that_do_not_fit_are_cut(readout: str, cut: set[str]) -> None:
    rng = np.random.default_rng(len(readout))
    net = network(readout)
    parameters = {name: rng.normal(0.02, 0.4, spec.shape).astype(np.float32) for name, spec in net.parameters.items()}
    model = Model("wide", net, parameters, None, lambda _: net)
    train = random_train(rng)
    case = Case(model, Recipe("h2l-edge:sram_kib.U=16", "fp16", train), random_data(model, train, rng))
    stages = [op for op in case.levels["tile"].walk() if isinstance(op, tile.StageOp)]
    loops = {
        stage.label.data
        for stage in stages
        if any(isinstance(op, tile.ForOp) and op.label.data == "k" for op in stage.walk())
    }
    assert cut <= loops
    expected = case.run_level("lut")
    for results in (case.run_level("tile"), case.run_device()[0], case.run_device(execute="reference")[0]):
        for key, value in expected.items():
            assert value.tobytes() == results[key].tobytes(), key
