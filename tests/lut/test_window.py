"""Gradients that read the window of the surrogate instead of potentials: the same step with fewer bytes."""

from __future__ import annotations

import numpy as np
import pytest

import h2learn
from h2learn.compiler.frontends.dsl.load import parse_snn
from h2learn.program import Result

NETWORK = """
network window
input image: 3 x 8 x 8
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset {reset}, spike at u > threshold)
conv c0: 16 channels, kernel 3 x 3, padding 1
lif n0
conv c1: 32 channels, kernel 3 x 3, padding 1
lif n1
pool p1: max 2 x 2
flatten
linear f1: 4 features
lif n2
readout rate
train: loss cross_entropy, optimizer sgd(lr 0.05), surrogate {surrogate}(half_width 0.5, height 1.0), method bptt{more}
init: normal gain 1.5 seed 0
"""


def step(mapping: str, reset: str, surrogate: str = "rectangular", more: str = "") -> Result:
    model = parse_snn(NETWORK.format(reset=reset, surrogate=surrogate, more=more))
    program = h2learn.compile(model, train=model.train, batch=4, precision="fp16", mapping=mapping)
    rng = np.random.default_rng(0)
    return program.run({"image": rng.random((4, 3, 8, 8), dtype=np.float32), "label": np.arange(4, dtype=np.int32)})


@pytest.mark.parametrize(("reset", "more"), [("soft", ""), ("hard", ", detach reset")])
def test_the_window_gives_the_same_step_with_fewer_bytes(reset: str, more: str) -> None:
    window, saved = (step(mapping, reset, more=more) for mapping in ("potential=window", "potential=saved"))
    assert window.report.findings == saved.report.findings == []
    assert all(window.gradients[name].tobytes() == saved.gradients[name].tobytes() for name in saved.gradients)
    assert any(value.any() for value in saved.gradients.values())
    neurons = 3 * 4 * (64 * 16 + 64 * 32 + 4)
    moved = [one.report.bytes_read["DRAM"] + one.report.bytes_written["DRAM"] for one in (window, saved)]
    assert moved[1] - moved[0] >= 2 * 2 * neurons - neurons // 2
    assert step("", reset, more=more).report.work == window.report.work


@pytest.mark.parametrize(("reset", "surrogate"), [("hard", "rectangular"), ("soft", "triangular")])
def test_other_gradients_keep_the_potentials(reset: str, surrogate: str) -> None:
    window, saved = (step(mapping, reset, surrogate) for mapping in ("potential=window", "potential=saved"))
    assert window.report.bytes_written == saved.report.bytes_written
