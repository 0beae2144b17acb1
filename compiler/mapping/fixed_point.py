"""Numbers of which it is known that they are multiples of a power of two between bounds.

Only such numbers have bit-planes: spikes (several per step up to a number), and what sums and averages over a power of
two make of them.
"""

from __future__ import annotations

from dataclasses import dataclass

EXACT_BITS = {"f32": 24, "f16": 11}
"""Storage type -> bits of the integers that it holds exactly."""


@dataclass(frozen=True)
class FixedPoint:
    """All ``i * 2^-frac`` with ``low <= i <= high`` and 0."""

    low: int
    high: int
    frac: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", min(self.low, 0))
        object.__setattr__(self, "high", max(self.high, 0))

    @property
    def signed(self) -> bool:
        """Whether some numbers are negative."""
        return self.low < 0

    @property
    def planes(self) -> int:
        """Bit-planes that hold all numbers, that of the sign included."""
        return max(1, self.high.bit_length(), (-self.low - 1).bit_length() if self.signed else 0) + self.signed

    def fits(self, dtype: str) -> bool:
        """Whether a storage type holds all numbers exactly."""
        return self.planes <= EXACT_BITS[dtype] and 0 <= self.frac <= 14 - self.planes + EXACT_BITS["f16"]

    def times(self, count: int) -> FixedPoint:
        """Return what sums of up to ``count`` numbers are."""
        return FixedPoint(self.low * count, self.high * count, self.frac)

    def averaged(self, count: int) -> FixedPoint | None:
        """Return what averages of ``count`` numbers are, None where they have no end in binary."""
        if count & (count - 1):
            return None
        total = self.times(count)
        return FixedPoint(total.low, total.high, self.frac + count.bit_length() - 1)

    def plus(self, other: FixedPoint) -> FixedPoint:
        """Return what sums of a number of each are."""
        a, b = self._scaled(other), other._scaled(self)
        return FixedPoint(a.low + b.low, a.high + b.high, a.frac)

    def union(self, other: FixedPoint) -> FixedPoint:
        """Return what numbers of one kind or the other are."""
        a, b = self._scaled(other), other._scaled(self)
        return FixedPoint(min(a.low, b.low), max(a.high, b.high), a.frac)

    def _scaled(self, other: FixedPoint) -> FixedPoint:
        shift = max(self.frac, other.frac) - self.frac
        return FixedPoint(self.low << shift, self.high << shift, self.frac + shift)


SPIKES = FixedPoint(0, 1, 0)
