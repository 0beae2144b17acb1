"""Energy: counts of a run times energies per operation, every constant with its source.

Nothing here is fitted to a published result. The 45 nm arithmetic of M. Horowitz, "Computing's energy problem",
ISSCC 2014 (0.9 V) is scaled to 28 nm at equal supply by 0.51, after A. Stillmaker and B. Baas, "Scaling equations for
the accurate prediction of CMOS device performance from 180 nm to 7 nm", Integration 58, 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from h2learn.backends.h2learn.machine import Machine

TO_28_NM = 0.51  # Stillmaker and Baas 2017, 45 nm -> 28 nm, equal supply


@dataclass(frozen=True)
class EnergyTable:
    """Energies of one profile in pJ (per operation) and pJ per bit (memories)."""

    name: str
    fp32_add: float
    fp32_multiply: float
    fp16_multiply: float
    compare: float
    select: float
    table_read_per_bit: float
    table_write_per_bit: float
    sram_read_per_bit: float
    sram_write_per_bit: float
    dram_per_bit: float
    sources: tuple[str, ...]


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

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "total_pj": self.total_pj,
            "parts_pj": self.parts_pj,
            "profile": self.profile,
            "assumptions": list(self.assumptions),
        }


_ARITHMETIC = (
    "fp32 add 0.90, fp32 multiply 3.70, fp16 multiply 1.10 pJ at 45 nm: Horowitz, ISSCC 2014; x0.51 to 28 nm:"
    " Stillmaker and Baas, Integration 2017",
    "compare: 32-bit integer add, 0.10 pJ at 45 nm (Horowitz, ISSCC 2014) x0.51; select: a quarter of it (ours)",
)
_SRAM = (
    "SRAM 0.128 / 0.115 pJ/bit read / write: CACTI 7 (HP Labs), 128 KB bank, 128-bit port, 28 nm high performance",
    "look-up tables 0.009 / 0.013 pJ/bit read / write: CACTI 7, 1 KB bank, 28 nm high performance",
)

HBM2_28_NM = EnergyTable(
    name="28nm-hbm2",
    fp32_add=0.90 * TO_28_NM,
    fp32_multiply=3.70 * TO_28_NM,
    fp16_multiply=1.10 * TO_28_NM,
    compare=0.10 * TO_28_NM,
    select=0.025 * TO_28_NM,
    table_read_per_bit=0.009,
    table_write_per_bit=0.013,
    sram_read_per_bit=0.128,
    sram_write_per_bit=0.115,
    dram_per_bit=3.92,
    sources=(
        *_ARITHMETIC,
        *_SRAM,
        "HBM2 3.92 pJ/bit: O'Connor et al., Fine-Grained DRAM, MICRO 2017 (activation, on-die movement, I/O)",
    ),
)
LPDDR4_28_NM = replace(
    HBM2_28_NM,
    name="28nm-lpddr4",
    dram_per_bit=8.0,
    sources=(*_ARITHMETIC, *_SRAM, "LPDDR4 512 pJ per 64 bit: Accelergy's table (Wu, Emer, Sze, ICCAD 2019)"),
)
LPDDR_LIMIT_BYTES_PER_CYCLE = 64.0

_ASSUMPTIONS = (
    "bottom-up: arithmetic, table reads, on-chip traffic and DRAM bytes only; no leakage, clock tree, control or wires"
    " beyond the SRAM bank",
    "DRAM by bytes moved, not by bursts or activations",
    "on-chip operands are read and written once per instruction; partial sums stay in the engine within one",
    "zero patterns of FE and WUE and skipped products of BE cost no add or multiply",
)


def table_for(machine: Machine) -> EnergyTable:
    """Return the profile of a machine: LPDDR4 for a narrow DRAM channel, else HBM2; both 28 nm."""
    return LPDDR4_28_NM if machine.dram.bytes_per_cycle < LPDDR_LIMIT_BYTES_PER_CYCLE else HBM2_28_NM


def energy_of(
    machine: Machine,
    item_bytes: int,
    work: Mapping[str, Mapping[str, int]],
    bytes_read: Mapping[str, int],
    bytes_written: Mapping[str, int],
) -> EnergyReport:
    """Return the energy of a run.

    ``work``: mnemonic -> summed counts of ``Work``; ``item_bytes``: of a stored value; ``bytes_*``: memory -> bytes.
    """
    table = table_for(machine)
    parts = {
        "FE": _look_up(table, item_bytes, work, "fe.fill", "fe.run"),
        "BE": _products(table, item_bytes, work),
        "WUE": _look_up(table, item_bytes, work, "wu.run", "wu.run"),
        "VEC": _vector(table, work),
    }
    for memory in sorted(set(bytes_read) | set(bytes_written)):
        read, written = 8 * bytes_read.get(memory, 0), 8 * bytes_written.get(memory, 0)
        if memory == "DRAM":
            parts["DRAM"] = (read + written) * table.dram_per_bit
        elif memory == "L":
            parts["L"] = written * table.table_write_per_bit
        else:
            parts[memory] = read * table.sram_read_per_bit + written * table.sram_write_per_bit
    return EnergyReport(parts, table.name, (*table.sources, *_ASSUMPTIONS, *_node(machine)))


def _node(machine: Machine) -> tuple[str, ...]:
    return () if machine.node_nm == 28 else (f"the machine is {machine.node_nm} nm, the profile is not scaled to it",)


def _count(work: Mapping[str, Mapping[str, int]], mnemonic: str, name: str) -> int:
    return work.get(mnemonic, {}).get(name, 0)


def _look_up(
    table: EnergyTable, item_bytes: int, work: Mapping[str, Mapping[str, int]], builder: str, reader: str
) -> float:
    """Adds of the builder, and a table read and an fp32 add for every non-zero pattern and output channel."""
    built = _count(work, builder, "adds" if builder == "fe.fill" else "table_adds")
    added = _count(work, reader, "adds")
    read = added * 8 * item_bytes * table.table_read_per_bit
    inside = built * 8 * item_bytes * table.table_write_per_bit if builder == reader else 0.0
    return (built + added) * table.fp32_add + read + inside


def _products(table: EnergyTable, item_bytes: int, work: Mapping[str, Mapping[str, int]]) -> float:
    multiply = table.fp16_multiply if item_bytes == 2 else table.fp32_multiply
    done = sum(_count(work, mnemonic, "macs") for mnemonic in ("be.fwd", "be.run", "be.wgt"))
    return done * (multiply + table.fp32_add)


_VECTOR_OPERATIONS: dict[str, tuple[int, int, int, int]] = {
    "v.lif": (2, 1, 2, 2),
    "v.grad": (3, 4, 1, 2),
    "v.pool": (1, 0, 0, 1),
    "v.unpool": (1, 1, 0, 1),
    "v.rng": (20, 20, 1, 0),
    "v.reduce": (1, 0, 0, 0),
    "v.loss": (12, 9, 1, 1),
    "v.opt": (2, 3, 0, 0),
}
"""Per element: fp32 adds, fp32 multiplies, compares, selects of the equations in ``docs/semantics.md`` (Philox: ten
rounds of two multiplies and two exclusive-ors, counted as adds; exp: Cephes polynomial)."""


def _vector(table: EnergyTable, work: Mapping[str, Mapping[str, int]]) -> float:
    total = 0.0
    for mnemonic, (adds, multiplies, compares, selects) in _VECTOR_OPERATIONS.items():
        each = adds * table.fp32_add + multiplies * table.fp32_multiply
        each += compares * table.compare + selects * table.select
        total += _count(work, mnemonic, "elements") * each
    return total
