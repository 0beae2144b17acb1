"""How near schedules come to independent lower bounds, and how busy the backward engine's multipliers are, by layer.

``python benchmarks/schedule.py [--arch h2l-v0] [--net NAME ...] [--batch 16 ...] [--steps 3] [--mapping TEXT]``. Every
network is trained in-tool for a few steps first (fp16), so that densities are those of a network in training; images
are uniform noise. The bounds are those of ``tests/schedule/bounds.py``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

import h2learn
from h2learn.backends.h2learn.machine import Machine, load_machine
from h2learn.runtime.counters import PcCounters, RunReport

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "schedule"))
from bounds import bounds, efficiency, layers_with_weights  # noqa: E402

NETS = ("cifar_vgg", "alexnet", "resnet34")


@click.command()
@click.option("--net", "nets", multiple=True, help="Networks of benchmarks/networks; default: the three large ones.")
@click.option("--batch", "batches", multiple=True, type=int, default=(16,), show_default=True)
@click.option("--arch", default="h2l-v0", show_default=True)
@click.option("--steps", default=3, show_default=True, help="Training steps before the one that is measured.")
@click.option("--mapping", default="", help="Tile limits, as of h2learn compile.")
def main(nets: tuple[str, ...], batches: tuple[int, ...], arch: str, steps: int, mapping: str) -> None:
    """Print makespan over busy, work and pipeline bounds, and eta by layer."""
    machine = load_machine(arch)
    for name in nets or NETS:
        for batch in batches:
            _measure(name, batch, machine, steps, mapping)


def _measure(name: str, batch: int, machine: Machine, steps: int, mapping: str) -> None:
    model = h2learn.load_model(str(HERE / "networks" / f"{name}.snn"))
    assert model.train is not None
    train = replace(model.train, keep_gradients=False)
    program = h2learn.compile(model, arch=machine.name, train=train, batch=batch, precision="fp16", mapping=mapping)
    rng = np.random.default_rng(0)
    inputs = next(iter(model.inputs))
    shape = next(iter(model.inputs.values())).shape[1:]
    start = time.perf_counter()
    with program.session() as session:
        for _ in range(steps + 1):
            image = rng.random((batch, *shape), dtype=np.float32)
            report = session.run({inputs: image, "label": rng.integers(0, 10, batch).astype(np.int32)}).report
    seconds = time.perf_counter() - start
    limits = bounds(layers_with_weights(model, batch), batch, machine, report)
    over = ", ".join(f"{what} {ratio:.3f}" for what, ratio in limits.ratios(report.cycles).items())
    click.echo(f"{name}, batch {batch}, {machine.name}: {report.cycles:,} cycles; over {over} ({seconds:.0f} s)")
    for what in ("busy", "work", "pipeline"):
        values = getattr(limits, what).items()
        click.echo(f"  {what}: " + ", ".join(f"{resource} {cycles:,.0f}" for resource, cycles in values if cycles))
    _layers(report, machine)


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
