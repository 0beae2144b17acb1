"""How many samples go through a training step together.

Small groups let forward work overlap with backward and update work sooner; large ones read the weights, build the
look-up tables and move the sums of the weight gradients less often, and lose less at the borders of stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from h2learn.backends.h2learn.machine import Machine
from h2learn.compiler.mapping.cost import GRADIENT_DENSITY, MASK_DENSITY, SPIKE_DENSITY, fans_of, lane_shape, looked_up
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

A head has no halos.
"""

UNUSED = 0.4
"""Share of its busy time that the channel waits in a step of one group (vgg5 and CIFAR VGG, h2l-edge)."""


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


def choose_group(
    layers: Sequence[Layer], batch: int, machine: Machine, item: int, wanted: int | None = None, head: int = 0
) -> int:
    """Return the divisor of ``batch`` with the shortest estimated training step, or the largest one up to ``wanted``.

    ``item``: bytes of a stored weight. ``head``: how many of the last layers are a part of their own.
    """
    sizes = [size for size in range(1, min(batch, wanted or batch) + 1) if batch % size == 0]
    if wanted is not None:
        return sizes[-1]
    return min(reversed(sizes), key=lambda size: step_cycles(layers, size, batch // size, machine, item, head))


def step_cycles(layers: Sequence[Layer], group: int, groups: int, machine: Machine, item: int, head: int = 0) -> float:
    """Estimate a step of ``groups`` groups: the parts follow each other once, then the slowest sets the pace.

    The last ``head`` layers are a part of their own. Behind the last group's forward work backward and update go side
    by side, a layer apart, and the backward half of the group's bytes and the optimizer's are moved.
    """
    maps, last = layers[: len(layers) - head], layers[len(layers) - head :]
    forward = sum(max(forward_cycles(layer, group, machine), _bytes(layer, item, machine)) + BORDER for layer in maps)
    backward = sum(
        max(_backward(layer, group, machine), _bytes(layer, item, machine)) + BORDER
        for layer in maps
        if not layer.first
    )
    linear = sum(2 * max(_head(layer, group, machine), _bytes(layer, item, machine) + BORDER) for layer in last)
    update = sum(_update(layer, group, machine) + BORDER for layer in layers)
    rate = machine.dram.bytes_per_cycle
    channel, straight = (sum(_traffic(layer, group, item, machine) for layer in part) / rate for part in (maps, last))
    pace = max(forward, linear, backward, update, channel + straight)
    steps = OPTIMIZER_BYTES * sum(layer.weights for layer in maps) / rate
    straight_steps = HEAD_OPTIMIZER_BYTES * sum(layer.weights for layer in last) / rate
    moved = (groups * channel + steps) * TRAFFIC + groups * straight + straight_steps
    tail = (channel / 2 + steps) * TRAFFIC + straight_steps
    share = 1 / max(1, len(layers))
    behind = max(backward + update * share, update + backward * share, tail)
    return max(moved * (1 + UNUSED / groups), forward + linear + (groups - 1) * pace + behind)


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
    width = max(32, 4 * machine.backward.elements)
    kept = images * layer.k * (item * (1 + GRADIENT_DENSITY) * 2 + 1)
    gradients = (item * GRADIENT_DENSITY + 1 / 8) * layer.k * (ceil(layer.c / width) - 1)
    spikes = layer.c / 8 * (ceil(layer.k / width) - 1)
    sums = min(8 * layer.weights, images * (layer.c + layer.k * item))
    together = (share(machine, part).memory_bytes("A") // (4 * width) for part in (FORWARD, BACKWARD))
    weights = sum(ceil(images / max(1, most)) for most in together) * item * layer.weights
    return weights + sums + kept + 2 * images * (gradients + spikes)
