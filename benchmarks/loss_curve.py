"""Training on the simulator against the same training in plain PyTorch: losses, and spikes that differ.

``python benchmarks/loss_curve.py --data mnist.npz`` trains ``examples/mnist.snn`` on both, from the same initial
weights and with the same order of samples. The relative difference of the loss is taken at every step, its median over
the seeds, and the largest median over the steps; above ``--require`` the exit code is 1. Sums run in different orders,
so that some membrane potentials fall on different sides of the threshold: these flips of spikes are counted, layer by
layer, by inference programs that end behind each layer of neurons and run on the simulator with its own parameters of
the step.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from torch_snn import TorchNetwork, torch_network

import h2learn
from h2learn.compiler.frontends.builder import initial_parameters
from h2learn.compiler.frontends.dsl.load import build
from h2learn.compiler.frontends.dsl.reader import read
from h2learn.compiler.frontends.dsl.syntax import Description, Lif
from h2learn.program import Execution

MODEL = Path(__file__).parents[1] / "examples" / "mnist.snn"
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Flips:
    """Spikes of one layer in one step that differ from PyTorch's, of ``neurons`` (with time and samples).

    ``margin``: the largest distance of PyTorch's membrane potential from the threshold where they differ, at the first
    time step at which any does (a flip changes the potentials of later time steps).
    """

    layer: str
    flips: int
    neurons: int
    margin: float


@dataclass(frozen=True)
class Curve:
    """One seed: the loss of every step in PyTorch and on the simulator, and the flips of every step by layer."""

    seed: int
    expected: list[float]
    found: list[float]
    flips: list[list[Flips]]

    @property
    def differences(self) -> list[float]:
        """Relative difference of the loss, step by step."""
        return [abs(a - b) / abs(b) for a, b in zip(self.found, self.expected, strict=True)]


def loss_curve(
    path: Path,
    data: h2learn.DataSet,
    *,
    seed: int,
    steps: int,
    batch: int,
    count_flips: bool = True,
    observe: Callable[[int], None] = lambda step: None,
) -> Curve:
    """Train the network of a ``.snn`` file on both sides; initial weights and sample order come from ``seed``."""
    model = h2learn.load_model(path)
    description = read(path.read_text(encoding="utf-8"), str(path))
    model = model.with_parameters(initial_parameters(model.network, description.init.gain, seed))
    other = torch_network(path, model.parameters, record=count_flips)
    order = np.random.default_rng([seed, 0]).permutation(len(data.x_train))[: steps * batch]
    recipe = replace(model.train or h2learn.Train(), keep_gradients=False)
    program = h2learn.compile(model, train=recipe, batch=batch)
    probes = _probes(description, batch) if count_flips else {}
    found, expected, flips = [], [], []
    with program.session() as session:
        for step in range(steps):
            picked = order[step * batch : (step + 1) * batch]
            x, label = data.x_train[picked], data.y_train[picked]
            if description.encode is None:
                x = np.ascontiguousarray(np.moveaxis(x, 1, 0))
            if description.input.spikes:
                x = (x != 0).astype(np.float32)
            parameters = session.parameters
            result = session.run({description.input.name: x, "label": label})
            assert result.loss is not None
            found.append(result.loss)
            expected.append(other.step(torch.from_numpy(x), torch.from_numpy(label).long()))
            flips.append([_flips(layer, probe, parameters, x, other) for layer, probe in probes.items()])
            observe(step)
    return Curve(seed, expected, found, flips)


def medians(curves: Sequence[Curve]) -> list[float]:
    """Return the median over the seeds of the relative difference, step by step."""
    return [float(value) for value in np.median([curve.differences for curve in curves], axis=0)]


def _probes(description: Description, batch: int) -> dict[Lif, h2learn.Program]:
    """Return an inference program per layer of neurons, whose output is the spikes of that layer."""
    programs = {}
    for index, layer in enumerate(description.layers):
        if isinstance(layer, Lif):
            part = replace(description, layers=description.layers[: index + 1], train=None)
            network = build(part, 1)
            zeros = {name: np.zeros(spec.shape, np.float32) for name, spec in network.parameters.items()}
            model = h2learn.Model(part.name, network, zeros, None, functools.partial(build, part))
            programs[layer] = h2learn.compile(model, batch=batch)
    return programs


def _flips(
    layer: Lif, probe: h2learn.Program, parameters: Mapping[str, Floats], x: Floats, other: TorchNetwork
) -> Flips:
    assert other.recorded is not None
    needed = {name: parameters[name] for name in probe.parameters}
    result = probe.run({next(iter(probe.inputs)): x}, needed, execution=Execution(timing=False))
    spikes, potentials = (value.numpy() for value in other.recorded[layer.name])
    found = np.asarray(next(iter(result.outputs.values()))).astype(np.bool_)
    differ = found != spikes.astype(np.bool_)
    time = int(np.argmax(differ.reshape(len(differ), -1).any(axis=1)))
    margins = np.abs(potentials[time][differ[time]] - np.float32(layer.neuron.theta[0]))
    return Flips(layer.name, int(differ.sum()), differ.size, float(margins.max(initial=0.0)))


@click.command()
@click.option("--data", metavar="FILE.npz", help="Images and labels (default: the digits of the package).")
@click.option("--model", default=str(MODEL), metavar="NET.snn", help="The network (default: examples/mnist.snn).")
@click.option("--steps", default=20, show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--limit", default=12_000, show_default=True, help="Training images, from the first.")
@click.option("--no-flips", is_flag=True, help="Do not count flips of spikes.")
@click.option("--require", default=1e-3, show_default=True, help="Fail above this relative difference.")
@click.option("--plot", metavar="FILE", help="Draw the losses of the first seed (needs matplotlib).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    data: str | None,
    model: str,
    steps: int,
    seeds: int,
    batch: int,
    limit: int,
    no_flips: bool,
    require: float,
    plot: str | None,
    as_json: bool,
) -> None:
    """Compare the first losses with PyTorch's."""
    shape = next(iter(h2learn.load_model(model).inputs.values())).shape
    over_time = read(Path(model).read_text(encoding="utf-8"), model).encode is None
    sample = (shape[0], *shape[2:]) if over_time else shape[1:]
    samples = (h2learn.load_digits() if data is None else h2learn.load_data(data, sample)).limited(limit)
    curves = []
    with click.progressbar(length=seeds * steps, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        for seed in range(seeds):
            curves.append(
                loss_curve(
                    Path(model),
                    samples,
                    seed=seed,
                    steps=steps,
                    batch=batch,
                    count_flips=not no_flips,
                    observe=lambda _: bar.update(1),
                )
            )
    worst = max(medians(curves))
    figures = {"median": medians(curves), "worst_median": worst, "curves": [asdict(curve) for curve in curves]}
    click.echo(json.dumps(figures, indent=2) if as_json else _table(curves))
    if plot:
        _draw(curves[0], plot)
    if not worst <= require:
        sys.exit(f"the losses differ by {worst:.2e}, more than {require:.0e}")


def _draw(curve: Curve, path: str) -> None:
    """Draw both losses, and their means over 20 steps."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "h2learn"
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for losses, name, color in ((curve.expected, "PyTorch", "tab:orange"), (curve.found, "simulator", "tab:blue")):
        steps = np.arange(1, len(losses) + 1)
        axis.plot(steps, losses, color=color, alpha=0.3, linewidth=0.8)
        width = min(20, len(losses))
        mean = np.convolve(losses, np.full(width, 1 / width), mode="valid")
        axis.plot(steps[width - 1 :], mean, color=color, label=f"{name}, mean of {width} steps")
    axis.set_xlabel("training step")
    axis.set_ylabel("loss")
    axis.legend()
    figure.savefig(path, metadata={"Date": None})


def _table(curves: Sequence[Curve]) -> str:
    """Return one row per step (losses of the first seed), then the flips of each layer over all steps and seeds."""
    first = curves[0]
    lines = [" step    PyTorch  simulator    median       max  spikes that differ, over all seeds"]
    for step, median in enumerate(medians(curves)):
        worst = max(curve.differences[step] for curve in curves)
        flips = _flips_by_layer([curve.flips[step] for curve in curves])
        losses = f"{first.expected[step]:9.6f}  {first.found[step]:9.6f}"
        lines.append(f"{step + 1:5}  {losses}  {median:.2e}  {worst:.2e}  {flips}")
    lines.append(f"largest median over {len(curves)} seeds: {max(medians(curves)):.2e}")
    for curve in curves:
        differing = next(((step, flips) for step, flips in enumerate(curve.flips) if any(f.flips for f in flips)), None)
        if differing is not None:
            step, changed = differing
            count, margin = sum(f.flips for f in changed), next(f.margin for f in changed if f.flips)
            lines.append(
                f"seed {curve.seed}: first flips in step {step + 1} ({count});"
                f" at most {margin:.1e} from the threshold in the first layer that has any"
            )
    return "\n".join(lines)


def _flips_by_layer(rows: Sequence[Sequence[Flips]]) -> str:
    layers = [
        f"{layer[0].layer} {sum(f.flips for f in layer)} of {sum(f.neurons for f in layer):,}"
        for layer in zip(*rows, strict=True)
    ]
    return ", ".join(layers) or "not counted"


if __name__ == "__main__":
    try:
        main()
    except h2learn.H2LearnError as error:
        sys.exit(error.render())
