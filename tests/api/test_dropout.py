"""Dropout from the file to the machine: against PyTorch with the same masks, over steps, and left out of inference."""

from __future__ import annotations

import numpy as np
import pytest

import h2learn
from h2learn.backends.reference.coding import Dropout, dropout, kept
from h2learn.backends.reference.training import RunScalars
from h2learn.compiler.folding import folded
from h2learn.compiler.frontends.dsl import parse_snn

from ..surrogate import fire

NET = """network dropped
input x: 2 x 5 x 5 over time
time steps: 3
neuron: lif(decay 0.5, threshold 0.6, reset hard, spike at u > threshold)
conv c1: 8 channels, kernel 3 x 3, padding 1
lif a
dropout d1: 0.4
conv c2: 4 channels, kernel 2 x 2
dropout d2: 0.25, every step
lif b
flatten
linear f1: 3 features
li c: decay 0.7
readout membrane mean
init: normal gain 2 seed 3
"""
BATCH = 2


def inputs(seed: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(0.3, 1, (3, BATCH, 2, 5, 5)).astype(np.float32), "label": np.array([2, 0], np.int32)}


def program(net: str = NET, **options: object) -> h2learn.Program:
    return h2learn.compile(parse_snn(net), train=h2learn.Train(optimizer=h2learn.SGD(lr=0.1)), batch=BATCH, **options)


def test_the_expected_value_stays() -> None:
    x = np.ones((40, 50, 60))
    dropped = dropout(x, Dropout(0.2, 3), RunScalars(seed=5))
    assert set(np.unique(dropped)) == {0.0, float(np.float32(1.25))}
    assert abs(dropped.mean() - 1) < 0.01
    assert (dropped == dropped[:1]).all()
    anew = dropout(x, Dropout(0.2, 3, every_step=True), RunScalars(seed=5))
    assert (anew[0] == dropped[0]).all() and not (anew[1] == anew[0]).all()


def test_gradients_agree_with_pytorch_under_the_same_masks() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch autograd")
    functional = torch.nn.functional
    fed, step = inputs(), program()
    result = step.run(fed, seed=11)
    scalars = RunScalars(seed=11, valid=BATCH)

    def mask(what: Dropout, shape: tuple[int, ...]) -> object:
        stays = np.moveaxis(kept(shape, what, scalars), -1, 2)
        return torch.tensor(stays * (1 / (1 - what.probability)))

    masks = mask(Dropout(0.4, 0), (3, BATCH, 5, 5, 8)), mask(Dropout(0.25, 1, every_step=True), (3, BATCH, 4, 4, 4))
    tensors = {
        n: torch.tensor(v, dtype=torch.float64, requires_grad=True) for n, v in parse_snn(NET).parameters.items()
    }

    def lif(currents):
        u, s, found = torch.zeros_like(currents[0]), torch.zeros_like(currents[0]), []
        for current in currents:
            u = 0.5 * u * (1 - s) + current
            s = fire(u - 0.6)
            found.append(s)
        return torch.stack(found)

    def conv(value, name, padding):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return functional.conv2d(value.flatten(0, 1), weight, bias, padding=padding).unflatten(0, value.shape[:2])

    value = lif(conv(torch.tensor(fed["x"], dtype=torch.float64), "c1", 1)) * masks[0]
    value = lif(conv(value, "c2", 0) * masks[1])
    u, total = torch.zeros(BATCH, 3, dtype=torch.float64), 0
    for current in functional.linear(value.flatten(2), tensors["f1.weight"], tensors["f1.bias"]):
        u = 0.7 * u + current
        total = total + u
    loss = functional.cross_entropy(total / 3, torch.tensor(fed["label"]).long())
    loss.backward()
    assert abs(result.loss - loss.item()) < 1e-5 * loss.item()
    for name, tensor in tensors.items():
        expected = tensor.grad.numpy()
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(result.gradients[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_every_run_draws_anew_and_a_restored_session_goes_on() -> None:
    fed, step = inputs(), program()
    with step.session(seed=7) as session:
        losses = []
        for _ in range(4):
            losses.append(session.run(fed, lr=0.0).loss)
            if len(losses) == 2:
                held = session.parameters, session.states
    assert len(set(losses)) > 1
    with step.session(seed=7) as resumed:
        resumed.restore(*held, steps=2, samples=2 * BATCH)
        assert [resumed.run(fed, lr=0.0).loss for _ in range(2)] == losses[2:]


def test_inference_has_no_dropout_and_reads_spikes() -> None:
    model = parse_snn(NET)
    plain = parse_snn("\n".join(line for line in NET.splitlines() if not line.startswith("dropout")))
    assert str(folded(model).module) == str(plain.module).replace("@plain", "@dropped")
    fed = {"x": inputs()["x"]}
    results = [h2learn.compile(one, batch=BATCH).run(fed).outputs["output"] for one in (model, plain)]
    np.testing.assert_array_equal(*results)


def test_a_program_that_trains_without_dropout_differs() -> None:
    fed = inputs()
    without = program(NET.replace("0.4", "0").replace("0.25", "0"))
    plain = program("\n".join(line for line in NET.splitlines() if not line.startswith("dropout")))
    assert without.run(fed).loss == plain.run(fed).loss != program().run(fed).loss


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("dropout d1: 1", "from 0 to below 1, found 1"),
        ("dropout d1: 1.5", "at most 1, found 1.5"),
        ("dropout d1: 0.4, every", "expected step"),
        ("dropout d1", "expected"),
    ],
)
def test_refused(line: str, message: str) -> None:
    with pytest.raises(h2learn.H2LearnError, match=message):
        parse_snn(NET.replace("dropout d1: 0.4", line))


def test_a_draw_for_every_step_of_an_input_that_is_the_same_at_all() -> None:
    net = NET.replace(" over time", "\nencode direct").replace("conv c1", "dropout d0: 0.1{}\nconv c1")
    fed = inputs() | {"x": inputs()["x"][0]}
    anew, once = (program(net.format(option)).run(fed) for option in (", every step", ""))
    assert anew.loss != once.loss
    frames = net.replace("\nencode direct", " over time").format(", every step")
    repeated = program(frames).run(fed | {"x": np.repeat(fed["x"][None], 3, axis=0)})
    assert anew.loss == pytest.approx(repeated.loss, rel=1e-6)


def test_spikes_at_the_end_are_refused_for_inference() -> None:
    net = NET.split("flatten")[0] + "dropout d3: 0.1\n"
    with pytest.raises(h2learn.H2LearnError, match="a layer behind a dropout of spikes"):
        h2learn.compile(parse_snn(net))
