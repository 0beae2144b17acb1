"""NIR graphs that are no chains, and convolutions of all kinds, against the equations and PyTorch."""

from typing import Any

import nir
import numpy as np
import pytest

import h2learn

from . import graphs

T, N = 5, 3
DT = 1e-4


def run(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    return dict(h2learn.compile(model, batch=N).run({"input": x}).outputs)


def rand(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def same_again(graph: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """Import, run, export, import again; both give the same."""
    model = h2learn.from_nir(graph, time_steps=T, dt=DT)
    found = run(model, x)
    again = h2learn.to_nir(model)
    assert sorted(again.edges) == sorted((str(a), str(b)) for a, b in graph.edges)
    for name, value in run(h2learn.from_nir(again, time_steps=T, dt=DT), x).items():
        np.testing.assert_array_equal(found[name], value)
    return found


@pytest.mark.parametrize("skip", ["currents", "spikes", "input"])
def test_residual_graphs(skip: str) -> None:
    first, second, short, cell = graphs.affine(1, 6, 4, 3.0), graphs.affine(2, 6, 6, 2.0), graphs.affine(3, 6, 4), 0
    cell, last = graphs.lif((6,)), graphs.lif((6,), tau=4e-4)
    start, end = graphs.ports((4,), (6,))
    nodes = dict([start, ("a", first), ("n", cell), ("b", second), ("s", short), ("m", last), end])
    edges = [("input", "a"), ("a", "n"), ("n", "b"), ("b", "m"), ("m", "output")]
    edges += {"currents": [("a", "m")], "spikes": [("n", "m")], "input": [("input", "s"), ("s", "m")]}[skip]
    if skip != "input":
        del nodes["s"]
    x = rand(T, N, 4)
    current = x @ first.weight.T + first.bias
    spikes, _ = graphs.euler(cell, current, DT)
    beside = {"currents": current, "spikes": spikes, "input": x @ short.weight.T + short.bias}[skip]
    expected, _ = graphs.euler(last, spikes @ second.weight.T + second.bias + beside, DT)
    found = same_again(nir.NIRGraph(nodes, edges, type_check=False), x)["output"]
    np.testing.assert_array_equal(found, expected)
    assert 0 < expected.mean() < 1


def test_sums_of_spikes_and_several_outputs() -> None:
    first, second, third = graphs.affine(1, 6, 4, 3.0), graphs.affine(2, 6, 6, 2.0), graphs.affine(3, 5, 6, 2.0)
    cell, count = graphs.lif((6,)), graphs.lif((5,))
    nodes = {
        "input": nir.Input(np.array([4])),
        "a": first,
        "n": cell,
        "b": second,
        "m": graphs.lif((6,)),
        "c": third,
        "k": count,
        "output": nir.Output(np.array([5])),
        "middle": nir.Output(np.array([6])),
    }
    edges = [("input", "a"), ("a", "n"), ("n", "b"), ("b", "m"), ("m", "c"), ("n", "c"), ("c", "k"), ("k", "output")]
    edges.append(("m", "middle"))
    x = rand(T, N, 4)
    s, _ = graphs.euler(cell, x @ first.weight.T + first.bias, DT)
    m, _ = graphs.euler(nodes["m"], s @ second.weight.T + second.bias, DT)
    expected, _ = graphs.euler(count, (s * 1.0 + m) @ third.weight.T + third.bias, DT)
    found = same_again(nir.NIRGraph(nodes, edges, type_check=False), x)
    np.testing.assert_array_equal(found["output"], expected)
    np.testing.assert_array_equal(found["middle"], m)
    assert 0 < expected.mean() < 1


CONVOLUTIONS = [
    ("Conv2d", (4, 6, 6), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 1), "groups": 1}),
    ("Conv2d", (4, 6, 6), {"stride": (1, 1), "padding": (2, 2), "dilation": (2, 2), "groups": 2}),
    ("Conv2d", (4, 6, 6), {"stride": (1, 1), "padding": "same", "dilation": (2, 1), "groups": 4}),
    ("Conv1d", (4, 9), {"stride": 2, "padding": 1, "dilation": 1, "groups": 1}),
    ("Conv1d", (4, 9), {"stride": 1, "padding": "same", "dilation": 2, "groups": 2}),
    ("Conv1d", (4, 9), {"stride": 1, "padding": "valid", "dilation": 1, "groups": 4}),
]


@pytest.mark.parametrize(("kind", "shape", "window"), CONVOLUTIONS)
@pytest.mark.parametrize("scaled", [False, True])
def test_convolutions(kind: str, shape: tuple[int, ...], window: dict[str, Any], scaled: bool) -> None:
    torch = pytest.importorskip("torch")
    function = getattr(torch.nn.functional, kind.lower())
    generator = np.random.default_rng(7)
    groups = int(window["groups"])
    weight = generator.normal(0.3, 0.6, (8, 4 // groups, *[3] * (len(shape) - 1))).astype(np.float32)
    bias = generator.normal(0, 0.2, 8).astype(np.float32)
    x, factor = rand(T, N, *shape), np.linspace(0.5, 2.0, 4) if scaled else np.ones(4)
    factor = factor.reshape(4, *[1] * (len(shape) - 1))
    flat = torch.from_numpy((x * factor.astype(np.float32)).reshape(-1, *shape))
    current = function(flat, torch.from_numpy(weight), torch.from_numpy(bias), **window).numpy()
    current = current.reshape(T, N, *current.shape[1:])
    conv = getattr(nir, kind)(shape[1] if kind == "Conv1d" else shape[1:], weight, bias=bias, **window)
    cell = graphs.lif(current.shape[2:])
    start, end = graphs.ports(shape, current.shape[2:])
    scale = [("s", nir.Scale(np.broadcast_to(factor, shape).astype(np.float32)))] if scaled else []
    found = same_again(graphs.chain(start, *scale, ("c", conv), ("n", cell), end), x)["output"]
    expected, _ = graphs.euler(cell, current, DT)
    np.testing.assert_array_equal(found, expected)
    assert 0 < expected.mean() < 1


def test_what_a_sum_cannot_take() -> None:
    start, end = graphs.ports((4,), (4,))
    nodes = dict([start, ("a", graphs.affine(1, 4, 4)), ("b", graphs.affine(2, 3, 4)), ("n", graphs.lif((4,))), end])
    edges = [("input", "a"), ("input", "b"), ("a", "n"), ("b", "n"), ("n", "output")]
    with pytest.raises(h2learn.H2LearnError, match="expected inputs of one shape"):
        h2learn.from_nir(nir.NIRGraph(nodes, edges, type_check=False))
    nodes["b"] = nir.Scale(np.full(4, 2.0))
    with pytest.raises(h2learn.H2LearnError, match="expected a layer with weights before it that takes in the scale"):
        h2learn.from_nir(nir.NIRGraph(nodes, edges, type_check=False))
