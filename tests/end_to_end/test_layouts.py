"""Layouts of DRAM tensors: what a program computes does not depend on them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import gcd, prod

import numpy as np
import pytest
from xdsl.dialects import builtin

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import SGD, Train
from h2learn.compiler.driver import Recipe, emit_program
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.model import Model, Network
from h2learn.compiler.passes.h2_transfer import is_transfer, transfer
from h2learn.compiler.passes.tile_layout import enclosing_loops, first_tensor
from h2learn.compiler.universe import new_context
from h2learn.dialects import tile

from .networks import HERE, Case, random_data, random_model, random_train

NEURON = Neuron(theta=(0.4,))


def lowered_with(case: Case, lay_out: Callable[[builtin.ModuleOp], None]) -> builtin.ModuleOp:
    """Return the ``h2`` program with layouts of one's own."""
    module = case.levels["lut"].clone()
    names = [one.name for one in case.recipe.passes("h2")]
    for one in case.recipe.passes("h2")[names.index("h2l-lut-to-tile") :]:
        if one.name == "h2l-lay-out-tensors":
            lay_out(module)
        else:
            one.apply(new_context(), module)
    return module


def leave(module: builtin.ModuleOp) -> None:
    """Leave all channels of a position together."""


def part(module: builtin.ModuleOp) -> None:
    """Put every 8 channels of whatever is no slot into a plane."""
    for op in module.walk():
        if isinstance(op, tile.TensorOp) and op.rows is None and op.shadow is None:
            placed = tile.placed_of(op.result)
            users = [use.operation for use in op.result.uses]
            if not placed.gblk and placed.shape[-1] % 8 == 0 and all(isinstance(user, tile.CopyOp) for user in users):
                op.layout = tile.LayoutAttr(tile.Layout(8))
        elif isinstance(op, tile.TensorOp) and is_storage_copy(op):
            channels = tile.placed_of(op.result).shape[-1]
            op.layout = tile.LayoutAttr(tile.Layout(gcd(channels, 8)))


def is_storage_copy(op: tile.TensorOp) -> bool:
    """Whether a tensor is the storage copy of a parameter."""
    return op.shadow is not None


def storage_copies(module: builtin.ModuleOp) -> list[tile.TensorOp]:
    """Return the storage copies of parameters."""
    return [op for op in module.walk() if isinstance(op, tile.TensorOp) and is_storage_copy(op)]


def spread(module: builtin.ModuleOp) -> None:
    """Put the positions of every map apart whose copies can be transfers then."""
    for op in module.walk():
        if isinstance(op, tile.TensorOp) and op.rows is None and op.shadow is None:
            placed = tile.placed_of(op.result)
            users = [use.operation for use in op.result.uses]
            copies = [user for user in users if isinstance(user, tile.LoadOp | tile.StoreOp)]
            if len(placed.shape) >= 4 and len(copies) == len(users):
                plane = 8 if placed.shape[-1] % 8 == 0 and not placed.gblk else placed.shape[-1]
                op.layout = tile.LayoutAttr(tile.Layout(plane, apart=True))
                if not all(is_transfer(copy) for copy in copies):
                    op.layout = None


def layouts(module: builtin.ModuleOp) -> list[tile.Layout]:
    """Return the layouts of all tensors that have one."""
    return [op.layout.data for op in module.walk() if isinstance(op, tile.TensorOp) and op.layout is not None]


def loops(module: builtin.ModuleOp) -> int:
    """Return the number of loops of a program."""
    return sum(op.name == "h2.loop" for op in module.walk())


def test_layouts_change_bursts_and_no_numbers() -> None:
    """A program whose tensors lie channels last, and one in thin planes, give the same bytes; DRAM is busy longer."""
    chosen = over_planes = copies = 0
    busy = np.zeros(2)
    for seed in range(10):
        rng = np.random.default_rng([31, seed])
        model, train = random_model(rng, batch=4, steps=2), random_train(rng)
        limits = str(rng.choice(["c=8", "c=8,rows=3", "k=8,steps=1", "samples=2,group=4", "samples=2,rows=2,group=4"]))
        try:
            case = Case(model, Recipe("h2l-edge", "fp16", train, limits), random_data(model, train, rng))
        except H2LearnError as error:
            assert "fits the on-chip memories" in error.message
            continue
        expected, report = case.run_device()
        for lay_out in (leave, part, spread):
            module = lowered_with(case, lay_out)
            found, other = case.run_device(emit_program(model, module, case.recipe))
            for key, value in expected.items():
                assert value.tobytes() == found[key].tobytes(), key
            assert other.bytes_read == report.bytes_read and other.bytes_written == report.bytes_written
            if lay_out is part:
                over_planes += loops(module) - loops(case.levels["h2"])
            elif lay_out is leave:
                busy += other.busy["DRAM"], report.busy["DRAM"]
        chosen += len(layouts(case.levels["tile"]))
        copies += sum(tile.placed_of(op.result).shape[-1] > 8 for op in storage_copies(case.levels["tile"]))
    print(f"\n{chosen} layouts; DRAM busy {busy[0]:.0f}, {busy[1]:.0f} cycles; {over_planes} loops over planes")
    assert chosen > 20 and copies > 0 and over_planes > 0 and busy[1] < 0.95 * busy[0]


def with_weights(network: Network) -> Model:
    """Return a network with weights at which its neurons fire."""
    rng = np.random.default_rng(3)
    values = {
        name: rng.normal(0.03, 1.5 / np.sqrt(prod(spec.shape[1:])), spec.shape).astype(np.float32)
        for name, spec in network.parameters.items()
    }
    return Model("net", network, values, None, lambda _: network)


def equal_layers() -> Network:
    """Return four equal convolutions between others, and a linear layer."""
    builder = NetworkBuilder(4)
    x = builder.encode(builder.input("x", (2, 6, 6), HERE), "direct", 2, HERE)
    for n, channels in enumerate((16, 32, 32, 32, 32, 48)):
        x = builder.conv(x, f"c{n}", channels, HERE, kernel=(3, 3), padding=(1, 1), bias=False)
        x = builder.lif(x, NEURON, HERE)
    x = builder.linear(builder.flatten(x, HERE), "last", 10, HERE)
    builder.output("logits", builder.readout(builder.li(x, 0.5, HERE), "membrane_mean", HERE))
    return builder.finish("equal", HERE)


def flattened_map() -> Network:
    """Return a linear layer behind a map, whose kernel positions are read one by one."""
    builder = NetworkBuilder(4)
    x = builder.encode(builder.input("x", (2, 4, 4), HERE), "direct", 3, HERE)
    x = builder.lif(builder.conv(x, "c", 32, HERE, kernel=(3, 3), padding=(1, 1), bias=False), NEURON, HERE)
    x = builder.lif(builder.linear(builder.flatten(x, HERE), "f", 256, HERE, bias=False), NEURON, HERE)
    x = builder.linear(x, "last", 10, HERE, bias=False)
    builder.output("logits", builder.readout(builder.li(x, 0.5, HERE), "membrane_mean", HERE))
    return builder.finish("flattened", HERE)


def rows_in_dram(op: tile.LoadOp | tile.StoreOp) -> tuple[int, list[int]]:
    """Return how often a copy runs, and the sizes of the pieces of DRAM that one execution inside the tensor moves."""
    plan = transfer(op)
    fields, side = dict(plan.fields), "s" if isinstance(op, tile.LoadOp) else "d"
    run, counts = int(fields["run"]), [int(fields[f"n{n}"]) for n in range(4)]
    steps = [int(fields.get(f"{side}s{n}", 0)) for n in range(4)]
    pieces: list[list[int]] = []
    for index in product(*(range(count) for count in counts)):
        start = sum(n * step for n, step in zip(index, steps, strict=True))
        if pieces and pieces[-1][1] == start:
            pieces[-1][1] += run
        else:
            pieces.append([start, start + run])
    times = prod(loop.trips.data for loop in enclosing_loops(op)) * plan.times
    return times, [end - start for start, end in pieces]


def copied_bytes(module: builtin.ModuleOp, which: Callable[[tile.TensorOp], bool]) -> tuple[int, int]:
    """Return the bytes that copies of some tensors move, and what these are in whole bursts of 64 bytes."""
    moved = bursts = 0
    for op in module.walk():
        if isinstance(op, tile.LoadOp | tile.StoreOp):
            root = first_tensor(op.tensor).owner
            if isinstance(root, tile.TensorOp) and which(root):
                times, rows = rows_in_dram(op)
                moved += times * sum(rows)
                bursts += times * sum(-(-row // 64) * 64 for row in rows)
    return moved, bursts


def tiles_of(case: Case, *, laid_out: bool) -> builtin.ModuleOp:
    """Return the tile level of a case before buffers are placed, with or without layouts."""
    module = case.levels["lut"].clone()
    for one in case.recipe.passes("tile"):
        if one.name in ("h2l-lut-to-tile", "h2l-share-stages") or (laid_out and one.name == "h2l-lay-out-tensors"):
            one.apply(new_context(), module)
    return module


@pytest.mark.parametrize("limits", ["k=8,elements=64", "k=16,elements=1000", "k=8,c=16,elements=96,group=2"])
def test_weights_are_moved_in_whole_bursts(limits: str) -> None:
    """Tiles of 8 and 16 output channels waste half of a burst and more where all channels of a weight lie together."""
    model = with_weights(equal_layers())
    recipe = Recipe("h2l-edge", "fp16", Train(optimizer=SGD(momentum=0.5)), limits)
    case = Case(model, recipe, random_data(model, recipe.train, np.random.default_rng(4)))
    copies = storage_copies(case.levels["tile"])
    assert {op.shadow.data for op in copies if op.shadow and op.layout} >= {f"c{n}.weight" for n in range(1, 6)}
    stacks = [op for op in case.levels["tile"].walk() if isinstance(op, tile.StackOp)]
    assert any(member.owner in copies for stack in stacks for member in stack.members)
    moved, bursts = copied_bytes(tiles_of(case, laid_out=True), is_storage_copy)
    before, wasted = copied_bytes(tiles_of(case, laid_out=False), is_storage_copy)
    print(f"\n{limits}: {moved} bytes in {bursts}, without layouts in {wasted}")
    assert moved == before and wasted > 1.5 * moved and bursts < 1.05 * moved
    assert_same_bits(case)


@pytest.mark.parametrize("limits", ["c=16", "group=2", "samples=1,c=8"])
def test_positions_that_are_read_one_by_one_lie_apart(limits: str) -> None:
    """The spikes of a map in front of a linear layer: 3 steps of 4 samples, some channels of a position at a time."""
    model = with_weights(flattened_map())
    recipe = Recipe("h2l-edge", "fp16", Train(optimizer=SGD(momentum=0.5)), limits)
    case = Case(model, recipe, random_data(model, recipe.train, np.random.default_rng(4)))
    assert {layout.pack > 1 for layout in layouts(case.levels["tile"]) if layout.apart} == {False, True}

    def is_map(op: tile.TensorOp) -> bool:
        return tile.placed_of(op.result) == tile.Placed("bits", (3, 4, 4, 4, 32)) and op.label.data.endswith(".s")

    moved, bursts = copied_bytes(tiles_of(case, laid_out=True), is_map)
    before, wasted = copied_bytes(tiles_of(case, laid_out=False), is_map)
    print(f"\n{limits}: {moved} bytes in {bursts}, without layouts in {wasted}")
    assert moved == before and bursts < 0.4 * wasted
    assert_same_bits(case)


def assert_same_bits(case: Case) -> None:
    """Check that all levels, the simulator and a program without layouts compute the same."""
    expected = case.run_level("lut")
    program = emit_program(case.model, lowered_with(case, leave), case.recipe)
    for found in (case.run_level("tile"), case.run_level("h2"), case.run_device()[0], case.run_device(program)[0]):
        for key, value in expected.items():
            assert value.tobytes() == found[key].tobytes(), key
