"""What a NIR file cannot say: time step, discretisation, kind of reset, comparison; presets per framework."""

from __future__ import annotations

import math
from dataclasses import dataclass

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import MOST_SPIKES

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
    max_spikes: int = 1


PRODUCERS = {
    "auto": Preset(1e-4, "forward-euler", "hard", "gt"),
    "snntorch": Preset(1e-4, "forward-euler", "soft-delayed", "gt"),
    "spikingjelly": Preset(1e-4, "forward-euler", "hard", "ge"),
    "norse": Preset(1e-6, "forward-euler", "hard", "gt"),
    "sinabs": Preset(1.0, "exponential", "soft", "ge", max_spikes=0),
    "rockpool": Preset(1e-3, "exponential", "soft", "ge", max_spikes=0),
}
"""``auto`` is what the text of NIR says, with the time step that most exporters use."""


@dataclass(frozen=True)
class NirOptions:
    """How to read a NIR graph; None takes the preset of ``producer``.

    ``dt``: seconds per time step. ``discretisation``: ``forward-euler`` or ``exponential`` (exact for a current that is
    constant within a step). ``reset``: ``hard``, ``soft``, ``soft-delayed`` or ``none``. ``encode``: None for inputs
    ``[T,N,...]``; ``direct`` or ``bernoulli`` for inputs ``[N,...]`` that are presented for ``time_steps`` steps.
    ``max_spikes``: the most spikes of a neuron and step, 0 for any number.
    Raises H2LearnError for values that do not exist.
    """

    time_steps: int | None = None
    dt: float | None = None
    discretisation: str | None = None
    reset: str | None = None
    producer: str = "auto"
    encode: str | None = None
    max_spikes: int | None = None

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
        most = self.max_spikes
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or not 0 <= most <= MOST_SPIKES):
            raise H2LearnError(f"expected 0 to {MOST_SPIKES} spikes per step, found {most!r}")
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
        most = preset.max_spikes if self.max_spikes is None else self.max_spikes
        return Preset(
            preset.dt if self.dt is None else float(self.dt),
            self.discretisation or preset.discretisation,
            self.reset or preset.reset,
            preset.compare if most == 1 else "ge",
            most,
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
        if rule.max_spikes != 1:
            many = f"up to {rule.max_spikes}" if rule.max_spikes else "any number of"
            assumed[f"{many} spikes per step"] = self.max_spikes
        sign = ">" if rule.compare == "gt" else ">="
        parts = [text for text, given in assumed.items() if given is None]
        return [f"assumed {', '.join([*parts, f'spikes at u {sign} threshold'])} ({origin})"]


def _expect_one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise H2LearnError(f"expected {name} {', '.join(known[:-1])} or {known[-1]}, found {value!r}")


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
