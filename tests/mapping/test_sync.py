"""Tokens between engines: hand cases, then random programs against an independent happens-before graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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


def execute(stages: Sequence[Loop], edges: Sequence[Edge], trips: Mapping[Loop, int], engines: int) -> Run:
    """Run the stages; loops that ``trips`` does not name run once. Credits are there from the start."""
    run = Run()
    reached = [0] * engines
    posted: dict[Edge, list[int]] = {edge: [0] * edge.credits for edge in edges}
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
                posted[edge].append(reached[edge.producer])
    run.left = {edge: len(posted[edge]) - taken[edge] for edge in edges}
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
    return Access(region.space, low, high, region.written)


def random_program(rng: np.random.Generator, *, tensors: bool, slots: Sequence[int] = (1, 2)) -> list[Loop]:
    """Return stages of random loops; a job touches buffers of the loops around it and perhaps windows of tensors."""
    return [_random_stage(rng, tensors, slots) for _ in range(int(rng.integers(1, 4)))]


def _random_stage(rng: np.random.Generator, tensors: bool, slots: Sequence[int]) -> Loop:
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
            if depth < 3 and rng.random() < 0.5:
                child = Loop()
                fill(child, depth + 1, mine)
                loop.children.append(child)
            else:
                loop.children.append(_random_job(rng, mine, windows if tensors else {}, depth))

    stage = Loop()
    fill(stage, 0, [])
    return stage


def _random_window(rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return (first byte, bytes per iteration, bytes, which loop): iterations of one window do not overlap."""
    step = int(rng.choice([-4, 0, 4]))
    return int(rng.integers(0, 40)), step, int(rng.integers(1, 5)), int(rng.integers(0, 3))


def _random_job(
    rng: np.random.Generator, buffers: Sequence[Region], windows: Mapping[str, tuple[int, int, int, int]], depth: int
) -> Job:
    regions: list[Region] = []
    for buffer in buffers:
        if rng.random() < 0.5:
            written = bool(rng.random() < 0.5)
            regions.append(Region(buffer.space, buffer.low, buffer.size, written, ring=buffer.ring))
    for name, (low, step, size, level) in windows.items():
        if rng.random() < 0.2:
            coeffs = tuple(step if n == level else 0 for n in range(depth))
            regions.append(Region(name, low, size, bool(rng.random() < 0.5), coeffs, limit=48))
    return Job(int(rng.integers(ENGINES)), tuple(regions))


def loops_of(stages: Sequence[Loop]) -> list[Loop]:
    """Return all loops inside the stages."""
    inside = [child for stage in stages for child in stage.children if isinstance(child, Loop)]
    return inside + (loops_of(inside) if inside else [])


def random_trips(rng: np.random.Generator, stages: Sequence[Loop], low: int, high: int) -> dict[Loop, int]:
    return {loop: int(rng.integers(low, high + 1)) for loop in loops_of(stages)}


@pytest.mark.parametrize("seed", range(120))
def test_no_conflicting_pair_is_left_unordered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stages = random_program(rng, tensors=bool(seed % 2))
    edges = order_stages(stages, ENGINES)
    for low, high in ((1, 1), (1, 3), (2, 5)):
        run = execute(stages, edges, random_trips(rng, stages, low, high), ENGINES)
        assert not run.deadlock
        assert unordered(run) == []
        assert run.left == {edge: edge.credits for edge in edges}


@pytest.mark.parametrize("seed", range(60))
def test_every_edge_is_necessary_at_some_trip_counts(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    stages = random_program(rng, tensors=False)
    edges = order_stages(stages, ENGINES)
    loops = loops_of(stages)
    choices = [dict.fromkeys(loops, 3)] + [
        dict(zip(loops, rng.choice([1, 3], len(loops)), strict=True)) for _ in range(60)
    ]
    for edge in edges:
        rest = [other for other in edges if other is not edge]
        assert any(unordered(execute(stages, rest, trips, ENGINES)) for trips in choices), edge
