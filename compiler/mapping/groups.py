"""How many samples go through a training step together.

Small groups let forward work overlap with backward and update work sooner; large ones read the weights, build the
look-up tables and move the sums of the weight gradients less often, and lose less at the borders of stages.

Groups of one size are best if the batch has a good divisor. Parts that need about as long for a sample pass groups on
like a flow shop: the update starts when the first group is through the forward part and waits for every group that is
larger than the one before, so a step takes about the time of all samples and of the *largest* group. Small groups at
the ends gain nothing and cost what small groups cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.mapping.cost import GRADIENT_DENSITY, MASK_DENSITY, SPIKE_DENSITY, fans_of, lane_shape, looked_up
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.mapping.streams import BACKWARD, FORWARD, share

BORDER = 4000
"""Cycles in which an engine has nothing to do at the border of two stages of its stream (measured on CIFAR VGG)."""
BACKWARD_EFFICIENCY = 0.75
"""Share of its multipliers that the backward engine keeps busy (measured on CIFAR VGG)."""


OPTIMIZER_BYTES = 22
"""Per weight: the weight, its gradient and its momentum in, weight, momentum and storage copy out."""
HEAD_OPTIMIZER_BYTES = 18
"""The same where the gradient is still on chip, as that of linear layers."""
TRAFFIC = 1.25
"""Bytes that a step moves over the estimate: halos, tiles smaller than memory A alone allows (CIFAR VGG, h2l-edge).

A head has no halos, pooling hardly any.
"""

UNUSED = 0.4
"""Share of its busy time that the channel waits in a step of one group (vgg5 and CIFAR VGG, h2l-edge).

With several it is that of the largest one: the AlexNet-like takes 245 M cycles for 13 samples, 260 M in 1 and 12.
What pooling moves keeps the channel busy by itself (digits, h2l-edge: .89 of the time in one group).
"""

MOST_LAYERS = 10
"""Layers of a network whose groups may be of two sizes: the stages of each size are written down."""
WORTH = 1.05
"""How much longer a step of equal groups must take for unequal ones to be worth their stages."""


@dataclass(frozen=True)
class Layer:
    """A layer with weights ``[taps, c, k]`` and ``positions`` outputs per sample and time step.

    ``real``: its input is no spikes, so it runs on the multipliers. ``first``: nothing needs its input gradient.
    """

    taps: int
    c: int
    k: int
    positions: int
    steps: int
    real: bool
    first: bool

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.taps * self.c * self.k


@dataclass(frozen=True)
class Pool:
    """Pooling of ``values`` numbers per sample (over all time steps) to ``results``, in windows of ``taps``.

    ``spikes``: they are spikes, else currents.
    """

    values: int
    results: int
    taps: int
    spikes: bool


def choose_groups(
    layers: Sequence[Layer],
    batch: int,
    machine: Machine,
    item: int,
    limits: TileLimits,
    head: int = 0,
    pools: Sequence[Pool] = (),
) -> tuple[int, ...]:
    """Return the samples of every group of a training step: the groups with the shortest estimated step.

    ``item``: bytes of a stored weight. ``head``: how many of the last layers are a part of their own. ``pools``: what
    is pooled between the layers. ``limits`` may name the groups or the most samples of equal ones. Raises
    H2LearnError when those named are not the batch.
    """
    if limits.groups is not None:
        if limits.group is not None:
            raise H2LearnError("group and groups exclude each other", hint="write group=4 or groups=1+3+4+4+3+1")
        if sum(limits.groups) != batch:
            raise H2LearnError(
                f"groups of {sum(limits.groups)} samples in all do not make a batch of {batch}",
                hint="write the samples of every group, or group=4 for groups of up to 4",
            )
        return limits.groups

    def cycles(sizes: tuple[int, ...]) -> float:
        return step_cycles(layers, sizes, machine, item, head, pools)

    most = min(batch, limits.group or batch)
    equal = [(size,) * (batch // size) for size in range(most, 0, -1) if batch % size == 0]
    if limits.group is not None:
        return equal[0]
    best = min(equal, key=cycles)
    unequal = _unequal(batch) if len(layers) <= MOST_LAYERS else ()
    other = min(unequal, key=cycles, default=best)
    return other if cycles(other) * WORTH < cycles(best) else best


def _unequal(batch: int) -> list[tuple[int, ...]]:
    """Return ways to cut a batch without equal groups: nearly equal ones, or one that is smaller.

    Small ones come first, so that backward work starts soon.
    """
    found: dict[tuple[int, ...], None] = {}
    for size in range(2, batch):
        rest, count = batch % size, -(-batch // size)
        if rest:
            least, more = divmod(batch, count)
            found[(*(least,) * (count - more), *(least + 1,) * more)] = None
            found[(rest, *(size,) * (count - 1))] = None
    return [sizes for sizes in found if len(set(sizes)) > 1]


@dataclass(frozen=True)
class _Cycles:
    """Cycles of the parts of a step for one group, and of the channel for maps, for the head and for pooling."""

    forward: float
    linear: float
    backward: float
    update: float
    channel: float
    straight: float
    pooled: float

    @property
    def moved(self) -> float:
        """Cycles of the channel for all that is moved."""
        return self.channel + self.straight + self.pooled


def step_cycles(
    layers: Sequence[Layer],
    sizes: Sequence[int],
    machine: Machine,
    item: int,
    head: int = 0,
    pools: Sequence[Pool] = (),
) -> float:
    """Estimate a step of groups of these ``sizes``: the parts follow each other once, then the slowest sets the pace.

    While a group goes forward the one before goes backward. Pooling is stages of the vector unit. The last ``head``
    layers are a part of their own. Behind the last group's forward work backward and update go side by side, a layer
    apart, and the backward half of the group's bytes and the optimizer's are moved.
    """
    maps, last = layers[: len(layers) - head], layers[len(layers) - head :]
    of = {size: _group_cycles(maps, last, pools, size, machine, item) for size in set(sizes)}
    groups = [of[size] for size in sizes]
    rate = machine.dram.bytes_per_cycle
    steps = OPTIMIZER_BYTES * sum(layer.weights for layer in maps) / rate
    straight_steps = HEAD_OPTIMIZER_BYTES * sum(layer.weights for layer in last) / rate
    moved = (sum(one.channel for one in groups) + steps) * TRAFFIC + straight_steps
    moved += sum(one.straight for one in groups)
    first, end, share = groups[0], groups[-1], 1 / max(1, len(layers))
    tail = (end.channel / 2 + steps) * TRAFFIC + straight_steps
    behind = max(end.backward + end.update * share, end.update + end.backward * share, tail)
    paces = sum(_pace(before, after) for before, after in pairwise(groups))
    busy = moved * (1 + UNUSED * max(sizes) / sum(sizes)) + sum(one.pooled for one in groups)
    return max(busy, first.forward + first.linear + paces + behind)


def _pace(before: _Cycles, after: _Cycles) -> float:
    """Return how long a group takes forward beside the backward work of the one before."""
    channel = (before.moved + after.moved) / 2
    return max(after.forward, after.linear, before.backward, before.update, channel)


def _group_cycles(
    maps: Sequence[Layer], last: Sequence[Layer], pools: Sequence[Pool], group: int, machine: Machine, item: int
) -> _Cycles:
    """Return the cycles of a group of samples in the layers of ``maps``, in those of a head and in ``pools``."""
    rate = machine.dram.bytes_per_cycle
    stages = [_pool_stages(pool, item) for pool in pools]
    lanes = machine.vector.lanes

    def vector(stage: _VectorStage) -> float:
        return group * max(stage.elements / lanes, stage.bytes / rate)

    return _Cycles(
        forward=sum(max(forward_cycles(layer, group, machine), _bytes(layer, item, machine)) + BORDER for layer in maps)
        + sum(vector(stage) for there, _ in stages for stage in there),
        linear=sum(2 * max(_head(layer, group, machine), _bytes(layer, item, machine) + BORDER) for layer in last),
        backward=sum(
            max(_backward(layer, group, machine), _bytes(layer, item, machine)) + BORDER
            for layer in maps
            if not layer.first
        )
        + sum(vector(stage) for _, back in stages for stage in back),
        update=sum(_update(layer, group, machine) + BORDER for layer in (*maps, *last)),
        channel=sum(_traffic(layer, group, item, machine) for layer in maps) / rate,
        straight=sum(_traffic(layer, group, item, machine) for layer in last) / rate,
        pooled=group * sum(stage.bytes for there, back in stages for stage in (*there, *back)) / rate,
    )


@dataclass(frozen=True)
class _VectorStage:
    """What a stage of the vector unit does for a sample: elements and bytes of DRAM traffic."""

    elements: int
    bytes: float


def _pool_stages(pool: Pool, item: int) -> tuple[list[_VectorStage], list[_VectorStage]]:
    """Return the stages that pooling adds to the forward and to the backward part.

    Where spikes are pooled, their gradient goes back through the windows and then through the neurons in stages of
    their own, as fp32. Where currents are, convolution and neurons have stages of their own, with fp32 between them and
    the pooling, and gradients are slots. What neurons keep is in the traffic of their layer.
    """
    slots = item * GRADIENT_DENSITY + 1 / 8
    if pool.spikes:
        there = [_VectorStage(pool.results * pool.taps, pool.values / 8 + pool.results * (1 + 1 / 8))]
        back = [
            _VectorStage(pool.values * pool.taps, 4 * pool.values + 5 * pool.results),
            _VectorStage(pool.values, (4 + slots) * pool.values),
        ]
        return there, back
    there = [
        _VectorStage(pool.results * pool.taps, 8 * pool.values + 4 * pool.results),
        _VectorStage(pool.results, 4 * pool.results),
    ]
    return there, [_VectorStage(pool.values * pool.taps, slots * (pool.values + pool.results))]


def _images(layer: Layer, group: int) -> int:
    return layer.positions * layer.steps * group


def forward_cycles(layer: Layer, group: int, machine: Machine) -> float:
    """Return the cycles of a group's look-ups or of table building, whichever is longer, at the best fan-in."""
    positions = _images(layer, group)
    if layer.real:
        return positions * layer.weights / (machine.backward.elements * machine.backward.width)
    unit = machine.forward
    best = float("inf")
    for fan in fans_of(machine):
        groups = layer.taps * ceil(layer.c / fan)
        look = lane_shape(unit.lanes, layer.k, positions)[1] * groups * looked_up(machine, fan)
        fill = groups * layer.k * ((1 << fan) - 1) / unit.builder_entries
        best = min(best, max(look, fill))
    return best


def _head(layer: Layer, group: int, machine: Machine) -> float:
    """Return the cycles of the multipliers that pass over the spikes which are not there."""
    lanes = machine.backward.elements * machine.backward.width * BACKWARD_EFFICIENCY
    return _images(layer, group) * layer.weights * SPIKE_DENSITY / lanes


def _backward(layer: Layer, group: int, machine: Machine) -> float:
    lanes = machine.backward.elements * machine.backward.width * BACKWARD_EFFICIENCY
    return _images(layer, group) * layer.weights * GRADIENT_DENSITY * MASK_DENSITY / lanes


def _update(layer: Layer, group: int, machine: Machine) -> float:
    unit = machine.weight_update
    if layer.real:
        lanes = machine.backward.elements * machine.backward.width
        return _images(layer, group) * layer.weights * GRADIENT_DENSITY / lanes
    return _images(layer, group) * layer.weights / (unit.lanes_k * unit.lanes_c * unit.fan_in)


def _bytes(layer: Layer, item: int, machine: Machine) -> float:
    return layer.weights * item / machine.dram.bytes_per_cycle


def _traffic(layer: Layer, group: int, item: int, machine: Machine) -> float:
    """Return the bytes that a group moves: weights, sums of gradients there and back, what neurons keep and read again.

    Tiles have ``width`` channels of sums (about what the mapper takes). The forward and the backward part read weights
    as often as the positions change whose sums are on chip, all parts read spikes and gradients for every such width.
    """
    images = _images(layer, group)
    width = max(32, machine.backward.lanes)
    kept = images * layer.k * (item * (1 + GRADIENT_DENSITY) * 2 + 1)
    gradients = (item * GRADIENT_DENSITY + 1 / 8) * layer.k * (ceil(layer.c / width) - 1)
    spikes = layer.c / 8 * (ceil(layer.k / width) - 1)
    sums = min(8 * layer.weights, images * (layer.c + layer.k * item))
    together = (share(machine, part).memory_bytes("A") // (4 * width) for part in (FORWARD, BACKWARD))
    weights = sum(ceil(images / max(1, most)) for most in together) * item * layer.weights
    return weights + sums + kept + 2 * images * (gradients + spikes)
