"""Seconds per training step: the simulator (numbers, timing and counters) against PyTorch eager on the same cores.

``python benchmarks/speed.py [--mnist mnist.npz --cifar cifar10.npz]``. The simulator first trains by itself for some
steps, so that spikes and gradients are as dense as in a network that learns (the densities are printed; without data
files the images are uniform noise). Then steps of all sides alternate in one process that is bound to the given number
of cores; each number of cores has a process of its own. Every round has an order of its own, drawn from a seed, and a
rest before each side: whoever comes behind PyTorch would find its threads still spinning and the caches full of its
arrays. The ratio (simulator / PyTorch) is that of neighbouring steps:
median, 10th and 90th percentile; beside it stand the ratio of processor time, that to SpikingJelly's multi-step neurons
where they are installed, and that of the simulator without timing to itself with. Peak memory of the simulator and of
PyTorch is that of a process for each.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import h2learn
from h2learn.program import Execution

HERE = Path(__file__).parent
CLASSES = 10
WARM_UP = 3
REST_SECONDS = 0.05


@dataclass(frozen=True)
class Net:
    """A network file, its batch, which of the data files fits it, and for how many steps it trains beforehand."""

    path: Path
    batch: int
    data: str
    trained: int


NETS = {
    "mlp": Net(HERE / "networks" / "mlp512.snn", 64, "mnist", 200),
    "conv": Net(HERE.parent / "examples" / "mnist.snn", 32, "mnist", 100),
    "vgg5": Net(HERE / "networks" / "vgg5.snn", 8, "cifar", 60),
    "vgg": Net(HERE / "networks" / "vgg_cifar.snn", 2, "cifar", 20),
}


@dataclass(frozen=True)
class Timing:
    """Median milliseconds per step and the ratios of the simulator's times to others' (None: not measured).

    ``processor_ratio`` compares processor time of all threads. Densities of spikes and of live gradients; peak
    memory in MiB.
    """

    net: str
    threads: int
    steps: int
    simulator_ms: float
    torch_ms: float
    ratio: float
    ratio_p10: float
    ratio_p90: float
    processor_ratio: float
    spikingjelly_ratio: float | None
    functional_ratio: float
    spikes: float
    gradients: float
    simulator_mib: float
    torch_mib: float


def measure(name: str, threads: int, steps: int, data: str | None) -> Timing:
    """Time alternating steps on the cores that the process may use."""
    import torch
    from spikingjelly_snn import spikingjelly_network
    from torch_snn import torch_network

    net = NETS[name]
    model = h2learn.load_model(net.path)
    batches, rng = _samples(model, data, net.trained + WARM_UP + steps, net.batch), np.random.default_rng(0)
    torch.set_num_threads(threads)
    source = next(iter(model.inputs))
    program = _program(model, net)
    with program.session() as session, program.session(execution=Execution(timing=False)) as plain:
        for x, label in batches[: net.trained]:
            session.run({source: x, "label": label})
        plain.restore(session.parameters, session.states, steps=net.trained, samples=net.trained * net.batch)
        other = torch_network(net.path, session.parameters)
        third = spikingjelly_network(net.path, session.parameters)
        sides = {
            "timed": lambda x, label: session.run({source: x, "label": label}).report,
            "functional": lambda x, label: plain.run({source: x, "label": label}).report,
            "eager": lambda x, label: other.step(torch.from_numpy(x), torch.from_numpy(label).long()),
        }
        if third is not None:
            sides["jelly"] = lambda x, label: third.step(torch.from_numpy(x), torch.from_numpy(label).long())
        rounds = [_round(sides, batch, rng) for batch in batches[net.trained :]]
        report = sides["timed"](*batches[-1])
    clock, processor = (
        {side: np.array([times[side][column] for times in rounds[WARM_UP:]]) for side in sides} for column in (0, 1)
    )
    ratios = clock["timed"] / clock["eager"]
    low, middle, high = (float(value) for value in np.percentile(ratios, (10, 50, 90)))
    neurons, gradients = report.work["v.lif"], report.work["v.grad"]
    simulator_mib, torch_mib = (_peak_mib(name, side, threads) for side in SIDES)
    return Timing(
        name,
        threads,
        steps,
        simulator_ms=1e3 * float(np.median(clock["timed"])),
        torch_ms=1e3 * float(np.median(clock["eager"])),
        ratio=middle,
        ratio_p10=low,
        ratio_p90=high,
        processor_ratio=float(np.median(processor["timed"] / processor["eager"])),
        spikingjelly_ratio=None if third is None else float(np.median(clock["timed"] / clock["jelly"])),
        functional_ratio=float(np.median(clock["functional"] / clock["timed"])),
        spikes=neurons["spikes"] / neurons["elements"],
        gradients=gradients["live_outputs"] / gradients["elements"],
        simulator_mib=simulator_mib,
        torch_mib=torch_mib,
    )


def _round(
    sides: Mapping[str, Callable[..., Any]], batch: tuple[npt.NDArray[Any], ...], rng: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """Return each side's seconds for a step on a batch, by the clock and of the processor, in an order of chance."""
    found = {}
    for side in rng.permutation(list(sides)):
        time.sleep(REST_SECONDS)
        start, processor = time.perf_counter(), time.process_time()
        sides[side](*batch)
        found[str(side)] = time.perf_counter() - start, time.process_time() - processor
    return found


SIDES = ("simulator", "PyTorch")


def run_side(name: str, side: str) -> None:
    """Take some steps on one side and print the peak memory of this process in MiB."""
    net = NETS[name]
    model = h2learn.load_model(net.path)
    batches = _samples(model, None, WARM_UP, net.batch)
    if side == "simulator":
        source = next(iter(model.inputs))
        with _program(model, net).session() as session:
            for x, label in batches:
                session.run({source: x, "label": label})
    else:
        import torch
        from torch_snn import torch_network

        other = torch_network(net.path, model.parameters)
        for x, label in batches:
            other.step(torch.from_numpy(x), torch.from_numpy(label).long())
    click.echo(_own_peak_mib())


def _own_peak_mib() -> float:
    """Return the most memory that this process has held; after a fork Linux's rusage would count its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / (1 << 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _program(model: h2learn.Model, net: Net) -> h2learn.Program:
    recipe = replace(model.train or h2learn.Train(), keep_gradients=False)
    return h2learn.compile(model, train=recipe, batch=net.batch)


def _peak_mib(name: str, side: str, threads: int) -> float:
    found = _own_process(f"--net={name}", f"--side={side}", f"--threads={threads}")
    return float(found)


def _samples(
    model: h2learn.Model, data: str | None, count: int, batch: int
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]]:
    """Return batches of images and labels, from the start of the training images again where there are too few."""
    shape = next(iter(model.inputs.values())).shape[1:]
    if data is None:
        rng = np.random.default_rng(0)
        images, labels = rng.random((batch, *shape), dtype=np.float32), rng.integers(CLASSES, size=batch)
        return [(images, labels.astype(np.int32))] * count
    found = h2learn.load_npz(data, shape)
    picked = np.arange(count * batch).reshape(count, batch) % len(found.x_train)
    return [(found.x_train[rows], found.y_train[rows]) for rows in picked]


@click.command()
@click.option("--net", "nets", multiple=True, type=click.Choice(list(NETS)), help="Networks (default: all).")
@click.option("--threads", "counts", multiple=True, type=int, help="Numbers of cores (default: 1 and 2).")
@click.option("--steps", default=30, show_default=True, help="Steps that are timed, of each side.")
@click.option("--mnist", metavar="FILE.npz", help="Images for mlp and conv.")
@click.option("--cifar", metavar="FILE.npz", help="Images for vgg5 and vgg.")
@click.option("--side", type=click.Choice(SIDES), help="Print the peak memory of one side of one network, in MiB.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    nets: tuple[str, ...],
    counts: tuple[int, ...],
    steps: int,
    mnist: str | None,
    cifar: str | None,
    side: str | None,
    as_json: bool,
) -> None:
    """Compare the time of training steps with PyTorch's."""
    chosen, files = nets or tuple(NETS), {"mnist": mnist, "cifar": cifar}
    threads = counts or (1, 2)
    if side is not None:
        _bind(threads[0])
        run_side(chosen[0], side)
        return
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
    arguments = ["--json", f"--threads={threads}", f"--steps={steps}", *(f"--net={name}" for name in nets)]
    arguments += [f"--{name}={file}" for name, file in files.items() if file is not None]
    return [Timing(**timing) for timing in json.loads(_own_process(*arguments))]


def _own_process(*arguments: str) -> str:
    """Return what this script prints with other arguments; ends with its exit code where it fails."""
    found = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        sys.exit(found.returncode)
    return found.stdout


def _table(timings: list[Timing]) -> str:
    lines = [
        "net   threads  simulator ms  PyTorch ms  ratio (p10-p90)     processor  SpikingJelly  functional"
        "  spikes  live gradients  memory MiB (ratio)"
    ]
    for t in timings:
        spread = f"{t.ratio:5.2f} ({t.ratio_p10:.2f}-{t.ratio_p90:.2f})"
        jelly = "-" if t.spikingjelly_ratio is None else f"{t.spikingjelly_ratio:.2f}"
        memory = f"{t.simulator_mib:.0f} / {t.torch_mib:.0f} ({t.simulator_mib / t.torch_mib:.2f})"
        lines.append(
            f"{t.net:5} {t.threads:7}  {t.simulator_ms:12.1f}  {t.torch_ms:10.1f}  {spread:18}"
            f"  {t.processor_ratio:9.2f}  {jelly:>12}  {t.functional_ratio:10.2f}"
            f"  {t.spikes:6.3f}  {t.gradients:14.3f}  {memory}"
        )
    for threads in sorted({t.threads for t in timings}):
        ratios = [t.ratio for t in timings if t.threads == threads]
        lines.append(f"geometric mean of the ratios, threads {threads}: {np.exp(np.log(ratios).mean()):.2f}")
    if any(t.spikingjelly_ratio is None for t in timings):
        lines.append("SpikingJelly is not installed: not measured")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except h2learn.H2LearnError as error:
        sys.exit(error.render())
