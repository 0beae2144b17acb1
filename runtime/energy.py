"""Energy: counts of a run times energies per operation of a named profile.

The profiles, every constant with its source, are the files of ``backends/h2learn/profiles``. Nothing is fitted to a
published result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from h2learn.backends.h2learn.energy_profile import EnergyProfile, load_profile
from h2learn.backends.h2learn.machine import Machine


@dataclass(frozen=True)
class EnergyReport:
    """Picojoules per part (engines, on-chip memories, DRAM) under the named profile and assumptions."""

    parts_pj: dict[str, float]
    profile: str
    assumptions: tuple[str, ...]

    @property
    def total_pj(self) -> float:
        """All parts together."""
        return sum(self.parts_pj.values())

    @property
    def summary(self) -> str:
        """The profile and what the figure leaves out, in one sentence; ``assumptions`` has everything."""
        return f"energy profile {self.profile}; {SCOPE}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "total_pj": self.total_pj,
            "parts_pj": self.parts_pj,
            "profile": self.profile,
            "assumptions": list(self.assumptions),
        }


WIDE, NARROW = "28nm-hbm2", "28nm-lpddr4"
NARROW_BYTES_PER_CYCLE = 64.0
SCOPE = (
    "bottom-up: arithmetic, table reads, on-chip traffic and DRAM bytes only; no leakage, clock tree, control or wires"
    " beyond the SRAM bank"
)

_ASSUMPTIONS = (
    SCOPE,
    "DRAM by bytes moved, not by bursts or activations",
    "on-chip operands are read and written once per instruction; partial sums stay in the engine within one",
    "zero patterns of FE and WUE and skipped products of BE cost no add or multiply",
)


def profile_for(machine: Machine) -> EnergyProfile:
    """Return a machine's own profile: LPDDR4 for a narrow DRAM channel, else HBM2; both 28 nm."""
    return load_profile(NARROW if machine.dram.bytes_per_cycle < NARROW_BYTES_PER_CYCLE else WIDE)


def energy_of(
    machine: Machine,
    item_bytes: int,
    work: Mapping[str, Mapping[str, int]],
    bytes_read: Mapping[str, int],
    bytes_written: Mapping[str, int],
    profile: EnergyProfile | None = None,
) -> EnergyReport:
    """Return the energy of a run, or of a part of one.

    ``work``: mnemonic -> summed counts of ``Work``; ``item_bytes``: of a stored value; ``bytes_*``: memory -> bytes;
    ``profile``: default the machine's.
    """
    table = profile or profile_for(machine)
    parts = {
        "FE": _look_up(table, item_bytes, work, "fe.fill", "fe.run"),
        "BE": _products(table, item_bytes, work),
        "WUE": _look_up(table, item_bytes, work, "wu.run", "wu.run"),
        "VEC": _vector(table, work),
    }
    for memory in sorted(set(bytes_read) | set(bytes_written)):
        read, written = 8 * bytes_read.get(memory, 0), 8 * bytes_written.get(memory, 0)
        if memory == "DRAM":
            parts["DRAM"] = read * table["dram_read"] + written * table["dram_write"]
        elif memory == "L":
            parts["L"] = written * table["table_write"]
        else:
            parts[memory] = read * table["sram_read"] + written * table["sram_write"]
    return EnergyReport(parts, table.name, (*table.sources, *_ASSUMPTIONS, *_node(machine, table)))


def _node(machine: Machine, table: EnergyProfile) -> tuple[str, ...]:
    if machine.node_nm == table.node_nm:
        return ()
    node = f"{table.node_nm} nm" if table.node_nm else "of a node that its sources do not state"
    return (f"the machine is {machine.node_nm} nm, the profile is {node} and not scaled to it",)


def _count(work: Mapping[str, Mapping[str, int]], mnemonic: str, name: str) -> int:
    return work.get(mnemonic, {}).get(name, 0)


def _look_up(
    table: EnergyProfile, item_bytes: int, work: Mapping[str, Mapping[str, int]], builder: str, reader: str
) -> float:
    """Adds of the builder, and a table read and an fp32 add for every non-zero pattern and output channel."""
    built = _count(work, builder, "adds" if builder == "fe.fill" else "table_adds")
    added = _count(work, reader, "adds")
    read = added * 8 * item_bytes * table["table_read"]
    inside = built * 8 * item_bytes * table["table_write"] if builder == reader else 0.0
    return (built + added) * table["fp32_add"] + read + inside


def _products(table: EnergyProfile, item_bytes: int, work: Mapping[str, Mapping[str, int]]) -> float:
    multiply = table["fp16_multiply"] if item_bytes == 2 else table["fp32_multiply"]
    done = sum(_count(work, mnemonic, "macs") for mnemonic in ("be.fwd", "be.run", "be.wgt"))
    return done * (multiply + table["fp32_add"])


_VECTOR_OPERATIONS: dict[str, tuple[int, int, int, int]] = {
    "v.lif": (2, 1, 2, 2),
    "v.grad": (3, 4, 1, 2),
    "v.tune": (4, 2, 0, 2),
    "v.pool": (1, 0, 0, 1),
    "v.unpool": (1, 1, 0, 1),
    "v.rng": (20, 20, 1, 0),
    "v.drop": (20, 21, 1, 1),
    "v.reduce": (1, 0, 0, 0),
    "v.spread": (0, 0, 1, 1),
    "v.map": (1, 0, 0, 0),
    "v.pack": (1, 0, 1, 0),
    "v.stat": (3, 2, 0, 0),
    "v.fold": (2, 2, 0, 0),
    "v.norm": (4, 4, 0, 0),
    "v.loss": (12, 9, 1, 1),
    "v.opt": (2, 3, 0, 0),
}
_NEURON_OPERATIONS: dict[str, tuple[int, int, int, int]] = {
    "scaled": (1, 1, 0, 0),
    "synaptic": (1, 1, 0, 0),
    "curved": (8, 10, 0, 0),
    "counted": (2, 5, 1, 1),
}
"""What neurons need beside that: gain and offset, a synaptic current, a surrogate without a window (counted as an
exponential and a quotient), spikes as numbers (a quotient, its whole part, the thresholds taken off)."""
"""Per element (``elements`` as in the cycle formulas): fp32 adds, fp32 multiplies, compares, selects of the equations
in ``docs/semantics.md`` (Philox: ten rounds of two multiplies and two exclusive-ors, counted as adds; exp: Cephes
polynomial)."""


def _vector(table: EnergyProfile, work: Mapping[str, Mapping[str, int]]) -> float:
    done = [(operations, _count(work, mnemonic, "elements")) for mnemonic, operations in _VECTOR_OPERATIONS.items()]
    for name, operations in _NEURON_OPERATIONS.items():
        done += [(operations, _count(work, mnemonic, name)) for mnemonic in ("v.lif", "v.grad")]
    total = 0.0
    for (adds, multiplies, compares, selects), count in done:
        each = adds * table["fp32_add"] + multiplies * table["fp32_multiply"]
        total += count * (each + compares * table["compare"] + selects * table["select"])
    return total
