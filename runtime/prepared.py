"""Instructions worked out once as blocks of words, executed without Python: by the event loop, or one alone.

A block names the calls (``native.py``) of an instruction in their order, what each is given, and how the counters of
the calls become the counts of the instruction.
"""

# Kernels follow Numba's typing rules, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, no-any-return"

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import team
from .jit import jit
from .native import Call, words_at
from .operation import Work
from .team import COUNTERS, FAILED, THREADS, share, team_at_work

I64 = npt.NDArray[np.int64]

WORTH_A_PIECE = 1 << 13
"""Inner-loop elements below which work is not cut further (a few microseconds)."""
PIECES_PER_THREAD = 4
MOST_COUNTS = 16
"""Counts of an instruction that its execution decides."""
CALLS, COUNTS, RESULT, NONFINITE, BLOCK_WORDS = range(5)
"""Words in front of a block: how many calls and counts follow, which counter is the result (-1: none) and which one
counts what is not finite (-1: none)."""
CALL, ARGS, EXTRA, FIRST, TOTAL, PIECES, CALL_WORDS = range(7)
"""Words of a call: its address, of its arguments, what else it is given, its work, in how many pieces at most."""
COUNT, COUNTER, FACTOR, COUNT_WORDS = range(4)
"""Words of a count: its number, and the counter and the factor that make it."""


@jit
def perform(block: int, words: I64, counters: I64, counts: I64) -> int:
    """Execute the block at an address and add to its ``counts``; returns whether it could be executed.

    What the calls have counted is then in ``counters[0]``.
    """
    threads = words[THREADS]
    for thread in range(threads):
        for i in range(COUNTERS):
            counters[thread, i] = 0
    head = words_at(block, BLOCK_WORDS)
    calls = words_at(block + 8 * BLOCK_WORDS, head[CALLS] * CALL_WORDS)
    for number in range(head[CALLS]):
        at = number * CALL_WORDS
        pieces = most_pieces(words, calls[at + PIECES])
        share(
            words,
            counters,
            calls[at + CALL],
            calls[at + ARGS],
            calls[at + EXTRA],
            calls[at + FIRST],
            calls[at + TOTAL],
            pieces,
        )
    if threads > 1:
        for thread in range(1, threads):
            for i in range(COUNTERS):
                counters[0, i] += counters[thread, i]
    own = counters[0]
    table = words_at(block + 8 * (BLOCK_WORDS + head[CALLS] * CALL_WORDS), head[COUNTS] * COUNT_WORDS)
    for number in range(head[COUNTS]):
        at = number * COUNT_WORDS
        counts[table[at + COUNT]] += own[table[at + COUNTER]] * table[at + FACTOR]
    return words[FAILED] == 0


@jit
def most_pieces(words: I64, wanted: int) -> int:
    """Return into how many pieces a team cuts work that is worth so many: as many for each thread, where it can."""
    threads = words[THREADS]
    if threads == 1:
        return 1
    pieces = min(wanted, threads * PIECES_PER_THREAD)
    return pieces - pieces % threads if pieces > threads else pieces


class Prepared(NamedTuple):
    """An instruction as a ``block``.

    ``names`` of what its execution counts, in the order of their numbers; ``fixed``: what is counted whatever the data
    are, to be added. ``kept``: the memory that the block has addresses in.
    """

    block: I64
    names: tuple[str, ...]
    fixed: dict[str, int]
    kept: tuple[object, ...]

    @property
    def address(self) -> int:
        """Where the block is."""
        return int(self.block.ctypes.data)

    def execute(self) -> Work:
        """Execute it alone."""
        counts = np.zeros(MOST_COUNTS, np.int64)
        with team_at_work() as workers:
            done = perform(self.address, workers.words, workers.counters, counts)
        if not done:
            workers.words[FAILED] = 0
            raise MemoryError("a kernel ran out of memory")
        found = dict(self.fixed)
        for name, count in zip(self.names, counts.tolist(), strict=False):
            found[name] = found.get(name, 0) + count
        return Work(found)


class Arguments:
    """The words that calls read, in the order in which they read them: two for an array, one for a number."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self.kept: list[object] = []

    def array(self, array: npt.NDArray[Any]) -> Arguments:
        """Append an array that is kept as long as the arguments are used."""
        self.kept.append(array)
        self.words += (array.ctypes.data, array.size)
        return self

    def memory(self, place: tuple[int, int], item: int) -> Arguments:
        """Append the values of ``item`` bytes at (address, bytes)."""
        self.words += (place[0], place[1] // item)
        return self

    def numbers(self, *values: int) -> Arguments:
        """Append integers."""
        self.words += [int(value) for value in values]
        return self

    def reals(self, *values: float) -> Arguments:
        """Append float32 numbers."""
        self.words += [struct.unpack("<I", struct.pack("<f", value))[0] for value in values]
        return self


class Builder:
    """Collects the calls of an instruction; ``counting``: whether anybody wants its counts."""

    def __init__(self, counting: bool = True) -> None:
        self.counting = counting
        self.calls: list[tuple[int, Arguments, int, int, int, int]] = []

    def call(
        self, call: Call, args: Arguments, total: int, elements: int = 0, *, first: int = 0, extra: int = 0
    ) -> None:
        """Append a call over ``[first, first+total)``; ``elements`` of inner loops decide into how many pieces."""
        if len(args.words) != call.words:
            raise ValueError(f"{call.name} reads {call.words} words, given {len(args.words)}")
        pieces = max(1, min(elements // WORTH_A_PIECE, total, team.MOST_PIECES))
        self.calls.append((call.address, args, extra, first, total, pieces))

    def count(
        self, call: Call, args: Arguments, total: int, elements: int = 0, *, first: int = 0, extra: int = 0
    ) -> None:
        """Append a call that does nothing but count."""
        if self.counting:
            self.call(call, args, total, elements, first=first, extra=extra)

    def prepared(
        self,
        fixed: Mapping[str, int],
        counts: Mapping[str, tuple[int, int]],
        *,
        result: int = -1,
    ) -> Prepared:
        """Return the block; ``counts``: name -> (counter, factor); ``result``: counter of the cycles.

        Where nobody wants counts, only what is not finite is left of them.
        """
        if not self.counting:
            fixed, counts, result = {}, {name: counts[name] for name in counts if name == "nonfinite"}, -1
        blocks: dict[int, tuple[int, Arguments]] = {}
        size = BLOCK_WORDS + len(self.calls) * CALL_WORDS + len(counts) * COUNT_WORDS
        for _, args, *_ in self.calls:
            if id(args) not in blocks:
                blocks[id(args)] = (size, args)
                size += len(args.words)
        block = np.empty(size, np.int64)
        start = block.ctypes.data
        nonfinite = counts.get("nonfinite", (-1, 0))[0]
        words = [len(self.calls), len(counts), result, nonfinite]
        for address, args, extra, first, total, pieces in self.calls:
            words += (address, start + 8 * blocks[id(args)][0], extra, first, total, pieces)
        for number, (counter, factor) in enumerate(counts.values()):
            words += (number, counter, factor)
        for _, args in blocks.values():
            words += args.words
        block[:] = words
        kept = tuple(item for _, args in blocks.values() for item in args.kept)
        return Prepared(block, tuple(counts), dict(fixed), kept)
