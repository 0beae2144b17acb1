"""The optimizer step in the stage of a weight gradient that waits: same numbers, and the gradient stays on chip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import h2learn
from h2learn.program import Result

NETWORK = """
network step
input image: 40
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset hard, spike at u > threshold)
linear f1: 64 features
lif n1
linear f2: 96 features
lif n2
linear f3: 10 features
li integrate: decay 0.5
readout membrane mean
train: loss cross_entropy, optimizer {optimizer},
       surrogate rectangular(half_width 0.5, height 1.0), method bptt
init: normal gain 1.5 seed 0
"""
CONVOLUTION = """
network step
input image: 3 x 4 x 4
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset hard, spike at u > threshold)
conv c1: 32 channels, kernel 3 x 3, stride 2, padding 1
lif n1
conv c2: 48 channels, kernel 3 x 3, padding 1
lif n2
flatten
linear f1: 10 features
li integrate: decay 0.5
readout membrane mean
train: loss cross_entropy, optimizer {optimizer},
       surrogate rectangular(half_width 0.5, height 1.0), method bptt
init: normal gain 1.5 seed 0
"""


def run(path: Path, text: str, *, keep: bool, mapping: str, arch: str = "h2l-v0") -> Result:
    path.write_text(text)
    model = h2learn.load_model(str(path))
    assert model.train is not None
    train = replace(model.train, keep_gradients=keep)
    program = h2learn.compile(model, arch=arch, train=train, batch=4, precision="fp16", mapping=mapping)
    rng = np.random.default_rng(0)
    shape = next(iter(model.inputs.values())).shape[1:]
    image = rng.random((4, *shape), dtype=np.float32)
    return program.run({"image": image, "label": rng.integers(0, 10, 4).astype(np.int32)})


@pytest.mark.parametrize("optimizer", ["sgd(lr 0.05)", "sgd(lr 0.05, momentum 0.9)", "adam(lr 0.01)"])
def test_a_gradient_that_nobody_wants_is_not_stored(tmp_path: Path, optimizer: str) -> None:
    mapping = "group=2,c=16,k=32,samples=1"  # several tiles of each weight gradient
    text = NETWORK.format(optimizer=optimizer)
    kept = run(tmp_path / "net.snn", text, keep=True, mapping=mapping)
    dropped = run(tmp_path / "net.snn", text, keep=False, mapping=mapping)
    saved = saved_bytes(kept, dropped)
    assert saved >= 4 * (40 * 64 + 64 * 96 + 96 * 10), "the gradients of f1, f2 and f3 go to DRAM"
    gradients = {name: np.abs(value).max() for name, value in kept.gradients.items()}
    assert gradients["f1.weight"] > 0 and gradients["f2.weight"] > 0 and gradients["f3.weight"] > 0


def saved_bytes(kept: Result, dropped: Result) -> int:
    """Return the bytes that a run without gradients among its results does not write; the rest is the same."""
    assert kept.report.findings == dropped.report.findings == []
    assert kept.parameters.keys() == dropped.parameters.keys()
    for name, value in kept.parameters.items():
        assert value.tobytes() == dropped.parameters[name].tobytes(), name
    assert kept.report.bytes_read["DRAM"] == dropped.report.bytes_read["DRAM"], "nobody reads them there"
    return kept.report.bytes_written["DRAM"] - dropped.report.bytes_written["DRAM"]


@pytest.mark.parametrize("optimizer", ["sgd(lr 0.05, momentum 0.9)", "adam(lr 0.01)"])
def test_a_convolution_with_few_positions_waits_where_traffic_is_dear(tmp_path: Path, optimizer: str) -> None:
    """The gradient of c2, with 4 positions, is whole on chip on the small machine; the step goes tap by tap."""
    text, mapping = CONVOLUTION.format(optimizer=optimizer), "group=2,c=16,k=16,samples=1"
    kept = run(tmp_path / "net.snn", text, keep=True, mapping=mapping, arch="h2l-edge")
    dropped = run(tmp_path / "net.snn", text, keep=False, mapping=mapping, arch="h2l-edge")
    assert saved_bytes(kept, dropped) >= 4 * (9 * 32 * 48 + 4 * 48 * 10)
    fast = run(tmp_path / "net.snn", text, keep=True, mapping=mapping, arch="h2l-edge:dram.bytes_per_cycle=512")
    grown = run(tmp_path / "net.snn", text, keep=False, mapping=mapping, arch="h2l-edge:dram.bytes_per_cycle=512")
    assert fast.report.bytes_written["DRAM"] - grown.report.bytes_written["DRAM"] < 4 * 9 * 32 * 48
    for name, value in kept.gradients.items():
        np.testing.assert_allclose(value, fast.gradients[name], atol=2e-3 * np.abs(value).max())  # fp16
        assert np.abs(value).max() > 0
