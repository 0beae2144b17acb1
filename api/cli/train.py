"""``h2learn train``: epochs of the compiled training step on the simulator."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from h2learn.backends.h2learn.energy_profile import EnergyProfile
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.checkpoints import write_parameters
from h2learn.compiler.autodiff.spec import OPTIMIZERS, Train
from h2learn.compiler.model import Model
from h2learn.data import Binning, DataSet, load_digits
from h2learn.files import check_writable
from h2learn.models import recipe_of
from h2learn.program import Execution
from h2learn.training import Interrupted
from h2learn.training import train as train_model

from .model import Target, read_model, target_options
from .options import import_options, profile_option
from .progress import EpochBars, epoch_text, note_first_run


@click.command()
@click.argument("model")
@click.option(
    "--data",
    required=True,
    metavar="FILE",
    help="Images (x_train y_train x_test y_test) or events (.npz, .h5), or 'digits'.",
)
@click.option("--bins", type=int, metavar="T", help="Frames per recording of events (default: the model's time steps).")
@click.option(
    "--bin-by", type=click.Choice(["time", "count"]), help="Frames of equal duration (default) or event count."
)
@click.option("--epochs", default=1, show_default=True, help="Passes over the training data.")
@click.option("--batch", default=32, show_default=True, help="Samples per step.")
@click.option("--lr", type=float, help="Learning rate (default: the model file's).")
@click.option("--schedule", metavar="TEXT", help="Learning rate over time: cosine | step,every=5,decay=0.5 | ...")
@click.option("--optimizer", metavar="NAME", help="sgd, adam or adamw with its defaults (default: the model file's).")
@click.option("--loss", metavar="LOSS", help="Loss (default: the model file's).")
@click.option("--method", metavar="METHOD", help="Training method (default: the model file's).")
@click.option("--params", metavar="FILE", help="Initial parameters (.safetensors).")
@click.option("--limit", type=int, help="Use only the first so many training samples.")
@click.option("--seed", default=0, show_default=True, help="Seed of sample order and random encodings.")
@click.option("--checkpoint", metavar="FILE", help="Write the state here after every epoch and on Ctrl-C.")
@click.option("--checkpoint-every", type=int, metavar="STEPS", help="Also write it after every so many steps.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint, bit for bit.")
@click.option("--no-test", is_flag=True, help="Do not evaluate on the test images.")
@click.option("--functional", is_flag=True, help="Only the numbers: no timing, no counters.")
@click.option("-o", "--output", metavar="FILE", help="Write the trained parameters here (.safetensors).")
@click.option("--json", "as_json", is_flag=True, help="Print the history as JSON.")
@target_options
@import_options
@profile_option
def train(
    model: str,
    data: str,
    bins: int | None,
    bin_by: str | None,
    epochs: int,
    batch: int,
    lr: float | None,
    schedule: str | None,
    optimizer: str | None,
    loss: str | None,
    method: str | None,
    params: str | None,
    limit: int | None,
    seed: int,
    checkpoint: str | None,
    checkpoint_every: int | None,
    resume: bool,
    no_test: bool,
    functional: bool,
    output: str | None,
    as_json: bool,
    target: Target,
    reading: dict[str, Any],
    profile: EnergyProfile | None,
) -> int:
    """Train MODEL by running its compiled program on the simulator."""
    if resume and checkpoint is None:
        raise H2LearnError("--resume needs --checkpoint FILE")
    if output is not None:
        check_writable(output)
    loaded = read_model(model, None, params, reading)
    samples: DataSet | str = load_digits() if data == "digits" else data
    note_first_run()
    with EpochBars(epochs, epoch_text, quiet=as_json) as bars:
        try:
            history = train_model(
                loaded,
                samples,
                epochs,
                batch=batch,
                lr=lr,
                schedule=schedule,
                arch=target.arch,
                precision=target.precision,
                train=_recipe(loaded, method, optimizer, loss),
                mapping=target.mapping,
                seed=seed,
                limit=limit,
                binning=_binning(bins, bin_by),
                evaluate=not no_test,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                resume=resume,
                observe=bars,
                execution=Execution(timing=not functional),
                profile=profile,
            )
        except Interrupted as stop:
            return _interrupted(stop.checkpoint)
    if output is not None:
        write_parameters(output, history.parameters)
    energy = None if history.last is None or functional else history.last.report.energy
    if as_json:
        data_of = {"epochs": [asdict(epoch) for epoch in history.epochs], "losses": history.losses}
        basis = {} if energy is None else {"profile": energy.profile, "assumptions": list(energy.assumptions)}
        click.echo(json.dumps(data_of | {"energy": basis}, indent=2))
    elif energy is not None:
        click.echo(energy.summary)
    return 0


def _recipe(model: Model, method: str | None, optimizer: str | None, loss: str | None) -> Train:
    recipe = recipe_of(model, method) or model.train or Train()
    if loss is not None:
        recipe = replace(recipe, loss=loss)
    if optimizer is None:
        return recipe
    if optimizer not in OPTIMIZERS:
        raise H2LearnError(f"there is no optimizer {optimizer!r}", hint=f"known optimizers: {', '.join(OPTIMIZERS)}")
    return replace(recipe, optimizer=OPTIMIZERS[optimizer]())


def _binning(bins: int | None, rule: str | None) -> Binning | None:
    if bins is None and rule is not None:
        raise H2LearnError("--bin-by needs --bins T")
    return None if bins is None else Binning(bins, rule or "time")


def _interrupted(checkpoint: Path | None) -> int:
    if checkpoint is None:
        click.echo("\ninterrupted; nothing was kept (--checkpoint FILE keeps the state)", err=True)
    else:
        click.echo(f"\ninterrupted; {checkpoint} holds the state, --resume continues from it", err=True)
    return 130
