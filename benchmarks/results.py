"""The comparison page: runs networks on the simulator and writes ``docs/results.md``.

``python benchmarks/results.py [--cifar cifar10.npz] [--batch 16] [--steps 5] [--net NAME ...] [-o docs/results.md]``.
Every network is trained on the simulator for a few steps first (fp16), so that densities are those of a network in
training; then one step is measured per row. Without a data file the images are uniform noise, and the page says so.
Networks of ``LARGE`` get the rows of ``FEW`` only, because a step of theirs takes a minute.
Nothing on the page is typed in: figures come from the runs, the analytic GPU model and the area model of this package.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import adders
import click
import numpy as np
import numpy.typing as npt

import h2learn
from h2learn.backends import gpu
from h2learn.backends.gpu.roofline import PAPER_ENERGY_SAVING, PAPER_SPEED_UP, compare
from h2learn.backends.h2learn.area import area_of, area_text
from h2learn.backends.h2learn.machine import load_machine
from h2learn.runtime.counters import RunReport

HERE = Path(__file__).parent
NETS = {name: HERE / "networks" / f"{name}.snn" for name in ("cifar_vgg", "vgg5", "resnet34", "alexnet")}
LARGE = ("resnet34", "alexnet")
MACHINE = "h2l-v0"
MODES = {
    "dense": "dense",
    "in": "passing over zero gradients only",
    "out": "passing over masked results only",
    "dual": "dual-sparse",
}
"""Which zeros save the backward engine's cycles."""
SKIPPING = f"{MACHINE}:forward.skip_zero_patterns=true"
ABLATIONS = (
    ("as compiled", "", MACHINE),
    ("engines serial", "overlap=serial", MACHINE),
    ("forward and backward in one stream", "overlap=backward", MACHINE),
    ("no double buffering, same tiles", "double_buffering=off", MACHINE),
    *((f"BE {what}", f"sparsity={mode}", MACHINE) for mode, what in MODES.items() if mode != "dual"),
    *((f"fan-in {fan}", f"fan={fan}", MACHINE) for fan in (1, 2, 4, 6, 8)),
    ("zero patterns skipped", "", SKIPPING),
    ("zero patterns skipped, fan-in 1 (event-driven adders)", "fan=1", SKIPPING),
)
FEW = (
    "as compiled",
    "engines serial",
    "no double buffering, same tiles",
    *(f"BE {what}" for what in MODES.values()),
    "zero patterns skipped",
)
FORMS = (
    ("pooled and summed spikes as bit-planes", "planes"),
    ("pooled and summed spikes on the multipliers", "multipliers"),
)
GROUPS = (1, 2, 4, 8, 16)
MULTIPLIERS = 2048  # of h2l-v0


@dataclass(frozen=True)
class Measured:
    """One training step: its report and the seconds that simulating it took."""

    report: RunReport
    seconds: float

    @property
    def over_bound(self) -> float:
        """Makespan over the busiest resource."""
        return self.report.cycles / max(self.report.busy.values())


class Bench:
    """A network with its data and the parameters after a few steps of training."""

    def __init__(self, name: str, batch: int, steps: int, data: str | None) -> None:
        self.name, self.batch = name, batch
        self.model = h2learn.load_model(NETS[name])
        assert self.model.train is not None
        self.recipe = replace(self.model.train, keep_gradients=False)
        self.images, self.labels = _samples(self.model, data, batch * (steps + 1))
        program = h2learn.compile(self.model, train=self.recipe, batch=batch, precision="fp16")
        with program.session() as session:
            for first in range(0, steps * batch, batch):
                session.run(self._feed(first))
            self.model = self.model.with_parameters(dict(session.parameters))

    def compiled(self, mapping: str = "", arch: str = MACHINE) -> h2learn.Program:
        """Compile the step under a mapping."""
        return h2learn.compile(
            self.model, arch=arch, train=self.recipe, batch=self.batch, precision="fp16", mapping=mapping
        )

    def has_numbers(self) -> bool:
        """Whether some layer can take bit-planes: then the two forms give two programs."""
        planes, multipliers = (self.compiled(f"operand_form={form}").object_file.text for _, form in FORMS)
        return planes != multipliers

    def _feed(self, first: int) -> dict[str, npt.NDArray[np.generic]]:
        chosen = slice(first, first + self.batch)
        return {next(iter(self.model.inputs)): self.images[chosen], "label": self.labels[chosen]}

    def measure(self, mapping: str = "", arch: str = MACHINE) -> Measured:
        """Run the step behind the training under a mapping."""
        program = self.compiled(mapping, arch)
        start = time.perf_counter()
        with program.session() as session:
            report = session.run(self._feed(len(self.images) - self.batch)).report
        return Measured(report, time.perf_counter() - start)


def _samples(
    model: h2learn.Model, data: str | None, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    shape = next(iter(model.inputs.values())).shape[1:]
    classes = next(iter(model.outputs.values())).shape[-1]
    rng = np.random.default_rng(0)
    if data is None:
        return rng.random((count, *shape), dtype=np.float32), rng.integers(0, classes, count).astype(np.int32)
    found = h2learn.load_npz(data, shape[:1] + _map_of(data))
    chosen = rng.permutation(len(found.x_train))[:count]
    images = found.x_train[chosen]
    for axis in (2, 3):  # larger maps show every pixel several times
        images = np.repeat(images, shape[axis - 1] // images.shape[axis], axis)
    return np.ascontiguousarray(images), found.y_train[chosen]


def _map_of(data: str) -> tuple[int, int]:
    """Return rows and columns of the images of a file."""
    with np.load(data) as arrays:
        rows, columns = arrays["x_train"].shape[-2:]
    return int(rows), int(columns)


def page(names: tuple[str, ...], batch: int, large_batch: int, steps: int, data: str | None) -> str:
    """Return the whole page."""
    source = f"images of `{Path(data).name}`" if data else "uniform noise"
    lines = [
        "# Results",
        "",
        f"Written by `python benchmarks/results.py`: batch {batch} ({', '.join(LARGE)}: {large_batch}), fp16, `h2l-v0`",
        f"unless a row says otherwise; every network is trained in-tool for {steps} steps on {source} (larger maps",
        "show every pixel several times) before the step that is measured. H2Learn-style: the micro-architecture",
        "parameters are ours.",
        "",
    ]
    assumptions: dict[str, None] = {}
    for name in names:
        lines += _network(Bench(name, large_batch if name in LARGE else batch, steps, data), assumptions)
    lines += ["## Look-ups against adders", "", *adders.section(SKIPPING, MACHINE), ""]
    lines += ["## Assumptions", "", "Of the GPU estimates and of all energies on this page:", ""]
    lines += [*(f"* {text}" for text in assumptions), ""]
    lines += ["## Area of h2l-v0", "", "```text", area_text(area_of(load_machine("h2l-v0"))), "```", ""]
    return "\n".join(lines)


def _network(bench: Bench, assumptions: dict[str, None]) -> list[str]:
    click.echo(f"{bench.name}: as compiled", err=True)
    chosen, large = bench.measure(), bench.name in LARGE
    lines = [f"## {bench.name}", "", *_machine_rows(bench, chosen), "", *_densities(chosen.report), ""]
    lines += ["### Against a V100 (analytic)", "", *_against_gpu(bench, chosen, assumptions), ""]
    lines += [
        "### Ablations",
        "",
        "| choice | cycles | x as compiled | makespan / busiest | DRAM MB | uJ |",
        "|---|---|---|---|---|---|",
    ]
    rows = [row for row in ABLATIONS if not large or row[0] in FEW]
    if bench.has_numbers():
        rows += [(what, f"operand_form={form}", MACHINE) for what, form in FORMS]
    if not large:
        rows += [(f"groups of {size}", f"group={size}", MACHINE) for size in GROUPS if size <= bench.batch]
    for what, mapping, arch in rows:
        click.echo(f"{bench.name}: {what}", err=True)
        lines.append(_ablation(bench, what, mapping, arch, chosen))
    work = chosen.report.work["be.run"]
    lines += ["", "Backward engine (`be.run`), cycles of the same work in each mode, from the bitmaps of this run:", ""]
    lines += ["| " + " | ".join(MODES.values()) + " |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(f"{work[f'pe_cycles_{mode}']:,}" for mode in MODES) + " |", ""]
    return lines


def _ablation(bench: Bench, what: str, mapping: str, arch: str, chosen: Measured) -> str:
    if not mapping and arch == MACHINE:
        return _row(what, chosen, chosen)
    try:
        return _row(what, bench.measure(mapping, arch), chosen)
    except h2learn.H2LearnError as error:
        return f"| {what} | {error.message} | | | | |"


def _machine_rows(bench: Bench, chosen: Measured) -> list[str]:
    click.echo(f"{bench.name}: h2l-edge", err=True)
    rows = ["| machine | cycles | ms | makespan / busiest | busy | DRAM MB | mJ |", "|---|---|---|---|---|---|---|"]
    found, refused = {MACHINE: chosen}, []
    try:
        found["h2l-edge"] = bench.measure(arch="h2l-edge")
    except h2learn.H2LearnError as error:
        refused = [f"| h2l-edge | {error.message} | | | | | |"]
    for name, one in found.items():
        report = one.report
        busy = ", ".join(f"{engine} {100 * cycles / report.cycles:.0f}%" for engine, cycles in report.busy.items())
        milliseconds = 1e3 * report.cycles / load_machine(name).clock_hz
        rows.append(
            f"| {name} | {report.cycles:,} | {milliseconds:.2f} | {one.over_bound:.2f} | {busy} | "
            f"{_dram(report) / 1e6:.0f} | {report.energy_pj / 1e9:.2f} |"
        )
    return rows + refused


def _densities(report: RunReport) -> list[str]:
    look, run = report.work["fe.run"], report.work["be.run"]
    shares = {
        "spikes into FE": look["spikes"] / look["inputs"],
        "zero patterns": look["zero_patterns"] / look["patterns"],
        "gradients into BE": run["live_inputs"] / run["dense_inputs"],
        "open masks": run["live_outputs"] / run["dense_outputs"],
    }
    if run["products"]:
        shares["efficiency of BE's multipliers"] = run["products"] / (run["pe_cycles"] * MULTIPLIERS)
    lines = ["In this run: " + ", ".join(f"{what} {share:.3f}" for what, share in shares.items()) + "."]
    if not run["products"]:
        lines += ["", "**No gradient lives behind the last layer**: the backward engine has nothing to do in this run."]
    return lines


def _against_gpu(bench: Bench, chosen: Measured, assumptions: dict[str, None]) -> list[str]:
    report = chosen.report
    seconds, joules = report.cycles / load_machine(MACHINE).clock_hz, report.energy_pj * 1e-12
    shapes = gpu.layers_of(bench.model.with_batch(bench.batch).module)
    rows = ["| backend | ms | speed-up | energy saving |", "|---|---|---|---|"]
    for style in ("eager", "fused"):
        for precision in ("fp32", "amp"):
            other = gpu.baseline(shapes, gpu.device_named("v100"), style, precision)
            ratio = compare(other, seconds, joules)
            assumptions |= dict.fromkeys(other.assumptions)
            rows.append(
                f"| {style} {precision} | {other.seconds.low * 1e3:.2f} - {other.seconds.high * 1e3:.2f} | "
                f"{ratio.speed_up.low:.1f} - {ratio.speed_up.high:.1f} | "
                f"{ratio.energy_saving.low:.0f} - {ratio.energy_saving.high:.0f} |"
            )
    paper = f"{PAPER_SPEED_UP.low} - {PAPER_SPEED_UP.high} | {PAPER_ENERGY_SAVING.low} - {PAPER_ENERGY_SAVING.high}"
    rows.append(f"| the paper, its own measurement | | {paper} |")
    assumptions |= dict.fromkeys(report.energy.assumptions)
    return rows


def _row(what: str, one: Measured, chosen: Measured) -> str:
    report = one.report
    return (
        f"| {what} | {report.cycles:,} | {report.cycles / chosen.report.cycles:.2f} | {one.over_bound:.2f} | "
        f"{_dram(report) / 1e6:.0f} | {report.energy_pj / 1e6:.0f} |"
    )


def _dram(report: RunReport) -> int:
    return report.bytes_read["DRAM"] + report.bytes_written["DRAM"]


@click.command()
@click.option("--cifar", "data", metavar="FILE", help="CIFAR-10 as npz with x_train and y_train.")
@click.option("--batch", default=16, show_default=True)
@click.option("--large-batch", default=4, show_default=True, help="Batch of the largest networks.")
@click.option("--steps", default=5, show_default=True, help="Training steps before the one that is measured.")
@click.option("--net", "names", multiple=True, type=click.Choice(list(NETS)), help="Default: all.")
@click.option("-o", "output", default="docs/results.md", show_default=True, metavar="FILE")
def main(data: str | None, batch: int, large_batch: int, steps: int, names: tuple[str, ...], output: str) -> None:
    """Run everything and write the page."""
    text = page(names or tuple(NETS), batch, large_batch, steps, data)
    Path(output).write_text(text + "\n", encoding="utf-8")
    click.echo(f"wrote {output}")


if __name__ == "__main__":
    main()
