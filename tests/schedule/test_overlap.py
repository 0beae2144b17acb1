"""Forward, backward, update and optimizer side by side: the same numbers as one after the other, in less time.

The bounds are computed here from the network and the run's counts, by formulas that know nothing of the mapper.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

import h2learn
from h2learn.backends.h2learn.machine import load_machine
from h2learn.backends.h2learn.object_file import new_note
from h2learn.compiler.mapping.streams import ENTRY, FORWARD, HEAD, OPTIMIZER, PLACES, share, share_base
from h2learn.program import Result

STEPS, BATCH = 4, 16
LAYERS = ((32, 64, 16, 1), (64, 64, 16, 1), (64, 128, 8, 2), (128, 128, 8, 1))
"""(input channels, output channels, output rows and columns, stride) of the 3 x 3 convolutions behind the first."""
NETWORK = """
network overlap
input image: 3 x 16 x 16
time steps: {steps}
encode direct
neuron: lif(decay 0.5, threshold 0.5, reset hard, spike at u > threshold)
conv c0: 32 channels, kernel 3 x 3, padding 1
lif n0
{layers}
flatten
linear f1: 10 features
li integrate: decay 0.5
readout membrane mean
train: loss cross_entropy, optimizer sgd(lr 0.05, momentum 0.9),
       surrogate rectangular(half_width 0.5, height 1.0), method bptt
init: normal gain 1.5 seed 0
"""
MACHINE = "h2l-v0"


@cache
def run(tmp: str, mapping: str) -> Result:
    """Run one training step under a mapping, with the sanitizers on."""
    return compiled(tmp, mapping).run(feed())


def compiled(tmp: str, mapping: str) -> h2learn.Program:
    """Compile a training step under a mapping."""
    model = h2learn.load_model(tmp)
    assert model.train is not None
    return h2learn.compile(model, arch=MACHINE, train=model.train, batch=BATCH, precision="fp16", mapping=mapping)


def feed() -> dict[str, npt.NDArray[np.generic]]:
    """Return a batch."""
    rng = np.random.default_rng(0)
    image = rng.random((BATCH, 3, 16, 16), dtype=np.float32)
    return {"image": image, "label": rng.integers(0, 10, BATCH).astype(np.int32)}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    layers = "\n".join(
        f"conv c{n}: {k} channels, kernel 3 x 3, padding 1, stride {stride}\nlif n{n}"
        for n, (_, k, _, stride) in enumerate(LAYERS, start=1)
    )
    path = tmp_path_factory.mktemp("overlap") / "net.snn"
    path.write_text(NETWORK.format(steps=STEPS, layers=layers))
    return str(path)


@pytest.mark.parametrize(
    ("overlap", "mapping"),
    [
        *(
            (overlap, f"group=2,{choices}")
            for overlap in ("backward", "all")
            for choices in ("entry=joined", "entry=apart", "head=apart", "head=apart,jobs=short")
        ),
        ("all", "groups=1+3+4+4+4,head=apart"),
    ],
)
def test_the_numbers_are_those_of_the_serial_program(network: str, overlap: str, mapping: str) -> None:
    serial, other = (run(network, f"{mapping},overlap={kind}") for kind in ("serial", overlap))
    assert other.loss == serial.loss
    for found, expected in ((other.gradients, serial.gradients), (other.parameters, serial.parameters)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].tobytes() == value.tobytes(), name
    assert other.report.findings == serial.report.findings == []
    assert other.report.work == serial.report.work and other.report.busy == serial.report.busy


def test_more_overlap_takes_less_time(network: str) -> None:
    cycles = [run(network, f"group=2,overlap={overlap}").cycles for overlap in ("serial", "backward", "all")]
    print(f"\ncycles serial, backward, all: {cycles}")
    assert cycles[0] > cycles[1] > cycles[2]


def test_double_buffering_saves_time_and_changes_no_bits(network: str) -> None:
    one, two = (run(network, f"group=2,double_buffering={kind}") for kind in ("off", "on"))
    assert two.report.work == run(network, "group=2").report.work
    assert all(one.gradients[name].tobytes() == two.gradients[name].tobytes() for name in two.gradients)
    assert one.report.findings == [] and one.report.work == two.report.work
    print(f"\ncycles with one slot and two: {one.cycles}, {two.cycles}")
    assert one.cycles > 1.1 * two.cycles


def test_skipping_zero_patterns_saves_time_and_changes_no_bits(network: str) -> None:
    """The same program on a machine whose forward engine skips zero patterns."""
    program = compiled(network, "group=2")
    dense = run(network, "group=2")
    machine = load_machine(f"{MACHINE}:forward.skip_zero_patterns=true")
    described = {name: new_note(machine)[name] for name in ("machine", "machine_hash")}
    other = h2learn.Program(replace(program.object_file, note=program.object_file.note | described))
    skipping = other.run(feed())
    assert all(skipping.gradients[name].tobytes() == dense.gradients[name].tobytes() for name in dense.gradients)
    counts = skipping.report.work["fe.run"]
    assert {name: counts[name] for name in counts if name != "lane_cycles"} == dense.report.work["fe.run"]
    live = 1 - counts["zero_patterns"] / counts["patterns"]
    print(f"\n{live:.3f} of the patterns are live; FE {skipping.report.busy['FE']} of {dense.report.busy['FE']} cycles")
    assert live < skipping.report.busy["FE"] / dense.report.busy["FE"] < 0.9
    assert skipping.report.energy_pj == dense.report.energy_pj and skipping.cycles < dense.cycles


def test_the_group_changes_no_bits_where_sums_are_split_alike(network: str) -> None:
    """With one sample per block of a sum, any number of samples per group gives the same order of additions."""
    blocks = "samples=1,rows=4,columns=4,steps=4,c=32,k=32,fan=4"
    one, *others = (run(network, f"{blocks},{groups}") for groups in ("group=2", "group=4", "groups=1+3+3+3+3+3"))
    for other in others:
        assert all(one.parameters[name].tobytes() == other.parameters[name].tobytes() for name in one.parameters)


def bounds(result: Result) -> dict[str, float]:
    """Return lower bounds of a step's cycles: the busiest resource, the work, and the work behind its way in."""
    machine = load_machine(MACHINE)
    report = result.report
    macs = [STEPS * rows * rows * 9 * c * k for c, k, rows, _ in LAYERS]
    lookups = [count / (machine.forward.lanes * machine.forward.fan_in) for count in macs]
    update = machine.weight_update
    updates = [count / (update.lanes_k * update.lanes_c * update.fan_in) for count in macs]
    products = report.work["be.run"]["products"] + report.work["be.fwd"]["products"] + report.work["be.wgt"]["products"]
    multipliers = products / (machine.backward.elements * machine.backward.width)
    work = {"FE": BATCH * sum(lookups), "WUE": BATCH * sum(updates), "BE": multipliers}
    way_in = sum(lookups)  # one sample must be through all layers before anything flows back
    pipeline = max(work["FE"], way_in + work["WUE"], way_in + work["BE"])
    return {"busy": max(report.busy.values()), "work": max(work.values()), "pipeline": pipeline}


def test_the_step_comes_near_its_bounds(network: str) -> None:
    chosen = run(network, "")
    found = {name: chosen.cycles / bound for name, bound in bounds(chosen).items()}
    serial = run(network, "overlap=serial").cycles / bounds(chosen)["pipeline"]
    print(f"\n{chosen.cycles} cycles; over {', '.join(f'{name} {ratio:.2f}' for name, ratio in found.items())}; "
          f"serial over pipeline {serial:.2f}")  # fmt: skip
    assert found["pipeline"] < 1.75 and serial > 2.25


@pytest.mark.parametrize("apart", [(), (ENTRY,), (ENTRY, HEAD)])
def test_streams_share_every_memory_without_overlap(apart: tuple[str, ...]) -> None:
    for name in ("h2l-v0", "h2l-edge"):
        machine = load_machine(name)
        for memory in "WSUGMAL":
            spans = {part: (share_base(machine, part, apart)[memory], share(machine, part, apart)) for part in PLACES}
            ranges = {part: (start, start + chip.memory_bytes(memory)) for part, (start, chip) in spans.items()}
            # the optimizer begins when the forward part is through
            assert ranges[OPTIMIZER][0] == ranges[FORWARD][0] and ranges[OPTIMIZER][1] >= ranges[FORWARD][1]
            ends = [0, *(end for part, (_, end) in ranges.items() if part != FORWARD)]
            starts = [start for part, (start, _) in ranges.items() if part != FORWARD]
            assert all(start >= end for start, end in zip(starts, ends, strict=False))
            assert ends[-1] <= machine.memory_bytes(memory)
