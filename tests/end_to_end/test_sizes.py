"""Programs do not grow with time steps, batch and depth, and those of large networks stay within the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from h2learn.backends.h2learn.isa import WORD_BYTES
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.driver import Recipe
from h2learn.compiler.frontends.builder import NetworkBuilder, Signal
from h2learn.compiler.model import Model, Network
from h2learn.dialects.h2.ops import program_ops
from h2learn.models import load_model

from .networks import HERE, lowered

OPS_PER_LEVEL = 3000
TEXT_BYTES = 256 << 10
TILES = "steps=2,samples=1,rows=4,columns=4,c=8,k=8,elements=64,group=2"
TILED = [(4, 4), (64, 4), (4, 64), (64, 64)]
WHOLE = [(2, 1), (16, 1), (2, 8)]
"""(time steps, batch): tiles so small that every loop runs more than once; what fits in a tile is whole."""
BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "networks"
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


@pytest.mark.parametrize("head", ["joined", "apart"])
def test_the_instructions_of_one_mapping_are_the_same_at_any_size(head: str) -> None:
    recipe = Recipe(limits=f"{TILES},head={head}", train=Train())
    first, *others = (mapped(small_network("direct", *size), recipe) for size in TILED)
    assert all(other == first for other in others)


def residual_network(blocks: Sequence[int], batch: int) -> Network:
    """Return an ImageNet network of residual blocks: 34 layers with weights for 3, 4, 6, 3, and 1x1 shortcuts."""
    builder = NetworkBuilder(batch)
    x = builder.encode(builder.input("x", (3, 224, 224), HERE), "direct", 6, HERE)

    def conv(x: Signal, name: str, channels: int, size: int, stride: int = 1) -> Signal:
        half, strides = (size // 2, size // 2), (stride, stride)
        return builder.conv(x, name, channels, HERE, kernel=(size, size), stride=strides, padding=half, bias=False)

    x = builder.lif(conv(x, "stem", 64, 7, 2), Neuron(), HERE)
    for width, count in enumerate(blocks):
        channels = 64 << width
        for block in range(count):
            stride = 1 if block else 2
            inner = builder.lif(conv(x, f"a{width}_{block}", channels, 3, stride), Neuron(), HERE)
            outer = conv(inner, f"b{width}_{block}", channels, 3)
            shortcut = x if block else conv(x, f"p{width}_{block}", channels, 1, 2)
            x = builder.lif(builder.add([outer, shortcut], HERE), Neuron(), HERE)
    x = builder.flatten(builder.pool(x, "avg", (7, 7), (7, 7), HERE), HERE)
    builder.output(
        "u", builder.readout(builder.li(builder.linear(x, "f", 1000, HERE), 0.5, HERE), "membrane_mean", HERE)
    )
    return builder.finish("resnet", HERE)


NETWORKS: dict[str, tuple[Callable[[], Network], float]] = {
    "CIFAR VGG": (lambda: cifar_vgg(6, 16), 5),
    "CIFAR VGG, T = 64, batch 64": (lambda: cifar_vgg(64, 64), 5),
    "AlexNet-like": (lambda: load_model(BENCHMARKS / "alexnet.snn").with_batch(16).network, 5),
    "ResNet-34-like": (lambda: load_model(BENCHMARKS / "resnet34.snn").with_batch(16).network, 15),
}
"""Network and seconds (of one core) to compile it."""


@pytest.mark.parametrize("arch", ["h2l-v0", "h2l-edge"])
@pytest.mark.parametrize("name", NETWORKS)
def test_large_networks_stay_within_the_budget(name: str, arch: str) -> None:
    make, most = NETWORKS[name]
    network = make()
    recipe = Recipe(arch, "fp16", Train(optimizer=SGD(momentum=0.9)))
    start = time.process_time()
    found = counts(network, recipe)
    seconds = time.process_time() - start
    print(f"\n{name}, {arch}: ops {found}, {seconds:.1f} s to compile")
    assert max(found.values()) <= OPS_PER_LEVEL
    assert found["h2"] * WORD_BYTES <= TEXT_BYTES
    assert seconds <= most


def test_more_depth_is_hardly_more() -> None:
    """Each convolution more declares a gradient and a storage copy; programs differ by some loops over layers at most.

    Between two and three times the depth of ResNet-34 all equal layers are in loops already.
    """
    recipe = Recipe(precision="fp16", train=Train(optimizer=SGD(momentum=0.9)))
    depths = ((3, 4, 6, 3), (6, 8, 12, 6), (9, 12, 18, 9))
    once, twice, thrice = (counts(residual_network(blocks, 16), recipe) for blocks in depths)
    print(f"\n16 blocks {once}, 32 blocks {twice}, 48 blocks {thrice}")
    assert max(twice.values()) <= OPS_PER_LEVEL
    assert twice["tile"] - once["tile"] <= 2 * 2 * 16 + 20
    assert twice["h2"] - once["h2"] <= 25
    assert thrice["tile"] - twice["tile"] <= 2 * 2 * 16 + 4
    assert thrice["h2"] - twice["h2"] <= 4


def bottleneck_network(blocks: Sequence[int], batch: int) -> Network:
    """Return residual blocks of three convolutions with batch normalisation, as in ResNet-50, at a small width."""
    builder = NetworkBuilder(batch)
    x = builder.encode(builder.input("x", (3, 16, 16), HERE), "direct", 2, HERE)

    def conv(x: Signal, name: str, channels: int, size: int, stride: int = 1) -> Signal:
        half, strides = (size // 2, size // 2), (stride, stride)
        x = builder.conv(x, name, channels, HERE, kernel=(size, size), stride=strides, padding=half, bias=False)
        return builder.batch_norm(x, f"{name}_norm", HERE)

    x = builder.lif(conv(x, "stem", 16, 3), Neuron(), HERE)
    for width, count in enumerate(blocks):
        channels = 8 << width
        for block in range(count):
            stride = 2 if width and not block else 1
            inner = builder.lif(conv(x, f"a{width}_{block}", channels, 1), Neuron(), HERE)
            inner = builder.lif(conv(inner, f"b{width}_{block}", channels, 3, stride), Neuron(), HERE)
            outer = conv(inner, f"c{width}_{block}", 4 * channels, 1)
            shortcut = x if block else conv(x, f"p{width}_{block}", 4 * channels, 1, stride)
            x = builder.lif(builder.add([outer, shortcut], HERE), Neuron(), HERE)
    x = builder.linear(builder.flatten(x, HERE), "f", 10, HERE)
    builder.output("u", builder.readout(builder.li(x, 0.5, HERE), "membrane_mean", HERE))
    return builder.finish("bottleneck", HERE)


MANY_STAGES: dict[str, Callable[[], Network]] = {
    "ResNet-18 with batch norm": lambda: load_model(BENCHMARKS / "resnet18.snn").with_batch(32).network,
    "bottleneck blocks": lambda: bottleneck_network((3, 4), 4),
}


@pytest.mark.parametrize("name", MANY_STAGES)
def test_stages_in_loops_over_layers_find_semaphores(name: str) -> None:
    """Their tokens are many at a time if every one is thought to be in use as long as the loop runs."""
    found = counts(MANY_STAGES[name](), Recipe(train=Train()))
    print(f"\n{name}: ops {found}")
    assert found["h2"] * WORD_BYTES <= TEXT_BYTES
