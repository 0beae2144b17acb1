"""The simulator: engines with in-order queues, semaphores and time around the execution of single instructions.

Event-driven and deterministic. An instruction takes effect when its engine starts it, in the order of time (posts
first, then engines by number, of each the queues by stream). See ``docs/semantics.md`` for the rules and
``timing.py`` for the cycles.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from h2learn.backends.h2learn.energy_profile import EnergyProfile
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import CONTROL, ENGINES, SEMAPHORE_MAX, SEMAPHORES

from . import timing
from .counters import NonFinite, PcCounters, RunReport, add_counts
from .energy import energy_of, profile_for
from .frontend import SIGNAL, WAIT, Entry, FrontEnd, Stream, Template
from .loader import LoadedProgram
from .operation import Memories, Operation, Work
from .regions import SLOTS_MODE, Access, footprint
from .sanitizers import CHECKS, Clock, Sanitizers, agent_of
from .trace import Span

_FE = ENGINES.index("FE")
MAX_ROWS = 1 << 24  # of one transfer; far more than fit on chip, so that no descriptor can stall the simulator
_DRAM_SIDE = frozenset({("ld", "src"), ("st", "dst")})
_KEPT_PER_INSTRUCTION = 256
_MAX_NONFINITE = 1000
_NEVER = 1 << 62


@dataclass(slots=True)
class Lane:
    """The queue of one stream at an engine. ``issue``: when its last entry was taken; ``done``: all its work is.

    ``filled`` and ``tables`` order the table builder of FE with its look-up lanes: when the last tables of this queue
    are built, and what its last look-up reads until when. ``waits_since``: -1 while no ``wait`` blocks it.
    """

    agent: int
    stream: Stream
    queue: deque[Entry]
    issue: int = 0
    done: int = 0
    filled: int = 0
    tables: tuple[str, int, int, int] = ("", 0, 0, 0)
    waits_since: int = -1


@dataclass(slots=True)
class Engine:
    """One engine. ``free``: its unit is; ``done``: everything it has started is; ``mark``: time accounted for.

    ``lanes``: its queues by stream. ``wake``: time of its earliest event, _NEVER when there is none; while the engine
    takes entries, when it has to look again.
    """

    number: int
    lanes: list[Lane] = field(default_factory=list)
    free: int = 0
    done: int = 0
    mark: int = 0
    busy: int = 0
    builder_free: int = 0
    builder_busy: int = 0
    wake: int = _NEVER
    stepping: bool = False

    def lose(self, cause: str, until: int, counters: PcCounters) -> None:
        """Book the cycles up to ``until`` in which the engine did nothing before an instruction."""
        if until > self.mark:
            counters.stalls[cause] = counters.stalls.get(cause, 0) + until - self.mark
            self.mark = until


@dataclass(slots=True)
class Semaphore:
    """Tokens in the order they were posted: ``[count, clock of the poster]``; ``waiting``: the engine it blocks."""

    tokens: int = 0
    posts: deque[tuple[int, Clock]] = field(default_factory=deque)
    waiting: Engine | None = None


class Kept(NamedTuple):
    """What an instruction's descriptor decides, worked out once: accesses, traffic and cycles (None: by data)."""

    accesses: tuple[Access, ...]
    cycles: int | None
    burst_bytes: int


class Simulator:
    """Executes a program; memories keep their contents from run to run, everything else starts afresh.

    ``execute``: ``"fast"`` kernels or the plain ``"reference"``; same bits. ``timing=False``: every instruction
    takes one cycle (functional runs). ``sanitize``: any of ``race uninit bounds``. ``trace``: keep
    a timeline in ``spans``.
    ``max_instructions``: fault when the front end has executed that many. ``break_at``: stop before this pc.
    ``profile``: energies per operation (default: the machine's).
    """

    def __init__(
        self,
        program: LoadedProgram,
        *,
        execute: str = "fast",
        timing: bool = True,
        sanitize: Iterable[str] = CHECKS,
        trace: bool = False,
        max_instructions: int | None = None,
        break_at: int | None = None,
        profile: EnergyProfile | None = None,
    ) -> None:
        self.program = program
        self.machine = program.machine
        self.profile = profile or profile_for(program.machine)
        self.memories = program.new_memories()
        self.spans: list[Span] = []
        self._execute = _execution(execute)
        self._timed = timing
        self._checks = frozenset(sanitize)
        self._trace = trace
        self._front = FrontEnd(program, self._dispatched, self._forked, max_instructions, break_at)
        self._item_bytes = 2 if program.note.get("precision") == "fp16" else 4
        self._sources = [program.source(template.pc) for template in self._front.templates]
        self._reset()

    def run(self) -> RunReport:
        """Execute the program once.

        Raises H2LearnError, with the place in the program, for every fault: an access outside a memory, a descriptor
        that the instruction cannot work with, semaphore overflow, deadlock, too many instructions.
        """
        self._reset()
        front, events, engines = self._front, self._events, self._engines
        self._add_lanes(front.streams[0])
        front.start()
        self._pass_fences()
        while events:
            now, rank, _ = event = heappop(events)
            if not rank:
                self._post(now, event[2])
            elif engines[rank - 1].wake == now:
                self._step(engines[rank - 1], now)
        if front.stopped_at is None:
            if not all(stream.halted for stream in front.streams) or any(self._blocked()):
                raise self._deadlock()
            if self._sanitizers is not None:
                self._sanitizers.at_halt([semaphore.tokens for semaphore in self._semaphores])
        return self._report()

    def _reset(self) -> None:
        self._front.reset()
        self._engines = [Engine(number) for number in range(len(ENGINES))]
        self._lanes: dict[int, list[Lane]] = {}
        self._semaphores = [Semaphore() for _ in range(SEMAPHORES)]
        self._sanitizers = Sanitizers(self._checks, self.program, self.memories) if self._checks else None
        self._races = self._sanitizers.races if self._sanitizers is not None else None
        self._events: list[tuple[int, int, int]] = []
        self._posts: dict[int, tuple[Template, Clock]] = {}
        self._posted = 0
        self._channel_free = 0
        self._channel_busy = 0
        self._counters = [
            PcCounters(template.pc, template.mnemonic, _engine_name(template), source)
            for template, source in zip(self._front.templates, self._sources, strict=True)
        ]
        self._nonfinite: dict[int, NonFinite] = {}
        self.spans = []

    def _add_lanes(self, stream: Stream) -> None:
        """Give every engine a queue for the entries of a stream."""
        lanes = [Lane(agent_of(stream.number, number), stream, queue) for number, queue in enumerate(stream.queues)]
        self._lanes[stream.number] = lanes
        for engine, lane in zip(self._engines, lanes, strict=True):
            engine.lanes.append(lane)
            engine.lanes.sort(key=lambda each: each.stream.number)

    def _forked(self, stream: Stream) -> None:
        self._add_lanes(stream)
        if self._races is not None:
            self._races.fork(stream.number)

    def _dispatched(self, stream: int, number: int, cycle: int) -> None:
        lane = self._lanes[stream][number]
        if len(lane.queue) == 1:
            self._wake(self._engines[number], max(cycle, lane.issue))

    def _wake(self, engine: Engine, at: int) -> None:
        """See to it that an engine looks at its queues at a time, or before."""
        if at < engine.wake:
            engine.wake = at
            if not engine.stepping:
                heappush(self._events, (at, engine.number + 1, 0))

    def _pass_fences(self) -> None:
        """Let every stream pass a fence as soon as its queues are empty."""
        for stream in self._front.streams:
            while stream.fenced and not any(stream.queues):
                if self._races is not None:
                    self._races.fence(stream.number)
                stream.resume(max(lane.done for lane in self._lanes[stream.number]), "fence")

    def _step(self, engine: Engine, now: int) -> None:
        """Take everything from the heads of the queues that can go now; wake again for the rest."""
        engine.stepping = True
        engine.wake = now
        while engine.wake <= now:
            engine.wake = _NEVER
            for lane in engine.lanes:
                self._take_from(engine, lane, now)
                if engine.wake <= now:
                    break
        engine.stepping = False
        if engine.wake < _NEVER:
            heappush(self._events, (engine.wake, engine.number + 1, 0))

    def _take_from(self, engine: Engine, lane: Lane, now: int) -> None:
        """Take everything from the head of one queue that can go now."""
        queue, stream = lane.queue, lane.stream
        while queue:
            entry = queue[0]
            template = entry.template
            start = entry.ready if entry.ready > lane.issue else lane.issue
            accesses: tuple[Access, ...] = ()
            kept = None
            if template.code == WAIT:
                if start <= now and not self._take(engine, lane, entry, now):
                    return
            elif template.code != SIGNAL:
                kept = self._kept(entry) if entry.operation is not None else None
                accesses = kept.accesses if kept is not None else ()
                start = self._unit_free(engine, lane, entry, accesses, start)
            if start > now:
                self._wake(engine, start)
                return
            engine.lose("queue empty", entry.ready, self._counters[template.pc])
            if template.code == SIGNAL:
                self._signal(lane, template, now)
            elif template.code != WAIT:
                self._start(engine, lane, entry, kept, now)
            queue.popleft()
            lane.issue = now
            if stream.blocked_on == engine.number:
                stream.resume(now, f"queue of {ENGINES[engine.number]} full")
                self._pass_fences()
            elif stream.fenced:
                self._pass_fences()
            if engine.wake <= now:
                return

    def _unit_free(self, engine: Engine, lane: Lane, entry: Entry, accesses: tuple[Access, ...], start: int) -> int:
        """Return when the unit of an instruction can start it; FE's builder works beside its look-up lanes."""
        if engine.number != _FE or entry.operation is None:
            return max(start, engine.free)
        if entry.template.mnemonic != "fe.fill":
            return max(start, lane.filled, engine.free)
        start = max(start, engine.builder_free)
        memory, low, high, until = lane.tables
        for access in accesses:
            operand = entry.operation.operands[access.operand]
            overlaps = operand.address + access.low < high and low < operand.address + access.high
            if access.write and operand.memory == memory and overlaps:
                return max(start, until)
        return start

    def _start(self, engine: Engine, lane: Lane, entry: Entry, kept: Kept | None, now: int) -> None:
        template = entry.template
        counters = self._counters[template.pc]
        cycles = timing.NOP_CYCLES
        end = now + cycles
        if kept is not None and entry.operation is not None:
            work = self._perform(lane, entry, entry.operation, kept, counters)
            cycles, end = self._duration(counters, entry.operation, kept, work, now)
        counters.busy += cycles
        counters.last_cycle = max(counters.last_cycle, end)
        if counters.first_cycle < 0:
            counters.first_cycle = now
        if template.mnemonic == "fe.fill":
            engine.builder_free = lane.filled = end
            engine.builder_busy += cycles
        else:
            engine.free = end
            engine.busy += cycles
            if end - now > cycles:
                counters.stalls["DRAM channel"] = counters.stalls.get("DRAM channel", 0) + end - now - cycles
        if template.mnemonic == "fe.run" and kept is not None and entry.operation is not None:
            lane.tables = _tables(entry.operation, kept.accesses, end)
        lane.done = max(lane.done, end)
        engine.done = max(engine.done, end)
        engine.mark = engine.done
        if self._trace:
            track = "FE.fill" if template.mnemonic == "fe.fill" else ENGINES[engine.number]
            self.spans.append(Span(track, now, end, template.pc, entry.iterations))

    def _perform(self, lane: Lane, entry: Entry, operation: Operation, kept: Kept, counters: PcCounters) -> Work:
        """Execute an instruction and book its traffic and work; faults get their place in the program."""
        read, written, operands = counters.bytes_read, counters.bytes_written, operation.operands
        try:
            if operation.mnemonic in ("ld", "st"):
                _check_rows(operation)
            for access in kept.accesses:
                memory = operands[access.operand].memory
                if (memory == "DRAM") != ((operation.mnemonic, access.operand) in _DRAM_SIDE):
                    raise H2LearnError(_wrong_side(operation.mnemonic, access.operand, memory))
                total = written if access.write else read
                total[memory] = total.get(memory, 0) + access.size
            if self._sanitizers is not None:
                where = self.program.describe(operation.pc, entry.iterations)
                self._sanitizers.before(lane.agent, operation, kept.accesses, entry.unset, where)
            work = self._execute(operation, self.memories)
        except H2LearnError as error:
            where = self.program.describe(operation.pc, entry.iterations)
            hint = f"the program never set {' and '.join(entry.unset)}" if entry.unset else error.hint
            raise H2LearnError(f"{operation.mnemonic}: {error.message}", location=where, hint=hint) from error
        if operation.mnemonic in ("ld", "st") and operation.desc["mode"] == SLOTS_MODE:
            _correct_slot_traffic(operation, kept, work, counters)
        add_counts(counters.work, work.counts)
        if work.counts.get("nonfinite"):
            self._book_nonfinite(entry, operation, work.counts["nonfinite"])
        return work

    def _duration(
        self, counters: PcCounters, operation: Operation, kept: Kept, work: Work, now: int
    ) -> tuple[int, int]:
        """Return the cycles an instruction needs by itself, and when it ends."""
        if not self._timed:
            return 1, now + 1
        if kept.cycles is not None:
            return kept.cycles, now + kept.cycles
        if operation.mnemonic not in ("ld", "st"):
            cycles = timing.backward_cycles(work.counts)
            return cycles, now + cycles
        slots = operation.desc["mode"] == SLOTS_MODE
        moved = timing.slot_burst_bytes(operation, self.memories, self.machine) if slots else kept.burst_bytes
        start_up = timing.transfer_start_up(operation.mnemonic, self.machine)
        on_channel = timing.channel_cycles(moved, self.machine)
        end = max(now + start_up, self._channel_free) + on_channel
        self._channel_free = end
        self._channel_busy += on_channel
        counters.channel_busy += on_channel
        return start_up + on_channel, end

    def _kept(self, entry: Entry) -> Kept:
        template, operation = entry.template, entry.operation
        assert operation is not None
        known = operation.kept.get("simulator")
        if isinstance(known, Kept):
            return known
        y = x = 0
        if template.mnemonic in ("ld", "st"):
            y, x = operation.operands["y"].address, operation.operands["x"].address
        key = (entry.version, operation.init, y, x)
        kept = template.kept.get(key)
        if not isinstance(kept, Kept):
            if len(template.kept) >= _KEPT_PER_INSTRUCTION:
                template.kept.clear()
            accesses = footprint(template.mnemonic, operation.desc, operation.init, operation.fields, y, x)
            cycles = timing.static_cycles(template.mnemonic, operation.desc, operation.fields, self.machine)
            dram_side = next((a for a in accesses if a.write == (template.mnemonic == "st")), None)
            burst = timing.plain_burst_bytes(dram_side, self.machine) if cycles is None and dram_side is not None else 0
            kept = template.kept[key] = Kept(accesses, cycles, burst)
        operation.kept["simulator"] = kept
        return kept

    def _signal(self, lane: Lane, template: Template, now: int) -> None:
        clock = self._races.snapshot(lane.agent) if self._races is not None else []
        self._posted += 1
        self._posts[self._posted] = (template, clock)
        if lane.done <= now:
            self._post(now, self._posted)
        else:
            heappush(self._events, (lane.done, 0, self._posted))

    def _post(self, now: int, number: int) -> None:
        template, clock = self._posts.pop(number)
        semaphore = self._semaphores[template.sem]
        semaphore.tokens += template.count
        if semaphore.tokens > SEMAPHORE_MAX:
            raise H2LearnError(
                f"semaphore {template.sem} overflows: {semaphore.tokens} tokens, at most {SEMAPHORE_MAX}",
                location=self.program.describe(template.pc),
            )
        if self._races is not None:
            semaphore.posts.append((template.count, clock))
        if semaphore.waiting is not None:
            self._wake(semaphore.waiting, now)

    def _take(self, engine: Engine, lane: Lane, entry: Entry, now: int) -> bool:
        """Try the ``wait`` at the head of a queue."""
        template = entry.template
        semaphore = self._semaphores[template.sem]
        if semaphore.tokens < template.count:
            if lane.waits_since < 0:
                lane.waits_since = now
                semaphore.waiting = engine
            return False
        if lane.waits_since >= 0:
            counters = self._counters[template.pc]
            engine.lose("queue empty", entry.ready, counters)
            engine.lose(f"semaphore {template.sem}", now, counters)
            lane.waits_since = -1
            semaphore.waiting = None
        semaphore.tokens -= template.count
        if self._races is not None:
            self._take_clocks(lane, semaphore, template.count)
        return True

    def _take_clocks(self, lane: Lane, semaphore: Semaphore, count: int) -> None:
        assert self._races is not None
        while count:
            posted, clock = semaphore.posts.popleft()
            self._races.join(lane.agent, clock)
            if posted > count:
                semaphore.posts.appendleft((posted - count, clock))
            count -= min(count, posted)

    def _book_nonfinite(self, entry: Entry, operation: Operation, count: int) -> None:
        known = self._nonfinite.get(operation.pc)
        if known is not None:
            count += known.count
        elif len(self._nonfinite) >= _MAX_NONFINITE:
            return
        where = known.where if known is not None else self.program.describe(operation.pc, entry.iterations)
        self._nonfinite[operation.pc] = NonFinite(operation.pc, operation.mnemonic, where, count)

    def _deadlock(self) -> H2LearnError:
        stuck = []
        for lane in self._blocked():
            entry = lane.queue[0]
            template = entry.template
            held = self._semaphores[template.sem].tokens
            place = self.program.describe(template.pc, entry.iterations)
            stuck.append(
                f"{ENGINES[template.engine]} at {place} waits for {template.count} of semaphore {template.sem},"
                f" which holds {held}"
            )
        for stream in self._front.streams:
            if stream.blocked_on >= 0:
                stuck.append(f"the front end at {self.program.describe(stream.pc)} waits for room in the queue of"
                             f" {ENGINES[stream.blocked_on]}")  # fmt: skip
            if stream.fenced:
                stuck.append(f"the front end at {self.program.describe(stream.pc - 1)} waits at a fence")
        return H2LearnError(f"deadlock: {'; '.join(stuck)}", location=self.program.name)

    def _blocked(self) -> Iterator[Lane]:
        """Yield the queues that are not empty, by engine and stream."""
        return (lane for engine in self._engines for lane in engine.lanes if lane.queue)

    def _report(self) -> RunReport:
        front, engines = self._front, self._engines
        cycles = max(stream.cycle for stream in front.streams)
        cycles = max(cycles, *(engine.done for engine in engines))
        executed: dict[str, int] = {}
        stalls: dict[str, dict[str, int]] = {}
        work: dict[str, dict[str, int]] = {}
        read: dict[str, int] = {}
        written: dict[str, int] = {}
        for counters, template in zip(self._counters, front.templates, strict=True):
            counters.executed = template.executed
            if not template.executed:
                continue
            executed[counters.mnemonic] = executed.get(counters.mnemonic, 0) + template.executed
            if counters.stalls:
                add_counts(stalls.setdefault(ENGINES[template.engine], {}), counters.stalls)
            if counters.work:
                add_counts(work.setdefault(counters.mnemonic, {}), counters.work)
            add_counts(read, counters.bytes_read)
            add_counts(written, counters.bytes_written)
        busy = {name: engine.busy for name, engine in zip(ENGINES, engines, strict=True)}
        busy |= {"FE.fill": engines[_FE].builder_busy, "DRAM": self._channel_busy}
        for stream in front.streams:
            if stream.stalls:
                add_counts(stalls.setdefault(CONTROL, {}), stream.stalls)
        return RunReport(
            cycles=cycles,
            instructions=front.executed,
            dispatched=sum(stream.dispatches for stream in front.streams),
            executed=dict(sorted(executed.items())),
            busy=busy,
            stalls={name: dict(sorted(stalls[name].items())) for name in (*ENGINES, CONTROL) if name in stalls},
            bytes_read=dict(sorted(read.items())),
            bytes_written=dict(sorted(written.items())),
            work={name: work[name] for name in sorted(work)},
            by_pc=self._counters,
            energy=energy_of(self.machine, self._item_bytes, work, read, written, self.profile),
            nonfinite=[self._nonfinite[pc] for pc in sorted(self._nonfinite)],
            findings=list(self._sanitizers.findings) if self._sanitizers is not None else [],
            stopped_at=front.stopped_at,
        )


def _check_rows(operation: Operation) -> None:
    rows = math.prod(max(1, int(operation.desc[f"n{d}"])) for d in range(4))
    if rows > MAX_ROWS:
        raise H2LearnError(f"a transfer of {rows} rows is too large", hint=f"the simulator takes up to {MAX_ROWS}")


def _correct_slot_traffic(operation: Operation, kept: Kept, work: Work, counters: PcCounters) -> None:
    """Count only the live bytes of gradient slots as moved, on both sides."""
    in_dram = next((a for a in kept.accesses if a.write == (operation.mnemonic == "st")), None)
    dead = in_dram.size - work.counts["bytes"] if in_dram is not None else 0
    for access in kept.accesses:
        total = counters.bytes_written if access.write else counters.bytes_read
        total[operation.operands[access.operand].memory] -= dead


def _engine_name(template: Template) -> str:
    if template.mnemonic == "fe.fill":
        return "FE.fill"
    return ENGINES[template.engine] if template.engine >= 0 else CONTROL


def _wrong_side(mnemonic: str, operand: str, memory: str) -> str:
    if memory == "DRAM":
        return f"{operand} is in DRAM, which only src of ld and dst of st reach"
    return f"{operand} of {mnemonic} must be in DRAM, found {memory}"


def _execution(name: str) -> Callable[[Operation, Memories], Work]:
    """Return the chosen semantics; the kernels load only when chosen, because Numba takes a second to start."""
    if name == "fast":
        from .fast import execute as fast_execute

        return fast_execute
    if name == "reference":
        from .reference import execute as reference_execute

        return reference_execute
    raise H2LearnError(f"there is no execution {name!r}", hint="choose 'fast' or 'reference'")


def _tables(operation: Operation, accesses: tuple[Access, ...], end: int) -> tuple[str, int, int, int]:
    for access in accesses:
        if access.operand == "lut":
            operand = operation.operands["lut"]
            return operand.memory, operand.address + access.low, operand.address + access.high, end
    return "", 0, 0, 0
