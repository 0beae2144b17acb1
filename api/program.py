"""Compiled programs: compile, save, load, run once, or keep a device from run to run."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.energy_profile import EnergyProfile, load_profile
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import Machine
from h2learn.backends.h2learn.object_file import ObjectFile, read_object
from h2learn.compiler.autodiff.spec import Train
from h2learn.compiler.driver import Recipe, compile_program
from h2learn.compiler.manager import ManagerOptions
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.model import Model, StepInterface, TensorSpec
from h2learn.models import limits_text, recipe_of
from h2learn.optional import require_torch
from h2learn.runtime.counters import RunReport
from h2learn.runtime.device import Device, DeviceResult, Port
from h2learn.runtime.loader import LoadedProgram, load
from h2learn.runtime.sanitizers import CHECKS
from h2learn.runtime.trace import write_trace
from h2learn.step_names import Request, read_step, translate

if TYPE_CHECKING:
    from torch import Tensor

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Arrays = Mapping[str, npt.ArrayLike]

_NUMPY_DTYPES = {"bits": "bool", "i32": "int32", "u8": "uint8"}


@dataclass(frozen=True)
class Execution:
    """How to simulate.

    ``execute``: ``"fast"`` kernels or the plain ``"reference"``, which give the same bits. ``timing=False``: only the
    numbers, no cycles, counters or energy. ``sanitize``: any of ``race uninit bounds``. ``trace``: keep a timeline.
    ``max_instructions``: fault when more are fetched.
    """

    execute: str = "fast"
    timing: bool = True
    sanitize: frozenset[str] = frozenset()
    trace: bool = False
    max_instructions: int | None = None

    def __post_init__(self) -> None:
        if self.execute not in ("fast", "reference"):
            raise H2LearnError(f"expected execution 'fast' or 'reference', found {self.execute!r}")
        unknown = sorted(self.sanitize - CHECKS)
        if unknown:
            raise H2LearnError(f"there is no sanitizer {unknown[0]!r}", hint=f"known: {', '.join(sorted(CHECKS))}")
        limit = self.max_instructions
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise H2LearnError(f"expected a positive number of instructions, found {limit!r}")


class Tensors(Mapping[str, Floats]):
    """Arrays by name, read from the device when asked for, and kept."""

    def __init__(self, source: Mapping[str, Array]) -> None:
        self._source = source
        self._kept: dict[str, Floats] = {}

    def __getitem__(self, name: str) -> Floats:
        if name not in self._kept:
            self._kept[name] = self._source[name].astype(np.float32)
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def keep_all(self) -> None:
        """Read everything that was not read yet, before the device changes it."""
        for name in self:
            self[name]


@dataclass(frozen=True, eq=False)
class Result:
    """What one run gave, arrays in the model file's names, shapes and order.

    ``loss`` is None for inference; otherwise it is also ``outputs["loss"]`` unless the model has such an output.
    ``gradients`` are those of the mean loss over the samples given; ``parameters`` are the values after the update.
    ``report`` holds all counters.
    """

    outputs: dict[str, Array]
    loss: float | None
    gradients: Tensors
    parameters: Tensors
    report: RunReport = field(repr=False)

    @property
    def cycles(self) -> int:
        """Cycles from the first instruction to the end of the last."""
        return self.report.cycles

    @property
    def energy_pj(self) -> float:
        """Energy in picojoules; ``report.energy.assumptions`` says what it rests on."""
        return self.report.energy_pj

    @property
    def stats(self) -> dict[str, Any]:
        """All counters as plain data: per engine, memory, layer, instruction."""
        return self.report.to_dict()


class Program:
    """A compiled program. Immutable; ``run`` starts from its initial data every time."""

    def __init__(self, object_file: ObjectFile, name: str = "program") -> None:
        self.object_file = object_file
        self.name = name
        self.loaded: LoadedProgram = load(object_file, name=name)
        self._initial = Device(self.loaded, sanitize=())

    @property
    def machine(self) -> Machine:
        """The machine the program is for."""
        return self.loaded.machine

    @property
    def precision(self) -> str:
        """The storage type, ``fp32`` or ``fp16``."""
        return str(self.loaded.note["precision"])

    @property
    def batch(self) -> int:
        """The largest number of samples of one run."""
        return int(self.loaded.note["batch"])

    @property
    def time_steps(self) -> int:
        """The number of time steps."""
        return int(self.loaded.note["time_steps"])

    @property
    def training(self) -> bool:
        """True for a training step, False for inference."""
        return bool(self.loaded.note["training"])

    @property
    def mapping(self) -> str:
        """The tile limits the program was compiled with, as text."""
        return str(self.loaded.note.get("mapping", ""))

    @property
    def learning_rate(self) -> float | None:
        """The learning rate of the recipe, used when ``run`` is given none."""
        rate = self.loaded.note.get("learning_rate")
        return float(rate) if isinstance(rate, int | float) else None

    @property
    def step(self) -> StepInterface | None:
        """The names of the file that this training step comes from, None when the file is a network."""
        return read_step(self.loaded.note)

    @property
    def inputs(self) -> dict[str, TensorSpec]:
        """What ``run`` takes: inputs, and the label of a training step (and its parameters, if they are inputs)."""
        found = {n: _spec(p) for n, p in self._initial.inputs.items()}
        if self.step is None:
            return found
        logits = next(iter(self._initial.outputs.values())).source
        return self.step.input_specs(found, self._parameter_specs, logits)

    @property
    def outputs(self) -> dict[str, TensorSpec]:
        """What ``run`` gives back."""
        found = {n: _spec(p) for n, p in self._initial.outputs.items()}
        return found if self.step is None else self.step.output_specs(found, self._parameter_specs)

    @property
    def _parameter_specs(self) -> dict[str, TensorSpec]:
        return {name: TensorSpec(value.shape) for name, value in self.parameters.items()}

    @property
    def parameters(self) -> Tensors:
        """The initial parameters by name."""
        return Tensors(self._initial.parameters)

    def to_torch_state_dict(self, parameters: Mapping[str, Floats] | None = None) -> dict[str, Tensor]:
        """Return ``parameters`` (default: the program's) as PyTorch tensors by name, for ``load_state_dict``.

        Names are the model file's; those of a model from :func:`h2learn.from_torch` are the module's. Buffers of
        neurons are not among them (``strict=False``). Raises H2LearnError when PyTorch is missing.
        """
        torch = require_torch()
        values = self.parameters if parameters is None else parameters
        return {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in values.items()}

    def save(self, path: str | Path) -> None:
        """Write the ``.h2x`` file atomically; raises H2LearnError when that is not possible."""
        self.object_file.save(path)

    def run(
        self,
        inputs: Arrays,
        parameters: Arrays | None = None,
        *,
        lr: float | None = None,
        seed: int = 0,
        execution: Execution | None = None,
        profile: str | Path | EnergyProfile | None = None,
    ) -> Result:
        """Run once from the program's initial data (with ``parameters``, if given, in place of its own).

        ``inputs``: arrays by name with 1 to ``batch`` samples; samples that are absent count nowhere. ``lr`` replaces
        the recipe's learning rate; ``seed`` is that of random encodings; ``profile``: the energies per operation, by
        name, path of a TOML file, or as an EnergyProfile (default: the machine's).
        Raises H2LearnError for names, shapes, dtypes and values that do not fit, and for every fault of the program.
        """
        with self.session(seed=seed, execution=execution, profile=profile) as session:
            if parameters is not None:
                session.set_parameters(parameters)
            return session.run(inputs, lr=lr)

    def session(
        self,
        *,
        seed: int = 0,
        execution: Execution | None = None,
        profile: str | Path | EnergyProfile | None = None,
    ) -> Session:
        """Return a device that keeps parameters, optimizer state and sample counter from run to run."""
        return Session(self, seed, execution or Execution(), None if profile is None else load_profile(profile))


class Session:
    """A device with a program; use it in a ``with`` statement. After the statement it cannot run any more."""

    def __init__(self, program: Program, seed: int, execution: Execution, profile: EnergyProfile | None = None) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
            raise H2LearnError(f"expected a seed from 0 to 2**64 - 1, found {seed!r}")
        self.program = program
        self._device: Device | None = Device(
            program.loaded,
            execute=execution.execute,
            timing=execution.timing,
            sanitize=execution.sanitize,
            trace=execution.trace,
            max_instructions=execution.max_instructions,
            profile=profile,
        )
        self._next: dict[str, int] = {"seed": seed, "step": 0, "first_sample": 0}
        self._last: weakref.ref[Result] | None = None
        step = program.step
        self._known: set[str] = set(step.parameters) if step is not None and step.complete else set()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keep_last()
        self._last = None
        self._device = None

    @property
    def device(self) -> Device:
        """The device; raises H2LearnError after the session has ended."""
        if self._device is None:
            raise H2LearnError("the session has ended", hint="use it inside its with statement")
        return self._device

    @property
    def parameters(self) -> dict[str, Floats]:
        """Copies of the parameters as they are now."""
        return {name: np.array(value, dtype=np.float32) for name, value in self.device.parameters.items()}

    @property
    def states(self) -> dict[str, Floats]:
        """Copies of the optimizer state as it is now."""
        return {name: np.array(value, dtype=np.float32) for name, value in self.device.states.items()}

    def set_parameters(self, parameters: Arrays) -> None:
        """Replace parameters by name; raises H2LearnError for unknown names, wrong shapes and values not finite."""
        if not isinstance(parameters, Mapping):
            raise H2LearnError(f"expected parameters by name, found {type(parameters).__name__}")
        self._write("parameter", parameters)

    def restore(self, parameters: Arrays, states: Arrays, *, steps: int, samples: int) -> None:
        """Put parameters, optimizer state and counters back as they were after ``steps`` runs over ``samples``."""
        self._write("parameter", parameters)
        self._write("state", states)
        self._next |= {"step": steps, "first_sample": samples}

    def run(self, inputs: Arrays, *, lr: float | None = None) -> Result:
        """Run once on what the device holds. Raises H2LearnError as ``Program.run`` does."""
        if not isinstance(inputs, Mapping):
            raise H2LearnError(f"expected inputs by name, found {type(inputs).__name__}")
        step = self.program.step
        request = Request(dict(inputs), {}, lr) if step is None else translate(step, inputs, lr)
        self._keep_last()
        self.set_parameters(request.parameters)
        if step is not None and (missing := [name for name in step.parameters if name not in self._known]):
            raise H2LearnError(
                f"expected the parameters among the inputs, found none named {missing[0]!r}",
                hint="the file holds no values for them; a session keeps what it was given once",
            )
        device = self.device
        rate = self.program.learning_rate if request.lr is None else request.lr
        found: DeviceResult = device.run(request.fed, lr=rate, **self._next)
        self._next |= {"step": self._next["step"] + 1, "first_sample": self._next["first_sample"] + found.samples}
        gradients, parameters = Tensors(device.gradients), Tensors(device.parameters)
        outputs = dict(found.outputs)
        if found.loss is not None:
            outputs.setdefault("loss" if step is None else step.loss, np.asarray(found.loss, dtype=np.float32))
        if step is not None:
            outputs |= {new: parameters[name] for name, new in step.parameters.items()}
        result = Result(outputs, found.loss, gradients, parameters, found.report)
        self._last = weakref.ref(result)
        return result

    def write_trace(self, path: str | Path) -> None:
        """Write the timeline of the last run (``Execution(trace=True)``) for Perfetto; raises H2LearnError."""
        write_trace(path, self.program.loaded, self.device.simulator.spans)

    def _write(self, role: str, arrays: Arrays) -> None:
        for name, value in arrays.items():
            array = np.asarray(value)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise H2LearnError(f"{role} {name!r} holds values that are not finite")
            self.device.write(name, array, role)
            if role == "parameter":
                self._known.add(name)

    def _keep_last(self) -> None:
        """Read what the last result has not read yet, if somebody still holds it."""
        result = self._last() if self._last is not None else None
        if result is not None:
            result.gradients.keep_all()
            result.parameters.keep_all()


def _spec(port: Port) -> TensorSpec:
    return TensorSpec(port.source, _NUMPY_DTYPES.get(port.dtype, "float32"), port.bits, port.folded)


def compile(
    model: Model,
    arch: str | Path | Machine = "h2l-v0",
    precision: str = "fp32",
    train: Train | str | None = None,
    batch: int | None = None,
    mapping: str | Mapping[str, int] | TileLimits | None = None,
    *,
    options: ManagerOptions | None = None,
    check_each: bool = False,
) -> Program:
    """Compile a model for a machine.

    ``arch``: the name of a machine, the path of its TOML file, or a Machine. ``precision``: storage type, ``fp32`` or
    ``fp16``. ``train``: a recipe (or the name of a method, for the model file's recipe with it) for a training step,
    None for inference (for a file that is a whole training step: that step). ``batch``: samples per run (default: the
    model's). ``mapping``: caps of tile sizes, as text (``"rows=4,k=8"``) or by name. ``options`` and ``check_each``:
    what to print and check around passes.
    Raises H2LearnError for arguments that cannot be used and models that cannot be compiled.
    """
    if not isinstance(model, Model):
        raise H2LearnError(f"expected a model, found {type(model).__name__}", hint="h2learn.load_model reads one")
    recipe = Recipe(arch, precision, recipe_of(model, train), limits_text(mapping))
    sized = model if batch is None else model.with_batch(batch)
    return Program(compile_program(sized, recipe, options, check_each=check_each), model.name)


def load_program(path: str | Path) -> Program:
    """Read a ``.h2x`` file; raises H2LearnError when it is missing, damaged, or for another instruction set."""
    if not isinstance(path, str | Path):
        raise H2LearnError(f"expected the path of a program, found {type(path).__name__}")
    return Program(read_object(path), Path(path).name)
