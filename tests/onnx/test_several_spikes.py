"""Neurons with several spikes per step and potentials with a lower bound, in many spellings, against PyTorch."""

import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

torch = pytest.importorskip("torch")

from .test_exports import check, export, spikes_over_time  # noqa: E402

nn = torch.nn

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
