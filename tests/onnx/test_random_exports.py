"""Random spiking networks exported by PyTorch: layers, spellings of the neuron, loops and operator sets are drawn."""

import os
import random
import warnings

import numpy as np
import pytest

import h2learn

torch = pytest.importorskip("torch")

from .test_exports import FIRES, LEAKS, RESETS  # noqa: E402

nn = torch.nn
CASES = int(os.environ.get("H2LEARN_RANDOM_EXPORTS", "16"))
DYNAMO_EVERY = 3
"""The newer exporter takes seconds for each network, the older one a fraction: it exports one in three."""
MARGIN = 1e-4
"""Drawn networks whose potentials come closer to a threshold are drawn again: rounding could flip a spike."""


class Neuron(nn.Module):
    """A LIF, IF or CubaLIF neuron in a drawn spelling; ``state`` is what it keeps from step to step."""

    def __init__(self, r):
        super().__init__()
        self.fires, self.leak = FIRES[r.choice(sorted(FIRES))], LEAKS[r.choice(sorted(LEAKS))]
        self.reset = r.choice(sorted(RESETS))
        self.spelling = RESETS[self.reset][r.choice(sorted(RESETS[self.reset]))]
        self.decay, self.theta = r.choice([0.5, 0.75, 0.9, 1.0]), r.choice([0.5, 1.0])
        if self.decay == 1.0:
            self.leak = LEAKS["multiply"]
        self.synapse = r.choice([None, None, 0.5])
        self.detached, self.closest = r.random() < 0.3, 1.0

    def forward(self, x, state):
        current, v = state if state is not None else (torch.zeros_like(x), torch.zeros_like(x))
        drive = x if self.synapse is None else self.synapse * current + x
        u = self.leak(v, drive, self.decay)
        s = self.fires(u, self.theta)
        if not torch.jit.is_tracing():
            self.closest = min(self.closest, float((u - self.theta).abs().min()))
        return s, (drive, self.spelling(u, s.detach() if self.detached else s, self.theta))


KINDS = {
    "features": (nn.Linear, None, (), ()),
    "rows": (nn.Conv1d, nn.BatchNorm1d, (nn.AvgPool1d, nn.MaxPool1d), (6,)),
    "maps": (nn.Conv2d, nn.BatchNorm2d, (nn.AvgPool2d, nn.MaxPool2d), (6, 6)),
}


class Network(nn.Module):
    """Blocks of layers, perhaps side by side, a normalization, neurons, pooling; a classifier; time in or outside."""

    def __init__(self, r, kind):
        super().__init__()
        self.blocks, self.layer_outer = nn.ModuleList(), r.random() < 0.5
        self.make, norm, pools, sizes = KINDS[kind]
        channels, size = 2, 6
        for _ in range(r.choice([1, 2])):
            outputs = r.choice([3, 8])
            parts = nn.ModuleDict({"layer": self._layer(r, channels, outputs), "neuron": Neuron(r)})
            if r.random() < 0.4:
                parts["short"] = self.make(channels, outputs, *([1] if sizes else []))
            elif r.random() < 0.4:
                parts["beside"] = self._layer(r, channels, 4)
                outputs += 4
            if norm and "beside" not in parts and r.random() < 0.5:
                parts["norm"] = norm(outputs)
                parts["norm"].running_mean.uniform_(-0.2, 0.2)
                parts["norm"].running_var.uniform_(0.5, 2.0)
            if pools and size == 6 and r.random() < 0.6:
                parts["pool"], size = r.choice(pools)(2), 3
            self.blocks.append(parts)
            channels = outputs
        self.head = nn.Linear(channels * size ** len(sizes), 4)
        self.last = Neuron(r) if r.random() < 0.5 else None
        self.mean, self.mean_first = r.random() < 0.4, r.random() < 0.3

    def _layer(self, r, channels, outputs):
        bias, way = r.random() < 0.7, r.random()
        if self.make is nn.Linear:
            made = nn.Linear(channels, outputs, bias)
        elif way < 0.3:
            made = self.make(channels, outputs, 3, padding=2, dilation=2, bias=bias)
        else:
            groups = 2 if way < 0.5 and channels % 2 == outputs % 2 == 0 else 1
            made = self.make(channels, outputs, 3, padding=1, groups=groups, bias=bias)
        nn.init.normal_(made.weight, 0.1, 1.5 / made.weight[0].numel() ** 0.5)
        return made

    def current(self, parts, x):
        y = parts["layer"](x)
        y = torch.cat([y, parts["beside"](x)], 1) if "beside" in parts else y
        y = parts["norm"](y) if "norm" in parts else y
        return y + parts["short"](x) if "short" in parts else y

    def after(self, parts, s):
        return parts["pool"](s) if "pool" in parts else s

    def forward(self, x):
        result = self.by_layer(x) if self.layer_outer else self.by_step(x)
        return result.mean(0) if self.mean else result

    def by_layer(self, x):
        steps = list(x.unbind(0))
        for parts in self.blocks:
            state, spikes = None, []
            for step in steps:
                s, state = parts["neuron"](self.current(parts, step), state)
                spikes.append(self.after(parts, s))
            steps = spikes
        return self.finish([s.flatten(1) for s in steps])

    def by_step(self, x):
        states, spikes = [None] * len(self.blocks), []
        for t in range(x.shape[0]):
            y = x[t]
            for k, parts in enumerate(self.blocks):
                s, states[k] = parts["neuron"](self.current(parts, y), states[k])
                y = self.after(parts, s)
            spikes.append(y.flatten(1))
        return self.finish(spikes)

    def finish(self, spikes):
        if self.last is None:
            if self.mean and self.mean_first:
                return self.head(torch.stack(spikes).mean(0))[None]
            return torch.stack([self.head(s) for s in spikes])
        state, found = None, []
        for s in spikes:
            s, state = self.last(self.head(s), state)
            found.append(s)
        return torch.stack(found)


def drawn(seed):
    """Return a network and an input whose spikes do not hang on rounding, and the expected output."""
    for attempt in range(50):
        r = random.Random(100 * seed + attempt)
        torch.manual_seed(100 * seed + attempt)
        kind, steps = r.choice(["features", "rows", "maps", "maps"]), r.choice([2, 3, 4, 6])
        with torch.no_grad():
            net = Network(r, kind).eval()
            x = torch.rand((steps, 2, 2, *KINDS[kind][3])) * 2
            expected = net(x).numpy()
        if min(part.closest for part in net.modules() if isinstance(part, Neuron)) > MARGIN and np.ptp(expected) > 0.05:
            return r, net, x, expected
    raise AssertionError("no network with a margin was drawn")


DRAWS = [(seed, dynamo) for seed in range(CASES) for dynamo in (False, True) if not dynamo or seed % DYNAMO_EVERY == 0]


@pytest.mark.parametrize(("seed", "dynamo"), DRAWS)
def test_a_random_network_gives_the_outputs_of_pytorch(seed, dynamo, tmp_path):
    if dynamo:
        pytest.importorskip("onnxscript")
    r, net, x, expected = drawn(seed)
    opset = r.choice([18, 20, 21]) if dynamo else r.choice([13, 14, 16, 17, 18, 20])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        training = {} if dynamo else {"training": torch.onnx.TrainingMode.PRESERVE}
        torch.onnx.export(
            net,
            (x,),
            str(tmp_path / "net.onnx"),
            dynamo=dynamo,
            opset_version=opset,
            input_names=["input"],
            output_names=["output"],
            do_constant_folding=r.random() < 0.5,
            **training,
        )
    model = h2learn.load_model(tmp_path / "net.onnx")
    found = h2learn.compile(model).run({"input": x.numpy()}).outputs["output"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
