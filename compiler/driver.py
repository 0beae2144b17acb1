"""The whole way from a model to a program: choose the passes, run them phase by phase, emit the binary."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from typing import TextIO

from xdsl.dialects import builtin
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import Machine, load_machine
from h2learn.compiler.autodiff.spec import Train
from h2learn.dialects.common import PRECISION_ATTRIBUTE

from .checks import MAC_BUDGET, check_pass, multiply_accumulates
from .manager import ManagerOptions, PassManager
from .model import Model
from .passes.train import TrainPass
from .pipeline import PHASES, load_pass, phase_names
from .universe import new_context

PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class Recipe:
    """What to compile for.

    ``arch``: name of a machine, or path of its TOML file. ``precision``: storage type, ``fp32`` or ``fp16``.
    ``train``: None for an inference program. ``limits``: caps of tile sizes as text (``"rows=4,k=8"``).
    Raises H2LearnError when a value does not exist.
    """

    arch: str = "h2l-v0"
    precision: str = "fp32"
    train: Train | None = None
    limits: str = ""
    machine: Machine = field(init=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise H2LearnError(f"expected precision {' or '.join(PRECISIONS)}, found {self.precision!r}")
        object.__setattr__(self, "machine", load_machine(self.arch))

    def passes(self, last_phase: str = PHASES[-1].name) -> tuple[ModulePass, ...]:
        """Return the configured passes up to and including a phase; raises H2LearnError for an unknown phase."""
        if last_phase not in phase_names():
            raise H2LearnError(f"there is no phase {last_phase!r}", hint=f"phases: {', '.join(phase_names())}")
        names = [
            name
            for phase in PHASES[: phase_names().index(last_phase) + 1]
            for name in phase.passes
            if self._wants(name)
        ]
        return tuple(self._configured(name) for name in names)

    def _wants(self, name: str) -> bool:
        return name != TrainPass.name or self.train is not None

    def _configured(self, name: str) -> ModulePass:
        if name == TrainPass.name and self.train is not None:
            return TrainPass.of(self.train)
        kind = load_pass(name)
        settings = {"arch": self.arch, "precision": self.precision, "limits": self.limits}
        options = {option.name: settings[option.name] for option in fields(kind) if option.name in settings}
        return kind(**options)


def compile_to(
    model: Model,
    recipe: Recipe,
    last_phase: str = "h2",
    options: ManagerOptions | None = None,
    *,
    check_each: bool = False,
    stream: TextIO | None = None,
) -> builtin.ModuleOp:
    """Return the program of ``model`` after a phase, in the language of that phase.

    ``check_each`` runs the program before and after every pass and compares; for a model above the budget the check
    runs on one sample first, and says so. Raises H2LearnError or InternalError as the pass manager does.
    """
    out = stream or sys.stderr
    passes = recipe.passes(last_phase)
    settings = options or ManagerOptions()
    if check_each:
        small = _small_enough(model, out)
        if small is model:
            settings = replace(settings, check=check_pass)
        else:
            PassManager(passes, ManagerOptions(check=check_pass), out).run(new_context(), _start(small, recipe))
    module = _start(model, recipe)
    PassManager(passes, settings, out).run(new_context(), module)
    return module


def _start(model: Model, recipe: Recipe) -> builtin.ModuleOp:
    module = model.module.clone()
    module.attributes[PRECISION_ATTRIBUTE] = builtin.StringAttr(recipe.precision)
    return module


def _small_enough(model: Model, out: TextIO) -> Model:
    work = multiply_accumulates(model.module)
    if work <= MAC_BUDGET:
        return model
    small = model.with_batch(1)
    out.write(
        f"check: {work} multiply-accumulates exceed the budget of {MAC_BUDGET}; checking with a batch of 1 "
        f"({multiply_accumulates(small.module)}) instead\n"
    )
    return small
