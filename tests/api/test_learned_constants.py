"""Learned decays and thresholds: gradients against PyTorch autograd, on the simulator, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import h2learn
from h2learn.compiler.frontends.dsl import parse_snn

from ..surrogate import fire

NET = """network learned
input x: 6 over time
time steps: 5
linear f1: 10 features
lif n1: {options}
linear f2: 3 features
li: decay 0.7
readout membrane mean
init: normal gain 2.5 seed 3
"""
PLAIN = "decay 0.6, threshold 0.7, reset {reset}, surrogate triangular(half_width 1.5), {learns}"
BATCH, STEPS = 4, 5
RESETS = ("hard to 0.1", "soft", "soft delayed", "none")
LEARNS = (
    "learn decay, learn threshold",
    "learn decay per channel, learn threshold per channel",
    "learn decay sigmoid, learn threshold",
    "learn decay sigmoid per channel",
    "learn threshold",
)


def net(reset: str = "hard", learns: str = LEARNS[0]) -> str:
    return NET.format(options=PLAIN.format(reset=reset, learns=learns))


def inputs(seed: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(0.3, 1, (STEPS, BATCH, 6)).astype(np.float32), "label": np.array([2, 0, 1, 1], np.int32)}


def torch_gradients(
    model: h2learn.Model, fed: dict[str, np.ndarray], reset: str
) -> tuple[float, dict[str, np.ndarray]]:
    torch = pytest.importorskip("torch", reason="compares with PyTorch autograd")
    functional = torch.nn.functional
    tensors = {n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in model.parameters.items()}

    decay = tensors.get("n1.decay", torch.tensor([0.6], dtype=torch.float64))
    decay = torch.sigmoid(decay) if "sigmoid" in model.name else decay.clamp(0, 1)
    threshold = tensors.get("n1.threshold", torch.tensor([0.7], dtype=torch.float64))
    u = s = rest = taken = torch.zeros(BATCH, 10, dtype=torch.float64)
    v, total = torch.zeros(BATCH, 3, dtype=torch.float64), 0
    for x in torch.tensor(fed["x"], dtype=torch.float64):
        u = decay * rest + functional.linear(x, tensors["f1.weight"], tensors["f1.bias"]) - taken
        s = fire(u - threshold, 1.5, touching=True, slope="tent")
        rest = {"hard to 0.1": u * (1 - s) + 0.1 * s, "soft": u - threshold * s}.get(reset, u)
        taken = threshold * s if reset == "soft delayed" else taken
        v = 0.7 * v + functional.linear(s, tensors["f2.weight"], tensors["f2.bias"])
        total = total + v
    loss = functional.cross_entropy(total / STEPS, torch.tensor(fed["label"]).long())
    loss.backward()
    return loss.item(), {name: tensor.grad.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("learns", LEARNS)
def test_gradients_agree_with_pytorch(reset: str, learns: str) -> None:
    text = net(reset, learns).replace("network learned", "network sigmoid" if "sigmoid" in learns else "network unit")
    model, fed = parse_snn(text), inputs()
    rng = np.random.default_rng(1)
    moved = {n: v + rng.normal(0, 0.05, v.shape) if n.startswith("n1.") else v for n, v in model.parameters.items()}
    model = model.with_parameters(moved)
    step = h2learn.compile(model, train=h2learn.Train(optimizer=h2learn.SGD(lr=0.1)), batch=BATCH)
    result = step.run(fed)
    loss, gradients = torch_gradients(model, fed, reset)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert set(gradients) == set(result.gradients)
    for name, expected in gradients.items():
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(result.gradients[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_fresh_model_starts_as_the_neuron_says() -> None:
    shared = parse_snn(net(learns=LEARNS[0])).parameters
    assert shared["n1.decay"] == [np.float32(0.6)] and shared["n1.threshold"] == [np.float32(0.7)]
    falling = parse_snn(net(learns=LEARNS[3])).parameters["n1.decay"]
    np.testing.assert_allclose(1 / (1 + np.exp(-falling)), np.full(10, 0.6), rtol=1e-6)
    learned, plain = (parse_snn(net(learns=text)) for text in (LEARNS[1], "detach reset"))
    plain = plain.with_parameters({name: learned.parameters[name] for name in plain.parameters})
    fed = {"x": inputs()["x"]}
    outputs = [h2learn.compile(one, batch=BATCH).run(fed).outputs["output"] for one in (learned, plain)]
    np.testing.assert_array_equal(*outputs)


def test_a_decay_outside_0_to_1_acts_as_the_nearest_and_gets_no_gradient() -> None:
    model = parse_snn(net(learns="learn decay per channel"))
    outside = np.float32([1.25, -0.5, 1, 0, *(0.6,) * 6])
    train = h2learn.Train(optimizer=h2learn.SGD(lr=0.1))
    results = [
        h2learn.compile(model.with_parameters({**model.parameters, "n1.decay": values}), train=train, batch=BATCH).run(
            inputs()
        )
        for values in (outside, np.clip(outside, 0, 1))
    ]
    assert results[0].loss == results[1].loss
    assert not results[0].gradients["n1.decay"][:2].any() and results[1].gradients["n1.decay"][:4].any()


def test_training_moves_the_constants_and_groups_of_samples_change_only_rounding() -> None:
    model = parse_snn(net())
    train = h2learn.Train(optimizer=h2learn.Adam(lr=0.01))
    losses = []
    for limits in ("", "group=2", "group=1,overlap=serial"):
        program = h2learn.compile(model, train=train, batch=BATCH, mapping=limits)
        with program.session() as session:
            losses.append([session.run(inputs()).loss for _ in range(6)])
            moved = session.parameters
        assert abs(moved["n1.decay"] - 0.6) > 0.01 and abs(moved["n1.threshold"] - 0.7) > 0.01
    assert losses[0][-1] < losses[0][0]
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lif n1: learn decay, gain 2", "no gain, leak, initial potential or synapse of n1"),
        ("lif: learn decay", "a name of neurons whose constants are learned"),
        ("lif n1: learn decay sigmoid, decay 1", "between 0 and 1 of the neurons n1, found 1"),
        ("lif n1: learn decay, learn decay per channel", "`learn decay` once"),
        ("lif n1: learn width", "expected decay or threshold"),
        ("recurrent n1: learn threshold", "not learned in a recurrent layer"),
    ],
)
def test_refused(line: str, message: str) -> None:
    text = "\n".join(line if one.startswith("lif") else one for one in net().splitlines())
    with pytest.raises(h2learn.H2LearnError, match=message):
        parse_snn(text)


def test_the_default_neuron_may_learn() -> None:
    text = NET.format(options="decay 0.25").replace("linear f1", "neuron: lif(learn decay)\nlinear f1")
    assert parse_snn(text).parameters["n1.decay"] == [np.float32(0.25)]
