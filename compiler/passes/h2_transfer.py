"""The geometry of a copy: which strided transfer moves a window between a tensor and a buffer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.mapping.layout import item_bytes, slot_bytes, slot_dtype
from h2learn.compiler.passes.tile_layout import channel_bytes, enclosing_loops, plane_stride, tensor_strides
from h2learn.dialects import tile
from h2learn.dialects.common import source_of


@dataclass(frozen=True)
class Linear:
    """A constant plus one coefficient per open loop, outermost first."""

    offset: int
    coeffs: tuple[int, ...]


@dataclass(frozen=True)
class Transfer:
    """Descriptor fields of a copy and its affine operands (DRAM byte offset, row and column coordinates).

    The transfer is executed ``times`` times, each ``dram_step`` and ``chip_step`` bytes further on: once for each plane
    of channels, where these are one dimension too many.
    """

    fields: tuple[tuple[str, int | str], ...]
    dram: Linear
    y: Linear
    x: Linear
    times: int = 1
    dram_step: int = 0
    chip_step: int = 0


@dataclass(eq=False)
class _Dimension:
    count: int
    dram: int
    chip: int
    start: Linear
    limit: int

    def bounded(self, trips: list[int]) -> bool:
        """Whether some iteration reaches outside the tensor."""
        low = self.start.offset + sum(min(0, c * (n - 1)) for c, n in zip(self.start.coeffs, trips, strict=True))
        high = self.start.offset + sum(max(0, c * (n - 1)) for c, n in zip(self.start.coeffs, trips, strict=True))
        return low < 0 or high + self.count > self.limit


_ZERO = Linear(0, ())


def linear(index: tile.Index, op: tile.LoadOp | tile.StoreOp | tile.JobOp) -> Linear:
    """Return an affine index over the op's ``ivs`` as one over the loops around it."""
    loops = enclosing_loops(op)
    coeffs = [0] * len(loops)
    for iv, factor in zip(op.ivs, index[1], strict=False):
        coeffs[next(n for n, loop in enumerate(loops) if loop.counter is iv)] += factor
    return Linear(index[0], tuple(coeffs))


def is_transfer(op: tile.LoadOp | tile.StoreOp) -> bool:
    """Whether a strided transfer, or a loop over planes with one, can move what a copy does."""
    try:
        transfer(op)
    except H2LearnError:
        return False
    return True


def transfer(op: tile.LoadOp | tile.StoreOp) -> Transfer:
    """Return the strided transfer of a copy; raises H2LearnError when it has too many dimensions."""
    placed, _ = op.placed
    layout = tile.layout_of(op.tensor)
    trips = [loop.trips.data for loop in enclosing_loops(op)]
    starts = [linear(index, op) for index in op.window.data]
    plane = min(layout.plane, placed.shape[-1])
    planes = max(1, op.sizes.data[-1] // plane)
    run = channel_bytes(placed, min(plane, op.sizes.data[-1]))
    strides = tensor_strides(op.tensor, plane, apart=layout.apart)
    chip = planes * run
    dimensions: list[_Dimension] = []
    for size, stride, start, limit in reversed(
        list(zip(op.sizes.data[:-1], strides, starts[:-1], placed.shape[:-1], strict=True))
    ):
        dimensions.insert(0, _Dimension(size, stride, chip, start, limit))
        chip *= size
    if layout.apart:
        dimensions.sort(key=lambda dimension: -dimension.dram)
    channel = _Dimension(op.sizes.data[-1], 0, 0, starts[-1], placed.shape[-1])
    if channel.bounded(trips):
        raise H2LearnError(f"{op.name} reaches outside the channels of its tensor", location=source_of(op) or None)
    apart = plane_stride(op.tensor, plane)
    dram = _byte_offset(placed, strides, starts, plane, apart)
    bounded = [d for d in dimensions if d.bounded(trips)]
    across = _Dimension(planes, apart, run, _ZERO, planes)
    chip_step = run
    run, free = _merge([across, *dimensions] if planes > 1 else dimensions, bounded, run)
    times = 1
    if planes > 1 and len(free) > 4 - len(bounded):
        free, times = free[1:], planes
    if len(bounded) > 2 or len(free) > 4 - len(bounded):
        raise H2LearnError(f"{op.name} needs more than four dimensions", location=source_of(op) or None)
    slots: list[_Dimension | None] = [None] * 4
    nearest = len(bounded) == 1 and all(bounded[0].dram <= dimension.dram for dimension in free)
    first = 3 if nearest else 2  # rows that touch in DRAM follow each other
    slots[first : first + len(bounded)] = bounded
    places = [n for n in (3, 2, 1, 0) if slots[n] is None]
    for place, unbounded in zip(places, reversed(free), strict=False):
        slots[place] = unbounded
    source, target = ("dram", "chip") if isinstance(op, tile.LoadOp) else ("chip", "dram")
    fields: list[tuple[str, int | str]] = [("mode", "slots" if placed.gblk else "plain"), ("run", run)]
    if placed.gblk:
        dtype = slot_dtype(placed.form)
        fields += [("slot", slot_bytes(placed.gblk, dtype)), ("item", item_bytes(dtype)), ("pack", layout.pack)]
    for n, dimension in enumerate(slots):
        fields.append((f"n{n}", dimension.count if dimension else 1))
        if dimension and dimension.count > 1:
            fields.append((f"ss{n}", getattr(dimension, source)))
            fields.append((f"ds{n}", getattr(dimension, target)))
    coordinates = [d.start if d in bounded and d is not None else _ZERO for d in slots[2:]]
    for name, dimension in zip(("ylim", "xlim"), slots[2:], strict=True):
        limit = dimension.limit if dimension in bounded and dimension else dimension.count if dimension else 1
        fields.append((name, limit))
    plan = Transfer(tuple(fields), dram, coordinates[0], coordinates[1])
    return plan if times == 1 else replace(plan, times=times, dram_step=apart, chip_step=chip_step)


def _byte_offset(placed: tile.Placed, strides: list[int], starts: list[Linear], plane: int, apart: int) -> Linear:
    offset, coeffs = 0, [0] * len(starts[0].coeffs)
    for n, start in enumerate(starts):
        last = n == len(starts) - 1

        def to_bytes(count: int, last: bool = last, n: int = n) -> int:
            if last:
                return count // plane * apart + channel_bytes(placed, count % plane)
            return count * strides[n]

        offset += to_bytes(start.offset)
        coeffs = [total + to_bytes(c) for total, c in zip(coeffs, start.coeffs, strict=True)]
    return Linear(offset, tuple(coeffs))


def _merge(dimensions: list[_Dimension], bounded: list[_Dimension], run: int) -> tuple[int, list[_Dimension]]:
    """Join what is contiguous on both sides; return the row's bytes and the remaining dimensions without bounds."""
    free: list[_Dimension] = []
    inner_bounded = False
    for dimension in reversed(dimensions):
        if dimension in bounded:
            inner_bounded = True
            continue
        if dimension.count == 1:
            continue
        if not free and not inner_bounded and dimension.dram == run == dimension.chip:
            run *= dimension.count
            continue
        inner = free[0] if free else None
        if inner and dimension.dram == inner.count * inner.dram and dimension.chip == inner.count * inner.chip:
            inner.count *= dimension.count
            continue
        free.insert(0, dimension)
    return run, free
