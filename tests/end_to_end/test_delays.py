"""Delays that differ from channel to channel: the same numbers at every level, for currents, spikes and gradients."""

from __future__ import annotations

import numpy as np
import pytest

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.driver import Recipe
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.model import Model, Network

from .networks import CLASSES, HERE, Case, random_data

STEPS, BATCH = 5, 3
CURRENTS, SPIKES = (0, 0, 1, 1, 2, 0, 3, 3, 3, 9), (2, 2, 2, 0, 0, 1, 1, 1, 4, 4)


def network(batch: int, *, output: bool = False) -> Network:
    builder = NetworkBuilder(batch)
    x = builder.linear(builder.input("x", (6,), HERE, time_steps=STEPS), "first", 10, HERE)
    x = builder.lif(builder.delay(x, CURRENTS, HERE), Neuron(theta=(0.4,), width=1.0), HERE)
    x = builder.delay(x, SPIKES, HERE)
    if not output:
        x = builder.linear(x, "last", CLASSES, HERE)
        x = builder.readout(builder.li(x, 0.5, HERE), "membrane_mean", HERE)
    builder.output("logits", x)
    return builder.finish("delayed", HERE)


def model(**options: bool) -> Model:
    rng = np.random.default_rng(3)
    built = network(BATCH, **options)
    parameters = {n: rng.normal(0.1, 0.6, s.shape).astype(np.float32) for n, s in built.parameters.items()}
    return Model("delayed", built, parameters, None, lambda batch: network(batch, **options))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("limits", ["", "steps=2,samples=1,k=8"])
def test_every_level_gives_the_same_numbers(precision: str, limits: str) -> None:
    one, train = model(), Train(optimizer=SGD(momentum=0.5))
    case = Case(
        one, Recipe(train=train, precision=precision, limits=limits), random_data(one, train, np.random.default_rng(5))
    )
    expected = case.run_level("lut")
    assert all(value.any() for (role, _), value in expected.items() if role == "gradient")
    if precision == "fp32":
        for key, value in case.run_level("spike").items():
            np.testing.assert_allclose(expected[key], value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=str(key))
    found = {level: case.run_level(level) for level in ("tile", "h2")}
    found |= {execute: case.run_device(execute=execute)[0] for execute in ("fast", "reference")}
    for level, results in found.items():
        for key, value in expected.items():
            np.testing.assert_array_equal(results[key], value, err_msg=f"{level}: {key}")


def test_delayed_spikes_are_no_result() -> None:
    one = model(output=True)
    with pytest.raises(H2LearnError) as refused:
        Case(one, Recipe(), random_data(one, None, np.random.default_rng(5)))
    assert "a layer behind spikes with a delay for each channel" in refused.value.excerpt
