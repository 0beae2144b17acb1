"""Tokens between instruction streams, from the DRAM tensors that their stages touch."""

from __future__ import annotations

from collections.abc import Sequence

from h2learn.compiler.mapping.stream_sync import StageUse, StreamWait, order_streams
from h2learn.compiler.passes.tile_layout import enclosing_loops, insert_after, insert_before, root_tensor
from h2learn.dialects import tile


def insert_stream_tokens(streams: Sequence[tile.StreamOp], first_token: int) -> None:
    """Insert the tokens between streams: stores of the producer before loads of the consumer.

    Every pair of streams has one token for what stands in the consumer's loop over groups, where each wait takes the
    post of the same group, and one for what stands behind, where the posts of all groups up to the one wanted are
    taken.
    """
    stages = [[op for op in stream.walk() if isinstance(op, tile.StageOp)] for stream in streams]
    pairs: dict[tuple[int, int, bool], list[StreamWait]] = {}
    for wait in order_streams([[_use(stage) for stage in each] for each in stages]):
        behind = _group_loop(stages[wait.consumer][wait.target]) is None
        pairs.setdefault((wait.producer, wait.consumer, behind), []).append(wait)
    for token, ((producer, consumer, behind), waits) in enumerate(pairs.items(), start=first_token):
        sources = sorted({wait.source for wait in waits})
        for source in sources:
            _post(stages[producer][source], token)
        loops = [_group_loop(stages[producer][source]) for source in sources]
        taken = 0
        for wait in waits:
            last = sources.index(wait.source)
            total = _posts(loops, last) if behind else last + 1
            _take(stages[consumer][wait.target], token, total - taken)
            taken = total


def _posts(loops: Sequence[tile.ForOp | None], last: int) -> int:
    """Return the posts of all sources, each in its loop, up to that of source ``last`` in its last iteration."""
    trips = [1 if loop is None else loop.trips.data for loop in loops]
    later = sum(trips[n] - 1 for n in range(last + 1, len(loops)) if loops[n] is loops[last])
    return sum(trips[: last + 1]) + later


def _post(stage: tile.StageOp, token: int) -> None:
    signal = tile.SignalOp("DMAOUT", token)
    signal.location = stage.location
    insert_after(stage, signal)


def _take(stage: tile.StageOp, token: int, count: int) -> None:
    wait = tile.WaitOp("DMAIN", token, count)
    wait.location = stage.location
    insert_before(stage, wait)


def _use(stage: tile.StageOp) -> StageUse:
    """Return the tensors of a stage; those of which every window moves with the loop over groups are its group's."""
    reads: set[object] = set()
    writes: set[object] = set()
    others: set[object] = set()
    loop = _group_loop(stage)
    group = None if loop is None else loop.counter
    alone = loop is not None and loop.trips.data == 1
    for op in stage.walk():
        if isinstance(op, tile.LoadOp | tile.StoreOp):
            tensor = root_tensor(op.tensor)
            (reads if isinstance(op, tile.LoadOp) else writes).add(tensor)
            if group is None or not (alone or group in op.ivs):
                others.add(tensor)
    own = frozenset(reads | writes) - others
    front = loop is not None and isinstance(loop.next_op, tile.ForOp)
    return StageUse(frozenset(reads), frozenset(writes), own, front=front, behind=group is None)


def _group_loop(stage: tile.StageOp) -> tile.ForOp | None:
    """Return the loop over groups around a stage, None when it stands behind it."""
    loops = enclosing_loops(stage)
    return loops[0] if loops else None
