"""Shapes of convolutions, tiles of them, and the bytes of on-chip memory that they need."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from math import gcd
from operator import attrgetter

from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.mapping.layout import row_bytes
from h2learn.compiler.mapping.limits import SLOTS, TileLimits


@dataclass(frozen=True)
class ConvShape:
    """A convolution (a linear layer is one): ``static`` means the input has no time dimension.

    ``onto`` is the format of what the sums go on from, empty where they start at 0. ``planes``: the bit-planes as which
    real inputs go through the look-up tables (0: they go to the multipliers).
    """

    steps: int
    batch: int
    in_h: int
    in_w: int
    c: int
    out_h: int
    out_w: int
    k: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    real: bool
    static: bool
    item: int
    onto: str = ""
    planes: int = 0

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return self.kernel[0] * self.kernel[1]

    @property
    def covers_map(self) -> bool:
        """Whether the kernel is the whole map, as that of a linear layer behind one: its positions may be cut."""
        return self.taps > 1 and self.kernel == (self.in_h, self.in_w) and self.padding == (0, 0)

    def part(self, rows: int, columns: int) -> ConvShape:
        """Return the convolution of a part of the map with as large a part of the kernel that covers it."""
        return replace(self, kernel=(rows, columns), in_h=rows, in_w=columns)

    def under(self, rows: int, columns: int) -> ConvShape:
        """Return what a tile of an input gradient sees: of a kernel that covers the map the positions of the tile."""
        return self.part(rows, columns) if self.covers_map else self

    @property
    def looked_up(self) -> bool:
        """Whether the forward pass works by tables."""
        return not self.real or self.planes > 0

    @property
    def dtype(self) -> str:
        """Storage type."""
        return "f32" if self.item == 4 else "f16"


@dataclass(frozen=True)
class Tile:
    """Tile sizes: time steps, samples, rows and columns of positions, input and output channels.

    ``held``: slots of the buffers with results. One leaves room for larger tiles, but the engine that sums waits until
    the tile before is taken away. ``ahead``: slots of the buffers with operands, one of which is at work. ``taps``:
    kernel positions, whole rows of a kernel or a part of one (0: all).
    """

    steps: int
    samples: int
    rows: int
    columns: int
    c: int
    k: int
    held: int = field(default=SLOTS, kw_only=True)
    ahead: int = field(default=SLOTS, kw_only=True)
    taps: int = field(default=0, kw_only=True)

    @property
    def positions(self) -> int:
        """Positions of one time step."""
        return self.samples * self.rows * self.columns

    def seen(self, shape: ConvShape) -> ConvShape:
        """Return what a tile sees of a convolution: all of it, or the part that ``taps`` kernel positions cover."""
        if self.taps in (0, shape.taps):
            return shape
        return shape.part(max(1, self.taps // shape.kernel[1]), min(self.taps, shape.kernel[1]))

    def weights_stay(self, shape: ConvShape) -> bool:
        """Whether an input gradient loads its weights once for all positions of the stage's samples."""
        return self.k == shape.k and shape.under(self.rows, self.columns).taps == shape.taps

    def weight_slots(self, shape: ConvShape) -> int:
        """Return the slots of the weights of an input gradient: those that stay need no more than results have."""
        return self.held if self.weights_stay(shape) else self.ahead


@dataclass(frozen=True)
class ForwardTile(Tile):
    """Tile of a forward convolution; ``fan`` is the fan-in of its look-up tables."""

    fan: int

    @property
    def reduce_block(self) -> int:
        """Input channels summed before the next block starts."""
        return self.c


@dataclass(frozen=True)
class BackwardTile(Tile):
    """Tile of an input gradient: rows, columns and ``c`` describe the result.

    ``fused``: there is room for the neuron gradient that reads the result in the same stage. ``by_steps``: the engine
    has one job for each time step.
    """

    fused: bool
    by_steps: bool = field(default=False, kw_only=True)

    @property
    def reduce_block(self) -> int:
        """Output channels summed before the next block starts."""
        return self.k


@dataclass(frozen=True)
class SumTile(Tile):
    """Tile of sums over steps, samples, rows and columns."""

    @property
    def reduce_block(self) -> tuple[int, int, int, int]:
        """(steps, samples, rows, columns) of positions that form one flat block."""
        return (self.steps, self.samples, self.rows, self.columns)


@dataclass(frozen=True)
class WeightTile(SumTile):
    """Tile of a weight gradient: steps to columns are the reduction.

    ``by_tap``: an optimizer's step on it goes over one kernel position after the other. ``stay``: what is read once
    where all positions are one block, ``inputs`` or ``gradients``. ``by_steps``: the engine has one job for each time
    step.
    """

    by_tap: bool = False
    stay: str = ""
    by_steps: bool = False


@dataclass(frozen=True)
class Usage:
    """Bytes wanted per on-chip memory."""

    W: int = 0
    S: int = 0
    U: int = 0
    G: int = 0
    M: int = 0
    A: int = 0
    L: int = 0

    def fits(self, machine: Machine) -> bool:
        """Whether every memory of ``machine`` is large enough, with some room left for alignment."""
        return all(map(_fits, _BY_MEMORY(self), _BY_MEMORY(machine.sram_kib)))


_BY_MEMORY = attrgetter(*(one.name for one in fields(Usage)))


def _fits(wanted: int, kib: int) -> bool:
    room = 4096 if kib > 32 else 512
    return wanted == 0 or wanted + room <= kib << 10


@dataclass(frozen=True)
class NeuronKind:
    """What a stage keeps for its neurons: real states per neuron, rows of parameters, whether spikes are numbers.

    ``ublk``: only potentials inside the surrogate's window, in slots of so many channels (0: all, as they are).
    """

    states: int = 1
    rows: int = 4
    counts: bool = False
    ublk: int = 0

    def in_tile(self, k: int, channels: int) -> NeuronKind:
        """Return what a tile of ``k`` of the ``channels`` keeps: its slots are whole, here and in wider tiles."""
        return self if k == channels or not self.ublk else replace(self, ublk=gcd(k, self.ublk))

    def potential_bytes(self, channels: int, item: int) -> int:
        """Return the bytes in U of the saved potentials of a position."""
        dtype = "f32" if item == 4 else "f16"
        return row_bytes(f"inside.{dtype}", channels, self.ublk) if self.ublk else channels * item

    def membrane_bytes(self, outs: int, positions: int, channels: int, item: int, held: int = SLOTS) -> int:
        """Return the bytes in U of ``outs`` potentials (and counted spikes) and of the states of ``positions``."""
        plain = SLOTS * self.counts * outs + self.states * positions
        return held * outs * self.potential_bytes(channels, item) + plain * channels * item

    def spike_bytes(self, outs: int, positions: int, channels: int) -> int:
        """Return the bytes in S of ``outs`` spikes and of those of the step before."""
        return 0 if self.counts else (SLOTS * outs + positions) * row_bytes("bits", channels)

    def parameter_bytes(self, channels: int) -> int:
        """Return the bytes of the parameter rows of ``channels`` channels, all slots."""
        return SLOTS * self.rows * 4 * channels


PLAIN_NEURON = NeuronKind()


@dataclass(frozen=True)
class Joined:
    """Another layer that is summed in the same stage, ``block`` channels at a time; ``fan``: fan-in of its tables."""

    shape: ConvShape
    block: int
    fan: int = 0


def slot_cap(machine: Machine, limits: TileLimits) -> int:
    """Return the most channels of a gradient slot: 64, or 32 on a small machine, where a 64 x 64 weight tile crowds W.

    It depends on the engine, not on a memory: all parts of a training step must agree.
    """
    cap = 64 if machine.backward.elements >= 16 else 32
    return min(cap, limits.k or cap)


def input_extent(count: int, kernel: int, stride: int) -> int:
    """Return how many input rows (or columns) ``count`` output rows need."""
    return (count - 1) * stride + kernel


def gradient_extent(count: int, kernel: int, stride: int, padding: int) -> tuple[int, int, int]:
    """Return (rows of the gradient tile, row offset, first gradient row of tile 0) for ``count`` input rows.

    Tile ``i`` starts ``i * count / stride`` gradient rows later, which needs ``count`` to be a multiple of ``stride``
    unless there is one tile only.
    """
    first = (padding - kernel + 1) // stride
    offset = padding - stride * first
    return (count - 1 + offset) // stride + 1, offset, first


def backward_extent(shape: ConvShape, t: Tile) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return ``gradient_extent`` of a tile down and across; one gradient serves a whole map that a kernel covers."""
    if shape.covers_map:
        return (1, 0, 0), (1, 0, 0)
    down, across = (
        gradient_extent(count, kernel, stride, padding)
        for count, kernel, stride, padding in zip(
            (t.rows, t.columns), shape.kernel, shape.stride, shape.padding, strict=True
        )
    )
    return down, across
