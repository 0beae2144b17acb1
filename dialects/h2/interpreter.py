"""Runs ``h2`` programs on byte memories, each stream in program order.

Streams take turns: one runs until it halts or a ``wait`` lacks tokens, then the next. Within a stream, queues and
``fence`` do not change the sequential meaning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from xdsl.dialects import builtin

from h2learn.backends.h2learn import isa
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.numerics import storage_dtype

from ..common import Array, get_io, source_of
from .layouts import (
    Memory,
    Place,
    read_bits,
    read_numbers,
    read_real,
    write_bits,
    write_numbers,
    write_real,
)
from .ops import InstructionOp, TensorSymbol, get_io_symbols, get_symbols, program_ops, setup_words, verify_program
from .semantics import SEMANTICS
from .semantics.job import Job, Value

_CHIP_BYTES = 1 << 32
_ORDER_ONLY = frozenset({"nop", "fence"})
_STREAMS = frozenset({"halt", "fork", "signal", "wait"})
_FRONT_END = frozenset({"cfg", "addr", "setup", "loop", "endl"})
_ROWS = _ORDER_ONLY | _STREAMS | _FRONT_END

if set(isa.BY_MNEMONIC) != set(SEMANTICS) | _ROWS:
    raise ImportError(f"rows and semantics differ: {set(isa.BY_MNEMONIC) ^ (set(SEMANTICS) | _ROWS)}")


def interpret(module: builtin.ModuleOp, arguments: Sequence[Array]) -> list[Array]:
    """Run ``@main`` on dense arguments and return its results (see ``dialects/common.py``).

    Raises VerifyException when the program is not legal and H2LearnError, with the pc, when an instruction faults.
    """
    verify_program(module)
    roles = [entry.role for entry in get_io(module)]
    io = get_io_symbols(module)
    if len(io) != len(roles) or len(arguments) > len(io):
        raise H2LearnError(f"expected at most {len(roles)} arguments and as many symbols, found {len(arguments)}")
    symbols = get_symbols(module)
    dram = Memory("DRAM", max((s.address + s.size for s in symbols.values()), default=0), fill=0)
    for symbol in symbols.values():
        if symbol.contents:
            write_numbers(Place(dram, symbol.address), np.frombuffer(symbol.contents, np.uint8), "u1")
    for symbol, argument in zip(io, arguments, strict=False):
        _write_tensor(dram, symbol, argument)
        if symbol.shadow:
            _write_tensor(dram, symbols[symbol.shadow], argument)
    run_program(program_ops(module), dram)
    return [_read_tensor(dram, symbol) for symbol in io[len(arguments) :]]


def run_program(ops: Sequence[InstructionOp], dram: Memory) -> dict[str, Memory]:
    """Run instructions on ``dram`` and fresh on-chip memories; return all memories by name.

    Raises H2LearnError when an instruction faults, and when every stream that has not halted lacks tokens.
    """
    memories = {name: Memory(name, _CHIP_BYTES) for name in isa.MEMORIES} | {"DRAM": dram}
    with np.errstate(all="ignore"):
        _Streams(ops, memories).run()
    return memories


@dataclass
class _Stream:
    """A stream of instructions: where it is, and its own loops, registers and descriptors."""

    number: int
    pc: int
    front_end: _FrontEnd
    halted: bool = False


class _Streams:
    """All streams of a program and the semaphores between them."""

    def __init__(self, ops: Sequence[InstructionOp], memories: dict[str, Memory]) -> None:
        self.memories = memories
        self.ops = ops
        self.program = [(op.mnemonic, op.named_fields()) for op in ops]
        self.tables = {pc: setup_words(op) for pc, op in enumerate(ops) if op.mnemonic == "setup"}
        self.closers = _matching_loops(ops)
        self.tokens = [0] * isa.SEMAPHORES
        self.streams = [_Stream(0, 0, _FrontEnd(memories))]

    def run(self) -> None:
        """Let the streams take turns until all have halted."""
        while running := [stream for stream in self.streams if not stream.halted]:
            if sum(self.advance(stream) for stream in running) == 0:
                raise H2LearnError(f"deadlock: {'; '.join(self.lack(stream) for stream in running)}")

    def advance(self, stream: _Stream) -> bool:
        """Run one stream until it halts or lacks tokens; return whether it did anything."""
        moved = False
        while stream.pc < len(self.program):
            mnemonic, fields = self.program[stream.pc]
            if mnemonic == "halt":
                break
            if mnemonic == "wait" and self.tokens[fields["sem"]] < fields["count"]:
                return moved
            self.step(stream, mnemonic, fields)
            moved = True
        stream.halted = True
        return True

    def step(self, stream: _Stream, mnemonic: str, fields: dict[str, int]) -> None:
        """Execute one instruction."""
        pc = stream.pc
        if mnemonic == "fork":
            self.streams.append(_Stream(fields["stream"], pc + 1, _FrontEnd(self.memories)))
            stream.pc = pc + 1 + fields["length"]
            return
        if mnemonic in ("signal", "wait"):
            self.tokens[fields["sem"]] += fields["count"] if mnemonic == "signal" else -fields["count"]
            stream.pc = pc + 1
            return
        try:
            for word, values in self.tables.get(pc, ()):
                stream.front_end.step(pc, word, values, self.closers)
            stream.pc = stream.front_end.step(pc, mnemonic, fields, self.closers)
        except H2LearnError as error:
            raise H2LearnError(f"{mnemonic}: {error.message}", location=self.place(pc), hint=error.hint) from error

    def lack(self, stream: _Stream) -> str:
        """Say what a stream waits for."""
        sem, count = (self.program[stream.pc][1][name] for name in ("sem", "count"))
        place, held = self.place(stream.pc), self.tokens[sem]
        return f"stream {stream.number} at {place} waits for {count} of semaphore {sem}, which holds {held}"

    def place(self, pc: int) -> str:
        """Return the pc and the source of an instruction."""
        source = source_of(self.ops[pc])
        return f"pc {pc} ({source})" if source else f"pc {pc}"


@dataclass
class _Register:
    memory: str = "DRAM"
    base: int = 0
    strides: list[int] = field(default_factory=lambda: [0] * isa.MAX_LOOP_DEPTH)
    steps: list[int] = field(default_factory=lambda: [0] * isa.MAX_LOOP_DEPTH)
    ring: int = 0
    ring_bytes: int = 0

    def value(self, indices: Sequence[int]) -> int:
        place = self.base + sum(i * stride for i, stride in zip(indices, self.strides, strict=False))
        if self.ring > 1:
            place += sum(i * step for i, step in zip(indices, self.steps, strict=False)) % self.ring * self.ring_bytes
        return place


@dataclass
class _Loop:
    start: int
    count: int
    index: int = 0


class _FrontEnd:
    """Loops, address registers and descriptors."""

    def __init__(self, memories: dict[str, Memory]) -> None:
        self.memories = memories
        self.registers: dict[int, _Register] = {0: _Register()}
        self.descriptors: dict[tuple[str, int], dict[str, Value]] = {}
        self.loops: list[_Loop] = []

    def step(self, pc: int, mnemonic: str, fields: dict[str, int], closers: dict[int, int]) -> int:
        """Execute one instruction and return the next pc."""
        if mnemonic == "loop":
            if not fields["count"]:
                return closers[pc] + 1
            self.loops.append(_Loop(pc + 1, fields["count"]))
        elif mnemonic == "endl":
            loop = self.loops[-1]
            loop.index += 1
            if loop.index < loop.count:
                return loop.start
            self.loops.pop()
        elif mnemonic == "addr":
            self.registers[fields["reg"]] = _Register(isa.MEMORIES[fields["mem"]], fields["base"])
        elif mnemonic == "cfg":
            self.configure(isa.DESCRIPTORS[fields["kind"]], fields["index"], fields["field"], fields["value"])
        elif mnemonic not in _ORDER_ONLY and mnemonic != "setup":
            SEMANTICS[mnemonic](self.dispatch(isa.BY_MNEMONIC[mnemonic], fields))
        return pc + 1

    def configure(self, descriptor: isa.Descriptor, index: int, number: int, value: int) -> None:
        """Set one field of a descriptor or of an address register."""
        target = descriptor.fields[number]
        if descriptor.name != "areg":
            self.descriptor(descriptor, index)[target.name] = _typed(target, value)
            return
        register = self.registers.setdefault(index, _Register())
        if target.name == "ring":
            register.ring = value
        elif target.name == "rbytes":
            register.ring_bytes = value
        else:
            level = int(target.name[-1])
            (register.strides if target.name.startswith("stride") else register.steps)[level] = value

    def descriptor(self, descriptor: isa.Descriptor, index: int) -> dict[str, Value]:
        """Return a descriptor; all its fields start as 0."""
        key = (descriptor.name, index)
        if key not in self.descriptors:
            self.descriptors[key] = {item.name: _typed(item, 0) for item in descriptor.fields}
        return self.descriptors[key]

    def dispatch(self, row: isa.Instruction, fields: dict[str, int]) -> Job:
        """Evaluate the operands of an instruction with the loop indices of now."""
        indices = [loop.index for loop in self.loops]
        places: dict[str, Place] = {}
        words: dict[str, str] = {}
        contents: dict[str, Value] = {}
        for item in row.fields:
            value = fields[item.name]
            if item.kind is isa.Kind.AREG:
                register = self.registers[value]
                memory = "DRAM" if item.name in row.coordinates else register.memory
                places[item.name] = Place(self.memories[memory], register.value(indices))
            elif item.kind is isa.Kind.DESC:
                contents = self.descriptor(isa.DESCRIPTOR_BY_NAME[item.of], value)
            elif item.kind is isa.Kind.ENUM:
                words[item.name] = item.values[value]
        init = self.is_first(fields["init"], indices) if "init" in fields else False
        return Job(places, contents, words, init)

    def is_first(self, init: int, indices: Sequence[int]) -> bool:
        """Decide whether an instruction starts fresh."""
        if init & isa.NEVER_INIT:
            return False
        levels = [level for level in range(isa.MAX_LOOP_DEPTH) if init >> level & 1]
        return all(indices[level] == 0 for level in levels)


def _typed(target: isa.Field, value: int) -> Value:
    if target.kind is isa.Kind.F32:
        return np.float32(np.uint32(value).view(np.float32))
    return target.values[value] if target.kind is isa.Kind.ENUM else value


def _matching_loops(ops: Sequence[InstructionOp]) -> dict[int, int]:
    closers: dict[int, int] = {}
    opened: list[int] = []
    for pc, op in enumerate(ops):
        if op.mnemonic == "loop":
            opened.append(pc)
        elif op.mnemonic == "endl":
            closers[opened.pop()] = pc
    return closers


_PLAIN = {"i32": "i4", "u8": "u1", "scalars": "i4"}


def _write_tensor(dram: Memory, symbol: TensorSymbol, values: Array) -> None:
    place = Place(dram, symbol.address)
    if values.size != math.prod(symbol.shape):
        raise H2LearnError(f"expected {symbol.shape} for {symbol.name!r}, found {values.shape}")
    dense = values.reshape(symbol.shape)
    if symbol.dtype == "bits":
        write_bits(place, dense.astype(np.bool_))
    elif symbol.dtype in _PLAIN:
        write_numbers(place, dense, _PLAIN[symbol.dtype])
    elif symbol.dtype in ("f32", "f16"):
        for plane in np.split(dense, dense.shape[-1] // symbol.plane, axis=-1) if symbol.plane else [dense]:
            write_real(place, plane.astype(np.float32), symbol.dtype)
            place = place.offset(plane.size * storage_dtype(symbol.dtype).itemsize)
    else:
        raise H2LearnError(f"{symbol.name!r} of type {symbol.dtype} cannot be an argument")


def _read_tensor(dram: Memory, symbol: TensorSymbol) -> Array:
    place = Place(dram, symbol.address)
    if symbol.dtype == "bits":
        return read_bits(place, symbol.shape)
    if symbol.dtype in _PLAIN:
        return np.asarray(read_numbers(place, symbol.shape, _PLAIN[symbol.dtype]))
    if symbol.dtype in ("f32", "f16"):
        return read_real(place, symbol.shape, symbol.dtype)
    raise H2LearnError(f"{symbol.name!r} of type {symbol.dtype} cannot be a result")
