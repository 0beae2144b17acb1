"""Tiles of the vector unit's stages: positions, sums over them, rows of parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod

from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.mapping.layout import row_bytes, slot_channels
from h2learn.compiler.mapping.limits import SLOTS, TileLimits
from h2learn.compiler.mapping.tile_search import Choices, choices_of, divisors, shrunk
from h2learn.compiler.mapping.tiles import ConvShape, SumTile, Tile, Usage, slot_cap


def plan_positions(
    steps: int,
    batch: int,
    height: int,
    width: int,
    channels: int,
    usage: Callable[[Tile], Usage],
    machine: Machine,
    limits: TileLimits,
    *,
    whole_steps: bool = False,
    row_unit: int = 1,
    column_unit: int = 1,
) -> Tile:
    """Choose the tile of an element-wise or pooling stage over ``[steps, batch, height, width, channels]``.

    ``usage`` says what a tile (with ``c == k`` channels) needs; ``whole_steps`` keeps all time steps together; rows and
    columns are cut at multiples of the units. Raises H2LearnError when nothing fits.
    """
    shape = ConvShape(
        steps, batch, height, width, channels, height, width, channels, (1, 1), (1, 1), (0, 0), True, False, 4
    )
    units = {"k": slot_channels(channels, slot_cap(machine, limits)), "rows": row_unit, "columns": column_unit}
    choices = choices_of(shape, height, width, limits, units)
    choices["c"] = (1,)
    if whole_steps:
        choices["steps"] = (steps,)
    order = ("samples", "rows", "k", "columns", "steps")
    return Tile(**shrunk(choices, order, usage, machine, "tile"))


def plan_sums(
    shape: Sequence[int],
    item: int,
    machine: Machine,
    limits: TileLimits,
    reduce_block: tuple[int, int, int, int] | None = None,
    *,
    gradients: bool = True,
) -> SumTile:
    """Choose the tile of sums per channel over fp32 values ``[steps, batch, height, width, channels]``.

    With ``gradients`` slots (``item`` bytes a value) lie beside the values. Tiles are whole everywhere, because zeros
    around a tensor would count in a variance. ``reduce_block`` pins (steps, samples, rows, columns) when they were
    chosen before. Raises H2LearnError when nothing fits.
    """
    gblk = slot_channels(shape[-1], slot_cap(machine, limits))
    slots = f"slots.{'f32' if item == 4 else 'f16'}"

    def usage(t: Tile) -> Usage:
        values = SLOTS * t.steps * t.positions
        beside = values * row_bytes(slots, t.k, gblk) if gradients else 0
        return Usage(A=values * t.k * 4 + SLOTS * 32 * t.k + SLOTS * 64, G=beside)

    return _whole_tiles(shape, gblk, usage, machine, limits, reduce_block)


def plan_constants(
    shape: Sequence[int],
    item: int,
    machine: Machine,
    limits: TileLimits,
    reduce_block: tuple[int, int, int, int] | None = None,
) -> SumTile:
    """Choose the tile of the gradients of neuron constants over ``[steps, batch, height, width, channels]``.

    Two gradients, potentials (``item`` bytes a value) and spikes are read. Otherwise as :func:`plan_sums`.
    """
    gblk = slot_channels(shape[-1], slot_cap(machine, limits))
    slots = f"slots.{'f32' if item == 4 else 'f16'}"

    def usage(t: Tile) -> Usage:
        values = SLOTS * t.steps * t.positions
        return Usage(
            A=SLOTS * 24 * t.k,
            G=2 * values * row_bytes(slots, t.k, gblk),
            U=values * t.k * item,
            S=values * row_bytes("bits", t.k),
        )

    return _whole_tiles(shape, gblk, usage, machine, limits, reduce_block)


def _whole_tiles(
    shape: Sequence[int],
    gblk: int,
    usage: Callable[[Tile], Usage],
    machine: Machine,
    limits: TileLimits,
    reduce_block: tuple[int, int, int, int] | None,
) -> SumTile:
    """Choose a tile whose sizes divide the ``shape``."""
    steps, batch, height, width, channels = shape
    choices: Choices = {
        "steps": tuple(divisors(steps, limits.steps, 1)),
        "samples": tuple(divisors(batch, limits.samples, 1)),
        "rows": tuple(divisors(height, limits.rows, 1)),
        "columns": tuple(divisors(width, limits.columns, 1)),
        "c": (1,),
        "k": tuple(divisors(channels, limits.k, max(8, gblk))),
    }
    if reduce_block is not None:
        for name, size in zip(("steps", "samples", "rows", "columns"), reduce_block, strict=True):
            choices[name] = (size,)
    order = ("samples", "rows", "k", "columns", "steps")
    return SumTile(**shrunk(choices, order, usage, machine, "tile of sums"))


def plan_rows(shape: Sequence[int], bytes_per_element: int, capacity: int, limits: TileLimits) -> tuple[int, int]:
    """Return (elements per row, rows per tile) for an element-wise stage over a parameter of ``shape``.

    A row is as many of the last dimensions as fit one tile, or an equal part of the last; ``capacity`` is the memory
    for the ``bytes_per_element`` that all buffers together take.
    """
    most = max(1, capacity // (SLOTS * bytes_per_element))
    whole = (prod(shape[n:]) for n in range(len(shape)))
    per_row = next((size for size in whole if size <= most), 0) or next(
        size for size in divisors(shape[-1], None, 1) if size <= most
    )
    elements = min(limits.elements or most, most)
    return per_row, max(1, min(prod(shape) // per_row, elements // per_row))


THINNEST_PLANE = 8
"""Channels of the thinnest planes in which a storage copy may lie: a tile has no fewer."""


def plan_channels(
    shape: Sequence[int], bytes_per_element: int, capacity: int, limits: TileLimits, burst: int
) -> tuple[int, int]:
    """Return (channels, rows per tile) for an element-wise stage over a parameter with a storage copy in planes.

    A tile has an equal part of some rows. Tensors of fp32 move the channels of a row together (whole rows, if those are
    all channels), the copy (fp16) all rows of a plane: such tiles are taken that need the fewest bursts of ``burst``
    bytes, of these the one with the most channels.
    """
    most = max(1, capacity // (SLOTS * bytes_per_element))
    most = min(limits.elements or most, most)
    unit = max(1, burst // (2 * THINNEST_PLANE))
    found: list[tuple[float, int, int]] = []
    for channels in divisors(shape[-1], most, 1):
        rows = min(prod(shape[:-1]), most // channels)
        rows -= rows % unit if unit < rows < prod(shape[:-1]) else 0
        together = rows * channels if channels == shape[-1] else channels
        plane = gcd(channels, THINNEST_PLANE)
        moved = bytes_per_element * _waste(4 * together, burst) + 2 * _waste(2 * rows * plane, burst)
        found.append((moved, channels, rows))
    _, channels, rows = min(found, key=lambda one: one[0])
    return channels, rows


def _waste(size: int, burst: int) -> float:
    """Return how many times its bytes a row takes in whole bursts."""
    return -(-size // burst) * burst / size
