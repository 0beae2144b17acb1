"""Tokens that share a semaphore: every wait takes the posts that its own token would have given it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest
from xdsl.ir import Block, Operation, Region

from h2learn.compiler.mapping.registers import assign_semaphores, least_semaphores
from h2learn.compiler.passes.tile_layout import is_unit, stages_of
from h2learn.compiler.passes.token_uses import token_uses
from h2learn.dialects import tile

PAIRS = [("DMAIN", "FE"), ("FE", "VEC"), ("VEC", "DMAOUT")]


def stage(rng: np.random.Generator) -> tile.StageOp:
    loop = tile.ForOp("n", int(rng.integers(1, 4)))
    return tile.StageOp("s", Region(Block([loop])))


def inner(op: tile.StageOp) -> Block:
    loop = op.body.block.first_op
    while not isinstance(loop, tile.ForOp):
        assert loop is not None
        loop = loop.next_op
    return loop.body.block


def front(block: Block, op: Operation) -> None:
    if block.first_op is None:
        block.add_op(op)
    else:
        block.insert_op_before(op, block.first_op)


def random_block(rng: np.random.Generator, units: int, tokens: int) -> Block:
    """Return stages and loops over layers with tokens of every kind that the compiler places."""
    block = Block()
    for _ in range(units):
        one = stage(rng)
        if rng.random() < 0.5:
            block.add_op(one)
        else:
            loop = tile.ForOp("layer", int(rng.integers(2, 4)))
            loop.body.block.add_ops([one, *(stage(rng) for _ in range(int(rng.integers(1, 4))))])
            block.add_op(loop)
    known = list(block.ops)
    for token in range(tokens):
        producer, consumer = PAIRS[int(rng.integers(len(PAIRS)))]
        place = int(rng.integers(units))
        unit = known[place]
        inside = [op for op in stages_of(unit) if isinstance(op, tile.StageOp)]
        first, last = sorted(int(n) for n in rng.integers(len(inside), size=2))
        credits = int(rng.integers(1, 3))
        post, take = tile.SignalOp(producer, token), tile.WaitOp(consumer, token)
        kind = rng.choice(["stage", "stages", "ring", "layers", "units", "iterations"])
        if kind == "stage":
            inner(inside[first]).add_ops([post, take])
        elif kind == "stages" and first < last:
            if rng.random() < 0.5:
                inside[first].body.block.add_op(post)
                front(inside[last].body.block, take)
            else:
                around = inside[0].parent
                assert around is not None
                around.insert_op_after(post, inside[first])
                around.insert_op_before(take, inside[last])
        elif kind in ("ring", "layers"):
            block.insert_op_before(tile.SignalOp(consumer, token, credits), unit)
            if kind == "ring":
                front(inner(inside[first]), take)
                inner(inside[first]).add_op(post)
            else:
                front(inside[first].body.block, take)
                inside[last].body.block.add_op(post)
        elif place + 1 < units:
            later = known[int(rng.integers(place + 1, units))]
            trips = later.trips.data if kind == "iterations" and isinstance(later, tile.ForOp) else 0
            if trips:
                target = stages_of(later)[-1]
                assert isinstance(target, tile.StageOp)
                front(target.body.block, take)
            else:
                block.insert_op_before(take, later)
            block.insert_op_after(tile.SignalOp(producer, token, max(trips, 1)), unit)
    return block


def executed(block: Block) -> Iterator[tile.SignalOp | tile.WaitOp]:
    for op in block.ops:
        if isinstance(op, tile.SignalOp | tile.WaitOp):
            yield op
        elif isinstance(op, tile.ForOp | tile.StageOp):
            for _ in range(op.trips.data if isinstance(op, tile.ForOp) else 1):
                yield from executed(op.body.block)


@pytest.mark.parametrize("seed", range(60))
def test_a_wait_takes_the_posts_of_its_own_token(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block = random_block(rng, units=6, tokens=40)
    uses = token_uses(block)
    (plan,) = assign_semaphores([uses], range(least_semaphores([uses])))
    held: dict[int, deque[int]] = {n: deque() for n in plan.semaphore.values()}
    place = 0
    for child in list(block.ops):
        if is_unit(child) or isinstance(child, tile.WaitOp):
            for _, semaphore, count in plan.drains.pop(place, []):
                assert all(uses[held[semaphore].popleft()].last < place for _ in range(count))
        wrapper = Block()
        child.detach()
        wrapper.add_op(child)
        for op in executed(wrapper):
            queue = held[plan.semaphore[op.token.data]]
            if isinstance(op, tile.SignalOp):
                queue.extend([op.token.data] * op.count.data)
            else:
                assert [queue.popleft() for _ in range(op.count.data)] == [op.token.data] * op.count.data
        if is_unit(child):
            place += len(stages_of(child))
    assert not plan.drains
    left = {n: len(queue) for n, queue in held.items() if queue}
    assert {(semaphore, count) for _, semaphore, count in plan.left} == set(left.items())


def test_stages_of_a_loop_over_layers_share_a_semaphore() -> None:
    stages = [tile.StageOp("s", Region(Block([tile.SignalOp("FE", n), tile.WaitOp("VEC", n)]))) for n in range(4)]
    loop = tile.ForOp("layer", 3)
    loop.body.block.add_ops(stages)
    assert least_semaphores([token_uses(Block([loop]))]) == 1
