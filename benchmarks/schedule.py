"""How near schedules come to independent lower bounds, and how busy the backward engine's multipliers are, by layer.

``python benchmarks/schedule.py [--arch h2l-v0] [--net NAME ...] [--batch 16 ...] [--steps 3] [--mapping TEXT]``. Every
network is trained in-tool for a few steps first (fp16), so that densities are those of a network in training; images
are uniform noise. The bounds are those of ``tests/schedule/bounds.py``.

With ``--check`` the step runs with all sanitizers on instead, and again as one instruction stream with the same tiles
and groups; loss, parameters and states of the optimizer must be the same bits, and the work the same.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import numpy.typing as npt

import h2learn
from h2learn.backends.h2learn.machine import Machine, load_machine
from h2learn.program import CHECKS, Execution
from h2learn.runtime.counters import Counts, PcCounters, RunReport

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "schedule"))
from bounds import bounds, efficiency, layers_with_weights  # noqa: E402

NETS = ("cifar_vgg", "alexnet", "resnet34")
TRANSFERS = ("ld", "st")


@click.command()
@click.option("--net", "nets", multiple=True, help="Networks of benchmarks/networks; default: the three large ones.")
@click.option("--batch", "batches", multiple=True, type=int, default=(16,), show_default=True)
@click.option("--arch", default="h2l-v0", show_default=True)
@click.option("--steps", default=3, show_default=True, help="Training steps before the one that is measured.")
@click.option("--mapping", default="", help="Tile limits, as of h2learn compile.")
@click.option("--check", is_flag=True, help="Compare with the serial program bit for bit, sanitizers on.")
def main(nets: tuple[str, ...], batches: tuple[int, ...], arch: str, steps: int, mapping: str, check: bool) -> None:
    """Print makespan over busy, work and pipeline bounds, and eta by layer."""
    machine, right = load_machine(arch), True
    for name in nets or NETS:
        model = h2learn.load_model(str(HERE / "networks" / f"{name}.snn"))
        for batch in batches:
            if check:
                right &= _check(name, model, batch, machine, steps, mapping)
            else:
                _measure(name, model, batch, machine, steps, mapping)
    sys.exit(0 if right else 1)


def _measure(name: str, model: h2learn.Model, batch: int, machine: Machine, steps: int, mapping: str) -> None:
    start = time.perf_counter()
    with _compile(model, batch, machine, mapping).session() as session:
        for given in _batches(model, batch, steps + 1):
            report = session.run(given).report
    seconds = time.perf_counter() - start
    limits = bounds(layers_with_weights(model, batch), batch, machine, report)
    over = ", ".join(f"{what} {ratio:.3f}" for what, ratio in limits.ratios(report.cycles).items())
    click.echo(f"{name}, batch {batch}, {machine.name}: {report.cycles:,} cycles; over {over} ({seconds:.0f} s)")
    for what in ("busy", "work", "pipeline"):
        values = getattr(limits, what).items()
        click.echo(f"  {what}: " + ", ".join(f"{resource} {cycles:,.0f}" for resource, cycles in values if cycles))
    _layers(report, machine)


def _check(name: str, model: h2learn.Model, batch: int, machine: Machine, steps: int, mapping: str) -> bool:
    """Print whether the overlapped step gives the numbers of the serial one without a finding; returns it."""
    *before, given = _batches(model, batch, steps + 1)
    program = _compile(model, batch, machine, mapping)
    with program.session() as session:
        for one in before:
            session.run(one)
        start = Start(session.parameters, session.states, steps, steps * batch)
    checked = _outcome(program, start, given, CHECKS)
    del program, session
    serial = _outcome(_compile(model, batch, machine, f"{mapping},overlap=serial".strip(",")), start, given)
    assert checked.tensors.keys() == serial.tensors.keys()
    differ = [key for key, value in checked.tensors.items() if value.tobytes() != serial.tensors[key].tobytes()]
    alike = checked.work == serial.work
    click.echo(
        f"{name}, batch {batch}, {machine.name}: {checked.cycles:,} cycles, serial {serial.cycles:,}; "
        f"{len(checked.findings)} findings; {len(checked.tensors) - len(differ)} of {len(checked.tensors)} tensors "
        f"equal bit for bit; work {'the same' if alike else 'differs'} ({checked.seconds:.0f} s with sanitizers, "
        f"{serial.seconds:.0f} s serial without)"
    )
    for line in (*checked.findings[:10], *differ[:10]):
        click.echo(f"  {line}")
    return not differ and alike and not checked.findings


class Start(NamedTuple):
    """What a session goes on from: parameters, states of the optimizer, steps and samples so far."""

    parameters: dict[str, npt.NDArray[np.float32]]
    states: dict[str, npt.NDArray[np.float32]]
    steps: int
    samples: int


class Outcome(NamedTuple):
    """A step: cycles, seconds of the simulator, findings, and loss, parameters and states behind it.

    ``work``: what engines have done, and bytes read and written by memory; in how many rows they came does not matter.
    """

    cycles: int
    seconds: float
    work: Counts
    findings: list[str]
    tensors: dict[str, npt.NDArray[np.float32]]


def _outcome(
    program: h2learn.Program,
    start: Start,
    given: dict[str, npt.NDArray[np.generic]],
    checks: frozenset[str] = frozenset(),
) -> Outcome:
    """Take a step; nothing that is returned holds on to the simulator's memories."""
    with program.session(execution=Execution(sanitize=checks)) as session:
        session.restore(start.parameters, start.states, steps=start.steps, samples=start.samples)
        began = time.perf_counter()
        loss, report = attrgetter("loss", "report")(session.run(given))
        seconds = time.perf_counter() - began
        kept = {"parameter": session.parameters, "state": session.states}
        tensors = {f"{role} {key}": value for role, held in kept.items() for key, value in held.items()}
    messages = [item.message for item in report.findings]
    work = {name: counts for name, counts in report.work.items() if name not in TRANSFERS}
    work |= {"read": report.bytes_read, "written": report.bytes_written}
    return Outcome(report.cycles, seconds, work, messages, tensors | {"loss": np.float32([loss])})


def _compile(model: h2learn.Model, batch: int, machine: Machine, mapping: str) -> h2learn.Program:
    assert model.train is not None
    train = replace(model.train, keep_gradients=False)
    return h2learn.compile(model, arch=machine.name, train=train, batch=batch, precision="fp16", mapping=mapping)


def _batches(model: h2learn.Model, batch: int, count: int) -> Iterator[dict[str, npt.NDArray[np.generic]]]:
    """Yield images of noise with labels."""
    rng = np.random.default_rng(0)
    ((inputs, spec),) = model.inputs.items()
    classes = next(iter(model.outputs.values())).shape[-1]
    for _ in range(count):
        image = rng.random((batch, *spec.shape[1:]), dtype=np.float32)
        yield {inputs: image, "label": rng.integers(0, classes, batch).astype(np.int32)}


def _layers(report: RunReport, machine: Machine) -> None:
    """Print densities and efficiency of the backward engine by layer, where its input gradient has any products."""
    multipliers = machine.backward.elements * machine.backward.width
    sources: dict[str, list[PcCounters]] = {}
    for item in report.by_pc:
        if item.mnemonic == "be.run" and item.work:
            sources.setdefault(item.source, []).append(item)
    click.echo("  input gradients: layer, live gradients, open masks, share of products, eta, eta of the bitmaps")
    for source, items in sources.items():
        work = [item.work for item in items]
        total = {key: sum(one.get(key, 0) for one in work) for key in work[0]}
        if not total["products"]:
            continue
        allowed = total["products"] / (total["issue_cycles"] * machine.backward.width / 4)
        click.echo(
            f"  {Path(source).name:24} {total['live_inputs'] / total['dense_inputs']:.3f} "
            f"{total['live_outputs'] / total['dense_outputs']:.3f} {total['products'] / total['dense_products']:.3f} "
            f"{efficiency(work, multipliers):.3f} {allowed:.3f}"
        )


if __name__ == "__main__":
    main()
