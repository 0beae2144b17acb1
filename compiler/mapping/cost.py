"""Estimated cycles of a tiling: what the mapper minimises among the tiles that fit.

An estimate is that of the busiest resource of a stage, plus what cannot overlap: the first tile's way in and the last
tile's way out. Look-ups, table building, vector work and bytes follow the simulator's formulas; the cycles of the
backward engine depend on data, for which the densities below stand in. Estimates choose between tiles, nothing else;
what a run costs is counted by the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.mapping.layout import moved_slot_bytes, row_bytes
from h2learn.compiler.mapping.tiles import ConvShape, Tile

GRADIENT_DENSITY = 0.45
MASK_DENSITY = 0.35
SPIKE_DENSITY = 0.15
"""Shares of live gradients, of open surrogate windows and of spikes that stand in for data."""

FANS = (1, 2, 4)
"""Fan-ins of look-up tables between which the mapper chooses, as far as the machine has them."""

LANE_SHAPES = ((16, 128), (32, 64), (64, 32), (128, 16), (256, 8))
LANES_OF_SHAPES = 2048
START = 16
"""Cycles in which an engine starts a piece of work (about what the simulator takes)."""


ROWS = 4
"""Rows of live outputs that each lane of the backward engine should have in a job."""

GROUP_SAMPLES, GROUP_STEPS = 4, 6
"""Samples that go through a step together and their time steps, where a choice may not depend on the actual ones.

Real inputs are the same in all steps, as those of a first layer are.
"""
SUM_BYTES = 8
"""Of a weight's sum, there and back."""

CHANNEL_SHARE = 2.75
"""Times as long as by itself that a stage's traffic takes: the stages of three parts use the channel side by side."""


@dataclass(frozen=True)
class Cost:
    """Cycles per resource of all tiles of a stage, and of the first tile's way in and the last one's way out."""

    engine: float = 0
    builder: float = 0
    vector: float = 0
    channel: float = 0
    ends: float = 0

    @property
    def cycles(self) -> float:
        """The estimate; a tenth of the other resources decides between tilings that are alike otherwise."""
        parts = (self.engine, self.builder, self.vector, self.channel * CHANNEL_SHARE)
        return max(parts) + self.ends + sum(parts) / 10


def fans_of(machine: Machine) -> tuple[int, ...]:
    """Return the fan-ins of look-up tables between which the mapper chooses."""
    return tuple(fan for fan in FANS if fan <= machine.forward.fan_in)


def lane_shape(lanes: int, k: int, positions: int) -> tuple[str, int]:
    """Return the arrangement of ``lanes`` look-up lanes that takes the fewest passes, and the passes.

    Names are those of 2,048 lanes.
    """

    def passes(shape: tuple[int, int]) -> int:
        return _up(k, shape[0]) * _up(positions, max(1, shape[1] * lanes // LANES_OF_SHAPES))

    best = min(LANE_SHAPES, key=passes)
    return f"{best[0]}x{best[1]}", passes(best)


def looked_up(machine: Machine, fan: int) -> float:
    """Return the share of patterns that cost FE a cycle: all, or where zero patterns are skipped those with a spike."""
    return 1 - (1 - SPIKE_DENSITY) ** fan if machine.forward.skip_zero_patterns else 1.0


def between_turns(job: float, load: float, ahead: int, wait: float) -> float:
    """Return the cycles per job of work for which an engine has time between other streams' jobs of ``wait`` cycles.

    ``job`` and ``load``: cycles of the engine and of the channel. When the engine turns to it, ``ahead`` jobs (two or
    more) have their operands on chip, and those whose operands come meanwhile follow; then it turns away.
    """
    if not wait or load <= job:
        return job
    done = ahead
    while done < ahead + (done - 1) * job // load:
        done += 1
    return max(load, job + wait / done)


def forward_cost(shape: ConvShape, t: Tile, machine: Machine, fan: int, ublk: int = 0, *, wait: float = 0.0) -> Cost:
    """Estimate a forward convolution of spikes (or, on the multipliers, of reals) with its neurons.

    ``ublk``: channels of a slot of potentials inside the window (0: all are kept). ``wait``: cycles of the jobs of
    other streams between which its own come (0: there are none); then what it reads are spikes, absent ones skipped.
    """
    parts, shape = shape.taps, t.seen(shape)
    parts //= shape.taps
    images = t.samples * (1 if shape.static else t.steps)
    positions = images * t.rows * t.columns
    areas = _areas(shape, t, shape.out_h, shape.out_w)
    blocks = 1 if shape.static else _up(shape.steps, t.steps)
    k_tiles, c_tiles = _up(shape.k, t.k), _up(shape.c, t.c) * parts
    tiles = k_tiles * areas * blocks
    fills = k_tiles if c_tiles == 1 else tiles * c_tiles
    groups = shape.taps * _up(t.c, fan)
    if not shape.looked_up:
        work = positions * shape.taps * t.c * _up(t.k, machine.backward.width)
        engine, fill = START + work * (SPIKE_DENSITY if wait else 1) / machine.backward.elements, 0.0
    else:
        passes = lane_shape(machine.forward.lanes, t.k, positions)[1]
        engine = START + passes * groups * max(1, shape.planes) * looked_up(machine, fan)
        fill = START + groups * t.k * ((1 << fan) - 1) / machine.forward.builder_entries
    vector = _up(shape.steps, t.steps) * k_tiles * areas * t.steps * _vector(t.positions * t.k, machine)
    weights = _rows(shape.taps * t.c, t.k * shape.item, t.k < shape.k, machine)
    seen = Patch(
        images, _halo(t.rows, shape.kernel[0], shape.stride[0]), _halo(t.columns, shape.kernel[1], shape.stride[1])
    )
    inputs = _map(seen, shape.in_h, shape.in_w, t.c * shape.item if shape.real else row_bytes("bits", t.c), machine)
    if shape.planes:
        vector += tiles * c_tiles * _vector(seen.images * seen.rows * seen.columns * t.c, machine)
    outs = Patch(t.steps * t.samples, t.rows, t.columns)
    outputs = 2 * _map(outs, shape.out_h, shape.out_w, row_bytes("bits", t.k), machine)
    outputs += _potentials(outs, shape.out_h, shape.out_w, t.k, ublk, shape.item, machine)
    stores = k_tiles * areas * _up(shape.steps, t.steps)
    moved = fills * weights + tiles * c_tiles * inputs + stores * outputs
    ends = weights + fill + inputs + _vector(t.positions * t.k, machine) * t.steps + outputs
    waits = vector if t.held == 1 else 0
    engine = between_turns(engine, weights + inputs, t.ahead, wait)
    return Cost(tiles * c_tiles * engine + waits, fills * fill, vector, moved, ends + machine.dram.latency_cycles)


def backward_cost(
    shape: ConvShape,
    t: Tile,
    machine: Machine,
    slots: tuple[int, int],
    ublk: int = 0,
    *,
    by_steps: bool = False,
    wait: float = 0.0,
) -> Cost:
    """Estimate an input gradient with its neuron gradients; ``t`` tiles the layer's input.

    ``slots``: channels of a slot of the gradients that come in, and of those that go out. ``ublk``, ``wait``: as
    forward. ``by_steps``: the engine has a job for each time step. Weights are most of what a linear layer moves, so
    that the way in of the first ones is in the channel's time already. Counting it once more would cut them into many
    small jobs, each with fewer rows than the engine has lanes.
    """
    areas = _areas(shape, t, shape.in_h, shape.in_w)
    blocks = _up(shape.steps, t.steps)
    k_tiles, c_tiles = _up(shape.k, t.k), _up(shape.c, t.c)
    tiles = c_tiles * areas * blocks
    covered, part = shape.covers_map, shape.under(t.rows, t.columns)
    job, jobs = (replace(t, steps=1), t.steps) if by_steps else (t, 1)
    engine = jobs * backward_job(shape, job, machine)
    weights = _weights(part, t, machine)
    images = t.steps * t.samples
    seen = Patch(
        images,
        1 if covered else _up(_halo(t.rows, shape.kernel[0], 1), shape.stride[0]),
        1 if covered else _up(_halo(t.columns, shape.kernel[1], 1), shape.stride[1]),
    )
    gradients = _slots(seen, shape.out_h, shape.out_w, t.k, slots[0], shape.item, machine)
    outs = Patch(images, t.rows, t.columns)
    results = 2 * _map(outs, shape.in_h, shape.in_w, row_bytes("bits", t.c), machine)
    results += _potentials(outs, shape.in_h, shape.in_w, t.c, ublk, shape.item, machine)
    results += _slots(outs, shape.in_h, shape.in_w, t.c, slots[1], shape.item, machine)
    stay = t.weights_stay(shape)
    loads = c_tiles if stay else tiles * k_tiles
    moved = loads * weights + tiles * (k_tiles * gradients + results)
    vector = t.steps * _vector(t.positions * t.c, machine)
    engine = between_turns(engine, (0 if stay else weights) + gradients, t.ahead, wait)
    way_in = gradients if shape.in_h * shape.in_w == 1 else weights + gradients
    ends = way_in + vector + results + machine.dram.latency_cycles
    waits = tiles * vector + (c_tiles * weights if stay else 0) if t.held == 1 else 0
    return Cost(tiles * k_tiles * engine + waits, 0, tiles * vector, moved, ends)


def backward_job(shape: ConvShape, t: Tile, machine: Machine) -> float:
    """Return the cycles of the engine for a tile of an input gradient."""
    near = 1 if shape.covers_map else shape.taps / (shape.stride[0] * shape.stride[1])
    rows = _backward_rows(t, machine)
    return START + near * t.k * GRADIENT_DENSITY * (rows / machine.backward.lanes + 0.5)


def missing_rows(t: Tile, machine: Machine) -> int:
    """Return how many rows of live outputs the job of an input gradient has too few for ``ROWS`` of them a lane.

    Rows are as long as their positions have live gradients. Where those are alike, as behind the loss, where all are
    live, the engine goes through as many rows at a time as it has lanes, and in the last round some have none.
    """
    return max(0, ROWS * machine.backward.lanes - _backward_rows(t, machine))


def _backward_rows(t: Tile, machine: Machine) -> int:
    return t.steps * t.positions * _up(MASK_DENSITY * t.c, machine.backward.lane_width)


def weights_cost(
    shape: ConvShape, t: Tile, machine: Machine, slot: int, step: int = 0, *, by_tap: bool = False
) -> Cost:
    """Estimate a weight gradient: sums stay on chip while all positions of the stage's samples pass by.

    ``step``: bytes per weight that an optimizer's step on the sums moves instead of them, waiting for DRAM each time;
    ``by_tap``: for one kernel position after the other.
    """
    part, reads = t.seen(shape), _weight_reads(shape, t, machine, slot)
    engine = weights_job(part, t, machine)
    sums = _rows(part.taps * t.c, t.k * 4, t.k < part.k, machine) * (step or 8) / 4
    inputs, gradients, count, tiles = reads.inputs, reads.gradients, reads.k_tiles * reads.c_tiles, reads.blocks
    inputs_read = reads.c_tiles if reads.stay == "inputs" else count * tiles
    gradients_read = reads.k_tiles if reads.stay == "gradients" else count * tiles
    moved = count * sums + inputs_read * inputs + gradients_read * gradients
    ends = inputs + gradients + sums + machine.dram.latency_cycles
    waits = count * sums if t.held == 1 else 0
    if step:
        moved += count * (part.taps if by_tap else 1) * machine.dram.latency_cycles / t.held
    vector = count * _vector(part.taps * t.c * t.k, machine) if step else 0.0
    return Cost(count * tiles * engine + waits, 0, vector, moved, ends)


def what_stays(shape: ConvShape, t: Tile, machine: Machine, slot: int) -> str:
    """Return what a weight gradient reads once where all positions are one block: ``inputs`` or ``gradients``.

    Of one the loop over tiles is outside that of the other, as moves fewer bytes. Of several blocks neither stays.
    """
    return _weight_reads(shape, t, machine, slot).stay


@dataclass(frozen=True)
class _Reads:
    """What the tiles of a weight gradient read: the cycles of a block of inputs and of gradients, and their counts."""

    inputs: float
    gradients: float
    blocks: int
    k_tiles: int
    c_tiles: int

    @property
    def stay(self) -> str:
        """See ``what_stays``."""
        if self.blocks > 1:
            return ""
        inputs = self.inputs * (self.k_tiles - 1) * self.c_tiles
        return "inputs" if inputs > self.gradients * (self.c_tiles - 1) * self.k_tiles else "gradients"


def _weight_reads(shape: ConvShape, t: Tile, machine: Machine, slot: int) -> _Reads:
    part, images = t.seen(shape), t.steps * t.samples
    seen = Patch(
        images, _halo(t.rows, part.kernel[0], part.stride[0]), _halo(t.columns, part.kernel[1], part.stride[1])
    )
    outs = Patch(images, t.rows, t.columns)
    return _Reads(
        _map(seen, part.in_h, part.in_w, t.c * part.item if part.real else row_bytes("bits", t.c), machine),
        _slots(outs, part.out_h, part.out_w, t.k, slot, part.item, machine),
        _areas(shape, t, shape.out_h, shape.out_w) * _up(shape.steps, t.steps),
        _up(shape.k, t.k),
        _up(shape.c, t.c) * (shape.taps // part.taps),
    )


def weights_job(shape: ConvShape, t: Tile, machine: Machine) -> float:
    """Return the cycles of an engine for a tile of a weight gradient."""
    positions = t.steps * t.positions
    if shape.real:
        work = shape.taps * t.c * positions * _up(GRADIENT_DENSITY * t.k, machine.backward.lane_width)
        return START + work / min(machine.backward.lanes, shape.taps * t.c)
    unit = machine.weight_update
    passes = _up(t.k, unit.lanes_k) * _up(t.c * shape.taps, unit.lanes_c)
    return START + passes * _up(positions, unit.fan_in)


def defers_weights(shape: ConvShape, machine: Machine) -> bool:
    """Whether a weight gradient waits for the end of the batch: its sums take longer to move than to compute.

    That is so where a sample has few positions, as in linear layers; the spikes and gradients that are read later are
    few there. It depends on nothing that changes with time steps or batch, as the program's shape must not.
    """
    unit = machine.weight_update
    if shape.real:
        rate = machine.backward.elements * machine.backward.width / GRADIENT_DENSITY
        images = GROUP_SAMPLES
    else:
        rate = unit.lanes_k * unit.lanes_c * unit.fan_in
        images = GROUP_SAMPLES * GROUP_STEPS
    return shape.out_h * shape.out_w * images / rate <= SUM_BYTES / machine.dram.bytes_per_cycle


def _areas(shape: ConvShape, t: Tile, height: int, width: int) -> int:
    return _up(shape.batch, t.samples) * _up(height, t.rows) * _up(width, t.columns)


def _vector(elements: int, machine: Machine) -> float:
    return START / 2 + _up(elements, machine.vector.lanes)


def _halo(count: int, kernel: int, stride: int) -> int:
    return (count - 1) * stride + kernel


def _rows(count: float, size: float, apart: bool, machine: Machine) -> float:
    """Return the cycles of ``count`` rows of ``size`` bytes; those that lie ``apart`` take whole bursts each."""
    burst = machine.dram.burst_bytes
    moved = count * _up(size, burst) * burst if apart else count * size + burst
    return moved / machine.dram.bytes_per_cycle


def _weights(shape: ConvShape, t: Tile, machine: Machine) -> float:
    """Return the cycles of the weights of a tile of an input gradient.

    Storage copies lie in planes of the channels that are read together, in which input channels follow each other.
    """
    if shape.item == 4:  # the parameters themselves, which lie as the host has them
        return _rows(shape.taps * t.c, t.k * shape.item, t.k < shape.k, machine)
    return _rows(shape.taps, t.c * t.k * shape.item, t.c < shape.c, machine)


@dataclass(frozen=True)
class Patch:
    """What a tile sees of a map: images, rows, columns."""

    images: int
    rows: int
    columns: int


def _map(patch: Patch, height: int, width: int, size: int, machine: Machine) -> float:
    """Return the cycles of a patch of maps with ``size`` bytes a position, in planes of the tile's channels."""
    rows, columns = min(patch.rows, height), min(patch.columns, width)
    run = size * (columns if columns < width else rows * columns)
    return _rows(patch.images * (rows if columns < width else 1), run, True, machine)


def _potentials(patch: Patch, height: int, width: int, channels: int, ublk: int, item: int, machine: Machine) -> float:
    """Return the cycles of saved potentials: all, or in slots of ``ublk`` channels those inside the window."""
    if ublk:
        return _slots(patch, height, width, channels, ublk, item, machine, MASK_DENSITY)
    return _map(patch, height, width, channels * item, machine)


def _slots(
    patch: Patch,
    height: int,
    width: int,
    channels: int,
    slot: int,
    item: int,
    machine: Machine,
    density: float = GRADIENT_DENSITY,
) -> float:
    """Return the cycles of slots (of gradients): bitmaps and live values, packed along whole rows and maps."""
    rows, columns = min(patch.rows, height), min(patch.columns, width)
    live = moved_slot_bytes(min(slot, channels), item, density)
    packed = 1 if columns < width else columns if rows < height else columns * rows * patch.images
    return _rows(patch.images * rows * columns / packed * _up(channels, slot), packed * live, True, machine)


def _up(count: float, size: int) -> int:
    return ceil(count / size)
