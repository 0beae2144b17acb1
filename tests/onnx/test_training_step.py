"""Whole training steps (forward, backward, update) traced from PyTorch's autograd: recognised, proven, run."""

import warnings

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

torch = pytest.importorskip("torch")
F = torch.nn.functional
make_fx = pytest.importorskip("torch.fx.experimental.proxy_tensor").make_fx
aten = torch.ops.aten

SHAPES = {"fc1_weight": (12, 20), "fc1_bias": (12,), "fc2_weight": (4, 12), "fc2_bias": (4,)}
T, N = 3, 2


def spike(kind, width, height, where):
    class Spike(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x >= 0).to(x.dtype)

        @staticmethod
        def backward(ctx, g):
            [x] = ctx.saved_tensors
            if kind == "rectangular" and where:
                return torch.where(x.abs() < width, g, torch.zeros_like(g)) * height
            if kind == "rectangular":
                return g * (x.abs() < width).to(x.dtype) * height
            if kind == "atan":
                return height / (1 + (x / width) ** 2) * g
            if kind == "sigmoid":
                return g * (4 * height * torch.sigmoid(x / width) * (1 - torch.sigmoid(x / width)))
            if kind == "fast_sigmoid":
                return g / (x.abs() / width + 1.0) ** 2 * height
            return g * torch.clamp(1 - x.abs() / width, min=0) * height

    return Spike.apply


def place(g, sizes, axis, index):
    """What the gradient of a selection is, in operators that ONNX has."""
    shape = list(sizes)
    parts = [torch.zeros([*shape[:axis], n, *shape[axis + 1 :]]) for n in (index, shape[axis] - index - 1)]
    return torch.cat([parts[0], g.unsqueeze(axis), parts[1]], axis)


def convolution_gradients(g, x, w, bias_sizes, stride, padding, *others):
    weight = F.conv2d(x.transpose(0, 1), g.transpose(0, 1), padding=padding).transpose(0, 1)
    return F.conv_transpose2d(g, w, padding=padding), weight, g.sum((0, 2, 3))


def pooling_gradient(g, x, kernel, *others):
    return F.interpolate(g, scale_factor=kernel[0], mode="nearest") / kernel[0] ** 2


SPELLED_OUT = {
    aten.select_backward.default: place,
    aten.convolution_backward.default: convolution_gradients,
    aten.avg_pool2d_backward.default: pooling_gradient,
}


def exportable(graph):
    """Replace what autograd's trace has and the exporter does not know."""
    for node in graph.graph.nodes:
        if node.target is aten._to_copy.default:
            node.op, node.target, node.args = "call_method", "to", (node.args[0], node.kwargs["dtype"])
            node.kwargs = {}
        elif node.target in SPELLED_OUT:
            node.target, node.kwargs = SPELLED_OUT[node.target], {}
    graph.recompile()
    return graph


def traced(
    path,
    *,
    kind="rectangular",
    width=0.5,
    height=1.0,
    where=False,
    loss="mse",
    lr=0.1,
    detach=False,
    soft=False,
    decay=0.5,
    broken=False,
    rate_input=False,
    weight_decay=0.0,
):
    """Export one step; return the function that is exported, and what it takes."""
    fires = spike(kind, width, height, where)

    def neurons(current):
        u, s, spikes = torch.zeros_like(current[0]), torch.zeros_like(current[0]), []
        for t in range(T):
            back = s.detach() if detach else s
            u = (decay * (u - back) if soft else decay * u * (1 - back)) + current[t]
            s = fires(u - 1.0)
            spikes.append(s)
        return torch.stack(spikes)

    def forward(p, x):
        h = neurons(F.linear(x.reshape(T * N, -1), p[0], p[1]).reshape(T, N, -1))
        return neurons(F.linear(h.reshape(T * N, -1), p[2], p[3]).reshape(T, N, -1)).mean(0)

    def measure(y, target):
        if loss == "mse":
            return ((y - target) ** 2).mean()
        shifted = y - y.amax(1, keepdim=True).detach()
        return -((shifted - shifted.exp().sum(1, keepdim=True).log()) * target).sum(1).mean()

    class Step(torch.nn.Module):
        def forward(self, w1, b1, w2, b2, x, target, rate=None):
            p = [w1, b1, w2, b2]
            for q in p:
                q.requires_grad_(True)
            value = measure(forward(p, x), target)
            grads = torch.autograd.grad(value, p)
            factor = rate if rate_input else lr
            if broken:
                grads = (*grads[:2], grads[2].flip(0), grads[3])
            kept = 1 - lr * weight_decay
            return (value, *((q * kept if weight_decay else q) - factor * g for q, g in zip(p, grads, strict=True)))

    rng = np.random.default_rng(3)
    values = {name: rng.normal(0.05, 1.5 / np.sqrt(shape[-1]), shape) for name, shape in SHAPES.items()}
    values["input"] = rng.random((T, N, 20))
    values["target"] = np.eye(4)[[1, 3]]
    if rate_input:
        values["rate"] = np.asarray(lr)
    return export_step(Step(), values, path)


def export_step(step, values, path):
    """Trace and export a step whose first four inputs are parameters; return its inputs and what it gives for them."""
    tensors = {name: torch.tensor(np.asarray(value), dtype=torch.float32) for name, value in values.items()}
    graph = exportable(make_fx(step)(*(t.clone() for t in tensors.values())))
    expected = [v.detach().numpy() for v in step(*(t.clone() for t in tensors.values()))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            tuple(tensors.values()),
            str(path),
            input_names=list(tensors),
            output_names=["loss", *(f"new_{name}" for name in list(tensors)[:4])],
            dynamo=False,
            opset_version=17,
        )
    return {name: t.numpy() for name, t in tensors.items()}, expected


CASES = {
    "plain": {},
    "where": {"where": True, "width": 0.75},
    "height": {"height": 0.5, "width": 1.0, "loss": "ce"},
    "triangle": {"kind": "triangular", "width": 1.0, "lr": 0.05},
    "atan": {"kind": "atan", "width": 0.25, "height": 1.0},
    "sigmoid": {"kind": "sigmoid", "width": 0.5, "height": 0.5},
    "fast sigmoid": {"kind": "fast_sigmoid", "width": 0.125, "soft": True},
    "detached": {"detach": True, "loss": "ce"},
    "soft": {"soft": True, "decay": 0.75},
    "rate": {"rate_input": True},
    "decay": {"weight_decay": 0.25, "lr": 0.2},
}


@pytest.mark.parametrize("case", CASES)
def test_a_traced_step_is_found_and_gives_the_same_numbers(case, tmp_path):
    options = CASES[case]
    feeds, expected = traced(tmp_path / "step.onnx", **options)
    model = h2learn.load_model(tmp_path / "step.onnx")
    found = model.train.surrogate
    assert found.kind == options.get("kind", "rectangular")
    assert (found.half_width, found.height) == pytest.approx((options.get("width", 0.5), options.get("height", 1.0)))
    assert model.train.loss == ("cross_entropy" if options.get("loss") == "ce" else "mse_rate")
    if "rate_input" not in options:
        expected_rule = h2learn.SGD(options.get("lr", 0.1), weight_decay=options.get("weight_decay", 0.0))
        assert model.train.optimizer == expected_rule
    assert model.train.detach_reset == options.get("detach", False)
    assert list(model.inputs) == list(feeds)
    step = h2learn.compile(model)
    result = step.run(feeds)
    assert result.loss == pytest.approx(float(expected[0]), rel=1e-5)
    for name, known in zip(SHAPES, expected[1:], strict=True):
        np.testing.assert_allclose(result.parameters[name], known, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(result.outputs[f"new_{name}"], result.parameters[name])
    assert any(np.abs(known - feeds[name]).max() > 1e-4 for name, known in zip(SHAPES, expected[1:], strict=True))


class Convolutions(torch.nn.Module):
    """A step of convolution, neurons, pooling, classifier, neurons; mean squared error, SGD."""

    def neurons(self, currents):
        fires = spike("rectangular", 0.5, 1.0, False)
        u, s, spikes = torch.zeros_like(currents[0]), torch.zeros_like(currents[0]), []
        for current in currents:
            u = 0.5 * u * (1 - s) + current
            s = fires(u - 1.0)
            spikes.append(s)
        return torch.stack(spikes)

    def forward(self, w1, b1, w2, b2, x, target):
        p = [w1, b1, w2, b2]
        for q in p:
            q.requires_grad_(True)
        current = F.conv2d(x.reshape(T * N, 2, 6, 6), w1, b1, padding=1)
        s = self.neurons(current.reshape(T, N, 4, 6, 6))
        pooled = F.avg_pool2d(s.reshape(T * N, 4, 6, 6), 2).reshape(T * N, -1)
        y = self.neurons(F.linear(pooled, w2, b2).reshape(T, N, 3)).mean(0)
        loss = ((y - target) ** 2).mean()
        return (loss, *(q - 0.1 * g for q, g in zip(p, torch.autograd.grad(loss, p), strict=True)))


def test_a_convolutional_step(tmp_path):
    rng = np.random.default_rng(0)
    shapes = {"conv_weight": (4, 2, 3, 3), "conv_bias": (4,), "fc_weight": (3, 36), "fc_bias": (3,)}
    values = {name: rng.normal(0.05, 0.4, shape) for name, shape in shapes.items()}
    values |= {"input": rng.random((T, N, 2, 6, 6)), "target": np.eye(3)[[0, 2]]}
    feeds, expected = export_step(Convolutions(), values, tmp_path / "step.onnx")
    result = h2learn.compile(h2learn.load_model(tmp_path / "step.onnx")).run(feeds)
    assert result.loss == pytest.approx(float(expected[0]), rel=1e-5)
    for name, known in zip(shapes, expected[1:], strict=True):
        np.testing.assert_allclose(result.parameters[name], known, rtol=1e-5, atol=1e-6)
        assert np.abs(known - feeds[name]).max() > 1e-5


def test_a_step_that_is_not_our_own_is_refused_with_the_difference(tmp_path):
    traced(tmp_path / "step.onnx", broken=True)
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(tmp_path / "step.onnx")
    assert "fc2_weight" in f"{caught.value} {caught.value.excerpt}"


def test_parameters_are_given_once(tmp_path):
    feeds, _ = traced(tmp_path / "step.onnx")
    step = h2learn.compile(h2learn.load_model(tmp_path / "step.onnx"))
    data = {name: feeds[name] for name in ("input", "target")}
    with pytest.raises(H2LearnError, match="parameters among the inputs"):
        step.run(data)
    with pytest.raises(H2LearnError, match="one-hot"):
        step.run(feeds | {"target": feeds["target"] * 2})
    with step.session() as device:
        first = device.run(feeds).loss
        assert device.run(data).loss != first
    assert step.run(data, parameters={name: feeds[name] for name in SHAPES}).loss == first
