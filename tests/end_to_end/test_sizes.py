"""Programs do not grow with time steps and batch, and the largest benchmark network stays within the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from h2learn.backends.h2learn.isa import WORD_BYTES
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.driver import Recipe
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.model import Model, Network
from h2learn.dialects.h2.ops import program_ops

from .networks import HERE, lowered

OPS_PER_LEVEL = 3000
TEXT_BYTES = 256 << 10
TILES = "steps=2,samples=1,rows=4,columns=4,c=8,k=8,elements=64,group=2"
TILED = [(4, 4), (64, 4), (4, 64), (64, 64)]
WHOLE = [(2, 1), (16, 1), (2, 8)]
"""(time steps, batch): tiles so small that every loop runs more than once; what fits in a tile is whole."""
CIFAR_VGG = [(128, 1), (128, 1), (128, 2), (256, 1), (256, 1), (256, 2), (512, 1), (512, 1), (512, 2)]


def small_network(encoding: str, steps: int, batch: int) -> Network:
    """Return two convolutions with pooling before and after neurons, and a linear layer."""
    builder = NetworkBuilder(batch)
    x = builder.encode(builder.input("x", (2, 8, 8), HERE), encoding, steps, HERE)
    x = builder.conv(x, "conv0", 16, HERE, kernel=(3, 3), padding=(1, 1))
    x = builder.lif(builder.pool(x, "max", (2, 2), (2, 2), HERE), Neuron(reset="soft"), HERE)
    x = builder.conv(x, "conv1", 16, HERE, kernel=(3, 3), padding=(1, 1), stride=(1, 1))
    x = builder.pool(builder.lif(x, Neuron(), HERE), "avg", (2, 2), (2, 2), HERE)
    x = builder.linear(builder.flatten(x, HERE), "last", 10, HERE)
    builder.output("logits", builder.readout(builder.lif(x, Neuron(), HERE), "rate", HERE))
    return builder.finish("small", HERE)


def recurrent_network(encoding: str, steps: int, batch: int) -> Network:
    """Return two recurrent layers with a delay between them."""
    builder = NetworkBuilder(batch)
    x = builder.encode(builder.input("x", (16,), HERE), encoding, steps, HERE)
    x = builder.linear(x, "linear0", 16, HERE)
    x = builder.recurrent(x, "feedback0", lambda c: builder.lif(c, Neuron(), HERE), HERE)
    x = builder.linear(builder.delay(x, [2], HERE), "linear1", 16, HERE)
    x = builder.recurrent(x, "feedback1", lambda c: builder.lif(c, Neuron(), HERE), HERE, bias=True)
    builder.output("logits", builder.readout(x, "rate", HERE))
    return builder.finish("recurrent", HERE)


def cifar_vgg(steps: int, batch: int) -> Network:
    """Return the VGG of Wu et al. with stride-2 convolutions in place of pooling."""
    builder = NetworkBuilder(batch)
    x = builder.encode(builder.input("x", (3, 32, 32), HERE), "direct", steps, HERE)
    for layer, (channels, stride) in enumerate(CIFAR_VGG):
        x = builder.conv(x, f"conv{layer}", channels, HERE, kernel=(3, 3), stride=(stride, stride), padding=(1, 1))
        x = builder.lif(x, Neuron(), HERE)
    x = builder.flatten(x, HERE)
    for layer, features in enumerate((1024, 512, 10)):
        x = builder.lif(builder.linear(x, f"linear{layer}", features, HERE), Neuron(), HERE)
    builder.output("rates", builder.readout(x, "rate", HERE))
    return builder.finish("vgg", HERE)


def counts(network: Network, recipe: Recipe) -> dict[str, int]:
    """Return the number of operations at every level."""
    levels = lowered(Model("net", network, {}, None, lambda _: network), recipe)
    return {name: sum(1 for _ in module.walk()) for name, module in levels.items()}


def mapped(network: Network, recipe: Recipe) -> Sequence[str]:
    """Return the mnemonics of the program."""
    levels = lowered(Model("net", network, {}, None, lambda _: network), recipe)
    return [op.mnemonic for op in program_ops(levels["h2"])]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("network", [small_network, recurrent_network])
@pytest.mark.parametrize("encoding", ["direct", "bernoulli"])
def test_programs_do_not_grow_with_time_steps_and_batch(
    network: Callable[[str, int, int], Network], encoding: str, precision: str
) -> None:
    """One mapping has one count; a mapping whose tiles cover a dimension has no loop over it, and never more ops."""
    recipe = Recipe(precision=precision, limits=TILES, train=Train(optimizer=SGD(momentum=0.9)))
    tiled = {size: counts(network(encoding, *size), recipe) for size in TILED}
    most = tiled[TILED[0]]
    assert all(count == most for count in tiled.values()), tiled
    for size in WHOLE:
        found = counts(network(encoding, *size), replace(recipe, limits=""))
        assert all(found[level] <= most[level] for level in most), (size, found, most)
        assert found["tile"] < most["tile"] and found["h2"] < most["h2"]


def test_the_instructions_of_one_mapping_are_the_same_at_any_size() -> None:
    recipe = Recipe(limits=TILES, train=Train())
    first, *others = (mapped(small_network("direct", *size), recipe) for size in TILED)
    assert all(other == first for other in others)


@pytest.mark.parametrize(("steps", "batch"), [(6, 16), (64, 64)])
def test_the_largest_benchmark_network_stays_within_the_budget(steps: int, batch: int) -> None:
    network = cifar_vgg(steps, batch)
    parameters = sum(int(np.prod(spec.shape)) for spec in network.parameters.values())
    assert round(parameters / 1e5) == 166
    recipe = Recipe(precision="fp16", train=Train(optimizer=SGD(momentum=0.9)))
    start = time.perf_counter()
    found = counts(network, recipe)
    seconds = time.perf_counter() - start
    print(f"\nCIFAR VGG, {parameters} parameters, T = {steps}, batch {batch}: ops {found}, compiled in {seconds:.1f} s")
    assert max(found.values()) <= OPS_PER_LEVEL
    assert found["h2"] * WORD_BYTES <= TEXT_BYTES
