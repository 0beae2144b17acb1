import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from xdsl.context import Context
from xdsl.dialects import builtin
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler import checks
from h2learn.compiler.autodiff.spec import SGD, AdamW, Rectangular, Surrogate, Train, Triangular
from h2learn.compiler.driver import Recipe, compile_to, run_passes
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.compiler.model import Model
from h2learn.dialects import lut
from h2learn.dialects.lut.attributes import NeuronAttr
from h2learn.dialects.sgrad import ops as sgrad
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.interpreter import SEMANTICS

NET = """
network tiny
input image: 1 x 4 x 4
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 1.0, reset hard, spike at u >= threshold)
conv c1: 3 channels, kernel 3 x 3, padding 1
lif n1
flatten
linear f1: 4 features
lif n2
readout rate
init: normal gain 2.0 seed 1
"""
SMOOTH = """
network smooth
input image: 1 x 4 x 4
time steps: 3
encode direct
conv c1: 2 channels, kernel 3 x 3, padding 1
flatten
linear f1: 4 features
li n1: decay 0.5
readout membrane mean
init: normal gain 2.0 seed 1
"""


@dataclass(frozen=True)
class ChangePass(ModulePass):
    """Changes one number of the program."""

    name = "test-change"
    change: ClassVar[Callable[[builtin.ModuleOp], None]]

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        type(self).change(op)


def lower_threshold(module: builtin.ModuleOp) -> None:
    for op in module.walk():
        if isinstance(op, spike.LifOp):
            op.properties["theta"] = builtin.DenseArrayBase.from_list(builtin.f64, [0.25])
        if isinstance(op, lut.LifOp):
            op.properties["neuron"] = NeuronAttr(replace(op.neuron, theta=(0.25,)))


def checked(model: Model, passes: list[ModulePass], train: Train | None = None) -> str:
    stream = io.StringIO()
    run_passes(model, Recipe(train=train), passes, check_each=True, stream=stream)
    return stream.getvalue()


@pytest.mark.parametrize("train", [None, Train(optimizer=SGD(momentum=0.5))])
def test_every_pass_down_to_tile_keeps_the_numbers(train: Train | None) -> None:
    stream = io.StringIO()
    compile_to(parse_snn(NET).with_batch(2), Recipe(train=train), "tile", check_each=True, stream=stream)
    lines = dict(line.removeprefix("check ").split(": ", 1) for line in stream.getvalue().splitlines())
    assert lines["h2l-lut-to-tile"] == lines["h2l-insert-tokens"] == "equal bit for bit"
    assert "skipped" not in lines["h2l-spike-to-lut"]


@pytest.mark.parametrize("last", ["import", "engines"])
def test_a_pass_that_changes_a_number_is_named(last: str) -> None:
    ChangePass.change = lower_threshold
    passes = [*Recipe().passes(last), ChangePass()]
    with pytest.raises(H2LearnError, match="pass test-change changes the numbers: output"):
        checked(parse_snn(NET), passes)


@pytest.mark.parametrize("surrogate", [Rectangular(1.0, 0.7), Triangular(1.5, 1.2)])
@pytest.mark.parametrize("reset", ["hard", "soft", "none"])
def test_gradients_of_the_smooth_variant_agree_with_finite_differences(reset: str, surrogate: Surrogate) -> None:
    recipe = Recipe(train=Train(surrogate=surrogate, loss="mse_rate"))
    model = parse_snn(NET.replace("reset hard", f"reset {reset}"))
    text = checked(model, list(recipe.passes("train")), recipe.train)
    assert "12 gradient entries of the smooth variant agree" in text


def test_integrators_need_no_smoothing() -> None:
    assert "11 gradient entries" in checked(parse_snn(SMOOTH), list(Recipe(train=Train()).passes("train")), Train())


NORMALISED = """
network normalised
input x: 2 x 5 x 5
time steps: 2
encode direct
neuron: lif(decay 0.5, threshold 0.6, reset hard, spike at u > threshold)
conv c1: 8 channels, kernel 3 x 3
batchnorm n1
lif a
conv c2 from a: 8 channels, kernel 3 x 3, padding 1, no bias
batchnorm n2
conv s2 from a: 8 channels, kernel 1 x 1, no bias
batchnorm ns
add sum: n2, ns
lif b
flatten
linear f1: 4 features
li c: decay 0.7
readout membrane max
init: normal gain 2 seed 3
"""


def test_batch_norm_has_the_gradient_of_finite_differences_and_every_level_the_same_numbers() -> None:
    stream = io.StringIO()
    recipe = Recipe(train=Train(optimizer=AdamW()))
    compile_to(parse_snn(NORMALISED).with_batch(2), recipe, "h2", check_each=True, stream=stream)
    lines = dict(line.removeprefix("check ").split(": ", 1) for line in stream.getvalue().splitlines())
    assert "results not compared" in lines["h2l-train"] and "agree with finite differences" in lines["h2l-train"]
    assert lines["h2l-tile-to-h2"] == lines["h2l-insert-tokens"] == "equal bit for bit"
    assert "of the largest value" in lines["h2l-spike-to-lut"]


def test_a_detached_reset_is_skipped_with_the_reason() -> None:
    train = Train(detach_reset=True)
    text = checked(parse_snn(NET), list(Recipe(train=train).passes("train")), train)
    assert "finite differences skipped: the reset is left out" in text


def test_a_wrong_rule_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        SEMANTICS, sgrad.BiasOp, lambda op, inputs, real: [2 * inputs[0].reshape(-1, inputs[0].shape[-1]).sum(0)]
    )
    with pytest.raises(H2LearnError, match="finite differences give"):
        checked(parse_snn(SMOOTH), list(Recipe(train=Train()).passes("train")), Train())


def test_a_large_model_is_checked_with_one_sample_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAC_BUDGET", 3000)
    monkeypatch.setattr("h2learn.compiler.driver.MAC_BUDGET", 3000)
    text = checked(parse_snn(NET).with_batch(8), list(Recipe().passes("engines")))
    assert "checking with a batch of 1" in text and "check h2l-spike-to-lut: " in text


def test_a_program_above_the_budget_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MAC_BUDGET", 10)
    module = parse_snn(NET).module
    changed = module.clone()
    lower_threshold(changed)
    assert "exceed the budget of 10" in checks.check_pass("any", module, changed)


def test_random_arguments_are_seeded_and_exact_in_half_precision() -> None:
    module = parse_snn(NET).module
    first, again, other = (checks.random_arguments(module, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)
    assert all(np.array_equal(value, value.astype(np.float16).astype(np.float32)) for value in first.values())
