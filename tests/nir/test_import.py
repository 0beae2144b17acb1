"""Imported graphs run on the simulator as the equations of NIR say."""

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest

import h2learn

from . import graphs

T, N = 12, 3


def run(model: h2learn.Model, x: np.ndarray) -> np.ndarray:
    result = h2learn.compile(model, batch=x.shape[1]).run({"input": x})
    return result.outputs["output"]


def inputs(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.3, 1.0, (T, N, *shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("constants", "dt"),
    [
        ({}, 1e-4),
        ({"tau": 1e-3, "r": 3.0}, 1e-4),
        ({"tau": 5e-4, "r": 4.0, "v_threshold": 0.7, "v_reset": -0.4}, 1e-4),
        ({"tau": 4e-3, "r": 7.0, "v_leak": 0.3, "v_threshold": 1.1, "v_reset": 0.1}, 1e-3),
        ({"tau": 2e-3, "r": -2.5, "v_threshold": 0.6}, 1e-3),
    ],
)
def test_a_lif_follows_forward_euler(constants: dict[str, float], dt: float) -> None:
    first, second = graphs.affine(1, 6, 4, 2.0), graphs.affine(2, 5, 6, 3.0)
    one, two = graphs.lif((6,), **constants), graphs.lif((5,), **constants)
    start, end = graphs.ports((4,), (5,))
    graph = graphs.chain(start, ("a", first), ("n", one), ("b", second), ("m", two), end)
    x = inputs(3, 4)
    spikes, u = graphs.euler(one, x @ first.weight.T + first.bias, dt)
    expected, v = graphs.euler(two, spikes @ second.weight.T + second.bias, dt)
    assert min(np.abs(u - one.v_threshold).min(), np.abs(v - two.v_threshold).min()) > 1e-5
    assert 0 < spikes.mean() < 1 and 0 < expected.mean() < 1
    model = h2learn.from_nir(graph, time_steps=T, dt=dt)
    np.testing.assert_array_equal(run(model, x), expected)


def test_positive_gains_leave_the_parameters_as_they_are_in_the_file() -> None:
    start, end = graphs.ports((4,), (6,))
    layer = graphs.affine(1, 6, 4)
    model = h2learn.from_nir(graphs.chain(start, ("a", layer), ("n", graphs.lif((6,), r=0.3)), end))
    np.testing.assert_array_equal(model.parameters["a.weight"], layer.weight)
    np.testing.assert_array_equal(model.parameters["a.bias"], layer.bias)


@pytest.mark.parametrize("soft", [False, True])
def test_constants_per_channel_and_integrators(soft: bool) -> None:
    random = np.random.default_rng(5)
    cell = nir.LIF(
        *(random.uniform(low, high, 6) for low, high in [(2e-4, 2e-3), (1, 4)]),
        np.zeros(6),
        random.uniform(0.3, 0.9, 6),
        np.zeros(6) if soft else random.uniform(-0.2, 0.2, 6),
    )
    count = nir.IF(np.full(5, 4e3), np.full(5, 0.8), np.zeros(5))
    first, second = graphs.affine(1, 6, 4, 2.0), graphs.affine(2, 5, 6, 2.0)
    start, end = graphs.ports((4,), (5,))
    x = inputs(6, 4)
    spikes, u = graphs.euler(cell, x @ first.weight.T + first.bias, 1e-4, soft=soft)
    expected, v = graphs.euler(count, spikes @ second.weight.T + second.bias, 1e-4, soft=soft)
    assert min(np.abs(u - cell.v_threshold).min(), np.abs(v - count.v_threshold).min()) > 1e-5
    assert 0 < expected.mean() < 1
    graph = graphs.chain(start, ("a", first), ("n", cell), ("b", second), ("m", count), end)
    model = h2learn.from_nir(graph, time_steps=T, reset="soft" if soft else "hard")
    np.testing.assert_array_equal(run(model, x), expected)
    np.testing.assert_array_equal(model.parameters["a.weight"], first.weight)


def test_the_exponential_rule_is_exact_for_constant_currents() -> None:
    tau, dt, drive, r = 2.5e-3, 1e-3, 1.0, 1.3
    start, end = graphs.ports((1,), (1,))
    weight = nir.Linear(np.ones((1, 1), np.float32))
    integrator = nir.LI(np.full(1, tau), np.full(1, r), np.zeros(1))
    model = h2learn.from_nir(
        graphs.chain(start, ("w", weight), ("n", integrator), end), time_steps=T, dt=dt, discretisation="exponential"
    )
    found = run(model, np.full((T, 1, 1), drive, np.float32))[:, 0, 0]
    np.testing.assert_allclose(found, r * drive * (1 - np.exp(-dt * np.arange(1, T + 1) / tau)), rtol=1e-6)


def test_pools_scales_and_flattening() -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(8)
    kernel, dense = random.normal(0, 1, (3, 2, 3, 3)).astype(np.float32), graphs.affine(9, 4, 12, 1.5)
    conv = nir.Conv2d(None, kernel, (1, 2), 1, 1, 1, random.normal(0, 0.1, 3).astype(np.float32))
    cell, last = graphs.lif((3, 4, 4)), nir.LI(np.full(4, 1e-3), np.full(4, 5.0), np.zeros(4))
    scale = np.array([0.5, 1.5, -1.0], np.float32).reshape(3, 1, 1)
    graph = graphs.chain(
        ("input", nir.Input(np.array([1, 2, 4, 8]))),
        ("c", conv),
        ("n", cell),
        ("p", nir.SumPool2d(np.array([2, 3]), np.array([2, 2]), np.array([0, 1]))),
        ("s", nir.Scale(np.broadcast_to(scale, (3, 2, 2)).copy())),
        ("f", nir.Flatten(np.array([3, 2, 2]), 0, -1)),
        ("d", dense),
        ("l", last),
        ("output", nir.Output(np.array([1, 4]))),
    )
    x = inputs(10, 2, 4, 8)
    flat = torch.tensor(x.reshape(-1, 2, 4, 8)).double()
    currents = torch.nn.functional.conv2d(
        flat, torch.tensor(kernel).double(), torch.tensor(conv.bias).double(), (1, 2), 1
    )
    spikes, u = graphs.euler(cell, currents.numpy().reshape(T, N, 3, 4, 4), 1e-4)
    assert np.abs(u - 1).min() > 1e-5 and 0 < spikes.mean() < 1
    padded = np.pad(spikes.reshape(T, N, 3, 4, 4), ((0, 0),) * 4 + ((1, 1),))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2, 3), (3, 4))[:, :, :, ::2, ::2]
    sums = windows.sum((5, 6)) * scale
    drive, v, expected = sums.reshape(T, N, 12) @ dense.weight.T.astype(np.float64) + dense.bias, 0.0, []
    for current in drive:
        v = 0.9 * v + 0.1 * 5.0 * current
        expected.append(v)
    model = h2learn.from_nir(graph, time_steps=T)
    assert model.inputs["input"].shape == (T, 1, 2, 4, 8)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-4, atol=1e-4)


def test_layers_without_neurons_between_them() -> None:
    first, second = graphs.affine(1, 6, 4, 2.0), graphs.affine(2, 5, 6, 3.0)
    start, end = graphs.ports((1, 4, 4), (5,))
    pool = nir.AvgPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0]))
    flat = nir.Flatten(np.array([1, 2, 2]), 0, -1)
    graph = graphs.chain(start, ("p", pool), ("f", flat), ("a", first), ("b", second), end)
    x = inputs(3, 1, 4, 4)
    mean = x.astype(np.float64).reshape(T, N, 2, 2, 2, 2).mean((3, 5)).reshape(T, N, 4)
    expected = (mean @ first.weight.T + first.bias) @ second.weight.T + second.bias
    np.testing.assert_allclose(run(h2learn.from_nir(graph, time_steps=T), x), expected, rtol=1e-4, atol=1e-5)


def test_nested_graphs_are_opened() -> None:
    start, end = graphs.ports((4,), (5,))
    inner = graphs.chain(
        *[graphs.ports((4,), (6,))[0], ("a", graphs.affine(1, 6, 4)), ("n", graphs.lif((6,)))],
        graphs.ports((4,), (6,))[1],
    )
    tail = [("b", graphs.affine(2, 5, 6)), ("m", graphs.lif((5,))), end]
    nested = h2learn.from_nir(graphs.chain(start, ("block", inner), *tail), time_steps=T)
    plain = h2learn.from_nir(graphs.chain(start, *list(inner.nodes.items())[1:-1], *tail), time_steps=T)
    assert list(nested.parameters) == ["block.a.weight", "block.a.bias", "b.weight", "b.bias"]
    np.testing.assert_array_equal(run(nested, inputs(1, 4)), run(plain, inputs(1, 4)))


def test_encoders_and_batches(tmp_path: Path) -> None:
    start, end = graphs.ports((4,), (6,))
    path = graphs.write(
        tmp_path / "net.nir", graphs.chain(start, ("a", graphs.affine(1, 6, 4)), ("n", graphs.lif((6,))), end)
    )
    model = h2learn.load_model(path, time_steps=3, encode="direct").with_batch(2)
    assert model.inputs["input"].shape == (2, 4) and model.outputs["output"].shape == (3, 2, 6)
    assert h2learn.load_model(path).inputs["input"].shape == (16, 1, 4)


def test_what_was_assumed_is_said() -> None:
    start, end = graphs.ports((4,), (6,))
    graph = graphs.chain(start, ("a", graphs.affine(1, 6, 4)), ("n", graphs.lif((6,), r=0.3)), end)
    said = "\n".join(h2learn.from_nir(graph).notes)
    for part in (
        "0.0001 s",
        "forward-euler",
        "reset hard",
        "16 time steps",
        "u > threshold",
        "n (LIF): alpha 0.5, gain 0.15",
    ):
        assert part in said
    given = h2learn.from_nir(graph, dt=1e-4, reset="hard", discretisation="forward-euler", time_steps=2).notes
    assert given[0] == "assumed spikes at u > threshold (the file does not say)"


def refusal(*nodes: tuple[str, Any], **options: Any) -> str:
    with pytest.raises(h2learn.H2LearnError) as caught:
        h2learn.from_nir(graphs.chain(*nodes), **options)
    return caught.value.render()


def test_all_refusals_come_at_once() -> None:
    start, end = graphs.ports((4,), (4,))
    conv = nir.Conv1d(9, np.ones((4, 4, 2)), 1, "same", 1, 1, np.zeros(4))
    text = refusal(start, ("c", conv), ("s", nir.Scale(np.ones(4))), ("d", conv), end)
    for part in ("2 things", "node c (Conv1d), field padding", "node d (Conv1d)"):
        assert part in text


def test_loops_and_loose_ends_are_refused() -> None:
    start, end = graphs.ports((4,), (4,))
    nodes = dict([start, ("a", graphs.affine(1, 4, 4)), ("n", graphs.lif((4,))), ("w", graphs.affine(2, 4, 4)), end])
    edges = [("input", "a"), ("a", "n"), ("n", "output"), ("n", "w"), ("w", "a")]
    with pytest.raises(h2learn.H2LearnError) as caught:
        h2learn.from_nir(nir.NIRGraph(nodes, edges, type_check=False))
    assert "the edge from w closes a loop" in caught.value.render()
    with pytest.raises(h2learn.H2LearnError, match="no edge leads"):
        h2learn.from_nir(nir.NIRGraph(nodes, edges[:3], type_check=False))


@pytest.mark.parametrize(
    ("node", "words"),
    [
        (graphs.lif((5,)), "field tau: expected shape"),
        (graphs.lif((6,), tau=-1.0), "field tau: expected a positive time constant"),
        (graphs.lif((6,), tau=1e-6), "field tau: forward Euler needs"),
        (graphs.lif((6,), r=0.0), "gain of 0"),
        (graphs.lif((6,), v_threshold=float("nan")), "field v_threshold: expected finite"),
        (graphs.cuba((6,), tau_syn=1e-6), "field tau_syn: forward Euler needs"),
        (graphs.affine(1, 6, 5), "field weight: expected weights for 6 inputs, found 5"),
        (nir.Scale(np.ones(7)), "field scale: expected shape"),
    ],
)
def test_fields_that_do_not_fit_are_named(node: Any, words: str) -> None:
    start, end = graphs.ports((4,), (6,))
    assert words in refusal(start, ("a", graphs.affine(1, 6, 4)), ("n", node), end)


def test_snntorch_subtract_takes_the_threshold_off_one_step_later() -> None:
    start, end = graphs.ports((4,), (6,))
    layer, cell = graphs.affine(1, 6, 4, 2.0), graphs.lif((6,), tau=1e-3, r=10.0, v_threshold=0.8)
    x = inputs(12, 4)
    u, s, expected = np.zeros((N, 6)), np.zeros((N, 6)), []
    for current in x @ layer.weight.T.astype(np.float64) + layer.bias:
        u = 0.9 * u + current - 0.8 * s
        s = u > 0.8
        expected.append(s)
    model = h2learn.from_nir(graphs.chain(start, ("a", layer), ("n", cell), end), time_steps=T, producer="snntorch")
    np.testing.assert_array_equal(run(model, x), expected)
    assert 0 < np.mean(expected) < 1


@pytest.mark.parametrize(("producer", "most"), [("sinabs", None), ("rockpool", 2), ("sinabs", 1)])
def test_several_spikes_per_step(producer: str, most: int | None) -> None:
    start, end = graphs.ports((4,), (6,))
    dt = {"sinabs": 1.0, "rockpool": 1e-3}[producer]
    layer, cell = graphs.affine(1, 6, 4, 4.0), graphs.lif((6,), tau=4 * dt, r=1 / (1 - np.exp(-0.25)), v_threshold=0.3)
    x = inputs(12, 4)
    u, expected = np.zeros((N, 6)), []
    for current in x @ layer.weight.T.astype(np.float64) + layer.bias:
        u = np.exp(-0.25) * u + current
        s = np.clip(np.floor(u / 0.3), 0, most)
        u = u - 0.3 * s
        expected.append(s)
    graph, options = graphs.chain(start, ("a", layer), ("n", cell), end), {} if most is None else {"max_spikes": most}
    model = h2learn.from_nir(graph, time_steps=T, producer=producer, **options)
    np.testing.assert_array_equal(run(model, x), expected)
    assert np.max(expected) == most or np.max(expected) > 3
    assert ("any number of spikes per step" in model.notes[0]) == (most is None)


@pytest.mark.parametrize("discretisation", ["forward-euler", "exponential"])
def test_synaptic_currents(discretisation: str) -> None:
    dt, tau_syn, tau_mem = 1e-4, 4e-4, 1e-3
    constants = {"tau_syn": tau_syn, "tau_mem": tau_mem, "r": 3.0, "v_leak": 0.1, "w_in": 1.5, "v_threshold": 0.9}
    first, second = graphs.affine(1, 6, 4, 3.0), graphs.affine(2, 5, 6, 3.0)
    last = nir.CubaLI(*(np.full(5, constants[name]) for name in ("tau_syn", "tau_mem", "r", "v_leak", "w_in")))
    start, end = graphs.ports((4,), (5,))
    graph = graphs.chain(start, ("a", first), ("n", graphs.cuba((6,), **constants)), ("b", second), ("m", last), end)
    euler = discretisation == "forward-euler"
    beta, alpha = (1 - dt / tau if euler else np.exp(-dt / tau) for tau in (tau_syn, tau_mem))

    def potentials(currents: np.ndarray, fires: bool) -> tuple[np.ndarray, np.ndarray]:
        i, v, spikes, seen = 0.0, np.full(currents.shape[1:], 0.1), [], []
        for current in currents:
            i = beta * i + (1 - beta) * 1.5 * current
            u = 0.1 + alpha * (v - 0.1) + (1 - alpha) * 3.0 * i
            s = (u > 0.9) & fires
            v = np.where(s, 0.0, u)
            spikes.append(s)
            seen.append(u)
        return np.array(spikes), np.array(seen)

    x = inputs(13, 4)
    spikes, u = potentials(x @ first.weight.T.astype(np.float64) + first.bias, True)
    expected = potentials(spikes @ second.weight.T.astype(np.float64) + second.bias, False)[1]
    assert np.abs(u - 0.9).min() > 1e-5 and 0 < spikes.mean() < 1
    model = h2learn.from_nir(graph, time_steps=T, dt=dt, discretisation=discretisation)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


def test_a_threshold_has_no_memory() -> None:
    start, end = graphs.ports((4,), (6,))
    layer, level = graphs.affine(1, 6, 4, 2.0), np.linspace(0.1, 0.6, 6)
    model = h2learn.from_nir(graphs.chain(start, ("a", layer), ("t", nir.Threshold(level)), end), time_steps=T)
    x = inputs(14, 4)
    np.testing.assert_array_equal(run(model, x), x @ layer.weight.T.astype(np.float64) + layer.bias > level)


def test_integrators_may_leak_to_any_potential() -> None:
    start, end = graphs.ports((4,), (6,))
    layer, cell = graphs.affine(1, 6, 4), nir.LI(np.full(6, 1e-3), np.full(6, 2.0), np.linspace(-0.5, 0.5, 6))
    model = h2learn.from_nir(graphs.chain(start, ("a", layer), ("n", cell), end), time_steps=T)
    x, v, expected = inputs(15, 4), cell.v_leak, []
    for current in x @ layer.weight.T.astype(np.float64) + layer.bias:
        v = v + 0.1 * ((cell.v_leak - v) + 2.0 * current)
        expected.append(v)
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"dt": 0.0}, "positive time step"),
        ({"dt": float("inf")}, "positive time step"),
        ({"reset": "soft-ish"}, "expected reset"),
        ({"producer": "keras"}, "expected producer"),
        ({"time_steps": 0}, "at least 1 time step"),
        ({"encode": "latency"}, "expected encode"),
        ({"discretisation": "rk4"}, "expected discretisation"),
        ({"max_spikes": -1}, "spikes per step, found -1"),
    ],
)
def test_options_that_do_not_exist(option: dict[str, Any], words: str) -> None:
    with pytest.raises(h2learn.H2LearnError, match=words):
        h2learn.from_nir(graphs.chain(*graphs.ports((1,), (1,))), **option)


@pytest.mark.parametrize("content", [None, b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(200)])
def test_files_that_are_no_graphs(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.nir"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(h2learn.H2LearnError):
        h2learn.load_model(path)
