"""Gradients and updates of imported graphs are those of the file's own parameters."""

import numpy as np
import pytest

import h2learn

from ..surrogate import fire
from . import graphs

torch = pytest.importorskip("torch")

T, N, LR = 6, 4, 0.5


@pytest.mark.parametrize("surrogate", [None, h2learn.Rectangular(half_width=0.8, height=0.6)])
def test_gradients_of_neurons_with_a_gain(surrogate: h2learn.Rectangular | None) -> None:
    width, height = (0.5, 1.0) if surrogate is None else (surrogate.half_width, surrogate.height)
    constants = {"tau": 8e-4, "r": 3.0, "v_leak": 0.2, "v_threshold": 0.9, "v_reset": -0.1}
    layers = {"a": graphs.affine(1, 7, 5, 2.0), "b": graphs.affine(2, 3, 7, 4.0)}
    cell = graphs.lif((7,), **constants)
    start, end = graphs.ports((5,), (3,))
    graph = graphs.chain(
        start, ("a", layers["a"]), ("n", cell), ("b", layers["b"]), ("m", graphs.lif((3,), **constants)), end
    )
    random = np.random.default_rng(3)
    x, y = random.normal(0.5, 1, (T, N, 5)).astype(np.float32), random.integers(0, 3, N).astype(np.int32)

    weights = {
        f"{name}.{field}": torch.tensor(getattr(layer, field)).double().requires_grad_()
        for name, layer in layers.items()
        for field in ("weight", "bias")
    }
    signal = torch.tensor(x).double()
    leak, reset, theta, ratio = (
        constants["v_leak"],
        constants["v_reset"],
        constants["v_threshold"],
        1e-4 / constants["tau"],
    )
    for name in layers:
        current, v, spikes = signal @ weights[f"{name}.weight"].T + weights[f"{name}.bias"], torch.tensor(leak), []
        for i in current:
            u = v + ratio * ((leak - v) + constants["r"] * i)
            s = fire(u - theta, width, height)
            v = u * (1 - s) + reset * s
            spikes.append(s)
        signal = torch.stack(spikes)
    loss = torch.nn.functional.cross_entropy(signal.mean(0), torch.tensor(y).long())
    loss.backward()
    assert all(weight.grad.abs().max() > 1e-4 for weight in weights.values())

    recipe = h2learn.Train(optimizer=h2learn.SGD(lr=LR), surrogate=surrogate)
    step = h2learn.compile(h2learn.from_nir(graph, time_steps=T), batch=N, train=recipe)
    result = step.run({"input": x, "label": y})
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in weights.items():
        np.testing.assert_allclose(result.gradients[name], weight.grad.numpy(), rtol=1e-4, atol=1e-6)
        updated = (weight - LR * weight.grad).detach().numpy()
        np.testing.assert_allclose(result.parameters[name], updated, rtol=1e-4, atol=1e-6)
