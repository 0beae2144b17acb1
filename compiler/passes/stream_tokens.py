"""Tokens between instruction streams, from the DRAM tensors that their stages touch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from xdsl.ir import Block, Operation

from h2learn.compiler.mapping.stream_posts import count_takes
from h2learn.compiler.mapping.stream_sync import StageUse, order_streams
from h2learn.compiler.mapping.streams import FORWARD, OPTIMIZER
from h2learn.compiler.passes.families import Families
from h2learn.compiler.passes.tile_layout import (
    insert_after,
    insert_before,
    is_section,
    layer_loop,
    root_tensor,
    section_loop,
)
from h2learn.dialects import tile


@dataclass(frozen=True)
class _Run:
    """A stage in one iteration of the loop over layers around it (0 where there is none)."""

    stage: tile.StageOp
    layer: int


def insert_stream_tokens(streams: Sequence[tile.StreamOp], first_token: int) -> None:
    """Insert the tokens between streams: stores of the producer before loads of the consumer.

    Every pair of streams has one token for what stands in the consumer's loops over groups, where each wait takes the
    posts of the same group, and one for what stands behind, where the posts of all groups up to the one wanted are
    taken.
    """
    runs = [list(_runs(stream)) for stream in streams]
    families = Families.of(op for stream in streams for op in stream.walk())
    waits: dict[tuple[int, int, int | None], dict[int, int]] = {}
    for wait in order_streams([[_use(run, families) for run in each] for each in runs]):
        section = _section(runs[wait.consumer][wait.target].stage)
        waits.setdefault((wait.producer, wait.consumer, section), {})[wait.target] = wait.source
    tokens: dict[tuple[int, int, bool], int] = {}
    for (producer, consumer, section), sources in waits.items():
        behind = section is None
        token = tokens.setdefault((producer, consumer, behind), first_token + len(tokens))
        posting = {runs[producer][source].stage for source in sources.values()}
        for stage in dict.fromkeys(run.stage for run in runs[producer]):
            if stage in posting:
                _post(stage, token)
        posts, total = _posts(runs[producer], posting, behind)
        _take_all(runs[consumer], {target: posts[source] for target, source in sources.items()}, total, token)


def _sections(stream: Block) -> list[tile.ForOp]:
    """Return the loops over groups in the block of a stream; what stands in front of them in a loop does not count."""
    return [op for op in stream.ops if isinstance(op, tile.ForOp) and is_section(op) and op.counter.first_use]


def _section(stage: tile.StageOp) -> int | None:
    """Return the number of the loop over groups in which a stage stands (None: it stands in front or behind)."""
    loop = section_loop(stage)
    if loop is None or loop.counter.first_use is None:
        return None
    assert loop.parent is not None
    return _sections(loop.parent).index(loop)


def _runs(stream: tile.StreamOp) -> Iterator[_Run]:
    """Yield the stages of a stream in one group, loops over layers unrolled."""
    stages = [op for op in stream.walk() if isinstance(op, tile.StageOp)]
    for loop, inside in groupby(stages, key=layer_loop):
        body = list(inside)
        for layer in range(1 if loop is None else loop.trips.data):
            yield from (_Run(stage, layer) for stage in body)


def _posts(runs: Sequence[_Run], posting: set[tile.StageOp], behind: bool) -> tuple[dict[int, int], int]:
    """Return the posts up to every run of a stage in ``posting``, and those of all.

    For a consumer behind its loop over groups that is the run in the last group, and posts of all groups count.
    """
    found: dict[int, int] = {}
    total = 0
    numbered = [(number, run) for number, run in enumerate(runs) if run.stage in posting]
    for loop, inside in groupby(numbered, key=lambda item: section_loop(item[1].stage)):
        section = [number for number, _ in inside]
        before = (loop.trips.data - 1) * len(section) if loop is not None and behind else 0
        found.update({number: total + before + place for place, number in enumerate(section, start=1)})
        total += before + len(section)
    return found, total


def _take_all(runs: Sequence[_Run], needed: dict[int, int], total: int, token: int) -> None:
    """Insert the waits of the section of a consumer; ``needed``: posts that must be there before a run."""
    loop = section_loop(runs[next(iter(needed))].stage)
    mine = [number for number, run in enumerate(runs) if section_loop(run.stage) is loop]
    units: list[tile.StageOp | tile.ForOp] = []
    needs: list[list[list[int]]] = []
    for unit, inside in groupby(mine, key=lambda number: layer_loop(runs[number].stage) or runs[number].stage):
        turns = groupby(inside, key=lambda number: runs[number].layer)
        units.append(unit)
        needs.append([[needed.get(number, 0) for number in turn] for _, turn in turns])
    takes, left = count_takes(needs, total)
    for unit, (front, each) in zip(units, takes, strict=True):
        _take(unit, token, front)
        stages = [unit] if isinstance(unit, tile.StageOp) else [op for op in unit.body.block.ops if _is_stage(op)]
        for stage, count in zip(stages, each, strict=True):
            _take(stage, token, count)
    if left:
        end = units[-1].parent
        assert end is not None and end.last_op is not None
        wait = tile.WaitOp("DMAIN", token, left)
        wait.location = units[-1].location
        if loop is None:
            end.add_op(wait)
        else:
            insert_before(end.last_op, wait)


def _is_stage(op: Operation) -> bool:
    return isinstance(op, tile.StageOp)


def _post(stage: tile.StageOp, token: int) -> None:
    signal = tile.SignalOp("DMAOUT", token)
    signal.location = stage.location
    insert_after(stage, signal)


def _take(place: Operation, token: int, count: int) -> None:
    if count:
        wait = tile.WaitOp("DMAIN", token, count)
        wait.location = place.location
        insert_before(place, wait)


def _touched(op: tile.CopyOp, layer: int, families: Families) -> set[object]:
    """Return what a copy touches: members of a family, or a whole tensor."""
    member = families.member(op)
    if member is not None:
        return {(member.space, member.offset + layer * member.step)}
    root = root_tensor(op.tensor)
    assert isinstance(root.owner, tile.StackOp)
    return {(root, number) for number in range(len(root.owner.members))}


def _use(run: _Run, families: Families) -> StageUse:
    """Return the tensors of a stage; those of which every window moves with the loop over groups are its group's."""
    reads: set[object] = set()
    writes: set[object] = set()
    others: set[object] = set()
    stage = run.stage
    loop = section_loop(stage)
    group = None if loop is None else loop.counter
    alone = loop is not None and loop.trips.data == 1 and loop.parent is not None and len(_sections(loop.parent)) == 1
    for op in stage.walk():
        if isinstance(op, tile.LoadOp | tile.StoreOp):
            touched = _touched(op, run.layer, families)
            (reads if isinstance(op, tile.LoadOp) else writes).update(touched)
            if group is None or not (alone or group in op.ivs):
                others |= touched
    if stage.part is not None and stage.part.data in (FORWARD, OPTIMIZER):  # both have the same on-chip memory
        writes.add(FORWARD)
        others.add(FORWARD)
    own = frozenset(reads | writes) - others
    section = _section(stage)
    return StageUse(frozenset(reads), frozenset(writes), own, section, front=section is None and loop is not None)
