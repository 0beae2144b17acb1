"""How many posts each wait takes."""

from __future__ import annotations

import numpy as np
import pytest

from h2learn.compiler.mapping.stream_posts import Turns, count_takes


def test_stages_that_stand_alone_take_what_came_since() -> None:
    assert count_takes([[[1]], [[0]], [[4]]], 5) == ([(0, [1]), (0, [0]), (0, [3])], 1)


def test_iterations_take_one_post_each() -> None:
    assert count_takes([[[1, 0], [2, 0], [3, 0]]], 3) == ([(0, [1, 0])], 0)


def test_what_the_first_iteration_needs_more_is_taken_in_front() -> None:
    assert count_takes([[[5, 6], [7, 8], [9, 10]]], 10) == ([(4, [1, 1])], 0)


def test_needs_that_do_not_grow_evenly_are_taken_in_front() -> None:
    assert count_takes([[[1], [1], [3]], [[4]]], 4) == ([(3, [0]), (0, [1])], 0)


def test_more_than_there_is_is_never_taken() -> None:
    """Even growth from the second iteration on, but three takes of two posts are more than five."""
    assert count_takes([[[1], [3], [5]]], 5) == ([(5, [0])], 0)


@pytest.mark.parametrize("seed", range(100))
def test_enough_is_taken_before_every_stage_and_never_too_much(seed: int) -> None:
    rng = np.random.default_rng(seed)
    total = int(rng.integers(1, 12))
    units: list[Turns] = []
    for _ in range(int(rng.integers(1, 4))):
        turns, size = int(rng.integers(1, 4)), int(rng.integers(1, 3))
        units.append([[int(rng.integers(0, total + 1)) for _ in range(size)] for _ in range(turns)])
    takes, left = count_takes(units, total)
    taken = 0
    for unit, (front, each) in zip(units, takes, strict=True):
        taken += front
        for turn in unit:
            for need, count in zip(turn, each, strict=True):
                assert front >= 0 and count >= 0
                taken += count
                assert need <= taken <= total
    assert left == total - taken
