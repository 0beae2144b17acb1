"""Run-time checks of a program: ``race``, ``uninit`` and ``bounds``.

``race``: every queue (of a stream at an engine) has a vector clock; the tokens of a ``signal`` carry it to the queue
that waits for them, a ``fence`` joins those of its stream, and a stream starts from the last fence before its ``fork``.
Two accesses to one byte from different queues, at least one a write, must be ordered by them.
``uninit``: on-chip bytes, descriptors and address registers that nothing has written in this run.
``bounds``: DRAM accesses between the program's segments, and writes to its read-only data. (An access outside a memory
is a fault with and without sanitizers.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import BY_MNEMONIC, ENGINES, STREAMS

from .loader import LoadedProgram
from .operation import Memories, Operation
from .regions import Access

CHECKS = frozenset({"race", "uninit", "bounds"})
MAX_FINDINGS = 100

Clock = list[int]
Scalar = TypeVar("Scalar", bound=np.generic)
Clocks = npt.NDArray[np.uint32]

_AGENTS = STREAMS * len(ENGINES)
_AGENT_BITS = (_AGENTS - 1).bit_length()
_AGENT_MASK = (1 << _AGENT_BITS) - 1


@dataclass(frozen=True)
class Finding:
    """One defect: ``kind`` is the sanitizer, ``pc`` the instruction, ``other_pc`` the one it races with (or -1)."""

    kind: str
    message: str
    pc: int
    other_pc: int = -1


class Sanitizers:
    """The checks of one run; ``findings`` in the order of discovery, each place once, at most ``MAX_FINDINGS``."""

    def __init__(self, checks: Iterable[str], program: LoadedProgram, memories: Memories) -> None:
        chosen = frozenset(checks)
        if chosen - CHECKS:
            raise H2LearnError(
                f"there is no sanitizer {min(chosen - CHECKS)!r}", hint=f"known sanitizers: {', '.join(sorted(CHECKS))}"
            )
        self.program = program
        self.memories = memories
        self.findings: list[Finding] = []
        self._seen: set[tuple[object, ...]] = set()
        self.races = RaceDetector(self._report, program, memories) if "race" in chosen else None
        self._written = _written_shadow(memories) if "uninit" in chosen else None
        self._bounds = "bounds" in chosen
        self._segments = [(s.address, s.address + s.size, s.writable) for s in program.segments if s.size]

    def before(self, agent: int, op: Operation, accesses: Sequence[Access], unset: Sequence[str], where: str) -> None:
        """Check an instruction as its engine starts it; raises H2LearnError when an access is outside its memory."""
        for access in accesses:
            check_inside(op, access, self.memories, where)
        if self._written is not None:
            self._check_written(self._written, op, accesses, unset, where)
        if self._bounds:
            self._check_segments(op, accesses, where)
        if self.races is not None:
            self.races.access(agent, op, accesses, where)

    def at_halt(self, tokens: Sequence[int]) -> None:
        """Check the semaphores at the end: ``tokens`` left in each."""
        if self.races is None:
            return
        for sem, left in enumerate(tokens):
            if left:
                noun = "token" if left == 1 else "tokens"
                message = f"semaphore {sem} still holds {left} {noun} at halt: a wait is missing"
                self._report(("halt", sem), Finding("race", message, len(self.program.code) - 1))

    def _report(self, key: tuple[object, ...], finding: Finding) -> None:
        if key not in self._seen and len(self.findings) < MAX_FINDINGS:
            self._seen.add(key)
            self.findings.append(finding)

    def _check_written(
        self,
        written: dict[str, npt.NDArray[np.bool_]],
        op: Operation,
        accesses: Sequence[Access],
        unset: Sequence[str],
        where: str,
    ) -> None:
        used = {access.operand for access in accesses} | BY_MNEMONIC[op.mnemonic].coordinates | {"desc"}
        for name in unset:
            if name in used:
                what = "its descriptor" if name == "desc" else f"the address register of {name}"
                message = f"{op.mnemonic} at {where} uses {what}, which the program never set"
                self._report(("unset", op.pc, name), Finding("uninit", message, op.pc))
        for access in accesses:
            shadow = written.get(op.operands[access.operand].memory)
            if shadow is None:
                continue
            view = shadow_view(shadow, op, access, self.memories)
            if access.write:
                view[...] = True
            elif not view.all():
                place = _place(op, access, ~view)
                message = f"{op.mnemonic} at {where} reads {place} ({access.operand}), which nothing has written"
                self._report(("uninit", op.pc, access.operand), Finding("uninit", message, op.pc))

    def _check_segments(self, op: Operation, accesses: Sequence[Access], where: str) -> None:
        for access in accesses:
            if op.operands[access.operand].memory != "DRAM":
                continue
            start = op.operands[access.operand].address
            if self._allowed(start + access.low, start + access.high, access.write):
                continue
            for low, high in row_ranges(start, access):
                if self._allowed(low, high, access.write):
                    continue
                home = self._segment(low, high)
                fault = "is outside the program's data" if home is None else "is read-only"
                verb = "writes" if access.write else "reads"
                message = f"{op.mnemonic} at {where} {verb} DRAM[{low:#x}..{high:#x}], which {fault}"
                self._report(("bounds", op.pc, access.operand), Finding("bounds", message, op.pc))
                break

    def _segment(self, low: int, high: int) -> tuple[int, int, bool] | None:
        return next((s for s in self._segments if s[0] <= low and high <= s[1]), None)

    def _allowed(self, low: int, high: int, write: bool) -> bool:
        home = self._segment(low, high)
        return home is not None and (home[2] or not write)


class RaceDetector:
    """Vector clocks over bytes: the last writer and, per queue, the last reader of every byte of every memory.

    An agent is a queue, numbered by ``agent_of``.
    """

    def __init__(
        self, report: Callable[[tuple[object, ...], Finding], None], program: LoadedProgram, memories: Memories
    ) -> None:
        self.report = report
        self.program = program
        self.memories = memories
        self.clocks: list[Clock] = [[0] * _AGENTS for _ in range(_AGENTS)]
        self.fenced: Clock = [0] * _AGENTS
        self.pcs: list[list[int]] = [[-1] for _ in range(_AGENTS)]
        self.writers: dict[str, Clocks] = {}
        self.readers: dict[str, dict[int, Clocks]] = {}

    def snapshot(self, agent: int) -> Clock:
        """Return what a token that ``agent`` posts now carries."""
        return list(self.clocks[agent])

    def join(self, agent: int, clock: Clock) -> None:
        """``agent`` now comes after everything in ``clock``."""
        own = self.clocks[agent]
        for index, value in enumerate(clock):
            if value > own[index]:
                own[index] = value

    def fence(self, stream: int) -> None:
        """Everything that a stream dispatches from here on comes after everything that it dispatched before."""
        agents = [agent_of(stream, engine) for engine in range(len(ENGINES))]
        joined = [max(column) for column in zip(*(self.clocks[agent] for agent in agents), strict=True)]
        for agent in agents:
            self.clocks[agent] = list(joined)
        if not stream:
            self.fenced = joined

    def fork(self, stream: int) -> None:
        """A stream starts: it comes after everything before the last fence of stream 0."""
        for engine in range(len(ENGINES)):
            self.clocks[agent_of(stream, engine)] = list(self.fenced)

    def access(self, agent: int, op: Operation, accesses: Sequence[Access], where: str) -> None:
        """Check the accesses of an instruction against all earlier ones, then record them."""
        clock = self.clocks[agent]
        clock[agent] += 1
        self.pcs[agent].append(op.pc)
        limits = np.array([(value << _AGENT_BITS) | _AGENT_MASK for value in clock], dtype=np.uint32)
        packed = np.uint32(clock[agent] << _AGENT_BITS | agent)
        for access in accesses:
            memory = op.operands[access.operand].memory
            writers = self.writers.get(memory)
            if writers is None:
                writers = self.writers[memory] = np.zeros(self.memories.arrays[memory].size, dtype=np.uint32)
            last = shadow_view(writers, op, access, self.memories)
            self._check_writers(agent, op, access, last, limits, where)
            if access.write:
                self._check_readers(agent, op, access, clock, where)
                last[...] = packed
            else:
                shadow_view(self._readers(memory, agent), op, access, self.memories)[...] = clock[agent]

    def _check_writers(
        self, agent: int, op: Operation, access: Access, last: Clocks, limits: Clocks, where: str
    ) -> None:
        first = last[(0,) * last.ndim]
        if first <= limits[first & _AGENT_MASK] and (last == first).all():
            return
        unordered = last > limits[last & _AGENT_MASK]
        if unordered.any():
            packed = int(last[np.unravel_index(int(unordered.argmax()), last.shape)])
            other = packed & _AGENT_MASK
            self._found(agent, op, access, unordered, other, packed >> _AGENT_BITS, "write", where)

    def _check_readers(self, agent: int, op: Operation, access: Access, clock: Clock, where: str) -> None:
        for other, shadow in self.readers.get(op.operands[access.operand].memory, {}).items():
            if other == agent:
                continue
            last = shadow_view(shadow, op, access, self.memories)
            newest = int(last.max())
            if newest > clock[other]:
                self._found(agent, op, access, last > clock[other], other, newest, "read", where)

    def _readers(self, memory: str, agent: int) -> Clocks:
        readers = self.readers.setdefault(memory, {})
        shadow = readers.get(agent)
        if shadow is None:
            shadow = readers[agent] = np.zeros(self.memories.arrays[memory].size, dtype=np.uint32)
        return shadow

    def _found(
        self,
        agent: int,
        op: Operation,
        access: Access,
        unordered: npt.NDArray[np.bool_],
        other: int,
        other_clock: int,
        other_verb: str,
        where: str,
    ) -> None:
        other_pc = self.pcs[other][other_clock]
        verb = "write" if access.write else "read"
        message = (
            f"{verb} of {_place(op, access, unordered)} by {_engine_of(agent)} at {where} races with the {other_verb}"
            f" by {_engine_of(other)} at {self.program.describe(other_pc)}"
        )
        self.report(("race", op.pc, other_pc), Finding("race", message, op.pc, other_pc))


def agent_of(stream: int, engine: int) -> int:
    """Return the number of the queue of a stream at an engine."""
    return stream * len(ENGINES) + engine


def _engine_of(agent: int) -> str:
    return ENGINES[agent % len(ENGINES)]


def check_inside(op: Operation, access: Access, memories: Memories, where: str) -> None:
    """Raise H2LearnError when an access leaves its memory."""
    operand = op.operands[access.operand]
    base = memories.dram_base if operand.memory == "DRAM" else 0
    low, high = operand.address + access.low, operand.address + access.high
    end = base + memories.arrays[operand.memory].size
    if low < base or high > end:
        raise H2LearnError(
            f"{access.operand} touches {operand.memory}[{low:#x}..{high:#x}], outside"
            f" {operand.memory}[{base:#x}..{end:#x}]",
            location=where,
            hint="check the address register's base and strides and the sizes in the descriptor",
        )


def shadow_view(shadow: npt.NDArray[Scalar], op: Operation, access: Access, memories: Memories) -> npt.NDArray[Scalar]:
    """Return the elements of ``shadow`` (one per byte of the memory) that an access inside the memory touches."""
    operand = op.operands[access.operand]
    start = operand.address + access.offset - (memories.dram_base if operand.memory == "DRAM" else 0)
    if not access.counts:
        return shadow[start : start + access.run]
    size = shadow.itemsize
    return np.ndarray(
        (*access.counts, access.run),
        shadow.dtype,
        buffer=shadow,
        offset=start * size,
        strides=(*(stride * size for stride in access.strides), size),
    )


def row_ranges(start: int, access: Access) -> Iterable[tuple[int, int]]:
    """Yield the byte range of every row; ``start`` is the address of the operand."""
    for index in np.ndindex(*access.counts):
        low = start + access.offset + sum(i * stride for i, stride in zip(index, access.strides, strict=True))
        yield low, low + access.run


def _place(op: Operation, access: Access, wrong: npt.NDArray[np.generic]) -> str:
    """Return ``U[0x40..0x80]``: from the first wrong byte of an access to the last."""
    operand = op.operands[access.operand]
    flat = np.flatnonzero(wrong)
    addresses = []
    for position in (int(flat[0]), int(flat[-1])):
        *index, byte = np.unravel_index(position, wrong.shape)
        offset = sum(int(i) * stride for i, stride in zip(index, access.strides, strict=True))
        addresses.append(operand.address + access.offset + offset + int(byte))
    return f"{operand.memory}[{min(addresses):#x}..{max(addresses) + 1:#x}]"


def _written_shadow(memories: Memories) -> dict[str, npt.NDArray[np.bool_]]:
    return {name: np.zeros(array.size, dtype=np.bool_) for name, array in memories.arrays.items() if name != "DRAM"}
