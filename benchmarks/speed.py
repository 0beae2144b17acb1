"""Seconds per training step: the simulator (numbers, timing and counters) against PyTorch eager on the same cores.

``python benchmarks/speed.py [--mnist mnist.npz --cifar cifar10.npz]``. Steps of the two alternate in one process that
is bound to the given number of cores; each number of cores has a process of its own. The ratio (simulator / PyTorch)
is that of neighbouring steps: median, 10th and 90th percentile. Time on the simulator depends on how many spikes and
gradients there are, so their densities are printed too; without data files the images are uniform noise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
from torch_snn import torch_network

import h2learn

HERE = Path(__file__).parent
CLASSES = 10
WARM_UP = 3


@dataclass(frozen=True)
class Net:
    """A network file, its batch, and which of the data files fits it."""

    path: Path
    batch: int
    data: str


NETS = {
    "mlp": Net(HERE / "networks" / "mlp512.snn", 64, "mnist"),
    "conv": Net(HERE.parent / "examples" / "mnist.snn", 32, "mnist"),
    "vgg5": Net(HERE / "networks" / "vgg5.snn", 8, "cifar"),
    "vgg": Net(HERE / "networks" / "vgg_cifar.snn", 2, "cifar"),
}


@dataclass(frozen=True)
class Timing:
    """Median milliseconds per step on both sides and their ratio; densities of spikes and of live gradients."""

    net: str
    threads: int
    steps: int
    simulator_ms: float
    torch_ms: float
    ratio: float
    ratio_p10: float
    ratio_p90: float
    spikes: float
    gradients: float


def measure(name: str, threads: int, steps: int, data: str | None) -> Timing:
    """Time alternating steps on the cores that the process may use."""
    net = NETS[name]
    model = h2learn.load_model(net.path)
    images, labels = _samples(model, data, (WARM_UP + steps) * net.batch)
    recipe = replace(model.train or h2learn.Train(), keep_gradients=False)
    other = torch_network(net.path, model.parameters)
    seconds: list[tuple[float, float]] = []
    torch.set_num_threads(threads)
    source = next(iter(model.inputs))
    with h2learn.compile(model, train=recipe, batch=net.batch).session() as session:
        for first in range(0, len(images), net.batch):
            x, label = images[first : first + net.batch], labels[first : first + net.batch]
            start = time.perf_counter()
            report = session.run({source: x, "label": label}).report
            middle = time.perf_counter()
            other.step(torch.from_numpy(x), torch.from_numpy(label).long())
            seconds.append((middle - start, time.perf_counter() - middle))
    times = np.array(seconds[WARM_UP:])
    simulator, eager = (float(value) for value in 1e3 * np.median(times, axis=0))
    low, middle_ratio, high = (float(value) for value in np.percentile(times[:, 0] / times[:, 1], (10, 50, 90)))
    neurons, gradients = report.work["v.lif"], report.work["v.grad"]
    return Timing(
        name,
        threads,
        steps,
        simulator_ms=simulator,
        torch_ms=eager,
        ratio=middle_ratio,
        ratio_p10=low,
        ratio_p90=high,
        spikes=neurons["spikes"] / neurons["elements"],
        gradients=gradients["live_outputs"] / gradients["elements"],
    )


def _samples(
    model: h2learn.Model, data: str | None, count: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return ``count`` images and labels, from the start of the training images again where there are too few."""
    shape = next(iter(model.inputs.values())).shape[1:]
    if data is None:
        rng = np.random.default_rng(0)
        return rng.random((count, *shape), dtype=np.float32), rng.integers(CLASSES, size=count, dtype=np.int32)
    found = h2learn.load_npz(data, shape)
    picked = np.arange(count) % len(found.x_train)
    return found.x_train[picked], found.y_train[picked]


@click.command()
@click.option("--net", "nets", multiple=True, type=click.Choice(list(NETS)), help="Networks (default: all).")
@click.option("--threads", "counts", multiple=True, type=int, help="Numbers of cores (default: 1 and 2).")
@click.option("--steps", default=30, show_default=True, help="Steps that are timed, of each side.")
@click.option("--mnist", metavar="FILE.npz", help="Images for mlp and conv.")
@click.option("--cifar", metavar="FILE.npz", help="Images for vgg5.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    nets: tuple[str, ...],
    counts: tuple[int, ...],
    steps: int,
    mnist: str | None,
    cifar: str | None,
    as_json: bool,
) -> None:
    """Compare the time of training steps with PyTorch's."""
    chosen, files = nets or tuple(NETS), {"mnist": mnist, "cifar": cifar}
    threads = counts or (1, 2)
    if len(threads) == 1:
        _bind(threads[0])
        timings = [measure(name, threads[0], steps, files[NETS[name].data]) for name in chosen]
    else:
        timings = [timing for count in threads for timing in _in_own_process(count, chosen, steps, files)]
    click.echo(json.dumps([asdict(timing) for timing in timings], indent=2) if as_json else _table(timings))


def _bind(count: int) -> None:
    """Leave this process ``count`` cores; the simulator's kernels use as many threads as it has cores."""
    if not hasattr(os, "sched_setaffinity"):
        raise h2learn.H2LearnError("this system cannot bind a process to cores")
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(cores):
        raise h2learn.H2LearnError(f"expected 1 to {len(cores)} threads, found {count}")
    os.sched_setaffinity(0, cores[:count])


def _in_own_process(threads: int, nets: tuple[str, ...], steps: int, files: dict[str, str | None]) -> list[Timing]:
    command = [sys.executable, __file__, "--json", f"--threads={threads}", f"--steps={steps}"]
    command += [f"--net={name}" for name in nets]
    command += [f"--{name}={file}" for name, file in files.items() if file is not None]
    found = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if found.returncode:
        sys.exit(found.returncode)
    return [Timing(**timing) for timing in json.loads(found.stdout)]


def _table(timings: list[Timing]) -> str:
    lines = ["net   threads  simulator ms  PyTorch ms  ratio (p10-p90)      spikes  live gradients"]
    for t in timings:
        spread = f"{t.ratio:5.2f} ({t.ratio_p10:.2f}-{t.ratio_p90:.2f})"
        lines.append(
            f"{t.net:5} {t.threads:7}  {t.simulator_ms:12.1f}  {t.torch_ms:10.1f}  {spread:19}"
            f"  {t.spikes:6.3f}  {t.gradients:14.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except h2learn.H2LearnError as error:
        sys.exit(error.render())
