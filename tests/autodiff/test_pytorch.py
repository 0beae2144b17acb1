"""Gradients of random networks agree with PyTorch autograd in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from xdsl.dialects import func

from h2learn.backends.reference.training import RunScalars
from h2learn.compiler.autodiff import (
    SGD,
    Adam,
    AdamW,
    ATan,
    Exponential,
    FastSigmoid,
    Gaussian,
    MSECount,
    Rectangular,
    Sigmoid,
    Train,
    Triangular,
    differentiate,
)
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.dialects.common import get_io
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import integrator_of, neuron_of
from h2learn.dialects.spike.interpreter import interpret, main_block

torch = pytest.importorskip("torch", reason="compares with PyTorch autograd")
F = torch.nn.functional

TOLERANCE = 1e-9
NORM = ("weight", "bias", "running_mean", "running_var")


class Spike(torch.autograd.Function):
    """The threshold with a surrogate derivative."""

    @staticmethod
    def forward(ctx, u, neuron):
        ctx.save_for_backward(u)
        ctx.neuron = neuron
        if neuron.counts:
            return torch.clamp(torch.floor(u / neuron.theta[0]), 0, neuron.max_spikes or None)
        return (u >= neuron.theta[0] if neuron.compare == "ge" else u > neuron.theta[0]).to(u.dtype)

    @staticmethod
    def backward(ctx, gradient):
        (u,) = ctx.saved_tensors
        n = ctx.neuron
        distance = (u - n.theta[0]).abs()
        if n.periodic:
            nearest = torch.round(u / n.theta[0]) * n.theta[0]
            distance = torch.where(u < n.theta[0], distance, 2 * (u - nearest).abs())
        z, inside = distance / n.width, (distance < n.width).to(u.dtype)
        slope = {
            "rectangular": lambda: inside,
            "triangular": lambda: inside * (1 - z),
            "atan": lambda: 1 / (1 + z**2),
            "sigmoid": lambda: 4 * torch.sigmoid(z) * (1 - torch.sigmoid(z)),
            "fast_sigmoid": lambda: 1 / (1 + z) ** 2,
            "exponential": lambda: torch.exp(-z),
            "gaussian": lambda: torch.exp(-(z**2)),
        }[n.surrogate]()
        return gradient * n.height * slope, None


def torch_drive(current, i, n):
    """Return what drives the membrane, and the synaptic current."""
    now = n.beta[0] * i + current
    return n.gain[0] * {"none": current, "immediate": now, "delayed": i}[n.synapse], now


def torch_lif(x, n, feedback=torch.zeros_like):
    """Return the spikes of neurons that also receive ``feedback`` of their spikes one step before."""
    u, s, i, result = torch.full_like(x[0], n.initial[0]), torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
    for t, current in enumerate(x):
        drive, i = torch_drive(current + feedback(s), i, n)
        held = s.detach() if n.detach_reset else s
        rest = u
        if t and n.reset == "hard":
            rest = torch.where(held > 0, n.v_reset[0], u) if n.counts else u * (1 - held) + n.v_reset[0] * held
        elif t and n.reset == "soft":
            rest = u - n.theta[0] * held
        if t and n.v_min is not None:
            rest = F.relu(rest - n.v_min) + n.v_min
        u = n.v_leak[0] + n.alpha[0] * (rest - n.v_leak[0]) + drive
        if n.reset == "soft_delayed":
            u = u - n.theta[0] * held
        if n.reset == "hard_delayed":
            u = torch.where(s > 0, torch.full_like(u, n.v_reset[0]), u)
        s = Spike.apply(u, n)
        result.append(s)
    return torch.stack(result)


def neuron_in_training(op, train):
    neuron = neuron_of(op)
    neuron = train.surrogate.apply(neuron) if train.surrogate else neuron
    return replace(neuron, detach_reset=neuron.detach_reset or train.detach_reset)


def torch_li(x, n):
    u, i, result = torch.full_like(x[0], n.initial[0]), torch.zeros_like(x[0]), []
    for current in x:
        drive, i = torch_drive(current, i, n)
        u = n.v_leak[0] + n.alpha[0] * (u - n.v_leak[0]) + drive
        result.append(u)
    return torch.stack(result)


def torch_run(model, train, x, label):
    """Interpret the ops of the model with PyTorch in its own layout.

    Return loss, output, gradients, and the running statistics after it.
    """
    parameters = {
        name: torch.tensor(value, dtype=torch.float64, requires_grad=not name.endswith(NORM[2:]))
        for name, value in model.parameters.items()
    }
    values = {main_block(model.module).args[0]: torch.tensor(x, dtype=torch.float64)}
    names = iter(name.removesuffix(".weight") for name in parameters if name.endswith(".weight"))
    over_time = lambda f, v: f(v.flatten(0, 1)).unflatten(0, v.shape[:2])  # noqa: E731
    for op in main_block(model.module).ops:
        if isinstance(op, func.ReturnOp):
            break
        if isinstance(op, spike.EmbedOp):
            continue
        value = values[op.operands[0]]
        if isinstance(op, spike.ConcatOp):
            value = torch.cat([values[part] for part in op.parts], dim=2)
        elif isinstance(op, spike.AddOp):
            value = value + values[op.rhs]
        elif isinstance(op, spike.EncodeOp):
            value = value.expand(op.time_steps.value.data, *value.shape)
        elif isinstance(op, spike.ConvOp):
            name = next(names)
            weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
            window = [op.stride.get_values(), op.padding.get_values()]
            if isinstance(op.weight.owner, spike.EmbedOp):
                window += [op.weight.owner.dilation.get_values(), op.weight.owner.groups.value.data]
            value = over_time(lambda v, w=weight, b=bias, o=tuple(window): F.conv2d(v, w, b, *o), value)
        elif isinstance(op, spike.LinearOp):
            name = next(names)
            value = F.linear(value, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))
        elif isinstance(op, spike.BatchNormOp):
            name = next(names)
            weight, bias, *running = (parameters[f"{name}.{part}"] for part in NORM)
            settings = {"training": True, "momentum": op.momentum.value.data, "eps": op.eps.value.data}
            value = over_time(lambda v, r=running, w=weight, b=bias, s=settings: F.batch_norm(v, *r, w, b, **s), value)
        elif isinstance(op, spike.PoolOp):
            pool = F.max_pool2d if op.kind.data == "max" else F.avg_pool2d
            window = op.kernel.get_values(), op.stride.get_values(), op.padding.get_values()
            scale = math.prod(window[0]) if op.kind.data == "sum" else 1
            value = over_time(lambda v, f=pool, w=window, s=scale: f(v, *w) * s, value)
        elif isinstance(op, spike.FlattenOp):
            value = value.flatten(2)
        elif isinstance(op, spike.LifOp):
            value = torch_lif(value, neuron_in_training(op, train))
        elif isinstance(op, spike.ScanOp):
            name = next(names)
            weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
            (neurons,) = [inner for inner in op.body.block.ops if isinstance(inner, spike.LifOp)]
            feedback = lambda s, w=weight, b=bias: F.linear(s, w, b)  # noqa: E731
            value = torch_lif(value, neuron_in_training(neurons, train), feedback)
        elif isinstance(op, spike.DelayOp):
            (steps,) = op.steps.get_values()
            value = torch.cat([torch.zeros_like(value[:steps]), value])[: len(value)]
        elif isinstance(op, spike.LiOp):
            value = torch_li(value, integrator_of(op))
        elif isinstance(op, spike.ReadoutOp):
            steps = len(value)
            reduced = {"membrane_last": value[-1], "membrane_max": value.max(0).values, "count": value.sum(0)}
            value = reduced.get(op.kind.data, value.mean(0))
            counts = value * steps if op.kind.data == "rate" else value
        values[op.results[0]] = value
    logits = value.mean(0) if value.ndim == 3 else value
    if isinstance(train.loss, MSECount):
        hot = F.one_hot(torch.tensor(label).long(), logits.shape[1])
        hit, miss = int(steps * train.loss.correct), int(steps * train.loss.incorrect)
        loss = F.mse_loss(counts, hot * float(hit) + (1 - hot) * miss) / steps
    elif train.loss == "cross_entropy":
        loss = F.cross_entropy(logits, torch.tensor(label).long())
    else:
        loss = ((logits - F.one_hot(torch.tensor(label).long(), logits.shape[1])) ** 2).mean()
    gradients = torch.autograd.grad(loss, [p for p in parameters.values() if p.requires_grad])
    running = {name: p.numpy() for name, p in parameters.items() if not p.requires_grad}
    return loss.item(), value.detach().numpy(), [g.numpy() for g in gradients], running


BRANCHES = (
    [
        "conv m from a: 4 channels, kernel 3 x 3, padding 1",
        "conv s from a: 4 channels, kernel 1 x 1",
        "add: m, s",
        "lif e",
    ],
    ["conv m from a: 4 channels, kernel 3 x 3, padding 1, no bias", "add: m, a", "lif e"],
    [
        "conv m from a: 3 channels, kernel 1 x 1",
        "lif e",
        "concat g: e, a, m",
        "conv h: 4 channels, kernel 1 x 1",
        "lif k",
    ],
    ["conv m from a: 8 channels, kernel 2 x 3, padding 1, dilation 2 x 1, groups 4", "lif e"],
    ["conv m from a: 4 channels, kernel 1 x 1", "lif e", "add g: e, a", "conv h: 4 channels, kernel 1 x 1", "lif k"],
)


def random_model(rng):
    """Return a random network of up to six layers."""
    pick = lambda *choices: choices[rng.integers(len(choices))]  # noqa: E731
    reset = pick("hard", "hard to -0.2", "soft", "soft delayed", "none")
    fire = f"spike at u {pick('>', '>=')} threshold"
    fire = pick(fire, fire, "spikes per step up to 3", "spikes per step any number")
    fire += pick("", "", "", ", potential at least -0.3")
    drive = pick("", "gain 1.5, leak to 0.1", "synapse decay 0.6, initial 0.2", "delayed synapse decay 0.4, gain 0.8")
    lif = f"decay {pick(0.3, 0.5, 0.9)}, threshold {pick(0.4, 0.7)}, reset {reset}, {fire}"
    lif, integrator = (f"{part}, {drive}" if drive else part for part in (lif, "decay 0.6"))
    window = f"stride {pick(1, '2 x 1')}, padding {pick(0, 1, '1 x 0')}"
    encode = rng.random() < 0.6
    lines = [
        "network random",
        f"input x: 2 x 10 x 10 {'' if encode else 'over time'}",
        f"time steps: {rng.integers(2, 6)}",
        "encode direct" if encode else "",
        f"neuron: lif({lif})",
        f"conv c1: 4 channels, kernel {pick('3 x 3', '2 x 3')}, {window}",
    ]
    pool = f"pool: {pick('max', 'avg', 'sum')} {pick('2 x 2', '3 x 2')}, stride {pick(1, 2)}, padding {pick(0, 1)}"
    norm = f"batchnorm n{{}}: eps {pick(1e-5, 0.01)}, momentum {pick(0.1, 0.5)}"
    if rng.random() < 0.4:
        lines.append(norm.format(1))
    lines += pick([pool, "lif a"], ["lif a", pool], ["lif a"])
    lines += pick([], *BRANCHES)
    if rng.random() < 0.5:
        lines += [f"conv c2: 3 channels, kernel 2 x 2{pick('', ', no bias')}", "lif b", pick("", "pool: avg 1 x 2")]
    lines += ["flatten", f"linear f1: 6 features{pick('', ', no bias')}"]
    lines += [pick("", "", "", "delay: 1 steps"), pick("lif c", "recurrent c", "recurrent c: bias")]
    lines += [pick("", "", f"delay: {rng.integers(1, 3)} steps")]
    lines += ["linear f2: 4 features"]
    if rng.random() < 0.3:
        lines.append(norm.format(2))
    ending = pick(["lif d", "readout rate"], ["lif d"], ["recurrent d", "readout rate"])
    ending = pick(ending, [f"li d: {integrator}", "readout membrane mean"])
    ending = pick(ending, [f"li d: {integrator}", "readout membrane last"])
    lines += pick(ending, ending, ending, [f"li d: {integrator}", "readout membrane max"])
    lines.append(f"init: normal gain 2.0 seed {rng.integers(1000)}")
    return parse_snn("\n".join(lines)).with_batch(3)


def random_recipe(rng):
    known = [Rectangular(0.6, 0.8), Triangular(1.1, 1.3), ATan(), Sigmoid.with_slope(3.0), FastSigmoid(0.4), None]
    known += [Exponential(0.4, 1.2), Gaussian(0.6, 0.8), Triangular(0.7, 1.1, periodic=True)]
    surrogate = known[rng.integers(len(known))]
    return Train(
        loss=["cross_entropy", "mse_rate"][rng.integers(2)],
        surrogate=surrogate,
        detach_reset=bool(rng.integers(2)),
        loss_scale=[None, 8.0][rng.integers(2)],
        optimizer=SGD(0.1, [0.0, 0.9][rng.integers(2)]),
    )


def data(model, rng):
    shape = next(iter(model.inputs.values())).shape
    return rng.normal(0.3, 0.8, shape), rng.integers(0, 4, 3).astype(np.int32)


def compare_with_torch(model, train, rng):
    """Check loss, output, gradients and running statistics of one training step; return the gradients."""
    x, label = data(model, rng)
    loss, output, gradients, running = torch_run(model, train, x, label)
    step = differentiate(model.module, train)
    io = get_io(step)
    values = {"x": x, "label": label, "scalars": RunScalars(lr=0.1, valid=3).to_array(), **model.parameters}
    arguments = main_block(step).args
    given = [e.to_device(values.get(e.name, np.zeros(a.type.get_shape()))) for e, a in zip(io, arguments, strict=False)]
    results = interpret(step, given, np.float64)

    named = list(zip(io[len(arguments) :], results, strict=True))
    assert results[0] == pytest.approx(loss, rel=1e-12)
    found_output = next(e.to_source(r, output.shape) for e, r in named if e.role == "output")
    np.testing.assert_allclose(found_output, output, rtol=1e-9, atol=1e-12)
    found = [(e, r) for e, r in named if e.role == "gradient"]
    assert [e.name for e, _ in found] == [name for name in model.parameters if name not in running]
    for (entry, result), expected in zip(found, gradients, strict=True):
        close(entry.to_source(result, expected.shape) / train.scale_for("f32"), expected)
    new = {e.name: r for e, r in named if e.role == "parameter"}
    for name, expected in running.items():
        close(new[name], expected)
    return gradients


@pytest.mark.parametrize("loss", ["cross_entropy", MSECount(), MSECount(0.8, 0.2)])
@pytest.mark.parametrize("readout", ["rate", "count"])
def test_losses_on_counts(readout, loss):
    text = f"""network counted
    input x: 2 x 4 x 4
    time steps: 7
    encode direct
    neuron: lif(decay 0.7, threshold 0.5, reset soft, spike at u > threshold)
    conv c1: 3 channels, kernel 3 x 3
    lif a
    flatten
    linear f1: 4 features
    lif b
    readout {readout}
    init: normal gain 2 seed 5"""
    model = parse_snn(text.replace("\n    ", "\n")).with_batch(3)
    gradients = compare_with_torch(model, Train(loss=loss), np.random.default_rng(2))
    assert all(np.abs(g).max() > 0 for g in gradients)


@pytest.mark.parametrize("drive", ["", ", synapse decay 0.6", ", delayed synapse decay 0.8, gain 0.8, leak to 0.1"])
def test_a_reset_that_loses_the_step_behind_a_spike(drive):
    text = f"""network lost
    input x: 2 x 4 x 4 over time
    time steps: 10
    neuron: lif(decay 0.7, threshold 0.5, reset hard delayed to 0.2{drive})
    conv c1: 3 channels, kernel 3 x 3
    lif a
    flatten
    linear f1: 6 features
    recurrent r
    linear f2: 4 features
    lif b
    readout rate
    init: normal gain 3 seed 5"""
    model = parse_snn(text.replace("\n    ", "\n")).with_batch(3)
    gradients = compare_with_torch(model, Train(), np.random.default_rng(2))
    assert all(np.abs(g).max() > 0 for g in gradients)


def close(found, expected, floor=1e-4):
    scale = max(np.abs(expected).max(), floor)
    assert np.abs(found - expected).max() <= TOLERANCE * scale


@pytest.mark.parametrize("seed", range(40))
def test_gradients_of_random_networks(seed):
    rng = np.random.default_rng(seed)
    model, train = random_model(rng), random_recipe(rng)
    parameters = {n: v if v.ndim > 1 else rng.normal(0, 0.3, v.shape) for n, v in model.parameters.items()}
    model = model.with_parameters(parameters)
    compare_with_torch(model, train, rng)


def test_random_networks_do_not_have_dead_gradients():
    alive = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        model, train = random_model(rng), random_recipe(rng)
        gradients = torch_run(model, train, *data(model, rng))[2]
        alive += all(np.abs(g).max() > 0 for g in gradients)
    assert alive >= 6


OPTIMIZERS = [
    (SGD(0.2), torch.optim.SGD),
    (SGD(0.2, 0.9, weight_decay=0.1), torch.optim.SGD),
    (SGD(0.2, 0.9, nesterov=True), torch.optim.SGD),
    (Adam(0.01, eps=1e-3, weight_decay=0.1), torch.optim.Adam),
    (AdamW(0.01, betas=(0.5, 0.9), eps=1e-3), torch.optim.AdamW),
]


@pytest.mark.parametrize(("optimizer", "kind"), OPTIMIZERS, ids=lambda value: repr(value))
def test_three_steps(optimizer, kind):
    rng = np.random.default_rng(5)
    model = next(m for m in iter(lambda: random_model(rng), None) if "n1.weight" in m.parameters)
    train = Train(optimizer=optimizer, surrogate=Triangular(1.5, 1.0), loss_scale=4.0, keep_gradients=False)
    step = differentiate(model.module, train)
    io, count = get_io(step), len(model.parameters)
    parameters = [e.to_device(model.parameters[e.name]) for e in io[2 : 2 + count]]
    running = {n: v.astype(np.float64) for n, v in model.parameters.items() if n.endswith(NORM[2:])}
    expected = {
        n: torch.nn.Parameter(torch.from_numpy(v.astype(np.float64)))
        for n, v in model.parameters.items()
        if n not in running
    }
    trained = [p for e, p in zip(io[2:], parameters, strict=False) if e.name in expected]
    states = [np.zeros_like(p, dtype=np.float64) for _ in optimizer.states for p in trained]
    options = {name: value for name, value in vars(optimizer).items() if name != "lr"}
    reference = kind(list(expected.values()), lr=float(np.float32(optimizer.lr)), **options)
    for count_of_steps in range(3):
        x, label = data(model, rng)
        scalars = RunScalars(lr=optimizer.lr, valid=3, step=count_of_steps).to_array()
        results = interpret(step, [io[0].to_device(x), label, *parameters, *states, scalars], np.float64)
        parameters, states = results[2 : 2 + count], results[2 + count :]
        now = {n: expected[n].detach().numpy() if n in expected else running[n] for n in model.parameters}
        held = type(model)(model.name, model.network, now, None, model.build)
        _, _, gradients, running = torch_run(held, train, x, label)
        for parameter, gradient in zip(expected.values(), gradients, strict=True):
            parameter.grad = torch.from_numpy(np.asarray(gradient))
        reference.step()
    wanted = running | {n: p.detach().numpy() for n, p in expected.items()}
    for entry, found in zip(io[2 : 2 + count], parameters, strict=True):
        close(entry.to_source(found, wanted[entry.name].shape), wanted[entry.name], 0.1)
