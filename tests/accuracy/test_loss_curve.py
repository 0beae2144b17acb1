"""Training on the simulator follows PyTorch's loss, with the same initial weights and order of samples."""

from pathlib import Path

import pytest

import h2learn

pytest.importorskip("torch", reason="compares with training in PyTorch")
from loss_curve import loss_curve, medians

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = 5


def curves(path, count_flips):
    data = h2learn.load_digits()
    return [loss_curve(path, data, seed=seed, steps=STEPS, batch=16, count_flips=count_flips) for seed in (0, 1)]


def variant(tmp_path, **changes):
    text = (EXAMPLES / "digits.snn").read_text(encoding="utf-8")
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "net.snn"
    path.write_text(text, encoding="utf-8")
    return path


def test_digits_follow_pytorch():
    found = curves(EXAMPLES / "digits.snn", count_flips=True)
    assert max(medians(found)) <= 1e-3
    assert found[0].expected[-1] != found[0].expected[0]
    for curve in found:
        (first,) = curve.flips[0]
        assert first.margin < 1e-5 and first.flips <= first.neurons * 1e-5


def test_soft_reset_triangular_window_and_average_pooling_follow_pytorch(tmp_path):
    path = variant(
        tmp_path,
        reset=("reset hard", "reset soft"),
        window=("rectangular", "triangular"),
        pool=("max 2 x 2", "avg 2 x 2"),
    )
    assert max(medians(curves(path, count_flips=False))) <= 1e-3


RECURRENT = """network spoken
input frames: 1 x 8 x 8
time steps: 6
encode direct
neuron: lif(decay 0.8, threshold 0.8, reset soft, synapse decay 0.5)
flatten
linear f1: 24 features
recurrent r1: bias
linear f2: 10 features
li integrate: decay 0.8
readout membrane mean
train: loss cross_entropy, optimizer sgd(lr 0.05, momentum 0.9), surrogate rectangular(half_width 1.0)
init: normal gain 1.5 seed 0
"""


def test_a_recurrent_layer_with_synaptic_currents_follows_pytorch(tmp_path):
    path = tmp_path / "recurrent.snn"
    path.write_text(RECURRENT, encoding="utf-8")
    found = curves(path, count_flips=False)
    assert max(medians(found)) <= 1e-3
    assert found[0].expected[-1] != found[0].expected[0]


def test_another_learning_rate_is_another_curve(tmp_path):
    (usual,) = curves(EXAMPLES / "digits.snn", count_flips=False)[:1]
    (other,) = curves(variant(tmp_path, rate=("lr 0.05", "lr 0.045")), count_flips=False)[:1]
    assert max(abs(a - b) / b for a, b in zip(usual.found, other.expected, strict=True)) > 1e-3


RESIDUAL = """network residual
input image: 1 x 8 x 8
time steps: 4
encode direct
neuron: lif(decay 0.5, threshold 0.5, surrogate triangular(half_width 1.0))
conv stem: 8 channels, kernel 3 x 3, padding 1, no bias
batchnorm stem_bn
lif s0
conv a: 12 channels, kernel 3 x 3, stride 2, padding 1, no bias
batchnorm an
lif i1
conv b: 12 channels, kernel 3 x 3, padding 1, no bias
batchnorm bn: gain 0.2
conv p from s0: 12 channels, kernel 1 x 1, stride 2, no bias
batchnorm pn
add r: bn, pn
lif s1
conv c: 12 channels, kernel 3 x 3, padding 1, no bias
batchnorm cn: gain 0.2
add q: cn, s1
lif s2
pool: avg whole map
flatten
linear classes: 10 features
li integrate: decay 0.5
readout membrane mean
train: loss cross_entropy, optimizer sgd(lr 0.01, momentum 0.9)
init: normal gain 1 seed 0
"""


def test_batch_norm_and_shortcuts_follow_pytorch(tmp_path):
    path = tmp_path / "residual.snn"
    path.write_text(RESIDUAL, encoding="utf-8")
    found = curves(path, count_flips=False)
    assert max(medians(found)) <= 1e-3
    assert found[0].expected[-1] != found[0].expected[0]
