"""Equal steps that follow each other: which can be one loop, and how their tensors must lie for that.

A program is a few sequences of steps (stages); a step has a *form*, which is all but the names of its tensors, and the
names by position. ``count`` times ``period`` steps are a repeat when their forms are periodic and every position is
either one tensor for all or moves on by a constant number of places in a *family*: tensors of one kind that lie side
by side. A tensor is in one family at most, with one place in it, so sequences constrain each other: what goes forward
in one may go backward in another.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

LONGEST_PERIOD = 16
"""Steps of a repeat at most; a residual block has two or three."""

STEPS = (1, -1, 2, -2)
"""How a row may go on through a family of which it has one member so far."""


@dataclass(frozen=True)
class Step:
    """A step: ``form`` (None: never part of a repeat) and the names of its tensors by position."""

    form: Hashable
    names: tuple[Hashable, ...]


@dataclass(frozen=True)
class Repeat:
    """``count`` times ``period`` steps from number ``first`` on."""

    first: int
    period: int
    count: int

    @property
    def end(self) -> int:
        """Number of the step behind."""
        return self.first + self.period * self.count

    @property
    def saved(self) -> int:
        """How many steps need not be written down."""
        return self.period * (self.count - 1)


class Families:
    """Chains of names: each has at most one neighbour on either side."""

    def __init__(self, kind: Callable[[Hashable], Hashable]) -> None:
        self._kind = kind
        self._after: dict[Hashable, Hashable] = {}
        self._before: dict[Hashable, Hashable] = {}
        self._links: list[tuple[Hashable, Hashable]] = []

    def place(self, name: Hashable) -> tuple[Hashable, int]:
        """Return the first member of the family of ``name`` and its number there."""
        number = 0
        while name in self._before:
            name = self._before[name]
            number += 1
        return name, number

    def members(self, first: Hashable) -> list[Hashable]:
        """Return the family whose first member is ``first``."""
        found = [first]
        while found[-1] in self._after:
            found.append(self._after[found[-1]])
        return found

    def all(self) -> list[list[Hashable]]:
        """Return all families of two or more, in the order in which they were found."""
        firsts = dict.fromkeys(self.place(before)[0] for before, _ in self._links)
        return [self.members(first) for first in firsts]

    def admit(self, rows: Sequence[Sequence[Hashable]]) -> bool:
        """Make every row constant or one that moves through a family evenly; where that fails nothing changes."""
        mark = len(self._links)
        if all(self._admit(row) for row in rows):
            return True
        self._undo(mark)
        return False

    def _admit(self, row: Sequence[Hashable]) -> bool:
        if len(set(row)) == 1:
            return True
        if len(set(row)) < len(row) or len({self._kind(name) for name in row}) > 1:
            return False
        if not any(name in self._after or name in self._before for name in row):
            return self._link(row)
        step = self._step(row)
        return any(self._spread(row, each) for each in ((step,) if step is not None else STEPS))

    def _spread(self, row: Sequence[Hashable], step: int) -> bool:
        """Make a row of which some are in a family move through it in steps of ``step``."""
        mark = len(self._links)
        while not self._even(row):
            if not self._extend(row, step):
                self._undo(mark)
                return False
        return True

    def _step(self, row: Sequence[Hashable]) -> int | None:
        """Return how far apart the first two neighbours lie that are in one family, None where there are none."""
        places = [self.place(name) for name in row]
        return next((b[1] - a[1] for a, b in pairwise(places) if a[0] == b[0]), None)

    def _even(self, row: Sequence[Hashable]) -> bool:
        """Whether a row is in one family and moves evenly."""
        places = [self.place(name) for name in row]
        return len({first for first, _ in places}) == 1 and len({b[1] - a[1] for a, b in pairwise(places)}) == 1

    def _extend(self, row: Sequence[Hashable], step: int) -> bool:
        """Put one more member of the row at the end of the family where it has to be, if that is its next place."""
        for known, name in (*pairwise(row), *((b, a) for a, b in pairwise(row))):
            first, number = self.place(known)
            if self.place(name)[0] == first or (known not in self._after and known not in self._before):
                continue
            forward = row.index(name) > row.index(known)
            place = number + (step if forward else -step)
            members = self.members(first)
            if place in (-1, len(members)) and name not in self._after and name not in self._before:
                return self._link((name, first) if place < 0 else (members[-1], name))
        return False

    def _link(self, row: Sequence[Hashable]) -> bool:
        mark = len(self._links)
        for before, after in pairwise(row):
            if before in self._after and self._after[before] == after:
                continue
            if before in self._after or after in self._before or self.place(before)[0] == after:
                self._undo(mark)
                return False
            self._after[before], self._before[after] = after, before
            self._links.append((before, after))
        return True

    def _undo(self, mark: int) -> None:
        for before, after in self._links[mark:]:
            del self._after[before], self._before[after]
        del self._links[mark:]


def find_repeats(
    sequences: Sequence[Sequence[Step]], kind: Callable[[Hashable], Hashable]
) -> tuple[list[list[Repeat]], Families]:
    """Return the repeats of every sequence in order, and the families that they need.

    ``kind``: only names of one kind may be in a family. Families are found from the first sequence to the last and from
    the last to the first, in each by what saves most, and the better of both is taken.
    """

    def attempt(order: Sequence[int]) -> tuple[int, list[list[Repeat]], Families]:
        families = Families(kind)
        found: list[list[Repeat]] = [[] for _ in sequences]
        for number in order:
            steps = sequences[number]
            found[number] = sorted(_search(steps, 0, len(steps), families), key=lambda repeat: repeat.first)
        return sum(repeat.saved for repeats in found for repeat in repeats), found, families

    numbers = range(len(sequences))
    _, found, families = max((attempt(numbers), attempt(numbers[::-1])), key=lambda attempt: attempt[0])
    return found, families


def bring_together(forms: Sequence[Hashable]) -> list[int]:
    """Return an order of independent steps in which equal ones follow each other, if one run of others is between.

    Steps are not brought far forward, because what they wait for comes in the order given.
    """
    runs: list[list[int]] = []
    for number, form in enumerate(forms):
        known = next((run for run in runs[-2:] if forms[run[0]] == form), None)
        if known is None:
            runs.append([number])
        else:
            known.append(number)
    return [number for run in runs for number in run]


def equal_first(steps: Sequence[tuple[Hashable, Hashable]]) -> list[int]:
    """Return an order of independent steps (form, what it waits for) in which more equal ones follow each other.

    Of steps side by side that wait for the same thing, those come first that equal the step before: none waits longer.
    """
    order: list[int] = []
    for _, together in groupby(range(len(steps)), key=lambda number: steps[number][1]):
        ready = list(together)
        before = steps[order[-1]][0] if order else None
        equal = [number for number in ready if steps[number][0] == before]
        order += equal + [number for number in ready if number not in equal]
    return order


def _search(steps: Sequence[Step], low: int, high: int, families: Families) -> list[Repeat]:
    """Return repeats among the steps from ``low`` to ``high``: the best possible one, then those beside it."""
    for repeat in sorted(_candidates(steps, low, high), key=lambda r: (-r.saved, r.period, r.first)):
        if families.admit(_rows(steps, repeat)):
            before = _search(steps, low, repeat.first, families)
            return [*before, repeat, *_search(steps, repeat.end, high, families)]
    return []


def _candidates(steps: Sequence[Step], low: int, high: int) -> list[Repeat]:
    found: list[Repeat] = []
    for period in range(1, min(LONGEST_PERIOD, (high - low) // 2) + 1):
        run = 0  # steps from here on that equal the one a period later
        for first in range(high - period - 1, low - 1, -1):
            form = steps[first].form
            run = run + 1 if form is not None and form == steps[first + period].form else 0
            found += [Repeat(first, period, count) for count in range(2, run // period + 2)]
    return found


def _rows(steps: Sequence[Step], repeat: Repeat) -> list[tuple[Hashable, ...]]:
    """Return the names of every position of every step of the period, over the iterations."""
    rows: list[tuple[Hashable, ...]] = []
    for offset in range(repeat.period):
        turns = [steps[repeat.first + offset + n * repeat.period].names for n in range(repeat.count)]
        rows += zip(*turns, strict=True)
    return rows
