"""Layouts of DRAM tensors against every row and slot that the copies move, enumerated here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import gcd

import numpy as np

from h2learn.compiler.mapping.dram_layout import (
    UNIT_SLOTS,
    Copied,
    Extent,
    TensorFormat,
    choose_layout,
    copy_bursts,
    slots_together,
)

BURST = 64


def cut(size: int, tile_size: int, halo: int) -> tuple[list[tuple[int, int]], Extent]:
    """Return (start, size) of every tile of a dimension and what a copy says of it."""
    starts = list(range(0, size, tile_size))
    found = [(start - halo, tile_size + 2 * halo) for start in starts]
    step = gcd(tile_size + 2 * halo, *(start for start, _ in found)) if len(found) > 1 or halo else tile_size
    return found, Extent(tile_size + 2 * halo, -halo, starts[-1] + tile_size + halo, step)


def random_copies(rng: np.random.Generator, tensor: TensorFormat) -> list[tuple[Copied, list[list[tuple[int, int]]]]]:
    """Return copies that cut maps in rows and columns, some with a halo, and channels in whole slots."""
    copies = []
    for _ in range(int(rng.integers(2, 4))):
        places, extents = [], []
        for dimension, size in enumerate(tensor.shape):
            unit = tensor.gblk if dimension == 4 else 1
            legal = [d for d in range(unit, size + 1, unit) if size % d == 0 or (dimension in (2, 3) and d > size // 2)]
            chosen = size if rng.random() < 0.6 else int(rng.choice(legal))
            found, extent = cut(size, chosen, int(rng.random() < 0.4) if dimension in (2, 3) else 0)
            places.append(found)
            extents.append(extent)
        times = int(np.prod([len(found) for found in places]))
        copies.append((Copied(times, tuple(extents)), places))
    return copies


def moved_slots(tensor: TensorFormat, places: list[list[tuple[int, int]]], plane: int) -> Iterator[list[int]]:
    """Yield the numbers, in the order of DRAM, of the slots that each execution moves."""
    per_plane = plane // tensor.gblk
    for window in product(*places):
        spans = [range(max(0, s), min(n, s + size)) for (s, size), n in zip(window, tensor.shape, strict=True)]
        blocks = range(spans[-1].start // tensor.gblk, -(-spans[-1].stop // tensor.gblk))
        numbers = []
        for t, n, y, x, block in product(*spans[:-1], blocks):
            place = ((t * tensor.shape[1] + n) * tensor.shape[2] + y) * tensor.shape[3] + x
            positions = int(np.prod(tensor.shape[:-1]))
            numbers.append((block // per_plane * positions + place) * per_plane + block % per_plane)
        yield sorted(numbers)


def units(numbers: list[int], pack: int) -> list[list[int]]:
    """Return the units in which a transfer moves slots: up to ``pack`` that touch."""
    found: list[list[int]] = []
    for number in numbers:
        if not found or number != found[-1][-1] + 1 or len(found[-1]) == pack:
            found.append([])
        found[-1].append(number)
    return found


def test_all_copies_move_whole_units() -> None:
    """A unit is packed: who moves a part of one could not know where it lies."""
    rng = np.random.default_rng(0)
    packed = 0
    for _ in range(150):
        width = int(rng.integers(1, 7))
        tensor = TensorFormat("slots.f16", (2, int(rng.integers(1, 4)), width, width, 8 * int(rng.integers(1, 4))), 8)
        copies = random_copies(rng, tensor)
        together = gcd(*(copy.extents[-1].step for copy, _ in copies))
        for plane in (tensor.shape[-1], together):
            pack = slots_together(tensor, [copy for copy, _ in copies], plane)
            assert 1 <= pack <= UNIT_SLOTS
            packed += pack > 1
            for _, places in copies:
                for numbers in moved_slots(tensor, places, plane):
                    for unit in units(numbers, pack):
                        assert unit[0] % pack == 0 and len(unit) == pack, (tensor, copies, plane, pack, unit)
    assert packed > 60


def test_bursts_are_those_of_every_row() -> None:
    shape, plane = (2, 3, 4, 5, 32), 8
    for rows, columns, channels, expected in (
        (4, 5, 32, 4 * 2 * BURST),  # four planes, each 6 images of 20 bytes side by side
        (2, 5, 8, 6 * BURST),  # two whole rows per image
        (2, 3, 16, 2 * 6 * 2 * BURST),
    ):
        sizes = (2, 3, rows, columns, channels)
        copy = Copied(1, tuple(Extent(size, 0, size, size) for size in sizes))
        assert copy_bursts(TensorFormat("bits", shape), copy, plane, 1, BURST) == expected


def test_channels_that_are_read_apart_lie_apart() -> None:
    tensor = TensorFormat("bits", (6, 16, 32, 32, 128))
    whole = [Extent(n, 0, n, n) for n in tensor.shape[:-1]]
    together = Copied(1, (*whole, Extent(128, 0, 128, 128)))
    apart = Copied(8, (*whole, Extent(16, 0, 128, 16)))
    assert choose_layout(tensor, [together, together], BURST) == (128, 1)
    assert choose_layout(tensor, [apart, apart], BURST) == (16, 1)
    assert choose_layout(tensor, [together, apart], BURST) == (16, 1)
