"""Which engines post and take a token, and from which stage to which: what semaphores are shared by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import UnionType

from xdsl.ir import Block, Operation

from h2learn.compiler.mapping.registers import TokenUse
from h2learn.compiler.passes.tile_layout import is_unit, stages_of
from h2learn.dialects import tile


def token_uses(block: Block) -> dict[int, TokenUse]:
    """Collect who posts and takes each token, in which stages, and how many stay behind (its credits).

    Stages in a loop over layers count one after the other. A token that one iteration posts and takes is in use from
    stage to stage; any other as long as the loop runs.
    """
    mentions: dict[int, list[_Mention]] = {}
    inside = {op.token.data for unit in block.ops if is_unit(unit) for op in _tokens(unit, tile.SignalOp)}
    start = 0
    before = range(1)
    for child in block.ops:
        if isinstance(child, tile.ForOp | tile.StreamOp) and not is_unit(child):
            continue
        if isinstance(child, tile.SignalOp | tile.WaitOp):
            behind = isinstance(child, tile.SignalOp) and child.token.data not in inside
            unit = before if behind else range(start, start + 1)
            mentions.setdefault(child.token.data, []).append(_Mention(child, unit.stop - 1, unit, alone=True))
        elif is_unit(child):
            stages = stages_of(child)
            unit = range(start, start + len(stages))
            for op, place in _placed_tokens(child, stages):
                mentions.setdefault(op.token.data, []).append(_Mention(op, start + place, unit))
            before, start = unit, unit.stop
    return {token: _token_use(found) for token, found in mentions.items()}


@dataclass(frozen=True)
class _Mention:
    """A signal or wait: the number of its stage and those of its unit; ``alone``: outside of units."""

    op: tile.SignalOp | tile.WaitOp
    place: int
    unit: range
    alone: bool = False


def _token_use(mentions: Sequence[_Mention]) -> TokenUse:
    """Return the use of a token that is mentioned there, in order."""
    producer = consumer = ""
    credits = 0
    posted_inside = any(isinstance(m.op, tile.SignalOp) and not m.alone for m in mentions)
    for mention in mentions:
        if isinstance(mention.op, tile.WaitOp):
            consumer = mention.op.engine.data
        elif mention.alone and posted_inside:
            credits = mention.op.count.data
        else:
            producer = mention.op.engine.data
    unit = min(m.unit.start for m in mentions)
    if len({m.unit for m in mentions}) == 1 and not any(m.alone for m in mentions):
        return TokenUse(producer, consumer, min(m.place for m in mentions), max(m.place for m in mentions), unit=unit)
    return TokenUse(producer, consumer, unit, max(m.unit.stop for m in mentions) - 1, credits, unit)


def _placed_tokens(unit: Operation, stages: Sequence[Operation]) -> Iterator[tuple[tile.SignalOp | tile.WaitOp, int]]:
    """Yield the signals and waits of a unit with the number of their stage.

    What stands between stages of a loop over layers posts for the stage before, or waits for the one behind.
    """
    number = -1
    for child in (unit,) if isinstance(unit, tile.StageOp) else unit.regions[0].block.ops:
        number += child in stages
        for op in _tokens(child, tile.SignalOp | tile.WaitOp):
            waits = child is op and isinstance(op, tile.WaitOp)
            yield op, min(max(number + waits, 0), len(stages) - 1)


def _tokens(op: Operation, kinds: type[tile.SignalOp] | UnionType) -> Iterator[tile.SignalOp | tile.WaitOp]:
    """Yield the signals, or waits, or both, in an op."""
    return (inner for inner in op.walk() if isinstance(inner, kinds))
