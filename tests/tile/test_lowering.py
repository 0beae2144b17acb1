"""From ``lut`` to instructions: where every instruction says it came from, and what a stage is made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from xdsl.dialects import builtin

import h2learn
from h2learn.backends.h2learn.errors import H2LearnError
from h2learn.compiler.autodiff.spec import Train
from h2learn.compiler.driver import Recipe, compile_to, emit_program
from h2learn.compiler.frontends.dsl import parse_snn
from h2learn.compiler.model import Model
from h2learn.dialects import tile
from h2learn.dialects.common import source_of
from h2learn.runtime.loader import LoadedProgram, load

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPE = Recipe(train=Train(), limits="rows=3,k=8,c=8,steps=2,group=1")


@pytest.fixture(scope="module")
def model() -> Model:
    return h2learn.load_model(EXAMPLES / "digits.snn").with_batch(4)


@pytest.fixture(scope="module")
def lowered(model: Model) -> builtin.ModuleOp:
    return compile_to(model, RECIPE, "tile")


@pytest.fixture(scope="module")
def program(model: Model) -> LoadedProgram:
    return load(emit_program(model, compile_to(model, RECIPE, "h2"), RECIPE))


def test_a_fault_can_name_stage_and_iterations(program: LoadedProgram) -> None:
    (pc,) = (pc for pc, item in enumerate(program.code) if item.mnemonic == "fe.run")
    assert program.depths[pc] == 3
    text = program.describe(pc, range(3))
    assert text.startswith(f"pc {pc} (") and ".snn:" in text
    assert text.endswith(", forward f1, group=0, t=1, c=2)")


def test_loops_and_buffers_of_what_runs_once(lowered: builtin.ModuleOp) -> None:
    """No loop inside a stage runs once, and only what a loop allocates again and again has several slots."""
    inside = [op for stage in lowered.walk() if isinstance(stage, tile.StageOp) for op in stage.walk()]
    assert all(op.trips.data > 1 for op in inside if isinstance(op, tile.ForOp))
    allocs = [op for op in inside if isinstance(op, tile.AllocOp)]
    assert {isinstance(op.parent_op(), tile.ForOp) for op in allocs if op.slots.data > 1} == {True}
    assert any(isinstance(op.parent_op(), tile.StageOp) for op in allocs)


def test_every_instruction_says_where_it_came_from(program: LoadedProgram) -> None:
    stages = {"forward", "neuron", "pool", "readout", "loss", "gradient", "weights", "bias", "backward"}
    stages |= {"unpool", "time", "optimizer", "update", "entry"}  # the last are streams, too: loops over groups
    for pc, item in enumerate(program.code):
        assert item.mnemonic == "halt" or ".snn:" in program.source(pc)
        depth = program.depths[pc]
        if depth:
            parts = program.describe(pc, range(depth)).partition(" (")[2].rstrip(")").split(", ")
            place, *loops = parts[1 + parts[0].startswith("stream ") :]
            assert place.split()[0] in stages and len(loops) == depth
            assert not any(loop.startswith("loop ") for loop in loops)


def test_no_two_stages_have_one_name(lowered: builtin.ModuleOp) -> None:
    labels = [op.label.data for op in lowered.walk() if isinstance(op, tile.StageOp)]
    assert len(set(labels)) == len(labels)
    assert {"forward c1", "forward f1", "weights c1", "optimizer f1.bias"} <= set(labels)


def test_every_op_of_a_stage_has_its_location(lowered: builtin.ModuleOp) -> None:
    for stage in lowered.walk():
        if isinstance(stage, tile.StageOp):
            jobs = [op for op in stage.walk() if isinstance(op, tile.JobOp | tile.CopyOp | tile.TokenOp | tile.ForOp)]
            assert jobs and {source_of(op) for op in jobs} == {source_of(stage)} and source_of(stage)


def test_a_stage_that_has_no_room_is_named_by_its_place() -> None:
    text = "network n\ninput x: 4 spikes over time\ntime steps: 20000\nlinear f: 3 features\nli: decay 0.5\n"
    with pytest.raises(H2LearnError, match="no tile fits") as caught:
        h2learn.compile(parse_snn(f"{text}readout membrane mean\n", "net.snn"), "h2l-edge")
    assert str(caught.value.location) == "net.snn:6:1"


def test_buffers_have_addresses_and_tokens_have_both_ends(lowered: builtin.ModuleOp) -> None:
    posted, awaited = set(), set()
    for op in lowered.walk():
        if isinstance(op, tile.AllocOp):
            assert op.address is not None and op.address.data % 64 == 0
        elif isinstance(op, tile.SignalOp):
            posted.add(op.token.data)
        elif isinstance(op, tile.WaitOp):
            awaited.add(op.token.data)
    assert posted == awaited == set(range(len(posted)))


def test_loads_stand_where_their_counters_need_them(lowered: builtin.ModuleOp) -> None:
    """Weights of one reduction block are loaded once per channel tile, not once per sample or row."""
    stage = next(op for op in lowered.walk() if isinstance(op, tile.StageOp) and op.label.data == "forward f1")
    (weights,) = (op for op in stage.walk() if isinstance(op, tile.LoadOp) and op.buffer.name_hint == "weights")
    (fill,) = (op for op in stage.walk() if isinstance(op, tile.FeFillOp))
    loop = weights.parent_op()
    assert isinstance(loop, tile.ForOp) and loop is fill.parent_op()
    assert loop.label.data in ("k", "c")
