"""``h2learn profile``: where the cycles, bytes and energy of a program go."""

from __future__ import annotations

import json

import click

from h2learn.backends.h2learn.energy_profile import EnergyProfile
from h2learn.checkpoints import read_parameters
from h2learn.profiling import profile_program
from h2learn.program import load_program
from h2learn.runtime.profile_text import profile_text

from .options import profile_option
from .progress import note_first_run
from .run import named_arrays


@click.command()
@click.argument("program")
@click.option("--input", "inputs", multiple=True, metavar="NAME=@FILE", help="Input from .npy or .npz (repeatable).")
@click.option("--params", metavar="FILE", help="Parameters in place of the program's (.safetensors).")
@click.option("--lr", type=float, help="Learning rate (default: the recipe's).")
@click.option("--seed", default=0, show_default=True, help="Seed of random inputs and random encodings.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@profile_option
def profile_(
    program: str,
    inputs: tuple[str, ...],
    params: str | None,
    lr: float | None,
    seed: int,
    as_json: bool,
    profile: EnergyProfile | None,
) -> None:
    """Run PROGRAM (.h2x) once and say where its cycles, bytes and energy went.

    Per layer and phase: cycles, stalls, bytes per memory, energy, densities, roofline. Without --input, seeded random
    inputs are used.
    """
    loaded = load_program(program)
    note_first_run()
    found = profile_program(
        loaded,
        named_arrays(inputs, "--input") or None,
        None if params is None else read_parameters(params),
        lr=lr,
        seed=seed,
        profile=profile,
    )
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else profile_text(found))
