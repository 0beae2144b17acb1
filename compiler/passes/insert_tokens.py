"""``h2l-insert-tokens``: signals and waits, exactly where jobs on different engines depend on each other."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

from xdsl.context import Context
from xdsl.dialects import builtin
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass

from h2learn.backends.h2learn.isa import ENGINES
from h2learn.compiler.mapping.sync import Edge, Job, Loop, Region, order_stages
from h2learn.compiler.passes.stream_tokens import insert_stream_tokens
from h2learn.compiler.passes.tile_layout import (
    buffer_of,
    channel_bytes,
    insert_after,
    insert_before,
    placed_bytes,
    root_tensor,
    slot_stride,
    stage_loops,
    tensor_strides,
)
from h2learn.dialects import tile


@dataclass(frozen=True)
class InsertTokensPass(ModulePass):
    """Order the engines by tokens; buffers must have addresses."""

    name: ClassVar[str] = "h2l-insert-tokens"

    def apply(self, ctx: Context, op: builtin.ModuleOp) -> None:
        """Insert ``tile.signal`` and ``tile.wait``."""
        del ctx
        token = 0
        for section in sections(op):
            places: dict[Loop | Job, Operation] = {}
            stages = [_tree(stage, places) for stage in section]
            for edge in order_stages(stages, len(ENGINES)):
                _insert(edge, token, places)
                token += 1
        insert_stream_tokens([stream for stream in op.walk() if isinstance(stream, tile.StreamOp)], token)


def sections(module: builtin.ModuleOp) -> list[list[tile.StageOp]]:
    """Return the stages that follow each other in one block; the loop over groups is fenced off from what follows."""
    blocks: dict[Block | None, list[tile.StageOp]] = {}
    for op in module.walk():
        if isinstance(op, tile.StageOp):
            blocks.setdefault(op.parent, []).append(op)
    return list(blocks.values())


def _tree(op: tile.StageOp | tile.ForOp, places: dict[Loop | Job, Operation]) -> Loop:
    loop = Loop()
    places[loop] = op
    for child in op.body.block.ops:
        if isinstance(child, tile.ForOp):
            loop.children.append(_tree(child, places))
        elif isinstance(child, tile.JobOp | tile.LoadOp | tile.StoreOp):
            engine = tile.engine_of(child)
            assert engine is not None
            job = Job(ENGINES.index(engine), tuple(_regions(child)))
            places[job] = child
            loop.children.append(job)
    return loop


def _regions(op: tile.JobOp | tile.LoadOp | tile.StoreOp) -> list[Region]:
    regions: list[Region] = []
    for value, _, read, written in tile.touched(op):
        if isinstance(value.type, tile.BufferType):
            regions += [_buffer_region(value, flag) for flag, on in ((False, read), (True, written)) if on]
        elif isinstance(op, tile.LoadOp | tile.StoreOp):
            regions.append(_tensor_region(op, written))
    return regions


def _buffer_region(value: SSAValue, written: bool) -> Region:
    alloc, placed = buffer_of(value)
    assert alloc.address is not None, "buffers are placed before tokens"
    ring = (alloc.slots.data, slot_stride(alloc), len(stage_loops(alloc)))
    return Region(alloc.memory.data, alloc.address.data, placed_bytes(placed), written, ring=ring)


def _tensor_region(op: tile.LoadOp | tile.StoreOp, written: bool) -> Region:
    """Return the span from the first to the last byte of the window (rows between may not be touched)."""
    assert isinstance(op.tensor.type, tile.TensorType)
    placed = op.tensor.type.placed
    loops = stage_loops(op)
    depth = {loop.counter: n for n, loop in enumerate(loops)}
    strides = tensor_strides(op.tensor)
    low, size = 0, channel_bytes(placed, op.sizes.data[-1])
    coeffs = [0] * len(loops)
    window: list[tuple[int, tuple[int, ...], int]] = []
    for dimension, ((offset, factors), extent) in enumerate(zip(op.window.data, op.sizes.data, strict=True)):
        last = dimension == len(strides)

        def to_bytes(count: int, last: bool = last, dimension: int = dimension) -> int:
            return channel_bytes(placed, count) if last else count * strides[dimension]

        low += to_bytes(offset)
        start = [0] * len(loops)
        for iv, factor in zip(op.ivs, factors, strict=False):
            if iv in depth:  # the loop over groups stands outside
                coeffs[depth[iv]] += to_bytes(factor)
                start[depth[iv]] += factor
        size += 0 if last else (extent - 1) * strides[dimension]
        if dimension or not isinstance(op.tensor.owner, tile.RepeatOp):
            window.append((offset, tuple(start), extent))
    root = root_tensor(op.tensor)
    return Region(root, low, size, written, tuple(coeffs), limit=placed_bytes(placed), window=tuple(window))


def _insert(edge: Edge, token: int, places: dict[Loop | Job, Operation]) -> None:
    source, target = places[edge.source], places[edge.target]
    count = prod(loop.trips.data for loop in stage_loops(target)) if isinstance(source, tile.StageOp) else 1
    signal = tile.SignalOp(ENGINES[edge.producer], token, count)
    wait = tile.WaitOp(ENGINES[edge.consumer], token)
    signal.location, wait.location = source.location, target.location
    insert_after(source, signal)
    insert_before(target, wait)
    if edge.credits:
        # posted by the one who takes them: the producer may still be busy with the stage before
        credits = tile.SignalOp(ENGINES[edge.consumer], token, edge.credits)
        credits.location = target.location
        insert_before(_stage_of(target), credits)


def _stage_of(op: Operation) -> tile.StageOp:
    parent: Operation | None = op
    while parent is not None and not isinstance(parent, tile.StageOp):
        parent = parent.parent_op()
    assert parent is not None
    return parent
