"""PyTorch modules become models, and trained weights go back."""

import copy

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

torch = pytest.importorskip("torch")
nn = torch.nn
STEPS = 4


class Cell(nn.Module):
    """A neuron that keeps its potential from call to call, as single-step neurons of the frameworks do."""

    def __init__(self):
        super().__init__()
        self.reset()

    def reset(self):
        self.v = 0.0

    def forward(self, x):
        u = 0.5 * self.v + x
        s = (u >= 1).to(x.dtype)
        self.v = u * (1 - s)
        return s


class Loop(nn.Module):
    """A module with its own loop over time."""

    def __init__(self, body, mean=False):
        super().__init__()
        self.body, self.mean = body, mean

    def forward(self, x):
        for part in self.body.modules():
            if isinstance(part, Cell):
                part.reset()
        result = torch.stack([self.body(step) for step in x])
        return result.mean(0) if self.mean else result


def layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), Cell(), nn.Linear(8, 3), Cell())
    for weights in (net[0].weight, net[2].weight):
        nn.init.normal_(weights, 0.3, 0.8)
    return net


def convolutions():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), Cell(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.parametrize(("mean", "given"), [(False, STEPS), (False, None), (True, STEPS), (True, None)])
def test_a_module_with_its_own_loop(mean, given):
    net, x = Loop(layers(), mean), torch.rand(STEPS, 5, 6)
    model = h2learn.from_torch(net, x, given)
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs["output"]
    np.testing.assert_allclose(found, net(x).detach().numpy(), atol=1e-6)
    assert list(model.parameters) == ["body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias"]


def test_a_single_step_over_a_sequence():
    net, x = layers(), torch.rand(STEPS, 5, 6)
    net.train()
    model = h2learn.from_torch(net, x, STEPS)
    assert net.training and net[1].v == 0.0
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs["output"]
    np.testing.assert_array_equal(found, Loop(net)(x).detach().numpy())
    assert list(model.parameters) == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_a_single_step_on_a_static_input():
    net, x = convolutions(), torch.rand(2, 1, 6, 6) * 3
    model = h2learn.from_torch(net, x, STEPS)
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs["output"]
    expected = Loop(net)(x.expand(STEPS, *x.shape)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_batch_normalization_keeps_its_statistics():
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(4, momentum=0.2)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), norm, Cell(), nn.Flatten(), nn.Linear(64, 3))
    x = torch.rand(6, 1, 6, 6)
    norm(net[0](x))
    model = h2learn.from_torch(net, x, STEPS)
    statistics = {name: model.parameters[f"1.{name}"] for name in ("running_mean", "running_var")}
    for name, value in statistics.items():
        np.testing.assert_allclose(value, getattr(norm, name).numpy(), rtol=1e-6)
    net.eval()
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs["output"]
    expected = Loop(net)(x.expand(STEPS, *x.shape)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    label = np.arange(6, dtype=np.int32) % 3
    after = h2learn.compile(model, train=h2learn.Train()).run({"input": x.numpy(), "label": label}).parameters
    norm.train()
    norm(net[0](x.expand(STEPS, *x.shape).flatten(0, 1)))
    np.testing.assert_allclose(after["1.running_mean"], norm.running_mean.numpy(), rtol=1e-5, atol=1e-6)


def test_trained_weights_go_back():
    net, data = convolutions(), h2learn.load_digits()
    net = nn.Sequential(nn.Conv2d(1, 4, 3), Cell(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 10))
    model = h2learn.from_torch(net, torch.rand(1, 1, 8, 8), STEPS)
    recipe = h2learn.Train(optimizer=h2learn.SGD(lr=0.1, momentum=0.9), surrogate=h2learn.Rectangular(1.0))
    history = h2learn.train(model, data, 1, train=recipe, limit=160, batch=16, evaluate=False)
    state = h2learn.compile(model.with_parameters(history.parameters)).to_torch_state_dict()
    trained = copy.deepcopy(net)
    trained.load_state_dict(state)
    assert not torch.equal(trained[0].weight, net[0].weight)
    x = data.x_test[:8]
    found = h2learn.compile(model.with_parameters(history.parameters), batch=8).run({"input": x}).outputs["output"]
    expected = Loop(trained)(torch.tensor(x).expand(STEPS, *x.shape)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    again = h2learn.compile(model).to_torch_state_dict(history.parameters)
    assert all(torch.equal(again[name], state[name]) for name in state)


class Reduced(Loop):
    """A reduction over time as output."""

    def __init__(self, body, reduce):
        super().__init__(body)
        self.reduce = reduce

    def forward(self, x):
        return self.reduce(super().forward(x))


@pytest.mark.parametrize("spikes", [False, True])
@pytest.mark.parametrize("kind", ["sum", "amax", "mean"])
def test_reductions_over_time_are_outputs_or_refused(kind, spikes):
    net = Reduced(layers() if spikes else layers()[:3], lambda y: getattr(y, kind)(0))
    x = torch.rand(STEPS, 5, 6)
    if (kind, spikes) == ("amax", True):
        with pytest.raises(H2LearnError) as caught:
            h2learn.from_torch(net, x)
        assert "over time of" in caught.value.render()
        return
    found = h2learn.compile(h2learn.from_torch(net, x)).run({"input": x.numpy()}).outputs["output"]
    np.testing.assert_allclose(found, net(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_read_is_refused():
    with pytest.raises(H2LearnError, match="positive number of time steps"):
        h2learn.from_torch(layers(), torch.rand(2, 6), 0)
    with pytest.raises(H2LearnError, match="expected a spiking network"):
        h2learn.from_torch(nn.Sequential(nn.Linear(6, 3), nn.Softplus()), torch.rand(2, 6), STEPS)
    with pytest.raises(H2LearnError, match="cannot export"):
        h2learn.from_torch(nn.Linear(6, 3), torch.rand(2, 5), STEPS)


@pytest.mark.parametrize("reset", ["subtract", "zero"])
def test_a_network_of_snntorch(reset):
    snn = pytest.importorskip("snntorch")
    utils = pytest.importorskip("snntorch.utils")
    torch.manual_seed(3)
    cells = [snn.Leaky(beta=0.7, threshold=0.15, init_hidden=True, reset_mechanism=reset) for _ in range(2)]
    net = nn.Sequential(nn.Conv2d(1, 4, 3), cells[0], nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 10), cells[1])
    x = torch.rand(2, 1, 8, 8) * 2
    model = h2learn.from_torch(net, x, STEPS)
    utils.reset(net)
    expected = torch.stack([net(x) for _ in range(STEPS)]).detach().numpy()
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs["output"]
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(found, expected)
    state = h2learn.compile(model).to_torch_state_dict()
    assert {"0.weight", "0.bias", "4.weight", "4.bias"} == set(state) <= set(net.state_dict())
