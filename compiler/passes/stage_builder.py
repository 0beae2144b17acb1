"""Builds the loop nests of the ``tile`` level: nested ``with`` blocks in, operations with affine indices out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from xdsl.dialects.builtin import LocationAttr
from xdsl.ir import Block, Operation, Region, SSAValue

from h2learn.dialects import tile


@dataclass(frozen=True)
class Affine:
    """A constant plus loop counters times constants."""

    offset: int = 0
    terms: tuple[tuple[SSAValue, int], ...] = ()

    def __add__(self, other: int | Affine) -> Affine:
        """Return the sum; equal counters are merged."""
        if isinstance(other, int):
            return Affine(self.offset + other, self.terms)
        merged = dict(self.terms)
        for counter, coeff in other.terms:
            merged[counter] = merged.get(counter, 0) + coeff
        return Affine(self.offset + other.offset, tuple(merged.items()))

    def __mul__(self, factor: int) -> Affine:
        """Return the product with a constant."""
        return Affine(self.offset * factor, tuple((counter, coeff * factor) for counter, coeff in self.terms))

    @property
    def counters(self) -> list[SSAValue]:
        """The loop counters on which the value depends; all of them are 0 where it has its first value."""
        return [counter for counter, _ in self.terms]


Start = int | Affine
Place = SSAValue | tuple[SSAValue, Start]
"""A buffer, or a buffer and its leading index."""


class StageBuilder:
    """Appends ops to the innermost open loop; every op gets the location of the stage.

    Stages go to the end of block ``home``, what they declare in DRAM to the end of the function's block. Buffers have
    ``slots`` slots.
    """

    def __init__(self, block: Block, slots: int = 2) -> None:
        self._function = block
        self._slots = slots
        self._blocks = [block]
        self._location: LocationAttr | None = None
        self.part: str | None = None

    def go_to(self, home: Block, part: str | None) -> None:
        """Put the next stages into ``home``, as stages of ``part``."""
        self._blocks = [home]
        self.part = part

    def add(self, op: Operation) -> Operation:
        """Append an op."""
        if self._location is not None:
            op.location = self._location
        self._blocks[-1].add_op(op)
        return op

    @contextmanager
    def stage(self, label: str, location: LocationAttr) -> Iterator[None]:
        """Open a stage."""
        self._location = location
        op = tile.StageOp(label, Region(Block()), self.part)
        self.add(op)
        self._blocks.append(op.body.block)
        yield
        self._blocks.pop()
        self._location = None

    @contextmanager
    def at(self, location: LocationAttr) -> Iterator[None]:
        """Give what follows in a stage another location than the stage has."""
        before, self._location = self._location, location
        yield
        self._location = before

    @contextmanager
    def loop(self, label: str, trips: int) -> Iterator[Affine]:
        """Open a loop and give its counter; what runs once needs no loop, its counter is 0."""
        if trips == 1:
            yield Affine()
            return
        op = tile.ForOp(label, trips)
        self.add(op)
        self._blocks.append(op.body.block)
        yield Affine(0, ((op.counter, 1),))
        self._blocks.pop()

    def tensor(
        self,
        label: str,
        form: str,
        shape: Sequence[int],
        gblk: int = 0,
        *,
        rows: tile.Rows | None = None,
        shadow: str | None = None,
    ) -> SSAValue:
        """Declare a DRAM tensor at the top of the function."""
        op = tile.TensorOp(label, tile.tensor_type(form, shape, gblk), rows=rows, shadow=shadow)
        self._function.add_op(op)
        return op.result

    def view(self, tensor: SSAValue, shape: Sequence[int]) -> SSAValue:
        """Return the tensor with other sizes."""
        op = tile.ViewOp(tensor, shape)
        self._function.add_op(op)
        return op.result

    def repeat(self, tensor: SSAValue, count: int) -> SSAValue:
        """Return the tensor ``count`` times, as a new leading dimension."""
        op = tile.RepeatOp(tensor, count)
        self._function.add_op(op)
        return op.result

    def alloc(
        self, label: str, memory: str, form: str, shape: Sequence[int], gblk: int = 0, *, slots: int | None = None
    ) -> SSAValue:
        """Allocate a buffer; ``slots``: as many as most have (None), 1 for what stays, more for what comes ahead.

        Outside all loops of its stage there is nothing over which a buffer could rotate.
        """
        looped = isinstance(self._blocks[-1].parent_op(), tile.ForOp)
        count = slots or self._slots if looped and self._slots > 1 else 1
        op = tile.AllocOp(label, memory, count, tile.buffer_type(form, shape, gblk))
        self.add(op)
        return op.result

    def load(
        self, tensor: SSAValue, buffer: SSAValue, starts: Sequence[Start], sizes: Sequence[int], at: Start | None = None
    ) -> None:
        """Copy a window of a tensor into a buffer."""
        self.add(self._copy(tile.LoadOp, tensor, buffer, starts, sizes, at))

    def store(
        self, tensor: SSAValue, buffer: SSAValue, starts: Sequence[Start], sizes: Sequence[int], at: Start | None = None
    ) -> None:
        """Copy a buffer into a window of a tensor."""
        self.add(self._copy(tile.StoreOp, tensor, buffer, starts, sizes, at))

    def job(
        self,
        kind: type[tile.JobOp],
        buffers: Mapping[str, Place],
        params: dict[str, tile.Param],
        *,
        first: Sequence[Affine] = (),
        coords: Sequence[Start] = (),
        carry: bool = False,
    ) -> None:
        """Append a job: ``buffers`` by role, without the roles that the parameters switch off.

        It starts fresh when all counters of ``first`` are 0, with ``carry`` never.
        """
        indexed = {role: place[1] for role, place in buffers.items() if isinstance(place, tuple)}
        counters, (at, extra) = number_counters([list(indexed.values()), list(coords)])
        self.add(
            kind(
                {role: place[0] if isinstance(place, tuple) else place for role, place in buffers.items()},
                params,
                ivs=counters,
                at=dict(zip(indexed, at, strict=True)),
                first=[counter for loop in first for counter in loop.counters],
                coords=extra,
                carry=carry,
            )
        )

    def _copy(
        self,
        kind: type[tile.LoadOp] | type[tile.StoreOp],
        tensor: SSAValue,
        buffer: SSAValue,
        starts: Sequence[Start],
        sizes: Sequence[int],
        at: Start | None,
    ) -> Operation:
        counters, (window, place) = number_counters([list(starts), [] if at is None else [at]])
        return kind(tensor, buffer, counters, window, sizes, place[0] if place else None)


def number_counters(groups: Sequence[Sequence[Start]]) -> tuple[list[SSAValue], list[list[tile.Index]]]:
    """Return the counters that the starts use, and each start as an affine index over them."""
    affine = [[Affine(start) if isinstance(start, int) else start for start in group] for group in groups]
    counters = list(dict.fromkeys(c for group in affine for a in group for c, coeff in a.terms if coeff))
    indices = [[(a.offset, tuple(dict(a.terms).get(c, 0) for c in counters)) for a in group] for group in affine]
    return counters, indices
