"""Bytes to and from DRAM against the least that a training step must move: compulsory bytes and capacity misses.

The formula knows the network, the sizes of the on-chip memories and how many samples a group has, and nothing of tiles:

* compulsory: everything that passes from one part of a step to another once each way, weights once per group and part;
* capacity: the sums of a pass (fp32) fill a third of memory A, because three passes run side by side. With p positions
  times k channels of sums on chip, weights are read once for every p positions and inputs once for every k channels;
  k is a power of two that makes the total smallest. Sums of weight gradients go there and back for every group, unless
  that takes longer than to compute them for four samples of six steps: such layers wait for all samples, which are then
  one block: for all tiles of its sums inputs or gradients are read once.

The bytes are those of the program: loop counts and windows of its copies; a simulated run checks that count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod
from pathlib import Path

import numpy as np
import pytest
from xdsl.dialects import builtin

import h2learn
from h2learn.backends.h2learn.machine import Machine, load_machine
from h2learn.compiler.driver import Recipe, compile_to
from h2learn.dialects import tile

NETWORKS = Path(__file__).parents[2] / "benchmarks" / "networks"
DENSITY = 0.25  # of gradients, where no run says more
OPEN = 0.35  # share of potentials inside the surrogate's window; the others are not kept
BITMAP = 1 / 8  # of a slot, per channel


@dataclass(frozen=True)
class Layer:
    """A layer with weights: kernel positions, channels, result positions per sample and step, and what it reads.

    ``real``: its input is the same numbers in all steps; ``inputs``: positions of its input that it reads. ``neurons``:
    they stand right behind it, else its sums go on in those of the next layer. ``shortcut``: they add spikes as well.
    """

    taps: int
    c: int
    k: int
    positions: int
    inputs: int
    real: bool
    neurons: bool = True
    shortcut: bool = False

    @property
    def weights(self) -> int:
        return self.taps * self.c * self.k


CIFAR_VGG = (
    Layer(9, 3, 128, 1024, 1024, True),
    Layer(9, 128, 128, 1024, 1024, False),
    Layer(9, 128, 128, 256, 1024, False),
    Layer(9, 128, 256, 256, 256, False),
    Layer(9, 256, 256, 256, 256, False),
    Layer(9, 256, 256, 64, 256, False),
    Layer(9, 256, 512, 64, 64, False),
    Layer(9, 512, 512, 64, 64, False),
    Layer(9, 512, 512, 16, 64, False),
    Layer(16, 512, 1024, 1, 16, False),
    Layer(1, 1024, 512, 1, 1, False),
    Layer(1, 512, 10, 1, 1, False),
)
MLP512 = (Layer(1, 784, 512, 1, 1, True), Layer(1, 512, 10, 1, 1, False))
ALEXNET = (
    Layer(9, 3, 64, 12544, 50176, True),
    Layer(9, 64, 128, 3136, 12544, False),
    Layer(9, 128, 256, 784, 3136, False),
    Layer(9, 256, 256, 196, 784, False),
    Layer(9, 256, 384, 196, 196, False),
    Layer(9, 384, 256, 196, 196, False),
    Layer(9, 256, 256, 49, 196, False),
    Layer(49, 256, 4096, 1, 49, False),
    Layer(1, 4096, 4096, 1, 1, False),
    Layer(1, 4096, 1000, 1, 1, False),
)


def residual_layers(blocks: tuple[int, ...]) -> Iterator[Layer]:
    """Yield the layers of a residual network for ImageNet whose blocks of every width begin with stride 2."""
    yield Layer(49, 3, 64, 112**2, 224**2, True)
    c, positions = 64, 112**2
    for width, count in enumerate(blocks):
        k, read, positions = 64 << width, positions, positions // 4
        yield Layer(9, c, k, positions, read, False)
        yield Layer(9, k, k, positions, positions, False, neurons=False)
        yield Layer(1, c, k, positions, positions, False)
        for _ in range(count - 1):
            yield Layer(9, k, k, positions, positions, False)
            yield Layer(9, k, k, positions, positions, False, shortcut=True)
        c = k
    yield Layer(1, 512, 1000, 1, 1, False)


RESNET34 = tuple(residual_layers((3, 4, 6, 3)))


def least_bytes(layers: tuple[Layer, ...], steps: int, batch: int, group: int, machine: Machine) -> float:
    """Return compulsory bytes and capacity misses of a training step (fp16, SGD with momentum)."""
    groups, item = batch // group, 2
    sums = machine.memory_bytes("A") / 3
    gradient, inside = (share * item + BITMAP for share in (DENSITY, OPEN))
    total = 0.0
    for number, layer in enumerate(layers):
        images = layer.positions * steps * group
        forward_images = layer.positions * group if layer.real else images
        read_images = layer.inputs * group * (1 if layer.real else steps)
        value = item if layer.real else 1 / 8
        weights = item * layer.weights
        # forward and weight gradient: inputs; backward and weight gradient: gradients
        total += groups * capacity(forward_images, layer.k, weights, read_images * layer.c * value, sums)
        if number:
            total += groups * capacity(read_images, layer.c, weights, images * layer.k * gradient, sums)
        total += groups * updates(
            layer, read_images * layer.c * value, images * layer.k * gradient, sums, once=waits(layer, machine)
        )
        # what neurons keep: potential inside the window, spikes and mask out; gradients out; potential, spikes and mask
        # in. The last layer's are integrators, whose potentials are the outputs
        last = number == len(layers) - 1
        kept = 2 * item if last else 2 * inside + 4 / 8
        total += groups * images * layer.k * ((kept + gradient) * layer.neurons + (1 / 8 + gradient) * layer.shortcut)
        # gradients of weights: sums go on from group to group, or stay on chip until the whole batch has passed by;
        # parameter and momentum both ways; storage copy
        moves = 0 if waits(layer, machine) else 2 * groups
        total += layer.weights * (4 * moves + 4 * 4 + item)
    return total


def waits(layer: Layer, machine: Machine) -> bool:
    """Whether sums take longer there and back than to compute them for 24 images (4, same in all steps)."""
    unit = machine.backward.elements * machine.backward.width / 0.45
    if not layer.real:
        unit = machine.weight_update.lanes_k * machine.weight_update.lanes_c * machine.weight_update.fan_in
    return layer.positions * (4 if layer.real else 24) / unit <= 2 * 4 / machine.dram.bytes_per_cycle


def capacity(images: float, channels: int, weights: float, inputs: float, sums: float) -> float:
    """Return the bytes of weights and inputs that a pass reads with ``sums`` bytes of sums on chip."""
    found = []
    for width in (2**n for n in range(3, 12)):
        width = min(width, channels)
        found.append(weights * ceil(images * width * 4 / sums) + inputs * ceil(channels / width))
    return min(found)


def updates(layer: Layer, inputs: float, gradients: float, sums: float, *, once: bool) -> float:
    """Return the bytes of spikes and gradients that a weight gradient reads with ``sums`` bytes of it on chip.

    Without ``once`` every tile of the sums reads both.
    """
    found = []
    for k in (2**n for n in range(3, 12)):
        c = max(8.0, sums / (4 * k * min(layer.taps, 9)))
        wide, deep = ceil(layer.k / min(k, layer.k)), ceil(layer.c / min(c, layer.c))
        found += [inputs + gradients * deep, inputs * wide + gradients] if once else [inputs * wide + gradients * deep]
    return min(found)


def program_bytes(module: builtin.ModuleOp) -> float:
    """Return the bytes that all copies of a ``tile`` program move, gradients at ``DENSITY``, potentials at ``OPEN``."""
    total = 0.0
    for op in module.walk():
        if not isinstance(op, tile.CopyOp):
            continue
        loops: dict[object, int] = {}
        parent = op.parent_op()
        while parent is not None:
            if isinstance(parent, tile.ForOp):
                loops[parent.counter] = parent.trips.data
            parent = parent.parent_op()
        placed = tile.placed_of(op.tensor)
        ivs = list(op.ivs)
        elements, used = 1.0, set()
        for (offset, factors), size, limit in zip(op.window.data, op.sizes.data, placed.shape, strict=True):
            mine = [(iv, factor) for iv, factor in zip(ivs, factors, strict=False) if factor]
            starts = [
                offset + sum(n * factor for n, (_, factor) in zip(place, mine, strict=True))
                for place in product(*(range(loops[iv]) for iv, _ in mine))
            ]
            elements *= sum(max(0, min(limit, start + size) - max(0, start)) for start in starts)
            assert not used & {iv for iv, _ in mine}, "a loop moves one dimension"
            used |= {iv for iv, _ in mine}
        elements *= prod(trips for counter, trips in loops.items() if counter not in used)
        kind, _, dtype = placed.form.partition(".")
        if placed.gblk:
            share = {"slots": DENSITY, "inside": OPEN}[kind]
            total += elements * ({"f16": 2, "f32": 4}[dtype] * share + BITMAP)
        else:
            total += elements * {"bits": 1 / 8, "u8": 1, "f16": 2, "f32": 4, "i32": 4}[placed.form]
    return total


def test_the_count_is_that_of_a_run() -> None:
    """A program without gradients, whose bytes depend on no data."""
    model = h2learn.load_model(str(NETWORKS.parents[1] / "examples" / "digits.snn")).with_batch(8)
    counted = program_bytes(compile_to(model, Recipe("h2l-edge", "fp16"), "tile"))
    program = h2learn.compile(model, arch="h2l-edge", batch=8, precision="fp16")
    shape = next(iter(model.inputs.values())).shape
    image = np.random.default_rng(0).random((8, *shape[1:]), dtype=np.float32)
    report = program.run({next(iter(model.inputs)): image}).report
    assert report.bytes_read["DRAM"] + report.bytes_written["DRAM"] == counted


CASES = [
    ("mlp512", MLP512, 8, 64, 16),
    ("cifar_vgg", CIFAR_VGG, 6, 16, 4),
    ("alexnet", ALEXNET, 6, 16, 4),
    ("resnet34", RESNET34, 6, 16, 4),
]
LIMIT = 1.15


@pytest.mark.parametrize("machine", ["h2l-v0", "h2l-edge"])
@pytest.mark.parametrize(("name", "layers", "steps", "batch", "group"), CASES, ids=[case[0] for case in CASES])
def test_bytes_are_near_the_least(
    name: str, layers: tuple[Layer, ...], steps: int, batch: int, group: int, machine: str
) -> None:
    model = h2learn.load_model(str(NETWORKS / f"{name}.snn")).with_batch(batch)
    assert model.train is not None
    recipe = Recipe(machine, "fp16", replace(model.train, keep_gradients=False), f"group={group}")
    moved = program_bytes(compile_to(model, recipe, "tile"))
    least = least_bytes(layers, steps, batch, group, load_machine(machine))
    print(f"\n{name} on {machine}: {moved / 1e6:.0f} MB, least {least / 1e6:.0f} MB, ratio {moved / least:.3f}")
    assert least <= moved <= LIMIT * least
