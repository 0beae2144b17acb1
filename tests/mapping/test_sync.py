"""Tokens between engines: hand cases, then random programs against an independent happens-before graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from h2learn.compiler.mapping.sync import Edge, Job, Loop, Region, order_stages

DMA, FE, VEC = 0, 1, 2
ENGINES = 3


@dataclass
class Access:
    """Bytes that an executed job touched."""

    space: object
    low: int
    high: int
    written: bool


@dataclass
class Instance:
    """One executed job: its engine, accesses and the set (as a bit mask) of instances that happen before it."""

    job: Job
    engine: int
    accesses: list[Access]
    before: int


@dataclass
class Run:
    """What a run of all stages showed."""

    instances: list[Instance] = field(default_factory=list)
    deadlock: bool = False
    left: dict[Edge, int] = field(default_factory=dict)
    credits: dict[Edge, int] = field(default_factory=dict)


def execute(stages: Sequence[Loop], edges: Sequence[Edge], trips: Mapping[Loop, int]) -> Run:
    """Run the stages; loops that ``trips`` does not name run once. Credits are there from the start."""
    run = Run()
    reached = [0] * ENGINES
    runs = Counter(node for what, node, _, _ in _unroll(stages, trips) if what == "before")
    at_once = {edge: runs[edge.target] // runs[edge.source] for edge in edges}
    posted: dict[Edge, list[int]] = {edge: [0] * (edge.credits * at_once[edge]) for edge in edges}
    taken = dict.fromkeys(edges, 0)
    for what, node, counters, numbers in _unroll(stages, trips):
        for edge in edges:
            if what == "before" and edge.target is node:
                if taken[edge] == len(posted[edge]):
                    run.deadlock = True
                    return run
                reached[edge.consumer] |= posted[edge][taken[edge]]
                taken[edge] += 1
        if what == "run":
            assert isinstance(node, Job)
            accesses = [_access(region, counters, numbers) for region in node.regions]
            run.instances.append(Instance(node, node.engine, accesses, reached[node.engine]))
            reached[node.engine] |= 1 << (len(run.instances) - 1)
        for edge in edges:
            if what == "after" and edge.source is node:
                posted[edge] += [reached[edge.producer]] * at_once[edge]
    run.left = {edge: len(posted[edge]) - taken[edge] for edge in edges}
    run.credits = {edge: edge.credits * at_once[edge] for edge in edges}
    return run


def unordered(run: Run) -> list[tuple[int, int]]:
    """Return pairs of instances on different engines that share bytes, one writing, without order between them."""
    found: list[tuple[int, int]] = []
    for later, b in enumerate(run.instances):
        for earlier in range(later):
            a = run.instances[earlier]
            if a.engine != b.engine and not b.before >> earlier & 1 and _conflict(a.accesses, b.accesses):
                found.append((earlier, later))
    return found


def _conflict(one: Sequence[Access], two: Sequence[Access]) -> bool:
    return any(
        a.space == b.space and (a.written or b.written) and max(a.low, b.low) < min(a.high, b.high)
        for a in one
        for b in two
    )


Step = tuple[str, Loop | Job, tuple[int, ...], tuple[int, ...]]


def _unroll(stages: Sequence[Loop], trips: Mapping[Loop, int]) -> Iterator[Step]:
    for stage in stages:
        yield from _visit(stage, stage, trips, (), (), {})


def _visit(
    node: Loop | Job,
    stage: Loop,
    trips: Mapping[Loop, int],
    counters: tuple[int, ...],
    numbers: tuple[int, ...],
    counted: dict[Loop, int],
) -> Iterator[Step]:
    """Yield every step with the counters of the loops around it and the number of their iterations so far."""
    yield "before", node, counters, numbers
    if isinstance(node, Job):
        yield "run", node, counters, numbers
    else:
        for count in range(trips.get(node, 1)):
            number = counted.get(node, 0)
            counted[node] = number + 1
            inside = node is not stage
            for child in node.children:
                yield from _visit(
                    child,
                    stage,
                    trips,
                    (*counters, count) if inside else (),
                    (*numbers, number) if inside else (),
                    counted,
                )
    yield "after", node, counters, numbers


def _access(region: Region, counters: tuple[int, ...], numbers: tuple[int, ...]) -> Access:
    low = region.low + sum(c * n for c, n in zip(region.coeffs, counters, strict=False))
    slots, slot_bytes, depth = region.ring
    if slots > 1 and depth:
        low += numbers[depth - 1] % slots * slot_bytes
    high = low + region.size
    if region.limit is not None:
        low, high = max(low, 0), min(high, region.limit)
    if region.member is None:
        return Access(region.space, low, high, region.written)
    offset, step = region.member
    return Access((region.space, offset + step * (*counters, 0)[0]), low, high, region.written)


def random_program(rng: np.random.Generator, *, tensors: bool, slots: Sequence[int] = (1, 2)) -> list[Loop]:
    """Return stages of random loops; a job touches buffers of the loops around it and perhaps windows of tensors."""
    return [_random_stage(rng, tensors, slots) for _ in range(int(rng.integers(1, 4)))]


def random_layers(rng: np.random.Generator, *, tensors: bool, slots: Sequence[int] = (1, 2)) -> list[Loop]:
    """Return stages, of which some are in a loop over layers."""
    step = int(rng.choice([-1, 1]))
    inside = [_random_stage(rng, tensors, slots, 2, step) for _ in range(int(rng.integers(1, 4)))]
    layers = Loop(inside, of_stages=True)
    before = [_random_stage(rng, tensors, slots, 0, 0)] if rng.random() < 0.5 else []
    behind = [_random_stage(rng, tensors, slots, 0, 0)] if rng.random() < 0.5 else []
    return [*before, Loop([layers]), *behind]


def _random_stage(
    rng: np.random.Generator, tensors: bool, slots: Sequence[int], level: int = 0, members: int | None = None
) -> Loop:
    """Return a stage; ``level``: loops around it, ``members``: how Z moves through a family from layer to layer."""
    address = int(rng.integers(0, 3)) * 4
    windows = {name: _random_window(rng) for name in "XYZ"}

    def fill(loop: Loop, depth: int, buffers: list[Region]) -> None:
        nonlocal address
        mine = list(buffers)
        for _ in range(int(rng.integers(0, 3))):
            size, count = int(rng.integers(1, 5)), int(rng.choice(slots))
            mine.append(Region("A", address, size, False, ring=(count, size, depth)))
            address += size * count
        for _ in range(int(rng.integers(1, 4))):
            if depth < (level + 2 if level else 3) and rng.random() < 0.5:
                child = Loop()
                fill(child, depth + 1, mine)
                loop.children.append(child)
            else:
                loop.children.append(_random_job(rng, mine, windows if tensors else {}, depth, members))

    stage = Loop()
    fill(stage, level, [])
    return stage


def _random_window(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (first byte, bytes per iteration, bytes, which loop): iterations of one window do not overlap."""
    step = int(rng.choice([-4, 0, 4]))
    return int(rng.integers(0, 40)), step, int(rng.integers(1, 5)), int(rng.integers(0, 3))


def _random_job(
    rng: np.random.Generator,
    buffers: Sequence[Region],
    windows: Mapping[str, tuple[int, int, int, int]],
    depth: int,
    members: int | None = None,
) -> Job:
    regions: list[Region] = []
    for buffer in buffers:
        if rng.random() < 0.5:
            written = bool(rng.random() < 0.5)
            regions.append(Region(buffer.space, buffer.low, buffer.size, written, ring=buffer.ring))
    for name, (low, step, size, level) in windows.items():
        if rng.random() < 0.2:
            coeffs = tuple(step if n == level else 0 for n in range(depth))
            written = bool(rng.random() < 0.5)
            member = (int(rng.integers(0, 4)), members) if members is not None and name == "Z" else None
            regions.append(Region(name, low, size, written, coeffs, limit=48, member=member))
    return Job(int(rng.integers(ENGINES)), tuple(regions))


def loops_of(stages: Sequence[Loop]) -> list[Loop]:
    """Return all loops inside the stages."""
    inside = [child for stage in stages for child in stage.children if isinstance(child, Loop)]
    return inside + (loops_of(inside) if inside else [])


def repeated(stages: Sequence[Loop]) -> list[Loop]:
    """Return the loops inside the stages that may run more than once: not the stages in a loop over layers."""
    loops = loops_of(stages)
    once = {child for loop in loops if loop.of_stages for child in loop.children}
    return [loop for loop in loops if loop not in once]


def random_trips(rng: np.random.Generator, stages: Sequence[Loop], low: int, high: int) -> dict[Loop, int]:
    return {loop: int(rng.integers(low, high + 1)) for loop in repeated(stages)}


def trip_counts(stages: Sequence[Loop]) -> list[dict[Loop, int]]:
    """Return simple trip counts: all once, one loop two or three times, all two or three times."""
    loops = repeated(stages)
    alone = [{loop: count} for loop in loops for count in (2, 3)]
    return [{}, *alone, dict.fromkeys(loops, 2), dict.fromkeys(loops, 3)]


@pytest.mark.parametrize("seed", range(150))
def test_no_conflicting_pair_is_left_unordered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stages = random_program(rng, tensors=bool(seed % 2))
    edges = order_stages(stages, ENGINES)
    for low, high in ((1, 1), (1, 3), (2, 5)):
        run = execute(stages, edges, random_trips(rng, stages, low, high))
        assert not run.deadlock
        assert unordered(run) == []
        assert run.left == run.credits


@pytest.mark.parametrize("seed", range(60))
def test_every_edge_is_necessary(seed: int) -> None:
    stages = random_program(np.random.default_rng(1000 + seed), tensors=False)
    edges = order_stages(stages, ENGINES)
    for edge in edges:
        rest = [other for other in edges if other is not edge]
        assert any(unordered(execute(stages, rest, trips)) for trips in trip_counts(stages))


@pytest.mark.parametrize("seed", range(150))
def test_no_conflicting_pair_is_left_unordered_in_a_loop_over_layers(seed: int) -> None:
    rng = np.random.default_rng(3000 + seed)
    stages = random_layers(rng, tensors=bool(seed % 2))
    edges = order_stages(stages, ENGINES)
    for low, high in ((1, 1), (1, 3), (2, 4)):
        run = execute(stages, edges, random_trips(rng, stages, low, high))
        assert not run.deadlock
        assert unordered(run) == []
        assert run.left == run.credits


@pytest.mark.parametrize("seed", range(40))
def test_every_edge_of_a_loop_over_layers_is_necessary(seed: int) -> None:
    stages = random_layers(np.random.default_rng(4000 + seed), tensors=False)
    edges = order_stages(stages, ENGINES)
    for edge in edges:
        rest = [other for other in edges if other is not edge]
        assert any(unordered(execute(stages, rest, trips)) for trips in trip_counts(stages))


def test_stages_of_a_loop_over_layers_wait_as_late_as_their_engine_has_other_work() -> None:
    """The second stage loads something of its own before it waits for the first, in every iteration of its loop."""
    store = Job(VEC, (write(0, 4, "x", limit=40),))
    other, load = Job(DMA, (write(0, 4),)), Job(DMA, (read(0, 4, "x", limit=40),))
    inner = Loop([load])
    first, second = Loop([store]), Loop([other, inner])
    stages = [Loop([Loop([first, second], of_stages=True)])]
    there, back = order_stages(stages, ENGINES)
    assert (there.source, there.target, there.credits) == (first, inner, 0)
    assert (back.source, back.target, back.credits) == (second, first, 1)


@pytest.mark.parametrize("seed", range(20))
def test_edges_hold_for_rings_of_three_slots(seed: int) -> None:
    rng = np.random.default_rng(2000 + seed)
    stages = random_program(rng, tensors=False, slots=(1, 3))
    run = execute(stages, order_stages(stages, ENGINES), random_trips(rng, stages, 1, 5))
    assert unordered(run) == []


def test_the_random_programs_need_edges_of_every_kind() -> None:
    kinds: set[str] = set()
    for seed in range(20):
        stages = random_program(np.random.default_rng(seed), tensors=True)
        for edge in order_stages(stages, ENGINES):
            kinds.add("stage" if edge.source in stages else "carried" if edge.credits else "forward")
    assert kinds == {"stage", "carried", "forward"}


def read(low: int, size: int, space: str = "A", **more: object) -> Region:
    return replace(Region(space, low, size, False), **more)


def write(low: int, size: int, space: str = "A", **more: object) -> Region:
    return replace(Region(space, low, size, True), **more)


def shown(edges: Sequence[Edge]) -> set[tuple[int, int, int]]:
    return {(edge.producer, edge.consumer, edge.credits) for edge in edges}


def test_producer_and_consumer() -> None:
    producer, consumer = Job(DMA, (write(0, 8),)), Job(FE, (read(4, 8),))
    (edge,) = order_stages([Loop([producer, consumer])], ENGINES)
    assert (edge.source, edge.target, edge.producer, edge.consumer, edge.credits) == (producer, consumer, DMA, FE, 0)


def test_readers_and_neighbours_need_no_order() -> None:
    jobs: list[Loop | Job] = [Job(DMA, (read(0, 8),)), Job(FE, (read(0, 8),)), Job(VEC, (write(8, 8),))]
    assert order_stages([Loop(jobs)], ENGINES) == []


@pytest.mark.parametrize(("slots", "credits"), [(1, 1), (2, 2), (3, 3)])
def test_a_ring_gives_its_slots_as_credits(slots: int, credits: int) -> None:
    ring = (slots, 8, 1)
    load, use = Job(DMA, (write(0, 8, ring=ring),)), Job(FE, (read(0, 8, ring=ring),))
    edges = order_stages([Loop([Loop([load, use])])], ENGINES)
    assert shown(edges) == {(DMA, FE, 0), (FE, DMA, credits)}
    back = next(edge for edge in edges if edge.consumer == DMA)
    assert (back.source, back.target) == (use, load)


def test_order_through_a_third_engine_is_enough() -> None:
    load = Job(DMA, (write(0, 8),))
    first, second = Job(FE, (read(0, 8), write(16, 8))), Job(VEC, (read(0, 8), read(16, 8)))
    assert shown(order_stages([Loop([load, first, second])], ENGINES)) == {(DMA, FE, 0), (FE, VEC, 0)}


def test_one_token_stands_for_neighbours_with_as_many_credits() -> None:
    """Two buffers loaded and stored side by side: the later store frees both before the earlier load."""
    one, two = {"ring": (2, 4, 1)}, {"ring": (2, 4, 1)}
    loads = [Job(DMA, (write(0, 4, **one),)), Job(DMA, (write(8, 4, **two),))]
    stores = [Job(FE, (read(0, 4, **one),)), Job(FE, (read(8, 4, **two),))]
    edges = order_stages([Loop([Loop([*loads, *stores])])], ENGINES, frozenset({(FE, DMA), (DMA, FE)}))
    assert [(e.source, e.target, e.credits) for e in edges if e.producer == FE] == [(stores[1], loads[0], 2)]
    assert [(e.source, e.target, e.credits) for e in edges if e.producer == DMA] == [(loads[1], stores[0], 0)]


def test_order_within_an_engine_is_enough() -> None:
    one, two = Job(DMA, (write(0, 8),)), Job(DMA, (write(16, 8),))
    use, other = Job(FE, (read(16, 8),)), Job(FE, (read(0, 8),))
    (edge,) = order_stages([Loop([one, two, use, other])], ENGINES)
    assert (edge.source, edge.target) == (two, use)


def test_stages_are_ordered_once() -> None:
    store = Loop([Loop([Job(VEC, (write(0, 4, "x", coeffs=(4,), limit=40),))])])
    load = Loop([Loop([Job(DMA, (read(0, 4, "x", coeffs=(4,), limit=40),))])])
    again = Loop([Loop([Job(DMA, (read(0, 4, "x", coeffs=(4,), limit=40),))])])
    (edge,) = order_stages([store, load, again], ENGINES)
    assert (edge.source, edge.target, edge.credits) == (store, load, 0)


def test_a_stage_that_runs_backwards_waits_for_what_it_reads_late() -> None:
    store = Loop([Loop([Job(VEC, (write(0, 4, "x", coeffs=(4,), limit=40),))])])
    load = Loop([Loop([Job(DMA, (read(36, 4, "x", coeffs=(-4,), limit=40),))])])
    assert shown(order_stages([store, load], ENGINES)) == {(VEC, DMA, 0)}


def test_in_place_updates_of_different_rows_need_no_order() -> None:
    row = {"coeffs": (4,), "limit": 400}
    ring = {"ring": (2, 4, 1)}
    load = Job(DMA, (read(0, 4, "x", **row), write(0, 4, **ring)))
    update = Job(VEC, (read(0, 4, **ring), write(0, 4, **ring)))
    store = Job(FE, (write(0, 4, "x", **row), read(0, 4, **ring)))
    assert shown(order_stages([Loop([Loop([load, update, store])])], ENGINES)) == {
        (DMA, VEC, 0),
        (VEC, FE, 0),
        (FE, DMA, 2),
    }


def test_order_does_not_lean_on_a_loop_running_twice() -> None:
    """The inner loop orders VEC and DMA only from its second iteration on."""
    reader = Job(VEC, (read(0, 8),))
    inner = Loop([Job(DMA, (write(16, 4),)), Job(VEC, (write(16, 4),))])
    stages = [Loop([reader, Loop([inner, Job(DMA, (write(0, 8),))])])]
    edges = order_stages(stages, ENGINES)
    for trips in trip_counts(stages):
        assert unordered(execute(stages, edges, trips)) == []


def test_the_checker_sees_a_missing_edge_and_a_deadlock() -> None:
    load, use = Job(DMA, (write(0, 8),)), Job(FE, (read(0, 8),))
    stages = [Loop([Loop([load, use])])]
    trips = dict.fromkeys(loops_of(stages), 2)
    assert unordered(execute(stages, [], trips)) == [(0, 1), (1, 2), (0, 3), (2, 3)]
    assert execute(stages, [Edge(use, load, FE, DMA, 0)], trips).deadlock
