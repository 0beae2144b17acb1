"""From an object file to a program that can be executed: checked, decoded, with its DRAM image and locations."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from h2learn.backends.h2learn.encoder import Decoded, decode_program
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import (
    ISA_VERSION,
    MAX_LOOP_DEPTH,
    MEMORIES,
    NEVER_INIT,
    SETUP_WORDS,
    WORD_BYTES,
    isa_hash,
)
from h2learn.backends.h2learn.machine import Machine, from_dict
from h2learn.backends.h2learn.object_file import DATA_SECTIONS, DRAM_BASE, ObjectFile, Symbol, read_object

from .operation import Memories


@dataclass(frozen=True)
class Segment:
    """A piece of the DRAM image: ``size`` bytes from ``address``, starting with ``contents`` and zero after them."""

    name: str
    address: int
    size: int
    contents: bytes
    writable: bool


@dataclass(frozen=True)
class LoadedProgram:
    """A checked program.

    ``matches[pc]`` is the pc of the other end of a loop, ``depths[pc]`` the loops open there, ``tables[pc]`` the words
    that a ``setup`` executes, ``streams[pc]`` the stream that executes the instruction.
    """

    code: list[Decoded]
    machine: Machine
    segments: list[Segment]
    symbols: dict[str, Symbol]
    note: dict[str, Any]
    locations: list[tuple[int, int, str, str]]
    name: str = "program"
    matches: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    tables: dict[int, list[Decoded]] = field(default_factory=dict)
    streams: list[int] = field(default_factory=list)

    def source(self, pc: int) -> str:
        """Return where the instruction came from, as the location table says; empty when it does not say."""
        entry = self._location(pc)
        return entry[2] if entry else ""

    def stage(self, pc: int) -> str:
        """Return the stage that the instruction belongs to (``forward c1``); empty when the location table has none."""
        entry = self._location(pc)
        return entry[3].rpartition(":")[0] if entry else ""

    def describe(self, pc: int, iterations: Sequence[int] = ()) -> str:
        """Return ``pc 17 (net.snn:3:1, forward c1, t=3)`` for messages; ``iterations`` are those of the open loops.

        Of a stream that was forked the number comes first: ``pc 17 (stream 1, net.snn:3:1)``.
        """
        entry = self._location(pc)
        stage, _, loops = entry[3].rpartition(":") if entry else ("", "", "")
        stream = f"stream {self.streams[pc]}" if pc < len(self.streams) and self.streams[pc] else ""
        parts = [part for part in (stream, entry[2] if entry else "", stage) if part]
        names = [name.strip() for name in loops.split(",")] if loops.strip() else []
        for level, iteration in enumerate(iterations):
            parts.append(f"{names[level] if level < len(names) else f'loop {level}'}={iteration}")
        return f"pc {pc} ({', '.join(parts)})" if parts else f"pc {pc}"

    def image_range(self) -> tuple[int, int]:
        """Return the first DRAM address of the program and the one past its last."""
        used = [segment for segment in self.segments if segment.size]
        if not used:
            return DRAM_BASE, DRAM_BASE
        return min(s.address for s in used), max(s.address + s.size for s in used)

    def new_memories(self) -> Memories:
        """Return memories of the machine's sizes with the DRAM image in place; raises H2LearnError if it is too big."""
        base, end = self.image_range()
        sizes = {name: self.machine.memory_bytes(name) for name in MEMORIES if name != "DRAM"}
        try:
            memories = Memories({"DRAM": end - base, **sizes}, dram_base=base)
        except MemoryError as error:
            raise H2LearnError(
                f"the program needs {end - base} bytes of DRAM, more than this computer can give", location=self.name
            ) from error
        self._place_contents(memories)
        return memories

    def place_image(self, memories: Memories) -> None:
        """Put the initial contents of every segment back, zeros where it has none."""
        memories.arrays["DRAM"][:] = 0
        self._place_contents(memories)

    def _place_contents(self, memories: Memories) -> None:
        """Copy what segments contain; zeros are left alone, so that fresh pages of a large ``.bss`` stay untouched."""
        dram = memories.arrays["DRAM"]
        for segment in self.segments:
            start = segment.address - memories.dram_base
            dram[start : start + len(segment.contents)] = np.frombuffer(segment.contents, dtype=np.uint8)

    def _location(self, pc: int) -> tuple[int, int, str, str] | None:
        at = bisect_right(self.locations, pc, key=lambda entry: entry[0]) - 1
        return self.locations[at] if at >= 0 and pc <= self.locations[at][1] else None


def load(source: ObjectFile | str | Path | bytes, machine: Machine | None = None, name: str = "") -> LoadedProgram:
    """Return the program of an object file.

    ``machine``: refuse a program for another one. Raises H2LearnError for a file that cannot be read, another
    instruction set, another machine, illegal words, unbalanced loops, init masks of loops that are not open, streams
    that are not started once, in stream 0 and outside loops, and semaphores from which several queues take.
    """
    obj = source if isinstance(source, ObjectFile) else read_object(source)
    where = name or (str(source) if isinstance(source, str | Path) else "program")
    _check_isa(obj.note, where)
    described = from_dict(obj.note.get("machine", {}), f"{where}: machine")
    if machine is not None and machine.hash != described.hash:
        raise H2LearnError(
            f"the program is for machine {described.name!r} ({described.hash}), not for {machine.name!r}"
            f" ({machine.hash})",
            location=where,
            hint="compile the model for this machine, or run the program without naming one",
        )
    contents = {"rodata": obj.rodata, "data": obj.data, "bss": b""}
    segments = [
        Segment(section, obj.bases[section], obj.section_bytes(section), contents[section], section != "rodata")
        for section in DATA_SECTIONS
    ]
    return program_of(decode_program(obj.text), described, segments, obj.symbols, obj.note, obj.locations, where)


def program_of(
    code: list[Decoded],
    machine: Machine,
    segments: Sequence[Segment] = (),
    symbols: dict[str, Symbol] | None = None,
    note: dict[str, Any] | None = None,
    locations: Sequence[tuple[int, int, str, str]] = (),
    name: str = "program",
) -> LoadedProgram:
    """Return a program from decoded instructions; raises H2LearnError as ``load`` does."""
    limit = machine.memory_bytes("DRAM")
    for segment in segments:
        if segment.address < 0 or segment.address + segment.size > limit:
            raise H2LearnError(
                f".{segment.name} ends at {segment.address + segment.size:#x}, past the {limit:#x} bytes of DRAM of"
                f" machine {machine.name!r}",
                location=name,
            )
    streams = _streams(code, name)
    matches, depths = _loops(code, streams, name)
    tables = {
        pc: _table(item, segments, f"{name}: pc {pc}") for pc, item in enumerate(code) if item.mnemonic == "setup"
    }
    return LoadedProgram(
        code,
        machine,
        list(segments),
        symbols or {},
        note or {},
        list(locations),
        name,
        matches,
        depths,
        tables,
        streams,
    )


def _check_isa(note: dict[str, Any], where: str) -> None:
    version, digest = note.get("isa_version"), note.get("isa_hash")
    if version != ISA_VERSION or digest != isa_hash():
        raise H2LearnError(
            f"the program is for instruction set version {version} ({digest}), this is version {ISA_VERSION}"
            f" ({isa_hash()})",
            location=where,
            hint="compile the model again",
        )


def _table(item: Decoded, segments: Sequence[Segment], where: str) -> list[Decoded]:
    """Return the words that a ``setup`` executes; they must lie in constant data and be ``addr`` or ``cfg``."""
    first, size = item.fields["address"], item.fields["count"] * WORD_BYTES
    home = next(
        (s for s in segments if not s.writable and s.address <= first and first + size <= s.address + s.size), None
    )
    if home is None:
        raise H2LearnError(f"setup reads {size} bytes at {first:#x}, which do not lie in constant data", location=where)
    words = decode_program(bytes(home.contents[first - home.address :][:size]))
    for word in words:
        if word.mnemonic not in SETUP_WORDS:
            raise H2LearnError(f"setup cannot execute {word.mnemonic}", location=where)
    return words


def _streams(code: list[Decoded], where: str) -> list[int]:
    """Return the stream of every instruction; checks forks and that one queue takes from a semaphore."""
    streams = [0] * len(code)
    started: set[int] = set()
    consumers: dict[int, tuple[int, int]] = {}
    for pc, item in enumerate(code):
        if item.mnemonic == "fork":
            number, end = item.fields["stream"], pc + item.fields["length"]
            problem = ""
            if streams[pc]:
                problem = f"fork stands in stream {streams[pc]}, but only stream 0 starts others"
            elif number in started:
                problem = f"fork starts stream {number} a second time"
            elif end >= len(code) or code[end].mnemonic != "halt":
                problem = f"the block of {item.fields['length']} instructions behind fork does not end in halt"
            if problem:
                raise H2LearnError(problem, location=f"{where}: pc {pc}")
            started.add(number)
            streams[pc + 1 : end + 1] = [number] * (end - pc)
        elif item.mnemonic == "wait":
            sem, consumer = item.fields["sem"], (streams[pc], item.fields["engine"])
            if consumers.setdefault(sem, consumer) != consumer:
                raise H2LearnError(
                    f"two queues take from semaphore {sem}",
                    location=f"{where}: pc {pc}",
                    hint="give every queue that waits a semaphore of its own",
                )
    return streams


def _loops(code: list[Decoded], streams: list[int], where: str) -> tuple[list[int], list[int]]:
    matches, depths = [-1] * len(code), [0] * len(code)
    opened: list[int] = []
    for pc, item in enumerate(code):
        if opened and streams[pc] != streams[opened[-1]]:
            inside = not streams[opened[-1]]
            problem = "fork stands inside a loop" if inside else "the loop is never closed"
            raise H2LearnError(problem, location=f"{where}: pc {pc - 1 if inside else opened[-1]}")
        depths[pc] = len(opened)
        if item.mnemonic == "loop":
            if len(opened) == MAX_LOOP_DEPTH:
                raise H2LearnError(f"loops nest deeper than {MAX_LOOP_DEPTH}", location=f"{where}: pc {pc}")
            opened.append(pc)
        elif item.mnemonic == "endl":
            if not opened:
                raise H2LearnError("endl closes no loop", location=f"{where}: pc {pc}")
            matches[pc] = opened.pop()
            matches[matches[pc]] = pc
        else:
            _check_init(item, len(opened), f"{where}: pc {pc}")
    if opened:
        raise H2LearnError("the loop is never closed", location=f"{where}: pc {opened[-1]}")
    return matches, depths


def _check_init(item: Decoded, depth: int, where: str) -> None:
    mask = item.fields.get("init", NEVER_INIT)
    if not mask & NEVER_INIT and mask >> depth:
        level = mask.bit_length() - 1
        raise H2LearnError(
            f"{item.mnemonic}: init looks at loop level {level}, but only {depth} loops are open", location=where
        )
