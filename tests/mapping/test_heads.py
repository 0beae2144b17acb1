"""Which linear layers are a part of their own, and what then runs in which stream."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from xdsl.dialects.builtin import IntAttr

from h2learn.backends.h2learn.errors import Location
from h2learn.backends.h2learn.machine import Memory, load_machine
from h2learn.backends.reference.neuron import Neuron
from h2learn.compiler.autodiff.spec import Train
from h2learn.compiler.driver import Recipe, compile_to
from h2learn.compiler.frontends.builder import NetworkBuilder
from h2learn.compiler.mapping.groups import Layer, choose_groups, step_cycles
from h2learn.compiler.mapping.heads import has_entry, head_of, wants_short_jobs
from h2learn.compiler.mapping.limits import TileLimits
from h2learn.compiler.mapping.streams import ENTRY, HEAD, OPTIMIZER, PLACES, share, share_base
from h2learn.compiler.model import Model, Network
from h2learn.dialects import lut, tile
from h2learn.dialects.common import HEAD_ATTRIBUTE

HERE = Location("net.snn", 1, 1)
MACHINE = load_machine("h2l-v0")
FIRST = Layer(9, 3, 64, 1024, 4, real=True, first=True)
MAP = Layer(9, 64, 64, 1024, 4, real=False, first=False)
LARGE = Layer(49, 256, 4096, 1, 4, real=False, first=False)
LAST = Layer(1, 4096, 10, 1, 4, real=False, first=False)


def test_large_linear_layers_behind_maps_are_a_head() -> None:
    assert head_of([FIRST, MAP, LARGE, LAST], MACHINE) == 2
    assert head_of([FIRST, MAP, LARGE, MAP, LAST], MACHINE) == 0, "only what stands behind all maps"
    assert head_of([FIRST, MAP, LAST], MACHINE) == 0, "its tables are built soon"
    assert head_of([LARGE, LAST], MACHINE) == 0, "nothing could go on beside it"
    assert head_of([FIRST, MAP, replace(LARGE, real=True)], MACHINE) == 0, "its inputs are no spikes"


def test_a_small_machine_has_no_room_for_a_head_unless_asked() -> None:
    layers, small = [FIRST, MAP, LARGE, LAST], load_machine("h2l-edge")
    assert head_of(layers, small) == 0
    assert head_of(layers, small, "apart") == 2 and head_of(layers, MACHINE, "joined") == 0
    assert head_of([FIRST, MAP, LAST], MACHINE, "apart") == 1


def test_groups_of_a_network_with_a_head_may_be_smaller() -> None:
    """Tables of the large layer are built for every group; the multipliers only read its weights."""
    layers = [FIRST, *[MAP] * 4, LARGE, LAST]
    apart, joined = (step_cycles(layers, (2,) * 8, MACHINE, 2, head) for head in (2, 0))
    assert apart < joined
    headed, plain = (choose_groups(layers, 16, MACHINE, 2, TileLimits(), head) for head in (2, 0))
    assert max(headed) <= max(plain)


def network() -> Network:
    """Return two convolutions and a linear layer of their spikes."""
    builder = NetworkBuilder(4)
    x = builder.encode(builder.input("x", (2, 8, 8), HERE), "direct", 4, HERE)
    for name in ("conv0", "conv1"):
        x = builder.conv(x, name, 16, HERE, kernel=(3, 3), padding=(1, 1), stride=(1, 1))
        x = builder.lif(x, Neuron(), HERE)
    x = builder.linear(builder.flatten(x, HERE), "last", 10, HERE)
    builder.output("logits", builder.readout(builder.lif(x, Neuron(), HERE), "rate", HERE))
    return builder.finish("small", HERE)


MODEL = Model("net", network(), {}, None, lambda _: network())


def streams(limits: str) -> tuple[int, dict[str, list[str]]]:
    """Return the size of the head, and the labels of the stages of every stream."""
    recipe = Recipe(limits=limits, train=Train())
    levels = {level: compile_to(MODEL, recipe, level) for level in ("engines", "tile")}
    head = levels["engines"].attributes.get(HEAD_ATTRIBUTE)
    found = {
        op.label.data: [stage.label.data for stage in op.walk() if isinstance(stage, tile.StageOp)]
        for op in levels["tile"].walk()
        if isinstance(op, tile.StreamOp)
    }
    multiplied = sum(isinstance(op, lut.BeConvOp) for op in levels["engines"].walk())
    count = head.data if isinstance(head, IntAttr) else 0
    assert multiplied == 1 + count
    return count, found


def test_a_head_goes_forward_and_backward_in_one_stream() -> None:
    count, found = streams("group=2,head=apart")
    assert count == 1 and list(found) == ["entry", "forward", "head", "backward", "update", "optimizer"]
    assert found["entry"][0] == "forward conv0" and "forward conv1" in found["forward"]
    assert {"forward last", "backward last"} <= set(found["head"])
    assert all("last" not in stage for name in ("forward", "backward") for stage in found[name])
    assert "convert" in found["head"], "look-ups need not wait until spikes are numbers for the multipliers"
    assert "weights conv0" in found["backward"], "the multipliers' weight gradient follows in the order of the stream"


@pytest.mark.parametrize("limits", ["group=2,entry=joined", "group=2,head=joined,entry=joined"])
def test_without_a_head_and_an_entry_there_are_four_streams(limits: str) -> None:
    count, found = streams(limits)
    assert count == 0 and list(found) == ["forward", "backward", "update", "optimizer"]


def test_without_a_head_there_may_be_an_entry() -> None:
    count, found = streams("group=2,head=joined,entry=apart")
    assert count == 0 and list(found) == ["entry", "forward", "backward", "update", "optimizer"]
    assert found["entry"] == ["forward conv0"] and "forward last" in found["forward"]


def test_look_ups_do_not_wait_for_first_layers_that_take_long() -> None:
    """A sample's look-ups in six layers take 166 thousand cycles; first layers 864, or 18,816 with a large kernel."""
    wide = replace(FIRST, taps=49, positions=4096)
    assert has_entry([wide, *[MAP] * 6], 0, MACHINE) and not has_entry([FIRST, *[MAP] * 6], 0, MACHINE)
    assert has_entry([FIRST, MAP, LARGE, LAST], 2, MACHINE), "beside a head always"
    assert not has_entry([wide, *[MAP] * 6], 0, load_machine("h2l-edge")), "it has no memory for it"
    assert not has_entry([MAP, MAP], 0, MACHINE) and not has_entry([wide, wide], 0, MACHINE)
    assert has_entry([FIRST, MAP], 0, MACHINE, "apart") and not has_entry([wide, MAP], 0, MACHINE, "joined")


@pytest.mark.parametrize("arch", ["h2l-v0", "h2l-edge"])
@pytest.mark.parametrize("apart", [(), (ENTRY,), (ENTRY, HEAD)])
def test_parts_lie_side_by_side_in_every_memory(arch: str, apart: tuple[str, ...]) -> None:
    machine = load_machine(arch)
    parts = [part for part in PLACES if part not in {ENTRY, HEAD} - set(apart)]
    for memory in (field.name for field in fields(Memory)):
        end = 0
        for part in parts:
            size = share(machine, part, apart).memory_bytes(memory)
            base = share_base(machine, part, apart)[memory]
            if part == OPTIMIZER:  # it has the forward part's memory and what follows
                assert base + size >= end
            else:
                assert base == end
            end = base + size
        assert end <= machine.memory_bytes(memory)
        assert memory == "G" or share(machine, parts[0], apart).memory_bytes(memory) > 0 or memory == "L"


def test_jobs_are_short_where_the_weights_of_a_head_take_long_to_come() -> None:
    maps = [FIRST, *[MAP] * 2]
    assert wants_short_jobs([*maps, LARGE, LAST], 2, MACHINE, 2)
    assert not wants_short_jobs([*maps, LARGE, LAST], 0, MACHINE, 2), "there is no head"
    assert not wants_short_jobs([*maps, *[MAP] * 40, LARGE, LAST], 2, MACHINE, 2), "maps take much longer"
    assert not wants_short_jobs([*maps, LARGE, LAST], 2, MACHINE, 2, "long")
    assert wants_short_jobs(maps, 0, MACHINE, 2, "short")


@pytest.mark.parametrize(("limits", "by_steps"), [("head=apart,jobs=short", True), ("head=apart", False)])
def test_backward_and_update_work_with_short_jobs_is_a_job_per_time_step(limits: str, by_steps: bool) -> None:
    module = compile_to(MODEL, Recipe(limits=f"group=2,{limits}", train=Train()), "tile")
    of_maps = [
        op for op in module.walk() if isinstance(op, tile.BeRunOp | tile.WuRunOp) and int(op.parameters()["kh"]) == 3
    ]
    assert len(of_maps) == 2
    for op in of_maps:
        loop = op.parent_op()
        assert (isinstance(loop, tile.ForOp) and loop.label.data == "step") == by_steps
        assert int(op.parameters()["imgs"]) == (2 if by_steps else 8)


@pytest.mark.parametrize(
    ("limits", "many"), [("jobs=short", True), ("jobs=long", False), ("jobs=short,double_buffering=off", False)]
)
def test_a_head_between_short_jobs_has_more_weights_on_chip(limits: str, many: bool) -> None:
    module = compile_to(MODEL, Recipe(limits=f"group=2,head=apart,{limits}", train=Train()), "tile")
    jobs = [op for op in module.walk() if isinstance(op, tile.BeFwdOp) and int(op.parameters()["kh"]) > 3]
    assert len(jobs) == 1
    weights = jobs[0].buffer("w").owner
    assert isinstance(weights, tile.AllocOp)
    assert (weights.slots.data > 2) == many
