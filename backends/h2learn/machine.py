"""Machine descriptions: one TOML file per machine, checked against these dataclasses and hashed into every binary."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from .errors import H2LearnError, why

MOST_FAN_IN = 8
"""Inputs of the largest look-up table that an instruction can name."""
LANES = 4
"""Lanes of a processing element of the backward engine."""
MOST_ELEMENTS = 4096
"""Of the backward engine; the simulator deals rows to every lane."""
MOST = 1 << 20
"""The largest whole number of a description, where it says no other."""


@dataclass(frozen=True)
class Whole:
    """Whole numbers that are multiples of ``unit``, up to ``most``."""

    unit: int = 1
    most: int = MOST


FanIn = Annotated[int, Whole(most=MOST_FAN_IN)]


@dataclass(frozen=True)
class ForwardEngine:
    """Look-up lanes: ``lanes`` look-ups per cycle; beside them ``builder_entries`` table entries written per cycle.

    ``skip_zero_patterns``: lanes take only the patterns that hold a spike, each lane at its own pace.
    """

    lanes: int
    fan_in: FanIn
    builder_entries: int
    skip_zero_patterns: bool = False


@dataclass(frozen=True)
class BackwardEngine:
    """``elements`` processing elements of ``width`` multiply-accumulate units each, in four lanes."""

    elements: Annotated[int, Whole(most=MOST_ELEMENTS)]
    width: Annotated[int, Whole(unit=LANES)]

    @property
    def lanes(self) -> int:
        """Lanes of all processing elements."""
        return LANES * self.elements

    @property
    def lane_width(self) -> int:
        """Multipliers of a lane."""
        return self.width // LANES


@dataclass(frozen=True)
class WeightUpdateEngine:
    """``lanes_k`` output channels times ``lanes_c`` channel-taps looked up per cycle."""

    lanes_k: int
    lanes_c: int
    fan_in: FanIn


@dataclass(frozen=True)
class VectorUnit:
    """``lanes`` elements per cycle."""

    lanes: int


@dataclass(frozen=True)
class Memory:
    """Sizes of the on-chip memories in KiB, by name."""

    W: int
    S: int
    U: int
    G: int
    M: int
    A: int
    L: int


@dataclass(frozen=True)
class Dram:
    """Off-chip memory: capacity in MiB, bandwidth in bytes per cycle, latency in cycles, burst in bytes."""

    capacity_mib: int
    bytes_per_cycle: float
    latency_cycles: int
    burst_bytes: int


@dataclass(frozen=True)
class Machine:
    """One accelerator. Clock in Hz, queue depth in instructions, node in nm."""

    name: str
    description: str
    node_nm: int
    clock_hz: float
    queue_depth: int
    forward: ForwardEngine
    backward: BackwardEngine
    weight_update: WeightUpdateEngine
    vector: VectorUnit
    sram_kib: Memory
    dram: Dram

    def memory_bytes(self, name: str) -> int:
        """Return the size of memory ``name`` (``"DRAM"`` or an on-chip one) in bytes."""
        if name == "DRAM":
            return self.dram.capacity_mib << 20
        return int(getattr(self.sram_kib, name)) << 10

    def to_dict(self) -> dict[str, Any]:
        """Return plain data; ``from_dict`` is the inverse."""
        return asdict(self)

    @property
    def hash(self) -> str:
        """A 16-digit hash of the whole description."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def from_dict(data: dict[str, Any], where: str = "machine") -> Machine:
    """Build a machine from plain data; raises H2LearnError that names the first missing, unknown or wrong key."""
    machine = _build(Machine, data, where)
    assert isinstance(machine, Machine)
    return machine


def names() -> list[str]:
    """Return the names of the machines that come with the package."""
    folder = resources.files(__package__).joinpath("machines")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_machine(name: str | Path | Machine) -> Machine:
    """Return a machine by name, by path of a TOML file, or as it is; raises H2LearnError when there is none.

    A name or path may be followed by changes: ``h2l-v0:forward.skip_zero_patterns=true,dram.latency_cycles=200``. The
    result is named by the whole text.
    """
    if isinstance(name, Machine):
        return name
    base, colon, changes = str(name).rpartition(":")
    if colon and not changes.endswith(".toml"):
        return _changed(load_machine(base), changes, str(name))
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return from_dict(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise H2LearnError(f"cannot read the machine description: {why(error)}", location=str(path)) from error
    if str(name) not in names():
        raise H2LearnError(f"there is no machine {str(name)!r}", hint=f"known machines: {', '.join(names())}")
    text = resources.files(__package__).joinpath("machines").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return from_dict(tomllib.loads(text), f"{name}.toml")


def _changed(machine: Machine, changes: str, name: str) -> Machine:
    """Return ``machine`` with the values of ``part.key=value,...`` (values as in TOML) and a new name."""
    data = machine.to_dict() | {"name": name}
    for change in changes.split(","):
        key, equals, text = (part.strip() for part in change.partition("="))
        *tables, last = key.split(".")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = None
        if not equals or value is None:
            raise H2LearnError(
                f"cannot read the change {change!r} of a machine",
                location=name,
                hint="write PART.KEY=VALUE as in its TOML file, for example forward.skip_zero_patterns=true",
            )
        place: Any = data
        for table in tables:
            place = place.get(table)
            if not isinstance(place, dict):
                raise H2LearnError(f"a machine has no part {table!r}", location=name, hint=f"it has {_parts(data)}")
        place[last] = value
    return from_dict(data, name)


def _parts(data: dict[str, Any]) -> str:
    return ", ".join(key for key, value in data.items() if isinstance(value, dict))


def _build(kind: type[Any], data: object, where: str) -> Any:
    if not isinstance(data, dict):
        raise H2LearnError(f"expected a table, found {data!r}", location=where)
    hints = get_type_hints(kind, include_extras=True)
    expected = {one.name for one in fields(kind)}
    for key in data:
        if key not in expected:
            raise H2LearnError(
                f"unknown key {key!r}", location=where, hint=f"known keys: {', '.join(sorted(expected))}"
            )
    values: dict[str, Any] = {}
    for one in fields(kind):
        if one.name not in data and one.default is not MISSING:
            continue
        if one.name not in data:
            raise H2LearnError(f"key {one.name!r} is missing", location=where)
        values[one.name] = _value(hints[one.name], data[one.name], f"{where}: {one.name}")
    return kind(**values)


def _value(hint: Any, value: object, where: str) -> object:
    kind, allowed = get_args(hint) or (hint, Whole())
    if kind is str:
        if not isinstance(value, str):
            raise H2LearnError(f"expected a string, found {value!r}", location=where)
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise H2LearnError(f"expected true or false, found {value!r}", location=where)
        return value
    if kind in (int, float):
        number_types = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, number_types) or not 0 < value < float("inf"):
            raise H2LearnError(
                f"expected a positive {'integer' if kind is int else 'number'}, found {value!r}", location=where
            )
        unit, most = allowed.unit, allowed.most
        if kind is int and (value > most or value % unit):
            multiple = f" that is a multiple of {unit}" if unit > 1 else ""
            raise H2LearnError(f"expected an integer{multiple} from {unit} to {most}, found {value}", location=where)
        return kind(value)
    return _build(kind, value, where)
