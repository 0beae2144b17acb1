"""Neurons with several spikes per step and potentials with a lower bound, in many spellings, against PyTorch."""

import math

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

from .test_exports import check, export, spikes_over_time

torch = pytest.importorskip("torch")
nn = torch.nn
F = torch.nn.functional

COUNTS = {
    "floor": lambda u, th: torch.floor(u / th).clamp(min=0),
    "rectified": lambda u, th: torch.floor(torch.relu(u) / th),
    "truncated": lambda u, th: (u > 0) * torch.div(u, th, rounding_mode="trunc"),
    "integer": lambda u, th: torch.relu((u / th).to(torch.int64).float()),
    "times the inverse": lambda u, th: torch.floor(u * (1 / th)).clamp(min=0),
    "where": lambda u, th: torch.where(u < 0, torch.zeros_like(u), torch.floor(u / th)),
    "up to 3": lambda u, th: torch.floor(u / th).clamp(0, 3),
    "cut off before": lambda u, th: torch.floor((u / th).clamp(0, 2.5)),
}
RESETS = {
    "soft": lambda u, s, th: u - s * th,
    "hard": lambda u, s, th: u * (s == 0) + 0.125 * (s > 0),
    "hard, where": lambda u, s, th: torch.where(s >= 1, torch.full_like(u, 0.125), u),
    "none": lambda u, s, th: u,
}
BOUNDS = {
    "none": lambda v: v,
    "relu": lambda v: torch.relu(v + 0.75) - 0.75,
    "clamp": lambda v: v.clamp(min=-0.75),
    "where": lambda v: torch.where(v < -0.75, torch.full_like(v, -0.75), v),
}


class Net(nn.Module):
    """Linear, neuron, linear, neuron, step by step; decay 0.75."""

    def __init__(self, count, reset, bound, theta=0.5, gain=2.0):
        super().__init__()
        torch.manual_seed(3)
        self.f1, self.f2, self.theta = nn.Linear(6, 7), nn.Linear(7, 4), theta
        for weights in (self.f1.weight, self.f2.weight):
            nn.init.normal_(weights, 0.1, 0.5 * gain)
        self.count, self.reset, self.bound = count, reset, bound

    def neuron(self, x, v):
        u = 0.75 * v + x
        s = self.count(u, self.theta)
        return s, self.bound(self.reset(u, s, self.theta))

    def forward(self, x):
        v1, v2, collected = torch.zeros(x.shape[1], 7), torch.zeros(x.shape[1], 4), []
        for t in range(x.shape[0]):
            s, v1 = self.neuron(self.f1(x[t]), v1)
            y, v2 = self.neuron(self.f2(s) / 4, v2)
            collected.append(y)
        return torch.stack(collected)


@pytest.mark.parametrize(
    ("count", "reset", "bound", "dynamo"),
    [
        *((count, "soft", "none", False) for count in COUNTS),
        *(("floor", reset, "relu", False) for reset in RESETS),
        *(("truncated", "soft", bound, dynamo) for bound in BOUNDS for dynamo in (False, True)),
        ("up to 3", "hard", "clamp", True),
    ],
)
def test_spellings(tmp_path, count, reset, bound, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript")
    net = Net(COUNTS[count], RESETS[reset], BOUNDS[bound])
    x = spikes_over_time(shape=(5, 2, 6))
    model = check(net, x, tmp_path / "net.onnx", dynamo)
    most = {"up to 3": "up to 3", "cut off before": "up to 2"}.get(count, "any number of")
    for note in model.notes[-2:]:
        assert f"{most} spikes per step" in note and f"reset {reset.partition(',')[0]}" in note, note
        assert ("potentials of at least -0.75" in note) == (bound != "none")
        assert "theta 0.5" in note or count == "times the inverse"
    highest = net(x).detach().max().item()
    assert highest == {"up to 3": 3, "cut off before": 2}.get(count, highest) > 1


def test_single_spikes_with_a_lower_bound(tmp_path):
    net = Net(lambda u, th: (u >= th).float(), RESETS["soft"], BOUNDS["relu"])
    model = check(net, spikes_over_time(), tmp_path / "net.onnx")
    assert all("potentials of at least -0.75" in n and "per step" not in n for n in model.notes[-2:])


@pytest.mark.parametrize(
    ("count", "reset", "bound", "reason"),
    [
        ("floor", lambda u, s, th: u - 0.25 * s, "none", "something else than the threshold it is counted by"),
        ("floor", lambda u, s, th: u * (1 - s), "none", "differs from the neuron found so far"),
        ("floor", lambda u, s, th: u - th * (s > 0), "none", "differs from the neuron found so far"),
        (lambda u, th: torch.relu(torch.ceil(u / th) - 1), "soft", "none", "above a multiple of the threshold"),
        (lambda u, th: torch.round(u / th).clamp(min=0), "soft", "none", "above a multiple of the threshold"),
        (lambda u, th: 2 * torch.floor(u / th).clamp(min=0), "none", "none", "often the threshold goes into the pot"),
        ("floor", "soft", lambda v: v.clamp(max=0.25), "explains its constant part"),
    ],
)
def test_what_is_refused(tmp_path, count, reset, bound, reason):
    net = Net(COUNTS.get(count, count), RESETS.get(reset, reset), BOUNDS.get(bound, bound))
    path = export(net, spikes_over_time(), tmp_path / "net.onnx")
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(path)
    assert reason in caught.value.excerpt, caught.value.excerpt


def test_steps_that_differ_are_refused(tmp_path):
    class Late(Net):
        def neuron(self, x, v):
            self.calls = getattr(self, "calls", 0) + 1
            self.theta = 0.5 if self.calls < 7 else 0.75
            return super().neuron(x, v)

    path = export(Late(COUNTS["floor"], RESETS["soft"], BOUNDS["none"]), spikes_over_time(), tmp_path / "net.onnx")
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(path)
    assert "steps that differ" in caught.value.excerpt


def test_counts_over_time_are_outputs(tmp_path):
    class Summed(Net):
        def forward(self, x):
            return super().forward(x).sum(0)

    net = Summed(COUNTS["floor"], RESETS["soft"], BOUNDS["none"])
    model = check(net, spikes_over_time(shape=(5, 2, 6)), tmp_path / "net.onnx")
    assert '"count"' in str(model.module)


class Sinabs(nn.Module):
    """Layers of sinabs, which have the batch first, on inputs ``[T,N,...]``."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x.transpose(0, 1)).transpose(0, 1)

    def reset(self):
        for layer in self.modules():
            if hasattr(layer, "reset_states"):
                layer.reset_states()
        return self


def of_sinabs(kind, surrogate=None):
    """Return a network of a kind of sinabs' neurons."""
    sl = pytest.importorskip("sinabs.layers", reason="exports layers of sinabs")
    activation = pytest.importorskip("sinabs.activation")
    torch.manual_seed(4)
    theta, shared = torch.tensor(0.25), {} if surrogate is None else {"surrogate_grad_fn": surrogate}
    shared = {"spike_threshold": theta, **shared}
    leaky = {"tau_mem": torch.tensor(10.0), **shared}
    loud = {"norm_input": False, **leaky}
    made = {
        "LIF": lambda: sl.LIF(**leaky),
        "LIF, unnormalised": lambda: sl.LIF(**loud),
        "IAF with a lower bound": lambda: sl.IAF(min_v_mem=-0.25, **shared),
        "up to 2": lambda: sl.LIF(spike_fn=activation.MaxSpike(2), **loud),
        "to 0": lambda: sl.LIF(reset_fn=activation.MembraneReset(), **loud),
        "synapse": lambda: sl.LIF(tau_syn=torch.tensor(4.0), **loud),
        "recurrent": lambda: sl.LIFRecurrent(rec_connect=nn.Linear(8, 8, bias=False), **loud),
        "single": lambda: sl.IAF(spike_fn=activation.SingleSpike, min_v_mem=-0.125, **shared),
    }[kind]
    return Sinabs(nn.Linear(6, 8), made(), nn.Linear(8, 4), sl.IAF(**shared))


SINABS = ("LIF", "LIF, unnormalised", "IAF with a lower bound", "up to 2", "to 0", "synapse", "recurrent", "single")


@pytest.mark.parametrize(
    ("kind", "dynamo"),
    [*((kind, False) for kind in SINABS), ("IAF with a lower bound", True), ("up to 2", True), ("recurrent", True)],
)
def test_layers_of_sinabs(tmp_path, kind, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript")
    net, x = of_sinabs(kind).eval(), 2 * torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        path = export(net.reset(), x, tmp_path / "net.onnx", dynamo)
        expected = net.reset()(x).numpy()
    model = h2learn.load_model(path)
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs["output"]
    np.testing.assert_array_equal(found, expected)
    assert expected.max() > (0 if kind == "single" else 1)


SURROGATES = {
    "single": ("SingleExponential", {"grad_width": 0.5, "grad_scale": 1.0}, ("Exponential", 0.125, 8.0, False)),
    "periodic": ("PeriodicExponential", {"grad_width": 0.2, "grad_scale": 0.8}, ("Exponential", 0.2, 0.8, True)),
    "gaussian": ("Gaussian", {"sigma": 0.5}, ("Gaussian", math.sqrt(0.5), math.sqrt(2 / math.pi), False)),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [*((kind, "single") for kind in SINABS), ("recurrent", "periodic"), ("up to 2", "periodic"), ("LIF", "gaussian")],
)
def test_a_training_step_is_that_of_sinabs(tmp_path, kind, name):
    known, arguments, (surrogate, width, height, periodic) = SURROGATES[name]
    activation = pytest.importorskip("sinabs.activation")
    net = of_sinabs(kind, getattr(activation, known)(**arguments))
    x, label = torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(6)), torch.tensor([1, 3])
    with torch.no_grad():
        model = h2learn.load_model(export(net.eval().reset(), x, tmp_path / "net.onnx"))
    loss = F.cross_entropy(net.reset()(x).mean(0), label)
    loss.backward()
    chosen = getattr(h2learn, surrogate)(width, height, periodic=periodic)
    step = h2learn.compile(model, train=h2learn.Train(surrogate=chosen, optimizer=h2learn.SGD(lr=0.1)))
    result = step.run({"input": x.numpy(), "label": label.numpy().astype(np.int32)})
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    weights = {name: p for name, p in net.named_parameters() if name.endswith(("weight", "bias"))}
    assert len(weights) == len(result.gradients)
    for name, parameter in weights.items():
        found, expected = gradient_of(parameter.detach().numpy(), model, result.gradients), parameter.grad.numpy()
        assert np.abs(expected).max() > 0, name
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=name)


def gradient_of(value, model, gradients):
    """Return the gradient of the parameter that holds ``value``, which exporters may transpose."""
    for name, held in model.parameters.items():
        if np.array_equal(held, value):
            return gradients[name]
        if np.array_equal(held.T, value):
            return gradients[name].T
    raise AssertionError("the parameter is not in the model")
