"""Dependency analysis: which tokens order the engines, and no more than needed.

Engines run decoupled and each in order. The program is a list of stages, each a tree of loops and jobs; its meaning is
the sequential one. Two jobs on different engines that touch the same bytes, at least one writing, must be ordered by
tokens.

Every stage is unrolled a little (enough that every buffer ring wraps) and walked in program order with one vector clock
per engine. A dependence that the clocks do not cover yet becomes an :class:`Edge` between the two places in the loop
tree; a dependence carried from iteration to iteration becomes an edge with credits. Finally every edge whose removal
leaves all dependences covered is dropped, so that each remaining one is necessary. The unrolling does not depend on
trip counts: the same structure gives the same edges at any T and batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

Clock = list[int]
Interval = tuple[object, int, int, bool]
"""(space, low, high, written): bytes low..high-1 of a memory or of a DRAM tensor."""


@dataclass(frozen=True)
class Region:
    """Bytes that a job touches: ``low + sum(coeff * counter)`` for ``size`` bytes, within ``0..limit`` if there is one.

    ``ring`` is (slots, slot bytes, depth): a buffer that rotates with the iterations of the ``depth`` outermost loops.
    """

    space: object
    low: int
    size: int
    written: bool
    coeffs: tuple[int, ...] = ()
    ring: tuple[int, int, int] = (1, 0, 0)
    limit: int | None = None


@dataclass(eq=False)
class Job:
    """One job of an engine (a small integer)."""

    engine: int
    regions: tuple[Region, ...]


@dataclass(eq=False)
class Loop:
    """Children in program order; a stage is a loop that runs once."""

    children: list[Loop | Job] = field(default_factory=list)


@dataclass(eq=False)
class Edge:
    """After ``source`` (a child of some loop) engine ``producer`` posts, before ``target`` engine ``consumer`` waits.

    ``credits`` tokens are posted before the stage starts: iteration i waits for iteration i - credits.
    """

    source: Loop | Job
    target: Loop | Job
    producer: int
    consumer: int
    credits: int

    def joins_as(self, other: Edge) -> bool:
        """Whether both edges join the same places of the same engines."""
        engines = (self.producer, self.consumer) == (other.producer, other.consumer)
        return self.source is other.source and self.target is other.target and engines


@dataclass
class _Event:
    """One executed job: what it needs from other engines, as {engine: (clock, needed event)}."""

    job: Job
    clock: int
    path: tuple[tuple[Loop, int], ...]
    stage: Loop
    needs: dict[int, _Event] = field(default_factory=dict)
    seen: tuple[int, ...] = ()


@dataclass
class _Record:
    low: int
    high: int
    written: bool
    event: _Event


def order_stages(stages: Sequence[Loop], engines: int) -> list[Edge]:
    """Return the edges that order ``engines`` engines over the stages, in order of their targets' stages."""
    analysis = _Analysis(engines)
    for stage in stages:
        analysis.add_stage(stage)
    return analysis.edges


class _Analysis:
    def __init__(self, engines: int) -> None:
        self.engines = engines
        self.edges: list[Edge] = []
        self.count = [0] * engines
        self.records: dict[object, list[_Record]] = {}
        self.clocks: list[Clock] = [[0] * engines for _ in range(engines)]
        self.stage_ends: dict[Loop | Job, list[Clock]] = {}

    def add_stage(self, stage: Loop) -> None:
        """Find the edges into and within a stage, and move the clocks past it."""
        trace = list(self._unroll(stage))
        edges: list[Edge] = []
        while self._discover(trace, edges):
            pass
        for edge in list(edges):
            rest = [e for e in edges if e is not edge]
            if self._covered(trace, rest):
                edges = rest
        self._walk(trace, edges, _ignore, commit=True)
        self.edges += edges
        self._forget()

    def _unroll(self, stage: Loop) -> Iterator[tuple[str, Loop | Job | _Event]]:
        """Yield ("pre"/"post", node) and ("run", event) in program order, with the needs of every event."""
        iterations: dict[Loop, int] = {}

        def visit(
            node: Loop | Job, path: tuple[tuple[Loop, int], ...], counters: tuple[int, ...], wraps: bool
        ) -> Iterator[tuple[str, Loop | Job | _Event]]:
            yield "pre", node
            if isinstance(node, Job):
                yield "run", self._event(node, path, stage, counters)
            else:
                plain = len(node.children) == 1 and isinstance(node.children[0], Loop)
                trips = 1 if node is stage or plain else 2 if wraps else 3
                for count in range(trips):
                    number = iterations.get(node, 0)
                    iterations[node] = number + 1
                    inner = counters if node is stage else (*counters, count)
                    for child in node.children:
                        yield from visit(child, (*path, (node, number)), inner, wraps or trips > 1)
            yield "post", node

        yield from visit(stage, (), (), False)

    def _event(
        self,
        job: Job,
        path: tuple[tuple[Loop, int], ...],
        stage: Loop,
        counters: tuple[int, ...],
    ) -> _Event:
        self.count[job.engine] += 1
        event = _Event(job, self.count[job.engine], path, stage)
        fresh: list[tuple[object, _Record]] = []
        for region in job.regions:
            low = region.low + sum(c * n for c, n in zip(region.coeffs, counters, strict=False))
            slots, slot_bytes, depth = region.ring
            if slots > 1:
                low += path[depth][1] % slots * slot_bytes
            high = low + region.size
            if region.limit is not None:
                low, high = max(low, 0), min(high, region.limit)
            if low >= high:
                continue
            self._conflicts(event, region.space, low, high, region.written)
            fresh.append((region.space, _Record(low, high, region.written, event)))
        for space, record in fresh:
            known = self.records.setdefault(space, [])
            known[:] = [r for r in known if not _replaces(record, r)]
            known.append(record)
        return event

    def _conflicts(self, event: _Event, space: object, low: int, high: int, written: bool) -> None:
        for record in self.records.get(space, ()):
            other = record.event.job.engine
            if other == event.job.engine or not (written or record.written):
                continue
            if record.low < high and low < record.high:
                known = event.needs.get(other)
                if known is None or known.clock < record.event.clock:
                    event.needs[other] = record.event

    def _discover(self, trace: list[tuple[str, Loop | Job | _Event]], edges: list[Edge]) -> bool:
        """Walk the trace, add edges for what is not covered, and say whether any was added or tightened."""
        changed = False

        def miss(event: _Event, missing: dict[int, _Event]) -> None:
            nonlocal changed
            for engine, needed in missing.items():
                others = (o for e, o in missing.items() if e != engine)
                if any(o.seen[engine] >= needed.clock for o in others):
                    continue
                changed = _add_edge(edges, needed, event) or changed

        self._walk(trace, edges, miss)
        return changed

    def _covered(self, trace: list[tuple[str, Loop | Job | _Event]], edges: list[Edge]) -> bool:
        gaps: list[_Event] = []
        self._walk(trace, edges, lambda event, _: gaps.append(event))
        return not gaps

    def _walk(
        self,
        trace: list[tuple[str, Loop | Job | _Event]],
        edges: list[Edge],
        miss: Callable[[_Event, dict[int, _Event]], None],
        *,
        commit: bool = False,
    ) -> None:
        """Move vector clocks along the trace; ``miss(event, uncovered needs)`` hears of gaps, which count as closed."""
        clocks = [list(clock) for clock in self.clocks]
        waits: dict[Loop | Job, list[Edge]] = {}
        posts: dict[Loop | Job, list[Edge]] = {}
        tokens: dict[Edge, deque[Clock]] = {}
        for edge in edges:
            waits.setdefault(edge.target, []).append(edge)
            posts.setdefault(edge.source, []).append(edge)
            tokens[edge] = deque([0] * self.engines for _ in range(edge.credits))
            before = self.stage_ends.get(edge.source)
            if before is not None:
                tokens[edge].append(list(before[edge.producer]))
        for what, item in trace:
            if isinstance(item, _Event):
                engine = item.job.engine
                clock = clocks[engine]
                missing = {e: o for e, o in item.needs.items() if clock[e] < o.clock}
                if missing:
                    miss(item, missing)
                    for other in missing.values():
                        _join(clock, other.seen)
                clock[engine] = item.clock
                item.seen = tuple(clock)
            elif what == "pre":
                for edge in waits.get(item, ()):
                    _join(clocks[edge.consumer], tokens[edge].popleft())
            else:
                for edge in posts.get(item, ()):
                    tokens[edge].append(list(clocks[edge.producer]))
        if commit:
            self.clocks = clocks
            stage = trace[0][1]
            assert isinstance(stage, Loop)
            self.stage_ends[stage] = [list(clock) for clock in clocks]

    def _forget(self) -> None:
        """Drop records that every engine already knows of."""
        floor = [min(clock[e] for i, clock in enumerate(self.clocks) if i != e) for e in range(self.engines)]
        for space, records in self.records.items():
            self.records[space] = [r for r in records if r.event.clock > floor[r.event.job.engine]]


def _ignore(event: _Event, missing: dict[int, _Event]) -> None:
    raise AssertionError(f"a dependence of engine {event.job.engine} on {sorted(missing)} is not covered")


def _replaces(new: _Record, old: _Record) -> bool:
    """Whether a later access of the same engine makes an older record superfluous."""
    same = new.event.job.engine == old.event.job.engine and new.low <= old.low and old.high <= new.high
    return same and new.written >= old.written and new.event is not old.event


def _add_edge(edges: list[Edge], needed: _Event, event: _Event) -> bool:
    """Add (or tighten) the edge from ``needed`` to ``event``; return whether anything changed."""
    source: Loop | Job
    target: Loop | Job
    if needed.stage is not event.stage:
        source, target, distance = needed.stage, event.stage, 0
    else:
        depth = 0
        while depth < min(len(needed.path), len(event.path)) and needed.path[depth][0] is event.path[depth][0]:
            depth += 1
        common = depth - 1
        distance = event.path[common][1] - needed.path[common][1]
        source = needed.path[depth][0] if depth < len(needed.path) else needed.job
        target = event.path[depth][0] if depth < len(event.path) else event.job
    wanted = Edge(source, target, needed.job.engine, event.job.engine, distance)
    known = next((edge for edge in edges if edge.joins_as(wanted)), None)
    if known is None:
        edges.append(wanted)
        return True
    if known.credits <= distance:
        return False
    known.credits = distance
    return True


def _join(clock: Clock, other: Sequence[int]) -> None:
    for n, value in enumerate(other):
        if value > clock[n]:
            clock[n] = value
