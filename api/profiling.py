"""Profiles of programs: run once, then say where cycles, bytes and energy went."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.energy_profile import EnergyProfile, load_profile
from h2learn.program import Arrays, Program
from h2learn.runtime.energy import profile_for
from h2learn.runtime.profile import ProgramProfile, profile_run

SPIKE_PROBABILITY = 0.2


def profile_program(
    program: Program,
    inputs: Arrays | None = None,
    parameters: Arrays | None = None,
    *,
    lr: float | None = None,
    seed: int = 0,
    profile: str | Path | EnergyProfile | None = None,
) -> ProgramProfile:
    """Run a program once and return its profile.

    ``inputs``: as for ``Program.run``; None: seeded random ones, which the profile's notes say. ``parameters`` replace
    the program's own; ``profile``: energies per operation (default: the machine's). Raises H2LearnError as
    ``Program.run`` does.
    """
    energies = profile_for(program.machine) if profile is None else load_profile(profile)
    notes = []
    if inputs is None:
        inputs = random_inputs(program, seed)
        notes.append(
            f"inputs are random (seed {seed}): reals uniform in [0, 1), spikes with probability {SPIKE_PROBABILITY},"
            " labels uniform; the densities are theirs, not those of data"
        )
    if parameters is None:
        notes.append("parameters are those stored in the program; densities change with training")
    result = program.run(inputs, parameters, lr=lr, seed=seed, profile=energies)
    return profile_run(program.loaded, result.report, energies, notes)


def random_inputs(program: Program, seed: int = 0) -> dict[str, npt.NDArray[np.generic]]:
    """Return a full batch of seeded random inputs and labels for a program."""
    rng = np.random.default_rng(seed)
    classes = next((spec.shape[-1] for spec in program.outputs.values() if spec.shape), 1)
    found: dict[str, npt.NDArray[np.generic]] = {}
    for name, spec in program.inputs.items():
        if spec.dtype == "bool":
            found[name] = rng.random(spec.shape) < SPIKE_PROBABILITY
        elif spec.dtype == "int32":
            found[name] = rng.integers(0, classes, spec.shape, dtype=np.int32)
        elif spec.bits:
            found[name] = np.ldexp(rng.integers(0, 1 << spec.bits, spec.shape), -spec.bits).astype(np.float32)
        else:
            found[name] = rng.random(spec.shape, dtype=np.float32)
    return found
