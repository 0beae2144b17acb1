"""``h2l-insert-tokens``: signals and waits, exactly where jobs on different engines depend on each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import ClassVar

from xdsl.context import Context
from xdsl.dialects import builtin
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.isa import ENGINES
from h2learn.compiler.mapping.kept_tokens import KeptTokens
from h2learn.compiler.mapping.sync import Edge, Job, Loop, Region, order_stages
from h2learn.compiler.passes.families import Families, leading
from h2learn.compiler.passes.stream_tokens import insert_stream_tokens
from h2learn.compiler.passes.tile_layout import (
    buffer_of,
    channel_bytes,
    enclosing_loops,
    insert_after,
    insert_before,
    layer_loop,
    placed_address,
    placed_bytes,
    root_tensor,
    section_loop,
    slot_stride,
    stack_of,
    stage_loops,
    stages_of,
    tensor_strides,
    unit_nest,
)
from h2learn.dialects import tile

TRANSFERS = frozenset({(ENGINES.index("DMAOUT"), ENGINES.index("DMAIN"))})
"""Neighbouring stores and loads share a token; engines would lose time, 2.5% of a step of CIFAR VGG."""


@dataclass(frozen=True)
class InsertTokensPass(ModulePass):
    """Order the engines by tokens; buffers must have addresses."""

    name: ClassVar[str] = "h2l-insert-tokens"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Insert ``tile.signal`` and ``tile.wait``."""
        del ctx
        numbers = count()
        families = Families.of(op.walk())
        kept: dict[Block, KeptTokens] = {}
        for section in sections(op):
            places: dict[Loop | Job, Operation] = {}
            stages = [_unit(unit, places, families) for unit in section]
            tokens = kept.setdefault(_stream_block(section[0]), KeptTokens(numbers))
            tokens.new_section()
            inside = [stage for unit in section for stage in stages_of(unit)]
            order: dict[Operation | None, int] = {stage: n for n, stage in enumerate(inside)}
            edges = order_stages(stages, len(ENGINES), TRANSFERS)
            for edge in sorted(edges, key=lambda edge: order.get(_stage_of(places[edge.target]), -1)):
                _insert(edge, places, order, tokens, numbers)
        for block, tokens in kept.items():
            _post_kept(block, tokens)
        insert_stream_tokens([stream for stream in op.walk() if isinstance(stream, tile.StreamOp)], next(numbers))


def sections(module: builtin.ModuleOp) -> list[list[tile.StageOp | tile.ForOp]]:
    """Return the stages, and loops over layers, that follow each other in one block.

    The loop over groups is fenced off from what follows.
    """
    blocks: dict[Block | None, list[tile.StageOp | tile.ForOp]] = {}
    for op in module.walk():
        if isinstance(op, tile.StageOp):
            unit = layer_loop(op) or op
            known = blocks.setdefault(unit.parent, [])
            if unit not in known[-1:]:
                known.append(unit)
    return list(blocks.values())


def _unit(op: tile.StageOp | tile.ForOp, places: dict[Loop | Job, Operation], families: Families) -> Loop:
    """Return the tree of a stage, or a stage around a loop over layers."""
    tree = _tree(op, places, families)
    if isinstance(op, tile.StageOp):
        return tree
    tree.of_stages = True
    unit = Loop([tree])
    places[unit] = op
    return unit


def _tree(op: tile.StageOp | tile.ForOp, places: dict[Loop | Job, Operation], families: Families) -> Loop:
    loop = Loop()
    places[loop] = op
    for child in op.body.block.ops:
        if isinstance(child, tile.ForOp | tile.StageOp):
            loop.children.append(_tree(child, places, families))
        elif isinstance(child, tile.JobOp | tile.LoadOp | tile.StoreOp):
            engine = tile.engine_of(child)
            assert engine is not None
            job = Job(ENGINES.index(engine), tuple(_regions(child, families)))
            places[job] = child
            loop.children.append(job)
    return loop


def _regions(op: tile.JobOp | tile.LoadOp | tile.StoreOp, families: Families) -> list[Region]:
    regions: list[Region] = []
    for value, _, read, written in tile.touched(op):
        if isinstance(value.type, tile.BufferType):
            regions += [_buffer_region(value, flag) for flag, on in ((False, read), (True, written)) if on]
        elif isinstance(op, tile.LoadOp | tile.StoreOp):
            regions.append(_tensor_region(op, written, families))
    return regions


def _buffer_region(value: SSAValue, written: bool) -> Region:
    alloc, placed = buffer_of(value)
    ring = (alloc.slots.data, slot_stride(alloc), len(unit_nest(alloc)))
    return Region(alloc.memory.data, placed_address(alloc), placed_bytes(placed), written, ring=ring)


def _tensor_region(op: tile.LoadOp | tile.StoreOp, written: bool, families: Families) -> Region:
    """Return the span from the first to the last byte of the window (rows between may not be touched)."""
    member = families.member(op)
    left_out = {0} if isinstance(op.tensor.owner, tile.RepeatOp) else set()
    if member is not None and member.space is root_tensor(op.tensor) and member.space in families.spaces:
        left_out.add(leading(op))
    assert isinstance(op.tensor.type, tile.TensorType)
    placed = op.tensor.type.placed
    nest = unit_nest(op)
    depth = {loop.counter: n for n, loop in enumerate(nest) if isinstance(loop, tile.ForOp)}
    strides = tensor_strides(op.tensor)
    low, size = 0, channel_bytes(placed, op.sizes.data[-1])
    coeffs = [0] * len(nest)
    window: list[tuple[int, tuple[int, ...], int]] = []
    for dimension, ((offset, factors), extent) in enumerate(zip(op.window.data, op.sizes.data, strict=True)):
        last = dimension == len(strides)

        def to_bytes(count: int, last: bool = last, dimension: int = dimension) -> int:
            return channel_bytes(placed, count) if last else count * strides[dimension]

        if dimension in left_out:
            continue
        low += to_bytes(offset)
        start = [0] * len(nest)
        for iv, factor in zip(op.ivs, factors, strict=False):
            if iv in depth:  # the loop over groups stands outside
                coeffs[depth[iv]] += to_bytes(factor)
                start[depth[iv]] += factor
        size += 0 if last else (extent - 1) * strides[dimension]
        window.append((offset, tuple(start), extent))
    space = stack_of(root_tensor(op.tensor))[0]
    place = None if member is None else (member.offset, member.step)
    limit = placed_bytes(tile.placed_of(space))
    return Region(space, low, size, written, tuple(coeffs), limit=limit, window=tuple(window), member=place)


def _insert(
    edge: Edge,
    places: dict[Loop | Job, Operation],
    order: Mapping[Operation | None, int],
    kept: KeptTokens,
    numbers: Iterator[int],
) -> None:
    source, target = places[edge.source], places[edge.target]
    around = enclosing_loops(source)
    at_once = prod(loop.trips.data for loop in stage_loops(target) if loop not in around)
    token = None
    stage = _stage_of(target)
    if edge.credits and at_once == 1 and stage is not None and stage is _stage_of(source):
        token = kept.take(edge.producer, edge.consumer, edge.credits, order[stage])
    number = next(numbers) if token is None else token
    signal = tile.SignalOp(ENGINES[edge.producer], number, at_once)
    wait = tile.WaitOp(ENGINES[edge.consumer], number)
    signal.location, wait.location = source.location, target.location
    insert_after(source, signal)
    insert_before(target, wait)
    if edge.credits and token is None:
        # posted by the one who takes them: the producer may still be busy with the stage before
        credits = tile.SignalOp(ENGINES[edge.consumer], number, edge.credits * at_once)
        credits.location = target.location
        insert_before(_unit_of(target), credits)


def _stream_block(unit: Operation) -> Block:
    """Return the block of the stream, or of the function, in which a unit stands."""
    block = unit.parent
    loop = section_loop(unit)
    if loop is not None:
        block = loop.parent
    assert block is not None
    return block


def _post_kept(block: Block, kept: KeptTokens) -> None:
    """Post the credits of kept tokens once, in front of all stages."""
    first = next(op for op in block.ops if isinstance(op, tile.ForOp | tile.StageOp | tile.TokenOp))
    for number, consumer, credits in kept.posts():
        signal = tile.SignalOp(ENGINES[consumer], number, credits)
        signal.location = first.location
        insert_before(first, signal)


def _unit_of(op: Operation) -> Operation:
    """Return the stage, or the loop over layers, in which an op stands."""
    nest = unit_nest(op)
    if nest and not isinstance(nest[0].parent_op(), tile.StageOp):
        return nest[0]
    stage = _stage_of(op)
    assert stage is not None
    return stage


def _stage_of(op: Operation) -> tile.StageOp | None:
    """Return the stage that an op is or stands in; None for a loop over layers."""
    parent: Operation | None = op
    while parent is not None and not isinstance(parent, tile.StageOp):
        parent = parent.parent_op()
    return parent
