"""Which stages of one instruction stream wait for which stages of another.

Streams have shares of the on-chip memories of their own, so only tensors in DRAM connect them, and whole stages are
ordered: the producer posts behind a stage, the consumer waits in front of one. The meaning is that of one stream after
the other. Within the loops over groups of samples only stages of the same group are ordered, as they touch the windows
of their group alone; what stands behind the loops waits for stages of the last group. What an earlier wait tells
already, also by way of a third stream, is not asked for again.

Every stream has the same loops over groups, one behind the other: *sections*, between what stands in front and behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StageUse:
    """A stage of a stream: the tensors it reads and writes, and those of which it touches only what its group owns.

    ``section``: the number of the loop over groups that it stands in. Outside, it stands in ``front`` of all of them or
    behind.
    """

    reads: frozenset[object]
    writes: frozenset[object]
    own: frozenset[object]
    section: int | None = None
    front: bool = False

    @property
    def behind(self) -> bool:
        """Whether it stands behind the loops over groups."""
        return self.section is None and not self.front

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
"""For every other stream, how many of its stages are over in this group (behind the loops: in the last)."""


def order_streams(streams: Sequence[Sequence[StageUse]]) -> list[StreamWait]:
    """Return the waits in the order of the streams and their stages; a stream's loops come before what is behind.

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
    if not shared or later.behind or earlier.front:
        return bool(shared)
    if earlier.behind or not shared <= (earlier.own & later.own):
        raise ValueError("a stage in a loop over groups depends on other groups of another stream")
    return earlier.section == later.section
