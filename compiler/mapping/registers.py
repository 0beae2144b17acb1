"""Register and semaphore allocation: which numbered thing of the machine holds what, with as few writes as possible."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from h2learn.backends.h2learn.errors import H2LearnError


class ContentCache:
    """Numbered slots (address registers, descriptors) that are reused while their contents are wanted again.

    A slot that the current stage uses stays; among the others the one that was not used for longest is given away.
    """

    def __init__(self, first: int, count: int, what: str) -> None:
        self._free = list(range(first + count - 1, first - 1, -1))
        self._slots: OrderedDict[Hashable, int] = OrderedDict()
        self._held: set[Hashable] = set()
        self._what = what

    def new_stage(self) -> None:
        """Let go of what the stage before used."""
        self._held.clear()

    def forget(self) -> None:
        """Take all contents as unknown, as at the head of a loop around stages."""
        self._free += self._slots.values()
        self._slots.clear()
        self._held.clear()

    def get(self, content: Hashable) -> tuple[int, bool]:
        """Return (slot, whether it already holds ``content``); raises H2LearnError when a stage needs too many."""
        if content in self._slots:
            self._slots.move_to_end(content)
            self._held.add(content)
            return self._slots[content], True
        if not self._free:
            victim = next((known for known in self._slots if known not in self._held), None)
            if victim is None:
                raise H2LearnError(f"one stage needs more {self._what} than the machine has")
            self._free.append(self._slots.pop(victim))
        slot = self._free.pop()
        self._slots[content] = slot
        self._held.add(content)
        return slot, False


@dataclass
class TokenUse:
    """A token: its engines, the stages of its first and last mention, and the tokens left over when all is done.

    ``unit``: the first stage of the loop over layers in which the first mention stands; that one itself by default. A
    semaphore can only be drained in front of the whole loop.
    """

    producer: str
    consumer: str
    first: int
    last: int
    credits: int = 0
    unit: int = -1

    def __post_init__(self) -> None:
        if self.unit < 0:
            self.unit = self.first


@dataclass
class SemaphorePlan:
    """Semaphore of every token, and what each unit must drain first as (consumer, semaphore, count).

    ``left``: what is to be drained at the end of the section.
    """

    semaphore: dict[int, int] = field(default_factory=dict)
    drains: dict[int, list[tuple[str, int, int]]] = field(default_factory=dict)
    left: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass
class _Semaphore:
    number: int
    busy_until: int
    left: int


def assign_semaphores(sections: Sequence[Mapping[int, TokenUse]], numbers: Sequence[int]) -> list[SemaphorePlan]:
    """Give every token of the sections of a stream one of the semaphores ``numbers``.

    A semaphore stays with one pair of engines, so that posts and takes are in order without further care. Reuse prefers
    one that holds nothing; one with leftover credits is drained by its consumer before the new stage starts. At the end
    of a section all are drained. Raises H2LearnError when there are too few.
    """
    wanted = _wanted(sections)
    pools: dict[tuple[str, str], list[_Semaphore]] = {}
    spare = list(reversed(numbers))
    plans = []
    for uses in sections:
        plans.append(_plan_section(uses, wanted, pools, spare, len(numbers)))
        for semaphore in (semaphore for pool in pools.values() for semaphore in pool):
            semaphore.busy_until, semaphore.left = -1, 0
    return plans


def least_semaphores(sections: Sequence[Mapping[int, TokenUse]]) -> int:
    """Return how many semaphores the sections of a stream need at least."""
    return sum(_wanted(sections).values())


def _wanted(sections: Sequence[Mapping[int, TokenUse]]) -> dict[tuple[str, str], int]:
    """Return for each pair of engines how many semaphores it needs in the section that needs most."""
    pairs: dict[tuple[str, str], int] = {}
    for uses in sections:
        for pair, most in _most_at_once(uses.values()).items():
            pairs[pair] = max(most, pairs.get(pair, 0))
    return pairs


def _plan_section(
    tokens: Mapping[int, TokenUse],
    wanted: Mapping[tuple[str, str], int],
    pools: dict[tuple[str, str], list[_Semaphore]],
    spare: list[int],
    count: int,
) -> SemaphorePlan:
    plan = SemaphorePlan()
    for token in sorted(tokens, key=lambda t: tokens[t].first):
        use = tokens[token]
        pool = pools.setdefault((use.producer, use.consumer), [])
        idle = [s for s in pool if s.busy_until < (use.unit if s.left else use.first)]
        reserved = sum(max(0, most - len(pools.get(pair, ()))) for pair, most in wanted.items())
        chosen = min(idle, key=lambda s: (s.left, s.number), default=None)
        if chosen is None or (chosen.left and len(spare) > reserved):
            if not spare:
                raise H2LearnError(f"the program needs more than the {count} semaphores it has at once")
            chosen = _Semaphore(spare.pop(), use.last, 0)
            pool.append(chosen)
        elif chosen.left:
            plan.drains.setdefault(use.unit, []).append((use.consumer, chosen.number, chosen.left))
        chosen.busy_until, chosen.left = use.last, use.credits
        plan.semaphore[token] = chosen.number
    for (_, consumer), pool in pools.items():
        plan.left += [(consumer, s.number, s.left) for s in pool if s.left]
    return plan


def _most_at_once(uses: Iterable[TokenUse]) -> dict[tuple[str, str], int]:
    """Return, for each pair of engines, how many of its tokens are in use in one stage at most."""
    busy: dict[tuple[str, str], dict[int, int]] = {}
    for use in uses:
        stages = busy.setdefault((use.producer, use.consumer), {})
        for stage in range(use.first, use.last + 1):
            stages[stage] = stages.get(stage, 0) + 1
    return {pair: max(stages.values()) for pair, stages in busy.items()}
