"""Learning rates that change from step to step: computed by the host, read by the program from the run scalars."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar

from h2learn.backends.h2learn.errors import H2LearnError


@dataclass(frozen=True)
class Schedule:
    """The rate rises linearly over the first ``warmup`` steps, then it stays.

    Raises H2LearnError unless ``warmup >= 0``.
    """

    warmup: int = 0
    kind: ClassVar[str] = "constant"

    def __post_init__(self) -> None:
        _check(self.warmup >= 0, "a warmup of at least 0 steps", self.warmup)

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the share of the learning rate in ``step`` (from 0) of ``steps``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.after_warmup(step, steps, steps_per_epoch)

    def after_warmup(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the share of the learning rate once the warmup is over."""
        return 1.0

    def description(self, epochs: int) -> str:
        """Return what decides the rates of a training run of ``epochs``, as text."""
        numbers = ",".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))
        return f"{self.kind},{numbers}"


@dataclass(frozen=True)
class StepDecay(Schedule):
    """The rate is multiplied by ``decay`` after ``every`` epochs, again and again.

    Raises H2LearnError unless ``every >= 1`` and the factor lies above 0.
    """

    every: int = 10
    decay: float = 0.1
    kind: ClassVar[str] = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self.every >= 1, "a decay every 1 or more epochs", self.every)
        _check(math.isfinite(self.decay) and self.decay > 0, "a positive decay", self.decay)

    def after_warmup(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return ``decay`` to the power of the decays so far."""
        return float(self.decay ** (step // steps_per_epoch // self.every))


@dataclass(frozen=True)
class Cosine(Schedule):
    """The rate falls to ``final`` times its start, along half a cosine over all steps after the warmup.

    Source: Loshchilov & Hutter, "SGDR" (ICLR 2017), one cycle. Raises H2LearnError unless ``0 <= final <= 1``.
    """

    final: float = 0.0
    kind: ClassVar[str] = "cosine"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(0 <= self.final <= 1, "a final share in [0, 1]", self.final)

    def after_warmup(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return ``final + (1 - final) * (1 + cos(pi * progress)) / 2``."""
        progress = (step - self.warmup) / max(1, steps - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2

    def description(self, epochs: int) -> str:
        """Return the numbers, and over how many epochs."""
        return f"{super().description(epochs)},epochs={epochs}"


SCHEDULES: dict[str, type[Schedule]] = {kind.kind: kind for kind in (Schedule, StepDecay, Cosine)}
"""Word in ``parse_schedule`` -> schedule."""


def parse_schedule(text: str) -> Schedule:
    """Return the schedule that ``text`` describes: ``cosine``, ``step,every=5,decay=0.5``, ``constant,warmup=100``.

    Raises H2LearnError for an unknown word, name or number.
    """
    word, *arguments = text.split(",")
    kind = SCHEDULES.get(word.strip())
    if kind is None:
        raise H2LearnError(f"there is no schedule {word.strip()!r}", hint=f"known schedules: {', '.join(SCHEDULES)}")
    types = {field.name: int if field.type == "int" else float for field in fields(kind)}
    values: dict[str, int | float] = {}
    for argument in arguments:
        name, _, number = (part.strip() for part in argument.partition("="))
        if name not in types:
            raise H2LearnError(f"schedule {kind.kind} has no number {name!r}", hint=f"known: {', '.join(types)}")
        try:
            values[name] = types[name](number)
        except ValueError as error:
            raise H2LearnError(f"expected a number as {name} of schedule {kind.kind}, found {number!r}") from error
    return kind(**values)  # type: ignore[arg-type]


def _check(holds: bool, expected: str, found: float) -> None:
    if not holds:
        raise H2LearnError(f"expected {expected}, found {found}")
