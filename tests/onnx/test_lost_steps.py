"""Resets that lose the step behind a spike with its current, as snnTorch's `zero` of several neurons does."""

import numpy as np
import pytest

import h2learn

from ..surrogate import fire
from .autograd import compare, imported

torch = pytest.importorskip("torch")
nn = torch.nn


class Net(nn.Module):
    """Neurons of which a spike of the step before leaves ``level`` alone."""

    def __init__(self, kind, level=0.0, recurrent=False):
        super().__init__()
        torch.manual_seed(6)
        self.kind, self.level = kind, level
        self.a, self.b = nn.Linear(10, 12), nn.Linear(12, 4)
        self.back = nn.Linear(12, 12, bias=False) if recurrent else None
        for layer in (self.a, self.b, *([self.back] if recurrent else [])):
            nn.init.normal_(layer.weight, 0.05, 0.4)

    def forward(self, x):
        u, i, s, found, potentials = torch.zeros(x.shape[1], 12), 0.0, torch.zeros(x.shape[1], 12), [], []
        for step in x:
            current = self.a(step)
            if self.back is not None:
                current = current + self.back(s)
            i = 0.5 * i + current if self.kind == "synapse" else current
            held, full = s.detach(), 0.7 * u + i
            u = full - held * (full - self.level) if self.level else full - held * full
            s = fire(u - 0.3)
            found.append(self.b(s))
            potentials.append(u)
        return torch.stack(found), torch.stack(potentials)


def example(steps=5):
    return torch.rand(steps, 3, 10, generator=torch.Generator().manual_seed(8)) * 1.5


@pytest.mark.parametrize("level", [0.0, -0.2])
@pytest.mark.parametrize("kind", ["plain", "synapse"])
def test_outputs_and_gradients(kind, level, tmp_path):
    model = compare(Net(kind, level), example(), tmp_path / "net.onnx")
    assert any(f"reset hard-delayed to {level:g}" in note for note in model.notes)


@pytest.mark.parametrize("steps", [2, 3, 8])
def test_any_number_of_steps(steps, tmp_path):
    compare(Net("plain"), example(steps), tmp_path / "net.onnx")


@pytest.mark.parametrize("kind", ["plain", "synapse"])
def test_recurrent_neurons_run(kind, tmp_path):
    net, x = Net(kind, recurrent=True), example()
    found = h2learn.compile(imported(net, x, tmp_path / "net.onnx")).run({"input": x.numpy()}).outputs
    for value, expected in zip(found.values(), net(x), strict=True):
        np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
        assert np.ptp(expected.detach().numpy()) > 0.3


@pytest.mark.parametrize(
    "cell",
    [
        lambda snn: snn.Synaptic(alpha=0.7, beta=0.6, threshold=0.4, reset_mechanism="zero"),
        lambda snn: snn.Lapicque(beta=0.7, threshold=0.4, reset_mechanism="zero"),
    ],
)
def test_snntorch(cell, tmp_path):
    snn = pytest.importorskip("snntorch")

    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.a, self.b, self.cell = nn.Linear(10, 12), nn.Linear(12, 4), cell(snn)
            self.cell.spike_grad = fire

        def forward(self, x):
            state, found = self.cell.reset_mem(), []
            state = state if isinstance(state, tuple) else (state,)
            for step in x:
                s, *state = self.cell(self.a(step), *state)
                found.append(self.b(s))
            return torch.stack(found)

    compare(Cells(), example() * 2, tmp_path / "net.onnx")
