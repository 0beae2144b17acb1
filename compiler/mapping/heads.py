"""Large linear layers behind the maps: the *head*, which the multipliers compute while the tables serve the maps.

A linear layer sees one position per sample and time step, so that building its tables, or reading its weights, takes
longer than what is looked up in them, and longer the smaller the groups of samples are. The multipliers read the
weights as they come and pass over the spikes that are not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.mapping.cost import GROUP_STEPS
from h2learn.compiler.mapping.groups import BORDER, Layer, forward_cycles
from h2learn.compiler.mapping.streams import ENTRY, HEAD, is_small, share

WORTH = 4 * BORDER
"""Cycles in which the tables of a head are built, with one weight per entry, from which on it is a part of its own."""

WAIT = 1 / 64
"""Share of a sample's look-ups from which on they do not wait for what comes before the first of them."""


def head_of(layers: Sequence[Layer], machine: Machine, wanted: str | None = None) -> int:
    """Return how many of the last layers are the head: linear ones of spikes behind others, where it is worth a part.

    The answer depends on neither time steps nor batch, as the program's shape must not. On a machine where DRAM traffic
    decides there is none: it has no memory for more parts. Without look-ups in front there is nothing to go on beside.
    ``wanted`` decides otherwise: ``apart`` or ``joined``.
    """
    count = next((n for n, layer in enumerate(reversed(layers)) if layer.positions > 1 or layer.real), len(layers))
    before, head = layers[: len(layers) - count], layers[len(layers) - count :]
    looked_up = any(not layer.real and layer.positions > 1 for layer in before)
    built = sum(layer.weights for layer in head) / machine.forward.builder_entries
    worth = looked_up and not is_small(machine) and built >= WORTH if wanted is None else wanted == "apart"
    return count if before and worth else 0


def has_entry(layers: Sequence[Layer], head: int, machine: Machine, wanted: str | None = None) -> bool:
    """Whether what comes before the first look-up is a part of its own, so that look-ups need not wait for it.

    It is beside a head, and where the multipliers are at it for so long beside a sample's look-ups that it is worth the
    memory, which a small machine does not have.
    ``wanted`` decides otherwise: ``apart`` or ``joined``.
    """
    looked_up = next((n for n, layer in enumerate(layers) if not layer.real), len(layers))
    if looked_up in (0, len(layers)) or head == len(layers):
        return False
    if head or wanted is not None:
        return bool(head) or wanted == "apart"
    one = [replace(layer, steps=1 if layer.real else GROUP_STEPS) for layer in layers]
    before, behind = (
        sum(forward_cycles(layer, 1, machine) for layer in part) for part in (one[:looked_up], one[looked_up:])
    )
    return before > WAIT * behind and not is_small(machine)


def wants_short_jobs(
    layers: Sequence[Layer], head: int, machine: Machine, item: int, wanted: str | None = None
) -> bool:
    """Whether backward and update work beside the last ``head`` layers gives way soon, at the price of smaller tiles.

    While an engine is at a job of another stream, no more of the head's weights come than there is room for. It is
    worth it where they do not all have room and take more than half as long to come, forward and backward, as a
    sample's look-ups.
    ``wanted`` decides otherwise: ``short`` or ``long``.
    """
    if wanted is not None or not head:
        return wanted == "short"
    before, last = layers[: len(layers) - head], layers[len(layers) - head :]
    weights = item * sum(layer.weights for layer in last)
    come = 2 * weights / machine.dram.bytes_per_cycle
    looked_up = sum(forward_cycles(replace(layer, steps=GROUP_STEPS), 1, machine) for layer in before if not layer.real)
    return weights > share(machine, HEAD, (ENTRY, HEAD)).memory_bytes("W") and come > looked_up / 2
