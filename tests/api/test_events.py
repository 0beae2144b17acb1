"""Files of events: binning against a plain loop, refusals, ``data info``, training on frames."""

import json

import numpy as np
import pytest

import h2learn
from h2learn import Binning, H2LearnError
from h2learn.cli import run

NET = """network tiny
input events: 2 x 6 x 5 {kind}over time
time steps: 3
neuron: lif(decay 0.5, threshold 1.0, reset hard, spike at u >= threshold)
conv c1: 4 channels, kernel 3 x 3
lif n1
flatten
linear f1: 3 features
li n2: decay 0.5
readout membrane mean
train: loss cross_entropy, optimizer sgd(lr 0.1), surrogate rectangular(half_width 1.0, height 1.0)
init: normal gain 2.0 seed 1
"""


def recordings(seed=0, samples=6, signed=False):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 40, samples)
    arrays = {"label": rng.integers(0, 3, samples).astype(np.uint8), "offset": np.concatenate([[0], np.cumsum(counts)])}
    total = int(counts.sum())
    arrays |= {"x": rng.integers(0, 5, total), "y": rng.integers(0, 6, total).astype(np.uint8)}
    arrays["p"] = rng.integers(0, 2, total) * (2 if signed else 1) - (1 if signed else 0)
    arrays["t"] = np.concatenate([rng.integers(0, 1000, n) for n in counts]).astype(np.uint32)
    return arrays


def both(**changes):
    halves = {f"{half}_{k}": v for seed, half in enumerate(("train", "test")) for k, v in recordings(seed).items()}
    return {name: value for name, value in {**halves, **changes}.items() if value is not None}


def expected(a, bins, by, window, binary):
    frames = np.zeros((len(a["label"]), bins, 2, 6, 5))
    for r in range(len(a["label"])):
        inside = slice(a["offset"][r], a["offset"][r + 1])
        t, x, y, p = (np.asarray(a[k][inside]).astype(int) for k in "txyp")
        order = np.argsort(t, kind="stable")
        for i, e in enumerate(order):
            since, span = t[e] - t.min(), t.max() - t.min() + 1
            b = i * bins // len(t) if by == "count" else since // window if window else since * bins // span
            if b < bins:
                frames[r, b, max(p[e], 0), y[e], x[e]] += 1
    return np.minimum(frames, 1) if binary else frames


@pytest.mark.parametrize(("by", "window"), [("time", None), ("time", 150), ("count", None)])
@pytest.mark.parametrize("binary", [False, True])
def test_frames_equal_those_of_a_plain_loop(tmp_path, by, window, binary):
    arrays = recordings(signed=binary)
    np.savez(tmp_path / "e.npz", **arrays)
    events = h2learn.load_events(tmp_path / "e.npz")["all"]
    frames = events.frames(Binning(4, by, window, binary), (2, 6, 5))
    np.testing.assert_array_equal(frames, expected(arrays, 4, by, window, binary))
    merged = events.frames(Binning(4, by, window), (1, 6, 5))
    np.testing.assert_array_equal(merged, expected(arrays, 4, by, window, False).sum(2, keepdims=True))
    if window is None and not binary:
        assert frames.sum() == len(arrays["t"])


def test_a_table_of_events_and_hdf5_hold_the_same(tmp_path):
    arrays = recordings()
    np.savez(tmp_path / "flat.npz", **arrays)
    table = np.stack([arrays[k].astype(np.uint64) for k in "txyp"], axis=1)
    np.savez(tmp_path / "table.npz", events=table, offset=arrays["offset"], label=arrays["label"])
    files = [tmp_path / "flat.npz", tmp_path / "table.npz"]
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "flat.h5", "w") as file:
        for name, value in arrays.items():
            file[name] = value
    found = [h2learn.load_events(file)["all"] for file in (*files, tmp_path / "flat.h5")]
    for other in found[1:]:
        for name in ("t", "x", "y", "p", "offset", "label"):
            np.testing.assert_array_equal(getattr(other, name), getattr(found[0], name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_offset": None}, "'train_offset' is missing"),
        ({"test_t": None}, "no test recordings"),
        ({"train_p": np.full(len(recordings()["p"]), 3)}, "train_p holds values other than 0 and 1"),
        ({"train_x": recordings()["x"][:-1]}, "differ in length"),
        ({"train_offset": np.arange(7)}, "expected train_offset to rise from 0"),
        ({"train_t": recordings()["t"].astype(np.float32)}, "integers"),
        ({"train_x": recordings()["x"] - 1}, "outside of 0 to 65535"),
        ({"test_x": recordings(1)["x"] + 3}, "the frames 6 x 5"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, changes, message):
    np.savez(tmp_path / "e.npz", **both(**changes))
    with pytest.raises(H2LearnError, match=message) as caught:
        h2learn.load_data(tmp_path / "e.npz", (3, 2, 6, 5))
    assert str(caught.value.location) == str(tmp_path / "e.npz")


def test_bad_binnings():
    for arguments in ((0,), (2, "space"), (2, "count", 5.0), (2, "time", 0.0)):
        with pytest.raises(H2LearnError):
            Binning(*arguments)


@pytest.mark.parametrize("kind", ["", "spikes "])
def test_frames_train_a_network(tmp_path, kind, capsys):
    np.savez(tmp_path / "e.npz", **both())
    (tmp_path / "net.snn").write_text(NET.format(kind=kind))
    model = h2learn.load_model(tmp_path / "net.snn")
    history = h2learn.train(model, tmp_path / "e.npz", 2, batch=4)
    data = h2learn.load_data(tmp_path / "e.npz", (3, 2, 6, 5), Binning(3, binary=bool(kind)))
    again = h2learn.train(model, data, 2, batch=4)
    assert history.losses == again.losses and len(history.losses) == 4
    whole = h2learn.train(model, data, 1, batch=6)
    step = h2learn.compile(model, train=model.train, batch=6)
    given = {"events": data.x_train.swapaxes(0, 1), "label": data.y_train}
    assert step.run(given).loss == pytest.approx(whole.losses[0], rel=1e-5)
    base = ["train", str(tmp_path / "net.snn"), "--data", str(tmp_path / "e.npz")]
    assert run([*base, "--bins", "3", "--bin-by", "count"]) == 0
    assert "uJ per sample" in capsys.readouterr().err
    assert run([*base, "--bins", "3", "--bin-by", "count", "--functional"]) == 0
    found = capsys.readouterr()
    assert "accuracy" in found.err and "per sample" not in found.err and "energy" not in found.out
    assert run([*base, "--bins", "4"]) == 1
    assert "e.npz has samples 4x2x6x5, the model takes 3x2x6x5" in capsys.readouterr().err


def test_info(tmp_path, capsys):
    np.savez(tmp_path / "e.npz", **both())
    assert run(["data", "info", str(tmp_path / "e.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "events" and found["halves"]["train"]["samples"] == 6
    assert found["halves"]["train"]["events"] == len(recordings()["t"])
    assert run(["data", "info", str(tmp_path / "e.npz")]) == 0
    assert "polarities [0, 1]" in capsys.readouterr().out
    np.savez(
        tmp_path / "images.npz", x_train=np.zeros((3, 4, 4)), y_train=[0, 1, 1], x_test=np.zeros((1, 4, 4)), y_test=[0]
    )
    assert run(["data", "info", str(tmp_path / "images.npz")]) == 0
    assert "4 x 4" in capsys.readouterr().out
