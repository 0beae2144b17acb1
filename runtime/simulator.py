"""The simulator: engines with in-order queues, semaphores and time around the execution of single instructions.

Event-driven and deterministic. An instruction takes effect when its engine starts it, in the order of time (posts
first, then engines by number, of each the queues by stream). See ``docs/semantics.md`` for the rules, ``timing.py`` for
the cycles and ``events.py`` for the loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import numpy.typing as npt

from h2learn.backends.h2learn.energy_profile import EnergyProfile
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.isa import CONTROL, ENGINES, SEMAPHORE_MAX, SEMAPHORES, STREAMS

from . import events
from .counters import NonFinite, PcCounters, RunReport, add_counts
from .energy import energy_of, profile_for
from .entries import NOTHING, EntryTables, Fetched, Kept, check_transfer, moves_slots
from .frontend import Entry, FrontEnd, Template
from .loader import LoadedProgram
from .operation import Memories, Operation, Work
from .sanitizers import CHECKS, Clock, Sanitizers
from .team import FAILED, Team, team_at_work
from .timing import channel_cycles, counted_cycles, slot_burst_bytes
from .trace import Span

I64 = npt.NDArray[np.int64]

_FE = ENGINES.index("FE")
_FETCH = 1 << 12  # entries at a time
_MAX_RECORDED = 1 << 16
_LOG_ROWS = 1 << 12
_MAX_NONFINITE = 1000


class Timeline:
    """The event loop's arrays in one run (columns: ``events.py``), and the entries that the streams have dispatched."""

    def __init__(self, depth: int, instructions: int) -> None:
        lanes = STREAMS * len(ENGINES)
        self.streams = np.zeros((STREAMS, events.STREAM_COLUMNS), np.int64)
        self.queues = np.zeros((lanes, events.QUEUE_COLUMNS), np.int64)
        self.rings = np.zeros((lanes, depth, 2), np.int64)
        self.engines = np.zeros((len(ENGINES), events.ENGINE_COLUMNS), np.int64)
        self.semaphores = np.zeros((SEMAPHORES, 2), np.int64)
        self.posts = np.zeros((STREAMS * depth * 8 + 64, 5), np.int64)
        self.pcs = np.zeros((instructions, events.PC_COLUMNS), np.int64)
        self.lost = np.zeros(len(ENGINES) + 1, np.int64)
        self.log = np.zeros((STREAMS * depth * 8 + _LOG_ROWS, events.LOG_COLUMNS), np.int64)
        self.scalars = np.zeros(events.GLOBALS, np.int64)
        self.fetched: list[Fetched] = []
        self.reset()

    def reset(self) -> None:
        """Go back to cycle 0, with stream 0 about to start."""
        for array in (self.streams, self.queues, self.engines, self.semaphores, self.pcs, self.lost):
            array[:] = 0
        self.scalars[: events.TIMED] = 0
        self.streams[0, events.STATUS] = events.STARVED
        self.queues[:, events.READS] = -1
        self.engines[:, events.WAKE] = events.NEVER
        self.semaphores[:, events.WAITER] = -1
        self.pcs[:, events.FIRST] = self.pcs[:, events.LAST] = -1
        self.scalars[events.AT_ENGINE] = self.scalars[events.STOPPED] = -1
        self.scalars[events.LOOK] = 1
        self.fetched = [NOTHING] * STREAMS

    def advance(self, bytes_per_cycle: float, workers: Team) -> int:
        """Go on until something is needed; see ``events.advance``."""
        tables = tuple([fetched.table for fetched in self.fetched])
        return int(
            events.advance(
                *(tables, self.streams, self.queues, self.rings, self.engines, self.semaphores, self.posts, self.pcs),
                *(self.lost, self.log, self.scalars, bytes_per_cycle),
                (workers.words, workers.counters),
            )
        )

    def supply(self, number: int, more: Fetched) -> None:
        """Give a stream its next entries; those that it still has in queues are kept."""
        stream = self.streams[number]
        if not self.fetched[number].entries:
            self.fetched[number] = more
            stream[events.LENGTH], stream[events.STATUS] = len(more.entries), events.RUNNING
            return
        own = slice(number * len(ENGINES), (number + 1) * len(ENGINES))
        queues, rings = self.queues[own], self.rings[own]
        queued = queues[:, events.SIZE] > 0
        heads = rings[np.flatnonzero(queued), queues[queued, events.HEAD], 0]
        first = int(min(heads.min(initial=int(stream[events.NEXT])), stream[events.NEXT]))
        self.fetched[number] = self.fetched[number].tail(first, more)
        rings[:, :, 0] -= first
        stream[events.NEXT] -= first
        stream[events.LENGTH] = len(self.fetched[number].entries)
        stream[events.STATUS] = events.RUNNING

    def at_head(self, number: int, engine: int) -> Entry:
        """Return the entry at the head of a queue that is not empty."""
        lane = number * len(ENGINES) + engine
        return self.fetched[number].entries[int(self.rings[lane, self.queues[lane, events.HEAD], 0])]

    def make_room(self) -> None:
        """Double the room for signals that wait, unless it was the log that was full."""
        if 2 * self.scalars[events.POSTS] < len(self.posts):
            return
        self.posts = np.concatenate([self.posts, np.zeros_like(self.posts)])


class Simulator:
    """Executes a program; memories keep their contents from run to run, everything else starts afresh.

    ``execute``: ``"fast"`` kernels or the plain ``"reference"``; same bits. ``timing=False``: functional runs, in which
    every instruction takes one cycle and only what is not finite is counted. ``sanitize``: any of ``race uninit
    bounds``. ``trace``: keep a timeline in ``spans``.
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
        self._front = FrontEnd(program, max_instructions, break_at)
        plain = execute == "fast" and not self._checks and break_at is None
        self._tables = EntryTables(program, self.memories, inside=plain, counts=break_at is None, counting=timing)
        self._timeline = Timeline(program.machine.queue_depth, len(program.code))
        self._timeline.scalars[events.TIMED :] = (
            *(self._timed, "race" in self._checks, trace),
            *(program.machine.dram.latency_cycles, program.machine.dram.burst_bytes),
        )
        self._recorded: dict[int, list[Fetched]] = {}
        self._is_recorded = False
        self._item_bytes = 2 if program.note.get("precision") == "fp16" else 4
        self._sources = [program.source(template.pc) for template in self._front.templates]
        self._reset()

    def run(self) -> RunReport:
        """Execute the program once.

        Raises H2LearnError, with the place in the program, for every fault: an access outside a memory, a descriptor
        that the instruction cannot work with, semaphore overflow, deadlock, too many instructions.
        """
        self._reset()
        with team_at_work() as workers:
            self._run(workers)
        scalars, timeline = self._timeline.scalars, self._timeline
        if scalars[events.STOPPED] < 0:
            if self._stuck():
                raise self._deadlock()
            self._is_recorded = bool(self._recorded)
            if self._sanitizers is not None:
                self._sanitizers.at_halt(timeline.semaphores[:, events.TOKENS].tolist())
        return self._report()

    def _run(self, workers: Team) -> None:
        """Let the event loop go on until the program has ended or can go no further."""
        timeline, rate = self._timeline, float(self.machine.dram.bytes_per_cycle)
        scalars = timeline.scalars
        while True:
            status = timeline.advance(rate, workers)
            if scalars[events.LOGGED]:
                self._read_log()
            if status == events.PERFORM:
                self._perform_next(int(scalars[events.AT_STREAM]), int(scalars[events.AT_ENGINE]))
            elif status == events.FETCH:
                self._fetch(int(scalars[events.WANTED]))
            elif status == events.ROOM:
                timeline.make_room()
            elif status == events.OVERFLOW:
                raise self._overflow(int(scalars[events.WANTED]))
            elif status == events.FAULTED:
                fault = self._front.streams[int(scalars[events.WANTED])].fault
                assert fault is not None
                raise fault
            elif status == events.FAILED:
                workers.words[FAILED] = 0
                raise MemoryError(f"out of memory at {self.program.describe(int(scalars[events.WANTED]))}")
            elif status == events.FINISHED:
                return

    def _reset(self) -> None:
        if not self._is_recorded:
            self._front.reset()
            self._tables.counters = {}
            self._executed: list[int] = []
            self._recorded = {0: []}
        self._timeline.reset()
        self._sanitizers = Sanitizers(self._checks, self.program, self.memories) if self._checks else None
        self._races = self._sanitizers.races if self._sanitizers is not None else None
        self._posted: dict[int, Clock] = {}
        self._tokens: list[deque[tuple[int, Clock]]] = [
            deque() for _ in range(0 if self._races is None else SEMAPHORES)
        ]
        self._counters: dict[int, PcCounters] = {}
        self._nonfinite: dict[int, NonFinite] = {}
        self.spans = []

    def _fetch(self, number: int) -> None:
        """Give a stream its next entries: all that it has, when they were kept in an earlier run."""
        if self._is_recorded:
            chunks = self._recorded[number]
            if len(chunks) > 1:
                entries = [entry for chunk in chunks for entry in chunk.entries]
                chunks[:] = [Fetched(entries, np.concatenate([chunk.table for chunk in chunks]))]
            self._timeline.supply(number, chunks[0])
            return
        fetched = self._tables.fetched(self._front.streams[number].fetch(_FETCH))
        self._timeline.supply(number, fetched)
        if self._recorded:
            self._recorded.setdefault(number, []).append(fetched)
            if sum(len(chunk.entries) for chunks in self._recorded.values() for chunk in chunks) > _MAX_RECORDED:
                self._recorded = {}

    def _read_log(self) -> None:
        """Tell the race detector and the trace what has happened, in its order."""
        timeline, races = self._timeline, self._races
        rows = timeline.log[: timeline.scalars[events.LOGGED]].tolist()
        timeline.scalars[events.LOGGED] = 0
        for kind, *values in rows:
            if kind == events.LOG_SPAN:
                self._span(*values)
            elif kind == events.LOG_NONFINITE:
                entry = timeline.fetched[values[0]].entries[values[1]]
                self._book_nonfinite(entry, entry.template.pc, values[2])
            elif races is None:
                continue
            elif kind == events.LOG_SIGNAL:
                self._posted[values[1]] = races.snapshot(values[0])
            elif kind == events.LOG_POST:
                self._tokens[values[1]].append((values[2], self._posted.pop(values[0])))
            elif kind == events.LOG_TAKE:
                self._take_clocks(values[0], self._tokens[values[1]], values[2])
            elif kind == events.LOG_FENCE:
                races.fence(values[0])
            else:
                races.fork(values[0])

    def _take_clocks(self, agent: int, posts: deque[tuple[int, Clock]], count: int) -> None:
        assert self._races is not None
        while count:
            posted, clock = posts.popleft()
            self._races.join(agent, clock)
            if posted > count:
                posts.appendleft((posted - count, clock))
            count -= min(count, posted)

    def _span(self, number: int, index: int, start: int, end: int) -> None:
        entry = self._timeline.fetched[number].entries[index]
        template = entry.template
        track = "FE.fill" if template.mnemonic == "fe.fill" else ENGINES[template.engine]
        self.spans.append(Span(track, start, end, template.pc, entry.iterations))

    def _perform_next(self, number: int, engine: int) -> None:
        """Execute the instruction at the head of a queue and tell the event loop its cycles."""
        entry = self._timeline.at_head(number, engine)
        operation = entry.operation
        assert operation is not None
        kept = self._tables.kept(entry)
        work = self._perform(number * len(ENGINES) + engine, entry, operation, kept)
        cycles = 0
        if kept.cycles is None and self._timed:
            if operation.mnemonic not in ("ld", "st"):
                cycles = counted_cycles(operation.mnemonic, work.counts)
            elif moves_slots(operation):
                moved = slot_burst_bytes(operation, self.memories, self.machine)
                cycles = channel_cycles(moved, self.machine)
        scalars = self._timeline.scalars
        scalars[events.RESULT], scalars[events.PERFORMED] = cycles, 1

    def _perform(self, agent: int, entry: Entry, operation: Operation, kept: Kept) -> Work:
        """Execute an instruction and book its work; faults get their place in the program."""
        try:
            if "checked" not in operation.kept:
                check_transfer(operation, kept)
                operation.kept["checked"] = True
            if self._sanitizers is not None:
                where = self.program.describe(operation.pc, entry.iterations)
                self._sanitizers.before(agent, operation, kept.accesses, entry.unset, where)
            work = self._execute(operation, self.memories)
        except H2LearnError as error:
            where = self.program.describe(operation.pc, entry.iterations)
            hint = f"the program never set {' and '.join(entry.unset)}" if entry.unset else error.hint
            raise H2LearnError(f"{operation.mnemonic}: {error.message}", location=where, hint=hint) from error
        if self._timed:
            self._book(operation, kept, work)
        if work.counts.get("nonfinite"):
            self._book_nonfinite(entry, operation.pc, work.counts["nonfinite"])
        return work

    def _book(self, operation: Operation, kept: Kept, work: Work) -> None:
        counters = self._counters.get(operation.pc)
        if counters is None:
            counters = self._counters[operation.pc] = PcCounters(operation.pc, operation.mnemonic, "", "")
        if not self._tables.counts:
            self._tables.book(operation, kept, counters)
        if moves_slots(operation):
            _book_slots(operation, kept, work, counters)
        add_counts(counters.work, work.counts)

    def _book_nonfinite(self, entry: Entry, pc: int, count: int) -> None:
        known = self._nonfinite.get(pc)
        if known is not None:
            count += known.count
        elif len(self._nonfinite) >= _MAX_NONFINITE:
            return
        where = known.where if known is not None else self.program.describe(pc, entry.iterations)
        self._nonfinite[pc] = NonFinite(pc, entry.template.mnemonic, where, count)

    def _overflow(self, pc: int) -> H2LearnError:
        sem = self._front.templates[pc].sem
        tokens = self._timeline.semaphores[sem, events.TOKENS]
        return H2LearnError(
            f"semaphore {sem} overflows: {tokens} tokens, at most {SEMAPHORE_MAX}", location=self.program.describe(pc)
        )

    def _stuck(self) -> bool:
        """Return whether a queue is not empty or a stream has not ended."""
        status = self._timeline.streams[:, events.STATUS]
        waiting = (status != events.WAITING) & (status != events.HALTED)
        return bool(waiting.any() or self._timeline.queues[:, events.SIZE].any())

    def _deadlock(self) -> H2LearnError:
        timeline, stuck = self._timeline, []
        for engine, name in enumerate(ENGINES):
            for number in range(STREAMS):
                if not timeline.queues[number * len(ENGINES) + engine, events.SIZE]:
                    continue
                entry = timeline.at_head(number, engine)
                template = entry.template
                held = timeline.semaphores[template.sem, events.TOKENS]
                place = self.program.describe(template.pc, entry.iterations)
                stuck.append(
                    f"{name} at {place} waits for {template.count} of semaphore {template.sem}, which holds {held}"
                )
        for number in range(STREAMS):
            status, following, blocker = timeline.streams[number, [events.STATUS, events.NEXT, events.BLOCKER]].tolist()
            entries = timeline.fetched[number].entries
            if status == events.BLOCKED:
                place = self.program.describe(entries[following].template.pc)
                stuck.append(f"the front end at {place} waits for room in the queue of {ENGINES[blocker]}")
            elif status == events.FENCED:
                place = self.program.describe(entries[following - 1].template.pc)
                stuck.append(f"the front end at {place} waits at a fence")
        return H2LearnError(f"deadlock: {'; '.join(stuck)}", location=self.program.name)

    def _report(self) -> RunReport:
        front, timeline = self._front, self._timeline
        engines = timeline.engines
        busy = dict(zip(ENGINES, engines[:, events.BUSY].tolist(), strict=True))
        busy |= {
            "FE.fill": int(engines[_FE, events.BUILDER_BUSY]),
            "DRAM": int(timeline.scalars[events.CHANNEL_BUSY]),
        }
        causes = (*(f"queue of {name} full" for name in ENGINES), "fence")
        lost = zip(causes, timeline.lost.tolist(), strict=True)
        stopped = int(timeline.scalars[events.STOPPED])
        if not self._is_recorded or not self._executed:
            self._executed = [template.executed for template in front.templates]
        parts = self._tables.counters, self._counters
        return RunReport(
            timed=self._timed,
            cycles=int(max(timeline.streams[:, events.CYCLE].max(), engines[:, events.ENGINE_DONE].max())),
            instructions=front.executed,
            dispatched=int(timeline.streams[:, events.DISPATCHED].sum()),
            busy=busy,
            front_end_stalls={cause: cycles for cause, cycles in sorted(lost) if cycles},
            count=partial(self._pc_counters, timeline.pcs.copy(), self._executed, parts),
            price=partial(energy_of, self.machine, self._item_bytes, profile=self.profile),
            nonfinite=[self._nonfinite[pc] for pc in sorted(self._nonfinite)],
            findings=list(self._sanitizers.findings) if self._sanitizers is not None else [],
            stopped_at=None if stopped < 0 else stopped,
        )

    def _pc_counters(self, pcs: I64, executed: list[int], parts: tuple[dict[int, PcCounters], ...]) -> list[PcCounters]:
        """Return the counters of every instruction of a run: of the event loop, and ``parts`` of them by pc."""
        found = []
        for template, source, times, row in zip(
            self._front.templates, self._sources, executed, pcs.tolist(), strict=True
        ):
            counters = PcCounters(template.pc, template.mnemonic, _engine_name(template), source, times)
            found.append(counters)
            if template.engine < 0 or not times:
                continue
            causes = {
                "queue empty": row[events.LOST_EMPTY],
                f"semaphore {template.sem}": row[events.LOST_SEMAPHORE],
                "DRAM channel": row[events.LOST_CHANNEL],
            }
            counters.stalls = {cause: cycles for cause, cycles in causes.items() if cycles}
            counters.busy, counters.channel_busy = row[events.PC_BUSY], row[events.PC_CHANNEL]
            counters.first_cycle, counters.last_cycle = row[events.FIRST], row[events.LAST]
            for table in parts:
                part = table.get(template.pc)
                if part is not None:
                    add_counts(counters.work, part.work)
                    add_counts(counters.bytes_read, part.bytes_read)
                    add_counts(counters.bytes_written, part.bytes_written)
            names = self._tables.counted.get(template.pc, ())
            add_counts(counters.work, dict(zip(names, row[events.TALLY :], strict=False)))
            moved = row[events.MOVED]
            if moved:
                source_memory, target_memory = self._tables.slot_memories[template.pc]
                add_counts(counters.work, {"bytes": moved})
                add_counts(counters.bytes_read, {source_memory: moved})
                add_counts(counters.bytes_written, {target_memory: moved})
        return found


def _book_slots(operation: Operation, kept: Kept, work: Work, counters: PcCounters) -> None:
    """Book the live bytes of gradient slots as moved, on both sides."""
    for access in kept.accesses:
        total = counters.bytes_written if access.write else counters.bytes_read
        memory = operation.operands[access.operand].memory
        total[memory] = total.get(memory, 0) + work.counts["bytes"]


def _engine_name(template: Template) -> str:
    if template.mnemonic == "fe.fill":
        return "FE.fill"
    return ENGINES[template.engine] if template.engine >= 0 else CONTROL


def _execution(name: str) -> Callable[[Operation, Memories], Work]:
    """Return the chosen semantics; the kernels load only when chosen, because Numba takes a second to start."""
    if name == "fast":
        from .fast import execute as fast_execute

        return fast_execute
    if name == "reference":
        from .reference import execute as reference_execute

        return reference_execute
    raise H2LearnError(f"there is no execution {name!r}", hint="choose 'fast' or 'reference'")
