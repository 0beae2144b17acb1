"""Small networks exported by PyTorch, in many spellings, against PyTorch."""

import itertools
import warnings

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError

from ..surrogate import fire

torch = pytest.importorskip("torch")
nn = torch.nn

FIRES = {
    "difference": lambda u, th: (u - th >= 0).float(),
    "greater": lambda u, th: (u > th).float(),
    "swapped": lambda u, th: (th <= u).to(u.dtype),
    "not less": lambda u, th: (~(u < th)).float(),
    "where": lambda u, th: torch.where(u >= th, torch.ones_like(u), torch.zeros_like(u)),
    "sign": lambda u, th: torch.relu(torch.sign(u - th)),
    "scaled": lambda u, th: (u / th > 1.0).float(),
}
STRICT = {"greater", "sign", "scaled"}

LEAKS = {
    "multiply": lambda v, x, d: v * d + x,
    "divide": lambda v, x, d: v - v / (1 / (1 - d)) + x,
    "factor out": lambda v, x, d: v + (x - v * (1 - d)),
    "negate": lambda v, x, d: -(-x - d * v),
}
RESETS = {
    "hard": {
        "multiply": lambda u, s, th: u * (1 - s),
        "subtract": lambda u, s, th: u - u * s,
        "where": lambda u, s, th: torch.where(s > 0, torch.zeros_like(u), u),
        "both": lambda u, s, th: s * 0.0 + (1.0 - s) * u,
    },
    "soft": {
        "subtract": lambda u, s, th: u - s * th,
        "add": lambda u, s, th: u + (-th) * s.detach(),
        "where": lambda u, s, th: torch.where(s.bool(), u - th, u),
    },
    "none": {"nothing": lambda u, s, th: u},
}


class Cell(nn.Module):
    def __init__(self, fires="difference", leak="multiply", reset="hard", spelling="multiply", decay=0.5, theta=1.0):
        super().__init__()
        self.fires, self.leak, self.reset = FIRES[fires], LEAKS[leak], RESETS[reset][spelling]
        self.decay, self.theta = decay, theta

    def forward(self, x, v):
        u = self.leak(v, x, self.decay)
        s = self.fires(u, self.theta)
        return s, self.reset(u, s, self.theta)


class Net(nn.Module):
    """Linear, neuron, linear, neuron; ``order`` is which loop is outside, ``out`` what is put out."""

    def __init__(self, order="step", out="spikes", bias=True, **cell):
        super().__init__()
        torch.manual_seed(1)
        self.f1, self.f2, self.order, self.out = nn.Linear(6, 7, bias=bias), nn.Linear(7, 4, bias=bias), order, out
        for weights in (self.f1.weight, self.f2.weight):
            nn.init.normal_(weights, 0.2, 0.7)
        self.c1, self.c2 = Cell(**cell), Cell(**cell)

    def over_time(self, cell, x):
        v, spikes = torch.zeros_like(x[0]), []
        for t in range(x.shape[0]):
            s, v = cell(x[t], v)
            spikes.append(s)
        return torch.stack(spikes)

    def forward(self, x):
        if self.order == "layer":
            h = self.over_time(self.c1, self.f1(x.flatten(0, 1)).view(x.shape[0], x.shape[1], -1))
            result = self.over_time(self.c2, self.f2(h)) if self.out != "currents" else self.f2(h)
        else:
            v1, v2, collected = torch.zeros(x.shape[1], 7), torch.zeros(x.shape[1], 4), []
            for t in range(x.shape[0]):
                s, v1 = self.c1(self.f1(x[t]), v1)
                y = self.f2(s)
                if self.out != "currents":
                    y, v2 = self.c2(y, v2)
                collected.append(y)
            result = torch.stack(collected)
        return {"mean": lambda: result.mean(0), "sum": lambda: sum(result.unbind(0)) / len(result)}.get(
            self.out, lambda: result
        )()


class ConvNet(nn.Module):
    def __init__(self, pool, stride=1, **window):
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv2d(2, 4, 3, **{"stride": stride, "padding": 1} | window)
        pools = {"max": nn.MaxPool2d(2), "avg": nn.AvgPool2d(2)}
        pools |= {"padded max": nn.MaxPool2d(3, 2, 1), "padded avg": nn.AvgPool2d(3, 2, 1)}
        self.pool = pools[pool]
        nn.init.normal_(self.conv.weight, 0.1, 0.6)
        self.cell, self.flat = Cell(leak="divide", decay=0.75), nn.Flatten()
        self.fc = nn.Linear(4 * (6 // stride // 2) ** 2, 3)

    def forward(self, x):
        v, collected = 0.0, []
        for t in range(x.shape[0]):
            s, v = self.cell(self.conv(x[t]), v)
            collected.append(self.fc(self.flat(self.pool(s))))
        return torch.stack(collected)


class Direct(Net):
    """A static input that drives all steps."""

    def forward(self, x):
        h = self.f1(x)
        v1, v2, collected = torch.zeros(x.shape[0], 7), torch.zeros(x.shape[0], 4), []
        for _ in range(5):
            s, v1 = self.c1(h, v1)
            y, v2 = self.c2(self.f2(s), v2)
            collected.append(y)
        return torch.stack(collected)


class Layout(Net):
    """Time behind the batch, or behind the features, in input and output."""

    def __init__(self, axis):
        super().__init__()
        self.axis = axis

    def forward(self, x):
        return torch.stack(super().forward(x.movedim(self.axis, 0)).unbind(0), self.axis)


class Unbound(Net):
    """Selects the steps of a batch-first input one by one."""

    def forward(self, x):
        v1, v2, collected = torch.zeros(x.shape[0], 7), torch.zeros(x.shape[0], 4), []
        for t in range(x.shape[1]):
            s, v1 = self.c1(self.f1(x[:, t]), v1)
            y, v2 = self.c2(self.f2(s), v2)
            collected.append(y)
        return torch.stack(collected, 1)


class Recorded(Net):
    """Puts out spikes and potentials of the last layer, or only the last potentials of an integrator."""

    def __init__(self, what):
        super().__init__()
        self.what, self.beta = what, torch.linspace(0.5, 0.9, 4)

    def forward(self, x):
        v1, v2, spikes, potentials = torch.zeros(x.shape[1], 7), torch.zeros(x.shape[1], 4), [], []
        for t in range(x.shape[0]):
            s, v1 = self.c1(self.f1(x[t]), v1)
            u = v2 * (self.beta if self.what == "channels" else 0.5) + self.f2(s)
            y = (u >= 1).float()
            v2 = u if self.what == "last" else u * (1 - y)
            spikes.append(y)
            potentials.append(u)
        if self.what == "last":
            return potentials[-1]
        if self.what == "channels":
            return torch.stack(spikes)
        return torch.stack(potentials), torch.stack(spikes)


class Gain(Net):
    """SpikingJelly's default: ``u = v + (x - v) / tau``, here also without decay (``tau`` infinite)."""

    def forward(self, x):
        v, w, collected = torch.zeros(x.shape[1], 7), torch.zeros(x.shape[1], 4), []
        for t in range(x.shape[0]):
            v = v + (self.f1(x[t]) - v) / 2.0
            s = (v - 0.4 >= 0).float()
            v = (1.0 - s) * v + s * 0.0
            w = w + self.f2(s)
            y = (w - 1.0 > 0).float()
            w = w - y
            collected.append(y)
        return torch.stack(collected)


def export(net, x, path, dynamo=False, names=("output",)):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), (x,), str(path), dynamo=dynamo, input_names=["input"], output_names=list(names))
    return path


def check(net, x, path, dynamo=False, names=("output",), **options):
    model = h2learn.load_model(export(net, x, path, dynamo, names), **options)
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs
    expected = net(x)
    for name, value in zip(names, (expected,) if len(names) == 1 else expected, strict=True):
        np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=1e-5, atol=1e-5)
        assert np.ptp(value.detach().numpy()) > 0
    return model


def neuron_ops(model):
    return [op for op in model.module.walk() if op.name == "spike.lif"]


def spikes_over_time(seed=0, shape=(4, 2, 6)):
    return torch.from_numpy(np.random.default_rng(seed).random(shape).astype(np.float32))


SPELLINGS = [
    (fires, leak, reset, spelling)
    for (fires, leak), (reset, spelling) in zip(
        itertools.product(FIRES, LEAKS),
        itertools.cycle([(reset, spelling) for reset, all_ in RESETS.items() for spelling in all_]),
        strict=False,
    )
]


@pytest.mark.parametrize(("fires", "leak", "reset", "spelling"), SPELLINGS)
def test_spellings_of_a_neuron(tmp_path, fires, leak, reset, spelling):
    net = Net(fires=fires, leak=leak, reset=reset, spelling=spelling, decay=0.75, theta=2.0)
    model = check(net, spikes_over_time(), tmp_path / "net.onnx")
    first = neuron_ops(model)[0]
    assert first.reset.data == reset
    assert first.compare.data == ("gt" if fires in STRICT else "ge")
    np.testing.assert_allclose(first.alpha.get_values(), [0.75], rtol=1e-6)
    gain = 0.5 if fires == "scaled" else 1.0
    np.testing.assert_allclose(first.gain.get_values(), [gain], rtol=1e-6)
    np.testing.assert_allclose(first.theta.get_values(), [2.0 * gain], rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
@pytest.mark.parametrize("order", ["step", "layer"])
def test_any_number_of_steps(tmp_path, steps, order):
    model = check(Net(order=order), spikes_over_time(shape=(steps, 2, 6)), tmp_path / "net.onnx")
    assert len(neuron_ops(model)) == 2


def test_the_size_of_the_module_does_not_depend_on_the_steps(tmp_path):
    sizes = set()
    for steps in (4, 24):
        path = export(Net(), spikes_over_time(shape=(steps, 2, 6)), tmp_path / "net.onnx")
        sizes.add(sum(1 for _ in h2learn.load_model(path).module.walk()))
    assert len(sizes) == 1


@pytest.mark.parametrize("out", ["spikes", "currents", "mean", "sum"])
@pytest.mark.parametrize("order", ["step", "layer"])
def test_outputs(tmp_path, out, order):
    check(Net(order=order, out=out), spikes_over_time(), tmp_path / "net.onnx")


@pytest.mark.parametrize("axis", [1, 2])
def test_time_may_stand_behind(tmp_path, axis):
    x = spikes_over_time().movedim(0, axis).contiguous()
    model = check(Layout(axis), x, tmp_path / "net.onnx")
    assert model.inputs["input"].shape == tuple(x.shape)


def test_the_batch_may_come_first(tmp_path):
    model = check(Unbound(), spikes_over_time(shape=(3, 4, 6)), tmp_path / "net.onnx")
    x = spikes_over_time(shape=(3, 4, 6)).numpy()
    program = h2learn.compile(model)
    fewer = program.run({"input": x[:2]}).outputs["output"]
    np.testing.assert_array_equal(fewer, program.run({"input": x}).outputs["output"][:2])


def test_potentials_and_spikes_come_from_one_operation(tmp_path):
    model = check(Recorded("both"), spikes_over_time(), tmp_path / "net.onnx", names=("potentials", "spikes"))
    assert len(neuron_ops(model)) == 2


def test_the_last_potential(tmp_path):
    check(Recorded("last"), spikes_over_time(shape=(6, 2, 6)), tmp_path / "net.onnx")


def test_constants_by_channel(tmp_path):
    model = check(Recorded("channels"), spikes_over_time(shape=(6, 2, 6)), tmp_path / "net.onnx")
    np.testing.assert_allclose(neuron_ops(model)[1].alpha.get_values(), [0.5, 0.6333333, 0.7666667, 0.9], rtol=1e-6)


def test_a_gain_and_no_decay(tmp_path):
    model = check(Gain(), spikes_over_time(), tmp_path / "net.onnx")
    first, second = neuron_ops(model)
    assert (first.reset.data, second.reset.data) == ("hard", "soft")
    np.testing.assert_allclose((first.gain.get_values(), first.theta.get_values()), [[0.5], [0.4]], rtol=1e-6)
    np.testing.assert_allclose(second.alpha.get_values(), [1.0])


def leak_to(x, v, i, s):
    u = v + (x - (v - 0.2)) / 2
    s = (u >= 0.7).float()
    return u, (1 - s) * u + 0.1 * s, i, s


def delayed_reset(x, v, i, s):
    u = 0.8 * v + x - s * 1.2
    return u, u, i, (u > 1.2).float()


def synapse(x, v, i, s):
    i = 0.6 * i + x
    u = 0.9 * v + 0.5 * i
    s = (u > 1.0).float()
    return u, u * (1 - s), i, s


def synapse_soft(x, v, i, s):
    i = i + x
    u = 0.75 * v + 0.25 * i
    s = (u > 1.0).float()
    return u, u - 1.0 * s, i * 0.9, s


def synapse_delayed(x, v, i, s):
    i = 0.3 * i + x
    u = 0.9 * v + i - s
    return u, u, i, (u > 1.0).float()


class Driven(Net):
    """Two layers of a cell with potential, synaptic current and last spike, which start at ``start``, 0 and 0."""

    def __init__(self, cell, start=0.0, shown=False):
        super().__init__()
        self.cell, self.start, self.shown = cell, start, shown

    def forward(self, x):
        zeros = [torch.zeros(x.shape[1], n) for n in (7, 4)]
        (v, i, s), (w, j, y) = ((z + self.start, z, z) for z in zeros)
        spikes, potentials = [], []
        for t in range(x.shape[0]):
            _, v, i, s = self.cell(self.f1(x[t]), v, i, s)
            u, w, j, y = self.cell(self.f2(s), w, j, y)
            spikes.append(y)
            potentials.append(u)
        return (torch.stack(potentials), torch.stack(spikes)) if self.shown else torch.stack(spikes)


@pytest.mark.parametrize("shown", [False, True])
@pytest.mark.parametrize("steps", [3, 7])
@pytest.mark.parametrize(
    ("cell", "start", "reset", "driven"),
    [
        (leak_to, 0.2, "hard", "none"),
        (leak_to, 0.0, "hard", "none"),
        (delayed_reset, 0.0, "soft_delayed", "none"),
        (delayed_reset, 0.4, "soft_delayed", "none"),
        (synapse, 0.0, "hard", "immediate"),
        (synapse_soft, 0.0, "soft", "immediate"),
        (synapse_delayed, 0.0, "soft_delayed", "immediate"),
    ],
)
def test_how_currents_act(tmp_path, cell, start, reset, driven, steps, shown):
    net = Driven(cell, start, shown)
    names = ("potentials", "spikes") if shown else ("output",)
    model = check(net, spikes_over_time(shape=(steps, 2, 6)) * 2, tmp_path / "net.onnx", names=names)
    for op in neuron_ops(model):
        assert op.reset.data == reset and op.synapse.data == driven


def test_activations_become_neurons(tmp_path):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4))
    x = torch.rand(2, 1, 6, 6)
    path = export(net, x, tmp_path / "net.onnx")
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(path)
    assert "neurons='lif'" in caught.value.excerpt
    model = h2learn.load_model(path, neurons="lif", time_steps=5)
    assert len(neuron_ops(model)) == 1 and any("assumed" in note for note in model.notes)
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs["output"]
    current, u, s, total = net[0](x), 0, torch.zeros(1), 0
    for _ in range(5):
        u = 0.5 * u * (1 - s) + current
        s = (u > 1).float()
        total = total + net[4](net[3](net[2](s)))
    np.testing.assert_allclose(found, (total / 5).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_without_bias(tmp_path):
    model = check(Net(bias=False), spikes_over_time(), tmp_path / "net.onnx")
    assert list(model.parameters) == ["f1.weight", "f2.weight"]


@pytest.mark.parametrize("pool", ["avg", "max", "padded avg", "padded max"])
def test_convolutions(tmp_path, pool):
    check(ConvNet(pool), spikes_over_time(shape=(3, 2, 2, 6, 6)) * 2, tmp_path / "net.onnx")


def test_convolutions_of_rows(tmp_path):
    net = ConvNet("avg")
    net.conv, net.pool, net.fc = nn.Conv1d(2, 4, 5, 2, 2), nn.AvgPool1d(3, 2, 1), nn.Linear(12, 3)
    nn.init.normal_(net.conv.weight, 0.1, 0.6)
    model = check(net, spikes_over_time(shape=(3, 2, 2, 12)) * 2, tmp_path / "net.onnx")
    assert model.parameters["conv.weight"].shape == (4, 2, 5)


@pytest.mark.parametrize("window", [{"groups": 2}, {"dilation": 2, "padding": 2}])
def test_grouped_and_dilated_convolutions(tmp_path, window):
    net = ConvNet("avg", **window)
    model = check(net, spikes_over_time(shape=(3, 2, 2, 6, 6)) * 2, tmp_path / "net.onnx")
    assert model.parameters["conv.weight"].shape == tuple(net.conv.weight.shape)


def test_a_static_input_is_encoded_directly(tmp_path):
    model = check(Direct(leak="divide", decay=0.75), spikes_over_time(shape=(2, 6)), tmp_path / "net.onnx")
    assert model.inputs["input"].shape == (2, 6)
    assert any(op.name == "spike.encode" for op in model.module.walk())


def test_the_batch_may_be_open(tmp_path):
    path = tmp_path / "net.onnx"
    x = spikes_over_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            ConvNet("avg").eval(),
            (spikes_over_time(shape=(3, 2, 2, 6, 6)),),
            str(path),
            dynamo=False,
            input_names=["input"],
            dynamic_axes={"input": {1: "N"}},
        )
    assert h2learn.load_model(path).inputs["input"].shape == (3, 1, 2, 6, 6)
    assert x.shape == (4, 2, 6)


@pytest.mark.parametrize("order", ["step", "layer"])
def test_the_dynamo_exporter(tmp_path, order):
    pytest.importorskip("onnxscript")
    check(Net(order=order, leak="divide"), spikes_over_time(), tmp_path / "net.onnx", dynamo=True)


def test_training_equals_pytorch(tmp_path):
    net = Net()
    x, label = spikes_over_time(), torch.tensor([1, 3])
    model = h2learn.load_model(export(net, x, tmp_path / "net.onnx"))
    step = h2learn.compile(model, train=h2learn.Train(loss="cross_entropy"))
    result = step.run({"input": x.numpy(), "label": label.numpy().astype(np.int32)})
    net.c1.fires = net.c2.fires = lambda u, th: fire(u - th, touching=True)
    loss = nn.functional.cross_entropy(net(x).mean(0), label)
    loss.backward()
    assert result.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in net.named_parameters():
        known = parameter.grad.numpy()
        assert np.abs(result.gradients[name] - known).max() <= 1e-5 * np.abs(known).max()


class Odd(Net):
    """One thing is wrong with it."""

    def __init__(self, what):
        super().__init__()
        self.what, self.f3 = what, nn.Linear(7, 7)

    def forward(self, x):
        v1, v2, s, collected = torch.zeros(x.shape[1], 7), torch.zeros(x.shape[1], 4), torch.zeros(x.shape[1], 7), []
        for t in range(x.shape[0]):
            h = self.f1(x[0 if self.what == "wrong step" and t == 2 else t])
            if self.what == "recurrent potentials":
                h = h + self.f3(v1)
            if self.what == "other weights" and t == 1:
                h = x[t] @ self.f3.weight[:6]
            if self.what == "two thresholds":
                h = torch.relu(h)
            self.c1.theta = 1.5 if self.what == "other threshold" and t == 3 else 1.0
            self.c1.decay = 0.25 if self.what == "other decay" and t == 3 else 0.5
            s, v1 = self.c1(h, v1)
            if self.what == "partial reset":
                v1 = v1 * 0.5 + (v1 + s) * 0.5
            if self.what == "tanh":
                v1 = torch.tanh(v1)
            y, v2 = self.c2(self.f2(s), v2)
            collected.append(y)
        return torch.stack(collected)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("wrong step", "does not use its own step|different numbers of currents"),
        ("recurrent potentials", "something else than its spikes"),
        ("other weights", "has other weights|has another operation|an operation"),
        ("two thresholds", "second threshold|compares"),
        ("other threshold", "differs|constant part"),
        ("other decay", "does not decay by one factor"),
        ("tanh", "not piecewise linear"),
    ],
)
def test_what_is_no_rolled_cell_is_refused(tmp_path, what, reason):
    path = export(Odd(what), spikes_over_time(), tmp_path / "net.onnx")
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(path)
    import re

    assert re.search(reason, caught.value.excerpt), caught.value.excerpt


def test_all_refusals_come_at_once(tmp_path):
    class Two(Odd):
        def forward(self, x):
            return torch.softmax(super().forward(x), -1)

    path = export(Two("tanh"), spikes_over_time(), tmp_path / "net.onnx")
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(path)
    assert "Softmax" in caught.value.excerpt


def test_options(tmp_path):
    path = export(Net(), spikes_over_time(), tmp_path / "net.onnx")
    with pytest.raises(H2LearnError) as caught:
        h2learn.load_model(path, time_steps=7)
    assert "expected 7 time steps, found 4" in caught.value.excerpt
    with pytest.raises(H2LearnError, match="expected reset soft, found reset hard"):
        h2learn.load_model(path, reset="soft")
    assert h2learn.load_model(path, reset="hard").parameters
    with pytest.raises(H2LearnError, match="has no option 'dt'"):
        h2learn.load_model(path, dt=1)
