"""What the event loop must know of an entry: a row of integers, from its descriptor and operands alone.

Because a front end yields the same entries in every run, whatever they decide is worked out once: accesses, cycles,
traffic, and the plain copies that the event loop executes by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import ENGINES, MEMORIES

from . import events, timing
from .counters import PcCounters, add_counts
from .frontend import FORK, NOP, SIGNAL, WAIT, WORK, Entry
from .loader import LoadedProgram
from .operation import Memories, Operation
from .regions import SLOTS_MODE, Access, footprint

I64 = npt.NDArray[np.int64]

MAX_ROWS = 1 << 24  # of one transfer; far more than fit on chip, so that no descriptor can stall the simulator
_TRANSFERS = ("ld", "st")
_DRAM_SIDE = frozenset({("ld", "src"), ("st", "dst")})
_KEPT_PER_INSTRUCTION = 256
_UNITS = {"fe.fill": events.FILL, "fe.run": events.LOOK_UP}


class Fetched(NamedTuple):
    """Entries of a stream, and a row of the event loop for each."""

    entries: list[Entry]
    table: I64

    def tail(self, first: int, more: Fetched) -> Fetched:
        """Return the entries from ``first`` on and ``more`` behind them."""
        if first == len(self.entries):
            return more
        return Fetched(self.entries[first:] + more.entries, np.concatenate([self.table[first:], more.table]))


NOTHING = Fetched([], np.zeros((0, events.ENTRY_COLUMNS), np.int64))


class Kept(NamedTuple):
    """What an instruction's descriptor decides, worked out once: accesses, traffic and cycles (None: by data)."""

    accesses: tuple[Access, ...]
    cycles: int | None
    burst_bytes: int


class EntryTables:
    """Makes rows of entries.

    ``counters``: what the rows so far will have moved and done when all have been executed, but for the counts of
    blocks that the data decide: ``counted`` names those by pc.

    ``inside``: let the event loop execute plain copies; ``counts``: book traffic here, when an entry is met, and not
    when it is executed; ``counting``: whether blocks count their work.
    """

    def __init__(
        self, program: LoadedProgram, memories: Memories, *, inside: bool, counts: bool, counting: bool
    ) -> None:
        self.machine = program.machine
        self.memories = memories
        self.inside = inside
        self.counts = counts
        self.counting = counting
        self.counters: dict[int, PcCounters] = {}
        self.slot_memories: dict[int, tuple[str, str]] = {}
        self.counted: dict[int, tuple[str, ...]] = {}

    def fetched(self, entries: list[Entry]) -> Fetched:
        """Return entries with their rows."""
        table = np.zeros((len(entries), events.ENTRY_COLUMNS), np.int64)
        for row, entry in zip(table, entries, strict=True):
            template = entry.template
            row[events.CODE], row[events.COST], row[events.PC] = entry.code, entry.cost, template.pc
            row[events.ENGINE] = template.engine
            if entry.code in (SIGNAL, WAIT):
                row[events.SEM], row[events.COUNT] = template.sem, template.count
            elif entry.code == FORK:
                row[events.COUNT] = template.fields["stream"]
            elif entry.code == NOP:
                row[events.CYCLES] = timing.NOP_CYCLES
            elif entry.code == WORK:
                self._describe(entry, row)
        return Fetched(entries, table)

    def kept(self, entry: Entry) -> Kept:
        """Return what the descriptor decides; raises H2LearnError when it makes no sense."""
        template, operation = entry.template, entry.operation
        assert operation is not None
        known = operation.kept.get("simulator")
        if isinstance(known, Kept):
            return known
        y = x = 0
        if template.mnemonic in _TRANSFERS:
            y, x = operation.operands["y"].address, operation.operands["x"].address
        key = (entry.version, operation.init, y, x)
        kept = template.kept.get(key)
        if not isinstance(kept, Kept):
            if len(template.kept) >= _KEPT_PER_INSTRUCTION:
                template.kept.clear()
            accesses = footprint(template.mnemonic, operation.desc, operation.init, operation.fields, y, x)
            cycles = timing.static_cycles(template.mnemonic, operation.desc, operation.fields, self.machine)
            in_dram = dram_side(template.mnemonic, accesses)
            burst = timing.plain_burst_bytes(in_dram, self.machine) if cycles is None and in_dram is not None else 0
            kept = template.kept[key] = Kept(accesses, cycles, burst)
        operation.kept["simulator"] = kept
        return kept

    def book(self, operation: Operation, kept: Kept, counters: PcCounters) -> None:
        """Book what an instruction reads and writes; of gradient slots only the live bytes count, at execution."""
        in_dram = dram_side(operation.mnemonic, kept.accesses) if moves_slots(operation) else None
        for access in kept.accesses:
            total = counters.bytes_written if access.write else counters.bytes_read
            size = access.size - in_dram.size if in_dram is not None else access.size
            memory = operation.operands[access.operand].memory
            total[memory] = total.get(memory, 0) + size

    def _describe(self, entry: Entry, row: I64) -> None:
        operation = entry.operation
        assert operation is not None
        transfers = operation.mnemonic in _TRANSFERS
        row[events.ON_CHANNEL], row[events.CYCLES] = transfers, -1
        row[events.UNIT], row[events.TABLE] = _UNITS.get(operation.mnemonic, events.PLAIN), -1
        try:
            kept = self.kept(entry)
        except H2LearnError:
            return  # its execution raises again, in its turn
        if kept.cycles is not None:
            row[events.CYCLES] = kept.cycles
        elif transfers and not moves_slots(operation):
            row[events.CYCLES] = timing.channel_cycles(kept.burst_bytes, self.machine)
        for access in kept.accesses:
            if access.operand == "lut":
                lut = operation.operands["lut"]
                row[events.TABLE] = MEMORIES.index(lut.memory)
                row[events.LOW], row[events.HIGH] = lut.address + access.low, lut.address + access.high
        if not self.counts:
            return
        template = entry.template
        counters = self.counters.get(template.pc)
        if counters is None:
            counters = self.counters[template.pc] = PcCounters(template.pc, template.mnemonic, "", "")
        self.book(operation, kept, counters)
        if self.inside and transfers:
            self._describe_copy(operation, kept, row, counters)
        elif self.inside:
            self._describe_block(operation, kept, row, counters)

    def _describe_copy(self, operation: Operation, kept: Kept, row: I64, counters: PcCounters) -> None:
        """Let the event loop execute a transfer, unless it is one that faults."""
        from .fast import plan_transfer

        try:
            check_transfer(operation, kept)
            plan = plan_transfer(operation, self.memories, self.machine.dram.burst_bytes)
        except H2LearnError:
            return  # its execution raises again, in its turn
        used = (operation.operands["src"].memory, operation.operands["dst"].memory)
        slotted = moves_slots(operation)
        if slotted and self.slot_memories.setdefault(operation.pc, used) != used:
            return
        row[events.INSIDE], row[events.SLOTS] = events.TRANSFER, slotted
        row[events.UNITS], row[events.PARTS], row[events.PIECES] = plan.units, plan.parts, plan.pieces
        row[events.KERNEL] = plan.call.address
        row[events.COPY : events.COPY + len(plan.words)] = plan.words
        add_counts(counters.work, plan.work)

    def _describe_block(self, operation: Operation, kept: Kept, row: I64, counters: PcCounters) -> None:
        """Let the event loop execute an instruction that is a block of calls, unless it is one that faults."""
        from .fast import prepare

        try:
            check_transfer(operation, kept)
            prepared = prepare(operation, self.memories, counting=self.counting)
        except H2LearnError:
            return  # its execution raises again, in its turn
        if prepared is None or self.counted.setdefault(operation.pc, prepared.names) != prepared.names:
            return
        row[events.INSIDE], row[events.ADDRESS] = events.BLOCK, prepared.address
        row[events.START_UP] = timing.START_UP[ENGINES[row[events.ENGINE]]]
        add_counts(counters.work, prepared.fixed)


def moves_slots(operation: Operation) -> bool:
    """Return whether an instruction is a transfer of gradient slots."""
    return operation.mnemonic in _TRANSFERS and operation.desc["mode"] == SLOTS_MODE


def dram_side(mnemonic: str, accesses: Sequence[Access]) -> Access | None:
    """Return the access of a transfer to DRAM (None: nothing exists there)."""
    return next((access for access in accesses if access.write == (mnemonic == "st")), None)


def check_transfer(operation: Operation, kept: Kept) -> None:
    """Raise H2LearnError when a transfer is too large, or an operand lies in a memory that its engine cannot reach."""
    if operation.mnemonic in _TRANSFERS:
        rows = math.prod(max(1, int(operation.desc[f"n{d}"])) for d in range(4))
        if rows > MAX_ROWS:
            raise H2LearnError(f"a transfer of {rows} rows is too large", hint=f"the simulator takes up to {MAX_ROWS}")
    for access in kept.accesses:
        memory = operation.operands[access.operand].memory
        if (memory == "DRAM") == ((operation.mnemonic, access.operand) in _DRAM_SIDE):
            continue
        if memory == "DRAM":
            raise H2LearnError(f"{access.operand} is in DRAM, which only src of ld and dst of st reach")
        raise H2LearnError(f"{access.operand} of {operation.mnemonic} must be in DRAM, found {memory}")
