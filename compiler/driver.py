"""The whole way from a model to a program: choose the passes, run them phase by phase, emit the binary."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TextIO

import numpy as np
from xdsl.dialects import builtin
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.emit import emit
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import Machine, load_machine, names
from h2learn.backends.h2learn.object_file import ObjectFile
from h2learn.compiler.autodiff.spec import Train
from h2learn.dialects.common import PRECISION_ATTRIBUTE, get_io, parameter_of_state
from h2learn.dialects.h2 import get_io_symbols
from h2learn.dialects.spike import ops as spike
from h2learn.dialects.spike.base import tensor_type
from h2learn.dialects.spike.interpreter import main_block

from .checks import MAC_BUDGET, check_pass, multiply_accumulates
from .folding import folded
from .manager import ManagerOptions, PassManager
from .model import Model
from .passes.train import TrainPass
from .pipeline import PHASES, load_pass, phase_names
from .universe import new_context

PRECISIONS = ("fp32", "fp16")


@dataclass(frozen=True)
class Recipe:
    """What to compile for.

    ``arch``: name of a machine, path of its TOML file, or a Machine. ``precision``: storage type, ``fp32`` or ``fp16``.
    ``train``: None for an inference program. ``limits``: caps of tile sizes as text (``"rows=4,k=8"``).
    Raises H2LearnError when a value does not exist.
    """

    arch: str | Path | Machine = "h2l-v0"
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
        settings = {"arch": self._arch_text(), "precision": self.precision, "limits": self.limits}
        options = {option.name: settings[option.name] for option in fields(kind) if option.name in settings}
        return kind(**options)

    def _arch_text(self) -> str:
        """Return what a pass option can hold: a name or a path; a Machine without either gets a file."""
        if not isinstance(self.arch, Machine):
            return str(self.arch)
        if self.arch.name in names() and load_machine(self.arch.name) == self.arch:
            return self.arch.name
        folder = Path(tempfile.mkdtemp(prefix="h2learn-"))
        file = folder / f"{self.arch.hash}.toml"
        file.write_text(_toml(self.arch.to_dict()), encoding="utf-8")
        return str(file)


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
    return run_passes(model, recipe, recipe.passes(last_phase), options, check_each=check_each, stream=stream)


def run_passes(
    model: Model,
    recipe: Recipe,
    passes: Sequence[ModulePass],
    options: ManagerOptions | None = None,
    *,
    check_each: bool = False,
    stream: TextIO | None = None,
) -> builtin.ModuleOp:
    """Return the program of ``model`` after the given passes; see ``compile_to``.

    Without the training pass batch norms are folded into their layers first.
    """
    out = stream or sys.stderr
    if passes and not any(isinstance(one, TrainPass) for one in passes):
        model = folded(model)
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


def compile_program(
    model: Model,
    recipe: Recipe,
    options: ManagerOptions | None = None,
    *,
    check_each: bool = False,
    stream: TextIO | None = None,
) -> ObjectFile:
    """Return the binary of ``model``; raises H2LearnError or InternalError as ``compile_to`` does."""
    module = compile_to(model, recipe, "h2", options, check_each=check_each, stream=stream)
    return emit_program(model, module, recipe)


def emit_program(model: Model, module: builtin.ModuleOp, recipe: Recipe) -> ObjectFile:
    """Return the binary of an ``h2`` program, with the model's parameters and the user's names and shapes."""
    model = folded(model) if recipe.train is None else model
    initial = {
        symbol.name: entry.to_device(model.parameters[entry.name]).astype(np.float32)
        for entry, symbol in zip(get_io(module), get_io_symbols(module), strict=True)
        if entry.role == "parameter"
    }
    time_steps, batch = _sizes(model.module)
    program = emit(
        module,
        initial,
        recipe.machine,
        batch=batch,
        time_steps=time_steps,
        model=model.name,
        mapping=recipe.limits,
        **({} if recipe.train is None else {"learning_rate": recipe.train.optimizer.lr}),
        **({} if model.step is None or recipe.train is None else {"step": asdict(model.step)}),
    )
    for entry in program.note["io"]:
        if (shape := _source_shape(model, entry["role"], entry["name"])) is not None:
            entry["source"] = list(shape)
    return program


def _source_shape(model: Model, role: str, name: str) -> tuple[int, ...] | None:
    if role in ("input", "output"):
        return (model.network.inputs if role == "input" else model.network.outputs)[name].shape
    if role in ("parameter", "gradient", "state"):
        return model.parameters[parameter_of_state(name) if role == "state" else name].shape
    return None


def _sizes(module: builtin.ModuleOp) -> tuple[int, int]:
    """Return time steps and batch: an encoder adds the time axis, otherwise inputs have it first."""
    for op in module.walk():
        if isinstance(op, spike.EncodeOp):
            steps, batch, *_ = tensor_type(op.results[0].type).get_shape()
            return steps, batch
    steps, batch, *_ = tensor_type(main_block(module).args[0].type).get_shape()
    return steps, batch


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


def _toml(data: Mapping[str, object]) -> str:
    """Return a machine description as TOML: numbers and strings first, then one table per part."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in data.items() if not isinstance(value, Mapping)]
    for key, value in data.items():
        if isinstance(value, Mapping):
            lines += [f"[{key}]", *(f"{name} = {json.dumps(item)}" for name, item in value.items())]
    return "\n".join(lines) + "\n"
