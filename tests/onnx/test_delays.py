"""Spikes and currents that arrive some steps later, beside those that do not."""

import pytest

from .cells import lif
from .test_exports import check, spikes_over_time

torch = pytest.importorskip("torch")
nn = torch.nn


def neurons(currents):
    v, found = torch.zeros(()), []
    for current in currents:
        s, v = lif(v, current)
        found.append(s)
    return torch.stack(found)


def later(x, steps):
    return torch.cat([torch.zeros(steps, *x.shape[1:]), x[:-steps]])


class Net(nn.Module):
    """``second`` makes the currents of the second layer from its input and the spikes of the first one."""

    def __init__(self, second, bias):
        super().__init__()
        torch.manual_seed(2)
        self.f1, self.f2, self.f3 = nn.Linear(6, 7), nn.Linear(7, 4, bias), nn.Linear(7, 4, bias)
        self.short, self.second = nn.Linear(6, 4), second
        for layer in (self.f1, self.f2, self.f3, self.short):
            nn.init.normal_(layer.weight, 0.3, 0.7)

    def forward(self, x):
        s = neurons(self.f1(step) for step in x)
        return neurons(self.second(self, x, s))


class Pipeline(Net):
    """Every layer reads what the layer before gave in the step before, as a loop over layers from the last one does."""

    def forward(self, x):
        v1, v2, before, found = torch.zeros(()), torch.zeros(()), torch.zeros(x.shape[1], 7), []
        for step in x:
            y, v2 = lif(v2, self.f2(before))
            before, v1 = lif(v1, self.f1(step))
            found.append(y)
        return torch.stack(found)


SECONDS = {
    "one step": lambda net, x, s: [net.f2(step) for step in later(s, 1)],
    "two steps": lambda net, x, s: [net.f2(step) for step in later(s, 2)],
    "beside no delay": lambda net, x, s: [net.f2(a) + net.f3(b) for a, b in zip(later(s, 1), s, strict=True)],
    "two delays": lambda net, x, s: [net.f2(a) + net.f3(b) for a, b in zip(later(s, 1), later(s, 2), strict=True)],
    "of the input": lambda net, x, s: [net.f2(a) + net.short(b) for a, b in zip(s, later(x, 1), strict=True)],
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", SECONDS)
def test_delays(tmp_path, name, bias):
    model = check(Net(SECONDS[name], bias), spikes_over_time(shape=(5, 2, 6)), tmp_path / "net.onnx")
    delays = [tuple(op.steps.get_values()) for op in model.module.walk() if op.name == "spike.delay"]
    assert sorted(delays) == {"two steps": [(2,)], "two delays": [(1,), (2,)]}.get(name, [(1,)])
    assert len([op for op in model.module.walk() if op.name == "spike.lif"]) == 2, "delayed or not, it is one layer"


@pytest.mark.parametrize("bias", [True, False])
def test_a_pipeline_of_layers(tmp_path, bias):
    model = check(Pipeline(None, bias), spikes_over_time(shape=(5, 2, 6)), tmp_path / "net.onnx")
    assert [op for op in model.module.walk() if op.name == "spike.delay"]
