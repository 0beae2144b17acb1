"""Residual networks exported by PyTorch: sums of currents in front of a neuron, sums of spikes behind neurons."""

import warnings

import numpy as np
import pytest

import h2learn

torch = pytest.importorskip("torch")
nn = torch.nn


class Lif(nn.Module):
    def forward(self, currents):
        u, s, spikes = torch.zeros_like(currents[0]), torch.zeros_like(currents[0]), []
        for x in currents:
            u = 0.5 * u * (1 - s) + x
            s = (u >= 1).to(x.dtype)
            spikes.append(s)
        return torch.stack(spikes)


class Residual(nn.Module):
    """``kind``: what is added to the second layer's current (or spikes)."""

    def __init__(self, kind, maps):
        super().__init__()
        torch.manual_seed(4)
        self.kind, self.lif = kind, Lif()

        def layer(inputs, outputs, size=3):
            return nn.Conv2d(inputs, outputs, size, padding=size // 2) if maps else nn.Linear(inputs, outputs)

        self.first, self.second, self.short, self.last = layer(2, 6), layer(6, 6), layer(2, 6, 1), layer(6, 3)
        for part in (self.first, self.second, self.short, self.last):
            nn.init.normal_(part.weight, 0.1, 1.2 / np.sqrt(part.weight[0].numel()) + 0.2)

    def each(self, layer, x):
        return torch.stack([layer(step) for step in x])

    def forward(self, x):
        current = self.each(self.first, x)
        s = self.lif(current)
        y = self.each(self.second, s)
        if self.kind == "projection":
            s = self.lif(y + self.each(self.short, x))
        elif self.kind == "identity":
            s = self.lif(y + s)
        elif self.kind == "currents":
            s = self.lif(y + current)
        elif self.kind == "three":
            s = self.lif(current + y + self.each(self.short, x))
        else:
            s = self.lif(y) + s
        return self.each(self.last, s)


class Static(Residual):
    """The same input in every step."""

    def forward(self, x):
        return super().forward(x.unsqueeze(0).expand(4, *x.shape))


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("kind", ["projection", "identity", "currents", "three", "spikes"])
def test_residual_networks(tmp_path, kind, maps):
    net, x = Residual(kind, maps), torch.rand((4, 2, 2, 5, 5) if maps else (4, 2, 2)) * 2
    compare(net, x, tmp_path / "net.onnx")


@pytest.mark.parametrize("kind", ["projection", "identity", "spikes"])
def test_residual_networks_on_a_static_input(tmp_path, kind):
    compare(Static(kind, True), torch.rand(2, 2, 5, 5) * 2, tmp_path / "net.onnx")


def compare(net, x, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), dynamo=False, input_names=["input"], output_names=["output"])
    model = h2learn.load_model(path)
    assert any(op.name == "spike.add" for op in model.module.walk())
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs["output"]
    expected = net(x).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected) > 0.1
