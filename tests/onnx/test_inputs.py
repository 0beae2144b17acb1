"""Networks with several inputs, states among them, and static inputs of any rank."""

import warnings

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

torch = pytest.importorskip("torch")

from .cells import lif  # noqa: E402
from .test_exports import check, spikes_over_time  # noqa: E402

nn = torch.nn


class Net(nn.Module):
    """``currents`` makes those of all steps from the inputs, of which the last one may be the initial state."""

    def __init__(self, currents, state=False):
        super().__init__()
        torch.manual_seed(8)
        self.f, self.g, self.currents, self.state = nn.Linear(6, 5), nn.Linear(4, 5), currents, state
        for layer in (self.f, self.g):
            nn.init.normal_(layer.weight, 0.3, 0.6)

    def forward(self, *inputs):
        v, found = inputs[-1] if self.state else torch.zeros(()), []
        for current in self.currents(self, *inputs):
            s, v = lif(v, current)
            found.append(s)
        return (torch.stack(found), v) if self.state else torch.stack(found)


def exported(net, inputs, names, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, inputs, str(path), dynamo=False, input_names=names)
    return path


def test_two_inputs_over_time(tmp_path):
    net = Net(lambda net, x, y: [net.f(a) + net.g(b) for a, b in zip(x, y, strict=True)])
    x, y = spikes_over_time(), spikes_over_time(1, (4, 2, 4))
    model = h2learn.load_model(exported(net, (x, y), ["x", "y"], tmp_path / "net.onnx"))
    assert {name: spec.shape for name, spec in model.inputs.items()} == {"x": (4, 2, 6), "y": (4, 2, 4)}
    found = h2learn.compile(model).run({"x": x.numpy(), "y": y.numpy()}).outputs
    np.testing.assert_array_equal(next(iter(found.values())), net(x, y).numpy())


def test_an_initial_state_starts_at_zero_and_is_no_input(tmp_path):
    net = Net(lambda net, x, v: [net.f(step) for step in x], state=True)
    x, v = spikes_over_time(), torch.zeros(2, 5)
    model = h2learn.load_model(exported(net, (x, v), ["x", "v"], tmp_path / "net.onnx"))
    assert list(model.inputs) == ["x"] and len(model.outputs) == 2
    assert "input v is left out: a state that starts at 0" in model.notes
    found = h2learn.compile(model).run({"x": x.numpy()}).outputs
    for value, expected in zip(found.values(), net(x, v), strict=True):
        np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_static_input_of_two_dimensions(tmp_path):
    net = Net(lambda net, x: [net.f(x.flatten(1))] * 4)
    check(net, spikes_over_time(shape=(2, 2, 3)), tmp_path / "net.onnx")


def test_inputs_that_do_not_fit_are_refused(tmp_path):
    net = Net(lambda net, x, y: [net.f(a) + net.g(y[0]) for a in x])
    inputs = (spikes_over_time(), spikes_over_time(1, (3, 2, 4)))
    with pytest.raises(H2LearnError):
        h2learn.load_model(exported(net, inputs, ["x", "y"], tmp_path / "net.onnx"))


@pytest.mark.parametrize("first", [False, True])
def test_states_of_a_single_step_are_the_last_outputs_or_the_first(tmp_path, first):
    """Spikes fed back as a potential would be a network, too: a neuron without memory."""

    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.f, self.g = torch.nn.Linear(6, 8), torch.nn.Linear(8, 4)
            for layer in (self.f, self.g):
                torch.nn.init.normal_(layer.weight, 0.05, 0.5)

        def forward(self, x, v, w):
            v = 0.8 * v * (1 - (v > 0.3).float()) + self.f(x)
            w = 0.8 * w * (1 - (w > 0.2).float()) + self.g((v > 0.3).float())
            s = (w > 0.2).float()
            return (v, w, s) if first else (s, v, w)

    cell, x = Cell(), torch.rand(5, 2, 6) * 2
    states = torch.zeros(2, 8), torch.zeros(2, 4)
    model = h2learn.load_model(exported(cell, (x[0], *states), ["x", "a", "b"], tmp_path / "net.onnx"), time_steps=5)
    assert len([note for note in model.notes if "is fed from output" in note]) == 2
    expected = []
    for step in x:
        out = cell(step, *states)
        s, states = (out[2], out[:2]) if first else (out[0], out[1:])
        expected.append(s)
    (found,) = h2learn.compile(model).run({"x": x.numpy()}).outputs.values()
    np.testing.assert_array_equal(found, torch.stack(expected).detach().numpy())
    assert 0.1 < found.mean() < 0.9


def test_an_input_that_acts_in_every_step_is_no_initial_state(tmp_path):
    net = Net(lambda net, x, c: [net.f(step) + c for step in x])
    inputs = spikes_over_time(), torch.rand(2, 5)
    with pytest.raises(H2LearnError) as error:
        h2learn.load_model(exported(net, inputs, ["x", "c"], tmp_path / "net.onnx"))
    assert "the input c acts in later steps, too" in error.value.excerpt
