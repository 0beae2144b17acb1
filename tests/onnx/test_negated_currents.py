"""Neurons whose currents enter with a negative gain, and networks too short to show all of a neuron."""

import warnings

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

torch = pytest.importorskip("torch")

from .test_exports import export, spikes_over_time  # noqa: E402

nn = torch.nn


class Net(nn.Module):
    """Two layers of neurons with reset ``reset``, whose currents are ``sign`` times those of the linear layers."""

    def __init__(self, reset, sign=-1.0, *, potentials=False, feedback=False):
        super().__init__()
        torch.manual_seed(5)
        self.f1, self.f2 = nn.Linear(6, 8), nn.Linear(8, 4)
        self.back = nn.Linear(8, 8, bias=False) if feedback else None
        self.reset, self.sign, self.potentials = reset, sign, potentials

    def cell(self, u, current, threshold):
        u = 0.5 * u - current if self.sign < 0 else 0.5 * u + current
        if self.reset == "several":
            s = torch.floor(u.clamp(min=0) / threshold)
            return u - threshold * s, s, u
        s = (u > threshold).float()
        return (u - threshold * s if self.reset == "soft" else u * (1 - s)), s, u

    def forward(self, x):
        u, v, s, found, seen = 0.0, 0.0, torch.zeros(x.shape[1], 8), [], []
        for t in range(x.shape[0]):
            u, s, _ = self.cell(u, self.f1(x[t]) + (0 if self.back is None else self.back(s)), 0.25)
            v, q, before = self.cell(v, self.f2(s), 0.125)
            found.append(q)
            seen.append(before)
        return (torch.stack(found), torch.stack(seen)) if self.potentials else torch.stack(found)


def negated(net, sign):
    """Return the network with the other sign, in front of neurons and in the weights."""
    other = Net(net.reset, sign, feedback=net.back is not None)
    other.load_state_dict({name: -value for name, value in net.state_dict().items()})
    return other


@pytest.mark.parametrize(
    ("reset", "feedback", "dynamo"),
    [("soft", False, False), ("soft", False, True), ("hard", False, False), ("soft", True, False)]
    + [("several", False, False)],
)
def test_a_negated_current_is_a_gain_and_trains_like_negated_weights(tmp_path, reset, feedback, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript")
    net, x = Net(reset, feedback=feedback), 2 * spikes_over_time(shape=(5, 3, 6))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = h2learn.load_model(export(net, x, tmp_path / "net.onnx", dynamo))
        plain = h2learn.load_model(export(negated(net, 1.0), x, tmp_path / "plain.onnx", dynamo))
        expected = net(x).numpy()
    assert sum("gain -1" in note for note in model.notes) == 2
    np.testing.assert_array_equal(h2learn.compile(model).run({"input": x.numpy()}).outputs["output"], expected)
    assert 0 < expected.mean() < (2 if reset == "several" else 1)
    recipe, label = h2learn.Train(optimizer=h2learn.SGD(lr=0.1)), np.array([0, 1, 3], dtype=np.int32)
    found, other = (h2learn.compile(m, train=recipe).run({"input": x.numpy(), "label": label}) for m in (model, plain))
    assert found.loss == pytest.approx(other.loss, rel=1e-6)
    for name, value in model.parameters.items():
        (twin,) = (key for key, held in plain.parameters.items() if np.array_equal(held, -value))
        gradient = other.gradients[twin]
        assert np.abs(gradient).max() > 0, name
        np.testing.assert_allclose(found.gradients[name], -gradient, rtol=0, atol=1e-6 * np.abs(gradient).max())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_spikes_and_potentials_of_few_steps(tmp_path, steps, reset, sign):
    net, x = Net(reset, sign, potentials=True), 2 * spikes_over_time(shape=(steps, 3, 6))
    with torch.no_grad():
        model = h2learn.load_model(export(net, x, tmp_path / "net.onnx", names=("spikes", "potentials")))
        spikes, potentials = (value.numpy() for value in net(x))
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs
    np.testing.assert_array_equal(found["spikes"], spikes)
    np.testing.assert_allclose(found["potentials"], potentials, rtol=1e-5, atol=1e-6)


class Wrong(Net):
    def cell(self, u, current, threshold):
        u = 0.5 * u - current
        s = (u > threshold).float()
        return u * (1 - 0.5 * s), s, u


def test_the_reason_is_that_of_the_neuron(tmp_path):
    with torch.no_grad(), pytest.raises(H2LearnError) as error:
        h2learn.load_model(export(Wrong("soft"), spikes_over_time(shape=(4, 3, 6)), tmp_path / "net.onnx"))
    assert "reset multiplies the potential by a number other than 0" in str(error.value.excerpt)
