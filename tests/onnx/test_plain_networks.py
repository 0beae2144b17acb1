"""Networks without time (ReLU): activations become neurons, thresholds come from data."""

import warnings

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.cli import run

torch = pytest.importorskip("torch")
nn = torch.nn
STEPS = 32


def export(net, x, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), str(path), dynamo=False, input_names=["input"], output_names=["output"])
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A convolutional network trained on the digits, as a file, and its accuracy."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = h2learn.load_digits()
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU6()),
        *(nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10)),
    )
    x, y = torch.tensor(data.x_train), torch.tensor(data.y_train, dtype=torch.long)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(5):
        for first in range(0, len(x), 64):
            loss = nn.functional.cross_entropy(net(x[first : first + 64]), y[first : first + 64])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    logits = net(torch.tensor(data.x_test)).detach().numpy()
    path = export(net, x[:2], tmp_path_factory.mktemp("plain") / "cnn.onnx")
    return path, data, float((logits.argmax(1) == data.y_test).mean())


def test_calibrated_thresholds_keep_the_accuracy(trained):
    path, data, accuracy = trained
    model = h2learn.load_model(path, neurons="if", time_steps=STEPS)
    calibrated = h2learn.calibrate(model, {"input": data.x_train[:256]})
    assert accuracy > 0.85

    def share(model):
        result = h2learn.compile(model, batch=100).run({"input": data.x_test[:100]})
        return (np.argmax(result.outputs["output"], 1) == data.y_test[:100]).mean()

    assert share(calibrated) > accuracy - 0.06
    assert share(calibrated) > share(model)
    assert "thresholds from data" in calibrated.notes[-1]


def test_a_threshold_is_the_percentile_of_the_current(trained):
    path, data, _ = trained
    x = data.x_train[:16]
    model = h2learn.load_model(path, neurons="if", time_steps=4)
    found = h2learn.calibrate(model, {"input": x}, percentile=90.0, scale=0.5)
    theta = [op.theta.get_values()[0] for op in found.module.walk() if op.name == "spike.lif"]
    w, b = (torch.tensor(value) for value in (model.parameters["0.weight"], model.parameters["0.bias"]))
    current = nn.functional.conv2d(torch.tensor(x), w, b, padding=1).numpy()
    assert theta[0] == pytest.approx(0.5 * np.percentile(current, 90), rel=1e-5)
    divided = [model.parameters[n] / found.parameters[n] for n in ("0.bias", "3.bias", "6.bias", "8.bias")]
    for values, factor in zip(divided, np.cumprod([1.0, *theta]), strict=True):
        np.testing.assert_allclose(values, factor, rtol=1e-5)
    again = [op.theta.get_values()[0] for op in found.with_batch(3).module.walk() if op.name == "spike.lif"]
    assert again == theta


def test_bad_calibration_is_refused(trained):
    path, data, _ = trained
    model = h2learn.load_model(path, neurons="if", time_steps=2)
    for inputs, options, message in (
        ({"input": data.x_train[:2]}, {"percentile": 0}, "percentile"),
        ({"x": data.x_train[:2]}, {}, "expected the inputs input"),
        ({"input": data.x_train[:2, :, :4]}, {}, "samples like"),
        ({"input": -100 * data.x_train[:2]}, {"percentile": 1}, "currents above 0"),
    ):
        with pytest.raises(H2LearnError, match=message):
            h2learn.calibrate(model, inputs, **options)


def test_the_command_trains_from_an_export(trained, capsys):
    path, _, _ = trained
    arguments = ["train", str(path), "--neurons", "lif", "--time-steps", "4", "--data", "digits", "--limit", "64"]
    assert run([*arguments, "--calibrate", "digits", "--no-test", "--functional", "--lr", "0.1"]) == 0
    assert "thresholds from data" in capsys.readouterr().err
    assert run([*arguments, "--percentile", "99"]) == 1
    assert "--percentile needs --calibrate" in capsys.readouterr().err
