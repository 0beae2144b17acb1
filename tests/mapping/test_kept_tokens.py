"""Tokens whose credits go on from stage to stage."""

from __future__ import annotations

from itertools import count

from h2learn.compiler.mapping.kept_tokens import MOST, KeptTokens

DMA, FE, VEC = 0, 1, 2


def test_a_token_rests_for_a_stage() -> None:
    kept = KeptTokens(count(7))
    assert [kept.take(FE, DMA, 2, unit) for unit in (0, 0, 1, 2, 2, 3)] == [7, 8, 9, 7, 8, 9]
    assert kept.posts() == [(7, DMA, 2), (8, DMA, 2), (9, DMA, 2)]


def test_tokens_belong_to_their_engines_and_credits() -> None:
    kept = KeptTokens(count())
    assert [kept.take(*wanted, 0) for wanted in ((FE, DMA, 2), (FE, DMA, 1), (VEC, DMA, 2), (FE, VEC, 2))] == [
        0,
        1,
        2,
        3,
    ]
    assert kept.take(FE, DMA, 1, 2) == 1


def test_behind_a_fence_all_are_free() -> None:
    kept = KeptTokens(count())
    assert (kept.take(FE, DMA, 2, 5), kept.take(FE, DMA, 2, 5)) == (0, 1)
    kept.new_section()
    assert kept.take(FE, DMA, 2, 0) == 0


def test_there_are_no_more_than_a_stream_may_keep() -> None:
    kept = KeptTokens(count())
    assert [kept.take(FE, DMA, 2, 0) for _ in range(MOST + 1)] == [*range(MOST), None]
