"""Dependency analysis: which tokens order the engines, and no more than needed.

Engines run decoupled and each in order. The program is a list of stages, each a tree of loops and jobs; its meaning is
the sequential one. Two jobs on different engines that touch the same bytes, at least one writing, must be ordered by
tokens.

The edges must hold for any trip counts, so that the same structure gives the same edges at any T and batch. Therefore a
stage is unrolled in several ways: every loop once, and for each loop, that loop alone often enough that every buffer
ring wraps. (A dependence that one loop carries shows when that loop runs; other loops that run more often only add
order.) Each unrolling is walked in program order with one vector clock per engine. A dependence that the clocks do not
cover yet becomes an :class:`Edge` between two places in the loop tree; a dependence carried from iteration to iteration
becomes an edge with credits. Finally every edge whose removal leaves all dependences of all unrollings covered is
dropped, so that each remaining one is necessary.

From stage to stage only what holds in every unrolling is remembered: for each pair of engines, up to which job the one
has seen the other finish for good. Buffers are compared byte by byte. So are windows of a tensor that one and the same
function of the loop counters picks; any other two windows of a tensor count as overlapping, because a few iterations do
not show where they meet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from math import prod

Clock = list[int]


@dataclass(frozen=True)
class Region:
    """Bytes that a job touches: ``low + sum(coeff * counter)`` for ``size`` bytes.

    ``limit`` says that they belong to a tensor of so many bytes, and ``window`` which part of it, as (start,
    coefficients, extent) per dimension: the span of bytes may hold others. ``ring`` is (slots, slot bytes, depth): a
    buffer that rotates with the iterations of the ``depth`` outermost loops. ``member`` is (offset, step): in iteration
    i of the outermost loop the bytes belong to tensor ``offset + step * i`` of a family that lies side by side, and
    ``low`` and ``window`` say where in there.
    """

    space: object
    low: int
    size: int
    written: bool
    coeffs: tuple[int, ...] = ()
    ring: tuple[int, int, int] = (1, 0, 0)
    limit: int | None = None
    window: tuple[tuple[int, tuple[int, ...], int], ...] = ()
    member: tuple[int, int] | None = None


@dataclass(eq=False)
class Job:
    """One job of an engine (a small integer)."""

    engine: int
    regions: tuple[Region, ...]


@dataclass(eq=False)
class Loop:
    """Children in program order; a stage is a loop that runs once.

    ``of_stages``: a loop whose children are stages, which run once in each of its iterations. They wait for each other
    as stages do that stand alone: as late as their engines have other work.
    """

    children: list[Loop | Job] = field(default_factory=list)
    of_stages: bool = False


@dataclass(eq=False)
class Edge:
    """After ``source`` (a child of some loop) engine ``producer`` posts, before ``target`` engine ``consumer`` waits.

    As many tokens are posted as the target takes until the source runs again: one, unless there are loops around the
    target that are not around the source. ``credits`` times as many are posted before the stage starts: iteration i of
    the loop around both waits for iteration i - credits.
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


def order_stages(stages: Sequence[Loop], engines: int, joined: frozenset[tuple[int, int]] = frozenset()) -> list[Edge]:
    """Return the edges that order ``engines`` engines over the stages, in order of their targets' stages.

    Between the pairs (producer, consumer) in ``joined`` one edge stands for two neighbours.
    """
    analysis = _Analysis(engines, joined)
    for stage in stages:
        analysis.add_stage(stage)
    return analysis.edges


@dataclass(eq=False)
class _Event:
    """A job that ran: its number among those of its engine, and the iterations of the loops around it.

    ``needs`` holds, per other engine, the last event that must be over before; ``seen`` the clock after this one.
    """

    job: Job
    stage: Loop
    clock: int
    path: tuple[tuple[Loop, int], ...] = ()
    needs: dict[int, _Event] = field(default_factory=dict)
    seen: Sequence[int] = ()


@dataclass
class _Access:
    low: int
    high: int
    region: Region
    event: _Event
    starts: tuple[int, ...] = ()
    member: int | None = None

    def meets(self, other: _Access) -> bool:
        """Whether the two accesses may share bytes and one of them writes."""
        if not (self.region.written or other.region.written):
            return False
        if self.member is not None and other.member is not None and self.member != other.member:
            return False
        if not self.comparable(other):
            return True
        if self.home is not other.home:
            return max(self.slots[0], other.slots[0]) < min(self.slots[1], other.slots[1])
        if max(self.low, other.low) >= min(self.high, other.high):
            return False
        pairs = zip(self.starts, other.starts, self.region.window, strict=True)
        return all(abs(mine - theirs) < extent for mine, theirs, (_, _, extent) in pairs)

    def replaces(self, old: _Access) -> bool:
        """Whether whoever waits for this access need not know of ``old`` any more."""
        if self.event.job.engine != old.event.job.engine or self.event is old.event or not self.comparable(old):
            return False
        if self.starts != old.starts or self.member != old.member or self.home is not old.home:
            return False
        return self.low <= old.low and old.high <= self.high and self.region.written >= old.region.written

    def comparable(self, other: _Access) -> bool:
        """Whether the bytes tell if two accesses meet in any iteration."""
        if self.region.limit is None:
            return True
        same = (self.region.low, self.region.coeffs, self.region.window) == (
            other.region.low,
            other.region.coeffs,
            other.region.window,
        )
        return same and self.event.stage is other.event.stage and self.home is other.home

    @property
    def home(self) -> Loop | None:
        """The stage in a loop over layers: a few iterations do not show where two of them meet."""
        path = self.event.path
        return path[2][0] if len(path) > 2 and path[1][0].of_stages else None

    @property
    def slots(self) -> tuple[int, int]:
        """First and last byte of all slots."""
        slots, slot_bytes, _ = self.region.ring
        return self.region.low, self.region.low + self.region.size + (slots - 1) * slot_bytes


Accesses = dict[object, list[_Access]]


@dataclass
class Trace:
    """A run of a stage: ("before" or "after", place in the tree) and ("run", event), in program order.

    ``trips``: how often the loops run that run more than once.
    """

    trips: Mapping[Loop, int]
    steps: list[tuple[str, Loop | Job | _Event]] = field(default_factory=list)


class _Analysis:
    """What is known after some stages; clocks count the jobs of the stages before, and within a stage its events."""

    def __init__(self, engines: int, joined: frozenset[tuple[int, int]]) -> None:
        self._pairs = joined
        self.edges: list[Edge] = []
        self._total = [0] * engines
        self._known: list[Clock] = [[0] * engines for _ in range(engines)]
        self._around: dict[Loop | Job, tuple[Loop, ...]] = {}
        self._mixed: set[object] = set()
        self._ends: dict[Loop | Job, list[Clock]] = {}
        self._past: Accesses = {}

    def add_stage(self, stage: Loop) -> None:
        """Find the edges into and within a stage, and move the clocks past it."""
        self._around = dict(_nest(stage, ()))
        self._mixed = _mixed(stage)
        traces = [self._trace(stage, trips) for trips in _trip_counts(stage)]
        edges: list[Edge] = []
        while sum(self._discover(trace, edges) for trace in traces):
            pass
        for edge in list(edges):
            rest = [e for e in edges if e is not edge]
            if all(self._covered(trace, rest) for trace in traces):
                edges = rest
        edges = self._joined(edges, traces)
        self.edges += edges
        self._close(stage, traces, [self._walk(trace, edges, _refuse) for trace in traces])

    def _joined(self, edges: list[Edge], traces: Sequence[Trace]) -> list[Edge]:
        """Let one token stand for two between the same engines and loops: the later post, taken at the earlier place.

        That asks for a little more order, between neighbours in a loop, and saves a token with all its posts and takes.
        """
        for one, other in combinations(edges, 2):
            if one in edges and other in edges and (wanted := self._both(one, other)) is not None:
                rest = [edge for edge in edges if edge is not one and edge is not other]
                if all(self._covered(trace, [*rest, wanted]) for trace in traces):
                    edges = [*rest, wanted]
        return edges

    def _both(self, one: Edge, other: Edge) -> Edge | None:
        """Return the edge that implies two others, None where there is none between the same two loops."""
        if (one.producer, one.consumer) not in self._pairs:
            return None
        if (one.producer, one.consumer, one.credits) != (other.producer, other.consumer, other.credits):
            return None
        sources, targets = ([getattr(edge, end) for edge in (one, other)] for end in ("source", "target"))
        for places in (sources, targets):
            if len({self._around.get(place) for place in places}) > 1 or places[0] not in self._around:
                return None
        source = max(sources, key=self._order)
        target = min(targets, key=self._order)
        apart = self._around[source] != self._around[target]
        if not one.credits and (apart or self._order(source) >= self._order(target)):
            return None
        return Edge(source, target, one.producer, one.consumer, one.credits)

    def _order(self, place: Loop | Job) -> int:
        """Return the number of a place among the children of its loop."""
        return self._around[place][-1].children.index(place)

    def _trace(self, stage: Loop, trips: Mapping[Loop, int]) -> Trace:
        """Run the stage in program order and note what every event needs."""
        trace = Trace(trips)
        iterations: dict[Loop, int] = {}
        counts = list(self._total)
        accesses: Accesses = {}

        def visit(node: Loop | Job, path: tuple[tuple[Loop, int], ...], counters: tuple[int, ...]) -> None:
            trace.steps.append(("before", node))
            if isinstance(node, Job):
                counts[node.engine] += 1
                event = _Event(node, stage, counts[node.engine], path)
                self._note(event, [self._access(region, event, counters) for region in node.regions], accesses)
                trace.steps.append(("run", event))
            else:
                for count in range(trips.get(node, 1)):
                    number = iterations.get(node, 0)
                    iterations[node] = number + 1
                    for child in node.children:
                        visit(child, (*path, (node, number)), () if node is stage else (*counters, count))
            trace.steps.append(("after", node))

        visit(stage, (), ())
        return trace

    def _access(self, region: Region, event: _Event, counters: tuple[int, ...]) -> _Access:
        low = region.low + sum(c * n for c, n in zip(region.coeffs, counters, strict=False))
        slots, slot_bytes, depth = region.ring
        if slots > 1:
            low += event.path[depth][1] % slots * slot_bytes
        starts = tuple(
            start + sum(c * n for c, n in zip(coeffs, counters, strict=False)) for start, coeffs, _ in region.window
        )
        member = None
        if region.member is not None and region.space not in self._mixed:
            offset, step = region.member
            member = offset + (step * counters[0] if step else 0)
        return _Access(low, low + region.size, region, event, starts, member)

    def _note(self, event: _Event, fresh: Sequence[_Access], accesses: Accesses) -> None:
        """Find what an event must wait for, and add its accesses to those of the trace."""
        for access in fresh:
            space = access.region.space
            for before in (*self._past.get(space, ()), *accesses.get(space, ())):
                engine = before.event.job.engine
                if engine != event.job.engine and before.meets(access):
                    known = event.needs.get(engine)
                    if known is None or known.clock < before.event.clock:
                        event.needs[engine] = before.event
        for access in fresh:
            _record(access, accesses)

    def _discover(self, trace: Trace, edges: list[Edge]) -> bool:
        """Walk the trace, add edges for what is not covered, and say whether any was added or tightened."""
        changed = False

        def miss(event: _Event, missing: dict[int, _Event]) -> None:
            nonlocal changed
            for needed in missing.values():
                changed = _add_edge(edges, needed, event) or changed

        self._walk(trace, edges, miss)
        return changed

    def _covered(self, trace: Trace, edges: Sequence[Edge]) -> bool:
        gaps: list[_Event] = []
        self._walk(trace, edges, lambda event, _: gaps.append(event))
        return not gaps

    def _walk(
        self, trace: Trace, edges: Sequence[Edge], miss: Callable[[_Event, dict[int, _Event]], None]
    ) -> list[Clock]:
        """Return the clocks behind the trace; ``miss(event, uncovered needs)`` hears of gaps, which count as closed."""
        clocks = [list(clock) for clock in self._known]
        waits: dict[Loop | Job, list[Edge]] = {}
        posts: dict[Loop | Job, list[Edge]] = {}
        tokens: dict[Edge, deque[Sequence[int]]] = {}
        at_once: dict[Edge, int] = {}
        for edge in edges:
            waits.setdefault(edge.target, []).append(edge)
            posts.setdefault(edge.source, []).append(edge)
            around = self._around.get(edge.source, self._around[edge.target])
            at_once[edge] = prod(trace.trips.get(loop, 1) for loop in self._around[edge.target][len(around) :])
            tokens[edge] = deque([[0] * len(clocks)] * (edge.credits * at_once[edge]))
        for what, item in trace.steps:
            if isinstance(item, _Event):
                clock = clocks[item.job.engine]
                missing = {e: other for e, other in item.needs.items() if clock[e] < other.clock}
                if missing:
                    miss(item, missing)
                    for other in missing.values():
                        _join(clock, other.seen)
                clock[item.job.engine] = item.clock
                item.seen = tuple(clock)
            elif what == "before":
                for edge in waits.get(item, ()):
                    earlier = self._ends.get(edge.source)
                    known = tokens[edge].popleft() if earlier is None else earlier[edge.producer]
                    _join(clocks[edge.consumer], known)
            else:
                for edge in posts.get(item, ()):
                    tokens[edge] += [list(clocks[edge.producer])] * at_once[edge]
        return clocks

    def _close(self, stage: Loop, traces: Sequence[Trace], clocks: Sequence[list[Clock]]) -> None:
        """Keep what all traces agree on: clocks and accesses by job instead of by event."""
        jobs = list(_jobs(stage))
        engines = range(len(self._total))
        ends = [_last_clocks(trace) for trace in traces]
        for one in engines:
            for other in engines:
                start = self._total[other]
                theirs = [job for job in jobs if job.engine == other]
                self._known[one][other] = min(
                    min(clock[one][other], start) + sum(end[job] <= clock[one][other] for job in theirs)
                    for clock, end in zip(clocks, ends, strict=True)
                )
        self._ends[stage] = [list(clock) for clock in self._known]
        for job in jobs:
            self._total[job.engine] += 1
            event = _Event(job, stage, self._total[job.engine], seen=self._ends[stage][job.engine])
            for region in job.regions:
                slots, slot_bytes, _ = region.ring
                size = region.size + (slots - 1) * slot_bytes
                alone = region.member[0] if region.member is not None and not region.member[1] else None
                _record(_Access(region.low, region.low + size, region, event, member=alone), self._past)
        floor = [min(self._known[one][other] for one in engines if one != other) for other in engines]
        for space, accesses in self._past.items():
            self._past[space] = [a for a in accesses if a.event.clock > floor[a.event.job.engine]]


def _trip_counts(stage: Loop) -> Iterator[dict[Loop, int]]:
    """Yield the unrollings as trip counts of the loops that run more than once: none, then every loop alone.

    The loop over members of families runs until one iteration has touched what the furthest other one does.
    """
    regions = [region for job in _jobs(stage) for region in job.regions]
    ring = max((region.ring[0] for region in regions), default=1)
    places: dict[object, list[int]] = {}
    for region in regions:
        if region.member is not None and region.member[1]:
            places.setdefault(region.space, []).append(region.member[0])
    furthest = max((max(offsets) - min(offsets) for offsets in places.values()), default=0)
    yield {}
    once = {child for loop in _loops(stage) if loop.of_stages for child in loop.children}
    for loop in (loop for loop in _loops(stage) if loop not in once):
        yield {loop: max(ring, 2, furthest if loop.of_stages else 0) + 1}


def _mixed(stage: Loop) -> set[object]:
    """Return the families in which a stage moves with several steps: a few iterations do not show where they meet."""
    steps: dict[object, set[int]] = {}
    for job in _jobs(stage):
        for region in job.regions:
            if region.member is not None:
                steps.setdefault(region.space, set()).add(region.member[1])
    return {space for space, found in steps.items() if len(found) > 1}


def _record(access: _Access, accesses: Accesses) -> None:
    known = accesses.setdefault(access.region.space, [])
    known[:] = [old for old in known if not access.replaces(old)]
    known.append(access)


def _last_clocks(trace: Trace) -> dict[Job, int]:
    return {item.job: item.clock for _, item in trace.steps if isinstance(item, _Event)}


def _nest(node: Loop | Job, around: tuple[Loop, ...]) -> Iterator[tuple[Loop | Job, tuple[Loop, ...]]]:
    """Yield every place of a tree with the loops around it."""
    yield node, around
    for child in node.children if isinstance(node, Loop) else ():
        assert isinstance(node, Loop)
        yield from _nest(child, (*around, node))


def _loops(loop: Loop) -> Iterator[Loop]:
    for child in loop.children:
        if isinstance(child, Loop):
            yield child
            yield from _loops(child)


def _jobs(loop: Loop) -> Iterator[Job]:
    for child in loop.children:
        if isinstance(child, Job):
            yield child
        else:
            yield from _jobs(child)


def _refuse(event: _Event, missing: dict[int, _Event]) -> None:
    raise AssertionError(f"a dependence of engine {event.job.engine} on {sorted(missing)} is not covered")


def _add_edge(edges: list[Edge], needed: _Event, event: _Event) -> bool:
    """Add (or tighten) the edge from ``needed`` to ``event``; return whether anything changed."""
    source: Loop | Job
    target: Loop | Job
    if needed.stage is not event.stage:
        source, target, distance = needed.stage, _first_use(event, 0), 0
    else:
        depth = 0
        while depth < min(len(needed.path), len(event.path)) and needed.path[depth][0] is event.path[depth][0]:
            depth += 1
        common = depth - 1
        distance = event.path[common][1] - needed.path[common][1]
        source = needed.path[depth][0] if depth < len(needed.path) else needed.job
        if event.path[common][0].of_stages:
            target = _first_use(event, depth)
        else:
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


def _first_use(event: _Event, depth: int) -> Loop | Job:
    """Return the outermost place before an event behind which its engine can still do other work of its stage.

    The stage is the loop at ``depth`` of the event's path.
    """
    places: list[Loop | Job] = [*(loop for loop, _ in event.path[depth:]), event.job]
    for outer, inner in pairwise(places):
        assert isinstance(outer, Loop)
        before = outer.children[: next(n for n, child in enumerate(outer.children) if child is inner)]
        if any(job.engine == event.job.engine for child in before for job in _jobs_of(child)):
            return inner
    return places[0]


def _jobs_of(node: Loop | Job) -> Iterator[Job]:
    if isinstance(node, Job):
        yield node
    else:
        yield from _jobs(node)


def _join(clock: Clock, other: Sequence[int]) -> None:
    for n, value in enumerate(other):
        if value > clock[n]:
            clock[n] = value
