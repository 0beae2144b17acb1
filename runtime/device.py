"""The host's side of a program: named arrays in the user's order, to and from device memory."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.energy_profile import EnergyProfile
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.numerics import in_planes
from h2learn.backends.h2learn.object_file import Symbol

from .counters import NonFinite, RunReport
from .loader import LoadedProgram
from .operation import Operand
from .sanitizers import CHECKS
from .simulator import Simulator

Array = npt.NDArray[np.generic]
Shape = tuple[int, ...]

FED = ("input", "label")  # roles that every run must be given
_DTYPES: dict[str, str] = {"f32": "<f4", "f16": "<f2", "i32": "<i4", "u8": "u1", "bits": "?"}
_LR, _VALID, _STEP, _SEED, _FIRST = (0, "<f"), (4, "<I"), (8, "<I"), (16, "<Q"), (24, "<Q")


@dataclass(frozen=True)
class Port:
    """One entry of the program's io table.

    ``shape``: device shape; device array = ``source.reshape(view).transpose(perm).reshape(shape)``; ``source``: the
    user's shape. ``batch_axis``: the axis of samples in the user's array, None for what has no samples.
    ``folded``: what the first dimension of the user's array is made of, time steps and -1 for the samples; then
    ``batch_axis`` counts in the array where they are two (empty: it is one dimension).
    ``shadow``: its storage copy, which lies in planes of ``shadow_plane`` channels (0: all together).
    ``bits``: what it holds are multiples of ``2^-bits`` from 0 to below 1 (0: any reals).
    """

    name: str
    role: str
    symbol: Symbol
    dtype: str
    shape: Shape
    view: Shape
    perm: Shape
    source: Shape
    batch_axis: int | None
    shadow: Symbol | None
    shadow_plane: int = 0
    bits: int = 0
    folded: Shape = ()

    @property
    def unfolded(self) -> Shape:
        """The user's shape with time and samples as dimensions of their own."""
        return (*self.lead(self.source[0]), *self.source[1:]) if self.folded else self.source

    def lead(self, size: int) -> Shape:
        """Return what a folded first dimension of ``size``, a multiple of the time steps, is made of."""
        return tuple(size // max(self.folded) if n == -1 else n for n in self.folded)


class LazyArrays(Mapping[str, Array]):
    """Arrays by name, each read from device memory when asked for (as it is then)."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Array]) -> None:
        self._names = tuple(names)
        self._read = read

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class DeviceResult:
    """One run: ``outputs`` in the user's order for the ``samples`` given, ``loss`` if the program has one."""

    outputs: dict[str, Array]
    loss: float | None
    samples: int
    report: RunReport


class Device:
    """A simulator with a loaded program. Memory keeps its contents from run to run until ``reset``.

    ``shapes``: the user's shapes of parameters and inputs by name, where they differ from what ``view`` and ``perm``
    give (a weight matrix behind a flattened map). The other arguments are those of :class:`Simulator`.
    """

    def __init__(
        self,
        program: LoadedProgram,
        *,
        shapes: Mapping[str, Sequence[int]] | None = None,
        execute: str = "fast",
        timing: bool = True,
        sanitize: Iterable[str] = CHECKS,
        trace: bool = False,
        max_instructions: int | None = None,
        break_at: int | None = None,
        profile: EnergyProfile | None = None,
    ) -> None:
        self.program = program
        self.simulator = Simulator(
            program,
            execute=execute,
            timing=timing,
            sanitize=sanitize,
            trace=trace,
            max_instructions=max_instructions,
            break_at=break_at,
            profile=profile,
        )
        self.memories = self.simulator.memories
        self.batch = int(program.note.get("batch", 1))
        self.gradient_scale = float(program.note.get("gradient_scale", 1.0))
        self._arguments: dict[tuple[str, str], Port] = {}
        self._results: dict[tuple[str, str], Port] = {}
        for entry in program.note.get("io", []):
            self._add_port(entry, shapes or {})
        self._scalars = next((p for (role, _), p in self._arguments.items() if role == "scalars"), None)
        self._poisoned: list[NonFinite] = []

    @property
    def inputs(self) -> dict[str, Port]:
        """What a run must be given: inputs and labels by name."""
        return {name: port for (role, name), port in self._arguments.items() if role in FED}

    @property
    def outputs(self) -> dict[str, Port]:
        """The program's outputs by name."""
        return {name: port for (role, name), port in self._results.items() if role == "output"}

    @property
    def parameters(self) -> LazyArrays:
        """Parameters by name, float32 in the user's order, as they are in memory."""
        return self._lazy("parameter")

    @property
    def states(self) -> LazyArrays:
        """Optimizer state by name, float32 in the user's order."""
        return self._lazy("state")

    @property
    def gradients(self) -> LazyArrays:
        """Gradients by parameter name, with the loss scale divided out, as the last run left them."""
        return self._lazy("gradient")

    def reset(self) -> None:
        """Put the program's initial data back: parameters, zero states and scalars."""
        self.program.place_image(self.memories)

    def write(self, name: str, array: npt.ArrayLike, role: str | None = None) -> int:
        """Store an array in the user's order; returns how many samples it had (the batch for what has none).

        Raises H2LearnError for an unknown name, a wrong shape, more samples than the batch or none, a dtype that is not
        numeric, labels that are no 32-bit integers and spikes other than 0 and 1.
        """
        port = self._find(self._arguments, name, role)
        values = _numeric(array, port)
        _check_bits(values, port)
        samples = self._check_shape(port, values.shape)
        axis = port.batch_axis
        if port.folded:
            values = values.reshape(*port.lead(values.shape[0]), *values.shape[1:])
        if axis is not None and samples < self.batch:
            missing = [(0, self.batch - samples if index == axis else 0) for index in range(values.ndim)]
            values = np.pad(values, missing)
        if port.role in FED and values.dtype.kind == "f":
            broken = int(values.size - np.count_nonzero(np.isfinite(values)))
            if broken:
                self._poisoned.append(NonFinite(-1, port.role, f"{port.role} {name!r}", broken))
        viewed = values.reshape(port.view) if port.view else values
        ordered = viewed.transpose(port.perm) if port.perm else viewed
        device = np.ascontiguousarray(ordered).reshape(port.shape)
        self._store(port.symbol, _encode(device, port.dtype))
        if port.shadow is not None:
            self._store(port.shadow, _encode(in_planes(device, port.shadow_plane), "f16"))
        return samples

    def read(self, name: str, role: str | None = None, samples: int | None = None) -> Array:
        """Return a copy of an array in the user's order; ``samples``: only the first so many.

        Raises H2LearnError for an unknown name and for gradient slots, which have no host form.
        """
        is_result = any(found == name and role in (None, found_role) for found_role, found in self._results)
        port = self._find(self._results if is_result else self._arguments, name, role)
        values = _to_source(self._decode(port), port)
        if port.role == "gradient" and self.gradient_scale != 1.0:
            values = values.astype(np.float32) / np.float32(self.gradient_scale)
        if samples is not None and port.batch_axis is not None:
            values = values.reshape(port.unfolded).take(np.arange(samples), axis=port.batch_axis)
            values = values.reshape(-1, *port.source[1:]) if port.folded else values
        return values

    def run(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        lr: float | None = None,
        step: int | None = None,
        seed: int | None = None,
        first_sample: int | None = None,
    ) -> DeviceResult:
        """Give the inputs (and labels), execute the program once, return its outputs.

        Fewer samples than the batch are legal; the absent ones are zeros and do not count. What is not given of the run
        scalars stays as it is in memory; after the run ``step`` has gone up by 1 and ``first_sample`` by the samples.
        Raises H2LearnError for missing or unknown names, arrays that do not fit, and every fault of the program.
        """
        self._poisoned = []
        samples = self._feed(inputs)
        if self._scalars is not None:
            self._set_scalars(samples, lr, step, seed, first_sample)
        elif lr is not None:
            raise H2LearnError("this program takes no learning rate", hint="it was compiled without train=")
        report = self.simulator.run()
        report.nonfinite[:0] = self._poisoned
        if self._scalars is not None:
            self._advance_scalars(samples)
        self._carry_over()
        outputs = {name: self.read(name, "output", samples) for name in self.outputs}
        loss = next((name for role, name in self._results if role == "loss"), None)
        value = None if loss is None else float(np.asarray(self.read(loss, "loss"), dtype=np.float32).reshape(-1)[0])
        return DeviceResult(outputs, value, samples, report)

    def _add_port(self, entry: Mapping[str, object], shapes: Mapping[str, Sequence[int]]) -> None:
        port = _port(entry, self.program, self.batch, shapes)
        key = (port.role, port.name)
        if port.role in ("output", "loss", "gradient"):
            self._results[key] = port
            return
        self._arguments.setdefault(key, port)
        if port.role in ("parameter", "state"):
            self._results[key] = port

    def _lazy(self, role: str) -> LazyArrays:
        return LazyArrays((n for r, n in self._results if r == role), lambda name: self.read(name, role))

    def _find(self, table: dict[tuple[str, str], Port], name: str, role: str | None) -> Port:
        for (found_role, found), port in table.items():
            if found == name and role in (None, found_role):
                return port
        known = ", ".join(sorted({n for r, n in table if role in (None, r)})) or "none"
        raise H2LearnError(f"the program has no {role or 'array'} {name!r}", hint=f"known names: {known}")

    def _feed(self, inputs: Mapping[str, npt.ArrayLike]) -> int:
        ports = self.inputs
        unknown = [name for name in inputs if name not in ports]
        missing = [name for name in ports if name not in inputs]
        if unknown or missing:
            faults = [f"{name!r} is missing" for name in missing] + [f"{name!r} is unknown" for name in unknown]
            raise H2LearnError(
                f"the inputs do not fit the program: {', '.join(faults)}",
                hint=f"expected: {', '.join(ports) or 'no inputs'}",
            )
        counts = {name: self.write(name, inputs[name], port.role) for name, port in ports.items()}
        sampled = {name: count for name, count in counts.items() if ports[name].batch_axis is not None}
        if len(set(sampled.values())) > 1:
            found = ", ".join(f"{name!r} has {count}" for name, count in sampled.items())
            raise H2LearnError(f"inputs and labels must have as many samples as each other: {found}")
        return next(iter(sampled.values()), self.batch)

    def _check_shape(self, port: Port, shape: Shape) -> int:
        axis, expected = port.batch_axis, port.source
        if port.folded:
            return self._check_folded(port, shape)
        ranked = len(shape) == len(expected)
        if not ranked or any(n != m for i, (n, m) in enumerate(zip(shape, expected, strict=True)) if i != axis):
            wanted = ", ".join(f"N <= {n}" if i == axis else str(n) for i, n in enumerate(expected))
            raise H2LearnError(f"{port.role} {port.name!r} must have the shape [{wanted}], found {list(shape)}")
        if axis is None:
            return self.batch
        if not 1 <= shape[axis] <= self.batch:
            raise H2LearnError(
                f"{port.role} {port.name!r} must have 1 to {self.batch} samples, found {shape[axis]}",
                hint="compile with a larger batch, or split the data",
            )
        return shape[axis]

    def _check_folded(self, port: Port, shape: Shape) -> int:
        steps = max(port.folded)
        if len(shape) != len(port.source) or shape[1:] != port.source[1:] or shape[0] % steps:
            wanted = ", ".join((f"N * {steps} <= {port.source[0]}", *map(str, port.source[1:])))
            raise H2LearnError(f"{port.role} {port.name!r} must have the shape [{wanted}], found {list(shape)}")
        if not 1 <= shape[0] // steps <= self.batch:
            raise H2LearnError(
                f"{port.role} {port.name!r} must have 1 to {self.batch} samples, found {shape[0] // steps}",
                hint="compile with a larger batch, or split the data",
            )
        return shape[0] // steps

    def _store(self, symbol: Symbol, contents: npt.NDArray[np.uint8]) -> None:
        self.memories.view(Operand("DRAM", symbol.address), contents.size)[...] = contents

    def _decode(self, port: Port) -> Array:
        if port.dtype == "slots":
            raise H2LearnError(f"{port.role} {port.name!r} is stored as gradient slots, which the host cannot read")
        size = 32 if port.dtype == "scalars" else _stored_bytes(port.dtype, port.shape)
        raw = self.memories.view(Operand("DRAM", port.symbol.address), size)
        if port.dtype == "scalars":
            return raw.copy()
        if port.dtype == "bits":
            packed = raw.reshape(*port.shape[:-1], -1)
            return np.unpackbits(packed, axis=-1, count=port.shape[-1], bitorder="little").astype(np.bool_)
        values = raw.copy().view(_DTYPES[port.dtype]).reshape(port.shape)
        return values.astype(np.float32) if port.dtype == "f16" else values

    def _set_scalars(
        self, samples: int, lr: float | None, step: int | None, seed: int | None, first: int | None
    ) -> None:
        self._put(_VALID, samples)
        if lr is not None:
            if isinstance(lr, bool) or not isinstance(lr, int | float | np.number) or not math.isfinite(lr):
                raise H2LearnError(f"the learning rate must be a finite number, found {lr!r}")
            with np.errstate(over="ignore"):
                rounded = float(np.float32(lr))
            if not math.isfinite(rounded):
                raise H2LearnError(f"the learning rate {lr!r} is too large for a 32-bit number")
            self._put(_LR, rounded)
        for what, place, value, bits in (
            ("step", _STEP, step, 32),
            ("seed", _SEED, seed, 64),
            ("first sample", _FIRST, first, 64),
        ):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 1 << bits:
                raise H2LearnError(f"the {what} must be an integer from 0 to {(1 << bits) - 1}, found {value!r}")
            self._put(place, int(value))

    def _advance_scalars(self, samples: int) -> None:
        self._put(_STEP, (int(self._get(_STEP)) + 1) & 0xFFFFFFFF)
        self._put(_FIRST, (int(self._get(_FIRST)) + samples) & 0xFFFFFFFFFFFFFFFF)

    def _scalar_bytes(self) -> npt.NDArray[np.uint8]:
        assert self._scalars is not None
        return self.memories.view(Operand("DRAM", self._scalars.symbol.address), 32)

    def _put(self, place: tuple[int, str], value: float) -> None:
        packed = struct.pack(place[1], value)
        self._scalar_bytes()[place[0] : place[0] + len(packed)] = np.frombuffer(packed, dtype=np.uint8)

    def _get(self, place: tuple[int, str]) -> float:
        value: float = struct.unpack_from(place[1], self._scalar_bytes().tobytes(), place[0])[0]
        return value

    def _carry_over(self) -> None:
        """Move results that replace an argument to where the next run reads it, if that is another place."""
        for key, result in self._results.items():
            argument = self._arguments.get(key)
            if argument is not None and argument.symbol != result.symbol:
                size = _stored_bytes(argument.dtype, argument.shape)
                moved = self.memories.view(Operand("DRAM", result.symbol.address), size)
                self._store(argument.symbol, moved)


def _port(entry: Mapping[str, object], program: LoadedProgram, batch: int, shapes: Mapping[str, Sequence[int]]) -> Port:
    name, role, dtype = str(entry["name"]), str(entry["role"]), str(entry["dtype"])
    shape, view, perm = (_ints(entry[key]) for key in ("shape", "view", "perm"))
    shadow = entry.get("shadow")
    sampled = role in (*FED, "output")
    source = _user_shape(entry, shapes, shape, view, perm, program.name)
    steps = int(program.note.get("time_steps", 1))
    folded = _folded(source, shape, view, batch, steps) if sampled else ()
    if folded:
        batch_axis: int | None = folded.index(-1)
    else:
        batch_axis = _batch_axis(source, shape, () if view else perm, batch, steps) if sampled else None
    return Port(
        name,
        role,
        program.symbols[str(entry["symbol"])],
        dtype,
        shape,
        view,
        perm,
        source,
        batch_axis,
        program.symbols[str(shadow)] if shadow else None,
        int(str(entry.get("shadow_plane", 0))),
        int(str(entry.get("bits", 0))),
        folded,
    )


def _user_shape(
    entry: Mapping[str, object], shapes: Mapping[str, Sequence[int]], shape: Shape, view: Shape, perm: Shape, where: str
) -> Shape:
    """Return the user's shape of an array: as given, as the io table says, or as view and perm imply."""
    name, given = str(entry["name"]), entry.get("source")
    if name in shapes and entry["role"] != "output":
        given = list(shapes[name])
    if given is None:
        return _source_shape(shape, view, perm, f"{where}: io {name!r}")
    if not isinstance(given, list) or not all(type(n) is int and n > 0 for n in given):
        raise H2LearnError(f"io {name!r}: the user's shape must be positive integers, found {given!r}", location=where)
    viewed = _source_shape(shape, view, (), where) if view else tuple(given)
    if not math.prod(given) == math.prod(shape) == math.prod(viewed) or len(perm) not in (0, len(viewed)):
        raise H2LearnError(
            f"io {name!r}: the user's shape {given}, its view and the device shape {list(shape)} do not agree",
            location=where,
        )
    return tuple(given)


def _folded(source: Shape, shape: Shape, view: Shape, batch: int, steps: int) -> Shape:
    """Return what the user's first dimension is made of where it holds time and samples: its view has them apart."""
    lead = view[:2]
    if len(shape) not in (3, 5) or shape[:2] != (steps, batch) or lead not in ((steps, -1), (-1, steps)):
        return ()
    apart = tuple(batch if n == -1 else n for n in lead)
    return lead if source[0] == steps * batch and source[:2] != apart else ()


def _batch_axis(source: Shape, shape: Shape, perm: Shape, batch: int, steps: int) -> int | None:
    """Samples come first on the device, behind time where there is time; arrays over time have rank 5 (features: 3)."""
    over_time = len(shape) in (3, 5) and shape[:2] == (steps, batch)
    axis = 1 if over_time else 0
    axis = perm[axis] if len(perm) == len(source) else axis
    return axis if len(source) > axis and source[axis] == batch else None


def _source_shape(shape: Shape, view: Shape, perm: Shape, where: str) -> Shape:
    """The shape before the permutation; where the device groups axes, the one that the view gives."""
    if view:
        known = math.prod(n for n in view if n != -1)
        return tuple(math.prod(shape) // known if n == -1 else n for n in view)
    if not perm:
        return shape
    if len(perm) != len(shape):
        raise H2LearnError(
            "the io table does not say the user's shape of this array", location=where, hint="give it by `shapes`"
        )
    return tuple(shape[perm.index(axis)] for axis in range(len(perm)))


def _to_source(device: Array, port: Port) -> Array:
    if not port.perm or port.dtype == "scalars":
        return device if port.dtype == "scalars" else device.reshape(port.source)
    viewed = _source_shape(port.shape, port.view, (), "") if port.view else port.source
    ordered = device.reshape([viewed[axis] for axis in port.perm])
    return np.ascontiguousarray(ordered.transpose(np.argsort(port.perm))).reshape(port.source)


def _check_bits(values: Array, port: Port) -> None:
    """Raise H2LearnError for a value that is none of those that the program expects."""
    if not port.bits:
        return
    scaled = np.ldexp(values.astype(np.float64), port.bits)
    wrong = (scaled != np.floor(scaled)) | (scaled < 0) | (scaled >= 1 << port.bits)
    if np.any(wrong):
        raise H2LearnError(
            f"{port.role} {port.name!r} must hold multiples of 2^-{port.bits} from 0 to below 1, found"
            f" {float(values[wrong][0]):g}",
            hint=f"the model declares {port.bits} bits: divide whole numbers below {1 << port.bits} by"
            f" {1 << port.bits}",
        )


def _numeric(array: npt.ArrayLike, port: Port) -> Array:
    """Return the values as an array that the port's dtype can hold; it may be the array itself."""
    what = f"{port.role} {port.name!r}"
    try:
        values = np.asarray(array)
    except (ValueError, TypeError) as error:
        raise H2LearnError(f"{what} is no array: {error}") from error
    if values.dtype.kind not in "biuf":
        raise H2LearnError(f"{what} must be real numbers, found dtype {values.dtype}")
    if port.dtype in ("i32", "u8"):
        if values.dtype.kind == "f":
            raise H2LearnError(f"{what} must be integers, found dtype {values.dtype}")
        limits = np.iinfo(_DTYPES[port.dtype])
        if values.size and not limits.min <= int(values.min()) <= int(values.max()) <= limits.max:
            raise H2LearnError(f"{what} must lie between {limits.min} and {limits.max}")
        return values.astype(_DTYPES[port.dtype], copy=False)
    if port.dtype == "bits":
        if values.dtype.kind != "b" and not np.isin(values, (0, 1)).all():
            raise H2LearnError(f"{what} are spikes: every value must be 0 or 1")
        return values.astype(np.bool_, copy=False)
    if port.dtype not in ("f32", "f16"):
        raise H2LearnError(f"{what} is stored as {port.dtype}, which the host cannot write")
    with np.errstate(over="ignore"):
        return values.astype(np.float32, copy=False)


def _encode(device: Array, dtype: str) -> npt.NDArray[np.uint8]:
    if dtype == "bits":
        return np.packbits(device.astype(np.bool_, copy=False), axis=-1, bitorder="little").reshape(-1)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(device.astype(_DTYPES[dtype], copy=False))
    return stored.reshape(-1).view(np.uint8)


def _stored_bytes(dtype: str, shape: Shape) -> int:
    if dtype == "bits":
        return math.prod(shape[:-1]) * -(-shape[-1] // 8)
    return math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize


def _ints(value: object) -> Shape:
    assert isinstance(value, Iterable)
    return tuple(int(item) for item in value)
