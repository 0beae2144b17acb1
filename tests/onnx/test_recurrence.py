"""Recurrent layers exported by PyTorch: a layer of a neuron's own spikes of the step before."""

import re

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

torch = pytest.importorskip("torch")

from ..surrogate import fire  # noqa: E402
from .test_exports import check, export, spikes_over_time  # noqa: E402

nn = torch.nn
STEPS, HIDDEN, THETA = 5, 7, 0.8


class Recurrent(nn.Module):
    """A recurrent layer and one behind it; ``what`` changes where time is, what is put out, or breaks it."""

    def __init__(self, what="", *, reset="hard", bias=True):
        super().__init__()
        torch.manual_seed(3)
        self.what, self.reset = what, reset
        self.enter, self.back, self.leave = (
            nn.Linear(6, HIDDEN),
            nn.Linear(HIDDEN, HIDDEN, bias=bias),
            nn.Linear(HIDDEN, 4),
        )
        self.other = nn.Linear(HIDDEN, HIDDEN)
        for layer in (self.enter, self.back, self.leave):
            nn.init.normal_(layer.weight, 0.1, 0.7)

    def fire(self, u):
        return (u >= THETA).float()

    def rest(self, u, s):
        return u * (1 - s) if self.reset == "hard" else u - THETA * s

    def feedback(self, t, s, u, earlier):
        if self.what == "other weights" and t == 2:
            return self.other(s)
        if self.what == "two steps":
            return self.back(earlier)
        if self.what == "potentials":
            return self.back(u)
        if self.what == "halved":
            return self.back(0.5 * s)
        if self.what == "stronger":
            return 2 * self.back(s)
        return self.back(s)

    def forward(self, x):
        static = self.what == "static"
        batch = x.shape[0] if static else x.shape[1]
        v, s, earlier = torch.zeros(batch, HIDDEN), torch.zeros(batch, HIDDEN), torch.zeros(batch, HIDDEN)
        w, spikes, potentials = torch.zeros(batch, 4), [], []
        for t in range(STEPS):
            current = self.enter(x if static else x[t])
            if self.what != "unfed start" or t:
                current = current + self.feedback(t, s, v, earlier)
            u = 0.75 * v + current
            earlier, s = s, self.fire(u)
            v = self.rest(u, s)
            potentials.append(u)
            w = 0.5 * w + self.leave(s)
            y = self.fire(w)
            w = self.rest(w, y)
            spikes.append(y)
        return (torch.stack(spikes), torch.stack(potentials)) if self.what == "recorded" else torch.stack(spikes)


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(("what", "reset", "bias"), [("", "hard", True), ("", "soft", False), ("static", "hard", True)])
def test_recurrent_layers(tmp_path, what, reset, bias, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript", reason="the dynamo exporter needs it")
    x = spikes_over_time(shape=(STEPS, 2, 6))
    model = check(Recurrent(what, reset=reset, bias=bias), x[0] if what else x, tmp_path / "net.onnx", dynamo)
    assert [op.name for op in model.module.walk()].count("spike.scan") == 1
    assert sum(spec.shape == (HIDDEN, HIDDEN) for spec in model.parameters.values()) == 1


def test_an_unfed_first_step_without_a_bias(tmp_path):
    check(Recurrent("unfed start", bias=False), spikes_over_time(shape=(STEPS, 2, 6)), tmp_path / "net.onnx")


def test_spikes_and_potentials_of_one_recurrent_layer(tmp_path):
    x = spikes_over_time(shape=(STEPS, 2, 6))
    model = check(Recurrent("recorded"), x, tmp_path / "net.onnx", names=("spikes", "potentials"))
    assert [op.name for op in model.module.walk()].count("spike.scan") == 1


def test_gradients_of_recurrent_layers(tmp_path):
    net, x, label = Recurrent(), spikes_over_time(shape=(STEPS, 2, 6)), torch.tensor([1, 3])
    model = h2learn.load_model(export(net, x, tmp_path / "net.onnx"))
    step = h2learn.compile(model, train=h2learn.Train(loss="cross_entropy"))
    result = step.run({"input": x.numpy(), "label": label.numpy().astype(np.int32)})
    net.fire = lambda u: fire(u - THETA, touching=True)
    loss = nn.functional.cross_entropy(net(x).mean(0), label)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for name in ("enter", "back", "leave"):
        known = getattr(net, name).weight.grad.numpy()
        assert np.abs(known).max() > 0
        assert np.abs(result.gradients[f"{name}.weight"] - known).max() <= 1e-5 * np.abs(known).max()


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("unfed start", "starts away|constant drive|lacks the bias"),
        ("other weights", "has other weights"),
        ("two steps", "something else than its spikes|recurrent synapse|different numbers"),
        ("potentials", "something else than its spikes"),
        ("halved", "something else than its spikes"),
        ("stronger", "acts differently"),
    ],
)
def test_what_is_no_feedback_of_spikes_is_refused(tmp_path, what, reason):
    path = export(Recurrent(what), spikes_over_time(shape=(STEPS, 2, 6)), tmp_path / "net.onnx")
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(path)
    assert re.search(reason, caught.value.excerpt), caught.value.excerpt
