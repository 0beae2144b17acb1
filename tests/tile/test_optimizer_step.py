"""The optimizer step in the stage of a linear weight gradient: same numbers, and the gradient stays on chip."""

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


def run(path: Path, optimizer: str, *, keep: bool, mapping: str) -> Result:
    path.write_text(NETWORK.format(optimizer=optimizer))
    model = h2learn.load_model(str(path))
    assert model.train is not None
    train = replace(model.train, keep_gradients=keep)
    program = h2learn.compile(model, train=train, batch=4, precision="fp16", mapping=mapping)
    rng = np.random.default_rng(0)
    image = rng.random((4, 40), dtype=np.float32)
    return program.run({"image": image, "label": rng.integers(0, 10, 4).astype(np.int32)})


@pytest.mark.parametrize("optimizer", ["sgd(lr 0.05)", "sgd(lr 0.05, momentum 0.9)", "adam(lr 0.01)"])
def test_a_gradient_that_nobody_wants_is_not_stored(tmp_path: Path, optimizer: str) -> None:
    mapping = "group=2,c=16,k=32,samples=1"  # several tiles of each weight gradient
    kept = run(tmp_path / "net.snn", optimizer, keep=True, mapping=mapping)
    dropped = run(tmp_path / "net.snn", optimizer, keep=False, mapping=mapping)
    assert kept.report.findings == dropped.report.findings == []
    assert kept.parameters.keys() == dropped.parameters.keys()
    for name, value in kept.parameters.items():
        assert value.tobytes() == dropped.parameters[name].tobytes(), name
    saved = kept.report.bytes_written["DRAM"] - dropped.report.bytes_written["DRAM"]
    assert saved >= 4 * (64 * 96 + 96 * 10), "the gradients of f2 and f3 go to DRAM and back"
    assert kept.report.bytes_read["DRAM"] == dropped.report.bytes_read["DRAM"], "nobody reads them there"
    gradients = {name: np.abs(value).max() for name, value in kept.gradients.items()}
    assert gradients["f2.weight"] > 0 and gradients["f3.weight"] > 0
