"""The command line with the simulator: compile, run, disassemble, train, demo."""

import json
from pathlib import Path

import numpy as np
import pytest

from h2learn import load_program
from h2learn.checkpoints import read_parameters, write_parameters
from h2learn.cli import progress, run
from h2learn.runtime.events import advance
from h2learn.runtime.jit import is_kept, jit

NET = """network tiny
input image: 1 x 4 x 4
time steps: 2
encode direct
neuron: lif(decay 0.5, threshold 1.0, reset hard, spike at u >= threshold)
conv c1: 3 channels, kernel 3 x 3, padding 1
lif n1
flatten
linear f1: 4 features
lif n2
readout rate
train: loss mse_rate, optimizer sgd(lr 0.25), surrogate rectangular(half_width 1.0, height 1.0)
init: normal gain 2.0 seed 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its programs, inputs and data."""
    path = tmp_path_factory.mktemp("run")
    (path / "tiny.snn").write_text(NET)
    assert run(["compile", str(path / "tiny.snn"), "--batch", "2", "-o", str(path / "net.h2x")]) == 0
    step = ["--train", "bptt", "--batch", "2", "--emit", "mlir,asm,bin", "-o", str(path / "step.h2x")]
    assert run(["compile", str(path / "tiny.snn"), *step]) == 0
    rng = np.random.default_rng(0)
    np.save(path / "x.npy", rng.random((2, 1, 4, 4), dtype=np.float32))
    np.savez(path / "xy.npz", image=np.load(path / "x.npy"), label=np.array([1, 3], dtype=np.int32))
    images = rng.integers(0, 256, (10, 4, 4), dtype=np.uint8)
    labels = np.arange(10, dtype=np.uint8) % 4
    np.savez(path / "data.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    assert (
        run(["run", str(path / "step.h2x"), *inputs(path)]) == 0
    )  # the first run of all says that it compiles kernels
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def inputs(folder: Path) -> list[str]:
    return ["--input", f"image=@{folder / 'xy.npz'}", "--input", f"label=@{folder / 'xy.npz'}"]


def test_run_prints_json_and_writes_results(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    checks = ["--sanitize", "race,uninit,bounds", "--stats", "json", "--json"]
    trace, out = tmp_path / "trace.json", tmp_path / "out"
    code, text, err = call(
        capsys, "run", folder / "step.h2x", *inputs(folder), *checks, "--trace", trace, "--output-dir", out, "--lr", 8
    )
    assert code == 0 and err == ""
    found = json.loads(text)
    assert found["loss"] > 0 and found["stats"]["findings"] == [] and found["cycles"] == found["stats"]["cycles"]
    np.testing.assert_array_equal(np.load(out / "output.npy"), np.array(found["outputs"]["output"], dtype=np.float32))
    assert read_parameters(out / "gradients.safetensors")["c1.weight"].shape == (3, 1, 3, 3)
    assert json.loads(trace.read_text())["traceEvents"]
    trained = read_parameters(out / "parameters.safetensors")
    initial = load_program(folder / "step.h2x").parameters
    gradients = read_parameters(out / "gradients.safetensors")
    for name, value in trained.items():
        np.testing.assert_allclose(value, initial[name] - np.float32(8) * gradients[name], atol=1e-5)
    given = ["--params", out / "parameters.safetensors", "--lr", "0", "--output-dir", tmp_path / "again"]
    assert call(capsys, "run", folder / "step.h2x", *inputs(folder), *given)[0] == 0
    kept = read_parameters(tmp_path / "again" / "parameters.safetensors")
    assert all(kept[name].tobytes() == trained[name].tobytes() for name in trained)


def test_expected_outputs(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    arguments = ["run", folder / "net.h2x", "--input", f"image=@{folder / 'x.npy'}"]
    right = np.array(json.loads(call(capsys, *arguments, "--json")[1])["outputs"]["output"])
    np.save(tmp_path / "right.npy", right)
    np.save(tmp_path / "wrong.npy", right + 0.5)
    assert call(capsys, *arguments, "--expected", f"output=@{tmp_path / 'right.npy'}")[0] == 0
    code, _, err = call(capsys, *arguments, "--expected", f"output=@{tmp_path / 'wrong.npy'}")
    assert code == 1 and "output 'output' differs by" in err


def test_functional_and_reference_runs_agree(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    arguments = ["run", folder / "step.h2x", *inputs(folder), "--json"]
    modes = ([], ["--functional"], ["--reference"])
    assert len({json.loads(call(capsys, *arguments, *mode)[1])["loss"] for mode in modes}) == 1
    assert "busy" in call(capsys, "run", folder / "step.h2x", *inputs(folder), "--stats", "--seed", "1")[1]
    found = json.loads(call(capsys, *arguments, "--functional")[1])
    assert found.keys() == {"loss", "outputs"}
    words = call(capsys, *arguments[:-1], "--functional")[1].split()
    assert "loss" in words and not {"cycles", "energy"} & set(words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "'image' is missing"),
        (["--input", "image"], "expects NAME=@FILE"),
        (["--input", "image=@no.npy"], "no such file"),
        (["--input", "image=@{}/tiny.snn"], "cannot be read"),
        (["--input", "wrong=@{}/xy.npz"], "no array 'wrong'"),
        (["--input", "image=@{}/x.npy", "--sanitize", "everything"], "no sanitizer 'everything'"),
        (["--input", "image=@{}/x.npy", "--functional", "--stats", "text"], "a functional run has none"),
        (["--input", "image=@{}/x.npy", "--max-instructions", "5"], "5"),
        (["--input", "image=@{}/x.npy", "--trace", "/no/such/folder/t.json"], "cannot write here"),
        (["--input", "image=@{}/x.npy", "--expected", "nothing=@{}/x.npy"], "no output 'nothing'"),
        (["--input", "image=@{}/x.npy", "--params", "{}/x.npy"], "cannot be read"),
    ],
)
def test_run_refuses(capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], message: str) -> None:
    code, _, err = call(capsys, "run", folder / "net.h2x", *(word.replace("{}", str(folder)) for word in arguments))
    assert code == 1 and message in err and "internal" not in err


def test_the_run_that_compiles_kernels_says_so(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", folder / "step.h2x", *inputs(folder)]
    assert call(capsys, *arguments)[0] == 0 and is_kept(advance)
    assert "compiling" not in call(capsys, *arguments)[2]
    fresh = jit(lambda: None)
    assert not is_kept(fresh)
    monkeypatch.setattr(progress, "advance", fresh)
    for words in (arguments, ["profile", folder / "step.h2x"]):
        assert "note: compiling the simulator's kernels" in call(capsys, *words)[2]
    for other in (["--reference"], ["--sanitize", "race"]):
        assert "compiling" not in call(capsys, *arguments, *other)[2]


def test_text_and_binary_are_the_same_program(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    text = call(capsys, "disasm", folder / "step.h2x")[1]
    assert text == (folder / "step.s").read_text()
    assert call(capsys, "as", folder / "step.s", "-o", tmp_path / "again.h2x")[0] == 0
    assert (tmp_path / "again.h2x").read_bytes() == (folder / "step.h2x").read_bytes()
    assert "h2l-v0" in call(capsys, "objdump", folder / "step.h2x")[1]
    (tmp_path / "bad.s").write_text("frobnicate a1\n")
    code, _, err = call(capsys, "as", tmp_path / "bad.s", "-o", tmp_path / "bad.h2x")
    assert code == 1 and f"{tmp_path / 'bad.s'}:1" in err and not (tmp_path / "bad.h2x").exists()


def test_parameters_that_are_not_finite_are_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    loaded = load_program(folder / "step.h2x").parameters
    weights = {name: np.array(value) for name, value in loaded.items()}
    weights["f1.bias"][2] = np.nan
    write_parameters(tmp_path / "nan.safetensors", weights)
    for command in (["compile", folder / "tiny.snn", "-o", tmp_path / "nan.h2x"], ["run", folder / "step.h2x"]):
        code, _, err = call(capsys, *command, "--params", tmp_path / "nan.safetensors")
        assert code == 1 and "f1.bias" in err and not (tmp_path / "nan.h2x").exists()


def test_train_writes_checkpoint_parameters_and_history(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    base = ["train", folder / "tiny.snn", "--data", folder / "data.npz", "--batch", "4", "--json"]
    kept = ["--checkpoint", tmp_path / "c.safetensors", "-o", tmp_path / "p.safetensors"]
    code, out, _ = call(capsys, *base, "--epochs", "2", *kept)
    assert code == 0
    history = json.loads(out)
    assert len(history["losses"]) == 6 and [epoch["samples"] for epoch in history["epochs"]] == [10, 10]
    resumed = json.loads(call(capsys, *base, "--epochs", "3", *kept, "--resume")[1])
    assert resumed["losses"][:6] == history["losses"]
    assert resumed["losses"] == json.loads(call(capsys, *base, "--epochs", "3")[1])["losses"]
    assert read_parameters(tmp_path / "p.safetensors").keys() == read_parameters(tmp_path / "c.safetensors").keys()
    code, _, err = call(capsys, *base, "--resume")
    assert code == 1 and "--resume needs --checkpoint" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "no.npz"], "no such file"),
        (["--data", "{}/xy.npz"], "'x_train' is missing"),
        (["--data", "{}/data.npz", "--epochs", "0"], "epochs"),
        (["--data", "{}/data.npz", "--batch", "0"], "batch"),
        (["--data", "{}/data.npz", "--limit", "0"], "limit"),
        (["--data", "{}/data.npz", "--lr", "nan"], "learning rate"),
        (["--data", "digits"], "digits has samples 1x8x8, the model takes 1x4x4"),
        (["--data", "{}/data.npz", "--checkpoint-every", "2"], "every so many steps needs the file"),
        (["--data", "{}/data.npz", "--checkpoint", "/no/such/folder/c"], "cannot write here"),
        (["--data", "{}/data.npz", "--checkpoint", "{}/nothing", "--resume"], "no such file"),
        (["--data", "{}/data.npz", "--optimizer", "lion"], "there is no optimizer 'lion'"),
        (["--data", "{}/data.npz", "--schedule", "linear"], "there is no schedule 'linear'"),
    ],
)
def test_train_refuses(capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], message: str) -> None:
    words = [word.replace("{}", str(folder)) for word in arguments]
    code, out, err = call(capsys, "train", folder / "tiny.snn", *words)
    assert code == 1 and out == "" and message in err and "internal" not in err


def test_the_demo_leaves_its_files_and_the_same_bytes_twice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        code, out, _ = call(capsys, "demo", "--epochs", "1", "--limit", "64")
        assert code == 0 and "test accuracy" in out and "busy share" in out and "energy per sample" in out
        files = sorted(file for file in (tmp_path / place).rglob("*") if file.is_file())
        contents.append({str(file.relative_to(tmp_path / place)): file.read_bytes() for file in files})
    assert contents[0] == contents[1]
    assert {"h2learn-demo/digits.h2x", "h2learn-demo/trace.json"} <= contents[0].keys() and len(contents[0]) > 10
