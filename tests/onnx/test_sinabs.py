"""Networks of sinabs, as ``sinabs_exports.py`` wrote them: outputs, losses and gradients are those of PyTorch."""

from pathlib import Path

import numpy as np
import pytest

import h2learn

FILES = sorted((Path(__file__).parent / "sinabs").glob("*.npz"))


def files(kind):
    found = [path for path in FILES if path.stem.startswith(kind)]
    assert found
    return pytest.mark.parametrize("path", found, ids=[path.stem.removeprefix(f"{kind}_") for path in found])


def read(path, folder):
    """Return what a file holds, and the model inside it."""
    with np.load(path) as stored:
        data = {name: stored[name] for name in stored.files}
    (folder / "net.onnx").write_bytes(data.pop("model").tobytes())
    return data, h2learn.load_model(folder / "net.onnx")


@files("output")
def test_outputs(tmp_path, path):
    data, model = read(path, tmp_path)
    found = h2learn.compile(model).run({"input": data["x"]}).outputs["output"]
    np.testing.assert_array_equal(found, data["output"])
    assert data["output"].max() > (0 if "single" in path.stem else 1)


@files("folded")
def test_squeezing_layers(tmp_path, path):
    data, model = read(path, tmp_path)
    assert "the first dimension of input is N*T, the steps of a sample next to each other; T = 4" in model.notes
    found = h2learn.compile(model).run({"input": data["x"]}).outputs["output"]
    assert found.shape == data["output"].shape
    np.testing.assert_array_equal(found, data["output"])
    assert data["output"].max() > 0


@files("step")
def test_a_training_step(tmp_path, path):
    data, model = read(path, tmp_path)
    kind, width, height, periodic = data["surrogate"]
    surrogate = getattr(h2learn, kind)(float(width), float(height), periodic=periodic == "True")
    step = h2learn.compile(model, train=h2learn.Train(surrogate=surrogate, optimizer=h2learn.SGD(lr=0.1)))
    result = step.run({"input": data["x"], "label": data["label"]})
    assert result.loss == pytest.approx(float(data["loss"]), rel=1e-5)
    names = [name.removeprefix("value.") for name in data if name.startswith("value.")]
    assert len(names) == len(result.gradients)
    for name in names:
        found, expected = gradient_of(data[f"value.{name}"], model, result.gradients), data[f"gradient.{name}"]
        assert np.abs(expected).max() > 0, name
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max(), err_msg=name)


def gradient_of(value, model, gradients):
    """Return the gradient of the parameter that holds ``value``, which exporters may transpose."""
    for name, held in model.parameters.items():
        if np.array_equal(held, value):
            return gradients[name]
        if np.array_equal(held.T, value):
            return gradients[name].T
    raise AssertionError("the parameter is not in the model")
