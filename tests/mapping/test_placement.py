"""Bytes of layouts, and where buffers lie."""

from __future__ import annotations

import numpy as np
import pytest

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.mapping.layout import item_bytes, row_bytes, slot_bytes, slot_channels, tensor_bytes
from h2learn.compiler.mapping.placement import Request, aligned, place


@pytest.mark.parametrize(
    ("form", "shape", "gblk", "expected"),
    [
        ("bits", (2, 3, 8), 0, 6),
        ("bits", (2, 3, 9), 0, 12),
        ("u8", (2, 5), 0, 10),
        ("i32", (8,), 0, 32),
        ("f32", (4, 100), 0, 1600),
        ("f16", (9, 3, 5), 0, 270),
        ("f32", (), 0, 4),
        ("slots.f32", (2, 64), 64, 2 * (8 + 256)),
        ("slots.f32", (2, 96), 32, 2 * 3 * (8 + 128)),
        ("slots.f16", (1, 10), 10, 8 + 24),
        ("slots.f16", (1, 1), 1, 8 + 8),
    ],
)
def test_bytes_of_tensors(form: str, shape: tuple[int, ...], gblk: int, expected: int) -> None:
    assert tensor_bytes(form, shape, gblk) == expected


def test_bytes_of_items_slots_and_rows() -> None:
    assert (item_bytes("f32"), item_bytes("f16")) == (4, 2)
    assert (slot_bytes(64, "f32"), slot_bytes(3, "f16")) == (264, 16)
    assert row_bytes("slots.f16", 20, 8) == 3 * 24


@pytest.mark.parametrize(
    ("channels", "cap", "expected"),
    [(10, None, 10), (64, None, 64), (96, None, 48), (96, 32, 32), (256, None, 64), (256, 40, 32), (20, 8, 20)],
)
def test_channels_of_a_slot(channels: int, cap: int | None, expected: int) -> None:
    assert slot_channels(channels, cap) == expected


def test_slots_of_a_count_without_legal_divisor() -> None:
    """66 and 130 have no divisor that is a multiple of 8: full slots, the last one partly used."""
    assert slot_channels(66) == slot_channels(130, 16) == 64


@pytest.mark.parametrize("seed", range(30))
def test_buffers_of_a_stage_lie_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = {"W": 4096, "S": 1024}
    stages = [
        [Request(str(rng.choice(["W", "S"])), int(rng.integers(1, 250))) for _ in range(int(rng.integers(0, 5)))]
        for _ in range(12)
    ]
    placed = place(stages, capacity)
    assert [len(addresses) for addresses in placed] == [len(stage) for stage in stages]
    for stage, addresses in zip(stages, placed, strict=True):
        taken: dict[str, set[int]] = {"W": set(), "S": set()}
        for request, address in zip(stage, addresses, strict=True):
            span = set(range(address, address + request.total_bytes))
            assert address % 64 == 0 and address >= 0 and max(span) < capacity[request.memory]
            assert not span & taken[request.memory]
            taken[request.memory] |= span


def test_a_stage_goes_on_where_the_one_before_ended() -> None:
    stages = [[Request("W", 100), Request("S", 1)], [Request("W", 64)], [Request("W", 64), Request("S", 64)]]
    assert place(stages, {"W": 256, "S": 128}) == [[0, 0], [128], [192, 64]]


def test_a_stage_that_does_not_fit_behind_starts_at_zero() -> None:
    stages = [[Request("W", 100)], [Request("W", 65), Request("W", 1)], [Request("W", 64)]]
    assert place(stages, {"W": 256}) == [[0], [0, 128], [192]]


def test_a_stage_larger_than_a_memory_is_named() -> None:
    with pytest.raises(H2LearnError, match="stage forward c1 needs 320 bytes of memory S, which has 256"):
        place([[], [Request("S", 129), Request("S", 65)]], {"S": 256}, ["encode", "forward c1"])


def test_alignment() -> None:
    assert [aligned(size) for size in (0, 1, 64, 65)] == [0, 64, 64, 128]
