"""Numbers that have bit-planes: bounds and weights of sums and averages, and the choice of how they enter a layer."""

from __future__ import annotations

import itertools

import pytest

from h2learn.backends.h2learn.machine import load_machine
from h2learn.compiler.mapping.fixed_point import SPIKES, FixedPoint
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.mapping.tiles import ConvShape
from h2learn.compiler.mapping.tiling import choose_planes, plan_forward

V0 = load_machine("h2l-v0")
NUMBERS = [SPIKES, FixedPoint(0, 5, 2), FixedPoint(-3, 2, 1), FixedPoint(2, 3, 0), FixedPoint(-8, -8, 3)]


def values(numbers: FixedPoint) -> set[float]:
    return {i * 2.0**-numbers.frac for i in range(numbers.low, numbers.high + 1)}


@pytest.mark.parametrize("numbers", NUMBERS)
def test_planes_hold_all_numbers_and_no_fewer_would(numbers: FixedPoint) -> None:
    def held(planes: int) -> bool:
        low = -(1 << (planes - 1)) if numbers.signed else 0
        return low <= numbers.low and numbers.high < low + (1 << planes)

    assert held(numbers.planes) and not (numbers.planes > 1 + numbers.signed and held(numbers.planes - 1))
    assert 0.0 in values(numbers)


@pytest.mark.parametrize(("one", "two"), list(itertools.product(NUMBERS, NUMBERS)))
def test_sums_and_unions_hold_what_they_can_be(one: FixedPoint, two: FixedPoint) -> None:
    assert {a + b for a in values(one) for b in values(two)} <= values(one.plus(two))
    assert values(one) | values(two) <= values(one.union(two))


@pytest.mark.parametrize("numbers", NUMBERS)
def test_sums_and_averages_over_windows(numbers: FixedPoint) -> None:
    averaged = numbers.averaged(4)
    assert averaged is not None and numbers.averaged(6) is None and numbers.averaged(1) == numbers
    for picked in itertools.islice(itertools.product(values(numbers), repeat=4), 200):
        assert sum(picked) in values(numbers.times(4)) and sum(picked) / 4 in values(averaged)


def test_only_what_storage_holds_exactly_has_planes() -> None:
    assert FixedPoint(0, 2047, 0).fits("f16") and not FixedPoint(0, 2048, 0).fits("f16")
    assert FixedPoint(0, 2048, 0).fits("f32") and not FixedPoint(0, 1 << 24, 0).fits("f32")
    assert not FixedPoint(0, 1, 30).fits("f32")


def test_few_planes_go_through_the_tables_and_many_to_the_multipliers() -> None:
    shape = ConvShape(4, 8, 16, 16, 64, 16, 16, 64, (3, 3), (1, 1), (1, 1), True, False, 2)
    chosen = [choose_planes(shape, planes, V0, TileLimits(), looped=False) for planes in (1, 2, 8, 12)]
    assert chosen == sorted(chosen, reverse=True) and chosen[0] and not chosen[-1]
    for form, expected in (("planes", True), ("multipliers", False)):
        assert choose_planes(shape, 4, V0, TileLimits(operand_form=form), looped=False) is expected


def test_tiles_leave_room_for_the_planes() -> None:
    shape = ConvShape(8, 16, 64, 64, 64, 64, 64, 64, (3, 3), (1, 1), (1, 1), True, False, 2)
    tile = plan_forward(ConvShape(**{**shape.__dict__, "planes": 11}), load_machine("h2l-edge"), TileLimits())
    inputs = tile.steps * tile.samples * (tile.rows + 2) * (tile.columns + 2)
    assert 2 * inputs * 11 * tile.c // 8 <= load_machine("h2l-edge").memory_bytes("S")
    assert tile.fan in (1, 2, 4)
