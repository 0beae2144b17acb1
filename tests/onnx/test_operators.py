"""Operators around the neurons: concatenation, reductions of maps, paddings, products, writes; spellings of spikes."""

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

torch = pytest.importorskip("torch")

from .cells import lif  # noqa: E402
from .test_exports import check, export, spikes_over_time  # noqa: E402

nn = torch.nn
F = nn.functional


class Maps(nn.Module):
    """Convolution, neurons, ``middle``, linear; maps are 2 x 6 x 6, of neurons 4 x 4 x 4."""

    def __init__(self, middle, before=None, **conv):
        super().__init__()
        torch.manual_seed(5)
        self.conv, self.middle, self.before = nn.Conv2d(2, 4, 3, **conv), middle, before or (lambda x: x)
        nn.init.normal_(self.conv.weight, 0.1, 0.4)
        with torch.no_grad():
            size = middle(self.conv(self.before(torch.zeros(1, 2, 6, 6)))).flatten(1).shape[1]
        self.fc = nn.Linear(size, 3)

    def forward(self, x):
        v, found = torch.zeros(()), []
        for t in range(x.shape[0]):
            s, v = lif(v, self.conv(self.before(x[t])))
            found.append(self.fc(self.middle(s).flatten(1)))
        return torch.stack(found)


MIDDLES = {
    "two poolings side by side": lambda z: torch.cat([F.avg_pool2d(z, 2), F.max_pool2d(z, 2)], 1),
    "twice": lambda z: torch.cat([z, z], 1),
    "flattened side by side": lambda z: torch.cat([F.avg_pool2d(z, 2).flatten(1), F.max_pool2d(z, 2).flatten(1)], 1),
    "sums": lambda z: z.sum((2, 3)),
    "maxima": lambda z: z.amax((2, 3)),
    "global maximum": lambda z: F.adaptive_max_pool2d(z, 1),
    "means of rows, then of these": lambda z: z.mean(-1).mean(-1),
    "mean of flattened maps": lambda z: z.flatten(2).mean(2),
    "sum pooling": lambda z: F.lp_pool2d(z, 1.0, 2),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_what_lies_between_maps_and_features(tmp_path, name):
    check(Maps(MIDDLES[name]), spikes_over_time(shape=(3, 2, 2, 6, 6)), tmp_path / "net.onnx")


def test_zeros_around_maps_are_padding(tmp_path):
    net = Maps(lambda z: F.avg_pool2d(F.pad(z, (1, 1, 1, 1)), 2), before=lambda x: F.pad(x, (1, 1, 1, 1)))
    check(net, spikes_over_time(shape=(3, 2, 2, 6, 6)), tmp_path / "net.onnx")


class Rows(nn.Module):
    """``currents`` are computed from the input over time; neurons; ``stack`` puts their spikes together."""

    def __init__(self, currents, act=lif, stack=torch.stack):
        super().__init__()
        torch.manual_seed(6)
        self.f, self.g, self.currents, self.act, self.stack = nn.Linear(6, 5), nn.Linear(6, 3), currents, act, stack
        for layer in (self.f, self.g):
            nn.init.normal_(layer.weight, 0.3, 0.6)

    def forward(self, x):
        v, found = torch.zeros(()), []
        for current in self.currents(self, x):
            s, v = self.act(v, current)
            found.append(s)
        return self.stack(found)


def written(steps):
    result = torch.zeros(len(steps), *steps[0].shape)
    for t, step in enumerate(steps):
        result[t] = step
    return result


CURRENTS = {
    "currents side by side": lambda net, x: [torch.cat([net.f(y), net.g(y)], 1) for y in x],
    "currents beside the input": lambda net, x: [torch.cat([y, net.f(y)], 1) for y in x],
    "einsum of a step": lambda net, x: [torch.einsum("bi,oi->bo", y, net.f.weight) for y in x],
    "einsum over time": lambda net, x: torch.einsum("tbi,oi->tbo", x, net.f.weight).unbind(0),
    "batched product": lambda net, x: torch.bmm(x, net.f.weight.t()[None].expand(len(x), -1, -1)).unbind(0),
    "half of the power": lambda net, x: [net.f(y) ** 1 * 0.5 for y in x],
}


@pytest.mark.parametrize("name", CURRENTS)
def test_currents(tmp_path, name):
    check(Rows(CURRENTS[name]), spikes_over_time(), tmp_path / "net.onnx")


@pytest.mark.parametrize("dynamo", [False, True])
def test_steps_that_are_written_into_a_tensor(tmp_path, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript")
    net = Rows(lambda net, x: [net.f(y) for y in x], stack=written)
    check(net, spikes_over_time(), tmp_path / "net.onnx", dynamo)


def test_a_running_sum_is_an_integrator(tmp_path):
    net = Rows(lambda net, x: (net.f(x).cumsum(0) * 0.5).unbind(0), act=lambda v, x: ((x >= 1).float(), v))
    model = check(net, spikes_over_time(), tmp_path / "net.onnx")
    assert "alpha 1, gain 0.5" in model.notes[-1]


def straight_through(u, soft):
    hard = (u >= 1).float()
    return [(hard - soft(u)).detach() + soft(u), soft(u) + (hard - soft(u)).detach()]


SPIKES = {
    "straight through": lambda u: straight_through(u, lambda v: v.clamp(0, 1))[0],
    "straight through a sigmoid": lambda u: straight_through(u, lambda v: torch.sigmoid(4 * (v - 1)))[1],
    "floor cut off": lambda u: torch.floor(u).clamp(0, 1),
    "ceiling cut off": lambda u: torch.relu(torch.ceil(u - 1).clamp(max=1)),
    "rectified": lambda u: (torch.relu(u - 1) > 0).float(),
    "sign in the middle": lambda u: (torch.sign(u - 1) + 1) / 2,
    "square": lambda u: (u >= 1).float() ** 2,
}


@pytest.mark.parametrize("name", SPIKES)
def test_spellings_of_spikes(tmp_path, name):
    def act(v, x):
        u = 0.5 * v + x
        s = SPIKES[name](u)
        return s, u * (1 - s)

    model = check(Rows(lambda net, x: [net.f(y) for y in x], act), spikes_over_time(), tmp_path / "net.onnx")
    assert "alpha 0.5, theta 1, reset hard to 0" in model.notes[-1]
    assert ("half a spike" in model.notes[-1]) == (name == "sign in the middle")


def test_noise_that_is_switched_off(tmp_path):
    def noisy(amount):
        def act(v, x):
            return lif(v, x + amount * torch.randn_like(x))

        return export(Rows(lambda net, x: [net.f(y) for y in x], act), spikes_over_time(), tmp_path / "net.onnx")

    assert "theta 1" in h2learn.load_model(noisy(0.0)).notes[-1]
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(noisy(0.5))
    assert "random numbers inside the graph" in caught.value.excerpt


@pytest.mark.parametrize("opset", [13, 17])
def test_batch_normalization_in_training_mode_says_what_differs(tmp_path, opset):
    net = Maps(lambda z: z)
    net.conv = nn.Sequential(net.conv, nn.BatchNorm2d(4))
    net.conv[1].running_mean.uniform_(-0.1, 0.1)
    x, path = spikes_over_time(shape=(3, 2, 2, 6, 6)), tmp_path / "net.onnx"
    mode = torch.onnx.TrainingMode.TRAINING
    torch.onnx.export(net, (x,), str(path), dynamo=False, opset_version=opset, training=mode, input_names=["input"])
    model = h2learn.load_model(path)
    assert [n for n in model.notes if n.startswith("batch normalization in training mode: the file")]
    assert set(model.parameters) == set(net.state_dict()) - {"conv.1.num_batches_tracked"}
    for name, value in model.parameters.items():
        if "running" not in name:
            np.testing.assert_array_equal(value, net.state_dict()[name].numpy())


def test_dropout_in_training_mode_is_a_layer(tmp_path):
    net = Rows(lambda net, x: [net.f(y) for y in x], stack=lambda s: torch.stack([net.g(F.dropout(y)) for y in s]))
    net.g, x, path = nn.Linear(5, 3), spikes_over_time(), tmp_path / "net.onnx"
    mode = torch.onnx.TrainingMode.TRAINING
    torch.onnx.export(net, (x,), str(path), dynamo=False, training=mode, input_names=["input"])
    model = h2learn.load_model(path)
    assert [n for n in model.notes if n.startswith("dropout in training mode")]
    (op,) = [op for op in model.module.walk() if op.name == "spike.dropout"]
    assert "probability = 5.000000e-01" in str(op) and "every_step" in str(op)
    found = next(iter(h2learn.compile(model).run({"input": x.numpy()}).outputs.values()))
    net.stack = lambda s: torch.stack([net.g(y) for y in s])
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda z: F.pad(z, (1, 1, 1, 1), value=2.0), "a padding with numbers other than 0"),
        (lambda z: F.max_pool2d(F.pad(z, (1, 1, 1, 1)), 2), "neither a convolution nor an average takes in"),
        (lambda z: z.sum(1), "a reduction over channels"),
        (lambda z: z.sum(0, keepdim=True).expand(2, -1, -1, -1), "a reduction over samples"),
    ],
)
def test_what_maps_cannot_be_made_into(tmp_path, middle, reason):
    path = export(Maps(middle), spikes_over_time(shape=(3, 2, 2, 6, 6)), tmp_path / "net.onnx")
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(path)
    assert reason in caught.value.excerpt, caught.value.excerpt
