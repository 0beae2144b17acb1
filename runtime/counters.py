"""What a run counts, and the report it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .energy import EnergyReport
from .sanitizers import Finding


@dataclass(frozen=True)
class NonFinite:
    """Non-finite results written by the instruction at ``pc``, over all executions; ``where``: the first of them."""

    pc: int
    mnemonic: str
    where: str
    count: int


@dataclass(slots=True)
class PcCounters:
    """One instruction of the program, over all its executions.

    ``busy``: cycles of its engine; ``channel_busy``: cycles of the DRAM channel; ``stalls``: cause -> cycles in which
    its engine did nothing before it; ``first_cycle`` (-1: never) and ``last_cycle``: first start and last end.
    """

    pc: int
    mnemonic: str
    engine: str
    source: str
    executed: int = 0
    busy: int = 0
    channel_busy: int = 0
    first_cycle: int = -1
    last_cycle: int = -1
    stalls: dict[str, int] = field(default_factory=dict)
    bytes_read: dict[str, int] = field(default_factory=dict)
    bytes_written: dict[str, int] = field(default_factory=dict)
    work: dict[str, int] = field(default_factory=dict)


@dataclass
class RunReport:
    """One run of a program. Cycles are machine cycles, memory traffic is in bytes.

    ``busy``: cycles per engine (``FE`` look-up lanes, ``FE.fill`` table builder) and ``DRAM`` (channel).
    ``stalls``: engine -> cause -> cycles; causes are ``queue empty``, ``semaphore N``, ``DRAM channel`` and, for the
    front end (``CTRL``), ``queue of ENGINE full`` and ``fence``.
    ``work``: mnemonic -> counts of the execution, summed. ``stopped_at``: the pc of a break point that ended the run.
    """

    cycles: int
    instructions: int
    dispatched: int
    executed: dict[str, int]
    busy: dict[str, int]
    stalls: dict[str, dict[str, int]]
    bytes_read: dict[str, int]
    bytes_written: dict[str, int]
    work: dict[str, dict[str, int]]
    by_pc: list[PcCounters]
    energy: EnergyReport
    nonfinite: list[NonFinite] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    stopped_at: int | None = None

    @property
    def bound(self) -> int:
        """The busiest resource: no order of the same work on this machine is faster."""
        return max(self.busy.values(), default=0)

    @property
    def energy_pj(self) -> float:
        """Energy of all work counted, in picojoules; see ``energy.assumptions``."""
        return self.energy.total_pj

    def by_source(self) -> dict[str, dict[str, int]]:
        """Return source location -> engine -> busy cycles, in program order."""
        table: dict[str, dict[str, int]] = {}
        for counters in self.by_pc:
            if counters.engine in self.busy and counters.busy:
                row = table.setdefault(counters.source, {})
                row[counters.engine] = row.get(counters.engine, 0) + counters.busy
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data: dict[str, Any] = {
            "cycles": self.cycles,
            "bound": self.bound,
            "instructions": self.instructions,
            "dispatched": self.dispatched,
            "executed": self.executed,
            "busy": self.busy,
            "stalls": self.stalls,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "work": self.work,
            "by_source": self.by_source(),
            "energy": self.energy.to_dict(),
            "nonfinite": [asdict(item) for item in self.nonfinite],
            "findings": [asdict(item) for item in self.findings],
        }
        return data if self.stopped_at is None else data | {"stopped_at": self.stopped_at}


def add_counts(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Add ``more`` to ``total``, key by key."""
    for name, value in more.items():
        total[name] = total.get(name, 0) + value
