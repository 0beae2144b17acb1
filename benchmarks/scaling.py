"""Does the cost of a training step grow linearly? Time of the simulator, and cycles, by batch, steps and channels.

``python benchmarks/scaling.py --plot docs/scaling.svg`` compiles a small convolutional network at several sizes, runs
training steps and fits ``cost = overhead + factor * size``. Above that overhead the slope of cost against size, both
logarithmic, is that of the growth: 1 is linear. Above ``--require`` the exit code is 1. Time is processor time of all
threads, which other work on the machine disturbs less than wall time does; of several runs the shortest counts. Cycles
are the same in all runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
import numpy as np

import h2learn
from h2learn.compiler.frontends.dsl import parse_snn

NETWORK = """network scaling
input frames: 16 x 16 x 16 spikes over time
time steps: {steps}
neuron: lif(decay 0.5, threshold 1.0, surrogate triangular(half_width 1.0))
conv c1: {channels} channels, kernel 3 x 3, padding 1
lif n1
pool: avg whole map
flatten
linear f1: 10 features
li integrate: decay 0.5
readout membrane mean
init: normal gain 1.5 seed 0
"""
BASE = {"batch": 8, "steps": 8, "channels": 32}
SIZES = {"batch": (8, 16, 32, 64), "steps": (4, 8, 16, 32), "channels": (32, 64, 128, 256)}
DENSITY = 0.15


@dataclass(frozen=True)
class Growth:
    """Costs of one kind (``seconds`` or ``cycles``) over sizes of one dimension."""

    dimension: str
    kind: str
    sizes: list[int]
    costs: list[float]

    @property
    def overhead(self) -> float:
        """Cost at size 0, by a line through all points with relative weights."""
        _, constant = np.polyfit(self.sizes, self.costs, 1, w=1 / np.asarray(self.costs))
        return max(0.0, float(constant))

    @property
    def slope(self) -> float:
        """Slope of the logarithms above the overhead, over the sizes of which it is less than half of the cost."""
        sizes, above = np.asarray(self.sizes, float), np.asarray(self.costs) - self.overhead
        counts = above > self.overhead
        return float(np.polyfit(np.log(sizes[counts]), np.log(above[counts]), 1)[0])


class Program:
    """A training step of one size, ready to run."""

    def __init__(self, batch: int, steps: int, channels: int) -> None:
        model = parse_snn(NETWORK.format(steps=steps, channels=channels))
        program = h2learn.compile(model, train=h2learn.Train(keep_gradients=False), batch=batch)
        rng = np.random.default_rng(0)
        self._fed = {
            "frames": (rng.random((steps, batch, 16, 16, 16)) < DENSITY).astype(np.float32),
            "label": rng.integers(0, 10, batch).astype(np.int32),
        }
        self._session = program.session()
        self.cycles = self._session.run(self._fed, lr=0.0).cycles
        self.seconds = float("inf")

    def run(self) -> None:
        """Run a step; keep the shortest time."""
        start = time.process_time()
        self._session.run(self._fed, lr=0.0)
        self.seconds = min(self.seconds, time.process_time() - start)


def grow(dimension: str, runs: int) -> tuple[Growth, Growth]:
    """Return how time and cycles grow with one dimension; the sizes take turns."""
    programs = {size: Program(**{**BASE, dimension: size}) for size in SIZES[dimension]}
    for _ in range(runs):
        for program in programs.values():
            program.run()
    sizes = list(programs)
    seconds = Growth(dimension, "seconds", sizes, [program.seconds for program in programs.values()])
    return seconds, Growth(dimension, "cycles", sizes, [float(program.cycles) for program in programs.values()])


def plot(growths: Sequence[Growth], path: str) -> None:
    """Draw costs against sizes, with the fitted lines, one panel per dimension and kind."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "h2learn"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, len(SIZES), figsize=(9, 5), sharex="col", layout="constrained")
    for number, growth in enumerate(growths):
        axis = panels[number % 2, number // 2]
        sizes = np.asarray(growth.sizes, float)
        factor = np.polyfit(sizes, growth.costs, 1, w=1 / np.asarray(growth.costs))[0]
        axis.loglog(sizes, growth.costs, "o", base=2)
        axis.loglog(sizes, growth.overhead + factor * sizes, "-", base=2)
        axis.set_title(f"slope {growth.slope:.2f}", fontsize=9)
        axis.set_xlabel(growth.dimension if number % 2 else "")
        axis.set_ylabel("" if number // 2 else f"{growth.kind} per step")
    figure.savefig(path, metadata={"Date": None})


@click.command()
@click.option("--runs", default=10, show_default=True, help="Timed runs of each size.")
@click.option("--plot", "path", metavar="FILE", help="Draw the growth (needs matplotlib).")
@click.option("--require", default=1.05, show_default=True, help="Fail above this slope.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(runs: int, path: str | None, require: float, as_json: bool) -> None:
    """Measure how the cost of a training step grows."""
    growths = [growth for dimension in SIZES for growth in grow(dimension, runs)]
    if as_json:
        found = [asdict(growth) | {"overhead": growth.overhead, "slope": growth.slope} for growth in growths]
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("dimension  kind      slope  overhead  costs by size")
        for growth in growths:
            costs = ", ".join(f"{size}: {cost:.4g}" for size, cost in zip(growth.sizes, growth.costs, strict=True))
            click.echo(f"{growth.dimension:9}  {growth.kind:8} {growth.slope:6.2f}  {growth.overhead:8.3g}  {costs}")
    if path:
        plot(growths, path)
    steepest = max(growth.slope for growth in growths)
    if not steepest <= require:
        sys.exit(f"the steepest slope is {steepest:.2f}, more than {require:g}")


if __name__ == "__main__":
    try:
        main()
    except h2learn.H2LearnError as error:
        sys.exit(error.render())
