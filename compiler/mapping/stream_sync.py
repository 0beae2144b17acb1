"""Which stages of one instruction stream wait for which stages of another.

Streams have shares of the on-chip memories of their own, so only tensors in DRAM connect them, and whole stages are
ordered: the producer posts behind a stage, the consumer waits in front of one. The meaning is that of one stream after
the other. Within the loops over groups of samples only stages of the same group are ordered, as they touch the windows
of their group alone; what stands behind the loop waits for stages of the last group. What an earlier wait tells
already, also by way of a third stream, is not asked for again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageUse:
    """A stage of a stream: the tensors it reads and writes, and those of which it touches only what its group owns.

    ``front`` and ``behind``: it stands in front of, or behind, the loop over groups.
    """

    reads: frozenset[object]
    writes: frozenset[object]
    own: frozenset[object]
    front: bool = False
    behind: bool = False

    def conflicts(self, later: StageUse) -> frozenset[object]:
        """Return the tensors over which a later stage must wait for this one."""
        return (self.writes & (later.reads | later.writes)) | (self.reads & later.writes)


@dataclass(frozen=True)
class StreamWait:
    """Before stage ``target`` of stream ``consumer``: wait for stage ``source`` of stream ``producer``."""

    producer: int
    source: int
    consumer: int
    target: int


_Known = dict[int, int]
"""For every other stream, how many of its stages are over in this group (behind the loop: in the last)."""


def order_streams(streams: Sequence[Sequence[StageUse]]) -> list[StreamWait]:
    """Return the waits in the order of the streams and their stages; a stream's loop comes before what is behind.

    Raises ValueError when a stage in a loop over groups needs what another group of another stream does.
    """
    waits: list[StreamWait] = []
    known: list[list[_Known]] = []
    for consumer, stages in enumerate(streams):
        mine: _Known = {}
        known.append([])
        for target, stage in enumerate(stages):
            for producer in range(consumer - 1, -1, -1):
                needed = [n for n, other in enumerate(streams[producer]) if _needs(other, stage)]
                if not needed or mine.get(producer, 0) > needed[-1]:
                    continue
                if streams[producer][needed[-1]].front and not stage.behind:
                    raise ValueError(
                        "a stage in a loop over groups waits for nothing but what stands in front of another"
                    )
                waits.append(StreamWait(producer, needed[-1], consumer, target))
                told = known[producer][needed[-1]]
                mine = {n: max(mine.get(n, 0), told.get(n, 0)) for n in mine | told}
                mine[producer] = needed[-1] + 1
            known[-1].append(mine)
    return waits


def _needs(earlier: StageUse, later: StageUse) -> bool:
    shared = earlier.conflicts(later)
    if not shared:
        return False
    if not (later.behind or earlier.front) and (earlier.behind or not shared <= (earlier.own & later.own)):
        raise ValueError("a stage in a loop over groups depends on other groups of another stream")
    return True
