"""What all dialects share: the io table of a module, locations, and the signature of an interpreter.

Every dialect package has ``interpreter.py`` with ``interpret(module, arguments) -> results``: positional lists in the
order of the io table, dense NumPy arrays in device shape (spikes and masks ``bool``, winners ``uint8``, labels
``int32``, run scalars ``int32[8]``, everything real ``float32`` — already rounded to storage where the type says so).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from xdsl.dialects import builtin
from xdsl.ir import Attribute, Operation

Array = npt.NDArray[np.generic]
Interpreter = Callable[[builtin.ModuleOp, Sequence[Array]], list[Array]]

IO_ATTRIBUTE = "h2learn.io"
PRECISION_ATTRIBUTE = "h2learn.precision"
GRADIENT_SCALE_ATTRIBUTE = "h2learn.gradient_scale"
"""Training programs: the float64 factor that results with role ``gradient`` carry (the loss scale)."""

GROUPS_ATTRIBUTE = "h2learn.groups"
"""Training programs from ``lut`` on: the samples of every group that goes through a training step (an array)."""

HEAD_ATTRIBUTE = "h2learn.head"
"""Training programs from ``lut`` on: how many of the last layers with weights are a part of their own (else absent)."""

ENTRY_ATTRIBUTE = "h2learn.entry"
"""Training programs from ``lut`` on: present where what comes before the first look-up is a part of its own."""

SHORT_JOBS_ATTRIBUTE = "h2learn.short_jobs"
"""Training programs from ``lut`` on: present where backward and update work gives way to other streams soon."""

ARGUMENT_ROLES = ("input", "label", "parameter", "state", "scalars")
RESULT_ROLES = ("output", "loss", "gradient", "parameter", "state")


@dataclass(frozen=True)
class IoEntry:
    """One argument or result of ``@main``: device array = ``source.reshape(view).transpose(perm)``.

    Empty ``view`` and ``perm`` mean that source and device array are the same. A result with role ``parameter`` or
    ``state`` replaces the argument of that name; one with role ``gradient`` belongs to the parameter of that name.
    ``bits``: the input holds multiples of ``2^-bits`` from 0 to below 1 (0: any reals).
    """

    name: str
    role: str
    view: tuple[int, ...] = ()
    perm: tuple[int, ...] = ()
    bits: int = 0

    def to_device(self, source: Array) -> Array:
        """Return ``source`` in device order; it holds the values of the argument's type, whose shape may group axes."""
        viewed = source.reshape(self.view) if self.view else source
        return np.ascontiguousarray(viewed.transpose(self.perm)) if self.perm else viewed

    def to_source(self, device: Array, source_shape: Sequence[int]) -> Array:
        """Return a device array (of any shape with the right number of elements) in the user's ``source_shape``."""
        if not self.perm:
            return np.ascontiguousarray(device).reshape(source_shape)
        viewed = np.empty(source_shape, dtype=np.bool_).reshape(self.view or tuple(source_shape)).shape
        ordered = device.reshape([viewed[axis] for axis in self.perm])
        return np.ascontiguousarray(ordered.transpose(np.argsort(self.perm))).reshape(source_shape)


def set_io(module: builtin.ModuleOp, entries: Sequence[IoEntry]) -> None:
    """Attach the io table: arguments of ``@main`` first, then its results."""
    module.attributes[IO_ATTRIBUTE] = builtin.ArrayAttr(
        builtin.DictionaryAttr(
            {
                "name": builtin.StringAttr(entry.name),
                "role": builtin.StringAttr(entry.role),
                "view": builtin.DenseArrayBase.from_list(builtin.i64, list(entry.view)),
                "perm": builtin.DenseArrayBase.from_list(builtin.i64, list(entry.perm)),
                **({"bits": builtin.IntAttr(entry.bits)} if entry.bits else {}),
            }
        )
        for entry in entries
    )


def get_io(module: builtin.ModuleOp) -> list[IoEntry]:
    """Return the io table; raises ValueError when the module has none."""
    attribute = module.attributes.get(IO_ATTRIBUTE)
    if not isinstance(attribute, builtin.ArrayAttr):
        raise ValueError(f"the module has no {IO_ATTRIBUTE} table")
    return [_entry(item) for item in attribute]


def state_name(kind: str, parameter: str) -> str:
    """Return the io name of an optimizer's buffer: its ``kind`` (a word) and the parameter that it belongs to."""
    return f"{kind}.{parameter}"


def parameter_of_state(name: str) -> str:
    """Return the parameter that the optimizer's buffer ``name`` belongs to."""
    return name.partition(".")[2]


def precision(module: builtin.ModuleOp) -> str:
    """Return the storage type of the module, ``"f32"`` or ``"f16"``."""
    attribute = module.attributes.get(PRECISION_ATTRIBUTE)
    return "f16" if isinstance(attribute, builtin.StringAttr) and attribute.data == "fp16" else "f32"


def groups_of(module: builtin.ModuleOp) -> tuple[int, ...]:
    """Return the samples of every group that goes through a training step, nothing for an inference program."""
    attribute = module.attributes.get(GROUPS_ATTRIBUTE)
    return tuple(int(size) for size in attribute.iter_values()) if isinstance(attribute, builtin.DenseArrayBase) else ()


def set_groups(module: builtin.ModuleOp, sizes: Sequence[int]) -> None:
    """Say how many samples every group of a training program has."""
    module.attributes[GROUPS_ATTRIBUTE] = builtin.DenseArrayBase.from_list(builtin.i64, list(sizes))


def head_of(module: builtin.ModuleOp) -> int:
    """Return how many of the last layers with weights are a part of their own."""
    attribute = module.attributes.get(HEAD_ATTRIBUTE)
    return attribute.data if isinstance(attribute, builtin.IntAttr) else 0


def apart_of(module: builtin.ModuleOp) -> tuple[str, ...]:
    """Return which of the parts entry and head a training program has."""
    parts = {"entry": ENTRY_ATTRIBUTE, "head": HEAD_ATTRIBUTE}
    return tuple(part for part, attribute in parts.items() if attribute in module.attributes)


def has_short_jobs(module: builtin.ModuleOp) -> bool:
    """Whether backward and update work gives way to other streams soon."""
    return SHORT_JOBS_ATTRIBUTE in module.attributes


def file_location(file: str, line: int, column: int) -> builtin.FileLineColLoc:
    """Return the location attribute of a place in a source file."""
    return builtin.FileLineColLoc(builtin.StringAttr(file), builtin.IntAttr(line), builtin.IntAttr(column))


def source_of(op: Operation) -> str:
    """Return where an operation came from: ``file:line:col`` as far as known, several joined by ``, ``, or nothing."""
    return ", ".join(dict.fromkeys(_sources(op.location)))


def _sources(location: Attribute) -> list[str]:
    if isinstance(location, builtin.FileLineColLoc):
        known = [str(number.data) for number in (location.line, location.column) if number.data]
        return [":".join([location.filename.data, *known])]
    if isinstance(location, builtin.FusedLoc) and isinstance(location.locations, builtin.ArrayAttr):
        return [source for inner in location.locations for source in _sources(inner)]
    return []


def _entry(item: Attribute) -> IoEntry:
    if not isinstance(item, builtin.DictionaryAttr):
        raise ValueError(f"{IO_ATTRIBUTE} must hold dictionaries")

    def text(key: str) -> str:
        value = item.data[key]
        assert isinstance(value, builtin.StringAttr)
        return value.data

    def numbers(key: str) -> tuple[int, ...]:
        value = item.data.get(key)
        return tuple(int(v) for v in value.iter_values()) if isinstance(value, builtin.DenseArrayBase) else ()

    bits = item.data.get("bits")
    resolution = bits.data if isinstance(bits, builtin.IntAttr) else 0
    return IoEntry(text("name"), text("role"), numbers("view"), numbers("perm"), resolution)
