"""Inputs whose values have a stated number of bits: declared, checked at run time, looked up bit by bit."""

from __future__ import annotations

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.frontends.dsl.load import parse_snn
from h2learn.profiling import random_inputs

NETWORK = """
network pixels
input image: 3 x 6 x 6 of 4 bits
time steps: 2
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset hard, spike at u > threshold)
conv c1: 16 channels, kernel 3 x 3, padding 1
lif n1
flatten
linear f1: 3 features
li integrate: decay 0.5
readout membrane mean
train: loss cross_entropy, optimizer sgd(lr 0.05), surrogate rectangular(half_width 0.5, height 1.0), method bptt
init: normal gain 1.5 seed 0
"""
LABELS = np.array([0, 1], np.int32)


def test_pixels_of_few_bits_go_through_the_tables() -> None:
    """With dyadic weights every sum is exact: both forms give the same step."""
    model = parse_snn(NETWORK)
    rng = np.random.default_rng(0)
    dyadic = {
        name: (rng.integers(-8, 9, spec.shape) / 16).astype(np.float32) for name, spec in model.parameters.items()
    }
    model = model.with_parameters(dyadic)
    assert model.inputs["image"].bits == 4 and model.with_batch(2).inputs["image"].bits == 4
    image = (rng.integers(0, 16, (2, 3, 6, 6)) / 16).astype(np.float32)
    found = {}
    for form in ("planes", "multipliers"):
        program = h2learn.compile(model, train=model.train, batch=2, mapping=f"operand_form={form}")
        found[form] = program.run({"image": image, "label": LABELS})
        assert ("v.pack" in found[form].report.executed) == (form == "planes")
    planes, multipliers = found.values()
    assert planes.loss == multipliers.loss
    assert all(planes.gradients[name].tobytes() == value.tobytes() for name, value in multipliers.gradients.items())


@pytest.mark.parametrize("value", [1.0, -0.0625, 0.3, 1 / 255])
def test_other_values_are_refused(value: float) -> None:
    model = parse_snn(NETWORK)
    program = h2learn.compile(model, train=model.train, batch=2, mapping="operand_form=multipliers")
    image = np.zeros((2, 3, 6, 6), np.float32)
    image[1, 2, 3, 4] = value
    with pytest.raises(H2LearnError, match=r"'image' must hold multiples of 2\^-4 from 0 to below 1, found"):
        program.run({"image": image, "label": LABELS})


def test_random_inputs_have_the_bits() -> None:
    program = h2learn.compile(parse_snn(NETWORK), batch=2)
    image = random_inputs(program, 0)["image"] * 16
    assert np.array_equal(image, np.floor(image)) and 0 <= image.min() < image.max() < 16
    program.run({"image": image / 16})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("of 0 bits", "expected a number of bits from 1 to 16, found 0"),
        ("of 1.5 bits", "expected a number of bits from 1 to 16, found 1.5"),
        ("of 4 bits spikes over time", "expected spikes or numbers of some bits, found both"),
    ],
)
def test_bits_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(H2LearnError, match=message):
        parse_snn(NETWORK.replace("of 4 bits", text))
