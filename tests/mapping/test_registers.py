"""Registers and descriptors that are reused, and semaphores for tokens."""

from __future__ import annotations

import numpy as np
import pytest

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.mapping.registers import ContentCache, TokenUse, assign_semaphores

PAIRS = [("DMAIN", "FE"), ("FE", "VEC"), ("VEC", "DMAOUT"), ("DMAOUT", "DMAIN")]


def test_contents_are_found_again() -> None:
    cache = ContentCache(1, 3, "address registers")
    assert [cache.get(x) for x in "abab"] == [(1, False), (2, False), (1, True), (2, True)]


def test_the_one_unused_for_longest_is_given_away() -> None:
    cache = ContentCache(0, 3, "descriptors")
    for content in "abca":
        cache.get(content)
    cache.new_stage()
    assert cache.get("d") == (1, False)
    assert [cache.get(x)[1] for x in "ac"] == [True, True]


@pytest.mark.parametrize("seed", range(20))
def test_a_stage_keeps_what_it_uses(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache = ContentCache(4, 6, "descriptors")
    slots: dict[int, object] = {}
    for _ in range(30):
        cache.new_stage()
        wanted = rng.integers(0, 20, size=20)
        stage: dict[int, int] = {}
        for content in map(int, wanted):
            if content not in stage and len(stage) == 6:
                continue
            slot, known = cache.get(content)
            assert 4 <= slot < 10
            assert known == (slots.get(slot) == content)
            slots[slot] = content
            assert stage.setdefault(content, slot) == slot
        assert all(slots[slot] == content for content, slot in stage.items())


def test_a_stage_that_needs_too_many_is_refused() -> None:
    cache = ContentCache(0, 2, "conv descriptors")
    cache.get("a")
    cache.get("b")
    with pytest.raises(H2LearnError, match="one stage needs more conv descriptors than the machine has"):
        cache.get("c")
    cache.new_stage()
    assert cache.get("c") == (0, False)


def random_tokens(rng: np.random.Generator, count: int) -> dict[int, TokenUse]:
    tokens: dict[int, TokenUse] = {}
    for token in range(count):
        producer, consumer = PAIRS[int(rng.integers(len(PAIRS)))]
        first = int(rng.integers(0, 20))
        last = first + (int(rng.integers(1, 6)) if rng.random() < 0.3 else 0)
        credits = int(rng.integers(1, 3)) if first == last and rng.random() < 0.4 else 0
        tokens[token] = TokenUse(producer, consumer, first, last, credits)
    return tokens


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("count", [24, 64])
def test_semaphores_serve_one_token_at_a_time_and_end_empty(seed: int, count: int) -> None:
    tokens = random_tokens(np.random.default_rng(seed), 60)
    try:
        plan = assign_semaphores([tokens], range(count))[0]
    except H2LearnError:
        assert count < 64
        return
    assert set(plan.semaphore) == set(tokens) and set(plan.semaphore.values()) <= set(range(count))
    held = dict.fromkeys(range(count), 0)
    owner: dict[int, tuple[str, str]] = {}
    for stage in range(30):
        drained = {
            semaphore: n for consumer, semaphore, n in plan.drains.get(stage, []) if consumer == owner[semaphore][1]
        }
        assert len(drained) == len(plan.drains.get(stage, []))
        for semaphore, number in drained.items():
            assert held[semaphore] == number > 0
            held[semaphore] = 0
        live = [token for token, use in tokens.items() if use.first <= stage <= use.last]
        assert len({plan.semaphore[token] for token in live}) == len(live)
        for token in live:
            use, semaphore = tokens[token], plan.semaphore[token]
            assert owner.setdefault(semaphore, (use.producer, use.consumer)) == (use.producer, use.consumer)
            if use.first == stage:
                assert held[semaphore] == 0
            if use.last == stage:
                held[semaphore] = use.credits
    assert sorted(plan.left) == sorted((owner[s][1], s, n) for s, n in held.items() if n)


def test_a_spare_semaphore_is_taken_before_one_is_drained() -> None:
    tokens = {n: TokenUse("FE", "VEC", n, n, 1) for n in range(3)}
    plan = assign_semaphores([tokens], range(3))[0]
    assert plan.drains == {} and len(set(plan.semaphore.values())) == 3 and len(plan.left) == 3


def test_no_semaphore_is_left_to_spare() -> None:
    tokens = {n: TokenUse("FE", "VEC", n, n, 2) for n in range(3)}
    plan = assign_semaphores([tokens], range(1))[0]
    assert plan.drains == {1: [("VEC", 0, 2)], 2: [("VEC", 0, 2)]} and plan.left == [("VEC", 0, 2)]


def test_a_pair_that_comes_late_finds_a_semaphore() -> None:
    """Early pairs with credits must not take what a later stage needs."""
    tokens = {n: TokenUse("FE", "VEC", n, n, 1) for n in range(5)}
    tokens |= {5 + n: TokenUse("VEC", "DMAOUT", 6, 6) for n in range(3)}
    plan = assign_semaphores([tokens], range(4))[0]
    assert len({plan.semaphore[5 + n] for n in range(3)}) == 3


def test_too_many_tokens_at_once_are_refused() -> None:
    tokens = {n: TokenUse("FE", "VEC", 0, 0) for n in range(3)}
    with pytest.raises(H2LearnError, match="more than the 2 semaphores it has at once"):
        assign_semaphores([tokens], range(2))
