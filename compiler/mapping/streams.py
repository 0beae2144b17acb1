"""Side by side: which parts of a training step run in which instruction stream, and what each part of the chip gets.

A training step has four parts: forward (with readout and loss), backward (input gradients and neuron gradients),
update (weight gradients) and optimizer (with weight gradients that are better computed for the whole batch). Samples go
through the first three in groups; parameters are frozen until the end of the mini-batch, so the forward part may work
on the next group while the others finish this one. The optimizer follows layer by layer in the last group. Each part
has a stream of instructions and a share of every on-chip memory of its own: within a part stages follow each other,
between parts only data in DRAM is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

from h2learn.backends.h2learn.machine import Machine, Memory

FORWARD, BACKWARD, UPDATE, OPTIMIZER = PARTS = ("forward", "backward", "update", "optimizer")

OVERLAPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "serial": ((FORWARD, BACKWARD, UPDATE, OPTIMIZER),),
    "backward": ((FORWARD, BACKWARD), (UPDATE, OPTIMIZER)),
    "all": ((FORWARD,), (BACKWARD,), (UPDATE,), (OPTIMIZER,)),
}
"""The parts of each stream, by kind of overlap; tiles and groups, and so all numbers, are the same in each."""

JOINED = "+"
"""Stands between the parts of a stream in its label."""

DEFAULT_OVERLAP = "all"

PRIORITY = (FORWARD, BACKWARD, OPTIMIZER, UPDATE)
"""Whose work an engine takes first: the machine prefers the lowest stream number.

Forward work comes before backward work, because first layers share the multipliers with it and all the rest waits for
them; the optimizer before the update, because it has little work that others could do without.
"""

Shares = dict[str, tuple[int, int, int, int]]
"""Sixteenths of every memory that go to the parts in their order."""

SHARES: Shares = {
    "W": (4, 9, 0, 3),  # tables are built from few weights; multipliers read them all the time
    "S": (8, 2, 4, 2),
    "U": (8, 6, 1, 1),  # update and optimizer read the real inputs of first layers only
    "G": (0, 7, 6, 3),
    "M": (8, 8, 0, 0),
    "A": (4, 3, 5, 4),  # sums of weight gradients stay while all positions of a group pass by
    "L": (16, 0, 0, 0),
}
SMALL_SHARES: Shares = SHARES | {
    "W": (3, 11, 0, 2),
    "G": (0, 11, 4, 1),
    "A": (5, 5, 5, 1),  # positions whose sums are on chip share one reading of the weights
}
"""Shares of a machine on which DRAM traffic decides: the optimizer, which reads everything once, needs few bytes."""
SMALL_KIB = 4096
_WHOLE = 16


def shares_of(machine: Machine) -> Shares:
    """Return the shares of the parts in the memories of ``machine``."""
    total = sum(getattr(machine.sram_kib, field.name) for field in fields(Memory))
    return SMALL_SHARES if total < SMALL_KIB else SHARES


def share(machine: Machine, part: str | None) -> Machine:
    """Return ``machine`` with the memory that ``part`` of a training step has (None: all of it)."""
    if part is None:
        return machine
    number = PARTS.index(part)
    shares = shares_of(machine)
    sizes = {name: parts[number] * getattr(machine.sram_kib, name) // _WHOLE for name, parts in shares.items()}
    return replace(machine, sram_kib=Memory(**sizes))


def share_base(machine: Machine, part: str | None) -> dict[str, int]:
    """Return the first byte of every memory that belongs to ``part``."""
    before = () if part is None else PARTS[: PARTS.index(part)]
    parts = [share(machine, other) for other in before]
    return {f.name: sum(other.memory_bytes(f.name) for other in parts) for f in fields(Memory)}


def stream_order(first_parts: Sequence[str]) -> list[int]:
    """Return which of the streams, given by their first parts, gets number 0, 1, ...: by priority."""
    return sorted(range(len(first_parts)), key=lambda n: PRIORITY.index(first_parts[n]))


def streams_of(overlap: str) -> tuple[tuple[str, ...], ...]:
    """Return the parts of every stream."""
    return OVERLAPS[overlap]
