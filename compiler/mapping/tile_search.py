"""The search for a tile: from the whole layer down until it fits, and of those that fit the cheapest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import NoReturn

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.mapping.limits import SLOTS, TileLimits
from h2learn.compiler.mapping.tiles import ConvShape, Tile, Usage

CHANNEL_UNIT = 8
"""Channels are cut in multiples of this: eight spikes are a byte."""
UNCUT = 16
"""So few channels are no reason that nothing fits."""
TOO_LONG = Usage(A=1 << 62)
"""Fits nowhere."""
Choices = dict[str, tuple[int, ...]]
CONV_ORDERS = (
    ("taps", "samples", "rows", "columns", "steps"),
    ("taps", "samples", "steps", "rows", "columns"),
    ("steps", "samples", "rows", "columns", "taps"),
)
"""Orders in which dimensions shrink: cut steps have no halo, cut rows and samples leave the weights on chip longer."""


def choices_of(shape: ConvShape, height: int, width: int, limits: TileLimits, units: Mapping[str, int]) -> Choices:
    """Return the legal sizes of every dimension from large to small; ``units`` says of what they are multiples."""
    return {
        "steps": tuple(divisors(shape.steps, limits.steps, 1)),
        "samples": tuple(divisors(shape.batch, limits.samples, 1)),
        "rows": tuple(extents(height, limits.rows, units.get("rows", 1))),
        "columns": tuple(extents(width, limits.columns, units.get("columns", 1))),
        "c": tuple(divisors(shape.c, limits.c, max(CHANNEL_UNIT, units.get("c", 1)))),
        "k": tuple(divisors(shape.k, limits.k, max(CHANNEL_UNIT, units.get("k", 1)))),
        "taps": tuple(_kernel_parts(shape)),
    }


def _kernel_parts(shape: ConvShape) -> Iterator[int]:
    """Yield how many positions of a kernel a tile may have: all, or where it covers the map some rows, or less."""
    if not shape.covers_map:
        yield shape.taps
        return
    rows, columns = shape.kernel
    yield from (count * columns for count in divisors(rows, None, 1))
    yield from (count for count in divisors(columns, None, 1) if count < columns)


def cheapest_tile(
    choices: Choices,
    usage: Callable[[Tile], Usage],
    cost: Callable[[Tile], float],
    machine: Machine,
    job: Callable[[Tile], float] | None = None,
    longest: float = 0,
    ahead: Sequence[int] = (SLOTS,),
) -> tuple[float, dict[str, int]] | None:
    """Return cost and sizes of the cheapest tile that fits: for each pair of channel counts the largest that do.

    ``job``: cycles of an engine's job on a tile; those of more than ``longest`` are taken only if no others fit.
    ``ahead``: how many slots buffers with operands may have.
    """
    if job is not None:
        short = cheapest_tile(
            choices, lambda t: usage(t) if job(t) <= longest else TOO_LONG, cost, machine, ahead=ahead
        )
        return short or cheapest_tile(choices, usage, cost, machine, ahead=ahead)
    best: tuple[float, dict[str, int]] | None = None
    for k in choices["k"]:
        for c in choices["c"]:
            seen: list[dict[str, int]] = []
            for held, slots, order in product((SLOTS, 1), ahead, CONV_ORDERS):
                pinned = {"k": (k,), "c": (c,), "held": (held,), "ahead": (slots,)}
                sizes = largest_tile({**choices, **pinned}, order, usage, machine)
                if sizes is None or sizes in seen:
                    continue
                seen.append(sizes)
                cycles = cost(Tile(**sizes))
                if best is None or cycles < best[0]:
                    best = cycles, sizes
    return best


def shrunk(
    choices: Choices, order: Sequence[str], usage: Callable[[Tile], Usage], machine: Machine, what: str
) -> dict[str, int]:
    """Return the largest tile that fits; raises H2LearnError, with what it is a tile of, if none does."""
    return largest_tile(choices, order, usage, machine) or nothing_fits(what, machine)


def largest_tile(
    choices: Choices, order: Sequence[str], usage: Callable[[Tile], Usage], machine: Machine
) -> dict[str, int] | None:
    """Return the largest tile that fits, shrinking dimensions in ``order``."""
    sizes = {name: values[0] for name, values in choices.items()}
    if usage(Tile(**sizes)).fits(machine):
        return sizes
    for name in order:
        for value in choices[name][1:]:
            sizes[name] = value
            if usage(Tile(**sizes)).fits(machine):
                return _regrow(sizes, choices, order, usage, machine)
    return None


def nothing_fits(what: str, machine: Machine, channels: Sequence[int] = ()) -> NoReturn:
    """Raise H2LearnError: there is no room for the smallest ``what``; ``channels``: the counts that it was cut from."""
    whole = [count for count in channels if count > UNCUT and min(divisors(count, None, CHANNEL_UNIT)) == count]
    hint = "use a machine with more SRAM, or fewer channels"
    if whole:
        count = max(whole)
        hint = (
            f"channels are cut into equal parts of a multiple of {CHANNEL_UNIT}, which {count} has not: "
            f"take {round_up(count, 2 * CHANNEL_UNIT)}, or a machine with more SRAM"
        )
    raise H2LearnError(f"no {what} fits the on-chip memories of {machine.name}", hint=hint)


def _regrow(
    sizes: dict[str, int],
    choices: Choices,
    order: Sequence[str],
    usage: Callable[[Tile], Usage],
    machine: Machine,
) -> dict[str, int]:
    """Give back what an early dimension lost before a later one made room."""
    for name in reversed(order):
        for value in choices[name]:
            grown = {**sizes, name: value}
            if value > sizes[name] and usage(Tile(**grown)).fits(machine):
                sizes = grown
                break
    return sizes


def divisors(count: int, cap: int | None, unit: int) -> Iterator[int]:
    """Yield divisors of ``count`` from large to small that are multiples of ``unit`` (or the count itself)."""
    legal = [d for d in range(count, 0, -1) if count % d == 0 and (d % unit == 0 or d == count)]
    capped = [d for d in legal if cap is None or d <= cap]
    yield from capped or legal[-1:]


def extents(count: int, cap: int | None, unit: int) -> Iterator[int]:
    """Yield tile extents from large to small: the count cut into 1, 2, 3 ... nearly equal parts."""
    seen: set[int] = set()
    for parts in range(1, count + 1):
        extent = round_up(-(-count // parts), unit)
        if extent in seen or (cap is not None and extent > max(cap, unit)):
            continue
        seen.add(extent)
        yield extent


def round_up(value: int, unit: int) -> int:
    """Return the next multiple of ``unit``."""
    return -(-value // unit) * unit
