"""Energy profiles: one TOML file per set of energies per operation, every constant with its source."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from .errors import H2LearnError, why

UNITS: dict[str, str] = {
    "fp32_add": "pJ",
    "fp32_multiply": "pJ",
    "fp16_multiply": "pJ",
    "compare": "pJ",
    "select": "pJ",
    "table_read": "pJ/bit",
    "table_write": "pJ/bit",
    "sram_read": "pJ/bit",
    "sram_write": "pJ/bit",
    "dram_read": "pJ/bit",
    "dram_write": "pJ/bit",
}
"""The constants of a profile and their units."""


@dataclass(frozen=True)
class Constant:
    """One energy: ``value`` in ``unit`` at ``node_nm`` (0: the source does not say), and where it comes from."""

    value: float
    unit: str
    node_nm: int
    source: str


@dataclass(frozen=True)
class EnergyProfile:
    """A named set of energies: all names of ``UNITS``; ``node_nm`` 0 means that the sources do not state a node."""

    name: str
    description: str
    node_nm: int
    constants: Mapping[str, Constant]

    def __getitem__(self, name: str) -> float:
        """Return the value of a constant in its unit of ``UNITS``; raises KeyError when there is none."""
        return self.constants[name].value

    @property
    def sources(self) -> tuple[str, ...]:
        """One line per constant: value, unit, node, source."""
        return tuple(f"{name} {_text(one)}: {one.source}" for name, one in self.constants.items())


def profile_names() -> list[str]:
    """Return the names of the profiles that come with the package."""
    folder = resources.files(__package__).joinpath("profiles")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_profile(name: str | Path | EnergyProfile) -> EnergyProfile:
    """Return a profile by name, by path of a TOML file, or as it is.

    A file may name a ``base`` profile, whose constants it replaces one by one. Raises H2LearnError when there is no
    such profile, or the file lacks a constant or has one without a value, unit, node or source.
    """
    if isinstance(name, EnergyProfile):
        return name
    path = Path(name)
    if path.suffix == ".toml":
        try:
            return _profile(tomllib.loads(path.read_text(encoding="utf-8")), str(path))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise H2LearnError(f"cannot read the energy profile: {why(error)}", location=str(path)) from error
    if str(name) not in profile_names():
        raise H2LearnError(
            f"there is no energy profile {str(name)!r}", hint=f"known profiles: {', '.join(profile_names())}"
        )
    text = resources.files(__package__).joinpath("profiles").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return _profile(tomllib.loads(text), f"{name}.toml")


def _profile(data: Mapping[str, object], where: str) -> EnergyProfile:
    known = {"name", "description", "node_nm", "base", "constants"}
    for key in data:
        if key not in known:
            raise H2LearnError(f"unknown key {key!r}", location=where, hint=f"known keys: {', '.join(sorted(known))}")
    constants: dict[str, Constant] = {}
    base = data.get("base")
    if base is not None:
        if base not in profile_names():
            raise H2LearnError(
                f"there is no base profile {base!r}", location=where, hint=f"known: {', '.join(profile_names())}"
            )
        constants |= load_profile(str(base)).constants
    own = data.get("constants", {})
    if not isinstance(own, dict):
        raise H2LearnError("constants must be a table", location=where)
    for name, entry in own.items():
        constants[name] = _constant(name, entry, f"{where}: constants.{name}")
    missing = [name for name in UNITS if name not in constants]
    if missing:
        raise H2LearnError(f"constant {missing[0]!r} is missing", location=where)
    return EnergyProfile(
        _string(data, "name", where),
        _string(data, "description", where),
        _node(data, where),
        {name: constants[name] for name in UNITS},
    )


def _constant(name: str, entry: object, where: str) -> Constant:
    if name not in UNITS:
        raise H2LearnError(f"unknown constant {name!r}", location=where, hint=f"known: {', '.join(UNITS)}")
    if not isinstance(entry, dict) or set(entry) != {"value", "unit", "node_nm", "source"}:
        raise H2LearnError("a constant has value, unit, node_nm and source", location=where)
    value, unit = entry["value"], entry["unit"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise H2LearnError(f"expected a value of at least 0, found {value!r}", location=where)
    if unit != UNITS[name]:
        raise H2LearnError(f"expected the unit {UNITS[name]}, found {unit!r}", location=where)
    return Constant(float(value), unit, _node(entry, where), _string(entry, "source", where))


def _string(entry: Mapping[str, object], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or not value.strip():
        raise H2LearnError(f"expected a text for {key!r}, found {value!r}", location=where)
    return value


def _node(entry: Mapping[str, object], where: str) -> int:
    value = entry.get("node_nm")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise H2LearnError(f"expected node_nm in nm or 0 when not stated, found {value!r}", location=where)
    return value


def _text(one: Constant) -> str:
    return f"{one.value:g} {one.unit} ({f'{one.node_nm} nm' if one.node_nm else 'node not stated'})"
