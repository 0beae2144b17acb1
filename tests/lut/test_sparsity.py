"""Which zeros of an input gradient save cycles is a choice that changes no bits."""

from __future__ import annotations

import numpy as np
import pytest

import h2learn
from h2learn.compiler.frontends.dsl.load import parse_snn
from h2learn.program import Result

NETWORK = """
network sparse
input image: 3 x 6 x 6
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset hard, spike at u >= threshold)
conv c0: 64 channels, kernel 3 x 3, padding 1
lif n0
conv c1: 64 channels, kernel 3 x 3, padding 1
lif n1
flatten
linear f1: 4 features
lif n2
readout rate
train: loss cross_entropy, optimizer sgd(lr 0.05), surrogate {surrogate}, method bptt
init: normal gain 1.5 seed 0
"""


def step(mapping: str, surrogate: str = "rectangular(half_width 0.5, height 1.0)") -> Result:
    model = parse_snn(NETWORK.format(surrogate=surrogate))
    program = h2learn.compile(model, train=model.train, batch=4, precision="fp16", mapping=mapping)
    rng = np.random.default_rng(0)
    return program.run({"image": rng.random((4, 3, 6, 6), dtype=np.float32), "label": np.arange(4, dtype=np.int32)})


@pytest.fixture(scope="module")
def dual() -> Result:
    return step("")


@pytest.mark.parametrize("mode", ["dense", "in", "out"])
def test_multipliers_take_as_long_as_a_dual_sparse_run_says_that_they_would(dual: Result, mode: str) -> None:
    other = step(f"sparsity={mode}")
    assert all(other.gradients[name].tobytes() == dual.gradients[name].tobytes() for name in dual.gradients)
    expected = dual.report.work["be.run"]
    assert other.report.work["be.run"]["pe_cycles"] == expected[f"pe_cycles_{mode}"] > expected["pe_cycles"]
    assert other.report.busy["BE"] > dual.report.busy["BE"]
    assert other.report.energy_pj > dual.report.energy_pj


def test_dual_is_what_is_compiled(dual: Result) -> None:
    same = step("sparsity=dual")
    assert (same.cycles, same.energy_pj) == (dual.cycles, dual.energy_pj)


def test_without_a_mask_there_are_no_zeros_of_results_to_save() -> None:
    """The derivative of arc tangent is 0 nowhere."""
    dense, out, in_, dual = (step(f"sparsity={mode}", "atan(alpha 2.0)") for mode in ("dense", "out", "in", "dual"))
    assert out.cycles == dense.cycles > in_.cycles == dual.cycles
