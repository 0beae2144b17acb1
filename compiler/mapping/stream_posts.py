"""How many posts each wait takes when one token stands for all that a stream waits for from another.

A producer posts behind some of its stages. A consumer waits by count: in front of a stage it takes the posts that come
in up to the one it needs. In a loop over layers every iteration executes the same waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

Turns = Sequence[Sequence[int]]
"""For every iteration of a loop over layers, and every stage there, how many posts it needs in all (0: none)."""


def count_takes(units: Sequence[Turns], total: int) -> tuple[list[tuple[int, list[int]]], int]:
    """Return for every unit how many of ``total`` posts to take in front of it and before each of its stages.

    What stands alone is a unit with one turn. Where the needs of a loop do not grow evenly all are taken in front of
    it. The last number is what nobody took.
    """
    taken = 0
    takes: list[tuple[int, list[int]]] = []
    for turns in units:
        front, each = _take(turns, taken, total)
        takes.append((front, each))
        taken += front + len(turns) * sum(each)
    return takes, total - taken


def _take(turns: Turns, taken: int, total: int) -> tuple[int, list[int]]:
    levels = list(accumulate((need for turn in turns for need in turn), max, initial=taken))
    growth = [later - earlier for earlier, later in pairwise(levels)]
    size = len(turns[0])
    first, *others = (growth[n * size : (n + 1) * size] for n in range(len(turns)))
    each = others[0] if others else first
    if all(turn == each for turn in others):
        front = max(0, *(one - other for one, other in zip(accumulate(first), accumulate(each), strict=True)))
        if taken + front + len(turns) * sum(each) <= total:
            return front, each
    return levels[-1] - taken, [0] * size
