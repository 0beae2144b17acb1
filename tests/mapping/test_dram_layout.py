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


def moved_slots(
    tensor: TensorFormat, places: list[list[tuple[int, int]]], plane: int, *, apart: bool
) -> Iterator[list[int]]:
    """Yield the numbers, in the order of DRAM, of the slots that each execution moves."""
    per_plane = plane // tensor.gblk
    for window in product(*places):
        spans = [range(max(0, s), min(n, s + size)) for (s, size), n in zip(window, tensor.shape, strict=True)]
        blocks = range(spans[-1].start // tensor.gblk, -(-spans[-1].stop // tensor.gblk))
        numbers = []
        for t, n, y, x, block in product(*spans[:-1], blocks):
            steps, samples, height, width, _ = tensor.shape
            place = ((t * samples + n) * height + y) * width + x
            if apart:
                place = ((y * width + x) * samples + n) * steps + t
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
    packed = {False: 0, True: 0}
    for _ in range(150):
        width = int(rng.integers(1, 7))
        tensor = TensorFormat("slots.f16", (2, int(rng.integers(1, 4)), width, width, 8 * int(rng.integers(1, 4))), 8)
        copies = random_copies(rng, tensor)
        together = gcd(*(copy.extents[-1].step for copy, _ in copies))
        for plane, apart in product((tensor.shape[-1], together), (False, True)):
            pack = slots_together(tensor, [copy for copy, _ in copies], plane, apart=apart)
            assert 1 <= pack <= UNIT_SLOTS
            packed[apart] += pack > 1
            for _, places in copies:
                for numbers in moved_slots(tensor, places, plane, apart=apart):
                    for unit in units(numbers, pack):
                        assert unit[0] % pack == 0 and len(unit) == pack, (tensor, copies, plane, pack, unit)
    assert min(packed.values()) > 60


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
    assert choose_layout(tensor, [together, together], BURST) == (128, 1, False)
    assert choose_layout(tensor, [apart, apart], BURST) == (16, 1, False)
    assert choose_layout(tensor, [together, apart], BURST) == (16, 1, False)


def test_positions_that_are_read_one_by_one_lie_apart() -> None:
    """A linear layer reads 16 channels of one position of all images: 96 bits' worth of one row instead of 48 rows."""
    tensor = TensorFormat("bits", (6, 8, 7, 7, 256))
    whole = tuple(Extent(n, 0, n, n) for n in (6, 8, 7, 7))
    one = Copied(49 * 16, (*whole[:2], Extent(1, 0, 7, 1), Extent(1, 0, 7, 1), Extent(16, 0, 256, 16)))
    maps = Copied(16, (*whole, Extent(16, 0, 256, 16)))
    assert choose_layout(tensor, [one, maps], BURST) == (16, 1, True)
    assert choose_layout(tensor, [one, maps], BURST, may_be_apart=False) == (16, 1, False)
    assert copy_bursts(tensor, one, 16, 1, BURST) == 48 * BURST
    assert copy_bursts(tensor, one, 16, 1, BURST, apart=True) == 2 * BURST
    seen_flat = Copied(49 * 16, (Extent(48, 0, 48, 48), Extent(1, 0, 49, 1), Extent(16, 0, 256, 16)), (48, 49))
    assert not choose_layout(tensor, [seen_flat, maps], BURST)[2]


def test_gradient_slots_lie_apart_only_where_no_copy_has_a_halo() -> None:
    """One position of 6 steps of 8 samples at a time; then also windows with a row and a column around the map."""
    tensor = TensorFormat("slots.f16", (6, 16, 4, 4, 64), 32)
    images = (Extent(6, 0, 6, 6), Extent(8, 0, 16, 8))
    one = Copied(64, (*images, Extent(1, 0, 4, 1), Extent(1, 0, 4, 1), Extent(32, 0, 64, 32)))
    assert choose_layout(tensor, [one], BURST) == (32, 48, True)
    halo = Copied(4, (*images, Extent(6, -1, 5, 1), Extent(6, -1, 5, 1), Extent(32, 0, 64, 32)))
    assert choose_layout(tensor, [one, halo], BURST) == (64, 1, False)


def test_bursts_of_positions_that_lie_apart_are_those_of_every_row() -> None:
    """Against the places of all rows in DRAM; where a window reaches outside the map, each row is by itself."""
    rng = np.random.default_rng(5)
    merged = 0
    for _ in range(200):
        shape = tuple(int(n) for n in rng.integers(1, 6, 4)) + (16,)
        tensor = TensorFormat("u8", shape)
        halo = int(rng.random() < 0.2)
        sizes = [int(rng.integers(1, n + 1)) for n in shape[:-1]] + [int(rng.choice([8, 16]))]
        extents = [Extent(n, 0, n, n) for n in sizes]
        if halo:
            extents[2] = Extent(shape[2] + 2, -1, shape[2] + 1, 1)
            sizes[2] = shape[2]
        places = np.arange(int(np.prod(shape))).reshape(2, shape[2], shape[3], shape[1], shape[0], 8)
        rows = places.transpose(4, 3, 1, 2, 0, 5)[tuple(slice(n) for n in sizes[:4])][..., : sizes[4] // 8, :]
        starts = np.sort(rows[..., 0].reshape(-1))
        planes = starts // (places.size // 2)
        ends = np.append((np.diff(starts) != 8) | (np.diff(planes) != 0), True)
        ends[:] |= bool(halo)
        lengths = np.diff(np.flatnonzero(ends), prepend=-1) * 8
        expected = int((-(-lengths // BURST) * BURST).sum())
        found = copy_bursts(tensor, Copied(1, tuple(extents)), 8, 1, BURST, apart=True)
        assert found == expected, (shape, sizes, halo)
        merged += len(lengths) < len(starts)
    assert merged > 60
