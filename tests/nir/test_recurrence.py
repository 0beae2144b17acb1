"""Neurons that receive their own spikes one step later, and delays: in, computed, trained, and out again."""

import nir
import numpy as np
import pytest

import h2learn

from . import graphs

T, N, K, DT = 9, 2, 6, 1e-4
DELAYED = 2


def recurrent(weights: object, **constants: float) -> nir.NIRGraph:
    """Return neurons with feedback as exporters write them: a graph of their own."""
    (start, entry), (end, exit_) = graphs.ports((K,), (K,))
    nodes = {start: entry, "lif": graphs.lif((K,), **constants), "w_rec": weights, end: exit_}
    edges = [(start, "lif"), ("lif", "w_rec"), ("w_rec", "lif"), ("lif", end)]
    return nir.NIRGraph(nodes, edges, type_check=False)


def network(weights: object, *between: tuple[str, object], **constants: float) -> nir.NIRGraph:
    """Return a recurrent layer behind a linear one, what stands ``between``, and a linear layer with neurons."""
    start, end = graphs.ports((4,), (3,))
    return graphs.chain(
        start,
        ("a", graphs.affine(1, K, 4, 2.0)),
        *between[:1],
        ("r", recurrent(weights, **constants)),
        ("d", nir.Delay(np.full(K, DELAYED * DT))),
        ("b", graphs.affine(2, 3, K, 5.0)),
        ("n", graphs.lif((3,))),
        end,
    )


def inputs() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 2, (T, N, 4)).astype(np.float32)


def euler_with_feedback(graph: nir.NIRGraph, x: np.ndarray, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the spikes of the recurrent layer and of the output, by forward Euler in float64."""
    a, b, inner = graph.nodes["a"], graph.nodes["b"], graph.nodes["r"]
    node, back = inner.nodes["lif"], inner.nodes["w_rec"]
    v, s, spikes = np.zeros((N, K)), np.zeros((N, K)), []
    for current in scale * (x.astype(np.float64) @ a.weight.T + a.bias):
        drive = current + s @ back.weight.T + getattr(back, "bias", 0.0)
        v = v + DT * ((node.v_leak - v) + node.r * drive) / node.tau
        s = (v > node.v_threshold).astype(np.float64)
        v = np.where(s, node.v_reset, v)
        spikes.append(s)
    hidden = np.stack(spikes)
    late = np.concatenate([np.zeros((DELAYED, N, K)), hidden[:-DELAYED]])
    return hidden, graphs.euler(graph.nodes["n"], late @ b.weight.T + b.bias, DT)[0]


@pytest.mark.parametrize("weights", [graphs.affine(3, K, K, 1.5), nir.Linear(np.eye(K, dtype=np.float32) * 0.8)])
def test_feedback_takes_one_step(weights: object) -> None:
    graph, x = network(weights), inputs()
    hidden, expected = euler_with_feedback(graph, x)
    assert hidden.any() and expected.any()
    model = h2learn.from_nir(graph, time_steps=T)
    assert "r.w_rec.weight" in model.parameters
    found = h2learn.compile(model, batch=N).run({"input": x}).outputs["output"]
    np.testing.assert_array_equal(found, expected)


def test_a_scale_acts_on_the_current_alone() -> None:
    graph, x = network(graphs.affine(3, K, K, 1.5), ("s", nir.Scale(np.full(K, 0.5)))), inputs()
    expected = euler_with_feedback(graph, x, 0.5)[1]
    assert expected.any()
    model = h2learn.from_nir(graph, time_steps=T)
    np.testing.assert_array_equal(h2learn.compile(model, batch=N).run({"input": x}).outputs["output"], expected)


def test_the_graph_comes_back() -> None:
    graph, x = network(graphs.affine(3, K, K, 1.5)), inputs()
    model = h2learn.from_nir(graph, time_steps=T)
    back = h2learn.to_nir(model)
    assert {("r.lif", "r.w_rec"), ("r.w_rec", "r.lif"), ("r.lif", "d")} <= set(back.edges)
    again = h2learn.from_nir(back, time_steps=T)
    first, second = (h2learn.compile(m, batch=N).run({"input": x}).outputs["output"] for m in (model, again))
    np.testing.assert_array_equal(first, second)


def test_a_text_model_with_feedback_is_exported() -> None:
    text = """network tiny
    input x: 4 over time
    time steps: 9
    neuron: lif(spike at u > threshold, reset hard)
    linear a: 6 features
    recurrent r: decay 0.75
    delay: 2 steps
    linear b: 3 features
    lif n: decay 0.75
    init: normal gain 3.0 seed 2
    """
    from h2learn.compiler.frontends.dsl import parse_snn

    model = parse_snn("\n".join(line.strip() for line in text.splitlines()))
    again = h2learn.from_nir(h2learn.to_nir(model), time_steps=T)
    found = [h2learn.compile(m, batch=N).run({name: inputs()}) for m, name in ((model, "x"), (again, "x"))]
    assert found[0].outputs["output"].any()
    np.testing.assert_array_equal(found[0].outputs["output"], found[1].outputs["output"])


def test_it_trains() -> None:
    model = h2learn.from_nir(network(graphs.affine(3, K, K, 1.5)), time_steps=T)
    train = h2learn.Train(loss="mse_rate", surrogate=h2learn.Triangular(half_width=1.5))
    step = h2learn.compile(model, batch=N, train=train)
    with step.session() as device:
        data = {"input": inputs(), "label": np.array([0, 2], dtype=np.int32)}
        losses = [device.run(data, lr=0.5).loss for _ in range(12)]
        moved = np.abs(device.parameters["r.w_rec.weight"] - model.parameters["r.w_rec.weight"]).max()
    assert min(losses) < losses[0] and moved > 0


def test_a_delay_beyond_the_last_step_leaves_nothing() -> None:
    start, end = graphs.ports((4,), (K,))
    nodes = (start, ("a", graphs.affine(1, K, 4, 2.0)), ("n", graphs.lif((K,))), ("d", nir.Delay(np.full(K, 1e5))), end)
    program = h2learn.compile(h2learn.from_nir(graphs.chain(*nodes), time_steps=T), batch=N)
    assert not np.asarray(program.run({"input": inputs()}).outputs["output"]).any()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (np.full(K, 0.5 * DT), "field delay: expected a multiple of dt"),
        (np.full(K, -DT), "field delay: expected a multiple of dt 0.0001 from 0"),
        (np.full(K, 1e38), "field delay: expected a multiple of dt"),
        (np.full(K + 1, DT), "field delay: expected shape"),
        (np.full(K, np.nan), "field delay: expected finite"),
    ],
)
def test_delays_that_do_not_fit(seconds: np.ndarray, words: str) -> None:
    start, end = graphs.ports((K,), (K,))
    nodes = (start, ("a", graphs.affine(1, K, K)), ("n", graphs.lif((K,))), ("d", nir.Delay(seconds)), end)
    with pytest.raises(h2learn.H2LearnError, match=words):
        h2learn.from_nir(graphs.chain(*nodes))


def test_feedback_of_another_size_is_refused() -> None:
    with pytest.raises(h2learn.H2LearnError, match="field weight: expected weights from"):
        h2learn.from_nir(network(graphs.affine(3, K, K + 1)))
