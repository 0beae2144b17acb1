"""What a user may decide instead of the mapper: caps of tile sizes, and choices by name (``--mapping``)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import MOST_FAN_IN
from h2learn.compiler.mapping.streams import OVERLAPS

MOST_DIGITS = 18
SLOTS = 2  # every buffer that crosses engines is double-buffered

CHOICES: dict[str, tuple[str, ...]] = {
    "overlap": tuple(OVERLAPS),
    "double_buffering": ("on", "off"),
    "operand_form": ("planes", "multipliers"),
    "potential": ("saved", "window"),
    "sparsity": ("dense", "in", "out", "dual"),
    "head": ("apart", "joined"),
    "entry": ("apart", "joined"),
    "jobs": ("short", "long"),
}
"""Values of the choices that are no numbers."""


@dataclass(frozen=True)
class TileLimits:
    """Upper bounds for tile sizes (None: as large as fits), and choices that the mapper would make otherwise.

    ``fan``: fan-in of the look-up tables. ``group``: samples that go through a training step together. ``groups``: the
    samples of every group, where they are not of one size. ``overlap``: which parts of it run side by side
    (``streams.OVERLAPS``). ``double_buffering``: ``off`` gives every buffer one slot instead of two, in the same tiles,
    so that nothing is loaded while the tile before is at work. ``operand_form``: how numbers that have bit-planes enter
    a convolution. ``potential``: whether all membrane potentials are saved for gradients, also where those inside the
    surrogate's window or the window's bits are enough. ``sparsity``: which zeros of an input gradient save cycles,
    those that come in, those that the mask leaves out, both or none. ``head``: whether the linear layers behind the
    maps are a part of their own. ``entry``: whether what comes before the first look-up is. ``jobs``: whether backward
    and update work gives way to other streams soon.
    """

    steps: int | None = None
    samples: int | None = None
    rows: int | None = None
    columns: int | None = None
    c: int | None = None
    k: int | None = None
    elements: int | None = None
    fan: int | None = None
    group: int | None = None
    groups: tuple[int, ...] | None = None
    overlap: str | None = None
    double_buffering: str | None = None
    operand_form: str | None = None
    potential: str | None = None
    sparsity: str | None = None
    head: str | None = None
    entry: str | None = None
    jobs: str | None = None

    @staticmethod
    def parse(text: str) -> TileLimits:
        """Parse ``"rows=4,k=8,overlap=serial"``; raises H2LearnError for unknown names and values."""
        known = {one.name for one in fields(TileLimits)}
        values: dict[str, Any] = {}
        for part in filter(None, (p.strip() for p in text.split(","))):
            name, _, value = part.partition("=")
            if name in values:
                raise H2LearnError(f"{name} is given twice, as {values[name]} and as {value}")
            if name in CHOICES:
                if value not in CHOICES[name]:
                    known_values = ", ".join(CHOICES[name])
                    raise H2LearnError(f"there is no {name} {value!r}", hint=f"known: {known_values}")
                values[name] = value
                continue
            if name == "groups":
                values[name] = _sizes(value)
                continue
            if name not in known or not _is_count(value):
                raise H2LearnError(
                    f"cannot read the tile limit {part!r}",
                    hint=f"write name=count with a name of {', '.join(sorted(known))}",
                )
            values[name] = int(value)
            if name == "fan" and values[name] > MOST_FAN_IN:
                raise H2LearnError(f"expected a fan-in of look-up tables from 1 to {MOST_FAN_IN}, found {value}")
        return TileLimits(**values)

    @property
    def slots(self) -> int:
        """Slots of a buffer between engines."""
        return 1 if self.double_buffering == "off" else SLOTS

    def __str__(self) -> str:
        """Return the text that ``parse`` reads."""
        pairs = ((one.name, getattr(self, one.name)) for one in fields(self))
        return ",".join(f"{name}={_text(value)}" for name, value in pairs if value is not None)


def _sizes(text: str) -> tuple[int, ...]:
    """Return the sizes of groups in ``"1+3+4"``; raises H2LearnError for anything else."""
    sizes = text.split("+")
    if not all(map(_is_count, sizes)):
        raise H2LearnError(f"cannot read the groups {text!r}", hint="write the samples of each, such as groups=1+3+4+4")
    return tuple(int(size) for size in sizes)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS and int(text) > 0


def _text(value: int | str | tuple[int, ...]) -> str:
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
