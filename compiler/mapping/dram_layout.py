"""How tensors lie in DRAM: in planes of channels, and of gradient slots how many are packed together.

DRAM moves whole bursts. A stage that reads some channels of every position reads rows much shorter than a burst where
all channels of a position lie together; in planes of those channels its positions lie side by side. Which channels
belong together, and which slots are always moved together, follows from all copies of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import gcd, prod

from h2learn.compiler.mapping.cost import GRADIENT_DENSITY, MASK_DENSITY
from h2learn.compiler.mapping.layout import item_bytes, moved_slot_bytes, row_bytes, slot_dtype

UNIT_SLOTS = 128
"""Most slots of a packed unit: the bitmaps that a DMA engine holds while it moves the values behind them (1 KiB)."""


@dataclass(frozen=True)
class Extent:
    """What a copy covers of one dimension: ``size`` from ``low`` in its first place to ``high`` in its last one.

    ``step`` divides the size and every place at which it starts.
    """

    size: int
    low: int
    high: int
    step: int


@dataclass(frozen=True)
class Copied:
    """A copy of a window of a tensor, executed ``times`` times; extents from the outermost dimension to channels.

    ``shape``: the sizes with which it sees the tensor, the channels excepted (none: the tensor's own).
    """

    times: int
    extents: tuple[Extent, ...]
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class TensorFormat:
    """A tensor in DRAM: format, sizes (channels last) and channels per gradient slot (0: no slots)."""

    form: str
    shape: tuple[int, ...]
    gblk: int = 0

    @property
    def unit(self) -> int:
        """Channels that cannot be parted."""
        return self.gblk or (8 if self.form == "bits" else 1)


def dram_order(dimensions: int, *, apart: bool) -> list[int]:
    """Return the order in which the dimensions of a tensor lie, without channels, outermost first.

    ``apart``: of a map [time][sample][row][column], perhaps with dimensions in front, positions come first and time
    steps last.
    """
    order = list(range(dimensions))
    if not apart:
        return order
    *front, sample, row, column = order
    step = front[-1:]
    return [*front[:-1], row, column, sample, *step]


def choose_layout(
    tensor: TensorFormat, copies: Sequence[Copied], burst: int, *, may_be_apart: bool = True
) -> tuple[int, int, bool]:
    """Return (channels per plane, slots per packed unit, whether positions lie apart).

    These take the fewest bytes in whole bursts of ``burst`` bytes. The channels of a plane are those that all copies
    have together, or all of them. Gradient slots may lie apart where no copy reaches outside the tensor.
    """
    channels = tensor.shape[-1]
    together = gcd(channels, *(copy.extents[-1].step for copy in copies))
    if together % tensor.unit:
        together = channels
    alike = all(copy.shape in ((), tensor.shape[:-1]) for copy in copies)
    may_be_apart = may_be_apart and alike and len(tensor.shape) >= 4
    if tensor.gblk and may_be_apart:
        may_be_apart = not any(reaches_outside(copy.extents, tensor.shape) for copy in copies)
    orders = (False, True) if may_be_apart else (False,)
    found: list[tuple[float, int, int, bool]] = []
    for apart, plane in product(orders, dict.fromkeys((channels, together))):
        pack = slots_together(tensor, copies, plane, apart=apart) if tensor.gblk else 1
        moved = sum(copy.times * copy_bursts(tensor, copy, plane, pack, burst, apart=apart) for copy in copies)
        found.append((moved, plane, pack, apart))
    _, plane, pack, apart = min(found, key=lambda one: one[0])
    return plane, pack, apart


def reaches_outside(extents: Sequence[Extent], sizes: Sequence[int]) -> bool:
    """Whether a window is outside of its tensor in some place."""
    return any(one.low < 0 or one.high > size for one, size in zip(extents, sizes, strict=True))


def slots_together(tensor: TensorFormat, copies: Sequence[Copied], plane: int, *, apart: bool = False) -> int:
    """Return how many consecutive slots all copies move together: whole rows of a map, or more, or fewer.

    A copy that sees the tensor with other sizes moves them one by one.
    """
    if any(copy.shape not in ((), tensor.shape[:-1]) for copy in copies):
        return 1
    blocks = -(-plane // tensor.gblk)
    steps = [-(-copy.extents[-1].step // tensor.gblk) for copy in copies]
    unit = _capped(1, gcd(blocks, *steps))
    if unit < blocks:
        return unit
    for dimension in reversed(dram_order(len(tensor.shape) - 1, apart=apart)):
        size = tensor.shape[dimension]
        extents = [copy.extents[dimension] for copy in copies]
        if all(one.high - one.size <= 0 and one.low + one.size >= size for one in extents):
            common = size
        elif all(one.low >= 0 and one.high <= size for one in extents):
            common = gcd(size, *(one.step for one in extents))
        else:
            common = 1
        grown = _capped(unit, common)
        unit *= grown
        if grown < size:
            return unit
    return unit


def _capped(unit: int, more: int) -> int:
    """Return the largest divisor of ``more`` for which ``unit`` times it is no more than a packed unit may have."""
    return next(d for d in range(min(more, UNIT_SLOTS // unit), 0, -1) if more % d == 0)


def copy_bursts(tensor: TensorFormat, copy: Copied, plane: int, pack: int, burst: int, *, apart: bool = False) -> float:
    """Return the bytes in whole bursts that one execution moves, where it lies inside the tensor.

    Where positions lie apart and a window reaches outside the map, its transfer has positions innermost, so that no
    images follow each other.
    """
    *outer, channels = copy.extents
    count = max(1, channels.size // plane)
    run = row_bytes(tensor.form, min(plane, channels.size), tensor.gblk)
    whole = row_bytes(tensor.form, plane, tensor.gblk)
    stride = whole
    rows = count
    sizes = copy.shape or tensor.shape[:-1]
    order = dram_order(len(sizes), apart=apart)
    scattered = apart and reaches_outside(outer, sizes)
    for extent, size in ((outer[d], sizes[d]) for d in reversed(order)):
        existing = min(extent.size, size)
        if run == stride and not scattered:
            run *= existing
        else:
            rows *= existing
        stride *= size
    if not tensor.gblk:
        return rows * -(-run // burst) * burst
    slot = row_bytes(tensor.form, tensor.gblk, tensor.gblk)
    density = MASK_DENSITY if tensor.form.startswith("inside.") else GRADIENT_DENSITY
    live = moved_slot_bytes(min(tensor.gblk, tensor.shape[-1]), item_bytes(slot_dtype(tensor.form)), density)
    slots = rows * run / slot
    together = min(pack, run // slot)
    return slots / together * -(-together * live // burst) * burst


def plane_bytes(form: str, shape: Sequence[int], plane: int, gblk: int = 0) -> int:
    """Return the bytes of one plane of a tensor of ``shape``."""
    return prod(shape[:-1]) * row_bytes(form, plane, gblk)
