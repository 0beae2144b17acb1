"""Products of spikes in the graph: SEW's AND and IAND, other functions of two spikes, chains of blocks."""

import numpy as np
import pytest

import h2learn

from ..surrogate import fire
from .autograd import compare, imported

torch = pytest.importorskip("torch")
nn = torch.nn


class Blocks(nn.Module):
    """Convolutions and neurons; each block joins what comes in with its spikes."""

    def __init__(self, joins, fires=fire):
        super().__init__()
        torch.manual_seed(3)
        self.joins, self.fires = joins, fires
        sizes = (2, *[6] * len(joins))
        self.layers = nn.ModuleList(nn.Conv2d(n, 6, 3, padding=1) for n in (*sizes, 6)[: len(joins) + 1])
        self.last = nn.Linear(6 * 16, 4)
        for layer in self.layers:
            nn.init.normal_(layer.weight, 0.02, 0.35)

    def forward(self, x):
        states, out = [0.0] * len(self.layers), []
        for step in x:
            y = step
            for k, layer in enumerate(self.layers):
                u = 0.5 * states[k] + layer(y)
                s = self.fires(u - 0.3)
                states[k] = u * (1 - s)
                y = self.joins[k - 1](y, s) if k else s
            out.append(self.last(y.flatten(1)))
        return torch.stack(out)


JOINS = {
    "and": lambda a, b: a * b,
    "iand": lambda a, b: a * (1 - b),
    "iand, other way": lambda a, b: (1 - a) * b,
    "iand, subtracted": lambda a, b: a - a * b,
    "or": lambda a, b: a + b - a * b,
    "xor": lambda a, b: a + b - 2 * a * b,
}


def example(seed=5):
    return torch.rand(3, 2, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("join", JOINS)
def test_gradients_are_those_of_autograd(join, tmp_path):
    compare(Blocks([JOINS[join]]), example(), tmp_path / "net.onnx")


def test_blocks_in_a_row_and_the_newer_exporter(tmp_path):
    pytest.importorskip("onnxscript")
    model = compare(Blocks([JOINS["and"], JOINS["iand"]]), example(), tmp_path / "net.onnx", dynamo=True)
    assert [op.kind.data for op in model.module.walk() if op.name == "spike.gate"] == ["keep", "drop"]


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: torch.logical_and(a > 0, b > 0).float(),
        lambda a, b: torch.minimum(a, b),
        lambda a, b: torch.where(b > 0.5, a, torch.zeros_like(a)),
    ],
)
def test_functions_without_a_product_are_noted(join, tmp_path):
    net, x = Blocks([join], lambda u: (u > 0).float()), example()
    model = imported(net, x, tmp_path / "net.onnx")
    assert any("keep of spikes; in training its gradients are those of sums and products" in n for n in model.notes)
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs
    np.testing.assert_allclose(next(iter(found.values())), net(x).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("join", [lambda a, b: 1 - a * b, lambda a, b: a - b, lambda a, b: 0.5 * a * b])
def test_other_functions_are_refused(join, tmp_path):
    with pytest.raises(h2learn.H2LearnError, match="that cannot be imported"):
        imported(Blocks([join]), example(), tmp_path / "net.onnx")
