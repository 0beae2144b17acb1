"""Inputs and outputs whose first dimension is both batch and time: reshapes in front of the neurons say what it is."""

import warnings

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

torch = pytest.importorskip("torch", reason="exports networks with PyTorch")
from torch import nn  # noqa: E402

T, N = 4, 3


class Squeezed(nn.Module):
    """Leaky neurons on ``[N*T,...]``, or ``[T*N,...]`` where ``time_first``, as sinabs' ``IAFSqueeze`` has them."""

    def __init__(self, steps=-1, samples=-1, *, time_first=False):
        super().__init__()
        self.lead, self.axis = ((steps, samples), 0) if time_first else ((samples, steps), 1)

    def forward(self, x):
        folded = x.reshape(*self.lead, *x.shape[1:])
        u, spikes = 0.0, []
        for t in range(folded.shape[self.axis]):
            u = 0.5 * u + folded.select(self.axis, t)
            spikes.append((u > 0.25).float())
            u = u - 0.25 * spikes[-1]
        return torch.stack(spikes, self.axis).reshape(-1, *x.shape[1:])


def maps(neurons):
    layers = nn.Conv2d(2, 3, 3, padding=1), neurons(), nn.AvgPool2d(2), nn.Conv2d(3, 4, 2), neurons()
    return nn.Sequential(*layers), (2, 6, 6)


def flattened(neurons):
    return nn.Sequential(nn.Conv2d(1, 3, 3), neurons(), nn.Flatten()), (1, 5, 4)


def features(neurons):
    return nn.Sequential(nn.Linear(6, 8), neurons(), nn.Linear(8, 5), neurons()), (6,)


def rows(neurons):
    return nn.Sequential(nn.Conv1d(2, 3, 3), neurons(), nn.Flatten(), nn.Linear(12, 5), neurons()), (2, 6)


def exported(made, path, neurons, *, dynamo=False, samples=N, steps=T, **options):
    torch.manual_seed(1)
    net, shape = made(neurons)
    x = 2 * torch.rand(samples * steps, *shape, generator=torch.Generator().manual_seed(2))
    names = {"input_names": ["input"], "output_names": ["output"]}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (x,), str(path), dynamo=dynamo, **names, **options)
        return net, x.numpy(), net(x).numpy()


@pytest.mark.parametrize(
    ("made", "sizes", "dynamo"),
    [
        (features, {"samples": N}, True),
        (features, {"steps": T}, False),
        (features, {"samples": N, "steps": T, "time_first": True}, False),
        (maps, {"samples": N}, True),
        (maps, {"steps": T, "time_first": True}, False),
        (flattened, {"steps": T}, False),
        (flattened, {"samples": N, "time_first": True}, False),
        (rows, {"steps": T}, False),
        (rows, {"steps": T, "time_first": True}, True),
    ],
)
def test_shapes_are_the_files_and_spikes_are_torchs(tmp_path, made, sizes, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript")
    _, x, expected = exported(made, tmp_path / "net.onnx", lambda: Squeezed(**sizes), dynamo=dynamo)
    model = h2learn.load_model(tmp_path / "net.onnx")
    assert (model.inputs["input"].shape, model.outputs["output"].shape) == (x.shape, expected.shape)
    order = "T*N, the samples of a step" if "time_first" in sizes else "N*T, the steps of a sample"
    assert f"the first dimension of input is {order} next to each other; T = {T}" in model.notes
    found = h2learn.compile(model).run({"input": x}).outputs["output"]
    np.testing.assert_array_equal(found, expected)
    assert 0.05 < expected.mean() < 0.95


@pytest.mark.parametrize("time_first", [False, True])
def test_fewer_samples_and_other_batches(tmp_path, time_first):
    path = tmp_path / "net.onnx"
    _, x, expected = exported(features, path, lambda: Squeezed(steps=T, time_first=time_first))
    axis = 1 if time_first else 0
    apart = (T, N) if time_first else (N, T)

    def two_of(values):
        return values.reshape(*apart, -1).take([0, 1], axis=axis).reshape(2 * T, -1)

    for batch in (2, 5):
        program = h2learn.compile(h2learn.load_model(path), batch=batch)
        assert program.inputs["input"].shape == (batch * T, 6)
        np.testing.assert_array_equal(program.run({"input": two_of(x)}).outputs["output"], two_of(expected))


@pytest.mark.parametrize(
    ("sizes", "steps", "batch"), [({"steps": T}, None, 1), ({"samples": 1}, T, 1), ({"samples": N}, T, N)]
)
def test_an_open_dimension(tmp_path, sizes, steps, batch):
    path, axes = tmp_path / "net.onnx", {"input": {0: "n"}, "output": {0: "n"}}
    samples = sizes.get("samples", N)
    _, x, expected = exported(features, path, lambda: Squeezed(**sizes), samples=samples, dynamic_axes=axes)
    model = h2learn.load_model(path, time_steps=steps)
    assert model.inputs["input"].shape == (batch * T, 6)
    found = h2learn.compile(model, batch=samples).run({"input": x}).outputs["output"]
    np.testing.assert_array_equal(found, expected)


def test_layers_must_agree_and_other_reshapes_stay_refused(tmp_path):
    sizes = iter(({"steps": 4}, {"steps": 6}))
    exported(features, tmp_path / "net.onnx", lambda: Squeezed(**next(sizes)))
    with pytest.raises(H2LearnError) as error:
        h2learn.load_model(tmp_path / "net.onnx")
    assert "Reshape" in str(error.value.excerpt)


def test_a_wrong_number_of_rows_is_an_error(tmp_path):
    _, x, _ = exported(features, tmp_path / "net.onnx", lambda: Squeezed(steps=T))
    program = h2learn.compile(h2learn.load_model(tmp_path / "net.onnx"))
    with pytest.raises(H2LearnError, match=r"must have the shape \[N \* 4 <= 12, 6\], found \[11, 6\]"):
        program.run({"input": x[:11]})
    with pytest.raises(H2LearnError, match="must have 1 to 3 samples, found 4"):
        program.run({"input": np.concatenate([x, x[:4]])})


class Apart(nn.Module):
    """A network on ``[N*T,...]`` as one on ``[N,T,...]``."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.flatten(0, 1)).reshape(N, T, -1)


def test_training_is_that_of_the_same_network_with_its_dimensions_apart(tmp_path):
    path, other = tmp_path / "net.onnx", tmp_path / "apart.onnx"
    net, x, _ = exported(features, path, lambda: Squeezed(steps=T))
    apart = x.reshape(N, T, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Apart(net), (torch.from_numpy(apart),), str(other), dynamo=False, input_names=["input"])
    recipe = h2learn.Train(optimizer=h2learn.SGD(lr=0.1))
    labels = np.array([1, 4], dtype=np.int32)
    one, two = (h2learn.compile(h2learn.load_model(file), train=recipe, batch=N) for file in (path, other))
    found, expected = one.run({"input": x[: 2 * T], "label": labels}), two.run({"input": apart[:2], "label": labels})
    assert found.loss == expected.loss
    for name, gradient in expected.gradients.items():
        np.testing.assert_array_equal(found.gradients[name.removeprefix("net.")], gradient)
        assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("apart", [False, True])
def test_training_on_frames(tmp_path, apart):
    path, generator = tmp_path / "net.onnx", np.random.default_rng(5)
    net, x, _ = exported(features, path, lambda: Squeezed(steps=T))
    if apart:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(Apart(net), (torch.from_numpy(x.reshape(N, T, 6)),), str(path), dynamo=False)
    frames = generator.normal(0, 3, (40, T, 6)).astype(np.float32)
    with torch.no_grad():
        labels = net(torch.from_numpy(frames.reshape(-1, 6))).reshape(40, T, -1).sum(1).argmax(-1).int().numpy()
    assert len(set(labels.tolist())) > 2
    data = h2learn.DataSet("frames", frames, labels, frames, labels)
    recipe = h2learn.Train(optimizer=h2learn.SGD(lr=1e-9))
    history = h2learn.train(h2learn.load_model(path), data, 1, batch=9, train=recipe)
    assert history.epochs[-1].test_accuracy == 1.0, "the most active class of every sample is its label"


def test_calibration_counts_samples(tmp_path):
    _, x, _ = exported(features, tmp_path / "net.onnx", lambda: Squeezed(steps=T))
    model = h2learn.load_model(tmp_path / "net.onnx")
    assert h2learn.calibrate(model, {"input": x}).inputs["input"].shape == x.shape
    with pytest.raises(H2LearnError, match="expected samples like"):
        h2learn.calibrate(model, {"input": x[:5]})
