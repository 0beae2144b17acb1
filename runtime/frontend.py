"""The front end: its streams fetch in order, run loops and address registers, and yield what joins the queues.

It sees no data and no time: what a stream yields is the same in every run. ``events.py`` decides when.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from h2learn.backends.h2learn.encoder import Decoded
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import (
    ADDRESS_REGISTERS,
    BY_FIELD,
    BY_MNEMONIC,
    CONTROL,
    DESCRIPTORS,
    ENGINES,
    MAX_LOOP_DEPTH,
    MEMORIES,
    NEVER_INIT,
    Kind,
)

from .loader import LoadedProgram
from .operation import Operand, Operation

(CFG, ADDR, SETUP, LOOP, ENDL, FENCE, FORK, HALT, STOP, FAULT, NOP, SIGNAL, WAIT, WORK) = range(14)
"""What an instruction is to the front end; STOP and FAULT end a stream before one. From NOP on it joins a queue."""
_CODES = {
    "cfg": CFG,
    "addr": ADDR,
    "setup": SETUP,
    "loop": LOOP,
    "endl": ENDL,
    "fence": FENCE,
    "fork": FORK,
    "halt": HALT,
    "signal": SIGNAL,
    "wait": WAIT,
    "nop": NOP,
}
_MAX_OPERATIONS_KEPT = 1 << 16


Places = tuple[tuple[str, int], ...]
"""Memory and address of every operand."""


@dataclass(slots=True)
class Template:
    """One instruction of the program, taken apart once.

    ``kept`` holds what depends on its descriptor alone, ``operations`` its dispatches by descriptor version, init and
    places of the operands: most of them come again in the next run.
    """

    pc: int
    code: int
    mnemonic: str
    engine: int = -1
    registers: tuple[tuple[str, int], ...] = ()
    descriptor: tuple[int, int] = (-1, -1)
    init_mask: int = NEVER_INIT
    fields: dict[str, int] = field(default_factory=dict)
    match: int = -1
    words: tuple[Template, ...] = ()
    sem: int = 0
    count: int = 0
    kept: dict[tuple[int, ...], object] = field(default_factory=dict)
    operations: dict[tuple[int, bool, Places], Operation] = field(default_factory=dict)
    executed: int = 0


class Entry(NamedTuple):
    """What a stream yields: an instruction for a queue, or one that changes the stream itself (fence, fork, halt).

    ``cost``: cycles of the stream since the entry before, this one included; ``version`` numbers its descriptor's
    contents; ``unset`` names registers and descriptors that the program has not set.
    """

    code: int
    cost: int
    template: Template
    operation: Operation | None = None
    version: int = 0
    iterations: tuple[int, ...] = ()
    unset: tuple[str, ...] = ()


@dataclass(slots=True)
class AddressRegister:
    """Value: ``base + sum(idx*stride) + (sum(idx*step) mod ring) * rbytes``; zero strides and steps are left out."""

    memory: str = MEMORIES[0]
    base: int = 0
    strides: dict[int, int] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    ring: int = 0
    ring_bytes: int = 0
    configured: bool = False

    def value(self, iterations: list[int]) -> int:
        """Return the address at loop ``iterations`` (0 for levels that are not open)."""
        value = self.base
        for level, stride in self.strides.items():
            value += iterations[level] * stride
        if self.ring > 1:
            slot = 0
            for level, step in self.steps.items():
                slot += iterations[level] * step
            value += slot % self.ring * self.ring_bytes
        return value

    def configure(self, name: str, value: int) -> None:
        """Write one field of the ``areg`` row."""
        if name == "ring":
            self.ring = value
        elif name == "rbytes":
            self.ring_bytes = value
        else:
            table = self.strides if name.startswith("stride") else self.steps
            level = int(name[-1])
            table.pop(level, None)
            if value:
                table[level] = value


@dataclass(slots=True)
class Contents:
    """A descriptor's fields now; a new dictionary and version for every change, so that queued work keeps its own."""

    fields: dict[str, int | float]
    version: int = 0
    configured: bool = False


class FrontEnd:
    """The streams of a program by number; ``limit``: fault after so many instructions; ``break_at``: stop before it."""

    def __init__(self, program: LoadedProgram, limit: int | None, break_at: int | None) -> None:
        self.program = program
        self.templates = [_template(program, pc) for pc in range(len(program.code))]
        self.limit = limit
        self.break_at = break_at
        self.operations_kept = 0
        self.reset()

    def reset(self) -> None:
        """Forget everything but the program: streams, registers, descriptors, loops, counters."""
        self.streams = {0: Stream(self, 0)}
        for template in self.templates:
            template.executed = 0

    @property
    def executed(self) -> int:
        """Instructions executed by all streams."""
        return sum(stream.executed for stream in self.streams.values())

    def keep(self, template: Template, key: tuple[int, bool, Places], operation: Operation) -> None:
        """Keep a dispatch that is new for the next runs."""
        if self.operations_kept >= _MAX_OPERATIONS_KEPT:
            self.operations_kept = 0
            for other in self.templates:
                other.operations.clear()
        self.operations_kept += 1
        template.operations[key] = operation


class Stream:
    """One stream of instructions: its own pc, loops, registers and descriptors, all cleared at first.

    ``fault``: the error that its last entry (FAULT) stands for.
    """

    def __init__(self, front: FrontEnd, pc: int) -> None:
        self.front = front
        self.pc = pc
        self.versions = 0  # a version means the same contents in every run
        self.cost = 0
        self.executed = 0
        self.fault: H2LearnError | None = None
        self.levels: list[int] = []
        self.iterations = [0] * MAX_LOOP_DEPTH
        self.registers = [AddressRegister() for _ in range(ADDRESS_REGISTERS)]
        self.registers[0].configured = True
        self.descriptors = [
            [Contents(dict.fromkeys((f.name for f in row.fields), 0)) for _ in range(row.count)]
            if row.name != "areg"
            else []
            for row in DESCRIPTORS
        ]

    def fetch(self, count: int) -> list[Entry]:
        """Execute until there are ``count`` more entries or the stream ends; that it ends is its last entry."""
        front = self.front
        templates = front.templates
        found: list[Entry] = []
        while len(found) < count:
            pc = self.pc
            end = self._end(pc)
            if end is not None:
                found.append(end)
                break
            template = templates[pc]
            code = template.code
            self.executed += 1
            template.executed += 1
            self.cost += 1
            self.pc = pc + 1
            if code >= NOP:
                found.append(self._dispatch(template))
            elif code == CFG:
                self._configure(template)
            elif code == ENDL:
                self._close(template)
            elif code == LOOP:
                self._open(template)
            elif code == ADDR:
                self._address(template)
            elif code == SETUP:
                for word in template.words:
                    (self._address if word.code == ADDR else self._configure)(word)
                self.cost += len(template.words)
                self.executed += len(template.words)
            else:
                if code == FORK:
                    front.streams[template.fields["stream"]] = Stream(front, pc + 1)
                    self.pc = pc + 1 + template.count
                found.append(self._yield(code, template))
                if code == HALT:
                    break
        return found

    def _end(self, pc: int) -> Entry | None:
        """Return the entry that ends the stream before an instruction, if it has to."""
        front = self.front
        if pc >= len(front.templates):
            self.fault = H2LearnError(
                "the program runs past its last instruction", location=f"pc {pc}", hint="a program ends with halt"
            )
            return Entry(FAULT, 1, Template(pc, FAULT, "halt"))
        if pc == front.break_at:
            return Entry(STOP, self.cost + 1, front.templates[pc])
        if front.limit is not None and front.executed >= front.limit:
            self.fault = H2LearnError(
                f"the program executed {front.limit} instructions without reaching halt",
                location=front.program.describe(pc, self.iterations[: len(self.levels)]),
                hint="raise the limit on instructions if this is no endless loop",
            )
            return Entry(FAULT, 1, front.templates[pc])
        return None

    def _yield(
        self,
        code: int,
        template: Template,
        operation: Operation | None = None,
        version: int = 0,
        unset: tuple[str, ...] = (),
    ) -> Entry:
        cost, self.cost = self.cost, 0
        return Entry(code, cost, template, operation, version, tuple(self.iterations[: len(self.levels)]), unset)

    def _dispatch(self, template: Template) -> Entry:
        if template.code != WORK:
            return self._yield(template.code, template)
        kind, index = template.descriptor
        contents = self.descriptors[kind][index]
        registers, iterations = self.registers, self.iterations
        used = [registers[number] for _, number in template.registers]
        places = tuple([(register.memory, register.value(iterations)) for register in used])
        mask = template.init_mask
        init = not mask & NEVER_INIT and not (mask and self._past_first(mask))
        operation = template.operations.get((contents.version, init, places))
        if operation is None:
            operation = self._operation(template, contents, init, places)
        unset: tuple[str, ...] = ()
        if not contents.configured or not all(register.configured for register in used):
            unset = self._unset(template, contents)
        return self._yield(WORK, template, operation, contents.version, unset)

    def _past_first(self, mask: int) -> bool:
        iterations = self.iterations
        return any(iterations[level] for level in range(MAX_LOOP_DEPTH) if mask >> level & 1)

    def _operation(self, template: Template, contents: Contents, init: bool, places: Places) -> Operation:
        """Return a dispatch that is new, and keep it for the next runs."""
        operands = {name: Operand(*place) for (name, _), place in zip(template.registers, places, strict=True)}
        operation = Operation(template.pc, template.mnemonic, operands, contents.fields, init, template.fields)
        self.front.keep(template, (contents.version, init, places), operation)
        return operation

    def _unset(self, template: Template, contents: Contents) -> tuple[str, ...]:
        names = [name for name, number in template.registers if not self.registers[number].configured]
        return tuple(names if contents.configured else ["desc", *names])

    def _address(self, template: Template) -> None:
        register = template.fields
        self.registers[register["reg"]] = AddressRegister(MEMORIES[register["mem"]], register["base"], configured=True)

    def _configure(self, template: Template) -> None:
        kind, index = template.descriptor
        row = DESCRIPTORS[kind]
        target = row.fields[template.fields["field"]]
        value = template.fields["value"]
        if row.name == "areg":
            self.registers[index].configure(target.name, value)
            return
        contents = self.descriptors[kind][index]
        written = _binary32(value) if target.kind is Kind.F32 else value
        contents.configured = True
        if target.kind is Kind.F32 or contents.fields[target.name] != written:
            self.versions += 1
            contents.fields = {**contents.fields, target.name: written}
            contents.version = self.versions

    def _open(self, template: Template) -> None:
        if not template.count:
            self.pc = template.match + 1
            return
        self.iterations[len(self.levels)] = 0
        self.levels.append(template.count)

    def _close(self, template: Template) -> None:
        level = len(self.levels) - 1
        self.iterations[level] += 1
        if self.iterations[level] < self.levels[level]:
            self.pc = template.match + 1
            return
        self.iterations[level] = 0
        self.levels.pop()


def _binary32(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def _template(program: LoadedProgram, pc: int, word: Decoded | None = None) -> Template:
    """Take apart the instruction at ``pc``, or one ``word`` of its table."""
    item = word or program.code[pc]
    row, values = BY_MNEMONIC[item.mnemonic], item.fields
    template = Template(pc, _CODES.get(item.mnemonic, WORK), item.mnemonic, match=program.matches[pc])
    if word is None:
        template.words = tuple(_template(program, pc, inner) for inner in program.tables.get(pc, ()))
    if item.mnemonic in ("cfg", "addr"):
        template.descriptor = (values.get("kind", -1), values.get("index", -1))
        template.fields = dict(values)
    elif item.mnemonic == "loop":
        template.count = values["count"]
    elif item.mnemonic == "fork":
        template.fields, template.count = dict(values), values["length"]
    elif row.engine == BY_FIELD:
        template.engine = values["engine"]
        template.sem, template.count = values.get("sem", 0), values.get("count", 0)
    elif row.engine != CONTROL:
        _compute(template, values)
        if row.engine == "BE":
            template.fields |= {"elements": program.machine.backward.elements, "width": program.machine.backward.width}
        if item.mnemonic == "fe.run" and program.machine.forward.skip_zero_patterns:
            template.fields["skipping_lanes"] = program.machine.forward.lanes
    return template


def _compute(template: Template, values: dict[str, int]) -> None:
    row = BY_MNEMONIC[template.mnemonic]
    template.engine = ENGINES.index(row.engine)
    template.registers = tuple((f.name, values[f.name]) for f in row.fields if f.kind is Kind.AREG)
    kinds = [d.name for d in DESCRIPTORS]
    for f in row.fields:
        if f.kind is Kind.DESC:
            template.descriptor = (kinds.index(f.of), values[f.name])
        elif f.name == "init":
            template.init_mask = values["init"]
        elif f.kind is not Kind.AREG:
            template.fields[f.name] = values[f.name]
