"""A linear layer behind a map is a kernel as large as the map; where it does not fit, its positions are cut."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.dialects import builtin

from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.driver import Recipe
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.model import Model, Network
from h2learn.dialects import tile

from .networks import HERE, Case, random_data, random_train

TINY = "sram_kib.W=40,sram_kib.L=24,sram_kib.A=32,sram_kib.G=48"
"""Memories of h2l-edge in which no kernel of these networks fits whole."""

NEURON = Neuron(theta=(0.3,), surrogate="atan", width=0.8)


def network(rows: int, columns: int, encoding: str) -> Network:
    """Return a convolution (or the input alone) and two linear layers behind its map."""
    builder = NetworkBuilder(3)
    x = builder.encode(builder.input("x", (3, rows, columns), HERE), encoding, 2, HERE)
    if encoding == "direct":
        x = builder.conv(x, "conv", 16, HERE, kernel=(3, 3), padding=(1, 1))
        x = builder.lif(x, NEURON, HERE)
    x = builder.lif(builder.linear(builder.flatten(x, HERE), "hidden", 24, HERE), NEURON, HERE)
    builder.output(
        "logits", builder.readout(builder.li(builder.linear(x, "last", 4, HERE), Neuron(), HERE), "membrane_mean", HERE)
    )
    return builder.finish("flat", HERE)


def kernel_loops(module: builtin.ModuleOp) -> dict[str, int]:
    """Return the phases of the stages that loop over parts of a kernel, and over tiles of rows of the backward pass."""
    found: dict[str, int] = {}
    for stage in module.walk():
        if isinstance(stage, tile.StageOp):
            phase = stage.label.data.split()[0]
            loops = [op for op in stage.walk() if isinstance(op, tile.ForOp) and op.label.data in ("ky", "kx")]
            found[phase] = found.get(phase, 0) + len(loops)
    return found


@pytest.mark.parametrize(
    ("rows", "columns", "encoding", "precision"),
    [(8, 8, "direct", "fp32"), (6, 10, "direct", "fp16"), (1, 40, "direct", "fp16"), (9, 12, "bernoulli", "fp32")],
)
def test_every_level_gives_the_same_numbers(rows: int, columns: int, encoding: str, precision: str) -> None:
    rng = np.random.default_rng([17, rows])
    net = network(rows, columns, encoding)
    parameters = {
        name: rng.normal(0.02, 1.0 / np.sqrt(np.prod(spec.shape[1:])), spec.shape).astype(np.float32)
        for name, spec in net.parameters.items()
    }
    model = Model("flat", net, parameters, None, lambda _: net)
    train = random_train(rng)
    case = Case(model, Recipe(f"h2l-edge:{TINY}", precision, train), random_data(model, train, rng))
    loops = kernel_loops(case.levels["tile"])
    assert loops["forward"] and loops["weights"]
    expected = case.run_level("lut")
    learned = expected["gradient", "hidden.weight"]
    assert np.count_nonzero(learned) > learned.size / 20
    for results in (case.run_level("tile"), case.run_device()[0], case.run_device(execute="reference")[0]):
        for key, value in expected.items():
            assert value.tobytes() == results[key].tobytes(), key
