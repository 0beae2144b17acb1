"""Gradients that read the surrogate's window, or potentials inside it: the same step with fewer bytes."""

from __future__ import annotations

import numpy as np
import pytest

import h2learn
from h2learn.compiler.driver import Recipe, compile_to
from h2learn.compiler.frontends.dsl.load import parse_snn
from h2learn.dialects import tile
from h2learn.program import Result

NETWORK = """
network window
input image: 3 x 8 x 8
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset {reset}, spike at u >= threshold)
conv c0: 16 channels, kernel 3 x 3, padding 1
lif n0
conv c1: 32 channels, kernel 3 x 3, padding 1
lif n1
pool p1: max 2 x 2
flatten
linear f1: 4 features
lif n2
readout rate
train: loss cross_entropy, optimizer sgd(lr 0.05), surrogate {surrogate}({width}), method bptt{more}
init: normal gain 1.5 seed 0
"""


FED_BACK = """
network fed
input image: 20
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset hard, spike at u > threshold)
linear f0: 24 features
recurrent r1
linear f1: 4 features
lif n1
readout rate
train: loss cross_entropy, optimizer sgd(lr 0.05), surrogate rectangular(half_width 0.5, height 1.0), method bptt
init: normal gain 1.5 seed 0
"""


def step(mapping: str, reset: str, surrogate: str = "rectangular", more: str = "", precision: str = "fp16") -> Result:
    width = "alpha 2.0" if surrogate == "atan" else "half_width 0.5, height 1.0"
    model = parse_snn(NETWORK.format(reset=reset, surrogate=surrogate, width=width, more=more))
    program = h2learn.compile(model, train=model.train, batch=4, precision=precision, mapping=mapping)
    rng = np.random.default_rng(0)
    return program.run({"image": rng.random((4, 3, 8, 8), dtype=np.float32), "label": np.arange(4, dtype=np.int32)})


@pytest.mark.parametrize(("reset", "more"), [("soft", ""), ("hard", ", detach reset")])
def test_the_window_gives_the_same_step_with_fewer_bytes(reset: str, more: str) -> None:
    window, saved = (step(mapping, reset, more=more) for mapping in ("potential=window", "potential=saved"))
    assert window.report.findings == saved.report.findings == []
    assert all(window.gradients[name].tobytes() == saved.gradients[name].tobytes() for name in saved.gradients)
    assert any(value.any() for value in saved.gradients.values())
    neurons = 3 * 4 * (64 * 16 + 64 * 32 + 4)
    assert moved(saved) - moved(window) >= 2 * 2 * neurons - neurons // 2
    assert step("", reset, more=more).report.work == window.report.work


def moved(result: Result) -> int:
    """Bytes that move to and from DRAM."""
    return result.report.bytes_read["DRAM"] + result.report.bytes_written["DRAM"]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize(
    ("neurons", "surrogate", "more"),
    [
        ("hard", "rectangular", ""),
        ("soft, synapse decay 0.25", "triangular", ", detach reset"),
        ("soft delayed", "triangular", ""),
    ],
)
def test_potentials_inside_the_window_give_the_same_step_with_fewer_bytes(
    neurons: str, surrogate: str, more: str, precision: str
) -> None:
    """Two out of three potentials stay away; those that are kept come with a bit for each."""
    kept, saved = (step(mapping, neurons, surrogate, more, precision) for mapping in ("", "potential=saved"))
    assert kept.report.findings == saved.report.findings == []
    assert all(kept.gradients[name].tobytes() == saved.gradients[name].tobytes() for name in saved.gradients)
    assert all(kept.parameters[name].tobytes() == saved.parameters[name].tobytes() for name in saved.parameters)
    assert any(value.any() for value in saved.gradients.values())
    neurons_and_steps, item = 3 * 4 * (64 * 16 + 64 * 32 + 4), 2 if precision == "fp16" else 4
    share = kept.report.work["v.lif"]["live_outputs"] / neurons_and_steps
    assert kept.report.work["v.grad"]["live_inputs"] == kept.report.work["v.lif"]["live_outputs"]
    assert 0.1 < share < 0.6
    least = 2 * neurons_and_steps * (item * (1 - share) - 1 / 8)
    assert moved(saved) - moved(kept) >= 0.9 * least > 0
    assert step("potential=window", neurons, surrogate, more, precision).report.work == kept.report.work


@pytest.mark.parametrize(
    ("neurons", "surrogate"),
    [
        ("hard", "atan"),
        ("hard, potential at least -0.25", "rectangular"),
        ("hard, spikes per step up to 2", "triangular"),
    ],
)
def test_gradients_that_need_potentials_outside_the_window_keep_all(neurons: str, surrogate: str) -> None:
    window, saved = (step(mapping, neurons, surrogate) for mapping in ("potential=window", "potential=saved"))
    assert window.report.bytes_written == saved.report.bytes_written


def test_neurons_that_are_fed_back_keep_potentials_inside_the_window() -> None:
    model, results = parse_snn(FED_BACK), []
    rng = np.random.default_rng(0)
    data = {"image": rng.random((4, 20), dtype=np.float32), "label": np.arange(4, dtype=np.int32)}
    for mapping in ("", "potential=saved"):
        recipe = Recipe("h2l-edge", "fp16", model.train, mapping)
        module = compile_to(model, recipe, "tile", check_each=not mapping)
        forms = [tile.placed_of(op.result) for op in module.walk() if isinstance(op, tile.TensorOp)]
        assert [placed.shape[-1] for placed in forms if placed.form == "inside.f16"] == ([] if mapping else [24, 4])
        program = h2learn.compile(model, arch="h2l-edge", train=model.train, batch=4, precision="fp16", mapping=mapping)
        results.append(program.run(data))
    kept, saved = results
    assert kept.report.findings == []
    assert all(kept.gradients[name].tobytes() == saved.gradients[name].tobytes() for name in saved.gradients)
    assert all(value.any() for value in saved.gradients.values())
