"""Tokens with credits that stages of a stream use one after the other, so that the credits need posting only once.

Behind a loop as many tokens are left as there were credits. A later stage whose loop carries a dependence between the
same engines with as many credits goes on from them, in this iteration of the loop over groups or the next: it then
starts when the earlier loop is over, so a token rests for a stage before it is used again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

MOST = 16
"""Tokens that a stream keeps at most: each has a semaphore for itself."""
REST = 1
"""Stages that are between two uses of a token at least."""


@dataclass
class KeptTokens:
    """The kept tokens of a stream; ``numbers`` gives the next free token number."""

    numbers: Iterator[int]
    _tokens: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    _used: dict[int, int] = field(default_factory=dict)

    def new_section(self) -> None:
        """Start a section: everything before it is over."""
        self._used.clear()

    def take(self, producer: int, consumer: int, credits: int, stage: int) -> int | None:
        """Return a token for a dependence carried within ``stage`` (a number among the section's), None without one.

        Stages come in order.
        """
        wanted = producer, consumer, credits
        for number, known in self._tokens.items():
            if known == wanted and (number not in self._used or stage - self._used[number] > REST):
                self._used[number] = stage
                return number
        if len(self._tokens) == MOST:
            return None
        number = next(self.numbers)
        self._tokens[number] = wanted
        self._used[number] = stage
        return number

    def posts(self) -> list[tuple[int, int, int]]:
        """Return (token, engine that takes it, credits) of every token."""
        return [(number, consumer, credits) for number, (_, consumer, credits) in self._tokens.items()]
