"""What a graph makes of spikes without a layer in between: factors, filters, the last step; values after the reset."""

import numpy as np
import pytest

import h2learn

from ..surrogate import fire
from .autograd import compare, imported

torch = pytest.importorskip("torch")
nn = torch.nn


class Net(nn.Module):
    """Two layers of neurons; ``after`` turns the spikes of the first, one per step, into what the second reads."""

    def __init__(self, after=None, end=None):
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b = nn.Linear(10, 12), nn.Linear(12, 4)
        self.after, self.end = after, end
        for layer in (self.a, self.b):
            nn.init.normal_(layer.weight, 0.05, 0.4)

    def neurons(self, currents, reset=lambda u, s: u * (1 - s)):
        u, found = 0.0, []
        for x in currents:
            u = 0.6 * u + x
            s = fire(u - 0.4)
            rest = reset(u, s)
            found.append((s, u, rest))
            u = rest
        return found

    def forward(self, x):
        spikes = [s for s, _, _ in self.neurons([self.a(step) for step in x])]
        read = self.after(spikes) if self.after else spikes
        return self.end([self.b(s) for s in read], self)


def example():
    return torch.rand(4, 3, 10, generator=torch.Generator().manual_seed(8)) * 1.5


def leaky(spikes):
    y, found = 0.0, []
    for s in spikes:
        y = 0.7 * y + 0.5 * s
        found.append(y)
    return found


AFTER = {
    "graded": lambda spikes: [2.5 * s for s in spikes],
    "graded by channel": lambda spikes: [s * torch.linspace(0.5, 2, 12) for s in spikes],
    "filter": leaky,
    "filter with an offset": lambda spikes: [y + 0.25 for y in leaky(spikes)],
}


@pytest.mark.parametrize("after", AFTER)
def test_spikes_with_a_factor_or_a_memory(after, tmp_path):
    model = compare(Net(AFTER[after], lambda y, net: torch.stack(y)), example(), tmp_path / "net.onnx")
    assert sum(op.name == "spike.li" for op in model.module.walk()) == 2


ENDS = {
    "last": lambda spikes: spikes[-1],
    "mean with a factor": lambda spikes: 1.5 * torch.stack(spikes).mean(0),
    "last with a factor": lambda spikes: 2 * spikes[-1],
}


@pytest.mark.parametrize("end", ENDS)
def test_readouts_of_spikes(end, tmp_path):
    net = Net(end=lambda y, net: ENDS[end]([s for s, _, _ in net.neurons(y)]))
    compare(net, example(), tmp_path / "net.onnx")


RESETS = {
    "hard": lambda u, s: u * (1 - s),
    "hard to a level": lambda u, s: torch.where(s > 0, torch.full_like(u, -0.2), u),
    "soft": lambda u, s: u - 0.4 * s,
}


@pytest.mark.parametrize("reset", RESETS)
def test_potentials_after_the_reset_are_outputs(reset, tmp_path):
    def end(y, net):
        found = net.neurons(y, RESETS[reset])
        return torch.stack([s for s, _, _ in found]), torch.stack([rest for _, _, rest in found])

    net, x = Net(end=end), example()
    model = imported(net, x, tmp_path / "net.onnx")
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs
    for value, expected in zip(found.values(), net(x), strict=True):
        np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
        assert np.ptp(expected.detach().numpy()) > 0.3


def test_a_filter_that_spikes_reset_is_refused(tmp_path):
    def after(spikes):
        y, found = 0.0, []
        for s in spikes:
            y = y - (1 - s) * y / 2 + s
            found.append(y)
        return found

    with pytest.raises(h2learn.H2LearnError) as error:
        imported(Net(after, lambda y, net: torch.stack(y)), example(), tmp_path / "net.onnx")
    assert "its spikes are not 0 and 1" in error.value.excerpt
