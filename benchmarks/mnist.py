"""Accuracy of a convolutional network trained on MNIST by executing its compiled instructions on the simulator.

``python benchmarks/mnist.py mnist.npz [--precision fp16]`` trains ``examples/mnist.snn`` with one pass over the first
12,000 training images and tests on all test images. It fails (exit code 1) below the accuracy of ``--require``. To
choose hyperparameters use ``--held-out N``, which tests on the last N training images instead.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

import h2learn
from h2learn.compiler.frontends.builder import initial_parameters
from h2learn.compiler.frontends.dsl.reader import read

MODEL = Path(__file__).parents[1] / "examples" / "mnist.snn"
Figures = dict[str, str | int | float]


@click.command()
@click.argument("data", metavar="MNIST.npz")
@click.option("--model", default=str(MODEL), metavar="NET.snn", help="The network (default: examples/mnist.snn).")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--arch", default="h2l-v0", show_default=True, help="Machine.")
@click.option("--limit", default=12_000, show_default=True, help="Training images, from the first.")
@click.option("--epochs", default=1, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Seed of the initial weights and of the sample order.")
@click.option("--held-out", type=int, metavar="N", help="Test on the last N training images.")
@click.option("--require", default=0.95, show_default=True, help="Fail below this accuracy.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(
    data: str,
    model: str,
    precision: str,
    arch: str,
    limit: int,
    epochs: int,
    batch: int,
    seed: int,
    held_out: int | None,
    require: float,
    as_json: bool,
) -> None:
    """Train on the simulator, test, print accuracy, cycles and energy."""
    network = h2learn.load_model(model)
    gain = read(Path(model).read_text(encoding="utf-8"), model).init.gain
    network = network.with_parameters(initial_parameters(network.network, gain, seed))
    samples = h2learn.load_npz(data, next(iter(network.inputs.values())).shape[1:])
    if held_out is not None:
        if not 0 < held_out <= len(samples.x_train) - limit:
            raise h2learn.H2LearnError(f"expected 1 to {len(samples.x_train) - limit} held-out images, got {held_out}")
        samples = replace(samples, x_test=samples.x_train[-held_out:], y_test=samples.y_train[-held_out:])
    started = time.perf_counter()
    history = h2learn.train(
        network,
        samples,
        epochs,
        batch=batch,
        arch=arch,
        precision=precision,
        train=replace(network.train or h2learn.Train(), keep_gradients=False),
        seed=seed,
        limit=limit,
    )
    seconds = time.perf_counter() - started
    last, trained = history.epochs[-1], sum(epoch.samples for epoch in history.epochs)
    accuracy = history.test_accuracy or 0.0
    figures: Figures = {
        "model": network.name,
        "machine": arch,
        "precision": precision,
        "seed": seed,
        "training_images": trained,
        "test_images": len(samples.x_test),
        "test_accuracy": accuracy,
        "training_loss": last.loss,
        "cycles_per_sample": sum(epoch.cycles for epoch in history.epochs) / trained,
        "energy_uj_per_sample": sum(epoch.energy_pj for epoch in history.epochs) / trained / 1e6,
        "wall_seconds": seconds,
    }
    click.echo(json.dumps(figures, indent=2) if as_json else _text(figures))
    if accuracy < require:
        sys.exit(f"test accuracy {accuracy:.2%} is below {require:.2%}")


def _text(figures: Figures) -> str:
    return (
        f"{figures['model']} {figures['precision']} on {figures['machine']}, seed {figures['seed']},"
        f" {figures['training_images']:,} training images: test accuracy {figures['test_accuracy']:.2%}"
        f" ({figures['test_images']:,} images), mean training loss {figures['training_loss']:.4f}\n"
        f"{figures['cycles_per_sample']:,.0f} cycles and {figures['energy_uj_per_sample']:.2f} uJ per training sample;"
        f" {figures['wall_seconds']:.1f} s for training and test"
    )


if __name__ == "__main__":
    try:
        main()
    except h2learn.H2LearnError as error:
        sys.exit(error.render())
