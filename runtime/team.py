"""Threads that share the work of one call: the caller cuts it into pieces, and whoever is free takes the next one.

While a team is at work its helpers spin inside compiled code, so that handing over a piece costs a fraction of a
microsecond; between runs they sleep. A piece is claimed by taking one from the count in the ticket word, which also
numbers the job: who looks at an old ticket cannot claim a piece of a new job. The caller takes pieces itself, from the
last one down, while helpers take them from the first one up: call after call, the same thread mostly has the same part
of the samples, which is still in its caches. The caller waits only for pieces that a helper has begun, so a helper that
is not scheduled delays nothing. Pieces write disjoint memory and every thread counts for itself, hence results and
counts do not depend on who did what.
"""

# Kernels follow Numba's typing rules, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, no-any-return, var-annotated"

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
import numpy.typing as npt

from .aligned import aligned_zeros
from .jit import jit
from .native import add_word, give_way, invoke, load_word, relax, store_word, swap_word

I64 = npt.NDArray[np.int64]

COUNTERS = 24
"""Counters of a thread, what a call may add to."""
_LINE = 8  # words of a cache line: what different threads write lies on different ones
TICKET, DONE, AT_WORK, FAILED = (line * _LINE for line in range(4))
KERNEL, ARGS, EXTRA, FIRST, TOTAL, PIECES, THREADS = (4 * _LINE + column for column in range(7))
"""Words of a team: the ticket, pieces done, whether helpers spin, whether a call failed; the job; how many threads."""
_WORDS = 6 * _LINE
_COUNT_BITS = 16
MOST_PIECES = (1 << _COUNT_BITS) - 1
_FIRST_TAKEN = (1 << _COUNT_BITS) - 1
"""A ticket has the pieces left, above them those that helpers took from the front, above these the number of the job:
what it changes by when the first piece that is left is taken."""
_SPINS = 4096


@jit
def serve(words: I64, counters: I64) -> None:
    """Take pieces of jobs until the team is no longer at work; ``counters`` are those of this thread."""
    idle = 0
    while True:
        if take_piece(words, counters, True):
            idle = 0
            continue
        if load_word(words, AT_WORK) == 0:
            return
        idle += 1
        relax()
        if idle > _SPINS:
            give_way()


@jit
def take_piece(words: I64, counters: I64, from_front: bool) -> bool:
    """Claim the first or the last piece of those that are left of the job, if there is one, and do it."""
    ticket = load_word(words, TICKET)
    left, taken = ticket & MOST_PIECES, (ticket >> _COUNT_BITS) & MOST_PIECES
    if left == 0:
        return False
    if not swap_word(words, TICKET, ticket, ticket + _FIRST_TAKEN if from_front else ticket - 1):
        return True
    pieces, total, first = words[PIECES], words[TOTAL], words[FIRST]
    piece = taken if from_front else taken + left - 1
    low, high = first + total * piece // pieces, first + total * (piece + 1) // pieces
    if invoke(words[KERNEL], words[ARGS], words[EXTRA], low, high, counters.ctypes.data) == 0:
        store_word(words, FAILED, 1)
    add_word(words, DONE, 1)
    return True


@jit
def share(words: I64, counters: I64, kernel: int, args: int, extra: int, first: int, total: int, pieces: int) -> None:
    """Do ``kernel`` over ``[first, first+total)`` in so many pieces; ``counters`` ``[thread][COUNTERS]``, 0 is here."""
    if pieces <= 1:
        if invoke(kernel, args, extra, first, first + total, counters[0].ctypes.data) == 0:
            store_word(words, FAILED, 1)
        return
    words[KERNEL], words[ARGS], words[EXTRA] = kernel, args, extra
    words[FIRST], words[TOTAL], words[PIECES] = first, total, pieces
    store_word(words, DONE, 0)
    job = load_word(words, TICKET) >> 2 * _COUNT_BITS
    store_word(words, TICKET, ((job + 1) << 2 * _COUNT_BITS) | pieces)
    while take_piece(words, counters[0], False):
        pass
    waited = 0
    while load_word(words, DONE) < pieces:
        relax()
        waited += 1
        if waited > _SPINS:
            give_way()


class Team:
    """The calling thread and ``threads - 1`` helpers; without helpers a team of one."""

    def __init__(self, threads: int) -> None:
        self.words = aligned_zeros(_WORDS, np.int64)
        self.counters = aligned_zeros(threads * COUNTERS, np.int64).reshape(threads, COUNTERS)
        self.words[THREADS] = threads
        self._busy = threading.Lock()
        self._start = threading.Event()
        self._helpers = [
            threading.Thread(target=self._help, args=(number,), name=f"h2learn-kernel-{number}", daemon=True)
            for number in range(1, threads)
        ]
        for helper in self._helpers:
            helper.start()

    @property
    def threads(self) -> int:
        """How many threads share the work."""
        return len(self.counters)

    @contextmanager
    def at_work(self) -> Iterator[bool]:
        """Keep the helpers awake; gives whether the team was free (it serves one thread at a time)."""
        free = self._busy.acquire(blocking=False)
        try:
            if free and self._helpers:
                self.words[AT_WORK] = 1
                self._start.set()
            yield free
        finally:
            if free:
                self._start.clear()
                self.words[AT_WORK] = 0
                self._busy.release()

    def _help(self, number: int) -> None:
        while True:
            self._start.wait()
            serve(self.words, self.counters[number])


@cache
def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _shared() -> Team:
    return Team(min(cores(), _MOST_THREADS) if hasattr(os, "sched_yield") else 1)


_MOST_THREADS = 16
_local = threading.local()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_shared.cache_clear)


@contextmanager
def team_at_work() -> Iterator[Team]:
    """Give the process's team with its helpers awake, or a team of one where another thread has it."""
    own: Team | None = getattr(_local, "team", None)
    if own is not None:
        yield own
        return
    team = _shared()
    with team.at_work() as free:
        _local.team = team if free else Team(1)
        try:
            yield _local.team
        finally:
            _local.team = None
