"""The GPU baseline against the same formulas computed by hand, and what it says about itself."""

import dataclasses
import json
from pathlib import Path

import pytest

import h2learn
from h2learn.backends import gpu
from h2learn.backends.gpu.roofline import EAGER, PRECISIONS, STYLES
from h2learn.backends.gpu.shapes import NEURON, SYNAPSE, layers_of
from h2learn.cli import run
from h2learn.compiler.frontends.dsl import load_snn

CONV = gpu.LayerShape("c", SYNAPSE, steps=4, inputs=1000, outputs=500, macs=10**9, weights=2000, input_gradient=True)
LIF = gpu.LayerShape("n", NEURON, steps=4, inputs=500, outputs=10**6)


def row(result, phase):
    found = [one for one in result.rows if one.phase == phase]
    assert len(found) == 1
    return found[0]


def test_a_convolution_is_limited_by_its_products():
    forward = row(gpu.baseline([CONV], gpu.V100, "eager", "fp32"), "forward")
    assert forward.flops == 2e9 and forward.bytes == 4 * (1000 + 500 + 4 * 2000) and forward.launches == 4
    assert forward.seconds.low == pytest.approx(2e9 / (0.7 * 15.7e12) + 4 * 5e-6)
    assert forward.seconds.high == pytest.approx(2e9 / (0.4 * 15.7e12) + 4 * 10e-6)
    assert forward.limit == "compute"


def test_fused_reads_the_weights_once_and_amp_halves_the_bytes():
    forward = row(gpu.baseline([CONV], gpu.V100, "fused", "amp"), "forward")
    assert forward.bytes == 2 * (1000 + 500 + 2000) and forward.launches == 1
    assert forward.seconds.low == pytest.approx(2e9 / (0.5 * 125e12) + 5e-6)


def test_a_neuron_is_limited_by_memory():
    eager = gpu.baseline([LIF], gpu.V100, "eager", "fp32")
    assert row(eager, "forward").bytes == 10 * 3 * 4e6 and row(eager, "forward").launches == 40
    assert row(eager, "forward").seconds.high == pytest.approx(120e6 / (0.80 * 900e9) + 40 * 10e-6)
    fused = gpu.baseline([LIF], gpu.V100, "fused", "fp32")
    assert row(fused, "forward").bytes == 12e6 and row(fused, "backward").bytes == 16e6
    assert row(fused, "forward").limit == "memory"


def test_the_optimizer_moves_twenty_bytes_per_parameter():
    assert row(gpu.baseline([CONV], gpu.V100), "optimizer").bytes == 20 * 2000
    assert row(gpu.baseline([CONV], gpu.V100, "eager", "amp"), "optimizer").bytes == 26 * 2000


def test_phases_of_training_and_of_inference():
    first = dataclasses.replace(CONV, input_gradient=False)
    phases = [one.phase for one in gpu.baseline([first], gpu.V100).rows]
    assert phases == ["forward", "weights", "optimizer"]
    assert [one.phase for one in gpu.baseline([CONV, LIF], gpu.V100, training=False).rows] == ["forward"] * 2


def test_energy_is_time_times_the_band_and_never_the_limit_of_the_board():
    result = gpu.baseline([CONV, LIF], gpu.V100)
    assert result.joules.low == pytest.approx(100 * result.seconds.low)
    assert result.joules.high == pytest.approx(250 * result.seconds.high) and gpu.V100.power_w.high < gpu.V100.tdp_w
    assert result.seconds.low == pytest.approx(sum(one.seconds.low for one in result.rows))
    assert result.sustained_flops.high == pytest.approx(6e9 / result.seconds.low)
    assert any("100-250 W" in text and "300 W" in text for text in result.assumptions)


def test_a_comparison_keeps_the_range():
    result = gpu.baseline([CONV], gpu.V100)
    found = gpu.compare(result, seconds=1e-4, joules=1e-3)
    assert found.speed_up.low == pytest.approx(result.seconds.low / 1e-4)
    assert found.energy_saving.high == pytest.approx(result.joules.high / 1e-3)
    with pytest.raises(ValueError, match="positive"):
        gpu.compare(result, seconds=0, joules=1)


def test_every_device_names_its_sources_and_every_style_its_kernels():
    for device in gpu.DEVICES.values():
        text = " ".join(device.sources)
        for figure in (device.area_mm2, device.tdp_w, device.bytes_per_second / 1e9, device.fp32_flops / 1e12):
            assert f"{figure:g}" in text
        assert "our assumption" in text
    assert str(EAGER.forward_kernels) in EAGER.description
    for style in STYLES:
        for precision in PRECISIONS:
            result = gpu.baseline([CONV], gpu.A100, style, precision)
            assert "nothing was run" in result.assumptions[0] and STYLES[style].description in result.assumptions[0]
            json.dumps(result.to_dict())


def test_names_that_do_not_exist():
    for arguments in (("other", "fp32"), ("eager", "fp64")):
        with pytest.raises(h2learn.H2LearnError):
            gpu.baseline([CONV], gpu.V100, *arguments)
    with pytest.raises(h2learn.H2LearnError, match="there is no GPU 'x'"):
        gpu.device_named("x")


NET = """
network small
input image: 2 x 6 x 6
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 1.0, reset hard, spike at u > threshold)
conv c1: 4 channels, kernel 3 x 3, padding 1
lif n1
pool p1: avg 2 x 2
flatten
linear f1: 5 features
li integrate: decay 0.5
readout membrane mean
"""


def test_shapes_come_from_the_model(tmp_path):
    file = tmp_path / "small.snn"
    file.write_text(NET)
    layers = {one.name: one for one in gpu.layers_of(h2learn.load_model(file).with_batch(7).module)}
    samples = 3 * 7
    assert list(layers) == ["c1", "lif 1", "pool 1", "f1", "li 1", "readout 1"]
    assert layers["c1"] == gpu.LayerShape(
        "c1", SYNAPSE, 3, samples * 72, samples * 144, samples * 144 * 18, 72 + 4, input_gradient=False
    )
    assert layers["f1"] == gpu.LayerShape("f1", SYNAPSE, 3, samples * 36, samples * 5, samples * 180, 185)
    assert layers["lif 1"].kind == NEURON and layers["lif 1"].outputs == samples * 144
    assert (layers["pool 1"].inputs, layers["pool 1"].outputs) == (samples * 144, samples * 36)


def test_the_command_prints_ranges_and_assumptions(tmp_path, capsys):
    file = tmp_path / "small.snn"
    file.write_text(NET)
    assert run(["baseline", str(file), "--batch", "4", "--layers"]) == 0
    text = capsys.readouterr().out
    assert text.count("fused") >= 2 and "dense TFLOPS" in text and "our assumption" in text
    assert run(["baseline", str(file), "--device", "a100", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [(one["style"], one["precision"]) for one in steps] == [(s, p) for s in STYLES for p in PRECISIONS]
    assert run(["baseline", str(file), "--device", "x"]) == 1


@pytest.mark.parametrize(("name", "parameters", "gmacs"), [("cifar_vgg", 16.6, 13.1), ("resnet34", 21.8, 65.5)])
def test_benchmark_networks_have_the_sizes_they_are_named_for(name: str, parameters: float, gmacs: float) -> None:
    model = load_snn(Path(__file__).parents[2] / "benchmarks" / "networks" / f"{name}.snn")
    layers = layers_of(model.module)
    assert round(sum(layer.weights for layer in layers) / 1e6, 1) == parameters
    forward, first = sum(layer.macs for layer in layers), layers[0].macs
    assert round((3 * forward - first) / 1e9, 1) == gmacs  # the first layer has no input gradient
