import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import h2learn
from h2learn import H2LearnError
from h2learn.checkpoints import read_checkpoint
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.program import Execution

NET = """network tiny
input image: 1 x 4 x 4
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 1.0, reset hard, spike at u >= threshold)
conv c1: 3 channels, kernel 3 x 3, padding 1
lif n1
flatten
linear f1: 4 features
lif n2
readout rate
train: loss mse_rate, optimizer sgd(lr 0.25, momentum 0.5), surrogate rectangular(half_width 1.0, height 1.0)
init: normal gain 2.0 seed 1
"""
CHECKED = Execution(sanitize=frozenset({"race", "uninit", "bounds"}))


@pytest.fixture(scope="module")
def model() -> h2learn.Model:
    return parse_snn(NET)


@pytest.fixture(scope="module")
def step(model: h2learn.Model) -> h2learn.Program:
    return h2learn.compile(model, train=model.train, batch=4)


def batch(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = (rng.integers(0, 17, (count, 1, 4, 4)) / 16).astype(np.float32)
    return {"image": image, "label": rng.integers(0, 4, count).astype(np.int32)}


def data(count: int = 22) -> h2learn.DataSet:
    train, test = batch(count, 1), batch(6, 2)
    return h2learn.DataSet("random", train["image"], train["label"], test["image"], test["label"])


def test_inference_gives_outputs_in_the_model_s_order(model: h2learn.Model) -> None:
    program = h2learn.compile(model, batch=4)
    result = program.run({"image": batch(4)["image"]}, execution=CHECKED)
    assert result.loss is None and result.outputs["output"].shape == (4, 4) and result.report.findings == []
    assert result.cycles > 0 and result.energy_pj > 0 and set(result.outputs["output"].ravel() * 3) <= {0, 1, 2, 3}
    assert {"busy", "bytes_read", "by_source", "energy"} <= result.stats.keys()
    assert program.inputs["image"].shape == (4, 1, 4, 4) and not program.training


def test_a_step_gives_loss_gradients_and_the_update(model: h2learn.Model, step: h2learn.Program) -> None:
    result = step.run(batch(4), execution=CHECKED)
    assert result.report.findings == []
    rate, label = np.asarray(result.outputs["output"], dtype=np.float64), np.eye(4)[batch(4)["label"]]
    assert result.loss == pytest.approx(((rate - label) ** 2).mean(), rel=1e-6)
    for name, value in model.parameters.items():
        assert result.gradients[name].shape == value.shape
        np.testing.assert_allclose(
            result.parameters[name], value - np.float32(0.25) * result.gradients[name], atol=1e-6
        )
    assert any(np.abs(result.gradients[name]).max() > 0 for name in model.parameters)


def test_run_is_pure_and_lr_and_parameters_are_of_the_run(model: h2learn.Model, step: h2learn.Program) -> None:
    first, again, frozen = step.run(batch(4)), step.run(batch(4)), step.run(batch(4), lr=0.0)
    assert first.loss == again.loss
    for name, value in model.parameters.items():
        assert first.parameters[name].tobytes() == again.parameters[name].tobytes()
        np.testing.assert_array_equal(frozen.parameters[name], value)
    moved = step.run(batch(4), parameters=dict(first.parameters))
    with step.session() as device:
        device.run(batch(4), lr=0.25)
        assert moved.loss == device.run(batch(4)).loss


def test_absent_samples_do_not_count(model: h2learn.Model, step: h2learn.Program) -> None:
    small = h2learn.compile(model, train=model.train, batch=2).run(batch(2))
    part = step.run({name: value[:2] for name, value in batch(2).items()})
    assert part.outputs["output"].shape == (2, 4)
    np.testing.assert_array_equal(part.outputs["output"], small.outputs["output"])
    assert part.loss == pytest.approx(small.loss, rel=1e-6)
    for name in model.parameters:
        np.testing.assert_allclose(part.gradients[name], small.gradients[name], atol=1e-6)


def test_a_result_survives_the_next_run_of_its_session(step: h2learn.Program) -> None:
    with step.session() as device:
        first = device.run(batch(4))
        weight = device.parameters["c1.weight"]
        device.run(batch(4, 5))
        after = device.parameters["c1.weight"]
    np.testing.assert_array_equal(first.parameters["c1.weight"], weight)
    assert not np.array_equal(weight, after)
    with pytest.raises(H2LearnError, match="session has ended"):
        device.run(batch(4))


def test_saved_programs_run_the_same(step: h2learn.Program, tmp_path: Path) -> None:
    step.save(tmp_path / "step.h2x")
    loaded = h2learn.load_program(tmp_path / "step.h2x")
    assert loaded.training and loaded.batch == 4 and loaded.time_steps == 3 and loaded.learning_rate == 0.25
    one, two = step.run(batch(4)), loaded.run(batch(4))
    assert one.loss == two.loss and one.cycles == two.cycles
    assert one.parameters["f1.weight"].tobytes() == two.parameters["f1.weight"].tobytes()
    assert loaded.parameters["f1.weight"].shape == (4, 48)


def test_compiling_twice_gives_the_same_bytes(model: h2learn.Model, tmp_path: Path) -> None:
    for name in ("a.h2x", "b.h2x"):
        h2learn.compile(parse_snn(NET), train=model.train, batch=4).save(tmp_path / name)
    assert (tmp_path / "a.h2x").read_bytes() == (tmp_path / "b.h2x").read_bytes()


def test_every_execution_and_tiling_gives_the_same_bits(model: h2learn.Model, step: h2learn.Program) -> None:
    plain = step.run(batch(4))
    for execution in (Execution("reference"), Execution(timing=False)):
        other = step.run(batch(4), execution=execution)
        assert all(plain.parameters[n].tobytes() == other.parameters[n].tobytes() for n in plain.parameters)
    edge = h2learn.compile(model, arch=h2learn.load_machine("h2l-edge"), train=model.train, batch=4)
    slow = replace(h2learn.load_machine("h2l-v0"), name="slow", queue_depth=2)
    assert edge.machine.name == "h2l-edge"
    assert h2learn.compile(model, arch=slow, train=model.train, batch=4).run(batch(4)).loss == plain.loss


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'image' is missing"),
        ({**batch(4), "other": batch(1)["label"]}, "'other' is unknown"),
        ({**batch(4), "image": np.zeros((4, 1, 4, 5), dtype=np.float32)}, "must have the shape"),
        ({**batch(4), "image": np.array(["a"] * 4)}, "dtype"),
        ({**batch(4), "label": np.array([0, 1, 2, 9], dtype=np.int32)}, "label"),
        ({**batch(4), "label": np.zeros(3, dtype=np.int32)}, "as many samples"),
        (batch(5), "1 to 4 samples"),
        (batch(0), "1 to 4 samples"),
        ([1, 2], "inputs by name"),
    ],
)
def test_inputs_that_do_not_fit(step: h2learn.Program, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(H2LearnError, match=message):
        step.run(inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arch": "h2l-v9"}, "no machine"),
        ({"precision": "fp8"}, "precision"),
        ({"train": "hebb"}, "hebb"),
        ({"train": 3}, "recipe"),
        ({"batch": 0}, "0"),
        ({"batch": 2.5}, "2.5"),
        ({"mapping": "rows"}, "rows"),
        ({"mapping": {"rows": 0}}, "rows=0"),
        ({"mapping": 7}, "tile limits"),
    ],
)
def test_compile_refuses(model: h2learn.Model, options: dict[str, object], message: str) -> None:
    with pytest.raises(H2LearnError, match=message):
        h2learn.compile(model, **options)  # type: ignore[arg-type]


def test_parameters_must_be_finite(model: h2learn.Model, step: h2learn.Program) -> None:
    broken = {"c1.weight": np.full((3, 1, 3, 3), np.nan, dtype=np.float32)}
    with pytest.raises(H2LearnError, match=re.escape("'c1.weight' holds values that are not finite")):
        step.run(batch(4), parameters=broken)
    with pytest.raises(H2LearnError, match=re.escape("c1.weight")):
        model.with_parameters({**model.parameters, **broken})
    with pytest.raises(H2LearnError, match="'nothing'"):
        step.run(batch(4), parameters={"nothing": np.zeros(3)})


def test_training_is_reproducible_and_its_history_adds_up(model: h2learn.Model) -> None:
    one = h2learn.train(model, data(), 2, batch=4)
    two = h2learn.train(model, data(), 2, batch=4)
    other = h2learn.train(model, data(), 2, batch=4, seed=1)
    assert one.losses == two.losses and one.losses != other.losses and one.epochs == two.epochs
    assert all(one.parameters[n].tobytes() == two.parameters[n].tobytes() for n in one.parameters)
    assert [(e.number, e.samples, e.steps) for e in one.epochs] == [(0, 22, 6), (1, 22, 6)] and len(one.losses) == 12
    expected = np.average(one.losses[:6], weights=[4, 4, 4, 4, 4, 2])
    assert one.epochs[0].loss == pytest.approx(expected)


@pytest.mark.parametrize(
    "options", [{}, {"schedule": "cosine,warmup=3", "train": h2learn.Train(optimizer=h2learn.Adam())}]
)
def test_resuming_in_the_middle_of_an_epoch_changes_no_bit(
    model: h2learn.Model, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = h2learn.train(model, data(), 3, batch=4, **options)
    file = tmp_path / "check.safetensors"

    class StopError(Exception):
        pass

    def stop(event: object) -> None:
        if isinstance(event, h2learn.training.Step) and (event.epoch, event.batch) == (1, 4):
            raise StopError

    with pytest.raises(StopError):
        h2learn.train(model, data(), 3, batch=4, checkpoint=file, checkpoint_every=1, observe=stop, **options)
    progress = read_checkpoint(file).progress
    assert (progress.epoch, progress.batch) == (1, 3)
    resumed = h2learn.train(model, data(), 3, batch=4, checkpoint=file, resume=True, **options)
    assert resumed.losses == whole.losses and resumed.epochs == whole.epochs
    assert all(whole.parameters[n].tobytes() == resumed.parameters[n].tobytes() for n in whole.parameters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 2}, "another batch"),
        ({"seed": 5}, "another seed"),
        ({"precision": "fp16"}, "another precision"),
        ({"arch": "h2l-edge"}, "another machine"),
        ({"lr": 0.5}, "another learning rate"),
        ({"schedule": "cosine"}, "another schedule"),
        ({"limit": 8}, "another data"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    model: h2learn.Model, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    file = tmp_path / "check.safetensors"
    h2learn.train(model, data(8), 1, batch=4, checkpoint=file, evaluate=False)
    before = file.read_bytes()
    with pytest.raises(H2LearnError, match=message):
        options = {"batch": 4, "checkpoint": file, "resume": True} | change
        h2learn.train(model, data(9 if "limit" in change else 8), 2, **options)  # type: ignore[arg-type]
    assert file.read_bytes() == before
    file.write_bytes(before[: len(before) // 2])
    with pytest.raises(H2LearnError, match="cannot be read"):
        h2learn.train(model, data(8), 2, batch=4, checkpoint=file, resume=True)


def test_labels_and_arguments_are_checked_before_long_work(model: h2learn.Model) -> None:
    with pytest.raises(H2LearnError, match="the label 3, the model has"):
        h2learn.train(parse_snn(NET.replace("4 features", "3 features")), data(), 1)
    for wrong in ({"epochs": 0}, {"batch": 0}, {"seed": -1}, {"limit": 0}, {"checkpoint": "/no/such/folder/x"}):
        with pytest.raises(H2LearnError):
            h2learn.train(model, data(), **wrong)  # type: ignore[arg-type]


def test_ctrl_c_leaves_a_checkpoint_that_continues(tmp_path: Path) -> None:
    (tmp_path / "tiny.snn").write_text(NET)
    content = data(40)
    np.savez(tmp_path / "d.npz", **{k: getattr(content, k) for k in ("x_train", "y_train", "x_test", "y_test")})
    command = [sys.executable, "-c", "from h2learn.cli import main; main()", "train", "tiny.snn", "--data", "d.npz"]
    command += ["--batch", "4", "--epochs", "400", "--checkpoint", "c.safetensors"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130 and "c.safetensors holds the state" in rest and "Traceback" not in rest
    steps = read_checkpoint(tmp_path / "c.safetensors").progress.steps
    assert steps > 10
    epochs = str(steps // 10 + 1)
    command[command.index("400")] = epochs
    done = subprocess.run([*command, "--resume", "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    fresh = h2learn.train(parse_snn(NET), content, int(epochs), batch=4)
    assert json.loads(done.stdout)["losses"] == fresh.losses
    assert os.listdir(tmp_path).count("c.safetensors") == 1
