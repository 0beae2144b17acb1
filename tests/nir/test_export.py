"""Models come back as NIR graphs that ``nir`` reads and that compute the same."""

from pathlib import Path

import nir
import numpy as np
import pytest

import h2learn
from h2learn.cli import run as command

from . import graphs

SNN = """network tiny
input image: 2 x 4 x 4
time steps: 3
encode direct
conv c1: 3 channels, kernel 3 x 3, padding 1
lif n1: decay 0.75, threshold 0.6, reset hard, spike at u > threshold
pool p1: {pool} 2 x 2
flatten
linear f1: 5 features
{last}
init: normal gain 3.0 seed 1
"""


def outputs(model: h2learn.Model, x: np.ndarray) -> np.ndarray:
    result = h2learn.compile(model, batch=x.shape[1]).run({"input": x})
    return result.outputs["output"]


def network() -> tuple[object, np.ndarray]:
    start, end = graphs.ports((4,), (5,))
    potential = nir.LI(np.full(5, 1e-3), np.full(5, 3.0), np.zeros(5))
    graph = graphs.chain(
        start,
        ("a", graphs.affine(1, 6, 4, 2.0)),
        ("n", graphs.lif((6,), tau=5e-4, r=4.0, v_leak=0.1)),
        ("s", nir.Scale(np.linspace(0.5, 2, 6))),
        ("b", graphs.affine(2, 5, 6)),
        ("l", potential),
        end,
    )
    return graph, np.random.default_rng(4).normal(0, 1, (8, 2, 4)).astype(np.float32)


def test_an_imported_graph_comes_back_as_it_was(tmp_path: Path) -> None:
    graph, _ = network()
    back = h2learn.to_nir(h2learn.from_nir(graph))
    assert nir.read(graphs.write(tmp_path / "x.nir", back)) is not None
    assert back.edges == graph.edges
    for name, node in graph.nodes.items():
        for field, value in vars(node).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(back.nodes[name], field), value, err_msg=f"{name}.{field}")


def test_trained_parameters_come_back_in_the_units_of_the_file(tmp_path: Path) -> None:
    graph, x = network()
    model = h2learn.from_nir(graph, time_steps=8)
    step = h2learn.compile(model, batch=2, train=h2learn.Train(optimizer=h2learn.SGD(lr=0.5)))
    trained = model.with_parameters(dict(step.run({"input": x, "label": np.array([1, 3], np.int32)}).parameters))
    assert not np.array_equal(trained.parameters["b.weight"], model.parameters["b.weight"])
    path = graphs.write(tmp_path / "trained.nir", h2learn.to_nir(trained))
    again = h2learn.load_model(path, time_steps=8)
    factor = np.linspace(0.5, 2, 6)
    np.testing.assert_allclose(
        nir.read(path).nodes["b"].weight, trained.parameters["b.weight"] / factor, rtol=1e-6, atol=0
    )
    np.testing.assert_allclose(outputs(again, x), outputs(trained, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("last", ["li: decay 0.5", "lif: decay 1.0, threshold 2.0, reset hard, spike at u > threshold"])
def test_any_model_can_be_exported(tmp_path: Path, last: str) -> None:
    (tmp_path / "tiny.snn").write_text(SNN.format(pool="avg", last=last))
    model = h2learn.load_model(tmp_path / "tiny.snn")
    path = graphs.write(tmp_path / "tiny.nir", h2learn.to_nir(model, dt=1e-3))
    assert nir.read(path) is not None
    again = h2learn.load_model(path, time_steps=3, dt=1e-3, encode="direct")
    x = np.random.default_rng(2).uniform(0, 1, (2, 2, 4, 4)).astype(np.float32)
    name = next(iter(model.outputs))
    expected = h2learn.compile(model, batch=2).run({"image": x}).outputs[name]
    assert expected.any()
    np.testing.assert_array_equal(h2learn.compile(again, batch=2).run({"image": x}).outputs[name], expected)


def test_driven_neurons_can_be_exported(tmp_path: Path) -> None:
    drive = "decay 0.75, gain 2.0, leak to 0.1, initial 0.1"
    last = f"lif: {drive}, synapse decay 0.5, threshold 0.8, reset hard to 0.05, spike at u > threshold"
    text = SNN.format(pool="avg", last=last).replace("lif n1: decay 0.75", f"lif n1: {drive}")
    (tmp_path / "tiny.snn").write_text(text)
    model = h2learn.load_model(tmp_path / "tiny.snn")
    path = graphs.write(tmp_path / "tiny.nir", h2learn.to_nir(model, dt=1e-3))
    assert [type(node).__name__ for node in nir.read(path).nodes.values()].count("CubaLIF") == 1
    again = h2learn.load_model(path, time_steps=3, dt=1e-3, encode="direct")
    x = np.random.default_rng(2).uniform(0, 1, (2, 2, 4, 4)).astype(np.float32)
    expected = h2learn.compile(model, batch=2).run({"image": x}).outputs["output"]
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(h2learn.compile(again, batch=2).run({"image": x}).outputs["output"], expected)


@pytest.mark.parametrize("weights", ["initial", "trained"])
def test_snntorch_computes_the_same(tmp_path: Path, weights: str) -> None:
    """It has time steps of 0.1 ms, resets to zero, and takes one sample where layers are flattened."""
    torch = pytest.importorskip("torch")
    importer = pytest.importorskip("snntorch.import_nir", reason="reads the file with snnTorch")
    hidden = (
        "lif: decay 0.5, threshold 0.5, reset hard, spike at u > threshold, synapse decay 0.5\nlinear f2: 5 features"
    )
    last = f"{hidden}\nlif: decay 0.9, threshold 0.7, reset hard, spike at u > threshold"
    (tmp_path / "tiny.snn").write_text(SNN.format(pool="avg", last=last))
    model = h2learn.load_model(tmp_path / "tiny.snn")
    rng = np.random.default_rng(0)
    x, label = rng.uniform(0, 1, (4, 2, 4, 4)).astype(np.float32), np.arange(4, dtype=np.int32)
    if weights == "trained":
        step = h2learn.compile(model, batch=4, train=h2learn.Train(optimizer=h2learn.SGD(lr=0.1)))
        model = model.with_parameters(dict(step.run({"image": x, "label": label}).parameters))
    path = graphs.write(tmp_path / "tiny.nir", h2learn.to_nir(model, dt=1e-4))
    expected = h2learn.compile(model, batch=4).run({"image": x}).outputs["output"]
    assert 0.05 < expected.mean() < 0.95
    for sample, spikes in zip(torch.tensor(x), expected.swapaxes(0, 1), strict=True):
        net, state = importer.import_from_nir(nir.read(path)), None
        for found in spikes:
            output, state = net(sample, state)
            np.testing.assert_array_equal(np.ravel(output.detach()), found)


def test_what_nir_has_no_node_for_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny.snn").write_text(SNN.format(pool="max", last="li: decay 0.5"))
    with pytest.raises(h2learn.H2LearnError, match="no max pooling") as caught:
        h2learn.to_nir(h2learn.load_model(tmp_path / "tiny.snn"))
    assert "tiny.snn:7" in str(caught.value.location)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph, _ = network()
    source, target = graphs.write(tmp_path / "net.nir", graph), str(tmp_path / "out.nir")
    assert command(["import", source, "--check", "--time-steps", "4"]) == 0
    printed = capsys.readouterr()
    assert "everything is supported" in printed.out and "assumed 0.0001 s per time step" in printed.err
    assert command(["export", source, "-o", target, "--dt", "1e-4", "--reset", "hard"]) == 0
    assert "read it with dt 0.0001" in capsys.readouterr().err
    np.testing.assert_array_equal(nir.read(target).nodes["a"].weight, graph.nodes["a"].weight)
    assert command(["export", source, "-o", str(tmp_path / "out.onnx")]) == 1
    assert command(["import", source, "--reset", "sideways"]) == 1
    assert not (tmp_path / "out.onnx").exists()
