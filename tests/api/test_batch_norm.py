"""Batch normalisation from the file to trained parameters: against PyTorch, and folded for inference."""

from __future__ import annotations

import numpy as np
import pytest

import h2learn
from h2learn.compiler.folding import folded
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.dialects.common import get_io
from h2learn.dialects.spike.interpreter import interpret, main_block

NET = """network normalised
input x: 2 x 5 x 5 over time
time steps: 3
neuron: lif(decay 0.5, threshold 0.6, reset hard, spike at u > threshold)
conv c1: 8 channels, kernel 3 x 3, padding 1{bias}
batchnorm n1: momentum 0.3
lif a
conv c2: 4 channels, kernel 2 x 2, no bias
batchnorm n2: gain 0.8, eps 0.001
lif b
flatten
linear f1: 3 features
batchnorm n3
li c: decay 0.7
readout membrane mean
init: normal gain 2 seed 3
"""


def model(batch: int, bias: bool = True) -> h2learn.Model:
    """Return the network with running statistics as if it had been trained."""
    fresh = parse_snn(NET.format(bias="" if bias else ", no bias"))
    rng = np.random.default_rng(1)
    moved = {
        name: np.abs(rng.normal(1, 0.3, value.shape)) if name.endswith(("running_var", "n1.weight")) else value
        for name, value in fresh.parameters.items()
    }
    shifts = {name: rng.normal(0, 0.2, v.shape) for name, v in moved.items() if v.ndim == 1 and not v.all()}
    return fresh.with_parameters({**moved, **shifts}).with_batch(batch)


def test_a_fresh_model_has_unit_statistics() -> None:
    parameters = parse_snn(NET.format(bias="")).parameters
    assert (parameters["n1.weight"] == 1).all() and (parameters["n2.weight"] == np.float32(0.8)).all()
    assert (parameters["n1.running_var"] == 1).all()
    assert not any(parameters[name].any() for name in ("n1.bias", "n1.running_mean"))


@pytest.mark.parametrize("bias", [True, False])
def test_folding_changes_nothing_but_rounding(bias: bool) -> None:
    before = model(2, bias)
    after = folded(before)
    assert list(after.parameters) == ["c1.weight", "c1.bias", "c2.weight", "c2.bias", "f1.weight", "f1.bias"]
    assert not any("batch_norm" in op.name for op in after.module.walk())
    x = np.random.default_rng(4).normal(0.3, 1, (3, 2, 2, 5, 5)).astype(np.float32)
    results = []
    for one in (before, after, folded(before.with_batch(2))):
        entries = get_io(one.module)[: len(main_block(one.module).args)]
        given = [entry.to_device(x if entry.name == "x" else one.parameters[entry.name]) for entry in entries]
        results.append(interpret(one.module, given, np.float64)[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(results[1], results[2])
    program = h2learn.compile(before, batch=2)
    np.testing.assert_allclose(program.run({"x": x}).outputs["output"], results[0], rtol=1e-4, atol=1e-5)
    assert folded(after) is after


def test_a_norm_that_cannot_be_folded_is_refused() -> None:
    text = NET.format(bias="").replace("batchnorm n1: momentum 0.3", "pool: max 2 x 2, stride 1\nbatchnorm n1")
    with pytest.raises(h2learn.H2LearnError, match="as the only reader of a convolution or linear layer") as caught:
        h2learn.compile(parse_snn(text, "n.snn"))
    assert "n.snn:7" in str(caught.value.location)
    h2learn.compile(parse_snn(text), train="bptt", batch=2)


def test_training_moves_the_running_statistics_and_evaluates_with_them() -> None:
    rng = np.random.default_rng(0)
    text = NET.format(bias="").replace("5 x 5 over time", "5 x 5\nencode direct", 1)
    images, labels = rng.random((12, 2, 5, 5)).astype(np.float32), rng.integers(0, 3, 12)
    data = h2learn.DataSet("random", images, labels, images, labels)
    history = h2learn.train(parse_snn(text), data, 2, batch=4, train=h2learn.Train(optimizer=h2learn.Adam(0.01)))
    assert history.losses[-1] < history.losses[0]
    assert (history.parameters["n1.running_var"] != 1).all() and history.parameters["n1.running_mean"].any()
    program = h2learn.compile(parse_snn(text).with_parameters(history.parameters), batch=12)
    found = program.run({"x": images}).outputs["output"].argmax(axis=1)
    assert (found == labels).mean() == pytest.approx(history.test_accuracy)


SMOOTH = """network smooth
input x: 2 x 5 x 5 over time
time steps: 3
conv c1: 8 channels, kernel 3 x 3, padding 1
batchnorm n1: momentum 0.3
li a: decay 0.5
flatten
linear f1: 3 features
li c: decay 0.7
readout membrane mean
init: normal gain 2 seed 3
"""


def test_a_step_on_the_simulator_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch", reason="compares with torch.nn.BatchNorm2d")
    functional = torch.nn.functional
    rng = np.random.default_rng(6)
    fresh = parse_snn(SMOOTH)
    moved = fresh.with_parameters({n: v + rng.normal(0, 0.1, v.shape) for n, v in fresh.parameters.items()})
    x, label = rng.normal(0.4, 1, (3, 3, 2, 5, 5)).astype(np.float32), np.array([2, 0, 1], np.int32)
    step = h2learn.compile(moved, train=h2learn.Train(optimizer=h2learn.SGD(lr=0.1)), batch=4)
    result = step.run({"x": x, "label": label})  # one sample of the batch is absent

    weights = {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in moved.parameters.items()}
    norm = torch.nn.BatchNorm2d(8, momentum=0.3).double()
    norm.load_state_dict({n.removeprefix("n1."): v.detach() for n, v in weights.items() if "n1" in n}, strict=False)

    def integrate(currents, decay):  # type: ignore[no-untyped-def]
        potentials = [currents[0]]
        for current in currents[1:]:
            potentials.append(decay * potentials[-1] + current)
        return torch.stack(potentials)

    folded_time = torch.tensor(x, dtype=torch.float64).flatten(0, 1)
    currents = functional.conv2d(folded_time, weights["c1.weight"], weights["c1.bias"], padding=1)
    hidden = integrate(norm(currents).unflatten(0, (3, 3)), 0.5).flatten(2)
    logits = integrate(functional.linear(hidden, weights["f1.weight"], weights["f1.bias"]), 0.7).mean(0)
    loss = functional.cross_entropy(logits, torch.tensor(label).long())
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    expected = {n: w.grad for n, w in weights.items() if w.grad is not None}
    expected |= {"n1.weight": norm.weight.grad, "n1.bias": norm.bias.grad}
    steepest = max(float(g.abs().max()) for g in expected.values())
    assert result.gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = steepest if name == "c1.bias" else float(gradient.abs().max())
        assert np.abs(result.gradients[name] - gradient.numpy()).max() <= 1e-5 * scale, name
    for name, running in (("n1.running_mean", norm.running_mean), ("n1.running_var", norm.running_var)):
        np.testing.assert_allclose(result.parameters[name], running.numpy(), rtol=1e-5, atol=1e-6)
