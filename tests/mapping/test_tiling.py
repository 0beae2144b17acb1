"""Tiles against a count of bytes written down here, buffer by buffer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.backends.h2learn.machine import Machine, Memory, load_machine
from h2learn.compiler.mapping.cost import backward_job, between_turns, weights_job
from h2learn.compiler.mapping.layout import slot_channels
from h2learn.compiler.mapping.limits import SLOTS, TileLimits
from h2learn.compiler.mapping.streams import ENTRY, HEAD, Jobs, share
from h2learn.compiler.mapping.tiles import (
    PLAIN_NEURON,
    BackwardTile,
    ConvShape,
    ForwardTile,
    Joined,
    Tile,
    Usage,
    WeightTile,
    gradient_extent,
    slot_cap,
)
from h2learn.compiler.mapping.tiling import BACKWARD_TURN, UPDATE_TURN, plan_backward, plan_forward, plan_weights
from h2learn.compiler.mapping.vector_tiling import plan_channels, plan_positions, plan_rows

SMALL = replace(load_machine("h2l-edge"), name="small", sram_kib=Memory(W=24, S=8, U=24, G=40, M=8, A=24, L=64))
MACHINES = [load_machine("h2l-v0"), load_machine("h2l-edge"), SMALL]
FREE = TileLimits()

Buffer = tuple[str, int, int]
"""Memory, bytes of one copy, copies."""


def bits(positions: int, channels: int) -> int:
    return positions * ((channels + 7) // 8)


def slots(positions: int, channels: int, gblk: int, item: int) -> int:
    return positions * ((channels + gblk - 1) // gblk) * (8 + (gblk * item + 7) // 8 * 8)


def fits(buffers: list[Buffer], machine: Machine) -> bool:
    need = dict.fromkeys("WSUGMAL", 0)
    for memory, size, copies in buffers:
        need[memory] += copies * ((size + 63) // 64 * 64)
    return all(size <= machine.memory_bytes(memory) for memory, size in need.items())


def forward_buffers(s: ConvShape, t: ForwardTile, machine: Machine) -> list[Buffer]:
    """The stage: weights, tables, inputs with halo, currents, parameter rows, state and what the neurons keep."""
    images = t.samples * (1 if s.static else t.steps)
    inputs = images * ((t.rows - 1) * s.stride[0] + s.kernel[0]) * ((t.columns - 1) * s.stride[1] + s.kernel[1])
    area = t.samples * t.rows * t.columns
    taps, fan = s.kernel[0] * s.kernel[1], t.fan
    buffers = [
        ("W", taps * t.c * t.k * s.item, t.ahead),
        ("A", images * t.rows * t.columns * t.k * 4, t.held),
        ("A", 4 * t.k * 4, 2),
        ("U", area * t.k * s.item, 1),
        ("S", bits(area, t.k), 1),
        ("S", bits(t.steps * area, t.k), 2),
        ("U", t.steps * area * t.k * s.item, t.held),
        ("M", bits(t.steps * area, t.k), 2),
    ]
    if s.real:
        return [*buffers, ("U", inputs * t.c * s.item, t.ahead)]
    tables = taps * ((t.c + fan - 1) // fan) * 2**fan * t.k * s.item
    return [*buffers, ("S", bits(inputs, t.c), 2), ("L", tables, 2)]


def backward_buffers(s: ConvShape, t: BackwardTile, machine: Machine) -> list[Buffer]:
    """The stage: weights, incoming gradients, mask, result, and with a neuron its membrane, spikes and gradient.

    Weights of all channels stay, in as many slots as the result has.
    """
    gh, gw = (
        gradient_extent(count, kernel, stride, padding)[0]
        for count, kernel, stride, padding in zip((t.rows, t.columns), s.kernel, s.stride, s.padding, strict=True)
    )
    area, outs = t.samples * t.rows * t.columns, t.steps * t.samples * t.rows * t.columns
    gblk_in, gblk_out = (slot_channels(n, slot_cap(machine, FREE)) for n in (s.k, s.c))
    buffers = [
        ("W", s.kernel[0] * s.kernel[1] * t.c * t.k * s.item, t.held if t.k == s.k else t.ahead),
        ("G", slots(t.steps * t.samples * gh * gw, t.k, gblk_in, s.item), t.ahead),
        ("M", bits(outs, t.c), 2),
        ("A", outs * t.c * 4, t.held),
    ]
    if not t.fused:
        return buffers
    return [
        *buffers,
        ("A", 4 * t.c * 4, 2),
        ("U", area * t.c * s.item, 1),
        ("U", outs * t.c * s.item, t.held),
        ("S", bits(outs, t.c), 2),
        ("G", slots(outs, t.c, gblk_out, s.item), t.held),
    ]


def weight_buffers(s: ConvShape, t: WeightTile, machine: Machine) -> list[Buffer]:
    """The stage: inputs with halo, gradients, sums."""
    images = t.steps * t.samples
    inputs = images * ((t.rows - 1) * s.stride[0] + s.kernel[0]) * ((t.columns - 1) * s.stride[1] + s.kernel[1])
    gblk = slot_channels(s.k, slot_cap(machine, FREE))
    return [
        ("U", inputs * t.c * s.item, 2) if s.real else ("S", bits(inputs, t.c), 2),
        ("G", slots(images * t.rows * t.columns, t.k, gblk, s.item), 2),
        ("A", s.kernel[0] * s.kernel[1] * t.c * t.k * 4, t.held),
    ]


def random_shape(rng: np.random.Generator) -> ConvShape:
    kernel, stride = ((int(rng.integers(1, high)), int(rng.integers(1, high))) for high in (4, 3))
    padding = (int(rng.integers(0, 2)), int(rng.integers(0, 2)))
    in_h, in_w = int(rng.integers(4, 33)), int(rng.integers(4, 33))
    out_h, out_w = (
        (size + 2 * p - k) // s + 1 for size, p, k, s in zip((in_h, in_w), padding, kernel, stride, strict=True)
    )
    c, k = (int(rng.choice([1, 3, 8, 20, 48, 96, 256])) for _ in "ck")
    steps, batch = int(rng.choice([1, 4, 6])), int(rng.choice([1, 3, 16]))
    real, static = bool(rng.integers(2)), bool(rng.integers(2))
    return ConvShape(
        steps, batch, in_h, in_w, c, out_h, out_w, k, kernel, stride, padding, real, static, int(rng.choice([2, 4]))
    )


PLANS: list[tuple[str, Callable[..., Tile], Callable[..., list[Buffer]]]] = [
    ("forward", plan_forward, forward_buffers),
    ("backward", lambda *args: plan_backward(*args, neuron=PLAIN_NEURON), backward_buffers),
    ("weights", plan_weights, weight_buffers),
]
WHICH = pytest.mark.parametrize(("plan", "buffers"), [row[1:] for row in PLANS], ids=[row[0] for row in PLANS])


@WHICH
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_every_plan_fits_its_machine(
    plan: Callable[..., Tile], buffers: Callable[..., list[Buffer]], machine: Machine
) -> None:
    rng = np.random.default_rng(1)
    planned = 0
    for _ in range(60):
        shape = random_shape(rng)
        try:
            tile = plan(shape, machine, FREE)
        except H2LearnError:
            assert machine is SMALL
            continue
        planned += 1
        assert fits(buffers(shape, tile, machine), machine), (shape, tile)
        assert shape.steps % tile.steps == 0 and shape.batch % tile.samples == 0
        for size, whole in ((tile.c, shape.c), (tile.k, shape.k)):
            assert whole % size == 0 and (size == whole or size % 8 == 0)
    assert planned >= 40


@WHICH
def test_a_plan_is_the_whole_layer_when_it_fits(
    plan: Callable[..., Tile], buffers: Callable[..., list[Buffer]]
) -> None:
    shape = ConvShape(4, 2, 8, 8, 8, 8, 8, 16, (3, 3), (1, 1), (1, 1), False, False, 4)
    tile = plan(shape, load_machine("h2l-v0"), FREE)
    assert (tile.steps, tile.samples, tile.rows, tile.columns, tile.c) == (4, 2, 8, 8, 8)
    assert tile.k == 16 or plan is plan_forward  # half the currents come out while the others are summed


@pytest.mark.parametrize("machine", MACHINES[1:], ids=lambda machine: machine.name)
def test_a_plan_grows_back_until_something_is_full(machine: Machine) -> None:
    """With the channels that the estimate chose, no single other dimension of the tile could be taken whole."""
    rng = np.random.default_rng(2)
    for _ in range(40):
        shape = random_shape(rng)
        try:
            tile = plan_forward(shape, machine, FREE)
        except H2LearnError:
            continue
        whole = {"steps": shape.steps, "samples": shape.batch, "rows": shape.out_h, "columns": shape.out_w}
        for name, size in whole.items():
            grown = replace(tile, **{name: size})
            spare = replace(machine.sram_kib, **{m: getattr(machine.sram_kib, m) - 4 for m in "WSUGMAL"})
            assert grown == tile or not fits(forward_buffers(shape, grown, machine), replace(machine, sram_kib=spare))


@WHICH
def test_limits_are_honoured(plan: Callable[..., Tile], buffers: Callable[..., list[Buffer]]) -> None:
    shape = ConvShape(6, 4, 12, 12, 64, 12, 12, 64, (3, 3), (1, 1), (1, 1), False, False, 4)
    limits = TileLimits(steps=4, samples=3, rows=5, columns=7, c=24, k=40)
    tile = plan(shape, load_machine("h2l-v0"), limits)
    assert (tile.steps, tile.samples, tile.rows, tile.columns) == (3, 2, 4, 6)
    slot = 32  # the channels of a gradient slot under k=40, which gradient tiles do not cut
    assert tile.c == (slot if isinstance(tile, BackwardTile) else 16) and tile.k == slot


def test_backward_rows_are_multiples_of_the_stride() -> None:
    shape = ConvShape(2, 1, 11, 11, 8, 6, 6, 8, (3, 3), (2, 2), (1, 1), False, False, 4)
    tile = plan_backward(shape, load_machine("h2l-v0"), TileLimits(rows=3, columns=1), neuron=PLAIN_NEURON)
    assert (tile.rows, tile.columns) == (2, 2)


def test_blocks_chosen_before_stay() -> None:
    shape = ConvShape(6, 4, 12, 12, 64, 12, 12, 64, (3, 3), (1, 1), (1, 1), False, False, 4)
    machine, tight = load_machine("h2l-v0"), TileLimits(steps=1, samples=1, rows=1, columns=1, c=8, k=8)
    assert plan_forward(shape, machine, tight, 32).c == 32
    assert plan_backward(shape, machine, tight, 16, neuron=PLAIN_NEURON).k == 16
    block = (3, 2, 4, 12)
    assert plan_weights(shape, machine, tight, block).reduce_block == block
    assert plan_forward(shape, machine, tight).reduce_block == 8


def test_engines_that_a_head_waits_for_have_short_jobs_of_one_time_step() -> None:
    """Groups of looked up positions end with the step, or the sums would be others."""
    machine = load_machine("h2l-v0")
    shape = ConvShape(6, 2, 28, 28, 128, 28, 28, 128, (3, 3), (1, 1), (1, 1), False, False, 2)
    plain, back = (
        plan_backward(shape, machine, FREE, neuron=PLAIN_NEURON, jobs=jobs) for jobs in (Jobs.LONG, Jobs.SHORT)
    )
    assert back.by_steps and not plain.by_steps and back.steps > 1
    assert backward_job(shape, replace(back, steps=1), machine) <= BACKWARD_TURN < backward_job(shape, plain, machine)
    long, short = (plan_weights(shape, machine, FREE, jobs=jobs) for jobs in (Jobs.LONG, Jobs.SHORT))
    assert short.by_steps and not long.by_steps
    assert weights_job(shape, replace(short, steps=1), machine) <= UPDATE_TURN < weights_job(shape, long, machine)
    odd = plan_weights(shape, machine, FREE, (6, 1, 9, 9), jobs=Jobs.SHORT)
    assert odd.steps == 6 and not odd.by_steps


@pytest.mark.parametrize("inputs", [(256, 7), (4096, 1)], ids=["behind maps", "behind a linear layer"])
def test_jobs_between_those_of_other_streams_have_operands_of_a_turn_on_chip(inputs: tuple[int, int]) -> None:
    """More and smaller pieces of weights than two, which fill most of the memory."""
    machine = share(load_machine("h2l-v0"), HEAD, (ENTRY, HEAD))
    channels, side = inputs
    shape = ConvShape(6, 2, side, side, channels, 1, 1, 4096, (side, side), (1, 1), (0, 0), True, False, 2)
    alone, ahead = (plan_forward(shape, machine, FREE, jobs=jobs) for jobs in (Jobs.LONG, Jobs.BETWEEN))
    assert alone.ahead == SLOTS < ahead.ahead
    assert ahead.taps * ahead.c * ahead.k <= alone.taps * alone.c * alone.k
    assert fits(forward_buffers(replace(shape, kernel=(1, 1), in_h=1, in_w=1), ahead, machine), machine)
    assert 2 * ahead.ahead * ahead.taps * ahead.c * ahead.k * shape.item > machine.memory_bytes("W")
    plain, back = (
        plan_backward(replace(shape, real=False), machine, FREE, neuron=PLAIN_NEURON, jobs=jobs)
        for jobs in (Jobs.LONG, Jobs.BETWEEN)
    )
    assert plain.ahead == SLOTS < back.ahead
    taps = back.rows * back.columns
    assert machine.memory_bytes("W") // 2 < back.ahead * taps * back.c * back.k * 2 <= machine.memory_bytes("W")


def test_a_layer_summed_in_front_has_as_many_slots_of_operands() -> None:
    machine = share(load_machine("h2l-v0"), HEAD, (ENTRY, HEAD))
    shape = ConvShape(6, 2, 1, 1, 4096, 1, 1, 4096, (1, 1), (1, 1), (0, 0), False, False, 2)
    tile = plan_backward(shape, machine, FREE, neuron=PLAIN_NEURON, joined=Joined(shape, 64), jobs=Jobs.BETWEEN)
    assert tile.ahead > SLOTS
    assert tile.ahead * tile.c * (tile.k + 64) * shape.item <= machine.memory_bytes("W")


@pytest.mark.parametrize("ahead", [2, 3, 4, 6])
@pytest.mark.parametrize("load", [40, 90, 256, 512])
def test_time_between_turns_is_that_of_a_step_by_step_count(ahead: int, load: int) -> None:
    """An engine with jobs of 90 cycles gets a turn after every 1,540 of another stream; a slot is filled when free."""
    job, wait, jobs = 90, 1540, 4000
    filled = [0.0] * jobs
    now, channel = 0.0, 0.0
    for number in range(jobs):
        free = 0.0 if number < ahead else filled[number - ahead]  # when the job before has left the slot
        channel = max(channel, free) + load
        if channel > now:
            now = max(now + wait, channel) if number else channel
        now += job
        filled[number] = now
    assert between_turns(job, load, ahead, wait) == pytest.approx(now / jobs, rel=0.12)
    assert between_turns(job, load, ahead, 0) == job


def test_a_neuron_gradient_that_has_no_room_gets_its_own_stage() -> None:
    """A kernel of very many positions: all taps of 64 channels of gradients fill the memories."""
    shape = ConvShape(4, 1, 16, 16, 128, 16, 16, 256, (11, 11), (1, 1), (5, 5), False, False, 4)
    machine = load_machine("h2l-v0")
    tile = plan_backward(shape, machine, FREE, neuron=PLAIN_NEURON)
    assert not tile.fused and fits(backward_buffers(shape, tile, machine), machine)
    assert plan_backward(replace(shape, kernel=(3, 3), padding=(1, 1)), machine, FREE, neuron=PLAIN_NEURON).fused


def test_what_fits_nowhere_is_refused_with_the_machine_s_name() -> None:
    shape = ConvShape(1, 1, 64, 64, 512, 64, 64, 8, (63, 63), (1, 1), (31, 31), False, False, 4)
    with pytest.raises(H2LearnError, match="no forward tile fits the on-chip memories of small"):
        plan_forward(shape, SMALL, FREE)


@pytest.mark.parametrize(("channels", "named", "better"), [((500, 500), 500, 512), ((512, 1001), 1001, 1008)])
def test_channels_that_cannot_be_cut_are_named(channels: tuple[int, int], named: int, better: int) -> None:
    c, k = channels
    shape = ConvShape(1, 1, 1, 1, c, 1, 1, k, (1, 1), (1, 1), (0, 0), False, False, 4)
    with pytest.raises(H2LearnError, match="no forward tile fits") as caught:
        plan_forward(shape, SMALL, FREE)
    assert f"which {named} has not: take {better}," in caught.value.hint
    plan_forward(replace(shape, c=-(-c // 16) * 16, k=-(-k // 16) * 16), SMALL, FREE)


def test_positions_keep_steps_and_units() -> None:
    def usage(t: Tile) -> Usage:
        return Usage(A=2 * t.steps * t.positions * t.k * 4)

    tile = plan_positions(
        8, 4, 30, 30, 96, usage, SMALL, TileLimits(rows=7), whole_steps=True, row_unit=2, column_unit=3
    )
    assert tile.steps == 8 and tile.rows % 2 == 0 and tile.rows <= 7 and tile.columns % 3 == 0
    assert 96 % tile.k == 0 and fits([("A", usage(tile).A, 1)], SMALL)


@pytest.mark.parametrize("shape", [(9, 64, 128), (1, 5000, 10), (7,), (1, 1, 1)])
def test_parameter_rows_fit_two_slots(shape: tuple[int, ...]) -> None:
    for limit in (None, 64):
        per_row, rows = plan_rows(shape, 12, 100_000, TileLimits(elements=limit))
        assert int(np.prod(shape)) % per_row == 0
        assert 2 * 12 * per_row * rows <= 100_000
        assert limit is None or rows == 1 or per_row * rows <= limit


@pytest.mark.parametrize("capacity", [1, 24, 500, 12_288, 100_000, 10_000_000])
@pytest.mark.parametrize("shape", [(9, 64, 128), (9, 64, 512), (1, 512, 1000), (1, 5000, 10), (1, 1, 1), (3, 7, 1021)])
def test_rows_of_storage_copies_fit_and_fill_bursts(shape: tuple[int, ...], capacity: int) -> None:
    for limit in (None, 64):
        channels, rows = plan_channels(shape, 12, capacity, TileLimits(elements=limit), 64)
        assert shape[-1] % channels == 0 and 1 <= rows <= shape[0] * shape[1]
        assert channels * rows == 1 or (2 * 12 * channels * rows <= capacity and channels * rows <= (limit or capacity))


def test_tiles_of_storage_copies_fill_bursts_in_planes() -> None:
    """512 elements a tile: rows of 512 channels would move 16 bytes of a plane; whole rows where there are enough."""
    tiles = [plan_channels((9, 64, k), 12, 12_288, TileLimits(), 64) for k in (512, 256, 128, 64, 32)]
    assert tiles == [(128, 4), (128, 4), (128, 4), (64, 8), (32, 16)]
    assert plan_channels((9, 64, 512), 12, 2 * 12 * 512 * 63, TileLimits(), 64) == (512, 60)


@pytest.mark.parametrize("kernel", range(1, 6))
@pytest.mark.parametrize("stride", range(1, 4))
@pytest.mark.parametrize("padding", range(3))
def test_gradient_tiles_hold_every_gradient_that_reaches_a_row(kernel: int, stride: int, padding: int) -> None:
    count, tiles = 2 * stride, 4
    rows, offset, first = gradient_extent(count, kernel, stride, padding)
    needed = set()
    for row in range(count * tiles):
        for tap in range(kernel):
            source = row + padding - tap
            if source % stride == 0:
                start = first + row // count * count // stride
                inside = row % count + offset - tap
                assert inside % stride == 0 and inside // stride + start == source // stride
                assert 0 <= inside // stride < rows
                needed.add(inside // stride)
    assert max(needed) == rows - 1


def test_limits_are_read_and_written() -> None:
    limits = TileLimits.parse(" rows=4, k=8 ,")
    assert limits == TileLimits(rows=4, k=8) and TileLimits.parse(str(limits)) == limits
    assert TileLimits.parse("") == TileLimits() and str(TileLimits()) == ""
    chosen = TileLimits.parse("double_buffering=off,overlap=serial")
    assert chosen.slots == 1 and TileLimits.parse("double_buffering=on").slots == TileLimits().slots == 2
    assert TileLimits.parse(str(chosen)) == chosen


def test_groups_are_read_and_written() -> None:
    limits = TileLimits.parse("groups=1+3+4+4,c=8")
    assert limits.groups == (1, 3, 4, 4) and TileLimits.parse(str(limits)) == limits


@pytest.mark.parametrize("text", ["groups=", "groups=1+", "groups=1+x", "groups=0+4", "groups=4,4", "groups"])
def test_groups_that_cannot_be_read(text: str) -> None:
    with pytest.raises(H2LearnError, match=r"cannot read the (groups|tile limit)"):
        TileLimits.parse(text)


@pytest.mark.parametrize("text", ["overlap=never", "double_buffering=1", "double_buffering"])
def test_choices_that_do_not_exist(text: str) -> None:
    with pytest.raises(H2LearnError, match=f"there is no {text.partition('=')[0]}"):
        TileLimits.parse(text)


@pytest.mark.parametrize("text", ["width=4", "rows", "rows=0", "rows=-1", "rows=x", "rows==2", "4"])
def test_limits_that_cannot_be_read(text: str) -> None:
    with pytest.raises(H2LearnError, match="cannot read the tile limit"):
        TileLimits.parse(text)
