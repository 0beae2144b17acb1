"""What a run counts, and the report it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import CONTROL, ENGINES

from .energy import EnergyReport
from .sanitizers import Finding

Counts = dict[str, dict[str, int]]
"""Group -> name -> count."""


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

    A functional run (``timed`` is False) gives an instruction one cycle whatever it does, and has counted nothing but
    what is not finite: asking it for counters or energy raises H2LearnError.
    ``busy``: cycles per engine (``FE`` look-up lanes, ``FE.fill`` table builder) and ``DRAM`` (channel).
    ``front_end_stalls``: cause -> cycles, of all streams. ``stopped_at``: the pc of a break point that ended the run.
    What adds up instructions is worked out when it is asked for: ``count`` gives their counters, ``price`` the energy
    of work, bytes read and bytes written.
    """

    timed: bool
    cycles: int
    instructions: int
    dispatched: int
    busy: dict[str, int]
    front_end_stalls: dict[str, int]
    count: Callable[[], list[PcCounters]] = field(repr=False)
    price: Callable[[Counts, dict[str, int], dict[str, int]], EnergyReport] = field(repr=False)
    nonfinite: list[NonFinite] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    stopped_at: int | None = None

    @cached_property
    def by_pc(self) -> list[PcCounters]:
        """The counters of every instruction of the program."""
        if not self.timed:
            raise H2LearnError("a functional run counts no cycles and no work", hint="run it with timing")
        return self.count()

    @cached_property
    def executed(self) -> dict[str, int]:
        """Executions by mnemonic."""
        total: dict[str, int] = {}
        for item in self.by_pc:
            if item.executed:
                add_counts(total, {item.mnemonic: item.executed})
        return dict(sorted(total.items()))

    @cached_property
    def stalls(self) -> Counts:
        """Cycles by engine and cause.

        Causes are ``queue empty``, ``semaphore N``, ``DRAM channel`` and, for the front end (``CTRL``),
        ``queue of ENGINE full`` and ``fence``.
        """
        total: Counts = {}
        for item in self.by_pc:
            if item.stalls:
                add_counts(total.setdefault(item.engine.partition(".")[0], {}), item.stalls)
        if self.front_end_stalls:
            total[CONTROL] = self.front_end_stalls
        return {name: dict(sorted(total[name].items())) for name in (*ENGINES, CONTROL) if name in total}

    @cached_property
    def bytes_read(self) -> dict[str, int]:
        """Bytes read by memory."""
        return _sum(item.bytes_read for item in self.by_pc)

    @cached_property
    def bytes_written(self) -> dict[str, int]:
        """Bytes written by memory."""
        return _sum(item.bytes_written for item in self.by_pc)

    @cached_property
    def work(self) -> Counts:
        """Counts of the execution by mnemonic."""
        total: Counts = {}
        for item in self.by_pc:
            if item.work:
                add_counts(total.setdefault(item.mnemonic, {}), item.work)
        return {name: total[name] for name in sorted(total)}

    @cached_property
    def energy(self) -> EnergyReport:
        """Energy by part of the chip, and what it rests on."""
        return self.price(self.work, self.bytes_read, self.bytes_written)

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


def _sum(tables: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for table in tables:
        add_counts(total, table)
    return dict(sorted(total.items()))


def add_counts(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Add ``more`` to ``total``, key by key."""
    for name, value in more.items():
        total[name] = total.get(name, 0) + value
