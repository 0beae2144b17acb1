"""Gates from the file to the machine: products of spikes against PyTorch, currents held back by spikes, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from xdsl.dialects import test
from xdsl.dialects.builtin import UnknownLoc
from xdsl.utils.exceptions import VerifyException

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.dialects import lut
from h2learn.dialects.lut import tensor
from h2learn.dialects.lut.gate import GateOp as LutGate
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import real, spikes

from ..surrogate import fire

NET = """network gates
input x: 2 x 5 x 5 over time
time steps: 3
neuron: lif(decay 0.5, threshold 0.4, reset hard, spike at u > threshold)
conv c1: 9 channels, kernel 3 x 3, padding 1
lif a
conv c2: 9 channels, kernel 3 x 3, padding 1
lif b
keep both: a, b
conv c3: 9 channels, kernel 3 x 3, padding 1
drop held: c3, b
lif c
drop one: both, c
flatten
linear f1: 3 features
li e: decay 0.7
readout membrane mean
init: normal gain 2 seed 3
"""


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {"x": rng.normal(0.3, 1, (3, 2, 2, 5, 5)).astype(np.float32), "label": np.array([2, 0], np.int32)}


def test_gradients_agree_with_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch autograd")
    functional = torch.nn.functional
    fed, model = inputs(), parse_snn(NET)
    result = h2learn.compile(model, train=h2learn.Train(optimizer=h2learn.SGD(lr=0.1)), batch=2).run(fed)
    p = {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in model.parameters.items()}

    def conv(x, name):
        return functional.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], padding=1)

    states, e, outputs = dict.fromkeys("abc", (0.0, 0.0)), 0.0, []

    def lif(current, name):
        u, s = states[name]
        u = 0.5 * u * (1 - s) + current
        states[name] = (u, fire(u - 0.4))
        return states[name][1]

    for x in torch.tensor(fed["x"], dtype=torch.float64):
        a = lif(conv(x, "c1"), "a")
        b = lif(conv(a, "c2"), "b")
        both = a * b
        c = lif(conv(both, "c3") * (1 - b.detach()), "c")
        one = both * (1 - c)
        e = 0.7 * e + functional.linear(one.flatten(1), p["f1.weight"], p["f1.bias"])
        outputs.append(e)
    loss = functional.cross_entropy(torch.stack(outputs).mean(0), torch.tensor(fed["label"], dtype=torch.long))
    loss.backward()
    assert abs(result.loss - loss.item()) < 1e-6
    for name, parameter in p.items():
        expected = parameter.grad.numpy()
        assert np.abs(expected).max() > 1e-4, name
        np.testing.assert_allclose(result.gradients[name], expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())


def test_a_gate_needs_spikes_of_one_shape() -> None:
    with pytest.raises(H2LearnError, match=r"expected spikes as the second value of a gate, found .* reals"):
        parse_snn(NET.replace("drop held: c3, b", "drop held: b, c3"))
    with pytest.raises(H2LearnError, match=r"expected spikes of the shape of 9 x 5 x 5 .* for a gate, found 8 x 5 x 5"):
        parse_snn(NET.replace("conv c2: 9", "conv c2: 8"))
    with pytest.raises(H2LearnError, match="expected two layers, found 3"):
        parse_snn(NET.replace("keep both: a, b", "keep both: a, b, a"))


@pytest.mark.parametrize(
    ("x", "s", "kind", "message"),
    [
        (spikes((2, 3)), spikes((2, 4)), "keep", "expected spikes of the shape"),
        (spikes((2, 3)), real((2, 3)), "keep", "expected s of i1"),
        (spikes((2, 3)), spikes((2, 3)), "negate", "expected reals to negate"),
        (real((2, 3)), spikes((2, 3)), "and", "expected kind to be one of keep, drop, negate"),
    ],
)
def test_refusals_of_the_spike_level(x, s, kind, message) -> None:
    operands = test.TestOp(result_types=[x, s]).results
    with pytest.raises(VerifyException, match=message):
        spike.GateOp(*operands, kind, location=UnknownLoc())


def test_refusals_of_the_lut_level() -> None:
    shape = (2, 1, 1, 1, 3)
    s, current, other = test.TestOp(
        result_types=[lut.SpikesType(shape), tensor(shape[1:]), tensor((1, 1, 1, 2))]
    ).results
    LutGate(current, s, "drop", tensor(shape)).verify()
    for x, kind, result, message in (
        (current, "or", tensor(shape), "expected kind keep, drop, negate, found or"),
        (current, "drop", tensor(shape[1:]), "expected values and a result of the shape"),
        (other, "drop", tensor(shape), "expected values and a result of the shape"),
        (s, "negate", lut.SpikesType(shape), "expected reals to negate"),
        (current, "keep", lut.SpikesType(shape), "keep their format"),
    ):
        with pytest.raises(VerifyException, match=message):
            LutGate(x, s, kind, result).verify()
