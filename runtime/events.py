"""The event loop, compiled: queues, semaphores, fences, time; instructions that compute are left to the caller.

The rules stand in ``docs/semantics.md`` (order) and ``timing.py`` (cycles). Everything lives in integer arrays whose
columns are named below. ``advance`` goes on until it needs something: the entries that a stream dispatches next
(FETCH), the execution of an instruction at the head of a queue (PERFORM), room in ``posts`` or ``log`` (ROOM), or it
has to stop (FINISHED, OVERFLOW, FAULTED, FAILED). Transfers and blocks of calls (``prepared.py``) it executes by itself
where the caller has described them; every now and then it returns nevertheless (PAUSED).
"""

# Kernels follow Numba's typing rules, which differ from NumPy's stubs.
# mypy: disable-error-code="assignment, operator, arg-type, call-arg, return-value, no-any-return, index"

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.isa import ENGINES, SEMAPHORE_MAX, STREAMS

from .frontend import FAULT, FENCE, FORK, NOP, SIGNAL, STOP, WAIT
from .jit import inlined, jit
from .kernels.transfer import IN_BURSTS
from .kernels.transfer import MOVED as SLOTS_MOVED
from .native import bare, words_at
from .prepared import BLOCK_WORDS, MOST_COUNTS, NONFINITE, most_pieces, perform
from .prepared import RESULT as BLOCK_RESULT
from .team import THREADS, share

I64 = npt.NDArray[np.int64]

NEVER = 1 << 62
FINISHED, FETCH, PERFORM, ROOM, OVERFLOW, FAULTED, FAILED, PAUSED = range(8)
WAITING, STARVED, RUNNING, BLOCKED, FENCED, HALTED = range(6)
"""States of a stream: not started, without entries, dispatching, at a full queue, at a fence, at its end."""
PLAIN, FILL, LOOK_UP = range(3)
"""Units: that of the engine, and of FE the table builder and the look-up lanes."""

_ENGINES = len(ENGINES)
_DMAIN, _DMAOUT = ENGINES.index("DMAIN"), ENGINES.index("DMAOUT")
LOG_SIGNAL, LOG_POST, LOG_TAKE, LOG_FENCE, LOG_FORK, LOG_SPAN, LOG_NONFINITE = range(7)
LOG_COLUMNS = 5

(CODE, COST, ENGINE, PC, SEM, COUNT, CYCLES, ON_CHANNEL, UNIT, TABLE, LOW, HIGH) = range(12)
"""Columns of an entry. ``COST``: cycles of its stream since the entry before; ``CYCLES`` (ON_CHANNEL: of the channel):
-1 when the execution decides; ``TABLE LOW HIGH``: memory and bytes of the look-up table."""
INSIDE, SLOTS, UNITS, PARTS, PIECES, KERNEL = range(12, 18)
"""Whether it is executed here, as TRANSFER or BLOCK. Of a transfer whether it moves slots, and its copy: parts of rows,
how many of them are a row, in how many pieces they are worth doing, and the address of the call."""
COPY = 18
"""First of the arguments of ``copy_call`` or ``slots_call``."""
ADDRESS, START_UP = 18, 19
"""Of a block: where it is, and the cycles that are added to its result."""
ENTRY_COLUMNS = 43
TRANSFER, BLOCK = 1, 2

STATUS, NEXT, LENGTH, CYCLE, BLOCKER, PAID, DISPATCHED = range(7)
"""Columns of a stream: its next entry and how many there are; whether the cost of that is paid but for one cycle."""
STREAM_COLUMNS = 7
HEAD, SIZE, ISSUE, DONE, FILLED, READS, READS_LOW, READS_HIGH, READS_UNTIL, WAITS = range(10)
"""Columns of a queue (of a stream at an engine): its ring, when its last entry was taken and its work is done, when its
last tables are built, what its last look-up reads until when, whether a ``wait`` blocks it."""
QUEUE_COLUMNS = 10
FREE, ENGINE_DONE, MARK, BUSY, BUILDER_FREE, BUILDER_BUSY, WAKE, SERVED = range(8)
"""Columns of an engine: when its unit is free and all its work done, until when time is accounted for, cycles of work,
the same of its builder, when it next looks at its queues, and of which stream it last took work."""
ENGINE_COLUMNS = 8
TOKENS, WAITER = range(2)
"""Columns of a semaphore: tokens, and the engine that a ``wait`` for them blocks (-1: none)."""
POST_TIME, POST_NUMBER, POST_SEM, POST_COUNT, POST_PC = range(5)
LOST_EMPTY, LOST_SEMAPHORE, LOST_CHANNEL, PC_BUSY, PC_CHANNEL, FIRST, LAST, MOVED = range(8)
"""Columns of an instruction: cycles lost by cause, cycles of its engine and of the DRAM channel, first start and last
end, bytes that its transfers of slots moved."""
TALLY = 8
"""First of the counts that blocks have made."""
PC_COLUMNS = TALLY + MOST_COUNTS
(AT_ENGINE, AT_STREAM, NOW, RESULT, PERFORMED, WANTED, POSTS, POSTED, LOGGED) = range(9)
CHANNEL_FREE, CHANNEL_BUSY, LOOK, STOPPED, FIRST_ASKED, ASKED = range(9, 15)
"""Global values: the engine that is taking entries and the stream whose queue it looks at, the time; what the caller
found for CYCLES after PERFORM; the stream or pc that FETCH, FAULTED or OVERFLOW mean; lengths of ``posts`` and ``log``,
signals so far; the channel; whether a stream wants attention; the pc of a break point that was met; which stream the
engine asked first, and how many it has asked."""
PERFORMED_HERE = 15
"""Blocks that were executed here since the last pause."""
TIMED, RACES, TRACE, LATENCY, BURST = range(16, 21)
"""Settings: timing and counters on, what to log, cycles before a transfer's first byte, bytes of a burst."""
GLOBALS = 21
_BLOCKS_AT_A_TIME = 256  # then the caller has a look, so that a run can be interrupted


@jit
def advance(
    entries: tuple[I64, ...],
    streams: I64,
    queues: I64,
    rings: I64,
    engines: I64,
    semaphores: I64,
    posts: I64,
    pcs: I64,
    lost: I64,
    log: I64,
    g: I64,
    bytes_per_cycle: float,
    team: tuple[I64, I64],
) -> int:
    """Go on until the caller is needed; returns why.

    ``rings``: ``[queue][depth][entry, ready]``; ``posts``: a heap of signals that wait for work to complete; ``lost``:
    cycles of the front end by engine whose queue was full, then at fences; ``team``: words and counters (``team.py``).
    """
    margin = STREAMS * rings.shape[1] * 4 + 16
    entries = (
        *(bare(entries[0]), bare(entries[1]), bare(entries[2])),
        *(bare(entries[3]), bare(entries[4]), bare(entries[5])),
    )  # one of every stream
    streams, queues, rings, engines = bare(streams), bare(queues), bare(rings), bare(engines)
    semaphores, posts, pcs, lost = bare(semaphores), bare(posts), bare(pcs), bare(lost)
    log, g, team = bare(log), bare(g), (bare(team[0]), bare(team[1]))
    while True:
        if g[LOOK]:
            status = _attend(entries, streams, queues, rings, engines, lost, log, g)
            if status != FINISHED:
                return status
        if g[AT_ENGINE] < 0:
            if g[POSTS] + margin > len(posts) or g[LOGGED] + margin > len(log):
                return ROOM
            if g[PERFORMED_HERE] >= _BLOCKS_AT_A_TIME:
                g[PERFORMED_HERE] = 0
                return PAUSED
            chosen, now = -1, NEVER
            for e in range(_ENGINES):
                if engines[e, WAKE] < now:
                    chosen, now = e, engines[e, WAKE]
            if g[POSTS] and posts[0, POST_TIME] <= now:
                sem, count, pc, number = (
                    posts[0, POST_SEM],
                    posts[0, POST_COUNT],
                    posts[0, POST_PC],
                    posts[0, POST_NUMBER],
                )
                now = posts[0, POST_TIME]
                _drop_first(posts, g)
                if _post(sem, count, number, now, engines, semaphores, log, g):
                    g[WANTED] = pc
                    return OVERFLOW
                continue
            if chosen < 0:
                return FINISHED
            engines[chosen, WAKE] = NEVER
            g[AT_ENGINE], g[NOW], g[ASKED] = chosen, now, 0
            g[FIRST_ASKED] = _first_asked(chosen, engines)
        status = _step(
            *(entries, streams, queues, rings, engines, semaphores, posts, pcs, lost, log, g),
            *(bytes_per_cycle, team),
        )
        if status != FINISHED:
            return status


@jit
def _attend(
    entries: tuple[I64, ...],
    streams: I64,
    queues: I64,
    rings: I64,
    engines: I64,
    lost: I64,
    log: I64,
    g: I64,
) -> int:
    """Let the streams that have new entries go on; FETCH when one is without (its number is the result)."""
    for s in range(STREAMS):
        if streams[s, STATUS] == RUNNING:
            _dispatch(s, entries, streams, queues, rings, engines, log, g)
    _pass_fences(entries, streams, queues, rings, engines, lost, log, g)
    for s in range(STREAMS):
        if streams[s, STATUS] == STARVED:
            g[WANTED] = s
            if streams[s, NEXT] < streams[s, LENGTH]:
                return FAULTED
            return FETCH
    g[LOOK] = 0
    return FINISHED


@inlined
def _dispatch(
    s: int,
    entries: tuple[I64, ...],
    streams: I64,
    queues: I64,
    rings: I64,
    engines: I64,
    log: I64,
    g: I64,
) -> None:
    """Run a stream ahead until a queue is full, a fence is met, or its entries end."""
    table, stream, depth = entries[s], streams[s], rings.shape[1]
    while stream[STATUS] == RUNNING:
        i = stream[NEXT]
        if i >= stream[LENGTH]:
            stream[STATUS], g[LOOK] = STARVED, 1
            return
        code = table[i, CODE]
        if code == FAULT:
            stream[STATUS], g[LOOK] = STARVED, 1
            return
        if not stream[PAID]:
            stream[CYCLE] += table[i, COST] - 1
            stream[PAID] = 1
        if code == STOP:
            stream[STATUS], g[STOPPED] = HALTED, table[i, PC]
            return
        if code >= NOP:
            e = table[i, ENGINE]
            queue = queues[s * _ENGINES + e]
            if queue[SIZE] >= depth:
                stream[STATUS], stream[BLOCKER] = BLOCKED, e
                return
            stream[CYCLE] += 1
            ring = rings[s * _ENGINES + e]
            place = (queue[HEAD] + queue[SIZE]) % depth
            ring[place, 0], ring[place, 1] = i, stream[CYCLE]
            queue[SIZE] += 1
            stream[DISPATCHED] += 1
            if queue[SIZE] == 1:
                engines[e, WAKE] = min(engines[e, WAKE], max(stream[CYCLE], queue[ISSUE]))
        else:
            stream[CYCLE] += 1
            if code == FENCE:
                stream[STATUS] = FENCED
            elif code == FORK:
                other = table[i, COUNT]
                streams[other, STATUS], streams[other, CYCLE], g[LOOK] = STARVED, stream[CYCLE], 1
                if g[RACES]:
                    _note(log, g, LOG_FORK, other, 0, 0, 0)
            else:
                stream[STATUS] = HALTED
        stream[NEXT] = i + 1
        stream[PAID] = 0


@jit
def _resume(s: int, cycle: int, cause: int, streams: I64, lost: I64) -> None:
    """Let a stream go on after a stop, not before ``cycle``; the cycles lost are booked under ``cause``."""
    if cycle > streams[s, CYCLE]:
        lost[cause] += cycle - streams[s, CYCLE]
        streams[s, CYCLE] = cycle
    streams[s, STATUS] = RUNNING


@inlined
def _pass_fences(
    entries: tuple[I64, ...],
    streams: I64,
    queues: I64,
    rings: I64,
    engines: I64,
    lost: I64,
    log: I64,
    g: I64,
) -> None:
    """Let every stream pass a fence as soon as its queues are empty."""
    for s in range(STREAMS):
        while streams[s, STATUS] == FENCED:
            done = 0
            for e in range(_ENGINES):
                queue = queues[s * _ENGINES + e]
                if queue[SIZE]:
                    done = -1
                    break
                done = max(done, queue[DONE])
            if done < 0:
                break
            if g[RACES]:
                last = g[LOGGED] - 1
                if last < 0 or log[last, 0] != LOG_FENCE or log[last, 1] != s:
                    _note(log, g, LOG_FENCE, s, 0, 0, 0)
            _resume(s, done, _ENGINES, streams, lost)
            _dispatch(s, entries, streams, queues, rings, engines, log, g)


@inlined
def _step(
    entries: tuple[I64, ...],
    streams: I64,
    queues: I64,
    rings: I64,
    engines: I64,
    semaphores: I64,
    posts: I64,
    pcs: I64,
    lost: I64,
    log: I64,
    g: I64,
    bytes_per_cycle: float,
    team: tuple[I64, I64],
) -> int:
    """Take everything from the heads of an engine's queues that can go now; it wakes again for the rest."""
    e, now = g[AT_ENGINE], g[NOW]
    engine = engines[e]
    depth = rings.shape[1]
    while g[ASKED] < STREAMS:
        s = g[AT_STREAM] = (g[FIRST_ASKED] + g[ASKED]) % STREAMS
        agent = s * _ENGINES + e
        queue, ring, table = queues[agent], rings[agent], entries[s]
        while queue[SIZE]:
            i, ready = ring[queue[HEAD], 0], ring[queue[HEAD], 1]
            entry = table[i]
            code, pc = entry[CODE], entry[PC]
            start = max(ready, queue[ISSUE])
            if code >= NOP and code != SIGNAL and code != WAIT:
                start = _unit_free(entry, queue, engine, start)
            if start > now:
                engine[WAKE] = min(engine[WAKE], start)
                break
            if code == WAIT:
                semaphore = semaphores[entry[SEM]]
                if semaphore[TOKENS] < entry[COUNT]:
                    queue[WAITS], semaphore[WAITER] = 1, e
                    break
                _lose(engine, pcs[pc], LOST_EMPTY, ready)
                if queue[WAITS]:
                    _lose(engine, pcs[pc], LOST_SEMAPHORE, now)
                    queue[WAITS], semaphore[WAITER] = 0, -1
                semaphore[TOKENS] -= entry[COUNT]
                if g[RACES]:
                    _note(log, g, LOG_TAKE, agent, entry[SEM], entry[COUNT], 0)
            elif code == SIGNAL:
                _lose(engine, pcs[pc], LOST_EMPTY, ready)
                g[POSTED] += 1
                if g[RACES]:
                    _note(log, g, LOG_SIGNAL, agent, g[POSTED], 0, 0)
                if queue[DONE] > now:
                    _keep(posts, g, queue[DONE], g[POSTED], entry[SEM], entry[COUNT], pc)
                elif _post(entry[SEM], entry[COUNT], g[POSTED], now, engines, semaphores, log, g):
                    g[WANTED] = pc
                    return OVERFLOW
            else:
                if not g[PERFORMED] and code != NOP and not entry[INSIDE]:
                    _lose(engine, pcs[pc], LOST_EMPTY, ready)
                    return PERFORM
                _lose(engine, pcs[pc], LOST_EMPTY, ready)
                if entry[INSIDE] == BLOCK:
                    if not perform(entry[ADDRESS], team[0], team[1], pcs[pc, TALLY:]):
                        g[WANTED] = pc
                        return FAILED
                    g[PERFORMED_HERE] += 1
                    head, counted = words_at(entry[ADDRESS], BLOCK_WORDS), team[1][0]
                    if head[BLOCK_RESULT] >= 0:
                        g[RESULT] = entry[START_UP] + counted[head[BLOCK_RESULT]]
                    if head[NONFINITE] >= 0 and counted[head[NONFINITE]]:
                        _note(log, g, LOG_NONFINITE, s, i, counted[head[NONFINITE]], 0)
                elif entry[INSIDE]:
                    g[RESULT] = _transfer(entry, pcs[pc], team, g, bytes_per_cycle)
                g[PERFORMED] = 0
                end = _start(entry, queue, engine, pcs[pc], g, now)
                engine[SERVED] = s
                if g[TRACE]:
                    _note(log, g, LOG_SPAN, s, i, now, end)
            queue[HEAD] = (queue[HEAD] + 1) % depth
            queue[SIZE] -= 1
            queue[ISSUE] = now
            if streams[s, STATUS] == BLOCKED and streams[s, BLOCKER] == e:
                _resume(s, now, e, streams, lost)
                _dispatch(s, entries, streams, queues, rings, engines, log, g)
                may_pass = True
            else:
                may_pass = streams[s, STATUS] == FENCED
            if may_pass:
                _pass_fences(entries, streams, queues, rings, engines, lost, log, g)
            if engine[WAKE] <= now:
                break
        if engine[WAKE] <= now:
            engine[WAKE] = NEVER
            g[ASKED], g[FIRST_ASKED] = 0, _first_asked(e, engines)
        else:
            g[ASKED] += 1
    g[AT_ENGINE] = -1
    return FINISHED


@jit
def _first_asked(e: int, engines: I64) -> int:
    """Return which stream an engine asks first: transfers take turns, elsewhere the lowest stream comes first."""
    return (engines[e, SERVED] + 1) % STREAMS if e in (_DMAIN, _DMAOUT) else 0


@jit
def _unit_free(entry: I64, queue: I64, engine: I64, start: int) -> int:
    """Return when the unit of an instruction can start it; FE's builder works beside its look-up lanes."""
    if entry[UNIT] == PLAIN:
        return max(start, engine[FREE])
    if entry[UNIT] == LOOK_UP:
        return max(start, queue[FILLED], engine[FREE])
    start = max(start, engine[BUILDER_FREE])
    if entry[TABLE] == queue[READS] and entry[LOW] < queue[READS_HIGH] and queue[READS_LOW] < entry[HIGH]:
        start = max(start, queue[READS_UNTIL])
    return start


@jit
def _start(entry: I64, queue: I64, engine: I64, counters: I64, g: I64, now: int) -> int:
    """Book an instruction that starts now, and return when it ends."""
    cycles = 1
    if g[TIMED] and entry[CODE] != NOP:
        cycles = entry[CYCLES] if entry[CYCLES] >= 0 else g[RESULT]
    end = free = now + cycles
    if g[TIMED] and entry[ON_CHANNEL]:
        end = max(now + g[LATENCY], g[CHANNEL_FREE]) + cycles
        free = max(now + 1, end - g[LATENCY])  # the next one's first byte can follow this one's last
        g[CHANNEL_FREE] = end
        g[CHANNEL_BUSY] += cycles
        counters[PC_CHANNEL] += cycles
        counters[LOST_CHANNEL] += end - now - cycles - g[LATENCY]
    counters[PC_BUSY] += cycles
    counters[LAST] = max(counters[LAST], end)
    if counters[FIRST] < 0:
        counters[FIRST] = now
    if entry[UNIT] == FILL:
        engine[BUILDER_FREE] = queue[FILLED] = end
        engine[BUILDER_BUSY] += cycles
    else:
        engine[FREE] = free
        engine[BUSY] += cycles
    if entry[UNIT] == LOOK_UP:
        queue[READS], queue[READS_LOW], queue[READS_HIGH], queue[READS_UNTIL] = (
            entry[TABLE],
            entry[LOW],
            entry[HIGH],
            end,
        )
    queue[DONE] = max(queue[DONE], end)
    engine[ENGINE_DONE] = max(engine[ENGINE_DONE], end)
    engine[MARK] = engine[ENGINE_DONE]
    return end


@jit
def _transfer(entry: I64, counters: I64, team: tuple[I64, I64], g: I64, bytes_per_cycle: float) -> int:
    """Execute a transfer; returns its cycles on the channel, where its data decide them."""
    words, found = team
    if not entry[UNITS]:
        return 0
    for thread in range(words[THREADS]):
        found[thread, SLOTS_MOVED] = found[thread, IN_BURSTS] = 0
    pieces = most_pieces(words, entry[PIECES])
    share(words, found, entry[KERNEL], entry[COPY:].ctypes.data, entry[PARTS], 0, entry[UNITS], pieces)
    if not entry[SLOTS] or not g[TIMED]:
        return 0
    in_bursts = 0
    for thread in range(words[THREADS]):
        counters[MOVED] += found[thread, SLOTS_MOVED]
        in_bursts += found[thread, IN_BURSTS]
    return _quotient(in_bursts, bytes_per_cycle)


@jit
def _quotient(moved: int, rate: float) -> int:
    """Return the exact quotient rounded up, as Python's own division of floats does."""
    rest = float(moved) % rate
    return int(np.rint((moved - rest) / rate)) + int(rest > 0.0)


@jit
def _lose(engine: I64, counters: I64, cause: int, until: int) -> None:
    """Book the cycles up to ``until`` in which the engine did nothing before an instruction."""
    if until > engine[MARK]:
        counters[cause] += until - engine[MARK]
        engine[MARK] = until


@jit
def _post(sem: int, count: int, number: int, now: int, engines: I64, semaphores: I64, log: I64, g: I64) -> bool:
    """Add tokens and wake the engine that waits for them; returns whether the semaphore overflows."""
    semaphore = semaphores[sem]
    semaphore[TOKENS] += count
    if semaphore[TOKENS] > SEMAPHORE_MAX:
        return True
    if g[RACES]:
        _note(log, g, LOG_POST, number, sem, count, 0)
    waiter = semaphore[WAITER]
    if waiter >= 0:
        engines[waiter, WAKE] = min(engines[waiter, WAKE], now)
    return False


@jit
def _keep(posts: I64, g: I64, time: int, number: int, sem: int, count: int, pc: int) -> None:
    """Put a signal into the heap, by time and number."""
    at = g[POSTS]
    g[POSTS] += 1
    while at:
        above = (at - 1) // 2
        if posts[above, POST_TIME] <= time:
            break
        posts[at] = posts[above]
        at = above
    posts[at, POST_TIME], posts[at, POST_NUMBER], posts[at, POST_SEM] = time, number, sem
    posts[at, POST_COUNT], posts[at, POST_PC] = count, pc


@jit
def _drop_first(posts: I64, g: I64) -> None:
    """Take the first signal out of the heap."""
    g[POSTS] -= 1
    size = g[POSTS]
    time, number = posts[size, POST_TIME], posts[size, POST_NUMBER]
    at = 0
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        if below + 1 < size and _before(posts, below + 1, posts[below, POST_TIME], posts[below, POST_NUMBER]):
            below += 1
        if not _before(posts, below, time, number):
            break
        posts[at] = posts[below]
        at = below
    posts[at] = posts[size]


@jit
def _before(posts: I64, at: int, time: int, number: int) -> bool:
    own = posts[at, POST_TIME]
    return own < time or (own == time and posts[at, POST_NUMBER] < number)


@jit
def _note(log: I64, g: I64, kind: int, a: int, b: int, c: int, d: int) -> None:
    at = g[LOGGED]
    log[at, 0], log[at, 1], log[at, 2], log[at, 3], log[at, 4] = kind, a, b, c, d
    g[LOGGED] = at + 1
