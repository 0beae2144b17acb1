"""Profiles: small programs against counts made by hand; compiled ones against the totals of their run."""

import json

import numpy as np
import pytest

import h2learn
from h2learn.backends.h2learn.assembler import assemble
from h2learn.backends.h2learn.machine import load_machine
from h2learn.cli import run
from h2learn.profiling import profile_program, random_inputs
from h2learn.runtime.loader import load
from h2learn.runtime.profile import PHASES, profile_run
from h2learn.runtime.profile_text import profile_text
from h2learn.runtime.simulator import Simulator
from h2learn.runtime.timing import BUILDER_START_UP, START_UP

HEAD = ".machine h2l-edge\n.data 0x1000\n.zero 4096\n.bss 0x10000, 65536\n.text\n"
ROW = "".join(f"cfg x0.n{d}, 1\n" for d in range(4)) + "cfg x0.ylim, 1\ncfg x0.xlim, 1\ncfg x0.run, 640\n"
LOAD = "addr a6, DRAM, 0x1000\naddr a7, U, 0\nld dst=a7, src=a6, y=a0, x=a0, desc=x0\n"
CONV = {"imgs": 1, "oh": 8, "ow": 8, "kh": 1, "kw": 1, "sh": 1, "sw": 1, "c": 4, "k": 16, "fan": 4, "gblk": 64}
LOOK_UP = (
    "addr a1, A, 0\naddr a2, S, 0\naddr a3, L, 0\naddr a4, W, 0\n"
    "fe.fill lut=a3, w=a4, desc=c0\nfe.run acc=a1, s=a2, lut=a3, desc=c0, init=0, shape=16x128\n"
)


def profiled(body, prepare=lambda arrays: None):
    program = load(assemble(HEAD + body + "halt\n", "test.s"), name="test")
    simulator = Simulator(program, execute="reference", sanitize=())
    prepare(simulator.memories.arrays)
    report = simulator.run()
    return profile_run(program, report), report


def two_layers():
    conv = "".join(f"cfg c0.{name}, {value}\n" for name, value in CONV.items())
    body = ROW + conv + '.loc "net.snn:1:1", "forward one: n"\n' + LOAD
    body += 'signal DMAIN, 3, 1\n.loc "net.snn:2:1", "forward two: n"\nwait FE, 3, 1\n' + LOOK_UP

    def prepare(arrays):
        arrays["S"][:64] = 0b0101
        arrays["S"][:16] = 0

    return profiled(body, prepare)


def test_layers_hold_what_their_instructions_did():
    profile, report = two_layers()
    one, two = profile.layers
    assert (one.layer, one.source, one.phase, one.stages) == ("one", "net.snn:1:1", "forward", ("forward one",))
    assert one.busy == {"DMAIN": 25, "DRAM": 25} and one.bytes_read == {"DRAM": 640}
    assert one.energy_pj == {"DRAM": 640 * 8 * 8.0, "U": pytest.approx(640 * 8 * 0.115)}
    fill, look = BUILDER_START_UP + 15, START_UP["FE"] + 4
    assert two.busy == {"FE.fill": fill, "FE": look}
    assert two.last_cycle - two.first_cycle == fill + look and two.last_cycle == report.cycles
    assert profile.phases[0].busy == one.busy | two.busy and len(profile.phases) == 1


def test_operations_densities_and_efficiency_of_a_look_up():
    two = two_layers()[0].layers[1]
    spikes, patterns = 48 * 2, 48
    assert two.operations == {
        "dense_macs": 64 * 4 * 16,
        "synaptic_operations": spikes * 16,
        "accumulates": patterns * 16 + 16 * (16 - 1 - 4),
        "lookups": 64 * 16,
    }
    assert two.densities == {"input_spikes": spikes / 256}
    assert two.efficiency == {"FE": 64 * 16 / (12 * 256), "FE.fill": 15 / 19}
    assert two.eta is None


def test_a_stall_names_who_was_waited_for():
    profile, report = two_layers()
    lost = report.stalls["FE"]["semaphore 3"]
    assert lost > 100 and profile.total.stalls["FE"]["waits for DMAIN"] == lost
    assert profile.layers[1].stalls["FE"]["waits for DMAIN"] == lost
    assert profile.idle["FE"] == report.cycles - report.busy["FE"] - sum(report.stalls["FE"].values())


def test_roofline_of_a_look_up_beside_a_transfer():
    machine = load_machine("h2l-edge")
    engine = next(roof for roof in two_layers()[0].total.roofline if roof.engine == "FE")
    assert engine.intensity == pytest.approx(1024 / 640) and engine.ridge == pytest.approx(256 / 25.6)
    assert engine.attainable == pytest.approx(1024 / 640 * machine.dram.bytes_per_cycle) and engine.limit == "DRAM"
    alone = next(roof for roof in two_layers()[0].layers[1].roofline if roof.engine == "FE")
    assert alone.intensity is None and alone.attainable == 256 and alone.limit == "FE"
    assert alone.achieved == pytest.approx(1024 / (19 + 12))


def test_phases_follow_the_label_else_the_instructions():
    loads = "".join(f'.loc "net.snn:{n}:1", "{label}"\n{LOAD}' for n, label in enumerate(("gradient: n", "bias f1: k")))
    conv = "".join(f"cfg c0.{name}, {value}\n" for name, value in CONV.items())
    profile, _ = profiled(ROW + conv + loads + '.loc "net.snn:9:1", ""\n' + LOOK_UP + '.loc "net.snn:8:1", ""\n' + LOAD)
    assert [(part.source[8], part.phase) for part in profile.layers] == [
        ("0", "backward"),
        ("1", "weights"),
        ("9", "forward"),
        ("8", "other"),
    ]


NET = """network tiny
input image: 1 x 6 x 6
time steps: 3
encode direct
neuron: lif(decay 0.5, threshold 1.0, reset hard, spike at u >= threshold)
conv c1: 6 channels, kernel 3 x 3, padding 1
lif n1
conv c2: 5 channels, kernel 3 x 3, padding 1
lif n2
flatten
linear f1: 4 features
lif n3
readout rate
train: loss mse_rate, optimizer sgd(lr 0.25, momentum 0.5), surrogate rectangular(half_width 1.0, height 1.0)
init: normal gain 2.0 seed 1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile")
    (path / "tiny.snn").write_text(NET)
    model = h2learn.load_model(path / "tiny.snn")
    h2learn.compile(model, train="bptt", batch=2).save(path / "step.h2x")
    return path


@pytest.fixture(scope="module")
def step(folder):
    return h2learn.load_program(folder / "step.h2x")


def sums(parts, field):
    total = {}
    for part in parts:
        for name, value in getattr(part, field).items():
            total[name] = total.get(name, 0) + value
    return total


def test_layers_and_phases_add_up_to_the_run(step):
    inputs = random_inputs(step, 3)
    profile = profile_program(step, inputs)
    report = step.run(inputs).report
    assert profile.cycles == report.cycles and profile.bound == report.bound
    for parts in (profile.layers, profile.phases, (profile.total,)):
        assert sums(parts, "bytes_read") == report.bytes_read
        assert sums(parts, "bytes_written") == report.bytes_written
        assert sums(parts, "busy") == {name: cycles for name, cycles in report.busy.items() if cycles}
        assert sum(part.total_pj for part in parts) == pytest.approx(report.energy_pj)
        stalls = {}
        for part in parts:
            for engine, causes in part.stalls.items():
                stalls[engine] = stalls.get(engine, 0) + sum(causes.values())
        if parts[0] is profile.total:
            assert stalls == {name: sum(c.values()) for name, c in report.stalls.items() if name != "CTRL"}
    assert [part.phase for part in profile.phases] == list(PHASES[:4]), "every instruction has a stage"
    assert {part.layer for part in profile.layers if part.phase == "weights"} == {"c1", "c2", "f1"}


def test_densities_are_those_of_the_data(step):
    zeros = {name: np.zeros_like(array) for name, array in random_inputs(step).items()}
    silent = {name: np.zeros(spec.shape, np.float32) for name, spec in step.parameters.items()}
    profile = profile_program(step, zeros, silent)
    seen = {(part.layer, part.phase): part.densities for part in profile.layers if part.densities}
    assert seen["c1", "forward"] == {"output_spikes": 0.0, "real_inputs": 0.0} | {
        name: share for name, share in seen["c1", "forward"].items() if name == "surrogate_mask"
    }
    assert seen["c2", "forward"]["input_spikes"] == 0.0
    busy = profile_program(step, random_inputs(step))
    active = {(part.layer, part.phase): part for part in busy.layers}
    assert 0 < active["c2", "forward"].densities["input_spikes"] < 1
    assert 0 < active["c2", "backward"].eta <= 1


def test_random_inputs_are_said_and_repeatable(step):
    first, second = profile_program(step, seed=5), profile_program(step, seed=5)
    assert first.to_dict() == second.to_dict() and "random (seed 5)" in first.notes[0]
    assert profile_program(step, random_inputs(step, 5)).total == first.total
    assert not any("random" in note for note in profile_program(step, random_inputs(step, 5)).notes)


def test_the_profile_of_energies_changes_energy_alone(step):
    usual, other = profile_program(step), profile_program(step, profile="45nm-horowitz")
    assert other.energy.profile == "45nm-horowitz" and other.cycles == usual.cycles
    assert other.total.operations == usual.total.operations
    assert other.total.energy_pj["BE"] == pytest.approx(usual.total.energy_pj["BE"] / 0.51)
    inputs = random_inputs(step)
    assert step.run(inputs, profile="45nm-horowitz").energy_pj == pytest.approx(other.total.total_pj)


PART = {
    "layer", "source", "phase", "stages", "first_cycle", "last_cycle", "busy", "efficiency", "eta", "stalls",
    "bytes_read", "bytes_written", "energy_pj", "operations", "densities", "roofline",
}  # fmt: skip
TOP = {
    "schema", "program", "machine", "precision", "batch", "time_steps", "training", "clock_hz", "cycles", "bound",
    "utilisation", "idle", "front_end_stalls", "total", "phases", "layers", "energy", "notes",
}  # fmt: skip
ROOF = {"engine", "unit", "work", "peak", "intensity", "ridge", "attainable", "achieved", "limit"}


def test_the_json_keeps_its_keys(folder, capsys):
    assert run(["profile", str(folder / "step.h2x"), "--json", "--profile", "zigzag-stems"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "h2learn-profile/1" and set(data) == TOP
    for part in (data["total"], *data["phases"], *data["layers"]):
        assert set(part) == PART
        assert all(set(roof) == ROOF for roof in part["roofline"])
    assert set(data["energy"]) == {"total_pj", "parts_pj", "profile", "assumptions"}
    assert data["energy"]["profile"] == "zigzag-stems"


def test_the_text_names_profile_assumptions_and_inputs(folder, step, capsys):
    assert run(["profile", str(folder / "step.h2x")]) == 0
    text = capsys.readouterr().out
    assert text.strip() == profile_text(profile_program(step)).strip().replace("program:", "step.h2x:")
    for word in ("inputs are random", "profile 28nm-hbm2", "Horowitz", "no leakage", "roofline", "are ours"):
        assert word in text


def test_inputs_from_files_and_bad_options(folder, step, capsys):
    np.savez(folder / "in.npz", **random_inputs(step, 1))
    pairs = [word for name in step.inputs for word in ("--input", f"{name}=@{folder / 'in.npz'}")]
    assert run(["profile", str(folder / "step.h2x"), *pairs]) == 0
    assert "random" not in capsys.readouterr().out
    assert run(["profile", str(folder / "step.h2x"), "--profile", "x"]) == 1
    assert "there is no energy profile 'x'" in capsys.readouterr().err
    assert run(["run", str(folder / "step.h2x"), *pairs, "--profile", "45nm-horowitz"]) == 0
    assert "energy profile 45nm-horowitz" in capsys.readouterr().out


def test_dense_work_is_the_convolution_in_every_pass(step):
    profile = profile_program(step)
    dense = {(part.layer, part.phase): part.operations.get("dense_macs") for part in profile.layers}
    samples = 3 * 2
    for layer, products in (("c2", 36 * 5 * 6 * 9), ("f1", 5 * 36 * 4)):
        assert dense[layer, "forward"] == dense[layer, "backward"] == samples * products, layer
    assert profile.phases[1].operations["dense_macs"] == samples * (36 * 5 * 6 * 9 + 5 * 36 * 4)
    seen = {(part.layer, part.phase): part.densities for part in profile.layers}
    last = next(p for p in profile.layers if p.phase == "backward" and set(p.densities) == {"gradients"})
    assert seen["f1", "backward"]["gradients_into_BE"] == pytest.approx(last.densities["gradients"])


def test_training_takes_a_profile_and_a_checkpoint_keeps_to_it(folder, tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.random((4, 1, 6, 6), dtype=np.float32), np.array([0, 1, 2, 3], np.int32)
    data = h2learn.DataSet("noise", images, labels, images, labels)
    model = h2learn.load_model(folder / "tiny.snn")
    usual = h2learn.train(model, data, batch=2, evaluate=False)
    file = tmp_path / "state.safetensors"
    other = h2learn.train(model, data, batch=2, evaluate=False, profile="45nm-horowitz", checkpoint=file)
    assert other.losses == usual.losses and other.epochs[0].energy_pj > usual.epochs[0].energy_pj
    with pytest.raises(h2learn.H2LearnError, match="another energy profile"):
        h2learn.train(model, data, 2, batch=2, evaluate=False, checkpoint=file, resume=True)
