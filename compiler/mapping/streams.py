"""Side by side: which parts of a training step run in which instruction stream, and what each part of the chip gets.

A training step has four parts: forward (with readout and loss), backward (input gradients and neuron gradients),
update (weight gradients) and optimizer (with weight gradients that are better computed for the whole batch). Samples go
through the first three in groups; parameters are frozen until the end of the mini-batch, so the forward part may work
on the next group while the others finish this one. The optimizer follows layer by layer in the last group. Each part
has a stream of instructions and a share of every on-chip memory of its own: within a part stages follow each other,
between parts only data in DRAM is exchanged.

Where large linear layers stand behind the maps (``heads.py``) there are two parts more. What they do takes as long as
their weights take to come, and no table is looked up for them: forward and backward they are the *head*, beside which
maps go on. What comes before the first look-up, the multipliers' and neurons' work on the inputs, is the *entry*.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from enum import Enum

from h2learn.backends.h2learn.machine import Machine, Memory

ENTRY, FORWARD, HEAD, BACKWARD, UPDATE, OPTIMIZER = PARTS = (
    "entry",
    "forward",
    "head",
    "backward",
    "update",
    "optimizer",
)

OVERLAPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "serial": ((ENTRY, FORWARD, HEAD, BACKWARD, UPDATE, OPTIMIZER),),
    "backward": ((ENTRY, FORWARD, HEAD, BACKWARD), (UPDATE, OPTIMIZER)),
    "all": ((ENTRY,), (FORWARD,), (HEAD,), (BACKWARD,), (UPDATE,), (OPTIMIZER,)),
}
"""The parts of each stream, by kind of overlap; tiles and groups, and so all numbers, are the same in each."""

JOINED = "+"
"""Stands between the parts of a stream in its label."""

DEFAULT_OVERLAP = "all"

PRIORITY = (FORWARD, ENTRY, HEAD, BACKWARD, OPTIMIZER, UPDATE)
"""Whose work an engine takes first: the machine prefers the lowest stream number.

Forward work comes before backward work, because first layers share the multipliers with it and all the rest waits for
them; the entry, which has all groups to go through, behind the look-ups of the first, which want the same channel; the
optimizer before the update, because it has little work that others could do without.
"""

PLACES = (ENTRY, FORWARD, OPTIMIZER, HEAD, BACKWARD, UPDATE)
"""The order of the parts in every memory.

The optimizer begins when the forward part is through (``stream_tokens.py`` makes sure of that), so it has the memory of
the forward part, and what the table gives it more lies behind that.
"""

Shares = dict[str, tuple[int, int, int, int, int, int]]
"""Sixteenths of every memory that go to the parts in the order of ``PLACES``."""

SHARES: Shares = {
    "W": (0, 4, 3, 0, 9, 0),  # tables are built from few weights; multipliers read them all the time
    "S": (0, 8, 2, 0, 2, 4),
    "U": (0, 8, 1, 0, 6, 1),  # update and optimizer read the real inputs of first layers only
    "G": (0, 0, 3, 0, 7, 6),
    "M": (0, 8, 0, 0, 8, 0),
    "A": (0, 4, 4, 0, 3, 5),  # sums of weight gradients stay while all positions of a group pass by
    "L": (0, 16, 0, 0, 0, 0),
}
SMALL_SHARES: Shares = SHARES | {
    "W": (0, 3, 0, 0, 13, 0),
    "S": (0, 9, 0, 0, 2, 5),
    "U": (0, 8, 0, 0, 7, 1),
    "G": (0, 0, 1, 0, 11, 4),
    "A": (0, 5, 0, 0, 6, 5),  # positions whose sums are on chip share one reading of the weights
}
"""Shares of a machine on which DRAM traffic decides."""
ENTRY_SHARES: Shares = SHARES | {
    "W": (1, 3, 3, 0, 9, 0),
    "S": (1, 7, 2, 0, 2, 4),
    "U": (2, 6, 1, 0, 6, 1),
    "M": (1, 7, 0, 0, 8, 0),
    "A": (1, 3, 4, 0, 3, 5),
}
"""Shares where what comes before the first look-up is a part of its own."""
HEAD_SHARES: Shares = {
    "W": (1, 2, 0, 7, 6, 0),
    "S": (1, 6, 2, 1, 2, 4),
    "U": (2, 6, 1, 1, 5, 1),
    "G": (0, 0, 3, 2, 6, 5),
    "M": (1, 7, 0, 1, 7, 0),
    "A": (1, 3, 3, 1, 3, 5),
    "L": (0, 16, 0, 0, 0, 0),
}
"""Shares where entry and head are parts of their own: the head needs room for weights on their way."""
SMALL_KIB = 4096
_WHOLE = 16
_GIVE_WAY = (BACKWARD, UPDATE)
"""Parts whose engines other streams want for little at a time: multipliers the head, look-ups the steps on its sums."""


class Jobs(Enum):
    """How the jobs of a part, which an engine finishes before it turns to another stream, stand to those of others."""

    LONG = "as long as tiles make them"
    SHORT = "short, as other streams come first at the engine"
    BETWEEN = "between short ones of other streams"


def is_small(machine: Machine) -> bool:
    """Whether a machine has so little memory that DRAM traffic decides."""
    total: int = sum(getattr(machine.sram_kib, field.name) for field in fields(Memory))
    return total < SMALL_KIB


def shares_of(machine: Machine, apart: Collection[str] = ()) -> Shares:
    """Return the shares of the parts in the memories of ``machine``; ``apart``: those beyond four."""
    if HEAD in apart:
        return HEAD_SHARES
    if ENTRY in apart:
        return ENTRY_SHARES
    return SMALL_SHARES if is_small(machine) else SHARES


def share(machine: Machine, part: str | None, apart: Collection[str] = ()) -> Machine:
    """Return ``machine`` with the memory that ``part`` of a training step has (None: all of it).

    ``apart``: which of entry and head are parts of their own.
    """
    if part is None:
        return machine
    sizes = _sizes(machine, part, apart)
    if part == OPTIMIZER:
        before = _sizes(machine, FORWARD, apart)
        sizes = {name: size + before[name] for name, size in sizes.items()}
    return replace(machine, sram_kib=Memory(**sizes))


def share_base(machine: Machine, part: str | None, apart: Collection[str] = ()) -> dict[str, int]:
    """Return the first byte of every memory that belongs to ``part``."""
    place = FORWARD if part == OPTIMIZER else part
    before = () if place is None else PLACES[: PLACES.index(place)]
    sizes = [_sizes(machine, other, apart) for other in before]
    return {f.name: 1024 * sum(size[f.name] for size in sizes) for f in fields(Memory)}


def _sizes(machine: Machine, part: str, apart: Collection[str]) -> dict[str, int]:
    """Return the KiB of every memory that the table gives a part."""
    number = PLACES.index(part)
    shares = shares_of(machine, apart)
    return {name: parts[number] * getattr(machine.sram_kib, name) // _WHOLE for name, parts in shares.items()}


def jobs_of(part: str | None, *, short: bool) -> Jobs:
    """Return how the jobs of ``part`` are; ``short``: backward and update work gives way to other streams soon."""
    if not short:
        return Jobs.LONG
    return Jobs.SHORT if part in _GIVE_WAY else Jobs.BETWEEN if part == HEAD else Jobs.LONG


def stream_order(first_parts: Sequence[str]) -> list[int]:
    """Return which of the streams, given by their first parts, gets number 0, 1, ...: by priority."""
    return sorted(range(len(first_parts)), key=lambda n: PRIORITY.index(first_parts[n]))


def streams_of(overlap: str, apart: Collection[str] = ()) -> tuple[tuple[str, ...], ...]:
    """Return the parts of every stream; ``apart``: which of entry and head are parts of their own."""
    without = {ENTRY, HEAD} - set(apart)
    streams = (tuple(part for part in parts if part not in without) for parts in OVERLAPS[overlap])
    return tuple(parts for parts in streams if parts)
