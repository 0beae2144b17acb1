"""What a NIR file cannot say: time step, discretisation, kind of reset, comparison; presets per framework."""

from __future__ import annotations

import math
from dataclasses import dataclass

from h2learn.backends.h2learn.errors import H2LearnError

DISCRETISATIONS = ("forward-euler", "exponential")
RESETS = ("hard", "soft", "soft-delayed", "none")
ENCODINGS = ("direct", "bernoulli")
DEFAULT_TIME_STEPS = 16


@dataclass(frozen=True)
class Preset:
    """How a framework computes what its exporter writes."""

    dt: float
    discretisation: str
    reset: str
    compare: str
    several_spikes: bool = False


PRODUCERS = {
    "auto": Preset(1e-4, "forward-euler", "hard", "gt"),
    "snntorch": Preset(1e-4, "forward-euler", "soft-delayed", "gt"),
    "spikingjelly": Preset(1e-4, "forward-euler", "hard", "ge"),
    "norse": Preset(1e-6, "forward-euler", "hard", "gt"),
    "sinabs": Preset(1.0, "exponential", "soft", "ge", several_spikes=True),
    "rockpool": Preset(1e-3, "exponential", "soft", "gt", several_spikes=True),
}
"""``auto`` is what the text of NIR says, with the time step that most exporters use."""


@dataclass(frozen=True)
class NirOptions:
    """How to read a NIR graph; None takes the preset of ``producer``.

    ``dt``: seconds per time step. ``discretisation``: ``forward-euler`` or ``exponential`` (exact for a current that is
    constant within a step). ``reset``: ``hard``, ``soft``, ``soft-delayed`` or ``none``. ``encode``: None for inputs
    ``[T,N,...]``; ``direct`` or ``bernoulli`` for inputs ``[N,...]`` that are presented for ``time_steps`` steps.
    Raises H2LearnError for values that do not exist.
    """

    time_steps: int | None = None
    dt: float | None = None
    discretisation: str | None = None
    reset: str | None = None
    producer: str = "auto"
    encode: str | None = None

    def __post_init__(self) -> None:
        _expect_one_of("producer", self.producer, tuple(PRODUCERS))
        for name, value, known in (
            ("discretisation", self.discretisation, DISCRETISATIONS),
            ("reset", self.reset, RESETS),
            ("encode", self.encode, ENCODINGS),
        ):
            if value is not None:
                _expect_one_of(name, value, known)
        steps = self.time_steps
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise H2LearnError(f"expected at least 1 time step, found {steps!r}")
        if self.dt is not None and not (_is_real(self.dt) and math.isfinite(self.dt) and self.dt > 0):
            raise H2LearnError(f"expected a positive time step dt in seconds, found {self.dt!r}")

    @property
    def steps(self) -> int:
        """The number of time steps."""
        return DEFAULT_TIME_STEPS if self.time_steps is None else self.time_steps

    @property
    def rule(self) -> Preset:
        """The preset with what the options replace."""
        preset = PRODUCERS[self.producer]
        return Preset(
            preset.dt if self.dt is None else float(self.dt),
            self.discretisation or preset.discretisation,
            self.reset or preset.reset,
            preset.compare,
            preset.several_spikes,
        )

    def notes(self) -> list[str]:
        """Return what is assumed for every file; a value that the user gave is not an assumption."""
        rule, origin = self.rule, "the file does not say"
        if self.producer != "auto":
            origin = f"preset {self.producer}"
        assumed = {
            f"{rule.dt:g} s per time step (dt)": self.dt,
            f"{rule.discretisation} discretisation": self.discretisation,
            f"reset {rule.reset}": self.reset,
            f"{self.steps} time steps": self.time_steps,
        }
        sign = ">" if rule.compare == "gt" else ">="
        parts = [text for text, given in assumed.items() if given is None]
        notes = [f"assumed {', '.join([*parts, f'spikes at u {sign} threshold'])} ({origin})"]
        if rule.several_spikes:
            notes.append(f"{self.producer} can fire several spikes per step: here they count as one")
        return notes


def _expect_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise H2LearnError(f"expected {name} {', '.join(known[:-1])} or {known[-1]}, found {value!r}")


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
