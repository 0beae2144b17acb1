"""What a network puts out: reductions over time, and what layers and factors make of them."""

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

torch = pytest.importorskip("torch")

from .cells import lif  # noqa: E402
from .test_exports import check, export, spikes_over_time  # noqa: E402

nn = torch.nn


class Net(nn.Module):
    """``out`` makes the output from the first layer's spikes over time and the second layer."""

    def __init__(self, out, bias=True):
        super().__init__()
        torch.manual_seed(3)
        self.f1, self.f2, self.out = nn.Linear(6, 7), nn.Linear(7, 4, bias), out
        for layer in (self.f1, self.f2):
            nn.init.normal_(layer.weight, 0.2, 0.7)

    def spikes(self, x, layer, act=lif):
        v, found = torch.zeros(()), []
        for t in range(x.shape[0]):
            s, v = act(v, layer(x[t]))
            found.append(s)
        return found

    def forward(self, x):
        return self.out(self, self.spikes(x, self.f1))


def integrated(net, steps):
    v, found = 0.0, []
    for s in steps:
        v = 0.75 * v + net.f2(s)
        found.append(v)
    return found


OUTPUTS = {
    "classifier of mean rates": lambda net, s: net.f2(torch.stack(s).mean(0)),
    "classifier of the last step": lambda net, s: net.f2(s[-1]),
    "scaled mean of currents": lambda net, s: torch.stack([net.f2(step) for step in s]).mean(0) * 3 - 1,
    "sum of currents": lambda net, s: torch.stack([net.f2(step) for step in s]).sum(0),
    "last of currents": lambda net, s: [net.f2(step) for step in s][-1],
    "sum of potentials": lambda net, s: torch.stack(integrated(net, s)).sum(0),
    "divided last potential": lambda net, s: integrated(net, s)[-1] / len(s),
    "sum of spikes": lambda net, s: torch.stack(s).sum(0),
    "scaled sum of spikes": lambda net, s: torch.stack(s).sum(0) / 4,
    "maximum of potentials": lambda net, s: torch.stack(integrated(net, s)).amax(0),
    "kept dimension": lambda net, s: torch.stack(s).mean(0, keepdim=True),
    "kept second dimension": lambda net, s: torch.stack(integrated(net, s), 1).mean(1, keepdim=True),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_that_are_reductions(tmp_path, name):
    check(Net(OUTPUTS[name]), spikes_over_time(), tmp_path / "net.onnx")


def test_a_classifier_without_bias_reads_sums(tmp_path):
    check(Net(lambda net, s: net.f2(torch.stack(s).sum(0)), bias=False), spikes_over_time(), tmp_path / "net.onnx")


@pytest.mark.parametrize("kind", ["subtract", "plain"])
def test_the_last_potential_of_firing_neurons(tmp_path, kind):
    def act(v, x):
        if kind == "subtract":  # as snnTorch writes it, with another subtraction of the same form beside
            reset = (v - 1 > 0).float()
            u = 0.8 * v + x - reset
            return u, u
        u = 0.8 * v + x
        return u, u - (u >= 1).float()

    def last(net, steps):
        return net.spikes(torch.stack(steps), net.f2, act)[-1]

    check(Net(last), spikes_over_time(), tmp_path / "net.onnx")


def test_states_behind_the_last_step_are_outputs_or_left_out(tmp_path):
    def out(net, steps):
        v, found = torch.zeros(()), []
        for s in steps:
            y, v = lif(v, net.f2(s))
            found.append(y)
        return torch.stack(found), v, 0.5 * v

    net, x = Net(out), spikes_over_time()
    model = h2learn.load_model(export(net, x, tmp_path / "net.onnx", names=("spikes", "state", "decayed")))
    assert list(model.outputs) == ["spikes", "state"]
    assert "output decayed is left out: a state behind the last time step" in model.notes
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs
    np.testing.assert_array_equal(found["spikes"], net(x)[0].numpy())
    np.testing.assert_allclose(found["state"], net(x)[1].detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        (lambda net, s: net.f2(torch.stack(s).sum(0)), "a bias behind a sum over time"),
        (lambda net, s: torch.softmax(torch.stack(s).mean(0), -1), "the loss cross_entropy takes logits"),
        (lambda net, s: net.f2(s[2]), "the outputs need 3 of its 4 time steps"),
        (lambda net, s: torch.stack([net.f2(v).tanh() for v in s]).sum(0), "not piecewise linear"),
    ],
)
def test_other_outputs_are_refused(tmp_path, out, reason):
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(export(Net(out), spikes_over_time(), tmp_path / "net.onnx"))
    assert reason in caught.value.excerpt, caught.value.excerpt


def test_constants_with_names_of_their_own_are_noted(tmp_path):
    class Cell(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decay, self.level = (torch.nn.Parameter(torch.tensor(v)) for v in (0.75, 0.5))

    class Cells(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.cell = torch.nn.Linear(6, 4), Cell()

        def forward(self, x):
            u, found = 0.0, []
            for step in x:
                u = self.cell.decay * u + self.f(step)
                s = (u > self.cell.level).float()
                u = u * (1 - s)
                found.append(s)
            return torch.stack(found)

    model = h2learn.load_model(export(Cells(), torch.rand(3, 2, 6), tmp_path / "net.onnx"))
    (note,) = [note for note in model.notes if "which training leaves as they are" in note]
    assert set(note.partition(":")[0].split(", ")) == {"cell.decay", "cell.level"}
    assert set(model.parameters) == {"f.weight", "f.bias"}
